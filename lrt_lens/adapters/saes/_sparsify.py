"""SAEs of EleutherAI's sparsify as SAELens objects.

    sae = load_sparsify("EleutherAI/sae-pythia-70m-32k", hookpoint="layers.3")     # or a local folder with cfg.json and sae.safetensors
    moved = stitch.transfer(sae)

Format of sparsify 1.3.3: ``cfg.json`` (`SparseCoderConfig` and ``d_in``), ``sae.safetensors`` with
``encoder.weight`` [feature, d], ``encoder.bias``, ``W_dec`` [feature, d], ``b_dec``; older files
may hold ``decoder.weight`` [d, feature] and ``signed`` (selection by size, sign kept). The encoder
subtracts ``b_dec``, whatever ``normalize_decoder`` says: ``apply_b_dec_to_input=True``. SAELens
6.54's own loader reads that off ``normalize_decoder`` and transposes ``W_dec``. A hook point
``layers.3`` is the output of block 3.

Limits: transcoders, skip connections and ``activation="groupmax"`` are refused: SAELens has no such
SAE.
"""

import json
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from lrt_lens.errors import FileFormatError
from lrt_lens.models._hook_points import residual_post

_REFUSED = {
    "transcode": "it is a transcoder, which writes where it does not read",
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
    """A SAELens TopK SAE (AbsTopK where ``signed``) from a sparsify folder or hub repository, in
    the file's precision.

    Args: folder: with ``cfg.json`` and ``sae.safetensors``, or with one folder per hook point; or a
        hub repository. hook: TransformerLens name; without it ``layers.{l}`` is
        ``blocks.{l}.hook_resid_post``, other names need it. hookpoint: sparsify's name of the
        folder inside. model_name: of the model it was trained on, written into the metadata.
        revision: of the hub repository. device: where its weights go.

    Raises FileFormatError for a truncated or foreign folder, ValueError for an SAE that SAELens
    cannot express.
    """
    place = _folder(folder, hookpoint, revision)
    cfg = _config(place)
    for key, reason in _REFUSED.items():
        if cfg.get(key):
            raise ValueError(
                f"{str(place)!r} has {key}=true: {reason}; expected a sparse autoencoder"
            )
    if cfg.get("activation", "topk") != "topk":
        raise ValueError(
            f"{str(place)!r} has activation {cfg['activation']!r}; SAELens has TopK only: expected 'topk'"
        )
    d_in = int(cfg["d_in"])
    d_sae = int(cfg.get("num_latents") or d_in * cfg.get("expansion_factor", 32))
    weights = _weights(place, d_in, d_sae)
    return _build(cfg, weights, hook or _hook(place), model_name, device)


def _build(
    cfg: dict[str, Any], weights: dict[str, Tensor], hook: str, model_name: str | None, device: str
) -> Any:
    from sae_lens.registry import get_sae_class
    from sae_lens.saes.sae import SAEMetadata

    kind, settings = get_sae_class("abstopk" if cfg.get("signed") else "topk")
    d_in, d_sae = weights["W_enc"].shape
    dtype = weights["W_enc"].dtype
    metadata = SAEMetadata(hook_name=hook, model_name=model_name, origin="sparsify")
    options: dict[str, Any] = {
        "k": int(cfg["k"]),
        "rescale_acts_by_decoder_norm": False,
        "apply_b_dec_to_input": True,
    }
    sae = kind(
        settings(
            d_in=d_in,
            d_sae=d_sae,
            dtype=str(dtype).removeprefix("torch."),
            device="meta",
            metadata=metadata,
            **options,
        )
    )
    sae.load_state_dict(weights, assign=True)
    sae.cfg.device = device
    return sae.to(device=device, dtype=dtype)


def _folder(folder: str | Path, hookpoint: str | None, revision: str | None) -> Path:
    place = Path(folder)
    if not place.is_dir():
        if str(folder).count("/") != 1 or str(folder).startswith((".", "/")):
            raise FileFormatError(
                f"{str(folder)!r} is neither a folder nor a hub repository (owner/name)"
            )
        from huggingface_hub import snapshot_download

        place = Path(
            snapshot_download(
                str(folder),
                revision=revision,
                allow_patterns=f"{hookpoint}/*" if hookpoint else None,
            )
        )
    if hookpoint is not None and (place / hookpoint).is_dir():
        place = place / hookpoint
    if not (place / "cfg.json").is_file():
        inside = sorted(path.parent.name for path in place.glob("*/cfg.json"))
        remedy = (
            f"choose one with hookpoint=…: {inside}"
            if inside
            else "expected a folder of sparsify with cfg.json and sae.safetensors"
        )
        raise FileFormatError(f"{str(place)!r} has no cfg.json; {remedy}")
    return place


def _config(place: Path) -> dict[str, Any]:
    try:
        cfg = json.loads((place / "cfg.json").read_text())
    except ValueError as error:
        raise FileFormatError(
            f"{str(place / 'cfg.json')!r} is no JSON ({error}); copy the folder again"
        ) from error
    missing = (
        [key for key in ("d_in", "k") if key not in cfg] if isinstance(cfg, dict) else ["d_in", "k"]
    )
    if missing:
        raise FileFormatError(
            f"{str(place / 'cfg.json')!r} has no {' and '.join(missing)}; expected the config of a sparsify SAE"
        )
    return cfg


def _weights(place: Path, d_in: int, d_sae: int) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = place / "sae.safetensors"
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise FileFormatError(
            f"{str(path)!r} cannot be read ({error}); it is missing or truncated, copy it again"
        ) from error
    if "decoder.weight" in tensors:
        tensors["W_dec"] = tensors.pop("decoder.weight").T
    expected = {
        "encoder.weight": (d_sae, d_in),
        "encoder.bias": (d_sae,),
        "W_dec": (d_sae, d_in),
        "b_dec": (d_in,),
    }
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != expected:
        raise FileFormatError(f"{str(path)!r} holds {found}; expected {expected}")
    return {
        "W_enc": tensors["encoder.weight"].T.contiguous(),
        "b_enc": tensors["encoder.bias"],
        "W_dec": tensors["W_dec"].contiguous(),
        "b_dec": tensors["b_dec"],
    }


def _hook(place: Path) -> str:
    if place.name == "embed_tokens":
        return "hook_embed"
    match = re.fullmatch(r"layers\.(\d+)", place.name)
    if match is None:
        raise ValueError(
            f"folder {place.name!r} does not name a residual stream as 'layers.3' does; give hook='blocks.3.hook_resid_post'"
        )
    return residual_post(int(match[1]))
