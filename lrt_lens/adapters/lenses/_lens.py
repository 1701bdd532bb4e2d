"""Lenses: affine maps from inner states to the last stream, read by the model's own head.

    lens = Lens.jacobian(jacobian_lens, source.identity)     # of TransformerLens
    lens = Lens.tuned(torch.load("params.pt", weights_only=True), source.identity)
    lens = Lens.logit(source.identity)
    transferred = stitch.transfer(lens)                      # or stitch.transfer(jacobian_lens)
    transferred.logits(source, y)                            # y: states of the target

Problem: a lens fitted on one model reads no other. Mechanism: a lens is a map of the state h after
a block to the state after the last block, followed by the model's final norm and head:

    logit lens      h                       (nostalgebraist 2020)
    tuned lens      h + h Wᵀ + b            (Belrose et al. 2023, arXiv 2303.08112)
    Jacobian lens   h Jᵀ                    (Gurnee et al. 2026; TransformerLens 3.9)

A transferred lens takes a state of the target down the stitch first, ``(y W_down + b_down)``, and
then is the source's lens and head. Nothing is fitted, so it equals the composition by hand, up to
rounding in the precision of the source, or of the states; its vocabulary is the source's.

**Layers.** Layer l of a `JacobianLens` is the output of block l. Translator i of a tuned lens reads
Hugging Face's ``hidden_states[i]``, the input of block i, so translator i + 1 is at our
``blocks.{i}.hook_resid_post``. The layer after the last block needs no map, in any lens.

Limits: a Jacobian lens is fitted on raw states; models with a centred stream are refused. Whether a
lens file belongs to the source model is not recorded in it beyond its width and a name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from lrt_lens.adapters.lenses._readout import final_hook, readout, wide
from lrt_lens.errors import HookPointError, MismatchError
from lrt_lens.models._belonging import Origin, refuse_other_reader
from lrt_lens.models._hook_points import place, residual_post
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._identity import ModelIdentity
from lrt_lens.stitching._affine import AffineMap, MapPair
from lrt_lens.stitching._stitch_data import StitchData, transfer_artefact

FIRST_STREAM = "blocks.0.hook_resid_pre"
"""Hook point before the first block."""


@dataclass(frozen=True, repr=False)
class Lens:
    """Maps from inner hook points of one model to the stream after its last block."""

    kind: Literal["logit", "tuned", "jacobian"]
    model: ModelIdentity
    """Model that the lens reads."""
    layer_maps: Mapping[str, AffineMap]
    """Map of each hook point to the stream after the last block; empty for a logit lens."""

    @classmethod
    def logit(cls, model: ModelIdentity) -> "Lens":
        """Return the lens without a map: the head reads every state as if it were the last."""
        return cls("logit", model, {})

    @classmethod
    def jacobian(cls, lens: Any, model: ModelIdentity) -> "Lens":
        """Return a `JacobianLens` of TransformerLens as a lens of a model.

        Raises:
            MismatchError: the lens has another width, a layer that the model does not have or
                another target layer, or the model's stream is centred.
        """
        n_layers = model.n_layers
        target = int(lens.metadata.get("target_layer", n_layers - 1))
        layers = sorted(lens.jacobians)
        if lens.d_model != model.d_model or layers[-1] >= n_layers or target != n_layers - 1:
            raise MismatchError(
                f"the lens has width {lens.d_model}, layers {layers[0]} to {layers[-1]} and target "
                f"layer {target}; {model.name!r} has width {model.d_model} and {n_layers} layers: "
                "give the lens of this model"
            )
        if model.basis != "raw":
            raise MismatchError(
                f"{model.name!r} has a {model.basis} stream, and a Jacobian lens is fitted on raw "
                "states; load the model without center_writing_weights"
            )
        # Rows: h Jᵀ
        weights = {residual_post(layer): matrix.T for layer, matrix in lens.jacobians.items()}
        return cls._of("jacobian", model, {hook: (w, None) for hook, w in weights.items()})

    @classmethod
    def tuned(cls, translators: Mapping[str, Tensor], model: ModelIdentity) -> "Lens":
        """Return a tuned lens from the state dict of its translators.

        Args:
            translators: ``{"0.weight": [d, d], "0.bias": [d], …}``, as in ``params.pt`` of
                tuned-lens; biases may be missing.
            model: model of the lens.

        Raises:
            MismatchError: there is no translator, or one for another width or a layer that the
                model does not have.
        """
        d, maps = model.d_model, {}
        for name, weight in translators.items():
            number, _, kind = name.partition(".")
            if kind != "weight":
                continue
            hook = residual_post(int(number) - 1) if int(number) else FIRST_STREAM
            if weight.shape != (d, d) or int(number) >= model.n_layers:
                raise MismatchError(
                    f"translator {number} has shape {tuple(weight.shape)}; {model.name!r} has "
                    f"{model.n_layers} layers of width {d}: give the lens of this model"
                )
            # h + h Wᵀ + b
            eye = torch.eye(d, dtype=torch.float64)
            maps[hook] = (eye + weight.double().T, translators.get(f"{number}.bias"))
        if not maps:
            raise MismatchError(
                f"the state dict has {sorted(translators)[:4]} and no translator such as "
                "'0.weight': give params.pt of a tuned lens"
            )
        return cls._of("tuned", model, maps)

    @classmethod
    def _of(
        cls,
        kind: Literal["tuned", "jacobian"],
        model: ModelIdentity,
        weights: Mapping[str, tuple[Tensor, Tensor | None]],
    ) -> "Lens":
        end = final_hook(model.n_layers)
        maps = {}
        for hook, (weight, bias) in weights.items():
            shift = torch.zeros(model.d_model) if bias is None else bias
            one = AffineMap(weight.detach().double(), shift.detach().double(), hook, end)
            maps[hook] = one.between(model, model)
        return cls(kind, model, maps)

    def at(self, hook: str) -> AffineMap:
        """Return the map from a hook point to the stream after the last block.

        Raises:
            HookPointError: the lens has no map for this hook point.
        """
        end, name = final_hook(self.model.n_layers), place(hook)
        if self.kind == "logit" or name == end:
            d = self.model.d_model
            eye, zero = torch.eye(d, dtype=torch.float64), torch.zeros(d, dtype=torch.float64)
            return AffineMap(eye, zero, hook, end).between(self.model, self.model)
        known = {place(own): one for own, one in self.layer_maps.items()}
        if name not in known:
            raise HookPointError(
                f"this lens has no map for {hook!r}; it has {list(self.layer_maps)}: take a "
                "stitch that starts at one of them"
            )
        return replace(known[name], source_hook=hook)

    def logits(self, model: HookedModel, states: Tensor, hook: str) -> Tensor:
        """Return the logits [..., vocabulary] of states [..., d] at a hook point of ``model``.

        Raises:
            MismatchError: it is another model than that of the lens.
            HookPointError: the lens has no map for this hook point.
        """
        refuse_other_reader(Origin("this lens", None, self.model), model.identity, "read")
        return readout(model, self.at(hook).points(wide(states)))

    def __repr__(self) -> str:
        return f"Lens({self.kind}, {self.model.name}, {len(self.layer_maps) or 'any'} hook points)"


@dataclass(frozen=True, repr=False)
class TransferredLens:
    """A lens of the source that reads states of the target, through a stitch."""

    kind: str
    """Kind of the lens, ``"logit"``, ``"tuned"`` or ``"jacobian"``."""
    map: AffineMap
    """Map from the target hook point to the stream after the source's last block."""
    source: ModelIdentity
    """Model whose norm and head read the mapped states."""
    target: ModelIdentity | None
    """Model whose states are read; None if it is unknown."""

    @property
    def hook(self) -> str:
        """Hook point in the target."""
        return self.map.source_hook

    def points(self, states: Tensor) -> Tensor:
        """Return states [..., d_target] as states after the source's last block [..., d_source]."""
        return self.map.points(wide(states))

    def logits(self, source: HookedModel, states: Tensor) -> Tensor:
        """Return the logits [..., vocabulary of the source] of target states [..., d_target].

        Args:
            source: the source model, whose final norm and head are used.
            states: states of the target at ``hook``.

        Raises:
            MismatchError: ``source`` is another model, or the states have another width.
        """
        refuse_other_reader(Origin("this lens", None, self.source), source.identity, "read")
        return readout(source, self.points(states))

    def top_tokens(self, source: HookedModel, states: Tensor, n: int = 5) -> list[list[str]]:
        """Return the texts of the ``n`` likeliest tokens of each state [state, d_target]."""
        ids = self.logits(source, states).topk(n, dim=-1).indices
        return [[source.tokenizer.decode([int(one)]) for one in row] for row in ids]

    def __repr__(self) -> str:
        target = self.target.name if self.target else "unknown"
        return f"TransferredLens({self.kind}, {target} {self.hook} → {self.source.name})"


@transfer_artefact.register
def transfer_lens(
    lens: Lens, stitch: StitchData, *, through: AffineMap | MapPair | None = None
) -> TransferredLens:
    """Return a lens that reads the stitch's target hook point: down the stitch, then the lens.

    Args:
        lens: a lens of the stitch's source with a map for its source hook point.
        stitch: the stitch.
        through: another map from the target's to the source's hook point, or a pair of maps such
            as ``stitch.null``, of which the map down is used; for controls.

    Raises:
        MismatchError: the lens belongs to another model, or the map to other hook points.
        HookPointError: the lens has no map for the source hook point.
    """
    stitch.refuse_foreign(Origin("this lens", None, lens.model, lens.model.d_model, "is a lens"))
    through = through.down if isinstance(through, MapPair) else through
    if through is not None:
        stitch.refuse_other_map("through=", through, down=True)
    down = stitch.down if through is None else through
    # ((y W_down + b_down) W + b)
    composed = down.compose(lens.at(stitch.source_hook))
    return TransferredLens(lens.kind, composed, lens.model, stitch.target)


def transfer_foreign_lens(lens: Any, stitch: StitchData, **options: Any) -> TransferredLens:
    """Return a lens of TransformerLens or tuned-lens, transferred as `transfer_lens` does.

    Args:
        lens: a `JacobianLens` or a `TunedLens`, of the stitch's source.
        stitch: the stitch, which has to know its source model.
        **options: options of `transfer_lens`.

    Raises:
        ValueError: the stitch does not know its source model.
        MismatchError, HookPointError: as `transfer_lens` does.
    """
    if stitch.source is None:
        raise ValueError(
            "this stitch does not know its source model, whose last block a lens leads to; fit it "
            "from a harvest, or give source_model= with activations"
        )
    if hasattr(lens, "jacobians"):
        own = Lens.jacobian(lens, stitch.source)
    else:
        own = Lens.tuned(lens.layer_translators.state_dict(), stitch.source)
    return transfer_lens(own, stitch, **options)
