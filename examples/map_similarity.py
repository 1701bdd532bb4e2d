"""L-Cross, table 4: maps fitted on different concepts look alike. What makes them alike?

    python examples/map_similarity.py                       # bundled pair, its two concepts

The paper (arXiv 2501.02009) compares the least-squares maps T of its concepts by SSIM, by the mean
difference of their singular values (ME) and by ‖ΔT‖_F, beside a random T with N(0, 1) entries, and
reads a map that all concepts share off it. Nothing is centred there, so that every T has to send
one mean to the other, whatever the texts say; and a random T of another size is far from anything.
Here stand beside it: maps fitted on *shuffled* pairs of the same rows (each text of the source
beside another text's row in the target, so that means and norms stay and the pairing is gone), the
map of means alone, random maps of the same ‖T‖_F, and maps of centred rows. The paper's sizes say
that its random T stands beside a fitted one, not beside another random one: two N(0, 1) matrices of
4096 × 3584 are √2·3831 = 5418 apart, one and a fitted T about 3831, and 3855 and 3832 are printed.
Ours is made in the same way.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from scipy.ndimage import uniform_filter

from lrt_lens.adapters.concepts._rows import read_rows
from lrt_lens.figures._template import TEMPLATE_NAME
from lrt_lens.reproduction import Compared, FigureOptions, Reproduction, Verdict, run
from lrt_lens.reproduction._concepts import load_concepts

PAPER = {
    "ssim": ((0.94, 0.95, 0.87), (0.13, 0.05, 0.08)),
    "singular_values": ((1.14, 0.07, 1.76), (54.03, 55.75, 51.34)),
    "frobenius": ((573.65, 27.63, 572.17), (3855.0, 3832.0, 4117.0)),
}
"""Table 4, for Llama2 → Qwen2, Qwen2 → Llama3.1, Llama3.1 → Llama2: means over pairs of the seven
concepts' T, and with a random T.
"""
RANDOM = "a random N(0, 1) beside the paper's"
ARMS = (
    "as in the paper",
    "shuffled pairs",
    "means alone",
    "centred",
    "centred, shuffled pairs",
    "random, same norm",
    "random, N(0, 1)",
)
Maps = dict[tuple[str, int], np.ndarray]
"""(concept, part) → T."""


@dataclass(frozen=True)
class Options(FigureOptions):
    """Concepts and where they are read."""

    QUICK: ClassVar[Mapping[str, Any]] = {"pairs": 30, "parts": 2}
    UNUSED: ClassVar = frozenset({"documents", "n_tokens", "sae"})
    source_hook: int = 2
    """Layer of the source."""
    target_hook: int = 3
    """Layer of the target."""
    tasks: Path | None = None
    """Folder of task files; the bundled concepts without it."""
    pairs: int = 240
    """Pairs a concept."""
    parts: int = 3
    """Disjoint parts that each concept is cut into: maps are also compared within a concept."""


def reproduce(options: Options) -> Reproduction:
    """A map a concept and part, compared by pairs."""
    concepts = load_concepts(options.tasks, options.pairs, 4, options.seed)
    models = options.models()
    rows = read_rows(
        models,
        [concept.contrast for concept in concepts],
        source_hook=options.source_hook,
        target_hook=options.target_hook,
    )
    fitted: dict[str, Maps] = {arm: {} for arm in ARMS}
    rng = np.random.default_rng(options.seed)
    for name, one in rows.items():
        for part in range(options.parts):
            x, y = (
                side[part :: options.parts].flatten(0, 1).double().numpy()
                for side in (one.source, one.target)
            )
            for arm, weight in maps(x, y, rng).items():
                fitted[arm][name, part] = weight
    true_maps, noise = fitted["as in the paper"], fitted["random, N(0, 1)"]
    sets = [(arm, fitted[arm], fitted[arm]) for arm in ARMS] + [(RANDOM, true_maps, noise)]
    table = pd.DataFrame(
        [
            compared(arm, one, another, a, b)
            for arm, one, another in sets
            for a, b in combinations(one, 2)
        ]
    )
    measures = [*PAPER, "frobenius_relative"]
    other = (
        table[table["concepts"] == "two"]
        .groupby("arm", sort=False)[measures]
        .mean()
        .reindex([*ARMS, RANDOM])
    )
    true, null = (
        float(other.loc["as in the paper", "ssim"]),
        float(other.loc["shuffled pairs", "ssim"]),
    )
    centred, centred_null = (
        float(other.loc["centred", "ssim"]),
        float(other.loc["centred, shuffled pairs", "ssim"]),
    )
    nearly_one = true > 0.5
    verdict: Verdict = (
        "holds with a caveat" if nearly_one and true > null + 0.05 else "does not survive its null"
    )
    same_norm, means = (
        float(other.loc["random, same norm", "ssim"]),
        float(other.loc["means alone", "ssim"]),
    )
    n, d = options.pairs * 2 // options.parts, models[0].d_model
    return Reproduction(
        name="map_similarity",
        title="Maps of different concepts look alike: what makes them alike?",
        paper="L-Cross, table 4",
        claim="Maps T fitted on different concepts are nearly one: SSIM about .9 where a random T has .1.",
        compared=[
            *beside_the_paper(other),
            Compared("SSIM of maps that know the two means alone", means),
            Compared(
                "SSIM of maps of centred rows",
                centred,
                control=centred_null,
                control_name="shuffled pairs",
            ),
            Compared(
                "‖ΔT‖_F ÷ ‖T‖_F, two concepts",
                float(other.loc["as in the paper", "frobenius_relative"]),
                control=float(other.loc["shuffled pairs", "frobenius_relative"]),
                control_name="shuffled pairs",
            ),
        ],
        says="Whether likeness of maps says that concepts share one map, on two concepts of small models; the paper's sizes (d in the thousands) make SSIM, which sees "
        "local patches of entries in an arbitrary order of dimensions, another measure than here. ME and "
        "‖ΔT‖_F grow with the widths and with the streams' lengths: their sizes compare with the controls beside them, not with the paper's.",
        verdict=verdict,
        because=f"maps of two concepts have SSIM {true:.2f}, maps of shuffled pairs {null:.2f}, random ones of the same norm {same_norm:.2f}, "
        f"and maps that know nothing but the two means {means:.2f}; "
        f"of centred rows {centred:.2f} beside {centred_null:.2f} ({n} texts a map, {d} dimensions).",
        figures={"SSIM between maps, by arm": figure(table)},
        tables={
            "Means over pairs of maps of two concepts": other.reset_index(),
            "All pairs of maps": table,
        },
        details={"texts_per_map": n, "d_source": d},
    )


def beside_the_paper(means: pd.DataFrame) -> list[Compared]:
    """The paper's three measures of maps of two concepts, then the same with a random T."""
    names = {
        "ssim": "SSIM",
        "singular_values": "ME, mean difference of singular values,",
        "frobenius": "‖ΔT‖_F",
    }
    rows = []
    for column, name in names.items():
        fitted, random = ("/".join(f"{value:g}" for value in values) for values in PAPER[column])
        null = float(means.loc["shuffled pairs", column])
        rows.append(
            Compared(
                f"{name} of maps of two concepts",
                float(means.loc["as in the paper", column]),
                fitted,
                control=null,
                control_name="shuffled pairs",
            )
        )
        rows.append(
            Compared(
                f"{name} of a map and a random N(0, 1)", float(means.loc[RANDOM, column]), random
            )
        )
    return [*rows[::2], *rows[1::2]]


def maps(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """T of every arm, [d_source, d_target], from rows [text, d]: minimum-norm least squares without
    intercept (L-Cross, eq. 4).
    """
    order = rng.permutation(len(x))
    mean_x, mean_y = x.mean(0), y.mean(0)
    true = np.linalg.pinv(x) @ y
    noise = rng.standard_normal(true.shape)
    return {
        "as in the paper": true,
        "shuffled pairs": np.linalg.pinv(x) @ y[order],
        "means alone": np.outer(mean_x, mean_y) / (mean_x @ mean_x),
        "centred": np.linalg.pinv(x - mean_x) @ (y - mean_y),
        "centred, shuffled pairs": np.linalg.pinv(x - mean_x) @ (y - mean_y)[order],
        "random, same norm": noise * np.linalg.norm(true) / np.linalg.norm(noise),
        "random, N(0, 1)": rng.standard_normal(true.shape),
    }


def compared(
    arm: str, ones: Maps, others: Maps, a: tuple[str, int], b: tuple[str, int]
) -> dict[str, Any]:
    """The paper's three measures of two maps, and the Frobenius one relative to the first map's
    norm.
    """
    one, other = ones[a], others[b]
    spectra = [np.linalg.svd(weight, compute_uv=False) for weight in (one, other)]
    return {
        "arm": arm,
        "first": f"{a[0]} {a[1]}",
        "second": f"{b[0]} {b[1]}",
        "concepts": "one" if a[0] == b[0] else "two",
        "ssim": ssim(one, other),
        "singular_values": float(np.abs(spectra[0] - spectra[1]).mean()),
        "frobenius": float(np.linalg.norm(one - other)),
        "frobenius_relative": float(np.linalg.norm(one - other) / np.linalg.norm(one)),
    }


def ssim(a: np.ndarray, b: np.ndarray, window: int = 7) -> float:
    """Mean structural similarity of two matrices seen as pictures (Wang et al. 2004), uniform
    windows, their common range.
    """
    span = max(a.max(), b.max()) - min(a.min(), b.min())
    small, smaller = (0.01 * span) ** 2, (0.03 * span) ** 2
    mean_a, mean_b, aa, bb, ab = (
        uniform_filter(picture, window) for picture in (a, b, a * a, b * b, a * b)
    )
    share = window**2 / (window**2 - 1)
    var_a, var_b, cov = (
        share * (aa - mean_a**2),
        share * (bb - mean_b**2),
        share * (ab - mean_a * mean_b),
    )
    like = (
        (2 * mean_a * mean_b + small)
        * (2 * cov + smaller)
        / ((mean_a**2 + mean_b**2 + small) * (var_a + var_b + smaller))
    )
    edge = window // 2
    return float(like[edge:-edge, edge:-edge].mean())


def figure(table: pd.DataFrame) -> go.Figure:
    """A point a pair of maps: within one concept and between two."""
    plot = go.Figure()
    for concepts, colour in (("one", "#767676"), ("two", "#0072B2")):
        part = table[table["concepts"] == concepts]
        plot.add_box(
            x=part["arm"],
            y=part["ssim"],
            name=f"maps of {concepts} concept{'s' if concepts == 'two' else ''}",
            boxpoints="all",
            pointpos=0,
            marker_color=colour,
        )
    plot.update_yaxes(title_text="SSIM of two maps").update_xaxes(
        title_text="how the maps were made"
    )
    return plot.update_layout(
        template=TEMPLATE_NAME,
        boxmode="group",
        height=480,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
    )


if __name__ == "__main__":
    run(reproduce)
