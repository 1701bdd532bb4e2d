"""Labels of texts and tokens: which are classes, and whether there is one for each row.

    classes = classes_of(["happy", "sad", "happy"])        # ("happy", "sad")
    class_numbers(["sad", "happy"], classes)               # array([1, 0])

Problem: labels come as str, int, bool or scalars of numpy, for a text or for each of its tokens,
and a wrong number of them pairs texts with labels of other texts. Mechanism: every label becomes a
str or an int, and counts are compared before anything is fitted.

Limits: labels are classes; a number such as 0.3 is refused.
"""

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np

from lrt_lens.models._text_codec import column_list, text_list
from lrt_lens.statistics._bootstrap import label_numbers

Label = str | int
"""Class of a text or token."""


def plain_label(label: Any) -> Label:
    """The label as str or int, also if it is a numpy scalar.

    Raises:
        ValueError: the label has another type, for example a float such as NaN.
    """
    # numpy scalars have `item`, which returns the Python value.
    value = label.item() if hasattr(label, "item") else label
    if not isinstance(value, str | int):
        raise ValueError(
            f"a label is {value!r}, a {type(value).__name__}; expected str or int: drop the rows "
            "without a label, name the others"
        )
    # bool is a subclass of int, and True and 1 are the same class, but two values in JSON.
    return int(value) if isinstance(value, bool) else value


def classes_of(labels: Sequence[Label]) -> tuple[Label, ...]:
    """The distinct labels, sorted.

    Raises:
        ValueError: there is only one class, or str and int are mixed.
    """
    if len({type(label) for label in labels}) > 1:
        raise ValueError("labels mix str and int; give all of one kind")
    classes = sorted(set(labels))
    if len(classes) < 2:
        raise ValueError(
            f"all {len(labels)} labels are {classes[0]!r}; a probe needs texts of at least two "
            "classes"
        )
    return tuple(classes)


def class_numbers(labels: Sequence[Label], classes: Sequence[Label]) -> np.ndarray:
    """Index of each label in ``classes``, [row].

    Raises:
        ValueError: a label is not among the classes.
    """
    number = {label: i for i, label in enumerate(classes)}
    unknown = sorted({str(label) for label in labels if label not in number})
    if unknown:
        raise ValueError(
            f"labels {unknown[:5]} are not among the probe's classes {list(classes)}; relabel the "
            "texts or leave them out"
        )
    return np.array([number[label] for label in labels])


def label_list(labels: Any) -> list[Any]:
    """Labels as a list, by position; labels by token are lists in it.

    A list, a tuple, an array, a tensor, a Series (whatever its index) and a column are labels.

    Raises:
        TypeError: ``labels`` is a table, a dict or a set.
    """
    # Arrays and tensors of labels by token become lists; scalars stay.
    return [
        one.tolist() if getattr(one, "ndim", 0) or hasattr(one, "iloc") else one
        for one in column_list(labels, "labels")
    ]


def check_labels(
    texts: Iterable[str], labels: Any, *, every: bool = False, two: bool = True
) -> tuple[list[str], list[Any]]:
    """Texts and labels as lists, each text with one label.

    Args:
        texts: the texts.
        labels: their labels.
        every: True if a label may be a list with one label per token.
        two: True if at least two classes are required.

    Raises:
        TypeError: one of both is a table, a dict or a set.
        ValueError: the numbers differ, a label is a list without ``every``, or there is one class.
    """
    listed, labels = text_list(texts), label_list(labels)
    if isinstance(texts, str) or len(listed) != len(labels):
        raise ValueError(
            f"{len(listed)} text(s) and {len(labels)} label(s); give one label per text"
        )
    lists = [i for i, label in enumerate(labels) if isinstance(label, list | tuple)]
    if lists and not every:
        raise ValueError(f"label {lists[0]} is a list; labels by token need read='every'")
    # The number of labels by token can be checked only when the tokens are known: `token_labels`.
    if two and not lists:
        classes_of([plain_label(label) for label in labels])
    return listed, labels


def group_numbers(groups: Sequence[Hashable] | None, n: int) -> np.ndarray | None:
    """Number of the group of each text, from 0 in the order of first appearance; None without any.

    Raises:
        ValueError: not one group for each of the ``n`` texts.
    """
    if groups is None:
        return None
    groups = column_list(groups, "groups")
    if len(groups) != n:
        raise ValueError(
            f"{len(groups)} group(s) and {n} text(s); give one "
            "group per text, such as the number of the pair that it belongs to"
        )
    # Scalars of numpy are equal to the numbers they hold, and so are their groups.
    return label_numbers(groups)


def token_labels(labels: Sequence[Any], counts: Sequence[int]) -> list[Label]:
    """One label per token: the label of its text, or its entry in a list of labels of the text.

    Raises:
        ValueError: a list has another length than the text has unmasked tokens.
    """
    by_token: list[Label] = []
    for index, (label, count) in enumerate(zip(labels, counts, strict=True)):
        if not isinstance(label, list | tuple):
            by_token += [plain_label(label)] * count
            continue
        if len(label) != count:
            raise ValueError(
                f"text {index} has {count} unmasked tokens and {len(label)} labels; give one for "
                "each, or one for the text"
            )
        by_token += [plain_label(one) for one in label]
    return by_token
