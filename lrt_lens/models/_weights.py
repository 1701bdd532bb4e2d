"""One hash of all weights of a model, wherever its modules keep them.

Problem: two models are one model only if every weight agrees, and quantised weights lie in buffers,
in packed objects of C++, in tensors within tensors, or in attributes. Mechanism: parameters and
saved buffers are read at the speed of memory; modules that save more than these (as the dynamically
quantised layers of torch do) are asked for what they save, and packed objects are unpacked.

    weights_hash(model)                                 # '3f0c…', 16 hexadecimal digits

Limits: a change below the rounding of bfloat16 is not noticed. What a module keeps in objects of
unknown classes is not read; a warning names it.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import xxhash
from torch import Tensor, nn

logger = logging.getLogger(__name__)

_HASHED_AT_ONCE = 1 << 24
"""Number of values that are converted and hashed at a time."""
_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.qscheme, torch.Size)
"""Classes of values whose ``repr`` says all of them."""


def weights_hash(model: nn.Module) -> str:
    """Return a hash of every weight of a model, with its name.

    One checkpoint has one hash in float32 and bfloat16. The weights are read once, at the speed of
    memory.
    """
    # Tied weights count once, under the first of their names.
    names: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in _saved_tensors(model):
        if id(tensor) not in names or name < names[id(tensor)][0]:
            names[id(tensor)] = name, tensor
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(names.values(), key=lambda entry: entry[0]):
        # TransformerLens adds biases of zeros, which change nothing.
        if name.endswith("bias") and tensor.device.type != "meta" and not tensor.any():
            continue
        digest.update(f"{name}{list(tensor.shape)}".encode())
        digest.update(_content_hash(tensor))
    for name, content in sorted(_held_elsewhere(model)):
        digest.update(name.encode())
        digest.update(content)
    return digest.hexdigest()


def _saved_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) of all parameters and of the buffers that a checkpoint holds."""
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for name, tensor in module._parameters.items():
            if tensor is not None:
                yield prefix + name, tensor
        # Other buffers (masks, rotary frequencies) follow from the config.
        for name, tensor in module._buffers.items():
            if tensor is not None and name not in module._non_persistent_buffers_set:
                yield prefix + name, tensor


def _held_elsewhere(model: nn.Module) -> Iterator[tuple[str, bytes]]:
    """Yield (name, hash) of the weights that are neither parameters nor saved buffers."""
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        known = {**module._parameters, **module._buffers}
        for name, value in _saved_besides(module).items():
            if known.get(name) is None or value is not known[name]:
                yield from _hashed(f"{prefix}{name}", value)
        for name, value in vars(module).items():
            # Other tensors among the attributes (rotary frequencies, masks) follow from the config.
            if (isinstance(value, Tensor) and "weight" in name) or _unpacker(value) is not None:
                yield from _hashed(f"{prefix}{name}", value)
        # bitsandbytes keeps scales as attributes of the parameter that they belong to.
        for name, parameter in module._parameters.items():
            for key, value in getattr(parameter, "__dict__", {}).items():
                if isinstance(value, Tensor):
                    yield from _hashed(f"{prefix}{name}.{key}", value)


def _saved_besides(module: nn.Module) -> dict[str, Any]:
    """Return what a module writes into a checkpoint in a way of its own."""
    kind, saved = type(module), dict[str, Any]()
    if kind._save_to_state_dict is not nn.Module._save_to_state_dict:
        module._save_to_state_dict(saved, "", True)
    if kind.get_extra_state is not nn.Module.get_extra_state:
        saved["extra_state"] = module.get_extra_state()
    return saved


def _unpacker(value: Any) -> Callable[[], Any] | None:
    """Return the function that unpacks an object of C++ which holds weights; None for others."""
    if not isinstance(value, torch.ScriptObject):
        return None
    for name in ("unpack", "__getstate__"):
        if value._has_method(name):  # pyright: ignore[reportAttributeAccessIssue] (not in stubs)
            return getattr(value, name)
    return None


def _hashed(name: str, value: Any) -> Iterator[tuple[str, bytes]]:
    """Yield (name, hash) of each tensor, number or text within a value."""
    unpack = _unpacker(value)
    if unpack is not None:
        yield from _hashed(name, unpack())
    elif isinstance(value, Tensor):
        yield f"{name}{list(value.shape)}", _content_hash(value)
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from _hashed(f"{name}.{key}", value[key])
    elif isinstance(value, list | tuple):
        for number, one in enumerate(value):
            yield from _hashed(f"{name}.{number}", one)
    elif isinstance(value, _PLAIN):
        yield name, repr(value).encode()
    else:
        logger.warning(
            "%r holds weights in an object of class %s, which cannot be read: two models that"
            " differ there alone count as one",
            name,
            type(value).__name__,
        )


def _content_hash(tensor: Tensor) -> bytes:
    """Return a hash of a tensor's values; floats are rounded to bfloat16.

    Weights that are offloaded (on the device ``meta``) have no values here and count by shape.
    """
    content = xxhash.xxh3_128()
    if tensor.device.type == "meta":
        return content.digest()
    for part in _plain_parts(tensor.detach()):
        # In pieces, so that the copies need little memory.
        for piece in part.reshape(-1).split(_HASHED_AT_ONCE):
            if piece.is_floating_point() and piece.element_size() > 1:
                # Rounding to bfloat16 gives one hash for a checkpoint in float32 or bfloat16.
                # NumPy has no bfloat16: the two bytes of each value are read as an integer.
                piece = piece.to(torch.bfloat16).view(torch.int16)
            content.update(piece.cpu().contiguous().view(torch.uint8).numpy().data)
    return content.digest()


def _plain_parts(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the plain tensors that a tensor is made of: itself, or integers and their scales."""
    if tensor.is_quantized:
        yield tensor.int_repr()
        if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
            yield torch.tensor([tensor.q_scale(), float(tensor.q_zero_point())])
        else:
            yield tensor.q_per_channel_scales()
            yield tensor.q_per_channel_zero_points()
    elif (flatten := getattr(tensor, "__tensor_flatten__", None)) is not None:
        # Tensors of torchao are classes of their own around plain ones.
        for name in flatten()[0]:
            yield from _plain_parts(getattr(tensor, name))
    else:
        yield tensor
