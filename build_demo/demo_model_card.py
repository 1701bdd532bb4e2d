"""Measure the bundled demo models, and write their harvest text and their model card.

    python build_demo/demo_model_card.py --data DATA --work WORK --sizes small large

``build_demo/train_demo_models.py`` writes one folder per size into ``work``. This script measures
the models on held-out text, and writes everything that is shipped with them to ``out``:

    out/README.md                     the card, for people
    out/card.json, loss_curves.json   the card, for programs
    out/<size>/                       Hugging Face folder: config, bfloat16 weights, tokenizer
    out/data/documents.jsonl.gz       rows of text, register and source, on which maps are fitted

There are four stages. A stage is skipped if its file in ``work/card`` was made from the same
weights with the same settings.

``bits``: sum of -log2 p(token | window before it) ÷ UTF-8 bytes, over held-out stories and reviews.
A document is ``<|endoftext|>`` and its tokens. Windows of 256 overlap by one token, so every token
after the first is scored once.

``probe``: accuracy of a linear classifier of sentiment on the residual stream of held-out reviews.
Features are the mean residual of a layer over the tokens of a review; layer and penalty are chosen
by cross-validation on the training reviews. The twin is the same network before training: its
accuracy comes from the words alone, and the rest was learnt.

``samples``: ten continuations with a fixed seed, not selected.

``harvest``: held-out stories, and reviews sampled from the largest model. The film reviews of the
training data may be used for research but not redistributed, so the reviews of the harvest text are
written by the model. A sample that shares 60 characters with any review of the data set, ignoring
case and white space, is removed.

Limits: the training reviews of the probe are among the training documents of the models (its test
reviews are not), and half of the training pieces have a line with the label; the card says so.
Samples depend on floating-point arithmetic, so another machine may draw others.
"""

import gzip
import hashlib
import json
import logging
import math
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from demo_card_text import card_text
from demo_settings import (
    ACCURACY_BARS,
    BITS_BAR,
    CARD_RECIPE,
    COPY_CHARACTERS,
    HARVEST_OPENINGS,
    HARVEST_RECIPE,
    PENALTIES,
    PROBE_TOKENS,
    REVIEW_HELD_OUT_SHARE,
    REVIEW_OPENINGS,
    SHORTEST_SAMPLE,
    SKIPPED_POSITIONS,
    STORY_OPENINGS,
    TWIN_BAR,
    Recipe,
)
from safetensors import safe_open
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from train_demo_models import CONTEXT, SIZES, build, position, read_rows
from transformers import DynamicCache, LlamaForCausalLM, PreTrainedTokenizerFast

logger = logging.getLogger("demo_model_card")

MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)
LARGEST_OUTPUT = 25_000_000
"""Largest total size of the files under ``out``, bytes."""


@dataclass(frozen=True)
class Arguments:
    """Measure the trained demo models and write the bundle that is shipped in the wheel."""

    data: Path
    """Folder with stories.jsonl.gz and reviews.jsonl.gz."""
    work: Path
    """Folder written by train_demo_models.py; results of the stages go to work/card."""
    out: Path = Path(__file__).resolve().parents[1] / "lrt_lens" / "bundled"
    """Folder of the bundle; files in it are replaced."""
    sizes: tuple[str, ...] = ("small", "large")
    """Sizes to measure and bundle; the largest one writes the reviews of the harvest text."""
    held_out: int | None = None
    """Number of held-out stories and reviews, for trials; by default all."""
    probe_fit: int = 12_000
    """Number of training reviews on which the probe is fitted."""
    samples: int = 1_800
    """Number of sampled reviews at most; they also have at most the characters of the stories."""
    probe_precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the probe's forward passes; bfloat16 (autocast) takes about 0.6 of the time."""
    batch_size: int = 16
    """Windows per forward pass; larger batches exceed the processor's cache."""
    sample_batch: int = 64
    """Number of texts that are sampled together."""
    twins_only: bool = False
    """Measure only the untrained twins, which is possible before and during training."""
    seed: int = 0
    threads: int = 2


@dataclass(frozen=True)
class Bar:
    """One requirement for the models, with its measured value."""

    name: str
    value: float
    at_least: float

    @property
    def passed(self) -> bool:
        return self.value >= self.at_least

    def as_row(self) -> dict[str, Any]:
        return asdict(self) | {"passed": self.passed, "margin": self.value - self.at_least}


# ------------------------------------------------------------------------------------------- stages


def stage(path: Path, made_from: dict[str, Any], compute: Callable[[], Any]) -> Any:
    """The result of ``compute``, stored at ``path``.

    If the stored result was made from the same settings and weights, it is returned instead.
    """
    # As JSON, so that tuples compare equal to the lists that were stored.
    made_from = json.loads(json.dumps(made_from))
    if path.exists():
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["made_from"] == made_from:
            logger.info("%s exists already", path)
            return stored["result"]
    result = compute()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(
        json.dumps({"made_from": made_from, "result": result}, ensure_ascii=False), encoding="utf-8"
    )
    temporary.replace(path)
    return result


def fingerprint(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def load_model(folder: Path) -> LlamaForCausalLM:
    """A trained model in float32."""
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer, without its warning about texts longer than a window."""
    return PreTrainedTokenizerFast.from_pretrained(folder, model_max_length=10**9)


def held_out_texts(args: Arguments, name: str) -> list[dict]:
    """The held-out stories or reviews."""
    return read_rows(args.work / f"held_out_{name}.jsonl.gz")[: args.held_out]


def tokenize(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    """Token ids of every text; the tokenizer puts ``<|endoftext|>`` first."""
    return tokenizer([text.strip() for text in texts])["input_ids"]


def padded_batches(
    pieces: list[list[int]], size: int, label: str
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Batches of pieces of similar length: (piece indices, ids [piece, token], mask of tokens)."""
    # Attention is causal, so padding on the right does not change the real tokens and no attention
    # mask is needed.
    order = sorted(range(len(pieces)), key=lambda i: len(pieces[i]), reverse=True)
    for start in tqdm(range(0, len(order), size), desc=label, mininterval=1):
        batch = order[start : start + size]
        ids = pad_sequence([torch.tensor(pieces[i]) for i in batch], batch_first=True)
        lengths = torch.tensor([len(pieces[i]) for i in batch])
        yield torch.tensor(batch), ids, torch.arange(ids.shape[1]) < lengths[:, None]


# ------------------------------------------------------------------------------------ bits per byte


@torch.inference_mode()
def total_nats(model: LlamaForCausalLM, documents: list[list[int]], size: int, label: str) -> float:
    """Negative log-likelihood in nats, summed over all tokens but the first of each document."""
    pieces = [
        ids[start : start + CONTEXT]
        for ids in documents
        for start in range(0, len(ids) - 1, CONTEXT - 1)
    ]
    total = 0.0
    for _, ids, real in padded_batches(pieces, size, label):
        residual = model.model(ids, use_cache=False).last_hidden_state[:, :-1]
        scored = real[:, 1:]
        logits = model.lm_head(residual[scored])
        total += F.cross_entropy(logits, ids[:, 1:][scored], reduction="none").double().sum().item()
    return total


def measure_bits(args: Arguments, name: str) -> dict[str, dict[str, float]]:
    """Bits per UTF-8 byte on the held-out stories, on the held-out reviews, and on both pooled."""
    model, tokenizer = load_model(args.work / name), load_tokenizer(args.work / name)
    result = {}
    for register in ("stories", "reviews"):
        texts = [row["text"].strip() for row in held_out_texts(args, register)]
        documents = tokenize(tokenizer, texts)
        nats = total_nats(model, documents, args.batch_size, f"{name}: bits per byte, {register}")
        size = sum(len(text.encode()) for text in texts)
        result[register] = {
            "documents": len(texts),
            "tokens": sum(map(len, documents)) - len(texts),
            "bytes": size,
            "nats": nats,
        }
    result["pooled"] = {
        key: sum(part[key] for part in result.values()) for key in result["stories"]
    }
    return {
        k: v
        | {
            "bits_per_byte": v["nats"] / math.log(2) / v["bytes"],
            "nats_per_token": v["nats"] / v["tokens"],
        }
        for k, v in result.items()
    }


# -------------------------------------------------------------------------------------------- probe


@contextmanager
def residuals(model: LlamaForCausalLM) -> Iterator[list[torch.Tensor]]:
    """A list to which each forward pass appends the residual stream, before the final norm.

    There is one tensor for the embedding and one per block.
    """
    collected: list[torch.Tensor] = []

    def hook(_module: torch.nn.Module, _inputs: tuple, output: torch.Tensor) -> None:
        collected.append(output.float())

    points = [model.model.embed_tokens, *model.model.layers]
    handles = [point.register_forward_hook(hook) for point in points]
    try:
        yield collected
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def mean_residuals(
    model: LlamaForCausalLM, documents: list[list[int]], size: int, label: str
) -> np.ndarray:
    """Mean residual over the first ``PROBE_TOKENS`` tokens, [layer, document, d_model].

    Layer 0 is the embedding.
    """
    owners, pieces = [], []
    for i, ids in enumerate(documents):
        cut = [
            ids[start : start + CONTEXT] for start in range(0, min(len(ids), PROBE_TOKENS), CONTEXT)
        ]
        pieces += cut
        owners += [i] * len(cut)
    owner_of = torch.tensor(owners)
    sums = torch.zeros(len(documents), model.config.num_hidden_layers + 1, model.config.hidden_size)
    counts = torch.zeros(len(documents))
    with residuals(model) as collected:
        for rows, ids, real in padded_batches(pieces, size, label):
            collected.clear()
            model.model(ids, use_cache=False)
            weight = real.float()
            weight[:, :SKIPPED_POSITIONS] = 0
            sums.index_add_(
                0,
                owner_of[rows],
                torch.stack([(out * weight[..., None]).sum(1) for out in collected], dim=1),
            )
            counts.index_add_(0, owner_of[rows], weight.sum(dim=1))
    return (sums / counts.clamp(min=1)[:, None, None]).transpose(0, 1).numpy()


def fit_reviews(args: Arguments) -> list[dict]:
    """The training reviews on which the probe is fitted, drawn with the seed."""
    rows = [
        row
        for row in read_rows(args.data / "reviews.jsonl.gz")
        if position(row["text"]) >= REVIEW_HELD_OUT_SHARE
    ]
    random.Random(args.seed).shuffle(rows)
    return rows[: args.probe_fit]


def accuracy_interval(correct: int, trials: int) -> list[float]:
    """The 95% Clopper-Pearson interval of an accuracy."""
    interval = binomtest(correct, trials).proportion_ci(confidence_level=0.95, method="exact")
    return [float(interval.low), float(interval.high)]


def probe_layer(features: np.ndarray, labels: np.ndarray, n_fit: int, seed: int) -> dict[str, Any]:
    """Test accuracy of a probe on all rows but the first ``n_fit``, on which it is fitted.

    C is chosen by 3-fold cross-validation.
    """
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
        {"logisticregression__C": PENALTIES},
        cv=StratifiedKFold(3, shuffle=True, random_state=seed),
    ).fit(features[:n_fit], labels[:n_fit])
    correct = int((search.predict(features[n_fit:]) == labels[n_fit:]).sum())
    trials = len(labels) - n_fit
    return {
        "C": search.best_params_["logisticregression__C"],
        "cross_validated_accuracy": float(search.best_score_),
        "correct": correct,
        "test_reviews": trials,
        "accuracy": correct / trials,
        "interval": accuracy_interval(correct, trials),
    }


def probe_model(
    model: LlamaForCausalLM,
    documents: list[list[int]],
    labels: np.ndarray,
    n_fit: int,
    args: Arguments,
    label: str,
) -> dict[str, Any]:
    """Probes of every layer; ``best`` is the layer with the best cross-validated accuracy."""
    with torch.autocast("cpu", torch.bfloat16, enabled=args.probe_precision == "bfloat16"):
        features = mean_residuals(model, documents, args.batch_size, f"{label}: residuals")
    layers = [
        {"layer": i} | probe_layer(layer.astype(np.float64), labels, n_fit, args.seed)
        for i, layer in enumerate(tqdm(features, desc=f"{label}: probes"))
    ]
    return {
        "fit_reviews": n_fit,
        "precision": args.probe_precision,
        "best": max(layers, key=lambda row: row["cross_validated_accuracy"]),
        "layers": layers,
    }


def measure_probe(args: Arguments, name: str, *, trained: bool) -> dict[str, Any]:
    """Sentiment probes of the trained model, or of its twin, the same network before training."""
    fit, test = fit_reviews(args), held_out_texts(args, "reviews")
    documents = tokenize(
        load_tokenizer(args.work / "tokenizer"), [row["text"] for row in fit + test]
    )
    labels = np.array([row["label"] for row in fit + test])
    if trained:
        model = load_model(args.work / name)
    else:
        torch.manual_seed(0)  # the seed of the training run
        model = build(SIZES[name]).eval()
    return probe_model(
        model, documents, labels, len(fit), args, name if trained else f"untrained {name}"
    )


# ----------------------------------------------------------------------------------------- sampling


def next_tokens(logits: torch.Tensor, recipe: Recipe, generator: torch.Generator) -> torch.Tensor:
    """One token per row, drawn by the recipe from logits [row, vocabulary]."""
    ordered, tokens = (logits / recipe.temperature).topk(recipe.top_k)
    probability = ordered.softmax(dim=-1)
    likelier = probability.cumsum(dim=-1) - probability
    probability[likelier >= recipe.top_p] = 0
    return tokens.gather(-1, torch.multinomial(probability, 1, generator=generator))[:, 0]


@torch.inference_mode()
def continuations(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    openings: list[str],
    recipe: Recipe,
    seed: int,
) -> list[str]:
    """Each opening with the model's continuation, up to ``<|endoftext|>``.

    All rows start at ``<|endoftext|>`` and take one token per step: a token of the opening until
    its end, and a drawn token afterwards. So openings of different lengths need no padding.
    """
    forced = tokenize(tokenizer, openings)
    lengths, end = torch.tensor([len(ids) for ids in forced]), forced[0][0]
    ids = F.pad(
        pad_sequence([torch.tensor(row) for row in forced], batch_first=True),
        (0, recipe.new_tokens),
        value=end,
    )
    generator, cache = torch.Generator().manual_seed(seed), DynamicCache(config=model.config)
    ended = torch.zeros(len(openings), dtype=torch.bool)
    for t in range(1, ids.shape[1]):
        logits = model(ids[:, t - 1 : t], past_key_values=cache, use_cache=True).logits[:, -1]
        is_free = t >= lengths
        ended |= t >= lengths + recipe.new_tokens
        drawn = torch.where(ended, end, next_tokens(logits, recipe, generator))
        ids[:, t] = torch.where(is_free, drawn, ids[:, t])
        ended |= is_free & (drawn == end)
        if ended.all():
            break
    texts = tokenizer.batch_decode(
        ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return [text.strip() for text in texts]


def draw_samples(args: Arguments, name: str) -> list[dict[str, str]]:
    """The ten samples of the card, without those that copy a review of the data set."""
    openings = [*STORY_OPENINGS, *REVIEW_OPENINGS]
    registers = ["story"] * len(STORY_OPENINGS) + ["review"] * len(REVIEW_OPENINGS)
    texts = continuations(
        load_model(args.work / name),
        load_tokenizer(args.work / name),
        openings,
        CARD_RECIPE,
        args.seed,
    )
    copies = copied(texts, [row["text"] for row in read_rows(args.data / "reviews.jsonl.gz")])
    rows = [
        {"register": register, "opening": opening, "text": text}
        for register, opening, text in zip(registers, openings, texts, strict=True)
    ]
    return [row for row, copy in zip(rows, copies, strict=True) if not copy]


# ------------------------------------------------------------------------------------------ harvest


def runs(text: str) -> Iterator[str]:
    """All substrings of ``COPY_CHARACTERS`` characters, in lower case and with single spaces."""
    text = " ".join(text.lower().split())
    return (text[i : i + COPY_CHARACTERS] for i in range(len(text) - COPY_CHARACTERS + 1))


def copied(samples: list[str], originals: list[str]) -> list[bool]:
    """Return True for samples with ``COPY_CHARACTERS`` characters in a row of an original."""
    sampled = {run for sample in samples for run in runs(sample)}
    shared: set[str] = set()
    for original in tqdm(originals, desc="looking for copies", mininterval=1):
        shared.update(sampled.intersection(runs(original)))
    return [not shared.isdisjoint(runs(sample)) for sample in samples]


def sample_reviews(args: Arguments, name: str, characters: int) -> dict[str, Any]:
    """Reviews written by the model: at most ``args.samples``, until they have ``characters``."""
    model, tokenizer = load_model(args.work / name), load_tokenizer(args.work / name)
    openings = random.Random(args.seed)
    reviews, n_short, batch = [], 0, 0
    with tqdm(total=args.samples, desc=f"{name}: sampled reviews") as bar:
        while len(reviews) < args.samples and sum(map(len, reviews)) < characters:
            texts = continuations(
                model,
                tokenizer,
                openings.choices(HARVEST_OPENINGS, k=args.sample_batch),
                HARVEST_RECIPE,
                args.seed + batch,
            )
            long = [text for text in texts if len(text) >= SHORTEST_SAMPLE]
            n_short, batch = n_short + len(texts) - len(long), batch + 1
            bar.update(min(len(long), args.samples - len(reviews)))
            reviews = [*reviews, *long][: args.samples]
            if batch >= 20 and not reviews:
                raise ValueError(
                    f"none of {batch * args.sample_batch} samples has {SHORTEST_SAMPLE} characters;"
                    f" train {name!r} first"
                )
    copies = copied(reviews, [row["text"] for row in read_rows(args.data / "reviews.jsonl.gz")])
    texts = [text for text, copy in zip(reviews, copies, strict=True) if not copy]
    return {
        "model": name,
        "texts": texts,
        "dropped_short": n_short,
        "dropped_copies": sum(copies),
        "recipe": asdict(HARVEST_RECIPE),
    }


def write_harvest(args: Arguments, stories: list[dict], reviews: dict[str, Any]) -> dict[str, Any]:
    """Counts for the card of the harvest text, which is written to ``data/documents.jsonl.gz``."""
    rows = [
        {"text": row["text"].strip(), "register": "story", "source": row["kind"]} for row in stories
    ]
    source = f"sampled from the {reviews['model']} model"
    rows += [{"text": text, "register": "review", "source": source} for text in reviews["texts"]]
    random.Random(args.seed).shuffle(rows)
    path = args.out / "data" / "documents.jsonl.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))
    characters = Counter()
    for row in rows:
        characters[row["register"]] += len(row["text"])
    return {
        "documents": dict(Counter(row["register"] for row in rows)),
        "characters": dict(characters),
        "sources": dict(Counter(row["source"] for row in rows)),
        "bytes": path.stat().st_size,
        "sampling": {key: value for key, value in reviews.items() if key != "texts"},
        "openings": len(HARVEST_OPENINGS),
    }


# ------------------------------------------------------------------------------------------- bundle


def copy_model(source: Path, target: Path) -> int:
    """Copy the files of a bfloat16 model; returns their size in bytes."""
    with safe_open(source / "model.safetensors", framework="pt") as weights:
        dtypes = {part.get_dtype() for part in map(weights.get_slice, weights.keys())}
    if dtypes != {"BF16"}:
        raise ValueError(
            f"{source / 'model.safetensors'} has {sorted(dtypes)}, expected only BF16; save the "
            "model with .to(torch.bfloat16)"
        )
    target.mkdir(parents=True, exist_ok=True)
    return sum(
        Path(shutil.copyfile(source / file, target / file)).stat().st_size for file in MODEL_FILES
    )


def check_output(out: Path) -> int:
    """Total size of the files under ``out`` in bytes; a ValueError if it is too large to ship."""
    total = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    if total > LARGEST_OUTPUT:
        raise ValueError(
            f"{out} takes {total:,} bytes, expected at most {LARGEST_OUTPUT:,}; omit a size or "
            "lower --samples"
        )
    return total


def loss_curve(folder: Path) -> list[dict[str, float]]:
    """Step, tokens and mean training loss (nats per token) since the previous checkpoint."""
    entries = [
        json.loads(line)
        for line in (folder / "loss.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    by_step = {
        entry["step"]: {key: entry[key] for key in ("step", "tokens", "loss")} for entry in entries
    }
    return [by_step[step] for step in sorted(by_step)]


def check_shape(config: dict[str, Any], name: str) -> None:
    """Raise a ValueError if the trained model does not have the shape of its twin."""
    size = SIZES[name]
    expected = {
        "hidden_size": size.d_model,
        "num_hidden_layers": size.n_layers,
        "num_attention_heads": size.n_heads,
        "intermediate_size": size.d_mlp,
    }
    shape = {key: config[key] for key in expected}
    if shape != expected:
        raise ValueError(
            f"{name!r} was trained with {shape}, but SIZES has {expected}; train it again or "
            "restore the shape in SIZES"
        )


def describe(args: Arguments, name: str) -> dict[str, Any]:
    """Shape, number of parameters and training run of one size, from its files."""
    folder = args.work / name
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    check_shape(config, name)
    shape = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "vocab_size",
    )
    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        shapes = [part.get_shape() for part in map(weights.get_slice, weights.keys())]
    return {
        "parameters": sum(int(np.prod(each)) for each in shapes),
        "shape": {key: config[key] for key in shape},
        "training": json.loads((folder / "training.json").read_text(encoding="utf-8")),
        "loss": loss_curve(folder),
    }


def probe_settings(args: Arguments) -> dict[str, Any]:
    """All settings, other than the model, on which the result of a probe depends."""
    return {
        "held_out": args.held_out,
        "fit": args.probe_fit,
        "seed": args.seed,
        "precision": args.probe_precision,
        "penalties": PENALTIES,
        "windows": [CONTEXT, PROBE_TOKENS, SKIPPED_POSITIONS],
        "tokenizer": fingerprint(args.work / "tokenizer" / "tokenizer.json"),
    }


def measure_twin(args: Arguments, name: str) -> dict[str, Any]:
    """Probes of the untrained twin."""
    made_from = probe_settings(args) | {"shape": asdict(SIZES[name])}
    return stage(
        args.work / "card" / f"{name}.twin.json",
        made_from,
        lambda: measure_probe(args, name, trained=False),
    )


def measure(args: Arguments, name: str) -> dict[str, Any]:
    """All values of the card for one size."""
    weights = {"weights": fingerprint(args.work / name / "model.safetensors")}
    bits = weights | {"held_out": args.held_out, "context": CONTEXT}
    probe = weights | probe_settings(args)
    drawing = weights | {
        "recipe": asdict(CARD_RECIPE),
        "openings": [*STORY_OPENINGS, *REVIEW_OPENINGS],
        "seed": args.seed,
    }
    results = args.work / "card"
    return describe(args, name) | {
        "bits_per_byte": stage(
            results / f"{name}.bits.json", bits, lambda: measure_bits(args, name)
        ),
        "probe": stage(
            results / f"{name}.probe.json", probe, lambda: measure_probe(args, name, trained=True)
        ),
        "twin": measure_twin(args, name),
        "samples": stage(
            results / f"{name}.samples.json", drawing, lambda: draw_samples(args, name)
        ),
    }


def harvest(args: Arguments, name: str) -> dict[str, Any]:
    """Write the harvest text, with reviews by this model; returns counts for the card."""
    stories = held_out_texts(args, "stories")
    made_from = {
        "weights": fingerprint(args.work / name / "model.safetensors"),
        "settings": [
            args.held_out,
            args.samples,
            args.sample_batch,
            args.seed,
            SHORTEST_SAMPLE,
            COPY_CHARACTERS,
        ],
        "recipe": asdict(HARVEST_RECIPE),
        "openings": HARVEST_OPENINGS,
    }
    characters = sum(len(row["text"]) for row in stories)
    reviews = stage(
        args.work / "card" / "harvest.json",
        made_from,
        lambda: sample_reviews(args, name, characters),
    )
    return write_harvest(args, stories, reviews)


def count_data(args: Arguments) -> dict[str, Any]:
    """Numbers of training and held-out documents, and the tokens of the training text."""
    counts: dict[str, Any] = {}
    for name in ("stories", "reviews"):
        total = len(read_rows(args.data / f"{name}.jsonl.gz"))
        held_out = len(read_rows(args.work / f"held_out_{name}.jsonl.gz"))
        counts[name] = {"training": total - held_out, "held_out": held_out}
    with safe_open(args.work / "stream.safetensors", framework="pt") as stream:
        counts["stream_tokens"] = int(np.prod(stream.get_slice("tokens").get_shape()))
    return counts


def bars(sizes: dict[str, Any]) -> list[Bar]:
    """The requirements for the measured sizes."""
    required = []
    for name, size in sizes.items():
        accuracy = size["probe"]["best"]["accuracy"]
        if name in ACCURACY_BARS:
            required.append(
                Bar(f"{name}: sentiment probe, accuracy", accuracy, ACCURACY_BARS[name])
            )
        required.append(
            Bar(
                f"{name}: sentiment probe, above its untrained twin",
                accuracy - size["twin"]["best"]["accuracy"],
                TWIN_BAR,
            )
        )
    if {"small", "large"} <= sizes.keys():
        small, large = (
            sizes[name]["bits_per_byte"]["pooled"]["bits_per_byte"] for name in ("small", "large")
        )
        required.append(Bar("large: bits per byte (pooled) below small", small - large, BITS_BAR))
    return required


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def bundle(args: Arguments) -> dict[str, Any]:
    """Run the stages, copy the models and write the card; returns the content of card.json."""
    sizes = {name: measure(args, name) for name in args.sizes}
    largest = max(sizes, key=lambda name: sizes[name]["parameters"])
    for name, size in sizes.items():
        size["bytes"] = copy_model(args.work / name, args.out / name)
    card = {
        "schema_version": 1,
        "seed": args.seed,
        "data": count_data(args),
        "harvest_text": harvest(args, largest),
        "bars": [bar.as_row() for bar in bars(sizes)],
        "sizes": sizes,
    }
    write_json(args.out / "card.json", card)
    write_json(args.out / "loss_curves.json", {name: size["loss"] for name, size in sizes.items()})
    (args.out / "README.md").write_text(card_text(card), encoding="utf-8")
    return card


def main() -> None:
    args = tyro.cli(Arguments, description=__doc__)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    unknown = [name for name in args.sizes if name not in SIZES]
    if unknown:
        raise SystemExit(f"--sizes has {unknown}, which do not exist; choose from {list(SIZES)}")
    torch.set_num_threads(args.threads)
    if args.twins_only:
        for name in args.sizes:
            measure_twin(args, name)
        return
    card = bundle(args)
    for row in card["bars"]:
        logger.info(
            "%s %s: %.4f, at least %.2f",
            "pass" if row["passed"] else "FAIL",
            row["name"],
            row["value"],
            row["at_least"],
        )
    logger.info("%s: %s bytes", args.out, f"{check_output(args.out):,}")


if __name__ == "__main__":
    main()
