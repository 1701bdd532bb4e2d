"""Training and test texts of a probe evaluation: texts of one group are on one side.

Problem: the true and the false line of a pair, or the sentences of one story, are nearly equal; a
split that divides them lets a probe recognise the text instead of the class. Mechanism: with groups
the split draws whole groups (scikit-learn's ``GroupShuffleSplit``), and of many such splits takes
the one whose test texts have the classes most like those of all texts.

    train, test = split_texts(Labelled(texts, labels, groups), share=0.3, seed=0)

Limits: the share is one of groups; groups of very different sizes give another share of texts.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lrt_lens.adapters.probes._labels import (
    Label,
    check_labels,
    class_numbers,
    classes_of,
    group_numbers,
    plain_label,
)
from lrt_lens.models._reading import Readable

_N_SPLITS = 200
"""Number of splits by group of which one is taken."""


@dataclass(frozen=True)
class Labelled:
    """Texts with one label each, and the number of the group of each."""

    texts: list[str]
    """The texts."""
    labels: list[Label]
    """Label of each text."""
    groups: list[int] | None = None
    """Number of the group of each text; None if texts are independent of each other."""

    def __len__(self) -> int:
        return len(self.texts)

    @classmethod
    def of(
        cls, texts: Sequence[str], labels: Sequence[Any], groups: Sequence[Hashable] | None
    ) -> "Labelled":
        """Return texts, labels and groups in plain form.

        Raises:
            ValueError: not one label and one group per text, or labels of one class.
        """
        listed, labels = check_labels(texts, labels)
        numbers = group_numbers(groups, len(listed))
        plain = [plain_label(label) for label in labels]
        return cls(listed, plain, None if numbers is None else numbers.tolist())

    def select(self, index: np.ndarray) -> "Labelled":
        """Return some of the texts."""
        return self.read_by(Readable(index))

    def read_by(self, kept: Readable) -> "Labelled":
        """Return the texts that are read."""
        groups = None if self.groups is None else kept.of(self.groups)
        return Labelled(kept.of(self.texts), kept.of(self.labels), groups)


def separate_texts(
    train: tuple[Sequence[str], Sequence[Any], Sequence[Hashable] | None],
    test: tuple[Sequence[str] | None, Sequence[Any] | None, Sequence[Hashable] | None],
    *,
    share: float,
    seed: int,
) -> tuple[Labelled, Labelled]:
    """Return training and test texts; they are split if there are no test texts.

    Args:
        train: texts, labels and groups; the groups may be None.
        test: texts, labels and groups to test on, or None each.
        share: share of the texts (or groups) that are tested, if there are no test texts.
        seed: seed of the split.

    Raises:
        ValueError: labels or groups that do not fit the texts, or a group on both sides.
    """
    texts, labels, groups = train
    test_texts, test_labels, test_groups = test
    if (test_texts is None) != (test_labels is None):
        raise ValueError(
            "test_texts and test_labels come together; give both, or neither and test_share"
        )
    if test_texts is None or test_labels is None:
        if test_groups is not None:
            raise ValueError("test_groups need test_texts; without them give groups alone")
        return split_texts(Labelled.of(texts, labels, groups), share=share, seed=seed)
    if (groups is None) != (test_groups is None):
        raise ValueError(
            "groups and test_groups come together if there are test_texts; give both, or neither"
        )
    shared = sorted(
        {
            str(one)
            for one in set([] if groups is None else groups)
            & set([] if test_groups is None else test_groups)
        }
    )
    if shared:
        raise ValueError(
            f"groups {shared[:5]} have training and test texts; texts of one group are no "
            "independent test: put them on one side"
        )
    return Labelled.of(texts, labels, groups), Labelled.of(test_texts, test_labels, test_groups)


def split_texts(given: Labelled, *, share: float, seed: int) -> tuple[Labelled, Labelled]:
    """Return training and test texts, stratified by class, whole groups on one side.

    Raises:
        ValueError: a side would lack a class, or there are too few texts or groups.
    """
    classes, n = classes_of(given.labels), len(given)
    y = class_numbers(given.labels, classes)
    # Both sides need at least one text per class.
    n_test = round(share * n)
    if not 0 < share < 1 or min(n_test, n - n_test) < len(classes):
        raise ValueError(
            f"test_share is {share} of {n} texts; expected a share between 0 and 1 that "
            f"leaves {len(classes)} classes on both sides"
        )
    if (fewest := int(np.bincount(y).min())) < 2:
        raise ValueError(
            f"a class has {fewest} text; splitting needs 2 of each: give more texts, or test_texts "
            "and test_labels"
        )
    if given.groups is None:
        from sklearn.model_selection import train_test_split

        train, test = train_test_split(np.arange(n), test_size=share, random_state=seed, stratify=y)
    else:
        train, test = _split_groups(y, np.array(given.groups), share, seed)
    return given.select(np.asarray(train)), given.select(np.asarray(test))


def _split_groups(
    y: np.ndarray, groups: np.ndarray, share: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return indices of training and test texts, whole groups on one side."""
    from sklearn.model_selection import GroupShuffleSplit

    n_groups, n_classes = len(np.unique(groups)), int(y.max()) + 1
    if n_groups < 2:
        raise ValueError(
            f"all texts are of {n_groups} group; splitting needs 2 groups or more: give test_texts,"
            " test_labels and test_groups"
        )
    expected = np.bincount(y, minlength=n_classes) * share
    best, least = None, np.inf
    splits = GroupShuffleSplit(_N_SPLITS, test_size=share, random_state=seed)
    for train, test in splits.split(y, y, groups):
        counts = np.bincount(y[test], minlength=n_classes)
        has_all = counts.min() > 0 and len(np.unique(y[train])) == n_classes
        if has_all and (distance := float(np.abs(counts - expected).sum())) < least:
            best, least = (train, test), distance
    if best is None:
        raise ValueError(
            f"no split of {n_groups} groups at test_share={share} has texts of all {n_classes} "
            "classes on both sides; give more groups, or test_texts, test_labels and test_groups"
        )
    return best
