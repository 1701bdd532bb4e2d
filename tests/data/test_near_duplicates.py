"""Tests of near-duplicates: what is found is what a comparison of all pairs finds."""

import itertools
import random

import pandas as pd
import pytest

from lrt_lens.data import DocumentSource, Parts, document_key, near_duplicates, part_of
from lrt_lens.data._documents import DocumentReader

VOCABULARY = [f"word{k}" for k in range(500)]


def shingles(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[k : k + 5]) for k in range(len(words) - 4)}


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """40 texts, 20 of them with a copy in which from none to 40 of 200 words are others."""
    rng = random.Random(0)
    texts = [" ".join(rng.choices(VOCABULARY, k=200)) for _ in range(40)]
    for k in range(20):
        words = texts[k].split()
        for place in rng.sample(range(200), 2 * k):
            words[place] = rng.choice(VOCABULARY)
        texts.append(" ".join(words))
    return texts


@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.8])
def test_the_pairs_are_those_of_a_comparison_of_all(texts: list[str], threshold: float) -> None:
    expected = {}
    for (i, one), (j, other) in itertools.combinations(enumerate(texts), 2):
        a, b = shingles(one), shingles(other)
        similarity = len(a & b) / len(a | b)
        if similarity >= threshold:
            expected[i, j] = similarity
    report = near_duplicates(texts, threshold=threshold)
    found = {
        (first, second): similarity
        for first, second, similarity, _ in report.pairs.itertuples(index=False)
    }
    assert 2 < len(expected) < 20
    assert found == pytest.approx(expected)
    folds = [min(part_of(document_key(text, 0)), 5) for text in texts]
    across = sum(folds[i] != folds[j] for i, j in expected)
    assert (report.n_duplicates, report.n_across_folds) == (len(expected), across)
    assert f"{len(expected)} of 60 documents repeat another" in repr(report)
    assert "NearDuplicates" in report._repr_html_()
    # In a harvest with three folds, other pairs are in different ones.
    folds = [min(Parts(3, 1).of(document_key(text, 0)), 3) for text in texts]
    of_three = near_duplicates(texts, threshold=threshold, n_folds=3)
    assert of_three.n_across_folds == sum(folds[i] != folds[j] for i, j in expected)


def test_the_groups_bring_near_duplicates_into_one_fold(texts: list[str]) -> None:
    report = near_duplicates(texts, threshold=0.6)
    assert report.n_across_folds
    source = DocumentSource(texts, group=report.group)
    parts = [part_of(document.key(0)) for document in DocumentReader(source)]
    for first, second in report.pairs[["first", "second"]].itertuples(index=False):
        assert parts[first] == parts[second]
    assert near_duplicates(texts, threshold=0.6, group=report.group).n_across_folds == 0
    # The group of a text does not depend on the order of the texts.
    backwards = near_duplicates(texts[::-1], threshold=0.6)
    assert backwards.group == report.group[::-1]


def test_copies_share_a_fold_and_are_counted_once_each() -> None:
    story = " ".join(f"number {k}" for k in range(50))
    report = near_duplicates([story, "other words", f"{story} ", story.upper(), "other words!"])
    assert report.n_duplicates == 3
    assert report.n_across_folds == 0
    assert report.table["n_documents"].tolist() == [3, 2]
    assert report.table["first"].tolist() == [0, 1]


def test_missing_documents_keep_their_numbers() -> None:
    frame = pd.DataFrame({"body": [None, "one two three", "", "one two three", "x"], "n": 1})
    report = near_duplicates(frame, text_field="body")
    assert report.n_documents == 3
    assert report.pairs[["first", "second"]].to_numpy().tolist() == [[1, 3]]
    assert len(report.group) == 5
    assert report.group[1] == report.group[3] != report.group[4]


def test_texts_without_blanks_are_compared_by_characters() -> None:
    rng = random.Random(0)
    one = "".join(chr(0x4E00 + rng.randrange(2000)) for _ in range(300))
    report = near_duplicates([one, one[:290] + "終わりです", one[::-1]])
    assert report.pairs[["first", "second"]].to_numpy().tolist() == [[0, 1]]


def test_other_thresholds_and_no_documents_are_refused() -> None:
    with pytest.raises(ValueError, match="threshold is 2.0; expected a similarity above 0"):
        near_duplicates(["a", "b"], threshold=2.0)
    with pytest.raises(ValueError, match="n_words is 0; expected at least 1"):
        near_duplicates(["a", "b"], n_words=0)
    with pytest.raises(ValueError, match="there is no document to compare"):
        near_duplicates([])


@pytest.mark.parametrize(("first", "last"), [(0x4E00, 0x6000), (0x3041, 0x3090), (0x0E01, 0x0E2E)])
def test_scripts_without_blanks_are_compared_by_characters_also_with_punctuation(
    first: int, last: int
) -> None:
    rng = random.Random(0)

    def clauses() -> list[str]:
        sizes = [rng.randint(8, 14) for _ in range(24)]
        return ["".join(chr(rng.randint(first, last)) for _ in range(size)) for size in sizes]

    originals = [clauses() for _ in range(20)]
    copies = [list(original) for original in originals]
    for copy in copies:
        for place in (5, 12):
            copy[place] = copy[place][:3] + chr(last + 1) + copy[place][4:]
    texts = ["，".join(text) + "。" for text in originals + copies]

    def characters(number: int) -> set[str]:
        letters = texts[number].replace("，", "").replace("。", "")
        return {letters[k : k + 5] for k in range(len(letters) - 4)}

    report = near_duplicates(texts)
    assert report.pairs[["first", "second"]].to_numpy().tolist() == [[k, k + 20] for k in range(20)]
    for one, other, similarity, _ in report.pairs.itertuples(index=False):
        a, b = characters(one), characters(other)
        assert similarity == pytest.approx(len(a & b) / len(a | b))


def test_groups_of_the_caller_stay_together(texts: list[str]) -> None:
    # Text k + 40 is nearly text k; texts 4 a … 4 a + 3 are of author a.
    authors = [f"a{k // 4}" for k in range(40)] + [f"b{k}" for k in range(20)]
    rows = pd.DataFrame({"text": texts, "author": authors})
    report = near_duplicates(rows, threshold=0.6, group="author")
    assert report.pairs.equals(
        near_duplicates(rows, threshold=0.6).pairs.assign(across_folds=report.pairs["across_folds"])
    )
    groups = pd.Series(report.group)
    assert (groups.groupby(authors).nunique() == 1).all()
    for first, second in report.pairs[["first", "second"]].itertuples(index=False):
        assert groups[first] == groups[second]
    # Nothing else is joined: as many groups as authors, less one per pair.
    assert groups.nunique() == rows["author"].nunique() - len(report.pairs)
    assert near_duplicates(rows, threshold=0.6, group=report.group).n_across_folds == 0


@pytest.mark.parametrize("threshold", [1.0, 0.999, 0.97, 0.02])
def test_the_ends_of_the_range_of_thresholds_find_what_a_comparison_of_all_finds(
    texts: list[str], threshold: float
) -> None:
    texts = [*texts[:12], *[f"{text} The end." for text in texts[:4]], *texts[:3]]
    sets = [shingles(text) for text in texts]
    first_of = {frozenset(one): k for k, one in reversed(list(enumerate(sets)))}
    expected = {
        (i, j)
        for i in range(len(texts))
        for j in range(i + 1, len(texts))
        if len(sets[i] & sets[j]) / len(sets[i] | sets[j]) >= threshold
        # Of equal texts only the first is compared with others.
        and (sets[i] == sets[j] or first_of[frozenset(sets[j])] == j)
        and first_of[frozenset(sets[i])] == i
    }
    assert {(i, j) for i, j in expected if sets[i] == sets[j]} == {(0, 16), (1, 17), (2, 18)}
    report = near_duplicates(texts, threshold=threshold)
    assert set(report.pairs[["first", "second"]].itertuples(index=False, name=None)) == expected
    assert report.n_duplicates >= 3


def test_groups_of_one_fold_are_joined_as_a_harvest_joins_them() -> None:
    frame = pd.DataFrame(
        {
            "text": [f"number {k} of all texts here" for k in range(8)],
            "author": ["Smith", "smith", "Smith.", "Jones", 1, 1.0, True, "1"],
        }
    )
    group = near_duplicates(frame, group="author").group
    assert group[0] == group[1] == group[2]
    assert group[4] == group[5] == group[7]
    assert len(set(group)) == 4
