"""A saved stitch loads equal; other folders, and truncated or incomplete ones, raise an error."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lrt_lens import _folders as folders
from lrt_lens import _tensor_files as tensor_files
from lrt_lens._files import write_atomically
from lrt_lens._folders import write_folder
from lrt_lens._tensor_files import read_tensor_file, write_tensors
from lrt_lens.errors import FileFormatError
from lrt_lens.moments import CrossMoments, Provenance
from lrt_lens.moments._layout import MOMENTS_SCHEMA
from lrt_lens.stitching import Stitch, _folder, score_intervals
from lrt_lens.stitching._card import held_out_table, stitch_card
from lrt_lens.stitching._folder import STITCH_SCHEMA
from tests.faults.formats import SOURCE


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ------------------------------------------------------------------------------------------ moments


@pytest.mark.parametrize("null", ["none", "full", "sketch"])
def test_moments_come_back_as_they_were(layered_moments: Any, tmp_path: Path, null: str) -> None:
    moments = layered_moments(null=null)
    path = moments.save(tmp_path / "new folder" / "moments.safetensors")
    loaded = CrossMoments.load(path)
    assert path == tmp_path / "new folder" / "moments.safetensors"
    for name in ("pairs", "kept_pairs", "token_hook", "moment_dtype", "null", "provenance"):
        assert getattr(loaded, name) == getattr(moments, name)
    assert torch.equal(loaded.n, moments.n)
    for side in ("source", "target"):
        assert getattr(loaded, side).keys() == getattr(moments, side).keys()
        for hook, stream in getattr(moments, side).items():
            for name in ("shift", "total", "second", "norms"):
                assert torch.equal(
                    getattr(getattr(loaded, side)[hook], name), getattr(stream, name)
                )
    for name in ("cross", "cross_null"):
        assert getattr(loaded, name).keys() == getattr(moments, name).keys()
        assert all(
            torch.equal(getattr(loaded, name)[pair], tensor)
            for pair, tensor in getattr(moments, name).items()
        )


def test_loaded_moments_fit_merge_and_go_on_like_the_others(
    rows: Any, moments_of: Any, tmp_path: Path
) -> None:
    first = moments_of(rows.taken(range(1200)))
    loaded = CrossMoments.load(first.save(tmp_path / "first.safetensors"))
    rest = rows.taken(range(1200, 2400))
    merged = loaded.merge(moments_of(rest)).fit().scores
    loaded.update(rest.x, rest.y, documents=rest.documents)
    whole = moments_of(rows).fit().scores
    for column in ("alpha", "r2", "r2_cv", "cka"):
        assert merged[column].iloc[0] == pytest.approx(whole[column].iloc[0], rel=1e-9)
        assert loaded.fit().scores[column].iloc[0] == pytest.approx(whole[column].iloc[0], rel=1e-9)


def test_the_provenance_travels_with_the_moments(
    rows: Any, moments_of: Any, tmp_path: Path, pair: Any
) -> None:
    moments = moments_of(rows)
    moments.provenance = Provenance(
        pair.source.identity, pair.target.identity, 64, 4, "abcd", 3, 120, "00ff", {"torch": "2"}
    )
    assert (
        CrossMoments.load(moments.save(tmp_path / "m.safetensors")).provenance == moments.provenance
    )


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.99])
def test_a_truncated_file_is_refused(
    rows: Any, moments_of: Any, tmp_path: Path, keep: float
) -> None:
    path = moments_of(rows).save(tmp_path / "moments.safetensors")
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
    with pytest.raises(
        FileFormatError,
        match=r"moments.safetensors' is truncated or no safetensors file .*; copy or fit it again",
    ):
        CrossMoments.load(path)


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    (tmp_path / "text.safetensors").write_text(
        "this is no tensor at all, but long enough to look at"
    )
    with pytest.raises(
        FileFormatError, match=rf"foreign.safetensors' has schema None; expected '{MOMENTS_SCHEMA}'"
    ):
        CrossMoments.load(tmp_path / "foreign.safetensors")
    with pytest.raises(
        FileFormatError, match="text.safetensors' is truncated or no safetensors file"
    ):
        CrossMoments.load(tmp_path / "text.safetensors")


def test_a_file_of_another_schema_is_refused(tmp_path: Path) -> None:
    save_file(
        {"a": torch.zeros(2)},
        tmp_path / "later.safetensors",
        metadata={"schema_version": "lrt_lens.moments/99"},
    )
    with pytest.raises(
        FileFormatError, match=rf"has schema 'lrt_lens.moments/99'; expected '{MOMENTS_SCHEMA}'"
    ):
        CrossMoments.load(tmp_path / "later.safetensors")


def test_a_file_that_lacks_a_tensor_or_a_field_is_refused_by_its_name(
    rows: Any, moments_of: Any, tmp_path: Path
) -> None:
    path = moments_of(rows).save(tmp_path / "moments.safetensors")
    file = read_tensor_file(path, MOMENTS_SCHEMA)
    tensors, metadata = file.tensors, file.metadata
    write_tensors(
        path,
        {name: t for name, t in tensors.items() if name != "fold2/second/source/source"},
        metadata,
    )
    with pytest.raises(
        FileFormatError, match=r"lacks the tensors \['fold2/second/source/source'\]"
    ):
        CrossMoments.load(path)
    write_tensors(path, tensors, {key: value for key, value in metadata.items() if key != "pairs"})
    with pytest.raises(FileFormatError, match="lacks 'pairs'"):
        CrossMoments.load(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"no file at '.*nowhere.safetensors'"):
        CrossMoments.load(tmp_path / "nowhere.safetensors")


# ------------------------------------------------------------------------------------------ writing


def test_a_folder_that_cannot_be_written_is_named_with_the_remedy(
    rows: Any, moments_of: Any, stitch: Stitch, tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("a file stands here")
    for write in (
        lambda: moments_of(rows).save(tmp_path / "taken" / "m.safetensors"),
        lambda: stitch.save_pretrained(tmp_path / "taken"),
    ):
        with pytest.raises(
            OSError,
            match=r"cannot write to '.*taken' \(.*\); choose a folder that you may write to",
        ):
            write()
    assert (tmp_path / "taken").read_text() == "a file stands here"


def test_ctrl_c_leaves_the_old_file_and_nothing_else(
    rows: Any, moments_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = moments_of(rows).save(tmp_path / "moments.safetensors")
    before = path.read_bytes()

    def interrupted(tensors: Any, name: Any, metadata: Any = None) -> None:
        Path(name).write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(tensor_files, "save_file", interrupted)
    for target in (path, tmp_path / "new.safetensors"):
        with pytest.raises(KeyboardInterrupt):
            moments_of(rows).save(target)
    assert names(tmp_path) == ["moments.safetensors"]
    assert path.read_bytes() == before


def test_a_written_file_can_be_read_by_others(tmp_path: Path) -> None:
    path = write_atomically(tmp_path / "file", lambda temporary: temporary.write_text("content"))
    assert path.read_text() == "content"
    assert path.stat().st_mode & 0o444 == 0o444
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
@pytest.mark.parametrize("is_on_linux", [True, False])
def test_files_have_the_permissions_that_the_umask_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask: int, mode: int, is_on_linux: bool
) -> None:
    if not is_on_linux:
        monkeypatch.setattr("lrt_lens._files._STATUS", tmp_path / "no such file")

    def write(staging: Path) -> None:
        (staging / "a").write_text("")
        # As safetensors writes.
        (staging / "b").touch(mode=0o600)

    before = os.umask(umask)
    try:
        write_folder(tmp_path / "folder", write, last="a")
        write_atomically(tmp_path / "file", lambda temporary: temporary.write_text(""))
        assert os.umask(umask) == umask, "the umask is as it was"
    finally:
        os.umask(before)
    for path in (tmp_path / "file", tmp_path / "folder" / "a", tmp_path / "folder" / "b"):
        assert path.stat().st_mode & 0o777 == mode


# ------------------------------------------------------------------------------------------- stitch


def test_a_stitch_comes_back_as_it_was_in_float32(owned_stitch: Stitch, tmp_path: Path) -> None:
    owned_stitch.save_pretrained(tmp_path / "stitch")
    loaded = Stitch.from_pretrained(tmp_path / "stitch")
    assert names(tmp_path / "stitch") == [
        "README.md",
        "held_out.safetensors",
        "stitch.safetensors",
        "stitch_config.json",
    ]
    pairs = [
        (owned_stitch.maps, loaded.maps),
        (owned_stitch.null, loaded.null),
        *zip(owned_stitch.refits, loaded.refits, strict=True),
    ]
    assert len(pairs) == 7
    for ours, theirs in pairs:
        for way in ("up", "down"):
            one, other = getattr(ours, way), getattr(theirs, way)
            assert torch.equal(one.weight.float(), other.weight)
            assert torch.equal(one.bias.float(), other.bias)
            assert (one.source_hook, one.target_hook) == (other.source_hook, other.target_hook)
    assert loaded.scores == owned_stitch.scores
    assert loaded.provenance == owned_stitch.provenance
    for role in ("source_statistics", "target_statistics"):
        one, other = getattr(owned_stitch, role), getattr(loaded, role)
        assert torch.equal(one.covariance.float(), other.covariance)
        assert one.median_norm == other.median_norm


def test_a_stitch_saved_twice_is_the_same_file(owned_stitch: Stitch, tmp_path: Path) -> None:
    owned_stitch.save_pretrained(tmp_path / "one")
    Stitch.from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "two")
    for name in names(tmp_path / "one"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_readme_of_others_is_not_overwritten(owned_stitch: Stitch, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("# My project\n\nlibrary_name: lrt_lens\n")
    with pytest.raises(FileExistsError, match=r"README.md' exists and is no model card of this"):
        owned_stitch.save_pretrained(tmp_path)
    assert names(tmp_path) == ["README.md"]
    assert readme.read_text().startswith("# My project")
    # Cards of this version and of the first one are replaced.
    for name in ("lrt_lens", "lrt-lens"):
        readme.write_text(f"---\ntags:\n- a\nlibrary_name: {name}\n---\n")
        owned_stitch.save_pretrained(tmp_path)
        assert readme.read_text().count("## ") > 3
    owned_stitch.save_pretrained(tmp_path)


def test_a_stitch_without_null_and_with_unknown_scores_comes_back(
    rows: Any, moments_of: Any, tmp_path: Path
) -> None:
    stitch = moments_of(rows, null=False).fit().best()
    stitch.save_pretrained(str(tmp_path))
    loaded = Stitch.from_pretrained(str(tmp_path))
    assert loaded.null is None
    assert loaded.source is None
    assert loaded.scores["r2_null"] != loaded.scores["r2_null"]
    assert json.loads((tmp_path / "stitch_config.json").read_text())["scores"]["r2_null"] is None, (
        "NaN is no JSON"
    )


def test_the_card_names_models_hooks_scores_and_the_way_to_load_it(
    owned_stitch: Stitch, tmp_path: Path, pair: Any
) -> None:
    owned_stitch.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    for part in (
        owned_stitch.source_hook,
        owned_stitch.target_hook,
        pair.source.name,
        "shuffled pairs: x with the y of another token (null)",
        "from_pretrained",
        "library_name: lrt_lens",
    ):
        assert part in card


def test_a_folder_without_a_config_is_no_stitch(stitch: Stitch, tmp_path: Path) -> None:
    stitch.save_pretrained(tmp_path)
    (tmp_path / "stitch_config.json").unlink()
    with pytest.raises(
        FileFormatError,
        match=r"holds no stitch_config.json; it is no stitch folder, "
        r"or its writing was interrupted",
    ):
        Stitch.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{half", "is not valid JSON .*; copy it, or save it again"),
        (
            '{"schema_version": "lrt_lens.stitch/99"}',
            rf"has schema 'lrt_lens.stitch/99'; expected '{STITCH_SCHEMA}'",
        ),
        ('{"hidden_size": 8}', f"has schema None; expected '{STITCH_SCHEMA}'"),
        ("[1, 2]", "holds a list as the file; expected fields by name"),
        (f'{{"schema_version": "{STITCH_SCHEMA}"}}', r"missing \['source_hook', "),
        ('{"schema_version": "' + "[" * 100_000, "is not valid JSON"),
    ],
)
def test_a_config_that_is_not_a_stitchs_is_refused(
    stitch: Stitch, tmp_path: Path, content: str, message: str
) -> None:
    stitch.save_pretrained(tmp_path)
    (tmp_path / "stitch_config.json").write_text(content)
    with pytest.raises(FileFormatError, match=message):
        Stitch.from_pretrained(tmp_path)


def test_truncated_or_foreign_tensors_of_a_stitch_are_refused(
    stitch: Stitch, tmp_path: Path
) -> None:
    stitch.save_pretrained(tmp_path)
    tensors = tmp_path / "stitch.safetensors"
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FileFormatError, match="stitch.safetensors' is truncated"):
        Stitch.from_pretrained(tmp_path)
    save_file({"weight": torch.zeros(2)}, tensors)
    with pytest.raises(FileFormatError, match="has schema None"):
        Stitch.from_pretrained(tmp_path)
    write_tensors(tensors, {"maps.up.weight": torch.zeros(2, 2)}, {"schema_version": STITCH_SCHEMA})
    with pytest.raises(FileFormatError, match=r"declares more tensors than stitch.safetensors"):
        Stitch.from_pretrained(tmp_path)
    tensors.unlink()
    with pytest.raises(FileFormatError, match="no file at"):
        Stitch.from_pretrained(tmp_path)


def test_a_stitch_that_is_nowhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        FileFormatError,
        match=r"no stitch at 'nobody/no-such-stitch': "
        r"it is neither a local folder nor a hub repository",
    ):
        Stitch.from_pretrained("nobody/no-such-stitch", cache_dir=tmp_path)


@pytest.mark.parametrize("written_before", [0, 1])
@pytest.mark.parametrize("is_exchanged", [True, False])
def test_an_interrupted_write_over_an_older_stitch_leaves_the_older_one(
    stitch: Stitch,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    written_before: int,
    is_exchanged: bool,
) -> None:
    folder = tmp_path / "stitch"
    stitch.save_pretrained(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    original, calls = _folder.write_tensors, []

    def interrupted(path: Path, *content: Any) -> Path:
        if len(calls) == written_before:
            raise KeyboardInterrupt
        calls.append(path)
        return original(path, *content)

    if not is_exchanged:
        monkeypatch.setattr(folders, "_exchange", lambda *_: False)
    with monkeypatch.context() as patch:
        patch.setattr(_folder, "write_tensors", interrupted)
        with pytest.raises(KeyboardInterrupt):
            stitch.reversed().save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert names(tmp_path) == ["stitch"]
    stitch.reversed().save_pretrained(folder)
    assert Stitch.from_pretrained(folder).source_hook == stitch.target_hook
    assert names(folder) == sorted(before)


def test_names_with_markup_are_shown_as_they_are(stitch: Stitch, tmp_path: Path) -> None:
    named = replace(SOURCE, name="a`|b\n# c \x1b[31m<img src=x>")
    card = stitch_card(replace(stitch, provenance=replace(stitch.provenance, source=named)))
    assert "| source | `a'/b\\n# c \\x1b[31m<img src=x>` | " in card
    assert "\x1b" not in card


def test_the_intervals_of_a_card_are_those_of_the_moments(
    rows: Any, moments_of: Any, tmp_path: Path
) -> None:
    moments = moments_of(rows)
    stitch = moments.fit().best()
    table = held_out_table(stitch).set_index(["score", "direction"])
    for direction, affine in (("up", stitch.up), ("down", stitch.down)):
        ours = table.xs(direction, level="direction")
        pair = (stitch.source_hook, stitch.target_hook)
        theirs = score_intervals(affine, moments, pair, down=direction == "down")
        theirs = theirs.set_index("score")
        for name in ("r2", "r2_uniform"):
            for column in ("value", "low", "high"):
                assert ours.loc[name, column] == pytest.approx(
                    theirs.loc[name, column], rel=1e-5
                ), f"{name} {column} {direction}"


def test_a_card_shows_whole_numbers_controls_and_gaps(owned_stitch: Stitch) -> None:
    card = stitch_card(owned_stitch)
    n = int(owned_stitch.scores["n_tokens"])
    assert f"- tokens that fitted: {n:,}" in card
    assert "e+0" not in card
    for hook in (owned_stitch.source_hook, owned_stitch.target_hook):
        assert f"| `{hook}` |" in card.split("## How it was fitted")[0]
        assert hook not in card.split("## Measured")[1]
    without = replace(owned_stitch, held_out=(), scores={}, null=None)
    assert "This stitch has no held-out groups" in stitch_card(without)
    assert "nan" not in stitch_card(without).lower()
