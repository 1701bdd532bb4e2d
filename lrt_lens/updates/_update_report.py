"""Result of `update`: a verdict per artefact, the numbers behind it, the repaired artefacts."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from lrt_lens._repr_html import card, facts, note, table
from lrt_lens._short_repr import ShortRepr
from lrt_lens.adapters.probes._linear_probe import LinearProbe
from lrt_lens.adapters.vectors._steering_vector import SteeringVector
from lrt_lens.figures._update import update_figure
from lrt_lens.models._pair import ModelPair
from lrt_lens.report._html import (
    Block,
    KeyNumbers,
    Paragraph,
    Plot,
    Section,
    Table,
    render_html,
    write_html,
)
from lrt_lens.stitching._stitch import Stitch
from lrt_lens.updates._revisions import Revisions
from lrt_lens.updates._update_settings import UpdateSettings
from lrt_lens.updates._verdicts import ArtefactUpdate

_SUMMARISED = ("old", "frozen", "repaired", "distilled", "relearnt")
"""Arms whose value is a column of the summary."""
_PREDICTIONS = ["kept", "kept_texts", "moved", "rho"]
"""Columns of the summary that are known before any label."""
_WORDS = {
    "keep": "Use it as it is.",
    "repair": "Use the repaired one, in report.repaired; no label was needed.",
    "relearn": "Learn it again on the new revision.",
}


@dataclass(frozen=True, eq=False, repr=False)
class UpdateReport(ShortRepr):
    """Verdicts on artefacts of an old revision of a model in its new one."""

    summary: pd.DataFrame
    """One row per artefact.

    - ``artefact``, ``kind``, ``hook``; ``verdict`` (keep, repair or relearn) and ``reason``;
    - ``measure`` (``auroc``, ``effect``, ``fvu``), and its value ``old``, ``frozen``, ``repaired``,
      ``distilled`` and ``relearnt``;
    - ``loss`` of the frozen artefact with its 95% interval ``loss_low`` to ``loss_high``, and the
      share of it that the repaired, distilled and shuffled ones recover, ``recovered``,
      ``recovered_distilled`` and ``recovered_shuffled`` (NaN without a loss);
    - before any label: ``predicted`` (the verdict from moments), ``kept`` (correlation of what the
      frozen artefact reads in both revisions), ``kept_texts`` (that of its scores on unlabelled
      texts of its kind, where some were read; probes only), ``moved`` (share of its variance
      that moved), and ``rho`` (fidelity of the repaired one).
    """
    table: pd.DataFrame
    """One row per artefact, arm and measure: artefact, kind, hook, arm, measure, n_draws, value,
    low, high; for probes of two classes also ``recall_at_…`` and ``false_positives_at_…``."""
    repaired: dict[str, Any] = field(repr=False)
    """Repaired artefact by name; it belongs to the new revision."""
    stitches: dict[str, Stitch] = field(repr=False)
    """Fitted stitch from the old to the new revision, by hook point."""
    names: tuple[str, str] = ("old", "new")
    """Names of both revisions."""
    n_tokens: int = 0
    """Number of tokens on which the maps were fitted."""

    @classmethod
    def of(
        cls,
        found: dict[str, ArtefactUpdate],
        pair: ModelPair,
        revisions: Revisions,
        settings: UpdateSettings,
    ) -> "UpdateReport":
        """Return the report of measured artefacts by name."""
        rows, summary = [], []
        for name, one in found.items():
            about = {"artefact": name, "kind": one.kind, "hook": one.hook}
            rows += [about | row for row in one.rows]
            verdict, reason = one.verdict(settings)
            values = {row["arm"]: row["value"] for row in one.rows if row["measure"] == one.measure}
            arms = {arm: values.get(arm, float("nan")) for arm in _SUMMARISED}
            summary.append(
                about
                | {"verdict": verdict, "reason": reason, "measure": one.measure, "n": one.n}
                | arms
                | {
                    "loss": one.loss.value,
                    "loss_low": one.loss.low,
                    "loss_high": one.loss.high,
                    "recovered": one.recovered("repaired"),
                    "recovered_distilled": one.recovered("distilled"),
                    "recovered_shuffled": one.recovered("shuffled"),
                    "predicted": one.predicted_verdict(),
                    "kept": one.prediction.kept,
                    "kept_texts": one.kept_texts,
                    "moved": one.prediction.moved,
                    "rho": one.prediction.rho,
                }
            )
        return cls(
            pd.DataFrame(summary),
            pd.DataFrame(rows),
            {name: one.repaired for name, one in found.items()},
            {hook: stitches["repaired"] for hook, stitches in revisions.stitches.items()},
            (pair.source.name, pair.target.name),
            revisions.moments.n_fit,
        )

    def figure(self) -> Any:
        """Return the number of every arm per artefact (plotly).

        Raises:
            ValueError: no artefact was measured, only predicted.
        """
        if self.table.empty:
            raise ValueError(
                "no artefact was measured, only predicted; give update() labelled texts for "
                "probes, items and neutral texts for vectors, or sae_documents for SAEs"
            )
        return update_figure(self.summary, self.table, n_tokens=self.n_tokens)

    @property
    def html(self) -> str:
        """Self-contained page with the verdicts, the arms and the predictions."""
        verdicts = self.summary["verdict"].to_list()
        tiles: list[tuple[str, str | int | float, str]] = [
            (word, verdicts.count(word), meaning) for word, meaning in _WORDS.items()
        ]
        shown = ["artefact", "kind", "hook", "verdict", "reason"]
        blocks: list[Block] = [KeyNumbers(tiles), Table(pd.DataFrame(self.summary[shown]))]
        sections = [
            Section("Verdicts", blocks),
            Section(
                "Before any label",
                [
                    Paragraph(
                        "kept: correlation of what the frozen artefact reads in both revisions, on "
                        "held-out text; kept_texts: that of its scores on texts of its kind, "
                        "without labels; moved: share of its variance that moved; rho: predicted "
                        "correlation of the repaired one."
                    ),
                    Table(
                        pd.DataFrame(self.summary[["artefact", "hook", "predicted", *_PREDICTIONS]])
                    ),
                ],
            ),
        ]
        if len(self.table):
            measured: list[Block] = [Plot(self.figure()), Table(self.table, caption="All arms")]
            sections.insert(1, Section("Measured", measured))
        old, new = self.names
        return render_html("After the update", sections, subtitle=f"{old} → {new}")

    def save_repaired(self, folder: str | Path) -> dict[str, Path]:
        """Write every repaired artefact into a folder and return its path by name.

        Probes and vectors are one safetensors file each, SAEs a folder of SAELens.
        """
        folder, written = Path(folder), dict[str, Path]()
        folder.mkdir(parents=True, exist_ok=True)
        for name, artefact in self.repaired.items():
            place = folder / re.sub(r"[^\w.-]+", "-", name)
            if isinstance(artefact, LinearProbe | SteeringVector):
                written[name] = artefact.save(place.with_name(f"{place.name}.safetensors"))
            else:
                artefact.save_model(str(place))
                written[name] = place
        return written

    def save(self, path: str | Path) -> Path:
        """Write the page to a file that loads nothing from the network, and return its path."""
        return write_html(path, self.html)

    def _repr_html_(self) -> str:
        old, new = self.names
        shown = ["artefact", "hook", "verdict", "reason"]
        return card(
            "UpdateReport",
            facts({"revisions": f"{old} → {new}", "fitting tokens": self.n_tokens}),
            table(pd.DataFrame(self.summary[shown])),
            note("keep: use it as it is; repair: use report.repaired; relearn: learn it again."),
        )
