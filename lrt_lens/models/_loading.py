"""Hugging Face models, tokenizers and TransformerLens bridges: what `HookedModel.load` builds on.

Problem: a bridge that loads a model by name forces eager attention, which is slower and needs
memory quadratic in the context length. Mechanism: `load_pretrained` loads the Hugging Face model
with SDPA attention, and `boot_bridge` wraps that model.

    model, tokenizer = load_pretrained("EleutherAI/pythia-70m-deduped")
    bridge = boot_bridge(model, tokenizer, "EleutherAI/pythia-70m-deduped")

Limits: an architecture without SDPA is loaded with its own default attention.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch

from lrt_lens._log_stream import is_log
from lrt_lens.models._tokenizer_copy import tokenizer_copy

logger = logging.getLogger(__name__)

_NO_NAME = "model in memory"
"""Name under which TransformerLens gets every model.

The blanks make it no name of a repository, so that nothing can be asked of the hub; some names of
users are aliases in TransformerLens, which announces a download.
"""
ModelLike = Any
"""A hub id, a local folder, a Hugging Face model, a ``TransformerBridge``, a ``HookedTransformer``
or a `HookedModel`.
"""


def model_origin(model: ModelLike) -> str:
    """Return the hub id or folder that ``model`` is or was loaded from, else its class's name."""
    if isinstance(model, str | Path):
        return str(model)
    if hasattr(model, "cfg"):
        return str(getattr(model.cfg, "model_name", type(model).__name__))
    config = getattr(model, "config", None)
    return str(getattr(config, "_name_or_path", "") or type(model).__name__)


def load_pretrained(
    name: str,
    *,
    tokenizer: Any = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    device_map: Any = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[Any, Any]:
    """Return (Hugging Face model, tokenizer) of a hub id or folder, in evaluation mode.

    Raises:
        ValueError: ``device`` and ``device_map`` are both given, there is no such device or no
            tokenizer.
        OSError: there is no model of this name.
    """
    from transformers import AutoModelForCausalLM

    if device is not None and device_map is not None:
        raise ValueError(
            f"device={device!r} and device_map={device_map!r} exclude each other; give one"
        )
    if device is not None:
        checked_device(device)
    options: dict[str, Any] = {
        "dtype": torch_dtype(dtype),
        "revision": revision,
        "trust_remote_code": trust_remote_code,
        "device_map": device_map,
    }
    # None is left out, so that the defaults of transformers apply.
    options = {key: value for key, value in options.items() if value is not None}
    with thread_count_unchanged(), quiet_in_logs():
        try:
            model = AutoModelForCausalLM.from_pretrained(
                name, attn_implementation="sdpa", **options
            )
        except ValueError as error:
            # transformers has no error class of its own for a model without SDPA.
            if "scaled_dot_product_attention" not in str(error):
                raise
            logger.info("%s has no SDPA attention; loading it with its default attention", name)
            model = AutoModelForCausalLM.from_pretrained(name, **options)
        except OSError as error:
            at = f" at revision {revision!r}" if revision else ""
            reason = str(error).strip().split("\n")[0]
            raise OSError(
                f"no model at {name!r}{at}: neither a local folder nor a hub model that can be"
                f" reached ({reason}); check the name, or give the folder that holds config.json"
            ) from error
    if device_map is None:
        model = cast(torch.nn.Module, model).to(torch.device(device or "cpu"))
    return model.eval(), tokenizer or load_tokenizer(name, revision, trust_remote_code)


def checked_device(device: str | torch.device) -> torch.device:
    """Return a device on which tensors can be created.

    Raises:
        ValueError: there is no such device here; the message lists those that there are.
    """
    try:
        # The allocation is the test: PyTorch has no list of the devices that work.
        # A tensor on "meta" has no values, and this fails.
        torch.empty(1, device=device).fill_(0).cpu()
        return torch.device(device)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        devices += ["mps"] * torch.backends.mps.is_available()
        reason = str(error).strip().split("\n")[0][:200]
        raise ValueError(
            f"device is {str(device)!r}, and PyTorch finds no such device here; choose from"
            f" {devices}, or install a PyTorch that is built for yours ({reason})"
        ) from error


@contextmanager
def thread_count_unchanged() -> Iterator[None]:
    """Restore torch's number of threads at the end of the ``with`` block.

    When transformers imports a model class it sets a thread count of one back to the default.
    """
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def quiet_in_logs() -> Iterator[None]:
    """Switch the bars of transformers off in the ``with`` block if stderr is a log."""
    from transformers.utils import logging as bars

    if not is_log() or not bars.is_progress_bar_enabled():
        yield
        return
    bars.disable_progress_bar()
    try:
        yield
    finally:
        bars.enable_progress_bar()


def load_tokenizer(name: str, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """Return the tokenizer of a hub id or folder; ValueError says what to pass if there is none."""
    from transformers import AutoTokenizer

    options = {"revision": revision} if revision else {}
    try:
        return AutoTokenizer.from_pretrained(name, **options, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no tokenizer at {name!r} ({error}); pass tokenizer=AutoTokenizer.from_pretrained(...)"
        ) from error


def torch_dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    """Return a floating-point dtype from its name or itself; float32 for None."""
    if dtype is None:
        return torch.float32
    resolved = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(resolved, torch.dtype) or not resolved.is_floating_point:
        raise ValueError(
            f"dtype is {dtype!r}, which is no floating point type;"
            " use 'float32', 'bfloat16' or 'float16'"
        )
    return resolved


def boot_bridge(model: Any, tokenizer: Any, name: str) -> Any:
    """Return a ``TransformerBridge`` around a Hugging Face model, on the model's own device.

    ``tokenizer`` stays unchanged. Nothing is installed and nothing is asked of the hub.

    Raises:
        ValueError: the model reads images or sound too; `text_model` has what can be bridged.
    """
    from transformer_lens.model_bridge import TransformerBridge

    # For such a model TransformerLens loads a processor from the hub, and where that fails it
    # runs ``pip install torchvision``, which replaces torch.
    if reads_more_than_text(model.config):
        raise ValueError(
            f"{type(model).__name__} reads images or sound too, and TransformerLens would install"
            " packages to bridge it; expected a model of text alone"
        )
    parameter = next(model.parameters())
    # A model that device_map has spread over several devices must not be moved to one of them.
    device = None if getattr(model, "hf_device_map", None) else parameter.device
    # The bridge changes the tokenizer that it receives: it adds missing special tokens and loads
    # the tokenizer again with BOS, unless `add_bos_token` is set. The model was not trained that
    # way. So the bridge receives a copy in which `add_bos_token` is set.
    copied = tokenizer_copy(tokenizer)
    copied.init_kwargs = {**copied.init_kwargs, "name_or_path": _NO_NAME, "add_bos_token": True}
    bridge = TransformerBridge.boot_transformers(
        _NO_NAME, hf_model=model.eval(), tokenizer=copied, dtype=parameter.dtype, device=device
    )
    bridge.cfg.model_name = name
    return bridge


def reads_more_than_text(config: Any) -> bool:
    """Return whether a config is that of a model which reads images or sound as well as text."""
    if config.get_text_config() is not config:
        return True
    parts = ("vision_config", "audio_config", "audio_encoder_config")
    return any(getattr(config, part, None) is not None for part in parts)


def text_model(model: Any) -> Any:
    """Return a causal language model of the text decoder of a model that reads images too.

    The modules are those of ``model``. A model of text alone is returned as it is.

    Raises:
        ValueError: transformers has no causal language model for this decoder.
    """
    if not reads_more_than_text(model.config):
        return model
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    config = model.config.get_text_config()
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    if config is not model.config and kind is not None:
        # Weights on the device ``meta`` need no memory; all of them are replaced.
        with torch.device("meta"):
            made = kind(config)
        prefix = made.base_model_prefix
        if head is not None and isinstance(decoder, type(getattr(made, prefix))):
            setattr(made, prefix, decoder)
            made.set_output_embeddings(head)
            made.config.architectures = [kind.__name__]
            return made.eval()
    raise ValueError(
        f"{type(model).__name__} reads images or sound too, and transformers has no causal language"
        " model of its text decoder alone"
    )
