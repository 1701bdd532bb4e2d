"""The command ``lrt-lens inspect``: what a file or folder is, and which command uses it.

    lrt-lens inspect stitches

Limits: weights of models and sums of moments are not read.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from lrt_lens._terminal import say
from lrt_lens.cli._command import Command
from lrt_lens.cli._outputs import say_facts


@dataclass(frozen=True, kw_only=True)
class Inspect(Command):
    """Say what a file or folder is: kind, models, hook points, shapes, tokens, strength.

    It knows what lrt-lens writes (stitches, moments, surveys, caches, checkpoints, vectors, probes,
    results, records of exports, options), folders of SAELens and of Hugging Face models, vectors of
    other programs, GGUF models, and files of documents, contrast sets, items and labelled texts.

        lrt-lens inspect stitches
        lrt-lens inspect happy.gguf

    It also names the command that uses the file next. Nothing is written.
    """

    words: ClassVar[str] = "inspect"
    path: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="PATH")]
    """A file or a folder."""

    def run(self) -> None:
        """Print the facts, also about what a folder of a run holds."""
        from lrt_lens.cli._facts import facts_of

        facts = facts_of(self.path)
        say_facts(str(self.path), facts.known)
        for inner in facts.inner:
            within = facts_of(inner)
            say_facts(str(inner), within.known)
            if within.next:
                say(f"next: {within.next}")
        if facts.next:
            say(f"next: {facts.next}")
