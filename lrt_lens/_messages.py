r"""Text for a terminal, a log or a message.

Problem: the name of a model, a hook point or a file may hold line ends, terminal escapes or
invisible characters. Mechanism: characters that do not print are written as their escapes.

    printable("a\x1b[31mb")           # "a\\x1b[31mb"
    one_line("first\nsecond")         # "first second"

Limits: markup of rich is not escaped, because nothing is printed as markup.
"""

import re


def printable(text: object) -> str:
    """Return a text with line ends, terminal escapes and invisible characters as escapes."""
    return "".join(
        character if character.isprintable() else ascii(character)[1:-1] for character in str(text)
    )


def one_line(text: object) -> str:
    """Return a text as one line: line ends become blanks, other control characters escapes."""
    return printable(re.sub(r"\s*[\r\n]+\s*", " ", str(text).strip()))


def lines(text: object) -> str:
    """Return a text whose line feeds and tabs stay and whose other characters are `printable`."""
    return re.sub(r"[^\n\t]+", lambda part: printable(part[0]), str(text))
