"""States of the target, written for a reader of activations that was trained on the source.

    written = write_reader_states("states.parquet", pair, stitch, texts)
    written.fve_nrm            # how well the transferred states match the source's own
    written.rows               # path of the parquet file; written.sidecar is its metadata

Problem: natural-language autoencoders and activation oracles turn a state into a text, and each
works for one layer of one model. Mechanism: a state of the target goes down the stitch,
``y W_down + b_down``, and is then a state of the source, for which the reader was trained. The file
is the one that natural_language_autoencoders reads (`nla/schema.py`):

- ``FILE.parquet`` with ``activation_vector`` (list of float32 of the source's width, raw length),
  ``n_raw_tokens``, ``activation_layer``, ``doc_id``, ``detokenized_text_truncated``;
- ``FILE.parquet.nla_meta.yaml`` with ``kind: nla_dataset``, ``extraction`` and ``row_count``, the
  reader's ``tokens`` and ``prompt_templates`` if its own metadata are given, and ``transferred``:
  models, hook points, ``fve_nrm`` with its interval, and that of the map of shuffled pairs. It is
  written as JSON, which is YAML.

**Layer numbers.** Their extractor hooks decoder block K, whose output is our
``blocks.{K}.hook_resid_post`` and Hugging Face's ``hidden_states[K + 1]``; the quick start of their
README reads ``hidden_states[K]`` instead, our ``blocks.{K-1}.hook_resid_post``. Find out which one
a checkpoint was trained on; ``layer_number`` says it, and both numbers are in ``transferred``.

Limits: ``fve_nrm`` says how alike the states are, not how good the reader's texts are. Texts should
have had no part in the fit of the stitch.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from lrt_lens._files import write_atomically
from lrt_lens._settings import Settings, resolve, takes
from lrt_lens.data._blocks import WindowCutter
from lrt_lens.data._windows import BlockPlan, Window
from lrt_lens.errors import HookPointError, MismatchError
from lrt_lens.models._hook_points import RESIDUAL, place
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._pair import ModelPair
from lrt_lens.statistics._bootstrap import bootstrap_ratio
from lrt_lens.statistics._intervals import Interval
from lrt_lens.stitching._reader_metric import fve_nrm, normalised_states
from lrt_lens.stitching._stitch import Stitch

SIDECAR_SUFFIX = ".nla_meta.yaml"
"""End of the name of the metadata of a file."""
_OF_THE_READER = ("tokens", "prompt_templates")
"""Parts of a reader's metadata that its data sets repeat."""
_BATCH_WINDOWS = 16


@dataclass(frozen=True)
class ReaderStates:
    """Files of transferred states, and how well the states match the source's own."""

    rows: Path
    """Parquet file."""
    sidecar: Path
    """Its metadata."""
    n_rows: int
    """Number of states."""
    fve_nrm: Interval
    """``fve_nrm`` of the transferred states against the source's states at the same positions of
    the same texts, with a 95% interval over texts."""
    fve_nrm_shuffled: float
    """``fve_nrm`` of the map of shuffled pairs; NaN if the stitch has none."""


@dataclass(frozen=True)
class ReaderSettings(Settings):
    """Settings of `write_reader_states`, which also takes each of them as a keyword."""

    positions_per_text: int | None = 1
    """Number of positions of each text, drawn at random; None for all of them."""
    context_length: int = 256
    """Tokens of a window, BOS included."""
    layer_number: Literal["block", "hidden_state"] = "block"
    """Meaning of a layer number K for the reader: the output of block K, or Hugging Face's
    ``hidden_states[K]``, the output of block K − 1.
    """
    seed: int = 0
    """Seed of the positions and of the bootstrap."""

    def __post_init__(self) -> None:
        """Raise `ValueError` for values that are not among the known ones."""
        if self.positions_per_text is not None and self.positions_per_text < 1:
            raise ValueError(
                f"positions_per_text is {self.positions_per_text}; expected at least 1, or None"
            )
        if self.layer_number not in ("block", "hidden_state"):
            raise ValueError(
                f"layer_number is {self.layer_number!r}; expected 'block' or 'hidden_state'"
            )


@takes(ReaderSettings)
def write_reader_states(
    path: str | Path,
    pair: ModelPair,
    stitch: Stitch,
    texts: Sequence[str],
    *,
    reader: Mapping[str, Any] | None = None,
    settings: ReaderSettings | None = None,
    **options: Any,
) -> ReaderStates:
    """Return the files in which states of the target are written as states of the source.

    Args:
        path: parquet file to write; the metadata stand beside it.
        pair: the models of the stitch.
        stitch: the stitch; its source hook point is the one that the reader reads.
        texts: texts that the target reads.
        reader: metadata of the reader's checkpoint (its ``nla_meta.yaml``), of which width and
            layer are compared and tokens and prompts copied; None: without them.
        settings: a `ReaderSettings`.
        options: fields of `ReaderSettings` as keywords.

    Raises:
        MismatchError: the pair has other models than the stitch, or the reader has another width or
            layer.
        HookPointError: the source hook point is no output of a block.
        ValueError: no text has a position that can be read, or a setting is not allowed.
    """
    chosen = resolve(ReaderSettings, settings, options)
    stitch.check(pair.source, pair.target)
    layer = _layer_number(stitch.source_hook, chosen.layer_number)
    _check_reader(reader, pair.source.d_model, layer)
    plan = BlockPlan(
        context_length=min(chosen.context_length, pair.context_length), skip_first=stitch.skip_first
    )
    windows = _positions(WindowCutter(plan, pair.source, pair.target), texts, chosen)
    if not windows:
        raise ValueError(
            f"none of {len(texts)} texts has a token after the first {plan.skip_first}; give "
            "longer texts"
        )
    target_windows = [window.read_by("target") for window in windows]
    x = _states(pair.source, stitch.source_hook, windows)
    y = _states(pair.target, stitch.target_hook, target_windows)
    moved = stitch.down.points(y)
    numbers = np.concatenate([[window.document] * len(window.rows) for window in windows])
    score = _interval(moved, x, numbers, chosen.seed)
    shuffled = float("nan") if stitch.null is None else fve_nrm(stitch.null.down.points(y), x)
    rows = Path(path)
    table = _table(moved, target_windows, pair.target, layer)
    write_atomically(rows, lambda file: pq.write_table(table, file))
    about = _metadata(stitch, chosen, layer, len(moved), rows.stem, score, shuffled)
    copied = {name: reader[name] for name in _OF_THE_READER if reader and name in reader}
    sidecar = rows.with_name(rows.name + SIDECAR_SUFFIX)
    # JSON is YAML, so that no writer of YAML is needed.
    text = json.dumps(about | copied, indent=2, allow_nan=False)
    write_atomically(sidecar, lambda file: file.write_text(text + "\n", encoding="utf-8"))
    return ReaderStates(rows, sidecar, len(moved), score, shuffled)


def _layer_number(hook: str, meaning: str) -> int:
    """Return the layer number of a reader for a hook point."""
    block = RESIDUAL.fullmatch(place(hook))
    if block is None or block[2] != "post":
        raise HookPointError(
            f"the stitch starts at {hook!r}; readers read the output of a block: take a stitch "
            "that starts at a hook_resid_post"
        )
    return int(block[1]) + (meaning == "hidden_state")


def _check_reader(reader: Mapping[str, Any] | None, width: int, layer: int) -> None:
    """Refuse a reader of another width or layer; unknown ones are not compared."""
    if reader is None:
        return
    nested = reader.get("extraction") or {}
    own_width = reader.get("d_model", nested.get("d_model", width))
    own_layer = reader.get("extraction_layer_index", nested.get("layer_index", layer))
    if int(own_width) != width or int(own_layer) != layer:
        raise MismatchError(
            f"the reader reads layer {own_layer} with width {own_width}; the stitch starts at "
            f"layer {layer} with width {width}: take a stitch that starts at the reader's layer, "
            "or give layer_number= the other meaning"
        )


def _positions(
    cutter: WindowCutter, texts: Sequence[str], settings: ReaderSettings
) -> list[Window]:
    """Return the windows of the texts with the drawn positions only, numbered by text."""
    windows: list[Window] = []
    for number, cut in enumerate(cutter.cut(texts)):
        generator = np.random.default_rng([settings.seed, number])
        places = [
            (w, row) for w, window in enumerate(cut.windows) for row in range(len(window.rows))
        ]
        n = settings.positions_per_text
        taken = range(len(places))
        if n is not None and n < len(places):
            taken = sorted(generator.choice(len(places), n, replace=False).tolist())
        for w, window in enumerate(cut.windows):
            rows = [places[one][1] for one in taken if places[one][0] == w]
            if rows:
                windows.append(_only(window, rows).of_document(number))
    return windows


def _only(window: Window, rows: list[int]) -> Window:
    """Return a window with some of its rows only."""
    other = window.counterpart
    return Window(window.ids, window.rows[rows], window.document, other and _only(other, rows))


def _states(model: HookedModel, hook: str, windows: list[Window]) -> Tensor:
    """Return the states of the windows' rows [row, d] in float32, on the CPU."""
    parts = []
    for start in range(0, len(windows), _BATCH_WINDOWS):
        batch = windows[start : start + _BATCH_WINDOWS]
        states = model.engine.capture(model.pad([one.ids for one in batch]), [hook])[hook]
        parts += [
            states[i, torch.from_numpy(one.rows)].float().cpu() for i, one in enumerate(batch)
        ]
    return torch.cat(parts)


def _interval(predicted: Tensor, states: Tensor, texts: np.ndarray, seed: int) -> Interval:
    """Return ``fve_nrm`` with its interval over texts."""
    v, guess = normalised_states(states), normalised_states(predicted)
    error = (guess - v).square().sum(1).numpy()
    spread = (v - v.mean(0)).square().sum(1).numpy()
    sums = [np.bincount(texts, weights=one)[np.unique(texts)] for one in (error, spread)]
    ratio = bootstrap_ratio(sums[0], sums[1], positive=True, seed=seed)
    return Interval(1 - ratio.value, 1 - ratio.high, 1 - ratio.low, ratio.flag)


def _table(states: Tensor, windows: list[Window], model: HookedModel, layer: int) -> pa.Table:
    """Return the rows of the parquet file."""
    texts = [model.tokenizer.decode(w.ids[: int(p) + 1]) for w in windows for p in w.rows]
    vectors = pa.array(list(states.float().numpy()), type=pa.list_(pa.float32()))
    return pa.table(
        {
            "activation_vector": vectors,
            "n_raw_tokens": [int(p) + 1 for w in windows for p in w.rows],
            "activation_layer": [layer] * len(states),
            "doc_id": [str(w.document) for w in windows for _ in w.rows],
            "detokenized_text_truncated": texts,
        }
    )


def _metadata(
    stitch: Stitch,
    settings: ReaderSettings,
    layer: int,
    n_rows: int,
    name: str,
    score: Interval,
    shuffled: float,
) -> dict[str, Any]:
    """Return the metadata of the file."""
    source, target = stitch.source, stitch.target
    block = layer - (settings.layer_number == "hidden_state")
    known = lambda number: None if number != number else number  # noqa: E731
    return {
        "kind": "nla_dataset",
        "schema_version": 1,
        "dataset_id": name,
        "stage": "base",
        "row_count": n_rows,
        "extraction": {
            "base_model": source.name if source else None,
            "d_model": len(stitch.up.weight),
            "layer_index": layer,
            "norm": "none",
            "positions_per_doc": settings.positions_per_text,
        },
        "transferred": {
            "from_model": target.name if target else None,
            "from_hook": stitch.target_hook,
            "to_hook": stitch.source_hook,
            "block": block,
            "hidden_states_index": block + 1,
            "map_hash": stitch.down.digest,
            "fve_nrm": known(score.value),
            "fve_nrm_low": known(score.low),
            "fve_nrm_high": known(score.high),
            "fve_nrm_shuffled": known(shuffled),
        },
    }
