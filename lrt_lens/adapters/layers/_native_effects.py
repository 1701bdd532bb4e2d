"""Effects of the target's own steering vectors at equal damage, one per target hook point.

Problem: the effect of a vector at equal damage depends on the layer of the target at which it is
added, and no property of the texts' states tells which. Mechanism: the vector that the target
learns from the same texts is steered with at each target hook point. That takes as many
calibrations as there are target hook points, whatever the number of source hook points.

    native_effects(pair.target, vectors, items, neutral, settings)    # {hook point: nats}

Limits: NaN if no scale reaches the damage. Items that choose a layer must not evaluate it.
"""

import math
from collections.abc import Mapping, Sequence

from lrt_lens._progress import tqdm
from lrt_lens.adapters.layers._settings import LayerChoiceSettings
from lrt_lens.adapters.vectors._calibration import calibrate_on
from lrt_lens.adapters.vectors._neutral_text import NeutralText
from lrt_lens.adapters.vectors._preferences import PreferenceText
from lrt_lens.adapters.vectors._steering_vector import SteeringVector
from lrt_lens.data._contrast import ChoiceItems
from lrt_lens.models._hooked_model import HookedModel


def native_effects(
    model: HookedModel,
    vectors: Mapping[str, SteeringVector],
    items: ChoiceItems,
    neutral: Sequence[str],
    settings: LayerChoiceSettings,
) -> dict[str, float]:
    """Return the mean change of the propensity of the items, in nats, by hook point.

    Args:
        model: the target.
        vectors: its own vector by hook point.
        items: choice items.
        neutral: texts on which damage is measured.
        settings: damage at which effects are measured.

    Raises:
        ValueError: a damage that is not positive, or no neutral text that is long enough.
    """
    effects = {}
    for hook, vector in tqdm(vectors.items(), desc="steer", disable=not settings.progress):
        texts = NeutralText(model, neutral, vector.hook, skip_first=vector.skip_first)
        calibration = calibrate_on(texts, vector, settings.damage)
        effects[hook] = math.nan
        if calibration.reached:
            choices = PreferenceText(model, items, vector.hook)
            steered = choices.propensity(vector.hook_at(calibration.scale))
            effects[hook] = float((steered - choices.propensity()).mean())
    return effects
