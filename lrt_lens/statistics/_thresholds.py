"""Accuracy at the best threshold, which says what a misplaced threshold costs.

    best_threshold_accuracy(scores, truth)                # scores [item, class]
    threshold_flag(accuracy, best, remedy="…")            # "" unless the gap is large

Problem: a classifier whose scores are all shifted orders the items well (AUROC near 1) and calls
most of them by one class (accuracy near chance). Mechanism: add one number per class to the scores,
and take the numbers with the highest accuracy on the same items. For two classes that is the best
threshold, found exactly; for more, one class after the other is moved to its best place until
nothing improves.

Limits: the threshold is chosen on the items that it is judged on, so it is a diagnostic and no
result: on few items it is above what any threshold reaches on others.
"""

import numpy as np

from lrt_lens.statistics._intervals import Interval

LARGE_GAP = 0.05
"""Gap between the accuracy and that at the best threshold up to which there is no flag."""
_SWEEPS = 20
"""Largest number of rounds over the classes."""


def best_threshold_accuracy(scores: np.ndarray, truth: np.ndarray) -> float:
    """Return the highest accuracy that one added number per class gives on these items.

    Args:
        scores: one per item and class, [item, class]; the class with the largest is predicted.
            Logits and logarithms of probabilities are on the scale of a probe's bias.
        truth: number of the class of each item, [item].
    """
    moved = np.array(scores, dtype=float)
    best = int((moved.argmax(1) == truth).sum())
    # Of two classes one can stay: only the difference of their scores counts.
    free = [1] if moved.shape[1] == 2 else range(moved.shape[1])
    for _ in range(_SWEEPS):
        before = best
        for j in free:
            count, shift = _best_shift(moved, truth, j)
            if count > best:
                best, moved[:, j] = count, moved[:, j] + shift
        if best == before:
            break
    return best / len(truth)


def threshold_flag(accuracy: Interval, best: float, *, remedy: str) -> str:
    """Return the gap and its remedy if the best threshold is much better, else an empty text.

    The gap is large if it exceeds `LARGE_GAP` and the best accuracy is above the interval, because
    a threshold chosen on few items is always somewhat better on them.
    """
    gap = best - accuracy.value
    if not (gap > LARGE_GAP and best > accuracy.high):
        return ""
    return f"accuracy {accuracy.value:.3f}, {best:.3f} at the best threshold: {remedy}"


def _best_shift(scores: np.ndarray, truth: np.ndarray, j: int) -> tuple[int, float]:
    """Return the most correct items over all numbers added to class j, and the best number.

    An item is called j if the number exceeds its lead of the best other class over j.
    """
    others = scores.copy()
    others[:, j] = -np.inf
    lead = others.max(1) - scores[:, j]
    # Correct answers that an item adds when it becomes j: 1 if it is j, −1 if it was right before.
    gain = (truth == j).astype(int) - (truth == others.argmax(1)).astype(int)
    order = np.argsort(lead, kind="stable")
    ordered = lead[order]
    counts = int((truth == others.argmax(1)).sum()) + np.concatenate([[0], np.cumsum(gain[order])])
    # Cuts before the first item, between unequal neighbours, and behind the last one.
    cuts = np.concatenate([[ordered[0] - 1], (ordered[:-1] + ordered[1:]) / 2, [ordered[-1] + 1]])
    apart = np.concatenate([[True], ordered[1:] > ordered[:-1], [True]])
    at = int(np.argmax(np.where(apart, counts, -1)))
    return int(counts[at]), float(cuts[at])
