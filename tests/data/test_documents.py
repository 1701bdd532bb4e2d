"""Tests of reading documents: from all sources of text, and errors for what has none."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import datasets
import pytest

from lrt_lens.data import document_key, iterate_documents
from lrt_lens.data._documents import read_jsonl

TEXTS = ["the cat sat", "the dog ran\nand ran", "naïve 日本"]


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n\n" for row in rows)  # blank lines are no documents
    return path


def test_a_string_is_one_document() -> None:
    assert list(iterate_documents("the cat sat")) == ["the cat sat"]


@pytest.mark.parametrize("kind", [list, tuple, iter])
def test_any_iterable_of_strings_is_read_in_order(kind: Any) -> None:
    assert list(iterate_documents(kind(TEXTS))) == TEXTS


def test_a_generator_is_read_as_it_is_needed() -> None:
    taken = []

    def source() -> Any:
        for text in TEXTS:
            taken.append(text)
            yield text

    documents = iterate_documents(source())
    next(documents)
    assert taken == TEXTS[:1]


def test_rows_with_a_text_field_are_read() -> None:
    assert list(iterate_documents([{"text": text, "label": 1} for text in TEXTS])) == TEXTS


@pytest.mark.parametrize("as_string", [True, False])
@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.jsonl.gz", "my corpus.jsonl"])
def test_json_lines_are_read_gzipped_or_not(tmp_path: Path, name: str, as_string: bool) -> None:
    path = write_jsonl(tmp_path / name, [{"text": text} for text in TEXTS])
    assert list(iterate_documents(str(path) if as_string else path)) == TEXTS
    assert read_jsonl(path) == [{"text": text} for text in TEXTS]


def test_a_text_file_holds_a_document_a_paragraph(tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    path.write_text("one\ntwo\n\n\n  three \n\nfour\n", encoding="utf-8")
    assert list(iterate_documents(path)) == ["one\ntwo", "three", "four"]


def test_a_hugging_face_data_set_is_read() -> None:
    assert (
        list(iterate_documents(datasets.Dataset.from_dict({"text": TEXTS, "label": [0, 1, 2]})))
        == TEXTS
    )


def test_a_streamed_data_set_is_read() -> None:
    assert (
        list(iterate_documents(datasets.Dataset.from_dict({"text": TEXTS}).to_iterable_dataset()))
        == TEXTS
    )


def test_a_data_set_without_a_text_column_names_those_it_has() -> None:
    with pytest.raises(
        ValueError,
        match=r"the data set has columns \['content', 'label'\]; expected 'text': rename one",
    ):
        list(iterate_documents(datasets.Dataset.from_dict({"content": TEXTS, "label": [0, 1, 2]})))


def test_all_splits_at_once_are_refused() -> None:
    splits = datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": TEXTS})})
    with pytest.raises(
        ValueError, match=r"documents is a dict with keys \['train'\]; give one split"
    ):
        list(iterate_documents(splits))


def test_a_single_row_is_not_read_as_its_keys() -> None:
    with pytest.raises(ValueError, match=r"documents is a dict with keys \['text'\]"):
        list(iterate_documents({"text": "the cat sat"}))


# -------------------------------------------------------------------------------------------- chats

CHAT = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


@pytest.mark.parametrize("row", [CHAT, {"messages": CHAT}])
def test_chats_go_through_the_tokenizers_template(train_tokenizer: Any, row: Any) -> None:
    tokenizer = train_tokenizer()
    tokenizer.chat_template = TEMPLATE
    assert list(iterate_documents([row, "plain"], tokenizer)) == [
        "<user>hello<assistant>good day",
        "plain",
    ]


@pytest.mark.parametrize("row", [CHAT, {"messages": CHAT}])
def test_a_chat_without_a_template_is_refused_with_its_index(tokenizer: Any, row: Any) -> None:
    with pytest.raises(
        ValueError,
        match=r"document 1 is a chat, but the tokenizer has no chat template; set"
        r" tokenizer.chat_template",
    ):
        list(iterate_documents(["plain", row], tokenizer))


# ---------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "row", [3, None, b"bytes", {"content": "x"}, {"text": 7}, ["a", "b"], [], [{"role": "user"}]]
)
def test_what_is_no_document_is_named_with_its_index(row: Any) -> None:
    with pytest.raises(
        ValueError,
        match=rf"document 2 is a {type(row).__name__} \(.*expected a text, a row with 'text',"
        rf" or a chat",
    ):
        list(iterate_documents(["fine", "fine", row]))


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.jsonl.gz"])
def test_a_bad_line_is_named_with_its_file_and_number(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as file:
        file.write('{"text": "good"}\n\n{"text": "cut of')
    documents = iterate_documents(path)
    assert next(documents) == "good"
    with pytest.raises(
        ValueError,
        match=rf"{re.escape(str(path))}, line 3 is not JSON .*expected one object per line",
    ):
        next(documents)


@pytest.mark.parametrize(
    "name",
    ["no-such-file.jsonl", "no such file.jsonl", "no-such-file.jsonl.gz", "no-such-file.txt"],
)
@pytest.mark.parametrize("kind", [str, Path])
def test_a_missing_file_is_not_taken_for_text(tmp_path: Path, name: str, kind: type) -> None:
    with pytest.raises(
        ValueError,
        match=r"no file at .*no.such.file.*; give a .txt, .jsonl or .jsonl.gz file that exists",
    ):
        list(iterate_documents(kind(tmp_path / name)))


def test_a_name_that_is_neither_file_nor_data_set_says_so() -> None:
    with pytest.raises(
        ValueError, match=r"'no-such/data-set' is neither a file nor a data set that loads"
    ):
        list(iterate_documents("no-such/data-set"))


# --------------------------------------------------------------------------------------------- keys


def test_a_documents_key_depends_on_its_text_and_the_seed_alone() -> None:
    # Fixed numbers: with other keys, documents of earlier harvests would change their folds.
    assert document_key("the cat sat", 0) == 4895119469390227121
    assert len({document_key(text, seed) for text in TEXTS for seed in (0, 1)}) == 6
