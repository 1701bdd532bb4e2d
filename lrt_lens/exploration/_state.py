"""The comparison shown by the explorer: arms on one model at equal damage, at any strength.

    exploration = Exploration.of(pair, stitch.transfer(vector), neutral=texts)
    exploration.run("This film was", strength=1.0)  # `ComparedContinuations`, with damages
    exploration.arms["native"].scale(1.0)  # multiples of the native vector at strength 1

Problem: a scale of 1 means another damage for each vector. Mechanism: *strength* is common to all
arms. At 1 each arm has the scale at which it costs ``damage`` nats per token on neutral text, so
arms of different lengths become stronger together; negative strengths steer away. If no scale of an
arm reaches the budget, its step at strength 1 is half the median residual norm, and a note says so.
Nothing here needs a widget.

Limits: a few samples show the kind of effect, not its size; use `evaluate_steering` to measure.
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
from lrt_lens.models._belonging import is_model, refuse_foreign
from lrt_lens.models._hook_points import same_place
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._identity import ModelIdentity
from lrt_lens.models._ownership import entering
from lrt_lens.models._pair import ModelPair
from lrt_lens.stitching._stitch import Stitch

DAMAGE = 0.4
"""Damage in nats per token at strength 1: large enough that few samples show the effect."""
N_NEUTRAL = 8
"""Number of bundled neutral texts on which damage is measured by default."""
UNREACHED_SHARE = 0.5
"""Step at strength 1 of an arm that cannot reach the budget, as a share of the median norm."""


@dataclass(frozen=True)
class ExploredArm:
    """A vector and its scale at strength 1."""

    vector: SteeringVector
    """Vector on the target model."""
    unit: float
    """Scale of the vector at strength 1."""
    calibrated: bool = True
    """True if strength 1 costs the requested damage."""
    flag: str = ""
    """Sentence about the unusual in the calibration; see `Calibration.flag`."""

    def scale(self, strength: float) -> float:
        """Return the multiples of the vector at a strength."""
        return self.unit * strength

    def share(self, strength: float) -> float:
        """Return ‖step‖ as a share of the median residual norm; NaN if that norm is unknown."""
        return abs(self.scale(strength)) * self.vector.norm / self.vector.median_norm


@dataclass(frozen=True)
class Exploration:
    """Arms on one model that can be run at any strength."""

    model: HookedModel
    """Model that is steered."""
    arms: Mapping[str, ExploredArm]
    """Arms by name, in the order of their columns."""
    damage: float = DAMAGE
    """Damage in nats per token at strength 1."""
    max_new_tokens: int = 24
    """Number of tokens per continuation."""
    temperature: float = 0.8
    """Temperature of sampling."""
    top_k: int | None = 40
    """Number of most probable tokens to sample from; None for all."""
    texts: Mapping[str, NeutralText] = field(default_factory=dict, repr=False)
    """Neutral texts of each arm, prepared at its hook point."""
    _known: dict[tuple[str, float], float] = field(default_factory=dict, repr=False)
    """Damages that were measured, by arm and strength."""

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
        """Return the transferred vector and the native one, both calibrated to the damage.

        Arguments and errors are those of `lrt_lens.explore`.
        """
        transferred = _transferred(pair, vector, stitch)
        # Without texts there is no native vector, and the arm is left out.
        own = native or _native(pair, transferred)
        vectors = ({"native": own} if own is not None else {}) | {"transferred": transferred}
        for one in vectors.values():
            one.refuse_other_model(pair.target)
        neutral = demo_neutral()[:N_NEUTRAL] if neutral is None else neutral
        texts: dict[str, NeutralText] = {}
        for name, one in vectors.items():
            # Arms at one hook point share their texts, which take a pass each to prepare.
            shared = [texts[other] for other in texts if same_place(vectors[other].hook, one.hook)]
            with entering(alone=True):
                texts[name] = shared[0] if shared else NeutralText(pair.target, neutral, one.hook)
        with entering(alone=True):
            arms = {name: _arm(texts[name], one, damage) for name, one in vectors.items()}
        return cls(pair.target, arms, damage, max_new_tokens, temperature, top_k, texts)

    def run(self, prompt: str, strength: float, *, seed: int = 0) -> ComparedContinuations:
        """Return continuations without steering and under every arm, with the damage of each.

        Args:
            prompt: text to continue.
            strength: common to all arms; 1 costs ``damage`` nats per token.
            seed: seed of the sampling, the same for all arms.

        Raises:
            ValueError: the prompt is empty, or the strength is not finite.
        """
        if not prompt.strip():
            raise ValueError("the prompt is empty; write a few words to continue")
        if not math.isfinite(strength):
            raise ValueError(
                f"strength is {strength}; expected a finite number, "
                f"1 for a damage of {self.damage:g} nats per token"
            )
        # The scales are passed, so compare_continuations measures no damage; it is added below.
        # Interventions that a cell has open would steer every arm, the unsteered one too.
        with entering(alone=True):
            compared = compare_continuations(
                self.model,
                [prompt],
                {name: arm.vector for name, arm in self.arms.items()},
                scales={name: arm.scale(strength) for name, arm in self.arms.items()},
                seed=seed,
                max_new_tokens=self.max_new_tokens,
                temperature=self.temperature,
                top_k=self.top_k,
            )
        measured = {UNSTEERED: 0.0} | {name: self.damage_at(name, strength) for name in self.arms}
        damages = [measured[arm] for arm in compared.table["arm"]]
        return replace(compared, table=compared.table.assign(damage=damages))

    def damage_at(self, name: str, strength: float) -> float:
        """Return the rise of the loss on the neutral texts under an arm, in nats per token.

        It is measured once per strength.
        """
        # float(): a slider may give 1 or 1.0, which must be one key.
        key = (name, float(strength))
        if key not in self._known:
            arm = self.arms[name]
            hook = arm.vector.hook_at(arm.scale(strength))
            with entering(alone=True):
                self._known[key] = self.texts[name].damage(hook)
        return self._known[key]

    @property
    def notes(self) -> list[str]:
        """Sentences about arms that are not calibrated or missing; usually there are none."""
        notes = [
            f"The {name} vector at strength 1: {arm.flag}."
            if arm.calibrated
            else f"No scale of the {name} vector costs {self.damage:g} nats per token, so strength "
            f"1 is another amount of damage there: {arm.flag}."
            for name, arm in self.arms.items()
            if arm.flag
        ]
        if "native" not in self.arms:
            notes.append(
                "No native vector: the vector holds no texts to learn one from; give native=."
            )
        return notes


def _transferred(pair: ModelPair, vector: SteeringVector, stitch: Stitch | None) -> SteeringVector:
    """Return the vector on the target, transferred by the stitch if it is not there yet."""
    source, target = pair.source.identity, pair.target.identity
    if stitch is not None:
        stitch.check(pair.source, pair.target)
    on_source, on_target = is_model(vector.model, source), is_model(vector.model, target)
    # A vector of unknown origin counts as the target's, unless a stitch ends at another hook point.
    if on_target and (stitch is None or vector.origin.is_at(stitch.target_hook)):
        return vector
    if not (on_source or on_target):
        ends = " → ".join(_shown(model) for model in (source, target))
        raise MismatchError(
            f"vector {vector.name!r} belongs to {_shown(vector.model)}, and the pair is {ends}; "
            "learn it on the source, or transfer it to the target"
        )
    if stitch is None:
        raise MismatchError(
            f"vector {vector.name!r} was learnt on the source, {pair.source.name!r}, and explore "
            f"steers the target, {pair.target.name!r}; give stitch=…, or stitch.transfer(vector)"
        )
    if not on_source:
        remedy = "leave stitch= out, because the vector already belongs to the target"
        refuse_foreign(vector.origin, stitch.end, remedy=remedy)
    return stitch.transfer(vector)


def _shown(model: ModelIdentity | None) -> str:
    """Return a model's name with its hash and basis, because two models can have one name."""
    if model is None:
        return "an unknown model"
    return f"{model.name!r} (config_hash {model.config_hash}, {model.basis} basis)"


def _native(pair: ModelPair, transferred: SteeringVector) -> SteeringVector | None:
    """Return the vector learnt on the target by the same recipe; None if the texts are missing."""
    if transferred.contrast_set is None:
        return None
    return transferred.relearnt(pair.target, transferred.contrast_set, at=transferred.hook)


def _arm(neutral: NeutralText, vector: SteeringVector, damage: float) -> ExploredArm:
    calibration = calibrate_on(neutral, vector, damage)
    # Half the median norm is a large step: a vector that needs more has hardly any effect.
    if calibration.reached:
        return ExploredArm(vector, calibration.scale, flag=calibration.flag)
    # NaN is unequal to itself: the median norm of a vector of unknown origin is NaN.
    has_norms = vector.median_norm == vector.median_norm and vector.norm > 0
    unit = UNREACHED_SHARE * vector.median_norm / vector.norm if has_norms else 1.0
    return ExploredArm(vector, unit, calibrated=False, flag=calibration.flag)
