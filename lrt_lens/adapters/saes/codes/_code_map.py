"""A map straight from an SAE's codes on the source to the target's states: LRT's *s2l* (arXiv
2506.00653, §3.2).

The stitch (LRT: *l2l*) carries a feature by carrying its decoder row, ``W_dec[i] W``. A code map
skips the source's stream: it regresses the target's states on the source SAE's activations,

    y ≈ c W + b,        W: [live feature, d_target],

so that row i of W is what feature i writes on the target: a steering vector.

    codes = fit_code_map(pair, stitch, sae, documents)
    codes.r2_cv, codes.alpha                              # chosen on the fitting folds; see evaluate_code_map for the test fold
    with codes.direction(17).apply(pair.target, scale=8.0): ...
    codes.save("codes.safetensors"); CodeMap.load("codes.safetensors")

LRT trains with AdamW; this is ridge in closed form, the penalty cross-validated over documents.
Dead features have no row: what never fired on the fitting folds says nothing of the target. Limits:
a feature that fires on a handful of tokens has a row that is mostly penalty; ``firings`` says on
how many. Features that fire together share what they explain, as in any regression.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lrt_lens._byte_sizes import human_bytes
from lrt_lens._files import read_tensors, write_tensors
from lrt_lens.adapters.saes.codes._moments import (
    CodePasses,
    check_sae,
    collect_moments,
    count_firings,
    encode,
    gram_bytes,
)
from lrt_lens.adapters.saes.codes._ridge import CODE_ALPHAS, CodeSolution, fit_codes
from lrt_lens.adapters.vectors._steering_vector import SteeringVector
from lrt_lens.data._documents import Documents
from lrt_lens.errors import FileFormatError, MismatchError, NonFiniteError
from lrt_lens.models._hooked_model import SKIP_FIRST
from lrt_lens.models._identity import ModelIdentity
from lrt_lens.models._pair import ModelPair
from lrt_lens.moments._plan import available_memory
from lrt_lens.stitching._stitch import Stitch

logger = logging.getLogger(__name__)

CODES_SCHEMA = "lrt_lens.codes/1"
SOLVERS = ("cholesky", "cg")
_TENSORS = ("weight", "bias", "live", "firings")


@dataclass(frozen=True, eq=False)
class CodeMap:
    """``y ≈ c[live] @ weight + bias``; see the module docstring."""

    weight: Tensor
    """[live, d_target]."""
    bias: Tensor
    """[d_target]."""
    live: Tensor
    """[live], ascending indices into the SAE's features."""
    firings: Tensor
    """[feature]: tokens of the fitting folds on which each feature of the SAE is active."""
    source_hook: str
    """Where the SAE reads."""
    target_hook: str
    """Where the states are."""
    source: ModelIdentity | None = None
    target: ModelIdentity | None = None
    alpha: float = float("nan")
    """Penalty relative to the mean variance of a live feature."""
    r2_cv: float = float("nan")
    """Share of variance explained, cross-validated over the fitting folds."""
    r2_uniform_cv: float = float("nan")
    """The same, mean over the target's dimensions."""
    curve: tuple[tuple[float, float, float], ...] = ()
    """(alpha, r2, r2_uniform) of every penalty that was tried, cross-validated."""
    n_tokens: int = 0
    """Tokens that fitted."""
    solver: str = "given"
    """``"cholesky"`` or ``"cg"``."""
    skip_first: int = SKIP_FIRST
    """First positions of a text that the map never saw."""

    def __post_init__(self) -> None:
        if self.weight.ndim != 2 or self.weight.shape != (len(self.live), len(self.bias)):
            raise MismatchError(
                f"weight {tuple(self.weight.shape)}, bias {tuple(self.bias.shape)} and {len(self.live)} live features do not fit; "
                "expected [live, d_target], [d_target] and an index for every row"
            )
        if not (torch.isfinite(self.weight).all() and torch.isfinite(self.bias).all()):
            raise NonFiniteError(
                "the code map holds NaN or infinity; fit it again on finite activations"
            )

    @property
    def n_features(self) -> int:
        """Features of the SAE, dead ones included."""
        return len(self.firings)

    def points(self, codes: Tensor) -> Tensor:
        """Target states predicted from codes of all features, [..., feature] → [..., d_target]: ``c
        W + b``.
        """
        if codes.shape[-1] != self.n_features:
            raise MismatchError(
                f"codes have {codes.shape[-1]} features; this map was fitted on an SAE of {self.n_features}"
            )
        return codes[..., self.live.to(codes.device)] @ self.weight.to(codes) + self.bias.to(codes)

    def row(self, feature: int) -> Tensor:
        """[d_target]: what one unit of a feature adds on the target; IndexError for one out of
        range, ValueError for a dead one.
        """
        if not 0 <= feature < self.n_features:
            raise IndexError(
                f"feature {feature} is not in this SAE; it has {self.n_features} features: use 0 to {self.n_features - 1}"
            )
        place = int(torch.searchsorted(self.live, feature))
        if place == len(self.live) or int(self.live[place]) != feature:
            raise ValueError(
                f"feature {feature} was active on {int(self.firings[feature])} of {self.n_tokens:,} tokens that fitted and has no row; "
                f"choose one of the {len(self.live)} in .live, or fit on text that activates it"
            )
        return self.weight[place]

    def direction(self, feature: int) -> SteeringVector:
        """A feature as a steering vector on the target: scale 1 adds what one unit of its
        activation predicts there.
        """
        return SteeringVector(
            direction=self.row(feature).float(),
            hook=self.target_hook,
            model=self.target,
            name=f"feature {feature}",
            method="code_map",
            skip_first=self.skip_first,
        )

    def check(self, sae: Any) -> None:
        """Raise `MismatchError` where an SAE has another number of features than the one that this
        map was fitted on.
        """
        if sae.W_dec.shape[0] != self.n_features:
            raise MismatchError(
                f"the SAE has {sae.W_dec.shape[0]} features, this map was fitted on one of {self.n_features}; give that SAE"
            )

    def __repr__(self) -> str:
        return (
            f"CodeMap({len(self.live)} of {self.n_features} features at {self.source_hook} → {self.target_hook} [{len(self.bias)}], "
            f"{self.n_tokens:,} tokens, alpha {self.alpha:g}, r2_cv {self.r2_cv:.2f}, r2_uniform_cv {self.r2_uniform_cv:.2f})"
        )

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file."""
        tensors = {name: getattr(self, name) for name in _TENSORS}
        # asdict would copy the tensors first; the identities alone need it.
        fields = {key: value for key, value in vars(self).items() if key not in _TENSORS}
        fields |= {
            role: asdict(model)
            for role in ("source", "target")
            if (model := fields[role]) is not None
        }
        return write_tensors(
            Path(path), tensors, {"schema_version": CODES_SCHEMA, "codes": json.dumps(fields)}
        )

    @classmethod
    def load(cls, path: str | Path) -> "CodeMap":
        """Read what `save` wrote; FileFormatError for anything else."""
        tensors, metadata = read_tensors(Path(path), CODES_SCHEMA)
        missing = [name for name in _TENSORS if name not in tensors]
        if missing:
            raise FileFormatError(f"{str(path)!r} lacks {missing}; it is no code map of ours")
        fields: dict[str, Any] = json.loads(metadata["codes"])
        for role in ("source", "target"):
            fields[role] = ModelIdentity(**fields[role]) if fields[role] else None
        fields["curve"] = tuple(tuple(point) for point in fields["curve"])
        return cls(**tensors, **fields)


def fit_code_map(
    pair: ModelPair,
    stitch: Stitch,
    sae: Any,
    documents: Documents,
    *,
    n_tokens: int | None = 200_000,
    alphas: Sequence[float] = CODE_ALPHAS,
    min_firings: int = 1,
    solver: Literal["auto", "cholesky", "cg"] = "auto",
    memory: int | None = None,
    context_length: int = 256,
    progress: bool = True,
) -> CodeMap:
    """The ridge map from an SAE's codes at the stitch's source hook to the states at its target
    hook.

    Args: pair: the models of the stitch. stitch: says between which hook points, and which
        documents test: they are not read. sae: a SAELens SAE, or anything with ``encode`` and
        ``W_dec`` [feature, d_source]. documents: see `lrt_lens.data._documents`; walked twice, so
        no generator. n_tokens: unmasked tokens after which no further document is taken, those of
        the test fold included; None takes all. alphas: penalties to choose from, relative to the
        mean variance of a live feature. min_firings: a feature that is active on fewer tokens of
        the fitting folds counts as dead. solver: ``"cholesky"`` holds the codes' second moments
        (8·F² bytes a fold); ``"cg"`` the sparse codes instead; ``"auto"`` takes
            Cholesky where it fits.
        memory: bytes that may be taken; None takes what is free. Checked before anything is
            allocated.
        context_length: tokens a window, cut to what both models read.
        progress: show bars.

    Raises:
        MismatchError: an SAE of another width or hook point; models that are not the stitch's.
        NonFiniteError: codes or states that are NaN or infinite.
        ValueError: no live feature; more memory needed than allowed.

    Source: LRT (arXiv 2506.00653) §3.2; ridge in the place of AdamW, and the memory of the live
    features alone.
    """
    if solver not in ("auto", *SOLVERS):
        raise ValueError(f"solver is {solver!r}; expected 'auto', 'cholesky' or 'cg'")
    if not alphas or not all(0 < alpha < float("inf") for alpha in alphas):
        raise ValueError(
            f"alphas is {list(alphas)}; expected positive numbers, such as [0.1, 0.01]"
        )
    if min_firings < 1:
        raise ValueError(
            f"min_firings is {min_firings}; expected 1 or more: a feature that never fires has no row"
        )
    check_sae(sae, pair.source, stitch.source_hook)
    passes = CodePasses(pair, stitch, documents, n_tokens, context_length, progress)
    firings, n_fit = count_firings(passes, sae)
    live = (firings >= min_firings).nonzero()[:, 0]
    _refuse_too_little(live, firings, n_fit, min_firings)
    # Dense sums lie where the target is, sparse codes on the CPU.
    devices = {"cholesky": pair.target.device, "cg": "cpu"}
    free = {
        name: available_memory(device) if memory is None else memory
        for name, device in devices.items()
    }
    chosen = _choose_solver(solver, len(live), int(firings[live].sum()), pair.target.d_model, free)
    moments = collect_moments(passes, sae, firings, live, sparse=chosen == "cg")
    return _code_map(fit_codes(moments, alphas), live, firings, stitch, moments.n_tokens, chosen)


def _code_map(
    found: CodeSolution, live: Tensor, firings: Tensor, stitch: Stitch, n_tokens: int, solver: str
) -> CodeMap:
    return CodeMap(
        weight=found.weight.cpu().contiguous(),
        bias=found.bias.cpu(),
        live=live,
        firings=firings,
        source_hook=stitch.source_hook,
        target_hook=stitch.target_hook,
        source=stitch.source,
        target=stitch.target,
        alpha=found.alpha,
        r2_cv=found.r2_cv,
        r2_uniform_cv=found.r2_uniform_cv,
        curve=found.curve,
        n_tokens=n_tokens,
        solver=solver,
        skip_first=stitch.skip_first,
    )


def _refuse_too_little(live: Tensor, firings: Tensor, n_fit: int, min_firings: int) -> None:
    if not len(live):
        raise ValueError(
            f"none of {len(firings)} features is active on {min_firings} of {n_fit:,} tokens; give an SAE of this stream, or more text"
        )
    if n_fit < len(live):
        logger.warning(
            "%d tokens fit %d live features: the map interpolates wherever the penalty allows it; give more text, or raise min_firings",
            n_fit,
            len(live),
        )


def _choose_solver(
    solver: str, n_live: int, n_active: int, d_target: int, free: Mapping[str, int | None]
) -> str:
    """``"cholesky"`` or ``"cg"``; ValueError with both sizes where what was asked for does not fit."""
    needed = {name: gram_bytes(n_live, n_active, d_target, sparse=name == "cg") for name in SOLVERS}
    candidates = SOLVERS if solver == "auto" else (solver,)
    fitting = [
        name for name in candidates if (budget := free[name]) is None or needed[name] <= budget
    ]
    if not fitting:
        raise ValueError(
            f"{n_live} live features need {human_bytes(needed['cholesky'])} with Cholesky and {human_bytes(needed['cg'])} with conjugate "
            f"gradients (solver={solver!r}), and {human_bytes(free[candidates[-1]] or 0)} may be taken; raise min_firings, lower n_tokens"
            + (", or take solver='auto'" if solver != "auto" else "")
        )
    return fitting[0]


def encode_states(codes: CodeMap, sae: Any, rows: Tensor) -> Tensor:
    """Target states [token, d_target] predicted from the source's states [token, d_source] through
    the SAE's codes.
    """
    codes.check(sae)
    return codes.points(encode(sae, rows).double())
