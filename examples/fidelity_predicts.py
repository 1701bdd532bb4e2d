"""Do ρ_write and ρ_read predict which directions transfer? Predictions and measurements.

    python examples/fidelity_predicts.py      # bundled pair, about three minutes on two cores

*Written* directions are steering vectors from disjoint parts of the bundled contrast sets (read at
the last token, and as a mean), principal components of the activations, mean activations of
frequent tokens, decoder rows of the bundled SAE, and random directions. The outcome is
`steering_agreement`: the correlation between the effect of the direction on the source's next-token
distribution and the effect of its image on the target's.

*Read* directions are probes on the source for "the next token is …", one per frequent token,
transferred to every layer of the target. The outcome is the AUROC above chance on the target,
divided by that on the source.

Five predictors are compared: ρ_write, ρ_read, the naive corr(x·v, y·vW), the cosine between the
image and the direction learnt on the target itself, and a rival that needs no target at all: the
standard deviation of the source's stream along the direction. Each has its rank correlation with
the outcome, and its lead over the rival on the same directions, both with 95% intervals by
bootstrap over directions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from sklearn.metrics import roc_auc_score
from torch import Tensor

import lrt_lens as lrt
from lrt_lens.adapters.vectors import steering_agreement
from lrt_lens.data import N_FOLDS, BlockPlan, cut_windows, document_key, part_of
from lrt_lens.figures import TEMPLATE_NAME
from lrt_lens.models import same_place
from lrt_lens.reproduction import Compared, FigureOptions, Reproduction, Verdict, run
from lrt_lens.statistics import Clusters, bootstrap_rank_correlation
from lrt_lens.statistics._bootstrap import bootstrap_statistic
from lrt_lens.stitching import (
    fidelities,
    naive_fidelities,
    random_source_directions,
    source_deviations,
)

RIVAL = "source_deviation"
"""Predictor that needs no target: a prediction that does not beat it says nothing about the map."""
PREDICTORS = ("rho_write", "rho_read", "naive", "cosine_to_native", RIVAL)
_LABELS = {
    "rho_write": "ρ_write",
    "rho_read": "ρ_read",
    "naive": "naive",
    "cosine_to_native": "cosine to native",
    RIVAL: "source's deviation",
}
SUBSETS = 8
"""Number of disjoint parts of each contrast set: one vector per part, concept and reading."""


@dataclass(frozen=True)
class Rows:
    """Activations of both models, one row per token, with the tokens."""

    x: Tensor
    """Activations at the source hook point, [row, d_source]."""
    y: dict[str, Tensor]
    """Activations per target hook point, [row, d_target]."""
    token: np.ndarray
    following: np.ndarray
    """Id of the next token, [row]."""
    tests: np.ndarray
    """True if the row belongs to the test fold, [row]."""


@dataclass(frozen=True)
class Options(FigureOptions):
    """Directions, and texts to measure them on."""

    QUICK: ClassVar[Mapping[str, Any]] = {
        "n_tokens": 6_000,
        "n_rows": 3_000,
        "n_random": 4,
        "n_components": 4,
        "n_labels": 4,
        "n_texts": 2,
    }
    source_layer: int = 2
    """Layer of the small model; the target layer is chosen by cross-validation."""
    n_rows: int = 40_000
    """Number of rows on which probes are learnt and judged."""
    n_random: int = 16
    """Number of random directions: half isotropic, half with the covariance of the activations."""
    n_components: int = 16
    """Number of principal components, of token means and of SAE rows."""
    n_labels: int = 40
    """Number of next-token probes."""
    n_texts: int = 24
    """Number of neutral texts on which effects are measured."""


def reproduce(options: Options) -> Reproduction:
    """Predict the outcome of every direction, measure it, and compare."""
    pair, documents = options.pair(), options.texts()
    grid = options.grid(pair, documents, options.source_layer, null="none")
    stitch = grid.best()
    rows = collect_rows(pair, stitch, documents, options.n_rows)
    sae = options.source_sae() if options.bundled or options.sae else None
    written = written_directions(pair, stitch, rows, options, sae)
    read = [
        measure_reading(grid[stitch.source_hook, layer], rows, options.n_labels)
        for layer in range(pair.target.n_layers)
    ]
    table = pd.concat(
        [measure_writing(pair, stitch, written, lrt.demo_neutral()[: options.n_texts]), *read],
        ignore_index=True,
    )
    summary = rank_correlations(table, options.seed)
    by_predictor = summary.set_index(["role", "predictor"])
    ours, naive = by_predictor.loc[("write", "rho_write")], by_predictor.loc[("write", "naive")]
    rho_read, rival = by_predictor.loc[("read", "rho_read")], by_predictor.loc[("write", RIVAL)]
    verdict: Verdict = (
        "does not survive its null"
        if not ours["low"] > 0
        else "holds"
        if rho_read["low"] > 0 and ours["lead_low"] > 0
        else "holds with a caveat"
    )
    return Reproduction(
        name="fidelity_predicts",
        title="Predicted from moments: which directions transfer?",
        paper="lrt_lens, fidelity",
        claim="From moments alone, ρ_write predicts which written directions transfer, and ρ_read "
        "which read directions do.",
        compared=compared_rows(ours, naive, rho_read, rival),
        says="The result holds for these two models, these kinds of directions and the "
        "next-token distribution. If all directions transfer well, their outcomes cannot be "
        "ranked.",
        verdict=verdict,
        because=f"over {int(ours['n'])} written directions, the rank correlation of ρ_write with "
        f"the outcome is {ours['rank_correlation']:.2f} ({ours['low']:.2f} to {ours['high']:.2f}), "
        f"that of the naive correlation {naive['rank_correlation']:.2f}, and that of the source's "
        f"standard deviation alone {rival['rank_correlation']:.2f} (lead of ρ_write "
        f"{ours['lead']:.2f}, {ours['lead_low']:.2f} to {ours['lead_high']:.2f}); over "
        f"{int(rho_read['n'])} probes, that of ρ_read is {rho_read['rank_correlation']:.2f}.",
        figures={"Outcome over each predictor, one point per direction": figure(table, summary)},
        tables={"Rank correlations": summary, "Directions": table},
        details={"stitch": repr(stitch)},
    )


def compared_rows(
    ours: pd.Series, naive: pd.Series, rho_read: pd.Series, rival: pd.Series
) -> list[Compared]:
    """Rank correlations of ρ_write, overall and within kinds, its lead, and that of ρ_read."""
    return [
        Compared(
            "rank correlation of ρ_write with the agreement of effects",
            float(ours["rank_correlation"]),
            None,
            float(ours["low"]),
            float(ours["high"]),
            control=float(naive["rank_correlation"]),
            control_name="naive corr(x·v, y·vW)",
        ),
        Compared(
            "rank correlation of ρ_write, mean within kinds of direction",
            float(ours["within_kinds"]),
            None,
            control=float(naive["within_kinds"]),
            control_name="naive",
        ),
        Compared(
            "lead of ρ_write over the source's standard deviation, all directions",
            float(ours["lead"]),
            None,
            float(ours["lead_low"]),
            float(ours["lead_high"]),
            control=float(rival["rank_correlation"]),
            control_name="rank correlation of the source's standard deviation",
        ),
        Compared(
            "rank correlation of ρ_read with the AUROC of transferred probes",
            float(rho_read["rank_correlation"]),
            None,
            float(rho_read["low"]),
            float(rho_read["high"]),
        ),
    ]


def collect_rows(
    pair: lrt.ModelPair, stitch: lrt.Stitch, documents: Sequence[str], n_rows: int
) -> Rows:
    """Rows of both models with their tokens; the test rows are those of the map's own test fold."""
    plan, parts = BlockPlan(), {"x": [], "token": [], "following": [], "tests": []}
    streams: dict[str, list[Tensor]] = {}
    count = 0
    for text in documents:
        key = document_key(text, plan.seed)
        for window in cut_windows(pair.source.encode_bodies([text])[0], key, pair.source, plan):
            at = window.rows[window.rows < len(window.ids) - 1]
            tokens = torch.tensor([window.ids])
            parts["x"].append(pair.source.capture(tokens, stitch.source_hook)[0, at].clone())
            for hook, stream in pair.target.capture(tokens, "all").items():
                streams.setdefault(hook, []).append(stream[0, at].clone())
            parts["token"].append(np.array(window.ids)[at])
            parts["following"].append(np.array(window.ids)[at + 1])
            parts["tests"].append(np.full(len(at), part_of(key) >= N_FOLDS))
            count += len(at)
        if count >= n_rows:
            break
    arrays = {name: np.concatenate(parts[name]) for name in ("token", "following", "tests")}
    return Rows(
        torch.cat(parts["x"]).double(),
        {hook: torch.cat(rows).double() for hook, rows in streams.items()},
        **arrays,
    )


def written_directions(
    pair: lrt.ModelPair, stitch: lrt.Stitch, rows: Rows, options: Options, sae: Any
) -> list[tuple[str, Tensor, Tensor | None]]:
    """Directions as (kind, direction on the source, native direction on the target or None)."""
    directions: list[tuple[str, Tensor, Tensor | None]] = []
    for concept in ("sentiment", "mood"):
        contrast = lrt.demo_contrast(concept)
        for read in ("last", "mean"):
            for part in range(SUBSETS):
                subset = lrt.ContrastSet(
                    contrast.positive[part::SUBSETS], contrast.negative[part::SUBSETS]
                )
                own = lrt.SteeringVector.mean_difference(
                    pair.source, subset, at=stitch.source_hook, read=read
                ).direction
                native = lrt.SteeringVector.mean_difference(
                    pair.target, subset, at=stitch.target_hook, read=read
                ).direction
                directions.append((f"{concept} contrast", own.double(), native.double()))
    _, vectors = torch.linalg.eigh(stitch.source_statistics.covariance.double())
    spaced = np.unique(np.geomspace(1, vectors.shape[1], options.n_components).astype(int))
    # `eigh` sorts ascending: the k-th principal component is the k-th column from the end.
    directions += [("principal component", vectors[:, -int(k)], None) for k in spaced]
    fits, y = ~rows.tests, rows.y[stitch.target_hook]
    for token in pd.Series(rows.token[fits]).value_counts().index[: options.n_components]:
        at = torch.from_numpy(np.flatnonzero(fits & (rows.token == token)))
        own, native = (stream[at].mean(0) - stream.mean(0) for stream in (rows.x, y))
        directions.append(("token mean", own, native))
    n_components = options.n_components
    if sae is not None and same_place(str(sae.cfg.metadata.hook_name), stitch.source_hook):
        directions += [
            ("SAE decoder row", row.double(), None)
            for row in sae.W_dec[:: len(sae.W_dec) // n_components][:n_components]
        ]
    generator = torch.Generator().manual_seed(options.seed)
    draws = random_source_directions(stitch, options.n_random, generator)
    return directions + [("random", draw, None) for draw in draws]


def measure_writing(
    pair: lrt.ModelPair,
    stitch: lrt.Stitch,
    written: list[tuple[str, Tensor, Tensor | None]],
    neutral: Sequence[str],
) -> pd.DataFrame:
    """Predictors and the agreement of effects, one row per direction."""
    directions = torch.stack([v for _, v, _ in written])
    outcome = steering_agreement(pair, stitch, directions.float(), neutral)
    table = predictors(
        stitch,
        directions,
        directions @ stitch.up.weight.double(),
        [native for _, _, native in written],
    )
    return table.assign(
        role="write",
        kind=[kind for kind, _, _ in written],
        direction=range(len(written)),
        outcome=outcome.numpy(),
    )


def measure_reading(stitch: lrt.Stitch, rows: Rows, n_labels: int) -> pd.DataFrame:
    """Predictors and outcome, one row per probe.

    The outcome is the AUROC above chance on the target, divided by that on the source.
    """
    fits = ~rows.tests
    labels = pd.Series(rows.following[fits]).value_counts().index[:n_labels]
    targets = torch.from_numpy(np.stack([rows.following == label for label in labels], 1)).double()
    y = rows.y[stitch.target_hook]
    own, native = (_ridge(stream[fits], targets[fits]) for stream in (rows.x, y))
    # x ≈ y @ W_down, so a probe w that reads x reads y as W_down @ w.
    images = stitch.down.weight.double() @ own
    auroc, auroc_source, auroc_native = (
        _aurocs(stream[rows.tests] @ weights, targets[rows.tests])
        for stream, weights in ((y, images), (rows.x, own), (y, native))
    )
    table = predictors(stitch, own.T, images.T, list(native.T))
    return table.assign(
        role="read",
        kind="next-token probe",
        direction=labels,
        outcome=(auroc - 0.5) / (auroc_source - 0.5),
        of_native=(auroc - 0.5) / (auroc_native - 0.5),
    )


def predictors(
    stitch: lrt.Stitch, directions: Tensor, images: Tensor, natives: Sequence[Tensor | None]
) -> pd.DataFrame:
    """The predictors per direction, known before any model runs with the direction."""
    cosine = [
        float("nan")
        if native is None
        else float(torch.nn.functional.cosine_similarity(image, native, dim=0))
        for image, native in zip(images, natives, strict=True)
    ]
    naive = naive_fidelities(stitch, directions)
    return pd.DataFrame(
        {
            "rho_write": fidelities(stitch, directions, "write").numpy(),
            "rho_read": fidelities(stitch, directions, "read").numpy(),
            "naive": naive.numpy(),
            "cosine_to_native": cosine,
            RIVAL: source_deviations(stitch, directions).numpy(),
        }
    )


def rank_correlations(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Rank correlation (Spearman) of each predictor with the outcome, per role.

    Computed over all directions, and as the mean within kinds of direction. One probe has a row per
    target layer, so intervals resample directions and not rows.
    """
    rows = []
    for role, part in table.groupby("role"):
        for predictor in PREDICTORS:
            known = part[[predictor, "outcome", "direction"]].dropna()
            correlation, _ = bootstrap_rank_correlation(
                known[predictor].to_numpy(),
                known["outcome"].to_numpy(),
                clusters=Clusters.of(known["direction"].tolist()),
                seed=seed,
            )
            kinds = [group[[predictor, "outcome"]].dropna() for _, group in part.groupby("kind")]
            within = np.mean(
                [
                    group[predictor].corr(group["outcome"], method="spearman")
                    for group in kinds
                    if len(group) > 2
                ]
            )
            rows.append(
                {
                    "role": role,
                    "predictor": predictor,
                    "rank_correlation": correlation.value,
                    "low": correlation.low,
                    "high": correlation.high,
                    "within_kinds": within,
                    "n": len(known),
                }
                | lead_over_rival(part, predictor, seed)
            )
    return pd.DataFrame(rows)


def lead_over_rival(part: pd.DataFrame, predictor: str, seed: int) -> dict[str, float]:
    """Rank correlation of a predictor less that of the rival, on the same directions."""
    if predictor == RIVAL:
        return {}
    known = part[[predictor, RIVAL, "outcome", "direction"]].dropna()

    def lead(columns: np.ndarray) -> float:
        ours, rival, outcome = (pd.Series(column) for column in columns)
        return ours.corr(outcome, method="spearman") - rival.corr(outcome, method="spearman")

    columns = known[[predictor, RIVAL, "outcome"]].to_numpy().T
    clusters = Clusters.of(known["direction"].tolist())
    interval = bootstrap_statistic(lead, columns, clusters=clusters, seed=seed)
    return {"lead": interval.value, "lead_low": interval.low, "lead_high": interval.high}


def figure(table: pd.DataFrame, summary: pd.DataFrame) -> go.Figure:
    """Outcome over each predictor: one row of panels per role, rank correlations as titles."""
    correlations = {
        (row["role"], row["predictor"]): row["rank_correlation"]
        for row in summary.to_dict("records")
    }
    titles = [
        f"{role}: rank correlation {correlations[role, predictor]:.2f}"
        for role in ("write", "read")
        for predictor in PREDICTORS
    ]
    plot = make_subplots(rows=2, cols=len(PREDICTORS), subplot_titles=titles, shared_yaxes=True)
    colours = dict(
        zip(
            table["kind"].unique(),
            ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#767676", "#56B4E9"),
            strict=False,
        )
    )
    for row, role in enumerate(("write", "read"), start=1):
        for column, predictor in enumerate(PREDICTORS, start=1):
            for kind, points in table[table["role"] == role].groupby("kind"):
                plot.add_scatter(
                    x=points[predictor],
                    y=points["outcome"],
                    mode="markers",
                    name=str(kind),
                    legendgroup=str(kind),
                    showlegend=column == 1,
                    marker={"color": colours[kind], "size": 7},
                    row=row,
                    col=column,
                )
            plot.update_xaxes(title_text=_LABELS[predictor], row=row, col=column)
    plot.update_annotations(font={"size": 13})
    plot.update_yaxes(title_text="agreement of effects", row=1, col=1)
    plot.update_yaxes(title_text="AUROC above chance, ÷ source", row=2, col=1)
    return plot.update_layout(template=TEMPLATE_NAME, height=720)


def _ridge(stream: Tensor, targets: Tensor, penalty: float = 1e-2) -> Tensor:
    """Linear probes for all labels at once, [d, label], by ridge on indicator targets."""
    # w = (XᵀX + λ·mean(diag XᵀX)·I)⁻¹ XᵀT, X centred
    centred = stream - stream.mean(0)
    gram = centred.T @ centred
    return torch.linalg.solve(
        gram + penalty * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype),
        centred.T @ targets,
    )


def _aurocs(scores: Tensor, targets: Tensor) -> np.ndarray:
    """AUROC per label (column)."""
    return np.array([roc_auc_score(targets[:, j], scores[:, j]) for j in range(targets.shape[1])])


if __name__ == "__main__":
    run(reproduce)
