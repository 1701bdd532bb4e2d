"""The command ``lrt-lens states``: windows of a harvest for an engine, and its program.

    lrt-lens states --engine vllm --model org/large --other gpt2 --documents corpus.jsonl

Limits: only configs and tokenizers are read here; the engine runs in an environment of its own.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from shlex import quote
from typing import Annotated, ClassVar, Literal

import tyro

from lrt_lens._terminal import say
from lrt_lens.cli._outputs import write_options
from lrt_lens.cli._pair_command import layers_of
from lrt_lens.cli._windows import WindowOptions


@dataclass(frozen=True, kw_only=True)
class States(WindowOptions):
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
            f"In the environment of {self.engine}: {request.command}\n"
            f"next: {self._next()}"
        )

    def _next(self) -> str:
        """Return the command that reads the states, with the same options of the windows."""
        sides = {"source": self.other or "MODEL", "target": str(self.out)}
        if self.role == "source":
            sides = {"source": str(self.out), "target": self.other or "MODEL"}
        defaults = {field.name: field.default for field in fields(WindowOptions)}
        same = {"documents": self.documents} | {
            name: value for name, value in self.windows.items() if value != defaults[name]
        }
        words = [
            f"--{name.replace('_', '-')} {quote(str(value))}"
            for name, value in (sides | same).items()
        ]
        return f"lrt-lens fit-states {' '.join(words)}"
