"""Exported files in plain transformers: by the rule of their format, or by their own script.

Problem: a file is wrong by one layer or in its operation long before a serving program is
installed. Mechanism: the file is read again, and forward hooks on the modules of Hugging Face do
what the format's program does, in a few lines that share nothing with the hooks of this package.
For the format ``"transformers"`` the script in the folder itself is run, if it is the text that
this package writes.

    RuleEngine(model).logits(rows, path)

Limits: the program itself does not run; only its documented rule is followed.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lrt_lens.errors import FileFormatError
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._ownership import entering
from lrt_lens.serving._formats import FORMATS
from lrt_lens.serving._import import served_format
from lrt_lens.serving.formats._content import ServedVectors
from lrt_lens.serving.formats._record import SCRIPT_NAME
from lrt_lens.serving.formats._script import read_script, script


class RuleEngine:
    """Runs an exported file in plain transformers, by the rule of its format."""

    def __init__(self, model: HookedModel) -> None:
        blocks = model.identity.blocks
        if not blocks:
            raise ValueError(
                f"{model.name!r} is no plain Hugging Face model, in which forward hooks could do"
                " what a program does; load it by its name or folder"
            )
        self._model = model.engine.model
        self._blocks = self._model.get_submodule(blocks)

    @property
    def name(self) -> str:
        """Name of the engine, as certificates show it."""
        return "the rule of the format in plain transformers"

    @property
    def version(self) -> str:
        """Version of transformers."""
        import transformers

        return transformers.__version__

    def logits(self, rows: Sequence[Sequence[int]], path: Path | None) -> list[np.ndarray]:
        """Return the logits of each row of token ids, [position, vocabulary]."""
        with ExitStack() as stack:
            stack.enter_context(entering(alone=True))
            stack.enter_context(torch.inference_mode())
            if path is not None:
                stack.enter_context(self._steered(path))
            return [self._row(row) for row in rows]

    def _row(self, row: Sequence[int]) -> np.ndarray:
        tokens = torch.tensor([list(row)], device=next(self._model.parameters()).device)
        return self._model(input_ids=tokens, use_cache=False).logits[0].float().cpu().numpy()

    @contextmanager
    def _steered(self, path: Path) -> Iterator[None]:
        name = served_format(path)
        if name == "transformers":
            handles = _run_script(path)(self._model)
        else:
            served = FORMATS[name].read(path)
            handles = [
                self._blocks[block].register_forward_hook(_hook(served, rows))
                for block, rows in served.layers.items()
            ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _hook(served: ServedVectors, rows: torch.Tensor) -> Callable[..., Any]:
    """Return a forward hook of a block that changes its output at all positions."""

    def change(stream: torch.Tensor) -> torch.Tensor:
        along = rows.to(stream)
        if served.mode == "add":
            return stream + served.scale * along[0]
        unit = along / along.norm(dim=1, keepdim=True)
        missing = (served.level or 0.0) - stream @ unit.T
        return stream + served.scale * missing @ unit

    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        return change(output)

    return hook


def _run_script(folder: Path) -> Callable[[Any], list[Any]]:
    """Return the function ``steer`` of the script in a folder.

    Raises:
        FileFormatError: the script is not the one that this package writes.
    """
    path = folder / SCRIPT_NAME
    if not path.is_file():
        raise FileFormatError(
            f"{str(folder)!r} lacks {SCRIPT_NAME}, the script that steers; export again"
        )
    text = path.read_text(encoding="utf-8")
    # Only a text that this package would write itself is run.
    if text != script(read_script(folder)):
        raise FileFormatError(
            f"{str(path)!r} is not the script that was exported, so it is not run; export again"
        )
    names: dict[str, Any] = {"__file__": str(path), "__name__": "steer"}
    exec(compile(text, str(path), "exec"), names)
    return names["steer"]
