"""A map straight from an SAE's codes on the source to the target's states: LRT's *s2l*.

Problem: does a map that does not use the source's states predict the target as well as a stitch?
Mechanism: the stitch (LRT: *l2l*) transfers a feature through its decoder row, ``W_dec[i] W``. A
code map does not use the source's states: it regresses the target's states on the activations of
the source SAE,

    y ≈ c W + b,        W: [live feature, d_target],

so that row i of W is what feature i adds on the target: a steering vector.

    codes = fit_code_map(pair, stitch, sae, documents)
    codes.r2_cv, codes.alpha             # cross-validated; evaluate_code_map reads the test fold
    with codes.direction(17).apply(pair.target, scale=8.0):
        ...
    codes.save("codes.safetensors")      # CodeMap.load("codes.safetensors") reads it

Source: LRT (arXiv 2506.00653, §3.2), which trains with AdamW; this is ridge regression in closed
form, with the penalty cross-validated over documents.

Limits: features that never fire on the fitting folds have no row. The row of a feature that fires
on few tokens is mostly determined by the penalty; ``firings`` holds the number of tokens. Features
that fire together share what they explain, as in any regression.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lrt_lens._stored_fields import as_damage, json_object, stored_fields, stored_text
from lrt_lens._tensor_files import read_tensor_file, write_tensors
from lrt_lens.adapters.saes.codes._moments import CodeMoments, encode
from lrt_lens.adapters.saes.codes._passes import (
    CodePasses,
    check_sae,
    collect_moments,
    count_firings,
)
from lrt_lens.adapters.saes.codes._ridge import (
    CODE_ALPHAS,
    SOLVERS,
    CodeSolution,
    choose_solver,
    fit_codes,
)
from lrt_lens.adapters.vectors._steering_vector import SteeringVector
from lrt_lens.data._documents import Documents
from lrt_lens.errors import MismatchError, NonFiniteError
from lrt_lens.models._belonging import Ends, Origin, refuse_impossible_hook
from lrt_lens.models._identity import ModelIdentity
from lrt_lens.models._pair import ModelPair
from lrt_lens.models._text_reader import SKIP_FIRST
from lrt_lens.moments._placement import available_memory
from lrt_lens.stitching._stitch import Stitch

logger = logging.getLogger(__name__)

CODES_SCHEMA = "lrt_lens.codes/1"
"""Schema version of a file; another one is refused."""
_TENSORS = ("weight", "bias", "live", "firings")
"""Fields that a file stores as tensors; all others are stored as JSON."""


@dataclass(frozen=True, eq=False)
class CodeMap:
    """Map ``y ≈ c[live] @ weight + bias`` from SAE codes to the states of another model."""

    weight: Tensor
    """Weights W of the live features, [live, d_target]."""
    bias: Tensor
    """Bias b, [d_target]."""
    live: Tensor
    """Indices of the live features within the SAE, in ascending order, [live]."""
    firings: Tensor
    """Number of tokens of the fitting folds on which each feature of the SAE is active,
    [feature]."""
    source_hook: str
    """Hook point at which the SAE reads the source model."""
    target_hook: str
    """Hook point of the predicted states of the target model."""
    source: ModelIdentity | None = None
    """Model whose states the SAE encodes; None if it is unknown."""
    target: ModelIdentity | None = None
    """Model whose states are predicted; None if it is unknown."""
    alpha: float = float("nan")
    """Penalty relative to the mean variance of a live feature."""
    r2_cv: float = float("nan")
    """Share of variance explained, cross-validated over the fitting folds."""
    r2_uniform_cv: float = float("nan")
    """Cross-validated share of explained variance, mean over the target's dimensions."""
    curve: tuple[tuple[float, float, float], ...] = ()
    """Triples (alpha, r2, r2_uniform) of each penalty that was tried, cross-validated."""
    n_tokens: int = 0
    """Number of tokens of the fitting folds."""
    solver: str = "given"
    """Solver that was used: ``"cholesky"`` or ``"cg"``."""
    skip_first: int = SKIP_FIRST
    """Number of first positions of each text that were left out of the fit."""

    def __post_init__(self) -> None:
        if self.weight.ndim != 2 or self.weight.shape != (len(self.live), len(self.bias)):
            raise MismatchError(
                f"weight {tuple(self.weight.shape)}, bias {tuple(self.bias.shape)} and "
                f"{len(self.live)} live features do not fit together; expected [live, d_target], "
                "[d_target] and one index per row"
            )
        ascends = bool((self.live.diff() > 0).all()) and bool((self.live >= 0).all())
        if not ascends or (len(self.live) and int(self.live[-1]) >= len(self.firings)):
            raise MismatchError(
                f"the live features are not ascending numbers below {len(self.firings)}, the number"
                " of features; give the index of each row's feature within the SAE"
            )
        if not (torch.isfinite(self.weight).all() and torch.isfinite(self.bias).all()):
            raise NonFiniteError(
                "the code map holds NaN or infinity; fit it again on finite activations"
            )

    @property
    def ends(self) -> Ends:
        """Hook points and models between which the map leads."""
        # Codes have a number of features, which `check` compares, and no width of a stream.
        return (
            Origin("the code map", self.source_hook, self.source),
            Origin("the code map", self.target_hook, self.target, len(self.bias)),
        )

    @property
    def n_features(self) -> int:
        """Number of features of the SAE, dead ones included."""
        return len(self.firings)

    def points(self, codes: Tensor) -> Tensor:
        """Target states predicted from codes of all features, [..., feature] → [..., d_target].

        Raises:
            MismatchError: the codes have another number of features.
        """
        if codes.shape[-1] != self.n_features:
            raise MismatchError(
                f"codes have {codes.shape[-1]} features; this map was fitted on an SAE of "
                f"{self.n_features}: give the codes of that SAE, dead features included"
            )
        # y = c W + b over the live features.
        return codes[..., self.live.to(codes.device)] @ self.weight.to(codes) + self.bias.to(codes)

    def row(self, feature: int) -> Tensor:
        """Change of the target's state per unit of a feature, [d_target].

        Raises:
            IndexError: the SAE has no such feature.
            ValueError: the feature is dead and has no row.
        """
        if not 0 <= feature < self.n_features:
            raise IndexError(
                f"feature {feature} is not in this SAE; it has {self.n_features} features: use 0 "
                f"to {self.n_features - 1}"
            )
        # `live` ascends, so a feature is live if the entry at its insertion point is the feature.
        row = int(torch.searchsorted(self.live, feature))
        if row == len(self.live) or int(self.live[row]) != feature:
            raise ValueError(
                f"feature {feature} was active on {int(self.firings[feature])} of "
                f"{self.n_tokens:,} tokens of the fit and has no row; choose one of the "
                f"{len(self.live)} in .live, or fit on text that activates it"
            )
        return self.weight[row]

    def direction(self, feature: int) -> SteeringVector:
        """Steering vector of a feature on the target model.

        Scale 1 adds the change of state that one unit of the feature's activation predicts. Raises
        like `row`.
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
        """Raise `MismatchError` unless an SAE has as many features as the SAE of the fit."""
        if sae.W_dec.shape[0] != self.n_features:
            raise MismatchError(
                f"the SAE has {sae.W_dec.shape[0]} features; this map was fitted on an SAE of "
                f"{self.n_features}: give that SAE"
            )

    def __repr__(self) -> str:
        return (
            f"CodeMap({len(self.live)} of {self.n_features} features at {self.source_hook} → "
            f"{self.target_hook} [{len(self.bias)}], {self.n_tokens:,} tokens, alpha "
            f"{self.alpha:g}, r2_cv {self.r2_cv:.2f}, r2_uniform_cv {self.r2_uniform_cv:.2f})"
        )

    def save(self, path: str | Path) -> Path:
        """Write the map into one safetensors file and return its path."""
        tensors = {name: getattr(self, name) for name in _TENSORS}
        tensors |= {name: tensors[name].long() for name in ("live", "firings")}
        # asdict of the whole map would copy its tensors; only the identities need it.
        fields = {key: value for key, value in vars(self).items() if key not in _TENSORS}
        fields |= {
            role: asdict(model)
            for role in ("source", "target")
            if (model := fields[role]) is not None
        }
        return write_tensors(
            Path(path),
            tensors,
            {
                "schema_version": CODES_SCHEMA,
                "codes": stored_text(CodeMap, fields, others=_TENSORS),
            },
        )

    @classmethod
    def load(cls, path: str | Path) -> "CodeMap":
        """Code map from a file written by `save`.

        Raises:
            FileFormatError: the file is missing, truncated or of another format.
        """
        file = read_tensor_file(Path(path), CODES_SCHEMA)
        content = json_object(file.path, file.metadata.get("codes"), "'codes'")
        fields = stored_fields(file.path, cls, content, others=_TENSORS)
        for role in ("source", "target"):
            refuse_impossible_hook(file.path, fields[f"{role}_hook"], fields.get(role))
        shapes = {"weight": "live target", "bias": "target", "live": "live", "firings": "feature"}
        tensors = file.checked(shapes, integers=("live", "firings"))
        with as_damage(file.path):
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
    """Ridge map from an SAE's codes at the stitch's source hook to states at its target hook.

    Args:
        pair: the models of the stitch.
        stitch: names the hook points and the test documents, which are not read.
        sae: a SAELens SAE, or an object with ``encode`` and ``W_dec`` [feature, d_source].
        documents: text in any form that `fit_stitches` accepts, except a generator, because it is
            read twice.
        n_tokens: unmasked tokens after which no further document is read, tokens of the test fold
            included; None reads all documents.
        alphas: penalties to choose from, relative to the mean variance of a live feature.
        min_firings: features that are active on fewer tokens of the fitting folds count as dead.
        solver: ``"cholesky"`` holds the second moments of the codes (8·F² bytes per fold), ``"cg"``
            the sparse codes; ``"auto"`` uses Cholesky if its matrices fit into memory.
        memory: bytes that the fit may take, checked before the allocation; None: the free memory.
        context_length: tokens per window, at most what both models read.
        progress: show bars.

    Raises:
        MismatchError: the SAE belongs to another width, hook point, model, basis or tokenizer;
            models that are not the stitch's.
        NonFiniteError: codes or states are NaN or infinite.
        ValueError: no live feature; more memory is needed than allowed.

    Source: LRT (arXiv 2506.00653) §3.2, with ridge regression instead of AdamW, over the live
    features only.
    """
    _check_options(solver, alphas, min_firings)
    check_sae(sae, pair.source, stitch.source_hook, context_length)
    passes = CodePasses(pair, stitch, documents, n_tokens, context_length, progress)
    # Two passes: which features are live decides the size of all sums.
    firings, n_fit = count_firings(passes, sae)
    live = (firings >= min_firings).nonzero()[:, 0]
    _refuse_too_little(live, firings, n_fit, min_firings)
    # Dense sums are held on the target's device, sparse codes on the CPU.
    devices = {"cholesky": pair.target.device, "cg": "cpu"}
    free = {
        name: available_memory(device) if memory is None else memory
        for name, device in devices.items()
    }
    used = choose_solver(solver, len(live), int(firings[live].sum()), pair.target.d_model, free)
    moments = collect_moments(passes, sae, firings, live, sparse=used == "cg")
    return _code_map(fit_codes(moments, alphas), moments, stitch, used)


def _check_options(solver: str, alphas: Sequence[float], min_firings: int) -> None:
    """Raise ValueError for options of `fit_code_map` that are out of range."""
    if solver not in ("auto", *SOLVERS):
        raise ValueError(f"solver is {solver!r}; expected 'auto', 'cholesky' or 'cg'")
    if not alphas or not all(0 < alpha < float("inf") for alpha in alphas):
        raise ValueError(
            f"alphas is {list(alphas)}; expected positive numbers, such as [0.1, 0.01]"
        )
    if min_firings < 1:
        raise ValueError(
            f"min_firings is {min_firings}; expected 1 or more: a feature that never fires has no "
            "row"
        )


def _code_map(fit: CodeSolution, moments: CodeMoments, stitch: Stitch, solver: str) -> CodeMap:
    """Code map of a fit, with the hook points and the models of the stitch."""
    return CodeMap(
        weight=fit.weight.cpu().contiguous(),
        bias=fit.bias.cpu(),
        live=moments.live,
        firings=moments.firings,
        source_hook=stitch.source_hook,
        target_hook=stitch.target_hook,
        source=stitch.source,
        target=stitch.target,
        alpha=fit.alpha,
        r2_cv=fit.r2_cv,
        r2_uniform_cv=fit.r2_uniform_cv,
        curve=fit.curve,
        n_tokens=moments.n_tokens,
        solver=solver,
        skip_first=stitch.skip_first,
    )


def _refuse_too_little(live: Tensor, firings: Tensor, n_fit: int, min_firings: int) -> None:
    """Raise ValueError if no feature is live; warn if there are fewer tokens than features."""
    if not len(live):
        raise ValueError(
            f"none of {len(firings)} features is active on {min_firings} of {n_fit:,} tokens; "
            "give an SAE of this hook point, or more text"
        )
    if n_fit < len(live):
        logger.warning(
            "%d tokens for %d live features: without a penalty the map would interpolate them "
            "exactly; give more text, or raise min_firings",
            n_fit,
            len(live),
        )


def encode_states(codes: CodeMap, sae: Any, rows: Tensor) -> Tensor:
    """Target states [token, d_target] predicted from source states [token, d_source].

    The source states are encoded by the SAE, and its codes are mapped by ``codes``.
    """
    codes.check(sae)
    return codes.points(encode(sae, rows).double())
