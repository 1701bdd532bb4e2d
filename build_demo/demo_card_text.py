"""The model card of the demo models in Markdown, as a function of card.json."""

from dataclasses import asdict
from typing import Any

import numpy as np
from demo_settings import (
    CARD_RECIPE,
    COPY_CHARACTERS,
    PROBE_TOKENS,
    REVIEW_OPENINGS,
    SHORTEST_SAMPLE,
    SKIPPED_POSITIONS,
    STORY_OPENINGS,
)
from train_demo_models import CONTEXT, END_OF_TEXT, PIECE_CHARACTERS, VOCABULARY


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table with the first column aligned to the left and the others to the right."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def model_table(sizes: dict[str, Any]) -> str:
    """Shape, training tokens and peak learning rates of each size."""
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
    """Training loss at about ten steps of the longest run; a dash for a size without that step."""
    longest = max((size["loss"] for size in sizes.values()), key=len)
    points = [longest[i] for i in sorted({round(i) for i in np.linspace(0, len(longest) - 1, 10)})]
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
        for entry in points
    ]
    return table(["step", "tokens", *losses], rows)


def bits_table(sizes: dict[str, Any]) -> str:
    """Bits per byte of each size on held-out text."""
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
    """Accuracy of the best probe of each size and of its untrained twin."""
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
    """Test accuracy of the probe at every layer."""
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
    """The requirements with their measured values."""
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
    """The samples of one size as quotations, with the opening in bold."""
    blocks = [f"### {name}"]
    for sample in samples:
        continuation = sample["text"].removeprefix(sample["opening"])
        quoted = "\n>\n> ".join(
            line for line in f"**{sample['opening']}**{continuation}".split("\n") if line.strip()
        )
        blocks.append(f"*{sample['register']}*\n\n> {quoted}")
    return "\n\n".join(blocks)


FRONT_MATTER = """\
---
license: mit
language: en
library_name: transformers
pipeline_tag: text-generation
---"""

INTRODUCTION = """\
# The demo models of lrt_lens

A family of {count} small Llama-shaped language models ({names}) that were trained on the same text,
in the same order, with the same tokenizer ({vocabulary:,} byte-level BPE tokens, context
{context}). They exist so that `lrt_lens` can fit, transfer and evaluate between a smaller and a
larger model of one family, offline and in seconds. Each folder loads with
`AutoModelForCausalLM.from_pretrained`; weights are bfloat16. The measurements below are those of
the shipped weights, computed in float32 unless said otherwise."""

DATA = """\
## Data and licences

| what | training | held out | licence | shipped |
| --- | ---: | ---: | --- | --- |
| stories | {stories[training]:,} | {stories[held_out]:,} | by kind, see below | the held-out ones |
| film reviews | {reviews[training]:,} | {reviews[held_out]:,} \
| Large Movie Review Dataset: research use with citation | no |

Stories of the kind `tinystories` are from TinyStories (Eldan and Li, 2023), CDLA-Sharing-1.0; those
of the kinds `child`, `bedtime`, `campfire` and `story` are from github.com/erikhyrkas/snakes, MIT.
The weights and this card are under the MIT licence. The film reviews were used to train and to
measure, and none is shipped. Cite them as Maas, Daly, Pham, Huang, Ng and Potts, *Learning Word
Vectors for Sentiment Analysis*, ACL 2011.

A hash of the text of a document decides whether it is used for training or held out, so identical
documents are on the same side.

`data/documents.jsonl.gz` is the harvest text, rows of `text`, `register` and `source`:
{harvest[documents][story]:,} held-out stories ({harvest[characters][story]:,} characters; `source`
is the kind) and {harvest[documents][review]:,} reviews ({harvest[characters][review]:,} characters)
sampled from the {harvest[sampling][model]} model, which continued one of {harvest[openings]}
neutral openings (temperature {recipe[temperature]}, top-k {recipe[top_k]}, top-p {recipe[top_p]},
at most {recipe[new_tokens]} new tokens). {harvest[sampling][dropped_short]:,} samples under
{shortest} characters and {harvest[sampling][dropped_copies]:,} that shared {copy} or more
characters in a row with any review of the data set, training or held-out (lower case, single
spaces), were removed. Rows are shuffled."""

TRAINING = """\
## Shape and training

{models}

Each model was trained on {passes:.2f} passes of the {stream:,}-token training stream, in steps of
{rows} rows of {context} tokens, seed {seed}. Muon (RMS matched to AdamW, weight decay 0.05) updated
the hidden matrices, AdamW (betas 0.9 and 0.95, no decay) the embedding and the norms. The peak
rates are in the table. The schedule was 2% linear warm-up, then constant, then linear to zero over
the last 60% of the steps; gradient norm clipped at 1; bfloat16 autocast. Input and output embedding
are tied.

Reviews were cut at sentence ends into pieces of at most {piece} characters. **Half of the training
pieces end in a line `Verdict: positive` or `Verdict: negative`, which is the data set's label**:
models this small otherwise learn the vocabulary of films long before they learn opinion. The
held-out reviews never contain that line, neither for bits per byte nor for the probes.

Training loss, nats per token, mean over the steps since the previous row of the log (all points in
`loss_curves.json`):

{losses}"""

RESULTS = """\
## Results

### Bars

{bars}

### Bits per byte

Held-out text without a verdict line, after `<|endoftext|>`, windows of {context} tokens, every
token after the first scored once.

{bits}

### Sentiment probe

Logistic regression on standardised mean residuals (first {probe_tokens} tokens of a review, without
the first {skipped} positions of each window of {context}; forward passes in {precision}), fitted on
{fit:,} training reviews, tested on {test:,} held-out ones. Layer and C have the best 3-fold
cross-validated accuracy on the fit reviews; the test reviews take no part in that choice. The twin
is the same network before its first step; its interval, like the others, is Clopper-Pearson over
the test reviews and does not cover the choice of the seed.

{probes}

Test accuracy of every layer (0 is the embedding, the last one is before the final norm):

{layers}"""

USE = """\
## Intended use and limits

For demonstrations, tests and teaching of representation transfer between two models: stitches,
steering vectors, probes, sparse autoencoders. The models write short English stories and film
reviews and nothing else; they do not follow instructions, know no facts and may repeat the
prejudices and the wording of their training text. Do not use their reviews as opinions on films, or
as people's.

- The labels were part of the training text, so the probe does not show that sentiment arises
  without supervision, only that the models represent it. The probe's fit reviews were among the
  training documents; its test reviews were not.
- The review register of the harvest text is the {largest} model's own writing: likelier for that
  model than real reviews are, and more so than for the other sizes.
- Sampled reviews may name real films and people and say false things about them; they can share up
  to {uncopied} characters in a row with a training review.
- The models were not trained on more than {context} tokens of context."""


SAMPLES = """\
## Samples

Temperature {temperature}, top-k {top_k}, {new_tokens} new tokens, cut at `{end}`, seed {seed}, \
not selected
(left out as copies of a review: {n_omitted}); the opening is in bold."""


def card_data(card: dict[str, Any]) -> str:
    """The section on data and licences."""
    recipe = card["harvest_text"]["sampling"]["recipe"]
    return DATA.format(
        **card["data"],
        harvest=card["harvest_text"],
        recipe=recipe,
        shortest=SHORTEST_SAMPLE,
        copy=COPY_CHARACTERS,
    )


def card_training(card: dict[str, Any]) -> str:
    """The section on shape and training."""
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
    """The section on results."""
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
    introduction = INTRODUCTION.format(
        count=len(sizes), names=", ".join(sizes), vocabulary=VOCABULARY, context=CONTEXT
    )
    n_omitted = sum(
        len(STORY_OPENINGS) + len(REVIEW_OPENINGS) - len(size["samples"]) for size in sizes.values()
    )
    samples = SAMPLES.format(
        **asdict(CARD_RECIPE), end=END_OF_TEXT, seed=card["seed"], n_omitted=n_omitted
    )
    use = USE.format(
        largest=card["harvest_text"]["sampling"]["model"],
        uncopied=COPY_CHARACTERS - 1,
        context=CONTEXT,
    )
    sections = [
        FRONT_MATTER,
        introduction,
        card_data(card),
        card_training(card),
        card_results(card),
        use,
        samples,
    ]
    sections += [samples_section(name, size["samples"]) for name, size in sizes.items()]
    return "\n\n".join(sections) + "\n"
