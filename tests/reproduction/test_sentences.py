"""Written sentences: every class, no copies, the same for a seed; labels of every read token."""

import pytest

from lrt_lens.adapters.probes import LinearProbe
from lrt_lens.models import ModelPair
from lrt_lens.reproduction import (
    Task,
    language_sentences,
    tense_sentences,
    token_classes,
    token_labels,
    topic_sentences,
)


@pytest.mark.parametrize(
    ("task", "classes"),
    [
        (language_sentences(("french", "spanish"), 30), {"french", "spanish"}),
        (topic_sentences(30), {"food", "sport", "weather"}),
        (tense_sentences(30), {"english", "past"}),
    ],
)
def test_every_class_has_as_many_different_sentences(task: Task, classes: set[str]) -> None:
    assert set(task.labels) == classes
    assert all(task.labels.count(label) == 30 for label in classes)
    assert len(set(task.texts)) == len(task.texts)
    assert all(text[0].isupper() and text.endswith(".") for text in task.texts)


def test_a_seed_gives_the_same_sentences_again() -> None:
    assert topic_sentences(20, seed=3).texts == topic_sentences(20, seed=3).texts
    assert topic_sentences(20, seed=3).texts != topic_sentences(20, seed=4).texts


def test_there_is_one_label_for_every_token_that_a_probe_reads(pair: ModelPair) -> None:
    texts = ["the happy cat sang in the house and it was good", "the sad dog slept on the stone"]
    labels = token_labels(pair.source, texts, token_classes()["function word"])
    probe = LinearProbe.fit(pair.source, texts, labels, at=1, read="every")
    counts = probe.rows(pair.source, texts)[1]
    assert [len(one) for one in labels] == counts
    assert set(probe.classes) == {"False", "True"}


def test_classes_of_tokens_are_those_of_their_text() -> None:
    assert token_classes()["function word"](" The") == "True"
    assert token_classes()["function word"](" house") == "False"
    assert token_classes()["letters or not"](" house") == "True"
    assert token_classes()["letters or not"](".") == "False"
