"""Questions about a behaviour with two answers, as the model-written evaluations keep them.

    items = behaviour_items("myopic-reward.jsonl", n=60)          # rows: question, answer_matching_behavior, answer_not_matching_behavior
    train, test = items.split(0.5)
    contrast = answer_contrast(train)                             # each question with either answer: what CAA learns a vector from

Perez et al. (arXiv 2212.09251) wrote the questions, Tan et al. (arXiv 2407.12404) made the suite
that LRT (§3.4) steers on. Answers are ``" Yes"``/``" No"`` or ``" (A)"``/``" (B)"``; of the latter
the closing bracket is dropped, so that the letter is the last token: the vector is read there
(CAA), and the propensity is the difference of two logits at one position, as in the paper.
"""

from pathlib import Path

import numpy as np

from lrt_lens.data._contrast import ChoiceItems, ContrastSet
from lrt_lens.data._documents import read_jsonl

QUESTION, MATCHING, OTHER = "question", "answer_matching_behavior", "answer_not_matching_behavior"
TEMPLATE = "{question}\n\nAnswer:"
"""How a question becomes a prompt; answers begin with a space."""


def behaviour_items(
    path: str | Path,
    *,
    name: str | None = None,
    n: int | None = None,
    seed: int = 0,
    template: str = TEMPLATE,
    drop: str = ")",
) -> ChoiceItems:
    """Items of one task: the question as prompt, the answer that shows the behaviour as the
    positive continuation.

    Args: path: a JSON Lines file, a row a question. name: of the task; the file's own by default.
        n: draw so many at random (files list one answer first); all where None or where there are
        fewer. seed: of the draw. template: text with the place ``{question}``. drop: characters
        taken off the end of both answers; ``""`` keeps them whole.

    Raises: ValueError: a row lacks a field, an answer is empty, both answers are the same (the line
        is named), or the template has no place.
    """
    if "{question}" not in template:
        raise ValueError(
            f"template {template!r} has no place for the question; write {{question}} where it goes"
        )
    rows = read_jsonl(path)
    if not rows:
        raise ValueError(
            f"{path} holds no item; give a file with a question and its two answers in every line"
        )
    for number, row in enumerate(rows, start=1):
        _check(row, f"{path}, line {number}")
    if n is not None and n < 1:
        raise ValueError(f"n is {n}; draw at least 1 item, or leave n out for all")
    chosen = np.random.default_rng(seed).permutation(len(rows))[:n]
    picked = [rows[int(i)] for i in chosen]
    return ChoiceItems(
        # Not `format`: questions hold braces of their own.
        prompts=[template.replace("{question}", row[QUESTION]) for row in picked],
        positive=[row[MATCHING].rstrip(drop) for row in picked],
        negative=[row[OTHER].rstrip(drop) for row in picked],
        name=name or Path(path).name.split(".")[0],
    )


def answer_contrast(items: ChoiceItems) -> ContrastSet:
    """Every prompt with its positive and with its negative continuation: read at the last token,
    this is CAA's contrast (and LRT's, §3).
    """
    sides = (
        [prompt + end for prompt, end in zip(items.prompts, ends, strict=True)]
        for ends in (items.positive, items.negative)
    )
    return ContrastSet(*sides, name=items.name)


def _check(row: object, where: str) -> None:
    fields = (QUESTION, MATCHING, OTHER)
    missing = [
        field
        for field in fields
        if not (isinstance(row, dict) and isinstance(row.get(field), str) and row[field].strip())
    ]
    if missing or not isinstance(row, dict):
        raise ValueError(
            f"{where} lacks {missing}; an item needs the texts {list(fields)}, an answer for either side"
        )
    if row[MATCHING].strip() == row[OTHER].strip():
        raise ValueError(
            f"{where} gives {row[MATCHING]!r} for both answers; a preference needs two different ones"
        )
