"""The cost of aligning two tokenizers, relative to tokenising and to a harvest of the same text."""

import statistics
from functools import partial
from itertools import islice
from pathlib import Path
from string import ascii_lowercase
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.measuring import Measurement, Settings, Timings, alternate
from benchmarks.models import PYTHIA, TINY, random_documents, random_models
from lrt_lens.bundled import DEMO_FOLDER, demo_documents
from lrt_lens.data import Aligner, aligned_share
from lrt_lens.models import ModelPair
from lrt_lens.moments import harvest

_REPETITIONS = 5
_LARGE = 262_144
"""Number of tokens of a large vocabulary, that of Gemma 2 and 3."""
_CHUNK = 64
"""Number of texts per call, as in a harvest."""


def alignment_tokens_per_second_over_tokenizer(settings: Settings) -> Measurement:
    """Seconds that alignment adds ÷ seconds of both tokenizers alone, on the bundled texts."""
    from transformers import AutoTokenizer

    tokenizers = AutoTokenizer.from_pretrained(DEMO_FOLDER / "small"), _word_piece(demo_documents())
    texts = demo_documents()[: 200 if settings.quick else None]
    timings, share = _time(tokenizers, texts, settings)
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
        added, share = _time(tokenizers, documents, settings)
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


def aligner_build_over_loading(settings: Settings) -> Measurement:
    """Seconds to build an `Aligner` of large vocabularies ÷ seconds to load their tokenizers."""
    n = 4_000 if settings.quick else _LARGE
    with TemporaryDirectory(prefix="lrt-lens-bench-") as name:
        folder = Path(name)
        for style, make in _STYLES.items():
            make(n).save_pretrained(folder / style)
        # The costly case: equal tokenizers that were loaded separately, so that both vocabularies
        # are compared.
        equal = _time_building((folder / "byte-level",) * 2, settings)
        unequal = _time_building((folder / "byte-level", folder / "sentencepiece"), settings)
    return Measurement(
        name="aligner_build_over_loading",
        value=equal.ratio,
        target=0.5,
        at_most=True,
        what=f"Seconds of building an `Aligner` of two tokenizers of {n:,} tokens, as the first "
        "`lrt.align` does ÷ seconds of loading both from their files: one byte-level BPE loaded "
        "twice. The raw values also have one against a SentencePiece-like BPE.",
        raw=equal.raw("aligner", "loading") | {"different": unequal.raw("aligner", "loading")},
    )


def _time_building(folders: tuple[Path, Path], settings: Settings) -> Timings:
    """Timings of building an aligner of newly loaded tokenizers (A) and of loading them (B)."""
    from transformers import AutoTokenizer

    loaded: list[tuple[Any, Any]] = []

    def load() -> None:
        first, second = (AutoTokenizer.from_pretrained(folder) for folder in folders)
        loaded.append((first, second))

    # Loaded once more than built: every other repetition builds first.
    load()
    return alternate(lambda: Aligner(*loaded.pop(0)), load, settings.repetitions(_REPETITIONS))


def _large_byte_level(n: int) -> Any:
    """A byte-level BPE tokenizer of ``n`` made tokens, as those of Llama 3 and Qwen."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    base = ["<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary, merges = _made_merges(n, base, "Ġ")
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


def _large_sentence_piece(n: int) -> Any:
    """A BPE tokenizer of ``n`` made tokens with SentencePiece's marks, as those of Gemma."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    base = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *map(chr, range(33, 127))]
    vocabulary, merges = _made_merges(n, base, "▁")
    model = models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(parts)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


_STYLES = {"byte-level": _large_byte_level, "sentencepiece": _large_sentence_piece}


def _made_merges(
    n: int, base: list[str], space: str
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A vocabulary of ``n`` tokens, each an earlier one and a letter, and its merges."""
    vocabulary = {token: number for number, token in enumerate(base)}
    merges: list[tuple[str, str]] = []
    # A word of k letters joins one of k − 1 letters and a letter; half of them begin with a space.
    words = ["", space]
    for word in words:
        for letter in ascii_lowercase:
            if len(vocabulary) == n:
                return vocabulary, merges
            words.append(word + letter)
            if word:
                vocabulary[word + letter] = len(vocabulary)
                merges.append((word, letter))
    raise AssertionError("the loop above has no end of its own")


def _time(
    tokenizers: tuple[Any, Any], texts: list[str], settings: Settings
) -> tuple[Timings, tuple[float, float]]:
    """Timings of alignment (A) and of tokenising alone (B), and the fractions of aligned tokens."""
    aligner = Aligner(*tokenizers)
    chunks = [texts[start : start + _CHUNK] for start in range(0, len(texts), _CHUNK)]
    share = aligned_share([alignment for chunk in chunks for alignment in aligner.align(chunk)])
    timings = alternate(
        lambda: [aligner.align(chunk) for chunk in chunks],
        lambda: [_ids(tokenizer, chunk) for chunk in chunks for tokenizer in tokenizers],
        settings.repetitions(_REPETITIONS),
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
