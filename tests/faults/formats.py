"""One small file or folder of every format that this package reads, and how it is read.

for name, make in FORMATS.items():
stored = make(tmp_path / name)
stored.load()                       # the object, or an error of lrt_lens.errors
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lrt_lens._tensor_files import read_tensor_file
from lrt_lens.adapters.concepts import ConceptMap
from lrt_lens.adapters.concepts._concept_map import ConceptLayer
from lrt_lens.adapters.probes import LinearProbe
from lrt_lens.adapters.saes import CodeMap, load_sparsify
from lrt_lens.adapters.vectors import SteeringVector
from lrt_lens.data import ChoiceItems, ContrastSet
from lrt_lens.data._windows import Share
from lrt_lens.models import ModelIdentity
from lrt_lens.moments import ActivationCache, CrossMoments, Provenance
from lrt_lens.moments._checkpoint import Checkpoint, add_file, read_rank_files
from lrt_lens.stitching import AffineMap, Stitch
from lrt_lens.stitching.recipes._learner import Learner, Progress, TrainingSettings
from lrt_lens.stitching.recipes._training_checkpoint import TrainingCheckpoint

HOOKS = ("blocks.1.hook_resid_post", "blocks.2.hook_resid_post")
D_SOURCE, D_TARGET = 6, 8
ARGUMENTS = {"seed": 0, "plan": {"context_length": 8, "cap": None}}


def identity(width: int, layers: int) -> ModelIdentity:
    return ModelIdentity(
        name=f"model{width}",
        revision="unknown",
        config_hash="0011223344556677",
        tokenizer_hash="8899aabbccddeeff",
        d_model=width,
        n_layers=layers,
        basis="raw",
        prepend_bos=True,
        context_length=64,
        ignores_mean=True,
        prefix=(0,),
    )


SOURCE, TARGET = identity(D_SOURCE, 3), identity(D_TARGET, 4)


@dataclass(frozen=True)
class Stored:
    """Files of one object, and the function that reads it."""

    files: tuple[Path, ...]
    """Files that a test may change."""
    load: Callable[[], Any]


def rows(n: int = 400) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, D_SOURCE, generator=generator)
    y = x @ torch.randn(D_SOURCE, D_TARGET, generator=generator)
    return x, y + torch.randn(n, D_TARGET, generator=generator), [i // 4 for i in range(n)]


def moments() -> CrossMoments:
    x, y, documents = rows()
    found = CrossMoments.from_activations(
        x, y, documents=documents, source_hook=HOOKS[0], target_hook=HOOKS[1], null=False
    )
    found.provenance = Provenance(SOURCE, TARGET, 64, 4, None, 3, 100, "00ff", {"torch": "2"})
    return found


def affine(up: bool = True) -> AffineMap:
    widths, hooks = ((D_SOURCE, D_TARGET), HOOKS) if up else ((D_TARGET, D_SOURCE), HOOKS[::-1])
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(*widths, generator=generator)
    return AffineMap(weight, torch.ones(widths[1]), *hooks)


# --------------------------------------------------------------------------------------- one a kind


def vector(folder: Path) -> Stored:
    made = SteeringVector(torch.linspace(-1, 1, D_TARGET), HOOKS[1], TARGET, "mood", read=-2)
    path = made.save(folder / "vector.safetensors")
    return Stored((path,), lambda: SteeringVector.load(path))


def probe(folder: Path) -> Stored:
    made = LinearProbe(torch.ones(D_SOURCE, 3), torch.zeros(3), ("a", 2, 3), HOOKS[0], SOURCE)
    path = made.save(folder / "probe.safetensors")
    return Stored((path,), lambda: LinearProbe.load(path))


def probe_of_maxima(folder: Path) -> Stored:
    made = LinearProbe(
        torch.ones(D_SOURCE, 1),
        torch.zeros(1),
        ("no", "yes"),
        HOOKS[1],
        TARGET,
        read="max",
        before=affine(up=False),
    )
    path = made.save(folder / "probe.safetensors")
    return Stored((path,), lambda: LinearProbe.load(path))


def exported_probe(folder: Path) -> Stored:
    made = LinearProbe(torch.ones(D_SOURCE, 1), torch.zeros(1), ("a", "b"), HOOKS[0], SOURCE)
    made.export(folder)
    files = (folder / "probe.json", folder / "probe.safetensors")
    return Stored(files, lambda: LinearProbe.load(folder))


def concept_map(folder: Path) -> Stored:
    layer = ConceptLayer(affine(), 9, 5, 3.5, 0.1, 0.5, 0.4, False, {"mood": 0.7}, 3.0)
    made = ConceptMap((layer, layer), SOURCE, TARGET, ("mood",), ("ab",), frozenset({"k"}))
    path = made.save(folder / "concepts.safetensors")
    return Stored((path,), lambda: ConceptMap.load(path))


def code_map(folder: Path) -> Stored:
    made = CodeMap(
        torch.ones(3, D_TARGET),
        torch.zeros(D_TARGET),
        torch.tensor([0, 2, 5]),
        torch.arange(7),
        *HOOKS,
        SOURCE,
        TARGET,
        curve=((0.1, 0.2, 0.3),),
    )
    path = made.save(folder / "codes.safetensors")
    return Stored((path,), lambda: CodeMap.load(path))


def moment_file(folder: Path) -> Stored:
    path = moments().save(folder / "moments.safetensors")
    return Stored((path,), lambda: CrossMoments.load(path))


def stitch(folder: Path) -> Stored:
    moments().fit(progress=False)[HOOKS].save_pretrained(folder)
    files = tuple(folder / f"{name}.safetensors" for name in ("stitch", "held_out"))
    return Stored((folder / "stitch_config.json", *files), lambda: Stitch.from_pretrained(folder))


def cache(folder: Path) -> Stored:
    x, y, documents = rows(120)
    with ActivationCache.create(folder, source_hook=HOOKS[0], target_hook=HOOKS[1]) as written:
        written.add(x, y, documents=documents)

    def load() -> CrossMoments:
        opened = ActivationCache.open(folder)
        for shard in opened.shards:
            shard.verify()
        return opened.moments()

    return Stored((folder / "manifest.json", folder / "shard-00000.safetensors"), load)


def checkpoint(folder: Path) -> Stored:
    made = moments()
    with Checkpoint(folder, ARGUMENTS, Share(), every=1e9) as opened:
        opened.share_origin(made)
        opened.own = {0: 11, 1: 12}
        opened._unwritten = True
        opened.write(made)
    (rank, run) = (folder / name for name in ("rank0.safetensors", "run.safetensors"))
    content = {path: path.read_bytes() for path in (rank, run)}

    def load() -> CrossMoments:
        """Resume, which sets damaged files aside, and put the folder back as it was."""
        fresh = CrossMoments((HOOKS,))
        try:
            with Checkpoint(folder, ARGUMENTS, Share(), every=1e9) as opened:
                opened.resume(fresh, torch.device("cpu"))
            for file in read_rank_files(folder, ARGUMENTS, verify=True):
                add_file(made, file)
        finally:
            for path in folder.glob("*.damaged"):
                path.unlink()
            for path, octets in content.items():
                if not path.exists():
                    path.write_bytes(octets)
        return fresh

    return Stored((rank, run), load)


def training(folder: Path) -> Stored:
    def learner() -> Learner:
        torch.manual_seed(0)
        module = torch.nn.Linear(3, 2)
        return Learner("up", module, lambda x, y: ((module(x) - y) ** 2).mean(), TrainingSettings())

    trained = learner()
    trained.step(torch.ones(4, 3), torch.ones(4, 2), 0.1)
    folder.mkdir(parents=True)
    arguments = {"rows": "abc", "seed": 0}
    progress = Progress(1, 2, 3, 4, 5.0, [{"epoch": 1, "held_out_loss": 0.5}])
    TrainingCheckpoint(folder, {"up": trained}, arguments).write(progress)

    def load() -> tuple[Progress, dict[str, torch.Tensor]]:
        fresh = learner()
        found = TrainingCheckpoint(folder, {"up": fresh}, arguments).resume()
        return found, dict(fresh.module.state_dict())

    return Stored((folder / "training.safetensors",), load)


def sparsify(folder: Path) -> Stored:
    from safetensors.torch import save_file

    (folder / "layers.2").mkdir(parents=True)
    shapes = {"encoder.weight": (12, 6), "encoder.bias": (12,), "W_dec": (12, 6), "b_dec": (6,)}
    tensors = {name: torch.ones(shape) for name, shape in shapes.items()}
    weights, config = (folder / "layers.2" / name for name in ("sae.safetensors", "cfg.json"))
    save_file(tensors, weights)
    config.write_text(json.dumps({"d_in": 6, "k": 2, "num_latents": 12, "activation": "topk"}))
    return Stored((config, weights), lambda: load_sparsify(folder / "layers.2"))


def contrast_set(folder: Path) -> Stored:
    folder.mkdir(parents=True)
    path = folder / "contrast.jsonl"
    lines = [{"positive": f"It was good {i}.", "negative": f"It was bad {i}."} for i in range(6)]
    path.write_text("\n".join(map(json.dumps, lines)))
    return Stored((path,), lambda: ContrastSet.from_jsonl(path))


def choice_items(folder: Path) -> Stored:
    folder.mkdir(parents=True)
    path = folder / "items.jsonl"
    lines = [{"prompt": f"It was {i}", "positive": " good", "negative": " bad"} for i in range(6)]
    path.write_text("\n".join(map(json.dumps, lines)))
    return Stored((path,), lambda: ChoiceItems.from_jsonl(path))


FORMATS: dict[str, Callable[[Path], Stored]] = {
    "vector": vector,
    "probe": probe,
    "probe of maxima": probe_of_maxima,
    "exported probe": exported_probe,
    "concept map": concept_map,
    "code map": code_map,
    "moments": moment_file,
    "stitch": stitch,
    "cache": cache,
    "checkpoint": checkpoint,
    "training": training,
    "sparsify": sparsify,
    "contrast set": contrast_set,
    "choice items": choice_items,
}
"""Makers of all formats, by name."""


def tensors_and_metadata(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    file = read_tensor_file(path, None)
    return file.tensors, file.metadata
