"""Maps between models with different tokenizers: positions aligned by characters.

    python examples/cross_tokenizer.py             # bundled pair, the target reading finer tokens
    python examples/cross_tokenizer.py --source MODEL --target MODEL     # any two models

LRT and Stitching need a common tokenizer; L-Cross crosses families with one row per text. Here two
states are paired if their models have read the same characters: the tokens that end at the same
character boundary. Every token-level map, vector and probe then works across tokenizers.

Two controls test the alignment itself: an off-by-one control that takes the target's rows one
position later, and one model with two tokenizations of the same text (its own vocabulary with half
of the merges), so that nothing but the tokens differs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
import plotly.graph_objects as go

import lrt_lens as lrt
from lrt_lens.data import with_fewer_merges
from lrt_lens.figures import TEMPLATE_NAME
from lrt_lens.models import HookedModel, short_hook
from lrt_lens.reproduction import Compared, FigureOptions, Reproduction, Verdict, run

LATE = "aligned, one row late"
"""Name of the off-by-one control."""
PROBES = ("sentiment", "register")
CONTROLS = ("shuffled", "permuted", "random")
"""Arms of vectors and probes that do not use the concept, or do not use the pairing.

Each has several draws, and its interval shows where a new draw falls.
"""


@dataclass(frozen=True)
class Options(FigureOptions):
    """Harvests, vectors, probes and the stitched loss."""

    QUICK: ClassVar = {
        "n_tokens": 6_000,
        "n_random": 1,
        "n_contrast_groups": 2,
        "loss_tokens": 600,
        "n_layers": 2,
        "concepts": ("mood",),
        "share": 0.15,
    }
    UNUSED: ClassVar = frozenset({"sae"})
    n_tokens: int = 60_000
    """Tokens of each harvest."""
    n_layers: int = 8
    """Hook points per model at most, evenly spaced over its layers."""
    keep: float = 0.5
    """Fraction of the merges that the finer tokenization makes."""
    concepts: tuple[str, ...] = ("sentiment", "mood")
    """Bundled concepts whose steering vectors are transferred."""
    n_random: int = 20
    """Number of draws of each control of vectors and probes."""
    n_contrast_groups: int = 8
    """Groups of contrast pairs that are left out in turn, for the error that they cause."""
    share: float = 1.0
    """Fraction of the bundled contrast pairs, items and labelled texts that is used."""
    loss_tokens: int = 4_000
    """Number of positions on which the stitched loss is measured."""


@dataclass(frozen=True)
class Joined:
    """Two models, and how their positions are paired."""

    name: str
    pair: lrt.ModelPair
    lag: int = 0
    """Positions by which the target's rows are late."""
    is_control: bool = False
    """True if only a map is fitted, for comparison, and no artefact is transferred."""


def reproduce(options: Options) -> Reproduction:
    """Measure maps, vectors, probes and the stitched loss for every pairing."""
    joined, tables = list(pairings(options)), {"maps": [], "steering": [], "probes": [], "loss": []}
    grids = {}
    for one in joined:
        grid = fit(one, options)
        grids[one.name] = grid
        stitch = grid.best()
        tables["maps"].append(describe(one.name, grid, stitch))
        if one.is_control:
            continue
        for kind, frame in transferred(one, grid, stitch, options).items():
            tables[kind].append(frame.assign(pairing=one.name))
    maps = pd.DataFrame(tables.pop("maps"))
    evaluations = {
        kind: pd.concat(frames, ignore_index=True) for kind, frames in tables.items() if frames
    }
    return report(joined, maps, evaluations, grids)


def pairings(options: Options) -> Iterator[Joined]:
    """The two models, and the controls of the alignment.

    Models that share a tokenizer are paired twice: as they are, and with finer tokens in the
    target.
    """
    source, target = options.models()
    pair = lrt.ModelPair(source, target)
    if not pair.aligned:
        yield Joined("one tokenizer", pair)
        pair = lrt.ModelPair(source, finer(target, options.keep))
    yield Joined("aligned", pair)
    yield Joined(LATE, pair, lag=1, is_control=True)
    yield Joined(
        "one model, two tokenizations",
        lrt.ModelPair(target, finer(target, options.keep)),
        is_control=True,
    )


def finer(model: HookedModel, keep: float) -> HookedModel:
    """Return the model with a tokenizer that splits text into more tokens of its vocabulary."""
    return HookedModel(
        model.bridge,
        tokenizer=with_fewer_merges(model.tokenizer, keep),
        name=f"{model.name} (finer tokens)",
        prepend_bos=model.prepend_bos,
    )


def fit(one: Joined, options: Options) -> lrt.StitchGrid:
    """Maps between all selected layers of the two models."""
    sides = [
        sorted(
            {
                round(i * (m.n_layers - 1) / max(options.n_layers - 1, 1))
                for i in range(options.n_layers)
            }
        )
        for m in (one.pair.source, one.pair.target)
    ]
    moments = lrt.harvest(
        one.pair,
        options.texts(),
        source_layers=sides[0],
        target_layers=sides[1],
        n_tokens=options.n_tokens,
        lag=one.lag,
        null="full",
        seed=options.seed,
    )
    return moments.fit()


def describe(name: str, grid: lrt.StitchGrid, stitch: lrt.Stitch) -> dict[str, Any]:
    """Held-out scores of the selected map, and the fractions of tokens that align."""
    provenance = grid.moments.provenance
    share = (
        [provenance.aligned[0] / n for n in provenance.aligned[1:]]
        if provenance.aligned
        else [1.0, 1.0]
    )
    scores = {
        key: stitch.scores[key]
        for key in (
            "r2",
            "r2_uniform",
            "r2_null",
            "r2_token",
            "r2_uniform_token",
            "r2_down",
            "gain_cv",
        )
    }
    where = {"source_hook": stitch.source_hook, "target_hook": stitch.target_hook}
    return {
        "pairing": name,
        **where,
        **scores,
        "of_source_tokens": share[0],
        "of_target_tokens": share[1],
    }


def transferred(
    one: Joined, grid: lrt.StitchGrid, stitch: lrt.Stitch, options: Options
) -> dict[str, pd.DataFrame]:
    """Evaluations of steering vectors, probes and the stitched loss, with their controls."""
    pair, seed = one.pair, options.seed
    steering, probes = [], []
    for concept in options.concepts:
        contrast, items = (
            some(texts, options) for texts in (lrt.demo_contrast(concept), lrt.demo_items(concept))
        )
        vector = lrt.SteeringVector.mean_difference(pair.source, contrast, at=stitch.source_hook)
        evaluation = lrt.evaluate_steering(
            pair,
            stitch,
            vector,
            items,
            neutral=lrt.demo_neutral()[: max(4, round(16 * options.share))],
            n_random=options.n_random,
            n_permuted=options.n_random,
            n_shuffled=options.n_random,
            n_contrast_groups=options.n_contrast_groups,
            seed=seed,
        )
        steering.append(evaluation.summary)
    for task in PROBES:
        texts, labels = lrt.demo_texts(task, n=round(400 * options.share))
        probes.append(
            lrt.evaluate_probe(
                pair,
                stitch,
                texts,
                labels,
                ks=(30,),
                n_seeds=2,
                n_random=options.n_random,
                n_permuted=options.n_random,
                n_shuffled=options.n_random,
                task=task,
                seed=seed,
            ).summary
        )
    token = lrt.token_identity_map(grid.moments, stitch.target_hook)
    loss = lrt.evaluate_stitch_loss(
        pair,
        stitch,
        options.texts(),
        n_tokens=options.loss_tokens,
        token_maps=token,
        keep="masked",
        seed=seed,
    )
    return {"steering": pd.concat(steering), "probes": pd.concat(probes), "loss": loss.summary}


def some(texts: Any, options: Options) -> Any:
    """The part of a contrast set or of items that is used."""
    return texts if options.share >= 1 else texts.split(options.share, seed=options.seed)[0]


def report(
    joined: list[Joined],
    maps: pd.DataFrame,
    evaluations: dict[str, pd.DataFrame],
    grids: dict[str, lrt.StitchGrid],
) -> Reproduction:
    """Numbers with their controls, the verdict and the figures."""
    by_name = maps.set_index("pairing")
    gain, late_gain = (float(by_name.loc[name, "gain_cv"]) for name in ("aligned", LATE))
    steering, probes = (
        evaluations[kind].query("pairing == 'aligned'") for kind in ("steering", "probes")
    )
    vectors_beat = beating(steering, "concept", "effect_at_equal_damage")
    probes_beat = beating(probes, "task", "accuracy")
    verdict = judged(gain, late_gain, [*vectors_beat.values(), *probes_beat.values()])
    vectors, tasks = (
        f"{sum(beat.values())} of {len(beat)} {kind}{without(beat)}"
        for beat, kind in ((vectors_beat, "concepts"), (probes_beat, "tasks"))
    )
    return Reproduction(
        name="cross_tokenizer",
        title="Two tokenizers, one map: positions aligned by characters",
        paper="lrt_lens, cross-tokenizer maps",
        claim="Maps, vectors and probes need no common tokenizer: states of two models that have "
        "read the same characters can be paired.",
        compared=compared_rows(by_name, steering, probes),
        says="The stitched loss replaces aligned positions only and leaves the model's own states "
        "between them, so it cannot be compared with the loss for one tokenizer. If the second "
        "tokenization is a finer one from the same vocabulary, the model reads tokens that are "
        "unusual for it.",
        verdict=verdict,
        because=f"{alignment(by_name)}; vectors beat those of the shuffled map, permuted and "
        f"random vectors for {vectors}, probes for {tasks}.",
        figures={
            "Held-out r2_uniform of every layer pair": heat_maps(grids),
            "Selected maps, and token identity": bars(maps),
        },
        tables={"maps": maps, **evaluations},
        details={one.name: grids[one.name].moments.provenance.alignment for one in joined},
    )


def alignment(by_name: pd.DataFrame) -> str:
    """Fractions of aligned tokens and gains over token identity, in words."""
    aligned = by_name.loc["aligned"]
    words = (
        f"{aligned['of_source_tokens']:.0%} of the source's tokens and "
        f"{aligned['of_target_tokens']:.0%} of the target's align; of the variance that tokens "
        f"cannot explain, the map explains {aligned['gain_cv']:.3f}, "
        f"{by_name.loc[LATE, 'gain_cv']:.3f} with the target one row late"
    )
    if "one tokenizer" in by_name.index:
        gain = by_name.loc["one tokenizer", "gain_cv"]
        words += f", and {gain:.3f} if both models read the same tokens"
    return words


def compared_rows(
    by_name: pd.DataFrame, steering: pd.DataFrame, probes: pd.DataFrame
) -> list[Compared]:
    """Scores of the aligned map, then vectors and probes, each with its control."""
    aligned = by_name.loc["aligned"]
    return [
        Compared(
            "fraction explained of the variance that tokens cannot explain, aligned "
            "(cross-validated)",
            float(aligned["gain_cv"]),
            control=float(by_name.loc[LATE, "gain_cv"]),
            control_name="one row late",
        ),
        Compared(
            "r2_uniform on held-out documents, aligned",
            float(aligned["r2_uniform"]),
            control=float(aligned["r2_uniform_token"]),
            control_name="token identity",
        ),
        *shares(
            steering,
            "concept",
            "fraction_of_native",
            "fraction",
            "transferred ÷ native at equal damage",
        ),
        *shares(
            probes, "task", "share_of_native", "share", "probe, fraction of native above chance"
        ),
    ]


def judged(gain: float, late_gain: float, beat: list[bool]) -> Verdict:
    """Verdict: a caveat if some vector or probe fails, or if the gain of the map is weak."""
    if not gain > late_gain or not any(beat):
        return "does not survive its null"
    return "holds" if gain > 0.1 and gain > 1.2 * late_gain and all(beat) else "holds with a caveat"


def beating(summary: pd.DataFrame, name: str, column: str) -> dict[str, bool]:
    """Return, per concept or task, True if it beats its controls; NaN does not.

    The interval has to be above the mean of every control, and fewer than 5% of the draws of it may
    be as far from 0 (or from chance).
    """
    beats = {}
    for one, part in summary[summary["arm"].isin(("transferred", *CONTROLS))].groupby(
        name, sort=False
    ):
        by_arm = part.set_index("arm")
        controls = by_arm.loc[[arm for arm in CONTROLS if arm in by_arm.index]]
        above = (by_arm.loc["transferred", "low"] > controls[column]).all() and (
            controls["transferred_p"] < 0.05
        ).all()
        beats[str(one)] = bool(above)
    return beats


def without(beat: dict[str, bool]) -> str:
    """Names of the concepts or tasks that do not beat their controls, in brackets."""
    failed = [name for name, beats in beat.items() if not beats]
    return f" (not {', '.join(failed)})" if failed else ""


def shares(summary: pd.DataFrame, name: str, column: str, ends: str, what: str) -> list[Compared]:
    """Fractions of native that transferred artefacts reach, with intervals and best control."""
    rows = summary.query("arm == 'transferred'").to_dict("records")
    best = summary[summary["arm"].isin(CONTROLS)].groupby(name)[column].max()
    return [
        Compared(
            f"{row[name]}: {what}",
            row[column],
            low=row[f"{ends}_low"],
            high=row[f"{ends}_high"],
            control=float(best[row[name]]),
            control_name="shuffled, permuted or random",
        )
        for row in rows
    ]


def heat_maps(grids: dict[str, lrt.StitchGrid]) -> go.Figure:
    """One heat map per pairing."""
    from plotly.subplots import make_subplots

    plot = make_subplots(cols=len(grids), subplot_titles=list(grids), horizontal_spacing=0.06)
    for column, grid in enumerate(grids.values(), start=1):
        table = grid.scores.pivot_table(
            index="source_hook", columns="target_hook", values="r2_uniform", sort=False
        )
        plot.add_heatmap(
            z=table.to_numpy(),
            x=[short_hook(str(h)) for h in table.columns],
            y=[short_hook(str(h)) for h in table.index],
            zmin=0,
            zmax=1,
            colorscale="Viridis",
            showscale=column == len(grids),
            colorbar={"title": "r2_uniform"},
            texttemplate="%{z:.2f}" if table.size <= 36 else None,
            row=1,
            col=column,
        )
        plot.update_xaxes(title_text="target", row=1, col=column)
    plot.update_yaxes(title_text="source", row=1, col=1)
    return plot.update_layout(template=TEMPLATE_NAME, height=420)


def bars(maps: pd.DataFrame) -> go.Figure:
    """r2 and r2_uniform of the selected maps, of token identity and of shuffled pairs."""
    plot = go.Figure()
    for column, name in (
        ("r2_uniform", "r2_uniform"),
        ("r2_uniform_token", "token identity"),
        ("r2", "r2"),
        ("r2_null", "shuffled pairs (r2)"),
    ):
        plot.add_bar(x=maps["pairing"], y=maps[column], name=name)
    return plot.update_layout(
        template=TEMPLATE_NAME,
        xaxis_title="pairing",
        yaxis_title="fraction of variance explained, held-out documents",
        barmode="group",
        height=420,
    )


if __name__ == "__main__":
    run(reproduce)
