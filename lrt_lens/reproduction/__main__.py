"""``python -m lrt_lens.reproduction FIGURES``: write the gallery of `examples/`."""

from lrt_lens.reproduction._gallery import main

main()
