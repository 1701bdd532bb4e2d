"""Where names of other projects point to, without asking the network unless told to.

Problem: intersphinx fetches an inventory of each project at every build, so a build without a
network warns, and one with it depends on other people's servers. Mechanism: no inventory by
default, names of other projects then stay plain text; `LRT_LENS_DOCS_ONLINE=1` fetches them;
`LRT_LENS_DOCS_INVENTORIES=FOLDER` reads `torch.inv`, `transformer_lens.inv`, … that were fetched
before.

Limits: the folder may hold some of them only; what else it holds is not looked at.
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
    """`intersphinx_mapping`: nothing, local inventory files, or the projects' own sites."""
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
                f"{', '.join(f'{name}.inv' for name in SITES)}"
            )
        return found
    if environment.get("LRT_LENS_DOCS_ONLINE") == "1":
        return {name: (site, None) for name, site in SITES.items()}
    return {}
