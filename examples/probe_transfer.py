"""Does a probe learnt on the small model classify on the large one? Transferring Features with Model Stitching, §4 and figure 3a.

    python examples/probe_transfer.py --out probe-transfer-report                       # bundled pair and texts
    python examples/probe_transfer.py --texts reviews.jsonl --out probe-transfer-report  # rows {"text": …, "label": …}
    python examples/probe_transfer.py --sae-probes 5_hist_fig_ismale                     # a set of the sae-probes package, by file name

Without texts two tasks are made of the bundled ones: sentiment (the contrast set) and register (story or review, documents of the map's
test fold). Probes are logistic regressions on the mean state. With ``--sae`` and ``--native-sae`` (SAELens folders at the stitch's hook
points) the paper's figure is drawn too: accuracy over the number of SAE features that a probe may read.

The paper prints no accuracies of its probes, only plots (y from .5 to 1) with the reading "zero-shot transfer ≈ native" for dense probes; so that
reading is what our numbers stand beside.
"""

import csv
import importlib.util
import io
import json
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import tyro

import lrt_lens as lrt
from lrt_lens.adapters.reading import Read
from lrt_lens.data.blocks import N_FOLDS, part_of
from lrt_lens.data.documents import document_key, read_jsonl
from lrt_lens.evaluation.probes import ProbeEvaluation, evaluate_probe
from lrt_lens.evaluation.sparse_probing import SparseProbeEvaluation, evaluate_sparse_probes
from lrt_lens.models.hook_points import same_place

logger = logging.getLogger("probe_transfer")

PAPER = (
    "Stitching (arXiv 2506.06609) §4, figure 3a: dense probes transferred zero-shot from Pythia-70m to 160m are about as accurate as native ones "
    "on its eight data sets except code and language; no accuracies are printed."
)
READING = (
    "The comparison shows whether a probe survives this stitch on these texts, beside what token identity alone would give; it does not show that "
    "it would between other models, nor that the probe's direction is used by the model."
)


@dataclass(frozen=True)
class Task:
    """Labelled texts."""

    name: str
    texts: list[str]
    labels: list[Any]


def main(
    source: str | None = None, target: str | None = None, texts: Path | None = None, sae_probes: str | None = None, sae: str | None = None,
    native_sae: str | None = None, documents: str | None = None, out: Path = Path("probe-transfer-report"), source_layer: int | None = None,
    n_tokens: int = 60_000, n_texts: int = 1_000, read: Read = "mean", seed: int = 0, device: str | None = None, quick: bool = False,
) -> None:  # fmt: skip
    """Carry probes and judge them.

    Args:
        source: small model, a hub id or folder; the bundled one without it.
        target: large model.
        texts: JSON Lines with `text` and `label`; the bundled tasks without it.
        sae_probes: name of a data set of the package sae-probes, instead of texts.
        sae: SAELens folder of an SAE on the source, at the source layer; bundled without it, where the models are.
        native_sae: SAELens folder of an SAE on the target, at the target layer.
        documents: text file or data set for the map; the bundled text without it.
        out: folder for html figures and probe_transfer.json.
        source_layer: where probes are learnt; the middle one without it.
        n_tokens: tokens of the harvest.
        n_texts: texts of a task at most.
        read: where a text is read.
        seed: of folds, splits and draws.
        device: where the models run.
        quick: few of everything: shows that it runs.
    """
    if quick:
        n_tokens, n_texts = 10_000, 120
    pair = lrt.demo_pair(device=device) if source is None or target is None else lrt.ModelPair.load(source, target, device=device)
    corpus = lrt.demo_documents() if documents is None else documents
    layer = pair.source.n_layers // 2 if source_layer is None else source_layer
    stitch, token_map = fit(pair, corpus, layer, n_tokens, seed, quick)
    logger.info("%s", stitch)
    own, theirs = saes(stitch, sae, native_sae, bundled=source is None or target is None)
    options: dict[str, Any] = {"ks": (10,), "n_seeds": 2, "n_random": 4, "n_permuted": 2} if quick else {"n_permuted": 10}
    out.mkdir(parents=True, exist_ok=True)
    results: list[ProbeEvaluation] = []
    sparse: list[SparseProbeEvaluation] = []
    for task in tasks(texts, sae_probes, stitch, n_texts, seed):
        found = evaluate_probe(pair, stitch, task.texts, task.labels, read=read, token_map=token_map, task=task.name, seed=seed, **options)
        found.figure().write_html(out / f"probe_{task.name}.html", include_plotlyjs=True)
        logger.info("%s", found.summary.round(3).to_string(index=False))
        results.append(found)
        if own is not None:
            sparse.append(sparse_result(pair, stitch, task, own, theirs, seed))
            sparse[-1].figure().write_html(out / f"sparse_{task.name}.html", include_plotlyjs=True)
    write(out / "probe_transfer.json", stitch, results, sparse)
    logger.info("Open %s", out)


def fit(pair: lrt.ModelPair, corpus: Any, layer: int, n_tokens: int, seed: int, quick: bool) -> tuple[lrt.Stitch, lrt.AffineMap]:
    """(the stitch from the layer to its best partner with a null, the map from the target's embedding to the source hook)."""
    layers = "proportional" if quick else "all"
    target = (
        lrt.fit_stitches(pair, corpus, source_layers=[layer], target_layers=layers, n_tokens=n_tokens, null=False, seed=seed)
        .best()
        .target_hook
    )
    options: dict[str, Any] = {"n_tokens": n_tokens, "seed": seed}
    stitch = lrt.fit_stitches(pair, corpus, source_layers=[layer], target_layers=[target], null="full", **options).best()
    moments = lrt.harvest(pair.reversed(), corpus, source_layers=[target], target_layers=[layer], null=False, **options)
    return stitch, lrt.token_identity_map(moments, stitch.source_hook)


def tasks(texts: Path | None, sae_probes: str | None, stitch: lrt.Stitch, n_texts: int, seed: int) -> list[Task]:
    """The tasks asked for, shuffled and cut to size."""
    if texts is not None:
        rows = [row for row in read_jsonl(texts) if row.get("label") is not None]
        if not rows or not all(isinstance(row.get("text"), str) for row in rows):
            raise ValueError(f"{texts} holds no rows with 'text' and 'label'; expected one such object a line")
        found = [Task(texts.name.split(".")[0], [row["text"] for row in rows], [row["label"] for row in rows])]
    elif sae_probes is not None:
        found = [sae_probes_task(sae_probes)]
    else:
        contrast = lrt.demo_contrast("sentiment")
        labels = ["positive"] * len(contrast) + ["negative"] * len(contrast)
        found = [Task("sentiment", contrast.texts, labels), register_task(stitch)]
    return [cut(task, n_texts, seed) for task in found]


def register_task(stitch: lrt.Stitch) -> Task:
    """Story or review: the beginnings of documents that the map was not fitted on."""
    texts, labels = [], []
    for register in ("story", "review"):
        held = [text for text in lrt.demo_documents(register) if part_of(document_key(text, stitch.provenance.seed)) >= N_FOLDS]
        texts += [" ".join(text.split()[:30]) for text in held]
        labels += [register] * len(held)
    return Task("register", texts, labels)


def sae_probes_task(name: str) -> Task:
    """A data set of the sae-probes package: columns `prompt` and `target`."""
    spec = importlib.util.find_spec("sae_probes")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "the package sae-probes is not installed; `pip install --no-deps sae-probes==0.4.2 zstandard` brings its data sets"
        )
    import zstandard  # pyright: ignore[reportMissingImports] (optional, as sae-probes itself is)

    folder = Path(spec.origin).parent / "data" / "cleaned_data"
    path = folder / f"{name}.csv.zst"
    if not path.is_file():
        known = sorted(file.name.removesuffix(".csv.zst") for file in folder.glob("*.csv.zst"))
        raise ValueError(f"sae-probes has no data set {name!r}; it has {len(known)}, such as {known[:5]}")
    with open(path, "rb") as packed, zstandard.ZstdDecompressor().stream_reader(packed) as stream:
        rows = list(csv.DictReader(io.StringIO(stream.read().decode("utf-8"))))
    return Task(name, [row["prompt"] for row in rows], [row["target"] for row in rows])


def cut(task: Task, n_texts: int, seed: int) -> Task:
    """So many texts at random."""
    order = list(range(len(task.texts)))
    random.Random(seed).shuffle(order)
    return Task(task.name, [task.texts[i] for i in order[:n_texts]], [task.labels[i] for i in order[:n_texts]])


def saes(stitch: lrt.Stitch, sae: str | None, native_sae: str | None, *, bundled: bool) -> tuple[Any, Any]:
    """(SAE of the source, SAE of the target), each None where there is none; the bundled ones where they are at home at the stitch's ends."""
    from sae_lens import SAE

    own = lrt.demo_sae("small") if bundled and sae is None else SAE.load_from_disk(sae) if sae else None
    theirs = lrt.demo_sae("large") if bundled and native_sae is None else SAE.load_from_disk(native_sae) if native_sae else None
    at_home = [
        found is not None and same_place(str(found.cfg.metadata.hook_name), hook)
        for found, hook in ((own, stitch.source_hook), (theirs, stitch.target_hook))
    ]
    return own if sae or at_home[0] else None, theirs if native_sae or at_home[1] else None


def sparse_result(pair: lrt.ModelPair, stitch: lrt.Stitch, task: Task, own: Any, theirs: Any, seed: int) -> SparseProbeEvaluation:
    """Sparse probes on the last third of the texts."""
    start = 2 * len(task.texts) // 3
    return evaluate_sparse_probes(
        pair, stitch, task.texts[:start], task.labels[:start], test_texts=task.texts[start:], test_labels=task.labels[start:],
        source_sae=own, native_sae=theirs, task=task.name, seed=seed,
    )  # fmt: skip


def write(path: Path, stitch: lrt.Stitch, results: Sequence[ProbeEvaluation], sparse: Sequence[SparseProbeEvaluation]) -> None:
    """One JSON: tables, the paper's reading beside ours."""

    def rows(table: pd.DataFrame) -> list[dict[str, Any]]:
        return json.loads(table.to_json(orient="records") or "[]")  # NaN becomes null

    ours = [
        {"task": found.task, "n_test": found.n_test, "chance": found.chance, "summary": rows(found.summary), "table": rows(found.table)}
        for found in results
    ]
    content = {"stitch": repr(stitch), "paper": PAPER, "ours": ours, "sparse": [rows(found.table) for found in sparse], "reading": READING}
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    tyro.cli(main)
