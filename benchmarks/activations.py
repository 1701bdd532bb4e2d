"""Paired activations of a real pair: middle layers of the bundled models on the bundled text."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.measuring import Settings
from benchmarks.models import TINY, random_documents, random_models
from lrt_lens.bundled import DEMO_FOLDER, demo_pair
from lrt_lens.data import N_FOLDS, Block, BlockPlan, document_key, iterate_blocks, part_of
from lrt_lens.models import ModelPair, residual_post

BUNDLED_TEXT = DEMO_FOLDER / "data" / "documents.jsonl.gz"


@dataclass(frozen=True)
class Recording:
    """Paired rows in memory, the same for Adam and for the closed form."""

    x: Tensor
    """Activations of the source, [token, d_source]."""
    y: Tensor
    """Activations of the target, [token, d_target]."""
    documents: list[int]
    """The document of every row."""
    origin: str
    """Models, text and layers, in words."""

    @property
    def tests(self) -> Tensor:
        """Return True for rows in the test fold of `CrossMoments.from_activations`, [token].

        Adam and ridge are therefore tested on the same rows.
        """
        held_out = {
            document: part_of(document_key(str(document), 0)) >= N_FOLDS
            for document in set(self.documents)
        }
        return torch.tensor([held_out[document] for document in self.documents])


def record(settings: Settings) -> Recording:
    """Activations at the middle layers of the bundled pair; of a tiny random pair with --quick."""
    if BUNDLED_TEXT.exists() and not settings.quick:
        return _record(demo_pair(), BUNDLED_TEXT, settings, "bundled pair, bundled text")
    if not settings.quick:
        raise RuntimeError(
            f"{BUNDLED_TEXT.name} is not in the bundled data; this benchmark needs the bundled "
            "pair and its text: install the package with its data, or use --quick"
        )
    with random_models(TINY, settings.seed) as folder:
        pair = ModelPair.load(str(folder / "source"), str(folder / "target"))
        return _record(
            pair,
            random_documents(folder, 2 * settings.n_tokens, (20, 40), settings.seed),
            settings,
            "random pair, random words",
        )


def _record(pair: ModelPair, documents: Any, settings: Settings, origin: str) -> Recording:
    """Activations at the middle layers of a pair on some documents."""
    layers = pair.source.n_layers // 2, pair.target.n_layers // 2
    rows = [
        _rows(pair, block, layers)
        for block in iterate_blocks(
            documents,
            pair.source,
            BlockPlan(n_tokens=settings.n_tokens, max_document_tokens="auto"),
        )
    ]
    x, y = torch.cat([r[0] for r in rows]), torch.cat([r[1] for r in rows])
    return Recording(
        x,
        y,
        [document for r in rows for document in r[2]],
        f"{origin}, source layer {layers[0]}, target layer {layers[1]}",
    )


def _rows(
    pair: ModelPair, block: Block, layers: tuple[int, int]
) -> tuple[Tensor, Tensor, list[int]]:
    """Rows of both models for one block, and the document of every row."""
    x, y, documents = [], [], []
    for batch in block.batches(4096):
        tokens = pair.source.pad([window.ids for window in batch])
        for rows, model, layer in ((x, pair.source, layers[0]), (y, pair.target, layers[1])):
            hook = residual_post(layer)
            activations = model.capture(tokens, [hook])[hook]
            # Tensors made in inference mode cannot take part in autograd, which Adam needs; a
            # clone made outside it can.
            rows.extend(
                activations[i, torch.from_numpy(window.rows)].clone()
                for i, window in enumerate(batch)
            )
        documents.extend(window.document for window in batch for _ in window.rows)
    return torch.cat(x), torch.cat(y), documents
