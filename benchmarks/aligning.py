"""The cost of aligning two tokenizers, relative to tokenising and to a harvest of the same text."""

import statistics
from functools import partial
from itertools import islice
from typing import Any

from benchmarks.measuring import Measurement, Settings, Timings, alternate
from benchmarks.models import PYTHIA, TINY, random_documents, random_models
from lrt_lens.bundled import DEMO_FOLDER, demo_documents
from lrt_lens.data import Aligner, aligned_share
from lrt_lens.models import ModelPair
from lrt_lens.moments import harvest

_REPETITIONS = 5
_CHUNK = 64
"""Number of texts per call, as in a harvest."""


def alignment_tokens_per_second_over_tokenizer(settings: Settings) -> Measurement:
    """Seconds that alignment adds ÷ seconds of both tokenizers alone, on the bundled texts."""
    from transformers import AutoTokenizer

    tokenizers = AutoTokenizer.from_pretrained(DEMO_FOLDER / "small"), _word_piece(demo_documents())
    texts = demo_documents()[: 200 if settings.quick else None]
    timings, share = _time(tokenizers, texts)
    return Measurement(
        name="alignment_tokens_per_second_over_tokenizer",
        value=timings.ratio - 1,
        target=1.0,
        at_most=True,
        what="(Seconds of `Aligner.align` − seconds of both tokenizers alone) ÷ seconds of both "
        "tokenizers alone: token ids as a harvest asks for them, "
        f"{len(texts):,} bundled texts in chunks of {_CHUNK}, the bundled byte-level BPE against a "
        "lower-casing WordPiece trained on the texts.",
        raw=timings.raw("aligned", "tokenizers") | {"texts": len(texts), "share": share},
    )


def alignment_share_of_harvest(settings: Settings) -> Measurement:
    """Seconds that alignment adds ÷ seconds of a harvest of the same documents."""
    shape = TINY if settings.quick else PYTHIA
    with random_models(shape, settings.seed) as folder:
        pair = ModelPair.load(str(folder / "source"), str(folder / "target"))
        documents = list(random_documents(folder, settings.n_tokens, (256, 600), settings.seed))
        tokenizers = pair.source.tokenizer, _word_piece(documents)
        added, share = _time(tokenizers, documents)
        source, target = shape.middle
        run = partial(
            harvest, pair, documents, source_layers=[source], target_layers=[target], progress=False
        )
        harvested = alternate(run, lambda: None, 2)
    seconds = statistics.median(a - b for a, b in zip(added.a, added.b, strict=True))
    return Measurement(
        name="alignment_share_of_harvest",
        value=seconds / min(harvested.a),
        target=0.05,
        at_most=True,
        what="Seconds that `Aligner.align` takes beyond tokenising with both ÷ seconds of a "
        f"harvest of one middle pair (layers {source} and {target}) of the same documents: "
        "word-level tokenizer of the random models against a WordPiece.",
        raw=added.raw("aligned", "tokenizers")
        | {"harvest_seconds": list(harvested.a), "documents": len(documents), "share": share},
    )


def _time(tokenizers: tuple[Any, Any], texts: list[str]) -> tuple[Timings, tuple[float, float]]:
    """Timings of alignment (A) and of tokenising alone (B), and the fractions of aligned tokens."""
    aligner = Aligner(*tokenizers)
    chunks = [texts[start : start + _CHUNK] for start in range(0, len(texts), _CHUNK)]
    share = aligned_share([alignment for chunk in chunks for alignment in aligner.align(chunk)])
    timings = alternate(
        lambda: [aligner.align(chunk) for chunk in chunks],
        lambda: [_ids(tokenizer, chunk) for chunk in chunks for tokenizer in tokenizers],
        _REPETITIONS,
    )
    return timings, share


def _ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Token ids, requested as `HookedModel.encode_bodies` does."""
    return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]


def _word_piece(texts: list[str]) -> Any:
    """A lower-casing WordPiece tokenizer trained on the first 500 texts."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=8000, special_tokens=["[UNK]"], show_progress=False
    )
    tokenizer.train_from_iterator(islice(texts, 500), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")
