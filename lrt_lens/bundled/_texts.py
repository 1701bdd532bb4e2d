"""The texts of the bundled family, written for it or sampled from it, and free to redistribute.

Problem: examples need texts that the models can read and anybody may copy. Mechanism: they are
harvest documents in two registers (stories that the models were not trained on, and reviews sampled
from the large model), contrast sets, choice items that share no content word with the contrast
sets, prompts, and neutral texts.

    documents, contrast = demo_documents(), demo_contrast("sentiment")

Limits: English, with the small vocabulary of the bundled models.
"""

import json
from typing import Literal

from lrt_lens.bundled._models import DEMO_FOLDER
from lrt_lens.data._contrast import ChoiceItems, ContrastSet
from lrt_lens.data._document_files import read_records

Concept = Literal["sentiment", "mood"]
"""Name of a bundled concept."""
CONCEPTS: tuple[Concept, ...] = ("sentiment", "mood")
"""Concepts with a contrast set: sentiment of film reviews, happy or sad mood of stories."""

_DATA = DEMO_FOLDER / "data"
"""Folder of the texts."""


def demo_documents(register: Literal["story", "review"] | None = None) -> list[str]:
    """Return harvest documents of both registers, interleaved, or those of one register."""
    rows = [row for _, row in read_records(_DATA / "documents.jsonl.gz")]
    by_register = {
        name: [row["text"] for row in rows if row["register"] == name]
        for name in ("story", "review")
    }
    if register is not None:
        return by_register[register]
    # The next document comes from the register with fewer characters so far. A harvest that stops
    # after any number of tokens then has both registers in equal parts.
    stories, reviews = by_register["story"], by_register["review"]
    taken, out = {"story": 0, "review": 0}, []
    characters = dict.fromkeys(taken, 0)
    while taken["story"] < len(stories) and taken["review"] < len(reviews):
        name = min(characters, key=characters.__getitem__)
        text = by_register[name][taken[name]]
        taken[name] += 1
        characters[name] += len(text)
        out.append(text)
    return out + stories[taken["story"] :] + reviews[taken["review"] :]


def demo_domains() -> dict[str, list[str]]:
    """Return the harvest documents by kind of text: reviews, and five kinds of stories.

    Each kind has at least 150,000 tokens, enough for a map of its own, see `lrt.domain_matrix`.
    """
    domains: dict[str, list[str]] = {"review": []}
    for _, row in read_records(_DATA / "documents.jsonl.gz"):
        kind = "review" if row["register"] == "review" else row["source"]
        domains.setdefault(kind, []).append(row["text"])
    return domains


def demo_contrast(concept: Concept = "sentiment") -> ContrastSet:
    """Return pairs of texts that differ in the concept."""
    return ContrastSet.from_file(_DATA / f"{_known(concept)}_contrast.jsonl", name=concept)


def demo_texts(
    task: Literal["sentiment", "mood", "register"] = "sentiment", n: int = 400
) -> tuple[list[str], list[str]]:
    """Return texts and their labels, for fitting and evaluating probes.

    ``"sentiment"`` and ``"mood"`` give both sides of a contrast set, ``"register"`` the openings of
    stories and reviews. Those are the last of the harvest documents, so a harvest of fewer than
    200,000 tokens contains none of them.

    Raises:
        ValueError: there is no such task.
    """
    if task == "register":
        texts = {
            # [-(n // 2):] are the last documents: a harvest reads from the first ones on.
            register: [_opening(text) for text in demo_documents(register)[-(n // 2) :]]
            for register in ("story", "review")
        }
    else:
        contrast = demo_contrast(task)
        texts = {
            "positive": list(contrast.positive[: n // 2]),
            "negative": list(contrast.negative[: n // 2]),
        }
    # All texts of one label, then all of the other: splits must be stratified or shuffled.
    labelled = [(text, label) for label, column in texts.items() for text in column]
    return [text for text, _ in labelled], [label for _, label in labelled]


def _opening(text: str, words: int = 40) -> str:
    return " ".join(text.split()[:words])


def demo_items(concept: Concept = "sentiment") -> ChoiceItems:
    """Return choice items of a concept; they share no content word with its contrast set."""
    return ChoiceItems.from_file(_DATA / f"{_known(concept)}_items.jsonl", name=concept)


def demo_neutral() -> list[str]:
    """Return texts without opinion or mood, alternating between registers, to measure damage on."""
    rows = [row for _, row in read_records(_DATA / "neutral.jsonl")]
    # The file has all texts of one register, then all of the other.
    half = len(rows) // 2
    return [
        text
        for pair in zip(rows[:half], rows[half:], strict=False)
        for text in (pair[0]["text"], pair[1]["text"])
    ]


def demo_prompts(concept: Concept = "sentiment") -> list[str]:
    """Return beginnings of texts for the steered model to continue."""
    return json.loads((_DATA / "prompts.json").read_text(encoding="utf-8"))[_known(concept)]


def _known(concept: str) -> str:
    if concept not in CONCEPTS:
        raise ValueError(f"{concept!r} is no bundled concept; choose from {list(CONCEPTS)}")
    return concept
