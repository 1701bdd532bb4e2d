"""L-Cross, figure 3: do differences of a concept lie alike in two models? Projections, and what a
projection cannot show.

    python examples/concept_directions.py                       # bundled pair, its two concepts: under a minute

The paper (arXiv 2501.02009) projects the differences λ_δ between the texts of each pair to two
dimensions by t-SNE, a picture a model, and reads flips and rotations between models off the
pictures. Here the projection is by principal components, and beside the target stand its own
differences after a random rotation: the picture is the same, so neither picture nor its turn says
how the two models' axes are related. What can be measured: how well concepts are apart in the
plane, and whether *which text* a difference comes from shows in both models (CKA), against
differences permuted within their concept.
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
    """Concepts and where they are read."""

    QUICK: ClassVar[Mapping[str, Any]] = {"pairs": 20, "draws": 20}
    UNUSED: ClassVar = frozenset({"documents", "n_tokens", "sae"})
    source_hook: int = 2
    """Layer of the source."""
    target_hook: int = 3
    """Layer of the target."""
    tasks: Path | None = None
    """Folder of task files; the bundled concepts without it."""
    pairs: int = 200
    """Pairs a concept."""
    draws: int = 500
    """Permutations."""


def reproduce(options: Options) -> Reproduction:
    """Differences in both models, projected and compared."""
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
    labels = np.concatenate([[name] * len(one) for name, one in rows.items()])
    rng = np.random.default_rng(options.seed)
    rotated = y @ ortho_group.rvs(y.shape[1], random_state=rng)
    planes = {"source": plane(x), "target": plane(y), "target, rotated at random": plane(rotated)}
    same_picture = 1 - procrustes(planes["target"], planes["target, rotated at random"])[2]
    across = 1 - procrustes(planes["source"], planes["target"])[2]
    apart = {name: separation(points, labels) for name, points in planes.items()}
    found = cka(x, y)
    null = np.array([cka(x, y[within(labels, rng)]) for _ in range(options.draws)])
    low, high = np.quantile(null, [0.025, 0.975])
    survives = bool(found > high)
    verdict: Verdict = "holds with a caveat" if survives else "does not survive its null"
    table = pd.DataFrame({"plane": apart.keys(), "concepts_apart": apart.values()})
    return Reproduction(
        name="concept_directions",
        title="Differences of concepts in two models: what a projection shows",
        paper="L-Cross, figure 3",
        claim="Projected differences of a concept form comparable shapes in different models, flipped or rotated against each other.",
        compared=[
            Compared(
                "likeness of both models' pictures after turning (1 − Procrustes disparity)",
                float(across),
                "read off t-SNE",
                control=float(same_picture),
                control_name="one model against itself, rotated at random",
            ),
            Compared(
                "CKA of differences across models, text by text",
                float(found),
                None,
                control=float(null.mean()),
                control_name="permuted within concepts",
            ),
            Compared(
                "concepts apart in the target's plane, balanced accuracy",
                apart["target"],
                None,
                control=1 / len(rows),
                control_name="chance",
            ),
        ],
        says="A picture is unchanged by any rotation of the model's axes, so that one picture is a turned copy of another says nothing "
        "about axes; that differences are "
        "alike text by text does, and no map is needed to see it.",
        verdict=verdict,
        because=f"a model rotated at random gives the same picture (likeness {same_picture:.2f}), both models' pictures are alike by "
        f"{across:.2f}; text by text CKA is "
        f"{found:.2f} where pairs permuted within their concept have {null.mean():.2f} ({low:.2f} to {high:.2f}).",
        figures={
            "First two principal components of the differences, a point a pair of texts": figure(
                planes, labels
            )
        },
        tables={
            "Concepts apart in the plane": table,
            "CKA, permuted within concepts": pd.DataFrame(
                {"cka": [found, null.mean(), low, high]},
                index=pd.Index(["measured", "permuted: mean", "2.5%", "97.5%"], name="what"),
            ),
        },
        details={"n_pairs": {name: len(one) for name, one in rows.items()}},
    )


def plane(differences: np.ndarray) -> np.ndarray:
    """[pair, 2]: scores on the first two principal components."""
    centred = differences - differences.mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    return u[:, :2] * s[:2]


def separation(points: np.ndarray, labels: np.ndarray) -> float:
    """Balanced accuracy of telling concepts apart by a linear discriminant in the plane,
    cross-validated.
    """
    return float(
        cross_val_score(
            LinearDiscriminantAnalysis(), points, labels, cv=5, scoring="balanced_accuracy"
        ).mean()
    )


def within(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A permutation that moves no pair into another concept."""
    order = np.arange(len(labels))
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        order[places] = rng.permutation(places)
    return order


def cka(x: np.ndarray, y: np.ndarray) -> float:
    """Linear CKA of two sets of rows."""
    x, y = x - x.mean(0), y - y.mean(0)
    return float(
        (np.linalg.norm(x.T @ y) ** 2) / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    )


def figure(planes: Mapping[str, np.ndarray], labels: np.ndarray) -> go.Figure:
    """A panel a model, and the rotated one."""
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
