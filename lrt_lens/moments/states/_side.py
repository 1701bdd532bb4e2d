"""One side of a harvest whose states were computed elsewhere.

Problem: a harvest asks a model for the states of windows; where an engine has computed them they
are looked up. Mechanism: `StoredSide` has the attributes of a model that a harvest needs (names of
hook points, width, tokenizer) and gives the rows of a block from the sequences of a store, found by
their tokens. A file is deleted only after its rows are in a checkpoint.

    side = StoredSide.of(StateFolder("states"), tokenizer=tokenizer)
    side.block_rows(["blocks.2.hook_resid_post"], block, order, "target")

Limits: nothing is computed here, so hook points and texts are those that were kept.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrt_lens.data._windows import Block, Window
from lrt_lens.errors import FileFormatError, HookPointError, MismatchError
from lrt_lens.models._hook_points import EMBED, RESIDUAL, depth, place
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._identity import ModelIdentity
from lrt_lens.models._loading import load_tokenizer
from lrt_lens.models._text_codec import TextCodec
from lrt_lens.models._text_reader import TextReader
from lrt_lens.moments._block_rows import Role
from lrt_lens.moments.states._arrivals import Arrivals, Found
from lrt_lens.moments.states._folder import StateFolder
from lrt_lens.moments.states._ledger import Ledger
from lrt_lens.moments.states._manifest import read_manifest
from lrt_lens.moments.states._reading import BlockReading, GatheredRows
from lrt_lens.moments.states._sequence import StateStore
from lrt_lens.moments.states._stream import StateStream
from lrt_lens.moments.states._verification import refuse_shifted_embedding, verify_states

logger = logging.getLogger(__name__)

_NO_LIMIT = 10**9
_VERIFIED = 4
"""Sequences that are compared with the real model."""


class UnknownTokenizer:
    """Stands for a tokenizer that is not known: it names tokens by their ids."""

    bos_token_id = None
    all_special_ids: Sequence[int] = ()
    chat_template = None

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        """Return the ids as text."""
        return f"tokens {' '.join(map(str, ids))}"


@dataclass(frozen=True)
class _Ahead:
    """Rows of a block that are being read, and the sequences that they are of."""

    index: int
    """Number of the block."""
    places: list[Found]
    reading: BlockReading


@dataclass
class StoredSide:
    """States of one model that were computed elsewhere, as a harvest reads them."""

    arrivals: Arrivals
    name: str
    n_layers: int
    knows_n_layers: bool
    """False if ``n_layers`` is only the deepest block of which there are states."""
    context_length: int
    identity: ModelIdentity | None
    dtype: str
    """Precision of the states."""
    codec: TextCodec | None
    """Tokenizer and BOS policy; None if they are not known."""
    model: HookedModel | None = None
    """Real model, to compare with; None if it is not at hand."""
    consume: bool = False
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    other: TextReader | None = None
    """The other side, whose tokenizer is this one's if this one's is not known."""
    bos_policy: bool | None = None
    """BOS policy that comes with the states; it counts with the tokenizer of the other side too."""
    ledger: Ledger | None = None
    """File that must be on the disk before a sequence is deleted."""
    _read: dict[int, list[Found]] = field(default_factory=dict)
    """Sequences of each block that was read and not yet deleted."""
    _is_checked: bool = False
    _ahead: _Ahead | None = None

    @classmethod
    def of(
        cls,
        states: StateFolder | StateStream,
        *,
        tokenizer: Any = None,
        model: HookedModel | None = None,
        wait: float = 0.0,
        consume: bool = False,
        before: Mapping[str, Any] | None = None,
    ) -> "StoredSide":
        """Return the side of a folder or an iterator; its first sequence is read.

        ``tokenizer`` and ``model`` come before those that ``states`` names. ``before`` is the
        `description` of an earlier run, which may have deleted all sequences.

        Raises:
            FileFormatError: there is no sequence, or the first one is damaged.
            HookPointError: nobody says what the columns are, or one is behind the last block.
            ValueError: sequences are to be deleted from a store that cannot.
        """
        about: Any = states.manifest if isinstance(states, StateFolder) else states
        kind = before.get("kind") if before else None
        store = states.open(kind) if isinstance(states, StateFolder) else states.open()
        arrivals = Arrivals(store, wait)
        first = arrivals.first(is_needed=before is None)
        if first is None and before is not None:
            store.hooks, store.d_model = tuple(before["hooks"]), before["d_model"]
            store.has_documents = before.get("has_documents", store.has_documents)
        if model is not None:
            _refuse_other_model(store, model)
        if consume and not store.is_removable:
            raise ValueError(
                f"consume=True, but {store.name!r} holds all sequences in the same files; leave"
                " consume out, or write one file per sequence"
            )
        name = (model and model.name) or getattr(about, "model", "") or store.name
        identity = model.identity if model is not None else about.identity
        deepest = max(
            [int(match[1]) for match in map(RESIDUAL.fullmatch, store.hooks) if match], default=-1
        )
        known = (model and model.n_layers) or about.n_layers or (identity and identity.n_layers)
        context_length = about.context_length or (model and model.context_length) or _NO_LIMIT
        if known and model is None:  # a real model says more, see `verify_states`
            _refuse_deeper(store.name, deepest, known)
        if tokenizer is None and model is None:
            tokenizer = _named_tokenizer(states)
        if isinstance(tokenizer, str | Path):
            tokenizer = load_tokenizer(str(tokenizer))
        codec = None if model is None else model.codec
        if tokenizer is not None:
            codec = TextCodec(tokenizer, about.prepend_bos, name, context_length)
        dtype = before["dtype"] if before else ""
        if first is not None:
            states_of_first = store.read(first.place, store.hooks[:1])[store.hooks[0]]
            dtype = str(states_of_first.dtype).removeprefix("torch.")
        return cls(
            arrivals,
            name,
            known or deepest + 1,
            bool(known),
            context_length,
            identity,
            dtype,
            codec,
            model,
            consume=consume or isinstance(states, StateStream),
            bos_policy=about.prepend_bos,
        )

    @property
    def description(self) -> dict[str, Any]:
        """Facts about the files for a run that resumes after all of them were deleted."""
        store = self.arrivals.store
        return {
            "hooks": list(store.hooks),
            "d_model": store.d_model,
            "dtype": self.dtype,
            "kind": store.kind,
            "has_documents": store.has_documents,
        }

    def borrow_tokenizer(self, other: Any) -> None:
        """Use the tokenizer of the other side, with the BOS policy of these states."""
        self.other = other
        if self.codec is None and self.bos_policy not in (None, other.prepend_bos):
            self.codec = TextCodec(other.tokenizer, self.bos_policy, self.name, self.context_length)

    # ----------------------------------------------------------------------------- as a text reader

    @property
    def reader(self) -> Any:
        """`TextReader` of this side, or else of the other one; None if neither is known."""
        return self.codec or self.other

    @property
    def tokenizer(self) -> Any:
        """Tokenizer of the Hugging Face interface."""
        return UnknownTokenizer() if self.reader is None else self.reader.tokenizer

    @property
    def prefix(self) -> list[int]:
        """Ids of the special tokens before every text."""
        return [] if self.reader is None else self.reader.prefix

    @property
    def prepend_bos(self) -> bool:
        """True if BOS is the first token of every text."""
        return bool(self.prefix)

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of the tokenizer's special tokens; none if the tokenizer is not known."""
        return frozenset() if self.reader is None else self.reader.special_ids

    @property
    def tokenizer_hash(self) -> str:
        """Hash of the tokenizer; empty if it is not known."""
        return "" if self.reader is None else self.reader.tokenizer_hash

    def encode_bodies(self, texts: Iterable[str]) -> list[list[int]]:
        """Return the token ids of each text without special tokens, at full length.

        Raises:
            ValueError: the tokenizer is not known.
        """
        if self.reader is None:
            raise ValueError(
                f"the tokenizer of {self.name!r} is not known, and texts have to be cut into its"
                " tokens; give tokenizers="
            )
        return self.reader.encode_bodies(texts)

    # ----------------------------------------------------------------------------------- as a model

    @property
    def d_model(self) -> int:
        """Width of the states."""
        return self.arrivals.store.d_model

    @property
    def hook_points(self) -> tuple[str, ...]:
        """Names of the hook points whose states are there; a state may have two names."""
        kept = list(self.arrivals.store.hooks)
        for name in self.arrivals.store.hooks:
            # The stream after block l is the stream before block l + 1.
            match = RESIDUAL.fullmatch(place(name))
            if match and match[2] == "post" and int(match[1]) + 1 < self.n_layers:
                kept.append(f"blocks.{int(match[1]) + 1}.hook_resid_pre")
        if self.model is not None and EMBED in self.model.hook_points:
            kept.append(EMBED)
        return tuple(dict.fromkeys(sorted(kept, key=lambda name: (depth(name), name))))

    def block_rows(
        self, hooks: Sequence[str], block: Block, order: Sequence[Window], role: Role
    ) -> dict[str, Tensor]:
        """Return the states of a block's unmasked tokens, ``{hook: [row, d]}``.

        Args:
            hooks: names of hook points.
            block: the block.
            order: its windows in the order of the rows.
            role: the side whose tokens are read.

        Raises:
            FileFormatError: a sequence is damaged, or not complete.
            MismatchError: there is no sequence of a window, or its states are those of another
                hook point or position.
        """
        windows, stored = [window.read_by(role) for window in order], self._stored(hooks)
        ahead, self._ahead = self._ahead, None
        if ahead is None or ahead.index != block.index:
            places = self._claimed([self._find(window, role) for window in windows])
            if not self._is_checked:
                self._check(windows, places)
            ahead = self._reading(stored, block, windows, places)
        read = ahead.reading.result()
        rows = {hook: read[stored[hook]] for hook in hooks if hook in stored}
        if any(hook not in stored for hook in hooks):
            rows[EMBED] = self._embeddings(windows, block.n_rows)
        self._read[block.index] = ahead.places
        for found in ahead.places:
            self.arrivals.use(found)
        self._forget_streamed(block.index)
        return {hook: rows[hook if hook in stored else EMBED] for hook in hooks}

    def read_ahead(
        self, hooks: Sequence[str], block: Block, order: Sequence[Window], role: Role
    ) -> None:
        """Begin to read, in a thread, the rows for which `block_rows` will be asked next.

        Nothing is read if a sequence has not arrived, or will be deleted with another window.
        """
        # An iterator is not read before its time: it may be a model that runs here.
        if not self.keeps_files or not self._is_checked or self._ahead is not None:
            return
        windows = [window.read_by(role) for window in order]
        try:
            known = [self.arrivals.known(_ids_of(window)) for window in windows]
        except FileFormatError:  # raised again when the rows are asked for
            return
        found = [one for one in known if one is not None]
        if len(found) < len(known):
            return
        places = self._claimed(found)
        if self.consume and any(one.is_whole and not one.is_own for one in places):
            for one in places:
                self.arrivals.unclaim(one)
            return
        self._ahead = self._reading(self._stored(hooks), block, windows, places)
        self._ahead.reading.start()

    def stop_reading(self) -> None:
        """End the thread that reads ahead."""
        if self._ahead is not None:
            self._ahead.reading.stop()
            self._ahead = None

    def _stored(self, hooks: Sequence[str]) -> dict[str, str]:
        """Return the name in the store of each hook point; those that are not kept are left out."""
        kept = {place(hook): hook for hook in self.arrivals.store.hooks}
        return {hook: kept[place(hook)] for hook in hooks if place(hook) in kept}

    def _reading(
        self,
        stored: Mapping[str, str],
        block: Block,
        windows: Sequence[Window],
        places: list[Found],
    ) -> _Ahead:
        sequences = [
            (found.place, window.rows) for window, found in zip(windows, places, strict=True)
        ]
        names = list(dict.fromkeys(stored.values()))
        reading = BlockReading(self.arrivals.store, names, sequences, block.n_rows)
        return _Ahead(block.index, places, reading)

    def skip(self, block: Block, order: Sequence[Window], role: Role) -> None:
        """Mark the sequences of a block as used, whose rows are in the moments already."""
        windows = [window.read_by(role) for window in order]
        if self.keeps_files:
            # What is left with these tokens may be of a copy that is to come.
            for window in windows:
                self.arrivals.pass_by(_ids_of(window), consume=self.consume)
            return
        # An iterator gives all sequences again.
        self._read[block.index] = self._claimed([self._find(window, role) for window in windows])
        self._forget_streamed(block.index)

    def delete(self, finished: Iterable[int]) -> None:
        """Delete the sequences of blocks that are safe elsewhere, by the numbers of the blocks."""
        if not self.consume:
            self._read.clear()
            return
        indices = sorted(set(finished) & self._read.keys())
        if indices and self.ledger is not None:
            self.ledger.sync()
        for index in indices:
            for found in self._read.pop(index):
                self.arrivals.release(found)

    def close(self) -> None:
        """Delete what could not be deleted earlier, after a harvest that came to its end."""
        if self.consume and self.keeps_files:
            self.delete(list(self._read))
            if self.ledger is not None:
                self.ledger.sync()
            self.arrivals.close()

    @property
    def keeps_files(self) -> bool:
        """False for an iterator, which is read again from its beginning if a run resumes."""
        return not self.arrivals.store.is_iterator

    def _forget_streamed(self, index: int) -> None:
        """Forget the sequences of an iterator: it is read again from its beginning anyway."""
        if not self.keeps_files:
            self.delete([index])

    def _find(self, window: Window, role: Role) -> Found:
        return self.arrivals.find(window.ids, self, f"a window of the {role}")

    def _claimed(self, found: list[Found]) -> list[Found]:
        """Return the sequences, each claimed for its window if it is deleted later."""
        return [self.arrivals.claim(one) for one in found] if self.consume else found

    def _embeddings(self, windows: Sequence[Window], n_rows: int) -> Tensor:
        """Return the embeddings of the rows of some windows by the real model, [row, d]."""
        if self.model is None:
            raise HookPointError(f"{self.name!r} has no states at {EMBED!r}")
        gathered = GatheredRows(n_rows)
        for window in windows:
            tokens = self.model.pad([window.ids])
            states = self.model.engine.capture(tokens, [EMBED])[EMBED][0].to(self.device)
            gathered.add(states, torch.from_numpy(window.rows))
        return gathered.whole

    def _check(self, windows: Sequence[Window], places: Sequence[Found]) -> None:
        """Compare the states of the first sequences with the real model, or with themselves."""
        self._is_checked = True
        store = self.arrivals.store
        chosen = list(zip(windows, places, strict=True))[:_VERIFIED]
        read = [(window.ids, store.read(found.place, store.hooks)) for window, found in chosen]
        texts = [
            (ids, {hook: rows[: len(ids)] for hook, rows in states.items()}) for ids, states in read
        ]
        if self.model is not None:
            verify_states(texts, self.model, store.name)
        elif EMBED in store.hooks:
            refuse_shifted_embedding([(ids, rows[EMBED]) for ids, rows in texts], store.name)


def _ids_of(window: Window) -> np.ndarray:
    return np.asarray(window.ids, dtype=np.int64)


def _refuse_deeper(name: str, deepest: int, n_layers: int) -> None:
    if deepest >= n_layers:
        raise HookPointError(
            f"{name!r} has states of the output of block {deepest}, but the model has {n_layers}"
            f" blocks, whose last one is {n_layers - 1}; numbers count the outputs of blocks from 0"
            f" on, and the embedding is {EMBED!r} (hidden state k + 1 of transformers is the output"
            " of block k)"
        )


def _refuse_other_model(store: StateStore, model: HookedModel) -> None:
    if model.d_model != store.d_model:
        raise MismatchError(
            f"the states in {store.name!r} have width {store.d_model}, and {model.name!r} has"
            f" {model.d_model}; give the model that computed them"
        )


def _named_tokenizer(states: StateFolder | StateStream) -> Any:
    """Return the tokenizer that comes with states, or that of the model which their manifest names.

    A model may be named that is not here; the tokenizer of the other side is then tried.
    """
    if states.tokenizer is not None or not isinstance(states, StateFolder):
        return states.tokenizer
    manifest = read_manifest(Path(states.path))
    if manifest.tokenizer is not None or not manifest.model:
        return manifest.tokenizer
    try:
        return load_tokenizer(manifest.model)
    except ValueError as error:
        logger.info("the tokenizer of %r is not known: %s", manifest.model, error)
        return None
