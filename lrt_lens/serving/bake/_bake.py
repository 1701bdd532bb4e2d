"""A steering vector in the weights of a model, so that any engine serves it without a plug-in.

    folder = bake_vector(vector, "my-model", "my-model-steered", scale=4.0)
    AutoModelForCausalLM.from_pretrained(folder)          # plain transformers, vLLM, …

Problem: engines have no hooks, and each plug-in has its own rules of layers and positions.
Mechanism: scale · v becomes a bias behind the block (existing biases are kept), of a model that
computes the same without it; see `lrt_lens.serving.bake._shifts` for the places, `_ablated` for
ablation and `_adapter` for LoRA. The files are loaded by transformers and compared with our hooks
before the folder appears.

Limits: a bias acts at every position, special tokens included; the hooks leave out the first
``vector.skip_first``. Ablation by weights is another intervention than that of a hook.
"""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from lrt_lens._files import write_atomically
from lrt_lens._folders import write_folder
from lrt_lens.adapters.vectors._ablation import ablation_hooks
from lrt_lens.adapters.vectors._intervention import Intervention
from lrt_lens.adapters.vectors._steering_hook import adding, setting
from lrt_lens.adapters.vectors._steering_vector import SteeringVector
from lrt_lens.adapters.vectors._strength import steered_positions, with_defaults
from lrt_lens.models._hook_points import resolve
from lrt_lens.models._hooked_model import HookedModel, load_model
from lrt_lens.models._hugging_face_engine import HuggingFaceEngine
from lrt_lens.models._loading import ModelLike, torch_dtype
from lrt_lens.models._ownership import entering
from lrt_lens.serving.bake._ablated import ablate, refuse_component
from lrt_lens.serving.bake._adapter import (
    RankOne,
    adapter_of_ablation,
    adapter_of_shifts,
    require_peft,
    write_adapter,
)
from lrt_lens.serving.bake._checkpoint import BakedCheckpoint
from lrt_lens.serving.bake._comparison import (
    compare_logits,
    largest_component,
    load_baked,
    quiet_transformers,
)
from lrt_lens.serving.bake._probe import StreamProbe
from lrt_lens.serving.bake._record import (
    ABLATION_NOTE,
    RECORD_NAME,
    bake_card,
    record_of,
    refuse_other_folder,
)
from lrt_lens.serving.bake._shifts import Shift, add_shifts

logger = logging.getLogger(__name__)


def bake_vector(
    vector: SteeringVector | Sequence[SteeringVector],
    model: ModelLike,
    folder: str | Path,
    *,
    scale: float | None = None,
    mode: Literal["add", "ablate"] | None = None,
    form: Literal["weights", "lora"] = "weights",
    dtype: str | torch.dtype | None = None,
) -> Path:
    """Return the folder of a model that is steered by its own weights.

    With ``form="weights"`` it is an ordinary Hugging Face folder, with ``"lora"`` an adapter of
    PEFT. Beside the weights, ``lrt_lens_bake.json`` and ``README.md`` say what was changed and what
    was measured. The model in memory stays as it is.

    ``mode="add"`` adds scale · v at the vector's hook point. ``mode="ablate"`` projects the
    direction out of everything that writes to the residual stream (Arditi et al., arXiv 2406.11717,
    §4.1). That is ablation at every hook point, and not what ``vector.apply(mode="ablate")`` does
    at one. A bake acts at every position, special tokens included; the hook leaves out the first
    ``vector.skip_first``, unless it acts at a strength that was calibrated at ``"every"`` one.

    Args:
        vector: a vector, or vectors at several hook points (one, for ``"ablate"``).
        model: the model that is steered, as `HookedModel.load` takes it.
        folder: a new or empty folder, or an earlier bake, which is replaced as a whole.
        scale: multiple of the vector that is added; 1 for ``"ablate"``. Default: that of the
            vector's ``strength``, else 1.
        mode: ``"add"`` or ``"ablate"``. Default: that of the vector's ``strength``, else ``"add"``.
        form: ``"weights"``, or ``"lora"`` for an adapter of rank 1 (needs ``lrt-lens[peft]``).
        dtype: dtype of the weights that are written. Default: that of a model in memory, or of the
            checkpoint if ``model`` is a name.

    Raises:
        FileFormatError: the folder holds something else.
        HookPointError: the architecture has no place for the vector; the message names another way.
        ImportError: PEFT is not installed.
        MismatchError: the vector belongs to another model, or the written files do not compute what
            the hook does.
        ValueError: a wrong scale, mode or form, a quantised model, or one of TransformerLens.
    """
    vectors = (vector,) if isinstance(vector, SteeringVector) else tuple(vector)
    settled_scale, settled_mode, left_out = _strength(vectors, scale, mode)
    _check_options(vectors, settled_scale, settled_mode, form)
    folder = Path(folder)
    earlier = refuse_other_folder(folder)
    if form == "lora":
        require_peft()
    hooked = load_model(model)
    _refuse_unbakeable(hooked)
    for one in vectors:
        one.refuse_other_model(hooked)
    vectors = tuple(replace(one, hook=resolve(one.hook, hooked)) for one in vectors)
    written_dtype = _dtype(dtype, model, hooked)
    baker = _Baker(hooked, vectors, settled_scale, settled_mode, form, written_dtype, left_out)
    record: dict[str, Any] = {}

    def write(staging: Path) -> None:
        record.update(baker.write(staging))

    last = "config.json" if form == "weights" else "adapter_config.json"
    # No intervention of the caller acts on what is measured here.
    with entering(alone=True), quiet_transformers():
        folder = write_folder(folder, write, last=last)
    for name in set(earlier) - {*record["files"], RECORD_NAME}:
        (folder / name).unlink(missing_ok=True)
    _tell(record, folder)
    return folder


def _strength(
    vectors: Sequence[SteeringVector], scale: float | None, mode: Any
) -> tuple[float, Any, int]:
    """Return scale and mode, by default those that all vectors remember.

    The third value is the number of first positions that the hooks of `apply` leave out then.
    """
    known = {one.strength for one in vectors}
    if len(known) > 1 and (scale is None or mode is None):
        raise ValueError(
            f"the vectors have {len(known)} different strengths; give scale= and mode="
        )
    strength = known.pop() if len(known) == 1 else None
    found = with_defaults(strength, scale, mode, None)
    hooks = [steered_positions(strength, scale, mode, None, one.skip_first) for one in vectors]
    left_out = max((0 if where == "every" else skip for where, skip in hooks), default=0)
    return found[0], found[1], left_out


class _Baker:
    """Vectors, a model and options; writes the files of a bake into an empty folder."""

    def __init__(
        self,
        model: HookedModel,
        vectors: Sequence[SteeringVector],
        scale: float,
        mode: str,
        form: str,
        dtype: torch.dtype,
        left_out: int,
    ) -> None:
        self.model, self.vectors, self.scale = model, vectors, scale
        self.mode, self.form, self.dtype, self.left_out = mode, form, dtype, left_out
        self.hf: Any = model.engine.model
        self.probe = StreamProbe(model)

    def write(self, staging: Path) -> dict[str, Any]:
        """Write and compare, and return the record."""
        changes = self._write_weights(staging)
        baked = load_baked(staging, self.hf, self.form)
        measured = self._measure(baked)
        fields = {
            "mode": self.mode,
            "form": self.form,
            "scale": self.scale,
            "dtype": str(self.dtype).removeprefix("torch."),
            "architecture": {
                "from": type(self.hf).__name__,
                "to": type(baked).__name__ if self.form == "weights" else "PEFT adapter",
            },
            "changes": changes,
            "measured": measured,
            "compared_with": "the hook at all positions"
            if self.mode == "add"
            else "ablation at every hook point and position",
        }
        record = record_of(self.model.identity, self.vectors, fields, left_out=self.left_out)
        _write_text(staging / "README.md", bake_card(record))
        record["files"] = sorted({path.name for path in staging.iterdir()} | {RECORD_NAME})
        _write_text(staging / RECORD_NAME, json.dumps(record, indent=1, ensure_ascii=False))
        return record

    def _write_weights(self, staging: Path) -> dict[str, str]:
        if self.form == "lora":
            return write_adapter(self.probe, self._adapter(), staging)
        checkpoint = BakedCheckpoint.of(self.hf, self.dtype)
        if self.mode == "add":
            add_shifts(checkpoint, self.probe, self._shifts())
        else:
            ablate(checkpoint, self.probe, self.vectors[0].direction)
        checkpoint.save(staging)
        self.model.tokenizer.save_pretrained(staging)
        return checkpoint.changes

    def _adapter(self) -> list[RankOne]:
        if self.mode == "add":
            return adapter_of_shifts(self.probe, self._shifts())
        return adapter_of_ablation(self.probe, self.vectors[0].direction)

    def _shifts(self) -> list[Shift]:
        # In float64, so that scale · v is rounded once, in the dtype of the weights.
        return [Shift(one.hook, one.direction.double().cpu() * self.scale) for one in self.vectors]

    def _measure(self, baked: Any) -> dict[str, Any]:
        """Return what was measured, after a check that it is what the vector should do."""
        hooks = self._hooks()
        running = next(self.hf.parameters()).dtype
        coarser = max((running, self.dtype), key=lambda dtype: torch.finfo(dtype).eps)
        measured = compare_logits(self.model, hooks, baked, dtype=coarser)
        if self.mode == "add":
            measured.refuse_other_function(self.model.name)
            return measured.fields
        inner = baked.get_base_model() if self.form == "lora" else baked
        component = largest_component(
            self.model, inner, self.vectors[0].direction, self.model.tokenizer
        )
        refuse_component(self.model.name, component, coarser)
        return measured.fields | {"largest_component": component}

    def _hooks(self) -> dict[int | str, Any]:
        """Return functions that change the stream at all positions, where bake and hook act."""
        changes: dict[int | str, Any] = {
            one.hook: adding(one.direction * self.scale) for one in self.vectors
        }
        if self.mode == "ablate":
            names = ablation_hooks(self.model, self.vectors[0].direction)
            changes = dict.fromkeys(names, setting(self.vectors[0].direction, 0.0))
        return {name: partial(_with_hook_name, change) for name, change in changes.items()}


def _with_hook_name(change: Any, activation: torch.Tensor, hook: Any = None) -> Any:
    return change(activation)


def _check_options(vectors: Sequence[SteeringVector], scale: float, mode: str, form: str) -> None:
    if mode not in ("add", "ablate") or form not in ("weights", "lora"):
        raise ValueError(
            f"mode {mode!r}, form {form!r}; expected add or ablate, and weights or lora (a clamp"
            " depends on the stream, which no weight does)"
        )
    Intervention.of(vectors)  # refuses none, and two at one hook point
    if mode == "add" and not (math.isfinite(scale) and scale != 0):
        raise ValueError(
            f"scale is {scale}; expected a finite number other than 0 (calibrate_scale returns one)"
        )
    if mode == "ablate" and scale != 1:
        raise ValueError(
            f"mode 'ablate' with scale {scale}; expected 1: weights that write a share less along"
            " the direction are not the share that the hook takes away"
        )
    if mode == "ablate" and len(vectors) != 1:
        raise ValueError(
            f"mode 'ablate' with {len(vectors)} vectors; expected one, because it acts at every"
            " hook point: bake them one after the other, each into the last one's folder"
        )


def _refuse_unbakeable(model: HookedModel) -> None:
    """Raise an error unless the weights are those of an ordinary Hugging Face model."""
    if not isinstance(model.engine, HuggingFaceEngine):
        raise ValueError(
            f"{model.name!r} runs in TransformerLens ({type(model.bridge).__name__}), whose modules"
            " and weights are no Hugging Face folder; give the Hugging Face model, its folder or"
            " its hub id"
        )
    hf: Any = model.engine.model
    quantised = getattr(hf, "is_quantized", False) or getattr(hf, "hf_quantizer", None) is not None
    packed = [
        name
        for name, tensor in hf.state_dict().items()
        if tensor.ndim > 1 and not tensor.is_floating_point() and tensor.dtype != torch.bool
    ]
    subclasses = [n for n, p in hf.named_parameters() if hasattr(p, "__tensor_flatten__")]
    if quantised or packed or subclasses:
        raise ValueError(
            f"the weights of {model.name!r} are quantised"
            f" ({(packed + subclasses + ['by its config'])[0]}); expected floating point numbers:"
            " load the model without quantisation and quantise the baked folder"
        )
    if any(parameter.device.type == "meta" for parameter in hf.parameters()):
        raise ValueError(
            f"some weights of {model.name!r} are not in memory (offloaded); load it without"
            " offloading"
        )


def _dtype(asked: Any, model: ModelLike, hooked: HookedModel) -> torch.dtype:
    """Return the dtype of the weights that are written."""
    if asked is not None:
        return torch_dtype(asked)
    running = next(hooked.engine.model.parameters()).dtype
    if not isinstance(model, str | Path):
        return running
    # A checkpoint in bfloat16 is run in float32 here, and stays bfloat16.
    from transformers import AutoConfig

    try:
        stored = AutoConfig.from_pretrained(model).get_text_config().dtype
    except (OSError, ValueError):  # code of its own, which the loading has trusted
        stored = None
    return running if stored is None else torch_dtype(stored)


def _write_text(path: Path, text: str) -> None:
    octets = text.encode("utf-8", errors="replace")
    write_atomically(path, lambda temporary: temporary.write_bytes(octets))


def _tell(record: dict[str, Any], folder: Path) -> None:
    """Log what differs from the hook."""
    differ = record["positions"]["differ"]
    if record["mode"] == "ablate":
        logger.warning("%s: %s", folder, ABLATION_NOTE)
    if differ:
        logger.warning(
            "%s is steered at every position; the hook leaves out positions %d to %d",
            folder,
            differ[0],
            differ[-1],
        )
    added = [name for name, change in record["changes"].items() if "new block" in change]
    if added:
        logger.warning(
            "%s has %d block(s) more (%s), because no bias there is an addition to the stream; an"
            " engine must take the kinds of layers from layer_types in its config",
            folder,
            len(added),
            ", ".join(added),
        )
    difference = record["measured"]["largest_difference"]
    logger.info("%s: max |Δ logits| %.2g against %s", folder, difference, record["compared_with"])
