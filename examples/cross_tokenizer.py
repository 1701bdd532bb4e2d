"""Maps between models that read different tokens: states paired where both have read the same
characters.

    python examples/cross_tokenizer.py                                      # bundled pair, the large one reading finer tokens
    python examples/cross_tokenizer.py --source MODEL --target MODEL        # any two models

LRT and Stitching stop at one tokenizer; L-Cross crosses families with one row a text. Here the last
tokens that end at each shared character boundary are paired, so that every token-level map, vector
and probe works across. Controls of the alignment itself: the target's rows taken one place later,
and one model with two tokenizations of equal content (its own vocabulary with half of the merges),
where nothing but the tokens differs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
import plotly.graph_objects as go

import lrt_lens as lrt
from lrt_lens.data._retokenizing import with_fewer_merges
from lrt_lens.figures._template import TEMPLATE_NAME, short_hook
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.reproduction import Compared, FigureOptions, Reproduction, Verdict, run

PROBES = ("sentiment", "register")
CONTROLS = ("shuffled", "permuted", "random")
"""Arms of vectors and probes that know nothing of the concept, or of the pairing."""
DRAWN = CONTROLS[1:]
"""Those of many draws: their interval holds 95% of them."""


@dataclass(frozen=True)
class Options(FigureOptions):
    """What is joined, and what is carried."""

    QUICK: ClassVar = {
        "n_tokens": 6_000,
        "n_random": 2,
        "loss_tokens": 600,
        "n_layers": 2,
        "concepts": ("mood",),
        "share": 0.15,
    }
    UNUSED: ClassVar = frozenset({"sae"})
    n_tokens: int = 60_000
    """Tokens of each harvest."""
    n_layers: int = 8
    """Hook points of either model, evenly spaced where it has more layers."""
    keep: float = 0.5
    """Share of the merges that the finer tokenization makes."""
    concepts: tuple[str, ...] = ("sentiment", "mood")
    """Steering vectors carried: bundled concepts."""
    n_random: int = 6
    """Random vectors and probes."""
    share: float = 1.0
    """Of the bundled contrast pairs, items and labelled texts."""
    loss_tokens: int = 4_000
    """Positions on which the stitched loss is measured."""


@dataclass(frozen=True)
class Joined:
    """Two models, and how their positions are paired."""

    name: str
    pair: lrt.ModelPair
    lag: int = 0
    is_control: bool = False
    """Controls show what a map is worth; nothing is carried by them."""


def reproduce(options: Options) -> Reproduction:
    """The same measurements on every pairing."""
    joined, tables = list(pairings(options)), {"maps": [], "steering": [], "probes": [], "loss": []}
    grids = {}
    for one in joined:
        grid = fit(one, options)
        grids[one.name] = grid
        stitch = grid.best()
        tables["maps"].append(describe(one.name, grid, stitch))
        if one.is_control:
            continue
        for kind, frame in carried(one, grid, stitch, options).items():
            tables[kind].append(frame.assign(pairing=one.name))
    maps = pd.DataFrame(tables.pop("maps"))
    found = {
        kind: pd.concat(frames, ignore_index=True) for kind, frames in tables.items() if frames
    }
    return report(joined, maps, found, grids)


def pairings(options: Options) -> Iterator[Joined]:
    """The pair as given (or the bundled one read by two tokenizations), and the controls of the
    alignment.
    """
    source, target = options.models()
    pair = lrt.ModelPair(source, target)
    if not pair.aligned:
        yield Joined("one tokenizer", pair)
        pair = lrt.ModelPair(source, finer(target, options.keep))
    yield Joined("aligned", pair)
    yield Joined("aligned, a row late", pair, lag=1, is_control=True)
    yield Joined(
        "one model, two tokenizations",
        lrt.ModelPair(target, finer(target, options.keep)),
        is_control=True,
    )


def finer(model: HookedModel, keep: float) -> HookedModel:
    """The same model reading its own vocabulary in more tokens."""
    return HookedModel(
        model.bridge,
        tokenizer=with_fewer_merges(model.tokenizer, keep),
        name=f"{model.name} (finer tokens)",
        prepend_bos=model.prepend_bos,
    )


def fit(one: Joined, options: Options) -> lrt.StitchGrid:
    """All chosen layer pairs."""
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
    """How well the chosen map predicts held-out documents."""
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


def carried(
    one: Joined, grid: lrt.StitchGrid, stitch: lrt.Stitch, options: Options
) -> dict[str, pd.DataFrame]:
    """Steering vectors, probes and the stitched loss, each beside its controls."""
    pair, seed = one.pair, options.seed
    steering, probes = [], []
    for concept in options.concepts:
        contrast, items = (
            some(texts, options) for texts in (lrt.demo_contrast(concept), lrt.demo_items(concept))
        )
        vector = lrt.SteeringVector.mean_difference(pair.source, contrast, at=stitch.source_hook)
        found = lrt.evaluate_steering(
            pair,
            stitch,
            vector,
            items,
            neutral=lrt.demo_neutral()[: max(4, round(16 * options.share))],
            n_random=options.n_random,
            n_permuted=2,
            seed=seed,
        )
        steering.append(found.summary)
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
                n_permuted=2,
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
    """The share of a contrast set or of items that is used."""
    return texts if options.share >= 1 else texts.split(options.share, seed=options.seed)[0]


def report(
    joined: list[Joined],
    maps: pd.DataFrame,
    found: dict[str, pd.DataFrame],
    grids: dict[str, lrt.StitchGrid],
) -> Reproduction:
    """Numbers beside their controls."""
    by_name = maps.set_index("pairing")
    aligned, late = by_name.loc["aligned"], by_name.loc["aligned, a row late"]
    reference = by_name.loc["one tokenizer"] if "one tokenizer" in by_name.index else None
    gain, late_gain = float(aligned["gain_cv"]), float(late["gain_cv"])
    steering, probes = (
        found[kind].query("pairing == 'aligned'") for kind in ("steering", "probes")
    )
    vectors_beat = beating(steering, "concept", "effect_at_equal_damage")
    probes_beat = beating(probes, "task", "accuracy")
    verdict = judged(gain, late_gain, [*vectors_beat.values(), *probes_beat.values()])
    compared = [
        Compared(
            "share explained of what token identity leaves, aligned (cross-validated)",
            gain,
            control=late_gain,
            control_name="a row late",
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
        *shares(probes, "task", "share_of_native", "share", "probe's share of native above chance"),
    ]
    because = (
        f"{aligned['of_source_tokens']:.0%} of the source's tokens and {aligned['of_target_tokens']:.0%} of the target's align; the "
        f"map explains {gain:.3f} of what "
        f"token identity leaves, {late_gain:.3f} with the target a row late"
    )
    if reference is not None:
        because += f", and {float(reference['gain_cv']):.3f} where both models read the same tokens"
    because += (
        f"; vectors beat the shuffled map's, permuted and random ones for {sum(vectors_beat.values())} of {len(vectors_beat)} concepts"
        f"{without(vectors_beat)}, probes for {sum(probes_beat.values())} of {len(probes_beat)} tasks{without(probes_beat)}"
    )
    return Reproduction(
        name="cross_tokenizer",
        title="Two tokenizers, one map: positions aligned by characters",
        paper="lrt_lens, cross-tokenizer maps",
        claim="Maps, vectors and probes need no common tokenizer: states that have read the same characters are partners.",
        compared=compared,
        says="The stitched loss replaces aligned positions only and keeps the own state between them, so it is not comparable with that of "
        "one tokenizer; where the "
        "second tokenization is a finer one of the same vocabulary, the model reads tokens that are unusual for it.",
        verdict=verdict,
        because=f"{because}.",
        figures={
            "Held-out r2_uniform of every layer pair": heat_maps(grids),
            "Chosen maps, and token identity": bars(maps),
        },
        tables={"maps": maps, **found},
        details={one.name: grids[one.name].moments.provenance.alignment for one in joined},
    )


def judged(gain: float, late_gain: float, beat: list[bool]) -> Verdict:
    """Maps, vectors and probes of the claim: a caveat where some of the last two do not beat their
    controls, or the map's gain is weak.
    """
    if not gain > late_gain or not any(beat):
        return "does not survive its null"
    return "holds" if gain > 0.1 and gain > 1.2 * late_gain and all(beat) else "holds with a caveat"


def beating(summary: pd.DataFrame, name: str, column: str) -> dict[str, bool]:
    """By concept or task: whether the interval is above every control's mean, and the value above
    95% of draws; NaN is not.
    """
    found = {}
    for one, part in summary[summary["arm"].isin(("transferred", *CONTROLS))].groupby(
        name, sort=False
    ):
        by_arm = part.set_index("arm")
        controls = by_arm.loc[[arm for arm in CONTROLS if arm in by_arm.index], column]
        draws = by_arm.loc[[arm for arm in DRAWN if arm in by_arm.index], "high"]
        above = (by_arm.loc["transferred", "low"] > controls).all() and (
            by_arm.loc["transferred", column] > draws
        ).all()
        found[str(one)] = bool(above)
    return found


def without(beat: dict[str, bool]) -> str:
    """Names of those that do not, in brackets."""
    lost = [name for name, won in beat.items() if not won]
    return f" (not {', '.join(lost)})" if lost else ""


def shares(summary: pd.DataFrame, name: str, column: str, ends: str, what: str) -> list[Compared]:
    """What the transferred artefacts keep, with intervals, beside the best control."""
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
    """A panel a pairing."""
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
    """r2 of both kinds for the chosen maps beside token identity and shuffled pairs."""
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
        xaxis_title="what is joined",
        yaxis_title="share of variance explained, held-out documents",
        barmode="group",
        height=420,
    )


if __name__ == "__main__":
    run(reproduce)
