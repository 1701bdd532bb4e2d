"""The HTML report of ``lrt-lens survey``: scores of all hook pairs, with intervals and null."""

from lrt_lens.report._html import KeyNumbers, Paragraph, Plot, Section, Table, render_html
from lrt_lens.stitching._fit_report import not_worse_tile
from lrt_lens.stitching._survey import Survey


def survey_report(source: str, target: str, survey: Survey) -> str:
    """Return the report of a survey as one self-contained HTML text.

    Args:
        source: name of the source model.
        target: name of the target model.
        survey: scores of all hook pairs.
    """
    best = survey.best()[0]
    rows = survey.scores
    row = rows[(rows["source_hook"] == best[0]) & (rows["target_hook"] == best[1])].iloc[0]
    tiles: list[tuple[str, str | int | float, str]] = [
        (
            "best pair, gain over token identity",
            f"{row['gain_cv']:.3f}",
            f"{best[0]} to {best[1]}, 95%: {row['gain_low']:.3f} to {row['gain_high']:.3f}",
        ),
        ("its R², cross-validated", f"{row['r2_cv']:.3f}", "explained share of the variance"),
        ("shuffled pairs", f"{row['r2_null']:.3f}", "the same fit on shuffled pairs, the control"),
        not_worse_tile(survey.choices(), "survey.choices()"),
    ]
    moments = survey.moments
    body = [
        KeyNumbers(tiles),
        Paragraph(
            f"{moments.n_tokens:,} tokens, {moments.sketch.columns} random columns per hook point. "
            f"Pairing of rows: {moments.provenance.alignment}."
        ),
        Plot(survey.figure(chosen=best)),
        Table(rows, caption="All pairs"),
    ]
    return render_html(
        "Survey of every layer pair",
        [Section("Scores by cross-validation", body)],
        subtitle=f"{source} to {target}",
    )
