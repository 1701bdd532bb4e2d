"""Certificates tell an engine that steers as we do from one that does something else."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lrt_lens as lrt
from lrt_lens.adapters.vectors import SteeringVector, calibrate_scale
from lrt_lens.errors import FileFormatError, MismatchError
from lrt_lens.serving import FORMATS, ExportCheck, RuleEngine, check_export
from tests.serving.vectors import make_vector

NEUTRAL = ["The quick brown fox jumps over the lazy dog and runs away."] * 3


class OffByOne(RuleEngine):
    """An engine that adds the direction one block too late."""

    name = "off by one"
    shift = 1

    def logits(self, rows: Sequence[Sequence[int]], path: Path | None) -> list[np.ndarray]:
        blocks = list(self._blocks)
        self._blocks = torch.nn.ModuleList(blocks[self.shift :] + blocks[: self.shift])
        try:
            return super().logits(rows, path)
        finally:
            self._blocks = torch.nn.ModuleList(blocks)


class OneTooEarly(OffByOne):
    name, shift = "one too early", -1


class Unsteered(RuleEngine):
    """An engine that ignores the file, as llama-server does with a bad one."""

    name = "unsteered"

    def logits(self, rows: Sequence[Sequence[int]], path: Path | None) -> list[np.ndarray]:
        return super().logits(rows, None)


class WithoutBos(RuleEngine):
    """An engine that leaves the first position as it is."""

    name = "without BOS"

    def logits(self, rows: Sequence[Sequence[int]], path: Path | None) -> list[np.ndarray]:
        steered = super().logits(rows, path)
        plain = super().logits(rows, None)
        return [np.concatenate([b[:1], a[1:]]) for a, b in zip(steered, plain, strict=True)]


class Doubled(RuleEngine):
    """An engine that applies the scale twice."""

    name = "doubled"

    def logits(self, rows: Sequence[Sequence[int]], path: Path | None) -> list[np.ndarray]:
        if path is None:
            return super().logits(rows, None)
        twice = path.with_name(f"twice{path.suffix}")
        vector = SteeringVector.load(path)
        (2.0 * replace(vector, strength=None)).export(twice, "llama.cpp")
        return super().logits(rows, twice)


@pytest.mark.parametrize("to", FORMATS)
def test_every_format_steers_as_our_hook(
    vector: SteeringVector, model: Any, tmp_path: Path, to: str
) -> None:
    path = vector.export(tmp_path / "v", to, scale=-1.5)
    check = check_export(path, model, neutral=NEUTRAL)
    assert check.passed, check.problems
    assert check.difference < 1e-5
    assert min(check.difference_before, check.difference_after) > 0.05
    assert (check.format, len(check.table)) == (to, 9)
    assert check.first_position == (4 if to == "transformers" else 0)
    assert check.damage == pytest.approx(check.damage_of_hook, rel=1e-4)
    beside = path / "export.json" if path.is_dir() else Path(f"{path}.export.json")
    [stored] = json.loads(beside.read_text())["checks"]
    assert stored["passed"]
    assert stored["difference"] == check.difference
    assert stored["engine"] == check.engine


@pytest.mark.parametrize("to", FORMATS)
def test_a_calibrated_vector_steers_as_its_file_and_as_what_is_read_from_it(
    vector: SteeringVector, model: Any, tmp_path: Path, to: str
) -> None:
    calibrated = calibrate_scale(model, vector, NEUTRAL, damage=0.05, positions="every").vector
    path = calibrated.export(tmp_path / "v", to)
    rows = model.encode(["The quick brown fox jumps over"])
    [file] = RuleEngine(model).logits(rows, path)
    for one in (calibrated, SteeringVector.load(path, model=model)):
        with one.apply(model):
            [steered] = model.logits(torch.tensor(rows)).numpy()
        np.testing.assert_allclose(steered, file, atol=1e-5)


@pytest.mark.parametrize(
    ("to", "mode", "level"), [("glp", "ablate", None), ("lm-eval", "clamp", 4.0)]
)
def test_other_modes(
    vector: SteeringVector, model: Any, tmp_path: Path, to: str, mode: Any, level: float | None
) -> None:
    path = vector.export(tmp_path / "v", to, mode=mode, level=level)
    check = check_export(path, model)
    assert check.passed, check.problems
    assert check.effect > 0.01


@pytest.mark.parametrize(
    ("engine", "match"),
    [
        (OffByOne, "logits differ from our hook"),
        (OneTooEarly, "logits differ from our hook"),
        (Unsteered, "position -1 is the first that is steered; expected 0"),
        (WithoutBos, "position 1 is the first"),
        (Doubled, "logits differ"),
    ],
)
def test_an_engine_that_steers_otherwise_fails(
    vector: SteeringVector, model: Any, tmp_path: Path, engine: Any, match: str
) -> None:
    path = vector.export(tmp_path / "v.gguf", "llama.cpp")
    check = check_export(path, model, engine=engine(model))
    assert not check.passed
    assert match in "; ".join(check.problems)
    assert check.engine == engine.name
    assert match in repr(check)
    assert "differs" in check._repr_html_()
    # The check of another engine stays in the record.
    good = check_export(path, model)
    stored = json.loads(Path(f"{path}.export.json").read_text())["checks"]
    assert [one["passed"] for one in stored] == [False, True]
    assert good.passed


def test_damage_is_compared_with_the_budget(
    vector: SteeringVector, model: Any, tmp_path: Path
) -> None:
    path = vector.export(tmp_path / "v.gguf", "llama.cpp", damage=0.1, model=model, neutral=NEUTRAL)
    check = check_export(path, model, neutral=NEUTRAL)
    assert check.budget == 0.1
    assert check.passed, check.problems
    assert check.damage == pytest.approx(0.1, rel=0.05)
    # A file whose numbers were made longer meets the rule, and not the budget.
    longer = replace(SteeringVector.load(path), strength=None) * 1.5
    back = replace(longer, strength=SteeringVector.load(path).strength)
    other = back.export(tmp_path / "w.gguf", "llama.cpp")
    check = check_export(other, model, neutral=NEUTRAL)
    assert not check.passed
    assert "nats per token; expected 0.1 within 10%" in check.problems[0]


def test_a_check_of_a_foreign_file_makes_a_record(
    vector: SteeringVector, model: Any, tmp_path: Path
) -> None:
    path = vector.export(tmp_path / "v.gguf", "repeng")
    Path(f"{path}.export.json").unlink()
    assert check_export(path, model).passed
    record = json.loads(Path(f"{path}.export.json").read_text())
    assert (record["format"], len(record["checks"])) == ("llama.cpp", 1)


def test_bad_input(vector: SteeringVector, model: Any, load: Any, tmp_path: Path) -> None:
    path = vector.export(tmp_path / "v.gguf", "llama.cpp")
    with pytest.raises(MismatchError, match="config_hash"):
        check_export(path, load("llama", d=16, layers=4, seed=5))
    with pytest.raises(ValueError, match="expected a list of texts"):
        check_export(path, model, prompts="one text")
    with pytest.raises(ValueError, match="expected a list of texts"):
        check_export(path, model, prompts=[])
    other = load("llama", d=16, layers=4, seed=6)
    other.engine.model.resize_token_embeddings(8)
    with pytest.raises((MismatchError, IndexError)):
        check_export(path, model, engine=RuleEngine(other))


def test_a_changed_script_is_not_run(vector: SteeringVector, model: Any, tmp_path: Path) -> None:
    folder = vector.export(tmp_path / "steering", "transformers")
    script = folder / "steer.py"
    script.write_text(script.read_text() + "\nraise SystemExit('it ran')\n")
    with pytest.raises(FileFormatError, match="is not the script that was exported"):
        check_export(folder, model)
    script.unlink()
    with pytest.raises(FileFormatError, match="lacks steer.py, the script that steers"):
        check_export(folder, model)


def test_the_edge_blocks_have_one_neighbour(model: Any, tmp_path: Path) -> None:
    first = check_export(make_vector(model, 0).export(tmp_path / "v", "vllm-lens"), model)
    last = check_export(make_vector(model, 3).export(tmp_path / "w", "vllm-lens"), model)
    assert np.isnan(first.difference_before)
    assert np.isnan(last.difference_after)
    assert first.passed
    assert last.passed


def test_prompts_that_say_nothing_do_not_pass(
    vector: SteeringVector, model: Any, tmp_path: Path
) -> None:
    folder = vector.export(tmp_path / "steering", "transformers")
    for engine in (None, Unsteered(model)):
        check = check_export(folder, model, engine=engine, prompts=["a", "b"] * 5)
        assert not check.passed
        assert "0 prompts have a token that is steered" in check.problems[0]
    long = "The quick brown fox jumps over"
    few = check_export(folder, model, prompts=["a", long])
    assert "1 prompts have a token that is steered; expected at least 8" in few.problems[0]
    enough = check_export(folder, model, prompts=["a", *(f"{long} {i}" for i in range(8))])
    assert enough.passed, enough.problems
    assert (enough.first_position, enough.n_prompts) == (4, 8)


class Broken(RuleEngine):
    """An engine whose logits of some rows are changed by a function."""

    name = "broken"
    change: Any = None

    def logits(self, rows: Sequence[Sequence[int]], path: Path | None) -> list[np.ndarray]:
        return type(self).change(super().logits(rows, path), rows)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda logits, rows: logits[:-1], "gives logits for 8 rows"),
        (lambda logits, rows: [one[-1:] for one in logits], "returns logits"),
        (lambda logits, rows: [one[:, :-1] for one in logits], "returns logits"),
    ],
)
def test_logits_of_other_shapes_are_refused(
    vector: SteeringVector, model: Any, tmp_path: Path, change: Any, error: str
) -> None:
    path = vector.export(tmp_path / "v.gguf", "llama.cpp")
    engine = type("Engine", (Broken,), {"change": staticmethod(change)})(model)
    with pytest.raises(MismatchError, match=error):
        check_export(path, model, engine=engine)


def test_nan_on_neutral_texts_does_not_pass(
    vector: SteeringVector, model: Any, tmp_path: Path
) -> None:
    def change(logits: list[np.ndarray], rows: Sequence[Sequence[int]]) -> list[np.ndarray]:
        # The prompts of this test are shorter than its neutral texts.
        return [
            one * (np.nan if len(row) > 60 else 1.0) for one, row in zip(logits, rows, strict=True)
        ]

    path = vector.export(tmp_path / "v.gguf", "llama.cpp")
    engine = type("Engine", (Broken,), {"change": staticmethod(change)})(model)
    prompts = [f"The quick brown fox {i}" for i in range(8)]
    assert check_export(path, model, engine=engine, prompts=prompts).passed
    long = [" ".join(["The quick brown fox jumps over the lazy dog."] * 4)]
    check = check_export(path, model, engine=engine, prompts=prompts, neutral=long)
    assert not check.passed
    assert "the damage is nan" in check.problems[0]
    stored = json.loads(Path(f"{path}.export.json").read_text(), parse_constant=pytest.fail)
    assert stored["checks"][-1]["damage"] is None


@pytest.mark.parametrize("factor", [0.02, 0.1, 1.0])
def test_a_scale_that_is_wrong_by_a_twentieth_is_found(
    vector: SteeringVector, model: Any, tmp_path: Path, factor: float
) -> None:
    small = factor * vector
    path = small.export(tmp_path / "v.gguf", "llama.cpp")
    other = (1.05 * small).export(tmp_path / "w.gguf", "llama.cpp")

    class Stronger(RuleEngine):
        name = "stronger"

        def logits(self, rows: Any, path: Path | None) -> list[np.ndarray]:
            return super().logits(rows, None if path is None else other)

    assert check_export(path, model).passed
    assert not check_export(path, model, engine=Stronger(model)).passed


def test_a_budget_of_divergence_is_compared_with_a_divergence(
    vector: SteeringVector, model: Any, tmp_path: Path
) -> None:
    found = calibrate_scale(model, vector, NEUTRAL, damage=0.05, unit="kl", positions="every")
    path = found.vector.export(tmp_path / "v.gguf", "llama.cpp")
    check = check_export(path, model, neutral=NEUTRAL)
    assert check.passed, check.problems
    assert check.budget == 0.05
    assert check.damage == pytest.approx(found.damage, rel=1e-3)
    # Other texts have another damage, which says nothing about the engine.
    other = check_export(path, model, neutral=["A cat sat on the mat and looked at the dog."] * 2)
    assert np.isnan(other.budget)
    assert other.passed, other.problems


def test_a_record_of_another_content_is_left_out(
    vector: SteeringVector, model: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = vector.export(tmp_path / "v.json", "vllm-lens")
    other = replace(vector, name="other", direction=vector.direction.flip(0))
    foreign = other.export(tmp_path / "w.json", "vllm-lens")
    path.write_bytes(foreign.read_bytes())
    loaded = SteeringVector.load(path)
    assert loaded.name == "v", "that of the file"
    assert loaded.file is not None
    assert "was written for another content" in caplog.text
    beside = Path(f"{path}.export.json")
    beside.unlink()
    assert check_export(path, model).passed, "a file of another program"
    assert len(json.loads(beside.read_text())["checks"]) == 1


def edited(path: Path, old: str, new: str) -> None:
    """Replace a text in a file of JSON."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def one_bit(path: Path) -> None:
    """Change one bit of the last number of a file."""
    octets = bytearray(path.read_bytes())
    octets[-3] ^= 1
    path.write_bytes(octets)


def renamed(path: Path, old: bytes = b"direction.2", new: bytes = b"direction.1") -> None:
    """Write another name over the last one of a GGUF file: names of tensors stand behind keys."""
    octets = path.read_bytes()
    start = octets.rindex(old)
    path.write_bytes(octets[:start] + new + octets[start + len(old) :])


def other_format(path: Path) -> None:
    """Put a file of another program, which nobody exported here, in the place of a file."""
    vector = SteeringVector.load(path)
    elsewhere = vector.export(path.parent / "elsewhere", "neuronpedia", scale=1.0)
    path.write_bytes(elsewhere.read_bytes())


CHANGES: dict[str, tuple[str, Any]] = {
    "scale": ("vllm-lens", lambda path: edited(path, '"scale": 1.5', '"scale": 1.6')),
    "block": ("vllm-lens", lambda path: edited(path, "[2]", "[1]")),
    "format": ("vllm-lens", other_format),
    "block in GGUF": ("llama.cpp", renamed),
    "number in GGUF": ("llama.cpp", one_bit),
    "key in GGUF": ("repeng", lambda path: renamed(path, b"lrt_lens.scale", b"lrt_lens.xcale")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_file_does_not_pass_and_keeps_its_record(
    vector: SteeringVector, model: Any, tmp_path: Path, change: str
) -> None:
    to, edit = CHANGES[change]
    learnt = replace(vector, method="mean_difference", contrast="abc")
    path = learnt.export(tmp_path / "v", to, scale=1.5)
    edit(path)
    beside = Path(f"{path}.export.json")
    record = beside.read_bytes()
    for _ in range(2):
        check = check_export(path, model)
        assert not check.passed
        assert "the file is not what was exported" in check.problems[0]
        assert "the file is not what was exported" in repr(check)
        assert beside.read_bytes() == record, "the record of what was exported"
    loaded = SteeringVector.load(path)
    assert (loaded.method, loaded.contrast) == ("given", "")


def test_a_changed_gguf_without_its_record_loses_its_origin(
    vector: SteeringVector, model: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    learnt = replace(vector, method="mean_difference")
    path = learnt.export(tmp_path / "v.gguf", "llama.cpp")
    Path(f"{path}.export.json").unlink()
    assert SteeringVector.load(path).method == "mean_difference"
    assert not caplog.text
    one_bit(path)
    loaded = SteeringVector.load(path)
    assert (loaded.method, loaded.strength, loaded.skip_first) == ("given", None, 0)
    assert "is not the file that was exported" in caplog.text
    check = check_export(path, model)
    assert "the file is not what was exported" in check.problems[0]
    assert not Path(f"{path}.export.json").exists()


@pytest.mark.parametrize("to", ["llama.cpp", "vllm-lens"])
def test_an_edited_record_is_refused(
    vector: SteeringVector, model: Any, tmp_path: Path, to: str
) -> None:
    path = vector.export(tmp_path / "v", to, scale=1.5)
    beside = Path(f"{path}.export.json")
    record = json.loads(beside.read_text())
    changed = {**record, "strength": {**record["strength"], "damage": 0.01}}
    beside.write_text(json.dumps(changed))
    for read in (SteeringVector.load, lambda path: check_export(path, model)):
        with pytest.raises(FileFormatError, match="do not add up to their checksum; export again"):
            read(path)
    # Records of earlier versions have no checksum.
    del record["record_checksum"]
    beside.write_text(json.dumps(record))
    assert check_export(path, model).passed
    assert "record_checksum" in json.loads(beside.read_text())


def test_a_file_that_no_program_steers_with_is_refused(
    vector: SteeringVector, model: Any, tmp_path: Path
) -> None:
    own = vector.save(tmp_path / "own.safetensors")
    with pytest.raises(FileFormatError, match="a vector of this package, .* export it first"):
        check_export(own, model)
    with pytest.raises(FileFormatError, match="a vector of this package"):
        RuleEngine(model).logits([[1, 2]], own)
    np.save(tmp_path / "alone.npy", vector.direction.numpy())
    with pytest.raises(FileFormatError, match="a tensor alone, .* at=…, model=…"):
        check_export(tmp_path / "alone.npy", model)
    with pytest.raises(FileFormatError, match="a folder without directions.safetensors"):
        check_export(tmp_path, model)
    with pytest.raises(FileFormatError, match="is no file; check the path"):
        check_export(tmp_path / "missing.gguf", model)


def test_a_check_says_damage_and_budget(vector: SteeringVector, model: Any, tmp_path: Path) -> None:
    path = vector.export(tmp_path / "v.gguf", "llama.cpp", damage=0.1, model=model, neutral=NEUTRAL)
    assert "damage" not in repr(check_export(path, model))
    text = repr(check_export(path, model, neutral=NEUTRAL))
    assert "nats per token on 3 neutral texts" in text
    assert "under our hook, budget 0.1)" in text
    assert "llama.cpp by the rule of the format in plain transformers" in text


def test_it_is_a_name_of_the_package() -> None:
    assert lrt.check_export is check_export
    assert lrt.ExportCheck is ExportCheck
