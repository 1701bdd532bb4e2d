"""Abstention: a probe that answers only for texts that its map has seen the like of.

    covers = lrt.fit_coverage(stitch, pair.target, documents)
    transferred.predict_proba(pair.target, texts, abstain=covers)          # NaN for the others

Problem: a transferred probe gives a probability for every text. Mechanism: a rule says which texts
are covered. `Abstains` names what a rule must have, which the coverage of a stitch has
(`lrt_lens.stitching._text_coverage`), and any class of a user may have.

Limits: a rule sees the states of a text and not its label: a covered text may be answered wrongly.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from lrt_lens.models._belonging import Origin, refuse_other_stream
from lrt_lens.models._loading import ModelLike


@runtime_checkable
class Abstains(Protocol):
    """Rule that says for which texts a probe answers, such as a `TextCoverage`."""

    @property
    def origin(self) -> Origin:
        """Hook point, model and width whose states the rule reads."""
        ...

    def covered(self, model: ModelLike, texts: Sequence[str]) -> np.ndarray:
        """Return which texts are answered, [text]."""
        ...


def covered_texts(
    rule: Abstains, probe: Origin, model: ModelLike, texts: Sequence[str]
) -> np.ndarray:
    """Return which texts a rule answers, [text].

    Raises:
        MismatchError: the rule reads another hook point or model than the probe.
        ValueError: it does not say one truth value per text.
    """
    remedy = "fit the coverage of the stitch that transferred the probe"
    refuse_other_stream(probe, rule.origin, "are in different streams", remedy)
    covered = np.asarray(rule.covered(model, texts))
    if covered.shape != (len(texts),) or covered.dtype != bool:
        raise ValueError(
            f"the rule of abstain= returned {covered.dtype} of the shape {covered.shape}; expected"
            f" one truth value for each of {len(texts)} texts"
        )
    return covered
