"""Slider for the strength of a vector, in a notebook: `lrt_lens.explore`.

    lrt.explore(pair, stitch.transfer(vector))

Problem: numbers do not show how steered text reads. Mechanism: continuations of a prompt without
steering, under the native vector and under the transferred one side by side, with the damage of
each on neutral text.

Limits: a few samples show the kind of an effect, not its size. It needs ipywidgets:
``pip install 'lrt-lens[widgets]'``.
"""

from collections.abc import Sequence
from importlib.util import find_spec

from lrt_lens.adapters.vectors._steering_vector import SteeringVector
from lrt_lens.exploration._state import DAMAGE, Exploration
from lrt_lens.exploration._widget import ExplorerWidget
from lrt_lens.models._pair import ModelPair
from lrt_lens.stitching._stitch import Stitch


def explore(
    pair: ModelPair,
    vector: SteeringVector,
    *,
    stitch: Stitch | None = None,
    native: SteeringVector | None = None,
    neutral: Sequence[str] | None = None,
    prompt: str = "The film was",
    damage: float = DAMAGE,
    max_new_tokens: int = 24,
    temperature: float = 0.8,
    top_k: int | None = 40,
    seed: int = 0,
) -> ExplorerWidget:
    """Return a widget that steers the target at any strength and shows continuations and damage.

    Args:
        pair: both models; the target is steered.
        vector: a vector of the target, or one learnt on the source together with ``stitch``.
        stitch: transfers the vector.
        native: the target's own vector; by default it is learnt from the vector's texts, if the
            vector still holds them.
        neutral: texts on which damage is measured; by default a few bundled ones in English.
        prompt: text in the box at first.
        damage: nats per token at strength 1, for each arm. The default is above that of
            evaluations, so that few samples show the effect.
        max_new_tokens: number of tokens of a continuation.
        temperature: temperature of sampling.
        top_k: number of most probable tokens to sample from; None for all.
        seed: seed of the first draw, the same for all arms.

    Raises:
        ImportError: ipywidgets is not installed.
        MismatchError: the vector belongs to another model, or to the source and there is no stitch.
        ValueError: the damage is not positive, or the neutral texts are too short.
    """
    if find_spec("ipywidgets") is None:
        raise ImportError(
            "explore needs ipywidgets, which is not installed; "
            "pip install 'lrt-lens[widgets]' and restart the kernel"
        )

    # Calibration runs here, once; moving the slider only generates text.
    exploration = Exploration.of(
        pair,
        vector,
        stitch=stitch,
        native=native,
        neutral=neutral,
        damage=damage,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
    )
    return ExplorerWidget(exploration, prompt=prompt, seed=seed)
