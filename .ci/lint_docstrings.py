"""Lint of docstrings: refuse those that are fragments or that Sphinx would show wrongly.

Problem: readers see one docstring at a time, in ``help()`` or in an editor, and a text such as
``"Of the other one."`` needs its neighbour. Mechanism: the first words of every docstring of a
module, class or function, and of every string below a constant or field, are compared with
beginnings that do not stand alone. The first line of a property's docstring must have no colon
outside of code, because Sphinx shows the words before a colon as the property's type.

    python .ci/lint_docstrings.py lrt_lens tests docs        # exit status 1 if it finds any

Limits: it knows beginnings, not meanings.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

FRAGMENT = re.compile(
    r"(?:Of|The same|As it|As they|As in|Another|All of|What|Where|Whether|Or|And|But)\b|[(\[]"
)
"""Beginnings that need the text around them."""
CODE = re.compile("`+[^`]*`+")
"""Literals, whose colons are not read."""
TYPE = re.compile(r":\s")
"""A colon between words."""


def docstrings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of every string that stands alone as a statement."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            text = node.value.value
            if isinstance(text, str):
                yield node.lineno, text.strip()


def properties(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, first line of the docstring) of every property."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            decorators = " ".join(ast.unparse(decorator) for decorator in node.decorator_list)
            text = ast.get_docstring(node)
            if text and "property" in decorators:
                yield node.lineno, text.splitlines()[0]


def faults(path: Path) -> list[str]:
    """Return one message per docstring of a file that is a fragment or would be shown wrongly."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    fragments = [
        f"{path}:{line}: {text.splitlines()[0]!r} does not stand alone; begin with a verb or with"
        " a noun phrase that names what it describes"
        for line, text in docstrings(tree)
        if FRAGMENT.match(text)
    ]
    types = [
        f"{path}:{line}: {text!r} has a colon, and Sphinx would show the words before it as a type;"
        " write the sentence without it"
        for line, text in properties(tree)
        if TYPE.search(CODE.sub("", text))
    ]
    return fragments + types


def main(folders: list[str]) -> int:
    """Write the faults below the folders to standard output; return the exit status."""
    files = [path for folder in folders for path in sorted(Path(folder).rglob("*.py"))]
    found = [message for path in files for message in faults(path)]
    for message in found:
        sys.stdout.write(f"{message}\n")
    return 1 if found or not files else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
