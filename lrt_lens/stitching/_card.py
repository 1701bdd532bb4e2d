"""The model card of a stitch: models, text, scores with intervals and controls, limits.

    stitch_card(stitch)          # the README.md of its folder
    held_out_table(stitch)       # its held-out scores with 95% intervals, as a table

Problem: a score without its control and its interval says nothing to somebody who finds the
repository. Mechanism: R² of both maps on the held-out documents, the delete-a-group jackknife over
their groups (as in `lrt_lens.stitching.score_intervals`), the map of shuffled pairs, and what the
embedding of the token alone predicts. All are computed from what the folder stores, in the
precision in which it is stored, so that a stitch that is loaded and saved again has the same card.

Limits: intervals are over documents for the fitted maps. They do not hold the spread over refits.
They take one product d_source × d_source × d_target per group and direction, 12 s on one core for
eight groups of 2,048 dimensions.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from lrt_lens._model_card import CardHead, card_text, code, hub_ids, interval, markdown_rows, shown
from lrt_lens.models._identity import ModelIdentity
from lrt_lens.moments._scatter import DenseSecondMoment, Scatter, r2_of, squared_errors
from lrt_lens.statistics._jackknife import few_groups, jackknife
from lrt_lens.stitching._affine import AffineMap
from lrt_lens.stitching._stitch_data import StitchData

TAGS = ("model-stitching", "interpretability", "steering")
"""Tags of a stitch on the hub."""
_NAMES = {"r2": "R² (share of the variance explained)", "r2_uniform": "mean R² over dimensions"}
"""Scores of both maps, as the card names them."""


def held_out_table(stitch: StitchData) -> pd.DataFrame:
    """Return R² of both maps on the held-out documents, with 95% intervals.

    Columns: ``score``, ``direction`` (``"up"``, ``"down"``), ``value``, ``low``, ``high``. The
    value is that of the stitch's scores; ends are NaN without at least two held-out groups.
    """
    groups = [_as_stored(group) for group in stitch.held_out if group.n > 0]
    rows = []
    for direction, affine, scatters in (
        ("up", stitch.up, groups),
        ("down", stitch.down, [group.swapped() for group in groups]),
    ):
        suffix = "" if direction == "up" else "_down"
        ends = _intervals(affine, scatters)
        for name in _NAMES:
            value = float(stitch.scores.get(f"{name}{suffix}", float("nan")))
            low, high = ends[name]
            rows.append((name, direction, value, low, high))
    return pd.DataFrame(rows, columns=["score", "direction", "value", "low", "high"])


def _intervals(affine: AffineMap, groups: Sequence[Scatter]) -> dict[str, tuple[float, float]]:
    """Return the ends of the interval of each score of a map, over groups of documents."""
    if len(groups) < 2:
        return {name: (float("nan"), float("nan")) for name in _NAMES}
    weight, bias = affine.weight.float().double(), affine.bias.float().double()
    # Σ(y − xW − b)² adds up over groups, so that each group is multiplied once.
    errors = torch.stack([squared_errors(weight, bias, group) for group in groups])
    whole = _scores(errors, groups, range(len(groups)))
    left = [
        _scores(errors, groups, [k for k in range(len(groups)) if k != without])
        for without in range(len(groups))
    ]
    sizes = [group.n for group in groups]
    ends = {}
    for i, name in enumerate(_NAMES):
        found = jackknife(whole[i], [scores[i] for scores in left], sizes)
        ends[name] = (float(found.low), float(found.high))
    return ends


def _scores(errors: Tensor, groups: Sequence[Scatter], kept: Sequence[int]) -> tuple[float, float]:
    """Return R² and mean R² over dimensions of some groups, about their common mean."""
    n = torch.tensor([groups[k].n for k in kept], dtype=torch.float64)[:, None]
    means = torch.stack([groups[k].mean_y for k in kept])
    centre = (n * means).sum(0) / n.sum()
    # Σ(y − ȳ)² = Σ_k Σ(y − ȳ_k)² + Σ_k n_k (ȳ_k − ȳ)²
    within = torch.stack([groups[k].variance for k in kept]).sum(0)
    variance = within + (n * (means - centre) ** 2).sum(0)
    r2, r2_uniform, _ = r2_of(errors[list(kept)].sum(0), variance)
    return r2, r2_uniform


def _as_stored(group: Scatter) -> Scatter:
    """Return the sums as a folder stores them, in float32, and as float64."""
    of = lambda tensor: tensor.float().double().cpu()  # noqa: E731
    return Scatter(
        group.n,
        of(group.mean_x),
        of(group.mean_y),
        of(group.xy),
        DenseSecondMoment(of(group.xx)),
        DenseSecondMoment(of(group.yy)),
    )


# ------------------------------------------------------------------------------------------- text


def stitch_card(stitch: StitchData, head: CardHead | None = None, *, repository: str = "") -> str:
    """Return the model card.

    Args:
        stitch: the stitch.
        head: front matter; by default both models, if their names have the form of a hub id, and
            no licence.
        repository: id of the hub repository that the code loads; a placeholder if empty.
    """
    return card_text(
        card_title(stitch), card_sections(stitch, repository), head or card_head(stitch)
    )


def card_title(stitch: StitchData) -> str:
    """Return the title of the card."""
    return f"Stitch {code(stitch.source_hook)} → {code(stitch.target_hook)}"


def card_head(stitch: StitchData) -> CardHead:
    """Return the front matter that the stitch itself decides."""
    names = [model.name for model in (stitch.source, stitch.target) if model is not None]
    return CardHead(hub_ids(names), TAGS)


def card_sections(stitch: StitchData, repository: str = "") -> dict[str, str]:
    """Return the sections of the card by their heading."""
    ends = {
        "source": (stitch.source, stitch.source_hook),
        "target": (stitch.target, stitch.target_hook),
    }
    return {
        "": "Affine maps between the residual streams of two language models. They transfer what "
        "was learnt in the source (steering vectors, linear probes, sparse autoencoders) to the "
        "target.",
        "Models": model_table(ends),
        "How it was fitted": _fit_facts(stitch),
        "Measured on held-out documents": _measured(stitch),
        "Controls": _controls(stitch),
        "Limits": _limits(stitch),
        "Load it": _loading(repository),
    }


def model_table(ends: Mapping[str, tuple[ModelIdentity | None, str]]) -> str:
    """Return a table of models in Markdown: one row per role, with model and hook point."""
    rows = []
    for role, (model, hook) in ends.items():
        about = (
            ["unknown", "–", code(hook), "–", "–", "–"]
            if model is None
            else [
                code(model.name),
                code(model.revision),
                code(hook),
                shown(model.d_model),
                model.basis,
                code(model.config_hash),
            ]
        )
        rows.append([role, *about])
    header = [
        "",
        "model",
        "revision",
        "hook point",
        "width",
        "residual basis",
        "hash of the weights",
    ]
    return markdown_rows(header, rows)


def _fit_facts(stitch: StitchData) -> str:
    scores, origin = stitch.scores, stitch.provenance
    penalty = [shown(scores.get(name)) for name in ("alpha", "alpha_down")]
    n_held_out = sum(group.n for group in stitch.held_out)
    versions = ", ".join(f"{k} {v}" for k, v in asdict(origin)["versions"].items())
    facts = {
        "solver": code(scores.get("solver", "unknown")),
        "relative penalty λ": f"{penalty[0]} (up), {penalty[1]} (down)",
        "tokens that fitted": _whole(scores.get("n_tokens")),
        "tokens held out": _whole(n_held_out or None),
        "documents": f"{_whole(origin.n_documents or None)}, "
        f"corpus hash {code(origin.corpus or 'unknown')}",
        "windows": "unknown, because these are activations that were given"
        if origin.is_of_own_rows
        else f"{shown(origin.context_length)} tokens, first {stitch.skip_first} and special "
        "tokens left out",
        "paired": str(origin.alignment),
        "made with": versions or "unknown",
    }
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())


def _measured(stitch: StitchData) -> str:
    table = held_out_table(stitch).set_index(["score", "direction"])
    scores, rows = stitch.scores, []
    for name, label in _NAMES.items():
        cells = [label]
        for direction in ("up", "down"):
            row: Any = table.loc[(name, direction)]
            cells += [shown(row["value"]), interval(row["low"], row["high"])]
        rows.append(cells)
    for name, label in _NAMES.items():
        down = scores.get(f"{name}_down_cv")
        rows.append(
            [f"{label}, cross-validated", shown(scores.get(f"{name}_cv")), "–", shown(down), "–"]
        )
    cosine = shown(scores.get("cosine"))
    rows.append(["cosine of predicted and true state, about the mean", cosine, "–", "–", "–"])
    header = ["score (1 is perfect)", "up: source → target", "95%", "down: target → source", "95%"]
    parts = stitch.provenance.parts
    flag = few_groups(
        [group.n for group in stitch.held_out if group.n > 0],
        stitch.provenance.documents_of(parts.test),
    )
    n = sum(group.n > 0 for group in stitch.held_out)
    about = (
        f"Intervals: delete-a-group jackknife over {n} groups of held-out documents, for these "
        "maps on new text of this kind. Cross-validated scores are over the fitting documents."
        if n > 1
        else "This stitch has no held-out groups, so that there are no intervals."
    )
    return "\n\n".join([markdown_rows(header, rows), about, *([f"Note: {flag}."] if flag else [])])


def _controls(stitch: StitchData) -> str:
    scores = stitch.scores
    rows = [
        ["map up", shown(scores.get("r2")), shown(scores.get("r2_uniform"))],
        ["shuffled pairs: x with the y of another token (null)", shown(scores.get("r2_null")), "–"],
        [
            "token identity: the source's token alone",
            shown(scores.get("r2_token")),
            shown(scores.get("r2_uniform_token")),
        ],
    ]
    gain = scores.get("gain_cv", math.nan)
    beyond = (
        "It is unknown what tokens explain of the target, because they were not given. "
        if math.isnan(gain)
        else f"Of the variance that tokens cannot explain, the map explains {shown(gain)} "
        "(cross-validated). "
    )
    return (
        f"{markdown_rows(['predictor of the target', 'R²', 'mean R² over dimensions'], rows)}\n\n"
        f"{beyond}CKA of the two streams, which needs no map: {shown(scores.get('cka'))}."
    )


def _limits(stitch: StitchData) -> str:
    known = stitch.source is not None and stitch.target is not None
    belong = (
        "- The maps belong to these two models; others are refused by the hash of the weights."
        if known
        else "- It is not recorded which models these are, so that artefacts of other models are "
        "refused by their\n  hook point and width only: give `source_model=` and `target_model=`."
    )
    masked = (
        "- It is not recorded which positions of the texts had a part in the fit."
        if stitch.provenance.is_of_own_rows
        else "- The first positions of a text and special tokens had no part in the fit."
    )
    return "\n".join([_LIMITS, belong, masked])


_LIMITS = """- The maps hold for text like that of the fit; R² on other text can be far lower.
- R² is a mean over directions: a single direction can transfer better or worse
  (`stitch.fidelity(direction)` predicts it), and no R² says that a behaviour transfers. Evaluate
  that: `lrt_lens.evaluate_steering`, `evaluate_probe`, `evaluate_sae`."""


def _loading(repository: str) -> str:
    name = repository or "this-folder-or-repository"
    return f"""```python
import lrt_lens as lrt

stitch = lrt.Stitch.from_pretrained({name!r})
print(stitch)
```

`stitch.transfer(vector)` transfers a steering vector, a probe or an SAE of the source."""


def _whole(number: Any) -> str:
    return "unknown" if number is None or number != number else f"{int(number):,}"
