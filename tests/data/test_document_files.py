"""Tests of files of documents: every kind, compressed or not, and what is wrong with them.

Files are written by json, csv, pandas, pyarrow and gzip, and read by the package.
"""

import csv
import gzip
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow
import pytest
from pyarrow import parquet

from lrt_lens.data import ContrastSet, DocumentSource, iterate_documents, read_records
from lrt_lens.data._documents import DocumentReader

TEXTS = ["the cat sat", 'she said "no,\nnever"; so', "naïve 日本 😀", "NA", "null", "12"]
ROWS = [{"id": k, "text": text} for k, text in enumerate(TEXTS)]


def by_csv(separator: str) -> Callable[[list[dict[str, Any]]], bytes]:
    def write(rows: list[dict[str, Any]]) -> bytes:
        file = io.StringIO(newline="")
        writer = csv.DictWriter(file, list(rows[0]), delimiter=separator)
        writer.writeheader()
        writer.writerows(rows)
        return file.getvalue().encode()

    return write


def by_parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


def by_lines(rows: list[dict[str, Any]]) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode()


WRITERS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    ".jsonl": by_lines,
    ".ndjson": lambda rows: by_lines(rows) + b"\r\n\r\n",
    ".json": lambda rows: json.dumps(rows, ensure_ascii=False).encode(),
    ".csv": by_csv(","),
    ".tsv": by_csv("\t"),
    ".parquet": by_parquet,
}
ARCHIVES: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".zst": lambda data: pyarrow.compress(data, codec="zstd", asbytes=True),
}


def written(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize("archive", ARCHIVES)
@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_of_table_is_read_in_any_archive_and_case(
    tmp_path: Path, kind: str, archive: str, upper: bool
) -> None:
    ending = (kind + archive).upper() if upper else kind + archive
    path = written(tmp_path, f"my corpus{ending}", ARCHIVES[archive](WRITERS[kind](ROWS)))
    assert list(iterate_documents(path)) == TEXTS
    assert list(iterate_documents(str(path), text_field="text")) == TEXTS
    renamed = [{"id": row["id"], "body": row["text"]} for row in ROWS]
    path = written(tmp_path, f"other{ending}", ARCHIVES[archive](WRITERS[kind](renamed)))
    assert list(iterate_documents(path)) == TEXTS


@pytest.mark.parametrize("archive", ARCHIVES)
@pytest.mark.parametrize("kind", [".txt", ".md"])
def test_texts_are_read_by_paragraph_in_any_archive(
    tmp_path: Path, kind: str, archive: str
) -> None:
    data = ARCHIVES[archive]("one\r\ntwo\r\n \t\r\n\r\n  three \n\nfünf".encode())
    path = written(tmp_path, f"a{kind}{archive}", data)
    assert list(iterate_documents(path)) == ["one\ntwo", "  three", "fünf"]


def test_markdown_keeps_fences_headings_and_front_matter_whole(tmp_path: Path) -> None:
    text = (
        "---\ntitle: x\n\ntags: y\n---\n\n# Head\n\n## Sub\n\nProse.\n\n"
        "```python\na = 1\n\nb = 2\n```\n\nInline ```x``` code\n\n~~~\n\n```\n~~~\n\nend"
    )
    assert list(iterate_documents(written(tmp_path, "a.md", text.encode()))) == [
        "---\ntitle: x\n\ntags: y\n---",
        "# Head\n## Sub\nProse.",
        "```python\na = 1\n\nb = 2\n```",
        "Inline ```x``` code",
        "~~~\n\n```\n~~~",
        "end",
    ]


@pytest.mark.parametrize("kind", WRITERS)
def test_several_columns_with_texts_are_named(tmp_path: Path, kind: str) -> None:
    rows = [{"id": k, "title": "t", "body": text} for k, text in enumerate(TEXTS)]
    path = written(tmp_path, f"a{kind}", WRITERS[kind](rows))
    with pytest.raises(
        ValueError,
        match=rf"{re.escape(str(path))} has the columns \['id', 'title', 'body'\], 2 of them with "
        r"texts \['title', 'body'\]; text_field= names the one to read",
    ):
        list(iterate_documents(path))
    assert list(iterate_documents(path, text_field="body")) == TEXTS
    with pytest.raises(ValueError, match=r"text_field is 'x', and .* has the columns \['id', "):
        list(iterate_documents(path, text_field="x"))


@pytest.mark.parametrize("kind", WRITERS)
def test_missing_and_blank_rows_are_counted_and_left_out(tmp_path: Path, kind: str) -> None:
    rows = [{"id": 1, "text": "one"}, {"id": 2, "text": None}, {"id": 3, "text": ""}]
    rows += [{"id": 4, "text": " \t "}, {"id": 5, "text": "two"}]
    reader = DocumentReader(written(tmp_path, f"a{kind}", WRITERS[kind](rows)))
    assert [document.text for document in reader] == ["one", "two"]
    assert reader.n_empty == 3


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".parquet"])
def test_a_value_that_is_no_text_is_named_with_its_row(tmp_path: Path, kind: str) -> None:
    rows: list[dict[str, Any]] = [{"text": "one"}, {"text": 7}]
    if kind == ".parquet":
        rows = [{"text": 6}, {"text": 7}]
    path = written(tmp_path, f"a{kind}", WRITERS[kind](rows))
    number, value = (1, 6) if kind == ".parquet" else (2, 7)
    with pytest.raises(
        ValueError,
        match=rf"{re.escape(str(path))}, (row|line) {number} has '{value}' \(int\) in the column",
    ):
        list(iterate_documents(path))


@pytest.mark.parametrize("kind", WRITERS)
def test_groups_come_from_a_column(tmp_path: Path, kind: str) -> None:
    rows = [{"book": f"b{k % 2}", "text": text} for k, text in enumerate(TEXTS)]
    path = written(tmp_path, f"a{kind}", WRITERS[kind](rows))
    reader = DocumentReader(DocumentSource(path, group="book"))
    assert [document.group for document in reader] == ["b0", "b1"] * 3


def test_large_tables_are_read_in_pieces_with_all_their_rows(tmp_path: Path) -> None:
    texts = [f"text number {k}" for k in range(2_500)]
    frame = pd.DataFrame({"number": range(len(texts)), "text": texts})
    frame.to_csv(tmp_path / "a.csv")
    frame.to_parquet(tmp_path / "a.parquet")
    frame.to_json(tmp_path / "a.json")
    frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    for name in ("a.csv", "a.parquet", "a.json", "a.jsonl"):
        assert list(iterate_documents(tmp_path / name)) == texts


# --------------------------------------------------------------------------------------------- JSON

FRAME = pd.DataFrame({"text": ["a", "b"], "id": [1, 2]})


@pytest.mark.parametrize(
    "content",
    [
        [{"text": "a"}, {"text": "b"}],
        ["a", "b"],
        {"text": ["a", "b"], "id": [1, 2]},
        {"text": {"0": "a", "1": "b"}, "id": {"0": 1, "1": 2}},
        {"data": [{"text": "a"}, {"text": "b"}]},
        {"version": "1.0", "data": [{"text": "a"}, {"text": "b"}]},
        json.loads(FRAME.to_json(orient="split")),
        json.loads(FRAME.to_json(orient="table")),
        json.loads(FRAME.to_json(orient="records")),
        json.loads(FRAME.to_json(orient="columns")),
        json.loads(FRAME.to_json(orient="index")),
        json.loads(FRAME.set_axis(["x", "y"]).to_json(orient="index")),
        json.loads(FRAME.set_axis(["x", "y"]).to_json(orient="columns")),
        {"x": {"text": "a"}, "y": {"text": "b", "id": 1}},
        {
            "schema": {"name": "a table"},
            "license": "CC BY 4.0",
            "rows": [*FRAME.to_dict("records")],
        },
    ],
)
def test_json_may_hold_rows_or_columns(tmp_path: Path, content: Any) -> None:
    path = written(tmp_path, "a.json", json.dumps(content, indent=1).encode())
    assert list(iterate_documents(path)) == ["a", "b"]


def test_json_may_hold_one_row_or_one_object_per_line(tmp_path: Path) -> None:
    row = {"text": "a", "label": 1}
    assert list(iterate_documents(written(tmp_path, "a.json", json.dumps(row).encode()))) == ["a"]
    assert list(iterate_documents(written(tmp_path, "b.json", by_lines(ROWS)))) == TEXTS


ARTICLE = {"id": 0, "title": "A title", "body": "The whole article.", "tags": [{"name": "Ann"}]}


@pytest.mark.parametrize("archive", ARCHIVES)
@pytest.mark.parametrize("in_folder", [False, True])
def test_an_article_with_a_list_of_objects_is_one_row(
    tmp_path: Path, archive: str, in_folder: bool
) -> None:
    for k in range(2 if in_folder else 1):
        content = ARTICLE | {"body": f"The whole article {k}."}
        written(tmp_path, f"{k}.json{archive}", ARCHIVES[archive](json.dumps(content).encode()))
    documents = tmp_path if in_folder else tmp_path / f"0.json{archive}"
    with pytest.raises(
        ValueError,
        match=r"0.json.* the list 'tags' of 1 .* \['title', 'body'\] beside it.*text_field=",
    ):
        list(iterate_documents(documents))
    bodies = [f"The whole article {k}." for k in range(1 + in_folder)]
    assert list(iterate_documents(documents, text_field="body")) == bodies
    assert list(iterate_documents(documents, text_field="title")) == ["A title"] * len(bodies)
    # The list's own column may be asked for, and is then read.
    assert list(iterate_documents(documents, text_field="name")) == ["Ann"] * len(bodies)
    with pytest.raises(ValueError, match="text_field is 'author', and .* has the columns"):
        list(iterate_documents(documents, text_field="author"))


@pytest.mark.parametrize(
    "other",
    [
        {"body": None},
        {"body": ""},
        {"summary": "短い文"},
        {"meta": {"body": "The whole article."}},
        {"title": "Word"},
    ],
)
def test_what_may_be_a_text_beside_a_list_of_objects_is_asked_about(
    tmp_path: Path, other: dict[str, Any]
) -> None:
    path = written(tmp_path, "a.json", json.dumps(other | {"rows": [{"name": "Ann"}]}).encode())
    with pytest.raises(ValueError, match="beside it, and the texts may be in either; text_field="):
        list(iterate_documents(path))
    assert list(iterate_documents(path, text_field="name")) == ["Ann"]
    # Rows with named fields are wanted whole: there is no text to look for.
    assert [row for _, row in read_records(path)] == [{"name": "Ann"}]


@pytest.mark.parametrize("write", [list, json.dumps])
def test_a_chat_beside_a_list_of_objects_is_read(
    tmp_path: Path, write: Any, train_tokenizer: Any
) -> None:
    tokenizer = train_tokenizer()
    tokenizer.chat_template = "{{ messages[0].content }}"
    turns = [{"role": "user", "content": "hello"}]
    content = {"messages": write(turns), "sources": [{"url": "a"}], "id": 3}
    path = written(tmp_path, "a.json", json.dumps(content).encode())
    assert list(iterate_documents(path, tokenizer)) == ["hello"]


def test_a_column_of_both_an_object_and_its_list_is_asked_about(tmp_path: Path) -> None:
    content = {"title": "One", "parts": [{"title": "Two"}]}
    path = written(tmp_path, "a.json", json.dumps(content).encode())
    with pytest.raises(ValueError, match=r"\['title'\] beside it, and the texts may be in either"):
        list(iterate_documents(path, text_field="title"))


def test_an_object_of_objects_is_rows_if_they_have_the_column_of_the_texts(tmp_path: Path) -> None:
    one = {"doc1": {"title": "A title", "text": "The body"}}
    assert list(iterate_documents(written(tmp_path, "a.json", json.dumps(one).encode()))) == [
        "The body"
    ]
    two = {key: {"title": "T", "body": f"Body {key}"} for key in ("x", "y")}
    path = written(tmp_path, "b.json", json.dumps(two).encode())
    with pytest.raises(ValueError, match="either may be the columns; text_field= names"):
        list(iterate_documents(path))
    assert list(iterate_documents(path, text_field="body")) == ["Body x", "Body y"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("3", "holds '3'; expected a list of rows"),
        ('"a text"', "holds 'a text'; expected a list of rows"),
        ("{}", r"holds '\{\}'; expected a list of rows"),
        (
            '{"text": ["a"], "id": [1, 2]}',
            "holds an object .* columns have different rows; expected a list of rows",
        ),
        ('[{"text": "a"', r"is not JSON \(.*line 1 column 14.*; expected a list of rows"),
        ("", r"is not JSON .*; expected a list of rows"),
        ('{"columns": ["a"], "index": [0], "data": [[1, 2]]}', "has the keys columns, index and"),
        ("[" + "1" * 5_000 + "]", r"is not JSON .*; expected a list of rows"),
    ],
)
def test_other_json_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = written(tmp_path, "a.json", content.encode())
    with pytest.raises(ValueError, match=f"{re.escape(str(path))} {message}"):
        list(iterate_documents(path))


def test_lone_surrogates_in_json_are_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path, "a.jsonl", b'{"text": "fine"}\n{"text": "a \\ud83d b"}\n')
    assert list(iterate_documents(path)) == ["fine", "a \ufffd b"]
    assert f"{path}, line 2 holds a lone surrogate" in caplog.text


# ------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_the_header_shows_the_separator_of_a_table(tmp_path: Path, separator: str) -> None:
    assert list(iterate_documents(written(tmp_path, "a.csv", by_csv(separator)(ROWS)))) == TEXTS


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"id,text\n1,a\n2,b,c,d\n", r"row 2 has 4 field\(s\) .* and the header 2 "),
        (b'id,text\n1,"a\n2,b\n', "row 1 has unbalanced quotes .*; expected quotes"),
        (b"", "has no header; expected the names of the columns"),
    ],
)
def test_a_broken_table_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = written(tmp_path, "a.csv", data)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))},? {message}"):
        list(iterate_documents(path))


@pytest.mark.parametrize("kind", [".csv", ".tsv"])
@pytest.mark.parametrize(("n_more", "n_fields"), [(1, 3), (-1, 1)])
def test_a_row_with_another_number_of_fields_is_refused_anywhere(
    tmp_path: Path, kind: str, n_more: int, n_fields: int
) -> None:
    separator = "\t" if kind == ".tsv" else ","
    rows = [["positive", "negative"], *([f"good {k}", "bad"] for k in range(3_000))]
    for wrong in (2, 1_500, 3_000):
        lines = [separator.join(row) for row in rows]
        lines[wrong] = separator.join(["a", "b", "c"][: 2 + n_more])
        path = written(tmp_path, f"a{kind}", "\n".join(lines).encode())
        match = rf"a{kind}, row {wrong} has {n_fields} field\(s\) .* and the header 2"
        with pytest.raises(ValueError, match=match):
            list(iterate_documents(path, text_field="positive"))
        with pytest.raises(ValueError, match=match):
            ContrastSet.from_file(path)


@pytest.mark.parametrize(
    ("name", "data", "texts"),
    [
        ("a.csv", "id|text\n1|Hello, you\n2|bye, bye\n", ["Hello, you", "bye, bye"]),
        ("a.csv", '"text, raw";label\n"Hello; you";1\nfoo, bar;2\n', ["Hello; you", "foo, bar"]),
        ("a.csv", "id;text\r1;hello, a, b\r2;hello, d, e\r", ["hello, a, b", "hello, d, e"]),
        ("a.csv", 'id,text\n1,"a\r\nb"\n\n2,say "c"\n', ["a\nb", 'say "c"']),
        ("a.tsv", "text\nHello, you\nbye\n", ["Hello, you", "bye"]),
        ("a.csv", f"id,text\n1,{'long ' * 40_000}end\n", [f"{'long ' * 40_000}end"]),
    ],
)
def test_separators_are_those_outside_quotes(
    tmp_path: Path, name: str, data: str, texts: list[str]
) -> None:
    assert list(iterate_documents(written(tmp_path, name, data.encode()))) == texts


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.tsv", "id,text\n1,Hello you\n2,bye\n", "one column, and each .* ',' .*expected tabs"),
        ("a.csv", "id^text\n1^hello\n2^bye\n", r"one column, and each .* '\^' .*expected commas"),
        ("a.tsv", 'id\ttext\n1\t"Hi\n2\tfoo\n3\tbye" she said\n', "row 1 has unbalanced quotes"),
        ("a.csv", 'id,text\n1,"say \\"hi, you\\" to"\n2,"x"\n', "row 1 has unbalanced quotes"),
        ("a.csv", "text,text\na,b\n", r"several columns with the name\(s\) \['text'\]"),
    ],
)
def test_tables_with_another_separator_or_other_quotes_are_refused(
    tmp_path: Path, name: str, data: str, message: str
) -> None:
    with pytest.raises(ValueError, match=f"{name}.*{message}"):
        list(iterate_documents(written(tmp_path, name, data.encode()), text_field="text"))


def test_rows_of_tables_keep_every_field_as_text(tmp_path: Path) -> None:
    rows = [{"positive": "007", "negative": "NA"}]
    path = written(tmp_path, "a.csv", by_csv(",")(rows))
    assert read_records(path) == [(f"{path}, row 1", rows[0])]


# --------------------------------------------------------------------------------------- encodings


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".json", ".csv", ".tsv"])
def test_byte_order_marks_are_understood(tmp_path: Path, kind: str, encoding: str) -> None:
    text = TEXTS[2] if kind == ".txt" else WRITERS[kind](ROWS[2:3]).decode()
    mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
    path = written(tmp_path, f"a{kind}", mark + text.encode(encoding))
    assert list(iterate_documents(path)) == [TEXTS[2]]


@pytest.mark.parametrize("archive", ARCHIVES)
@pytest.mark.parametrize("kind", [".txt", ".md", ".jsonl", ".json", ".csv", ".tsv"])
def test_bytes_of_another_encoding_are_named(tmp_path: Path, kind: str, archive: str) -> None:
    body = {
        ".txt": "one\n\ncafé\n",
        ".md": "one\n\ncafé\n",
        ".jsonl": '{"text": "one"}\n\n{"text": "café"}\n',
        ".json": '[{"text": "one"},\n\n{"text": "café"}]',
        ".csv": "id,text\n1,one\n2,café\n",
        ".tsv": "id\ttext\n1\tone\n2\tcafé\n",
    }[kind]
    path = written(tmp_path, f"a{kind}{archive}", ARCHIVES[archive](body.encode("latin1")))
    with pytest.raises(
        ValueError,
        match=rf"{re.escape(str(path))}, line 3, byte \d+ is 0xE9, which is not UTF-8; convert it "
        "with: iconv -f latin1 -t utf-8",
    ):
        list(iterate_documents(path))


def test_a_bad_byte_behind_the_first_piece_of_a_table_is_named(tmp_path: Path) -> None:
    lines = ["id,text", *(f"{k},text number {k}" for k in range(2_000)), "2000,café"]
    path = written(tmp_path, "a.csv", "\n".join(lines).encode("latin1"))
    with pytest.raises(ValueError, match=r"line 2002, byte 9 is 0xE9"):
        list(iterate_documents(path))


@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".json", ".csv"])
def test_utf_16_without_a_mark_is_refused(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path, f"a{kind}", "text\none\n".encode("utf-16-le"))
    with pytest.raises(ValueError, match="holds NUL bytes: .*iconv -f utf-16le -t utf-8"):
        list(iterate_documents(path))


# --------------------------------------------------------------------------------------- truncation


@pytest.mark.parametrize("archive", [".gz", ".zst"])
@pytest.mark.parametrize("kind", [".txt", *WRITERS])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_a_truncated_archive_is_refused(
    tmp_path: Path, kind: str, archive: str, share: float
) -> None:
    rows = [{"id": k, "text": f"text number {k * 7919 % 1009}"} for k in range(3_000)]
    data = b"\n\n".join(row["text"].encode() for row in rows)
    whole = ARCHIVES[archive](data if kind == ".txt" else WRITERS[kind](rows))
    path = written(tmp_path, f"a{kind}{archive}", whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))} .*copy or download it again"):
        list(iterate_documents(path))


@pytest.mark.parametrize("archive", [".gz", ".zst"])
def test_what_is_no_archive_is_refused(tmp_path: Path, archive: str) -> None:
    path = written(tmp_path, f"a.jsonl{archive}", by_lines(ROWS))
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))} is truncated or damaged"):
        list(iterate_documents(path))


@pytest.mark.parametrize("cut", [slice(0, 0), slice(0, 200), slice(4, None)])
def test_a_damaged_parquet_file_is_refused(tmp_path: Path, cut: slice) -> None:
    path = written(tmp_path, "a.parquet", by_parquet(ROWS)[cut])
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))} is truncated"):
        list(iterate_documents(path))


def test_archives_of_several_members_are_read_to_the_end(tmp_path: Path) -> None:
    data = by_lines(ROWS)
    for archive, pack in ARCHIVES.items():
        path = written(tmp_path, f"a.jsonl{archive}", pack(data[:40]) + pack(data[40:]))
        assert list(iterate_documents(path)) == TEXTS


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.txt.gz", "a.csv.zst"])
@pytest.mark.parametrize("inside", [".gz", ".zst"])
def test_archives_in_archives_or_under_other_names_are_named(
    tmp_path: Path, name: str, inside: str
) -> None:
    outer = ARCHIVES[Path(name).suffix] if Path(name).suffix in ARCHIVES else ARCHIVES[""]
    path = written(tmp_path, name, outer(ARCHIVES[inside](b"text\none\n" * 100)))
    codec = "gzip" if inside == ".gz" else "zstd"
    with pytest.raises(ValueError, match=rf"{name} is no text: .*\({codec}\); expected text below"):
        list(iterate_documents(path))


# --------------------------------------------------------------------------------------- paragraphs


@pytest.mark.parametrize("kind", [".txt", ".md"])
def test_paragraphs_end_at_line_ends_of_any_system(tmp_path: Path, kind: str) -> None:
    for end in ("\n", "\r\n", "\r"):
        text = f"One.{end}Two.{end}{end}    x = 1{end}    y{end}\u2028Three.{end}"
        path = written(tmp_path, f"a{kind}", text.encode())
        assert list(iterate_documents(path)) == ["One.\nTwo.", "    x = 1\n    y\n\u2028Three."]


@pytest.mark.parametrize(
    ("text", "paragraphs"),
    [
        ("---\nA.\n\nB.\n\nC.\n", ["---\nA.", "B.", "C."]),
        ("A.\n\n```python\nx = 1\n\nB.\n\nC.\n", ["A.", "```python\nx = 1", "B.", "C."]),
        ("A.\n\n~~~\nb\n\n```\nc\n\nd\n```\n\ne\n", ["A.", "~~~\nb", "```\nc\n\nd\n```", "e"]),
        (
            "A.\n\n````md\n```\na\n\nb\n```\n````\n\nB.",
            ["A.", "````md\n```\na\n\nb\n```\n````", "B."],
        ),
        ("#tag one\n\n#tag two\n\n# Head\n\nC.\n", ["#tag one", "#tag two", "# Head\nC."]),
        ("####### seven\n\nA.", ["####### seven", "A."]),
    ],
)
def test_markdown_that_opens_nothing_ends_at_blank_lines(
    tmp_path: Path, text: str, paragraphs: list[str]
) -> None:
    assert list(iterate_documents(written(tmp_path, "a.md", text.encode()))) == paragraphs


@pytest.mark.parametrize("kind", [".txt", ".csv", ".jsonl"])
def test_nul_characters_anywhere_are_refused_with_their_line(tmp_path: Path, kind: str) -> None:
    line = '{"text": "one"}' if kind == ".jsonl" else "one"
    lines = ["text" if kind == ".csv" else line, *[line] * 2_000, "on\0e"]
    path = written(tmp_path, f"a{kind}", "\n".join(lines).encode())
    with pytest.raises(ValueError, match=f"a{kind}, line 2002 holds NUL characters; expected text"):
        list(iterate_documents(path))


def test_a_number_too_long_for_python_is_named_with_its_line(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", b'{"text": "a"}\n{"text": ' + b"1" * 5_000 + b"}\n")
    with pytest.raises(ValueError, match="a.jsonl, line 2 is not JSON .*digits"):
        list(iterate_documents(path))


@pytest.mark.parametrize("opens", ["~~~ Chapter {} ~~~", "```py{}", "~~~{}", "{fence}"])
def test_markdown_with_thousands_of_fences_that_never_close_is_read(
    tmp_path: Path, opens: str
) -> None:
    n = 3_000
    marks = [opens.format(k, fence="`" * (n + 3 - k)) for k in range(n)]
    if opens == "{fence}":
        # A shorter fence closes none before it, and no fence is as long again.
        marks = marks[:100]
    text = "\n\n".join(f"{mark}\n\nText {k}." for k, mark in enumerate(marks))
    paragraphs = list(iterate_documents(written(tmp_path, "a.md", text.encode())))
    expected = [part for k, mark in enumerate(marks) for part in (mark, f"Text {k}.")]
    assert paragraphs == expected


def test_byte_order_marks_in_joined_files_are_no_text(tmp_path: Path) -> None:
    mark = "\ufeff"
    texts = f"{mark}One.\n\n{mark}Two.\n"
    assert list(iterate_documents(written(tmp_path, "a.txt", texts.encode()))) == ["One.", "Two."]
    lines = f'{mark}{{"text": "One."}}\n{mark}{{"text": "Two."}}\n'
    assert list(iterate_documents(written(tmp_path, "a.jsonl", lines.encode()))) == ["One.", "Two."]


@pytest.mark.parametrize(
    ("header", "is_noticed"),
    [
        ("7,This is the first review", True),
        ("0.5,This is the first review", True),
        ('1,"This is a first review, of a film"', True),
        ("id,text", False),
        ("0,1", False),
        ("id,What is your opinion of this", False),
        ("id,This is the first of many reviews and it is long", True),
    ],
)
def test_a_header_that_looks_like_a_row_is_mentioned(
    tmp_path: Path, header: str, is_noticed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path, "a.csv", f"{header}\n2,and another\n3,and a third\n".encode())
    assert list(iterate_documents(path)) == ["and another", "and a third"]
    assert ("a.csv, row 0 is read as the names of the columns" in caplog.text) is is_noticed
