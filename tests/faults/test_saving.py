"""A full disk leaves what was there, and is one error of one line; real processes write."""

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lrt_lens import _files as files
from lrt_lens import _folders as folders
from lrt_lens._files import write_atomically
from lrt_lens._folders import write_folder
from lrt_lens._tensor_files import write_tensors
from lrt_lens.adapters.probes import LinearProbe
from lrt_lens.adapters.vectors import SteeringVector
from lrt_lens.errors import FileFormatError, MismatchError
from lrt_lens.moments import ActivationCache, CrossMoments, merge_shards, remove_checkpoints
from lrt_lens.stitching import Stitch, _folder
from tests.faults.formats import FORMATS, moments, tensors_and_metadata

LIMITED = """
import resource, signal, sys
import lrt_lens as lrt
from tests.faults.formats import moments

kind, path, limit = sys.argv[1], sys.argv[2], int(sys.argv[3])
saved = moments()
saved.n += 1
stitch = saved.fit(progress=False)["blocks.1.hook_resid_post", "blocks.2.hook_resid_post"]
# Larger files cannot be written, as on a full disk; Python ignores the signal that says so. CPython
# would also cut the bytecode of every module imported from here on, in the environment itself.
sys.dont_write_bytecode = True
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    stitch.save_pretrained(path) if kind == "stitch" else saved.save(path)
except OSError as error:
    print(error)
    sys.exit(3)
"""


def state(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize(
    ("kind", "limit"),
    [
        ("stitch", 3000),
        *(
            pytest.param(kind, limit, marks=pytest.mark.slow)
            for kind in ("stitch", "moments")
            for limit in (0, 100)
        ),
    ],
)
def test_a_full_disk_leaves_the_old_one(kind: str, limit: int, tmp_path: Path) -> None:
    path = tmp_path / "saved"
    if kind == "stitch":
        FORMATS["stitch"](path)
        load: Callable[[], Any] = lambda: Stitch.from_pretrained(path)  # noqa: E731
    else:
        moments().save(path)
        load = lambda: CrossMoments.load(path)  # noqa: E731
    before = state(tmp_path)
    ended = subprocess.run(
        [sys.executable, "-c", LIMITED, kind, str(path), str(limit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 3, ended.stderr[-2000:]
    assert "cannot write to" in ended.stdout
    assert "nothing that was there has changed; free some space" in ended.stdout
    assert ended.stdout.count("\n") == 1
    assert state(tmp_path) == before
    load()


@pytest.mark.parametrize("failing", range(4))
@pytest.mark.parametrize("is_exchanged", [True, False])
def test_a_disk_that_is_full_at_any_file_leaves_the_old_stitch(
    failing: int, is_exchanged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full when the k-th file is synced: both tensors, card and configuration."""
    stored = FORMATS["stitch"](tmp_path / "x")
    stitch, before, calls = stored.load(), state(tmp_path), []
    if not is_exchanged:
        monkeypatch.setattr(folders, "_exchange", lambda *_: False)

    def full(path: Path) -> None:
        calls.append(path)
        if len(calls) > failing:
            raise OSError(errno.ENOSPC, "No space left on device")

    for module in (files, folders):
        monkeypatch.setattr(module, "sync", full)
    with pytest.raises(OSError, match=r"cannot write to .*No space left.*free some space") as error:
        stitch.reversed().save_pretrained(tmp_path / "x")
    assert error.value.errno == errno.ENOSPC
    assert state(tmp_path) == before


def test_an_error_of_safetensors_is_an_error_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    from lrt_lens import _tensor_files

    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left (os error 28)")

    path = SteeringVector(torch.ones(4), "hook_embed").save(tmp_path / "vector.safetensors")
    before = path.read_bytes()
    monkeypatch.setattr(_tensor_files, "save_file", full)
    with pytest.raises(OSError, match="No space left on device") as error:
        SteeringVector(torch.zeros(4) + 2, "hook_embed").save(path)
    assert error.value.errno == errno.ENOSPC
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


# ------------------------------------------------------------------------------------------ folders


def fill(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for name in ("a", "config"):
            (folder / name).write_text(text)

    return write


def test_other_files_of_a_folder_stay(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    write_folder(folder, fill("1"), last="config")
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("main")
    (folder / "notes.txt").write_text("mine")
    (folder / "link").symlink_to("notes.txt")
    folder.chmod(0o750)
    write_folder(folder, fill("2"), last="config")
    assert (folder / "a").read_text() == (folder / "config").read_text() == "2"
    assert (folder / ".git" / "HEAD").read_text() == "main"
    assert (folder / "link").read_text() == "mine"
    assert folder.stat().st_mode & 0o777 == 0o750
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


@pytest.mark.parametrize("reason", ["current folder", "no exchange", "link"])
def test_a_folder_that_cannot_be_exchanged_is_replaced_too(
    reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "saved"
    write_folder(folder, fill("1"), last="config")
    given = folder
    if reason == "current folder":
        monkeypatch.chdir(folder)
        given = Path()
    elif reason == "no exchange":
        monkeypatch.setattr(folders, "_libc", lambda: None)
    else:
        given = tmp_path / "link"
        given.symlink_to(folder)
    write_folder(given, fill("2"), last="config")
    assert sorted(path.name for path in folder.iterdir()) == ["a", "config"]
    assert (folder / "a").read_text() == (given / "config").read_text() == "2"


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / f"{files.temporary_prefix(tmp_path / 'saved')}abc"
    left.mkdir()
    (left / "half").write_text("x")
    (tmp_path / ".saving-other").mkdir()
    write_folder(tmp_path / "saved", fill("1"), last="config")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".saving-other", "saved"]


def test_the_staging_of_a_living_process_stays(tmp_path: Path) -> None:
    seen = []

    def write(staging: Path) -> None:
        (staging / "config").write_text("outer")
        write_folder(tmp_path / "saved", fill("inner"), last="config")
        seen.append(staging.exists())

    write_folder(tmp_path / "saved", write, last="config")
    assert seen == [True]
    assert (tmp_path / "saved" / "config").read_text() == "outer"


def test_an_old_folder_is_not_abandoned_before_it_is_emptied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begin another write just after the exchange, when somebody has just added a file."""
    folder = tmp_path / "saved"
    write_folder(folder, fill("1"), last="config")
    exchange = folders._exchange

    def exchange_beside_another(staging: Path, to: Path) -> bool:
        (to / "mine").write_text("x")
        done = exchange(staging, to)
        files.remove_abandoned(tmp_path, files.temporary_prefix(folder))
        return done

    monkeypatch.setattr(folders, "_exchange", exchange_beside_another)
    write_folder(folder, fill("2"), last="config")
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        "a": "2",
        "config": "2",
        "mine": "x",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_the_content_is_on_disk_before_the_old_one_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Order of system calls: file synced, then renamed, then folder synced."""
    calls: list[str] = []
    original = files.sync
    monkeypatch.setattr(files, "sync", lambda path: (calls.append(path.name), original(path)))
    replace = Path.replace
    monkeypatch.setattr(
        Path, "replace", lambda self, to: (calls.append("replace"), replace(self, to))[1]
    )
    write_atomically(tmp_path / "file", lambda temporary: temporary.write_text("x"))
    assert calls[0].startswith(".saving-")
    assert calls[1:] == ["replace", tmp_path.name]


# ------------------------------------------------------------------------------------- two writers

WRITER = """
import sys, time
import lrt_lens as lrt
from tests.faults.formats import moments

stitch = moments().fit(progress=False)["blocks.1.hook_resid_post", "blocks.2.hook_resid_post"]
stitch = stitch if sys.argv[2] == "up" else stitch.reversed()
print("ready", flush=True)
end = time.monotonic() + float(sys.argv[3])
n = 0
while time.monotonic() < end:
    stitch.save_pretrained(sys.argv[1])
    n += 1
print(n)
"""


@pytest.mark.slow
def test_beside_two_writers_a_reader_gets_one_stitch_or_the_other(tmp_path: Path) -> None:
    """Hook points of one with weights of the other were 19 of 124 loads before."""
    folder = tmp_path / "x"
    one = FORMATS["stitch"](folder).load()
    ends = {stitch.source_hook: stitch for stitch in (one, one.reversed())}
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder), way, "4"], stdout=subprocess.PIPE, text=True
        )
        for way in ("up", "down")
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    seen = []
    while any(writer.poll() is None for writer in writers):
        found = Stitch.from_pretrained(folder)
        expected = ends[found.source_hook]
        assert found.target_hook == expected.target_hook
        assert torch.equal(found.up.weight, expected.up.weight.float())
        seen.append(found.source_hook)
    assert [writer.wait() for writer in writers] == [0, 0]
    assert len(seen) > 20
    assert len(set(seen)) == 2, "both writers were seen"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.slow
def test_a_writer_that_is_killed_leaves_a_whole_stitch(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    one = FORMATS["stitch"](folder).load()
    for k in range(4):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder), "down" if k % 2 else "up", "30"],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        with pytest.raises(subprocess.TimeoutExpired):
            writer.wait(0.05 + 0.03 * k)
        writer.kill()
        writer.wait()
        assert Stitch.from_pretrained(folder).source_hook in (one.source_hook, one.target_hook)
    one.save_pretrained(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_tensors_of_another_stitch_are_refused(tmp_path: Path) -> None:
    stored = FORMATS["stitch"](tmp_path / "x")
    stored.load().reversed().save_pretrained(tmp_path / "y")
    for name in (_folder.TENSORS_NAME, _folder.HELD_OUT_NAME):
        octets = (tmp_path / "x" / name).read_bytes()
        (tmp_path / "x" / name).write_bytes((tmp_path / "y" / name).read_bytes())
        with pytest.raises(ValueError, match=r"not of the same stitch|has the shape"):
            Stitch.from_pretrained(tmp_path / "x")
        (tmp_path / "x" / name).write_bytes(octets)
    Stitch.from_pretrained(tmp_path / "x")


# ---------------------------------------------------------------------------- what nobody may lose


def test_files_that_others_write_meanwhile_stay(tmp_path: Path) -> None:
    """Write into the folder from another process while it is replaced again and again."""
    folder = tmp_path / "saved"
    write_folder(folder, fill("0"), last="config")
    other = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time\nfrom pathlib import Path\n"
            "for k in range(150):\n"
            "    Path(sys.argv[1], f'file{k}').write_text('x')\n"
            "    time.sleep(0.002)",
            str(folder),
        ]
    )
    n = 0
    while other.poll() is None:
        write_folder(folder, fill(str(n)), last="config")
        n += 1
    assert other.returncode == 0
    assert len(list(folder.glob("file*"))) == 150
    assert n > 3


def test_rights_and_protection_of_a_folder_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "saved"
    write_folder(folder, fill("1"), last="config")
    before = folder.stat().st_ino
    monkeypatch.setattr(
        folders.os, "listxattr", lambda *_, **__: ["system.posix_acl_access"], raising=False
    )
    write_folder(folder, fill("2"), last="config")
    assert folder.stat().st_ino == before
    assert (folder / "a").read_text() == "2"


def test_a_folder_of_the_name_of_a_file_is_no_file(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "mine").write_text("x")
    with pytest.raises(OSError, match="cannot write to"):
        write_folder(folder, fill("1"), last="config")
    assert (folder / "a" / "mine").read_text() == "x"


def test_names_of_any_length_can_be_saved(tmp_path: Path) -> None:
    folder = tmp_path / ("語" * 84)
    write_folder(folder, fill("1"), last="config")
    path = write_atomically(tmp_path / ("語" * 83 + ".txt"), lambda path: path.write_text("x"))
    assert path.read_text() == "x"
    assert (folder / "a").read_text() == "1"


def test_a_file_keeps_the_rights_that_it_had(tmp_path: Path) -> None:
    path = write_atomically(tmp_path / "file", lambda temporary: temporary.write_text("1"))
    assert path.stat().st_mode & 0o777 == 0o644
    path.chmod(0o600)
    write_atomically(path, lambda temporary: temporary.write_text("2"))
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_lock_that_is_a_link_writes_nothing_outside(tmp_path: Path) -> None:
    stored = FORMATS["cache"](tmp_path / "x")
    (tmp_path / "victim").write_text("mine")
    lock = tmp_path / "x" / "rank0.lock"
    lock.unlink(missing_ok=True)
    lock.symlink_to(tmp_path / "victim")
    with pytest.raises(FileFormatError, match="is a symbolic link, which is not followed"):
        ActivationCache.create(stored.files[0].parent)
    assert (tmp_path / "victim").read_text() == "mine"


# ---------------------------------------------------------------------------- saved, hence readable


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SteeringVector(torch.ones(4), "h", name=7), "name is 7"),  # type: ignore[arg-type]
        (lambda: SteeringVector(torch.ones(4), "h", name="\ud800"), "cannot be saved"),
        (lambda: LinearProbe(torch.ones(4, 3), torch.ones(3), (False, True, 2), "h"), "classes.0"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_could_not_be_loaded_is_refused_on_saving(
    make: Callable[[], Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        make().save(tmp_path / "file")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("unchecked")
def test_numbers_of_numpy_and_torch_are_saved_as_numbers(tmp_path: Path) -> None:
    vector = SteeringVector(
        torch.tensor([1, 2]), "h", median_norm=np.float32(2.5), n_dropped=np.int64(3)
    )
    loaded = SteeringVector.load(vector.save(tmp_path / "vector"))
    assert (loaded.median_norm, loaded.n_dropped) == (2.5, 3)
    assert loaded.direction.tolist() == [1.0, 2.0]


def test_tensors_that_overlap_are_saved(tmp_path: Path) -> None:
    row = torch.arange(6.0)
    probe = LinearProbe(row[:4].reshape(4, 1), row[3:4], (0, 1), "h")
    loaded = LinearProbe.load(probe.save(tmp_path / "probe"))
    assert torch.equal(loaded.weight, probe.weight)
    assert torch.equal(loaded.bias, probe.bias)


# ------------------------------------------------------------------------------------- many of them


def shards(folder: Path) -> list[Path]:
    paths = []
    for i in range(2):
        made = moments()
        made.provenance = replace(
            made.provenance, shard=(i, 2), stream="aa", corpus=f"{i:016x}", part_documents=None
        )
        paths.append(made.save(folder / f"moments-{i}-of-2.safetensors"))
    return paths


@pytest.mark.parametrize("which", [0, 1])
def test_a_changed_number_in_any_shard_is_noticed(which: int, tmp_path: Path) -> None:
    paths = shards(tmp_path)
    merge_shards(paths)
    tensors, metadata = tensors_and_metadata(paths[which])
    octets = bytearray(paths[which].read_bytes())
    octets[-9] ^= 0x10
    paths[which].write_bytes(octets)
    with pytest.raises(FileFormatError, match="do not add up to its checksum|NaN or infinite"):
        merge_shards(paths)
    write_tensors(paths[which], tensors | {"new": torch.zeros(2)}, metadata)
    with pytest.raises(FileFormatError, match="which this version does not know"):
        merge_shards(paths)


def test_declared_numbers_allocate_nothing(tmp_path: Path) -> None:
    stored = FORMATS["stitch"](tmp_path / "x")
    config = json.loads(stored.files[0].read_text())
    for name in ("n_refits", "n_held_out"):
        stored.files[0].write_text(json.dumps(config | {name: 2**70}))
        with pytest.raises(FileFormatError, match=r"declares more tensors|not of the same stitch"):
            stored.load()


def test_checkpoints_of_another_version_are_refused_and_stay(tmp_path: Path) -> None:
    stored = FORMATS["checkpoint"](tmp_path / "x")
    for path in stored.files:
        tensors, metadata = tensors_and_metadata(path)
        octets = path.read_bytes()
        other = metadata | {"schema_version": "lrt_lens.checkpoint/3"}
        write_tensors(path, tensors, other)
        with pytest.raises(MismatchError, match="go on with the version that began it"):
            stored.load()
        assert path.exists()
        path.write_bytes(octets)
    (tmp_path / "x" / "rank_table.safetensors").write_bytes(b"mine")
    stored.load()
    remove_checkpoints(tmp_path / "x")
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["rank_table.safetensors"]
