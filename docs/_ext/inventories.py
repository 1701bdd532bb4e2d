"""Targets of links to the documentation of other projects, by default without the network.

Problem: intersphinx fetches the inventory of each project at every build, so that a build without a
network warns, and a build with one depends on the servers of other projects. Mechanism:
- By default there is no inventory, and names of other projects stay plain text.
- `LRT_LENS_DOCS_ONLINE=1` fetches the inventories.
- `LRT_LENS_DOCS_INVENTORIES=FOLDER` reads them from the files `torch.inv`, `transformer_lens.inv`,
  … of that folder.

Limits: names of a project without a file in the folder stay plain text; other files are ignored.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from sphinx.errors import ConfigError

SITES = {
    "torch": "https://docs.pytorch.org/docs/stable/",
    "transformer_lens": "https://transformerlensorg.github.io/TransformerLens/",
    "sae_lens": "https://decoderesearch.github.io/SAELens/",
    "pandas": "https://pandas.pydata.org/docs/",
    "plotly": "https://plotly.com/python-api-reference/",
    "python": "https://docs.python.org/3/",
}


def external_inventories(
    environment: Mapping[str, str] = os.environ,
) -> dict[str, tuple[str, str | None]]:
    """Return `intersphinx_mapping`: empty, local inventory files, or the sites of the projects.

    Raises:
        ConfigError: the folder in LRT_LENS_DOCS_INVENTORIES has no file of a known project.
    """
    folder = environment.get("LRT_LENS_DOCS_INVENTORIES")
    if folder:
        found: dict[str, tuple[str, str | None]] = {
            name: (site, str(path.resolve()))
            for name, site in SITES.items()
            if (path := Path(folder) / f"{name}.inv").exists()
        }
        if not found:
            raise ConfigError(
                f"LRT_LENS_DOCS_INVENTORIES={folder} holds none of "
                f"{', '.join(f'{name}.inv' for name in SITES)}; save at least one objects.inv "
                "there under such a name, or unset the variable to build without inventories"
            )
        return found
    if environment.get("LRT_LENS_DOCS_ONLINE") == "1":
        # None makes intersphinx fetch `objects.inv` below the site.
        return {name: (site, None) for name, site in SITES.items()}
    return {}
