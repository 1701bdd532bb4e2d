"""LRT's figure 2, read both ways: are the decoders of two SAEs linearly related?

    python examples/decoder_geometry.py                                                        # bundled models and SAEs
    python examples/decoder_geometry.py --source A --target B --sae SAE_A --target-sae SAE_B   # SAELens folders

The paper (arXiv 2506.00653) leaves ‖E‖ ≈ 114 when it regresses 16,384 unit rows of one Gemma Scope
decoder on another's 3584 columns, and reads that as a relation, because N(0, 1) rows leave more.
Random rows *of unit norm* leave 113.1, by our formula at the paper's shape. The first figure shows
both readings, of the paper's numbers and of ours. Then both SAEs' features are matched by
activation, rows are permuted for the null, and R² is on features that did not fit.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

import lrt_lens as lrt
from lrt_lens.adapters.saes._decoder_geometry import chance_residual
from lrt_lens.figures._template import TEMPLATE_NAME
from lrt_lens.reproduction import Compared, FigureOptions, Reproduction, Verdict, run

LITTLE = 0.1
"""Held-out R² below which a relation that exceeds its null is still said to be a small one."""
RESIDUAL, N_FEATURES, D_PREDICTOR, D_PREDICTED = 114.0, 16384, 3584, 2304
"""The paper's residual and the shape of its decoders."""


@dataclass(frozen=True)
class Options(FigureOptions):
    """Two SAEs and their matching."""

    QUICK: ClassVar[Mapping[str, Any]] = {"n_tokens": 8_000}
    n_tokens: int = 150_000
    """Tokens of the harvest and of the matching."""
    target_sae: str | None = None
    """SAE of the target, a folder in SAELens' format; the bundled one without it."""
    min_correlation: float = 0.3
    """Matched pairs below it on the fitting folds are left out."""


def reproduce(options: Options) -> Reproduction:
    """Match features, regress decoders, read the residual against both nulls."""
    pair, texts = options.pair(), options.texts()
    saes = [options.source_sae(), options.load_sae(options.target_sae, "--target-sae", "large")]
    hooks = [one.cfg.metadata.hook_name for one in saes]
    stitch = options.grid(pair, texts, *hooks, null="none").best()
    matches = lrt.match_features(
        pair,
        stitch,
        *saes,
        texts,
        n_tokens=options.n_tokens,
        min_correlation=options.min_correlation,
    )
    found = lrt.decoder_geometry(
        saes[0].W_dec, saes[1].W_dec, matches=matches, affine=stitch.up, seed=options.seed
    )
    read = readings(found, saes[0].W_dec.shape[1], tuple(saes[1].W_dec.shape))
    ours = read.set_index("whose").loc["ours"]
    by_arm = found.summary.set_index("arm")
    matched, permuted = by_arm.loc["matched"], by_arm.loc["permuted"]
    survives = bool(ours["residual"] < 0.98 * ours["unit_rows"])
    rows = "row i on row i" if "index" in by_arm.index else "matched rows"
    verdict: Verdict = "holds with a caveat" if survives else "does not survive its null"
    return Reproduction(
        name="decoder_geometry",
        title="Are the decoders of two SAEs linearly related? Both readings",
        paper="LRT, figure 2",
        claim="Regressing one SAE's decoder on another's leaves far less than a random matrix does, so that the decoders are linearly related.",
        compared=[
            Compared(
                f"‖residual‖, {rows} (the paper: row i on row i)",
                float(ours["residual"]),
                RESIDUAL,
                control=float(ours["unit_rows"]),
                control_name="random rows of the same norms",
            ),
            Compared(
                "N(0, 1) rows leave (by formula), the null that the paper reads it against",
                float(ours["gaussian_rows"]),
            ),
            Compared(
                "at the paper's shape, unit rows leave (by formula)",
                float(read["unit_rows"][0]),
                None,
                control=float(read["gaussian_rows"][0]),
                control_name="N(0, 1) rows",
            ),
            Compared(
                "R² on held-out features, matched by activation",
                float(matched["r2"]),
                low=float(matched["r2_low"]),
                high=float(matched["r2_high"]),
                control=float(permuted["r2"]),
                control_name="permuted",
            ),
        ],
        says="The paper's residual is what unit rows leave by chance; ours says whether matched features of two small SAEs are linearly "
        "related, not whether those of "
        "Gemma's are.",
        verdict=verdict,
        because=f"{rows} leave{'s' if 'index' in by_arm.index else ''} {ours['residual']:.1f} where random rows of the same norms leave "
        f"{ours['unit_rows']:.1f} (the paper has {RESIDUAL:.0f}, where by our formula unit rows of its shape leave {read['unit_rows'][0]:.1f}); "
        f"{predicted(matched, permuted)}.",
        figures={
            "Both readings: against N(0, 1) rows, as the paper does, and against rows of the decoder's own norms": readings_figure(
                read
            ),
            "Every arm: residual against its chance level, and R² on features that did not fit": found.figure(),
        },
        tables={"Readings": read, "Arms": found.summary},
        details={"matches": repr(matches), "stitch": repr(stitch)},
    )


def predicted(matched: pd.Series, permuted: pd.Series) -> str:
    """What held-out R² says of features matched by activation, against the same rows permuted."""
    numbers = f"R² {matched['r2']:.3f} ({matched['r2_low']:.3f} to {matched['r2_high']:.3f}) on held-out ones, permuted {permuted['r2']:.3f}"
    if not matched["r2_low"] > max(permuted["r2_high"], 0.0):
        return f"features matched by activation predict each other no better than permuted ones: {numbers}"
    if matched["r2"] < LITTLE:
        return f"features matched by activation predict each other, but little: {numbers}"
    return f"features matched by activation do predict each other: {numbers}"


def readings(found: lrt.DecoderGeometry, d_predictor: int, shape: tuple[int, int]) -> pd.DataFrame:
    """The paper's numbers and ours: residual of row i on row i (of matched rows where SAEs differ
    in size), and what both kinds of random rows leave.
    """
    arms = found.table.drop_duplicates("arm").set_index("arm")
    arm = "index" if "index" in arms.index else "matched"
    n = int(arms["n_features"][arm])
    paper = {
        "whose": "LRT",
        "residual": RESIDUAL,
        "unit_rows": chance_residual(math.sqrt(N_FEATURES), N_FEATURES, D_PREDICTOR),
        "gaussian_rows": chance_residual(
            math.sqrt(N_FEATURES * D_PREDICTED), N_FEATURES, D_PREDICTOR
        ),
    }
    ours = {
        "whose": "ours",
        "residual": float(arms["residual"][arm]),
        "unit_rows": chance_residual(float(arms["norm"][arm]), n, d_predictor),
        "gaussian_rows": chance_residual(math.sqrt(n * shape[1]), n, d_predictor),
    }
    return pd.DataFrame([paper, ours])


def readings_figure(read: pd.DataFrame) -> go.Figure:
    """Left against N(0, 1) rows (logarithmic), right against rows of the decoder's own norms."""
    figure = make_subplots(
        cols=2,
        horizontal_spacing=0.1,
        subplot_titles=[
            "as the paper reads it: random = N(0, 1)",
            "random rows of the decoder's own norms",
        ],
    )
    bars = (
        ("residual", "what the decoder leaves", "#D55E00"),
        ("gaussian_rows", "random rows, N(0, 1) (by formula)", "#E69F00"),
        ("unit_rows", "random rows, same norms (by formula)", "#8C8C8C"),
    )
    for column, null in ((1, "gaussian_rows"), (2, "unit_rows")):
        for name, label, colour in (bar for bar in bars if bar[0] in ("residual", null)):
            figure.add_bar(
                x=read["whose"],
                y=read[name],
                name=label,
                legendgroup=name,
                showlegend=name != "residual" or column == 1,
                marker_color=colour,
                text=[f"{value:.4g}" for value in read[name]],
                textposition="outside",
                cliponaxis=False,
                row=1,
                col=column,
            )
    figure.update_yaxes(title_text="‖residual‖ (Frobenius)").update_yaxes(type="log", row=1, col=1)
    figure.update_xaxes(title_text="whose decoders: the paper's, or those of this run")
    return figure.update_layout(template=TEMPLATE_NAME, height=460, margin={"t": 80})


if __name__ == "__main__":
    run(reproduce)
