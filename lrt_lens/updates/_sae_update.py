"""An SAE of the old revision, spliced into the new one by every arm.

The loss is that of FVU, the unexplained share of the variance; ΔCE, the rise of the loss of the
model with the reconstruction spliced in, stands beside it. All arms read the documents of the test
fold.

Limits: learning an SAE again takes a training run, so that there is no arm ``relearnt``.
"""

from dataclasses import replace
from typing import Any

import torch

from lrt_lens.adapters.saes import evaluate_sae
from lrt_lens.data._documents import Documents
from lrt_lens.statistics._intervals import Interval
from lrt_lens.updates._revisions import REPAIRS, Revisions
from lrt_lens.updates._update_settings import UpdateSettings
from lrt_lens.updates._verdicts import ArtefactUpdate

_MEASURES = ("fvu", "delta_ce")
"""Numbers of an SAE, the one that is compared first."""
_ALSO = {"frozen": {"source": "old"}, "repaired": {"shuffled": "shuffled"}}
"""Further arms that are taken from the evaluation of an arm, by their names there."""


def sae_hook(sae: Any) -> str:
    """Return the hook point of an SAE of SAELens.

    Raises:
        TypeError: it is no SAE of SAELens.
    """
    metadata = getattr(getattr(sae, "cfg", None), "metadata", None)
    hook = getattr(metadata, "hook_name", None)
    if not isinstance(hook, str):
        raise TypeError(
            f"a {type(sae).__name__} cannot be updated; give a LinearProbe, SteeringVector, or "
            "an SAE of SAELens that names its hook point"
        )
    return hook


def update_sae(
    revisions: Revisions, sae: Any, name: str, documents: Documents | None, settings: UpdateSettings
) -> ArtefactUpdate:
    """Return what became of an SAE; without documents only what moments say.

    Raises:
        MismatchError: the SAE belongs to another model, hook point or basis.
    """
    hook = sae_hook(sae)
    stitches = revisions.stitches[hook]
    encoder = sae.W_enc.detach().double().cpu()
    # The mean over some features: each fidelity has its jackknife.
    kept = torch.linspace(0, encoder.shape[1] - 1, min(16, encoder.shape[1])).long()
    prediction = revisions.prediction_read(hook, encoder[:, kept])
    repaired = stitches["repaired"].transfer(sae)
    update = ArtefactUpdate(name, "sae", hook, prediction, repaired=repaired)
    if documents is None:
        return update
    rows: list[dict[str, Any]] = []
    for arm in ("frozen", *REPAIRS):
        result = evaluate_sae(
            revisions.pair,
            stitches[arm],
            sae,
            documents,
            n_random=0,
            n_tokens=settings.n_sae_tokens,
            progress=settings.progress,
            seed=settings.seed,
        )
        table = result.table.set_index("arm")
        # Every evaluation has the SAE on the old revision; the fitted map has the control.
        names = {"transferred": arm} | _ALSO.get(arm, {})
        rows += [
            _row(ours, measure, table.loc[theirs])
            for theirs, ours in names.items()
            if theirs in table.index
            for measure in _MEASURES
        ]
    old = next(row for row in rows if row["arm"] == "old" and row["measure"] == "fvu")
    losses = {
        row["arm"]: Interval(
            row["value"] - old["value"], row["low"] - old["value"], row["high"] - old["value"]
        )
        for row in rows
        if row["measure"] == "fvu" and row["arm"] != "old"
    }
    return replace(update, measure="fvu", rows=rows, losses=losses, n=settings.n_sae_tokens)


def _row(arm: str, measure: str, found: Any) -> dict[str, Any]:
    ends = {"low": f"{measure}_low", "high": f"{measure}_high"}
    return {"arm": arm, "measure": measure, "n_draws": 1, "value": float(found[measure])} | {
        end: float(found[column]) for end, column in ends.items()
    }
