"""The demo's report: key numbers, the grid beside its null, the stitched loss, vectors at equal
damage, probes, an SAE.
"""

from typing import TYPE_CHECKING

from lrt_lens.figures._steering import (
    effect_damage_figure,
    grid_figure,
    steering_figure,
    summary_figure,
)
from lrt_lens.moments._provenance import package_versions
from lrt_lens.report._html import (
    Block,
    Continuations,
    KeyNumbers,
    Paragraph,
    Plot,
    Section,
    Table,
    render_html,
)

if TYPE_CHECKING:
    from lrt_lens.adapters.saes._evaluation import SAEEvaluation
    from lrt_lens.adapters.vectors._evaluation import SteeringEvaluation
    from lrt_lens.demo._result import DemoResult

_TITLES = {"sentiment": "Sentiment of film reviews", "mood": "Happy and sad moments of stories"}


def demo_report(result: "DemoResult") -> str:
    """The page as one self-contained HTML text."""
    sections = [_overview(result), _grid(result), _loss(result)]
    sections += [
        _concept(result, concept, evaluation) for concept, evaluation in result.evaluations.items()
    ]
    sections += [_probe(result, task) for task in result.probes]
    if result.sae is not None:
        sections.append(_sae(result.sae))
    sections.append(_method())
    versions = ", ".join(f"{name} {version}" for name, version in package_versions().items())
    source, target = result.pair.source, result.pair.target
    subtitle = f"{source.name} ({source.n_layers} layers, d {source.d_model}) to {target.name} ({target.n_layers} layers, d {target.d_model})"
    return render_html(
        "From the small model to the large one",
        sections,
        subtitle=subtitle,
        footer=f"{result.seconds:.0f} s. {versions}",
    )


def _overview(result: "DemoResult") -> Section:
    scores = result.stitch.scores
    tiles: list[tuple[str, str | int | float, str]] = [
        (
            "R² of the stitch",
            f"{scores['r2']:.2f}",
            f"uniform {scores['r2_uniform']:.2f}; shuffled pairs {scores['r2_null']:.2f}; token identity alone {scores['r2_token']:.2f}",
        )
    ]
    for concept, evaluation in result.evaluations.items():
        row = evaluation.summary.set_index("arm").loc["transferred"]
        note = f"of the native effect at {evaluation.budget:g} nats of damage, 95% interval {row['fraction_low']:.2f} to {row['fraction_high']:.2f}"
        tiles.append((f"{concept}: vector", f"{row['fraction_of_native']:.2f}", note))
    for task, evaluation in result.probes.items():
        row = evaluation.summary.set_index("arm").loc["transferred"]
        note = f"of the native accuracy above chance, 95% interval {row['share_low']:.2f} to {row['share_high']:.2f}"
        tiles.append((f"{task}: probe", f"{row['share_of_native']:.2f}", note))
    return Section(
        "What was done",
        [
            Paragraph(
                "Steering vectors, probes and a sparse autoencoder learnt in the small model are carried into the large one by an affine map fitted on "
                "other text. Each is compared with the large model's own and with controls; vectors all at the same damage to neutral text."
            ),
            KeyNumbers(tiles),
        ],
    )


def _grid(result: "DemoResult") -> Section:
    stitch = result.stitch
    return Section(
        "Which layers map to which",
        [
            Paragraph(
                f"Every source layer mapped to every target layer from one pass over {int(stitch.scores['n_tokens']):,} fitting tokens. Shown is R² on a test fold "
                "that took no part in any fit or choice. The outlined pair was chosen by cross-validation. "
                f"Paired were {result.grid.moments.provenance.alignment}."
            ),
            Plot(
                grid_figure(
                    result.grid.scores, value="r2", chosen=(stitch.source_hook, stitch.target_hook)
                )
            ),
            Table(result.grid.scores, caption="All pairs"),
        ],
    )


def _loss(result: "DemoResult") -> Section:
    rows = result.loss.summary.set_index("route")
    up = rows.loc["A→B"]
    text = (
        f"One model runs to its hook point, the map carries its states over, the other finishes (A is {result.pair.source.name}, B "
        f"{result.pair.target.name}). A→B loses {up['ce']:.2f} nats per token ({up['ce_low']:.2f} to {up['ce_high']:.2f}) where B by itself loses "
        f"{rows.loc['B', 'ce']:.2f}: {up['recovered']:.0%} of what mean-ablation destroys is recovered. On documents of the test fold."
    )
    return Section(
        "Is the stitch good enough to think with?",
        [
            Paragraph(text),
            Plot(
                result.loss.figure(), caption="Next-token loss, with 95% intervals over documents."
            ),
            Table(result.loss.table, caption="All arms"),
        ],
    )


def _concept(result: "DemoResult", concept: str, evaluation: "SteeringEvaluation") -> Section:
    body: list[Block] = [Paragraph(_verdict(evaluation))]
    body.append(
        Plot(
            summary_figure(evaluation.summary, concept=concept),
            caption="Effect at equal damage, with 95% intervals.",
        )
    )
    body.append(
        Plot(effect_damage_figure(evaluation.table, concept=concept, budget=evaluation.budget))
    )
    body.append(Plot(steering_figure(evaluation.table, concept=concept)))
    body.append(Table(evaluation.summary.drop(columns="concept"), caption="Arms at equal damage"))
    body.append(
        Paragraph("Continuations at twice the calibrated strength, same seed for every arm:")
    )
    body.append(Continuations(result.continuations[concept]))
    return Section(_TITLES.get(concept, concept), body)


def _probe(result: "DemoResult", task: str) -> Section:
    evaluation = result.probes[task]
    rows = evaluation.summary.drop_duplicates("arm").set_index("arm")
    moved = rows.loc["transferred"]
    text = (
        f"A probe learnt on {result.pair.source.name} and carried over, without a label of {result.pair.target.name}, is right on {moved['accuracy']:.0%} of "
        f"{evaluation.n_test} texts ({moved['low']:.0%} to {moved['high']:.0%}); the large model's own probe on {rows.loc['native', 'accuracy']:.0%}, "
        f"always naming the larger class on {evaluation.chance:.0%}. That is {moved['share_of_native']:.2f} of the native accuracy above chance "
        f"({moved['share_low']:.2f} to {moved['share_high']:.2f})."
    )
    return Section(
        f"A probe carried across: {task}",
        [Paragraph(text), Plot(evaluation.figure()), Table(evaluation.summary, caption="All arms")],
    )


def _sae(evaluation: "SAEEvaluation") -> Section:
    rows = evaluation.summary.set_index("arm")
    moved, own = rows.loc["transferred"], rows.loc["native"]
    text = (
        f"The small model's sparse autoencoder, as weights: up ∘ SAE ∘ down. On the large model it leaves {moved['fvu']:.2f} of the variance unexplained "
        f"with {moved['l0']:.0f} features a token (the large model's own SAE {own['fvu']:.2f}) and costs {moved['delta_ce']:.2f} nats per token where its "
        f"reconstruction takes the stream's place (own {own['delta_ce']:.2f})."
    )
    return Section(
        "A sparse autoencoder carried across",
        [Paragraph(text), Plot(evaluation.figure()), Table(evaluation.table, caption="All arms")],
    )


def _verdict(evaluation: "SteeringEvaluation") -> str:
    table = evaluation.summary.set_index("arm")
    row = table.loc["transferred"]
    text = (
        f"At {evaluation.budget:g} nats per token of damage the transferred vector moves the propensity by {row['effect_at_equal_damage']:.2f} nats "
        f"({row['low']:.2f} to {row['high']:.2f})"
    )
    if "native" in table.index:
        native = table.loc["native"]
        text += f"; the native vector at the same hook point by {native['effect_at_equal_damage']:.2f} ({native['low']:.2f} to {native['high']:.2f})"
    controls = [arm for arm in ("random", "shuffled", "permuted") if arm in table.index]
    clear = [arm for arm in controls if row["low"] > table.loc[arm, "high"]]
    unclear = [arm for arm in controls if arm not in clear]
    text += f". Its interval is clear of {', '.join(clear) or 'no control'}" + (
        f", but not of {', '.join(unclear)}." if unclear else "."
    )
    if evaluation.contrast_score is not None:
        score = evaluation.contrast_score
        text += f" On the contrast texts themselves the stitch has R² {score.r2:.2f} (uniform {score.r2_uniform:.2f}) over {score.n_tokens:,} tokens."
    return text


def _method() -> Section:
    arms = [
        ("native", "learnt on the large model from the same texts, at the same hook point"),
        ("native_best", "the same at the hook point that is best on validation items"),
        (
            "random",
            "directions, half isotropic, half with the stream's own covariance; the interval is the range of 95% of the draws",
        ),
        ("shuffled", "the vector through a map fitted on shuffled pairs of tokens"),
        (
            "permuted",
            "vectors learnt from shuffled labels, through the true map; with few draws the interval is nearly their whole range",
        ),
    ]
    text = "\n\n".join(f"{name}: {meaning}." for name, meaning in arms)
    return Section("How to read it", [Paragraph(text)])
