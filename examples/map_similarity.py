"""L-Cross, table 4: why are maps fitted on different concepts similar?

    python examples/map_similarity.py                       # bundled pair, its two concepts

The paper (arXiv 2501.02009) compares the least-squares maps T of its concepts by SSIM, by the mean
difference of their singular values (ME) and by ‖ΔT‖_F, with a random T of N(0, 1) entries as the
control. It concludes that all concepts share one map. But the paper does not centre the rows, so
every T has to map one mean to the other, whatever the texts say; and a random T of another norm
differs from every fitted map.

This script adds four controls: maps fitted on *shuffled* pairs of the same rows (each source text
is paired with the row of another text, which keeps means and norms), the map of the means alone,
random maps of the same ‖T‖_F, and maps of centred rows.

The paper's numbers show that it compares a random T with a fitted T, not with another random T: two
N(0, 1) matrices of 4096 × 3584 differ by √2·3831 = 5418, one of them and a fitted T by about 3831,
and the paper prints 3855 and 3832. The same comparison is made here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from einops import rearrange
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
"""Table 4: means over pairs of the T of seven concepts, then the comparison with a random T.

The columns are Llama2 → Qwen2, Qwen2 → Llama3.1, Llama3.1 → Llama2.
"""
RANDOM = "random N(0, 1) and a fitted map"
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
"""T per (concept, part)."""


@dataclass(frozen=True)
class Options(FigureOptions):
    """Concepts and the layers at which they are read."""

    QUICK: ClassVar[Mapping[str, Any]] = {"pairs": 30, "parts": 2}
    UNUSED: ClassVar = frozenset({"documents", "n_tokens", "sae"})
    source_hook: int = 2
    """Layer of the source."""
    target_hook: int = 3
    """Layer of the target."""
    tasks: Path | None = None
    """Folder of task files; by default the bundled concepts."""
    pairs: int = 240
    """Number of contrast pairs per concept."""
    parts: int = 3
    """Number of disjoint parts per concept, so that maps are also compared within a concept."""


def reproduce(options: Options) -> Reproduction:
    """Fit one map per concept and part, and compare all pairs of maps."""
    table, d = measured(options)
    measures = [*PAPER, "frobenius_relative"]
    means = (
        table[table["concepts"] == "two"]
        .groupby("arm", sort=False)[measures]
        .mean()
        .reindex([*ARMS, RANDOM])
    )
    ssims = {arm: float(means.loc[arm, "ssim"]) for arm in ARMS}
    nearly_one = ssims["as in the paper"] > 0.5
    verdict: Verdict = (
        "holds with a caveat"
        if nearly_one and ssims["as in the paper"] > ssims["shuffled pairs"] + 0.05
        else "does not survive its null"
    )
    n = options.pairs * 2 // options.parts
    return Reproduction(
        name="map_similarity",
        title="Maps of different concepts are similar: what makes them similar?",
        paper="L-Cross, table 4",
        claim="Maps T fitted on different concepts are nearly the same: their SSIM is about .9, "
        "that of a random T .1.",
        compared=compared_rows(means),
        says="This tests whether similar maps show that concepts share one map, for two concepts "
        "of small models. SSIM compares local patches of entries in an arbitrary order of "
        "dimensions, so at the paper's sizes (d in the thousands) it is another measure than "
        "here. ME and ‖ΔT‖_F grow with the widths and with the norms of the activations: their "
        "sizes can be compared with the controls, not with the paper's.",
        verdict=verdict,
        because=f"maps of two concepts have SSIM {ssims['as in the paper']:.2f}, maps of shuffled "
        f"pairs {ssims['shuffled pairs']:.2f}, random maps of the same norm "
        f"{ssims['random, same norm']:.2f}, and maps that know only the two means "
        f"{ssims['means alone']:.2f}; for centred rows it is {ssims['centred']:.2f}, for shuffled "
        f"pairs of them {ssims['centred, shuffled pairs']:.2f} ({n} texts per map, {d} "
        "dimensions).",
        figures={"SSIM between maps, per arm": figure(table)},
        tables={
            "Means over pairs of maps of two concepts": means.reset_index(),
            "All pairs of maps": table,
        },
        details={"texts_per_map": n, "d_source": d},
    )


def measured(options: Options) -> tuple[pd.DataFrame, int]:
    """The measures of every pair of maps, per arm, and the width of the source."""
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
                rearrange(side[part :: options.parts], "pair text d -> (pair text) d")
                .double()
                .numpy()
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
    return table, models[0].d_model


def compared_rows(means: pd.DataFrame) -> list[Compared]:
    """The paper's measures, then three that its table does not have."""
    return [
        *compared_with_the_paper(means),
        Compared(
            "SSIM of maps that know only the two means", float(means.loc["means alone", "ssim"])
        ),
        Compared(
            "SSIM of maps of centred rows",
            float(means.loc["centred", "ssim"]),
            control=float(means.loc["centred, shuffled pairs", "ssim"]),
            control_name="shuffled pairs",
        ),
        Compared(
            "‖ΔT‖_F ÷ ‖T‖_F, two concepts",
            float(means.loc["as in the paper", "frobenius_relative"]),
            control=float(means.loc["shuffled pairs", "frobenius_relative"]),
            control_name="shuffled pairs",
        ),
    ]


def compared_with_the_paper(means: pd.DataFrame) -> list[Compared]:
    """The paper's three measures for maps of two concepts, then for a fitted and a random map."""
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
                f"{name} of a fitted map and a random N(0, 1) map",
                float(means.loc[RANDOM, column]),
                random,
            )
        )
    return [*rows[::2], *rows[1::2]]


def maps(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """T of every arm, [d_source, d_target], from rows [text, d]."""
    order = rng.permutation(len(x))
    mean_x, mean_y = x.mean(0), y.mean(0)
    # Minimum-norm least squares without an intercept: T = X⁺ Y (L-Cross, eq. 4)
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
    """The paper's three measures of two maps, and ‖ΔT‖_F relative to the norm of the first map."""
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
    """Mean structural similarity of two matrices as images (Wang et al. 2004).

    Windows are uniform; the dynamic range is the common range of both matrices.
    """
    span = max(a.max(), b.max()) - min(a.min(), b.min())
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    mean_a, mean_b, aa, bb, ab = (
        uniform_filter(picture, window) for picture in (a, b, a * a, b * b, a * b)
    )
    # Bessel's correction n/(n−1) for windows of n entries
    correction = window**2 / (window**2 - 1)
    var_a, var_b, cov = (
        correction * (aa - mean_a**2),
        correction * (bb - mean_b**2),
        correction * (ab - mean_a * mean_b),
    )
    # SSIM = (2·μa·μb + c1)(2·σab + c2) / ((μa² + μb² + c1)(σa² + σb² + c2))
    similarity = (
        (2 * mean_a * mean_b + c1)
        * (2 * cov + c2)
        / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    )
    # Windows at the border reach over the edge and are omitted.
    edge = window // 2
    return float(similarity[edge:-edge, edge:-edge].mean())


def figure(table: pd.DataFrame) -> go.Figure:
    """SSIM per arm, one point per pair of maps, within one concept and between two."""
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
    plot.update_yaxes(title_text="SSIM of two maps").update_xaxes(title_text="arm")
    return plot.update_layout(
        template=TEMPLATE_NAME,
        boxmode="group",
        height=480,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
    )


if __name__ == "__main__":
    run(reproduce)
