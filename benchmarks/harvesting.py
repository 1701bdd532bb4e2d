"""The cost of a harvest, relative to the forward passes that it needs.

A: `harvest` as a user calls it: tokenisation, windows, both models to the deepest hook point,
moments, folds, masks, shuffled null, token baseline. B: the bare Hugging Face decoders (SDPA, no
cache, no unembedding), cut to the same depth, on the same padded batches, prepared in advance.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoModel

from benchmarks.measuring import Measurement, Settings, alternate
from benchmarks.models import PYTHIA, TINY, PairShape, random_documents, random_models
from lrt_lens.data import BlockPlan, iterate_blocks
from lrt_lens.models import ModelPair
from lrt_lens.moments import harvest
from lrt_lens.stitching import survey

_BATCH_TOKENS, _CONTEXT = 4096, 256
"""The defaults of `harvest`, explicit because the bare decoders must run the same batches."""
_REPETITIONS = 2


@dataclass(frozen=True)
class Selection:
    """The layers of a harvest, and its null."""

    source_layers: tuple[int, ...]
    target_layers: tuple[int, ...]
    null: bool | Literal["full", "sketch", "none"]
    is_survey: bool = False
    """True to survey all hook pairs, scores included, instead of harvesting them."""

    @property
    def depths(self) -> tuple[int, int]:
        """Number of blocks that source and target must run."""
        return max(self.source_layers) + 1, max(self.target_layers) + 1

    def harvest(self, pair: ModelPair, documents: Any, n_tokens: int | None) -> Any:
        """The moments of the selected layers, by `harvest` as a user calls it."""
        if self.is_survey:
            return survey(
                pair,
                documents,
                n_tokens=n_tokens,
                context_length=_CONTEXT,
                batch_tokens=_BATCH_TOKENS,
                progress=False,
            ).moments
        return harvest(
            pair,
            documents,
            source_layers=self.source_layers,
            target_layers=self.target_layers,
            n_tokens=n_tokens,
            context_length=_CONTEXT,
            null=self.null,
            batch_tokens=_BATCH_TOKENS,
            progress=False,
        )


def harvest_overhead_one_pair(settings: Settings) -> Measurement:
    """Harvest of one middle pair with its full null ÷ the decoders cut to that depth."""
    source, target = _shape(settings).middle
    value, raw = _overhead(settings, Selection((source,), (target,), null=True))
    return Measurement(
        name="harvest_overhead_one_pair",
        value=value,
        target=1.10,
        at_most=True,
        what=f"Harvest of one pair (source layer {source}, target layer {target}) with moments, "
        "folds, masks, null and token baseline ÷ the two bare Hugging Face decoders cut to the "
        "same depth, on the same batches.",
        raw=raw,
    )


def harvest_overhead_all_pairs(settings: Settings) -> Measurement:
    """Harvest of all pairs with the sketched null ÷ the full decoders."""
    shape = _shape(settings)
    sources, targets = tuple(range(shape.source.n_layers)), tuple(range(shape.target.n_layers))
    value, raw = _overhead(settings, Selection(sources, targets, null="sketch"))
    return Measurement(
        name="harvest_overhead_all_pairs",
        value=value,
        target=1.65,
        at_most=True,
        what=f"Harvest of all {len(sources) * len(targets)} pairs, float32 products, sketched null "
        "÷ the two bare Hugging Face decoders, without unembedding, on the same batches.",
        raw=raw,
    )


def survey_overhead_all_pairs(settings: Settings) -> Measurement:
    """Survey of all pairs, scores included, with 20,000 tokens ÷ the full decoders."""
    shape = _shape(settings)
    sources, targets = tuple(range(shape.source.n_layers)), tuple(range(shape.target.n_layers))
    selection = Selection(sources, targets, null="sketch", is_survey=True)
    value, raw = _overhead(settings, selection, min(settings.n_tokens, 20_000))
    return Measurement(
        name="survey_overhead_all_pairs",
        value=value,
        target=1.25,
        at_most=True,
        what=f"Survey of all {len(sources) * len(targets)} pairs on 20,000 tokens, with null, "
        "token baseline, penalties, scores and intervals ÷ the two bare Hugging Face decoders, "
        "without unembedding, on the same batches.",
        raw=raw,
    )


def _shape(settings: Settings) -> PairShape:
    """Shapes of the random models."""
    return TINY if settings.quick else PYTHIA


def _overhead(
    settings: Settings, selection: Selection, n_tokens: int | None = None
) -> tuple[float, dict[str, Any]]:
    """The ratio of a harvest to the bare decoders, and the raw measurements."""
    n_tokens = n_tokens or settings.n_tokens
    with random_models(_shape(settings), settings.seed) as folder:
        pair = ModelPair.load(str(folder / "source"), str(folder / "target"))
        decoders = [
            _bare_decoder(folder / role, depth)
            for role, depth in zip(("source", "target"), selection.depths, strict=True)
        ]
        # Masked positions (four per window) do not count as tokens, so a sixteenth more is drawn.
        documents = list(
            random_documents(folder, n_tokens + n_tokens // 16, (256, 600), settings.seed)
        )
        batches, n_rows = _prepare(documents, pair, n_tokens)
        # Warm-up: documents are short, but many, so that no fold is empty.
        selection.harvest(pair, random_documents(folder, 4_000, (30, 50), seed=1), None)
        _run_bare(decoders, batches[:2])
        harvested = set()
        timings = alternate(
            lambda: harvested.add(selection.harvest(pair, documents, n_tokens).n_tokens),
            lambda: _run_bare(decoders, batches),
            _REPETITIONS,
        )
    if harvested != {n_rows}:
        raise RuntimeError(
            f"the harvest has {harvested} rows, the batches of the bare decoders {n_rows}; both "
            "sides must cut documents into the same windows"
        )
    raw = {
        "rows": n_rows,
        "documents": len(documents),
        "batches": len(batches),
        "padded_tokens": sum(batch.numel() for batch in batches),
    }
    return timings.ratio, timings.raw("harvest", "bare") | raw | {"depths": list(selection.depths)}


def _prepare(documents: Sequence[str], pair: ModelPair, n_tokens: int) -> tuple[list[Tensor], int]:
    """The padded batches that the harvest runs, in its order, and its number of rows."""
    blocks = list(
        iterate_blocks(
            documents,
            pair.source,
            BlockPlan(context_length=_CONTEXT, n_tokens=n_tokens, max_document_tokens="auto"),
        )
    )
    batches = [
        pair.source.pad([window.ids for window in batch])
        for block in blocks
        for batch in block.batches(_BATCH_TOKENS)
    ]
    return batches, sum(block.n_rows for block in blocks)


def _bare_decoder(folder: Path, depth: int) -> nn.Module:
    """The first blocks of a decoder, without the final norm and the unembedding."""
    decoder = AutoModel.from_pretrained(
        folder, attn_implementation="sdpa", dtype=torch.float32
    ).eval()
    decoder.layers = decoder.layers[:depth]
    decoder.final_layer_norm = nn.Identity()
    return decoder


def _run_bare(decoders: Sequence[nn.Module], batches: Sequence[Tensor]) -> None:
    """Run the bare decoders on all batches."""
    with torch.inference_mode():
        for batch in batches:
            for decoder in decoders:
                decoder(input_ids=batch, use_cache=False)
