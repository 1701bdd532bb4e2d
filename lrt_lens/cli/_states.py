"""The command ``lrt-lens states``: windows of a harvest for an engine, and its program.

    lrt-lens states --engine vllm --model org/large --other gpt2 --documents corpus.jsonl

Limits: only configs and tokenizers are read here; the engine runs in an environment of its own.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro

from lrt_lens._terminal import say
from lrt_lens.cli._command import Command
from lrt_lens.cli._outputs import write_options
from lrt_lens.cli._pair_command import layers_of


@dataclass(frozen=True, kw_only=True)
class States(Command):
    """Write the windows of a harvest for an engine, with a program that computes their states.

    Writes windows.jsonl, states.json and run_vllm.py. Run that program in the environment of vLLM
    (0.18 or later), on one machine or several; it goes on where it was stopped.

        lrt-lens states --engine vllm --model org/large --other gpt2 --documents corpus.jsonl
        python states/run_vllm.py --tensor-parallel-size 8 --dtype bfloat16

    Next: `lrt-lens fit-states --source gpt2 --target states --documents corpus.jsonl`, with the
    same options of the windows; it may run at the same time, with --wait 600.
    """

    words: ClassVar[str] = "states"

    model: str
    """Model that the engine runs, a hub id or local folder; only config and tokenizer are read."""
    documents: str
    """A file, a folder of files, or the name of a data set, as for `lrt-lens fit`."""
    out: Path = Path("states")
    """New folder, in which the engine puts its files."""
    engine: Literal["vllm"] = "vllm"
    """Engine that runs the model."""
    other: str | None = None
    """The other model of the pair; it can be left out if it has the same tokenizer and context."""
    role: Literal["source", "target"] = "target"
    """Role of the model in the pair."""
    layers: Annotated[str, tyro.conf.arg(metavar="all|3,5|HOOK")] = "all"
    """Layers that are kept; of a source also the embedding."""
    n_tokens: int = 200_000
    """Number of tokens to harvest."""
    max_document_tokens: int | Literal["auto"] | None = "auto"
    """Most tokens of one document; by default a 200th of --n-tokens, and at least a window."""
    text_field: str | None = None
    """Column of the texts; by default 'text', 'messages', or the only column with texts."""
    group: str | None = None
    """Column of what belongs together (a book, a conversation) and shares a fold."""
    context_length: int = 256
    """Number of tokens per window."""
    seed: int = 0
    """Seed of the folds."""
    prepend_bos: bool | None = None
    """Begin each window with BOS; by default as the tokenizer does."""

    def run(self) -> None:
        """Cut the windows and write them with the program of the engine."""
        from lrt_lens.moments.states import request_states

        self.check_numbers()
        request = request_states(
            self.out,
            self.model,
            self.documents,
            other=self.other,
            role=self.role,
            layers=layers_of(self.layers),
            engine=self.engine,
            prepend_bos=self.prepend_bos,
            **self.windows,
        )
        write_options(self.out, self)
        say(
            f"{request.n_sequences:,} windows of {request.n_tokens:,} tokens in {self.out}; layer"
            f" ids {list(request.layer_ids)} (0 is the embedding, k + 1 the output of block k).\n"
            f"In the environment of {self.engine}: {request.command}"
        )

    @property
    def windows(self) -> dict[str, Any]:
        """Fields of `HarvestSettings` that decide the windows."""
        names = ("n_tokens", "max_document_tokens", "text_field", "group", "context_length", "seed")
        return {name: getattr(self, name) for name in names}
