"""Second revisions of a small model, made within a script: a fine-tune, or changed weights.

Problem: updates and comparisons need a second revision of a model, and a script should run without
one to download. Mechanism: a copy of the model is trained by AdamW on next tokens, on documents
that are joined into rows of one length, or its matrices are changed one by one, as a cast does. The
model itself stays as it is.

    base = lrt.demo_pair().target
    tuned = fine_tune(base, lrt.demo_contrast("sentiment").positive, n_steps=200)
    tuned.name                                     # 'large, tuned'

Limits: no dropout, one device; made for models of millions of parameters.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lrt_lens.errors import TooFewDocumentsError
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._hugging_face_engine import HuggingFaceEngine
from lrt_lens.models._ownership import entering
from lrt_lens.serving.bake._adapter import require_peft

_WARM_UP = 0.1
"""Share of the steps in which the learning rate rises to its peak."""


def fine_tune(
    model: HookedModel,
    documents: Sequence[str],
    *,
    n_steps: int = 200,
    learning_rate: float = 3e-4,
    batch_rows: int = 8,
    row_tokens: int = 96,
    lora_rank: int | None = None,
    seed: int = 0,
    name: str | None = None,
) -> HookedModel:
    """Return a copy of a model that was trained on documents.

    AdamW with torch's defaults; the learning rate rises over the first tenth of the steps and falls
    to zero. Two calls with equal arguments give equal weights.

    Args:
        model: a Hugging Face model in float32; it is not changed.
        documents: texts, joined in their order with the end-of-text token between them.
        n_steps: number of steps.
        learning_rate: largest learning rate.
        batch_rows: number of rows per step, drawn with replacement.
        row_tokens: number of tokens of a row, those of the tokenizer's prefix included.
        lora_rank: None trains all weights; a number trains a LoRA adapter of this rank on every
            linear layer of the blocks, and merges it (needs ``peft``).
        seed: seed of the draws.
        name: name of the copy; by default that of the model with ", tuned".

    Raises:
        TooFewDocumentsError: the documents do not fill one row.
        ImportError: ``lora_rank`` is given and ``peft`` is not installed.
        TypeError: the model is a bridge or a ``HookedTransformer`` that was made elsewhere.
        ValueError: the weights are not float32, or a number is out of range.
    """
    if not isinstance(model.engine, HuggingFaceEngine):
        raise TypeError(
            f"{model.name!r} is a {type(model.engine.model).__name__} of TransformerLens; "
            "fine_tune trains Hugging Face models: give HookedModel.load(hugging_face_model)"
        )
    if n_steps < 1 or batch_rows < 1:
        raise ValueError(f"n_steps is {n_steps} and batch_rows {batch_rows}; expected at least 1")
    rows = _packed(model, documents, row_tokens).to(model.device)
    trained = copy.deepcopy(model.engine.model)
    if other := {p.dtype for p in trained.parameters()} - {torch.float32}:
        raise ValueError(
            f"the weights are {sorted(map(str, other))}; small steps are lost in their rounding: "
            "load the model with dtype='float32'"
        )
    trained.requires_grad_(True)
    trained = trained if lora_rank is None else _with_adapter(trained, lora_rank, seed)
    _train(trained, rows, n_steps, learning_rate, batch_rows, seed)
    trained = trained if lora_rank is None else trained.merge_and_unload()
    trained.requires_grad_(False)
    return _revision(model, trained, name or f"{model.name}, tuned")


def changed_weights(
    model: HookedModel, change: Callable[[Tensor], Tensor], *, name: str
) -> HookedModel:
    """Return a copy of a model whose weight matrices went through ``change``, such as a cast.

    Args:
        model: a Hugging Face model; it is not changed.
        change: function of a weight matrix [row, column] that returns one of the same shape.
        name: name of the copy.
    """
    changed = copy.deepcopy(model.engine.model)
    for weight in changed.parameters():
        if weight.ndim == 2:
            weight.data = change(weight.data)
    return _revision(model, changed, name)


def rounded_to_int8(weight: Tensor) -> Tensor:
    """Return a matrix in 8-bit integers, one scale per row (absolute maximum), as float32."""
    scale = weight.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
    return (weight / scale).round() * scale


def _revision(model: HookedModel, weights: Any, name: str) -> HookedModel:
    """Return other weights of a model, with the same rules of encoding."""
    return HookedModel.load(
        weights,
        tokenizer=model.tokenizer,
        name=name,
        prepend_bos=model.prepend_bos,
        truncation=model.codec.truncation,
    )


def _train(
    trained: Any, rows: Tensor, n_steps: int, learning_rate: float, batch_rows: int, seed: int
) -> None:
    """Train the weights of a model that have gradients, in place; it stays in evaluation mode."""
    # Evaluation mode: dropout would draw from the caller's random numbers.
    trained.eval()
    weights = [weight for weight in trained.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=learning_rate)
    warm_up = max(1, round(_WARM_UP * n_steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / warm_up) * (1 - step / n_steps)
    )
    generator = torch.Generator().manual_seed(seed)
    # Interventions of the caller on the model are no part of the training.
    with entering(alone=True), torch.enable_grad():
        for _ in range(n_steps):
            drawn = torch.randint(len(rows), (batch_rows,), generator=generator).to(rows.device)
            batch = rows[drawn]
            optimizer.zero_grad()
            trained(input_ids=batch, labels=batch, use_cache=False).loss.backward()
            optimizer.step()
            schedule.step()
    trained.zero_grad()


def _with_adapter(trained: Any, rank: int, seed: int) -> Any:
    """Return the model with a LoRA adapter on the linear layers of its blocks, to be trained."""
    peft = require_peft("train all weights, with lora_rank=None")
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    # The adapter's first weights are drawn from torch's own generator.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return peft.get_peft_model(trained, config)


def _packed(model: HookedModel, documents: Sequence[str], row_tokens: int) -> Tensor:
    """Return rows of consecutive tokens [row, token], each behind the tokenizer's prefix."""
    prefix = model.prefix
    room = row_tokens - len(prefix)
    if room < 2 or row_tokens > model.context_length:
        raise ValueError(
            f"row_tokens is {row_tokens}; expected {len(prefix) + 2} to {model.context_length}, "
            f"the context of {model.name!r}"
        )
    end = model.tokenizer.eos_token_id
    behind = [] if end is None else [int(end)]
    ids = [token for body in model.encode_bodies(documents) for token in [*body, *behind]]
    n_rows = len(ids) // room
    if not n_rows:
        raise TooFewDocumentsError(
            f"{len(documents)} documents have {len(ids)} tokens, fewer than one row of "
            f"{row_tokens}; give more text or smaller row_tokens"
        )
    bodies = torch.tensor(ids[: n_rows * room]).reshape(n_rows, room)
    return torch.cat([torch.tensor(prefix, dtype=torch.long).expand(n_rows, -1), bodies], dim=1)
