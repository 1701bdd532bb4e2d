"""Questions about a behaviour with two answers, in the files of the model-written evaluations.

    items = behaviour_items("myopic-reward.jsonl", n=60)
    train, test = items.split(0.5)
    contrast = answer_contrast(train)        # each question with either answer, for a CAA vector

Each line of a file has the fields question, answer_matching_behavior and
answer_not_matching_behavior. The questions are from Perez et al. (arXiv 2212.09251); Tan et al.
(arXiv 2407.12404) made the suite from them that LRT (§3.4) steers on. Answers are
``" Yes"``/``" No"`` or ``" (A)"``/``" (B)"``. From the latter the closing bracket is removed, so
that the letter is the last token. CAA reads the vector there, and the propensity is the difference
of two logits at one position, as in the paper.
"""

from pathlib import Path
from typing import Any

import numpy as np

from lrt_lens.data._contrast import ChoiceItems, ContrastSet, refused_rows
from lrt_lens.data._document_files import read_records
from lrt_lens.errors import FileFormatError

QUESTION, MATCHING, OTHER = "question", "answer_matching_behavior", "answer_not_matching_behavior"
TEMPLATE = "{question}\n\nAnswer:"
"""Prompt for a question; answers begin with a space."""


def behaviour_items(
    path: str | Path,
    *,
    name: str | None = None,
    n: int | None = None,
    seed: int = 0,
    template: str = TEMPLATE,
    drop: str = ")",
) -> ChoiceItems:
    """Return the items of one task, with the question as prompt.

    The positive continuation is the answer that shows the behaviour.

    Args:
        path: a file with one question per row, in JSON Lines or another kind of table.
        name: name of the task; default: the file's name.
        n: number of items, drawn at random, because files list one answer first; None, or a number
            larger than the file's, takes all.
        seed: seed of the draw.
        template: a text that contains ``{question}``.
        drop: characters to remove from the end of both answers; ``""`` removes none.

    Raises:
        FileFormatError: the file is missing or damaged, a row lacks a field, an answer is empty, or
            both answers are equal; the message names the line.
        ValueError: the template does not contain ``{question}``, or ``n`` is below 1.
    """
    if "{question}" not in template:
        raise ValueError(
            f"template {template!r} has no place for the question; write {{question}} into it"
        )
    rows = read_records(path)
    if not rows:
        raise FileFormatError(
            f"{path} has no item; give a file with a question and its two answers in every line"
        )
    for where, row in rows:
        _check(row, where)
    if n is not None and n < 1:
        raise ValueError(f"n is {n}; draw at least 1 item, or leave n out for all")
    # With n = None the slice is the whole permutation.
    order = np.random.default_rng(seed).permutation(len(rows))[:n]
    drawn = [rows[int(index)][1] for index in order]
    with refused_rows(path):
        return ChoiceItems(
            # `replace` and not `format`, because questions contain braces too.
            prompts=[template.replace("{question}", row[QUESTION]) for row in drawn],
            positive=[row[MATCHING].rstrip(drop) for row in drawn],
            negative=[row[OTHER].rstrip(drop) for row in drawn],
            name=name or Path(path).name.split(".")[0],
        )


def answer_contrast(items: ChoiceItems) -> ContrastSet:
    """Return the prompts with their positive and with their negative continuations.

    Read at the last token, this is the contrast of CAA, and of LRT (§3).
    """
    positive, negative = (
        [prompt + end for prompt, end in zip(items.prompts, ends, strict=True)]
        for ends in (items.positive, items.negative)
    )
    return ContrastSet(positive, negative, name=items.name)


def _check(row: dict[str, Any], where: str) -> None:
    fields = (QUESTION, MATCHING, OTHER)
    missing = [
        field for field in fields if not (isinstance(row.get(field), str) and row[field].strip())
    ]
    if missing:
        raise FileFormatError(
            f"{where} lacks {missing}; an item needs a question and two answers: the texts"
            f" {list(fields)}"
        )
    if row[MATCHING].strip() == row[OTHER].strip():
        raise FileFormatError(
            f"{where} gives {row[MATCHING]!r} for both answers; an item needs two different ones"
        )
