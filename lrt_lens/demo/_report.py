"""Files of the demo: ``results.json``, ``stitch/`` and the report as one HTML page.

Problem: a transfer is convincing only next to its controls. Mechanism: every number of the report
comes with its interval or its control.

Sections of the report: key numbers, the grid with its null, the stitched loss, vectors at equal
damage, the exported vector, probes, an SAE.
"""

import math
from pathlib import Path
from typing import Any

import pandas as pd

from lrt_lens.adapters.saes._evaluation_result import SAEEvaluation
from lrt_lens.adapters.vectors._steering_result import SteeringEvaluation
from lrt_lens.demo._result import DemoResult
from lrt_lens.figures._steering import grid_figure
from lrt_lens.moments._provenance import package_versions
from lrt_lens.report._html import (
    Block,
    ContinuationCards,
    KeyNumbers,
    Paragraph,
    Plot,
    Section,
    Table,
    render_html,
    write_html,
)
from lrt_lens.report._results import write_results
from lrt_lens.stitching._stitch_loss import StitchLoss

# Headings of the concepts' sections.
_TITLES = {"sentiment": "Sentiment of film reviews", "mood": "Happy and sad moments of stories"}
_ARMS = {
    "native": "learnt on the large model from the same texts, at the same hook point",
    "native_best": "as native, at the hook point with the largest effect on validation items",
    "random": "directions, half isotropic, half with the covariance of the residual stream; "
    "the interval is where a new draw falls",
    "shuffled": "the vector through maps fitted on shuffled pairs of tokens, which send every "
    "vector to a random direction with the covariance of the residual stream; the interval is "
    "where a new draw falls",
    "permuted": "vectors learnt from shuffled labels, through the true map; the interval is where "
    "a new draw falls",
}
"""Meaning of each arm, for the last section."""


def write_demo(result: DemoResult, out: Path) -> Path:
    """Write ``results.json``, ``report.html`` and ``stitch/`` into ``out``; return the report."""
    # The report is written last, so a folder with report.html is complete.
    write_results(out / "results.json", result.arguments, demo_tables(result))
    result.stitch.save_pretrained(out / "stitch")
    return write_html(out / "report.html", demo_report(result))


def demo_tables(result: DemoResult) -> dict[str, Any]:
    """Return the content of ``results.json`` except versions and arguments."""
    steering, probes = list(result.evaluations.values()), list(result.probes.values())
    keys = ("source_hook", "target_hook", "r2", "r2_uniform", "r2_null", "r2_token")
    # DataFrames become lists of rows in `write_results`.
    return {
        "pair": {"source": result.pair.source.name, "target": result.pair.target.name},
        "grid": result.grid.scores,
        "stitch": {key: result.stitch.scores[key] for key in keys},
        "alignment": result.grid.moments.provenance.alignment,
        "steering": pd.concat([one.table for one in steering], ignore_index=True),
        "steering_summary": pd.concat([one.summary for one in steering], ignore_index=True),
        "contrast_scores": {
            concept: vars(evaluation.contrast_score)
            for concept, evaluation in result.evaluations.items()
            if evaluation.contrast_score is not None
        },
        "stitched_loss": stitched_loss_table(result.loss),
        "stitched_loss_arms": result.loss.table,
        "probes": pd.concat([one.table for one in probes], ignore_index=True),
        "probes_summary": pd.concat([one.summary for one in probes], ignore_index=True),
        "sae": [] if result.sae is None else result.sae.table,
        "exports": exports_table(result),
        "continuations": [
            {"concept": concept, **row}
            for concept, rows in result.continuations.items()
            for row in rows
        ],
        "seconds": result.seconds,
    }


def stitched_loss_table(loss: StitchLoss) -> pd.DataFrame:
    """Return table 1 of Stitching: one row per unmodified model (A, B) and per stitched path.

    Columns: path, cross_entropy (nats per token) with its interval, the model that finishes the
    pass, the increase in per cent, the share of the mean-ablation loss that is recovered, and the
    KL divergence.
    """
    names = {"route": "path", "ce": "cross_entropy", "ce_low": "low", "ce_high": "high"}
    columns = [*names.values(), "finishes_in", "increase_percent", "recovered", "kl"]
    return loss.summary.rename(columns=names).loc[:, columns]


def exports_table(result: DemoResult) -> pd.DataFrame:
    """Return one row per exported file: what the program does, compared with our hook.

    Columns: file, format, passed, max_difference (of logits, at the block of the file),
    one_block_away (the same against our hook at a neighbouring block), first_position (the first
    that is steered), damage and budget (nats per token on neutral text), engine.
    """
    rows = [
        {
            "file": f"vectors/{file}",
            "format": check.format,
            "passed": check.passed,
            "max_difference": check.difference,
            # The last block has one neighbour only.
            "one_block_away": min(
                one
                for one in (check.difference_before, check.difference_after)
                if not math.isnan(one)
            ),
            "first_position": check.first_position,
            "damage": check.damage,
            "budget": check.budget,
            "engine": check.engine,
        }
        for file, check in result.exports.items()
    ]
    return pd.DataFrame(rows)


def demo_report(result: DemoResult) -> str:
    """Return the report as one self-contained HTML page."""
    sections = [_overview(result), _grid(result), _loss(result)]
    sections += [
        _concept(result, concept, evaluation) for concept, evaluation in result.evaluations.items()
    ]
    if result.exports:
        sections.append(_exports(result))
    # One section per concept and per task, in the order in which the demo ran them.
    sections += [_probe(result, task) for task in result.probes]
    if result.sae is not None:
        sections.append(_sae(result.sae))
    meanings = "\n\n".join(f"{name}: {meaning}." for name, meaning in _ARMS.items())
    sections.append(Section("Arms of the comparisons", [Paragraph(meanings)]))
    versions = ", ".join(f"{name} {version}" for name, version in package_versions().items())
    subtitle = " to ".join(
        f"{model.name} ({model.n_layers} layers, d {model.d_model})"
        for model in (result.pair.source, result.pair.target)
    )
    footer = f"{result.seconds:.0f} s. {versions}"
    return render_html(
        "From the small model to the large one", sections, subtitle=subtitle, footer=footer
    )


def _overview(result: DemoResult) -> Section:
    scores = result.stitch.scores
    tiles: list[tuple[str, str | int | float, str]] = []
    note = (
        f"uniform {scores['r2_uniform']:.2f}; shuffled pairs {scores['r2_null']:.2f}; "
        f"token identity alone {scores['r2_token']:.2f}"
    )
    tiles.append(("R² of the stitch", f"{scores['r2']:.2f}", note))
    # The transferred arm is compared with the native one, whose share is 1 by definition.
    for concept, evaluation in result.evaluations.items():
        # Summaries have one row per arm, so the arm can be the index.
        row = evaluation.summary.set_index("arm").loc["transferred"]
        interval = f"95% interval {row['fraction_low']:.2f} to {row['fraction_high']:.2f}"
        note = f"of the native effect at {evaluation.budget:g} nats of damage, {interval}"
        tiles.append((f"{concept}: vector", f"{row['fraction_of_native']:.2f}", note))
    for task, evaluation in result.probes.items():
        row = evaluation.summary.set_index("arm").loc["transferred"]
        interval = f"95% interval {row['share_low']:.2f} to {row['share_high']:.2f}"
        note = f"of the native accuracy above chance, {interval}"
        tiles.append((f"{task}: probe", f"{row['share_of_native']:.2f}", note))
    text = (
        "Steering vectors, probes and a sparse autoencoder learnt in the small model are "
        "transferred to the large one by an affine map fitted on other text. Each is compared with "
        "the large model's own and with controls; vectors are compared at equal damage to neutral "
        "text."
    )
    return Section("Summary", [Paragraph(text), KeyNumbers(tiles)])


def _grid(result: DemoResult) -> Section:
    stitch, grid = result.stitch, result.grid
    text = (
        "Every source layer was mapped to every target layer from one pass over "
        f"{int(stitch.scores['n_tokens']):,} fitting tokens. The figure shows R² on a test fold "
        "that was used in no fit and no choice. The outlined pair was chosen by cross-validation. "
        f"Pairs of tokens: {grid.moments.provenance.alignment}."
    )
    hook_pair = (stitch.source_hook, stitch.target_hook)
    plot = Plot(grid_figure(grid.scores, value="r2", chosen=hook_pair))
    table = Table(grid.scores, caption="All hook pairs")
    return Section("Scores of the hook pairs", [Paragraph(text), plot, table])


def _loss(result: DemoResult) -> Section:
    rows = result.loss.summary.set_index("route")
    # A→B: the small model begins and the large one finishes.
    up = rows.loc["A→B"]
    text = (
        "One model runs to its hook point, the map transfers its states, and the other model "
        f"finishes the pass (A is {result.pair.source.name}, B {result.pair.target.name}). "
        f"A→B loses {up['ce']:.2f} nats per token ({up['ce_low']:.2f} to {up['ce_high']:.2f}), "
        f"B by itself {rows.loc['B', 'ce']:.2f}: {up['recovered']:.0%} of the loss that "
        "mean-ablation adds is recovered. Measured on documents of the test fold."
    )
    caption = "Next-token loss, with 95% intervals over documents."
    plot, table = Plot(result.loss.figure(), caption=caption), Table(result.loss.table, "All arms")
    return Section("Loss of the stitched pass", [Paragraph(text), plot, table])


def _concept(result: DemoResult, concept: str, evaluation: SteeringEvaluation) -> Section:
    # The figures and the table show the same rows; nothing is computed here.
    caption = (
        "Effect at equal damage, with 95% intervals; those of random, shuffled and permuted say "
        "where a new draw falls. Ticks: the vector's negative."
    )
    body: list[Block] = [
        Paragraph(_conclusion(evaluation)),
        Plot(evaluation.figure(), caption=caption),
        Plot(evaluation.figure("damage")),
        Plot(evaluation.figure("curves")),
        Table(evaluation.summary.drop(columns="concept"), caption="Arms at equal damage"),
        Paragraph("Continuations at twice the calibrated scale, with the same seed for every arm:"),
        ContinuationCards(result.continuations[concept]),
    ]
    return Section(_TITLES.get(concept, concept), body)


def _exports(result: DemoResult) -> Section:
    table = exports_table(result)
    passed = [check.passed for check in result.exports.values()]
    files = [
        f"{row['file']} ({row['format']}): max |Δ logits| {row['max_difference']:.1g} against the "
        f"hook at its block, {row['one_block_away']:.2g} one block away; it steers from position "
        f"{row['first_position']} on, for {row['damage']:.3f} nats per token of damage "
        f"(asked for {row['budget']:g})"
        for row in table.to_dict("records")
    ]
    text = (
        f"Exported and checked: {sum(passed)} of {len(passed)} files of the "
        "transferred vector steer as the hook here does. "
        + "; ".join(files)
        + ". The files are run in plain transformers by the rule of their format."
    )
    return Section("Exported and checked", [Paragraph(text), Table(table, caption="All files")])


def _probe(result: DemoResult, task: str) -> Section:
    evaluation = result.probes[task]
    # `fine_tuned` and `scratch` have one row per k; the transferred probe has one.
    rows = evaluation.summary.drop_duplicates("arm").set_index("arm")
    transferred = rows.loc["transferred"]
    text = (
        f"A probe learnt on {result.pair.source.name} and transferred, without labels of "
        f"{result.pair.target.name}, is correct on {transferred['accuracy']:.0%} of "
        f"{evaluation.n_test} texts ({transferred['low']:.0%} to {transferred['high']:.0%}); the "
        f"large model's own probe on {rows.loc['native', 'accuracy']:.0%}, a constant prediction "
        f"of the larger class on {evaluation.chance:.0%}. That is "
        f"{transferred['share_of_native']:.2f} of the native accuracy above chance "
        f"({transferred['share_low']:.2f} to {transferred['share_high']:.2f})."
    )
    table = Table(evaluation.summary, caption="All arms")
    return Section(
        f"Transferred probe: {task}", [Paragraph(text), Plot(evaluation.figure()), table]
    )


def _sae(evaluation: SAEEvaluation) -> Section:
    rows = evaluation.summary.set_index("arm")
    transferred, native = rows.loc["transferred"], rows.loc["native"]
    refitted, random = rows.loc["refitted"], rows.loc["random_refitted"]
    # The maps are folded into the weights: decode(encode(x · down)) · up, with the biases.
    text = (
        "The small model's sparse autoencoder is transferred as weights: up ∘ SAE ∘ down. On the "
        f"large model it leaves {transferred['fvu']:.2f} of the variance unexplained with "
        f"{transferred['l0']:.0f} active features per token (the large model's own SAE: "
        f"{native['fvu']:.2f}), and the loss rises by {transferred['delta_ce']:.2f} nats per token "
        f"if its reconstruction replaces the residual stream (own SAE: {native['delta_ce']:.2f}). "
        "Refitted in closed form to the large model's states, without a gradient step, it leaves "
        f"{refitted['fvu']:.2f} and adds {refitted['delta_ce']:.2f} nats (a random encoder with "
        f"the same refit: {random['fvu']:.2f} and {random['delta_ce']:.2f})."
    )
    table = Table(evaluation.table, caption="All arms")
    return Section(
        "Transferred sparse autoencoder", [Paragraph(text), Plot(evaluation.figure()), table]
    )


def _conclusion(evaluation: SteeringEvaluation) -> str:
    """Return the effects at equal damage in words, and the controls that they exceed."""
    table = evaluation.summary.set_index("arm")
    row = table.loc["transferred"]
    text = (
        f"At {evaluation.budget:g} nats per token of damage the transferred vector changes the "
        f"propensity by {row['effect_at_equal_damage']:.2f} nats "
        f"({row['low']:.2f} to {row['high']:.2f})"
    )
    if "native" in table.index:
        native = table.loc["native"]
        text += (
            f"; the native vector at the same hook point by {native['effect_at_equal_damage']:.2f} "
            f"({native['low']:.2f} to {native['high']:.2f})"
        )
    text += (
        f". Its negative changes it by {row['effect_negated']:.2f} "
        f"({row['negated_low']:.2f} to {row['negated_high']:.2f}). "
        "The intervals contain the items, the neutral texts, the contrast pairs and the map."
    )
    controls = [arm for arm in ("random", "shuffled", "permuted") if arm in table.index]
    ranks = [
        f"{table.loc[arm, 'transferred_p']:.3f} among {table.loc[arm, 'n_draws']:.0f} {arm} draws"
        for arm in controls
    ]
    # The p-value counts the effect itself, so it cannot be 0.
    text += (
        f" In size, whatever its sign, its two-sided p-value is {', '.join(ranks)} (the smallest "
        f"possible: {table.loc[controls[0], 'p_floor']:.3f})."
        if ranks
        else ""
    )
    if evaluation.contrast_score is not None:
        score = evaluation.contrast_score
        text += (
            f" On the contrast texts themselves the stitch has R² {score.r2:.2f} "
            f"(uniform {score.r2_uniform:.2f}) over {score.n_tokens:,} tokens."
        )
    return text
