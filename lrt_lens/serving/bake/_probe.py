"""Modules of a model whose output reaches a hook point unchanged, found by running it.

Problem: a bias behind a norm, before a gate or in an expert is no addition to the stream, and every
architecture has other names. Mechanism: a random shift is added to the output of a module while a
short row runs; the module writes to the hook point if the stream there moves by that shift times
one number, at every position.

    probe = StreamProbe(model)
    [writer.path for writer in probe.writers_of("blocks.3.hook_resid_post")]
    # ['model.layers.3.mlp.down_proj']

Limits: only modules without parts of their own that run once per pass. Nothing in the model is
changed: the shifts are PyTorch hooks that act in this thread alone.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lrt_lens.models._comparing import short_row
from lrt_lens.models._decoder import find_decoder
from lrt_lens.models._hook_points import EMBED, depth
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._ownership import entering, registered

FIRST = "blocks.0.hook_resid_pre"
"""Hook point of the stream that the first block gets."""
_TOLERANCES = {torch.float32: 1e-2, torch.float64: 1e-3}
"""Relative deviation from a constant shift that rounding may cause; 0.1 for other dtypes."""


@dataclass(frozen=True)
class StreamWriter:
    """A module whose output reaches a hook point, times a number."""

    path: str
    module: nn.Module
    factor: float
    """The stream moves by ``factor`` times what is added to the output of the module."""

    @property
    def bias(self) -> Tensor | None:
        """Bias of the module; None if it has none."""
        return getattr(self.module, "bias", None)

    @property
    def has_linear_map(self) -> bool:
        """True for a matrix [out, in], or [in, out] as GPT-2 keeps it, that may have a bias."""
        weight = getattr(self.module, "weight", None)
        is_matrix = isinstance(weight, Tensor) and weight.ndim == 2
        return is_matrix and not isinstance(self.module, nn.Embedding)

    @property
    def is_transposed(self) -> bool:
        """True if the matrix is kept as [in, out], as in the ``Conv1D`` of transformers."""
        return type(self.module).__name__ == "Conv1D"


class StreamProbe:
    """A model, and a short row on which the outputs of its modules are changed."""

    def __init__(self, model: HookedModel) -> None:
        self.model, self.hf = model, model.engine.model
        self.decoder = find_decoder(self.hf, model.name)
        self.names = {id(module): name for name, module in self.hf.named_modules()}
        self.blocks_path = self.names[id(self.decoder.blocks[0])].rpartition(".")[0]
        self._row = short_row(model.d_vocab)
        self._streams: dict[str, Tensor] = {}

    def block_path(self, layer: int) -> str:
        """Return the name of a block, such as ``"model.layers.3"``."""
        return f"{self.blocks_path}.{layer}"

    def writers_of(self, hook: str) -> list[StreamWriter]:
        """Return the modules that write to a hook point, in the order of the model.

        For ``hook_embed`` and the input of the first block these are the modules before all blocks.
        """
        if hook in (EMBED, FIRST):
            parts = self._leaves_before_blocks()
        else:
            parts = self._leaves(self.block_path(int(depth(hook) - 0.25)))
        factors = ((path, module, self.factor(module, hook)) for path, module in parts)
        return [StreamWriter(path, module, c) for path, module, c in factors if c is not None]

    def writers_of_block(self, layer: int) -> list[StreamWriter]:
        """Return every module of a block that writes to the stream, the last one first.

        What an earlier module writes also reaches the stream through later ones (the MLP reads the
        attention), so the outputs of the later writers are kept while an earlier one is changed.
        """
        hook, writers = f"blocks.{layer}.hook_resid_post", list[StreamWriter]()
        for path, module in reversed(self._leaves(self.block_path(layer))):
            frozen = [writer.module for writer in writers]
            factor = self.factor(module, hook, frozen=frozen)
            if factor is not None:
                writers.append(StreamWriter(path, module, factor))
        return writers

    def factor(
        self, module: nn.Module | str, hook: str, *, frozen: Sequence[nn.Module] = ()
    ) -> float | None:
        """Return by how much of a shift of a module's output the stream moves; None if it varies.

        Args:
            module: the module whose output is shifted, or the name of a hook point.
            hook: the hook point at which the stream is read.
            frozen: modules whose outputs stay as they are without the shift.
        """
        outputs = self._outputs(frozen)
        kept: dict[nn.Module | str, Callable[[Any], Any]] = {
            one: lambda _output, value=value: value for one, value in outputs.items()
        }
        plain = self._states(hook, kept) if frozen else self.stream(hook)
        generator = torch.Generator().manual_seed(0)
        direction = torch.randn(self.model.d_model, generator=generator)
        # As long as the stream is at most positions: neither lost in rounding nor overflowing.
        shift = (direction * plain.square().mean(-1).sqrt().median()).to(plain)
        n_calls: list[int] = []

        def shifted(output: Any) -> Any:
            n_calls.append(1)
            is_stream = isinstance(output, Tensor) and output.shape[-1] == len(shift)
            return output + shift.to(output) if is_stream else None

        moved = self._states(hook, {**kept, module: shifted}) - plain
        if len(n_calls) != 1:
            return None
        # c = ⟨Δh, δ⟩ / ⟨δ, δ⟩ at each position
        wide = shift.double()
        by_position = (moved.double() @ wide) / (wide @ wide)
        factor = float(by_position.median())
        tolerance = _TOLERANCES.get(plain.dtype, 0.1)
        deviation = (moved.double() - factor * wide).norm(dim=-1).max() / wide.norm()
        if abs(factor) < 1e-4 or not float(deviation) <= tolerance * abs(factor):
            return None
        return self._nearest_constant(factor, tolerance)

    def embedding_scale(self, module: nn.Embedding) -> float:
        """Return what a table's rows are multiplied by in its own ``forward``; 1 for most."""
        [output] = self._outputs([module]).values()
        rows = module.weight[self._row.to(module.weight.device)].double()
        if output.shape != rows.shape or module is not self.decoder.embedding:
            return 1.0
        scale = float((output.double() * rows).sum() / rows.square().sum())
        return self._nearest_constant(scale, _TOLERANCES.get(output.dtype, 0.1))

    def _nearest_constant(self, factor: float, tolerance: float) -> float:
        """Return 1, √d or the number of the config that was measured, without rounding errors."""
        numbers = vars(self.hf.config.get_text_config()).values()
        known = [float(n) for n in numbers if isinstance(n, float) and n != 0]
        known += [1.0, self.model.d_model**0.5]
        nearest = min(known, key=lambda number: abs(number - factor))
        return nearest if abs(nearest - factor) <= 0.5 * tolerance * abs(factor) else factor

    def _leaves(self, prefix: str) -> list[tuple[str, nn.Module]]:
        """Return the modules with weights and without parts below a module."""
        width = self.model.d_model
        return [
            (f"{prefix}.{name}" if prefix else name, module)
            for name, module in self.hf.get_submodule(prefix).named_modules()
            if not any(module.children())
            and isinstance(weight := getattr(module, "weight", None), Tensor)
            and width in weight.shape
        ]

    def _leaves_before_blocks(self) -> list[tuple[str, nn.Module]]:
        head = self.hf.get_output_embeddings()
        return [
            (path, module)
            for path, module in self._leaves("")
            if not path.startswith(f"{self.blocks_path}.") and module is not head
        ]

    def stream(self, hook: str) -> Tensor:
        """Return the stream of the short row at a hook point, [position, d_model]."""
        if hook not in self._streams:
            self._streams[hook] = self._states(hook, {})
        return self._streams[hook]

    def _states(self, hook: str, changes: Mapping[Any, Callable[[Any], Any]]) -> Tensor:
        """Return the stream [position, d_model] while modules or hook points give others."""
        with torch.inference_mode(), self._changing(changes):
            return self.model.engine.capture(self._row, [hook])[hook][0]

    def _outputs(self, modules: Sequence[nn.Module]) -> dict[nn.Module, Tensor]:
        """Return what modules return for the short row."""
        seen: dict[nn.Module, Tensor] = {}
        if modules:
            last = f"blocks.{self.model.n_layers - 1}.hook_resid_post"
            notes = {one: lambda output, one=one: seen.update({one: output}) for one in modules}
            self._states(last, notes)
        return seen

    @contextmanager
    def _changing(self, changes: Mapping[Any, Callable[[Any], Any]]) -> Iterator[None]:
        with ExitStack() as stack:
            entry = stack.enter_context(entering())
            for place, change in changes.items():
                if isinstance(place, str):
                    hook = partial(_with_hook_name, change)
                    stack.callback(self.model.engine.add_hook(place, hook))
                else:
                    act = entry.only_here(partial(_on_output, change))
                    stack.callback(registered(place.register_forward_hook, act))
            yield


def _with_hook_name(change: Callable[[Any], Any], activation: Tensor, hook: Any = None) -> Any:
    return change(activation)


def _on_output(change: Callable[[Any], Any], _module: nn.Module, _args: tuple, output: Any) -> Any:
    return change(output)


def unit(direction: Float[Tensor, " d_model"]) -> Float[Tensor, " d_model"]:
    """Return a direction of length 1 in float64, on the CPU."""
    wide = direction.detach().double().cpu()
    return wide / wide.norm()
