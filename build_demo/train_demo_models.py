"""Train the bundled family of small language models from scratch.

The demo of ``lrt_lens`` needs a small and a large model that saw the same text in the same order
through the same tokenizer, small enough to travel inside a wheel. No public family is: this script
makes one out of short stories and film reviews.

    python build_demo/train_demo_models.py --data DATA --work WORK     # prepare, train every size
    python build_demo/train_demo_models.py --data DATA --work WORK --sizes small --tokens 1000000

Stages, each skipped when its files exist: ``prepare`` (split, tokenizer, one stream of tokens) and
``train`` (one folder a size; a killed run continues from its last checkpoint).
``build_demo/demo_model_card.py`` then measures the models, samples the review register of the harvest
text and writes the model card.

Reviews are cut at sentence ends into pieces of at most 900 characters, and half of the training
pieces end in a line ``Verdict: positive`` or ``Verdict: negative`` taken from the data set's label:
a model of 1.5 M parameters otherwise learns film vocabulary long before it learns opinion. The
held-out reviews never carry that line, neither for bits per byte nor for probes.
"""

import gzip
import hashlib
import json
import logging
import math
import random
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

logger = logging.getLogger("train_demo_models")

CONTEXT = 256
VOCABULARY = 4096
END_OF_TEXT = "<|endoftext|>"
PIECE_CHARACTERS = 900


@dataclass(frozen=True)
class Size:
    """Shape and learning rates of one member of the family."""

    d_model: int
    n_layers: int
    n_heads: int
    d_mlp: int
    muon_lr: float
    """Peak learning rate of the hidden matrices (Muon, RMS matched to AdamW)."""
    adam_lr: float
    """Peak learning rate of the embedding and the norms (AdamW)."""


SIZES = {
    "small": Size(d_model=128, n_layers=5, n_heads=4, d_mlp=352, muon_lr=1e-2, adam_lr=6e-3),
    "medium": Size(d_model=192, n_layers=5, n_heads=4, d_mlp=512, muon_lr=8e-3, adam_lr=5e-3),
    "large": Size(d_model=256, n_layers=5, n_heads=4, d_mlp=704, muon_lr=7e-3, adam_lr=4e-3),
}


@dataclass(frozen=True)
class Arguments:
    """Train the bundled demo models."""

    data: Path
    """Folder with stories.jsonl.gz and reviews.jsonl.gz."""
    work: Path
    """Folder for the split, the token stream, checkpoints and the finished models."""
    sizes: tuple[str, ...] = ("small", "large")
    """Which members to train, in this order."""
    tokens: int = 20_300_000
    """Training tokens a model; the stream is repeated when it is shorter."""
    batch_size: int = 32
    """Rows of 256 tokens a step."""
    checkpoint_every: int = 200
    """Steps between checkpoints."""
    seed: int = 0
    threads: int = 2


# --------------------------------------------------------------------------------------------- text


def read_rows(path: Path) -> list[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def write_rows(path: Path, rows: list[dict]) -> None:
    with gzip.open(path, "wt", encoding="utf-8", compresslevel=9) as out:
        out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def position(text: str) -> float:
    """A document's place in [0, 1), from its text alone: the split does not depend on order or on
    the other documents.
    """
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64


def review_pieces(text: str) -> list[str]:
    """Cut a review at sentence ends into pieces of at most ``PIECE_CHARACTERS`` (a longer sentence
    stays whole).
    """
    pieces, piece = [], ""
    for sentence in re.findall(r".+?(?:[.!?]+[\"')]*\s+|\n+|$)", text, flags=re.S):
        if piece and len(piece) + len(sentence) > PIECE_CHARACTERS:
            pieces.append(piece.strip())
            piece = ""
        piece += sentence
    return [piece for piece in [*pieces, piece.strip()] if piece]


def training_documents(stories: list[dict], reviews: list[dict], seed: int) -> list[str]:
    rng = random.Random(seed)
    documents = [row["text"].strip() for row in stories]
    for row in reviews:
        verdict = "positive" if row["label"] == 1 else "negative"
        for piece in review_pieces(row["text"]):
            documents.append(piece + (f"\nVerdict: {verdict}" if rng.random() < 0.5 else ""))
    rng.shuffle(documents)
    return documents


def train_tokenizer(documents: list[str], folder: Path) -> PreTrainedTokenizerFast:
    """Byte-level BPE; the tokenizer itself puts ``<|endoftext|>`` before a text, as training does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A",
        special_tokens=[(END_OF_TEXT, tokenizer.token_to_id(END_OF_TEXT))],
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=CONTEXT,
    )
    fast.save_pretrained(folder)
    return fast


def prepare(args: Arguments) -> np.ndarray:
    """Split the documents, train the tokenizer, write the token stream; returns rows of tokens,
    [row, CONTEXT].
    """
    stream = args.work / "stream.safetensors"
    if not stream.exists():
        args.work.mkdir(parents=True, exist_ok=True)
        stories, reviews = (
            read_rows(args.data / "stories.jsonl.gz"),
            read_rows(args.data / "reviews.jsonl.gz"),
        )
        held_out = {
            "stories": [r for r in stories if position(r["text"]) < 0.09],
            "reviews": [r for r in reviews if position(r["text"]) < 0.08],
        }
        for name, rows in held_out.items():
            write_rows(args.work / f"held_out_{name}.jsonl.gz", rows)
        documents = training_documents(
            [r for r in stories if position(r["text"]) >= 0.09],
            [r for r in reviews if position(r["text"]) >= 0.08],
            args.seed,
        )
        tokenizer = train_tokenizer(documents, args.work / "tokenizer")
        ids: list[int] = []
        for start in range(0, len(documents), 2000):
            for row in tokenizer(documents[start : start + 2000])["input_ids"]:
                ids.extend(row)
        rows = len(ids) // CONTEXT
        tokens = torch.tensor(
            np.array(ids[: rows * CONTEXT], dtype=np.int16).reshape(rows, CONTEXT)
        )
        save_file({"tokens": tokens}, stream)
        logger.info(
            "%d documents, %d tokens; held out: %s",
            len(documents),
            tokens.numel(),
            {k: len(v) for k, v in held_out.items()},
        )
    return load_file(stream)["tokens"].numpy()


# ----------------------------------------------------------------------------------------- training


def build(size: Size) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=size.d_model,
            num_hidden_layers=size.n_layers,
            num_attention_heads=size.n_heads,
            num_key_value_heads=size.n_heads,
            intermediate_size=size.d_mlp,
            max_position_embeddings=2 * CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=None,
            attn_implementation="sdpa",
        )
    )


def optimizers(model: LlamaForCausalLM, size: Size) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices, AdamW for embedding and norms; each group remembers its peak
    rate.
    """
    hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    both = [
        torch.optim.Muon(
            hidden, lr=size.muon_lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(rest, lr=size.adam_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]
    for optimizer in both:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return both


def rate(step: int, steps: int) -> float:
    """Share of the peak rate: 2% linear warm-up, flat, then linear to zero over the last 60%."""
    return min(1.0, (step + 1) / max(1, int(0.02 * steps)), (steps - step) / (0.6 * steps))


def save_state(
    path: Path, model: LlamaForCausalLM, opts: list[torch.optim.Optimizer], step: int
) -> None:
    tensors = {f"model.{n}": p.detach() for n, p in model.named_parameters()}
    for i, optimizer in enumerate(opts):
        for j, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{j}.{key}": value for key, value in state.items()}
    temporary = path.with_suffix(".tmp")
    save_file(
        {k: v.contiguous() for k, v in tensors.items()}, temporary, metadata={"step": str(step)}
    )
    temporary.replace(path)


def load_state(path: Path, model: LlamaForCausalLM, opts: list[torch.optim.Optimizer]) -> None:
    tensors = load_file(path)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model.{name}"])
    for i, optimizer in enumerate(opts):
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith(f"optimizer.{i}."):
                _, _, index, key = name.split(".")
                state.setdefault(int(index), {})[key] = value
        optimizer.load_state_dict(
            {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
        )


def batches(
    rows: np.ndarray, args: Arguments, first_step: int, steps: int
) -> Iterator[torch.Tensor]:
    """The one data order of the family: every size sees the same rows at the same step."""
    order = np.random.default_rng(args.seed)
    permutation = np.concatenate(
        [
            order.permutation(len(rows))
            for _ in range(math.ceil(steps * args.batch_size / len(rows)))
        ]
    )
    for step in range(first_step, steps):
        chosen = permutation[step * args.batch_size : (step + 1) * args.batch_size]
        yield torch.from_numpy(rows[chosen].astype(np.int64))


def train(name: str, rows: np.ndarray, args: Arguments) -> None:
    """Train one size; writes ``work/<name>/`` as a Hugging Face folder and ``loss.jsonl``."""
    folder = args.work / name
    if (folder / "config.json").exists():
        logger.info("%s is there already", folder)
        return
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    size = SIZES[name]
    model = build(size)
    opts = optimizers(model, size)
    steps, first_step = math.ceil(args.tokens / (args.batch_size * CONTEXT)), 0
    checkpoint, log = args.work / f"{name}.checkpoint.safetensors", folder / "loss.jsonl"
    if checkpoint.exists():
        load_state(checkpoint, model, opts)
        done = [json.loads(line) for line in log.read_text().splitlines()]
        first_step = done[-1]["step"]
        logger.info("%s continues at step %d", name, first_step)

    def loss_of(ids: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(ids, use_cache=False).logits
        return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())

    compiled = torch.compile(loss_of)
    started, running = time.time(), []
    bar = tqdm(
        batches(rows, args, first_step, steps),
        initial=first_step,
        total=steps,
        desc=name,
        mininterval=10,
    )
    for step, ids in enumerate(bar, start=first_step + 1):
        for optimizer in opts:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * rate(step - 1, steps)
        loss = compiled(ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in opts:
            optimizer.step()
            optimizer.zero_grad()
        running.append(loss.item())
        if step % 20 == 0 or step == steps:
            bar.set_postfix(loss=f"{np.mean(running):.3f}")
        if step % args.checkpoint_every == 0 or step == steps:
            save_state(checkpoint, model, opts, step)
            entry = {
                "step": step,
                "tokens": step * args.batch_size * CONTEXT,
                "loss": float(np.mean(running)),
                "seconds": time.time() - started,
            }
            with log.open("a") as out:
                out.write(json.dumps(entry) + "\n")
            running = []
    model.to(torch.bfloat16).save_pretrained(folder)
    PreTrainedTokenizerFast.from_pretrained(args.work / "tokenizer").save_pretrained(folder)
    (folder / "training.json").write_text(
        json.dumps(
            {"size": asdict(size), "tokens": steps * args.batch_size * CONTEXT, "seed": args.seed},
            indent=1,
        )
    )


def main() -> None:
    args = tyro.cli(Arguments, description=__doc__)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(args.threads)
    rows = prepare(args)
    for name in args.sizes:
        train(name, rows, args)


if __name__ == "__main__":
    main()
