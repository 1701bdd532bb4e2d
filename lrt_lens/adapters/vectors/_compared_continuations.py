"""What a model writes after the same prompts, with and without each of several vectors, side by
side.

    compared = compare_continuations(pair.target, ["This film was"], {"native": native,
    "transferred": moved}, neutral=lrt.demo_neutral())
    compared            # in a notebook: a row a prompt, a column an arm
    compared.table      # prompt, arm, scale, damage, text

Problem: vectors of different lengths and directions are compared by eye only where they disturb the
model equally. Mechanism: unless scales are given, each vector gets the strength that raises the
loss on neutral text by ``damage`` nats per token (`calibrate_scale`); all arms draw their tokens
with the same seed.

Limits: an anecdote. A handful of samples shows what a change looks like, not how large it is:
`lrt_lens.evaluate_steering` measures.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from html import escape
from typing import Literal

import pandas as pd

from lrt_lens._repr_html import card, note
from lrt_lens.adapters.vectors._calibration import calibrate_scale
from lrt_lens.adapters.vectors._steering_vector import SteeringVector
from lrt_lens.models._hooked_model import HookedModel, load_model
from lrt_lens.models._loading import ModelLike

logger = logging.getLogger(__name__)

UNSTEERED = "none"
_CELL = "padding:.3em .7em;vertical-align:top;text-align:left;white-space:normal;min-width:9em;background:transparent;color:inherit;border:0"


@dataclass(frozen=True)
class ComparedContinuations:
    """Continuations of each prompt under each arm."""

    table: pd.DataFrame
    """A row per prompt and arm: prompt, arm (``none`` first), scale, damage (nats per token on the
    neutral texts; NaN where scales were given), text (the continuation)."""

    @property
    def summary(self) -> pd.DataFrame:
        """A row per prompt, a column per arm: the continuations."""
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
        found = self.summary
        head = "".join(
            f'<th scope="col" style="{_CELL};font-weight:600">{escape(str(arm))}</th>'
            for arm in found.columns
        )
        rows = "".join(
            f'<tr style="background:transparent"><th scope="row" style="{_CELL};font-weight:600">{escape(str(prompt))}</th>'
            + "".join(f'<td style="{_CELL}">…{escape(str(text))}</td>' for text in texts)
            + "</tr>"
            for prompt, texts in zip(found.index, found.to_numpy().tolist(), strict=True)
        )
        body = f'<thead><tr style="background:transparent"><th style="{_CELL}"></th>{head}</tr></thead><tbody>{rows}</tbody>'
        style = "border-collapse:collapse;background:transparent;color:inherit"
        return card(
            "Continuations side by side",
            f'<div style="overflow-x:auto"><table style="{style}">{body}</table></div>',
            note(self._strengths()),
        )

    def _strengths(self) -> str:
        """Scale and damage of every arm in words."""
        arms = {
            row["arm"]: row for row in self.table.to_dict("records") if row["arm"] != UNSTEERED
        }.values()
        known = lambda row: (  # noqa: E731
            f", damage {row['damage']:.2g} nats per token" if row["damage"] == row["damage"] else ""
        )
        return "; ".join(f"{row['arm']}: scale {row['scale']:.3g}{known(row)}" for row in arms)


def compare_continuations(
    model: ModelLike,
    prompts: Sequence[str],
    vectors: Mapping[str, SteeringVector],
    *,
    scales: Literal["auto"] | float | Mapping[str, float] = "auto",
    neutral: Sequence[str] | None = None,
    damage: float = 0.4,
    max_new_tokens: int = 24,
    temperature: float = 0.8,
    top_k: int | None = 40,
    seed: int = 0,
) -> ComparedContinuations:
    """What ``model`` writes after each prompt without steering and under each vector.

    Args:
        model: the model that all vectors belong to.
        prompts: texts to continue.
        vectors: by the name of their arm, such as ``{"native": …, "transferred": …}``; the arm
            ``none`` is added.
        scales: multiples of the vectors, one number for all or one for each; ``"auto"`` gives all
            the same damage.
        neutral: texts on which damage is measured, for ``"auto"``.
        damage: nats per token, for ``"auto"``. Larger than what evaluations compare at, so that the
            tone of few samples shows it.
        max_new_tokens: tokens of a continuation.
        temperature: of sampling.
        top_k: of sampling.
        seed: of the draws, the same for all arms.

    Raises:
        ValueError: no prompt, an arm called ``none``, no neutral text for ``"auto"``, no scale for
            an arm.
        MismatchError: a vector of another model.
    """
    hooked = load_model(model)
    if isinstance(prompts, str) or not len(prompts):
        raise ValueError(
            f"prompts is {prompts!r}; expected a list of at least one text to continue"
        )
    if UNSTEERED in vectors:
        raise ValueError(
            f"an arm is called {UNSTEERED!r}, which is the model without steering; name the vector otherwise"
        )
    strengths = _strengths(hooked, vectors, scales, neutral, damage)
    rows = []
    for arm, (scale, measured) in ({UNSTEERED: (0.0, 0.0)} | strengths).items():
        with vectors[arm].apply(hooked, scale=scale) if arm in vectors else nullcontext():
            texts = hooked.generate(
                list(prompts),
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_k=top_k,
                seed=seed,
            )
        rows += [
            {"prompt": prompt, "arm": arm, "scale": scale, "damage": measured, "text": text}
            for prompt, text in zip(prompts, texts, strict=True)
        ]
    return ComparedContinuations(pd.DataFrame(rows))


def _strengths(
    model: HookedModel,
    vectors: Mapping[str, SteeringVector],
    scales: Literal["auto"] | float | Mapping[str, float],
    neutral: Sequence[str] | None,
    damage: float,
) -> dict[str, tuple[float, float]]:
    """(scale, damage) by arm; an arm whose budget cannot be bracketed is left out with a warning."""
    if isinstance(scales, Mapping):
        if missing := [arm for arm in vectors if arm not in scales]:
            raise ValueError(f"scales names {list(scales)}; expected a scale for {missing} too")
        return {arm: (float(scales[arm]), float("nan")) for arm in vectors}
    if scales != "auto":
        return {arm: (float(scales), float("nan")) for arm in vectors}
    if neutral is None:
        raise ValueError(
            "scales='auto' needs neutral=[texts] on which damage is measured; give them, or give scales"
        )
    found = {
        arm: calibrate_scale(model, vector, neutral, damage) for arm, vector in vectors.items()
    }
    for arm in (arm for arm, one in found.items() if not one.reached):
        logger.warning(
            "no scale of %r raises the loss on the neutral texts by %g nats per token; the arm is left out",
            arm,
            damage,
        )
    return {arm: (one.scale, one.damage) for arm, one in found.items() if one.reached}
