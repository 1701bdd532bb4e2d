"""Random models of real shapes, a tokenizer with the same vocabulary, and random documents.

Speed and memory do not depend on the weights. The models are written to a temporary folder and
loaded as a user loads them.

    with random_models(PYTHIA) as folder:
        pair = ModelPair.load(str(folder / "source"), str(folder / "target"))
        documents = list(random_documents(folder, n_tokens=65_536, lengths=(256, 600)))
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

END_OF_TEXT, UNKNOWN = "<|endoftext|>", "<unk>"
_SPECIAL = 2
"""Ids below this are special tokens, which do not occur in documents."""


@dataclass(frozen=True)
class Shape:
    """The shape of a decoder."""

    d_model: int
    n_layers: int
    n_heads: int
    d_mlp: int


@dataclass(frozen=True)
class PairShape:
    """The shapes of two decoders with one vocabulary."""

    source: Shape
    target: Shape
    vocabulary: int

    @property
    def middle(self) -> tuple[int, int]:
        """The middle layer of source and of target."""
        return self.source.n_layers // 2, self.target.n_layers // 2


PYTHIA = PairShape(Shape(512, 6, 8, 2048), Shape(768, 12, 12, 3072), 50304)
"""The shapes of Pythia-70m and -160m."""
SMALL = PairShape(Shape(256, 4, 4, 1024), Shape(384, 6, 6, 1536), 4096)
"""Shapes similar to those of the bundled pair."""
TINY = PairShape(Shape(32, 3, 2, 64), Shape(48, 4, 2, 96), 300)
"""Shapes for ``--quick``."""


@contextmanager
def random_models(shape: PairShape, seed: int = 0) -> Iterator[Path]:
    """A temporary folder with ``source`` and ``target`` as Hugging Face model folders."""
    torch.manual_seed(seed)
    with TemporaryDirectory(prefix="lrt-lens-bench-") as name:
        folder = Path(name)
        for role, decoder in (("source", shape.source), ("target", shape.target)):
            GPTNeoXForCausalLM(_config(decoder, shape.vocabulary)).save_pretrained(folder / role)
            _tokenizer(shape.vocabulary).save_pretrained(folder / role)
        yield folder


def write_tokenizer(vocabulary: int) -> tuple[Path, PreTrainedTokenizerFast]:
    """A temporary folder with only a tokenizer in ``source``, and that tokenizer.

    For models that are built in memory.
    """
    folder, tokenizer = Path(mkdtemp(prefix="lrt-lens-bench-")), _tokenizer(vocabulary)
    tokenizer.save_pretrained(folder / "source")
    return folder, tokenizer


def random_documents(
    folder: Path, n_tokens: int, lengths: tuple[int, int], seed: int = 0
) -> Iterator[str]:
    """Random texts, until they have at least ``n_tokens`` tokens together.

    The length of a text is drawn between the two ``lengths``, both included. A text tokenises to
    the ids that were drawn, which is checked for the first text.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder / "source")
    words = np.array(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
    rng = np.random.default_rng(seed)
    n_drawn = 0
    while n_drawn < n_tokens:
        ids = rng.integers(_SPECIAL, len(words), rng.integers(*lengths, endpoint=True))
        text = " ".join(words[ids])
        if n_drawn == 0 and tokenizer(text, add_special_tokens=False)["input_ids"] != ids.tolist():
            raise RuntimeError(
                f"a text of {len(ids)} words does not tokenise back to their ids; check the "
                "tokenizer that `_tokenizer` makes"
            )
        n_drawn += len(ids)
        yield text


def _config(decoder: Shape, vocabulary: int) -> GPTNeoXConfig:
    """A GPT-NeoX configuration of this shape."""
    return GPTNeoXConfig(
        hidden_size=decoder.d_model,
        num_hidden_layers=decoder.n_layers,
        num_attention_heads=decoder.n_heads,
        intermediate_size=decoder.d_mlp,
        vocab_size=vocabulary,
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=0,
    )


def _tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A word-level tokenizer with the words w2, w3, … and two special tokens."""
    words = [END_OF_TEXT, UNKNOWN, *(f"w{k}" for k in range(_SPECIAL, vocabulary))]
    tokenizer = Tokenizer(WordLevel({word: k for k, word in enumerate(words)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, unk_token=UNKNOWN
    )
