"""The record and the model card of a baked folder.

    record["positions"]["differ"]       # [0, 1, 2, 3]: steered by the bake and not by the hook

Problem: a steered model looks like the model that it was made from. Mechanism: `RECORD_NAME` beside
the weights holds what was baked into which tensors and what was measured, and ``README.md`` says
the same in words.

Limits: texts of a contrast set are not in it, only their hash.
"""

from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lrt_lens._messages import printable
from lrt_lens._stored_fields import read_json_file
from lrt_lens.adapters.vectors._steering_vector import SteeringVector
from lrt_lens.errors import FileFormatError
from lrt_lens.models._identity import ModelIdentity

RECORD_NAME = "lrt_lens_bake.json"
BAKE_SCHEMA = "lrt_lens.bake/1"
ABLATION_NOTE = (
    "Ablation by weights projects the direction out of everything that writes to the residual"
    " stream, which is the ablation at every hook point; a vector's own hook ablates one hook point"
    " only."
)


def vector_fields(vector: SteeringVector) -> dict[str, Any]:
    """Return what a record says about a vector."""
    return {
        "name": vector.name,
        "hook": vector.hook,
        "method": vector.method,
        "transferred_by": vector.transferred_by,
        "contrast": vector.contrast,
        "norm": vector.norm,
        "skip_first": vector.skip_first,
        "model": None if vector.model is None else asdict(vector.model),
    }


def position_fields(most: int) -> dict[str, Any]:
    """Return which positions a bake and the hooks steer, and at which they differ.

    ``most`` is the number of first positions that the hooks leave out.
    """
    return {
        "bake": "all positions, special tokens and padding included",
        "hook": f"all positions but the first {most}" if most else "all positions",
        "differ": list(range(most)),
    }


def record_of(
    model: ModelIdentity,
    vectors: Sequence[SteeringVector],
    fields: dict[str, Any],
    *,
    left_out: int,
) -> dict[str, Any]:
    """Return the record of a bake; the hooks leave out the first ``left_out`` positions."""
    return {
        "schema_version": BAKE_SCHEMA,
        "model": asdict(model),
        "vectors": [vector_fields(vector) for vector in vectors],
        "positions": position_fields(left_out),
        **fields,
        "versions": {name: version(name) for name in ("lrt-lens", "torch", "transformers")},
    }


def refuse_other_folder(folder: Path) -> list[str]:
    """Return the files of an earlier bake in a folder, none if it is empty or new.

    Raises:
        FileFormatError: the folder holds something else.
    """
    if not folder.exists():
        return []
    if not folder.is_dir():
        raise FileFormatError(f"{str(folder)!r} is a file; expected a new or empty folder")
    entries = sorted(entry.name for entry in folder.iterdir())
    if not entries:
        return []
    known = []
    if (folder / RECORD_NAME).is_file():
        known = read_json_file(folder / RECORD_NAME, BAKE_SCHEMA).get("files", [])
    others = sorted(set(entries) - {*known, RECORD_NAME})
    if others:
        raise FileFormatError(
            f"{str(folder)!r} holds {others[0]!r} and {len(others) - 1} other file(s) that no bake"
            " has written; expected a new or empty folder, or an earlier bake: choose another one"
        )
    # The list is text of a file: nothing outside of the folder may be removed by it.
    return sorted(set(entries) & {str(name) for name in known})


def bake_card(record: dict[str, Any]) -> str:
    """Return the model card: what was baked where, what was measured, and how to load it."""
    base, names = _code(record["model"]["name"]), record["vectors"]
    hooks = ", ".join(f"{_code(one['name'])} at {_code(one['hook'])}" for one in names)
    tensors = "\n".join(f"| {_code(name)} | {what} |" for name, what in record["changes"].items())
    differ = record["positions"]["differ"]
    where = (
        f"Positions {differ[0]} to {differ[-1]} are steered here and not by the hook of lrt-lens."
        if differ
        else "The hook of lrt-lens steers the same positions."
    )
    transferred = sorted({str(one["transferred_by"]) for one in names if one["transferred_by"]})
    origin = (
        f"transferred from another model by a {' and a '.join(transferred)}"
        if transferred
        else "made for this model"
    )
    load = (
        "model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)"
        if record["form"] == "lora"
        else "model = AutoModelForCausalLM.from_pretrained(folder)"
    )
    imports = "from peft import PeftModel\n" if record["form"] == "lora" else ""
    return f"""---
library_name: {"peft" if record["form"] == "lora" else "transformers"}
tags: [steering, lrt-lens]
---

# {base}, steered

{hooks}, {origin}, mode {record["mode"]}, scale {record["scale"]:g}, written into
{"an adapter" if record["form"] == "lora" else "the weights"} by lrt-lens.

- base model: {base} (revision {_code(record["model"]["revision"])})
- method: {", ".join(_code(one["method"]) for one in names)}
- contrast set (hash): {", ".join(_code(one["contrast"] or "none") for one in names)}
- positions: all, special tokens included. {where}
- measured: {_measured(record)}
{f"- {ABLATION_NOTE}" if record["mode"] == "ablate" else ""}

| tensor or field | change |
| --- | --- |
{tensors}

```python
from transformers import AutoModelForCausalLM
{imports}
{load}
```
"""


def _measured(record: dict[str, Any]) -> str:
    measured = record["measured"]
    text = (
        f"max abs difference of logits {measured['largest_difference']:.2g} against"
        f" {record['compared_with']}, whose effect is {measured['largest_effect']:.3g}"
        f" ({measured['n_rows']} rows of {measured['n_tokens']} random tokens)"
    )
    if "largest_component" in measured:
        text += f"; largest component along the vector {measured['largest_component']:.2g}"
    return text


def _code(text: str) -> str:
    return f"`{printable(text).replace('`', chr(39))}`"
