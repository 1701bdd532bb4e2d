"""Continuations of the same prompts, without steering and under each of several vectors.

    compared = compare_continuations(
        pair.target,
        ["This film was"],
        {"native": native, "transferred": transferred},
        neutral=lrt.demo_neutral(),
    )
    compared            # in a notebook: one row per prompt, one column per arm
    compared.table      # prompt, arm, scale, damage, text

Problem: vectors of different lengths and directions can only be compared by reading if they disturb
the model equally. Mechanism: unless the caller sets scales, each vector gets the scale that raises
the loss on neutral text by ``damage`` nats per token (`calibrate_scale`). All arms sample their
tokens with the same seed.

Limits: a few samples show the kind of a change, not its size; `lrt_lens.evaluate_steering` measures
the size.
"""

import logging
import math
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from html import escape
from typing import Any, Literal

import pandas as pd

from lrt_lens._repr_html import card, note
from lrt_lens._settings import Settings, resolve, takes
from lrt_lens.adapters.vectors._calibration import calibrate_scale
from lrt_lens.adapters.vectors._continuations import prompt_list
from lrt_lens.adapters.vectors._neutral_text import Neutral
from lrt_lens.adapters.vectors._steering_vector import SteeringVector
from lrt_lens.models._hooked_model import HookedModel, load_model
from lrt_lens.models._loading import ModelLike
from lrt_lens.models._ownership import entering

logger = logging.getLogger(__name__)

UNSTEERED = "none"
"""Name of the arm without steering."""
# Notebook themes style tables; every property that would make text unreadable is set here.
_CELL = (
    "padding:.3em .7em;vertical-align:top;text-align:left;white-space:normal;min-width:9em;"
    "background:transparent;color:inherit;border:0"
)
_PLAIN_ROW = '<tr style="background:transparent">'


@dataclass(frozen=True)
class ComparedContinuationsSettings(Settings):
    """Settings of `compare_continuations`: strengths of the vectors, and sampling."""

    scales: Literal["auto"] | float | Mapping[str, float] = "auto"
    """Multiples of the vectors, one for all or one per arm; ``"auto"`` brings all arms to one
    damage."""
    damage: float = 0.4
    """Damage in nats per token on the neutral texts, for ``scales="auto"``.

    Larger than the damage at which evaluations compare arms, so that a few samples show the
    change.
    """
    max_new_tokens: int = 24
    """Number of tokens per continuation."""
    temperature: float = 0.8
    """Temperature of sampling."""
    top_k: int | None = 40
    """Number of most probable tokens to sample from; None for all."""
    seed: int = 0
    """Seed of sampling, the same for all arms."""


@dataclass(frozen=True)
class ComparedContinuations:
    """Continuations of each prompt under each arm."""

    table: pd.DataFrame
    """One row per prompt and arm: prompt, arm (``none`` first), scale, damage (nats per token on
    the neutral texts; NaN if the caller set the scales), text (the continuation)."""

    @property
    def summary(self) -> pd.DataFrame:
        """Continuations with one row per prompt and one column per arm."""
        arms = {str(arm): rows for arm, rows in self.table.groupby("arm", sort=False)}
        prompts = pd.Index(arms[UNSTEERED]["prompt"].tolist(), name="prompt")
        return pd.DataFrame(
            {arm: rows["text"].tolist() for arm, rows in arms.items()}, index=prompts
        )

    def __repr__(self) -> str:
        return "\n".join(
            f"[{row['arm']}] {row['prompt']}{row['text']}" for row in self.table.to_dict("records")
        )

    def _repr_html_(self) -> str:
        summary = self.summary
        heads = "".join(_head("col", arm) for arm in summary.columns)
        rows = "".join(
            f"{_PLAIN_ROW}{_head('row', prompt)}"
            + "".join(f'<td style="{_CELL}">…{escape(str(text))}</td>' for text in texts)
            + "</tr>"
            for prompt, texts in zip(summary.index, summary.to_numpy().tolist(), strict=True)
        )
        body = (
            f'<thead>{_PLAIN_ROW}<th style="{_CELL}"></th>{heads}</tr></thead><tbody>{rows}</tbody>'
        )
        style = "border-collapse:collapse;background:transparent;color:inherit"
        return card(
            "Continuations side by side",
            f'<div style="overflow-x:auto"><table style="{style}">{body}</table></div>',
            note(self._strengths()),
        )

    def _strengths(self) -> str:
        """Return a sentence with the scale and the damage of each arm."""
        arms = {row["arm"]: row for row in self.table.to_dict("records")}
        return "; ".join(
            f"{arm}: scale {row['scale']:.3g}{_damage(row['damage'])}"
            for arm, row in arms.items()
            if arm != UNSTEERED
        )


# Prompts and arms come from the user and texts from a model, so all are escaped.
def _head(scope: str, text: Any) -> str:
    return f'<th scope="{scope}" style="{_CELL};font-weight:600">{escape(str(text))}</th>'


def _damage(damage: float) -> str:
    return "" if math.isnan(damage) else f", damage {damage:.2g} nats per token"


@takes(ComparedContinuationsSettings)
def compare_continuations(
    model: ModelLike,
    prompts: Iterable[str],
    vectors: Mapping[str, SteeringVector],
    *,
    neutral: Neutral | None = None,
    settings: ComparedContinuationsSettings | None = None,
    **options: Any,
) -> ComparedContinuations:
    """Return the continuations of each prompt without steering and under each vector.

    Args:
        model: the model that all vectors belong to.
        prompts: texts to continue.
        vectors: vectors by the name of their arm, such as ``{"native": …, "transferred": …}``; the
            arm ``none`` is added.
        neutral: texts on which damage is measured, for ``scales="auto"``.
        settings: all settings; see `ComparedContinuationsSettings`.
        options: fields of `ComparedContinuationsSettings` as keywords.

    Raises:
        TypeError: prompts are a table, a dict or a set.
        ValueError: no prompt, an arm called ``none``, no neutral text for ``scales="auto"``, or no
            scale for an arm.
        MismatchError: a vector of another model.
    """
    settings = resolve(ComparedContinuationsSettings, settings, options)
    hooked = load_model(model)
    listed = prompt_list(prompts)
    if UNSTEERED in vectors:
        raise ValueError(
            f"an arm is called {UNSTEERED!r}, which is the name of the model without steering; "
            "give the vector another name"
        )
    strengths = _strengths(hooked, vectors, neutral, settings)
    rows = []
    # An arm that no scale brings to the damage is missing from `strengths`, so it has no rows.
    # The unsteered model is an arm of scale 0 and damage 0, by definition.
    for arm, (scale, damage) in ({UNSTEERED: (0.0, 0.0)} | strengths).items():
        steering = (
            partial(vectors[arm].apply, hooked, scale=scale, mode="add")
            if arm in vectors
            else nullcontext
        )
        with entering(), steering():
            texts = hooked.generate(
                listed,
                max_new_tokens=settings.max_new_tokens,
                temperature=settings.temperature,
                top_k=settings.top_k,
                seed=settings.seed,
            )
        rows += [
            {"prompt": prompt, "arm": arm, "scale": scale, "damage": damage, "text": text}
            for prompt, text in zip(listed, texts, strict=True)
        ]
    return ComparedContinuations(pd.DataFrame(rows))


def _strengths(
    model: HookedModel,
    vectors: Mapping[str, SteeringVector],
    neutral: Neutral | None,
    settings: ComparedContinuationsSettings,
) -> dict[str, tuple[float, float]]:
    """Return (scale, damage) by arm, without the arms that no tried scale brings to the damage."""
    scales = settings.scales
    if isinstance(scales, Mapping):
        if missing := [arm for arm in vectors if arm not in scales]:
            raise ValueError(f"scales names {list(scales)}; expected a scale for {missing} too")
        # Damage is not measured at scales of the caller, so it is unknown.
        return {arm: (float(scales[arm]), math.nan) for arm in vectors}
    if scales != "auto":
        return {arm: (float(scales), math.nan) for arm in vectors}
    if neutral is None:
        raise ValueError(
            "scales='auto' needs neutral=[texts], on which damage is measured; "
            "give them, or give scales"
        )
    strengths = {}
    for arm, vector in vectors.items():
        calibration = calibrate_scale(model, vector, neutral, settings.damage)
        if calibration.reached:
            strengths[arm] = (calibration.scale, calibration.damage)
        if calibration.flag:
            outcome = "arm %r: %s" if calibration.reached else "arm %r is left out: %s"
            logger.warning(outcome, arm, calibration.flag)
    return strengths
