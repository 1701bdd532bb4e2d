"""The bundled models and texts, and the demo from end to end on little text and few draws."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

import lrt_lens as lrt
from lrt_lens.bundled import CONCEPTS, DEMO_FOLDER, demo_domains, demo_prompts
from lrt_lens.demo import run_demo, write_demo
from lrt_lens.stitching._grid import COLUMNS


def stem(word: str) -> str:
    for ending in ("ing", "ed", "ly", "est", "er", "es", "s", "e", "y"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word


def content_words(texts: list[str]) -> set[str]:
    words = {word for text in texts for word in re.findall(r"[a-z']+", text.lower())}
    return {stem(word) for word in words - ENGLISH_STOP_WORDS}


@pytest.fixture(scope="module")
def demo_pair() -> lrt.ModelPair:
    return lrt.demo_pair()


def test_the_bundle_is_small_and_holds_two_sizes_in_bfloat16() -> None:
    from safetensors import safe_open

    assert (
        sum(path.stat().st_size for path in DEMO_FOLDER.rglob("*") if path.is_file()) <= 25_000_000
    )
    for size in ("small", "large"):
        with safe_open(DEMO_FOLDER / size / "model.safetensors", framework="pt") as weights:
            names = list(weights.keys())
            assert {weights.get_tensor(name).dtype for name in names} == {torch.bfloat16}


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_member_or_concept_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"'huge' is not in the bundled family; it has \['large', 'small'\]"
    ):
        lrt.demo_pair("huge")
    with pytest.raises(ValueError, match="'taste' is no bundled concept"):
        lrt.demo_contrast("taste")  # type: ignore[arg-type]


def test_larger_predicts_better_and_both_know_their_text(demo_pair: lrt.ModelPair) -> None:
    texts = lrt.demo_documents("story")[:12]
    small, large = demo_pair.source.loss(texts), demo_pair.target.loss(texts)
    assert large < small - 0.1
    assert small < 4.5


def test_documents_hold_both_registers_in_turn() -> None:
    stories, reviews = set(lrt.demo_documents("story")), set(lrt.demo_documents("review"))
    front = lrt.demo_documents()[:200]
    shares = [
        sum(len(text) for text in front if text in register) for register in (stories, reviews)
    ]
    assert min(shares) > 0.4 * sum(shares)


def test_domains_divide_the_documents_by_kind() -> None:
    domains = demo_domains()
    assert list(domains) == ["review", "tinystories", "bedtime", "campfire", "child", "story"]
    assert domains["review"] == lrt.demo_documents("review")
    stories = [text for name, texts in domains.items() if name != "review" for text in texts]
    assert sorted(stories) == sorted(lrt.demo_documents("story"))


@pytest.mark.parametrize("concept", CONCEPTS)
def test_contrast_sets_are_large_and_varied(concept: Any) -> None:
    contrast = lrt.demo_contrast(concept)
    assert len(contrast) >= 200
    assert len({" ".join(text.split()[:4]) for text in contrast.positive}) >= 150
    assert len(set(contrast.texts)) == 2 * len(contrast)


@pytest.mark.parametrize("concept", CONCEPTS)
def test_continuations_share_no_content_word_with_the_contrast_set(concept: Any) -> None:
    items = lrt.demo_items(concept)
    assert len(items) >= 50
    assert not content_words([*items.positive, *items.negative]) & content_words(
        lrt.demo_contrast(concept).texts
    )


@pytest.mark.slow
@pytest.mark.minutes
def test_the_demo_writes_what_it_promises(tmp_path: Path) -> None:
    result = run_demo(
        concepts=("sentiment",),
        n_tokens=8_000,
        n_random=2,
        loss_tokens=600,
        progress=False,
        vectors=tmp_path / "vectors",
    )
    report = write_demo(result, tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(COLUMNS) == set(results["grid"][0])
    assert results["schema_version"] == "lrt_lens.results/1"
    assert results["pair"] == {"source": "small", "target": "large"}
    assert {"source_hook", "target_hook", "r2", "r2_uniform", "r2_null", "r2_token"} == set(
        results["stitch"]
    )
    assert {
        "concept",
        "arm",
        "scale",
        "propensity",
        "propensity_low",
        "propensity_high",
        "damage",
    } <= set(results["steering"][0])
    summary = {row["arm"]: row for row in results["steering_summary"]}
    assert {
        "none",
        "native",
        "native_best",
        "transferred",
        "random",
        "shuffled",
        "permuted",
    } <= set(summary)
    assert (
        summary["transferred"]["effect_at_equal_damage"]
        > summary["shuffled"]["effect_at_equal_damage"]
    )
    losses = {row["path"]: row for row in results["stitched_loss"]}
    assert set(losses) == {"A", "B", "A→B", "B→A", "A→B→A", "B→A→B"}
    assert all(row["low"] <= row["cross_entropy"] <= row["high"] for row in losses.values())
    assert losses["B"]["cross_entropy"] < losses["A→B"]["cross_entropy"]
    assert {row["task"] for row in results["probes"]} == {"sentiment", "register"}
    assert {"task", "arm", "accuracy", "low", "high"} <= set(results["probes"][0])
    assert all(
        {"arm", "l0", "fvu", "delta_ce", "dead_fraction"} <= set(row) for row in results["sae"]
    )
    page = report.read_text(encoding="utf-8")
    assert all(prompt in page for prompt in demo_prompts("sentiment")[:2])
    exports = {row["file"]: row for row in results["exports"]}
    assert set(exports) == {"vectors/sentiment.gguf", "vectors/sentiment-transformers"}
    assert all(row["passed"] for row in exports.values())
    assert all(
        row["max_difference"] < 1e-4 < 0.1 < row["one_block_away"] for row in exports.values()
    )
    # llama.cpp steers every position, the script those of `SteeringVector.apply`.
    assert [row["first_position"] for row in exports.values()] == [0, 4]
    assert "Exported and checked: 2 of 2 files" in page
    served = lrt.SteeringVector.load(
        tmp_path / "vectors" / "sentiment.gguf", model=result.pair.target
    )
    transferred = result.evaluations["sentiment"].vectors["transferred"]
    assert served.hook == transferred.hook
    assert torch.cosine_similarity(served.direction, transferred.direction, dim=0) > 1 - 1e-6
    stitch = lrt.Stitch.from_pretrained(tmp_path / "stitch")
    torch.testing.assert_close(stitch.up.weight, result.stitch.up.weight.float())
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pd.DataFrame]:
    """Return the tables of the demo as `make demo` runs it.

    They are read from the folder that ``LRT_LENS_DEMO_REPORT`` names, or made by a run here.
    """
    folder = Path(os.environ.get("LRT_LENS_DEMO_REPORT", ""))
    if not (folder / "results.json").is_file():
        folder = tmp_path_factory.mktemp("demo")
        write_demo(run_demo(progress=False), folder)
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return {name: pd.DataFrame(table) for name, table in results.items() if isinstance(table, list)}


@pytest.mark.slow
@pytest.mark.xdist_group("demo")
@pytest.mark.parametrize("concept", CONCEPTS)
def test_the_transferred_vector_has_half_of_the_native_effect_and_exceeds_its_controls(
    whole: dict[str, pd.DataFrame], concept: Any
) -> None:
    arms = whole["steering_summary"].set_index(["concept", "arm"]).loc[concept]
    assert arms.loc["transferred", "fraction_of_native"] >= 0.5
    # A new draw of these controls falls below the interval of the transferred effect.
    assert all(
        arms.loc["transferred", "low"] > arms.loc[control, "high"]
        for control in ("random", "shuffled")
    )
    # Permuted labels give vectors of any size: of 20, few are as large as the transferred one.
    assert arms.loc["permuted", "transferred_p"] <= 0.2
    assert (arms.loc[["random", "shuffled", "permuted"], "n_draws"] == 20).all()
    # Items, neutral texts, contrast pairs and map are all in the interval.
    assert arms.loc["transferred", "contains"] == "items, neutral texts, contrast pairs, map"
    errors = ["items_error", "neutral_error", "contrast_error", "map_error"]
    assert (arms.loc["transferred", errors].astype(float) > 0).all()


@pytest.mark.slow
@pytest.mark.xdist_group("demo")
def test_readme_and_docs_say_what_the_demo_measures(whole: dict[str, pd.DataFrame]) -> None:
    root = Path(__file__).parents[2]
    readme = (root / "README.md").read_text(encoding="utf-8")
    page = (root / "docs" / "results" / "demo.md").read_text(encoding="utf-8")
    steering = whole["steering_summary"].set_index(["arm", "concept"])
    arms = {
        "transferred from": "transferred",
        "native": "native",
        "best hook": "native_best",
        "shuffled pairs": "shuffled",
        "shuffled labels": "permuted",
        "random dir": "random",
    }
    for words, arm in arms.items():
        [line] = [
            line
            for line in page.splitlines()
            if line.startswith("| ") and words in line and re.search(r"[+-]\d\.\d\d \(", line)
        ]
        for concept, found in zip(CONCEPTS, re.findall(r"([+-]\d\.\d\d) \(", line), strict=True):
            assert float(found) == pytest.approx(
                steering.loc[(arm, concept), "effect_at_equal_damage"], abs=0.06
            ), (arm, concept)
    [line] = [line for line in page.splitlines() if line.startswith("| transferred ÷ native")]
    for concept, cell in zip(CONCEPTS, line.split("|")[2:], strict=False):
        share, low, high = map(float, re.findall(r"\d\.\d\d", cell))
        row = steering.loc[("transferred", concept)]
        assert (share, low, high) == pytest.approx(
            (row["fraction_of_native"], row["fraction_low"], row["fraction_high"]), abs=0.03
        )
    [tokens, r2, null, token] = re.findall(
        r"([\d,]+) fitting tokens: R² (\d\.\d\d) .*?"
        r"against (-?\d\.\d\d) .*? and (\d\.\d\d) for token",
        " ".join(page.split()),
    )[0]
    chosen = (
        whole["grid"]
        .set_index(["source_hook", "target_hook"])
        .loc[("blocks.2.hook_resid_post", "blocks.3.hook_resid_post")]
    )
    assert int(tokens.replace(",", "")) == chosen["n_tokens"]
    assert (float(r2), float(null), float(token)) == pytest.approx(
        (chosen["r2"], chosen["r2_null"], chosen["r2_token"]), abs=0.01
    )
    [shares] = re.findall(r"(\.\d\d) and (\.\d\d) of its effect", readme)
    for concept, share in zip(CONCEPTS, shares, strict=True):
        assert float(share) == pytest.approx(
            steering.loc[("transferred", concept), "fraction_of_native"], abs=0.03
        )
    tasks = re.findall(
        r"accuracy (\.\d\d) of (\.\d\d) \(story or review\), (\.\d\d) of (\.\d\d)", readme
    )
    [register, native, sentiment, theirs] = tasks[0]
    accuracy = whole["probes_summary"].groupby(["task", "arm"])["accuracy"].first()
    for task, ours, own in (("register", register, native), ("sentiment", sentiment, theirs)):
        assert (float(ours), float(own)) == pytest.approx(
            (accuracy[task, "transferred"], accuracy[task, "native"]), abs=0.04
        )
    fvu = whole["sae"].set_index("arm")["fvu"]
    [found] = re.findall(
        r"FVU (\.\d\d), \[refitted\]\(\S+\) (\.\d\d), against (\.\d\d) "
        r"\(random maps (\.\d\d), random encoder refitted (\.\d\d)\)",
        readme,
    )
    shown = ["transferred", "refitted", "native", "random", "random_refitted"]
    assert tuple(map(float, found)) == pytest.approx(tuple(fvu[shown]), abs=0.02)
    losses = whole["stitched_loss_arms"].set_index(["route", "arm"])["ce"]
    [found] = re.findall(
        r"loss (\d\.\d\d) against (\d\.\d\d) \(token identity (\d\.\d\d)\)", readme
    )
    expected = (losses["A→B", "stitched"], losses["A→B", "own"], losses["A→B", "token"])
    assert tuple(map(float, found)) == pytest.approx(expected, abs=0.05)


@pytest.mark.slow
@pytest.mark.xdist_group("demo")
def test_the_page_has_the_saes_and_the_exports_of_the_demo(whole: dict[str, pd.DataFrame]) -> None:
    page = Path(__file__).parents[2].joinpath("docs/results/demo.md").read_text(encoding="utf-8")
    saes, exports = whole["sae"].set_index("arm"), whole["exports"].set_index("file")
    table = page[page.index("| SAE on the large model") :]
    rows = re.findall(r"\| (\d\.\d\d) \(.*?\) \| (\d\.\d\d) \(.*?\) \|$", table, flags=re.M)
    arms = ["transferred", "refitted", "native", "random_refitted", "shuffled_refitted", "random"]
    for arm, (fvu, rise) in zip(arms, rows, strict=True):
        assert float(fvu) == pytest.approx(saes.loc[arm, "fvu"], abs=0.02), arm
        assert float(rise) == pytest.approx(saes.loc[arm, "delta_ce"], abs=0.05), arm
    files = re.findall(
        r"^\| `(vectors/\S+)`.* \| (\d) \| (\d\.\d+) \| \S+ \| (\d\.\d+) \|$", page, flags=re.M
    )
    assert [name for name, *_ in files] == list(exports.index)
    assert exports["passed"].all()
    assert (exports["max_difference"] < 1e-4).all()
    for name, first, damage, away in files:
        assert int(first) == exports.loc[name, "first_position"]
        assert float(damage) == pytest.approx(exports.loc[name, "damage"], abs=0.005)
        assert float(away) == pytest.approx(exports.loc[name, "one_block_away"], abs=0.03)
