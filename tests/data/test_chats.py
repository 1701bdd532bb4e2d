"""Tests of chats: in every form of data sets, against transformers' templates, and their folds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyarrow import parquet

from lrt_lens.data import document_key, iterate_documents, part_of
from lrt_lens.data._documents import Document, DocumentReader

CHAT = [{"role": "user", "content": 'It\'s "so"?'}, {"role": "assistant", "content": "Yes,\nso"}]
SHAREGPT = [{"from": "Human", "value": 'It\'s "so"?'}, {"from": "gpt", "value": "Yes,\nso"}]
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
ALTERNATES = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}{{ m.content }} {% endfor %}"
)
"""Template that refuses chats which do not begin with the user, as that of Gemma does."""


@pytest.fixture
def tokenizer(train_tokenizer: Any) -> Any:
    tokenizer = train_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def read(documents: Any, tokenizer: Any, **options: Any) -> list[str]:
    return list(iterate_documents(documents, tokenizer, **options))


# --------------------------------------------------------------------------------------- folds


def test_the_fold_of_a_chat_does_not_depend_on_the_template(tokenizer: Any) -> None:
    chats = [
        [{"role": "user", "content": f"question {k}"}, {"role": "assistant", "content": f"{k * k}"}]
        for k in range(200)
    ]
    templates = [
        TEMPLATE,
        "It is the first of May.\n" + TEMPLATE,
        "It is the second of May.\n" + TEMPLATE,
        "{% for m in messages %}### {{ m.role | upper }}\n{{ m.content }}\n{% endfor %}",
    ]
    keys, texts = [], []
    for template in templates:
        tokenizer.chat_template = template
        documents = list(DocumentReader(chats, tokenizer))
        keys.append([document.key(0) for document in documents])
        texts.append([document.text for document in documents])
    assert keys[0] == keys[1] == keys[2] == keys[3]
    # The rendered texts differ, and by them most of the chats would change their fold.
    assert texts[1] == [f"It is the first of May.\n{text}" for text in texts[0]]
    parts = [[part_of(document_key(text, 0)) for text in of] for of in texts]
    assert np.mean(np.array(parts[1]) != np.array(parts[2])) > 0.5
    # All six folds are used, evenly.
    assert min(np.bincount([min(part_of(key), 5) for key in keys[0]])) > 15


def test_copies_of_a_chat_in_other_forms_and_with_a_system_prompt_share_a_fold(
    tokenizer: Any,
) -> None:
    system = {"role": "system", "content": "You are a helpful assistant."}
    parts = [{"role": m["role"], "content": [{"type": "text", "text": m["content"]}]} for m in CHAT]
    forms = [CHAT, SHAREGPT, parts, [system, *CHAT], json.dumps(CHAT), {"messages": CHAT}]
    keys = {document.key(0) for document in DocumentReader(forms, tokenizer)}
    assert len(keys) == 1
    other = [CHAT[0], {"role": "assistant", "content": "No."}]
    swapped = [{"role": "assistant", "content": CHAT[0]["content"]}, CHAT[1]]
    [one, two, three] = DocumentReader([other, swapped, [system]], tokenizer)
    assert len(keys | {one.key(0), two.key(0), three.key(0)}) == 4


def test_plain_texts_keep_their_keys() -> None:
    for text in ("the cat sat", "<user>hello", '[{"role"'):
        assert Document(text).key(3) == document_key(text, 3)


# ---------------------------------------------------------------------------- chats in text columns


@pytest.mark.parametrize("name", ["messages", "conversations", "chat", "body"])
@pytest.mark.parametrize("chat", [CHAT, SHAREGPT])
@pytest.mark.parametrize("write", [json.dumps, str, lambda chat: json.dumps(chat, indent=1)])
def test_chats_that_a_table_holds_as_text_are_chats(
    tokenizer: Any, tmp_path: Path, name: str, chat: Any, write: Any
) -> None:
    frame = pd.DataFrame({"n": [1, 2], name: [write(chat)] * 2})
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_csv(tmp_path / "a.tsv.gz", index=False, sep="\t")
    frame.to_parquet(tmp_path / "a.parquet")
    frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    frame.to_json(tmp_path / "a.json")
    files = [tmp_path / f"a{end}" for end in (".csv", ".tsv.gz", ".parquet", ".jsonl", ".json")]
    expected = [tokenizer.apply_chat_template(CHAT, tokenize=False)] * 2
    records = frame.to_dict("records")
    for documents in (*files, frame, records, iter(records), frame[name], list(frame[name])):
        assert read(documents, tokenizer) == expected
    for documents in (*files, frame):
        assert read(documents, tokenizer, text_field=name) == expected


def test_lists_that_pandas_wrote_to_a_csv_file_are_chats(tokenizer: Any, tmp_path: Path) -> None:
    pd.DataFrame({"messages": [CHAT, CHAT]}).to_csv(tmp_path / "a.csv", index=False)
    assert read(tmp_path / "a.csv", tokenizer) == read([CHAT, CHAT], tokenizer)


@pytest.mark.parametrize(
    "value",
    [
        "[{'role': 'user', 'content': 'a'}\n {'role': 'assistant', 'content': 'b'}]",
        "array([{'role': 'user', 'content': 'a'}], dtype=object)",
        '[{"role": "user", "content": "cut o',
        '{"role": "user", "content": "a"}',
        json.dumps(json.dumps(CHAT)),
        "[]",
    ],
)
def test_markup_in_a_column_of_chats_that_is_none_is_refused(
    tokenizer: Any, tmp_path: Path, value: str
) -> None:
    frame = pd.DataFrame({"messages": [json.dumps(CHAT), value]})
    frame.to_csv(tmp_path / "a.csv", index=False)
    for documents, where in ((tmp_path / "a.csv", "a.csv, row 2"), (frame, "document 1")):
        with pytest.raises(ValueError, match=f"{where} has .* in the column 'messages', which is"):
            read(documents, tokenizer)


def test_plain_texts_in_a_column_of_messages_are_texts(tokenizer: Any) -> None:
    rows = [{"messages": "see you at 5"}, {"messages": "ok (as ever)"}]
    assert read(rows, tokenizer) == ["see you at 5", "ok (as ever)"]


def test_markup_in_any_column_that_holds_chats_is_refused(tokenizer: Any) -> None:
    cut = json.dumps(CHAT)[:-20]
    with pytest.raises(ValueError, match="document 1 has .* in the column 'dialogue', which is"):
        read([{"dialogue": json.dumps(CHAT)}, {"dialogue": cut}], tokenizer)
    texts = [{"dialogue": "see you at 5"}, {"dialogue": "[laughs] {aside} ok"}]
    assert read(texts, tokenizer) == ["see you at 5", "[laughs] {aside} ok"]


@pytest.mark.parametrize("as_file", [False, True])
def test_rows_of_json_lines_given_as_texts_are_refused(tmp_path: Path, as_file: bool) -> None:
    lines = [json.dumps({"text": f"text {k}"}) + "\n" for k in range(20)]
    documents: Any = lines
    if as_file:
        documents = tmp_path / "corpus.txt"
        documents.write_text("".join(lines))
    with pytest.raises(
        ValueError, match=r"has .*, a row written as text; .*map\(json.loads, lines"
    ):
        list(iterate_documents(documents))
    # Texts that are meant as they are, and code among other texts.
    assert list(iterate_documents([{"text": line} for line in lines])) == lines
    assert len(list(iterate_documents([*lines[:3], "the cat sat", *lines]))) == 24
    assert list(iterate_documents(['{"cut', "{a} set"])) == ['{"cut', "{a} set"]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([str(np.array(CHAT, dtype=object))], "a chat written as text"),
        ([repr(np.array(["one", "two"], dtype=object))], "an array written as text"),
        ([str(np.array(["one text", "two"]))], "a list written as text"),
        ([str(["one text", "b"]), str(["c"])], "a list written as text"),
        ([json.dumps(["one text"]), ""], "a list written as text"),
        (["", str([{"text": "one"}])], "a list written as text"),
        ([str(b"one text"), str(b"two")], "bytes written as text"),
        ([str(["a"])] * 20, "a list written as text"),
    ],
)
@pytest.mark.parametrize("name", ["text", "body"])
def test_lists_and_bytes_that_a_table_holds_as_text_are_refused(
    tmp_path: Path, values: list[str], kind: str, name: str
) -> None:
    frame = pd.DataFrame({"n": range(len(values)), name: values})
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_parquet(tmp_path / "a.parquet")
    for documents in (tmp_path / "a.csv", tmp_path / "a.parquet", frame, frame.to_dict("records")):
        with pytest.raises(ValueError, match=rf"(row|document) \d has .*, {kind}; expected a text"):
            list(iterate_documents(documents))


def test_lists_among_texts_and_texts_of_the_caller_are_read_as_they_are() -> None:
    mixed = [{"text": "['a', 'b']"}, {"text": "the cat"}, {"text": "b'c'"}]
    assert list(iterate_documents(mixed)) == ["['a', 'b']", "the cat", "b'c'"]
    late = [{"text": "the cat"}, *[{"text": "['a']"}] * 20]
    assert len(list(iterate_documents(late))) == 21
    assert list(iterate_documents(["['a', 'b']"])) == ["['a', 'b']"]
    numbers = [{"text": "[3, 1, 2]"}, {"text": "[1]"}]
    assert list(iterate_documents(numbers)) == ["[3, 1, 2]", "[1]"]


@pytest.mark.parametrize("empty", ["", " \n", None])
def test_a_chat_beside_an_empty_text_is_read(tokenizer: Any, tmp_path: Path, empty: Any) -> None:
    rows = [
        {"text": empty, "messages": CHAT},
        {"text": "plain", "messages": None},
        {"text": "both", "messages": CHAT},
        {"text": empty, "messages": None},
    ]
    frame = pd.DataFrame(rows)
    frame.to_parquet(tmp_path / "a.parquet")
    written = frame.assign(messages=[m if m is None else json.dumps(m) for m in frame["messages"]])
    written.to_csv(tmp_path / "a.csv", index=False)
    frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    table = parquet.read_table(tmp_path / "a.parquet")
    expected = [*read([CHAT], tokenizer), "plain", "both"]
    files = [tmp_path / f"a{end}" for end in (".parquet", ".csv", ".jsonl")]
    for documents in (rows, frame, table, *files):
        assert read(documents, tokenizer) == expected
        assert read(documents, tokenizer, text_field="text") == expected[1:]


# ------------------------------------------------------------------------------------------ content


def test_parts_of_content_that_are_text_are_joined(tokenizer: Any, tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "hello"}, {"type": "text", "text": "you"}]
    chats = [
        [{"role": "user", "content": content}]
        for content in (parts, ["hello", "you"], [{"text": "hello"}, "you"], "hello\nyou")
    ]
    assert read(chats, tokenizer) == ["<user>hello\nyou"] * 4
    assert read([[{"role": "user", "content": parts[0]}]], tokenizer) == ["<user>hello"]
    pd.DataFrame({"messages": [chats[0]]}).to_parquet(tmp_path / "a.parquet")
    for documents in (tmp_path / "a.parquet", pd.read_parquet(tmp_path / "a.parquet")):
        assert read(documents, tokenizer) == ["<user>hello\nyou"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"type": "image_url", "image_url": "x.png"}], "a part that is no text: .*'image_url'"),
        ([{"type": "text", "text": "a"}, {"type": "image"}], "has a part that is no text"),
        ([{"type": "text", "text": None}], "has a part that is no text"),
        (3, r"has the content '3' \(int\); expected a text, or a list of parts"),
        (None, "has no content; expected a text in each turn"),
        (float("nan"), "has no content; expected a text in each turn"),
    ],
)
def test_other_content_is_refused_with_its_row_and_turn(
    tokenizer: Any, content: Any, message: str
) -> None:
    chat = [CHAT[0], {"role": "assistant", "content": content}]
    with pytest.raises(ValueError, match=f"document 1, turn 2.* {message}"):
        read(["plain", chat], tokenizer)


@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA])
def test_a_chat_without_any_content_is_counted_as_empty(tokenizer: Any, missing: Any) -> None:
    reader = DocumentReader([[{"role": "user", "content": missing}], CHAT], tokenizer)
    assert len(list(reader)) == 1
    assert reader.n_empty == 1


def test_a_turn_that_calls_a_tool_needs_no_content(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content or m.tool_calls[0].name }}{% endfor %}"
    )
    call = [{"name": "clock"}], [{"name": "date"}]
    chats = [
        [CHAT[0], {"role": "assistant", "content": float("nan"), "tool_calls": calls}]
        for calls in call
    ]
    documents = list(DocumentReader(chats, tokenizer))
    assert [one.text[-16:] for one in documents] == ["<assistant>clock", "?<assistant>date"]
    assert documents[0].key(0) != documents[1].key(0)


@pytest.mark.parametrize(
    ("template", "line", "error"),
    [
        (ALTERNATES, 2, "Roles must alternate"),
        ("{{ messages[0]['content'] + 1 }}", 1, "TypeError"),
        ("{% if %}", 1, "TemplateSyntaxError"),
    ],
)
def test_an_error_of_the_template_names_the_row(
    tokenizer: Any, tmp_path: Path, template: str, line: int, error: str
) -> None:
    tokenizer.chat_template = template
    rows = [{"messages": CHAT}, {"messages": [{"role": "system", "content": "a"}, *CHAT]}]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    message = rf"a.jsonl, line {line} is a chat with the roles .*'user', .* fails on it \(.*{error}"
    with pytest.raises(ValueError, match=message):
        read(path, tokenizer)
