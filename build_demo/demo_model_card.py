"""Measure the bundled family of demo models, write its harvest text and its model card.

``build_demo/train_demo_models.py`` leaves one folder a size in ``work``. Before they travel inside
the wheel somebody has to say how good they are, on text they never saw, and what may be shipped
with them. This script does both and puts the result in ``out``:

    python build_demo/demo_model_card.py --data DATA --work WORK --sizes small large

    out/README.md, card.json, loss_curves.json      the card, for people and for programs
    out/<size>/                                     config, bfloat16 weights, tokenizer: a Hugging Face folder
    out/data/documents.jsonl.gz                     {"text", "register", "source"}: the text the maps are fitted on

Mechanism, a stage each; a stage is skipped when its file in ``work/card`` was made from the same
weights with the same settings:

``bits``     ``sum of -log2 p(token | window before it) / UTF-8 bytes`` over held-out stories and reviews. A document is
             ``<|endoftext|>`` and its tokens; windows of 256 share one token, so every token after
             the first is scored once.
``probe``    can a linear classifier read the sentiment of a held-out review off the residual stream? Features are the mean residual
             of a layer over a review's tokens; layer and penalty are chosen by cross-validation on
             the fit reviews. The twin is the
             same network before training: what is above the twin was learnt, what is below comes
                 from the words alone.
``samples``  ten continuations with a fixed seed, as they fall.
``harvest``  held-out stories, plus reviews sampled from the largest model: the film reviews of the training data may be used for
             research but not passed on, so the review register of the harvest text is the model's
             own. A sample that shares 60 characters with any review of the data set, case and white
             space aside, is dropped.

Limits: the probe's fit reviews are among the training documents (its test reviews are not), and
half of the training pieces carried a line with the label; the card says so. Samples depend on the
machine's floating point, so another machine may draw other ones.
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
from safetensors import safe_open
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from train_demo_models import (
    CONTEXT,
    END_OF_TEXT,
    PIECE_CHARACTERS,
    SIZES,
    VOCABULARY,
    build,
    position,
    read_rows,
)
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
"""Bytes that everything under ``out`` may take."""

REVIEW_HELD_OUT_SHARE = 0.08
"""Reviews whose ``position`` is below this were held out of training."""
PROBE_TOKENS = CONTEXT
"""Tokens of a review, from its start, that the probe's features are averaged over."""
SKIPPED_POSITIONS = 4
"""Positions at the start of every window that carry no features: ``<|endoftext|>`` and tokens with
next to no context.
"""
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
"""Values of C (inverse of the L2 penalty) that cross-validation chooses from."""

ACCURACY_BARS = {"small": 0.72, "large": 0.76}
TWIN_BAR = 0.05
BITS_BAR = 0.05

COPY_CHARACTERS = 60
SHORTEST_SAMPLE = 200

STORY_OPENINGS = (
    "Once upon a time, there was a little girl",
    "One day, a boy named Tom",
    "The old lighthouse keeper",
    "Deep in the forest, a small fox",
    "We sat around the fire while grandfather",
)
REVIEW_OPENINGS = (
    "I saw this film",
    "The story follows a young detective",
    "This movie was",
    "I have been a fan of the director",
    "The acting in this picture",
)
HARVEST_OPENINGS = tuple(
    opening.strip()
    for opening in """
    I saw this film|The story follows|When I first|This movie|This film|The film|The movie|The plot|The story|The acting|The director
    The first time I|I watched this|I just watched|I rented this|I remember|I went to see|I have seen|I had heard|I was expecting
    I do not know|I think that|I thought this|I recently saw|My wife and I|My friends and I|My brother|After watching|After reading
    As a fan of|As someone who|At first|At the beginning|Before I saw|Based on the novel|Based on a true story|Set in|Set during the war
    In this film|In the opening scene|In the end|It is|It was|It has been|It starts|Let me start|Let me say|Like most|Many people
    Most of the|Not many films|Nobody|Of all the|On the surface|One of the|Perhaps|Some people|Someone|Sometimes a film|The camera
    The cast|The characters|The dialogue|The ending|The lead actress|The main character|The music|The premise|The script|The title
    There are|There is|There have been|This is|This documentary|This comedy|This horror film|This was|To begin with|Two brothers
    Unlike|We watched|What|What happens when|While|With a|You have|A young woman|A group of|A man|An old
    """.strip()
    .replace("\n", "|")
    .split("|")
)


@dataclass(frozen=True)
class Arguments:
    """Measure the trained demo models and write the bundle that travels in the wheel."""

    data: Path
    """Folder with stories.jsonl.gz and reviews.jsonl.gz."""
    work: Path
    """Folder that train_demo_models.py filled; results of the stages go to work/card."""
    out: Path = Path(__file__).resolve().parents[1] / "lrt_lens" / "bundled"
    """Folder of the bundle; files in it are replaced."""
    sizes: tuple[str, ...] = ("small", "large")
    """Which members to measure and bundle; the one with most parameters writes the reviews of the
    harvest text.
    """
    held_out: int | None = None
    """Stop after so many held-out stories and reviews (for trials; the whole held-out sets when not
    given).
    """
    probe_fit: int = 12_000
    """Training reviews that the probe is fitted on."""
    samples: int = 1_800
    """Sampled reviews at most; sampling also stops when they have as many characters as the
    stories.
    """
    probe_precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the probe's forward passes; bfloat16 (autocast, the residual stays float32)
    takes about 0.6 of the time.
    """
    batch_size: int = 16
    """Windows a forward pass; more of them fall out of the processor's cache."""
    sample_batch: int = 64
    """Texts that are sampled side by side."""
    twins_only: bool = False
    """Only measure the untrained twins: they need no trained model, so this can run before or
    during training.
    """
    seed: int = 0
    threads: int = 2


@dataclass(frozen=True)
class Recipe:
    """How the next token is drawn: only the ``top_k`` likeliest, and of those the fewest that hold
    ``top_p`` of the probability.
    """

    temperature: float
    new_tokens: int
    top_k: int
    top_p: float = 1.0


CARD_RECIPE = Recipe(temperature=0.8, new_tokens=80, top_k=40)
HARVEST_RECIPE = Recipe(temperature=0.95, new_tokens=240, top_k=1000, top_p=0.95)


@dataclass(frozen=True)
class Bar:
    """One requirement that the family was trained to meet."""

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
    """The result stored at ``path`` when it was made from the same things, else what ``compute``
    returns, stored there.
    """
    made_from = json.loads(json.dumps(made_from))
    if path.exists():
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["made_from"] == made_from:
            logger.info("%s is there already", path)
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
    return hashlib.sha256(path.read_bytes()).hexdigest()


def load_model(folder: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The family's tokenizer, without its warning about texts longer than a window: they are cut
    into windows here.
    """
    return PreTrainedTokenizerFast.from_pretrained(folder, model_max_length=10**9)


def held_out_texts(args: Arguments, name: str) -> list[dict]:
    return read_rows(args.work / f"held_out_{name}.jsonl.gz")[: args.held_out]


def tokenize(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    """Token ids of every text, each beginning with ``<|endoftext|>`` (the tokenizer puts it there)."""
    return tokenizer([text.strip() for text in texts])["input_ids"]


def padded_batches(
    pieces: list[list[int]], size: int, label: str
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Pieces of similar length together, padded on the right: (piece indices, ids [piece, token],
    mask of the real tokens).

    Attention is causal, so what stands to the right of a token does not change it and no attention
    mask is needed.
    """
    order = sorted(range(len(pieces)), key=lambda i: len(pieces[i]), reverse=True)
    for start in tqdm(range(0, len(order), size), desc=label, mininterval=1):
        chosen = order[start : start + size]
        ids = pad_sequence([torch.tensor(pieces[i]) for i in chosen], batch_first=True)
        lengths = torch.tensor([len(pieces[i]) for i in chosen])
        yield torch.tensor(chosen), ids, torch.arange(ids.shape[1]) < lengths[:, None]


# ------------------------------------------------------------------------------------ bits per byte


@torch.inference_mode()
def total_nats(model: LlamaForCausalLM, documents: list[list[int]], size: int, label: str) -> float:
    """Negative log-likelihood of every token of every document but its first, in nats."""
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
    """Bits per UTF-8 byte on the held-out stories, the held-out reviews and both pooled."""
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
    """A list that every forward pass extends by the residual stream after the embedding and after
    every block, before the final norm.
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
    """Mean residual of each document's first ``PROBE_TOKENS`` tokens, [layer, document, d_model];
    layer 0 is the embedding.
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
    """Reviews of the training part, as many as the probe is fitted on, drawn with the seed."""
    rows = [
        row
        for row in read_rows(args.data / "reviews.jsonl.gz")
        if position(row["text"]) >= REVIEW_HELD_OUT_SHARE
    ]
    random.Random(args.seed).shuffle(rows)
    return rows[: args.probe_fit]


def accuracy_interval(correct: int, trials: int) -> list[float]:
    """95% Clopper-Pearson interval."""
    interval = binomtest(correct, trials).proportion_ci(confidence_level=0.95, method="exact")
    return [float(interval.low), float(interval.high)]


def probe_layer(features: np.ndarray, labels: np.ndarray, n_fit: int, seed: int) -> dict[str, Any]:
    """Fit on the first ``n_fit`` rows, C by 3-fold cross-validation, and count what is right on the
    others.
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
    """Probes of every layer; ``best`` is the layer with the best cross-validated accuracy, whatever
    the test reviews say.
    """
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
    """Sentiment probes of the trained model, or of its twin: the same network as seed 0 initialises
    it.
    """
    fit, test = fit_reviews(args), held_out_texts(args, "reviews")
    documents = tokenize(
        load_tokenizer(args.work / "tokenizer"), [row["text"] for row in fit + test]
    )
    labels = np.array([row["label"] for row in fit + test])
    if trained:
        model = load_model(args.work / name)
    else:
        torch.manual_seed(0)
        model = build(SIZES[name]).eval()
    return probe_model(
        model, documents, labels, len(fit), args, name if trained else f"untrained {name}"
    )


# ----------------------------------------------------------------------------------------- sampling


def next_tokens(logits: torch.Tensor, recipe: Recipe, generator: torch.Generator) -> torch.Tensor:
    """One token a row, drawn by the recipe from logits [row, vocabulary]."""
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
    """Each opening with what the model writes after it, up to ``<|endoftext|>``.

    All rows start at ``<|endoftext|>`` and take one token a step, the opening's while it lasts and
    a drawn one afterwards: openings of different lengths share a batch without padding.
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
    for place in range(1, ids.shape[1]):
        logits = model(ids[:, place - 1 : place], past_key_values=cache, use_cache=True).logits[
            :, -1
        ]
        free = place >= lengths
        ended |= place >= lengths + recipe.new_tokens
        drawn = torch.where(ended, end, next_tokens(logits, recipe, generator))
        ids[:, place] = torch.where(free, drawn, ids[:, place])
        ended |= free & (drawn == end)
        if ended.all():
            break
    texts = tokenizer.batch_decode(
        ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return [text.strip() for text in texts]


def draw_samples(args: Arguments, name: str) -> list[dict[str, str]]:
    """The card's ten samples, as they fall; none is left out but for copying a review of the data
    set.
    """
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
    """Every run of ``COPY_CHARACTERS`` characters of the text, lower case and with single spaces."""
    text = " ".join(text.lower().split())
    return (text[i : i + COPY_CHARACTERS] for i in range(len(text) - COPY_CHARACTERS + 1))


def copied(samples: list[str], originals: list[str]) -> list[bool]:
    """For every sample, whether it shares a run of ``COPY_CHARACTERS`` characters with any of the
    originals; exact.
    """
    wanted = {run for sample in samples for run in runs(sample)}
    shared: set[str] = set()
    for original in tqdm(originals, desc="looking for copies", mininterval=1):
        shared.update(wanted.intersection(runs(original)))
    return [not shared.isdisjoint(runs(sample)) for sample in samples]


def sample_reviews(args: Arguments, name: str, characters: int) -> dict[str, Any]:
    """Reviews in the model's own words: ``args.samples`` of them, or as many as have so many
    characters.
    """
    model, tokenizer = load_model(args.work / name), load_tokenizer(args.work / name)
    openings = random.Random(args.seed)
    kept, short, batch = [], 0, 0
    with tqdm(total=args.samples, desc=f"{name}: sampled reviews") as bar:
        while len(kept) < args.samples and sum(map(len, kept)) < characters:
            texts = continuations(
                model,
                tokenizer,
                openings.choices(HARVEST_OPENINGS, k=args.sample_batch),
                HARVEST_RECIPE,
                args.seed + batch,
            )
            long = [text for text in texts if len(text) >= SHORTEST_SAMPLE]
            short, batch = short + len(texts) - len(long), batch + 1
            bar.update(min(len(long), args.samples - len(kept)))
            kept = [*kept, *long][: args.samples]
            if batch >= 20 and not kept:
                raise ValueError(
                    f"none of {batch * args.sample_batch} samples has {SHORTEST_SAMPLE} characters; was {name!r} trained?"
                )
    copies = copied(kept, [row["text"] for row in read_rows(args.data / "reviews.jsonl.gz")])
    texts = [text for text, copy in zip(kept, copies, strict=True) if not copy]
    return {
        "model": name,
        "texts": texts,
        "dropped_short": short,
        "dropped_copies": sum(copies),
        "recipe": asdict(HARVEST_RECIPE),
    }


def write_harvest(args: Arguments, stories: list[dict], reviews: dict[str, Any]) -> dict[str, Any]:
    """Write ``data/documents.jsonl.gz``; returns counts for the card."""
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
    """Copy the files of a model that is stored in bfloat16 throughout; returns their bytes."""
    with safe_open(source / "model.safetensors", framework="pt") as weights:
        dtypes = {weights.get_slice(key).get_dtype() for key in weights.keys()}  # noqa: SIM118 (a handle, not a dict)
    if dtypes != {"BF16"}:
        raise ValueError(
            f"{source / 'model.safetensors'} holds {sorted(dtypes)}, expected only BF16; save the model with .to(torch.bfloat16)"
        )
    target.mkdir(parents=True, exist_ok=True)
    return sum(
        Path(shutil.copyfile(source / file, target / file)).stat().st_size for file in MODEL_FILES
    )


def check_output(out: Path) -> int:
    """Bytes of everything under ``out``; an error when the bundle is too large to travel in the
    wheel.
    """
    total = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    if total > LARGEST_OUTPUT:
        raise ValueError(
            f"{out} takes {total:,} bytes, at most {LARGEST_OUTPUT:,} may travel; leave out a size or lower --samples"
        )
    return total


def loss_curve(folder: Path) -> list[dict[str, float]]:
    """Step, tokens and mean training loss (nats per token) since the point before, a row a
    checkpoint.
    """
    entries = [
        json.loads(line)
        for line in (folder / "loss.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    by_step = {
        entry["step"]: {key: entry[key] for key in ("step", "tokens", "loss")} for entry in entries
    }
    return [by_step[step] for step in sorted(by_step)]


def check_shape(config: dict[str, Any], name: str) -> None:
    """An error when the trained model is not of the shape that its twin would be built with."""
    size = SIZES[name]
    expected = {
        "hidden_size": size.d_model,
        "num_hidden_layers": size.n_layers,
        "num_attention_heads": size.n_heads,
        "intermediate_size": size.d_mlp,
    }
    found = {key: config[key] for key in expected}
    if found != expected:
        raise ValueError(
            f"{name!r} was trained with {found}, but SIZES has {expected}; train it again or put the shape back"
        )


def describe(args: Arguments, name: str) -> dict[str, Any]:
    """Shape, parameters and training facts of one size, from its files."""
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
        parameters = sum(int(np.prod(weights.get_slice(key).get_shape())) for key in weights.keys())  # noqa: SIM118
    return {
        "parameters": parameters,
        "shape": {key: config[key] for key in shape},
        "training": json.loads((folder / "training.json").read_text(encoding="utf-8")),
        "loss": loss_curve(folder),
    }


def probe_settings(args: Arguments) -> dict[str, Any]:
    """What a probe's result depends on, besides the model."""
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
    made_from = probe_settings(args) | {"shape": asdict(SIZES[name])}
    return stage(
        args.work / "card" / f"{name}.twin.json",
        made_from,
        lambda: measure_probe(args, name, trained=False),
    )


def measure(args: Arguments, name: str) -> dict[str, Any]:
    """Everything the card says about one size."""
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
    """Documents on either side of the split, and the length of the training stream in tokens."""
    counts: dict[str, Any] = {}
    for name in ("stories", "reviews"):
        total = len(read_rows(args.data / f"{name}.jsonl.gz"))
        held_out = len(read_rows(args.work / f"held_out_{name}.jsonl.gz"))
        counts[name] = {"training": total - held_out, "held_out": held_out}
    with safe_open(args.work / "stream.safetensors", framework="pt") as stream:
        counts["stream_tokens"] = int(np.prod(stream.get_slice("tokens").get_shape()))
    return counts


def bars(sizes: dict[str, Any]) -> list[Bar]:
    """What the family has to reach, for the sizes that are there."""
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


# --------------------------------------------------------------------------------------------- card


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table: first column to the left, numbers to the right."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def model_table(sizes: dict[str, Any]) -> str:
    header = [
        "size",
        "parameters",
        "d_model",
        "layers",
        "heads",
        "d_mlp",
        "training tokens",
        "Muon rate",
        "AdamW rate",
    ]
    rows = []
    for name, size in sizes.items():
        shape, training = size["shape"], size["training"]
        numbers = [
            shape[k]
            for k in (
                "hidden_size",
                "num_hidden_layers",
                "num_attention_heads",
                "intermediate_size",
            )
        ]
        rates = [f"{training['size'][key]:g}" for key in ("muon_lr", "adam_lr")]
        rows.append(
            [name, f"{size['parameters']:,}", *map(str, numbers), f"{training['tokens']:,}", *rates]
        )
    return table(header, rows)


def loss_table(sizes: dict[str, Any]) -> str:
    """About ten points of the longest curve; a size without that step gets a dash."""
    longest = max((size["loss"] for size in sizes.values()), key=len)
    chosen = [longest[i] for i in sorted({round(i) for i in np.linspace(0, len(longest) - 1, 10)})]
    losses = {
        name: {entry["step"]: entry["loss"] for entry in size["loss"]}
        for name, size in sizes.items()
    }
    rows = [
        [
            f"{entry['step']:,}",
            f"{entry['tokens']:,}",
            *(f"{of[entry['step']]:.3f}" if entry["step"] in of else "-" for of in losses.values()),
        ]
        for entry in chosen
    ]
    return table(["step", "tokens", *losses], rows)


def bits_table(sizes: dict[str, Any]) -> str:
    first = next(iter(sizes.values()))["bits_per_byte"]
    rows = [
        [
            register,
            f"{part['documents']:,}",
            f"{part['bytes']:,}",
            *(f"{s['bits_per_byte'][register]['bits_per_byte']:.4f}" for s in sizes.values()),
        ]
        for register, part in first.items()
    ]
    return table(["held-out", "documents", "bytes", *sizes], rows)


def probe_table(sizes: dict[str, Any]) -> str:
    rows = []
    for name, size in sizes.items():
        for label, part in ((name, size["probe"]), (f"{name}, untrained twin", size["twin"])):
            best = part["best"]
            low, high = best["interval"]
            scores = [
                f"{best['cross_validated_accuracy']:.4f}",
                f"**{best['accuracy']:.4f}**",
                f"{low:.4f} to {high:.4f}",
            ]
            rows.append([label, str(best["layer"]), f"{best['C']:g}", *scores])
    return table(["model", "best layer", "C", "cross-validated", "test", "95% interval"], rows)


def layer_table(sizes: dict[str, Any]) -> str:
    columns = {}
    for name, size in sizes.items():
        columns[name], columns[f"{name}, twin"] = size["probe"]["layers"], size["twin"]["layers"]
    deepest = max(map(len, columns.values()))
    cells = {
        name: [f"{row['accuracy']:.4f}" for row in rows] + ["-"] * (deepest - len(rows))
        for name, rows in columns.items()
    }
    rows = [
        [str(layer) if layer else "0 (embedding)", *(column[layer] for column in cells.values())]
        for layer in range(deepest)
    ]
    return table(["after block", *cells], rows)


def bar_table(rows: list[dict[str, Any]]) -> str:
    cells = [
        [
            r["name"],
            f"{r['value']:.4f}",
            f"{r['at_least']:.2f}",
            "pass" if r["passed"] else "**fail**",
            f"{r['margin']:+.4f}",
        ]
        for r in rows
    ]
    return table(["bar", "measured", "at least", "result", "by"], cells)


def samples_section(name: str, samples: list[dict[str, str]]) -> str:
    blocks = [f"### {name}"]
    for sample in samples:
        continuation = sample["text"].removeprefix(sample["opening"])
        quoted = "\n>\n> ".join(
            line for line in f"**{sample['opening']}**{continuation}".split("\n") if line.strip()
        )
        blocks.append(f"*{sample['register']}*\n\n> {quoted}")
    return "\n\n".join(blocks)


INTRODUCTION = """\
# The demo models of lrt_lens

A family of {count} small Llama-shaped language models ({names}) that read the same text in the same order through the same tokenizer
({vocabulary:,} byte-level BPE tokens, context {context}). They exist so that `lrt_lens` can fit, transfer and evaluate between a
smaller and a larger model of one family, offline and in seconds. Each folder loads with `AutoModelForCausalLM.from_pretrained`;
weights are bfloat16. The measurements below are those of the shipped weights, computed in float32 unless said otherwise."""

DATA = """\
## Data and licences

| what | training | held out | licence | shipped |
| --- | ---: | ---: | --- | --- |
| stories | {stories[training]:,} | {stories[held_out]:,} | by kind, see below | the held-out ones |
| film reviews | {reviews[training]:,} | {reviews[held_out]:,} | Large Movie Review Dataset: research use with citation | no |

Stories of the kind `tinystories` are from TinyStories (Eldan and Li, 2023), CDLA-Sharing-1.0; those of the kinds `child`, `bedtime`,
`campfire` and `story` are from github.com/erikhyrkas/snakes, MIT. The weights and this card are under the MIT licence. The film reviews
were used to train and to measure, and none is shipped. Cite them as Maas, Daly, Pham, Huang, Ng and Potts, *Learning Word Vectors for
Sentiment Analysis*, ACL 2011.

The side of the split is a hash of the document's own text, so identical documents are on one side.

`data/documents.jsonl.gz` is the harvest text, rows of `text`, `register` and `source`: {harvest[documents][story]:,} held-out stories
({harvest[characters][story]:,} characters; `source` is the kind) and {harvest[documents][review]:,} reviews
({harvest[characters][review]:,} characters) sampled from the {harvest[sampling][model]} model, which continued one of
{harvest[openings]} neutral openings (temperature {recipe[temperature]}, top-k {recipe[top_k]}, top-p {recipe[top_p]}, at most
{recipe[new_tokens]} new tokens). Dropped were {harvest[sampling][dropped_short]:,} samples under {shortest} characters and
{harvest[sampling][dropped_copies]:,} that shared {copy} or more characters in a row with any review of the data set, training or held-out
(lower case, single spaces). Rows are shuffled."""

TRAINING = """\
## Shape and training

{models}

Every size saw the {stream:,}-token training stream {passes:.2f} times, in steps of {rows} rows of {context} tokens, seed {seed}. Muon (RMS
matched to AdamW, weight decay 0.05) moved the hidden matrices, AdamW (betas 0.9 and 0.95, no decay) the embedding and the norms; peak rates
as above, 2% linear warm-up, then flat, linear to zero over the last 60% of the steps; gradient norm clipped at 1; bfloat16 autocast. Input
and output embedding are tied.

Reviews were cut at sentence ends into pieces of at most {piece} characters. **Half of the training pieces end in a line
`Verdict: positive` or `Verdict: negative`, which is the data set's label**: models this small otherwise learn film words long before they
learn opinion. The held-out reviews never carry that line, neither for bits per byte nor for the probes.

Training loss, nats per token, mean over the steps since the row of the log before (all points in `loss_curves.json`):

{losses}"""

RESULTS = """\
## Results

### Bars

{bars}

### Bits per byte

Bare held-out text after `<|endoftext|>`, windows of {context} tokens, every token after the first scored once.

{bits}

### Sentiment probe

Logistic regression on standardised mean residuals (first {probe_tokens} tokens of a review, without the first {skipped} positions of
each window of {context}; forward passes in {precision}), fitted on {fit:,} training reviews, tested on {test:,} held-out ones. Layer
and C have the best 3-fold cross-validated accuracy on the fit reviews; the test reviews choose nothing. The twin is the same network
before its first step; its interval, like the others, is Clopper-Pearson over the test reviews and does not cover the choice of the seed.

{probes}

Test accuracy of every layer (0 is the embedding, the last one is before the final norm):

{layers}"""

USE = """\
## Intended use and limits

For demonstrations, tests and teaching of representation transfer between two models: stitches, steering vectors, probes, sparse
autoencoders. The models write short English stories and film reviews and nothing else; they do not follow instructions, know no facts and
may repeat the prejudices and the wording of their training text. Do not use their reviews as opinions on films, or as people's.

- The labels were part of the training text, so the probe does not show that sentiment arises without supervision, only that the
  models represent it. The probe's fit reviews were among the training documents; its test reviews were not.
- The review register of the harvest text is the {largest} model's own writing: likelier for that model than real reviews are, and
  more so than for the other sizes.
- Sampled reviews may name real films and people and say false things about them; they can share up to {uncopied} characters in a row
  with a training review.
- Beyond {context} tokens the models were never trained."""


def card_data(card: dict[str, Any]) -> str:
    recipe = card["harvest_text"]["sampling"]["recipe"]
    return DATA.format(
        **card["data"],
        harvest=card["harvest_text"],
        recipe=recipe,
        shortest=SHORTEST_SAMPLE,
        copy=COPY_CHARACTERS,
    )


def card_training(card: dict[str, Any]) -> str:
    sizes, stream = card["sizes"], card["data"]["stream_tokens"]
    first = next(iter(sizes.values()))
    point, training = first["loss"][-1], first["training"]
    return TRAINING.format(
        models=model_table(sizes),
        losses=loss_table(sizes),
        stream=stream,
        passes=training["tokens"] / stream,
        rows=round(point["tokens"] / point["step"] / CONTEXT),
        seed=training["seed"],
        context=CONTEXT,
        piece=PIECE_CHARACTERS,
    )


def card_results(card: dict[str, Any]) -> str:
    sizes = card["sizes"]
    probe = next(iter(sizes.values()))["probe"]
    return RESULTS.format(
        bars=bar_table(card["bars"]),
        bits=bits_table(sizes),
        probes=probe_table(sizes),
        layers=layer_table(sizes),
        context=CONTEXT,
        probe_tokens=PROBE_TOKENS,
        skipped=SKIPPED_POSITIONS,
        fit=probe["fit_reviews"],
        precision=probe["precision"],
        test=probe["best"]["test_reviews"],
    )


def card_text(card: dict[str, Any]) -> str:
    """The model card in Markdown, with front matter."""
    sizes = card["sizes"]
    front = "---\nlicense: mit\nlanguage: en\nlibrary_name: transformers\npipeline_tag: text-generation\n---"
    introduction = INTRODUCTION.format(
        count=len(sizes), names=", ".join(sizes), vocabulary=VOCABULARY, context=CONTEXT
    )
    recipe = f"Temperature {CARD_RECIPE.temperature}, top-k {CARD_RECIPE.top_k}, {CARD_RECIPE.new_tokens} new tokens, cut at `{END_OF_TEXT}`"
    left_out = sum(
        len(STORY_OPENINGS) + len(REVIEW_OPENINGS) - len(size["samples"]) for size in sizes.values()
    )
    samples = f"## Samples\n\n{recipe}, seed {card['seed']}, not selected (left out as copies of a review: {left_out}); the opening is in bold."
    use = USE.format(
        largest=card["harvest_text"]["sampling"]["model"],
        uncopied=COPY_CHARACTERS - 1,
        context=CONTEXT,
    )
    sections = [
        front,
        introduction,
        card_data(card),
        card_training(card),
        card_results(card),
        use,
        samples,
    ]
    sections += [samples_section(name, size["samples"]) for name, size in sizes.items()]
    return "\n\n".join(sections) + "\n"


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def bundle(args: Arguments) -> dict[str, Any]:
    """Run the stages, copy the models and write the card; returns what ``card.json`` says."""
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
        raise SystemExit(
            f"--sizes has {unknown}, which are not in the family; choose from {list(SIZES)}"
        )
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
