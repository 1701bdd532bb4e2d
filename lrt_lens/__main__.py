"""Command line of the package: ``python -m lrt_lens``."""

from lrt_lens.cli import main

main()
