"""Hidden states of plain transformers, written in the layouts that a harvest reads."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file
from torch import Tensor

from lrt_lens.data import iterate_blocks
from lrt_lens.moments._harvesting import settle


def windows_of(pair: Any, documents: Sequence[str], **settings: Any) -> list[Any]:
    """Return the windows that a harvest cuts, in its order."""
    plan = settle(pair, **settings).plan
    blocks = iterate_blocks(documents, pair.source, plan, target=pair.target)
    return [window for block in blocks for window in block.windows]


def hidden_states(model: Any, ids: Sequence[int], layer_ids: Sequence[int]) -> Tensor:
    """Return [token, layer, d]: 0 is the embedding, k + 1 what block k returns."""
    hf = model.engine.model
    seen: dict[int, Tensor] = {}

    def keep(number: int) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            seen[number] = (output[0] if isinstance(output, tuple) else output)[0].detach()

        return hook

    handles = [hf.model.embed_tokens.register_forward_hook(keep(0))]
    handles += [
        block.register_forward_hook(keep(number + 1))
        for number, block in enumerate(hf.model.layers)
    ]
    try:
        with torch.no_grad():
            hf(input_ids=torch.tensor([list(ids)]), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack([seen[number].squeeze(0) for number in layer_ids], dim=1)


def write_vllm(
    folder: Path, model: Any, sequences: Sequence[Sequence[int]], layer_ids: Sequence[int]
) -> Path:
    """Write one file per sequence as vLLM does."""
    folder.mkdir(exist_ok=True)
    for number, ids in enumerate(sequences):
        write_sequence(folder / f"{number}.safetensors", model, ids, layer_ids)
    return folder


def write_sequence(
    path: Path, model: Any, ids: Sequence[int], layer_ids: Sequence[int], **metadata: str
) -> None:
    """Write one file as vLLM does."""
    states = hidden_states(model, ids, layer_ids)
    tensors = {"hidden_states": states.contiguous(), "token_ids": torch.tensor(list(ids))}
    save_file(tensors, path, metadata=metadata or None)


def write_manifest(folder: Path, **fields: Any) -> Path:
    """Write ``states.json`` by hand."""
    content = {"schema_version": "lrt_lens.states/1"} | fields
    (folder / "states.json").write_text(json.dumps(content))
    return folder


def write_named(folder: Path, model: Any, sequences: Any, hooks: dict[str, int]) -> Path:
    """Write one file per sequence, with one tensor per hook point."""
    folder.mkdir()
    for number, ids in enumerate(sequences):
        states = hidden_states(model, ids, list(hooks.values()))
        tensors = {name: states[:, k].contiguous() for k, name in enumerate(hooks)}
        save_file(
            tensors | {"token_ids": torch.tensor(list(ids))}, folder / f"{number}.safetensors"
        )
    return folder


def write_parquet(folder: Path, model: Any, sequences: Any, layer_ids: list[int]) -> Path:
    """Write parquet files of 20 sequences each, in row groups of 8, states as nested lists."""
    folder.mkdir()
    for first in range(0, len(sequences), 20):
        chosen = sequences[first : first + 20]
        states = [hidden_states(model, ids, layer_ids).tolist() for ids in chosen]
        table = pa.table({"token_ids": [list(ids) for ids in chosen], "hidden_states": states})
        pq.write_table(table, folder / f"part-{first}.parquet", row_group_size=8)
    return write_manifest(folder, layer_ids=layer_ids)


def write_arrays(folder: Path, model: Any, sequences: Any, hooks: dict[str, int]) -> Path:
    """Write one ``.npy`` file per hook point, with one row per token."""
    folder.mkdir()
    states = [hidden_states(model, ids, list(hooks.values())) for ids in sequences]
    for k in range(len(hooks)):
        np.save(folder / f"{k}.npy", np.concatenate([one[:, k].numpy() for one in states]))
    np.save(folder / "ids.npy", np.concatenate([np.array(ids) for ids in sequences]))
    numbers = [np.full(len(ids), number) for number, ids in enumerate(sequences)]
    np.save(folder / "sequence.npy", np.concatenate(numbers))
    arrays = {
        "token_ids": "ids.npy",
        "sequences": "sequence.npy",
        "states": {name: f"{k}.npy" for k, name in enumerate(hooks)},
    }
    return write_manifest(folder, arrays=arrays)


def largest_difference(one: Any, other: Any) -> float:
    """Return the largest relative difference of two moments, part by part.

    Sums are compared relative to the root of the number of rows times the sum of their squares,
    because the sums about the first mean are nearly 0.
    """
    a, b = one.tensors(), other.tensors()
    assert a.keys() == b.keys()
    worst = 0.0
    for name, tensor in a.items():
        scale = float(tensor.abs().max())
        if "/sum/" in name:
            part, _, rest = name.partition("/sum/")
            squares = a[f"{part}/second/{rest}"].diagonal()
            scale = float((squares * float(one.n.max())).sqrt().max())
        worst = max(worst, float((tensor - b[name]).abs().max()) / max(scale, 1e-300))
    return worst
