"""The reference: a page a group of public names, written from `lrt_lens.__all__` before the pages
are read.

Problem: names are added every week, and a list kept by hand forgets some. Mechanism: `_HOME` says
in which module a name lives; the longest prefix in `GROUPS` says on which page it is shown. The
pages go to docs/reference (ignored by git) and are only touched when they change. Annotations of
jaxtyping are shortened to what a reader wants, `Float[Tensor, 'token d']`.

Limits: a module that no prefix covers fails the build, with the line to add.
"""

import inspect
import re
import typing
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

import lrt_lens

GROUPS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "models": ("Models", "Two models with named hook points, and the bundled pair.", ("models",)),
    "data": ("Texts", "Documents, contrast sets and items; the bundled ones.", ("data",)),
    "alignment": (
        "Alignment of tokenizers",
        "Positions of two tokenizations that have read the same text.",
        ("data.alignment", "data.boundaries", "data.retokenizing"),
    ),
    "moments": (
        "Harvest and moments",
        "One pass of both models, and the sums that it leaves.",
        (
            "stitching.harvest",
            "stitching.moments",
            "stitching.plan",
            "stitching.scale_out",
            "stitching.checkpoint",
            "stitching.cache",
        ),
    ),
    "solvers": (
        "Solvers",
        "Families of maps, all from the same moments; and the papers' own recipes.",
        ("stitching.solvers", "stitching.recipes"),
    ),
    "stitches": (
        "Maps, stitches, grids",
        "What is fitted, chosen, kept and compared.",
        ("stitching",),
    ),
    "steering": (
        "Steering vectors",
        "Directions: learnt, carried, applied at a strength.",
        ("adapters", "evaluation.steering", "evaluation.agreement"),
    ),
    "probes": (
        "Probes",
        "Linear read-outs, dense and sparse.",
        ("adapters.probe", "evaluation.probes", "evaluation.sparse_probing"),
    ),
    "saes": (
        "Sparse autoencoders",
        "SAELens objects carried, trained and compared; single features and maps from codes.",
        (
            "adapters.sae",
            "adapters.codes",
            "evaluation.sae",
            "evaluation.sae_initialisation",
            "evaluation.sae_scaling",
            "evaluation.features",
            "evaluation.code_map",
            "evaluation.feature_matching",
            "evaluation.decoder_geometry",
        ),
    ),
    "concepts": (
        "Maps of concepts and other baselines",
        "L-Cross Modulation and what else crosses model families.",
        (
            "adapters.concept_map",
            "adapters.baselines",
            "evaluation.concept_transfer",
            "evaluation.concept_interpolation",
            "evaluation.family_baselines",
        ),
    ),
    "evaluation": (
        "Other evaluations",
        "The stitched model's loss, propensities, clamping and ablation.",
        ("evaluation",),
    ),
    "notebooks": (
        "In Jupyter",
        "What helps in a notebook.",
        ("exploration", "evaluation.compared_continuations", "report", "repr_html"),
    ),
    "reproduction": (
        "Reproduction",
        "What the scripts of the gallery share.",
        ("reproduction", "demo"),
    ),
    "errors": ("Errors", "What is raised where something would be silently wrong.", ("errors",)),
}


def group_of(module: str) -> str:
    """The page of a module, by the longest prefix.

    Raises:
        ExtensionError: no prefix covers it.
    """
    path = module.removeprefix("lrt_lens.")
    covering = [
        (len(prefix), name)
        for name, (*_, prefixes) in GROUPS.items()
        for prefix in prefixes
        if f"{path}.".startswith(f"{prefix}.")
    ]
    if not covering:
        raise ExtensionError(
            f"no page of the reference covers {module}: add its prefix to GROUPS in docs/_ext/reference.py"
        )
    return max(covering)[1]


def page(title: str, sentence: str, names: list[str]) -> str:
    """One page in reStructuredText: a table of its names, then each of them."""
    lines = [
        title,
        "=" * len(title),
        "",
        sentence,
        "",
        ".. currentmodule:: lrt_lens",
        "",
        ".. autosummary::",
        "   :nosignatures:",
        "",
    ]
    lines += [f"   {name}" for name in names]
    for name in names:
        value = getattr(lrt_lens, name)
        kind = (
            "exception"
            if inspect.isclass(value) and issubclass(value, BaseException)
            else "class"
            if inspect.isclass(value)
            else "function"
        )
        lines += ["", f".. auto{kind}:: {name}"] + (["   :members:"] if kind == "class" else [])
    lines += [
        "",
        "Why and how",
        "-----------",
        "",
        "What the modules behind these names say of themselves.",
    ]
    for module in dict.fromkeys(lrt_lens._HOME[name] for name in names):
        lines += ["", module, "~" * len(module), "", f".. automodule:: {module}"]
    return "\n".join(lines) + "\n"


def mentioned(annotation: Any) -> set[type]:
    """Classes of this package inside an annotation, however deep."""
    if (
        inspect.isclass(annotation)
        and annotation.__module__.startswith("lrt_lens.")
        and not annotation.__name__.startswith("_")
    ):
        return {annotation}
    return {found for part in typing.get_args(annotation) for found in mentioned(part)}


def annotations_of(value: Any) -> list[Any]:
    """Annotations of a function, or of a class, its public methods and its fields."""
    members = [value]
    if inspect.isclass(value):
        members += [
            getattr(member, "fget", member)
            for name, member in vars(value).items()
            if not name.startswith("_")
        ]
    members = [getattr(member, "__func__", member) for member in members]
    found: list[Any] = []
    for member in members:
        if inspect.isclass(member) or inspect.isfunction(member):
            found += [
                hint
                for hint in getattr(member, "__annotations__", {}).values()
                if not isinstance(hint, str)
            ]
    return found


def supporting() -> list[str]:
    """Classes that public names take or return and that are not public themselves, by their full
    names.
    """
    public = {
        getattr(lrt_lens, name)
        for name in lrt_lens._HOME
        if inspect.isclass(getattr(lrt_lens, name))
    }
    values = [getattr(lrt_lens, name) for name in lrt_lens._HOME]
    found = {
        cls for value in values for hint in annotations_of(value) for cls in mentioned(hint)
    } - public
    return sorted(f"{cls.__module__}.{cls.__qualname__}" for cls in found)


def supporting_page() -> str:
    """The page of those classes."""
    title = "Also taken or returned"
    lines = [
        title,
        "=" * len(title),
        "",
        "Classes behind the public names. They have no short name of their own.",
    ]
    for name in supporting():
        lines += ["", f".. autoclass:: {name}", "   :members:"]
    return "\n".join(lines) + "\n"


def pages() -> dict[str, str]:
    """File name → text, the index among them; groups without public names are left out."""
    members: dict[str, list[str]] = {name: [] for name in GROUPS}
    for name, module in lrt_lens._HOME.items():
        members[group_of(module)].append(name)
    written = {
        f"{group}.rst": page(*GROUPS[group][:2], names) for group, names in members.items() if names
    }
    written["supporting.rst"] = supporting_page()
    index = [
        "Reference",
        "=========",
        "",
        "Every public name of ``lrt_lens``, by what it is for.",
        "",
        ".. toctree::",
        "   :maxdepth: 1",
        "",
    ]
    index += [f"   {Path(name).stem}" for name in written]
    return {"index.rst": "\n".join(index) + "\n", **written}


def write_pages(app: Sphinx) -> None:
    """Writes what changed, removes what is gone."""
    folder = Path(app.srcdir) / "reference"
    folder.mkdir(exist_ok=True)
    wanted = pages()
    for old in folder.glob("*.rst"):
        if old.name not in wanted:
            old.unlink()
    for name, text in wanted.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def shorten(text: str | None) -> str | None:
    """`jaxtyping.Float[Tensor, 'token d']` and Sphinx's `~` marks → `Float[Tensor, 'token d']`."""
    return text if text is None else re.sub(r"~?\bjaxtyping\.(?:_\w+\.)*", "", text)


def shorten_signature(
    app: Sphinx,
    what: str,
    name: str,
    value: Any,
    options: Any,
    signature: str | None,
    returns: str | None,
) -> tuple[str | None, str | None]:
    """A signature of autodoc with short array types."""
    del app, what, name, value, options
    return shorten(signature), shorten(returns)


SECTION = re.compile(
    r"(Args|Arguments|Returns|Raises|Yields|Attributes|Note|Notes|Limits|Examples?):"
)


def show_code(
    app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]
) -> None:
    """Indented blocks of a docstring's prose become blocks of code, before napoleon would make
    quotations or paragraphs of them.
    """
    del app, what, name, value, options
    shown: list[str] = []
    before, blank, in_code = "", True, False
    for line in lines:
        indented = line.startswith("    ")
        example = re.fullmatch(r"Examples?:", before) is not None
        starts = (
            indented
            and not in_code
            and (
                example
                or (
                    blank
                    and before
                    and not before.startswith((" ", "-"))
                    and not SECTION.fullmatch(before)
                )
            )
        )
        if starts:
            shown += ["", ".. code-block:: python", "   :force:", ""]
        in_code = (in_code and (indented or not line.strip())) or bool(starts)
        shown.append(line)
        blank = not line.strip()
        before = before if blank else line.rstrip() if not in_code else before
    lines[:] = [line for line in shown if not re.fullmatch(r"Examples?:", line)]


def setup(app: Sphinx) -> dict[str, bool]:
    """Connects the writing of pages and the shortening of signatures."""
    app.setup_extension("sphinx.ext.autosummary")
    app.connect("builder-inited", write_pages)
    app.connect("autodoc-process-signature", shorten_signature)
    app.connect("autodoc-process-docstring", show_code, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
