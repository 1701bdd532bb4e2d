"""Test of whether what is written to stderr goes into a log.

Problem: a bar that redraws itself suits a terminal and a notebook, and fills a log. Mechanism: a
log is everything else.

    if is_log(): ...

Limits: tqdm decides what a notebook is, once, when it is imported.
"""

import sys

from tqdm import auto


def is_log() -> bool:
    """Return whether what is written to stderr is neither on a terminal nor in a notebook."""
    is_notebook = any("notebook" in kind.__module__ for kind in auto.tqdm.__mro__)
    return not is_notebook and (sys.stderr is None or not sys.stderr.isatty())
