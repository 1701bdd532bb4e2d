"""The table of formats in which vectors are served: what each can express, and how it is written.

Problem: every program that steers has a file format of its own, with another number for the same
layer, other operations and other positions, and what it cannot express it ignores without a word.
Mechanism: one row per format says all of it. Writing, reading, refusals and the page of the
documentation take it from here.

    FORMATS["llama.cpp"].layer(13)          # 'direction.13'
    refuse_inexpressible(FORMATS["llama.cpp"], served, n_layers=18)

Limits: what the programs do was read in their code and measured with `check_export`; a later
version may do something else.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from lrt_lens._repr_html import card, table
from lrt_lens.adapters.vectors._steering_hook import Mode
from lrt_lens.serving.formats._content import ServedVectors
from lrt_lens.serving.formats._gguf import read_control_vector, write_control_vector, write_glp
from lrt_lens.serving.formats._json_files import (
    read_aisteer360,
    read_neuronpedia,
    read_vllm_lens,
    write_aisteer360,
    write_neuronpedia,
    write_vllm_lens,
)
from lrt_lens.serving.formats._script import read_script, write_script
from lrt_lens.serving.formats._torch_files import (
    read_lm_eval,
    read_steering_vectors,
    write_lm_eval,
    write_steering_vectors,
)


@dataclass(frozen=True)
class VectorFormat:
    """A format of vectors: what it can express, and how a program reads it."""

    name: str
    """Name of the format, for ``to=``."""
    program: str
    """Programs that read the file."""
    file: str
    """Layout of the file or folder, in words."""
    layer: str
    """Place of the direction behind block ``L`` in the file; ``{L}`` and ``{L1}`` (L + 1)
    stand for numbers."""
    positions: str
    """Positions that the program steers, in words."""
    loading: str
    """How the program is told to use the file; ``{path}`` stands for its path."""
    write: Callable[[ServedVectors, Path], None] = field(repr=False)
    """Writes the file or folder."""
    read: Callable[[Path], ServedVectors] = field(repr=False)
    """Reads it."""
    suffix: str = ""
    """Ending of the name of the file that the program expects; empty for a folder."""
    needed_suffixes: tuple[str, ...] = ()
    """Endings without which the program does not read a file; empty if it reads any."""
    names_blocks: bool = False
    """True if the file holds the name of the list of blocks in the model of Hugging Face."""
    modes: tuple[Mode, ...] = ("add",)
    """Changes of the stream that the format can express."""
    first_block: int = 0
    """First block behind which the program can act."""
    reaches_last_block: bool = True
    """True if the program can act behind the last block."""
    several_blocks: bool = True
    """True if one file can hold directions behind several blocks."""
    subspaces: bool = False
    """True if one block can have several directions, which are ablated together."""
    keeps_scale: bool = False
    """True if the file holds the scale beside the directions, instead of multiplied in."""
    partial: bool = True
    """True if an ablation or a clamp of less than its full strength can be expressed."""
    leaves_first: bool = False
    """True if the program can leave the first positions of a text as they are."""

    @property
    def is_folder(self) -> bool:
        """True if a folder is written, and no single file."""
        return not self.suffix

    def use(self, path: Path | str) -> str:
        """Return how the program is told to use a file."""
        return self.loading.format(path=path)

    def key(self, block: int) -> str:
        """Return where the direction behind a block is found in the file."""
        return self.layer.format(L=block, L1=block + 1)


_ALL_POSITIONS = "all, from the first token (BOS) on, prompt and new text"

_ROWS = (
    VectorFormat(
        name="llama.cpp",
        program="llama.cpp (llama-cli, llama-server) and what is built on it",
        file="GGUF with one float32 tensor per block",
        layer="direction.{L}",
        positions=_ALL_POSITIONS,
        loading="llama-server -m model.gguf --control-vector {path}",
        write=write_control_vector,
        read=read_control_vector,
        suffix=".gguf",
        first_block=1,
    ),
    VectorFormat(
        name="glp",
        program="GLP readers: weightless (vLLM, SGLang, MLX) and forks of llama.cpp",
        file="GGUF of llama.cpp with keys glp.*: mode, default strength, hook point, hash",
        layer="direction.{L}",
        positions=_ALL_POSITIONS,
        loading="WEIGHTLESS_STEER_PATH={path}",
        write=write_glp,
        read=read_control_vector,
        suffix=".gguf",
        modes=("add", "ablate"),
        first_block=1,
        subspaces=True,
    ),
    VectorFormat(
        name="repeng",
        program="repeng",
        file="GGUF of llama.cpp",
        layer="direction.{L}",
        positions="all, from the first token (BOS) on, prompt and new text; not padding",
        loading='ControlModel(model, blocks).set_control(ControlVector.import_gguf("{path}"))',
        write=write_control_vector,
        read=read_control_vector,
        suffix=".gguf",
        first_block=1,
    ),
    VectorFormat(
        name="vllm-lens",
        program="vllm-lens, in vLLM",
        file="JSON with the fields of vllm_lens.SteeringVector",
        layer="layer_indices: {L}",
        positions=_ALL_POSITIONS,
        loading='SamplingParams(extra_args={{"apply_steering_vectors": '
        '[json.load(open("{path}"))]}})',
        write=write_vllm_lens,
        read=read_vllm_lens,
        suffix=".json",
        keeps_scale=True,
    ),
    VectorFormat(
        name="lm-eval",
        program="lm-evaluation-harness, --model steered",
        file='torch.save of {"layers.L": {steering_vector, steering_coefficient, action, bias}}',
        layer="layers.{L}",
        positions=_ALL_POSITIONS,
        loading="lm_eval --model steered --model_args pretrained=MODEL,steer_path={path}",
        write=write_lm_eval,
        read=read_lm_eval,
        suffix=".pt",
        needed_suffixes=(".pt", ".pth"),
        names_blocks=True,
        modes=("add", "clamp", "ablate"),
        keeps_scale=True,
        partial=False,
    ),
    VectorFormat(
        name="steering-vectors",
        program="steering-vectors",
        file="torch.save of the arguments of steering_vectors.SteeringVector",
        layer="layer_activations: {L}",
        positions="all, or from min_token_index on, which the caller gives; with a cache the first"
        " call alone counts, so new text is then not steered",
        loading='SteeringVector(**torch.load("{path}", weights_only=True)).apply(model)',
        write=write_steering_vectors,
        read=read_steering_vectors,
        suffix=".pt",
    ),
    VectorFormat(
        name="aisteer360",
        program="IBM AISteer360",
        file="JSON (.svec) with directions by layer",
        layer="directions: {L}",
        positions="as the control says that loads it; by default new text alone, and all with"
        ' token_scope="all"',
        loading='CAA(steering_vector=SteeringVector.load("{path}"), layer_id=L, multiplier=1.0,'
        ' token_scope="all")',
        write=write_aisteer360,
        read=read_aisteer360,
        suffix=".svec",
        needed_suffixes=(".svec",),
    ),
    VectorFormat(
        name="neuronpedia",
        program="Neuronpedia",
        file="JSON, the body of a request to api/vector/new",
        layer="layerNumber {L1}, hook_resid_pre",
        positions="as the page says on which it is used",
        loading="POST {path} to https://neuronpedia.org/api/vector/new; steer with"
        " strength_multiplier 1",
        write=write_neuronpedia,
        read=read_neuronpedia,
        suffix=".json",
        reaches_last_block=False,
        several_blocks=False,
        keeps_scale=True,
    ),
    VectorFormat(
        name="transformers",
        program="plain transformers: steer.py in the folder registers forward hooks",
        file="folder with directions.safetensors and steer.py",
        layer="{L}",
        positions="as `SteeringVector.apply` at the strength that is exported: all, or all without"
        " the first skip_first ones; steer.py says which",
        loading="from steer import steer; handles = steer(model)",
        write=write_script,
        read=read_script,
        names_blocks=True,
        modes=("add", "clamp", "ablate"),
        keeps_scale=True,
        leaves_first=True,
    ),
)


class FormatTable(dict[str, VectorFormat]):
    """Formats of vectors by name, for ``to=`` of an export.

    A notebook shows program, place of the direction, operations and positions of each.
    """

    def __repr__(self) -> str:
        return f"FormatTable({', '.join(self)})"

    def _repr_html_(self) -> str:
        columns = ("program", "file", "layer", "modes", "positions")
        rows = {name: [getattr(row, key) for key in columns] for name, row in self.items()}
        shown = pd.DataFrame.from_dict(rows, orient="index", columns=list(columns))
        shown["modes"] = shown["modes"].map(", ".join)
        return card("Formats of vectors", table(shown.reset_index(names="to")))


FORMATS = FormatTable((row.name, row) for row in _ROWS)
"""Every format, by its name."""


def format_named(name: str) -> VectorFormat:
    """Return the format of a name.

    Raises:
        ValueError: there is no such format; the message lists those that there are.
    """
    if name not in FORMATS:
        raise ValueError(f"to is {name!r}; expected one of {list(FORMATS)}")
    return FORMATS[name]


def refuse_inexpressible(
    row: VectorFormat, served: ServedVectors, n_layers: int | None = None
) -> None:
    """Raise `ValueError` if a format cannot express an intervention.

    The message gives the reason and the formats that can. ``n_layers`` is the number of blocks of
    the model, None if it is not known.
    """
    reason = _reason(row, served, n_layers)
    if reason:
        others = [other.name for other in FORMATS.values() if not _reason(other, served, n_layers)]
        remedy = f"export to {' or '.join(map(repr, others))}" if others else "steer with `apply`"
        raise ValueError(f"the format {row.name!r} cannot express {reason}; {remedy}, or bake it")


def _reason(row: VectorFormat, served: ServedVectors, n_layers: int | None) -> str:
    """Return what a format cannot express of an intervention, in words; empty if nothing."""
    first, last = min(served.layers), max(served.layers)
    names_post = served.facts.get("hookType") == "hook_resid_post"
    rank = max(len(rows) for rows in served.layers.values())
    if served.mode not in row.modes:
        return f"mode {served.mode!r} (it has {' and '.join(map(repr, row.modes))})"
    if first < row.first_block:
        return f"block {first}: its files begin at block {row.first_block}"
    is_last = n_layers is not None and last >= n_layers - 1
    if is_last and not row.reaches_last_block and not names_post:
        return f"block {last}, the last one: {row.name} names the stream before a block"
    if len(served.layers) > 1 and not row.several_blocks:
        return f"{len(served.layers)} blocks in one file: it holds one"
    if rank > 1 and not (row.subspaces and served.mode == "ablate"):
        return f"{rank} directions at one block"
    if served.mode != "add" and served.scale != 1 and not row.partial:
        return f"mode {served.mode!r} at scale {served.scale:g}: it has the full strength alone"
    return ""
