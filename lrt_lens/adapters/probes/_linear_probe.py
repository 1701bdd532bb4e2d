"""Linear probes: fitted on labelled texts, transferred by a stitch, applied to other texts.

    probe = LinearProbe.fit(pair.source, texts, labels, at="blocks.3.hook_resid_post", read="mean")
    transferred = stitch.transfer(probe)                 # needs no label of the target
    transferred.accuracy(pair.target, texts, labels)

Problem: a probe needs labels in every model that it reads, and labels are expensive. Mechanism: a
probe is a logistic regression on activations, ``softmax(x w + c)``, or a sigmoid for two classes.
A transferred probe reads the mapped state ``down(y) = y W + b``: its weights are ``w' = W w`` and
``c' = c + b·w`` (Stitching, arXiv 2506.06609, §4), which is exact and needs no fitting. Reading a
position, the mean, or every token on its own commutes with the affine map. The maximum over tokens
does not: a probe with ``read="max"`` keeps its weights, stores the map in ``before``, and reads the
maximum over tokens of the *mapped* states, which is exact too.

Limits: positions are those of one tokenizer. The first ``skip_first`` tokens and special tokens are
excluded from pooling, on both models.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lrt_lens._files import json_fields, read_tensors, refuse_other_fields, write_tensors
from lrt_lens._repr_html import card, facts
from lrt_lens.adapters._earlier_files import in_current_form
from lrt_lens.adapters.probes._logistic import (
    N_FOLDS,
    PENALTIES,
    Logistic,
    fit_logistic,
    fit_towards,
    probabilities,
)
from lrt_lens.errors import FileFormatError, NonFiniteError
from lrt_lens.models._belonging import Origin, refuse_other_reader, stored_identity
from lrt_lens.models._hook_points import resolve
from lrt_lens.models._hooked_model import (
    EveryRead,
    HookedModel,
    load_model,
    read_activations,
    read_tokens,
)
from lrt_lens.models._identity import ModelIdentity
from lrt_lens.models._loading import ModelLike
from lrt_lens.models._text_reader import SKIP_FIRST
from lrt_lens.stitching._affine import AffineMap
from lrt_lens.stitching._stitch_data import StitchData, transfer_artefact

PROBE_SCHEMA = "lrt_lens.probe/1"
"""Schema version of a file; another one is refused."""

Label = str | int
"""Class of a text or token."""


@dataclass(frozen=True)
class LinearFits:
    """Functions that fit one kind of linear classifier, with the signatures of logistic regression.

    They return weight and bias as `Logistic`. Its probabilities are a sigmoid or softmax of the
    logits, whatever was fitted.
    """

    fit: Callable[..., Logistic]
    """Fit from labels alone, as `fit_logistic`."""
    fit_towards: Callable[..., Logistic]
    """Fit from few labels, shrunk to another classifier, as `fit_towards`."""


METHODS = {"logistic_regression": LinearFits(fit_logistic, fit_towards)}
"""Kinds of classifier by `LinearProbe.method`; `evaluate_probe` fits its arms with the probe's."""


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """Linear classifier on the stream at one hook point of one model."""

    weight: Float[Tensor, "d column"]
    """Weights: one column for two classes (the logit of the second), else one per class, [d,
    column]."""
    bias: Float[Tensor, " column"]
    """Biases c of the logits x w + c, [column]."""
    classes: tuple[Label, ...]
    """Classes in the order of the probabilities."""
    hook: str
    """Hook point at which the probe was fitted, or to which it was transferred."""
    model: ModelIdentity | None = None
    """Model that the probe belongs to; None for a probe of unknown origin."""
    read: EveryRead = "last"
    """Position of a text that is read; ``"every"`` reads each unmasked token on its own."""
    name: str = "probe"
    """Name in tables and figures."""
    method: str = "given"
    """How it was fitted, such as ``"logistic_regression"``."""
    transferred_by: Literal["stitch"] | None = None
    """Kind of map that transferred it to this model; None for a probe that was fitted on it."""
    corpus: str = ""
    """Hash of the texts and labels on which it was fitted."""
    penalty: float = float("nan")
    """Penalty λ of the fit, for standardised features and the mean cross-entropy."""
    skip_first: int = SKIP_FIRST
    """Number of first positions of a text that pooling leaves out, as in the fit of a map."""
    before: AffineMap | None = None
    """Map applied to every token before pooling; only for ``read="max"``."""

    def __post_init__(self) -> None:
        # Two classes need one logit, that of the second class.
        columns = 1 if len(self.classes) == 2 else len(self.classes)
        if (
            self.weight.ndim != 2
            or self.weight.shape[1] != columns
            or self.bias.shape != (columns,)
            or len(self.classes) < 2
        ):
            raise ValueError(
                f"weight {tuple(self.weight.shape)} and bias {tuple(self.bias.shape)} do not fit "
                f"{len(self.classes)} class(es); expected at least two classes, with [d, 1] and "
                "[1] for two, or [d, class] and [class] for more"
            )
        if not (torch.isfinite(self.weight).all() and torch.isfinite(self.bias).all()):
            raise NonFiniteError(
                f"probe {self.name!r} at {self.hook!r} holds NaN or infinity; fit it again on "
                "finite activations"
            )

    # -------------------------------------------------------------------------------------- fitting

    @classmethod
    def fit(
        cls,
        model: ModelLike,
        texts: Sequence[str],
        labels: Sequence[Any],
        *,
        at: int | str,
        read: EveryRead = "last",
        penalties: tuple[float, ...] = PENALTIES,
        n_folds: int = N_FOLDS,
        skip_first: int = SKIP_FIRST,
        name: str = "probe",
        method: str = "logistic_regression",
        seed: int = 0,
    ) -> "LinearProbe":
        """Probe fitted on labelled texts, by default by scikit-learn's logistic regression.

        `lrt_lens.adapters.probes._logistic` gives the objective.

        Args:
            model: model on which the probe is fitted.
            texts: one row per text, or one per token with ``read="every"``.
            labels: one per text, str or int, of at least two classes. With ``read="every"`` a label
                of a text counts for all its tokens, and a list gives one label per unmasked token.
            at: hook point.
            read: ``"last"`` token, ``"mean"`` or ``"max"`` over unmasked tokens, ``"every"``
                unmasked token, or a position.
            penalties: candidates for λ, chosen over stratified folds; a text stays in one fold.
            n_folds: number of these folds.
            skip_first: number of first positions that are masked.
            name: name of the probe, such as the concept that it classifies.
            method: kind of classifier, a key of ``METHODS``.
            seed: seed of the folds.

        Raises:
            ValueError: an unknown method, labels of one class, or not one label per text (or
                token).
            NonFiniteError: activations are NaN or infinite.
        """
        if method not in METHODS:
            raise ValueError(f"method is {method!r}; expected one of {sorted(METHODS)}")
        hooked = load_model(model)
        hook = resolve(at, hooked)
        check_labels(texts, labels, every=read == "every")
        rows, counts = read_rows(hooked, texts, hook, read, skip_first)
        row_labels = _row_labels(labels, counts, read)
        # Tokens of one text are dependent, so they stay in one fold.
        groups = np.repeat(np.arange(len(texts)), counts) if read == "every" else None
        options = {"penalties": penalties, "n_folds": n_folds, "seed": seed}
        fit, classes = fit_rows(rows, row_labels, method=method, groups=groups, **options)
        return cls(
            weight=torch.from_numpy(fit.weight),
            bias=torch.from_numpy(fit.bias),
            classes=classes,
            hook=hook,
            model=hooked.identity,
            read=read,
            name=name,
            method=method,
            corpus=_digest(texts, row_labels),
            penalty=fit.penalty,
            skip_first=skip_first,
        )

    # -------------------------------------------------------------------------------------- reading

    def rows(self, model: ModelLike, texts: Sequence[str]) -> tuple[Tensor, list[int]]:
        """Return the rows [row, d] that the weights multiply, and the number of rows per text.

        The rows are float64.

        Raises:
            MismatchError: the probe belongs to another model.
        """
        hooked = load_model(model)
        self.refuse_other_model(hooked)
        return read_rows(hooked, texts, self.hook, self.read, self.skip_first, self.before)

    def logits(self, rows: Tensor) -> np.ndarray:
        """Logits of rows that have been read, [row, d] → [row, column], float64."""
        # x w + c, on the device of the rows
        weight, bias = (part.double().to(rows.device) for part in (self.weight, self.bias))
        return (rows.double() @ weight + bias).cpu().numpy()

    def predict_proba(self, model: ModelLike, texts: Sequence[str]) -> Any:
        """Probabilities [text, class]; with ``read="every"`` a list of [token, class] per text."""
        rows, counts = self.rows(model, texts)
        p = probabilities(self.logits(rows))
        # The cumulative counts are the row numbers at which texts end.
        return np.split(p, np.cumsum(counts)[:-1]) if self.read == "every" else p

    def predict(self, model: ModelLike, texts: Sequence[str]) -> Any:
        """Most likely class of each text; with ``read="every"`` a list of classes per text."""
        p = self.predict_proba(model, texts)
        if self.read == "every":
            return [[self.classes[i] for i in part.argmax(1)] for part in p]
        return [self.classes[i] for i in p.argmax(1)]

    def accuracy(self, model: ModelLike, texts: Sequence[str], labels: Sequence[Any]) -> float:
        """Share of texts (tokens with ``read="every"``) whose most likely class is their label."""
        p, truth = self._predictions(model, texts, labels)
        return float((p.argmax(1) == truth).mean())

    def auroc(self, model: ModelLike, texts: Sequence[str], labels: Sequence[Any]) -> float:
        """Area under the ROC curve; for several classes the mean of each class against the others.

        Raises:
            ValueError: a class does not occur among the labels.
        """
        from sklearn.metrics import roc_auc_score

        p, truth = self._predictions(model, texts, labels)
        present = set(truth.tolist())
        missing = [name for i, name in enumerate(self.classes) if i not in present]
        if missing:
            raise ValueError(
                f"no text is labelled {missing}; an AUROC needs texts of every class, "
                f"{list(self.classes)}"
            )
        # Of two classes, each against the other has the same AUROC.
        if len(self.classes) == 2:
            return float(roc_auc_score(truth, p[:, 1]))
        return float(
            np.mean([roc_auc_score(truth == i, p[:, i]) for i in range(len(self.classes))])
        )

    def _predictions(
        self, model: ModelLike, texts: Sequence[str], labels: Sequence[Any]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return probabilities [row, class] and true class numbers [row]."""
        # Texts of one class can be scored too, so two classes are not required here.
        check_labels(texts, labels, every=self.read == "every", two=False)
        rows, counts = self.rows(model, texts)
        truth = class_numbers(_row_labels(labels, counts, self.read), self.classes)
        return probabilities(self.logits(rows)), truth

    def refuse_other_model(self, model: HookedModel) -> None:
        """Raise `MismatchError` unless this probe belongs to ``model``."""
        refuse_other_reader(self.origin, model.identity, "read")

    @property
    def origin(self) -> Origin:
        """Hook point, model and width that the probe belongs to."""
        return Origin(f"probe {self.name!r}", self.hook, self.model, self.d_model, "was fitted")

    @property
    def d_model(self) -> int:
        """Width of the residual stream that the probe reads."""
        # A probe with a map has weights for the source's width, but reads the target's.
        return len(self.weight) if self.before is None else len(self.before.weight)

    def __repr__(self) -> str:
        model = f" of {self.model.name}" if self.model else ""
        more = " …" if len(self.classes) > 4 else ""
        classes = f"{len(self.classes)} classes {list(self.classes[:4])}{more}"
        return f"LinearProbe({self.name!r} at {self.hook}{model}, {classes}, {self._origin})"

    @property
    def transferred(self) -> bool:
        """Return True if the probe was transferred to its model, False if it was fitted on it."""
        return self.transferred_by is not None

    @property
    def _origin(self) -> str:
        """Text for tables: method, read position, and how it came to this model."""
        mapped = " of mapped states" if self.before is not None else ""
        transferred = ", transferred" if self.transferred else ""
        return f"{self.method}, read {self.read}{mapped}{transferred}"

    def _repr_html_(self) -> str:
        entries = {
            "name": self.name,
            "hook point": self.hook,
            "model": self.model.name if self.model else None,
            "classes": ", ".join(map(str, self.classes)),
            "method": self._origin,
            "penalty": None if math.isnan(self.penalty) else self.penalty,
            "dimensions": len(self.weight),
        }
        return card("LinearProbe", facts(entries))

    # ---------------------------------------------------------------------------------------- files

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file and return its path."""
        tensors = {"weight": self.weight, "bias": self.bias}
        if self.before is not None:
            tensors |= {"before/weight": self.before.weight, "before/bias": self.before.bias}
        hooks = None if self.before is None else [self.before.source_hook, self.before.target_hook]
        # Tensors and the map are stored as tensors, all other fields as JSON.
        fields = {
            key: value
            for key, value in asdict(replace(self, before=None)).items()
            if key not in ("weight", "bias", "before")
        }
        metadata = {"schema_version": PROBE_SCHEMA, "probe": json.dumps(fields | {"before": hooks})}
        return write_tensors(Path(path), tensors, metadata)

    @classmethod
    def load(cls, path: str | Path) -> "LinearProbe":
        """Probe from a file that `save` wrote.

        Raises:
            FileFormatError: the file is no probe, or is damaged.
        """
        tensors, metadata = read_tensors(Path(path), PROBE_SCHEMA)
        fields = json_fields(Path(path), metadata, "probe")
        fields = refuse_other_fields(
            Path(path), cls, in_current_form(fields), others=("weight", "bias")
        )
        hooks = fields.pop("before", None)
        # A probe that reads maxima stores its map too.
        needed = {"weight", "bias"} | ({"before/weight", "before/bias"} if hooks else set())
        if not needed <= tensors.keys():
            raise FileFormatError(
                f"{str(path)!r} holds no {sorted(needed - tensors.keys())}, which every probe file "
                "has; save the probe again"
            )
        fields["model"] = stored_identity(Path(path), fields.get("model"))
        fields["classes"] = tuple(fields["classes"])
        before = (
            AffineMap(tensors["before/weight"], tensors["before/bias"], *hooks) if hooks else None
        )
        return cls(weight=tensors["weight"], bias=tensors["bias"], before=before, **fields)


@transfer_artefact.register
def transfer_probe(
    probe: LinearProbe, stitch: StitchData, *, through: AffineMap | None = None
) -> LinearProbe:
    """Probe transferred to the stitch's target: ``w' = W_down w``, ``c' = c + b_down·w``.

    With ``read="max"`` the weights stay, and the probe reads states mapped by ``W_down, b_down``.

    Args:
        probe: a probe fitted at the stitch's source hook point.
        stitch: the stitch.
        through: another map from the target's to the source's hook point, for controls, such as
            the map of shuffled pairs.

    Raises:
        MismatchError: the probe does not belong to the stitch's source, or the map does not lead
            from the stitch's target to its source.

    Source: Stitching (arXiv 2506.06609), §4.
    """
    stitch.refuse_foreign(probe.origin)
    if through is not None:
        stitch.refuse_other_map("through=", through, down=True)
    return probe_through(
        probe, stitch.down if through is None else through, stitch.target_hook, stitch.target
    )


def probe_through(
    probe: LinearProbe, down: AffineMap, hook: str, model: ModelIdentity | None
) -> LinearProbe:
    """Return a probe that reads states at ``hook`` of ``model``, mapped by ``down``.

    Nothing is compared: `transfer_probe` checks its arguments.
    """
    transferred = replace(probe, hook=hook, model=model, transferred_by="stitch")
    if probe.read == "max":
        # max over tokens does not commute with the map, so tokens are mapped before pooling.
        before = down if probe.before is None else down.compose(probe.before)
        return replace(transferred, before=before)
    # (y W + b) w + c = y (W w) + (c + b·w)
    weight, bias = probe.weight.double(), probe.bias.double()
    down_weight, down_bias = down.weight.to(weight), down.bias.to(weight)
    return replace(transferred, weight=down_weight @ weight, bias=bias + down_bias @ weight)


# --------------------------------------------------------------------------------------------- rows


def read_rows(
    model: HookedModel,
    texts: Sequence[str],
    hook: str,
    read: EveryRead,
    skip_first: int = SKIP_FIRST,
    before: AffineMap | None = None,
) -> tuple[Tensor, list[int]]:
    """Return rows [row, d] in float64 and the number of rows of each text.

    There is one row per text, or with ``read="every"`` one per unmasked token, texts in order.
    ``before`` maps every token before it is pooled.
    """
    if read == "every":
        tokens = dict(read_tokens(model, texts, hook, skip_first=skip_first))
        counts = [len(tokens[i]) for i in range(len(texts))]
        return torch.cat([tokens[i] for i in range(len(texts))]).double(), counts
    # float64, in which the map is applied before pooling.
    through = None if before is None else lambda rows: before.points(rows.double())
    rows = read_activations(model, texts, hook, read, skip_first=skip_first, through=through)
    return rows.double(), [1] * len(texts)


def fit_rows(
    rows: Tensor,
    labels: Sequence[Label],
    *,
    method: str = "logistic_regression",
    groups: np.ndarray | None = None,
    **options: Any,
) -> tuple[Logistic, tuple[Label, ...]]:
    """Return the classifier and the classes of rows with one label each.

    ``method`` is a key of ``METHODS``; ``options`` are those of `fit_logistic`.
    """
    classes = classes_of(labels)
    x, y = rows.cpu().double().numpy(), class_numbers(labels, classes)
    return METHODS[method].fit(x, y, len(classes), groups=groups, **options), classes


# ------------------------------------------------------------------------------------------- labels


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


def check_labels(
    texts: Sequence[str], labels: Sequence[Any], *, every: bool = False, two: bool = True
) -> None:
    """Raise a ValueError unless each text has one label.

    Args:
        texts: the texts.
        labels: their labels.
        every: True if a label may be a list with one label per token.
        two: True if at least two classes are required.
    """
    if isinstance(texts, str) or len(texts) != len(labels):
        raise ValueError(
            f"{1 if isinstance(texts, str) else len(texts)} text(s) and {len(labels)} label(s); "
            "give one label per text"
        )
    lists = [i for i, label in enumerate(labels) if isinstance(label, list | tuple)]
    if lists and not every:
        raise ValueError(f"label {lists[0]} is a list; labels by token need read='every'")
    # The number of labels by token can be checked only when the tokens are known: `token_labels`.
    if two and not lists:
        classes_of([plain_label(label) for label in labels])


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


def _row_labels(labels: Sequence[Any], counts: Sequence[int], read: EveryRead) -> list[Label]:
    """One label per row: per token with ``read="every"``, else per text."""
    if read == "every":
        return token_labels(labels, counts)
    return [plain_label(label) for label in labels]


def _digest(texts: Sequence[str], labels: Sequence[Label]) -> str:
    # JSON separates texts and labels, which a concatenation does not.
    content = json.dumps([list(texts), list(labels)])
    return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()
