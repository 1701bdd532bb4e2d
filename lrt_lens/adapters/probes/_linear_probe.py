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
maximum over tokens of the *mapped* states, which is exact too. A map is wrong by a shift where
texts are unlike those of its fit, and the shift misplaces the threshold: ``recentre=`` sets it on
unlabelled texts (`lrt_lens.adapters.probes._recentring`). ``abstain=`` answers only for texts that
are like those of the fit (`lrt_lens.adapters.probes._abstention`).

Limits: positions are those of one tokenizer. The first ``skip_first`` tokens and special tokens are
never read, on both models: texts that hold nothing else are left out of fits and scores, and
refused by predictions, which need one row per text.
"""

import json
import logging
import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lrt_lens._given_tensors import float_tensor
from lrt_lens._hub import is_hub_id
from lrt_lens._late import implementation
from lrt_lens._repr_html import card, facts
from lrt_lens._settings import resolve as resolve_settings
from lrt_lens._settings import takes
from lrt_lens._stored_fields import as_damage, json_object, stored_fields, stored_text, stored_value
from lrt_lens._tensor_files import read_tensor_file, write_tensors
from lrt_lens.adapters._earlier_files import in_current_form
from lrt_lens.adapters.probes._abstention import Abstains, covered_texts
from lrt_lens.adapters.probes._labels import Label, check_labels, class_numbers, group_numbers
from lrt_lens.adapters.probes._logistic import log_probabilities, probabilities
from lrt_lens.adapters.probes._probe_fits import METHODS, ProbeSettings, fit_rows
from lrt_lens.adapters.probes._probe_rows import corpus_digest, read_rows, row_labels
from lrt_lens.adapters.vectors._label_share import LabelShare
from lrt_lens.errors import NonFiniteError
from lrt_lens.models._belonging import Origin, refuse_impossible_hook, refuse_other_reader
from lrt_lens.models._given_origin import set_origin
from lrt_lens.models._hook_points import resolve
from lrt_lens.models._hooked_model import HookedModel, load_model
from lrt_lens.models._identity import ModelIdentity
from lrt_lens.models._loading import ModelLike
from lrt_lens.models._reading import EveryRead, Readable, ShortTexts, readable, row_rule
from lrt_lens.models._text_codec import Truncation
from lrt_lens.models._text_reader import SKIP_FIRST
from lrt_lens.statistics._classification import share_interval
from lrt_lens.statistics._recentring import ScoreChange
from lrt_lens.statistics._thresholds import best_threshold_accuracy, threshold_flag
from lrt_lens.stitching._affine import AffineMap, MapPair
from lrt_lens.stitching._stitch_data import StitchData, transfer_artefact

logger = logging.getLogger(__name__)

RECENTRE = (
    "the scores are shifted; set the threshold on unlabelled texts, "
    "stitch.transfer(probe, recentre=lrt.Recentring(pair, texts))"
)
"""Remedy for a transferred probe whose threshold is misplaced."""
PROBE_SCHEMA = "lrt_lens.probe/1"
"""Schema version of a file; another one is refused."""
_APART = ("weight", "bias", "before")
"""Fields that a file stores as tensors; all others are stored as JSON."""


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
    """Hook point at which the probe was fitted, or to which it was transferred. The number of a
    block becomes the name of the stream after it."""
    model: ModelIdentity | None = None
    """Model that the probe belongs to; None for a probe of unknown origin. A model becomes its
    identity."""
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
    """Penalty λ of the fit, for standardised features and the mean cross-entropy; of a combined
    probe for whitened features and the distance to the transferred weights."""
    skip_first: int = SKIP_FIRST
    """Number of first positions of a text that are never read, as in the fit of a map."""
    short_texts: ShortTexts = "drop"
    """Rule for texts that the mask leaves nothing of; see `fit`."""
    truncation: Truncation | None = None
    """End that is cut off texts longer than the context; None refuses them."""
    n_dropped: int = 0
    """Number of texts of the fit left out because the mask leaves nothing of them."""
    n_cut: int = 0
    """Number of texts of the fit that were cut to the context."""
    labels: LabelShare | None = None
    """Labelled texts of this model that a transferred probe was combined with; None if none."""
    before: AffineMap | None = None
    """Map applied to every token before pooling; only for ``read="max"``."""
    n_recentred: int = 0
    """Number of unlabelled texts on which the scores were recentred; 0 if they were not."""
    recentring_corpus: str = ""
    """Hash of these texts."""

    def __post_init__(self) -> None:
        for name in ("weight", "bias"):
            object.__setattr__(self, name, float_tensor(name, getattr(self, name)))
        object.__setattr__(self, "classes", tuple(self.classes))
        set_origin(self)
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
    @takes(ProbeSettings)
    def fit(
        cls,
        model: ModelLike,
        texts: Iterable[str],
        labels: Iterable[Any],
        *,
        at: int | str,
        read: EveryRead = "last",
        groups: Sequence[Hashable] | None = None,
        settings: "ProbeSettings | None" = None,
        **options: Any,
    ) -> "LinearProbe":
        """Probe fitted on labelled texts, by default by scikit-learn's logistic regression.

        `lrt_lens.adapters.probes._logistic` gives the objective.

        Args:
            model: model on which the probe is fitted.
            texts: one row per text, or one per token with ``read="every"``.
            labels: one per text, str or int, of at least two classes. With ``read="every"`` a label
                of a text counts for all its tokens, and a list gives one label per unmasked token.
            at: hook point.
            read: ``"last"`` unmasked token, ``"mean"`` or ``"max"`` over unmasked tokens,
                ``"every"`` unmasked token, or a position.
            groups: one per text, such as the number of the pair or the story that it belongs to;
                texts of one group stay in one fold when the penalty is chosen.
            settings: all settings; see `ProbeSettings`.
            options: fields of `ProbeSettings` as keywords, such as ``skip_first=0``.

        Raises:
            ValueError: an unknown method, labels of one class, not one label (or group) per text,
                or no text that can be read.
            NonFiniteError: activations are NaN or infinite.
        """
        run = resolve_settings(ProbeSettings, settings, options)
        method, skip_first = run.method, run.skip_first
        if method not in METHODS:
            raise ValueError(f"method is {method!r}; expected one of {sorted(METHODS)}")
        hooked = load_model(model)
        hook = resolve(at, hooked)
        texts, labels = check_labels(texts, labels, every=read == "every")
        rules: dict[str, Any] = {"short_texts": run.short_texts, "truncation": run.truncation}
        kept = readable([hooked], texts, read, skip_first=skip_first, **rules)
        numbers = group_numbers(groups, len(texts))
        texts, labels = kept.of(texts), kept.of(labels)
        rules["short_texts"] = row_rule(run.short_texts)
        rows, counts = read_rows(hooked, texts, hook, read, skip_first, **rules)
        labels_of_rows = row_labels(labels, counts, read)
        # Tokens of one text are dependent, so they stay in one fold.
        numbers = None if numbers is None else np.array(kept.of(numbers.tolist()))
        if read == "every":
            numbers = np.repeat(np.arange(len(texts)) if numbers is None else numbers, counts)
        choice = {"penalties": run.penalties, "n_folds": run.n_folds, "seed": run.seed}
        fit, classes = fit_rows(rows, labels_of_rows, method=method, groups=numbers, **choice)
        return cls(
            weight=torch.from_numpy(fit.weight),
            bias=torch.from_numpy(fit.bias),
            classes=classes,
            hook=hook,
            model=hooked.identity,
            read=read,
            name=run.name,
            method=method,
            corpus=corpus_digest(texts, labels_of_rows),
            penalty=fit.penalty,
            skip_first=skip_first,
            short_texts=run.short_texts,
            truncation=run.truncation,
            n_dropped=kept.n_dropped,
            n_cut=kept.n_cut,
        )

    # -------------------------------------------------------------------------------------- reading

    def rows(self, model: ModelLike, texts: Sequence[str]) -> tuple[Tensor, list[int]]:
        """Return the rows [row, d] that the weights multiply, and the number of rows per text.

        The rows are float64.

        Raises:
            MismatchError: the probe belongs to another model.
            ValueError: the mask leaves nothing of a text (unless the probe reads such texts
                unmasked), or a text is longer than the context and the probe has no truncation.
        """
        hooked = load_model(model)
        self.refuse_other_model(hooked)
        return read_rows(
            hooked,
            texts,
            self.hook,
            self.read,
            self.skip_first,
            self.before,
            short_texts=row_rule(self.short_texts),
            truncation=self.truncation,
        )

    def readable(self, models: Sequence[HookedModel], texts: Sequence[str]) -> Readable:
        """Return the texts of which every model has a token to read, by this probe's rules."""
        return readable(
            models,
            texts,
            self.read,
            skip_first=self.skip_first,
            short_texts=self.short_texts,
            truncation=self.truncation,
        )

    def logits(self, rows: Tensor) -> np.ndarray:
        """Logits of rows that have been read, [row, d] → [row, column], float64."""
        # x w + c, on the device of the rows
        weight, bias = (part.double().to(rows.device) for part in (self.weight, self.bias))
        return (rows.double() @ weight + bias).cpu().numpy()

    def matched(
        self, source: np.ndarray, target: np.ndarray, texts: Sequence[str]
    ) -> "LinearProbe":
        """Return this probe with the mean and spread of the source's scores; see `recentre_probe`.

        ``source`` and ``target`` are the scores [row, column] of the source's probe and of this one
        on the same unlabelled ``texts``.
        """
        change = ScoreChange.matching(source, target)
        scale, shift = torch.from_numpy(change.scale), torch.from_numpy(change.shift)
        # a (x w + c) + b = x (a w) + (a c + b)
        weight, bias = self.weight.double().cpu(), self.bias.double().cpu()
        return self.reweighted(weight * scale, bias * scale + shift, texts)

    def reweighted(self, weight: Tensor, bias: Tensor, texts: Sequence[str]) -> "LinearProbe":
        """Return this probe with the weights that unlabelled ``texts`` gave it."""
        return replace(
            self,
            weight=weight,
            bias=bias,
            n_recentred=len(texts),
            recentring_corpus=corpus_digest(texts, []),
        )

    def predict_proba(
        self, model: ModelLike, texts: Sequence[str], *, abstain: Abstains | None = None
    ) -> Any:
        """Probabilities [text, class]; with ``read="every"`` a list of [token, class] per text.

        Args:
            model: the model that reads the texts.
            texts: the texts.
            abstain: rule that says which texts are answered, such as `fit_coverage` of the stitch;
                the probabilities of all others are NaN. None answers all.

        Raises:
            MismatchError: the probe, or the rule, belongs to another model or hook point.
            ValueError: the mask leaves nothing of a text.
        """
        rows, counts = self.rows(model, texts)
        p = probabilities(self.logits(rows))
        if abstain is not None:
            p[~np.repeat(covered_texts(abstain, self.origin, model, texts), counts)] = np.nan
        # The cumulative counts are the row numbers at which texts end.
        return np.split(p, np.cumsum(counts)[:-1]) if self.read == "every" else p

    def predict(
        self, model: ModelLike, texts: Sequence[str], *, abstain: Abstains | None = None
    ) -> Any:
        """Most likely class of each text; with ``read="every"`` a list of classes per text.

        It is None where ``abstain`` answers nothing; the arguments are those of `predict_proba`.
        """
        p = self.predict_proba(model, texts, abstain=abstain)
        if self.read == "every":
            return [self._most_likely(part) for part in p]
        return self._most_likely(p)

    def _most_likely(self, p: np.ndarray) -> list[Label | None]:
        """Class of each row of probabilities; None for NaN."""
        return [None if np.isnan(row).any() else self.classes[row.argmax()] for row in p]

    def accuracy(self, model: ModelLike, texts: Iterable[str], labels: Iterable[Any]) -> float:
        """Share of texts (tokens with ``read="every"``) whose most likely class is their label.

        Texts that the mask leaves nothing of are left out, with a warning that lists them. Another
        warning says if a transferred probe that was not recentred would be much more accurate at
        another threshold.
        """
        scores, truth = self._scores(model, texts, labels)
        value = float((scores.argmax(1) == truth).mean())
        if self.transferred and not self.n_recentred and len(set(truth.tolist())) > 1:
            flag = threshold_flag(
                share_interval((scores.argmax(1) == truth).astype(float)),
                best_threshold_accuracy(scores, truth),
                remedy=RECENTRE,
            )
            if flag:
                logger.warning("probe %r: %s", self.name, flag)
        return value

    def auroc(self, model: ModelLike, texts: Iterable[str], labels: Iterable[Any]) -> float:
        """Area under the ROC curve; for several classes the mean of each class against the others.

        Texts that the mask leaves nothing of are left out, with a warning that lists them.

        Raises:
            ValueError: a class does not occur among the labels.
        """
        from sklearn.metrics import roc_auc_score

        scores, truth = self._scores(model, texts, labels)
        present = set(truth.tolist())
        missing = [name for i, name in enumerate(self.classes) if i not in present]
        if missing:
            raise ValueError(
                f"no text is labelled {missing}; an AUROC needs texts of every class, "
                f"{list(self.classes)}"
            )
        # Of two classes, each against the other has the same AUROC.
        if len(self.classes) == 2:
            return float(roc_auc_score(truth, scores[:, 1]))
        return float(
            np.mean([roc_auc_score(truth == i, scores[:, i]) for i in range(len(self.classes))])
        )

    def _scores(
        self, model: ModelLike, texts: Iterable[str], labels: Iterable[Any]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return logarithms of probabilities [row, class] and true class numbers [row]."""
        # Texts of one class can be scored too, so two classes are not required here.
        texts, labels = check_labels(texts, labels, every=self.read == "every", two=False)
        hooked = load_model(model)
        kept = self.readable([hooked], texts)
        texts, labels = kept.of(texts), kept.of(labels)
        rows, counts = self.rows(hooked, texts)
        truth = class_numbers(row_labels(labels, counts, self.read), self.classes)
        # A probability rounds to 1 where logits are large, which would make ties; its logarithm
        # does not.
        return log_probabilities(self.logits(rows)), truth

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
        """Text for tables with method, read position, and how it came to this model."""
        mapped = " of mapped states" if self.before is not None else ""
        transferred = ", transferred" if self.transferred else ""
        recentred = f", recentred on {self.n_recentred} texts" if self.n_recentred else ""
        return f"{self.method}, read {self.read}{mapped}{transferred}{recentred}"

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
            if key not in _APART
        }
        # The text of the other fields, which has been checked, with the hook points of the map.
        whole = json.loads(stored_text(LinearProbe, fields, others=_APART)) | {"before": hooks}
        metadata = {"schema_version": PROBE_SCHEMA, "probe": json.dumps(whole)}
        return write_tensors(Path(path), {k: t + 0.0 for k, t in tensors.items()}, metadata)

    def export(self, path: str | Path, *, to: Literal["json", "scikit-learn"] = "json") -> Path:
        """Write a folder of JSON and safetensors for other programs, with the rule of reading.

        `lrt_lens.serving.export_probe` has the files and the errors; `load` reads the folder.
        """
        return implementation("LinearProbe.export")(self, path, to=to)

    def to_sklearn(self) -> Any:
        """Return a fitted `sklearn.linear_model.LogisticRegression` with these weights.

        Its input are rows [row, d] as `rows` returns them; see `lrt_lens.serving.probe_to_sklearn`.
        """
        return implementation("LinearProbe.to_sklearn")(self)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the probe with a model card to the hub and return the address of the commit.

        `lrt_lens.serving.push_to_hub` has the options: ``license=``, ``evaluation=``, ….
        """
        return implementation("LinearProbe.push_to_hub")(self, repo_id, **options)

    @classmethod
    def load(cls, path: str | Path, **hub: Any) -> "LinearProbe":
        """Probe from a file that `save` wrote, a folder that `export` wrote, or a hub repository.

        Args:
            path: the file, the folder, or a hub id, ``owner/name``.
            **hub: arguments of `huggingface_hub.hf_hub_download`, such as ``revision``.

        Raises:
            FileFormatError: there is no probe, or it is damaged.
        """
        if Path(path).is_dir() or is_hub_id(path):
            return implementation("LinearProbe.load")(path, **hub)
        file = read_tensor_file(Path(path), PROBE_SCHEMA)
        content = json_object(file.path, file.metadata.get("probe"), "'probe'")
        with as_damage(file.path):
            content = in_current_form(content)
        # A probe that reads maxima stores the hook points of its map here, and the map as tensors.
        hooks = content.pop("before", None)
        fields = stored_fields(file.path, cls, content, others=_APART)
        refuse_impossible_hook(file.path, fields["hook"], fields.get("model"))
        shapes = {"weight": "d column", "bias": "column"}
        if hooks is not None:
            hooks = stored_value(file.path, tuple[str, str], json.dumps(hooks), "before")
            shapes |= {"before/weight": "stream d", "before/bias": "d"}
        tensors = file.checked(shapes)
        with as_damage(file.path):
            before = hooks and AffineMap(tensors["before/weight"], tensors["before/bias"], *hooks)
            return cls(weight=tensors["weight"], bias=tensors["bias"], before=before, **fields)


@runtime_checkable
class Recentres(Protocol):
    """Rule that sets the threshold of a transferred probe, such as `Recentring`."""

    def recentred(self, probe: LinearProbe, transferred: LinearProbe) -> LinearProbe:
        """Return the transferred probe with another threshold."""
        ...


@transfer_artefact.register
def transfer_probe(
    probe: LinearProbe,
    stitch: StitchData,
    *,
    through: AffineMap | MapPair | None = None,
    recentre: object = None,
) -> LinearProbe:
    """Probe transferred to the stitch's target: ``w' = W_down w``, ``c' = c + b_down·w``.

    With ``read="max"`` the weights stay, and the probe reads states mapped by ``W_down, b_down``.

    Args:
        probe: a probe fitted at the stitch's source hook point.
        stitch: the stitch.
        through: another map from the target's to the source's hook point, or a pair of maps such
            as ``stitch.null``, of which the map down is used; for controls.
        recentre: `Recentring` of both models and unlabelled texts, on which the threshold is set;
            None leaves the threshold as the map gives it.

    Raises:
        MismatchError: the probe does not belong to the stitch's source, or the map does not lead
            from the stitch's target to its source.
        TypeError: ``recentre`` is no `Recentring`.
        ValueError: see `recentre_probe`.

    Source: Stitching (arXiv 2506.06609), §4.
    """
    stitch.refuse_foreign(probe.origin)
    through = through.down if isinstance(through, MapPair) else through
    if through is not None:
        stitch.refuse_other_map("through=", through, down=True)
    if not (recentre is None or isinstance(recentre, Recentres)):
        raise TypeError(
            f"recentre is of type {type(recentre).__name__}; both models have to read the texts, "
            "so give recentre=lrt.Recentring(pair, texts)"
        )
    down = stitch.down if through is None else through
    transferred = probe_through(probe, down, stitch.target_hook, stitch.target)
    return transferred if recentre is None else recentre.recentred(probe, transferred)


def probe_through(
    probe: LinearProbe, down: AffineMap, hook: str, model: ModelIdentity | None
) -> LinearProbe:
    """Return a probe that reads states at ``hook`` of ``model``, mapped by ``down``.

    Nothing is compared: `transfer_probe` checks its arguments.
    """
    transferred = replace(
        probe,
        hook=hook,
        model=model,
        transferred_by="stitch",
        # A recentred probe is recentred for the model that it leaves.
        n_recentred=0,
        recentring_corpus="",
    )
    if probe.read == "max":
        # max over tokens does not commute with the map, so tokens are mapped before pooling.
        before = down if probe.before is None else down.compose(probe.before)
        return replace(transferred, before=before)
    # (y W + b) w + c = y (W w) + (c + b·w)
    weight, bias = probe.weight.double(), probe.bias.double()
    down_weight, down_bias = down.weight.to(weight), down.bias.to(weight)
    return replace(transferred, weight=down_weight @ weight, bias=bias + down_bias @ weight)
