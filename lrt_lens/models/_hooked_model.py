"""A language model with named residual hook points, and the activations of texts at one of them.

Problem: TransformerLens has two model classes with different calls, and whether BOS is prepended
changes every activation. Mechanism: `HookedModel` wraps a TransformerLens bridge or an existing
``HookedTransformer`` and offers capture, intervention, generation and loss. All texts are tokenized
here, so that harvest, probes and steering share one BOS policy. ``prepend_bos=None`` follows the
tokenizer's own behaviour, which is how the model was trained; the attribute ``prepend_bos`` holds
the resulting policy.

    model = HookedModel.load("EleutherAI/pythia-70m-deduped")
    model.capture("Once upon a time", 3)                        # Tensor [1, position, d_model]
    with model.intervene({"blocks.3.hook_resid_post": lambda x, hook: x + direction}):
        model.generate("Once upon a time")

Limits: decoders only, padded on the right.
"""

import copy
import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from lrt_lens.errors import MismatchError, NonFiniteError, OtherThreadError
from lrt_lens.models._busy_cores import advise_fewer_threads
from lrt_lens.models._comparing import short_row
from lrt_lens.models._decoder import block_list
from lrt_lens.models._drawing import drawing, drawing_in_hooks
from lrt_lens.models._engine import Engine
from lrt_lens.models._finite import refuse_nan
from lrt_lens.models._generation import equally_long, n_free, n_new_tokens, within_context
from lrt_lens.models._hook_points import Layers, residual_post, resolve, resolve_layers
from lrt_lens.models._hugging_face_engine import HuggingFaceEngine
from lrt_lens.models._identity import ModelIdentity, model_name, tokenizer_hash
from lrt_lens.models._lens_engines import BridgeEngine, HookedTransformerEngine
from lrt_lens.models._loading import ModelLike, load_pretrained, load_tokenizer, model_origin
from lrt_lens.models._ownership import Entry, entering
from lrt_lens.models._passes import Handle, ignores_mean, is_centred
from lrt_lens.models._text_codec import TextCodec, Texts, Truncation
from lrt_lens.models._text_reader import SKIP_FIRST, special_tokens, unmasked
from lrt_lens.typing import HookFunction, Residual, Tokens

logger = logging.getLogger(__name__)


class HookedModel:
    """A decoder with named residual hook points.

    Attributes: ``name``, ``n_layers``, ``d_model``, ``d_vocab``, ``context_length``,
    ``hook_points`` (names of the hook points that this model has), ``basis``, ``prepend_bos``,
    ``tokenizer``, ``bridge`` (the wrapped TransformerLens model), ``device``.
    """

    def __init__(
        self,
        model: Any,
        *,
        tokenizer: Any = None,
        name: str | None = None,
        revision: str = "unknown",
        prepend_bos: bool | None = None,
        truncation: Truncation | None = None,
    ) -> None:
        self.name = name or model_name(model_origin(model))
        self.revision = revision
        if isinstance(tokenizer, str | Path):
            tokenizer = load_tokenizer(str(tokenizer))
        if _is_hugging_face(model):
            tokenizer = tokenizer or load_tokenizer(model_origin(model))
        self.tokenizer: Any = getattr(model, "tokenizer", None) if tokenizer is None else tokenizer
        # Interventions on the model, of whatever thread, do not change what is measured here.
        with entering(alone=True):
            self.engine: Engine = _engine_for(model, self.tokenizer, self.name)
            first = residual_post(0)
            row = short_row(self.engine.d_vocab)
            states = self.engine.capture(row, [first])[first]
        self.n_layers, self.d_model = self.engine.n_layers, self.engine.d_model
        self.d_vocab = self.engine.d_vocab
        self.context_length = self.engine.context_length
        self.hook_points = self.engine.hook_points
        # A bridge may have changed the tokenizer that it holds, so one that was passed comes first.
        self._check_tokenizer()
        self.codec = TextCodec(
            self.tokenizer, prepend_bos, self.name, self.context_length, truncation
        )
        self.prepend_bos = bool(self.codec.prefix)
        self.basis = "centred" if is_centred(states) else "raw"

    @classmethod
    def load(
        cls,
        model: ModelLike,
        *,
        name: str | None = None,
        tokenizer: Any = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        device_map: Any = None,
        revision: str | None = None,
        prepend_bos: bool | None = None,
        truncation: Truncation | None = None,
        trust_remote_code: bool = False,
    ) -> "HookedModel":
        """Return a `HookedModel` of a model, or of the name of one.

        Args:
            model: a hub id, a local folder, a Hugging Face model, a ``TransformerBridge``, a
                ``HookedTransformer`` or a `HookedModel`. A model in memory keeps its device and
                dtype; a `HookedModel` is returned as it is.
            name: the name in tables, figures and files. Default: the hub id, or the last parts of
                the folder's path, without folder names such as 'hf' or 'checkpoint-500'.
            tokenizer: default: the tokenizer saved with the model.
            device: default: the CPU.
            dtype: default: float32.
            device_map: passed to transformers; excludes ``device``.
            revision: hub revision.
            prepend_bos: default: as the tokenizer does it.
            truncation: end that is cut off texts longer than the context, wherever a call does not
                say it; by default such texts are refused.
            trust_remote_code: passed to transformers.

        Raises:
            MismatchError: a `HookedModel` was loaded with another name, tokenizer, BOS policy or
                truncation than asked for; or the tokenizer has more tokens than the model.
            OSError: there is no model of this name.
            TypeError: ``model`` is none of the accepted kinds.
            ValueError: there is no tokenizer, or it has no BOS token and ``prepend_bos`` is True.
        """
        if isinstance(model, HookedModel):
            model._refuse_other_options(name, tokenizer, prepend_bos, truncation)
            return model
        # Three kinds: a name to load, a Hugging Face model to wrap, and a TransformerLens model.
        origin = model_origin(model)
        if isinstance(model, str | Path):
            runnable, tokenizer = load_pretrained(
                origin,
                tokenizer=tokenizer,
                device=device,
                dtype=dtype,
                device_map=device_map,
                revision=revision,
                trust_remote_code=trust_remote_code,
            )
        else:
            runnable = model
            if _is_hugging_face(model):
                tokenizer = tokenizer or load_tokenizer(origin, revision)
        hooked = cls(
            runnable,
            tokenizer=tokenizer,
            name=name or model_name(origin),
            revision=(revision if isinstance(model, str | Path) else None) or "unknown",
            prepend_bos=prepend_bos,
            truncation=truncation,
        )
        advise_fewer_threads(hooked.device)
        return hooked

    def __repr__(self) -> str:
        bos = "BOS" if self.prepend_bos else "no BOS"
        return (
            f"HookedModel({self.name!r}, {self.n_layers} layers, d_model {self.d_model},"
            f" {self.basis} basis, {bos}, {self.device})"
        )

    @property
    def bridge(self) -> Any:
        """TransformerLens model that was given, or a bridge with the same weights.

        Hooks that are registered on it act in every pass of this model.

        Raises:
            ValueError: TransformerLens cannot bridge this model.
        """
        return self.engine.lens_model()

    @property
    def device(self) -> torch.device:
        """Device that token ids are moved to."""
        return self.engine.device

    @cached_property
    def identity(self) -> ModelIdentity:
        """Identity of this model, as files made for it record it."""
        engine = self.engine
        # Models of TransformerLens have no config of Hugging Face.
        kind = str(getattr(getattr(engine.model, "config", None), "model_type", ""))
        return ModelIdentity(
            name=self.name,
            revision=self.revision,
            config_hash=engine.weights_hash(),
            tokenizer_hash=self.tokenizer_hash,
            d_model=self.d_model,
            n_layers=self.n_layers,
            basis=self.basis,
            prepend_bos=self.prepend_bos,
            context_length=self.context_length,
            ignores_mean=ignores_mean(engine.model, self.d_model),
            model_type=kind,
            blocks=block_list(engine.model, engine.n_layers) if kind else "",
            prefix=tuple(self.prefix),
        )

    # --------------------------------------------------------------------------------------- tokens

    @property
    def tokenizer_hash(self) -> str:
        """Hash of the tokenizer; equal hashes mean that both split texts into the same ids."""
        return self.codec.tokenizer_hash

    def encode(self, texts: Texts, *, truncation: Truncation | None = None) -> list[list[int]]:
        """Return the token ids of each text, behind the tokenizer's prefix if ``prepend_bos``.

        Args:
            texts: a list, a tuple, a numpy array, a pandas Series or a column of a data set.
            truncation: end that is cut off texts longer than the context; None refuses them, unless
                the model was loaded with a ``truncation``.

        Raises:
            ValueError: there is no text, a text is empty, or one is longer than the context.
        """
        return self._encoded(texts, truncation)

    def encode_bodies(self, texts: Texts) -> list[list[int]]:
        """Return the token ids of each text without special tokens, at full length."""
        return self.codec.encode_bodies(texts)

    @property
    def prefix(self) -> list[int]:
        """Ids of the special tokens that the tokenizer writes before every text, such as BOS."""
        return self.codec.prefix

    def pad(self, rows: Sequence[Sequence[int]]) -> Tokens:
        """Return rows of token ids as one tensor [batch, position], padded on the right.

        Padding changes no activation before it, because attention is causal. Its id is 0, or the
        last one of the vocabulary in models with LongRoPE.

        Raises:
            MismatchError: a token id has no row in the embedding.
        """
        shape = len(rows), max(len(row) for row in rows)
        tokens = torch.full(shape, self.engine.padding_id, dtype=torch.long)
        for index, row in enumerate(rows):
            tokens[index, : len(row)] = torch.tensor(row)
        if tokens.numel() and (largest := int(tokens.max())) >= self.d_vocab:
            # Tokens that were added later may have no row; a GPU would stop with a device-side
            # assert, after which the process cannot use it.
            raise MismatchError(
                f"the texts have token {largest} ({self.tokenizer.decode([largest])!r}), but"
                f" {self.name!r} embeds {self.d_vocab} rows; load the tokenizer that the model was"
                " trained with, or leave that token out of the texts"
            )
        return tokens

    def read_mask(self, rows: Sequence[Sequence[int]], skip_first: int = SKIP_FIRST) -> Tensor:
        """Return a mask [batch, position], True at the tokens that maps are fitted on.

        These are all tokens except padding, special tokens and the first ``skip_first`` positions.
        """
        mask = torch.zeros(len(rows), max(len(row) for row in rows), dtype=torch.bool)
        special = special_tokens(self)
        for index, row in enumerate(rows):
            mask[index, torch.from_numpy(unmasked(row, special, skip_first))] = True
        return mask

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of the tokenizer's special tokens."""
        return self.codec.special_ids

    # ---------------------------------------------------------------------------------- activations

    def capture(
        self, texts: Texts | Tensor, hooks: Layers, *, truncation: Truncation | None = None
    ) -> Tensor | dict[str, Residual]:
        """Return residual activations [batch, position, d_model] at one or several hook points.

        One hook point gives a tensor, several give a dictionary by name. ``texts`` may be token
        ids [batch, position]. The forward pass stops at the deepest of the hook points.

        Raises:
            NonFiniteError: an activation is NaN or infinite.
            ValueError: a text is longer than the context.
        """
        names = resolve_layers(hooks, self)
        activations = self.engine.capture(self._tokens(texts, truncation), names)
        for name, values in activations.items():
            if not values.isfinite().all():
                raise NonFiniteError(
                    f"activations of {self.name!r} at {name!r} are NaN or infinite"
                    f" ({values.dtype}); load the model with dtype='bfloat16' or 'float32'"
                )
        is_name = isinstance(hooks, str) and hooks not in ("all", "proportional")
        # A number of numpy is no int, but the number of a block too.
        if is_name or hasattr(hooks, "__index__"):
            return activations[names[0]]
        return activations

    def intervene(self, hooks: dict[int | str, HookFunction]) -> Handle:
        """Register hooks ``fn(activation, hook=...)`` at hook points and return their handle.

        They stay until the handle is removed or its ``with`` block ends, and act in the thread or
        task that registers them: several may steer one model at once, each in its own way. Tasks
        and `asyncio.to_thread` take them over, other threads do not. In a thread that this one has
        started, predictions (logits, losses, ``generate``, calls of the model itself) are refused
        with `OtherThreadError` until it says what it means: ``with model.intervene({}):`` is no
        intervention, and ``Thread(target=contextvars.copy_context().run, args=(fn,))`` takes these
        over. Captures and harvests in another thread read the model without them.
        """
        removers: list[Callable[[], None]] = [Entry(OtherThreadError).close]
        try:
            for hook, fn in hooks.items():
                removers.append(self.engine.add_hook(resolve(hook, self), fn))
        except BaseException:
            # A later hook point does not exist: no hook of this call may stay registered.
            Handle(removers).remove()
            raise
        return Handle(removers)

    # ---------------------------------------------------------------------------------- predictions

    def logits(self, texts: Texts | Tensor, *, truncation: Truncation | None = None) -> Tensor:
        """Return next-token logits [batch, position, vocabulary].

        Raises:
            NonFiniteError: a logit is NaN.
        """
        tokens = self._tokens(texts, truncation)
        with torch.inference_mode():
            logits = self.engine.logits(tokens)
        return refuse_nan(logits, self.name)

    def token_losses(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Return the cross-entropy of each next token [batch, position - 1] in nats.

        Padding is NaN.
        """
        tokens = self.pad(rows)
        # The logits at position p predict token p + 1: no logits for the last one, no loss for the
        # first. Cross-entropy in float32: with bfloat16 logits the third digit of a loss is wrong.
        logits = self.logits(tokens)[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(
            rearrange(logits, "batch position vocabulary -> batch vocabulary position"),
            tokens[:, 1:].to(logits.device),
            reduction="none",
        )
        lengths = torch.tensor([len(row) for row in rows], device=losses.device)
        position = torch.arange(1, tokens.shape[1], device=losses.device)
        padding = position >= rearrange(lengths, "batch -> batch 1")
        return losses.masked_fill(padding, float("nan"))

    def loss(self, texts: Texts, *, truncation: Truncation | None = None) -> float:
        """Return the mean cross-entropy per token in nats, over all tokens but each text's first.

        A text that is longer than the context is read in windows, whose first tokens do not count
        either, unless ``truncation`` says which end to cut.

        Raises:
            NonFiniteError: a logit is NaN.
            ValueError: every text has a single token.
        """
        if truncation or self.codec.truncation:
            rows = self._encoded(texts, truncation)
        else:
            rows = [row for windows in self.codec.windows(texts) for row in windows]
        longest = max(map(len, rows))
        if longest < 2:
            raise ValueError(
                f"no text has a token to predict: the longest has {longest} token(s) and 2 are"
                " needed; give longer texts"
            )
        return float(self.token_losses(rows).nanmean())

    def generate(
        self,
        prompts: Texts,
        *,
        max_new_tokens: int = 40,
        temperature: float = 0.8,
        top_k: int | None = 40,
        seed: int = 0,
        do_sample: bool = True,
        generation_config: Any = None,
        truncation: Truncation | None = None,
    ) -> str | list[str]:
        """Return continuations without their prompts: a string for a string, else a list.

        Nothing in the model's ``generation_config.json`` acts but its end-of-text tokens, so
        ``do_sample=False`` takes the largest of `logits` at every step. ``generation_config``, a
        ``transformers.GenerationConfig``, replaces all other options but ``seed``.

        Generation uses the key-value cache and leaves torch's random state unchanged.

        Raises:
            NonFiniteError: a logit is NaN.
            ValueError: a prompt is empty.
        """
        config = _one_text_per_prompt(generation_config) or self._generation_config(
            max_new_tokens, temperature if do_sample else None, top_k if do_sample else None
        )
        rows = self._encoded(prompts, truncation, n_free(config, self.context_length))
        beyond = [
            n_new
            for row in rows
            if len(row) + (n_new := n_new_tokens(config, len(row))) > self.context_length
        ]
        if beyond:
            logger.warning(
                "%d of %d prompt(s) with %d new tokens are longer than the %d tokens that %r reads;"
                " their continuations end there",
                len(beyond),
                len(rows),
                max(beyond),
                self.context_length,
                self.name,
            )
        out: list[str] = [""] * len(rows)
        # Behind a text that has stopped at a string, transformers pads the others' tokens.
        n_together = 1 if config.stop_strings else len(rows)
        options = {"tokenizer": self.tokenizer} if config.stop_strings else {}
        for batch in equally_long(rows, n_together):
            length = len(rows[batch[0]])
            tokens = self.pad([rows[index] for index in batch])
            # The seed applies to this batch only, and the caller's random state stays.
            with drawing(seed) if config.do_sample else drawing_in_hooks(seed):
                continued = self.engine.generate(
                    tokens,
                    within_context(config, length, self.context_length, self.name),
                    attention_mask=torch.ones_like(tokens).to(self.device),
                    **options,
                    logits_processor=[lambda _ids, scores: refuse_nan(scores, self.name)],
                )
            for index, ids in zip(batch, continued, strict=True):
                written = _until_end(ids[length:].tolist(), config.eos_token_id)
                out[index] = self.codec.decode_behind(rows[index], written)
        return out[0] if isinstance(prompts, str) else out

    # -------------------------------------------------------------------------------------- private

    def _encoded(
        self, texts: Texts, truncation: Truncation | None, n_free: int = 0
    ) -> list[list[int]]:
        """Return `encode` of texts, and log how many were cut; ``n_free`` as in the codec."""
        rows, n_cut = self.codec.encode_and_count(texts, truncation, n_free)
        if n_cut:
            logger.warning(
                "%d of %d text(s) are longer than the %d tokens that %r reads, and were cut",
                n_cut,
                len(rows),
                self.context_length,
                self.name,
            )
        return rows

    def _tokens(self, texts: Texts | Tensor, truncation: Truncation | None) -> Tokens:
        if isinstance(texts, Tensor):
            return self.codec.known_ids(texts, self.d_vocab)
        return self.pad(self._encoded(texts, truncation))

    def _check_tokenizer(self) -> None:
        if self.tokenizer is None:
            raise ValueError(
                f"{self.name!r} has no tokenizer;"
                " load it with tokenizer=AutoTokenizer.from_pretrained(...)"
            )
        # `vocab_size` leaves out tokens that were added later: some models have no row for those.
        vocabulary = getattr(self.tokenizer, "vocab_size", 0) or 0
        if vocabulary > self.d_vocab:
            raise MismatchError(
                f"the tokenizer has {vocabulary} tokens, but {self.name!r} embeds {self.d_vocab}"
                " rows; load the tokenizer that the model was trained with"
            )

    def _refuse_other_options(
        self,
        name: str | None,
        tokenizer: Any,
        prepend_bos: bool | None,
        truncation: Truncation | None,
    ) -> None:
        """Raise `MismatchError` if this model was loaded with other options than these."""
        if prepend_bos is not None and prepend_bos != self.prepend_bos:
            raise MismatchError(
                f"{self.name!r} was loaded with prepend_bos={self.prepend_bos};"
                f" asked for {prepend_bos}: load it again with that"
            )
        if truncation is not None and truncation != self.codec.truncation:
            raise MismatchError(
                f"{self.name!r} was loaded with truncation={self.codec.truncation!r};"
                f" asked for {truncation!r}: load it again with that, or say it in each call"
            )
        if tokenizer is not None and tokenizer_hash(tokenizer) != self.tokenizer_hash:
            raise MismatchError(
                f"{self.name!r} was loaded with a tokenizer of {len(self.tokenizer)} tokens; asked"
                f" for another, of {len(tokenizer)}: to use that one, load its bridge again,"
                " as in HookedModel.load(model.bridge, tokenizer=...)"
            )
        if name is not None and name != self.name:
            raise MismatchError(
                f"this model was loaded under the name {self.name!r}; asked for {name!r}:"
                f" load its bridge again, as in HookedModel.load(model.bridge, name={name!r})"
            )

    def _generation_config(
        self, max_new_tokens: int, temperature: float | None, top_k: int | None
    ) -> Any:
        """Return a config of these options alone; without a temperature it is greedy."""
        from transformers import GenerationConfig

        own = getattr(self.engine.model, "generation_config", None)
        ends = getattr(own, "eos_token_id", None)
        ends = self.tokenizer.eos_token_id if ends is None else ends
        # Nothing is padded, so any id will do for padding; transformers warns if there is none.
        pad = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        sampling = {} if temperature is None else {"temperature": temperature, "top_k": top_k or 0}
        return GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=temperature is not None,
            eos_token_id=ends,
            bos_token_id=self.tokenizer.bos_token_id,
            pad_token_id=next(token for token in pad if token is not None),
            **sampling,
        )


def _one_text_per_prompt(config: Any) -> Any:
    """Return a user's generation config, also if it is a dict, for one continuation per prompt.

    Raises:
        ValueError: it asks for several continuations of a prompt.
    """
    from transformers import GenerationConfig

    config = GenerationConfig(**config) if isinstance(config, dict) else copy.deepcopy(config)
    if config is not None:
        if (config.num_return_sequences or 1) > 1:
            raise ValueError(
                f"generation_config has num_return_sequences={config.num_return_sequences};"
                " expected 1: give each prompt several times for several continuations"
            )
        config.return_dict_in_generate = False
    return config


def _until_end(ids: list[int], ends: int | list[int] | None) -> list[int]:
    """Return new tokens up to the first end-of-text token; behind it there is only padding."""
    known = {ends} if isinstance(ends, int) else set(ends or ())
    stop = next((number for number, token in enumerate(ids) if token in known), len(ids))
    return ids[: stop + 1]


def load_model(model: ModelLike, **options: Any) -> HookedModel:
    """Return `HookedModel.load` of ``model`` and ``options``."""
    return HookedModel.load(model, **options)


def _engine_for(model: Any, tokenizer: Any, name: str) -> Engine:
    """Return the engine that runs a model.

    Raises:
        TypeError: ``model`` is of no supported class.
    """
    if _is_hugging_face(model):
        return HuggingFaceEngine(model, tokenizer, name)
    if hasattr(model, "original_model") and hasattr(model, "hook_dict"):
        return BridgeEngine(model)
    if hasattr(model, "run_with_cache") and hasattr(model, "hook_dict"):
        return HookedTransformerEngine(model)
    raise TypeError(
        f"{type(model).__name__} is not a supported model; give a hub id, a folder, a Hugging Face"
        " model, a TransformerBridge, a HookedTransformer or a HookedModel"
    )


def _is_hugging_face(model: Any) -> bool:
    # A TransformerLens model has `forward` too, but only there is `hook_dict`.
    return (
        not hasattr(model, "hook_dict") and hasattr(model, "config") and hasattr(model, "forward")
    )
