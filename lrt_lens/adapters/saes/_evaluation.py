"""Does a transferred SAE still describe its model? Reconstruction, sparsity and the loss behind it
(Stitching, table 2, and what it lacks).

    result = evaluate_sae(pair, stitch, sae, documents, native=target_sae)
    result.summary        # l0, fvu, delta_ce, ce_recovered, dead_fraction for each arm
    result.table          # the same with intervals
    result.difference("transferred", "native", "delta_ce")

| arm | SAE | on |
| --- | --- | --- |
| source | as it is | source |
| transferred | ``stitch.transfer(sae)`` | target |
| native | trained on the target, where one is given | target |
| shuffled | through the map of shuffled pairs | target |
| random | through random (semi-)orthogonal maps of the right mean and size | target |

Each batch runs either model once to its hook point; every arm resumes from there with the
reconstruction in the stream's place. All arms see the same documents, of the stitch's test fold
unless told otherwise.

Limits: ``fvu`` is about the mean of the tokens that fitted the stitch; ``dead_fraction`` counts
features that stayed silent on these tokens, so it falls with more of them, and its interval
(Clopper–Pearson) is over features, all others over documents.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from lrt_lens._repr_html import card, note, table
from lrt_lens.adapters.saes._random_maps import random_rotation
from lrt_lens.adapters.saes._sae_pass import CodeTally, Reconstruction
from lrt_lens.data._documents import Documents
from lrt_lens.data._windows import Window, special_tokens, unmasked
from lrt_lens.errors import HookPointError, MismatchError, NonFiniteError
from lrt_lens.figures._sae import sae_figure
from lrt_lens.models._hook_points import joint_parts, same_place
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._pair import ModelPair
from lrt_lens.statistics._intervals import NOTHING, Interval, bootstrap_ratio, clopper_pearson
from lrt_lens.stitching._stitch import Stitch
from lrt_lens.stitching._stitch_loss import read_windows
from lrt_lens.stitching._stitched_pass import Arm, Batch, End, Tally, batches, run_batch

logger = logging.getLogger(__name__)

METRICS = ("l0", "fvu", "delta_ce", "ce_recovered", "ce_recovered_zero")
ARMS = ("source", "transferred", "native", "shuffled", "random")


@dataclass(frozen=True)
class SAEEvaluation:
    """L0, FVU, ΔCE, recovered loss and dead features of each SAE, with intervals."""

    table: pd.DataFrame
    """A row per arm: arm, model, and each with ``_low`` and ``_high``: l0 (active features a
    token), fvu (‖x − x̂‖² ÷ ‖x − mean‖²), delta_ce (nats per token above the untouched model),
    ce_recovered ((mean − ce) ÷ (mean − own) of ablation by the mean), ce_recovered_zero (the same
    of ablation by 0), dead_fraction; ce, own_ce, n_tokens, n_documents, n_features."""
    by_document: pd.DataFrame = field(repr=False)
    """A row per arm and document: n_tokens, and sums over its tokens: l0, error, variance, ce, own,
    mean, zero.
    """
    source_hook: str
    target_hook: str
    seed: int = 0
    """Of the bootstraps and the random maps."""

    @property
    def summary(self) -> pd.DataFrame:
        """A row per arm without intervals."""
        return pd.DataFrame(self.table, columns=["arm", "model", *METRICS[:4], "dead_fraction"])

    def difference(
        self, arm: str, other: str, metric: Literal["l0", "fvu", "delta_ce"] = "delta_ce"
    ) -> Interval:
        """``arm`` minus ``other``; the bootstrap over documents is paired. ValueError for an arm or
        metric that there is not.
        """
        known = list(dict.fromkeys(self.by_document["arm"]))
        for name in (arm, other):
            if name not in known:
                raise ValueError(f"no arm {name!r}; expected one of {known}")
        if metric not in METRICS[:3]:
            raise ValueError(f"metric is {metric!r}; expected one of {list(METRICS[:3])}")
        sums = [
            _ratios(pd.DataFrame(self.by_document[self.by_document["arm"] == name]))[metric]
            for name in (arm, other)
        ]
        # Ratios of sums over different denominators: resampled together, then subtracted.
        return _paired_difference(sums[0], sums[1], self.seed)

    def figure(self) -> Any:
        """Every metric by arm with its interval (plotly)."""
        return sae_figure(self.table)

    def _repr_html_(self) -> str:
        measured = [
            f"{name}{end}" for name in (*METRICS, "dead_fraction") for end in ("", "_low", "_high")
        ]
        shown = ["arm", "model", *(name for name in measured if name in self.table)]
        places = f"{self.source_hook} → {self.target_hook}; delta_ce in nats per token."
        return card("SAEEvaluation", note(places), table(pd.DataFrame(self.table, columns=shown)))


def evaluate_sae(
    pair: ModelPair,
    stitch: Stitch,
    sae: Any,
    documents: Documents,
    *,
    native: Any = None,
    n_random: int = 3,
    n_tokens: int = 20_000,
    context_length: int = 256,
    keep: Literal["masked", "bos"] = "masked",
    folds: Literal["test", "all"] = "test",
    seed: int = 0,
    progress: bool = True,
) -> SAEEvaluation:
    """L0, FVU, ΔCE, recovered loss and dead features of an SAE at home, carried over, and of its
    controls; see the module docstring.

    Args: pair: the models of the stitch. stitch: carries the SAE; its null is the arm ``shuffled``,
        its stream means what ablation and FVU refer to. sae: a SAELens SAE of the source's hook
        point. documents: text, as `fit_stitches` takes it. native: a SAELens SAE of the target's
        hook point. n_random: random maps; their arm is the mean over them. n_tokens: counted
        positions after which no further document is read. context_length: tokens a window, BOS
        included. keep: where the stream keeps its own state: at all ``"masked"`` positions (BOS,
        the first ones, special tokens: no SAE of ours saw
            them), or at ``"bos"`` alone.
        folds: ``"test"`` reads only documents of the harvest's test fold; ``"all"`` reads every
            document.
        seed: of the bootstraps and the random maps.
        progress: show a bar.

    Raises: MismatchError: an SAE of another width, hook point or model; models that are not the
        stitch's. NonFiniteError: an SAE or a stream with NaN or infinity. TooFewDocumentsError:
        fewer than two documents.

    Source: Stitching (arXiv 2506.06609) table 2; controls, dead features and intervals are ours.
    """
    _check(pair, stitch, sae, native, n_tokens)
    saes = _saes(stitch, sae, native, n_random, seed)
    ends = {"A": End(pair.source, stitch.source_hook), "B": End(pair.target, stitch.target_hook)}
    windows = read_windows(
        pair, stitch, documents, n_tokens, min(context_length, pair.context_length), folds
    )
    if pair.aligned:
        # Nothing crosses between the models here: every unmasked token of either counts, not the
        # aligned ones alone.
        special = (special_tokens(pair.source), special_tokens(pair.target))
        windows = [_with_all_rows(window, special, stitch.skip_first) for window in windows]
    tally = Tally(1 + max(window.document for window in windows))
    codes = {name: CodeTally(tally.n_documents, found.cfg.d_sae) for name, found in saes.items()}
    for found in tqdm(
        list(batches(windows, pair.source, pair.target)),
        desc="SAE evaluation",
        disable=not progress,
        leave=False,
    ):
        batch = Batch(found, ends, keep, paired=False)
        run_batch(ends, _arms(stitch, saes, batch, codes), batch, tally)
    by_document = _by_document(tally, codes)
    table = _table(by_document, codes, pair, seed)
    return SAEEvaluation(table, by_document, stitch.source_hook, stitch.target_hook, seed)


def _with_all_rows(
    window: Window, special: tuple[np.ndarray, np.ndarray], skip_first: int
) -> Window:
    target = window.read_by("target")
    counterpart = replace(target, rows=unmasked(target.ids, special[1], skip_first))
    return replace(
        window, rows=unmasked(window.ids, special[0], skip_first), counterpart=counterpart
    )


# ---------------------------------------------------------------------------------------- arguments


def _check(pair: ModelPair, stitch: Stitch, sae: Any, native: Any, n_tokens: int) -> None:
    if n_tokens < 1:
        raise ValueError(
            f"n_tokens is {n_tokens}; expected a positive number of tokens, such as 20_000"
        )
    stitch.check(pair.source, pair.target)
    for hook in (stitch.source_hook, stitch.target_hook):
        if len(joint_parts(hook)) > 1:
            raise HookPointError(
                f"{hook!r} is several hook points side by side, where no reconstruction can be put back; take a stitch of single ones"
            )
    refuse_foreign_sae(sae, pair.source, stitch.source_hook, "sae")
    if native is not None:
        refuse_foreign_sae(native, pair.target, stitch.target_hook, "native")
    if stitch.null is None:
        logger.warning(
            "this stitch holds no map fitted on shuffled pairs, so the arm 'shuffled' is left out; harvest with null='full'"
        )


def refuse_foreign_sae(sae: Any, model: HookedModel, hook: str, role: str) -> None:
    """Raise unless a SAELens SAE fits a model's stream at a hook point: width, hook point, the
    model where the SAE knows it, finite weights.
    """
    if not hasattr(sae, "cfg") or not hasattr(sae, "W_dec"):
        raise TypeError(
            f"{role} is a {type(sae).__name__}; expected a SAELens SAE, as SAE.from_pretrained or SAE.load_from_disk give it"
        )
    if sae.cfg.d_in != model.d_model:
        raise MismatchError(
            f"{role} has width {sae.cfg.d_in}, {model.name!r} has {model.d_model} dimensions at {hook!r}; take an SAE of that model, or carry it over "
            "with stitch.transfer(sae)"
        )
    metadata = sae.cfg.metadata
    if metadata.hook_name and not same_place(metadata.hook_name, hook):
        raise MismatchError(
            f"{role} was learnt at {metadata.hook_name!r}, the stitch is at {hook!r}; take an SAE of that hook point, or a stitch that meets it"
        )
    if metadata.model_hash and metadata.model_hash != model.identity.config_hash:
        raise MismatchError(
            f"{role} was learnt on {metadata.model_name!r} (weights {metadata.model_hash}), not on {model.name!r} (weights {model.identity.config_hash}); "
            "load that model, or train an SAE on this one with train_sae"
        )
    for name, weights in sae.state_dict().items():
        if not bool(torch.isfinite(weights).all()):
            raise NonFiniteError(
                f"{role} holds NaN or infinity in {name}; load the weights again, or train the SAE at a lower rate"
            )


# --------------------------------------------------------------------------------------------- arms


def _saes(stitch: Stitch, sae: Any, native: Any, n_random: int, seed: int) -> dict[str, Any]:
    """By arm; draws of the random map are ``random 0``, ``random 1`` and so on."""
    saes = {"source": sae, "transferred": stitch.transfer(sae)}
    if native is not None:
        saes["native"] = native
    if stitch.null is not None:
        saes["shuffled"] = stitch.transfer(sae, through=stitch.null)
    generator = torch.Generator().manual_seed(seed)
    return saes | {
        f"random {draw}": stitch.transfer(sae, through=random_rotation(stitch, generator))
        for draw in range(n_random)
    }


def _arms(
    stitch: Stitch, saes: dict[str, Any], batch: Batch, codes: dict[str, CodeTally]
) -> list[Arm]:
    """For either model its ablations, itself, and its SAEs."""
    arms: list[Arm] = []
    for end, statistics in (("A", stitch.source_statistics), ("B", stitch.target_statistics)):
        mean = statistics.mean.float()
        arms += [Arm("mean", end, (end,), mean), Arm("zero", end, (end,), torch.zeros_like(mean))]
        arms.append(Arm("own", end, (end,), lambda streams, end=end: streams[end]))
        for name in (name for name in saes if (name == "source") == (end == "A")):
            arms.append(
                Arm(
                    name,
                    end,
                    (end,),
                    Reconstruction(saes[name], end, mean, batch.sides[end], codes[name]),
                )
            )
    return arms


# ------------------------------------------------------------------------------------------- tables


def _by_document(tally: Tally, codes: dict[str, CodeTally]) -> pd.DataFrame:
    """Sums over tokens, a row per arm and document; the draws of the random map are averaged."""
    frames: dict[str, list[pd.DataFrame]] = {}
    for name, code in codes.items():
        end = "A" if name == "source" else "B"
        losses = {kind: tally.sums[end, kind]["ce"] for kind in ("own", "mean", "zero")} | {
            "ce": tally.sums[end, name]["ce"]
        }
        frame = pd.DataFrame(
            {"document": np.arange(tally.n_documents), "n_tokens": code.counts} | code.sums | losses
        )
        frames.setdefault(name.split()[0], []).append(frame)
    order = [arm for arm in ARMS if arm in frames]
    return pd.concat(
        [
            (sum(frames[arm][1:], frames[arm][0]) / len(frames[arm])).assign(arm=arm)
            for arm in order
        ],
        ignore_index=True,
    )


def _ratios(rows: pd.DataFrame) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Numerator and denominator of every metric, [document]."""
    column: Callable[[str], np.ndarray] = lambda name: rows[name].to_numpy(dtype=float)  # noqa: E731 (a short name for a long expression)
    ce, own, n = column("ce"), column("own"), column("n_tokens")
    return {
        "l0": (column("l0"), n),
        "fvu": (column("error"), column("variance")),
        "delta_ce": (ce - own, n),
        "ce_recovered": (column("mean") - ce, column("mean") - own),
        "ce_recovered_zero": (column("zero") - ce, column("zero") - own),
    }


def _table(
    by_document: pd.DataFrame, codes: dict[str, CodeTally], pair: ModelPair, seed: int
) -> pd.DataFrame:
    table = []
    for arm, rows in by_document.groupby("arm", sort=False):
        row: dict[str, Any] = {
            "arm": arm,
            "model": (pair.source if arm == "source" else pair.target).name,
        }
        for metric, (numerator, denominator) in _ratios(rows).items():
            row |= _columns(metric, bootstrap_ratio(numerator, denominator, seed=seed))
        fired = [code.fired for name, code in codes.items() if name.split()[0] == arm]
        row |= _columns("dead_fraction", _dead(fired))
        n, ce, own = (
            float(rows[name].to_numpy(dtype=float).sum()) for name in ("n_tokens", "ce", "own")
        )
        row |= {"ce": ce / n, "own_ce": own / n, "n_tokens": round(n)}
        table.append(row | {"n_documents": len(rows), "n_features": len(fired[0])})
    return pd.DataFrame(table)


def _columns(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _dead(fired: list[torch.Tensor]) -> Interval:
    """Share of silent features; over several draws their mean, with the widest of their intervals."""
    if not fired:
        return NOTHING
    found = [clopper_pearson(int((~one).sum()), len(one)) for one in fired]
    return Interval(
        math.fsum(one.value for one in found) / len(found),
        min(one.low for one in found),
        max(one.high for one in found),
    )


def _paired_difference(
    a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray], seed: int
) -> Interval:
    """Difference of two ratios of sums over the same documents, by its linearisation: each
    document's influence on it is bootstrapped.
    """
    values = [numerator.sum() / denominator.sum() for numerator, denominator in (a, b)]
    influence = sum(
        sign * (n - value * d) / d.mean()
        for sign, value, (n, d) in zip((1, -1), values, (a, b), strict=True)
    )
    spread = bootstrap_ratio(np.asarray(influence), np.ones(len(a[0])), seed=seed)
    value = float(values[0] - values[1])
    return Interval(value, value + spread.low, value + spread.high)
