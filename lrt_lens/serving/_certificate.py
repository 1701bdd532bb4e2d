"""Certificates: whether a program steers as this package does, measured on logits.

Problem: a program that reads an exported file may act one layer away, at other positions, or not at
all, and says nothing (llama-server keeps running when a control vector is bad). Mechanism: prompts
run through the engine with the file, and through the model of this package with our hook at the
block that the file names; the logits must agree. They must not agree with our hook one block before
or after, and the first position that changes must be the one that the format says. Damage on
neutral text is measured in the engine and compared with the budget.

    check = lrt_lens.check_export("mood.gguf", model)                  # by the rule of the format
    check = lrt_lens.check_export("mood.gguf", model, engine=LlamaCpp("model.gguf"))
    check.passed, check.table

The result is added to the record beside the file. A file that was changed since it was exported
does not pass, whatever its logits are, and its record stays as it is.

Limits: an engine that rounds (a quantised model) agrees no better than its unsteered logits do;
the certificate shows both differences. Whole texts are scored: what an engine does while it decodes
new text with a cache is not seen (`make engines-check` decodes).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from lrt_lens._repr_html import card, facts, note, table
from lrt_lens.adapters.vectors._neutral_text import Neutral, NeutralText, Unit
from lrt_lens.adapters.vectors._steering_hook import SteeringHook, adding, setting
from lrt_lens.errors import MismatchError
from lrt_lens.models._hook_points import residual_post
from lrt_lens.models._hooked_model import HookedModel, load_model
from lrt_lens.models._loading import ModelLike
from lrt_lens.models._ownership import entering
from lrt_lens.report._results import plain_json
from lrt_lens.serving._import import import_vectors, read_served, served_format
from lrt_lens.serving.engines._engine import ServingEngine
from lrt_lens.serving.engines._plain_transformers import RuleEngine
from lrt_lens.serving.formats._content import ServedVectors
from lrt_lens.serving.formats._record import EXPORT_SCHEMA, file_hash, read_record, write_record

PROMPTS = (
    "The film was one of those that",
    "Yesterday morning the two of them walked to the market and",
    "Once upon a time there was a small house near the river, where",
    "I would recommend this to anyone who",
    "The results of the experiment show that the second group",
    "She opened the letter, read it twice, and then",
    "In the last few years the price of houses in the city",
    "It rained all night. In the morning the garden was",
    "The main reason why people learn another language is that they",
)
"""Prompts on which logits are compared by default."""
FEWEST_PROMPTS = 8
"""Smallest number of prompts of a certificate."""
TOLERANCE = 1e-3
"""Largest difference of logits beyond that of the unsteered ones, as a share of the largest
logit."""
_EFFECT_SHARE = 0.01
"""Largest such difference as a share of the smallest effect of the vector."""
_HALF_STEPS = 2.0
"""Steps of half precision by which equal interventions differ, written in another order."""
_APART = 10.0
"""Factor by which the difference one block away must exceed that at the block itself."""
_ROUNDING = 1e-6
"""Difference of logits, as a share of the largest, that rounding explains within one engine."""
_DAMAGE_SHARE = 0.1
"""Largest difference of the damage from the budget, as a share of it."""


@dataclass(frozen=True, eq=False)
class ExportCheck:
    """Result of an engine with an exported file, compared with our hook."""

    engine: str
    """Name of the engine."""
    version: str
    """Version of the engine."""
    format: str
    """Name of the format."""
    difference: float
    """Largest difference of logits from our hook at the block of the file, over all positions."""
    difference_before: float
    """Smallest over prompts of the largest difference from our hook one block earlier; NaN if there
    is no such block."""
    difference_after: float
    """Smallest over prompts of the largest difference one block later; NaN if there is none."""
    unsteered: float
    """Largest difference of logits without a vector, which the engine cannot undercut."""
    effect: float
    """Smallest over prompts of the largest change of our logits by the vector."""
    largest_logit: float
    """Largest absolute logit of our model, the scale of the differences."""
    first_position: int
    """First position that the engine steers; -1 if none."""
    expected_position: int
    """First position that our hook changes, by the rule of the format; -1 if none."""
    damage: float
    """Damage in the engine on neutral text, in nats per token; NaN if none was given."""
    damage_of_hook: float
    """Damage under our hook at the same positions, in nats per token; NaN if none was given."""
    budget: float
    """Damage that is expected, in nats per token: the budget, or what was measured if the budget
    was not met; NaN if the scale was not calibrated, or on other texts."""
    n_prompts: int
    """Number of prompts with a token that is steered."""
    n_neutral: int
    """Number of neutral texts on which damage was measured."""
    precision: float
    """Distance from 1 to the next number in the precision of our model."""
    table: pd.DataFrame = field(repr=False)
    """One row per prompt: n_tokens, difference, before, after, unsteered, effect, first_position
    and expected_position."""
    is_as_exported: bool = True
    """True if the file is the one that its record was written for, or has no record."""

    @property
    def allowed(self) -> float:
        """Largest difference of logits from our hook that passes.

        Twice that of the unsteered logits, and on top a thousandth of the largest logit, but at
        most a hundredth of the smallest effect; in half precision what its rounding explains.
        """
        rounding = _HALF_STEPS * self.precision * self.largest_logit
        share = min(TOLERANCE * self.largest_logit, _EFFECT_SHARE * self.effect)
        return 2 * self.unsteered + max(share, rounding if self.precision > 1e-4 else 0.0)

    @property
    def problems(self) -> list[str]:
        """Problems in sentences; empty if the engine steers as our hook does."""
        allowed = self.allowed
        found = []
        if not self.is_as_exported:
            found.append(
                "the file is not what was exported: its content is another one than that of its"
                " record; export again, or remove the record if another program wrote the file"
            )
        if self.n_prompts < FEWEST_PROMPTS:
            found.append(
                f"{self.n_prompts} prompts have a token that is steered; expected at least"
                f" {FEWEST_PROMPTS}: give more or longer prompts"
            )
        if not self.effect > 2 * allowed:
            found.append(
                f"the vector changes our logits by {self.effect:.2g} only, and {allowed:.2g} is"
                " allowed: give a larger scale, or longer prompts"
            )
        if not self.difference <= allowed:
            found.append(
                f"logits differ from our hook by {self.difference:.2g}; expected at most"
                f" {allowed:.2g}"
            )
        for name, apart in (("before", self.difference_before), ("after", self.difference_after)):
            if apart <= _APART * self.difference or apart <= allowed:
                found.append(
                    f"our hook one block {name} differs by {apart:.2g} only, and that at the block"
                    f" by {self.difference:.2g}: the prompts do not tell the blocks apart"
                )
        if self.first_position != self.expected_position:
            found.append(
                f"position {self.first_position} is the first that is steered; expected"
                f" {self.expected_position}"
            )
        expected = self.damage_of_hook if np.isnan(self.budget) else self.budget
        is_measured = self.n_neutral > 0
        if is_measured and not abs(self.damage - expected) <= _DAMAGE_SHARE * abs(expected):
            found.append(
                f"the damage is {self.damage:.3g} nats per token; expected {expected:.3g} within"
                f" {_DAMAGE_SHARE:.0%}"
            )
        return found

    @property
    def passed(self) -> bool:
        """True if the engine steers as our hook does."""
        return not self.problems

    def __repr__(self) -> str:
        verdict = "steers as our hook" if self.passed else "; ".join(self.problems)
        return (
            f"ExportCheck({self.format} by {self.engine} {self.version}: {verdict};"
            f" max |Δ logits| {self.difference:.2g},"
            f" {np.nanmin([self.difference_before, self.difference_after]):.2g} one block away"
            f"{self._cost})"
        )

    @property
    def _cost(self) -> str:
        """Damage and budget in words; empty if the damage was not measured."""
        if not self.n_neutral:
            return ""
        expected = "" if np.isnan(self.budget) else f", budget {self.budget:.3g}"
        return (
            f"; damage {self.damage:.3g} nats per token on {self.n_neutral} neutral texts"
            f" ({self.damage_of_hook:.3g} under our hook{expected})"
        )

    def _repr_html_(self) -> str:
        about = {
            "engine": f"{self.engine} {self.version}",
            "format": self.format,
            "max |Δ logits| at the block": self.difference,
            "one block before, after": f"{self.difference_before:.3g}, {self.difference_after:.3g}",
            "without a vector": self.unsteered,
            "first steered position": self.first_position,
            "damage (nats per token)": None if np.isnan(self.damage) else self.damage,
            "budget (nats per token)": None if np.isnan(self.budget) else self.budget,
            "verdict": "steers as our hook" if self.passed else "differs",
        }
        return card("ExportCheck", facts(about), note("; ".join(self.problems)), table(self.table))

    def record(self) -> dict[str, Any]:
        """Return all numbers as values of JSON, for the record beside the file."""
        values = {key: value for key, value in vars(self).items() if key != "table"}
        return plain_json(values) | {"passed": self.passed}


def check_export(
    path: str | Path,
    model: ModelLike,
    *,
    engine: ServingEngine | None = None,
    prompts: Sequence[str] | None = None,
    neutral: Neutral | None = None,
) -> ExportCheck:
    """Return whether an engine steers with an exported file as our hook does.

    The result is added to the record beside the file, where it replaces an earlier one of the same
    engine. A file that is not what was exported does not pass, and its record is not changed.

    Args:
        path: the exported file or folder, or one of another program.
        model: the model of the vector.
        engine: the program that runs the file, such as `LlamaCpp`; by default plain transformers
            with the rule of the format (for ``"transformers"``: the exported script itself).
        prompts: texts on which logits are compared, at least one; by default nine sentences.
        neutral: neutral texts on which the damage is measured in the engine; those of the
            calibration, if it is compared with a budget.

    Raises:
        FileFormatError: the file cannot be read, is no exported file, or the engine refuses it.
        MismatchError: the vector belongs to another model, or the engine runs another one.
    """
    path, hooked = Path(path), load_model(model)
    name = served_format(path)
    served = read_served(path, name)
    # repeng reads the files of llama.cpp; the record says for which of them it was written.
    name = name if served.is_changed else str(read_record(path).get("format", name))
    vectors = import_vectors(path, model=hooked)
    if isinstance(prompts, str) or (prompts is not None and not len(prompts)):
        raise ValueError(f"prompts is {prompts!r}; expected a list of texts, of at least one")
    runner = engine if engine is not None else RuleEngine(hooked)
    rows = hooked.encode(list(PROMPTS if prompts is None else prompts))
    ours = _Hooks(hooked, served, served.skip_first)
    logits = _Logits.measure(runner, path, ours, rows)
    strength = vectors[0].strength
    texts = None if neutral is None else ours.texts(neutral)
    damages, budget = (float("nan"), float("nan")), float("nan")
    if texts is not None:
        unit: Unit = "loss" if strength is None else strength.unit
        damages = _damages(runner, path, ours, texts, unit)
        # A damage holds for its positions and its texts.
        if strength is not None and strength.texts == texts.digest:
            budget = strength.budget if strength.meets_budget else strength.damage
    check = ExportCheck(
        engine=runner.name,
        version=runner.version,
        format=name,
        damage=damages[0],
        damage_of_hook=damages[1],
        budget=budget,
        n_neutral=0 if texts is None else len(texts.n_tokens),
        precision=torch.finfo(ours.precision).eps,
        is_as_exported=not served.is_changed,
        **logits.summary(),
    )
    if check.is_as_exported:
        _add_to_record(path, name, check)
    return check


class _Hooks:
    """The model of this package under our hook, at the block of a file or near it."""

    def __init__(self, model: HookedModel, served: ServedVectors, skip_first: int) -> None:
        self.model, self.served, self.skip_first = model, served, skip_first

    @property
    def precision(self) -> torch.dtype:
        """Precision in which the model runs."""
        return next(self.model.engine.model.parameters()).dtype

    def texts(self, neutral: Neutral) -> NeutralText:
        """Return neutral texts, prepared at the first block of the file."""
        hook = residual_post(min(self.served.layers))
        return NeutralText(self.model, neutral, hook, skip_first=self.skip_first)

    def logits(self, rows: Sequence[Sequence[int]], shift: int | None) -> list[np.ndarray] | None:
        """Return logits by row under the hook, ``shift`` blocks from where the file acts.

        None for ``shift`` runs without a hook; the result is None if there is no such block.
        """
        hooks = {} if shift is None else self.hooks(shift)
        if hooks is None:
            return None
        found = []
        for row in rows:
            with entering(alone=True), self.model.intervene({**hooks}):
                found.append(self.model.engine.logits(torch.tensor([list(row)]))[0])
        return [one.detach().float().cpu().numpy() for one in found]

    def hooks(self, shift: int = 0) -> dict[str, SteeringHook] | None:
        """Return our hooks by hook point; None if there is no such block."""
        blocks = [block + shift for block in self.served.layers]
        if min(blocks) < 0 or max(blocks) >= self.model.n_layers:
            return None
        return {
            residual_post(block): SteeringHook(self._change(rows), "all", self.skip_first)
            for block, rows in zip(blocks, self.served.layers.values(), strict=True)
        }

    def _change(self, rows: torch.Tensor) -> Any:
        served = self.served
        if served.mode == "add":
            return adding(rows[0].float() * served.scale)
        changes = [setting(row.float(), served.level or 0.0, served.scale) for row in rows]

        def change(activation: torch.Tensor) -> torch.Tensor:
            # Orthonormal directions are projected out one after the other.
            for one in changes:
                activation = one(activation)
            return activation

        return change


@dataclass(frozen=True)
class _Logits:
    """Differences of logits by prompt."""

    rows: list[dict[str, Any]]
    """Differences of each prompt, by their names in the table of an `ExportCheck`."""
    largest: float
    """Largest absolute logit of our model."""

    @classmethod
    def measure(
        cls, engine: ServingEngine, path: Path, ours: _Hooks, rows: list[list[int]]
    ) -> "_Logits":
        """Return the differences between an engine and our hook.

        Raises:
            MismatchError: the engine has another vocabulary than our model.
        """
        plain, steered = engine.logits(rows, None), engine.logits(rows, path)
        own = ours.logits(rows, None) or []
        at, before, after = (ours.logits(rows, shift) for shift in (0, -1, 1))
        _refuse_other_shapes(engine, plain, own)
        _refuse_other_shapes(engine, steered, own)
        largest = max(float(np.abs(one).max()) for one in own)
        found = []
        for i, row in enumerate(rows):
            noise = _distance(plain[i], own[i])
            found.append(
                {
                    "n_tokens": len(row),
                    "difference": _distance(steered[i], at[i]) if at else np.nan,
                    "before": _distance(steered[i], before[i]) if before else np.nan,
                    "after": _distance(steered[i], after[i]) if after else np.nan,
                    "unsteered": noise,
                    "effect": _distance(at[i], own[i]) if at else np.nan,
                    "first_position": _first_changed(steered[i], plain[i], largest),
                    "expected_position": _first_changed(at[i], own[i], largest) if at else -1,
                }
            )
        return cls(found, largest)

    def summary(self) -> dict[str, Any]:
        """Return the fields of an `ExportCheck` that come from logits."""
        columns = {key: np.array([row[key] for row in self.rows]) for key in self.rows[0]}
        # A prompt that ends before the first steered position says nothing.
        told = {key: values[columns["expected_position"] >= 0] for key, values in columns.items()}
        if not len(told["effect"]):
            told = columns
        return {
            "difference": float(columns["difference"].max()),
            "difference_before": float(told["before"].min()),
            "difference_after": float(told["after"].min()),
            "unsteered": float(columns["unsteered"].max()),
            "effect": float(told["effect"].min()),
            "n_prompts": int((columns["expected_position"] >= 0).sum()),
            "largest_logit": self.largest,
            "first_position": _first(columns["first_position"]),
            "expected_position": _first(columns["expected_position"]),
            "table": pd.DataFrame(columns),
        }


def _refuse_other_shapes(
    engine: ServingEngine, theirs: Sequence[np.ndarray], own: Sequence[np.ndarray]
) -> None:
    """Raise `MismatchError` unless an engine gives logits for every token of every row."""
    shapes = [[tuple(one.shape) for one in logits] for logits in (theirs, own)]
    if shapes[0] != shapes[1]:
        first = next((pair for pair in zip(*shapes, strict=False) if pair[0] != pair[1]), shapes)
        raise MismatchError(
            f"{engine.name} gives logits for {len(theirs)} rows, of shape {first[0]}; expected"
            f" {len(own)} rows, and {first[1]}: give an engine that runs this model and returns"
            " logits [position, vocabulary] for each row"
        )


def _first_changed(one: np.ndarray, other: np.ndarray, largest: float) -> int:
    """Return the first position at which logits differ by more than rounding; -1 if none."""
    changed = np.abs(one - other).max(1) > _ROUNDING * largest
    return int(changed.argmax()) if changed.any() else -1


def _first(positions: np.ndarray) -> int:
    """Return the first position of any prompt; a prompt without one says nothing."""
    found = positions[positions >= 0]
    return int(found.min()) if len(found) else -1


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).max())


def _damages(
    engine: ServingEngine, path: Path, ours: _Hooks, texts: NeutralText, unit: Unit
) -> tuple[float, float]:
    """Return the damage in an engine and under our hook, in nats per token."""
    first, *later = sorted((ours.hooks() or {}).items())
    rows, starts = texts.counted_rows()
    plain, steered = engine.logits(rows, None), engine.logits(rows, path)
    if unit == "loss":
        total = _loss(steered, rows, starts) - _loss(plain, rows, starts)
    else:
        total = sum(
            _divergence(one[start:-1], other[start:-1])
            for one, other, start in zip(plain, steered, starts, strict=True)
        )
    return total / float(texts.n_tokens.sum()), texts.cost(unit, first[1], dict(later))


def _divergence(plain: np.ndarray, steered: np.ndarray) -> float:
    """Return KL(plain ‖ steered) in nats, summed over positions."""
    log_p, log_q = (torch.from_numpy(one).double().log_softmax(-1) for one in (plain, steered))
    return float((log_p.exp() * (log_p - log_q)).sum())


def _loss(
    logits: Sequence[np.ndarray], rows: Sequence[Sequence[int]], starts: Sequence[int]
) -> float:
    """Return the loss in nats, summed over the predictions of each row from its start on."""
    total = 0.0
    for scores, row, start in zip(logits, rows, starts, strict=True):
        log_p = torch.from_numpy(scores[start:-1]).double().log_softmax(-1)
        predicted = torch.tensor(list(row[start + 1 :]))[:, None]
        total -= float(log_p.gather(1, predicted).sum())
    return total


def _add_to_record(path: Path, name: str, check: ExportCheck) -> None:
    """Add a check to the record beside the file; a file of another program gets one."""
    # `check_export` adds nothing to the record of another content.
    record = read_record(path) or {"schema_version": EXPORT_SCHEMA, "format": name, "checks": []}
    if path.is_file():
        record["sha256"] = file_hash(path)
    others = [
        one
        for one in record.get("checks", [])
        if (one.get("engine"), one.get("version")) != (check.engine, check.version)
    ]
    record["checks"] = [*others, check.record()]
    write_record(path, record)
