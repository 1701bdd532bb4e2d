"""What a harvest will take, before any weight is loaded: memory, disk, time; and the passes that
fit a memory budget.

    source, target = ModelShape.of_config(AutoConfig.from_pretrained("google/gemma-2-2b")),
    ModelShape.of_config(…) plan = plan_harvest(source, target, target_layers="proportional",
    memory_budget=parse_bytes("8GB"))
    plan.table(measure_throughput())       # a row per item; plan.passes says which pairs are harvested together

Bytes of the moments are exact: for 13 parts, in float64, ``13·8·(Σ d_s² + Σ d_t² + Σ_pairs d_s
d_t)``, the embedding among the sources, and the shuffled pairs beside them. The workspace of a
block is an estimate from above, and time is arithmetic divided by the speed of a matrix product
measured here: a lower bound, because no model reaches that.
"""

import logging
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from lrt_lens._byte_sizes import _amount, human_bytes
from lrt_lens.data._blocks import N_PARTS
from lrt_lens.data._windows import BlockPlan
from lrt_lens.models._hook_points import EMBED, Layers, depth, joint_name, joint_parts, layer_pairs
from lrt_lens.models._loading import thread_count_unchanged, torch_dtype
from lrt_lens.moments._cross_moments import SKETCH_WIDTH, Pair
from lrt_lens.moments._side_moments import NORM_BINS

logger = logging.getLogger(__name__)

FULL_NULL_NUMBERS = 32_000_000
"""Numbers in all cross-moments together up to which ``null=True`` keeps the shuffled pairs whole.
"""
_BYTES, _NEARLY_ALL = 8, 0.8


@dataclass(frozen=True)
class ModelShape:
    """A decoder's size: what `layer_pairs` and the estimates need of a model."""

    name: str
    d_model: int
    n_layers: int
    n_parameters: int
    """All of them, embeddings included, shared ones once."""
    layer_parameters: int
    """Of one block, on average."""
    context_length: int = 10**9
    dtype: torch.dtype = torch.float32

    @cached_property
    def hook_points(self) -> tuple[str, ...]:
        """Names of the residual stream's hook points."""
        return (
            EMBED,
            *(
                f"blocks.{layer}.hook_resid_{part}"
                for layer in range(self.n_layers)
                for part in ("pre", "mid", "post")
            ),
        )

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights."""
        return self.n_parameters * self.dtype.itemsize

    def flops_per_token(self, hooks: Sequence[str], context_length: int) -> float:
        """Of a forward pass up to the deepest of ``hooks``: two a parameter of each block, and
        attention over half a window on average.
        """
        blocks = max(0, math.ceil(max(map(depth, hooks))))
        return blocks * (2.0 * self.layer_parameters + 2.0 * context_length * self.d_model)

    @classmethod
    def of_config(
        cls, config: Any, name: str | None = None, dtype: str | torch.dtype | None = None
    ) -> "ModelShape":
        """From a Hugging Face config: the model is built on the meta device, which allocates
        nothing.
        """
        from transformers import AutoModelForCausalLM

        text = config.get_text_config()
        with thread_count_unchanged(), torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config)
        lists = [
            module
            for module in model.modules()
            if isinstance(module, torch.nn.ModuleList) and len(module) == text.num_hidden_layers
        ]
        if not lists:
            raise ValueError(
                f"{type(config).__name__} has no list of {text.num_hidden_layers} blocks; estimates need a decoder of equal blocks"
            )
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
        """From a hub id or a folder, of which only the config is read."""
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(
                name, **({"revision": revision} if revision else {})
            )
        except OSError as error:
            raise OSError(
                f"no config at {name!r}: neither a folder here nor a hub model that can be reached ({error})"
            ) from error
        return cls.of_config(config, name, dtype)


def choose_pairs(
    source_layers: Layers, target_layers: Layers, source: Any, target: Any, *, joint: bool = False
) -> tuple[Pair, ...]:
    """The pairs of hook points of a harvest; ``joint`` puts all source layers side by side into one
    hook point.
    """
    pairs = tuple(layer_pairs(source_layers, target_layers, source, target))
    if not joint:
        return pairs
    sources, targets = (tuple(dict.fromkeys(pair[side] for pair in pairs)) for side in (0, 1))
    return tuple((joint_name(sources), t) for t in targets)


def with_token(pairs: Sequence[Pair], token_hook: str | None) -> tuple[Pair, ...]:
    """The pairs, and those of token identity with every target."""
    return tuple(
        dict.fromkeys([*pairs, *((token_hook, t) for _, t in pairs if token_hook is not None)])
    )


def null_kind(null: bool | str, pairs: Sequence[Pair], d_source: int, d_target: int) -> str:
    """What ``null=`` means for these pairs: ``"full"``, ``"sketch"`` or ``"none"``."""
    if isinstance(null, str):
        return null
    if not null:
        return "none"
    return (
        "full"
        if sum(len(joint_parts(s)) for s, _ in pairs) * d_source * d_target <= FULL_NULL_NUMBERS
        else "sketch"
    )


def moment_bytes(
    pairs: Sequence[Pair], token_hook: str | None, null: str, d_source: int, d_target: int
) -> dict[str, int]:
    """Bytes of the moments of some pairs by what they hold; exact."""
    width = {hook: d_source * len(joint_parts(hook)) for hook, _ in with_token(pairs, token_hook)}
    targets = dict.fromkeys(t for _, t in pairs)
    per_target = {"none": 0, "sketch": min(SKETCH_WIDTH, d_target), "full": d_target}[null]
    side = lambda d: N_PARTS * (d * d + d) + d + NORM_BINS  # noqa: E731
    return {
        "source": _BYTES * sum(side(d) for d in width.values()),
        "target": _BYTES * len(targets) * side(d_target),
        "cross": _BYTES
        * N_PARTS
        * sum(width[s] * d_target for s, _ in with_token(pairs, token_hook)),
        "null": _BYTES * 2 * sum(width[s] * per_target for s, _ in pairs),
        "count": _BYTES * N_PARTS,
    }


@dataclass(frozen=True)
class Throughput:
    """Speed of a matrix product on this machine."""

    model: float
    """FLOP/s in the models' precision."""
    products: float
    """FLOP/s in the moments' precision."""


@dataclass(frozen=True)
class HarvestPlan:
    """What a harvest will take; see the module docstring."""

    source: ModelShape
    target: ModelShape
    passes: tuple[tuple[Pair, ...], ...]
    """Pairs that are harvested together; both models run once for each."""
    null: str
    token_hook: str | None = EMBED
    moment_dtype: torch.dtype = torch.float32
    context_length: int = 256
    n_tokens: int | None = 200_000
    ranks: int = 1

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """All pairs."""
        return tuple(pair for some in self.passes for pair in some)

    def moments_of(self, pairs: Sequence[Pair]) -> dict[str, int]:
        """Bytes of the moments of some pairs, by what they hold."""
        return moment_bytes(
            pairs, self.token_hook, self.null, self.source.d_model, self.target.d_model
        )

    @property
    def moments(self) -> int:
        """Bytes of the moments of the largest pass."""
        return max(sum(self.moments_of(pairs).values()) for pairs in self.passes)

    @property
    def workspace(self) -> int:
        """Bytes of one block on its way through: rows of every hook point, raw and centred, side by
        side for the products, and these.
        """
        most = 0
        for pairs in self.passes:
            d_x, d_y = self._stacked_widths(pairs)
            rows = BlockPlan().block_rows + self.context_length
            raw = rows * (d_x * self.source.dtype.itemsize + d_y * self.target.dtype.itemsize)
            most = max(
                most,
                2 * raw
                + (3 * rows * (d_x + d_y) + 2 * self._largest_product(pairs))
                * self.moment_dtype.itemsize,
            )
        return most

    @property
    def disk(self) -> int:
        """Bytes of the moments of all passes, and of the ranks' checkpoints while one is being
        replaced.
        """
        whole = sum(sum(self.moments_of(pairs).values()) for pairs in self.passes)
        return whole * (1 + self.ranks) + self.moments

    @property
    def flops_per_token(self) -> tuple[float, float]:
        """(of both models, of the products) for one token, all passes together."""
        models = products = 0.0
        for pairs in self.passes:
            kept = with_token(pairs, self.token_hook)
            for model, side in ((self.source, 0), (self.target, 1)):
                hooks = [name for pair in kept for name in joint_parts(pair[side])]
                models += model.flops_per_token(hooks, self.context_length)
            held = self.moments_of(pairs)
            products += (
                2 * (held["source"] + held["target"] + held["cross"]) / N_PARTS / _BYTES
                + 2 * held["null"] / 2 / _BYTES
            )
        # Masked positions run through the models, and offer no row.
        return models * self.context_length / (
            self.context_length - BlockPlan().skip_first
        ), products

    def seconds_per_million(self, throughput: Throughput) -> float:
        """Seconds a million tokens at the speed of matrix products: a lower bound."""
        models, products = self.flops_per_token
        return 1e6 * (models / throughput.model + products / throughput.products) / self.ranks

    def table(self, throughput: Throughput | None = None) -> pd.DataFrame:
        """A row per item: ``item``, ``amount`` in words, ``value`` (bytes, FLOP or seconds),
        ``how`` it comes about.
        """
        largest = max(self.passes, key=lambda pairs: sum(self.moments_of(pairs).values()))
        held, kept = self.moments_of(largest), with_token(largest, self.token_hook)
        n_sources, n_targets = len({s for s, _ in kept}), len({t for _, t in kept})
        d_s, d_t = self.source.d_model, self.target.d_model
        models, products = self.flops_per_token
        weights = self.source.weight_bytes + self.target.weight_bytes
        rows: list[tuple[str, str, float, str]] = [
            (
                "passes",
                f"{len(self.passes)}",
                len(self.passes),
                f"{len(self.pairs)} pairs; both models run once a pass",
            ),
            (
                "moments: source side",
                *_amount(held["source"]),
                f"{n_sources} hook points × 13 parts × {d_s}² × 8 bytes",
            ),
            (
                "moments: target side",
                *_amount(held["target"]),
                f"{n_targets} hook points × 13 parts × {d_t}² × 8 bytes",
            ),
            (
                "moments: pairs",
                *_amount(held["cross"]),
                f"{len(kept)} pairs × 13 parts × {d_s} × {d_t} × 8 bytes",
            ),
            (
                "moments: shuffled pairs",
                *_amount(held["null"]),
                f"null {self.null!r}: {len(largest)} pairs, fit and test",
            ),
            ("moments, largest pass", *_amount(self.moments), "per process"),
            (
                "weights",
                *_amount(weights),
                f"{self.source.n_parameters:,} and {self.target.n_parameters:,} parameters, per process",
            ),
            (
                "one block",
                *_amount(self.workspace),
                f"{BlockPlan().block_rows} rows of every hook point, and their products; from above",
            ),
            (
                "memory, per process",
                *_amount(self.moments + weights + self.workspace),
                "moments, weights and one block",
            ),
            ("disk", *_amount(self.disk), f"moments, and checkpoints of {self.ranks} process(es)"),
            (
                "models, a token",
                f"{models:.3g} FLOP",
                models,
                "2 a parameter of each block that runs, and attention",
            ),
            (
                "products, a token",
                f"{products:.3g} FLOP",
                products,
                f"2 a kept number, in {str(self.moment_dtype).removeprefix('torch.')}",
            ),
        ]
        if throughput is not None:
            seconds = self.seconds_per_million(throughput)
            how = f"at {throughput.model / 1e9:,.0f} and {throughput.products / 1e9:,.0f} GFLOP/s, measured here by matrix products: at least"
            rows.append(("time per million tokens", _duration(seconds), seconds, how))
            if self.n_tokens is not None:
                total = seconds * self.n_tokens / 1e6
                rows.append(
                    (
                        f"time for {self.n_tokens:,} tokens",
                        _duration(total),
                        total,
                        f"{self.ranks} process(es)",
                    )
                )
        return pd.DataFrame(rows, columns=["item", "amount", "value", "how"])

    def _largest_product(self, pairs: Sequence[Pair]) -> int:
        """Numbers in the largest stacked product: sources that go with the same targets are
        multiplied together.
        """
        targets: dict[str, list[str]] = {}
        for s, t in with_token(pairs, self.token_hook):
            targets.setdefault(s, []).append(t)
        widths: dict[tuple[str, ...], int] = {}
        for s, hooks in targets.items():
            widths[tuple(hooks)] = widths.get(tuple(hooks), 0) + self.source.d_model * len(
                joint_parts(s)
            )
        return max(width * self.target.d_model * len(hooks) for hooks, width in widths.items())

    def _stacked_widths(self, pairs: Sequence[Pair]) -> tuple[int, int]:
        kept = with_token(pairs, self.token_hook)
        d_x = self.source.d_model * sum(
            len(joint_parts(s)) for s in dict.fromkeys(s for s, _ in kept)
        )
        return d_x, self.target.d_model * len({t for _, t in kept})


def plan_harvest(
    source: ModelShape,
    target: ModelShape,
    *,
    source_layers: Layers = "all",
    target_layers: Layers = "all",
    null: bool | str = True,
    moment_dtype: str | torch.dtype = "float32",
    context_length: int = 256,
    n_tokens: int | None = 200_000,
    memory_budget: int | None = None,
    ranks: int = 1,
) -> HarvestPlan:
    """The plan of a harvest with these arguments; ValueError where no pass over a single target
    hook point fits ``memory_budget`` bytes.
    """
    pairs = choose_pairs(source_layers, target_layers, source, target)
    plan = HarvestPlan(
        source=source,
        target=target,
        passes=(pairs,),
        null=null_kind(null, pairs, source.d_model, target.d_model),
        moment_dtype=torch_dtype(moment_dtype),
        context_length=min(context_length, source.context_length, target.context_length),
        n_tokens=n_tokens,
        ranks=ranks,
    )
    return (
        plan if memory_budget is None else replace(plan, passes=split_passes(plan, memory_budget))
    )


def split_passes(plan: HarvestPlan, budget: int) -> tuple[tuple[Pair, ...], ...]:
    """The plan's pairs in groups of target hook points, in order, as many to a group as ``budget``
    bytes of moments allow.
    """
    by_target: dict[str, list[Pair]] = {}
    for pair in plan.pairs:
        by_target.setdefault(pair[1], []).append(pair)
    passes: list[list[Pair]] = []
    for target, pairs in by_target.items():
        alone = sum(plan.moments_of(pairs).values())
        if alone > budget:
            raise ValueError(
                f"the moments of target hook point {target!r} with {len(pairs)} source hook point(s) alone take "
                f"{human_bytes(alone)}, more than the "
                f"memory budget of {human_bytes(budget)}; choose 'proportional' layers or fewer of them, null='none', or a "
                "budget of that size"
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
    """FLOP/s of matrix products [1024, d] × [d, 4d], the shape of an MLP, each measured for
    ``seconds``.
    """
    speeds = {}
    for dtype in {model_dtype, moment_dtype}:
        a, b = (
            torch.ones(1024, d, dtype=dtype, device=device),
            torch.ones(d, 4 * d, dtype=dtype, device=device),
        )
        torch.mm(a, b)
        n, start, elapsed = 0, time.perf_counter(), 0.0
        while elapsed < seconds:
            result = a @ b
            # Reading a number waits for a GPU.
            float(result[0, 0])
            n, elapsed = n + 1, time.perf_counter() - start
        speeds[dtype] = n * 2.0 * 1024 * d * 4 * d / elapsed
    return Throughput(speeds[model_dtype], speeds[moment_dtype])


def available_memory(device: str | torch.device = "cpu") -> int | None:
    """Bytes that a process could still take on a device; None where the system does not say."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    free = []
    try:
        # What the page cache holds can be had, and SC_AVPHYS_PAGES does not count it.
        lines = Path("/proc/meminfo").read_text().splitlines()
        free.append(
            next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
        )
        free.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError, StopIteration):
        pass
    try:
        return min(free) if free else os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


def refuse_more_than_there_is(needed: int, available: int | None, device: Any = "cpu") -> None:
    """Raise ValueError where moments of so many bytes do not fit, warn where they hardly do: the
    process would be killed halfway.
    """
    if available is not None and needed > available:
        raise ValueError(
            f"the moments of these pairs take {human_bytes(needed)} and {human_bytes(available)} are free on {device}; "
            "choose 'proportional' layers or fewer "
            "of them, null='none', or harvest in several passes (lrt-lens fit --memory-budget 8GB)"
        )
    if available is not None and needed > _NEARLY_ALL * available:
        logger.warning(
            "the moments take %s, nearly all of the %s that are free on %s",
            human_bytes(needed),
            human_bytes(available),
            device,
        )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:,.3g} h"
