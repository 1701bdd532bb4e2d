"""Maps between two revisions of a model, and what moments say of an artefact before any label.

Problem: an artefact of the old revision may serve in the new one as it is, after its threshold was
moved, after a rotation, after a fitted map, or not at all. Mechanism: each of these is a stitch, so
that every artefact is transferred by the rules that it has anyway:

| arm | map of the old stream x to the new one y |
| --- | --- |
| ``frozen`` | y = x: the artefact as it is |
| ``mean_shift`` | y = x + ȳ − x̄ |
| ``procrustes`` | y = sxQ + b with Q orthogonal |
| ``repaired`` | y = xW + b, ridge regression in both directions |
| ``shuffled`` | the same, fitted on shuffled pairs |

**Before any label.** For a read-out w (a probe's weights) on held-out text of both revisions,

    kept     corr(x·w, y·w)                        how much a frozen read-out says the same
    moved    Var(y·w − x·w) / (Var(x·w) + Var(y·w))   the share of its variance that moved
    ρ        `stitch.fidelity(w, "read")`          the same for the repaired read-out

For a written direction v, ρ is that of ``"write"``, and ``kept`` is `frozen_write`: the correlation
of how much of v both streams contain.

Limits: both revisions need one width and one tokenizer.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from lrt_lens.data._documents import Documents
from lrt_lens.errors import MismatchError
from lrt_lens.models._pair import ModelPair
from lrt_lens.moments._cross_moments import CrossMoments
from lrt_lens.moments._harvesting import harvest
from lrt_lens.moments._scatter import Scatter
from lrt_lens.stitching._affine import AffineMap, MapPair
from lrt_lens.stitching._fidelity import RIDGE, Fidelity, regularised_solve
from lrt_lens.stitching._fit import fit_grid
from lrt_lens.stitching._stitch import Stitch
from lrt_lens.stitching.solvers._procrustes import Procrustes
from lrt_lens.stitching.solvers._ridge import Ridge
from lrt_lens.updates._prediction import Prediction
from lrt_lens.updates._update_settings import UpdateSettings

REPAIRS = ("mean_shift", "procrustes", "repaired")
"""Arms that change an artefact without labels, the simplest first."""


class Revisions:
    """Old and new revision of a model, with a stitch per hook point and arm."""

    def __init__(
        self,
        pair: ModelPair,
        hooks: Sequence[str],
        documents: Documents | CrossMoments,
        settings: UpdateSettings,
    ) -> None:
        """Harvest the hook points and fit their maps; moments of them are used as they are.

        Raises:
            MismatchError: the models have other widths or tokenizers, or the moments other models.
        """
        refuse_other_architecture(pair)
        self.pair = pair
        pairs = [(hook, hook) for hook in dict.fromkeys(hooks)]
        if isinstance(documents, CrossMoments):
            self.moments = documents
        else:
            self.moments = harvest(
                pair,
                documents,
                pairs=pairs,
                n_tokens=settings.n_tokens,
                context_length=min(settings.context_length, pair.context_length),
                null="full",
                seed=settings.seed,
                progress=settings.progress,
            )
        ridge, rotation = (
            fit_grid(self.moments, solver, pairs=pairs) for solver in (Ridge(), Procrustes())
        )
        self.stitches: dict[str, dict[str, Stitch]] = {}
        for hook, _ in pairs:
            repaired = ridge[hook, hook]
            repaired.check(pair.source, pair.target)
            self.stitches[hook] = {
                "frozen": _fixed(repaired, torch.zeros_like(repaired.up.bias)),
                "mean_shift": _fixed(
                    repaired, repaired.target_statistics.mean - repaired.source_statistics.mean
                ),
                "procrustes": rotation[hook, hook],
                "repaired": repaired,
            }

    def held_out(self, hook: str) -> Scatter:
        """Return the scatter of both revisions on held-out text."""
        return self.moments.scatter((hook, hook), self.moments.parts.test)

    def prediction_read(self, hook: str, weight: Tensor) -> Prediction:
        """Return the prediction of a read-out, or the mean over columns [d, column]."""
        columns = weight.double().reshape(len(weight), -1).T
        scatter = self.held_out(hook)
        x, y = ((columns * (matrix @ columns.T).T).sum(1) for matrix in (scatter.xx, scatter.yy))
        xy = (columns * (scatter.xy @ columns.T).T).sum(1)
        kept = float((xy / (x * y).sqrt()).mean())
        moved = float(((x + y - 2 * xy) / (x + y)).mean())
        found = [self._fidelity(hook, one, "read") for one in columns]
        n = len(found)
        low, high = (sum(getattr(one, end) for one in found) / n for end in ("low", "high"))
        return Prediction(kept, moved, sum(one.value for one in found) / n, low, high)

    def prediction_write(self, hook: str, direction: Tensor) -> Prediction:
        """Return the prediction of a written direction [d]."""
        fit = self.moments.scatter((hook, hook), self.moments.parts.fit)
        held_out = self.held_out(hook)
        v = direction.double()[None]
        a = regularised_solve(fit.xx / fit.n, v, RIDGE)
        c = regularised_solve(fit.yy / fit.n, v, RIDGE)
        xy = (a @ held_out.xy @ c.T).item()
        size = (a @ held_out.xx @ a.T).item() * (c @ held_out.yy @ c.T).item()
        found = self._fidelity(hook, direction, "write")
        kept = xy / size**0.5
        return Prediction(kept, float("nan"), found.value, found.low, found.high)

    def _fidelity(self, hook: str, direction: Tensor, kind: Literal["write", "read"]) -> Fidelity:
        # Random directions are not reported, so that few of them do.
        return self.stitches[hook]["repaired"].fidelity(direction, kind, n_random=2)


def refuse_other_architecture(pair: ModelPair) -> None:
    """Raise `MismatchError` unless both models can be two revisions of one."""
    old, new = pair.source, pair.target
    sizes = [(model.d_model, model.n_layers) for model in (old, new)]
    if sizes[0] != sizes[1]:
        raise MismatchError(
            f"{old.name!r} has {sizes[0][1]} blocks of width {sizes[0][0]} and {new.name!r}"
            f" {sizes[1][1]} of width {sizes[1][0]}; an update has two revisions of one model: for"
            " other models fit a stitch (lrt.fit_stitches) and transfer the artefacts"
        )
    pair.refuse_two_tokenizers("update", "fit a stitch (lrt.fit_stitches) instead")


def _fixed(stitch: Stitch, shift: Tensor) -> Stitch:
    """Return the stitch with the maps x + shift and y − shift, which nothing was fitted for."""
    eye = torch.eye(len(shift), dtype=shift.dtype, device=shift.device)
    up = AffineMap(eye, shift, stitch.source_hook, stitch.target_hook)
    down = AffineMap(eye, -shift, stitch.target_hook, stitch.source_hook)
    return replace(stitch, maps=MapPair(up, down), null=None, refits=(), scores={})
