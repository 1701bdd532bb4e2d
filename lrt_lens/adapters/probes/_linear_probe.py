"""Linear probes: learnt from labelled texts, carried by a stitch, asked about other texts.

    probe = LinearProbe.fit(pair.source, texts, labels, at="blocks.3.hook_resid_post", read="mean")
    moved = stitch.transfer(probe)                       # no label of the target is needed
    moved.accuracy(pair.target, texts, labels)

A probe is logistic regression on activations: ``softmax(x w + c)``, a sigmoid for two classes.
Carried over it reads the mapped state ``down(y) = y W + b``: ``w' = W w``, ``c' = c + b·w``
(Stitching §4 reads the same; design §4), which is exact, not fitted. Reading at a position, the
mean and every token on its own commute with the affine map. The maximum over tokens does not: a
probe with ``read="max"`` keeps its weights and the map (``before``), and reads the maximum over
tokens of the *mapped* states; that too is exact.

Limits: positions are those of one tokenizer; the first ``skip_first`` and special tokens take no
part in pooling, on either side.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lrt_lens._files import read_tensors, write_tensors
from lrt_lens._repr_html import card, facts
from lrt_lens.adapters.probes._logistic import (
    N_FOLDS,
    PENALTIES,
    Logistic,
    fit_logistic,
    probabilities,
)
from lrt_lens.errors import FileFormatError, MismatchError, NonFiniteError
from lrt_lens.models._hook_points import resolve
from lrt_lens.models._hooked_model import SKIP_FIRST, HookedModel, load_model
from lrt_lens.models._identity import ModelIdentity
from lrt_lens.models._loading import ModelLike
from lrt_lens.models._reading import EveryRead, read_activations, read_tokens
from lrt_lens.stitching._affine import AffineMap
from lrt_lens.stitching._stitch import Stitch, transfer_artefact

PROBE_SCHEMA = "lrt_lens.probe/1"

Label = str | int


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """Logistic regression on the stream at one hook point of one model."""

    weight: Float[Tensor, "d column"]
    """[d, column]: one column for two classes (the logit of the second), else one a class."""
    bias: Float[Tensor, " column"]
    """[column]."""
    classes: tuple[Label, ...]
    """What the probabilities are of, in order."""
    hook: str
    """Where it was learnt, or where it was carried to."""
    model: ModelIdentity | None = None
    """The model it belongs to; None for a probe of unknown origin."""
    read: EveryRead = "last"
    """Where a text is read; ``"every"``: each unmasked token on its own."""
    name: str = "probe"
    method: str = "given"
    corpus: str = ""
    """Hash of the texts and labels that it was learnt from."""
    penalty: float = float("nan")
    """λ that was chosen, for standardised features and the mean cross-entropy."""
    skip_first: int = SKIP_FIRST
    """First positions of a text that take no part in pooling: the map never saw them."""
    before: AffineMap | None = None
    """Acts on every token before it is pooled; only for ``read="max"``, with which an affine map
    does not commute.
    """

    def __post_init__(self) -> None:
        columns = 1 if len(self.classes) == 2 else len(self.classes)
        if (
            self.weight.ndim != 2
            or self.weight.shape[1] != columns
            or self.bias.shape != (columns,)
            or len(self.classes) < 2
        ):
            raise ValueError(
                f"weight {tuple(self.weight.shape)} and bias {tuple(self.bias.shape)} do not fit {len(self.classes)} class(es); expected at least "
                "two classes, [d, 1] and [1] for two, [d, class] and [class] for more"
            )
        if not (torch.isfinite(self.weight).all() and torch.isfinite(self.bias).all()):
            raise NonFiniteError(
                f"probe {self.name!r} at {self.hook!r} holds NaN or infinity; learn it again from finite activations"
            )

    # ------------------------------------------------------------------------------------- learning

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
        seed: int = 0,
    ) -> "LinearProbe":
        """A probe learnt from labelled texts by scikit-learn's logistic regression; see
        `lrt_lens.adapters.probes._logistic` for the objective.

        Args: model: where it is learnt. texts: one row each, or one a token with ``read="every"``.
            labels: one a text, str or int, of at least two classes. With ``read="every"`` each
            token has its text's, or give a list of labels
                for each text, one an unmasked token.
            at: hook point.
            read: last token, mean or maximum over unmasked tokens, every such token, or a position.
            penalties: λ to choose from, over stratified folds that keep each text whole.
            n_folds: of that choice.
            skip_first: first positions that are masked.
            name: what it is about.
            seed: of the folds.

        Raises:
            ValueError: labels of one class, or as many as there are texts they are not.
            NonFiniteError: activations with NaN.
        """
        hooked = load_model(model)
        hook = resolve(at, hooked)
        check_labels(texts, labels, every=read == "every")
        rows, counts = read_rows(hooked, texts, hook, read, skip_first)
        given = (
            token_labels(labels, counts)
            if read == "every"
            else [plain_label(label) for label in labels]
        )
        groups = np.repeat(np.arange(len(texts)), counts) if read == "every" else None
        found, classes = fit_rows(
            rows, given, groups=groups, penalties=penalties, n_folds=n_folds, seed=seed
        )
        return cls(
            weight=torch.from_numpy(found.weight),
            bias=torch.from_numpy(found.bias),
            classes=classes,
            hook=hook,
            model=hooked.identity,
            read=read,
            name=name,
            method="logistic_regression",
            corpus=_digest(texts, given),
            penalty=found.penalty,
            skip_first=skip_first,
        )

    # -------------------------------------------------------------------------------------- reading

    def rows(self, model: ModelLike, texts: Sequence[str]) -> tuple[Tensor, list[int]]:
        """(what the weights act on, [row, d] in float64; rows of each text), read on a model that
        must be the probe's.
        """
        hooked = load_model(model)
        self.refuse_other_model(hooked)
        return read_rows(hooked, texts, self.hook, self.read, self.skip_first, self.before)

    def logits(self, rows: Tensor) -> np.ndarray:
        """[row, column] in float64 of rows that are read already."""
        return (
            (
                rows.double() @ self.weight.double().to(rows.device)
                + self.bias.double().to(rows.device)
            )
            .cpu()
            .numpy()
        )

    def predict_proba(self, model: ModelLike, texts: Sequence[str]) -> Any:
        """Probabilities [text, class]; with ``read="every"`` a list of [token, class], one a text."""
        rows, counts = self.rows(model, texts)
        chances = probabilities(self.logits(rows))
        return np.split(chances, np.cumsum(counts)[:-1]) if self.read == "every" else chances

    def predict(self, model: ModelLike, texts: Sequence[str]) -> Any:
        """The likeliest class of each text; with ``read="every"`` a list a text, one class a token."""
        chances = self.predict_proba(model, texts)
        if self.read == "every":
            return [[self.classes[i] for i in part.argmax(1)] for part in chances]
        return [self.classes[i] for i in chances.argmax(1)]

    def accuracy(self, model: ModelLike, texts: Sequence[str], labels: Sequence[Any]) -> float:
        """Share of texts (tokens, with ``read="every"``) whose likeliest class is their label."""
        chances, truth = self._judged(model, texts, labels)
        return float((chances.argmax(1) == truth).mean())

    def auroc(self, model: ModelLike, texts: Sequence[str], labels: Sequence[Any]) -> float:
        """Area under the ROC curve; for several classes the mean over classes, each against the
        rest. ValueError unless all classes occur.
        """
        from sklearn.metrics import roc_auc_score

        chances, truth = self._judged(model, texts, labels)
        missing = [
            self.classes[i] for i in range(len(self.classes)) if i not in set(truth.tolist())
        ]
        if missing:
            raise ValueError(
                f"no text is labelled {missing}; an AUROC needs texts of every class, {list(self.classes)}"
            )
        if len(self.classes) == 2:
            return float(roc_auc_score(truth, chances[:, 1]))
        return float(
            np.mean([roc_auc_score(truth == i, chances[:, i]) for i in range(len(self.classes))])
        )

    def _judged(
        self, model: ModelLike, texts: Sequence[str], labels: Sequence[Any]
    ) -> tuple[np.ndarray, np.ndarray]:
        check_labels(texts, labels, every=self.read == "every", two=False)
        rows, counts = self.rows(model, texts)
        given = (
            token_labels(labels, counts)
            if self.read == "every"
            else [plain_label(label) for label in labels]
        )
        return probabilities(self.logits(rows)), class_numbers(given, self.classes)

    def refuse_other_model(self, model: HookedModel) -> None:
        """Raise `MismatchError` unless this probe belongs to ``model``."""
        if self.model is not None:
            self.model.refuse_other(model.identity, "the model to read", tokens=False)
        elif model.d_model != self.d_model:
            raise MismatchError(
                f"the probe reads {self.d_model} dimensions, {model.name!r} has {model.d_model}; transfer it with a stitch first"
            )

    @property
    def d_model(self) -> int:
        """Width of the stream that it reads."""
        return len(self.weight) if self.before is None else len(self.before.weight)

    def __repr__(self) -> str:
        where = f" of {self.model.name}" if self.model else ""
        classes = f"{len(self.classes)} classes {list(self.classes[:4])}{' …' if len(self.classes) > 4 else ''}"
        pooled = " of mapped states" if self.before is not None else ""
        return f"LinearProbe({self.name!r} at {self.hook}{where}, {classes}, {self.method} read {self.read}{pooled})"

    def _repr_html_(self) -> str:
        found = {
            "name": self.name,
            "hook point": self.hook,
            "model": self.model.name if self.model else None,
            "classes": ", ".join(map(str, self.classes)),
            "method": f"{self.method}, read {self.read}{' of mapped states' if self.before is not None else ''}",
            "penalty": self.penalty if self.penalty == self.penalty else None,
            "dimensions": len(self.weight),
        }
        return card("LinearProbe", facts(found))

    # ---------------------------------------------------------------------------------------- files

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file."""
        tensors = {"weight": self.weight, "bias": self.bias}
        if self.before is not None:
            tensors |= {"before/weight": self.before.weight, "before/bias": self.before.bias}
        hooks = None if self.before is None else [self.before.source_hook, self.before.target_hook]
        fields = {
            key: value
            for key, value in asdict(replace(self, before=None)).items()
            if key not in ("weight", "bias", "before")
        }
        return write_tensors(
            Path(path),
            tensors,
            {"schema_version": PROBE_SCHEMA, "probe": json.dumps(fields | {"before": hooks})},
        )

    @classmethod
    def load(cls, path: str | Path) -> "LinearProbe":
        """Read what `save` wrote; FileFormatError for anything else."""
        tensors, metadata = read_tensors(Path(path), PROBE_SCHEMA)
        fields: dict[str, Any] = json.loads(metadata["probe"])
        hooks = fields.pop("before")
        needed = {"weight", "bias"} | ({"before/weight", "before/bias"} if hooks else set())
        if not needed <= tensors.keys():
            raise FileFormatError(
                f"{str(path)!r} holds no {sorted(needed - tensors.keys())}; it is no probe of ours"
            )
        fields["model"] = ModelIdentity(**fields["model"]) if fields["model"] else None
        fields["classes"] = tuple(fields["classes"])
        before = (
            AffineMap(tensors["before/weight"], tensors["before/bias"], *hooks) if hooks else None
        )
        return cls(weight=tensors["weight"], bias=tensors["bias"], before=before, **fields)


@transfer_artefact.register
def transfer_probe(
    probe: LinearProbe, stitch: Stitch, *, through: AffineMap | None = None
) -> LinearProbe:
    """A probe carried to the stitch's target: ``w' = W_down w``, ``c' = c + b_down·w``; with
    ``read="max"`` it reads mapped states.

    Args: probe: learnt at the stitch's source hook. stitch: see `Stitch`. through: another
        `AffineMap` from the target's to the source's hook point (that of shuffled pairs, a refit),
        for controls.
    """
    stitch.refuse_foreign(probe.hook, probe.model)
    down = stitch.down if through is None else through
    if down.weight.shape[1] != probe.d_model:
        raise MismatchError(
            f"the probe reads {probe.d_model} dimensions, the map ends at {down.target_hook!r} with {down.weight.shape[1]}; "
            "give a map from the target's hook point to the probe's"
        )
    moved = replace(
        probe, hook=stitch.target_hook, model=stitch.target, method=f"{probe.method}, transferred"
    )
    if probe.read == "max":
        return replace(moved, before=down if probe.before is None else down.compose(probe.before))
    weight, bias = probe.weight.double(), probe.bias.double()
    down_weight, down_bias = down.weight.to(weight), down.bias.to(weight)
    return replace(moved, weight=down_weight @ weight, bias=bias + down_bias @ weight)


# --------------------------------------------------------------------------------------------- rows


def read_rows(
    model: HookedModel,
    texts: Sequence[str],
    hook: str,
    read: EveryRead,
    skip_first: int = SKIP_FIRST,
    before: AffineMap | None = None,
) -> tuple[Tensor, list[int]]:
    """(rows [row, d] in float64, rows of each text): one a text, or with ``read="every"`` one an
    unmasked token, texts in order.
    """
    through = None if before is None else lambda rows: before.points(rows.double())
    if read != "every":
        return read_activations(
            model, texts, hook, read, skip_first=skip_first, through=through
        ).double(), [1] * len(texts)
    found = dict(read_tokens(model, texts, hook, skip_first=skip_first))
    return torch.cat([found[i] for i in range(len(texts))]).double(), [
        len(found[i]) for i in range(len(texts))
    ]


def fit_rows(
    rows: Tensor, labels: Sequence[Label], *, groups: np.ndarray | None = None, **options: Any
) -> tuple[Logistic, tuple[Label, ...]]:
    """(classifier, classes) of rows with one label each; options as `fit_logistic` has them."""
    classes = classes_of(labels)
    return fit_logistic(
        rows.cpu().double().numpy(),
        class_numbers(labels, classes),
        len(classes),
        groups=groups,
        **options,
    ), classes


# ------------------------------------------------------------------------------------------- labels


def plain_label(label: Any) -> Label:
    """A label as str or int (numpy's too); ValueError for anything else, NaN included."""
    value = label.item() if hasattr(label, "item") else label
    if not isinstance(value, str | int):
        raise ValueError(
            f"a label is {value!r}, a {type(value).__name__}; expected str or int: drop the rows without a label, name the others"
        )
    return int(value) if isinstance(value, bool) else value


def classes_of(labels: Sequence[Label]) -> tuple[Label, ...]:
    """The distinct labels in order; ValueError for one class, or for a mixture of str and int."""
    if len({type(label) for label in labels}) > 1:
        raise ValueError("labels mix str and int; give all of one kind")
    classes = sorted(set(labels))
    if len(classes) < 2:
        raise ValueError(
            f"all {len(labels)} labels are {classes[0]!r}; a probe needs texts of at least two classes"
        )
    return tuple(classes)


def class_numbers(labels: Sequence[Label], classes: Sequence[Label]) -> np.ndarray:
    """[row], the place of each label among the classes; ValueError names a label that is not among
    them.
    """
    place = {label: i for i, label in enumerate(classes)}
    unknown = sorted({str(label) for label in labels if label not in place})
    if unknown:
        raise ValueError(
            f"labels {unknown[:5]} are not among the probe's classes {list(classes)}; relabel the texts or leave them out"
        )
    return np.array([place[label] for label in labels])


def check_labels(
    texts: Sequence[str], labels: Sequence[Any], *, every: bool = False, two: bool = True
) -> None:
    """Raise ValueError unless there is a label for each text, and (``two``) more than one class of
    them.
    """
    if isinstance(texts, str) or len(texts) != len(labels):
        raise ValueError(
            f"{1 if isinstance(texts, str) else len(texts)} text(s) and {len(labels)} label(s); give one label a text"
        )
    if not every and (
        nested := [i for i, label in enumerate(labels) if isinstance(label, list | tuple)]
    ):
        raise ValueError(f"label {nested[0]} is a list; labels by token need read='every'")
    if two and not (every and any(isinstance(label, list | tuple) for label in labels)):
        classes_of([plain_label(label) for label in labels])


def token_labels(labels: Sequence[Any], counts: Sequence[int]) -> list[Label]:
    """A label for each row: a text's own for all its tokens, or the list that was given for it."""
    out: list[Label] = []
    for index, (label, count) in enumerate(zip(labels, counts, strict=True)):
        if not isinstance(label, list | tuple):
            out += [plain_label(label)] * count
            continue
        if len(label) != count:
            raise ValueError(
                f"text {index} has {count} unmasked tokens and {len(label)} labels; give one for each, or one for the text"
            )
        out += [plain_label(one) for one in label]
    return out


def _digest(texts: Sequence[str], labels: Sequence[Label]) -> str:
    return hashlib.blake2b(
        json.dumps([list(texts), list(labels)]).encode(), digest_size=8
    ).hexdigest()
