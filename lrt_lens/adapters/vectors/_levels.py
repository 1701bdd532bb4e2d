"""Clamp levels of the source in units of the target, from unlabelled texts.

    level = vector.mean_component(pair.source, concept_texts)                # in the source
    level = lrt.recentre_level(vector, transferred, level, pair, texts)      # in the target
    transferred.apply(pair.target, mode="clamp", level=level)

Problem: a clamp sets the component along a direction to a level, and a level of the source means
nothing in the target, whose components have another mean and another spread. Mechanism: both models
read the same unlabelled texts, and the level is as many standard deviations from the mean of their
components in the target as it is in the source:

    z_target = μ_target + (z_source − μ_source) · σ_target / σ_source

Limits: components are means over the tokens of a text, as in `SteeringVector.mean_component`. Where
texts of the concept may be read in the target, `mean_component` there needs no transfer.
"""

from collections.abc import Sequence

import numpy as np

from lrt_lens.adapters.vectors._steering_vector import SteeringVector
from lrt_lens.models._pair import ModelPair
from lrt_lens.models._reading import readable
from lrt_lens.models._text_codec import text_list
from lrt_lens.statistics._recentring import FEWEST_ROWS, ScoreChange, constant_columns


def recentre_level(
    vector: SteeringVector,
    transferred: SteeringVector,
    level: float,
    pair: ModelPair,
    texts: Sequence[str],
) -> float:
    """Return a clamp level of the source in units of the target's component.

    Each model reads the texts once; texts that the mask leaves nothing of in one of them are left
    out.

    Args:
        vector: the vector on the source.
        transferred: the same vector, transferred to the target.
        level: component along the vector in the source, such as its mean over texts of the concept.
        pair: both models.
        texts: unlabelled texts of any kind that both models read, such as all texts that the vector
            was learnt from.

    Raises:
        ValueError: too few texts, or components that do not vary over them.
        MismatchError: a vector belongs to another model than that of the pair.
    """
    listed = text_list(texts)
    kept = readable([pair.source, pair.target], listed, "mean").of(listed)
    if len(kept) < FEWEST_ROWS:
        raise ValueError(
            f"{len(kept)} texts can be read; a level needs at least {FEWEST_ROWS}, because a mean "
            "of few components is uncertain: give more unlabelled texts"
        )
    source, target = vector.components(pair.source, kept), transferred.components(pair.target, kept)
    return level_between(level, source, target)


def level_between(level: float, source: np.ndarray, target: np.ndarray) -> float:
    """Return the level in the target from components [text] of both models on the same texts.

    Raises:
        ValueError: the components do not vary in one of the models.
    """
    columns = source[:, None], target[:, None]
    for role, scores in zip(("source", "target"), columns, strict=True):
        if constant_columns(scores).any():
            raise ValueError(
                f"the components of all {len(scores)} texts are equal in the {role}, so there is "
                "no spread to match; give texts that differ"
            )
    change = ScoreChange.matching(*columns)
    # z_source = a z_target + b
    return float((level - change.shift[0]) / change.scale[0])
