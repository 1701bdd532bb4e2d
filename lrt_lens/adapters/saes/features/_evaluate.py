"""Feature by feature: what is left of a sparse autoencoder's features when a stitch carries them to
another model?

    features = evaluate_features(pair, stitch, sae, documents)
    features.table              # a row a feature: densities, ρ_write, ρ_read, attribution correlation and its baselines, kind, entropy share
    features.summary            # all features, semantic ones, structural ones
    features.figure()           # Stitching, figures 4 and 14
    features.page(17)           # one feature: strongest places in both models, output tokens, scores

The pieces, each a module: ``coder`` (features on either model), ``attribution`` and
``feature_pass`` (correlations position by position), ``semantics`` and ``substitution`` (semantic
or structural), ``unembedding`` (entropy features), ``attention`` (attention (de)activation).

Text is streamed: memory is that of one batch, whatever the number of tokens. Source: Stitching
(arXiv 2506.06609) §5, appendices G to I. Its correlations come without intervals, with one baseline
and on text that the map may have seen; here only documents of the stitch's test fold are read
unless told otherwise.

Limits: one tokenizer. "Transferred" means carried over exactly; what a few steps of training make
of the features is a matter of ``transferred=``.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

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
    Arm,
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
from lrt_lens.data._documents import Documents, document_key, iterate_documents
from lrt_lens.data._parts import N_FOLDS, part_of
from lrt_lens.models._pair import ModelPair
from lrt_lens.stitching._fidelity import fidelities
from lrt_lens.stitching._stitch import Stitch

_SENTENCE_DOCUMENTS = 2000
"""Documents that sentences and substitutes are drawn from, at most."""
_REACH = 12
"""Tokens shown on either side of a strong place."""
_OUTPUT_TOKENS = 8


def evaluate_features(
    pair: ModelPair,
    stitch: Stitch,
    sae: Any,
    documents: Documents,
    *,
    transferred: Any = None,
    attribution: Attribution = "logits",
    n_tokens: int = 50_000,
    context_length: int = 128,
    folds: Literal["test", "all"] = "test",
    rewrites: Sequence[Sequence[str]] | None = None,
    n_sentences: int = 200,
    n_rewrites: int = 5,
    attention_features: int | Sequence[int] = 8,
    n_examples: int = 32,
    n_contexts: int = 8,
    seed: int = 0,
    progress: bool = True,
) -> FeatureEvaluation:
    """What becomes of each feature of ``sae`` under ``stitch``; see the module docstring.

    Args: pair: the models of the stitch. stitch: from the SAE's hook point. sae: a SAELens SAE of
        the source model, of any architecture. documents: text, as `fit_stitches` takes it; read
        twice or three times, so a list, file or data set. transferred: the features' own SAE on the
        target, one by one the same features, where it is not simply the source's carried over.
        attribution: ``"logits"`` as in the paper, or ``"gradient"``. n_tokens: counted positions
        after which no further document is read. context_length: tokens a window, BOS included.
        folds: ``"test"`` reads only documents of the harvest's test fold; ``"all"`` reads every
        document: for text that had no part in the fit. rewrites: [[sentence, rewrite, …], …] of
        your own, all of equally many versions; without them content words are exchanged.
        n_sentences: sentences to rewrite; 0 leaves semantics out. n_rewrites: rewrites a sentence
        (the paper's k). attention_features: features whose effect on attention is measured: so many
        of the largest contribution, or their indices; 0 for none. n_examples: texts for each of
        them. n_contexts: strongest places kept for each feature. seed: of the random SAE,
        sentences, examples and bootstraps. progress: show a bar.

    Raises: MismatchError: an SAE, models or a transferred SAE that are not the stitch's; models of
        different tokenizers. IndexError: a feature that the SAE does not have.
        TooFewDocumentsError, ValueError: no text to read, no sentence that can be rewritten, or no
        feature that fires.
    """
    chosen = _check(
        pair,
        stitch,
        sae,
        transferred,
        attribution,
        folds,
        rewrites,
        n_sentences,
        attention_features,
    )
    arms = _arms(stitch, sae, transferred, seed)
    unembeddings = (Unembedding.of(pair.source), Unembedding.of(pair.target))
    width = max(arms[0].source.n_features, pair.source.d_vocab if attribution == "gradient" else 0)
    plan = ReadingPlan(n_tokens, context_length, folds == "test", width)

    def read(what: str) -> Iterator[TokenBatch]:
        yield from tqdm(
            iterate_batches(pair, stitch, documents, plan),
            desc=what,
            disable=not progress,
            leave=False,
        )

    attributors = [
        Attributor(model, hook, unembedding, attribution)
        for model, hook, unembedding in zip(
            (pair.source, pair.target),
            (stitch.source_hook, stitch.target_hook),
            unembeddings,
            strict=True,
        )
    ]
    found = FeaturePass(arms, *attributors, n_contexts=n_contexts, reach=_REACH, seed=seed).run(
        read("features")
    )
    if not found.sides[0].active.any():
        raise ValueError(
            f"none of the {found.sides[0].n_features} features fires at any of {found.sides[0].n_rows} positions of {pair.source.name!r} at "
            f"{stitch.source_hook!r}; the SAE is not at home there, or its input has another scale (normalize_activations)"
        )
    table = pd.concat([_measured(found), _from_moments(stitch, sae)], axis=1)
    table = pd.concat([table, _entropy(arms[0], unembeddings)], axis=1)
    texts = _sentences(pair, stitch, documents, folds, rewrites, n_sentences, n_rewrites, seed)
    table = pd.concat([table, _semantics(pair, stitch, arms[0], texts)], axis=1)
    features = chosen if chosen is not None else _largest(found, arms[0], attention_features)
    examples = (
        _examples(attributors[0], arms[0].source, read("examples"), features, n_examples, seed)
        if features
        else {}
    )
    return FeatureEvaluation(
        table=table,
        attention=_attention(pair, stitch, arms[0], examples, seed),
        source=pair.source.name,
        target=pair.target.name,
        source_hook=stitch.source_hook,
        target_hook=stitch.target_hook,
        n_tokens=found.sides[0].n_rows,
        attribution=attribution,
        entropy_share_random=(unembeddings[0].random_share(), unembeddings[1].random_share()),
        contexts=found.contexts,
        output_tokens=(
            output_tokens(unembeddings[0], arms[0].source.decoder, _OUTPUT_TOKENS),
            output_tokens(unembeddings[1], arms[0].target.decoder, _OUTPUT_TOKENS),
        ),
        rewrites=texts,
        tokenizer=pair.source.tokenizer,
        seed=seed,
    )


# ---------------------------------------------------------------------------------------- arguments


def _check(
    pair: ModelPair,
    stitch: Stitch,
    sae: Any,
    transferred: Any,
    attribution: str,
    folds: str,
    rewrites: Sequence[Sequence[str]] | None,
    n_sentences: int,
    attention_features: int | Sequence[int],
) -> list[int] | None:
    """Indices of the features whose attention is measured; None where so many are to be chosen."""
    for name, given, known in (
        ("attribution", attribution, ("logits", "gradient")),
        ("folds", folds, ("test", "all")),
    ):
        if given not in known:
            raise ValueError(f"{name} is {given!r}; expected one of {list(known)}")
    pair.refuse_two_tokenizers(
        "evaluate_features",
        "take two models of one tokenizer, or judge directions by stitch.fidelity",
    )
    stitch.check(pair.source, pair.target)
    check_sae(sae, pair, stitch)
    if transferred is not None:
        check_transferred(sae, transferred, pair, stitch)
    if rewrites is not None and n_sentences:
        check_rewrites(rewrites)
    if isinstance(attention_features, int):
        return None
    return [check_index(index, int(sae.W_dec.shape[0])) for index in attention_features]


def _arms(stitch: Stitch, sae: Any, transferred: Any, seed: int) -> list[Arm]:
    source = FeatureCoder(sae)
    target = source.carried(stitch.maps) if transferred is None else FeatureCoder(transferred)
    drawn = random_coder(sae, seed)
    arms = [Arm(TRANSFERRED, source, target), Arm(RANDOM, drawn, drawn.carried(stitch.maps))]
    return (
        arms if stitch.null is None else [*arms, Arm(SHUFFLED, source, source.carried(stitch.null))]
    )


# -------------------------------------------------------------------------------------------- table


def _measured(found: FeaturePass) -> pd.DataFrame:
    """Densities, maxima and correlations."""
    interval = found.attribution[TRANSFERRED].interval()
    missing = np.full(found.sides[0].n_features, np.nan)
    values = {
        name: found.attribution[name].values() if name in found.attribution else missing
        for name in (RANDOM, SHUFFLED, OTHER)
    }
    return pd.DataFrame(
        {
            "feature": np.arange(found.sides[0].n_features),
            "density_source": found.sides[0].density,
            "density_target": found.sides[1].density,
            "max_activation_source": found.sides[0].maximum.numpy(),
            "max_activation_target": found.sides[1].maximum.numpy(),
            "activation_r": found.activation[TRANSFERRED].values(),
            "attribution_r": found.attribution[TRANSFERRED].values(),
            "attribution_r_low": np.clip(interval.low, -1, 1),
            "attribution_r_high": np.clip(interval.high, -1, 1),
        }
        | {f"attribution_r_{name}": value for name, value in values.items()}
    )


def _from_moments(stitch: Stitch, sae: Any) -> pd.DataFrame:
    """ρ_write of decoder rows and ρ_read of encoder columns; NaN where the stitch carries no
    held-out moments.
    """
    decoder, encoder = FeatureCoder(sae).decoder, encoder_columns(sae)
    missing = np.full(len(decoder), np.nan)
    write = fidelities(stitch, decoder, "write").numpy() if stitch.held_out else missing
    read = (
        fidelities(stitch, encoder, "read").numpy()
        if stitch.held_out and encoder is not None
        else missing
    )
    return pd.DataFrame({"rho_write": write, "rho_read": read})


def _entropy(arm: Arm, unembeddings: tuple[Unembedding, Unembedding]) -> pd.DataFrame:
    shares = [
        unembedding.null_share(coder.decoder).numpy()
        for coder, unembedding in zip((arm.source, arm.target), unembeddings, strict=True)
    ]
    return pd.DataFrame({"entropy_share_source": shares[0], "entropy_share_target": shares[1]})


def _sentences(
    pair: ModelPair,
    stitch: Stitch,
    documents: Documents,
    folds: str,
    rewrites: Sequence[Sequence[str]] | None,
    n_sentences: int,
    n_rewrites: int,
    seed: int,
) -> Sequence[Sequence[str]]:
    if n_sentences == 0 or rewrites is not None:
        return list(rewrites or [])[:n_sentences]
    texts = iterate_documents(documents, pair.source.tokenizer)
    if folds == "test":
        texts = (
            text for text in texts if part_of(document_key(text, stitch.provenance.seed)) >= N_FOLDS
        )
    return rewritten_sentences(
        list(islice(texts, _SENTENCE_DOCUMENTS)),
        pair.source,
        n_sentences=n_sentences,
        n_rewrites=n_rewrites,
        seed=seed,
    )


def _semantics(
    pair: ModelPair, stitch: Stitch, arm: Arm, texts: Sequence[Sequence[str]]
) -> pd.DataFrame:
    """Columns of the source's scores, and the kind on the target."""
    n = arm.source.n_features
    if not texts:
        nothing = np.full(n, np.nan)
        source = target = SemanticScores(np.zeros(n, dtype=int), nothing, nothing)
    else:
        source = semantic_scores(
            pair.source, stitch.source_hook, arm.source, texts, stitch.skip_first
        )
        target = semantic_scores(
            pair.target, stitch.target_hook, arm.target, texts, stitch.skip_first
        )
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


def _largest(found: FeaturePass, arm: Arm, wanted: int | Sequence[int]) -> list[int]:
    """The features whose largest contribution to the stream, activation times length of the decoder
    row, is largest.
    """
    size = found.sides[0].maximum * arm.source.decoder.norm(dim=1)
    # A feature of a single strong place has no examples to report on.
    size = torch.where(found.sides[0].active >= 64, size, 0.0)
    order = size.argsort(descending=True)[: int(wanted) if isinstance(wanted, int) else 0]
    return [int(feature) for feature in order if size[feature] > 0]


def _examples(
    attributor: Attributor,
    coder: FeatureCoder,
    batches: Iterable[TokenBatch],
    features: list[int],
    n_examples: int,
    seed: int,
) -> dict[int, list[Example]]:
    finder = ExampleFinder(features, n_examples, seed)
    for batch in batches:
        finder.add(batch, coder.encode(attributor.read(batch)))
        if finder.is_full:
            break
    return finder.found


def _attention(
    pair: ModelPair, stitch: Stitch, arm: Arm, examples: dict[int, list[Example]], seed: int
) -> pd.DataFrame:
    return pd.concat(
        [
            attention_effects(
                pair.source, stitch.source_hook, arm.source, examples, role="source", seed=seed
            ),
            attention_effects(
                pair.target, stitch.target_hook, arm.target, examples, role="target", seed=seed
            ),
        ],
        ignore_index=True,
    )
