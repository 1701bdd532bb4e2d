"""The reference: one page per package of public names, written before Sphinx reads the pages.

Problem: names are added often, and a list that is kept by hand misses some. Mechanism: the public
names are those in the `__init__.pyi` of each package. A page shows each name of its package, then
the docstrings of the modules that define them. The pages are written to docs/reference, which git
ignores, and only if their text has changed, so that Sphinx does not read unchanged pages again.
Annotations of jaxtyping are shortened to `Float[Tensor, 'token d']`.

Limits: an annotation that is a string is not searched for the classes of the last page.
"""

import inspect
import re
import typing
from importlib import import_module
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

import lrt_lens


def public_names() -> dict[str, list[str]]:
    """Return the public names by the package that lists them, without subpackages."""
    names = {}
    for package in lrt_lens._PACKAGES:
        module = import_module(f"lrt_lens.{package}")
        names[package] = [
            name for name in module.__all__ if not inspect.ismodule(getattr(module, name))
        ]
    return {package: listed for package, listed in names.items() if listed}


def source_modules(package: str, names: list[str]) -> list[str]:
    """Return the modules in which the classes and functions of a package are defined."""
    values = [getattr(import_module(f"lrt_lens.{package}"), name) for name in names]
    defined = [getattr(value, "__module__", "") for value in values]
    return list(dict.fromkeys(name for name in defined if name.startswith("lrt_lens.")))


def directive(name: str) -> list[str]:
    """Return the directive of autodoc that documents one name."""
    value = getattr(lrt_lens, name)
    if inspect.isclass(value):
        is_error = issubclass(value, BaseException)
        head = [f".. auto{'exception' if is_error else 'class'}:: {name}", "   :members:"]
        # Members of a private base are on no page of their own.
        return [*head, "   :inherited-members:"] if has_private_base(value) else head
    return [
        f".. auto{'function' if callable(value) and hasattr(value, '__name__') else 'data'}:: "
        f"{name}"
    ]


def has_private_base(kind: type) -> bool:
    """Return whether a class has a base of this package with members that is not public."""
    return any(
        base.__module__.startswith("lrt_lens.")
        and getattr(lrt_lens, base.__name__, None) is not base
        and any(not name.startswith("_") for name in vars(base))
        for base in kind.__bases__
    )


def page(package: str, names: list[str]) -> str:
    """Return one page in reStructuredText: a table of its names, then each of them."""
    title = f"lrt_lens.{package}"
    about = inspect.getdoc(import_module(title)) or ""
    lines = [title, "=" * len(title), "", about.split("\n\n")[0], "", ".. currentmodule:: lrt_lens"]
    lines += ["", ".. autosummary::", "   :nosignatures:", "", *(f"   {name}" for name in names)]
    for name in names:
        lines += ["", *directive(name)]
    modules = source_modules(package, names)
    if modules:
        lines += ["", "Background", "----------"]
    for module in modules:
        lines += ["", module, "~" * len(module), "", f".. automodule:: {module}"]
    return "\n".join(lines) + "\n"


def mentioned(annotation: Any) -> set[type]:
    """Return the public-looking classes of this package in an annotation, at any depth."""
    if (
        inspect.isclass(annotation)
        and annotation.__module__.startswith("lrt_lens.")
        and not annotation.__name__.startswith("_")
    ):
        return {annotation}
    return {found for part in typing.get_args(annotation) for found in mentioned(part)}


def annotations_of(value: Any) -> list[Any]:
    """Return the annotations of a function, or of a class, its public methods and its fields."""
    members = [value]
    if inspect.isclass(value):
        # `fget` is the function of a property, `__func__` (below) that of a classmethod.
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
    """Return the full names of classes that public names take or return and that are not public."""
    values = [getattr(lrt_lens, name) for names in public_names().values() for name in names]
    public = {value for value in values if inspect.isclass(value)}
    mentions = {
        cls for value in values for hint in annotations_of(value) for cls in mentioned(hint)
    }
    return sorted(f"{cls.__module__}.{cls.__qualname__}" for cls in mentions - public)


def supporting_page() -> str:
    """Return the page of the classes that are not public, from `supporting`."""
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
    """Return the text of each page of the reference, and of the index, by file name."""
    written = {f"{package}.rst": page(package, names) for package, names in public_names().items()}
    written["supporting.rst"] = supporting_page()
    index = [
        "Reference",
        "=========",
        "",
        "The names that most users need, all in ``lrt_lens``:",
        "",
    ]
    index += [".. currentmodule:: lrt_lens", "", ".. autosummary::", "   :nosignatures:", ""]
    listed = {name for names in public_names().values() for name in names}
    top = [name for name in lrt_lens.__all__ if name in listed]
    index += [f"   {name}" for name in top]
    index += ["", "Every public name, by package. ``lrt_lens.NAME`` finds each of them.", ""]
    index += [".. toctree::", "   :maxdepth: 1", ""]
    index += [f"   {name.removesuffix('.rst')}" for name in written]
    index += ["   command_line"]  # written by docs/_ext/command_line.py
    return {"index.rst": "\n".join(index) + "\n", **written}


def write_pages(app: Sphinx) -> None:
    """Write the pages whose text has changed, and remove pages of packages that are gone."""
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
    """Return `~jaxtyping.Float[Tensor, 'token d']` as `Float[Tensor, 'token d']`."""
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
    """Return signature and return type of autodoc with short array types."""
    del app, what, name, value, options
    return shorten(signature), shorten(returns)


SECTION = re.compile(
    r"(Args|Arguments|Returns|Raises|Yields|Attributes|Note|Notes|Limits|Examples?):"
)


def show_code(
    app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]
) -> None:
    """Turn indented blocks in the prose of a docstring into blocks of code.

    It runs before napoleon, which would turn them into quotations or paragraphs. An indented block
    is code after the heading `Example:`, and after a blank line that follows a line of text that is
    neither indented, nor a list item, nor the heading of another section.
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
    """Connect the steps of this module to the events of Sphinx."""
    app.setup_extension("sphinx.ext.autosummary")
    app.connect("builder-inited", write_pages)
    app.connect("autodoc-process-signature", shorten_signature)
    # Napoleon has the default priority, 500; a lower number runs earlier.
    app.connect("autodoc-process-docstring", show_code, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
