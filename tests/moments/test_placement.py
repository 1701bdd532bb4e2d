"""Sums in host memory and in mapped files have the numbers of sums on the models' device."""

import copy
import gc
import logging
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import lrt_lens as lrt
from lrt_lens.errors import FileFormatError
from lrt_lens.models import ModelPair
from lrt_lens.moments import CrossMoments, HarvestSettings, SurveySettings, harvest, merge_shards
from lrt_lens.moments import _placement as placements
from lrt_lens.moments._placement import Placement, mapped_zeros, placed

QUIET: dict[str, Any] = {"n_tokens": None, "context_length": 24, "progress": False}


def test_a_mapped_file_has_the_numbers_of_memory(
    pair: ModelPair, corpus: list[str], tmp_path: Path
) -> None:
    inside = harvest(pair, corpus, **QUIET)
    mapped = harvest(
        pair, corpus, placement="disk", placement_folder=str(tmp_path / "scratch"), **QUIET
    )
    assert mapped.placement.place == "disk"
    assert_same(mapped, inside)
    # The file has no name, so that nothing is left if the process is killed.
    assert not list((tmp_path / "scratch").iterdir())
    loaded = CrossMoments.load(mapped.save(tmp_path / "moments.safetensors"))
    assert_same(loaded, inside)
    assert mapped.fit().scores.equals(inside.fit().scores)


def test_a_mapped_harvest_resumes(pair: ModelPair, corpus: list[str], tmp_path: Path) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    on_disk: dict[str, Any] = {"placement": "disk", "placement_folder": str(tmp_path), **QUIET}
    folder, blocks = tmp_path / "checkpoint", {"block_rows": 64}
    with pytest.raises(KeyboardInterrupt):
        harvest(pair, corpus, checkpoint=folder, on_block=second(stop), **blocks, **on_disk)
    resumed = harvest(pair, corpus, checkpoint=folder, **blocks, **on_disk)
    assert_same(resumed, harvest(pair, corpus, **blocks, **QUIET))


def second(call: Any) -> Any:
    """Return a callback that calls at the second block only."""
    seen: list[None] = []

    def on_block(*arguments: Any) -> None:
        seen.append(None)
        if len(seen) == 2:
            call(*arguments)

    return on_block


def test_products_that_arrive_later_are_all_added(
    pair: ModelPair, corpus: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All products go through buffers, as from a device to host memory."""
    inside = harvest(pair, corpus, **QUIET)
    in_buffers: list[int] = []
    finish_one = Placement._finish_one

    def counted(self: Placement) -> None:
        in_buffers.append(len(self._waiting))
        finish_one(self)

    monkeypatch.setattr(Placement, "_finish_one", counted)
    monkeypatch.setattr(Placement, "_is_far", lambda *_: True)
    assert_same(harvest(pair, corpus, **QUIET), inside)
    assert max(in_buffers) == placements._BUFFERS
    # A handful of buffers serves all products of a harvest.
    assert len(in_buffers) > 100


def test_buffers_are_used_again_and_never_before_their_product_is_added() -> None:
    place = Placement("host")
    place._is_far = lambda *_: True  # type: ignore[method-assign]
    generator = torch.Generator().manual_seed(0)
    sums = [torch.zeros(4, 5, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)]
    expected = [total.clone() for total in sums]
    for number in range(20):
        total = sums[number % 2]
        product = torch.randn(total.shape, generator=generator)
        expected[number % 2] += product
        place.add(total, product)
        product.fill_(torch.nan)  # the device goes on and writes over it
    place.finish()
    assert all(torch.equal(total, wanted) for total, wanted in zip(sums, expected, strict=True))
    assert len(place._free) <= placements._BUFFERS + 1


def test_sums_that_do_not_fit_beside_a_block_live_on_the_host(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    free = {"cuda": 10_000, "cpu": 50_000}
    monkeypatch.setattr(
        placements, "available_memory", lambda device="cpu": free[torch.device(device).type]
    )
    assert placed("auto", "cuda:0", 8_000, 1_000).place == "device"
    with caplog.at_level(logging.WARNING):
        assert placed("auto", "cuda:0", 8_000, 3_000).place == "host"
    assert (
        "the exact moments (8 KB) live in host memory, to which products are copied from cuda:0"
        in caplog.text
    )
    assert placed("device", "cuda:0", 8_000, 3_000).place == "device"
    with pytest.raises(ValueError, match="20 KB and 10 KB are free on cuda:0"):
        placed("device", "cuda:0", 20_000)
    with pytest.raises(ValueError, match=r"60 KB and 50 KB are free on cpu; .*placement='disk'"):
        placed("auto", "cuda:0", 60_000)
    # On the CPU the device is the host.
    assert placed("host", "cpu", 20_000).place == "device"


def test_a_pinned_allocation_that_fails_becomes_ordinary_memory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried: list[bool] = []

    def refused(shape: Any, dtype: torch.dtype, *, pin_memory: bool = False) -> torch.Tensor:
        tried.append(pin_memory)
        if pin_memory:
            raise RuntimeError("CUDA error: out of memory\nmore lines")
        return torch.empty(shape, dtype=dtype)

    monkeypatch.setattr(placements, "_empty", refused)
    place, like = Placement("host", torch.device("cuda")), torch.zeros(1)
    with caplog.at_level(logging.WARNING):
        sums = [place.zeros((2, 500), like) for _ in range(5)]
    assert all(one.shape == (2, 500) and not one.any() for one in sums)
    assert "8 KB of pinned host memory could not be had (CUDA error: out of memory)" in caplog.text
    # One warning and one attempt, however many sums there are.
    assert caplog.text.count("could not be had") == 1
    assert tried == [True] + [False] * 5

    def nothing(*_: Any, **__: Any) -> torch.Tensor:
        raise RuntimeError("can't allocate")

    monkeypatch.setattr(placements, "_empty", nothing)
    with pytest.raises(ValueError, match=r"8 KB of host memory .* placement='disk'"):
        place.zeros((2, 500), like)


def test_what_is_returned_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    """No product is on its way when a public function returns, and a pickle holds all of them."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(500, d, generator=generator) for d in (8, 12))
    documents = torch.arange(500) // 10
    whole = CrossMoments.from_activations(x, y, documents=documents)
    monkeypatch.setattr(Placement, "_is_far", lambda *_: True)
    moments = CrossMoments.from_activations(x, y, documents=documents)
    hook_pair = moments.pairs[0]
    assert torch.equal(moments.cross[hook_pair], whole.cross[hook_pair])
    assert torch.equal(moments.n, whole.n)
    moments.add_block(0, {"source": x}, {"target": y})
    whole.add_block(0, {"source": x}, {"target": y})
    assert moments.placement._waiting
    copies = [pickle.loads(pickle.dumps(moments)), copy.deepcopy(moments)]
    for one in (*copies, moments):
        assert_same(one, whole)


def test_a_checkpoint_takes_no_second_set_of_sums(
    pair: ModelPair, corpus: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    mapped = mapped_zeros

    def counted(shape: Any, folder: Any = None) -> torch.Tensor:
        sums = mapped(shape, folder)
        gc.collect()
        taken.append(Path("/proc/self/maps").read_text().count(str(tmp_path / "scratch")))
        return sums

    monkeypatch.setattr(placements, "mapped_zeros", counted)
    on_disk: dict[str, Any] = {"placement": "disk", "placement_folder": tmp_path / "scratch"}
    # Objects of other tests are left out of the collections, which would take a minute with them.
    gc.collect()
    gc.freeze()
    try:
        harvest(pair, corpus, **on_disk, **QUIET)
        without = max(taken)
        taken.clear()
        harvest(pair, corpus, checkpoint=tmp_path / "checkpoint", **on_disk, **QUIET)
    finally:
        gc.unfreeze()
    assert max(taken) == without


def test_shards_are_added_in_a_mapped_file(
    pair: ModelPair, corpus: list[str], tmp_path: Path
) -> None:
    paths = [
        harvest(pair, corpus, shard=(i, 3), **QUIET).save(tmp_path / f"{i}.safetensors")
        for i in range(3)
    ]
    whole = merge_shards(paths)
    mapped = merge_shards(paths, placement="disk", placement_folder=tmp_path / "scratch")
    assert mapped.placement.place == "disk"
    assert_same(mapped, whole)
    loaded = CrossMoments.load(
        mapped.save(tmp_path / "whole.safetensors"), placement="disk", placement_folder=tmp_path
    )
    assert_same(loaded, whole)
    # Sums about two shifts are new tensors in memory.
    two = replace(mapped, provenance=replace(mapped.provenance, corpus="")).merge(
        replace(loaded, provenance=replace(loaded.provenance, corpus=""))
    )
    assert two.placement.place == "device"
    assert two.n_tokens == 2 * mapped.n_tokens
    with open(paths[0], "r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(b"\1" * 8)
    with pytest.raises(FileFormatError, match="0.safetensors"):
        CrossMoments.load(paths[0], placement="disk", placement_folder=tmp_path)


def test_a_folder_is_checked_before_a_survey(
    pair: ModelPair, corpus: list[str], tmp_path: Path
) -> None:
    def unread() -> Any:
        raise AssertionError("read")
        yield ""

    blocked = tmp_path / "file"
    blocked.write_text("")
    options: dict[str, Any] = {"placement": "disk", "placement_folder": blocked, **QUIET}
    with pytest.raises(ValueError, match="no mapped file of"):
        lrt.fit_stitches(pair, unread(), memory_budget=60_000, **options)


@pytest.mark.usefixtures("unchecked")
def test_folders_of_mapped_files_are_checked() -> None:
    home = HarvestSettings(placement="disk", placement_folder="~/scratch").placement_folder
    assert home == Path.home() / "scratch"
    with pytest.raises(ValueError, match=r"placement_folder is 3; expected the path"):
        HarvestSettings(placement="disk", placement_folder=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"'/scratch' and placement 'auto'; only a mapped file"):
        HarvestSettings(placement_folder="/scratch")
    with pytest.raises(ValueError, match="the sums of a survey are small"):
        SurveySettings(placement="disk")
    with pytest.raises(ValueError, match=r"parts is \(3, 2\); expected Parts"):
        CrossMoments.from_activations(
            torch.zeros(4, 2), torch.zeros(4, 2), documents=[0, 1, 2, 3], parts=(3, 2)
        )  # type: ignore[arg-type]


def test_a_full_disk_is_refused_before_a_document_is_read(
    pair: ModelPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unread() -> Any:
        raise AssertionError("read")
        yield ""

    monkeypatch.setattr(placements, "free_disk", lambda folder: 1_000)
    with pytest.raises(
        ValueError,
        match=r"and 1 KB are free on the disk of '.*scratch'; give placement_folder= on a larger",
    ):
        harvest(
            pair, unread(), placement="disk", placement_folder=str(tmp_path / "scratch"), **QUIET
        )


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(ValueError, match=r"no mapped file of 80 B in '.*file'"):
        mapped_zeros((2, 5), blocked)


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_placement_is_refused() -> None:
    with pytest.raises(ValueError, match="placement is 'gpu'; expected one of"):
        HarvestSettings(placement="gpu")  # type: ignore[arg-type]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="open files are listed by Linux")
def test_a_mapped_file_ends_with_its_tensor(tmp_path: Path) -> None:
    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count(str(tmp_path))

    sums = mapped_zeros((100, 100), tmp_path)
    sums += 1
    assert mapped() == 1
    assert float(sums.sum()) == 10_000
    del sums
    gc.collect()
    assert mapped() == 0


def test_a_fit_takes_the_placement(pair: ModelPair, corpus: list[str], tmp_path: Path) -> None:
    grid = lrt.fit_stitches(pair, corpus, placement="disk", placement_folder=str(tmp_path), **QUIET)
    assert grid.moments.placement.place == "disk"


@pytest.mark.gpu
def test_sums_on_the_host_have_the_numbers_of_sums_on_the_device() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(3_000, d, generator=generator).cuda() for d in (96, 160))
    inside = CrossMoments((("source", "target"),))
    outside = CrossMoments(
        (("source", "target"),), placement=Placement("host", torch.device("cuda"))
    )
    for moments in (inside, outside):
        for part, rows in enumerate(range(0, 3_000, 250)):
            moments.add_block(
                part, {"source": x[rows : rows + 250]}, {"target": y[rows : rows + 250]}
            )
    assert outside.n.device.type == "cpu"
    assert outside.cross["source", "target"].is_pinned()
    for name, tensor in inside.tensors().items():
        assert torch.equal(tensor.cpu(), outside.tensors()[name])


def assert_same(ours: CrossMoments, theirs: CrossMoments) -> None:
    wanted = theirs.tensors()
    for name, tensor in ours.tensors().items():
        assert torch.equal(tensor, wanted[name]), name


def test_moments_that_do_not_fit_lead_to_the_survey() -> None:
    with pytest.raises(ValueError, match=r"take 23.6 GB and 1 GB are free on cpu; ") as caught:
        placements.refuse_more_than_there_is(int(23.6e9), int(1e9))
    for remedy in ("fit_stitches(pair, documents, memory_budget='8GB') survey", "lrt.survey"):
        assert remedy in str(caught.value)
