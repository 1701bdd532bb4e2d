"""The cost of a learning curve with 12 points, relative to one fit of the same hook pair.

A: `learning_curve`, which reads the text once, copies sums at 11 numbers of tokens, and fits and
scores a map from each. B: `fit_stitches` of the same hook pair on the same text.
"""

from typing import Any

from benchmarks.measuring import Measurement, Settings, alternate
from benchmarks.models import PYTHIA, TINY, random_documents, random_models
from lrt_lens.models import ModelPair
from lrt_lens.stitching import fit_stitches, learning_curve

_POINTS = 12


def learning_curve_over_fit(settings: Settings) -> Measurement:
    """Learning curve with 12 points ÷ harvest and fit of the same pair."""
    shape = TINY if settings.quick else PYTHIA
    hooks = shape.middle
    with random_models(shape) as folder:
        pair = ModelPair.load(str(folder / "source"), str(folder / "target"))
        # Masked positions (four per window) do not count as tokens, so a sixteenth more is drawn.
        n_tokens = settings.n_tokens
        lengths = (256, 600)
        documents = list(
            random_documents(folder, n_tokens + n_tokens // 16, lengths, settings.seed)
        )
        options: dict[str, Any] = {"n_tokens": n_tokens, "progress": False}
        curve = learning_curve(pair, documents, hooks, n_points=_POINTS, **options)
        timings = alternate(
            lambda: learning_curve(pair, documents, hooks, n_points=_POINTS, **options),
            lambda: fit_stitches(pair, documents, pairs=[hooks], **options),
            settings.repetitions(2),
        )
    n_points = len(curve.scores("r2"))
    return Measurement(
        name="learning_curve_over_fit",
        value=timings.ratio,
        target=1.2,
        at_most=True,
        what=f"Learning curve of one pair (source layer {hooks[0]}, target layer {hooks[1]}) with "
        f"{n_points} points, R², gain and fve_nrm with intervals ÷ harvest and fit of that pair on "
        "the same text.",
        raw=timings.raw("curve", "fit") | {"n_points": n_points, "n_tokens": n_tokens},
    )
