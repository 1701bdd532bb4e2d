"""Maps from several layers of the source into one layer of the target.

Problem: LRT (arXiv 2506.00653) proposes such maps in appendix A, but trains none. Mechanism: the
concatenated layers of the source are one wide hook point (`joint_name`). Joint moments are then
ordinary `CrossMoments`, and the map is a ridge with one penalty per layer:

    moments = harvest(pair, documents, source_layers="all", target_layers=[3], joint=True)
    grid = moments.fit(ManyToOne())
    layer_contributions(moments)        # what each layer adds, from the same moments

Objective: ``Σ‖y − Σ_g x_g W_g − b‖² + λ·tr(Sxx)/d·Σ_g p_g‖W_g‖²_F``, with the scatter ``Sxx`` of
all layers together. Scaling ``x_g`` by ``1/√p_g`` makes it plain ridge. The ``p_g`` are chosen by
coordinate descent on the cross-validated R²: one layer's penalty at a time is multiplied or divided
by ``step``, which leaves those of the other layers as they are.

Limits: the scatter matrix is [n_layers · d, n_layers · d], which limits models of many layers. The
search for the ``p_g`` is greedy.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd
import torch
from torch import Tensor

from lrt_lens._progress import tqdm
from lrt_lens.errors import HookPointError
from lrt_lens.models._hook_points import HookPair, joint_name, joint_parts
from lrt_lens.moments._cross_moments import CrossMoments
from lrt_lens.moments._scatter import Scatter, SideMoments
from lrt_lens.stitching._affine import AffineMap
from lrt_lens.stitching.solvers._ridge import Ridge, RidgeFitter, Spectrum
from lrt_lens.stitching.solvers._solver import DEFAULT_ALPHAS, FoldErrors, Setting, Solver


@dataclass(frozen=True)
class ManyToOne(Solver):
    """Ridge regression from several source layers at once, with one penalty per layer.

    The map down is plain ridge from the target to all source layers.
    """

    alpha: float | None = None
    """Penalty common to all layers, relative to the mean variance of the source, as in `Ridge`;
    None chooses from ``alphas`` by cross-validated R².
    """
    alphas: tuple[float, ...] = DEFAULT_ALPHAS
    """Common penalties among which cross-validation chooses if ``alpha`` is None."""
    groups: tuple[float, ...] | None = None
    """Factor p_g by which the common penalty is multiplied for each layer; None chooses them by
    cross-validation, ``()`` sets them all to 1.
    """
    step: float = 10.0
    """Factor by which the search multiplies or divides the penalty of a layer."""
    sweeps: int = 1
    """Number of times that the search goes through all layers."""
    standardize: bool = False
    """Scale every source dimension to unit variance before the penalty is applied."""

    def __post_init__(self) -> None:
        if self.step <= 1:
            raise ValueError(f"step is {self.step!r}; expected a factor above 1")
        if self.groups and not all(0 < p < float("inf") for p in self.groups):
            raise ValueError(
                f"groups is {self.groups!r}; expected positive penalties, one per source layer"
            )
        self.ridge  # noqa: B018 (checks the penalties)

    @property
    def ridge(self) -> Ridge:
        """Ridge solver with the same common penalties."""
        return Ridge(alpha=self.alpha, alphas=self.alphas, standardize=self.standardize)

    @property
    def name(self) -> str:
        """Name of the solver in tables."""
        return "many_to_one_standardized" if self.standardize else "many_to_one"

    def fitters(self, moments: CrossMoments) -> tuple["GroupRidgeFitter", RidgeFitter]:
        """Return the fitters of both directions (up, down)."""
        return GroupRidgeFitter(moments, self), RidgeFitter(moments, self.ridge, down=True)


class GroupRidgeFitter(RidgeFitter):
    """The direction up under `ManyToOne`."""

    def __init__(self, moments: CrossMoments, many: ManyToOne) -> None:
        super().__init__(moments, many.ridge, down=False)
        self.many = many
        self._groups: tuple[float, ...] = ()

    def cross_validate(self, hook_pair: HookPair) -> FoldErrors:
        """Return held-out errors at the best penalties.

        Coordinate descent chooses the penalties of the layers. Each step scores all common
        penalties.
        """
        n_groups = len(joint_parts(hook_pair[0]))
        fixed = self.many.groups
        if fixed and len(fixed) != n_groups:
            raise ValueError(
                f"groups has {len(fixed)} penalties; {hook_pair[0]!r} joins {n_groups} layers: "
                "give one penalty per layer"
            )
        best = self._with(hook_pair, fixed or (1.0,) * n_groups)
        if fixed is None and n_groups > 1:
            # One layer's penalty at a time; `_along` keeps the better of the old and the new one.
            for _ in range(self.many.sweeps):
                for g in range(n_groups):
                    best = self._along(hook_pair, g, best)
        return best

    def _along(self, hook_pair: HookPair, g: int, best: FoldErrors) -> FoldErrors:
        """Return the errors after one step along the penalty of layer ``g``, if it improves R²."""
        for factor in (self.many.step, 1 / self.many.step):
            penalties = list(best.setting.groups)
            penalties[g] *= factor
            tried = self._with(hook_pair, tuple(penalties))
            if tried.r2 > best.r2:
                return tried
        return best

    def _with(self, hook_pair: HookPair, groups: tuple[float, ...]) -> FoldErrors:
        """Return the errors at the best common penalty for relative penalties ``groups``."""
        # `shared_by` and `decompose` read the attribute, so it is set before the spectra are used.
        self._groups = groups
        errors = super().cross_validate(hook_pair)
        return replace(errors, setting=replace(errors.setting, groups=groups))

    def solve(self, hook_pair: HookPair, parts: Sequence[int], setting: Setting) -> AffineMap:
        """Return the map fitted on the rows of some parts."""
        self._groups = setting.groups
        return super().solve(hook_pair, parts, setting)

    def fit_null(self, hook_pair: HookPair, setting: Setting) -> AffineMap:
        """Return the map fitted on shuffled pairs."""
        self._groups = setting.groups
        return super().fit_null(hook_pair, setting)

    def shared_by(self, hook_pair: HookPair) -> object:
        """Return the joint hook point and its penalties, on which the spectra depend."""
        return hook_pair[0], self._groups

    def decompose(self, hook_pair: HookPair, fit: Scatter) -> Spectrum:
        """Return the spectrum of the joint hook point, each layer divided by √ of its penalty."""
        widths = _widths(hook_pair[0], len(fit.mean_x))
        # p_g‖W_g‖² = ‖√p_g W_g‖², so ridge on x_g/√p_g with weights √p_g W_g is the objective.
        penalties = torch.tensor(self._groups or (1.0,) * len(widths), dtype=fit.xx.dtype)
        scale = penalties.rsqrt().repeat_interleave(torch.tensor(widths)).to(fit.xx.device)
        return self.solver.decompose(fit.xx, scale)


def layer_contributions(
    moments: CrossMoments,
    target: str | None = None,
    *,
    solver: Ridge | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Return what each source layer adds to the joint map, from joint moments.

    All maps are plain ridge with one cross-validated penalty, so that they differ only in their
    layers. All scores are R² on the test fold.

    Args:
        moments: cross-moments with a joint source hook point.
        target: target hook point; None takes all of them.
        solver: the ridge solver; `Ridge()` if None.
        progress: show a progress bar.

    Returns:
        One row per layer (``source_hook``) and target hook point: ``r2_alone`` from this layer
        alone, ``r2_without`` from all layers except it, ``r2_up_to`` from the layers up to it,
        ``r2_all`` from all, and ``adds``, which is ``r2_all − r2_without``. ``r2_uniform_alone``,
        ``r2_uniform_without``, ``r2_uniform_up_to``, ``r2_uniform_all`` and ``adds_uniform`` are
        the same columns for the mean R² over dimensions.

    Raises:
        HookPointError: no joint source hook point with this target.
    """
    pairs = [
        hook_pair
        for hook_pair in moments.pairs
        if len(joint_parts(hook_pair[0])) > 1 and target in (None, hook_pair[1])
    ]
    if not pairs:
        raise HookPointError(
            f"these moments hold no joint source hook point for target {target!r}; harvest with "
            "joint=True"
        )
    solver, rows = solver or Ridge(), []

    # Every subset of layers is fitted from the joint moments; no activation is read again.
    def scores(hook_pair: HookPair, chosen: list[int]) -> tuple[float, float]:
        row = select_layers(moments, hook_pair, chosen).fit(solver).scores.iloc[0]
        return float(row["r2"]), float(row["r2_uniform"])

    for hook_pair in pairs:
        layers = joint_parts(hook_pair[0])
        everything = list(range(len(layers)))
        r2_all, r2_uniform_all = scores(hook_pair, everything)
        for g, layer in enumerate(tqdm(layers, desc="layers", disable=not progress, leave=False)):
            r2_alone, r2_uniform_alone = scores(hook_pair, [g])
            r2_without, r2_uniform_without = scores(hook_pair, [i for i in everything if i != g])
            r2_up_to, r2_uniform_up_to = scores(hook_pair, everything[: g + 1])
            rows.append(
                {
                    "source_hook": layer,
                    "target_hook": hook_pair[1],
                    "r2_alone": r2_alone,
                    "r2_uniform_alone": r2_uniform_alone,
                    "r2_without": r2_without,
                    "r2_uniform_without": r2_uniform_without,
                    "r2_up_to": r2_up_to,
                    "r2_uniform_up_to": r2_uniform_up_to,
                    "r2_all": r2_all,
                    "r2_uniform_all": r2_uniform_all,
                    "adds": r2_all - r2_without,
                    "adds_uniform": r2_uniform_all - r2_uniform_without,
                }
            )
    return pd.DataFrame(rows)


def select_layers(
    moments: CrossMoments, hook_pair: HookPair, chosen: Sequence[int]
) -> CrossMoments:
    """Return the moments of some layers of a joint hook point, with its target.

    Args:
        moments: cross-moments with the joint hook point.
        hook_pair: joint source hook point and target hook point.
        chosen: positions of the layers in the joint hook point, from 0.
    """
    # Rows and columns of the joint sums are the sums of the layers, so no harvest is needed.
    layers = joint_parts(hook_pair[0])
    joint = moments.source[hook_pair[0]]
    width = _widths(hook_pair[0], len(joint.shift))[0]
    index = torch.cat([torch.arange(g * width, (g + 1) * width) for g in chosen]).to(
        joint.shift.device
    )
    name = joint_name([layers[g] for g in chosen])
    taken = CrossMoments(
        ((name, hook_pair[1]),),
        None,
        moments.moment_dtype,
        moments.null,
        moments.provenance,
        moments.n,
    )
    taken.source = {name: _columns(joint, index)}
    taken.target = {hook_pair[1]: moments.target[hook_pair[1]]}
    taken.cross = {(name, hook_pair[1]): moments.cross[hook_pair][:, index]}
    if hook_pair in moments.cross_null:
        moments.finish()
        taken.cross_null = {(name, hook_pair[1]): moments.cross_null[hook_pair][:, index]}
    return taken


def _columns(side: SideMoments, index: Tensor) -> SideMoments:
    # The norms of some of the columns are not a function of those of all.
    norms = side.norms if len(index) == len(side.shift) else torch.zeros_like(side.norms)
    return SideMoments(
        side.shift[index], side.total[:, index], side.second[:, index][:, :, index], norms
    )


def _widths(name: str, width: int) -> list[int]:
    """Return the width of each layer of a joint hook point; all layers of a model are as wide."""
    n_layers = len(joint_parts(name))
    return [width // n_layers] * n_layers
