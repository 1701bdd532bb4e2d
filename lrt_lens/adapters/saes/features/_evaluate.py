"""Evaluation of single SAE features after transfer to another model.

    features = evaluate_features(pair, stitch, sae, documents)
    features.table        # one row per feature: densities, ρ_write, ρ_read, attribution correlation
    features.summary      # means over all features, semantic ones and structural ones
    features.figure()     # Stitching, figures 4 and 14
    features.page(17)     # one feature: strongest contexts in both models, output tokens, scores

Problem: metrics of a whole SAE do not tell which features survive a transfer. Mechanism: each
feature is measured on both models over the same positions.

Modules: ``_coder`` (features on either model), ``_attribution`` and ``_feature_pass`` (correlations
over positions), ``_semantics`` and ``_substitution`` (semantic or structural), ``_unembedding``
(entropy features), ``_attention`` (attention activation and deactivation).

Text is streamed, so memory is that of one batch, however many tokens are read. Source: Stitching
(arXiv 2506.06609), §5 and appendices G to I. The paper reports correlations without intervals, with
one baseline, on text that the map may have seen. Here the default is to read only documents of the
stitch's test fold.

Limits: both models need the same tokenizer. Features are transferred exactly, without training; to
evaluate features that were trained further on the target, pass their SAE as ``transferred=``.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from lrt_lens._progress import tqdm
from lrt_lens._repr_html import names_in_tables
from lrt_lens._settings import Settings, resolve, takes
from lrt_lens.adapters.saes.features._attention import Example, ExampleFinder, attention_effects
from lrt_lens.adapters.saes.features._attribution import Attribution, Attributor
from lrt_lens.adapters.saes.features._coder import (
    FeatureCoder,
    check_index,
    check_sae,
    check_transferred,
    encoder_columns,
    random_coder,
)
from lrt_lens.adapters.saes.features._feature_pass import (
    OTHER,
    RANDOM,
    SHUFFLED,
    TRANSFERRED,
    FeatureArm,
    FeaturePass,
)
from lrt_lens.adapters.saes.features._result import FeatureEvaluation, output_tokens
from lrt_lens.adapters.saes.features._semantics import (
    SemanticScores,
    check_rewrites,
    semantic_scores,
)
from lrt_lens.adapters.saes.features._substitution import rewritten_sentences
from lrt_lens.adapters.saes.features._text import ReadingPlan, TokenBatch, iterate_batches
from lrt_lens.adapters.saes.features._unembedding import Unembedding
from lrt_lens.data._documents import DocumentReader, Documents, DocumentSource, refuse_read_once
from lrt_lens.models._pair import ModelPair
from lrt_lens.stitching._fidelity import fidelities
from lrt_lens.stitching._held_out import fold_filter
from lrt_lens.stitching._stitch import Stitch

_SENTENCE_DOCUMENTS = 2000
"""Largest number of documents from which sentences and substitutes are drawn."""
_REACH = 12
"""Number of tokens shown on either side of a strong position."""
_OUTPUT_TOKENS = 8
"""Number of raised and of lowered output tokens per feature."""
_MINIMUM_ACTIVE = 64
"""Number of positions at which a feature must be active before its attention is measured by
default."""


@dataclass(frozen=True)
class FeatureEvaluationSettings(Settings):
    """Settings of `evaluate_features`: text, attribution, rewrites, attention and contexts."""

    attribution: Attribution = "logits"
    """Kind of attribution: ``"logits"`` (direct path, as in the paper) or ``"gradient"`` (first
    order, all paths)."""
    n_tokens: int = 50_000
    """Number of counted positions after which no further document is read."""
    context_length: int = 128
    """Number of tokens per window, BOS included."""
    folds: Literal["test", "all"] = "test"
    """Documents that are read: ``"test"``, those of the harvest's test fold; ``"all"``, every
    document, for text that had no part in the fit."""
    text_field: str | None = None
    """Column of the texts in files and tables, as in `HarvestSettings`."""
    group: Any = None
    """Documents that share a fold, as in the harvest of the stitch."""
    rewrites: Sequence[Sequence[str]] | None = None
    """Lists of a sentence and its rewrites, with equally many versions of each sentence; None
    exchanges content words of sentences in the documents."""
    n_sentences: int = 200
    """Number of sentences to rewrite; 0 leaves semantics out."""
    n_rewrites: int = 5
    """Number of rewrites per sentence (k in the paper)."""
    attention_features: int | Sequence[int] = 8
    """Features whose effect on attention is measured: a number of features with the largest
    contribution, or a list of indices; 0 measures none."""
    n_examples: int = 32
    """Number of texts for each of these features."""
    n_contexts: int = 8
    """Number of strongest contexts stored per feature."""
    seed: int = 0
    """Seed of the random SAE, sentences, examples and bootstraps."""


@takes(FeatureEvaluationSettings)
def evaluate_features(
    pair: ModelPair,
    stitch: Stitch,
    sae: Any,
    documents: Documents,
    *,
    transferred: Any = None,
    progress: bool = True,
    settings: FeatureEvaluationSettings | None = None,
    **options: Any,
) -> FeatureEvaluation:
    """Densities, correlations, fidelities, kinds and attention effects of each transferred feature.

    Args:
        pair: the two models of the stitch.
        stitch: a stitch that starts at the SAE's hook point.
        sae: a SAELens SAE of the source model, of any architecture.
        documents: text in any form that `fit_stitches` takes. It is read two or three times, so
            give a list, a file or a data set.
        transferred: an SAE of the target with the same features in the same order. None transfers
            ``sae`` through the stitch.
        progress: show a progress bar.
        settings: the remaining settings; each field can be passed as a keyword instead.
        **options: fields of `FeatureEvaluationSettings`.

    Raises:
        MismatchError: the SAE, the models or the transferred SAE do not belong to the stitch, or
            the models have different tokenizers.
        IndexError: an index in ``attention_features`` is not a feature of the SAE.
        TypeError: ``documents`` is an iterator.
        TooFewDocumentsError: there is no text to read.
        ValueError: no sentence can be rewritten, no feature fires, or a setting is invalid.

    Source: Stitching (arXiv 2506.06609), §5 and appendices G to I.
    """
    settings = resolve(FeatureEvaluationSettings, settings, options)
    refuse_read_once(DocumentSource.of(documents, settings.text_field, settings.group))
    _check(pair, stitch, sae, transferred, settings)
    arms = _arms(stitch, sae, transferred, settings.seed)
    unembeddings = (Unembedding.of(pair.source), Unembedding.of(pair.target))
    attributors = _attributors(pair, stitch, unembeddings, settings.attribution)
    # The documents are read again for each quantity, so that memory stays that of one batch.
    source = DocumentSource.of(documents, settings.text_field, settings.group)
    text = _Text(pair, stitch, source, _plan(pair, arms[0], settings), progress)
    sums = FeaturePass(
        arms, *attributors, n_contexts=settings.n_contexts, reach=_REACH, seed=settings.seed
    ).run(text.batches("features"))
    _refuse_silence(sums, pair, stitch)
    rewrites = _rewrites(text, settings)
    parts = [
        _measured_columns(sums),
        _fidelity_columns(stitch, sae),
        _entropy_columns(arms[0], unembeddings),
        _semantic_columns(pair, stitch, arms[0], rewrites),
    ]
    features = _attention_features(sums, arms[0], settings.attention_features)
    examples = _examples(attributors[0], arms[0].source, text, features, settings)
    names = names_in_tables(pair.source.name, pair.target.name)
    return FeatureEvaluation(
        # Every part has one row per feature, in the order of the SAE.
        table=pd.concat(parts, axis=1),
        attention=_attention(pair, stitch, arms[0], examples, settings.seed),
        source=names[0],
        target=names[1],
        source_hook=stitch.source_hook,
        target_hook=stitch.target_hook,
        n_tokens=sums.totals[0].n_rows,
        attribution=settings.attribution,
        entropy_share_random=(unembeddings[0].random_share(), unembeddings[1].random_share()),
        contexts=sums.contexts,
        output_tokens=(
            output_tokens(unembeddings[0], arms[0].source.decoder, _OUTPUT_TOKENS),
            output_tokens(unembeddings[1], arms[0].target.decoder, _OUTPUT_TOKENS),
        ),
        rewrites=rewrites,
        tokenizer=pair.source.tokenizer,
        seed=settings.seed,
    )


# ---------------------------------------------------------------------------------------- arguments


def _check(
    pair: ModelPair, stitch: Stitch, sae: Any, transferred: Any, settings: FeatureEvaluationSettings
) -> None:
    """Raise for invalid settings, and for models or SAEs that do not belong to the stitch."""
    for name, known in (("attribution", ("logits", "gradient")), ("folds", ("test", "all"))):
        value = getattr(settings, name)
        if value not in known:
            raise ValueError(f"{name} is {value!r}; expected one of {list(known)}")
    pair.refuse_two_tokenizers(
        "evaluate_features",
        "take two models of one tokenizer, or judge directions by stitch.fidelity",
    )
    stitch.check(pair.source, pair.target)
    check_sae(sae, pair, stitch, settings.context_length)
    if transferred is not None:
        check_transferred(sae, transferred, pair, stitch, settings.context_length)
    # With n_sentences=0 rewrites are not used, so they are not checked either.
    if settings.rewrites is not None and settings.n_sentences:
        check_rewrites(settings.rewrites)
    if not isinstance(settings.attention_features, int):
        for index in settings.attention_features:
            check_index(index, int(sae.W_dec.shape[0]))


def _arms(stitch: Stitch, sae: Any, transferred: Any, seed: int) -> list[FeatureArm]:
    """The transferred features first, then the controls."""
    source = FeatureCoder(sae)
    target = (
        FeatureCoder(transferred) if transferred is not None else source.transferred(stitch.maps)
    )
    # Controls go through the same maps as the features.
    random = random_coder(sae, seed)
    arms = [
        FeatureArm(TRANSFERRED, source, target),
        FeatureArm(RANDOM, random, random.transferred(stitch.maps)),
    ]
    if stitch.null is not None:
        arms.append(FeatureArm(SHUFFLED, source, source.transferred(stitch.null)))
    return arms


def _attributors(
    pair: ModelPair,
    stitch: Stitch,
    unembeddings: tuple[Unembedding, Unembedding],
    kind: Attribution,
) -> tuple[Attributor, Attributor]:
    return (
        Attributor(pair.source, stitch.source_hook, unembeddings[0], kind),
        Attributor(pair.target, stitch.target_hook, unembeddings[1], kind),
    )


def _plan(pair: ModelPair, arm: FeatureArm, settings: FeatureEvaluationSettings) -> ReadingPlan:
    # A gradient needs logits at every position, so the vocabulary limits the batch too.
    d_logits = pair.source.d_vocab if settings.attribution == "gradient" else 0
    width = max(arm.source.n_features, d_logits)
    return ReadingPlan(settings.n_tokens, settings.context_length, settings.folds == "test", width)


@dataclass(frozen=True)
class _Text:
    """The documents with the plan by which they are read, once for each quantity."""

    pair: ModelPair
    """Models of the stitch."""
    stitch: Stitch
    """Stitch that decides masked positions and folds."""
    documents: Documents
    """Documents; they are read several times."""
    plan: ReadingPlan
    """Amount of text per pass."""
    progress: bool
    """Show progress bars."""

    def batches(self, label: str) -> Iterator[TokenBatch]:
        """Batches of windows from the start of the documents, with a progress bar."""
        batches = iterate_batches(self.pair, self.stitch, self.documents, self.plan)
        yield from tqdm(batches, desc=label, disable=not self.progress, leave=False)

    def documents_of_folds(self) -> Iterator[str]:
        """Documents of the folds that the plan reads."""
        folds = "test" if self.plan.test_fold_only else "all"
        is_read = fold_filter(self.documents, self.stitch.provenance, folds)
        reader = DocumentReader(self.documents, self.pair.source.tokenizer)
        yield from (document.text for document in reader if is_read(document))


def _refuse_silence(sums: FeaturePass, pair: ModelPair, stitch: Stitch) -> None:
    totals = sums.totals[0]
    if not totals.active.any():
        raise ValueError(
            f"none of the {totals.n_features} features fires at any of {totals.n_rows} positions "
            f"of {pair.source.name!r} at {stitch.source_hook!r}; give an SAE that was trained at "
            "this hook point, with inputs of this scale (see its normalize_activations)"
        )


# -------------------------------------------------------------------------------------------- table


def _measured_columns(sums: FeaturePass) -> pd.DataFrame:
    """Columns of densities, maxima and correlations."""
    source, target = sums.totals
    interval = sums.attribution[TRANSFERRED].interval()
    missing = np.full(source.n_features, np.nan)
    columns = {
        "feature": np.arange(source.n_features),
        "density_source": source.density,
        "density_target": target.density,
        "max_activation_source": source.maximum.numpy(),
        "max_activation_target": target.maximum.numpy(),
        "activation_r": sums.activation[TRANSFERRED].values(),
        "attribution_r": sums.attribution[TRANSFERRED].values(),
        "attribution_r_low": interval.low,
        "attribution_r_high": interval.high,
        "attribution_groups": sums.attribution[TRANSFERRED].effective_groups(),
    }
    for name in (RANDOM, SHUFFLED, OTHER):
        measured = name in sums.attribution
        columns[f"attribution_r_{name}"] = sums.attribution[name].values() if measured else missing
    return pd.DataFrame(columns)


def _fidelity_columns(stitch: Stitch, sae: Any) -> pd.DataFrame:
    """Columns ρ_write of decoder rows and ρ_read of encoder columns.

    NaN if the stitch has no held-out moments or the SAE no encoder matrix.
    """
    decoder, encoder = FeatureCoder(sae).decoder, encoder_columns(sae)
    write = read = np.full(len(decoder), np.nan)
    if stitch.held_out:
        write = fidelities(stitch, decoder, "write").numpy()
        read = read if encoder is None else fidelities(stitch, encoder, "read").numpy()
    return pd.DataFrame({"rho_write": write, "rho_read": read})


def _entropy_columns(
    arm: FeatureArm, unembeddings: tuple[Unembedding, Unembedding]
) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "entropy_share_source": unembeddings[0].null_share(arm.source.decoder).numpy(),
            "entropy_share_target": unembeddings[1].null_share(arm.target.decoder).numpy(),
        }
    )


def _rewrites(text: _Text, settings: FeatureEvaluationSettings) -> Sequence[Sequence[str]]:
    """Return the rewrites of the settings, or rewrites of sentences in the documents."""
    if settings.n_sentences == 0 or settings.rewrites is not None:
        # Rewrites of the user need no text.
        return list(settings.rewrites or [])[: settings.n_sentences]
    return rewritten_sentences(
        list(islice(text.documents_of_folds(), _SENTENCE_DOCUMENTS)),
        text.pair.source,
        n_sentences=settings.n_sentences,
        n_rewrites=settings.n_rewrites,
        seed=settings.seed,
    )


def _semantic_columns(
    pair: ModelPair, stitch: Stitch, arm: FeatureArm, rewrites: Sequence[Sequence[str]]
) -> pd.DataFrame:
    """Columns of semantic scores and kinds on both models; undecided without sentences."""
    if rewrites:
        source, target = (
            semantic_scores(model, hook, coder, rewrites, stitch.skip_first)
            for model, hook, coder in (
                (pair.source, stitch.source_hook, arm.source),
                (pair.target, stitch.target_hook, arm.target),
            )
        )
    else:
        # 0 sentences for every feature, so that every kind is undecided.
        n = arm.source.n_features
        missing = np.full(n, np.nan)
        source = target = SemanticScores(np.zeros(n, dtype=int), missing, missing)
    return pd.DataFrame(
        {
            "kind": source.kind,
            "semantic_score": source.score,
            "semantic_score_chance": source.chance,
            "n_sentences": source.n_sentences,
            "kind_target": target.kind,
            "semantic_score_target": target.score,
        }
    )


# ---------------------------------------------------------------------------------------- attention


def _attention_features(
    sums: FeaturePass, arm: FeatureArm, requested: int | Sequence[int]
) -> list[int]:
    """Indices of the features whose attention is measured.

    A number requests the features with the largest contribution to the stream: the largest
    activation times the length of the decoder row.
    """
    if not isinstance(requested, int):
        return [int(index) for index in requested]
    totals = sums.totals[0]
    size = totals.maximum * arm.source.decoder.norm(dim=1)
    # A rare feature may be strong but has too few examples to measure an effect on.
    size = torch.where(totals.active >= _MINIMUM_ACTIVE, size, 0.0)
    order = size.argsort(descending=True)[:requested]
    return [int(feature) for feature in order if size[feature] > 0]


def _examples(
    attributor: Attributor,
    coder: FeatureCoder,
    text: _Text,
    features: list[int],
    settings: FeatureEvaluationSettings,
) -> dict[int, list[Example]]:
    """Examples of each feature; reading stops as soon as every feature has enough."""
    if not features:
        return {}
    finder = ExampleFinder(features, settings.n_examples, settings.seed)
    for batch in text.batches("examples"):
        finder.add(batch, coder.encode(attributor.read(batch)))
        if finder.is_full:
            break
    return finder.examples


def _attention(
    pair: ModelPair, stitch: Stitch, arm: FeatureArm, examples: dict[int, list[Example]], seed: int
) -> pd.DataFrame:
    """Effects on attention heads of the source and of the target, in one table."""
    tables = [
        attention_effects(model, hook, coder, examples, role=role, seed=seed)
        for role, model, hook, coder in (
            ("source", pair.source, stitch.source_hook, arm.source),
            ("target", pair.target, stitch.target_hook, arm.target),
        )
    ]
    return pd.concat(tables, ignore_index=True)
