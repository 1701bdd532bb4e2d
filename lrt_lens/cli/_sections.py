"""Sections of reports, from the tables of ``results.json``.

    sections_of(content)                            # one section per group of tables that is there
    run_page("Transfer", content, "small to large")     # one page as HTML

Problem: a command writes a page of its run, and `lrt-lens report` writes one page of several runs,
from files alone. Mechanism: both make the same sections from the same tables, as they stand in
``results.json``.

Limits: figures need the columns that this version writes; tables of other versions are shown
without a figure.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from lrt_lens.report._html import Block, Section

logger = logging.getLogger(__name__)

Content = Mapping[str, Any]
"""Content of a ``results.json``."""


def run_page(title: str, content: Content) -> str:
    """Return the report of one run as a self-contained HTML text.

    Args:
        title: title of the page.
        content: tables of its ``results.json``.
    """
    from lrt_lens.moments._provenance import package_versions
    from lrt_lens.report import render_html

    pair = content.get("pair") or {}
    subtitle = " to ".join(pair[role] for role in ("source", "target") if pair.get(role))
    versions = ", ".join(f"{name} {version}" for name, version in package_versions().items())
    return render_html(title, list(sections_of(content)), subtitle=subtitle, footer=versions)


def sections_of(content: Content, prefix: str = "") -> "Iterator[Section]":
    """Yield a section for each group of tables that is in a result; all others as tables.

    Args:
        content: content of a ``results.json``.
        prefix: start of every title, such as the name of the run.
    """
    from lrt_lens.report._html import Section

    shown = set(_ABOUT)
    for title, names, blocks in _SECTIONS:
        present = [name for name in names if content.get(name)]
        if present:
            shown |= set(names)
            yield Section(f"{prefix}{title}", list(_blocks(content, present, blocks)))
    others = [name for name in content if name not in shown and _is_table(content[name])]
    for name in others:
        yield Section(f"{prefix}{name}", list(_tables(content, [name])))


def frame_of(rows: list[dict[str, Any]]) -> "pd.DataFrame":
    """Return rows of JSON as a table; null is NaN in columns of numbers, and where all is null."""
    import pandas as pd

    frame = pd.DataFrame(rows)
    for name in frame.columns:
        if all(row.get(name) is None for row in rows):
            frame[name] = math.nan
    return frame


def _in_words(value: Any) -> Any:
    """Return a value of a table of facts: whole numbers without decimals, lists as text."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _blocks(
    content: Content, names: list[str], plots: "Callable[[Content], Iterator[Block]]"
) -> "Iterator[Block]":
    """Yield the figures of a section, if they can be drawn, and then its tables."""
    try:
        yield from list(plots(content))
    # Tables of another version may lack a column, which is no reason to show nothing.
    except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        logger.warning("no figure of %s: %s (%s)", names[0], error, type(error).__name__)
    yield from _tables(content, names)


def _tables(content: Content, names: list[str]) -> "Iterator[Block]":
    import pandas as pd

    from lrt_lens.report._html import Table

    for name in names:
        value = content[name]
        if isinstance(value, dict):
            known = {key: item for key, item in value.items() if item not in (None, "")}
            frame = pd.DataFrame(
                {"": list(known), "value": [_in_words(one) for one in known.values()]}
            )
            yield Table(frame, caption=_CAPTIONS.get(name, name), open_rows=40)
        elif _is_table(value):
            yield Table(frame_of(value), caption=_CAPTIONS.get(name, name))


# ------------------------------------------------------------------------------------------ figures


def _grid(content: Content) -> "Iterator[Block]":
    from lrt_lens.figures._steering import grid_figure
    from lrt_lens.report._html import Plot

    stitch = content.get("stitch") or {}
    hooks = None if not stitch else (str(stitch["source_hook"]), str(stitch["target_hook"]))
    scores = frame_of(content["grid"])
    value = "gain_cv" if "gain_cv" in scores else "r2"
    yield Plot(grid_figure(scores, value=value, chosen=hooks))


def _calibration(content: Content) -> "Iterator[Block]":
    from lrt_lens.figures._steering import calibration_figure
    from lrt_lens.figures._template import with_counts
    from lrt_lens.report._html import Paragraph, Plot

    found = content["calibration"]
    if found.get("flag"):
        yield Paragraph(str(found["flag"]))
    curve = frame_of(content["calibration_curve"])
    chosen, flag = found.get("scale"), found.get("flag") or ""
    figure = calibration_figure(curve, budget=found["budget"], chosen=chosen, flag=flag)
    yield Plot(with_counts(figure, {"neutral texts": found.get("n_texts")}))


def _steering(content: Content) -> "Iterator[Block]":
    from lrt_lens.figures._steering import (
        effect_damage_figure,
        steering_counts,
        steering_figure,
        summary_figure,
    )
    from lrt_lens.figures._template import rows_where, with_counts
    from lrt_lens.report._html import Paragraph, Plot

    table, summary = frame_of(content["steering"]), frame_of(content["steering_summary"])
    budget = float(content["arguments"]["damage"])
    yield Paragraph(_STEERING)
    for concept in dict.fromkeys(map(str, summary["concept"])):
        yield Plot(summary_figure(summary, concept=concept))
        counts = steering_counts(rows_where(summary, "concept", concept))
        for figure in (
            effect_damage_figure(table, concept=concept, budget=budget),
            steering_figure(table, concept=concept),
        ):
            yield Plot(with_counts(figure, counts))


def _probes(content: Content) -> "Iterator[Block]":
    from lrt_lens.figures import probe_figure
    from lrt_lens.figures._template import with_counts
    from lrt_lens.report._html import Paragraph, Plot

    yield Paragraph(_PROBES)
    if "chance" in content:
        figure = probe_figure(frame_of(content["probes"]), chance=float(content["chance"]))
        yield Plot(with_counts(figure, {"test texts": content.get("n_test")}))


def _sae(content: Content) -> "Iterator[Block]":
    from lrt_lens.figures import sae_figure
    from lrt_lens.report._html import Paragraph, Plot

    yield Paragraph(_SAE)
    yield Plot(sae_figure(frame_of(content["sae"])))


def _loss(content: Content) -> "Iterator[Block]":
    from lrt_lens.figures import stitch_loss_figure
    from lrt_lens.report._html import Paragraph, Plot

    yield Paragraph(_LOSS)
    yield Plot(stitch_loss_figure(frame_of(content["stitched_loss_arms"])))


def _update(content: Content) -> "Iterator[Block]":
    from lrt_lens.figures._update import update_figure
    from lrt_lens.report._html import Paragraph, Plot

    yield Paragraph(_UPDATE)
    if content.get("update"):
        tables = frame_of(content["update_summary"]), frame_of(content["update"])
        yield Plot(update_figure(*tables, n_tokens=content.get("n_tokens")))


def _diff(content: Content) -> "Iterator[Block]":
    from lrt_lens.figures._model_diff import diff_figure
    from lrt_lens.figures._template import with_counts
    from lrt_lens.report._html import Paragraph, Plot

    yield Paragraph(_DIFF)
    figure = diff_figure(frame_of(content["diff"]))
    yield Plot(with_counts(figure, {"tokens": content.get("n_tokens")}))


def _nothing(content: Content) -> "Iterator[Block]":
    del content
    yield from ()


_STEERING = (
    "Effects on the preference between two continuations, in nats, at equal damage to neutral "
    "text. native: learnt on the target; random, shuffled and permuted: controls, whose intervals "
    "say where a new draw falls."
)
_PROBES = (
    "Accuracy on the same test texts. native: fitted on the target; random, permuted and shuffled: "
    "controls; fine_tuned and scratch: fitted on k labels of the target."
)
_SAE = (
    "Reconstruction and sparsity of each SAE, and the loss of the model that goes on from the "
    "reconstruction. shuffled and random: controls, through maps of shuffled pairs and random maps."
)
_LOSS = (
    "Next-token loss of a pass that one model (A, the source; B, the target) begins and the other "
    "finishes. own: the finishing model untouched; mean, zero, shuffled and token: controls."
)
_UPDATE = (
    "Artefacts of the old revision in the new one. frozen: as they are; mean_shift, procrustes and "
    "repaired: through a shift, a rotation and a fitted map, without labels; distilled: repaired, "
    "then corrected on texts without labels; relearnt: learnt again; shuffled: through a map of "
    "shuffled pairs. kept and rho: predicted from moments alone."
)
_DIFF = (
    "Variance per token along each direction, with 95% intervals over documents. gained: of what a "
    "linear map of the source leaves of the target; lost: the other way round; difference and "
    "shift: of the target minus the source; shared: squared canonical correlations. noise: the "
    "level that 5% of noises exceed."
)
_ABOUT = (
    "schema_version",
    "versions",
    "arguments",
    "command",
    "pair",
    "chance",
    "n_test",
    "n_tokens",
    "seconds",
)
"""Keys that are no tables."""
_CAPTIONS = {
    "artefact": "What was written",
    "artefacts": "What was written",
    "grid": "All hook pairs",
    "stitch": "The best hook pair",
    "calibration": "Calibrated strength",
    "calibration_curve": "Scales that were tried",
    "steering_summary": "Arms at equal damage",
    "steering": "All scales",
    "probes_summary": "All arms",
    "probes": "All arms, with every column",
    "sae": "All arms",
    "stitched_loss": "Untouched models and routes",
    "stitched_loss_arms": "All arms",
    "diff": "All directions",
    "hooks": "Hook points",
    "update_summary": "Verdict of each artefact",
    "update": "All arms",
    "runs": "Runs on this page",
}
"""Captions of tables by their names."""
_SECTIONS: tuple[tuple[str, tuple[str, ...], Any], ...] = (
    ("Runs", ("runs",), _nothing),
    ("What was written", ("artefact", "artefacts"), _nothing),
    ("Scores of the hook pairs", ("stitch", "grid"), _grid),
    ("Loss of the stitched pass", ("stitched_loss", "stitched_loss_arms"), _loss),
    ("Strength", ("calibration", "calibration_curve"), _calibration),
    ("Steering at equal damage", ("steering_summary", "steering"), _steering),
    ("Probes", ("probes_summary", "probes"), _probes),
    ("SAE", ("sae",), _sae),
    ("What two models do not share", ("hooks", "diff"), _diff),
    ("After the update", ("update_summary", "update"), _update),
)
"""Titles of sections, with the tables that they show and the function that draws their figures."""
