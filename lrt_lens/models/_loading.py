"""From whatever names or is a model to a `HookedModel`.

The Hugging Face model is loaded by us, with SDPA attention, and handed to the bridge: a bridge that
boots by name forces eager attention, which is slower and takes memory quadratic in the context.
Architectures without SDPA fall back to their own default.
"""

import copy
import logging
from pathlib import Path
from typing import Any, cast

import torch

from lrt_lens.errors import MismatchError
from lrt_lens.models._hooked_model import HookedModel, model_name, tokenizer_hash

logger = logging.getLogger(__name__)

ModelLike = Any
"""A hub id, a local folder, a Hugging Face model, a ``TransformerBridge``, a ``HookedTransformer``
or a `HookedModel`.
"""


def load_model(
    model: ModelLike,
    *,
    tokenizer: Any = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    device_map: Any = None,
    revision: str | None = None,
    prepend_bos: bool | None = None,
    trust_remote_code: bool = False,
) -> HookedModel:
    """See `HookedModel.load`. A model that is loaded already keeps its device and dtype."""
    if isinstance(model, HookedModel):
        if prepend_bos is not None and prepend_bos != model.prepend_bos:
            raise MismatchError(
                f"{model.name!r} was loaded with prepend_bos={model.prepend_bos}; asked for {prepend_bos}: load it again with that"
            )
        if tokenizer is not None and tokenizer_hash(tokenizer) != model.identity.tokenizer_hash:
            raise MismatchError(
                f"{model.name!r} was loaded with a tokenizer of {len(model.tokenizer)} tokens; asked for another, of {len(tokenizer)}: "
                "to have it read through that one, load its bridge again, as in HookedModel.load(model.bridge, tokenizer=...)"
            )
        return model
    if isinstance(model, str | Path):
        loaded, tokenizer = _from_pretrained(
            str(model), tokenizer, device, dtype, device_map, revision, trust_remote_code
        )
        return HookedModel(
            _bridge(loaded, tokenizer, str(model)),
            tokenizer=tokenizer,
            name=model_name(str(model)),
            revision=revision or "unknown",
            prepend_bos=prepend_bos,
        )
    if hasattr(model, "hook_dict"):
        return HookedModel(model, tokenizer=tokenizer, prepend_bos=prepend_bos)
    if hasattr(model, "config") and hasattr(model, "forward"):
        name = str(getattr(model.config, "_name_or_path", "") or type(model).__name__)
        tokenizer = tokenizer or _tokenizer(name, revision)
        return HookedModel(
            _bridge(model, tokenizer, name),
            tokenizer=tokenizer,
            name=model_name(name),
            prepend_bos=prepend_bos,
        )
    return HookedModel(model)


def _from_pretrained(
    name: str,
    tokenizer: Any,
    device: Any,
    dtype: str | torch.dtype | None,
    device_map: Any,
    revision: str | None,
    trust: bool,
) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM

    if device is not None and device_map is not None:
        raise ValueError(
            f"device={device!r} and device_map={device_map!r} exclude each other; give one"
        )
    options: dict[str, Any] = {
        "dtype": torch_dtype(dtype),
        "revision": revision,
        "trust_remote_code": trust,
    }
    if device_map is not None:
        options["device_map"] = device_map
    options = {key: value for key, value in options.items() if value is not None}
    threads = torch.get_num_threads()
    try:
        loaded = AutoModelForCausalLM.from_pretrained(name, attn_implementation="sdpa", **options)
    except ValueError as error:
        if "scaled_dot_product_attention" not in str(error):
            raise
        logger.info("%s has no SDPA attention; using its default", name)
        loaded = AutoModelForCausalLM.from_pretrained(name, **options)
    except OSError as error:
        raise OSError(
            f"no model at {name!r}: neither a folder here nor a hub model that can be reached, revision {revision!r} ({error})"
        ) from error
    finally:
        # Importing a model class of transformers resets a thread count of one.
        torch.set_num_threads(threads)
    if device_map is None:
        loaded = cast(torch.nn.Module, loaded).to(torch.device(device or "cpu"))
    return loaded.eval(), tokenizer or _tokenizer(name, revision, trust)


def _tokenizer(name: str, revision: str | None = None, trust: bool = False) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            name, **({"revision": revision} if revision else {}), trust_remote_code=trust
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no tokenizer found at {name!r} ({error}); pass tokenizer=AutoTokenizer.from_pretrained(...)"
        ) from error


def torch_dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    """A floating point type from its name; float32 for None."""
    if dtype is None:
        return torch.float32
    resolved = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(resolved, torch.dtype) or not resolved.is_floating_point:
        raise ValueError(
            f"dtype {dtype!r} is no floating point type; use 'float32', 'bfloat16' or 'float16'"
        )
    return resolved


def _bridge(model: Any, tokenizer: Any, name: str) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    parameter = next(model.parameters())
    device = None if getattr(model, "hf_device_map", None) else parameter.device
    # The bridge changes its tokenizer: missing special tokens are made up, and, unless it says that
    # it adds BOS already, it is loaded again so that it does. That is not how the model was
    # trained, so the bridge gets a copy that it leaves as it is.
    copied = copy.deepcopy(tokenizer)
    copied.init_kwargs = {"name_or_path": name, **copied.init_kwargs, "add_bos_token": True}
    return TransformerBridge.boot_transformers(
        name, hf_model=model.eval(), tokenizer=copied, dtype=parameter.dtype, device=device
    )
