"""Topics are words of all frequencies, with texts that contain them and texts that do not."""

import random

import pytest

from lrt_lens.reproduction import frequent_topics


@pytest.fixture
def texts() -> list[str]:
    """1,000 texts: "dog" in a fifth, "kite" in a twentieth, "the" in all."""
    rng = random.Random(0)
    parts = [
        [
            "the river ran on",
            *["and dogs bark"] * (i % 5 == 0),
            *["near a kite"] * (i % 20 == 3),
            f"number{i}",
        ]
        for i in range(1000)
    ]
    return [" ".join(rng.sample(part, len(part))) for part in parts]


def test_frequencies_are_shares_of_texts_that_say_the_word(texts: list[str]) -> None:
    found = {topic.word: topic for topic in frequent_topics(texts, n=6)}
    assert found["kite"].frequency == pytest.approx(0.05)
    assert {topic.frequency for topic in found.values()} == {0.05, 0.2}
    assert "the" not in found
    assert "river" not in found


def test_a_contrast_set_is_of_texts_that_say_it_and_texts_that_do_not(texts: list[str]) -> None:
    for topic in frequent_topics(texts, pairs=15):
        assert len(topic.contrast) == 15
        assert all(topic.shows(text) for text in topic.contrast.positive)
        assert not any(topic.shows(text) for text in topic.contrast.negative)


def test_words_are_told_from_their_parts() -> None:
    texts = ["a cat sat"] * 30 + ["we concatenate"] * 30 + ["birds sing"] * 200
    cat = next(topic for topic in frequent_topics(texts) if topic.word == "cat")
    assert cat.shows("Two CATS!")
    assert not cat.shows("concatenate")


def test_a_function_word_has_no_singular_to_be_a_topic() -> None:
    texts = ["this kite flies"] * 30 + ["that river ran"] * 100
    assert "thi" not in {topic.word for topic in frequent_topics(texts)}


def test_the_same_seed_draws_the_same(texts: list[str]) -> None:
    assert frequent_topics(texts, seed=3) == frequent_topics(texts, seed=3)


def test_texts_without_a_topic_are_refused() -> None:
    with pytest.raises(ValueError, match="give more texts"):
        frequent_topics(["all the same"] * 50)
