"""Memory, disk and time of a harvest, estimated from the configs before any weight is loaded.

Problem: a harvest of all layer pairs of two large models may need more memory than a machine has.
Mechanism: a `HarvestPlan` computes the size of the moments, and `plan_harvest` splits the hook
pairs into several passes that each fit a memory budget.

    config = AutoConfig.from_pretrained("google/gemma-2-2b")
    source, target = ModelShape.of_config(config), ModelShape.of_pretrained("google/gemma-2-9b")
    plan = plan_harvest(
        source, target, target_layers="proportional", memory_budget=parse_bytes("8GB")
    )
    plan.table(measure_throughput())       # one row per item
    plan.passes                            # hook pairs that are harvested together

Limits: bytes of the moments are exact, but the memory of one block is an upper estimate, and time
is a lower bound: arithmetic divided by the measured speed of a matrix product, which no model
reaches.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import pandas as pd
import torch

from lrt_lens._byte_sizes import human_bytes
from lrt_lens._settings import resolve, takes
from lrt_lens.data._parts import DEFAULT_PARTS, N_PARTS, Parts
from lrt_lens.models._hook_points import (
    EMBED,
    SOURCE,
    TARGET,
    HookPair,
    depth,
    hooks_of,
    joint_name,
    joint_parts,
    layer_pairs,
    with_token,
)
from lrt_lens.models._hook_points import resolve as resolve_hook
from lrt_lens.models._loading import thread_count_unchanged, torch_dtype
from lrt_lens.models._text_reader import SKIP_FIRST
from lrt_lens.moments._centred_rows import LARGEST_PRODUCT
from lrt_lens.moments._harvest_settings import HarvestSettings
from lrt_lens.moments._scatter import NORM_BINS
from lrt_lens.moments._sketches import SKETCH_WIDTH

_Row = tuple[str, str, float, str]
"""Row of `HarvestPlan.table`: item, amount, value, how."""

FULL_NULL_NUMBERS = 32_000_000
"""Largest size of all cross-moments, in numbers, for which ``null=True`` means ``"full"``."""
FEWER_COLUMNS = "give source_columns=512 or fewer, fewer columns, or fewer layers"
"""Remedy for the moments of a survey that do not fit."""
_MOST_ROWS, _FEWEST_ROWS = 4096, 256
"""Largest and smallest number of rows of a block whose size is chosen."""
_BLOCK_BYTES, _BYTES_PER_NUMBER = 4 * 10**9, 16
"""Bytes that the rows of a block may take, and those of one number of them: as captured, and three
times in the precision of products.
"""
_BYTES = 8
"""Bytes of one float64 number."""


@dataclass(frozen=True)
class ModelShape:
    """Size of a decoder, as `layer_pairs` and the estimates need it."""

    name: str
    d_model: int
    n_layers: int
    n_parameters: int
    """Number of parameters, embeddings included; shared parameters count once."""
    layer_parameters: int
    """Number of parameters of one block, averaged over the blocks."""
    context_length: int = 10**9
    dtype: torch.dtype = torch.float32

    @cached_property
    def hook_points(self) -> tuple[str, ...]:
        """Names of the residual stream's hook points."""
        layers, places = range(self.n_layers), ("pre", "mid", "post")
        return (EMBED, *(f"blocks.{k}.hook_resid_{place}" for k in layers for place in places))

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights."""
        return self.n_parameters * self.dtype.itemsize

    def flops_per_token(self, hooks: Sequence[str], context_length: int) -> float:
        """Return the FLOP per token of a forward pass up to the deepest of ``hooks``."""
        # Per block: 2 FLOP per parameter, and attention: QKᵀ and the weighted sum of V take
        # 2·d FLOP each per attended token, over context/2 tokens on average.
        blocks = max(0, math.ceil(max(map(depth, hooks))))
        return blocks * (2.0 * self.layer_parameters + 2.0 * context_length * self.d_model)

    @classmethod
    def of_model(cls, model: Any) -> "ModelShape":
        """Return the widths of a `HookedModel`, in float32; its parameters are not counted."""
        return cls(model.name, model.d_model, model.n_layers, 0, 0, model.context_length)

    @classmethod
    def of_config(
        cls, config: Any, name: str | None = None, dtype: str | torch.dtype | None = None
    ) -> "ModelShape":
        """Return the shape of the model that a Hugging Face config describes.

        Raises:
            ValueError: the model has no list of equal blocks.
        """
        from transformers import AutoModelForCausalLM

        text = config.get_text_config()
        # Tensors on the meta device have a shape and no memory, so the model costs nothing.
        with thread_count_unchanged(), torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config)
        lists = [
            module
            for module in model.modules()
            if isinstance(module, torch.nn.ModuleList) and len(module) == text.num_hidden_layers
        ]
        if not lists:
            raise ValueError(
                f"{type(config).__name__} has no list of {text.num_hidden_layers} blocks; "
                "estimates need a decoder of equal blocks"
            )
        # A model may have several lists of as many modules (norms next to blocks): the largest one
        # has the blocks.
        n_layer_parameters = max(sum(p.numel() for p in blocks.parameters()) for blocks in lists)
        return cls(
            name=name or str(getattr(config, "_name_or_path", "") or type(config).__name__),
            d_model=int(text.hidden_size),
            n_layers=int(text.num_hidden_layers),
            n_parameters=sum(p.numel() for p in model.parameters()),
            layer_parameters=n_layer_parameters // text.num_hidden_layers,
            context_length=int(getattr(text, "max_position_embeddings", None) or 10**9),
            dtype=torch_dtype(dtype),
        )

    @classmethod
    def of_pretrained(
        cls, name: str, dtype: str | torch.dtype | None = None, revision: str | None = None
    ) -> "ModelShape":
        """Return the shape of a model from its hub id or folder; only the config is read.

        Raises:
            OSError: there is no config at ``name``.
        """
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(
                name, **({"revision": revision} if revision else {})
            )
        except OSError as error:
            raise OSError(
                f"no config at {name!r}: neither a local folder nor a hub model that can be "
                "reached; check the path or the id, or download the model first "
                f"({error})"
            ) from error
        return cls.of_config(config, name, dtype)


def choose_pairs(settings: HarvestSettings, source: Any, target: Any) -> tuple[HookPair, ...]:
    """Return the hook pairs of a harvest; ``joint`` concatenates all source layers into one.

    Raises:
        HookPointError: a model does not have a requested layer.
        ValueError: there are no hook pairs, or ``pairs`` are combined with ``joint``.
    """
    if settings.pairs is not None:
        if settings.joint or not len(settings.pairs):
            raise ValueError(
                f"pairs has {len(settings.pairs)} entries and joint is {settings.joint}; give at "
                "least one hook pair, and source_layers= instead of pairs= with joint=True"
            )
        return tuple(
            dict.fromkeys(
                (resolve_hook(s, source), resolve_hook(t, target)) for s, t in settings.pairs
            )
        )
    layers = settings.source_layers, settings.target_layers
    pairs = tuple(layer_pairs(*layers, source, target))
    if not settings.joint:
        return pairs
    return tuple((joint_name(hooks_of(pairs, SOURCE)), t) for t in hooks_of(pairs, TARGET))


def null_kind(null: bool | str, pairs: Sequence[HookPair], d_source: int, d_target: int) -> str:
    """Return ``"full"``, ``"sketch"`` or ``"none"``: the meaning of ``null=`` here."""
    if isinstance(null, str):
        return null
    if not null:
        return "none"
    n_numbers = sum(len(joint_parts(s)) for s, _ in pairs) * d_source * d_target
    return "full" if n_numbers <= FULL_NULL_NUMBERS else "sketch"


def rows_of_block(
    block_rows: int | Literal["auto"],
    pairs: Sequence[HookPair],
    token_hook: str | None,
    d_source: int,
    d_target: int,
) -> int:
    """Return the rows of a block: ``block_rows``, or as many as 4 GB of workspace hold.

    They depend on the widths only and not on the machine, because they decide the shuffled pairs.
    """
    if block_rows != "auto":
        return block_rows
    all_pairs = with_token(pairs, token_hook)
    width = d_target * len(hooks_of(all_pairs, TARGET))
    width += d_source * sum(len(joint_parts(hook)) for hook in hooks_of(all_pairs, SOURCE))
    rows = _MOST_ROWS
    while rows > _FEWEST_ROWS and rows * width * _BYTES_PER_NUMBER > _BLOCK_BYTES:
        rows //= 2
    return rows


def moment_bytes(
    pairs: Sequence[HookPair],
    token_hook: str | None,
    null: str,
    d_source: int,
    d_target: int,
    n_parts: int = N_PARTS,
) -> dict[str, int]:
    """Return the exact bytes of the moments of some hook pairs, by what they hold.

    Keys: ``source``, ``target``, ``cross``, ``null`` and ``count``.
    """
    width = {hook: d_source * len(joint_parts(hook)) for hook, _ in with_token(pairs, token_hook)}
    per_target = {"none": 0, "sketch": min(SKETCH_WIDTH, d_target), "full": d_target}[null]
    # Bytes of P parts in float64: P·8·(Σ d_s² + Σ d_t² + Σ_pairs d_s·d_t). Per hook point also
    # its sums (P·d), its shift (d) and its histogram; the null has two slices, fit and test.
    side = lambda d: n_parts * (d * d + d) + d + NORM_BINS  # noqa: E731
    n_cross = sum(width[s] * d_target for s, _ in with_token(pairs, token_hook))
    return {
        "source": _BYTES * sum(side(d) for d in width.values()),
        "target": _BYTES * len(hooks_of(pairs, TARGET)) * side(d_target),
        "cross": _BYTES * n_parts * n_cross,
        "null": _BYTES * 2 * sum(width[s] * per_target for s, _ in pairs),
        "count": _BYTES * n_parts,
    }


@dataclass(frozen=True)
class Throughput:
    """Measured speed of matrix products on this machine."""

    model: float
    """FLOP/s in the precision of the models."""
    products: float
    """FLOP/s in the precision of the products."""


@dataclass(frozen=True)
class HarvestPlan:
    """Passes of a harvest, and the memory, disk and time that they need."""

    source: ModelShape
    target: ModelShape
    passes: tuple[tuple[HookPair, ...], ...]
    """Hook pairs that are harvested together; both models run once per pass."""
    null: str
    """``"full"``, ``"sketch"`` or ``"none"``."""
    token_hook: str | None = EMBED
    """Source hook point that stands for token identity."""
    moment_dtype: torch.dtype = torch.float32
    context_length: int = 256
    n_tokens: int | None = 200_000
    ranks: int = 1
    """Processes that share the harvest."""
    block_rows: int = 4096
    """Unmasked tokens per block."""
    skip_first: int = SKIP_FIRST
    """Masked positions at the start of each window."""
    place: str = "device"
    """Place of the moments: ``"device"``, ``"host"`` or ``"disk"``, see `HarvestSettings`."""
    parts: Parts = DEFAULT_PARTS
    """Numbers of folds and test groups."""

    @property
    def pairs(self) -> tuple[HookPair, ...]:
        """Hook pairs of all passes."""
        return tuple(hook_pair for pairs in self.passes for hook_pair in pairs)

    def moments_of(self, pairs: Sequence[HookPair]) -> dict[str, int]:
        """Return the bytes of the moments of some hook pairs, by what they hold."""
        widths = (self.source.d_model, self.target.d_model)
        return moment_bytes(pairs, self.token_hook, self.null, *widths, self.parts.n_parts)

    @property
    def moments(self) -> int:
        """Bytes of the moments of the largest pass."""
        return max(sum(self.moments_of(pairs).values()) for pairs in self.passes)

    @property
    def workspace(self) -> int:
        """Bytes that one block needs at most, besides the moments."""
        return max(self.workspace_of(pairs) for pairs in self.passes)

    def workspace_of(self, pairs: Sequence[HookPair]) -> int:
        """Return the bytes of one block with some hook pairs, besides the moments."""
        d_x, d_y = self._stacked_widths(pairs)
        rows = self.block_rows + self.context_length
        raw = rows * (d_x * self.source.dtype.itemsize + d_y * self.target.dtype.itemsize)
        # The rows as captured and on the device of the moments; the rows converted, centred and
        # concatenated, in the precision of products; a product and its contiguous copy.
        in_moment_dtype = 3 * rows * (d_x + d_y) + 2 * self._largest_product(pairs)
        return 2 * raw + in_moment_dtype * self.moment_dtype.itemsize

    @property
    def disk(self) -> int:
        """Bytes on disk for the moments of all passes, and the checkpoints of all ranks."""
        # One more copy of the largest pass: a checkpoint is replaced only when the new file is
        # complete.
        whole = sum(sum(self.moments_of(pairs).values()) for pairs in self.passes)
        mapped = self.ranks * self.moments if self.place == "disk" else 0
        return whole * (1 + self.ranks) + self.moments + mapped

    @property
    def flops_per_token(self) -> tuple[float, float]:
        """Return the FLOP per token of both models and of the products, over all passes."""
        models = products = 0.0
        for pairs in self.passes:
            all_pairs = with_token(pairs, self.token_hook)
            for model, side in ((self.source, SOURCE), (self.target, TARGET)):
                hooks = [name for hook_pair in all_pairs for name in joint_parts(hook_pair[side])]
                models += model.flops_per_token(hooks, self.context_length)
            n_bytes = self.moments_of(pairs)
            # 2 FLOP per stored number of one part (the sums have a slice per part, the null two).
            sums = n_bytes["source"] + n_bytes["target"] + n_bytes["cross"]
            products += 2 * (sums / self.parts.n_parts + n_bytes["null"] / 2) / _BYTES
        # Masked positions run through the models and give no row.
        n_rows_per_window = self.context_length - self.skip_first
        return models * self.context_length / n_rows_per_window, products

    def seconds_per_million(self, throughput: Throughput) -> float:
        """Return the seconds per million tokens at the speed of matrix products: a lower bound."""
        models, products = self.flops_per_token
        return 1e6 * (models / throughput.model + products / throughput.products) / self.ranks

    def table(self, throughput: Throughput | None = None) -> pd.DataFrame:
        """Return one row per item: memory, disk, FLOP and, with ``throughput``, time.

        Columns: ``item``, ``amount`` as text, ``value`` (bytes, FLOP or seconds) and ``how`` it is
        computed.
        """
        rows = [*self._moment_rows(), *self._process_rows(), *self._flop_rows()]
        if throughput is not None:
            rows += self._time_rows(throughput)
        return pd.DataFrame(rows, columns=["item", "amount", "value", "how"])

    def _moment_rows(self) -> Iterator[_Row]:
        largest = max(self.passes, key=lambda pairs: sum(self.moments_of(pairs).values()))
        n_bytes, all_pairs = self.moments_of(largest), with_token(largest, self.token_hook)
        n_sources, n_targets = (len(hooks_of(all_pairs, side)) for side in (SOURCE, TARGET))
        d_s, d_t = self.source.d_model, self.target.d_model
        n_passes, parts = len(self.passes), f"{self.parts.n_parts} parts"
        how = f"{len(self.pairs)} pairs; both models run once per pass"
        yield "passes", f"{n_passes}", n_passes, how
        for item, key, how in (
            ("source side", "source", f"{n_sources} hook points × {parts} × {d_s}² × 8 bytes"),
            ("target side", "target", f"{n_targets} hook points × {parts} × {d_t}² × 8 bytes"),
            ("pairs", "cross", f"{len(all_pairs)} pairs × {parts} × {d_s} × {d_t} × 8 bytes"),
            ("shuffled pairs", "null", f"null {self.null!r}: {len(largest)} pairs, fit and test"),
        ):
            yield _byte_row(f"moments: {item}", n_bytes[key], how)
        yield _byte_row("moments, largest pass", self.moments, "per process")

    def _process_rows(self) -> Iterator[_Row]:
        weights = self.source.weight_bytes + self.target.weight_bytes
        n_source, n_target = self.source.n_parameters, self.target.n_parameters
        beside = weights + self.workspace
        memory = {
            "device": [
                ("memory, per process", self.moments + beside, "moments, weights and block")
            ],
            "host": [
                ("memory of the host, per process", self.moments, "moments"),
                ("memory of the device, per process", beside, "weights and one block"),
            ],
            "disk": [("memory, per process", beside, "weights and one block")],
        }[self.place]
        files = "moments, and checkpoints of"
        if self.place == "disk":
            files = "moments, their mapped files, and checkpoints of"
        for item, n_bytes, how in (
            ("weights", weights, f"{n_source:,} and {n_target:,} parameters, per process"),
            (
                "one block",
                self.workspace,
                f"{self.block_rows} rows of every hook point, and their products; upper estimate",
            ),
            *memory,
            ("disk", self.disk, f"{files} {self.ranks} process(es)"),
        ):
            yield _byte_row(item, n_bytes, how)

    def _flop_rows(self) -> Iterator[_Row]:
        models, products = self.flops_per_token
        precision = str(self.moment_dtype).removeprefix("torch.")
        for item, flops, how in (
            ("models", models, "2 per parameter of each block that runs, and attention"),
            ("products", products, f"2 per stored number, in {precision}"),
        ):
            yield f"{item}, per token", f"{flops:.3g} FLOP", flops, how

    def _time_rows(self, throughput: Throughput) -> Iterator[_Row]:
        seconds = self.seconds_per_million(throughput)
        how = (
            f"at {throughput.model / 1e9:,.0f} and {throughput.products / 1e9:,.0f} GFLOP/s, "
            "measured here by matrix products: a lower bound"
        )
        yield "time per million tokens", duration(seconds), seconds, how
        if self.n_tokens is not None:
            total, how = seconds * self.n_tokens / 1e6, f"{self.ranks} process(es)"
            yield f"time for {self.n_tokens:,} tokens", duration(total), total, how

    def _largest_product(self, pairs: Sequence[HookPair]) -> int:
        """Return the size of the largest product of concatenated hook points, in numbers."""
        # Source hook points with the same targets are multiplied together; see `CrossMoments`.
        targets: dict[str, list[str]] = {}
        for s, t in with_token(pairs, self.token_hook):
            targets.setdefault(s, []).append(t)
        widths: dict[tuple[str, ...], int] = {}
        for s, hooks in targets.items():
            width = self.source.d_model * len(joint_parts(s))
            widths[tuple(hooks)] = widths.get(tuple(hooks), 0) + width
        columns = self.target.d_model
        return max(
            min(
                width * columns * len(hooks),
                max(LARGEST_PRODUCT, self.source.d_model * columns * len(hooks)),
            )
            for hooks, width in widths.items()
        )

    def _stacked_widths(self, pairs: Sequence[HookPair]) -> tuple[int, int]:
        """Return the widths of all source and of all target hook points together."""
        all_pairs = with_token(pairs, self.token_hook)
        n_source_layers = sum(len(joint_parts(s)) for s in hooks_of(all_pairs, SOURCE))
        n_targets = len(hooks_of(all_pairs, TARGET))
        return self.source.d_model * n_source_layers, self.target.d_model * n_targets


@takes(HarvestSettings)
def plan_harvest(
    source: ModelShape,
    target: ModelShape,
    *,
    settings: HarvestSettings | None = None,
    memory_budget: int | None = None,
    ranks: int = 1,
    **options: Any,
) -> HarvestPlan:
    """Return the plan of a harvest with these settings.

    Args:
        source: shape of the source model.
        target: shape of the target model.
        settings: a `HarvestSettings`, as for `harvest`.
        memory_budget: bytes that the moments of one pass may take; None puts all hook pairs into
            one pass.
        ranks: processes that share the harvest.
        **options: fields of `HarvestSettings` as keywords; they replace those of ``settings``.

    Raises:
        HookPointError: a model does not have a requested layer.
        ValueError: the moments of a single target hook point need more than ``memory_budget``.
    """
    settings = resolve(HarvestSettings, settings, options)
    pairs = choose_pairs(settings, source, target)
    plan = HarvestPlan(
        source=source,
        target=target,
        passes=(pairs,),
        null=null_kind(settings.null, pairs, source.d_model, target.d_model),
        moment_dtype=torch_dtype(settings.moment_dtype),
        context_length=min(settings.context_length, source.context_length, target.context_length),
        n_tokens=settings.n_tokens,
        ranks=ranks,
        block_rows=rows_of_block(settings.block_rows, pairs, EMBED, source.d_model, target.d_model),
        skip_first=settings.skip_first,
        parts=settings.parts,
    )
    return (
        plan if memory_budget is None else replace(plan, passes=split_passes(plan, memory_budget))
    )


def split_passes(plan: HarvestPlan, budget: int) -> tuple[tuple[HookPair, ...], ...]:
    """Return the hook pairs of a plan in passes whose moments take at most ``budget`` bytes each.

    Target hook points keep their order, and all hook pairs of one are in the same pass.

    Raises:
        ValueError: the moments of a single target hook point need more than ``budget``.
    """
    # Greedy: the next target hook point joins the current pass if its moments still fit.
    by_target: dict[str, list[HookPair]] = {}
    for hook_pair in plan.pairs:
        by_target.setdefault(hook_pair[1], []).append(hook_pair)
    passes: list[list[HookPair]] = []
    for target, pairs in by_target.items():
        n_bytes = sum(plan.moments_of(pairs).values())
        if n_bytes > budget:
            raise ValueError(
                f"the moments of target hook point {target!r} with {len(pairs)} source hook "
                f"point(s) alone take {human_bytes(n_bytes)}, more than the memory budget of "
                f"{human_bytes(budget)}; choose 'proportional' layers or fewer of them, "
                "null='none', or a budget of that size"
            )
        if passes and sum(plan.moments_of([*passes[-1], *pairs]).values()) <= budget:
            passes[-1].extend(pairs)
        else:
            passes.append(list(pairs))
    return tuple(tuple(pairs) for pairs in passes)


# ------------------------------------------------------------------------------------- this machine


def measure_throughput(
    device: str | torch.device = "cpu",
    model_dtype: torch.dtype = torch.float32,
    moment_dtype: torch.dtype = torch.float32,
    *,
    d: int = 1024,
    seconds: float = 0.3,
) -> Throughput:
    """Return the FLOP/s of matrix products in two precisions, each measured for ``seconds``."""
    # [1024, d] × [d, 4d] is the product of an MLP; it takes 2·1024·d·4d FLOP.
    speeds = {}
    for dtype in {model_dtype, moment_dtype}:
        a, b = (
            torch.ones(1024, d, dtype=dtype, device=device),
            torch.ones(d, 4 * d, dtype=dtype, device=device),
        )
        # The first product loads libraries and is not measured.
        torch.mm(a, b)
        n, start, elapsed = 0, time.perf_counter(), 0.0
        while elapsed < seconds:
            result = a @ b
            # A GPU computes asynchronously; reading a number waits for the result.
            float(result[0, 0])
            n, elapsed = n + 1, time.perf_counter() - start
        speeds[dtype] = n * 2.0 * 1024 * d * 4 * d / elapsed
    return Throughput(speeds[model_dtype], speeds[moment_dtype])


def duration(seconds: float) -> str:
    """Return a time as text, such as ``"12.5 min"``."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:,.3g} h"


def _byte_row(item: str, n_bytes: int, how: str) -> _Row:
    return item, human_bytes(n_bytes), float(n_bytes), how
