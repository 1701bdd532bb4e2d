"""Maps from all layers of the source into one layer of the target.

Proposed in appendix A of LRT (arXiv 2506.00653), which trains none.

The source's layers, side by side, are one wide hook point (`joint_name`), so joint moments are
ordinary `CrossMoments` and the map is a ridge with one penalty a layer:

    moments = harvest(pair, documents, source_layers="all", target_layers=[3], joint=True)
    grid = moments.fit(ManyToOne())
    layer_contributions(moments)        # what each layer adds, from the same moments

The objective is ``Σ‖y − Σ_g x_g W_g − b‖² + λ·tr(Sxx)/d·Σ_g p_g‖W_g‖²_F``; scaling ``x_g`` by
``1/√p_g`` makes it plain ridge. The ``p_g`` are found by coordinate descent on the cross-validated
R², a factor ``step`` up or down at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lrt_lens.errors import HookPointError
from lrt_lens.models._hook_names import joint_name, joint_parts
from lrt_lens.moments._cross_moments import CrossMoments
from lrt_lens.moments._hook_pairs import HookPair as Pair
from lrt_lens.moments._scatter import Scatter
from lrt_lens.moments._side_moments import SideMoments
from lrt_lens.stitching._affine import AffineMap
from lrt_lens.stitching.solvers._ridge import Ridge, RidgeSide, Spectrum
from lrt_lens.stitching.solvers._solver import DEFAULT_ALPHAS, FoldErrors, Setting, Solver


@dataclass(frozen=True)
class ManyToOne(Solver):
    """Ridge regression from several source layers at once, with one penalty for each.

    The map down is plain ridge to all of them.
    """

    alpha: float | None = None
    """As in `Ridge`, common to all layers."""
    alphas: tuple[float, ...] = DEFAULT_ALPHAS
    groups: tuple[float, ...] | None = None
    """Relative penalty of each layer; None finds them by cross-validation, ``()`` keeps them all at
    1.
    """
    step: float = 10.0
    """Factor by which the search moves a layer's penalty."""
    sweeps: int = 1
    """Times that the search goes through the layers."""
    standardize: bool = False

    def __post_init__(self) -> None:
        if self.step <= 1:
            raise ValueError(f"step is {self.step!r}; expected a factor above 1")
        if self.groups and not all(0 < p < float("inf") for p in self.groups):
            raise ValueError(
                f"groups is {self.groups!r}; expected positive penalties, one a source layer"
            )

    @property
    def ridge(self) -> Ridge:
        """The ridge that shares its penalties."""
        return Ridge(alpha=self.alpha, alphas=self.alphas, standardize=self.standardize)

    @property
    def name(self) -> str:
        """Name of the solver in tables."""
        return "many_to_one_standardized" if self.standardize else "many_to_one"

    def sides(self, moments: CrossMoments) -> tuple["GroupRidgeSide", RidgeSide]:
        """Return the two directions (up, down)."""
        return GroupRidgeSide(moments, self), RidgeSide(moments, self.ridge, down=True)


class GroupRidgeSide(RidgeSide):
    """The way up under `ManyToOne`."""

    def __init__(self, moments: CrossMoments, many: ManyToOne) -> None:
        super().__init__(moments, many.ridge, down=False)
        self.many = many
        self._groups: tuple[float, ...] = ()

    def cross_validate(self, pair: Pair) -> FoldErrors:
        """Every layer's penalty by coordinate descent, all common penalties at each step."""
        n_groups = len(joint_parts(pair[0]))
        given = self.many.groups
        if given and len(given) != n_groups:
            raise ValueError(
                f"groups has {len(given)} penalties; {pair[0]!r} joins {n_groups} layers: give one "
                "for each"
            )
        best = self._with(pair, given or (1.0,) * n_groups)
        if given is None and n_groups > 1:
            for _ in range(self.many.sweeps):
                for g in range(n_groups):
                    best = self._along(pair, g, best)
        return best

    def _along(self, pair: Pair, g: int, best: FoldErrors) -> FoldErrors:
        for factor in (self.many.step, 1 / self.many.step):
            penalties = list(best.setting.groups)
            penalties[g] *= factor
            tried = self._with(pair, tuple(penalties))
            if tried.r2 > best.r2:
                return tried
        return best

    def _with(self, pair: Pair, groups: tuple[float, ...]) -> FoldErrors:
        self._groups = groups
        found = super().cross_validate(pair)
        return replace(found, setting=replace(found.setting, groups=groups))

    def solve(self, pair: Pair, parts: Sequence[int], setting: Setting) -> AffineMap:
        """The map fitted on some parts."""
        self._groups = setting.groups
        return super().solve(pair, parts, setting)

    def fit_null(self, pair: Pair, setting: Setting) -> AffineMap:
        """The map of shuffled pairs."""
        self._groups = setting.groups
        return super().fit_null(pair, setting)

    def shared_by(self, pair: Pair) -> object:
        """The joint hook point and its penalties."""
        return pair[0], self._groups

    def decompose(self, pair: Pair, fit: Scatter) -> Spectrum:
        """Spectrum of the joint hook point with each layer divided by the root of its penalty."""
        widths = _widths(pair[0], len(fit.mean_x))
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

    A row per layer: R² of both kinds on the test fold from this layer alone (``r2_alone``,
    ``r2_uniform_alone``), from all layers without it (``r2_without``), from the layers up to it
    (``r2_up_to``), and from all (``r2_all``); ``adds`` is all minus without. Plain ridge with one
    penalty by cross-validation throughout, so that the rows differ in their layers only.
    """
    pairs = [
        pair
        for pair in moments.pairs
        if len(joint_parts(pair[0])) > 1 and target in (None, pair[1])
    ]
    if not pairs:
        raise HookPointError(
            f"these moments hold no joint source hook point for target {target!r}; harvest with "
            "joint=True"
        )
    solver, rows = solver or Ridge(), []

    def scores(pair: Pair, chosen: list[int]) -> tuple[float, float]:
        row = select_layers(moments, pair, chosen).fit(solver).scores.iloc[0]
        return float(row["r2"]), float(row["r2_uniform"])

    for pair in pairs:
        layers = joint_parts(pair[0])
        everything = list(range(len(layers)))
        r2_all, r2_uniform_all = scores(pair, everything)
        for g, layer in enumerate(tqdm(layers, desc="layers", disable=not progress, leave=False)):
            r2_alone, r2_uniform_alone = scores(pair, [g])
            r2_without, r2_uniform_without = scores(pair, [i for i in everything if i != g])
            r2_up_to, r2_uniform_up_to = scores(pair, everything[: g + 1])
            rows.append(
                {
                    "source_hook": layer,
                    "target_hook": pair[1],
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


def select_layers(moments: CrossMoments, pair: Pair, chosen: Sequence[int]) -> CrossMoments:
    """Return moments of some of the layers that a joint hook point holds, with its target.

    They are exact; nothing is harvested again.
    """
    layers = joint_parts(pair[0])
    joint = moments.source[pair[0]]
    width = _widths(pair[0], len(joint.shift))[0]
    index = torch.cat([torch.arange(g * width, (g + 1) * width) for g in chosen]).to(
        joint.shift.device
    )
    name = joint_name([layers[g] for g in chosen])
    taken = CrossMoments(
        ((name, pair[1]),), None, moments.moment_dtype, moments.null, moments.provenance, moments.n
    )
    taken.source = {name: _columns(joint, index)}
    taken.target = {pair[1]: moments.target[pair[1]]}
    taken.cross = {(name, pair[1]): moments.cross[pair][:, index]}
    if pair in moments.cross_null:
        taken.cross_null = {(name, pair[1]): moments.cross_null[pair][:, index]}
    return taken


def _columns(side: SideMoments, index: Tensor) -> SideMoments:
    return SideMoments(
        side.shift[index], side.total[:, index], side.second[:, index][:, :, index], side.norms
    )


def _widths(name: str, width: int) -> list[int]:
    n_layers = len(joint_parts(name))
    return [width // n_layers] * n_layers
