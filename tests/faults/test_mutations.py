"""Whatever happens to a file, reading it gives the object or one of this package's errors."""

import copy
import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lrt_lens import errors
from lrt_lens._tensor_files import write_tensors
from lrt_lens.adapters.probes import LinearProbe
from lrt_lens.adapters.vectors import SteeringVector
from lrt_lens.errors import FileFormatError
from lrt_lens.moments import CrossMoments
from lrt_lens.stitching import Stitch, _folder
from tests.faults.formats import FORMATS, Stored, tensors_and_metadata

OURS = tuple(getattr(errors, name) for name in errors.__all__)
WITH_FIELDS = ("vector", "probe", "concept map", "code map", "moments")
"""Formats of one file of tensors with fields in JSON."""
N_FILES, N_CHECKPOINTS = 1_650, 600
"""Numbers of changed files of each format and of checkpoints, which are slower; 20,400 in all."""
VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**70,
    1.5,
    math.nan,
    math.inf,
    "",
    "x",
    "\ud800",
    "\x00",
    [],
    {},
    [[]],
    {"x": 1},
    ["a", 1],
    "../up",
    "/etc/x",
)
DTYPES = (torch.float16, torch.float64, torch.int64, torch.bool, torch.uint8, torch.complex64)


# ---------------------------------------------------------------------------------------- mutations


def change_bytes(octets: bytes, rng: random.Random) -> bytes:
    """One fault of a disk or a copy."""
    content = bytearray(octets)
    at = rng.randrange(max(1, len(content)))
    length = rng.choice((1, 8, 64, 512))
    kind = rng.randrange(7)
    if kind == 0 and content:
        content[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        content[at : at + length] = bytes(min(length, len(content) - at))
    elif kind == 2:
        content[at : at + length] = rng.randbytes(min(length, len(content) - at))
    elif kind == 3:
        del content[at:]
    elif kind == 4:
        content += content[at : at + length]
    elif kind == 5:
        content[at:at] = rng.randbytes(length)
    else:
        # The length of a header of safetensors, or the start of a text.
        content[:8] = rng.choice(
            (bytes(8), b"\xff" * 8, (2**40).to_bytes(8, "little"), rng.randbytes(8))
        )
    return bytes(content)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all values in JSON."""
    yield path
    if isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(item, (*path, key))


def change_json(text: str, rng: random.Random) -> str:
    """JSON in which one value is another one, is missing, is new or has another name."""
    if rng.random() < 0.02:
        return rng.choice(("[" * 100_000, "9" * 5_000, '{"a": ' * 3_000, "", "nul", text[:-3]))
    content = json.loads(text)
    path = rng.choice(list(places(content)))
    if not path:
        return json.dumps(rng.choice(VALUES))
    content = copy.deepcopy(content)
    above = content
    for key in path[:-1]:
        above = above[key]
    key, kind = path[-1], rng.randrange(5)
    if kind == 0:
        del above[key]
    elif kind == 1 and isinstance(above, dict):
        above["a field of a newer version"] = rng.choice(VALUES)
    elif kind == 2 and isinstance(above, dict):
        above[f"{key}2"] = above.pop(key)
    elif kind == 3 and isinstance(above, list):
        above.append(rng.choice(VALUES))
    else:
        above[key] = rng.choice(VALUES)
    return json.dumps(content)


def change_tensors(tensors: dict[str, torch.Tensor], rng: random.Random) -> dict[str, torch.Tensor]:
    """Tensors of which one is missing, new, of another shape or precision, or not finite."""
    changed = dict(tensors)
    name = rng.choice(sorted(changed))
    tensor, kind = changed[name], rng.randrange(8)
    if kind == 0:
        del changed[name]
    elif kind == 1:
        changed["a tensor of a newer version"] = torch.zeros(rng.randrange(4))
    elif kind == 2:
        changed[name] = tensor.to(rng.choice(DTYPES))
    elif kind == 3:
        changed[name] = torch.cat([tensor.reshape(-1), torch.zeros(1, dtype=tensor.dtype)])
    elif kind == 4:
        changed[name] = tensor[..., :-1].contiguous() if tensor.ndim else tensor[None]
    elif kind == 5 and tensor.is_floating_point() and tensor.numel():
        changed[name] = tensor.clone()
        changed[name].view(-1)[rng.randrange(tensor.numel())] = rng.choice((math.nan, math.inf))
    elif kind == 6:
        changed[f"{name}2"] = changed.pop(name)
    else:
        changed[name] = torch.zeros(0, dtype=tensor.dtype)
    return changed


def write_changed(path: Path, octets: bytes, rng: random.Random) -> None:
    """Write one changed file; half of the changed tensors and fields have fitting checksums."""
    path.write_bytes(octets)
    kind = rng.choice(("bytes", "fields", "tensors"))
    if kind == "bytes" or (kind == "tensors" and path.suffix != ".safetensors"):
        path.write_bytes(change_bytes(octets, rng))
        return
    if path.suffix != ".safetensors":
        lines = octets.decode().split("\n")
        whole = path.suffix == ".json"
        k = rng.randrange(len(lines))
        text = change_json(octets.decode() if whole else lines[k], rng)
        if not whole:
            text = "\n".join([*lines[:k], text, *lines[k + 1 :]])
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        return
    tensors, metadata = tensors_and_metadata(path)
    if kind == "tensors":
        tensors = change_tensors(tensors, rng)
    elif metadata:
        key = rng.choice(sorted(metadata))
        try:
            metadata[key] = change_json(metadata[key], rng)
        except json.JSONDecodeError:  # a plain text
            metadata[key] = rng.choice(("", "x", "lrt_lens.vector/2", "[]"))
    if rng.random() < 0.5:
        write_tensors(path, tensors, metadata)
    else:
        save_file(tensors, path, metadata=metadata)


def outcome(load: Callable[[], Any], what: str) -> Any:
    """The object, or the error if it is one of this package's; any other one fails the test."""
    try:
        return load()
    except OURS as error:
        if "\n" in str(error):
            pytest.fail(f"{what}: an error of several lines: {error}")
        return error
    except BaseException as error:
        error.add_note(what)
        raise


def finite(value: Any) -> bool:
    """Return whether all tensors in an object are finite."""
    if isinstance(value, torch.Tensor):
        return not value.is_floating_point() or bool(torch.isfinite(value).all())
    if isinstance(value, (list, tuple)):
        return all(map(finite, value))
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    is_ours = type(value).__module__.startswith("lrt_lens")
    return not is_ours or all(map(finite, vars(value).values()))


# -------------------------------------------------------------------------------------------- tests


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stitch that cannot be read is read again at once."""
    monkeypatch.setattr(_folder, "_PAUSE", 0.0)


def change_and_read(stored: Stored, n_files: int, seed: str) -> int:
    """Change a file ``n_files`` times and read it; return how often it was refused."""
    rng, n_refused = random.Random(seed), 0
    originals = {path: path.read_bytes() for path in stored.files}
    for k in range(n_files):
        path = rng.choice(stored.files)
        write_changed(path, originals[path], rng)
        found = outcome(stored.load, f"{seed}, file {k}: {path.name}")
        n_refused += isinstance(found, Exception)
        assert isinstance(found, Exception) or finite(found), f"{seed}, file {k}: not finite"
        path.write_bytes(originals[path])
    return n_refused


@pytest.mark.parametrize("name", FORMATS)
def test_a_few_changed_files_are_refused_by_our_own_errors(name: str, tmp_path: Path) -> None:
    assert change_and_read(FORMATS[name](tmp_path / "x"), 60, name) > 5 or name == "checkpoint"


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_changed_files_are_refused_by_our_own_errors(name: str, tmp_path: Path) -> None:
    stored = FORMATS[name](tmp_path / "x")
    n_files = N_CHECKPOINTS if name == "checkpoint" else N_FILES
    n_refused = change_and_read(stored, n_files, f"{name}, all")
    # A checkpoint is set aside instead, and texts may say anything.
    assert n_refused > N_FILES / 2 or name in ("checkpoint", "contrast set", "choice items")


@pytest.mark.parametrize("name", [*WITH_FIELDS, "stitch", "cache"])
def test_every_flipped_bit_is_noticed(name: str, tmp_path: Path) -> None:
    """Checksums cover headers and tensors; only spaces of the JSON may change."""
    stored, rng = FORMATS[name](tmp_path / "x"), random.Random(name)
    for path in stored.files:
        octets = path.read_bytes()
        for _ in range(40):
            at = rng.randrange(len(octets))
            changed = bytearray(octets)
            changed[at] ^= 1 << rng.randrange(8)
            path.write_bytes(changed)
            found = outcome(stored.load, f"{path.name}, byte {at}")
            if not isinstance(found, Exception):
                assert path.suffix == ".json" or octets[at : at + 1].isspace(), (path.name, at)
        path.write_bytes(octets)


@pytest.mark.parametrize("name", WITH_FIELDS)
def test_a_field_of_a_newer_version_is_said_to_be_one(name: str, tmp_path: Path) -> None:
    stored = FORMATS[name](tmp_path / "x")
    [path] = stored.files
    tensors, metadata = tensors_and_metadata(path)
    [key] = [key for key, text in metadata.items() if text.startswith("{")]
    fields = json.loads(metadata[key]) | {"colour": 1}
    for write in (write_tensors, lambda to, *content: save_file(content[0], to, content[1])):
        write(path, tensors, metadata | {key: json.dumps(fields)})
        with pytest.raises(FileFormatError, match=r"'colour'\]; it was written by a newer version"):
            stored.load()


def test_a_stitch_of_a_newer_version_is_said_to_be_one(tmp_path: Path) -> None:
    stored = FORMATS["stitch"](tmp_path / "x")
    config = json.loads(stored.files[0].read_text())
    for changed in (
        config | {"colour": 1},
        config | {"provenance": config["provenance"] | {"colour": 1}},
    ):
        stored.files[0].write_text(json.dumps(changed))
        with pytest.raises(FileFormatError, match=r"colour'\]; it was written by a newer version"):
            stored.load()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", [*WITH_FIELDS, "stitch"])
def test_numbers_that_are_not_finite_are_refused(name: str, bad: float, tmp_path: Path) -> None:
    stored = FORMATS[name](tmp_path / "x")
    for path in (path for path in stored.files if path.suffix == ".safetensors"):
        octets = path.read_bytes()
        tensors, metadata = tensors_and_metadata(path)
        for key in (key for key, tensor in tensors.items() if tensor.is_floating_point()):
            changed = {**tensors, key: tensors[key].clone()}
            changed[key].view(-1)[-1] = bad
            write_tensors(path, changed, metadata)
            with pytest.raises(FileFormatError, match=r"numbers of '.*' in '.*' are NaN or inf"):
                stored.load()
        path.write_bytes(octets)


def test_widths_must_agree(tmp_path: Path) -> None:
    """Each tensor alone is fine, and its width is that of another hook point."""
    stored = FORMATS["stitch"](tmp_path / "x")
    path = stored.files[1]
    tensors, metadata = tensors_and_metadata(path)
    for name, shape in (
        ("maps.down.weight", (8, 5)),
        ("source.covariance", (8, 8)),
        ("target.mean", (6,)),
        ("maps.up.bias", (9,)),
    ):
        write_tensors(path, tensors | {name: torch.ones(shape)}, metadata)
        with pytest.raises(FileFormatError, match=r"has the shape .*expected \["):
            stored.load()


def test_hook_points_must_be_of_the_models(tmp_path: Path) -> None:
    path = SteeringVector(torch.ones(8), "blocks.1.hook_resid_post").save(tmp_path / "v")
    tensors, metadata = tensors_and_metadata(path)
    whole = FORMATS["vector"](tmp_path / "x").load()
    fields = json.loads(metadata["vector"]) | {
        "model": vars(whole.model),
        "hook": "blocks.9.hook_resid_post",
    }
    write_tensors(path, tensors, metadata | {"vector": json.dumps(fields)})
    with pytest.raises(FileFormatError, match=r"hook point 'blocks.9.* has 4 blocks"):
        SteeringVector.load(path)


# ------------------------------------------------------------------------------ living on one's own


def loaded_numbers(name: str, tmp_path: Path) -> tuple[Stored, Callable[[Any], torch.Tensor]]:
    reads: dict[str, Callable[[Any], torch.Tensor]] = {
        "vector": lambda it: it.direction,
        "probe": lambda it: it.weight,
        "moments": lambda it: next(iter(it.cross.values())),
        "stitch": lambda it: it.up.weight,
    }
    return FORMATS[name](tmp_path / "x"), reads[name]


@pytest.mark.parametrize("name", ["vector", "probe", "moments", "stitch"])
def test_a_loaded_object_does_not_change_with_its_file(name: str, tmp_path: Path) -> None:
    """Cutting a mapped file would end the process, and writing it would change the tensors."""
    stored, read = loaded_numbers(name, tmp_path)
    found = stored.load()
    before = read(found).clone()
    for path in stored.files:
        with open(path, "r+b") as file:
            file.write(b"\x07" * path.stat().st_size)
    assert torch.equal(read(found), before)
    for path in stored.files:
        with open(path, "r+b") as file:
            file.truncate(0)
    assert torch.equal(read(found), before)


def test_a_cache_notices_that_its_file_was_changed(tmp_path: Path) -> None:
    stored = FORMATS["cache"](tmp_path / "x")
    from lrt_lens.moments import ActivationCache

    for change in ("cut", "written", "replaced"):
        octets = stored.files[1].read_bytes()
        opened = ActivationCache.open(tmp_path / "x")
        batches = opened.rows(*opened.pairs[0], batch_rows=16)
        next(batches)
        if change == "cut":
            with open(stored.files[1], "r+b") as file:
                file.truncate(100)
        elif change == "written":
            with open(stored.files[1], "r+b") as file:
                file.seek(-8, 2)
                file.write(b"\x07" * 8)
        else:
            other = stored.files[1].with_suffix(".new")
            other.write_bytes(octets)
            other.replace(stored.files[1])
        with pytest.raises(FileFormatError, match="was changed while it was open"):
            list(batches)
        stored.files[1].write_bytes(octets)


# ------------------------------------------------------------------------------------ other folders


@pytest.mark.parametrize(
    "name",
    ["../outside.safetensors", "/tmp/outside.safetensors", "..", "", "a/b.safetensors", "x\x00y"],
)
def test_a_manifest_names_files_of_its_folder_only(name: str, tmp_path: Path) -> None:
    stored = FORMATS["cache"](tmp_path / "x")
    (tmp_path / "outside.safetensors").write_bytes(stored.files[1].read_bytes())
    manifest = json.loads(stored.files[0].read_text())
    manifest["shards"][0]["files"][0]["name"] = name
    stored.files[0].write_text(json.dumps(manifest))
    with pytest.raises(FileFormatError, match="expected a plain name in the folder of the cache"):
        stored.load()


def test_links_out_of_a_cache_are_not_followed(tmp_path: Path) -> None:
    stored = FORMATS["cache"](tmp_path / "x")
    stored.files[1].rename(tmp_path / "elsewhere")
    stored.files[1].symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileFormatError, match="is a symbolic link, which is not followed"):
        stored.load()


def test_a_manifest_that_declares_more_than_there_is_allocates_nothing(tmp_path: Path) -> None:
    stored = FORMATS["cache"](tmp_path / "x")
    manifest = json.loads(stored.files[0].read_text())
    manifest["shards"][0]["n_rows"] = 10**15
    del manifest["checksum"]  # as in a cache of an earlier version
    stored.files[0].write_text(json.dumps(manifest))
    with pytest.raises(FileFormatError, match="the manifest says 1000000000000000|has the shape"):
        stored.load()


def test_moments_of_an_unknown_pair_are_not_guessed(tmp_path: Path) -> None:
    stored = FORMATS["moments"](tmp_path / "x")
    [path] = stored.files
    tensors, metadata = tensors_and_metadata(path)
    write_tensors(path, tensors, metadata | {"pairs": '[["a", "b"]]'})
    with pytest.raises(FileFormatError, match="lacks the tensors"):
        CrossMoments.load(path)


@pytest.mark.parametrize("kind", [Stitch.from_pretrained, SteeringVector.load, LinearProbe.load])
def test_a_folder_and_a_missing_file_are_refused(kind: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "no such file"):
        with pytest.raises(FileFormatError):
            kind(path)
