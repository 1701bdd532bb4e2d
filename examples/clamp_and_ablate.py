"""A concept put in by clamping (Stitching §4), a behaviour taken out by ablation (Arditi et al.), each by a direction from the small model.

    python examples/clamp_and_ablate.py --out behaviour-report            # bundled pair, a few minutes on two cores; --quick half a minute

*Clamping*: openings of stories are continued with the component along review − story held at the reviews' mean, and openings of reviews with
the component along positive − negative held at the mean of positive texts; a bag of words (scikit-learn, learnt on the bundled documents) says
how often the continuation is a review, or positive. *Ablation*: reviews end in "Verdict:", and the preference for the right verdict is
measured with the sentiment direction projected out at one hook point and everywhere; damage on neutral text stands beside it.
"""

import logging
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import tyro
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline

import lrt_lens as lrt
from lrt_lens.data.demo import demo_prompts
from lrt_lens.evaluation.ablation import evaluate_ablation
from lrt_lens.evaluation.clamping import ClampEvaluation, evaluate_clamping
from lrt_lens.report.behaviour import clamp_figure
from lrt_lens.report.results import write_results

logger = logging.getLogger("clamp_and_ablate")

_WORDS = 60
"""Length of the pieces that classifiers learn on, about that of a continuation."""
SAYS = (
    "Stitching reports the clipped ratio of shares over many languages on Gemma-2-2B → 9B, in a plot without numbers; ours are two concepts "
    "on a pair of 1.5 and 5 million parameters, judged by a bag of words: they show the measure and its controls, not the paper's result."
)


def main(
    out: Path = Path("behaviour-report"), source_layer: int = 2, n_tokens: int = 120_000, n_samples: int = 12, n_random: int = 4, seed: int = 0,
    device: str = "cpu", quick: bool = False,
) -> None:  # fmt: skip
    """Fit a stitch, clamp two concepts, ablate one.

    Args:
        out: folder for clamp.html, ablation.html and behaviour.json.
        source_layer: layer of the small model; the target layer is chosen by cross-validation.
        n_tokens: tokens of the harvest.
        n_samples: continuations of each opening.
        n_random: random directions.
        seed: of draws, samples and bootstraps.
        device: where models run.
        quick: few of everything: shows that it runs.
    """
    if quick:
        n_tokens, n_samples, n_random = 20_000, 1, 1
    n_texts = 200 if quick else None
    pair = lrt.demo_pair(device=device)
    documents = lrt.demo_documents()
    grid = lrt.fit_stitches(pair, documents, source_layers=[source_layer], n_tokens=n_tokens, null=False)
    # Alone, so that the map of shuffled pairs comes whole.
    stitch = lrt.fit_stitches(
        pair, documents, source_layers=[source_layer], target_layers=[grid.best().target_hook], n_tokens=n_tokens, null="full"
    ).best()
    clamped, accuracies = [], {}
    for concept, (contrast, prompts, (classifier, accuracy)) in concepts(n_texts).items():
        vector = lrt.SteeringVector.mean_difference(pair.source, contrast, at=stitch.source_hook, read="mean")
        clamped.append(evaluate_clamping(pair, stitch, vector, prompts, classifier, n_samples=n_samples, n_random=n_random, seed=seed))
        accuracies[concept] = accuracy
    learnt, held_out = lrt.demo_contrast("sentiment").split(0.5, seed=seed)
    if quick:
        held_out = lrt.ContrastSet(held_out.positive[:10], held_out.negative[:10])
    vector = lrt.SteeringVector.mean_difference(pair.source, learnt, at=stitch.source_hook, read="mean")
    ablated = evaluate_ablation(
        pair, stitch, vector, neutral=lrt.demo_neutral()[: 4 if quick else 40], items=verdicts(held_out), n_random=n_random, seed=seed
    )
    _write(out, stitch, clamped, ablated.summary, accuracies, seed)
    ablated.figure().write_html(out / "ablation.html", include_plotlyjs=True)


def concepts(n_texts: int | None = None) -> dict[str, tuple[lrt.ContrastSet, list[str], tuple[Callable[[str], bool], float]]]:
    """Contrast set, openings without the concept, classifier with its cross-validated accuracy."""
    pieces = {register: [_piece(text) for text in lrt.demo_documents(register)[:n_texts]] for register in ("review", "story")}
    register = lrt.ContrastSet(pieces["review"][:100], pieces["story"][:100], name="register: review")
    rated = {
        word: [_piece(text) for text in lrt.demo_documents("review")[:n_texts] if f"Verdict: {word}" in text]
        for word in ("positive", "negative")
    }
    sentiment = lrt.demo_contrast("sentiment")
    return {
        "review": (register, demo_prompts("mood"), bag_of_words(pieces["review"][100:], pieces["story"][100:])),
        "positive": (
            sentiment, demo_prompts("sentiment"),
            bag_of_words([*rated["positive"], *sentiment.positive], [*rated["negative"], *sentiment.negative]),
        ),
    }  # fmt: skip


def bag_of_words(positive: list[str], negative: list[str]) -> tuple[Callable[[str], bool], float]:
    """(text → bool, accuracy in 5-fold cross-validation) of a logistic regression on word counts."""
    model = make_pipeline(
        CountVectorizer(binary=True, ngram_range=(1, 2), min_df=2), LogisticRegression(max_iter=1000, class_weight="balanced")
    )
    texts, labels = [*positive, *negative], [True] * len(positive) + [False] * len(negative)
    accuracy = float(cross_val_score(model, texts, labels, cv=5, scoring="balanced_accuracy").mean())
    model.fit(texts, labels)
    return lambda text: bool(model.predict([text])[0]), accuracy


def verdicts(contrast: lrt.ContrastSet) -> lrt.ChoiceItems:
    """Each text followed by "Verdict:"; the positive continuation is the right verdict."""
    prompts = [f"{text}\nVerdict:" for text in contrast.texts]
    right = [" positive"] * len(contrast) + [" negative"] * len(contrast)
    wrong = [" negative"] * len(contrast) + [" positive"] * len(contrast)
    return lrt.ChoiceItems(prompts, right, wrong, name="right verdict")


def _piece(text: str) -> str:
    """The first words, without the line that gives the label away."""
    return " ".join(re.sub(r"Verdict: \w+", "", text).split()[:_WORDS])


def _write(
    out: Path, stitch: lrt.Stitch, clamped: list[ClampEvaluation], ablated: pd.DataFrame, accuracies: dict[str, float], seed: int
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    clamp = pd.concat([result.summary for result in clamped], ignore_index=True)
    clamp_figure(clamp).write_html(out / "clamp.html", include_plotlyjs=True)
    texts = pd.concat([result.table for result in clamped], ignore_index=True)
    texts.to_csv(out / "continuations.csv", index=False)
    arguments = {"stitch": repr(stitch), "seed": seed, "classifier_accuracy": accuracies}
    write_results(out / "behaviour.json", arguments, {"says": SAYS, "clamp": clamp, "ablation": ablated})
    logger.info(
        "%s\nclassifiers: %s\n%s\n\n%s\n%s", stitch, accuracies, *(t.round(3).to_string(index=False) for t in (clamp, ablated)), SAYS
    )


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    tyro.cli(main)
