"""`lrt_lens.explore`: a slider for the strength of a vector, in a notebook.

    lrt.explore(pair, stitch.transfer(vector))

Continuations of a prompt without steering, under the native vector and under the transferred one
stand side by side, with what each costs on neutral text. Needs ipywidgets: ``pip install
'lrt-lens[widgets]'``.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from lrt_lens.adapters.vectors._steering_vector import SteeringVector
from lrt_lens.exploration._state import DAMAGE, Exploration
from lrt_lens.models._pair import ModelPair
from lrt_lens.stitching._stitch import Stitch

if TYPE_CHECKING:
    from lrt_lens.exploration._widget import ExplorerWidget


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
) -> "ExplorerWidget":
    """A widget that turns a vector up and down on the target, beside the native one: continuations
    and damage.

    Args: pair: both models; the target is steered. vector: carried to the target already, or learnt
        on the source with ``stitch`` given. stitch: carries the vector. native: the target's own
        vector; learnt from the vector's texts where left out and where it still holds them.
        neutral: texts on which damage is measured; a few bundled ones in English where left out.
        prompt: what stands in the box at first. damage: nats per token that strength 1 costs, for
        each arm. More than evaluations compare at, so that few samples show it. max_new_tokens:
        tokens of a continuation. temperature: of sampling. top_k: of sampling. seed: of the first
        draw, the same for all arms.

    Raises:
        ImportError: ipywidgets is not installed.
        MismatchError: a vector of another model, or of the source without a stitch.
        ValueError: a damage that is not positive, or neutral texts too short to measure it on.
    """
    if find_spec("ipywidgets") is None:
        raise ImportError(
            "explore needs ipywidgets, which is not installed; pip install 'lrt-lens[widgets]' and restart the kernel"
        )
    from lrt_lens.exploration._widget import ExplorerWidget

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
