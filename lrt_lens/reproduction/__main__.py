"""Writer of the gallery of `examples/`: ``python -m lrt_lens.reproduction FIGURES``."""

from lrt_lens.reproduction._gallery import main

main()
