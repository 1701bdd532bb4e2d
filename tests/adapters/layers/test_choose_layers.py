"""Hook pairs are ordered by the artefact, from quantities that the test fold does not touch."""

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import norm

from lrt_lens.adapters.layers import LayerChoice, LayerChoiceSettings, choose_layers
from lrt_lens.adapters.layers._artefact_texts import ModelReading
from lrt_lens.adapters.layers._predictions import Predictions, auroc_of, pair_fidelities
from lrt_lens.adapters.layers._reading import label_learner, read_hook
from lrt_lens.data import ChoiceItems, ContrastSet
from lrt_lens.errors import HookPointError, MismatchError
from lrt_lens.figures import layer_choice_figure
from lrt_lens.models import ModelPair
from lrt_lens.moments import CrossMoments
from lrt_lens.stitching import Stitch, fidelities_cv, fit_grid, fit_stitches, survey
from tests.figures.counts import counts_of

CONTRAST = ContrastSet(
    [
        f"the {noun} was {word} in the garden"
        for noun in ("cat", "dog", "boy")
        for word in ("happy", "good", "new", "quick")
    ],
    [
        f"the {noun} was {word} in the garden"
        for noun in ("cat", "dog", "boy")
        for word in ("sad", "bad", "old", "slow")
    ],
    name="mood",
)
LABELLED = (CONTRAST.texts, ["happy"] * 12 + ["sad"] * 12)
PAIRS = [i % 12 for i in range(24)]


@pytest.fixture(scope="module")
def grid(pair: ModelPair, corpus: list[str]) -> Any:
    return fit_stitches(pair, corpus, n_tokens=None, context_length=32, null="none", progress=False)


@pytest.fixture(scope="module")
def choice(pair: ModelPair, grid: Any) -> LayerChoice:
    return choose_layers(pair, grid, CONTRAST, read="mean", target=True)


# ------------------------------------------------------------------------------------- predictions


def test_every_hook_pair_has_a_row_and_the_best_one_a_stitch(
    choice: LayerChoice, grid: Any
) -> None:
    table = choice.table
    assert len(choice) == len(grid) == 6
    assert table["predicted"].is_monotonic_decreasing
    assert choice.best == (table["source_hook"][0], table["target_hook"][0])
    assert isinstance(choice.stitch, Stitch)
    assert (choice.stitch.source_hook, choice.stitch.target_hook) == choice.best
    assert set(table["fidelity_of"]) == {"direction"}
    assert "fidelity × gain" in choice.rule


def test_a_vector_is_predicted_by_its_fidelity_and_the_gain(
    pair: ModelPair, choice: LayerChoice, grid: Any
) -> None:
    from lrt_lens.adapters.vectors import SteeringVector

    row = choice.table.iloc[1]
    hooks = (row["source_hook"], row["target_hook"])
    vector = SteeringVector.mean_difference(pair.source, CONTRAST, at=hooks[0], read="mean")
    rho = float(fidelities_cv(grid, hooks, vector.direction[None], "read")[0])
    assert row["rho_read"] == pytest.approx(rho, rel=1e-5)
    scores = grid.scores.set_index(["source_hook", "target_hook"]).loc[hooks]
    assert row["predicted"] == pytest.approx(rho * scores["gain_cv"], rel=1e-5)
    native = SteeringVector.mean_difference(pair.target, CONTRAST, at=hooks[1], read="mean")
    agreement = grid[hooks].transfer(vector).cosine(native)
    assert row["agreement"] == pytest.approx(agreement, abs=1e-5)


def test_a_probe_is_predicted_by_the_attenuation_of_its_classes(pair: ModelPair, grid: Any) -> None:
    choice = choose_layers(pair, grid, LABELLED, groups=PAIRS, read="mean")
    row = choice.table.iloc[0]
    expected = norm.cdf(row["rho_read"] * row["d_prime"] / math.sqrt(2))
    assert row["predicted"] == pytest.approx(expected)
    assert choice.role == "probe"
    assert auroc_of(0.0) == 0.5


def test_two_normal_distributions_have_the_predicted_auroc() -> None:
    rng = np.random.default_rng(0)
    ours, others = rng.normal(1.2, 1, 4000), rng.normal(0, 1, 4000)
    assert (ours[:, None] > others).mean() == pytest.approx(auroc_of(1.2), abs=0.01)


def test_a_probe_is_scored_on_the_target_if_it_read_the_texts(pair: ModelPair, grid: Any) -> None:
    from sklearn.metrics import roc_auc_score

    from lrt_lens.adapters.probes import LinearProbe

    choice = choose_layers(pair, grid, LABELLED, groups=PAIRS, read="mean", target=True)
    assert choice.rule.startswith("AUROC of the transferred probe")
    np.testing.assert_allclose(choice.table["predicted"], choice.table["transferred_auroc"])
    # By hand: probes of the other folds, transferred, on the held-out texts.
    row = choice.table.iloc[2]
    hooks = (row["source_hook"], row["target_hook"])
    texts, labels = LABELLED
    learner = label_learner(labels, PAIRS, penalty=0.1, n_folds=5, seed=0)
    logits = np.zeros(len(texts))
    for train, held in learner.folds:
        fitted = LinearProbe.fit(
            pair.source, [texts[i] for i in train], [labels[i] for i in train],
            at=hooks[0], read="mean", penalties=(0.1,),
        )  # fmt: skip
        transferred = grid[hooks].transfer(fitted)
        rows, _ = transferred.rows(pair.target, [texts[i] for i in held])
        logits[held] = transferred.logits(rows)[:, 0]
    assert row["transferred_auroc"] == pytest.approx(roc_auc_score(learner.truth, logits), abs=1e-3)


def test_native_vectors_are_measured_with_items(pair: ModelPair, grid: Any) -> None:
    items = ChoiceItems(
        ["the cat was", "the dog was", "the boy was", "the girl was"],
        [" happy"] * 4, [" sad"] * 4,
    )  # fmt: skip
    neutral = ["the river ran under the old house and then they slept in the garden"] * 3
    choice = choose_layers(pair, grid, CONTRAST, items=items, neutral=neutral, damage=0.05)
    known = choice.table.dropna(subset=["native_effect"])
    assert len(known)
    np.testing.assert_allclose(known["predicted"], known["fidelity"] * known["native_effect"])
    assert set(known.groupby("target_hook")["native_effect"].nunique()) == {1}


# ------------------------------------------------------------------------------------ known answer


@pytest.fixture(scope="module")
def planted() -> tuple[Any, ModelReading]:
    """A grid in which only layer 1 → layer 1 transfers the concept, the first dimension of layer 1.

    All other dimensions transfer to target layer 0 as well, and better.
    """
    sources = [f"blocks.{layer}.hook_resid_post" for layer in (0, 1)]
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    n, d = 2400, 8
    x = {hook: randn(n, d) for hook in sources}
    other = {hook: torch.cat([randn(n, 1), x[hook][:, 1:]], 1) for hook in sources}
    y = {
        sources[0]: torch.cat([other[sources[0]], other[sources[1]]], 1) + 0.1 * randn(n, 2 * d),
        sources[1]: torch.cat([randn(n, d), x[sources[1]]], 1) + 0.5 * randn(n, 2 * d),
    }
    moments = CrossMoments(
        pairs=tuple((s, t) for s in sources for t in sources),
        moment_dtype=torch.float64,
        null="none",
    )
    for part in range(13):
        index = torch.arange(part, n, 13)
        moments.add_block(
            part, {h: v[index] for h, v in x.items()}, {h: v[index] for h, v in y.items()}
        )
    truth = np.arange(80) % 2
    learner = label_learner(list(map(int, truth)), None, penalty=0.1, n_folds=5, seed=0)
    rows = {hook: randn(80, d).numpy() for hook in sources}
    # The concept is in layer 1 of the source alone.
    rows[sources[1]][:, 0] += 2 * truth
    hooks = {hook: read_hook(own, learner) for hook, own in rows.items()}
    return moments.fit(), ModelReading(learner, hooks, rows)


def test_the_pair_that_carries_the_concept_is_found(planted: tuple[Any, ModelReading]) -> None:
    grid, reading = planted
    pairs = list(grid.folds)
    fidelities = pair_fidelities(grid, pairs, reading, LayerChoiceSettings())
    table = Predictions("probe", grid.scores, reading, None, {}, fidelities, {}).table(pairs)
    best = (table["source_hook"][0], table["target_hook"][0])
    assert best == ("blocks.1.hook_resid_post", "blocks.1.hook_resid_post")
    first, second = table["predicted"].tolist()[:2]
    assert first > 0.75 > second
    # The score of the map alone prefers the layer without the concept.
    assert grid.best(by="r2_uniform_cv").target_hook == "blocks.0.hook_resid_post"


def test_random_directions_are_the_control(planted: tuple[Any, ModelReading]) -> None:
    grid, reading = planted
    pair = ("blocks.1.hook_resid_post", "blocks.0.hook_resid_post")
    found = pair_fidelities(grid, [pair], reading, LayerChoiceSettings())[pair]
    # Seven of eight dimensions arrive at layer 0, but not the concept.
    assert found.read.value < 0.6 < 0.9 < found.random


# --------------------------------------------------------------------------------------- test fold


def with_noise_in_the_test_fold(moments: CrossMoments) -> CrossMoments:
    """A copy of moments whose test fold has as many rows of noise again, far longer than others."""
    changed = copy.deepcopy(moments)
    generator = torch.Generator().manual_seed(0)
    for part in moments.parts.test:
        x, y = (
            {
                hook: 30 * torch.randn(int(moments.n[part]), len(one.shift), generator=generator)
                for hook, one in side.items()
            }
            for side in (moments.source, moments.target)
        )
        if moments.n[part]:
            changed.add_block(part, x, y)
    return changed


@pytest.mark.parametrize("texts", [CONTRAST, LABELLED], ids=["vector", "probe"])
def test_a_corrupted_test_fold_changes_no_choice(pair: ModelPair, grid: Any, texts: Any) -> None:
    other = with_noise_in_the_test_fold(grid.moments).fit()
    before, after = (
        choose_layers(pair, one, texts, read="mean", target=True) for one in (grid, other)
    )
    difference = np.abs(other.scores["r2"].to_numpy() - grid.scores["r2"].to_numpy())
    assert (difference > 0.05).all(), "scores of the test fold change"
    assert before.best == after.best
    for column in before.table.select_dtypes(float).columns:
        np.testing.assert_allclose(before.table[column], after.table[column], rtol=1e-7, atol=1e-9)


# ------------------------------------------------------------------------------------------ survey


@pytest.fixture(scope="module")
def surveyed(pair: ModelPair, corpus: list[str]) -> Any:
    return survey(pair, corpus, n_tokens=2_000, context_length=32, progress=False)


def test_a_survey_predicts_by_the_mean_direction_and_says_so(
    pair: ModelPair, surveyed: Any
) -> None:
    choice = choose_layers(pair, surveyed, CONTRAST, read="mean")
    assert set(choice.table["fidelity_of"]) == {"mean direction"}
    assert choice.table["rho_read"].isna().to_numpy().all()
    scores = surveyed.scores.set_index(["source_hook", "target_hook"]).loc[choice.best]
    row = choice.table.iloc[0]
    assert row["fidelity"] == pytest.approx(math.sqrt(max(scores["r2_uniform_cv"], 0)))
    assert row["predicted"] == pytest.approx(row["fidelity"] * scores["gain_cv"])
    with pytest.raises(HookPointError, match=r"pairs=\[choice\.best\]"):
        _ = choice.stitch


def test_rows_that_were_only_surveyed_come_behind_those_with_a_fidelity(
    pair: ModelPair, grid: Any, surveyed: Any
) -> None:
    first = grid.moments.pairs[0]
    one = fit_grid(grid.moments, pairs=[first])
    joined = replace(one, scores=surveyed.joined(one.scores))
    choice = choose_layers(pair, joined, CONTRAST, read="mean", target=True)
    assert choice.best == first
    assert list(choice.table["fidelity_of"]) == ["direction"] + ["mean direction"] * 5


# ------------------------------------------------------------------------------------------- views


def test_the_figure_outlines_the_best_pair_above_the_reading(choice: LayerChoice) -> None:
    figure = choice.figure()
    assert counts_of(figure) == "n = 24 texts"
    assert figure.data[0].type == "heatmap"
    row = choice.table.iloc[0]
    z = np.array(figure.data[0].z)
    assert z.max() == pytest.approx(row["predicted"])
    (outline,) = figure.layout.shapes
    column, line = int(outline.x0 + 0.5), int(outline.y0 + 0.5)
    assert z[line][column] == pytest.approx(row["predicted"])
    assert list(figure.data[1].y) == pytest.approx(
        choice.table.drop_duplicates("source_hook").sort_values("source_hook")["auroc"].tolist()
    )
    colorbar = choice.figure("agreement").layout.coloraxis.colorbar
    assert colorbar.title.text == "cosine to the native direction"
    with pytest.raises(ValueError, match="cannot show column 'flag'"):
        layer_choice_figure(choice.table, value="flag")
    with pytest.raises(ValueError, match="two rows"):
        layer_choice_figure(pd.concat([choice.table, choice.table]))


def test_a_notebook_shows_the_best_pairs_and_the_rule(choice: LayerChoice) -> None:
    html = choice._repr_html_()
    assert choice.rule in html
    assert choice.best[0] in html
    assert "6 hook pairs" in repr(choice)


# ---------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("texts", "options", "kind", "message"),
    [
        ((LABELLED[0], ["happy"] * 24), {}, ValueError, "a probe needs texts of at least two"),
        ((LABELLED[0], ["happy"] * 3), {}, ValueError, "give one label per text"),
        (CONTRAST.texts, {}, TypeError, "expected a ContrastSet"),
        (CONTRAST, {"groups": PAIRS}, ValueError, "groups are for labelled texts"),
        (LABELLED, {"groups": PAIRS[:3]}, ValueError, "give one group per text"),
        (LABELLED, {"read": "max"}, ValueError, "read='max' are for contrast sets"),
        (CONTRAST, {"method": "sum"}, ValueError, "method is 'sum'"),
        (CONTRAST, {"n_folds": 1}, ValueError, "expected at least 2 of each"),
        (CONTRAST, {"neutral": ["a cat"]}, ValueError, "items is missing"),
        (ContrastSet(CONTRAST.positive, CONTRAST.positive), {}, ValueError, "have the same states"),
    ],
)
def test_what_cannot_be_chosen_for_is_refused(
    pair: ModelPair, grid: Any, texts: Any, options: dict, kind: type[Exception], message: str,
    unchecked: None,
) -> None:  # fmt: skip
    with pytest.raises(kind, match=message):
        choose_layers(pair, grid, texts, **options)


def test_foreign_models_are_refused(pair: ModelPair, grid: Any, surveyed: Any) -> None:
    swapped = ModelPair(pair.target, pair.source)
    for scored in (grid, surveyed):
        with pytest.raises(MismatchError, match="source model"):
            choose_layers(swapped, scored, CONTRAST)


def test_nothing_to_choose_from_is_refused(pair: ModelPair, surveyed: Any) -> None:
    empty = replace(surveyed, scores=surveyed.scores.head(0))
    with pytest.raises(HookPointError, match="has no hook pairs"):
        choose_layers(pair, empty, CONTRAST)


def test_a_hook_point_without_an_artefact_is_flagged(pair: ModelPair, corpus: list[str]) -> None:
    # All texts end in the same token, so the embedding of the last token is the same for both.
    pairs = [("hook_embed", 1), (1, 1)]
    grid = fit_stitches(
        pair, corpus, pairs=pairs, n_tokens=None, context_length=32, null="none", progress=False
    )
    table = choose_layers(pair, grid, CONTRAST, read="last").table
    assert table["source_hook"].tolist()[0] == "blocks.1.hook_resid_post"
    assert "the classes have the same states" in table["flag"][1]
    assert math.isnan(table["predicted"].tolist()[1])
