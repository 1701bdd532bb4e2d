"""L-Cross, figure 3: projections of concept differences in two models, and their limits.

    python examples/concept_directions.py          # bundled pair, its two concepts: under a minute

The paper (arXiv 2501.02009) projects the differences λ_δ between the two texts of each contrast
pair to two dimensions by t-SNE, one picture per model, and infers flips and rotations between
models from the pictures. Here the projection uses principal components. The target is shown a
second time with its differences rotated at random: the picture is the same. So neither the picture
nor its orientation says how the axes of the two models are related.

Two things can be measured: how well concepts are separated in the plane, and whether the structure
*text by text* is the same in both models (CKA). The control for CKA permutes differences within
their concept.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from scipy.spatial import procrustes
from scipy.stats import ortho_group
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.model_selection import cross_val_score

from lrt_lens.adapters.concepts._rows import read_rows
from lrt_lens.figures._template import TEMPLATE_NAME
from lrt_lens.reproduction import Compared, FigureOptions, Reproduction, Verdict, run
from lrt_lens.reproduction._concepts import load_concepts

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#767676")


@dataclass(frozen=True)
class Options(FigureOptions):
    """Concepts and the layers at which they are read."""

    QUICK: ClassVar[Mapping[str, Any]] = {"pairs": 20, "draws": 20}
    UNUSED: ClassVar = frozenset({"documents", "n_tokens", "sae"})
    source_hook: int = 2
    """Layer of the source."""
    target_hook: int = 3
    """Layer of the target."""
    tasks: Path | None = None
    """Folder of task files; by default the bundled concepts."""
    pairs: int = 200
    """Number of contrast pairs per concept."""
    draws: int = 500
    """Number of permutations."""


def reproduce(options: Options) -> Reproduction:
    """Project the differences of both models and compare them."""
    x, y, labels = differences(options)
    names, n_pairs = np.unique(labels, return_counts=True)
    rng = np.random.default_rng(options.seed)
    rotated = y @ ortho_group.rvs(y.shape[1], random_state=rng)
    planes = {"source": plane(x), "target": plane(y), "target, rotated at random": plane(rotated)}
    same_picture = 1 - procrustes(planes["target"], planes["target, rotated at random"])[2]
    across = 1 - procrustes(planes["source"], planes["target"])[2]
    separations = {name: separation(points, labels) for name, points in planes.items()}
    measured = cka(x, y)
    null = np.array([cka(x, y[within(labels, rng)]) for _ in range(options.draws)])
    low, high = np.quantile(null, [0.025, 0.975])
    survives = bool(measured > high)
    verdict: Verdict = "holds with a caveat" if survives else "does not survive its null"
    return Reproduction(
        name="concept_directions",
        title="Differences of concepts in two models: what a projection shows",
        paper="L-Cross, figure 3",
        claim="Projected differences of a concept form comparable shapes in different models, "
        "flipped or rotated against each other.",
        compared=compared_rows(
            (float(across), float(same_picture)),
            (float(measured), float(null.mean())),
            (separations["target"], 1 / len(names)),
        ),
        says="Any rotation of a model's axes leaves the picture unchanged. So a picture that is a "
        "rotated copy of another says nothing about axes. Similarity text by text does, and it "
        "needs no map.",
        verdict=verdict,
        because="a model rotated at random gives the same picture (similarity "
        f"{same_picture:.2f}); the pictures of the two models have similarity {across:.2f}; text "
        "by text, CKA is "
        f"{measured:.2f}, and {null.mean():.2f} ({low:.2f} to {high:.2f}) for pairs permuted "
        "within their concept.",
        figures={
            "First two principal components of the differences, one point per contrast pair": (
                figure(planes, labels)
            )
        },
        tables={
            "Separation of concepts in the plane": pd.DataFrame(
                {"plane": separations.keys(), "concepts_apart": separations.values()}
            ),
            "CKA, permuted within concepts": pd.DataFrame(
                {"cka": [measured, null.mean(), low, high]},
                index=pd.Index(["measured", "permuted: mean", "2.5%", "97.5%"], name="what"),
            ),
        },
        details={"n_pairs": dict(zip(names.tolist(), n_pairs.tolist(), strict=True))},
    )


def differences(options: Options) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Differences of contrast pairs in source and target, [pair, d], and the concept of each."""
    concepts = load_concepts(options.tasks, options.pairs, 4, options.seed)
    rows = read_rows(
        options.models(),
        [concept.contrast for concept in concepts],
        source_hook=options.source_hook,
        target_hook=options.target_hook,
    )
    x, y = (
        np.concatenate(
            [(getattr(one, side)[:, 0] - getattr(one, side)[:, 1]).numpy() for one in rows.values()]
        )
        for side in ("source", "target")
    )
    return x, y, np.concatenate([[name] * len(one) for name, one in rows.items()])


def compared_rows(
    pictures: tuple[float, float], cka_values: tuple[float, float], accuracy: tuple[float, float]
) -> list[Compared]:
    """Three measures, each as (value, control)."""
    return [
        Compared(
            "similarity of the two pictures after alignment (1 − Procrustes disparity)",
            pictures[0],
            "read from t-SNE pictures",
            control=pictures[1],
            control_name="one model and itself, rotated at random",
        ),
        Compared(
            "CKA of differences across models, text by text",
            cka_values[0],
            None,
            control=cka_values[1],
            control_name="permuted within concepts",
        ),
        Compared(
            "separation of concepts in the target's plane, balanced accuracy",
            accuracy[0],
            None,
            control=accuracy[1],
            control_name="chance",
        ),
    ]


def plane(differences: np.ndarray) -> np.ndarray:
    """Scores on the first two principal components, [pair, 2]."""
    centred = differences - differences.mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    return u[:, :2] * s[:2]


def separation(points: np.ndarray, labels: np.ndarray) -> float:
    """Cross-validated balanced accuracy of a linear discriminant between concepts in the plane."""
    return float(
        cross_val_score(
            LinearDiscriminantAnalysis(), points, labels, cv=5, scoring="balanced_accuracy"
        ).mean()
    )


def within(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A permutation that keeps every pair in its concept."""
    order = np.arange(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        order[members] = rng.permutation(members)
    return order


def cka(x: np.ndarray, y: np.ndarray) -> float:
    """Linear CKA of two sets of rows (Kornblith et al. 2019, arXiv 1905.00414)."""
    x, y = x - x.mean(0), y - y.mean(0)
    # CKA = ‖XᵀY‖² / (‖XᵀX‖ ‖YᵀY‖), Frobenius norms of centred rows
    return float(
        (np.linalg.norm(x.T @ y) ** 2) / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    )


def figure(planes: Mapping[str, np.ndarray], labels: np.ndarray) -> go.Figure:
    """One panel per model, and one for the rotated target."""
    plot = make_subplots(cols=len(planes), subplot_titles=list(planes), horizontal_spacing=0.07)
    for column, points in enumerate(planes.values(), start=1):
        for number, label in enumerate(dict.fromkeys(labels)):
            at = labels == label
            plot.add_scatter(
                x=points[at, 0],
                y=points[at, 1],
                mode="markers",
                name=str(label),
                legendgroup=str(label),
                showlegend=column == 1,
                marker={"color": _COLOURS[number % len(_COLOURS)], "size": 6, "opacity": 0.7},
                row=1,
                col=column,
            )
    plot.update_xaxes(title_text="first principal component").update_yaxes(
        title_text="second principal component", row=1, col=1
    )
    return plot.update_layout(template=TEMPLATE_NAME, height=460)


if __name__ == "__main__":
    run(reproduce)
