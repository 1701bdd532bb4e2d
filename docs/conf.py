"""Settings of the documentation: `make docs` builds it into build/docs, without a network.

The pages are Markdown (myst). The tutorials are notebooks, which every build runs (myst-nb). The
reference comes from the docstrings. docs/_ext has the extensions that Sphinx and its themes lack,
one concept per module.
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
        f"the documentation needs {', '.join(missing)}, but this Python ({sys.executable}) does "
        "not have it; run `make docs`, which creates its own environment, or "
        "`pip install -e '.[dev,examples,docs]'` in the root of the repository"
    )

# docs/_ext is added to the path above, which pyright does not see.
from inventories import external_inventories  # noqa: E402 # pyright: ignore[reportMissingImports]

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
    "command_line",
    "performance",
    "vector_formats",
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
    "myst.header",  # CHANGELOG: a heading level is left out before `Added`
    "misc.highlighting_failure",  # some illustrations have `…` in their code
]
nitpicky = True
# Names of other projects resolve only if their inventories are available
# (docs/_ext/inventories.py).
nitpick_ignore_regex = [
    (r"py:.*", r"(?!lrt_lens\b).*"),
    # Private names, which have no page in the reference.
    (r"py:.*", r"lrt_lens\.[a-z_]+\..*"),
]

# tutorials
nb_execution_mode = os.environ.get("LRT_LENS_DOCS_NOTEBOOKS", "force")
nb_execution_timeout = 180
nb_execution_raise_on_error = True
nb_merge_streams = True
# Notebooks that are not run, for a quick look at another page.
nb_execution_excludepatterns = os.environ.get("LRT_LENS_DOCS_LEAVE_OUT", "").split()
# Kernels run docs/_ipython/profile_default/startup, which writes figures without plotly.js: the
# page loads one copy for all of them.
os.environ["IPYTHONDIR"] = str(DOCS / "_ipython")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# The progress bars of transformers, while a model loads, would stay in the page.
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# reference
default_role = "literal"
add_module_names = False
autosummary_generate = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
# Some signatures show the fields of a settings object (lrt_lens/_settings.py). Their defaults are
# not in the source of the function, so Sphinx cannot preserve them.
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
html_domain_indices = False  # the pages of the reference list the modules
html_show_sourcelink = False
html_show_copyright = False


def spread_tutorials(app: Sphinx, env: Any, docnames: list[str]) -> None:
    """Spread the tutorials evenly over the list of pages.

    A parallel build cuts the list into contiguous shares, one per process, and a tutorial takes
    long to read, because it is run.
    """
    del app, env
    tutorials = [name for name in docnames if name.startswith("tutorials/")]
    for number, name in enumerate(tutorials):
        docnames.remove(name)
        docnames.insert(number * len(docnames) // len(tutorials), name)


def setup(app: Sphinx) -> None:
    """Connect the functions that are too small for an extension."""
    app.connect("env-before-read-docs", spread_tutorials)
