"""Rows of a real pair: the bundled models' middle layers on the bundled text."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.measuring import Settings
from benchmarks.models import TINY, random_documents, random_models
from lrt_lens.bundled._models import DEMO_FOLDER, demo_pair
from lrt_lens.data._blocks import Block, iterate_blocks
from lrt_lens.data._documents import document_key
from lrt_lens.data._parts import N_FOLDS, part_of
from lrt_lens.data._windows import BlockPlan
from lrt_lens.models._hook_points import residual_post
from lrt_lens.models._pair import ModelPair

BUNDLED_TEXT = DEMO_FOLDER / "data" / "documents.jsonl.gz"


@dataclass(frozen=True)
class Recording:
    """Paired rows in memory: what Adam needs, and what our own fit is given too."""

    x: Tensor
    """[token, d_source]."""
    y: Tensor
    """[token, d_target]."""
    documents: list[int]
    """A document for every row."""
    origin: str
    """Which models and layers."""

    @property
    def tests(self) -> Tensor:
        """[token], true in the test fold of `CrossMoments.from_activations`: Adam is held out on
        the same rows as ridge.
        """
        held_out = {
            document: part_of(document_key(str(document), 0)) >= N_FOLDS
            for document in set(self.documents)
        }
        return torch.tensor([held_out[document] for document in self.documents])


def record(settings: Settings) -> Recording:
    """Middle layers of the bundled pair (of a tiny random pair where the bundle is not there and
    ``--quick`` is on).
    """
    if BUNDLED_TEXT.exists() and not settings.quick:
        return _record(demo_pair(), BUNDLED_TEXT, settings, "bundled pair, bundled text")
    if not settings.quick:
        raise RuntimeError(
            f"{BUNDLED_TEXT.name} is not in the bundled data; this benchmark needs a trained pair and its text"
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
    layers = pair.source.n_layers // 2, pair.target.n_layers // 2
    rows = [
        _rows(pair, block, layers)
        for block in iterate_blocks(documents, pair.source, BlockPlan(n_tokens=settings.n_tokens))
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
    x, y, documents = [], [], []
    for batch in block.batches(4096):
        tokens = pair.source.pad([window.ids for window in batch])
        for rows, model, layer in ((x, pair.source, layers[0]), (y, pair.target, layers[1])):
            hook = residual_post(layer)
            activations = model.capture(tokens, [hook])[hook]
            # A clone outside inference mode: rows that Adam differentiates through must be ordinary
            # tensors.
            rows.extend(
                activations[i, torch.from_numpy(window.rows)].clone()
                for i, window in enumerate(batch)
            )
        documents.extend(window.document for window in batch for _ in window.rows)
    return torch.cat(x), torch.cat(y), documents
