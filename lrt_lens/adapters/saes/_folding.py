"""An SAE as bare weights: input scaling, ``b_dec`` and decoder norms folded into the weights.

Problem: SAELens applies flags of the config (input scaling, subtraction of ``b_dec``, decoder
norms) when an SAE runs, and a map between models cannot be combined with each of them separately.
Mechanism: the flags are folded into the weights, which leaves one affine map before and one after
σ, the activation function of the SAE (ReLU, TopK, JumpReLU, …).

    folded = FoldedSae.of(sae)      # f = σ(x W_enc + biases), x̂ = f W_dec + b_dec, in float64
    folded.build(sae)               # a SAELens object again

Every SAELens architecture whose encoder reads an affine function of its input reduces to that form:

- ``apply_b_dec_to_input``: ``b_enc ← b_enc − b_dec W_enc``; gated: the same for ``b_gate``, and
  ``b_mag ← b_mag − b_dec (W_enc exp r_mag)``
- ``rescale_acts_by_decoder_norm``, n = ‖rows of W_dec‖: ``W_enc ← W_enc n``, ``b_enc ← b_enc n``,
  ``W_dec ← W_dec / n``
- constant input scaling s: ``W_enc ← s W_enc``, ``W_dec ← W_dec / s``, ``b_dec ← b_dec / s``

Limits: SAEs that normalise each input by its own statistics, and encoders that do more than apply a
function to ``x W + b`` of one row, are refused.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from lrt_lens.errors import NonFiniteError

AFFINE = ("standard", "gated", "topk", "abstopk", "jumprelu", "batchtopk", "matryoshka_batchtopk")
"""SAELens' names of the architectures that can be folded."""
SELECTING = ("topk", "abstopk", "batchtopk", "matryoshka_batchtopk")
"""Architectures whose encoder compares features with each other."""

# Reasons why an SAE cannot be folded, by architecture and by normalisation of the input.
_TRANSCODER = (
    "it reads one hook point and writes another, and a stitch joins one hook point with one"
)
_NOT_AFFINE = {
    "matching_pursuit": "its encoder iterates against the decoder's geometry, which a map between "
    "models changes",
    "temporal": "its encoder attends to other positions, which is no function of one token's state",
    "transcoder": _TRANSCODER,
    "skip_transcoder": _TRANSCODER,
    "jumprelu_transcoder": _TRANSCODER,
    "jumprelu_skip_transcoder": _TRANSCODER,
}
_BAD_INPUT = {
    "layer_norm": "it divides each input by its own deviation, which is not affine",
    "constant_norm_rescale": "it divides each input by its own norm, which is not affine",
}
_UNFOLDED_INPUT = {
    "expected_average_only_in": "this SAE was trained on inputs times a constant factor, which it "
    "does not contain; expected an SAE with that factor in its weights: call "
    "sae.fold_activation_norm_scaling_factor(factor) with the factor of its training "
    "(stitch.transfer, uncentred_sae and unit_norm_decoder: or give input_scale=factor)",
    "covariance_whitening": "this SAE was trained on whitened inputs, and it does not contain the "
    "matrices; expected an SAE with the whitening in its weights: call "
    "sae.fold_activation_whitening(mean, whitening, unwhitening) first",
}
"""Input normalisations that SAELens' trainer applies outside the SAE, with the remedy."""


@dataclass(frozen=True)
class FoldedSae:
    """Weights of an SAE in the form ``f = σ(x W_enc + biases)``, ``x̂ = f W_dec + b_dec``."""

    W_enc: Tensor
    """Encoder weights in float64, [d, feature]."""
    W_dec: Tensor
    """Decoder weights in float64, [feature, d]."""
    b_dec: Tensor
    """Decoder bias in float64, [d]."""
    biases: dict[str, Tensor]
    """Biases of the encoder in float64, ``b_enc``, or ``b_gate`` and ``b_mag``; each [feature]."""
    other_weights: dict[str, Tensor]
    """Tensors that no change of basis touches: ``threshold``, ``r_mag`` and ``topk_threshold``."""

    @classmethod
    def of(cls, sae: Any, *, input_scale: float | None = None) -> "FoldedSae":
        """Weights of a SAELens SAE with every flag of its config folded into them.

        Args:
            sae: a SAELens SAE of an architecture in `AFFINE`.
            input_scale: factor on the inputs of an SAE whose config says
                ``expected_average_only_in``, because the SAE does not hold it.

        Raises:
            ValueError: the SAE cannot be folded; the message gives the reason.
            NonFiniteError: a weight is NaN or infinite.
        """
        refuse_unfoldable(sae, input_scale)
        tensors = {name: tensor.detach() for name, tensor in sae.state_dict().items()}
        for name, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise NonFiniteError(
                    f"{name} of this {type(sae).__name__} holds NaN or infinity; expected finite "
                    "weights: load or train it again"
                )
        double = {
            name: tensors.pop(name).double()
            for name in ("W_enc", "W_dec", "b_dec", "b_enc", "b_gate", "b_mag")
            if name in tensors
        }
        folded = cls(double.pop("W_enc"), double.pop("W_dec"), double.pop("b_dec"), double, tensors)
        # In the order in which SAELens applies them, from the encoder outwards: the shift by b_dec
        # comes before the multiplication by norms, and the scaling of the inputs is outermost.
        if sae.cfg.apply_b_dec_to_input:
            folded = folded.shifted(-folded.b_dec)
        if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
            folded = folded.rescaled(folded.W_dec.norm(dim=1), thresholds=False)
        return folded if input_scale is None else folded.scaled_input(input_scale)

    def shifted(self, offset: Tensor) -> "FoldedSae":
        """Weights whose encoder reads ``x + offset`` [d] instead of ``x``: only biases change."""
        # (x + o) W_enc + b = x W_enc + (b + o W_enc); the magnitudes of a gated SAE read
        # W_enc exp(r_mag), so that b_mag ← b_mag + (o W_enc) exp(r_mag).
        shift = offset @ self.W_enc
        factors = {
            "b_enc": 1.0,
            "b_gate": 1.0,
            "b_mag": self.other_weights["r_mag"].double().exp()
            if "r_mag" in self.other_weights
            else 1.0,
        }
        return replace(
            self, biases={name: bias + shift * factors[name] for name, bias in self.biases.items()}
        )

    def rescaled(self, lengths: Tensor, *, thresholds: bool) -> "FoldedSae":
        """Weights with activations multiplied by ``lengths`` [feature], decoder rows divided by it.

        Args:
            lengths: positive factors; rows of length 0 stay 0.
            thresholds: True multiplies JumpReLU's thresholds too; False is for an SAE that
                SAELens itself multiplies by the norms before it compares.
        """
        # f ← f n and W_dec ← W_dec / n leave f W_dec unchanged; σ(n z) = n σ(z) for n > 0.
        rows = rearrange(torch.where(lengths > 0, lengths, 1.0), "feature -> feature 1")
        others = self.other_weights
        if thresholds and "threshold" in others:
            others = others | {"threshold": others["threshold"].double() * lengths}
        biases = {name: bias * lengths for name, bias in self.biases.items()}
        return replace(
            self,
            W_enc=self.W_enc * lengths,
            W_dec=self.W_dec / rows,
            biases=biases,
            other_weights=others,
        )

    def scaled_input(self, scale: float) -> "FoldedSae":
        """Weights of ``x ↦ sae(s x) / s``."""
        # σ(s x W_enc + b) and (f W_dec + b_dec) / s.
        return replace(
            self, W_enc=self.W_enc * scale, W_dec=self.W_dec / scale, b_dec=self.b_dec / scale
        )

    def build(self, sae: Any, metadata: dict[str, Any] | None = None) -> Any:
        """SAELens object of ``sae``'s class and settings with these weights, at least float32.

        Flags of the config whose effect is folded into the weights are cleared.

        Args:
            sae: the SAE whose class, settings, device and mode are used.
            metadata: metadata of the new SAE; that of ``sae`` by default.
        """
        from sae_lens.saes.sae import SAEMetadata

        dtype, device = torch.promote_types(sae.W_enc.dtype, torch.float32), sae.W_enc.device
        cfg = copy.deepcopy(sae.cfg)
        cfg.d_in, cfg.dtype = self.W_enc.shape[0], str(dtype).removeprefix("torch.")
        cfg.apply_b_dec_to_input, cfg.normalize_activations = False, "none"
        # Only some configs have this flag.
        if hasattr(cfg, "rescale_acts_by_decoder_norm"):
            cfg.rescale_acts_by_decoder_norm = False
        records = cfg.metadata if metadata is None else SAEMetadata(**metadata)
        # The metadata comes last: on construction SAELens warns of model_from_pretrained_kwargs.
        cfg.metadata = SAEMetadata()
        # SAELens draws random weights on construction, which takes longer than the whole transfer;
        # the meta device draws nothing.
        cfg.device = "meta"
        built = type(sae)(cfg)
        weights = {"W_enc": self.W_enc, "W_dec": self.W_dec, "b_dec": self.b_dec}
        weights |= self.biases | self.other_weights
        state = {name: self._owned(name, tensor, dtype) for name, tensor in weights.items()}
        # assign=True puts these tensors into the module; a copy into meta tensors would do nothing.
        built.load_state_dict(state, assign=True)
        built.cfg.device, built.cfg.metadata = str(device), records
        return built.to(device=device, dtype=dtype).train(sae.training)

    @staticmethod
    def _owned(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """A contiguous copy of a weight in the precision in which SAELens stores it."""
        # SAELens stores the running threshold of BatchTopK in float64.
        precision = torch.float64 if name == "topk_threshold" else dtype
        return tensor.detach().to(precision, copy=True).contiguous()


def refuse_unfoldable(sae: Any, input_scale: float | None = None) -> None:
    """Raise an error with the reason if a SAELens SAE cannot be written as a `FoldedSae`.

    Raises:
        TypeError: ``sae`` is no SAE of SAELens.
        ValueError: its encoder, its class or its input normalisation cannot be folded, or
            ``input_scale`` is missing, superfluous or not a positive finite factor.
    """
    from sae_lens.saes.sae import SAE

    if not isinstance(sae, SAE):
        raise TypeError(
            f"a {type(sae).__name__} is no SAE of SAELens; give one, such as "
            "SAE.load_from_disk(folder)"
        )
    # The most general reason is checked first, so that the message names it.
    architecture = sae.cfg.architecture()
    if architecture not in AFFINE:
        reason = _NOT_AFFINE.get(architecture, "nothing is known about its encoder")
        raise ValueError(
            f"an SAE of architecture {architecture!r} cannot be transferred: {reason}; expected "
            f"one of {', '.join(AFFINE)}"
        )
    _refuse_own_class(sae, architecture)
    if sae.cfg.reshape_activations != "none":
        raise ValueError(
            f"this SAE reshapes its input ({sae.cfg.reshape_activations!r}: heads side by side); "
            "expected an SAE of one residual stream, with reshape_activations='none'"
        )
    _refuse_normalisation(sae.cfg.normalize_activations, input_scale)
    refuse_unfolded_input(sae, input_scale)


def refuse_unfolded_input(sae: Any, input_scale: float | None = None) -> None:
    """Raise ValueError if an SAE must be given inputs that its own ``encode`` does not scale.

    SAELens scales or whitens such inputs in its trainer. Without that, ``encode`` returns other
    features than those of the training, without an error.

    Args:
        sae: a SAELens SAE, or an object with ``encode``; its config is read if there is any.
        input_scale: the factor on the inputs, if the caller applies it.
    """
    normalisation = getattr(getattr(sae, "cfg", None), "normalize_activations", None)
    scaled = normalisation == "expected_average_only_in" and input_scale is not None
    if normalisation in _UNFOLDED_INPUT and not scaled:
        raise ValueError(
            f"normalize_activations is {normalisation!r}: {_UNFOLDED_INPUT[normalisation]}"
        )


def _refuse_own_class(sae: Any, architecture: str) -> None:
    """Raise ValueError unless the SAE's class is SAELens' own for its architecture."""
    from sae_lens.registry import get_sae_class, get_sae_training_class

    lookups: tuple[Callable[[str], Any], ...] = (get_sae_class, get_sae_training_class)
    known = []
    for lookup in lookups:
        try:
            known.append(lookup(architecture)[0])
        except KeyError:  # SAELens has BatchTopK for training only
            continue
    # `type(...) in`, not isinstance: a subclass may have another encoder.
    if type(sae) not in known:
        names = " or ".join(kind.__name__ for kind in known)
        raise ValueError(
            f"{type(sae).__name__} is not SAELens' own class for {architecture!r}; expected "
            f"{names}, whose encoder is known"
        )


def _refuse_normalisation(normalisation: str, input_scale: float | None) -> None:
    """Raise ValueError unless the input normalisation is affine and ``input_scale`` fits it."""
    if normalisation in _BAD_INPUT:
        raise ValueError(
            f"normalize_activations is {normalisation!r}: {_BAD_INPUT[normalisation]}; expected "
            "an SAE with normalize_activations='none'"
        )
    if input_scale is not None and normalisation != "expected_average_only_in":
        raise ValueError(
            f"normalize_activations is {normalisation!r} and input_scale is {input_scale}; "
            "expected no factor for this SAE: leave input_scale out"
        )
    if input_scale is not None and not 0 < input_scale < float("inf"):
        raise ValueError(f"input_scale is {input_scale}; expected a positive finite factor")
