"""The frame of all scripts in `examples/`: shared options, one kind of result, one way to write it.

Problem: a figure of a paper is reproduced in forty lines, but its options, files and error messages
take a hundred. Mechanism: a script defines its options, a function that measures, and a verdict;
`run` does everything else.

    from dataclasses import dataclass

    import lrt_lens as lrt
    from lrt_lens.reproduction import Compared, FigureOptions, Reproduction, run

    @dataclass(frozen=True)
    class Options(FigureOptions):
        layer: int = 2
        "Layer of the source."

    def reproduce(options: Options) -> Reproduction:
        grid = lrt.fit_stitches(
            options.pair(), options.texts(), source_layers=[options.layer],
            n_tokens=options.n_tokens, progress=True,
        )
        ...
        return Reproduction(
            "name", title=…, paper="Stitching, table 1", claim=…,
            compared=[Compared("A→B, nats", ours=4.2, paper=3.99)], …
        )

    if __name__ == "__main__":
        run(reproduce)

`python -m lrt_lens.reproduction FIGURES` writes the gallery from the files of such scripts.

Limits: one script gives one result, with any number of figures.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
