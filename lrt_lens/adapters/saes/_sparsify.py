"""SAEs of EleutherAI's sparsify as SAELens objects.

    sae = load_sparsify("EleutherAI/sae-pythia-70m-32k", hookpoint="layers.3")
    sae = load_sparsify("folder")         # a local folder with cfg.json and sae.safetensors
    transferred = stitch.transfer(sae)

Problem: many public SAEs were trained with sparsify, whose files SAELens 6.54 reads wrongly.
Mechanism: weights and settings are renamed and transposed into a SAELens SAE.

Format of sparsify 1.3.3: ``cfg.json`` (`SparseCoderConfig` and ``d_in``), ``sae.safetensors`` with
``encoder.weight`` [feature, d], ``encoder.bias``, ``W_dec`` [feature, d], ``b_dec``. Older files
may hold ``decoder.weight`` [d, feature] and ``signed`` (selection by size, with the sign). The
encoder subtracts ``b_dec``, whatever ``normalize_decoder`` says: ``apply_b_dec_to_input=True``.
SAELens 6.54's own loader reads that from ``normalize_decoder`` and transposes ``W_dec``. A hook
point ``layers.3`` is the output of block 3.

Limits: transcoders, skip connections and ``activation="groupmax"`` are refused, because SAELens has
no such SAE.
"""

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from lrt_lens._hub import downloaded
from lrt_lens._stored_fields import read_json_file
from lrt_lens._tensor_files import read_tensor_file, refuse_values
from lrt_lens.errors import FileFormatError
from lrt_lens.models._hook_points import residual_post

# Fields of cfg.json that, if true, make an SAE that SAELens cannot express, with the reason.
_REFUSED = {
    "transcode": "it is a transcoder, which reads one hook point and writes another",
    "skip_connection": "it has a skip connection, which no SAELens SAE has",
}


def load_sparsify(
    folder: str | Path,
    *,
    hook: str | None = None,
    hookpoint: str | None = None,
    model_name: str | None = None,
    revision: str | None = None,
    device: str = "cpu",
) -> Any:
    """SAELens TopK SAE (AbsTopK if ``signed``) in the file's precision.

    Args:
        folder: a folder with ``cfg.json`` and ``sae.safetensors``, or with one such folder per hook
            point, or a hub repository.
        hook: TransformerLens name of the hook point; needed unless the folder is named
            ``layers.{l}``, which is ``blocks.{l}.hook_resid_post``.
        hookpoint: sparsify's name of the folder inside ``folder``.
        model_name: name of the model of its training, written into the metadata.
        revision: revision of the hub repository.
        device: device of the weights.

    Raises:
        FileFormatError: the folder is damaged, not written by sparsify, or of an SAE that SAELens
            cannot express.
        ValueError: the folder does not name a hook point, and ``hook`` is not given.
    """
    path = _folder(folder, hookpoint, revision)
    cfg = _config(path)
    for key, reason in _REFUSED.items():
        if cfg.get(key):
            raise FileFormatError(
                f"{str(path)!r} has {key}=true: {reason}; expected a sparse autoencoder"
            )
    if cfg.get("activation", "topk") != "topk":
        raise FileFormatError(
            f"{str(path)!r} has activation {cfg['activation']!r}; expected 'topk', the only one "
            "that SAELens has"
        )
    # sparsify writes either the number of features or an expansion factor, 32 by default.
    d_in = int(cfg["d_in"])
    d_sae = int(cfg.get("num_latents") or d_in * cfg.get("expansion_factor", 32))
    if cfg["k"] > d_sae:
        raise FileFormatError(
            f"{str(path)!r} has k {cfg['k']} and {d_sae} features; expected fewer active features "
            "than there are: copy the folder again"
        )
    weights = _weights(path, d_in, d_sae)
    return _build(cfg, weights, hook or _hook(path), model_name, device)


def _build(
    cfg: dict[str, Any], weights: dict[str, Tensor], hook: str, model_name: str | None, device: str
) -> Any:
    """SAELens SAE with the weights and the number of active features of a sparsify SAE."""
    from sae_lens.registry import get_sae_class
    from sae_lens.saes.sae import SAEMetadata

    kind, settings = get_sae_class("abstopk" if cfg.get("signed") else "topk")
    d_in, d_sae = weights["W_enc"].shape
    dtype = weights["W_enc"].dtype
    # sparsify reads the models of transformers as they are.
    known = {"hook_name": hook, "model_name": model_name, "model_from_pretrained_kwargs": {}}
    metadata = SAEMetadata(**known, origin="sparsify")
    options: dict[str, Any] = {
        "k": int(cfg["k"]),
        "rescale_acts_by_decoder_norm": False,
        "apply_b_dec_to_input": True,
        "dtype": str(dtype).removeprefix("torch."),
    }
    # On the meta device SAELens draws no random weights, which would be overwritten.
    sae = kind(settings(d_in=d_in, d_sae=d_sae, device="meta", metadata=metadata, **options))
    sae.load_state_dict(weights, assign=True)
    sae.cfg.device = device
    return sae.to(device=device, dtype=dtype)


def _folder(folder: str | Path, hookpoint: str | None, revision: str | None) -> Path:
    """Local folder with a ``cfg.json``, downloaded first if ``folder`` is a hub repository."""
    path = Path(folder)
    if not path.is_dir():
        # A hub repository is owner/name; a path that does not exist must not reach the network.
        if str(folder).count("/") != 1 or str(folder).startswith((".", "/")):
            raise FileFormatError(
                f"{str(folder)!r} is neither a folder nor a hub repository; give a folder, or "
                "owner/name"
            )
        patterns = [f"{hookpoint}/*"] if hookpoint else None
        path = downloaded(str(folder), "sparsify SAE", patterns, revision=revision)
    if hookpoint is not None and (path / hookpoint).is_dir():
        path = path / hookpoint
    if not (path / "cfg.json").is_file():
        inside = sorted(config.parent.name for config in path.glob("*/cfg.json"))
        remedy = (
            f"choose one with hookpoint=…: {inside}"
            if inside
            else "expected a folder of sparsify with cfg.json and sae.safetensors"
        )
        raise FileFormatError(f"{str(path)!r} has no cfg.json; {remedy}")
    return path


def _config(path: Path) -> dict[str, Any]:
    """Contents of ``cfg.json`` with at least ``d_in`` and ``k``."""
    file = path / "cfg.json"
    cfg = read_json_file(file)
    missing = [key for key in ("d_in", "k") if key not in cfg]
    if missing:
        raise FileFormatError(
            f"{str(file)!r} has no {' and '.join(missing)}; expected the config of a sparsify SAE"
        )
    for key in ("d_in", "k", "num_latents", "expansion_factor"):
        value = cfg.get(key)
        is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        # num_latents of 0 stands for expansion_factor · d_in.
        if not (is_count and (value or key == "num_latents")) and key in cfg:
            raise FileFormatError(
                f"{str(file)!r} has {key} {value!r}; expected a number of at least 1: copy the "
                "folder again"
            )
    return cfg


def _weights(folder: Path, d_in: int, d_sae: int) -> dict[str, Tensor]:
    """Weights of ``sae.safetensors`` under SAELens' names and in its shapes."""
    path = folder / "sae.safetensors"
    file = read_tensor_file(path, None)
    tensors = dict(file.tensors)
    # Older files hold the decoder as a linear layer, [d, feature].
    if "decoder.weight" in tensors:
        tensors["W_dec"] = tensors.pop("decoder.weight").mT
    expected = {
        "encoder.weight": (d_sae, d_in),
        "encoder.bias": (d_sae,),
        "W_dec": (d_sae, d_in),
        "b_dec": (d_in,),
    }
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if shapes != expected:
        raise FileFormatError(
            f"{str(path)!r} holds {shapes}; expected {expected}: copy the weights that belong to "
            "this cfg.json"
        )
    for name, tensor in tensors.items():
        refuse_values(path, name, tensor)
    return {
        # torch linear layers hold [out, in]; SAELens holds W_enc as [d, feature].
        "W_enc": tensors["encoder.weight"].T.contiguous(),
        "b_enc": tensors["encoder.bias"],
        "W_dec": tensors["W_dec"].contiguous(),
        "b_dec": tensors["b_dec"],
    }


def _hook(path: Path) -> str:
    """TransformerLens name of the hook point for which a sparsify folder is named."""
    if path.name == "embed_tokens":
        return "hook_embed"
    match = re.fullmatch(r"layers\.(\d+)", path.name)
    if match is None:
        raise ValueError(
            f"folder {path.name!r} does not name a residual hook point as 'layers.3' does; give "
            "hook='blocks.3.hook_resid_post'"
        )
    return residual_post(int(match[1]))
