"""Text in and out: the one place where texts become token ids, and ids become text.

Problem: a prefix that is written twice (by a chat template and by the tokenizer), a text that is
cut without a word, or a word that loses its space each give wrong numbers that look right.
Mechanism: `TextCodec` writes the special tokens before a text exactly as the tokenizer does,
whether they are one BOS, ``[CLS]`` or several tokens, and writes none where the text begins with
them already. Texts that are longer than the context are refused, unless the user says which end to
cut; what is averaged over tokens can be read in windows instead. A continuation is tokenized and
decoded behind its prompt, so that ``prompt + continuation`` is the text.

    codec = TextCodec(tokenizer, prepend_bos=None, name="gpt2", context_length=1024)
    codec.encode(["Once upon a time"])                   # [[50256, 7454, 2402, 257, 640]]
    text_list(pandas_series)                             # ['…', '…']

Limits: special tokens that a tokenizer adds behind a text (EOS, ``[SEP]``) are not written, because
a decoder would continue behind the end of the text.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from functools import cached_property
from typing import Any, Literal

from lrt_lens.errors import MismatchError
from lrt_lens.models._identity import tokenizer_hash
from lrt_lens.models._tokenizer_copy import tokenizer_copy

Texts = Iterable[str]
"""A text, or texts: a list, a tuple, a numpy array, a pandas Series, a column of a data set."""
Truncation = Literal["left", "right"]
"""End of a text that is cut off where it is longer than the context."""


def column_list(column: Any, what: str = "texts") -> list[Any]:
    """Return the entries of a column by position; a single text is a column of one.

    Raises:
        TypeError: ``column`` is a table, a dict, a set or a file, which are no column.
    """
    if isinstance(column, str):
        return [str(column)]
    if isinstance(column, os.PathLike) or hasattr(column, "readline"):
        raise TypeError(
            f"{what} is a {type(column).__name__}; expected a list or one column, and no file: read"
            " it first, as in list(lrt_lens.data.iterate_documents(path))"
        )
    has_columns = hasattr(column, "columns") or hasattr(column, "column_names")
    is_table = has_columns or getattr(column, "ndim", 1) != 1
    is_iterable = hasattr(column, "__iter__")
    if is_table or not is_iterable or isinstance(column, Mapping | Set | bytes):
        raise TypeError(
            f"{what} is a {type(column).__name__}; expected a list or one column: name the column"
            f" of a table, as in table[{what.removesuffix('s')!r}], or read a file first"
        )
    # Iteration is by position; indexing a Series is by label. Scalars of pyarrow know their value.
    entries = [entry.as_py() if hasattr(entry, "as_py") else entry for entry in column]
    # str() turns numpy's subclass of str into str itself, which tokenizers ask for.
    return [str(entry) if isinstance(entry, str) else entry for entry in entries]


def text_list(texts: Any) -> list[str]:
    """Return texts as a list, by position.

    A text, a list, a tuple, a numpy array, a pandas Series (whatever its index), a pyarrow array
    and a column of a data set are texts.

    Raises:
        TypeError: ``texts`` is a table, a dict, a set or a file, or one is no text; the message
            names its number.
        ValueError: there is none, or one has a character that no encoding has.
    """
    listed = column_list(texts)
    for index, text in enumerate(listed):
        if not isinstance(text, str):
            raise TypeError(
                f"text {index} is {text!r}, of type {type(text).__name__}; expected a text: leave"
                " it out, or convert it to str"
            )
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError(
                f"text {index} has a lone surrogate ({text[:40]!r}), which no encoding has;"
                " replace it, as in text.encode('utf-8', 'replace').decode()"
            )
    if not listed:
        raise ValueError("no text given; expected a text, or a list of at least one")
    return listed


class TextCodec:
    """Encoding and decoding of texts for one model.

    Args:
        tokenizer: tokenizer of the Hugging Face interface.
        prepend_bos: True writes the tokenizer's own prefix, or BOS if it adds none; False writes
            none; None does as the tokenizer does, which is how the model was trained.
        name: name of the model, for messages.
        context_length: largest number of tokens per text.
        truncation: end that is cut off longer texts; None refuses them.

    Raises:
        ValueError: ``prepend_bos`` is True and the tokenizer has neither a prefix nor a BOS token,
            ``truncation`` is unknown, or the context has no room behind the prefix.
    """

    def __init__(
        self,
        tokenizer: Any,
        prepend_bos: bool | None,
        name: str,
        context_length: int,
        truncation: Truncation | None = None,
    ) -> None:
        self.tokenizer, self.name, self.context_length = tokenizer, name, context_length
        self._copy: tuple[int, Any] = (-1, None)  # number of tokens, copy of the tokenizer
        self.truncation: Truncation | None = _known_truncation(truncation)
        """End that is cut off longer texts where a call does not say it; None refuses them."""
        self.prefix: list[int] = [] if prepend_bos is False else _prefix_of(tokenizer)
        """Ids of the special tokens before every text."""
        if prepend_bos and not self.prefix:
            if tokenizer.bos_token_id is None:
                raise ValueError(
                    f"prepend_bos=True, but the tokenizer of {name!r} has no BOS token;"
                    " use prepend_bos=False"
                )
            self.prefix = [int(tokenizer.bos_token_id)]
        if context_length <= len(self.prefix):
            raise ValueError(
                f"{name!r} reads {context_length} token(s), and its tokenizer writes"
                f" {len(self.prefix)} before every text; use prepend_bos=False, or a model with a"
                " longer context"
            )

    @cached_property
    def tokenizer_hash(self) -> str:
        """Hash of the tokenizer; equal hashes mean that both split texts into the same ids."""
        return tokenizer_hash(self.tokenizer)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of the tokenizer's special tokens, named or added, and of its prefix."""
        # `all_special_ids` leaves out what has no name, such as the tokens of a chat template.
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        unnamed = [id for id, token in added.items() if getattr(token, "special", False)]
        return frozenset([*self.tokenizer.all_special_ids, *unnamed, *self.prefix])

    @property
    def prepend_bos(self) -> bool:
        """True if special tokens are written before every text."""
        return bool(self.prefix)

    def encode_bodies(self, texts: Texts) -> list[list[int]]:
        """Return the token ids of each text without special tokens, at full length."""
        encoded = self._unshared(text_list(texts), add_special_tokens=False, verbose=False)
        return encoded["input_ids"]

    @property
    def _unshared(self) -> Any:
        """The tokenizer, or a copy of it whose padding and truncation nobody else switches on.

        A call of a fast tokenizer by the user sets them in the tokenizer itself, so that a text
        which another thread tokenizes at that moment would be cut or padded.
        """
        if getattr(self.tokenizer, "backend_tokenizer", None) is None:
            return self.tokenizer
        n_tokens = len(self.tokenizer)
        n_copied, copied = self._copy
        if n_copied != n_tokens:  # the first text, or tokens were added
            copied = tokenizer_copy(self.tokenizer)
            self._copy = n_tokens, copied
        return copied

    def with_prefix(self, body: Sequence[int]) -> list[int]:
        """Return a text's ids behind the prefix, which is written once.

        A chat template, or the user, may have written it already.
        """
        ids = list(body)
        return ids if ids[: len(self.prefix)] == self.prefix else [*self.prefix, *ids]

    def encode(
        self, texts: Texts, truncation: Truncation | None = None, n_free: int = 0
    ) -> list[list[int]]:
        """Return the token ids of each text behind the prefix; see `encode_and_count`."""
        return self.encode_and_count(texts, truncation, n_free)[0]

    def encode_and_count(
        self, texts: Texts, truncation: Truncation | None = None, n_free: int = 0
    ) -> tuple[list[list[int]], int]:
        """Return the token ids of each text behind the prefix, and the number of texts cut.

        Args:
            texts: as `text_list` takes them.
            truncation: end that is cut off texts longer than the context; None does as the codec
                was told.
            n_free: number of tokens of the context that a text that is cut leaves free. With a
                truncation, texts that leave none free are cut too.

        Raises:
            ValueError: a text is empty, or longer than the context and ``truncation`` is None; the
                message lists such texts.
        """
        cut_off = _known_truncation(truncation) or self.truncation
        rows = self._whole(texts)
        longer = self._longer(rows, self.context_length - bool(n_free and cut_off))
        if longer and cut_off is None:
            raise self._too_long(rows, longer)
        room = max(1, self.context_length - n_free - len(self.prefix))
        for index in longer:
            body = rows[index][len(self.prefix) :]
            cut = body[len(body) - room :] if cut_off == "left" else body[:room]
            rows[index] = [*self.prefix, *cut]
        return rows, len(longer)

    def windows(
        self, texts: Texts, truncation: Truncation | None = None, context_length: int | None = None
    ) -> list[list[list[int]]]:
        """Return the token ids of each text as one window, or several where it is too long.

        Windows do not overlap, and each begins with the prefix.

        Args:
            texts: as `text_list` takes them.
            truncation: end that is cut off texts longer than the model's context, as in `encode`.
            context_length: largest number of tokens per window, at most the model's.

        Raises:
            ValueError: a text is empty, or ``truncation`` is unknown.
        """
        is_cut = _known_truncation(truncation) or self.truncation
        rows = self.encode(texts, truncation) if is_cut else self._whole(texts)
        room = min(context_length or self.context_length, self.context_length) - len(self.prefix)
        windows = []
        for row in rows:
            body = row[len(self.prefix) :]
            starts = range(0, len(body), room)
            windows.append([[*self.prefix, *body[start : start + room]] for start in starts])
        return windows

    def longer(self, texts: Texts) -> list[int]:
        """Return the numbers of the texts that are longer than the context."""
        return self._longer(self._whole(texts), self.context_length)

    def continuations(
        self, prompts: Texts, continuations: Texts
    ) -> list[tuple[list[int], list[int]]]:
        """Return (ids of the prompt, ids of prompt and continuation) of each pair of texts.

        Prompt and continuation are tokenized as one text, as the model reads them, so the second
        ids need not begin with all of the first: a token may span the boundary.

        Raises:
            ValueError: a prompt is empty.
        """
        before, after = text_list(prompts), text_list(continuations)
        joined = [prompt + text for prompt, text in zip(before, after, strict=True)]
        return list(zip(self._whole(before), self._whole(joined), strict=True))

    def known_ids(self, tokens: Any, d_vocab: int) -> Any:
        """Return a tensor of token ids [batch, position] as int64.

        Raises:
            MismatchError: an id has no row in the embedding of ``d_vocab`` rows.
            TypeError: they are no integers.
            ValueError: there are no tokens, more positions than the model reads, or they are not
                [batch, position].
        """
        # Complex numbers are no floats, and truth values no integers.
        if tokens.is_floating_point() or tokens.is_complex() or str(tokens.dtype) == "torch.bool":
            raise TypeError(f"token ids are {tokens.dtype}; expected integers, such as torch.int64")
        if tokens.ndim != 2 or not tokens.numel():
            raise ValueError(
                f"token ids have the shape {list(tokens.shape)}; expected [batch, position] with at"
                " least one token per row: tokens[None] is a batch of one"
            )
        if not 0 <= int(tokens.min()) <= int(tokens.max()) < d_vocab:
            raise MismatchError(
                f"the token ids go from {int(tokens.min())} to {int(tokens.max())}, but"
                f" {self.name!r} embeds {d_vocab} rows; give ids of its own tokenizer"
            )
        if tokens.shape[-1] > self.context_length:
            raise ValueError(
                f"the tokens have {tokens.shape[-1]} positions; {self.name!r} reads"
                f" {self.context_length}: give fewer"
            )
        return tokens.long()

    def _whole(self, texts: Texts) -> list[list[int]]:
        """Return the token ids of each text behind the prefix, at full length.

        Raises:
            ValueError: a text is empty.
        """
        texts = text_list(texts)
        rows = [self.with_prefix(body) for body in self.encode_bodies(texts)]
        for index, row in enumerate(rows):
            if len(row) == len(self.prefix):
                raise ValueError(
                    f"text {index} is empty ({texts[index]!r}); give texts with at least one token"
                )
        return rows

    def _longer(self, rows: list[list[int]], length: int) -> list[int]:
        return [index for index, row in enumerate(rows) if len(row) > length]

    def _too_long(self, rows: list[list[int]], longer: list[int]) -> ValueError:
        longest = max(longer, key=lambda index: len(rows[index]))
        return ValueError(
            f"{len(longer)} of {len(rows)} text(s) are longer than the {self.context_length} tokens"
            f" that {self.name!r} reads (numbers {listing(longer)}; the longest is text {longest}"
            f" with {len(rows[longest])} tokens); give shorter texts, or say which end is cut off:"
            " truncation='right' or 'left', in this call or when the model is loaded"
        )

    def decode_behind(self, prompt: Sequence[int], ids: Sequence[int]) -> str:
        """Return the text of ``ids`` as it stands behind ``prompt``, special tokens left out.

        Decoded alone, its first word would lose its space with many tokenizers.
        """
        before = self._decode(prompt)
        whole = self._decode([*prompt, *ids])
        # A decoder may write the end of the prompt anew (half a character); then the new ids are
        # decoded alone.
        return whole[len(before) :] if whole.startswith(before) else self._decode(ids)

    def _decode(self, ids: Sequence[int]) -> str:
        # Without the clean-up, which removes spaces before punctuation.
        return self.tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


def _prefix_of(tokenizer: Any) -> list[int]:
    """Return the ids that a tokenizer writes before a text."""
    # Tokenizers do not say reliably what they add, so a text is tokenized with and without it.
    special = {*tokenizer.all_special_ids, tokenizer.unk_token_id}
    for probe in _probes(tokenizer):
        body = list(tokenizer(probe, add_special_tokens=False)["input_ids"])
        # A text of unknown or special tokens would not tell where the prefix ends.
        if not body or special.intersection(body):
            continue
        whole = list(tokenizer(probe)["input_ids"])
        starts = range(len(whole) - len(body) + 1)
        found = [start for start in starts if whole[start : start + len(body)] == body]
        # Twice, if the tokenizer also writes these tokens of its own.
        if len(found) == 1:
            return [int(token) for token in whole[: found[0]]]
    return []


def _probes(tokenizer: Any) -> Iterator[str]:
    """Yield short texts, until one is made of ordinary tokens of the vocabulary."""
    yield from ("a", "Z", "1")
    for number in range(min(len(tokenizer), 2000)):
        if text := tokenizer.decode([number]).strip():
            yield text


def _known_truncation(truncation: Truncation | None) -> Truncation | None:
    """Return ``truncation`` unchanged.

    Raises:
        ValueError: it is unknown.
    """
    if truncation not in (None, "left", "right"):
        raise ValueError(f"truncation is {truncation!r}; expected None, 'left' or 'right'")
    return truncation


def listing(numbers: Sequence[int], n_shown: int = 5) -> str:
    """Return the first numbers as text, such as ``"3, 7, 12 …"``."""
    more = " …" if len(numbers) > n_shown else ""
    return ", ".join(map(str, numbers[:n_shown])) + more


def shared_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Return the number of ids that two rows share at their beginning."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))
