"""Tests of reading documents: from all sources of text, and errors for what has none."""

import datetime
import gzip
import io
import itertools
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow
import pytest
from pyarrow import parquet

from lrt_lens.data import DocumentSource, document_key, iterate_documents, read_records
from lrt_lens.data._documents import Document, DocumentReader
from lrt_lens.moments._row_keys import document_keys

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
    assert [row for _, row in read_records(path)] == [{"text": text} for text in TEXTS]


def test_a_text_file_holds_a_document_a_paragraph(tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    path.write_text("one\ntwo\n\n\n  three \n\nfour\n", encoding="utf-8")
    assert list(iterate_documents(path)) == ["one\ntwo", "  three", "four"]


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


@pytest.mark.parametrize("streamed", [False, True])
def test_the_only_column_with_texts_is_found(streamed: bool) -> None:
    data = datasets.Dataset.from_dict({"label": [0, 1, 2], "content": TEXTS})
    assert list(iterate_documents(data.to_iterable_dataset() if streamed else data)) == TEXTS


@pytest.mark.parametrize("streamed", [False, True])
def test_several_columns_with_texts_are_named_and_one_is_asked_for(streamed: bool) -> None:
    data = datasets.Dataset.from_dict({"title": ["a", "b", "c"], "content": TEXTS})
    data = data.to_iterable_dataset() if streamed else data
    with pytest.raises(
        ValueError,
        match=r"has the columns \['title', 'content'\], 2 of them with texts .*; text_field= names",
    ):
        list(iterate_documents(data))
    assert list(iterate_documents(data, text_field="content")) == TEXTS
    with pytest.raises(ValueError, match=r"text_field is 'body', and .* has the columns \['title'"):
        list(iterate_documents(data, text_field="body"))


def test_a_source_names_the_column_wherever_documents_are_taken() -> None:
    rows = [{"title": "a", "content": text} for text in TEXTS]
    assert list(iterate_documents(DocumentSource(rows, text_field="content"))) == TEXTS


@pytest.mark.parametrize(
    "table",
    [
        lambda frame: frame,
        lambda frame: frame.set_index(pd.Index([7, 7, 3])),
        lambda frame: frame.astype({"content": object}),
        lambda frame: frame.astype({"content": "category"}),
        lambda frame: pyarrow.Table.from_pandas(frame),
        lambda frame: frame["content"].set_axis([9, 8, 9]),
        lambda frame: frame["content"].to_numpy(dtype=object),
        lambda frame: frame["content"].to_numpy(dtype=str),
        lambda frame: pyarrow.array(frame["content"]),
        lambda frame: frame.to_dict("records"),
        lambda frame: (row for row in frame.to_dict("records")),
    ],
)
def test_tables_arrays_and_columns_in_memory_are_read(table: Any) -> None:
    frame = pd.DataFrame({"label": [0, 1, 2], "content": TEXTS})
    assert list(iterate_documents(table(frame))) == TEXTS


def test_a_table_of_two_dimensions_is_no_list_of_texts() -> None:
    with pytest.raises(ValueError, match="an array of 2 dimensions; expected one"):
        list(iterate_documents(np.array([TEXTS, TEXTS])))


def test_missing_and_blank_texts_are_left_out() -> None:
    frame = pd.DataFrame({"text": ["one", None, float("nan"), "", " \n", pd.NA, "two"]})
    for documents in (frame, frame["text"], frame["text"].tolist(), frame.to_dict("records")):
        assert list(iterate_documents(documents)) == ["one", "two"]


def test_lone_surrogates_are_replaced_with_a_warning_and_pairs_are_joined(
    caplog: pytest.LogCaptureFixture,
) -> None:
    texts = ["fine 😀", "a \ud83d b", "joined \ud83d\ude00", "\udce9"]
    assert list(iterate_documents(texts)) == ["fine 😀", "a \ufffd b", "joined 😀", "\ufffd"]
    [record] = caplog.records
    assert record.getMessage().startswith("document 1 holds a lone surrogate")


def test_all_splits_at_once_are_refused() -> None:
    splits = datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": TEXTS})})
    with pytest.raises(
        ValueError, match=r"documents is a dict with keys \['train'\]; give one split"
    ):
        list(iterate_documents(splits))


def test_a_single_row_is_not_read_as_its_keys() -> None:
    with pytest.raises(ValueError, match=r"documents is a dict with keys \['text'\]"):
        list(iterate_documents({"text": "the cat sat"}))


# ------------------------------------------------------------------------------------------ columns

SHAREGPT = [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "good day"}]


def in_all_forms(rows: list[dict[str, Any]], folder: Path) -> list[Any]:
    """Return the same rows in memory and in files."""
    table = pyarrow.Table.from_pylist(rows)
    parquet.write_table(table, folder / "a.parquet")
    forms: list[Any] = [rows, iter(rows), pd.DataFrame(rows), table, folder / "a.parquet"]
    forms += [datasets.Dataset.from_list(rows), pd.read_parquet(folder / "a.parquet")]
    forms += [datasets.Dataset.from_list(rows).to_iterable_dataset()]
    try:
        (folder / "a.json").write_text(json.dumps(rows))
    except TypeError:
        return forms  # JSON has no bytes
    return [*forms, folder / "a.json", write_jsonl(folder / "a.jsonl.gz", rows)]


@pytest.mark.parametrize(
    "row",
    [
        {"id": "c0", "document": {"text": "the cat"}},
        {"title": "A story", "paragraphs": ["the cat", "sat"]},
        {"lang": "en", "sentences": ["the cat sat."]},
        {"date": "2020-01-01", "content": b"the cat"},
        {"id": "c0", "turns": [{"role": "user", "content": "hello"}]},
    ],
)
def test_an_identifier_beside_the_texts_is_not_taken_for_them(
    row: dict[str, Any], tmp_path: Path
) -> None:
    name, other = row
    for documents in in_all_forms([row, row], tmp_path):
        with pytest.raises(
            ValueError,
            match=rf"has the columns \['{name}', '{other}'\], 1 of them with texts \['{name}'\] and"
            rf" \['{other}'\] with lists, structs or bytes; text_field= names the one to read",
        ):
            list(iterate_documents(documents))


@pytest.mark.parametrize("name", ["messages", "conversations", "chat"])
@pytest.mark.parametrize("sharegpt", [False, True])
def test_chats_are_found_by_the_usual_names(
    train_tokenizer: Any, name: str, sharegpt: bool, tmp_path: Path
) -> None:
    tokenizer = train_tokenizer()
    tokenizer.chat_template = TEMPLATE
    row = {"id": "identity_0", name: SHAREGPT if sharegpt else CHAT}
    for documents in in_all_forms([row, row], tmp_path):
        texts = list(iterate_documents(documents, tokenizer))
        assert texts == ["<user>hello<assistant>good day"] * 2
    (tmp_path / "one.json").write_text(json.dumps(row))
    assert list(iterate_documents(tmp_path / "one.json", tokenizer)) == texts[:1]


def test_columns_with_numbers_as_names_are_read() -> None:
    frame = pd.DataFrame([["a b", 1], ["c d", 2]])
    assert list(iterate_documents(frame)) == ["a b", "c d"]
    assert list(iterate_documents(frame, text_field="0")) == ["a b", "c d"]


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    frame = pd.DataFrame([["a", "b"]], columns=["text", "text"])
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 2, names=["text", "text"])
    parquet.write_table(table, tmp_path / "a.parquet")
    for documents in (frame, table, tmp_path / "a.parquet"):
        with pytest.raises(ValueError, match=r"has several columns with the name\(s\) \['text'\]"):
            list(iterate_documents(documents))


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
    "row", [3, b"bytes", {"a": "x", "b": "y"}, {"text": 7}, ["a", "b"], [], [{"role": "user"}]]
)
def test_what_is_no_document_is_named_with_its_index(row: Any) -> None:
    with pytest.raises(ValueError, match=r"document 2 .*(expected a text|text_field= names)"):
        list(iterate_documents(["fine", "fine", row]))


def test_a_column_for_texts_without_columns_is_refused() -> None:
    with pytest.raises(ValueError, match="document 0 is a str .* without columns; text_field="):
        list(iterate_documents(TEXTS, text_field="text"))


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
    [
        "no-such-file.jsonl",
        "no such file.jsonl",
        "no such file.JSONL.GZ",
        "no-such-file.csv.zst",
        "no such file.txt",
        "no such file.docx",
        "no such file",
    ],
)
@pytest.mark.parametrize("kind", [str, Path])
def test_a_missing_file_is_not_taken_for_text(tmp_path: Path, name: str, kind: type) -> None:
    with pytest.raises(
        ValueError,
        match=r"no file at .*no.such.file.*; give a .txt .md .* file that exists .*or \[text\] for",
    ):
        list(iterate_documents(kind(tmp_path / name)))


@pytest.mark.parametrize(
    "text",
    [
        "~/no such corpus",
        "data/no such.pdf",
        "C:\\\\my corpus",
        "my corpus.docx",
        "my corpus.csv.bz2",
        "my data dir/corpus",
        "my data\\corpus",
    ],
)
def test_what_looks_like_a_path_is_not_taken_for_text(text: str) -> None:
    with pytest.raises(ValueError, match="no file at"):
        list(iterate_documents(text))


def test_texts_that_mention_files_are_texts() -> None:
    for text in ("see https://example.org/page.html", "he and/or she went home.", "a\n/b.csv"):
        assert list(iterate_documents(text)) == [text]


def test_names_of_files_in_a_list_are_refused_and_paths_are_read(tmp_path: Path) -> None:
    paths = [write_jsonl(tmp_path / f"{k}.jsonl", [{"text": text}]) for k, text in enumerate(TEXTS)]
    with pytest.raises(ValueError, match="document 0 is .*0.jsonl', the name of a file; give"):
        list(iterate_documents([str(path) for path in paths]))
    assert list(iterate_documents(["first", *paths, "last"])) == ["first", *TEXTS, "last"]


def test_a_folder_and_a_pattern_are_read_in_the_order_of_names(tmp_path: Path) -> None:
    for k, text in reversed(list(enumerate(TEXTS))):
        write_jsonl(tmp_path / f"{k}.jsonl", [{"text": text}])
    for documents in (tmp_path, str(tmp_path), str(tmp_path / "*.jsonl")):
        assert list(iterate_documents(documents)) == TEXTS
    (tmp_path / "README.md").write_text("A card.")
    with pytest.raises(ValueError, match=r"holds files of several kinds \(.jsonl, .md\); expected"):
        list(iterate_documents(tmp_path))
    with pytest.raises(ValueError, match=r"no file matches .*\*.csv'; give a pattern"):
        list(iterate_documents(str(tmp_path / "*.csv")))


def test_a_folder_that_datasets_saved_is_loaded_by_it(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(str(tmp_path / "saved"))
    assert list(iterate_documents(tmp_path / "saved")) == TEXTS


def test_an_existing_file_of_an_unknown_kind_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "my corpus.html"
    path.write_text("<p>the cat sat</p>")
    for documents in (path, str(path)):
        with pytest.raises(ValueError, match=r"my corpus.html is of no known kind; expected"):
            list(iterate_documents(documents))


# ------------------------------------------------------------------------------------------- groups


def read_groups(documents: Any, group: Any) -> list[Any]:
    return [one.group for one in DocumentReader(DocumentSource(documents, group=group))]


def test_groups_are_a_column_a_list_or_a_function() -> None:
    rows = [{"text": text, "book": k % 2} for k, text in enumerate(TEXTS)]
    assert read_groups(rows, "book") == [0, 1, 0]
    assert read_groups(pd.DataFrame(rows), "book") == [0, 1, 0]
    assert read_groups(TEXTS, ["a", "b", "a"]) == ["a", "b", "a"]
    assert read_groups(["x", None, "y"], ["a", "b", "c"]) == ["a", "c"]  # one per row
    assert read_groups(rows, lambda row: row["text"][:5]) == ["the c", "the d", "naïve"]


def test_documents_without_a_group_are_refused() -> None:
    rows = [{"text": "one", "book": 1}, {"text": "two", "book": None}]
    with pytest.raises(ValueError, match="document 1 has no group: the column 'book' has no value"):
        read_groups(rows, "book")
    with pytest.raises(ValueError, match=r"group is 'author', and .* has the columns"):
        read_groups(pd.DataFrame(rows), "author")
    with pytest.raises(ValueError, match="document 2 has no group: group has no value for it"):
        read_groups(iter(TEXTS), ["a", "b"])
    with pytest.raises(ValueError, match="group has more values than there are documents"):
        read_groups(iter(TEXTS), ["a", "b", "c", "d"])


def test_a_name_that_is_neither_file_nor_data_set_says_so() -> None:
    with pytest.raises(
        ValueError, match=r"'no-such/data-set' is neither a file nor a data set that loads"
    ):
        list(iterate_documents("no-such/data-set"))


@pytest.mark.parametrize(
    "group",
    [
        {0: "x", 1: "x", 2: "y"},
        {"x", "y", "z"},
        pd.DataFrame({"g": [1, 2, 3], "h": [3, 4, 5]}),
        pyarrow.table({"g": [1, 2, 3]}),
        np.array([[1], [2], [3]]),
        5,
        b"abc",
        " ",
    ],
)
def test_what_gives_no_value_to_each_document_is_no_group(group: Any) -> None:
    with pytest.raises(ValueError, match=r"^group is .*; expected the name of a column, one value"):
        read_groups(TEXTS, group)


@pytest.mark.parametrize("value", ["", " ", None, np.float32("nan"), pd.NA])
def test_missing_and_blank_groups_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="document 1 has no group"):
        read_groups(TEXTS, ["a", value, "a"])
    books = ["a", value, "a"]
    rows = [{"text": text, "book": book} for text, book in zip(TEXTS, books, strict=True)]
    with pytest.raises(ValueError, match="document 1 has no group"):
        read_groups(rows, "book")
    with pytest.raises(ValueError, match="document 1 has no group"):
        read_groups(rows, lambda row: row["book"])


def test_groups_in_other_containers_keep_their_values() -> None:
    numbers = [1, 2, 1]
    for group in (pd.Series(numbers, index=[9, 8, 7]), np.array(numbers), pyarrow.array(numbers)):
        assert read_groups(TEXTS, group) == numbers


def test_a_group_of_several_values_or_a_failing_function_names_the_row() -> None:
    with pytest.raises(
        ValueError, match=r"document 0 has the group .* \(list\); expected a single"
    ):
        read_groups(TEXTS, [["a"], ["b"], ["c"]])
    with pytest.raises(ValueError, match="failed at document 0 with KeyError: 'author'; .*'text'"):
        read_groups([{"text": "a"}], lambda row: row["author"])
    with pytest.raises(ValueError, match="failed at document 0 with TypeError: .*has no columns"):
        read_groups(TEXTS, lambda row: row["author"])


@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("kind", [list, np.array, pd.Series, pyarrow.array])
def test_another_number_of_groups_than_of_documents_is_refused_before_reading(
    n: int, kind: Callable[[Any], Any]
) -> None:
    frame = pd.DataFrame({"text": TEXTS})
    data = datasets.Dataset.from_pandas(frame)
    sources = [TEXTS, tuple(TEXTS), frame, frame["text"], pyarrow.table(frame), data, data["text"]]
    for documents in sources:
        with pytest.raises(ValueError, match=f"group has {n} values for 3 documents; give one"):
            DocumentSource(documents, group=kind(list(range(n))))
        with pytest.raises(ValueError, match=f"group has {n} values for 3 documents; give one"):
            DocumentSource.of(DocumentSource(documents), group=kind(list(range(n))))
        assert read_groups(documents, kind([5, 6, 7])) == [5, 6, 7]


def test_groups_of_files_and_streams_have_as_many_values_as_rows(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS])
    for documents in (path, str(path), [path], iter(TEXTS)):
        assert read_groups(documents, [1, 2, 3]) == [1, 2, 3]
    assert read_groups("one text of several words", ["a"]) == ["a"]


@pytest.mark.parametrize(
    "values",
    [
        [1, 1.0, np.int64(1), np.float32(1), "1", "1.0", np.array([1.0])[0]],
        [-3, -3.0, "-3.00"],
        [
            "2020-01-01",
            "2020-01-01 00:00:00",
            pd.Timestamp("2020-01-01"),
            np.datetime64("2020-01-01", "ns"),
            datetime.date(2020, 1, 1),
            datetime.datetime(2020, 1, 1),
        ],
        ["Smith", "smith", "Smith.", " SMITH "],
        [True, np.True_, "True"],
    ],
)
def test_equal_groups_share_a_fold_whatever_their_type(values: list[Any]) -> None:
    keys = {Document("text", group=value).key(0) for value in values}
    assert keys == {Document("other", group=values[0]).key(0)}
    others = [True, False, 2, 1.5, "1.5.0", "2020-01-02", pd.Timestamp("2020-01-01 10:00"), "1.01"]
    apart = [other for other in others if other is not values[0]]
    assert not keys & {Document("text", group=other).key(0) for other in apart}


def test_a_missing_value_moves_no_group_to_another_fold(tmp_path: Path) -> None:
    whole = pd.DataFrame({"text": [f"text {k}" for k in range(60)], "author": np.arange(60) // 3})
    # One missing value makes the column a column of floats.
    holes = pd.concat([whole, pd.DataFrame({"text": ["x"], "author": [np.nan]})])
    assert holes["author"].dtype == float
    holes.to_csv(tmp_path / "holes.csv", index=False)
    assert "2.0" in (tmp_path / "holes.csv").read_text()

    def keys(documents: Any) -> list[int]:
        source = DocumentSource(documents, text_field="text", group="author")
        return [one.key(0) for one in itertools.islice(DocumentReader(source), 60)]

    expected = keys(whole)
    assert len(set(expected)) == 20
    assert keys(holes) == keys(tmp_path / "holes.csv") == expected
    assert expected == [document_key(str(author), 0) for author in whole["author"]]
    ids = document_keys(holes["author"].to_numpy()[:60], 0)
    assert ids.tolist() == expected


@pytest.mark.parametrize("kind", [".txt", ".md"])
def test_paragraphs_are_grouped_by_their_file(tmp_path: Path, kind: str) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}{kind}").write_text("A.\n\nB.\n")
    for documents in (tmp_path, str(tmp_path / f"*{kind}"), sorted(tmp_path.iterdir())):
        assert read_groups(documents, "file") == [f"one{kind}"] * 2 + [f"two{kind}"] * 2
    with pytest.raises(ValueError, match="has no group: the column 'author' has no value"):
        read_groups(tmp_path, "author")


# ----------------------------------------------------------------------------- names and folders


@pytest.mark.parametrize("mode", ["r", "rb"])
def test_an_open_file_is_refused_with_its_path(tmp_path: Path, mode: str) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS])
    with path.open(mode) as file:
        with pytest.raises(ValueError, match=r"documents is an open file .*Path\('.*a.jsonl'\)"):
            list(iterate_documents(file))
        with pytest.raises(ValueError, match="group is an open file"):
            DocumentSource(TEXTS, group=file)
    archive = write_jsonl(tmp_path / "b.jsonl.gz", [{"text": "a"}])
    with gzip.open(archive, "rt") as file, pytest.raises(ValueError, match="is an open file"):
        list(iterate_documents(file))
    with tempfile.NamedTemporaryFile() as file, pytest.raises(ValueError, match="is an open file"):
        list(iterate_documents(file))
    with pytest.raises(
        ValueError, match=r"open file \(StringIO\), .* give its path, a pathlib.Path"
    ):
        list(iterate_documents(io.StringIO("one\ntwo")))


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("kind", ["numpy", "torch", "pandas", "arrow", None])
def test_a_format_of_a_data_set_does_not_change_its_texts(kind: str | None, streamed: bool) -> None:
    data = datasets.Dataset.from_dict({"text": TEXTS, "book": ["a", "b", "a"]})
    data = data.to_iterable_dataset() if streamed else data
    formatted = data.with_format(kind)
    assert list(iterate_documents(formatted)) == TEXTS
    assert read_groups(formatted, "book") == ["a", "b", "a"]


def test_columns_of_a_format_and_transforms_are_understood() -> None:
    data = datasets.Dataset.from_dict({"text": TEXTS, "book": ["a", "b", "a"]})
    assert list(iterate_documents(data.with_format(columns=["book"]))) == TEXTS
    upper = data.with_transform(lambda rows: {"text": [text.upper() for text in rows["text"]]})
    assert list(iterate_documents(upper)) == [text.upper() for text in TEXTS]


@pytest.mark.parametrize("name", ["a.jsonl", "my corpus.csv.gz", "data/b.TXT"])
def test_a_list_of_names_of_files_is_refused_also_if_there_are_none(name: str) -> None:
    with pytest.raises(ValueError, match="document 0 is .*, the name of a file; give"):
        list(iterate_documents([name, "b.jsonl"]))
    assert list(iterate_documents([{"text": name}])) == [name]


def test_a_list_of_texts_may_mention_files_and_versions() -> None:
    texts = ["in the U.S", "version 2.0", "see example.org", "then I wrote it to my own data.csv"]
    assert list(iterate_documents(texts)) == texts
    for text in (
        "He lives in the U.S",
        "the new version 2.0",
        "He and/or she went: never ever at all",
    ):
        assert list(iterate_documents(text)) == [text]


def test_a_list_with_the_name_of_any_existing_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a b.docx").write_text("x")
    with pytest.raises(ValueError, match="document 1 is .*a b.docx', the name of a file"):
        list(iterate_documents(["text", str(tmp_path / "a b.docx")]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: (folder / "b.jsonl.xz").write_bytes(b"x"), r"'b.jsonl.xz' \(of no known"),
        (lambda folder: (folder / "d.docx").write_bytes(b"x"), r"'d.docx' \(of no known kind\)"),
        (lambda folder: (folder / "sub").mkdir(), r"'sub' \(a folder\)"),
        (lambda folder: (folder / "c.jsonl").symlink_to("x"), r"'c.jsonl' \(a link to nothing\)"),
        (
            lambda folder: write_jsonl(folder / "a.jsonl.gz", [{"text": "x"}]),
            r"'a.jsonl.gz' \(perhaps a copy of 'a.jsonl'\)",
        ),
    ],
)
def test_a_folder_with_more_than_is_read_is_refused(
    tmp_path: Path, make: Callable[[Path], Any], message: str
) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": "one"}])
    (tmp_path / ".DS_Store").write_bytes(b"x")
    assert list(iterate_documents(tmp_path)) == ["one"]
    make(tmp_path)
    with pytest.raises(ValueError, match=f"the folder .* holds {message}"):
        list(iterate_documents(tmp_path))


def test_a_pattern_that_matches_a_dangling_link_is_refused(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": "one"}])
    (tmp_path / "b.jsonl").symlink_to("nothing")
    with pytest.raises(ValueError, match=r"the pattern .* holds 'b.jsonl' \(a link to nothing\)"):
        list(iterate_documents(str(tmp_path / "*.jsonl")))


def test_files_without_documents_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.txt").write_text(" \n\n")
    with pytest.raises(ValueError, match="a.txt hold.* no document; give a file with text"):
        list(iterate_documents(tmp_path / "a.txt"))
    (tmp_path / "b.txt").write_text("one")
    assert list(iterate_documents(tmp_path)) == ["one"]
    assert "a.txt hold(s) no document" in caplog.text
