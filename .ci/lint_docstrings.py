"""Lint of docstrings: refuse those that are fragments.

Problem: readers see one docstring at a time, in ``help()`` or in an editor, and a text such as
``"Of the other one."`` needs its neighbour. Mechanism: the first words of every docstring of a
module, class or function, and of every string below a constant or field, are compared with
beginnings that do not stand alone.

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


def docstrings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of every string that stands alone as a statement."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            text = node.value.value
            if isinstance(text, str):
                yield node.lineno, text.strip()


def fragments(path: Path) -> list[str]:
    """Return one message per docstring of a file that does not stand alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [
        f"{path}:{line}: {text.splitlines()[0]!r} does not stand alone; begin with a verb or with"
        " a noun phrase that names what it describes"
        for line, text in docstrings(tree)
        if FRAGMENT.match(text)
    ]


def main(folders: list[str]) -> int:
    """Write the fragments below the folders to standard output; return the exit status."""
    files = [path for folder in folders for path in sorted(Path(folder).rglob("*.py"))]
    found = [message for path in files for message in fragments(path)]
    for message in found:
        sys.stdout.write(f"{message}\n")
    return 1 if found or not files else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
