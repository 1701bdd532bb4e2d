"""Addition of vectors, as biases of a checkpoint.

Problem: the place for a constant differs between architectures. Mechanism: for each vector, the
first of these that the model has (`StreamProbe` finds it): a bias of a module that writes to the
hook point; a bias that a config switch or an equal architecture gives such a module (`variants`);
an added block (`insert_block`). Before the first block it is the table of tokens or of positions.

    checkpoint = BakedCheckpoint.of(hf_model)
    add_shifts(checkpoint, StreamProbe(model), [Shift("blocks.3.hook_resid_post", 4 * direction)])

Limits: a hook point without any of these is refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from lrt_lens.errors import HookPointError
from lrt_lens.models._comparing import first_line
from lrt_lens.models._hook_points import EMBED, depth
from lrt_lens.serving.bake._added_block import insert_block
from lrt_lens.serving.bake._checkpoint import BakedCheckpoint
from lrt_lens.serving.bake._probe import FIRST, StreamProbe, StreamWriter
from lrt_lens.serving.bake._variants import ModelVariant, variants


@dataclass(frozen=True)
class Shift:
    """A constant that is added to the stream at a hook point."""

    hook: str
    delta: Float[Tensor, " d_model"]
    """Vector that is added, scale · v, in float64."""


def add_shifts(checkpoint: BakedCheckpoint, probe: StreamProbe, shifts: Sequence[Shift]) -> None:
    """Change a checkpoint so that the model adds constants at hook points.

    Raises:
        HookPointError: the architecture has no place for one of them.
    """
    writers = {shift.hook: probe.writers_of(shift.hook) for shift in shifts}
    behind = [shift for shift in shifts if shift.hook not in (EMBED, FIRST)]
    with_bias = [shift for shift in behind if _biased(writers[shift.hook])]
    others = [shift for shift in behind if not _biased(writers[shift.hook])]
    variant, covered = _variant(probe, writers, others)
    if variant is not None:
        checkpoint.kind, checkpoint.config = variant.kind, variant.config
        checkpoint.changes |= dict(variant.changes)
        checkpoint.add_zero_biases()
    for shift in shifts:
        if shift.hook in (EMBED, FIRST):
            _add_to_table(checkpoint, probe, shift, writers[shift.hook])
        elif shift in with_bias or shift.hook in covered:
            usable = _biased(writers[shift.hook]) or covered[shift.hook]
            _add_to_bias(checkpoint, shift, usable[-1])
    # The last one first, so that earlier blocks keep their numbers.
    rest = [shift for shift in others if shift.hook not in covered]
    for shift in sorted(rest, key=lambda shift: depth(shift.hook), reverse=True):
        _add_block(checkpoint, probe, shift, writers[shift.hook])


def _add_block(
    checkpoint: BakedCheckpoint, probe: StreamProbe, shift: Shift, writers: Sequence[StreamWriter]
) -> None:
    """Insert a block that adds a constant, and check that transformers can build the model."""
    is_middle = shift.hook.endswith("_mid")
    layer = int(depth(shift.hook) - 0.25)
    # Some architectures multiply what a block adds by a number of their config.
    delta = shift.delta / (writers[-1].factor if writers else 1.0)
    try:
        insert_block(checkpoint, probe, layer, delta, middle=is_middle)
        checkpoint.add_zero_biases()
    except Exception as error:  # whatever a config says of blocks that are not all of one kind
        raise no_place(probe, shift.hook, first_line(error)) from error


def no_place(probe: StreamProbe, hook: str, reason: str) -> HookPointError:
    """Return the error about a hook point at which nothing can be baked."""
    return HookPointError(
        f"nothing can be added at {hook!r} by the weights of {probe.model.name!r}"
        f" ({type(probe.hf).__name__}): no bias there is an addition to the stream, no switch of"
        f" its config gives one, and no block can be added because {reason}. Bake at another hook"
        " point, or export the vector for an engine that adds it itself"
        " (vector.export(path, to=...))"
    )


def _biased(writers: Sequence[StreamWriter]) -> list[StreamWriter]:
    return [writer for writer in writers if writer.bias is not None]


def _variant(
    probe: StreamProbe, writers: dict[str, list[StreamWriter]], shifts: Sequence[Shift]
) -> tuple[ModelVariant | None, dict[str, list[StreamWriter]]]:
    """Return the variant with a bias for most shifts, and the writers that it gives one."""
    best: tuple[ModelVariant | None, dict[str, list[StreamWriter]]] = (None, {})
    linear = {s.hook: [w for w in writers[s.hook] if w.has_linear_map] for s in shifts}
    if not any(linear.values()):
        return best
    for variant in variants(probe.hf):
        skeleton = BakedCheckpoint(variant.kind, variant.config, None, {}).skeleton()
        covered: dict[str, list[StreamWriter]] = {}
        for hook, candidates in linear.items():
            usable = [w for w in candidates if _has_bias(skeleton, w.path)]
            if usable:
                covered[hook] = usable
        if len(covered) > len(best[1]):
            best = variant, covered
        if len(covered) == len(linear):
            break
    return best


def _has_bias(model: nn.Module, path: str) -> bool:
    try:
        return getattr(model.get_submodule(path), "bias", None) is not None
    except AttributeError:  # the other architecture has no module of this name
        return False


def _add_to_bias(checkpoint: BakedCheckpoint, shift: Shift, writer: StreamWriter) -> None:
    # The stream moves by `factor` times the bias.
    name = f"{writer.path}.bias"
    checkpoint.shift(name, shift.delta / writer.factor, f"scale · v added ({shift.hook})")


def _add_to_table(
    checkpoint: BakedCheckpoint, probe: StreamProbe, shift: Shift, writers: Sequence[StreamWriter]
) -> None:
    """Add a constant to the stream before the first block."""
    delta, writers = shift.delta, list(writers)
    if shift.hook == EMBED:
        # What is added to the embedding arrives at the first block times a number.
        onward = probe.factor(EMBED, FIRST)
        if onward is None:
            raise no_place(probe, shift.hook, "the embedding is not added to the stream")
        delta, writers = delta * onward, probe.writers_of(FIRST)
    if biased := _biased(writers):
        _add_to_bias(checkpoint, Shift(shift.hook, delta), biased[-1])
        return
    tables = [w for w in writers if isinstance(w.module, nn.Embedding)]
    if not tables:
        raise no_place(probe, shift.hook, "no table of tokens or positions is added to the stream")
    head = probe.hf.get_output_embeddings()
    head_weight = None if head is None else head.weight
    untied = [w for w in tables if w.module.weight is not head_weight]
    table = (untied or tables)[0]
    if not untied:
        checkpoint.untie(probe.hf)
    module: nn.Embedding = table.module  # type: ignore[assignment]
    rows = delta / (table.factor * probe.embedding_scale(module))
    checkpoint.shift(f"{table.path}.weight", rows, f"scale · v added to each row ({shift.hook})")
