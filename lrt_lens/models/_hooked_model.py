"""A language model with named residual hook points.

`HookedModel` is one face for a TransformerLens bridge and an existing ``HookedTransformer``:
capture, intervene, generate, loss.

    model = HookedModel.load("EleutherAI/pythia-70m-deduped")
    model.capture("Once upon a time", 3)                        # Tensor [1, position, d_model]
    with model.intervene({"blocks.3.hook_resid_post": lambda x, hook: x + direction}):
        model.generate("Once upon a time")

Texts become tokens here and nowhere else, so that the BOS policy is one for harvest, probes and
steering: ``prepend_bos=None`` means as the tokenizer itself does it, which is how the model was
trained; what was chosen is kept in ``prepend_bos``.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lrt_lens.errors import MismatchError
from lrt_lens.models._engine import Engine, centred_residual, engine_for
from lrt_lens.models._hook_points import Layers, resolve, resolve_layers
from lrt_lens.typing import HookFunction, Residual, Tokens

if TYPE_CHECKING:
    from lrt_lens.models._loading import ModelLike

SKIP_FIRST = 4
"""Positions at the start of a text that no map is fitted on: they carry massive activations in many
models.
"""


_SAMPLED_TOKENS = 1000
"""Of a vocabulary, by whose cutting tokenizers are told apart."""


@dataclass(frozen=True)
class ModelIdentity:
    """What makes two models the same model, written into every file."""

    name: str
    """Hub id, or the folder's name."""
    revision: str
    """Hub revision asked for, or ``"unknown"``."""
    config_hash: str
    """Hash of the shapes of all parameters and of a sample of their values."""
    tokenizer_hash: str
    """Hash of the tokenizer's vocabulary."""
    d_model: int
    n_layers: int
    basis: str
    """``"raw"``, or ``"centred"`` where the mean over dimensions is projected out of the stream."""
    prepend_bos: bool

    def reads_as(self, other: "ModelIdentity") -> bool:
        """Whether both read a text as the same tokens."""
        return self.tokenizer_hash == other.tokenizer_hash

    def refuse_other(self, other: "ModelIdentity", role: str, *, tokens: bool = True) -> None:
        """Raise `MismatchError` naming the first field in which ``other`` is another model, or
        (``tokens``) reads other tokens.
        """
        for field in (
            "config_hash",
            "d_model",
            "n_layers",
            "basis",
            *(("tokenizer_hash", "prepend_bos") if tokens else ()),
        ):
            ours, theirs = getattr(self, field), getattr(other, field)
            if ours != theirs:
                raise MismatchError(
                    f"{role} is {other.name!r} (revision {other.revision}) with {field} {theirs!r}; expected {self.name!r} "
                    f"(revision {self.revision}) with {field} {ours!r}: load that model, or fit again on this one"
                )


class Handle:
    """Hooks that are on; use as a context manager, or call `remove`."""

    def __init__(self, removers: Iterable[Callable[[], None]]) -> None:
        self._removers = list(removers)

    def remove(self) -> None:
        """Take the hooks off; a second call does nothing."""
        while self._removers:
            self._removers.pop()()

    def __enter__(self) -> "Handle":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()


class HookedModel:
    """A decoder with named residual hook points.

    Attributes: ``name``, ``n_layers``, ``d_model``, ``d_vocab``, ``context_length``,
    ``hook_points`` (names that exist on this model), ``basis``, ``prepend_bos``, ``tokenizer``,
    ``bridge`` (the TransformerLens model underneath), ``device``.
    """

    def __init__(
        self,
        model: Any,
        *,
        tokenizer: Any = None,
        name: str | None = None,
        revision: str = "unknown",
        prepend_bos: bool | None = None,
    ) -> None:
        self.bridge = model
        self.engine: Engine = engine_for(model)
        self.tokenizer = model.tokenizer if tokenizer is None else tokenizer
        if self.tokenizer is None:
            raise ValueError(
                f"{name or type(model).__name__} has no tokenizer; load it with tokenizer=AutoTokenizer.from_pretrained(...)"
            )
        self.name = name or str(getattr(model.cfg, "model_name", type(model).__name__))
        self.revision = revision
        self.n_layers, self.d_model, self.d_vocab = (
            self.engine.n_layers,
            self.engine.d_model,
            self.engine.d_vocab,
        )
        vocabulary = (
            getattr(self.tokenizer, "vocab_size", 0) or 0
        )  # without tokens added later, for which some models keep no row
        if vocabulary > self.d_vocab:
            raise MismatchError(
                f"the tokenizer has {vocabulary} tokens, but {self.name!r} embeds {self.d_vocab} rows; load the tokenizer that the model was trained with"
            )
        self.context_length = self.engine.context_length
        self.hook_points = self.engine.hook_points
        self.prepend_bos = self._bos_as_trained() if prepend_bos is None else prepend_bos
        if self.prepend_bos and self.tokenizer.bos_token_id is None:
            raise ValueError(
                f"prepend_bos=True, but the tokenizer of {self.name!r} has no BOS token; use prepend_bos=False"
            )
        self.basis = "centred" if centred_residual(self.engine) else "raw"

    @classmethod
    def load(
        cls,
        model: "ModelLike",
        *,
        tokenizer: Any = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        device_map: Any = None,
        revision: str | None = None,
        prepend_bos: bool | None = None,
        trust_remote_code: bool = False,
    ) -> "HookedModel":
        """A model from a hub id, a local folder, a Hugging Face model, a ``TransformerBridge``, a
        ``HookedTransformer`` or itself.
        """
        from lrt_lens.models._loading import load_model

        return load_model(
            model,
            tokenizer=tokenizer,
            device=device,
            dtype=dtype,
            device_map=device_map,
            revision=revision,
            prepend_bos=prepend_bos,
            trust_remote_code=trust_remote_code,
        )

    def __repr__(self) -> str:
        bos = "BOS" if self.prepend_bos else "no BOS"
        return f"HookedModel({self.name!r}, {self.n_layers} layers, d_model {self.d_model}, {self.basis} basis, {bos}, {self.device})"

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        return self.engine.device

    @cached_property
    def identity(self) -> ModelIdentity:
        """What files written for this model say about it."""
        return ModelIdentity(
            name=self.name,
            revision=self.revision,
            config_hash=self._weights_hash(),
            tokenizer_hash=tokenizer_hash(self.tokenizer),
            d_model=self.d_model,
            n_layers=self.n_layers,
            basis=self.basis,
            prepend_bos=self.prepend_bos,
        )

    # --------------------------------------------------------------------------------------- tokens

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, cut to the context length, BOS by this model's policy; ValueError
        names an empty text.
        """
        if not texts:
            raise ValueError("no text given; expected a text, or a list of at least one")
        bodies = self.encode_bodies(texts)
        prefix = [self.tokenizer.bos_token_id] if self.prepend_bos else []
        for index, body in enumerate(bodies):
            if not body:
                raise ValueError(
                    f"text {index} is empty ({texts[index]!r}); give texts with at least one token"
                )
        return [[*prefix, *body][: self.context_length] for body in bodies]

    def encode_bodies(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text without any special token and of any length."""
        return self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]

    def pad(self, rows: Sequence[Sequence[int]]) -> Tokens:
        """Rows of ids as one tensor, padded on the right (exact: attention is causal);
        `MismatchError` for an id without an embedding.
        """
        tokens = torch.zeros(len(rows), max(len(row) for row in rows), dtype=torch.long)
        for index, row in enumerate(rows):
            tokens[index, : len(row)] = torch.tensor(row)
        if tokens.numel() and (largest := int(tokens.max())) >= self.d_vocab:
            # Tokens added later may have no row; a GPU would answer with a device-side assert.
            raise MismatchError(
                f"the texts hold token {largest} ({self.tokenizer.decode([largest])!r}), but {self.name!r} embeds {self.d_vocab} rows; load the "
                "tokenizer that the model was trained with, or leave that token out of the texts"
            )
        return tokens

    def read_mask(self, rows: Sequence[Sequence[int]], skip_first: int = SKIP_FIRST) -> Tensor:
        """True at real, non-special tokens behind the first ``skip_first`` positions, [batch,
        position].
        """
        width = max(len(row) for row in rows)
        special = self.special_ids
        return torch.tensor(
            [
                [skip_first <= p < len(row) and row[p] not in special for p in range(width)]
                for row in rows
            ]
        )

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of the tokenizer's special tokens."""
        return frozenset(self.tokenizer.all_special_ids)

    # ---------------------------------------------------------------------------------- activations

    def capture(
        self, texts: str | Sequence[str] | Tensor, hooks: Layers
    ) -> Tensor | dict[str, Residual]:
        """Residual activations, [batch, position, d_model]: one tensor for one hook point, else a
        dict by name.

        Runs no further than the deepest hook point and never unembeds. ``texts`` may be token ids,
        [batch, position].
        """
        names = resolve_layers(hooks, self)
        tokens = (
            texts
            if isinstance(texts, Tensor)
            else self.pad(self.encode([texts] if isinstance(texts, str) else texts))
        )
        seen = self.engine.capture(tokens, names)
        if isinstance(hooks, int) or (
            isinstance(hooks, str) and hooks not in ("all", "proportional")
        ):
            return seen[names[0]]
        return seen

    def intervene(self, hooks: dict[int | str, HookFunction]) -> Handle:
        """Put functions ``fn(activation, hook=...)`` on hook points, until the handle is removed or
        its ``with`` block ends.
        """
        removers: list[Callable[[], None]] = []
        try:
            for hook, fn in hooks.items():
                removers.append(self.engine.add_hook(resolve(hook, self), fn))
        except BaseException:
            Handle(removers).remove()
            raise
        return Handle(removers)

    # ---------------------------------------------------------------------------------- predictions

    def logits(self, texts: str | Sequence[str] | Tensor) -> Tensor:
        """Next-token logits, [batch, position, vocabulary]."""
        tokens = (
            texts
            if isinstance(texts, Tensor)
            else self.pad(self.encode([texts] if isinstance(texts, str) else texts))
        )
        with torch.inference_mode():
            return self.engine.logits(tokens)

    def token_losses(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Cross-entropy in nats of every next token, [batch, position - 1]; NaN at padding."""
        tokens = self.pad(rows)
        # `cross_entropy` in float32: bf16 logits lose the third digit of a loss.
        logits = self.logits(tokens)[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), tokens[:, 1:].to(logits.device), reduction="none"
        )
        lengths = torch.tensor([len(row) for row in rows], device=losses.device)
        padding = torch.arange(1, tokens.shape[1], device=losses.device)[None] >= lengths[:, None]
        return losses.masked_fill(padding, float("nan"))

    def loss(self, texts: str | Sequence[str]) -> float:
        """Mean cross-entropy in nats per token over all tokens but each text's first; ValueError
        where no text has two.
        """
        rows = self.encode([texts] if isinstance(texts, str) else texts)
        if max(map(len, rows)) < 2:
            raise ValueError(
                f"no text has a token to predict: the longest has {max(map(len, rows))} token(s) and 2 are needed; give longer texts"
            )
        return float(self.token_losses(rows).nanmean())

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        max_new_tokens: int = 40,
        temperature: float = 0.8,
        top_k: int | None = 40,
        seed: int = 0,
        do_sample: bool = True,
    ) -> str | list[str]:
        """Continuations without their prompts; a string for a string, a list for a list. Uses the
        KV cache.
        """
        rows = self.encode([prompts] if isinstance(prompts, str) else prompts)
        options: dict[str, Any] = {"do_sample": do_sample, "max_new_tokens": max_new_tokens}
        if do_sample:
            options |= {"temperature": temperature, "top_k": top_k}
        out: list[str] = [""] * len(rows)
        for length in sorted({len(row) for row in rows}):
            # Prompts of one length go together: no padding, so positions mean the same for every
            # row.
            chosen = [index for index, row in enumerate(rows) if len(row) == length]
            tokens = self.pad([rows[index] for index in chosen])
            with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
                torch.manual_seed(seed)
                made = self.engine.generate(
                    tokens,
                    attention_mask=torch.ones_like(tokens).to(self.device),
                    pad_token_id=self._pad_id(),
                    **options,
                )
            for index, ids in zip(chosen, made, strict=True):
                out[index] = self.tokenizer.decode(ids[length:], skip_special_tokens=True)
        return out[0] if isinstance(prompts, str) else out

    # -------------------------------------------------------------------------------------- private

    def _pad_id(self) -> int:
        for token in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        return 0

    def _bos_as_trained(self) -> bool:
        bos = self.tokenizer.bos_token_id
        return bos is not None and self.tokenizer("a")["input_ids"][:1] == [bos]

    def _weights_hash(self) -> str:
        """Shapes of all parameters and a sample of each: cheap, and another training run, revision
        or merged LoRA changes it.
        """
        digest = hashlib.blake2b(digest_size=8)
        model = getattr(self.bridge, "original_model", self.bridge)
        parameters = list(model.parameters())
        digest.update(json.dumps([list(p.shape) for p in parameters]).encode())
        for parameter in parameters:
            # bf16 keeps the hash equal when the same checkpoint is loaded in another dtype.
            digest.update(
                parameter.detach()
                .flatten()[:256]
                .to("cpu", torch.bfloat16)
                .view(torch.int16)
                .numpy()
                .tobytes()
            )
        return digest.hexdigest()


def tokenizer_hash(tokenizer: Any) -> str:
    """Hash of the vocabulary and of how a fixed text and a sample of the tokens themselves are cut:
    equal for tokenizers that give the same ids.
    """
    probe = "The quick brown fox's 1,234 leaps: naïve café\n\tfoo_bar() 日本語 🙂"
    vocabulary = sorted(tokenizer.get_vocab().items())
    # Two tokenizers may share a vocabulary and differ in a few merges, which no one sentence would
    # show.
    tokens = [str(token) for token, _ in sorted(vocabulary, key=lambda item: item[1])]
    sample = [
        token.replace("Ġ", " ").replace("▁", " ")
        for token in tokens[:: max(1, len(tokens) // _SAMPLED_TOKENS)]
    ]
    cut = [
        tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in (probe, *(f"a{text}" for text in sample))
    ]
    content = json.dumps([vocabulary, cut])
    return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()


def model_name(path_or_id: str) -> str:
    """A folder's own name, or the hub id."""
    return Path(path_or_id).name if Path(path_or_id).exists() else path_or_id
