"""A folder with the directions and a Python file that steers a plain Hugging Face model.

``steer.py`` needs torch, safetensors and transformers, and not this package. It registers a forward
hook on each block, and one on the model that counts the positions of tokens, so that the first ones
are left out as `SteeringVector.apply` leaves them out: with a cache, with padding on the left, and
in batches.

    write_script(served, folder)        # folder/steer.py, folder/directions.safetensors
    script(served)                      # the text of steer.py

Limits: rows of one call that have other lengths and no mask are counted in columns.
"""

import json
import re
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from lrt_lens._folders import write_folder
from lrt_lens._stored_fields import json_object, stored_fields
from lrt_lens._tensor_files import read_tensor_file, write_tensors
from lrt_lens.adapters.vectors._steering_hook import Mode
from lrt_lens.errors import FileFormatError
from lrt_lens.serving.formats._content import ServedVectors
from lrt_lens.serving.formats._record import RECORD_NAME, SCRIPT_NAME, record_text

TENSORS_NAME = "directions.safetensors"
"""Name of the file of the directions in the folder."""
_NAME = re.compile(r"[\w./@+ -]{1,200}")
"""Names of models that are written into the script."""
_BLOCKS = re.compile(r"[\w.]{0,200}")
"""Names of lists of blocks."""
SCRIPT_SCHEMA = "lrt_lens.served/1"
"""Schema of the file of tensors."""
_CHANGES = {
    "add": "stream + scale * along",
    "ablate": "stream - scale * (stream @ along)[..., None] * along",
    "clamp": "stream + scale * (LEVEL - stream @ along)[..., None] * along",
}
"""The change of each mode, as in `lrt_lens.adapters.vectors._steering_hook`."""
_COUNTING = """
    def count(module, args, kwargs):
        # The position of a token is the number of tokens before it in its row: cached tokens count,
        # padding on the left does not.
        tokens = kwargs.get("input_ids", args[0] if args else None)
        tokens = kwargs.get("inputs_embeds") if tokens is None else tokens
        cache, mask = kwargs.get("past_key_values"), kwargs.get("attention_mask")
        n_tokens, n_before = tokens.shape[1], 0 if cache is None else cache.get_seq_length()
        if torch.is_tensor(mask) and mask.ndim == 2:
            number = mask.cumsum(1)[:, int(n_before) :][:, :n_tokens]
        elif kwargs.get("position_ids") is not None:
            number = kwargs["position_ids"].reshape(-1, n_tokens) + 1
        elif torch.is_tensor(mask):
            # True, or a number near 0, where a token is seen.
            seen_tokens = mask if mask.dtype == torch.bool else mask > -1
            number = seen_tokens[:, 0].sum(-1)
        else:
            number = torch.arange(n_tokens)[None] + int(n_before) + 1
        seen["steered"] = (number > SKIP_FIRST)[..., None]

    seen = {}
    inner = getattr(model, "base_model", model)
    handles = [inner.register_forward_pre_hook(count, with_kwargs=True)]
"""
_TEMPLATE = '''"""Steer a Hugging Face model with the directions in {tensors}, written by lrt_lens.

    model = AutoModelForCausalLM.from_pretrained({name!r})
    handles = steer(model)
    model.generate(...)
    for handle in handles:
        handle.remove()

The stream behind each block of BLOCKS is changed{where}.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file

BLOCKS = {blocks!r}
SCALE = {scale!r}{constants}


def steer(model, scale=SCALE):
    """Register the hooks and return their handles."""
    directions = load_file(Path(__file__).with_name({tensors!r}))
{counting}
    def change(direction):
        def hook(module, args, output):
            stream = output[0] if isinstance(output, tuple) else output
            along = direction.to(stream)
            {assignment}
            return (stream, *output[1:]) if isinstance(output, tuple) else stream

        return hook

    for number, direction in directions.items():
        block = model.get_submodule(f"{{BLOCKS}}.{{number}}")
        handles.append(block.register_forward_hook(change({vector})))
    return handles
'''


class ScriptFields(TypedDict):
    """Fields of a `ServedVectors` in the metadata of the file of tensors."""

    mode: Mode
    scale: float
    level: float | None
    skip_first: int
    model_type: str
    blocks: str
    record: dict[str, Any]


def script(served: ServedVectors) -> str:
    """Return the text of ``steer.py``."""
    skips = served.skip_first > 0
    change = _CHANGES[served.mode]
    if skips:
        steered = 'seen["steered"].to(stream.device)'
        assignment = f"stream = torch.where({steered}, {change}, stream)"
    else:
        assignment = f"stream = {change}"
    is_added = served.mode == "add"
    constants = f"\nLEVEL = {served.level!r}" if served.mode == "clamp" else ""
    constants += f"\nSKIP_FIRST = {served.skip_first}" if skips else ""
    first = f", except the first {served.skip_first} positions of a text" if skips else ""
    return _TEMPLATE.format(
        tensors=TENSORS_NAME,
        name=_name(served),
        where=first or ", at all positions",
        blocks=served.blocks or "model.layers",
        scale=float(served.scale),
        constants=constants,
        counting=_COUNTING if skips else "    handles = []\n",
        assignment=assignment,
        vector="direction" if is_added else "direction / direction.norm()",
    )


def _name(served: ServedVectors) -> str:
    """Return the name of the model for the text of the script, if it is an ordinary one."""
    name = str((served.record.get("model") or {}).get("name", ""))
    # The text is run by whoever trusts it, so that nothing of a file may end its docstring.
    return name if _NAME.fullmatch(name) else "the model"


def write_script(served: ServedVectors, folder: Path) -> None:
    """Write the folder as a whole."""

    def write(staging: Path) -> None:
        tensors = {str(block): rows[0] for block, rows in sorted(served.layers.items())}
        content = {
            "mode": served.mode,
            "scale": served.scale,
            "level": served.level,
            "skip_first": served.skip_first,
            "model_type": served.model_type,
            "blocks": served.blocks,
            "record": served.record,
        }
        metadata = {"schema_version": SCRIPT_SCHEMA, "served": json.dumps(content)}
        write_tensors(staging / TENSORS_NAME, tensors, metadata)
        (staging / SCRIPT_NAME).write_text(script(served), encoding="utf-8")
        (staging / RECORD_NAME).write_text(record_text(served.record), encoding="utf-8")

    write_folder(folder, write, last=SCRIPT_NAME)


def read_script(folder: Path) -> ServedVectors:
    """Return the content of a folder; its Python file is not run.

    Raises:
        FileFormatError: it is no such folder, or its tensors were changed.
    """
    file = read_tensor_file(folder / TENSORS_NAME, SCRIPT_SCHEMA)
    content = json_object(file.path, file.metadata.get("served"), "'served'")
    # Types are checked, because values become text of the script.
    known = stored_fields(file.path, ScriptFields, content)
    if not _BLOCKS.fullmatch(known["blocks"]) or known["skip_first"] < 0:
        raise FileFormatError(
            f"{str(file.path)!r} names the blocks {known['blocks'][:80]!r} and leaves out"
            f" {known['skip_first']} positions; expected a name such as 'model.layers', and 0 or"
            " more: export again"
        )
    tensors = file.checked(dict.fromkeys(file.tensors, "d_model"))
    if not tensors or not all(name.isdecimal() for name in tensors):
        raise FileFormatError(
            f"{str(file.path)!r} has the tensors {sorted(tensors)[:5]}; expected numbers of blocks"
        )
    return ServedVectors({int(name): row[None] for name, row in tensors.items()}, **known)
