"""Settings of the documentation: `make docs` builds it into build/docs, without a network.

The pages are Markdown (myst), the tutorials notebooks that every build runs (myst-nb), the
reference comes from the docstrings. What Sphinx and its themes do not bring along is in docs/_ext,
a concept a module.
"""

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.errors import ConfigError

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(DOCS / "_ext"))

NEEDED = ("furo", "myst_nb", "sphinx_copybutton", "sphinx_design", "ipykernel", "lrt_lens")
missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
if missing:
    raise ConfigError(
        f"the documentation needs {', '.join(missing)}, which this Python ({sys.executable}) does "
        "not have; "
        "run `make docs`, which sets itself up, or `pip install -e '.[dev,examples,docs]'` in the "
        "repository's root"
    )

from inventories import external_inventories  # noqa: E402 # pyright: ignore[reportMissingImports] (docs/_ext comes onto the path above)

import lrt_lens  # noqa: E402

project = "lrt_lens"
author = "lrt_lens contributors"
copyright = author
release = version = lrt_lens.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "myst_nb",
    "sphinx_copybutton",
    "sphinx_design",
    "reference",
    "performance",
    "citation",
    "gallery",
    "plotly_figures",
]
exclude_patterns = ["_ext", "_static", "_ipython", "**/.ipynb_checkpoints"]
templates_path = ["_templates"]

# pages
myst_enable_extensions = ["colon_fence", "deflist", "attrs_inline"]
myst_heading_anchors = 4
suppress_warnings = [
    "myst.header",  # `Added` and the like at a depth of their own
    "misc.highlighting_failure",  # ellipses in illustrations
]
nitpicky = True
# Names of other projects resolve only where their inventories are at hand
# (docs/_ext/inventories.py).
nitpick_ignore_regex = [
    (r"py:.*", r"(?!lrt_lens\b).*"),
    (
        r"py:.*",
        r"lrt_lens\.[a-z_]+\..*",
    ),  # what stands behind the public surface, where the reference has no page of it
]

# tutorials
nb_execution_mode = os.environ.get("LRT_LENS_DOCS_NOTEBOOKS", "force")
nb_execution_timeout = 180
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_execution_excludepatterns = os.environ.get(
    "LRT_LENS_DOCS_LEAVE_OUT", ""
).split()  # not run, to see one page sooner
# Kernels find docs/_ipython/profile_default/startup, which makes figures leave plotly.js out: the
# page loads one copy for all.
os.environ["IPYTHONDIR"] = str(DOCS / "_ipython")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault(
    "HF_HUB_DISABLE_PROGRESS_BARS", "1"
)  # transformers' bars as models load, which would stay in the page
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# reference
default_role = "literal"
add_module_names = False
autosummary_generate = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
# Signatures that show the fields of a settings object (lrt_lens/_settings.py) have no defaults in the
# source for Sphinx to preserve.
autodoc_preserve_defaults = False
napoleon_numpy_docstring = False
intersphinx_mapping = external_inventories()
intersphinx_timeout = 10

# looks
html_theme = "furo"
html_title = "lrt_lens"
html_static_path = ["_static"]
html_favicon = "_static/favicon.svg"
html_css_files = ["site.css"]
html_theme_options = {"navigation_with_keys": True, "top_of_page_buttons": []}
html_copy_source = False
html_domain_indices = False  # modules stand on the reference's pages
html_show_sourcelink = False
html_show_copyright = False


def spread_tutorials(app: Sphinx, env: Any, docnames: list[str]) -> None:
    """Puts the tutorials, which are run as they are read, into different shares of a parallel
    build: Sphinx cuts the list into runs.
    """
    del app, env
    tutorials = [name for name in docnames if name.startswith("tutorials/")]
    for number, name in enumerate(tutorials):
        docnames.remove(name)
        docnames.insert(number * len(docnames) // len(tutorials), name)


def setup(app: Sphinx) -> None:
    """Connects what is too small for an extension of its own."""
    app.connect("env-before-read-docs", spread_tutorials)
