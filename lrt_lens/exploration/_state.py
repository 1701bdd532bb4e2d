"""What the notebook's explorer compares: arms on one model, brought to equal damage, and what they
write at any strength.

    exploration = Exploration.of(pair, stitch.transfer(vector), neutral=texts)
    exploration.run("This film was", strength=1.0)     # ComparedContinuations: none, native, transferred, with their damage
    exploration.arms["native"].scale(1.0)              # multiples of the native vector at strength 1

*Strength* is common to all arms: at 1 each has the scale at which it costs ``damage`` nats per
token on neutral text, so that arms of different lengths are turned up together; negative strengths
steer away. An arm whose budget cannot be reached has strength 1 where its step is half the median
residual norm, and says so. Nothing here needs a widget.

Limits: for looking. Few samples show what steering does, not how much: `lrt_lens.evaluate_steering`
measures.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from lrt_lens.adapters.vectors._calibration import NeutralText, calibrate_on
from lrt_lens.adapters.vectors._compared_continuations import (
    UNSTEERED,
    ComparedContinuations,
    compare_continuations,
)
from lrt_lens.adapters.vectors._steering_vector import SteeringVector
from lrt_lens.bundled._texts import demo_neutral
from lrt_lens.errors import MismatchError
from lrt_lens.models._hook_points import same_place
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._identity import ModelIdentity
from lrt_lens.models._pair import ModelPair
from lrt_lens.stitching._stitch import Stitch

DAMAGE = 0.4
"""Nats per token at strength 1: large enough for few samples to show it."""
N_NEUTRAL = 8
"""Bundled neutral texts that damage is measured on where none are given."""
UNREACHED_SHARE = 0.5
"""Step at strength 1, as a share of the median residual norm, of an arm whose budget cannot be
reached.
"""


@dataclass(frozen=True)
class ExploredArm:
    """A vector and the scale that stands for strength 1."""

    vector: SteeringVector
    unit: float
    """Multiples of the vector at strength 1."""
    calibrated: bool = True
    """Whether strength 1 costs the damage asked for."""

    def scale(self, strength: float) -> float:
        """Multiples of the vector."""
        return self.unit * strength

    def share(self, strength: float) -> float:
        """‖step‖ as a share of the median residual norm; NaN where that is unknown."""
        return abs(self.scale(strength)) * self.vector.norm / self.vector.median_norm


@dataclass(frozen=True)
class Exploration:
    """Arms on one model, ready to be turned up and down."""

    model: HookedModel
    arms: Mapping[str, ExploredArm]
    """By name, in the order of their columns."""
    damage: float = DAMAGE
    """Nats per token that strength 1 costs."""
    max_new_tokens: int = 24
    temperature: float = 0.8
    top_k: int | None = 40
    texts: Mapping[str, NeutralText] = field(default_factory=dict, repr=False)
    """By arm: neutral texts made ready at its hook point."""
    _known: dict[tuple[str, float], float] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls,
        pair: ModelPair,
        vector: SteeringVector,
        *,
        stitch: Stitch | None = None,
        native: SteeringVector | None = None,
        neutral: Sequence[str] | None = None,
        damage: float = DAMAGE,
        max_new_tokens: int = 24,
        temperature: float = 0.8,
        top_k: int | None = 40,
    ) -> "Exploration":
        """The transferred vector beside the native one; see `lrt_lens.explore` for the arguments."""
        moved = _transferred(pair, vector, stitch)
        own = native or _native(pair, moved)
        vectors = ({"native": own} if own is not None else {}) | {"transferred": moved}
        for one in vectors.values():
            one.refuse_other_model(pair.target)
        neutral = demo_neutral()[:N_NEUTRAL] if neutral is None else neutral
        ready: dict[str, NeutralText] = {}
        for name, one in vectors.items():
            shared = [ready[other] for other in ready if same_place(vectors[other].hook, one.hook)]
            ready[name] = shared[0] if shared else NeutralText(pair.target, neutral, one.hook)
        arms = {name: _arm(ready[name], one, damage) for name, one in vectors.items()}
        return cls(pair.target, arms, damage, max_new_tokens, temperature, top_k, ready)

    def run(self, prompt: str, strength: float, *, seed: int = 0) -> ComparedContinuations:
        """What the model writes after ``prompt`` without steering and under every arm at one
        strength, with each arm's damage.

        Raises:
            ValueError: an empty prompt, or a strength that is not finite.
        """
        if not prompt.strip():
            raise ValueError("the prompt is empty; write a few words to continue")
        if not math.isfinite(strength):
            raise ValueError(
                f"strength is {strength}; expected a finite number, 1 for a damage of {self.damage:g} nats per token"
            )
        scales = {name: arm.scale(strength) for name, arm in self.arms.items()}
        compared = compare_continuations(
            self.model,
            [prompt],
            {name: arm.vector for name, arm in self.arms.items()},
            scales=scales,
            seed=seed,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
        )
        measured = {UNSTEERED: 0.0} | {name: self.damage_at(name, strength) for name in self.arms}
        return replace(
            compared,
            table=compared.table.assign(damage=[measured[arm] for arm in compared.table["arm"]]),
        )

    def damage_at(self, name: str, strength: float) -> float:
        """Nats per token by which an arm raises the loss on the neutral texts; measured once a
        strength.
        """
        key = (name, float(strength))
        if key not in self._known:
            arm = self.arms[name]
            self._known[key] = self.texts[name].damage(arm.vector.hook_at(arm.scale(strength)))
        return self._known[key]

    @property
    def notes(self) -> list[str]:
        """What a reader must know of the arms: one sentence each, none where all is as usual."""
        unreached = [name for name, arm in self.arms.items() if not arm.calibrated]
        found = [
            f"No scale of the {name} vector costs {self.damage:g} nats per token; strength 1 is another amount of damage there."
            for name in unreached
        ]
        if "native" not in self.arms:
            found.append(
                "No native vector: the vector holds no texts to learn one from; give native=."
            )
        return found


def _transferred(pair: ModelPair, vector: SteeringVector, stitch: Stitch | None) -> SteeringVector:
    """The vector on the target, carried there by the stitch where it is not there yet."""
    if vector.model is None or _is(pair.target, vector.model):
        return (
            vector
            if stitch is None or same_place(vector.hook, stitch.target_hook)
            else stitch.transfer(vector)
        )
    if not _is(pair.source, vector.model):
        raise MismatchError(
            f"vector {vector.name!r} belongs to {vector.model.name!r}, and the pair is {pair.source.name!r} → {pair.target.name!r}; "
            "learn it on the source, or transfer it to the target"
        )
    if stitch is None:
        raise MismatchError(
            f"vector {vector.name!r} was learnt on the source, {pair.source.name!r}, and what is explored is the target, {pair.target.name!r}; "
            "give stitch=…, or stitch.transfer(vector)"
        )
    stitch.check(pair.source, pair.target)
    return stitch.transfer(vector)


def _is(model: HookedModel, identity: ModelIdentity) -> bool:
    return model.identity.config_hash == identity.config_hash


def _native(pair: ModelPair, moved: SteeringVector) -> SteeringVector | None:
    """The vector learnt on the target by the same recipe from the same texts; None where these are
    not at hand.
    """
    if moved.contrast_set is None:
        return None
    return moved.relearnt(pair.target, moved.contrast_set, at=moved.hook)


def _arm(neutral: NeutralText, vector: SteeringVector, damage: float) -> ExploredArm:
    found = calibrate_on(neutral, vector, damage)
    if found.reached:
        return ExploredArm(vector, found.scale)
    known = vector.median_norm == vector.median_norm and vector.norm > 0
    return ExploredArm(
        vector,
        UNREACHED_SHARE * vector.median_norm / vector.norm if known else 1.0,
        calibrated=False,
    )
