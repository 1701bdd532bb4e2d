r"""The command ``lrt-lens export``: a steering vector as a file of a program that serves.

    lrt-lens export mood.safetensors mood.gguf --to llama.cpp --scale 2.3
    lrt-lens export mood.safetensors mood.gguf --to llama.cpp --model org/large --damage 0.1 \
        --neutral texts.txt --check

Limits: one vector; `lrt_lens.serving.export_vectors` writes several into one file.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from lrt_lens._terminal import say
from lrt_lens.cli._artefacts import load_vector
from lrt_lens.cli._command import Command
from lrt_lens.cli._outputs import OPTIONS, is_our_options, write_options
from lrt_lens.cli._texts import read_texts

Format = Literal[
    "llama.cpp",
    "glp",
    "repeng",
    "vllm-lens",
    "lm-eval",
    "steering-vectors",
    "aisteer360",
    "neuronpedia",
    "transformers",
]
"""Names of `lrt_lens.serving.FORMATS`, which cannot be imported without torch."""


@dataclass(frozen=True, kw_only=True)
class Export(Command):
    """Write a steering vector as a file of another program, with a record beside it.

        lrt-lens export calibrated mood.gguf --to llama.cpp
        lrt-lens export mood.safetensors mood.gguf --to llama.cpp --scale 2.3

    Any vector can be exported: learnt, transferred, calibrated or imported. With --model, --damage
    and --neutral the scale is calibrated at the positions that the program steers, and --check
    compares the file with our hook. `lrt-lens import` reads such files.
    """

    words: ClassVar[str] = "export"

    vector: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="VECTOR")]
    """File of a vector, of ours or of another program, or the folder of the run that wrote it."""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """File, or folder for --to transformers, that is written."""
    to: Format
    """Format of the program."""
    scale: float | None = None
    """Multiple of the vector; by default its calibrated scale, else 1."""
    damage: float | None = None
    """Damage in nats per token on --neutral, for which the scale is calibrated."""
    neutral: str | None = None
    """File or folder of neutral texts, for --damage, and for the damage of --check."""
    model: str | None = None
    """Model of the vector, a hub id or local folder; needed for --damage and --check."""
    at: int | str | None = None
    """Hook point, or number of a block, of a file that has several or is a tensor alone."""
    mode: Literal["add", "clamp", "ablate"] | None = None
    """Change of the stream; by default that of the vector, else add."""
    level: float | None = None
    """Component along the vector that a clamp sets."""
    check: bool = False
    """Run the file in plain transformers, by the rule of the format, and compare with our hook."""

    def run(self) -> None:
        """Export the vector, check it if that was asked for, and say what was written."""
        from lrt_lens.models import load_model
        from lrt_lens.serving import FORMATS, check_export, export_vectors, record_path

        if self.check and self.model is None:
            raise ValueError("--check needs --model: the file is compared with our hook in it")
        if self.neutral is not None and self.damage is None and not self.check:
            raise ValueError(
                "--neutral is given without --damage or --check, which measure a damage"
            )
        model = None if self.model is None else load_model(self.model)
        neutral = None if self.neutral is None else read_texts(self.neutral)
        path = export_vectors(
            load_vector(str(self.vector), at=self.at, model=model),
            self.out,
            self.to,
            scale=self.scale,
            damage=self.damage,
            neutral=neutral if self.damage is not None else None,
            model=model,
            mode=self.mode,
            level=self.level,
        )
        row = FORMATS[self.to]
        say(f"{path}: {row.program}\nsteered: {row.positions}\nuse: {row.use(path)}")
        beside = path / OPTIONS if path.is_dir() else path.with_name(f"{path.name}.{OPTIONS}")
        if not beside.exists() or is_our_options(beside):
            write_options(beside.parent, self, beside.name)
        say(f"record: {record_path(path)}")
        if model is not None and self.check:
            found = check_export(path, model, neutral=neutral)
            say(repr(found))
            if not found.passed:
                raise ValueError(f"{path} does not steer as the hook: {'; '.join(found.problems)}")
