"""LRT, figure 2, with two nulls: are the decoders of two SAEs linearly related?

    # bundled models and SAEs, or SAELens folders
    python examples/decoder_geometry.py
    python examples/decoder_geometry.py --source A --target B --sae SAE_A --target-sae SAE_B

The paper (arXiv 2506.00653) regresses the 16,384 unit rows of one Gemma Scope decoder on the 3584
columns of another. The residual is ‖E‖ ≈ 114. The paper concludes that the decoders are related,
because N(0, 1) rows leave a larger residual. But random rows *of unit norm* leave 113.1, by our
formula at the paper's shape. The first figure compares residuals with both kinds of random rows,
for the paper's numbers and for ours.

Then features of the two SAEs are matched by activation. R² is measured on held-out features; the
control permutes the rows of the target.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

import lrt_lens as lrt
from lrt_lens.adapters.saes import chance_residual
from lrt_lens.figures import TEMPLATE_NAME
from lrt_lens.reproduction import Compared, FigureOptions, Reproduction, Verdict, run

LITTLE = 0.1
"""Held-out R² below which a relation is called small, even if it exceeds its control."""
RESIDUAL, N_FEATURES, D_PREDICTOR, D_PREDICTED = 114.0, 16384, 3584, 2304
"""The paper's residual and the shape of its decoders."""


@dataclass(frozen=True)
class Options(FigureOptions):
    """Two SAEs and their matching."""

    QUICK: ClassVar[Mapping[str, Any]] = {"n_tokens": 8_000}
    n_tokens: int = 150_000
    """Tokens of the harvest and of the matching."""
    target_sae: str | None = None
    """SAE of the target, a folder in SAELens' format; by default the bundled one."""
    min_correlation: float = 0.3
    """Least correlation of a matched pair of features on the fitting folds."""


def reproduce(options: Options) -> Reproduction:
    """Match features, regress decoders, compare the residual with both kinds of random rows."""
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
    geometry = lrt.decoder_geometry(
        saes[0].W_dec, saes[1].W_dec, matches=matches, affine=stitch.up, seed=options.seed
    )
    read = readings(geometry, saes[0].W_dec.shape[1], tuple(saes[1].W_dec.shape))
    ours, paper = (read.set_index("whose").loc[whose] for whose in ("ours", "LRT"))
    by_arm = geometry.summary.set_index("arm")
    matched, permuted = by_arm.loc["matched"], by_arm.loc["permuted"]
    survives = bool(ours["residual"] < 0.98 * ours["unit_rows"])
    rows = "row i on row i" if "index" in by_arm.index else "matched rows"
    verdict: Verdict = "holds with a caveat" if survives else "does not survive its null"
    return Reproduction(
        name="decoder_geometry",
        title="Are the decoders of two SAEs linearly related? Two nulls",
        paper="LRT, figure 2",
        claim="Regressing one SAE's decoder on another's leaves a far smaller residual than a "
        "random matrix does, so the decoders are linearly related.",
        compared=compared_rows(rows, ours, paper, matched, permuted),
        says="The paper's residual is what unit rows leave by chance. Ours says whether matched "
        "features of two small SAEs are linearly related, not whether those of Gemma's SAEs are.",
        verdict=verdict,
        because=f"the residual of {rows} is {ours['residual']:.1f}, that of random rows of the "
        f"same norms {ours['unit_rows']:.1f} (in the paper {RESIDUAL:.0f}; by our formula, unit "
        f"rows of its shape leave {paper['unit_rows']:.1f}); {predicted(matched, permuted)}.",
        figures={
            "Residual compared with N(0, 1) rows, as in the paper, and with random rows of the "
            "decoder's own norms": readings_figure(read),
            "Residual and its chance level, and R² on held-out features, per arm": (
                geometry.figure()
            ),
        },
        tables={"Residuals and chance levels": read, "Arms": geometry.summary},
        details={"matches": repr(matches), "stitch": repr(stitch)},
    )


def compared_rows(
    rows: str, ours: pd.Series, paper: pd.Series, matched: pd.Series, permuted: pd.Series
) -> list[Compared]:
    """Residuals with their chance levels, and R² of matched features."""
    return [
        Compared(
            f"‖residual‖, {rows} (paper: row i on row i)",
            float(ours["residual"]),
            RESIDUAL,
            control=float(ours["unit_rows"]),
            control_name="random rows of the same norms",
        ),
        Compared(
            "‖residual‖ of N(0, 1) rows (by formula), the paper's control",
            float(ours["gaussian_rows"]),
        ),
        Compared(
            "‖residual‖ of unit rows at the paper's shape (by formula)",
            float(paper["unit_rows"]),
            None,
            control=float(paper["gaussian_rows"]),
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
    ]


def predicted(matched: pd.Series, permuted: pd.Series) -> str:
    """Judge if features matched by activation predict each other better than permuted rows."""
    numbers = (
        f"R² {matched['r2']:.3f} ({matched['r2_low']:.3f} to {matched['r2_high']:.3f}) on held-out "
        f"features, permuted {permuted['r2']:.3f}"
    )
    features = "features matched by activation predict each other"
    if not matched["r2_low"] > max(permuted["r2_high"], 0.0):
        return f"{features} no better than permuted ones: {numbers}"
    if matched["r2"] < LITTLE:
        return f"{features}, but little: {numbers}"
    return f"{features}: {numbers}"


def readings(
    geometry: lrt.DecoderGeometry, d_predictor: int, shape: tuple[int, int]
) -> pd.DataFrame:
    """Residuals of the paper and ours, and the residuals that both kinds of random rows leave.

    Row i is regressed on row i; if the SAEs differ in size, on its matched row.
    """
    arms = geometry.table.drop_duplicates("arm").set_index("arm")
    arm = "index" if "index" in arms.index else "matched"
    n = int(arms["n_features"][arm])
    # N unit rows have Frobenius norm √N; N rows of d entries from N(0, 1) have about √(N·d).
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
    """Residuals with N(0, 1) rows (left, logarithmic) and with rows of the same norms (right)."""
    figure = make_subplots(
        cols=2,
        horizontal_spacing=0.1,
        subplot_titles=[
            "random rows as in the paper: N(0, 1)",
            "random rows of the decoder's own norms",
        ],
    )
    bars = (
        ("residual", "rows of the decoder", "#D55E00"),
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
    figure.update_xaxes(title_text="decoders of the paper, or of this run")
    return figure.update_layout(template=TEMPLATE_NAME, height=460, margin={"t": 80})


if __name__ == "__main__":
    run(reproduce)
