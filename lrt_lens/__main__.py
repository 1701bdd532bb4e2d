"""``python -m lrt_lens``: the command line."""

from lrt_lens.cli import main

main()
