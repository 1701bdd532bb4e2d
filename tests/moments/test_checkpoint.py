"""A harvest that was stopped at any moment resumes: no block is counted twice or missed."""

import logging
import os
import random
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lrt_lens.data import iterate_blocks
from lrt_lens.data._windows import Share
from lrt_lens.errors import MismatchError, NonFiniteError
from lrt_lens.models import HookedModel, ModelPair
from lrt_lens.moments import CrossMoments, harvest, remove_checkpoints
from lrt_lens.moments import _block_rows as block_rows_module
from lrt_lens.moments import _checkpoint as checkpoint_module
from lrt_lens.moments import _cross_moments as moments_module
from lrt_lens.moments._checkpoint import Checkpoint, read_rank_files
from lrt_lens.moments._harvesting import HarvestRun, settle
from tests.moments.small_blocks import OPTIONS, assert_same


class Stop(Exception):  # noqa: N818 (control flow, no error)
    """Exception that a callback raises to end a harvest."""


def stopping_after(n_blocks: int) -> Callable[..., None]:
    seen: list[int] = []

    def on_block(block: Any, *_: Any) -> None:
        if len(seen) == n_blocks:
            raise Stop
        seen.append(block.index)

    return on_block


def harvest_until(pair: ModelPair, corpus: list[str], folder: Path, n_blocks: int) -> None:
    """Harvest into checkpoints and stop after some blocks."""
    on_block = stopping_after(n_blocks)
    with pytest.raises(Stop):
        harvest(pair, corpus, checkpoint=folder, on_block=on_block, progress=False, **OPTIONS)


@pytest.fixture
def run(pair: ModelPair) -> HarvestRun:
    return settle(pair, **OPTIONS)


def n_blocks(run: HarvestRun, corpus: list[str]) -> int:
    return sum(1 for _ in iterate_blocks(corpus, run.models.source, run.plan))


# ----------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("stops", [[0], [1], [5], [3, 9, 2, 11]])
def test_a_harvest_that_was_stopped_goes_on_where_it_was(
    pair: ModelPair, corpus: list[str], whole: CrossMoments, tmp_path: Path, stops: list[int]
) -> None:
    for stop in stops:
        harvest_until(pair, corpus, tmp_path, stop)
    seen: list[int] = []
    found = harvest(
        pair,
        corpus,
        checkpoint=tmp_path,
        on_block=lambda block, *_: seen.append(block.index),
        progress=False,
        **OPTIONS,
    )
    assert_same(found, whole)
    assert len(seen) == len(set(seen)) == n_blocks(settle(pair, **OPTIONS), corpus) - sum(stops)


def test_a_finished_checkpoint_gives_the_moments_without_running_a_model(
    pair: ModelPair,
    corpus: list[str],
    whole: CrossMoments,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    harvest(pair, corpus, checkpoint=tmp_path, progress=False, **OPTIONS)
    monkeypatch.setattr(type(pair.source.engine), "capture", lambda *_: pytest.fail("a model ran"))
    assert_same(harvest(pair, corpus, checkpoint=tmp_path, progress=False, **OPTIONS), whole)


def test_checkpoints_are_written_as_often_as_asked(
    pair: ModelPair, corpus: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Otherwise a slow disk makes them rarer.
    monkeypatch.setattr(checkpoint_module, "_WRITING_SHARE", 1e6)
    sizes = []

    def look(*_: Any) -> None:
        sizes.append(
            sum(
                len(file.blocks)
                for file in read_rank_files(tmp_path, settle(pair, **OPTIONS).arguments)
            )
        )

    harvest(
        pair,
        corpus,
        checkpoint=tmp_path,
        checkpoint_every=1e-3,
        on_block=look,
        progress=False,
        **OPTIONS,
    )
    assert len(set(sizes)) > 3, "several while the harvest ran"
    remove_checkpoints(tmp_path)
    sizes.clear()
    harvest(
        pair,
        corpus,
        checkpoint=tmp_path,
        checkpoint_every=1e3,
        on_block=look,
        progress=False,
        **OPTIONS,
    )
    assert set(sizes) == {0}


def test_removed_checkpoints_leave_no_folder_and_nothing_of_others(
    pair: ModelPair, corpus: list[str], tmp_path: Path
) -> None:
    for name in ("alone", "with others"):
        harvest(pair, corpus, checkpoint=tmp_path / name, progress=False, **OPTIONS)
    (tmp_path / "with others" / "notes.txt").write_text("mine")
    for name in ("alone", "with others"):
        remove_checkpoints(tmp_path / name)
    assert [path.name for path in tmp_path.rglob("*")] == ["with others", "notes.txt"]


def test_more_ranks_than_before_take_over_and_fewer_too(
    run: HarvestRun, corpus: list[str], whole: CrossMoments, tmp_path: Path
) -> None:
    """Ranks run one after the other, each stopped after some blocks; then other numbers of them."""
    for n_ranks, stop in ((3, 3), (2, 2), (5, 1), (4, 1)):
        for rank in range(n_ranks):
            share = Share(rank=(rank, n_ranks))
            with pytest.raises(Stop), Checkpoint(tmp_path, run.arguments, share) as opened:
                run.harvest(
                    corpus, share, checkpoint=opened, on_block=stopping_after(stop), progress=False
                )
    finished = [index for file in read_rank_files(tmp_path, run.arguments) for index in file.blocks]
    assert len(finished) == len(set(finished)) == 3 * 3 + 2 * 2 + 5 * 1 + 4 * 1
    assert_same(harvest(run.models, corpus, checkpoint=tmp_path, progress=False, **OPTIONS), whole)
    assert [path.name for path in tmp_path.glob("rank*.safetensors")] == ["rank0.safetensors"], (
        "the others were taken over"
    )


def test_a_rank_that_dies_between_writing_and_removing_counts_nothing_twice(
    run: HarvestRun,
    corpus: list[str],
    whole: CrossMoments,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for rank in range(3):
        with Checkpoint(tmp_path, run.arguments, Share(rank=(rank, 3))) as opened:
            run.harvest(corpus, Share(rank=(rank, 3)), checkpoint=opened, progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        with Checkpoint(tmp_path, run.arguments, Share()) as opened:
            run.harvest(corpus, Share(), checkpoint=opened, progress=False)
    assert len(list(tmp_path.glob("rank*.safetensors"))) == 3
    for rank in range(3):
        with Checkpoint(tmp_path, run.arguments, Share(rank=(rank, 3))) as opened:
            run.harvest(corpus, Share(rank=(rank, 3)), checkpoint=opened, progress=False)
    assert_same(harvest(run.models, corpus, checkpoint=tmp_path, progress=False, **OPTIONS), whole)


def test_all_ranks_share_the_shift_of_block_0(
    run: HarvestRun,
    corpus: list[str],
    whole: CrossMoments,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first rank decides, although other machines compute another last digit of the shift."""
    start, shifts = CrossMoments.start, {}
    for rank in (2, 0, 1):

        def start_elsewhere(self: CrossMoments, x: Any, y: Any, rank: int = rank) -> None:
            start(self, {hook: values * (1 + 1e-6 * rank) for hook, values in x.items()}, y)

        monkeypatch.setattr(CrossMoments, "start", start_elsewhere)
        share = Share(rank=(rank, 3))
        with Checkpoint(tmp_path, run.arguments, share) as opened:
            moments, _ = run.harvest(corpus, share, checkpoint=opened, progress=False)
        shifts[rank] = {hook: stream.shift for hook, stream in moments.source.items()}
    for hook, side in whole.source.items():
        assert torch.equal(shifts[0][hook], shifts[2][hook])
        assert torch.equal(shifts[1][hook], shifts[2][hook])
        assert float((shifts[2][hook] / (1 + 2e-6) - side.shift).norm()) < 5e-7 * float(
            side.shift.norm()
        )


# --------------------------------------------------------------------------------------- interrupts


@pytest.mark.parametrize(
    ("number", "kind"),
    [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit), (signal.SIGHUP, SystemExit)],
)
def test_an_interrupt_writes_what_there_is(
    pair: ModelPair,
    corpus: list[str],
    whole: CrossMoments,
    tmp_path: Path,
    number: int,
    kind: type[BaseException],
) -> None:
    before = signal.getsignal(number)
    for block in (1, 3, 2):  # among those that the resumed run still has to do
        calls = []

        def interrupt(*_: Any, calls: list[int] = calls, last: int = block) -> None:
            calls.append(1)
            if len(calls) == last:
                os.kill(os.getpid(), number)

        with pytest.raises(kind):
            harvest(
                pair, corpus, checkpoint=tmp_path, on_block=interrupt, progress=False, **OPTIONS
            )
        assert signal.getsignal(number) is before
    assert_same(harvest(pair, corpus, checkpoint=tmp_path, progress=False, **OPTIONS), whole)


def test_an_interrupt_while_rows_are_added_waits_until_they_are(
    pair: ModelPair,
    corpus: list[str],
    whole: CrossMoments,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    add_block, calls = CrossMoments.add_block, []

    def add_and_interrupt(self: CrossMoments, *arguments: Any, **names: Any) -> None:
        calls.append(1)
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        add_block(self, *arguments, **names)

    monkeypatch.setattr(CrossMoments, "add_block", add_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        harvest(pair, corpus, checkpoint=tmp_path, progress=False, **OPTIONS)
    [file] = read_rank_files(tmp_path, settle(pair, **OPTIONS).arguments)
    assert len(file.blocks) == 5
    assert_same(harvest(pair, corpus, checkpoint=tmp_path, progress=False, **OPTIONS), whole)


def test_moments_that_were_torn_are_not_written(
    pair: ModelPair,
    corpus: list[str],
    whole: CrossMoments,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    products, calls = moments_module.pair_products, []

    def fail(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) > 7:
            raise MemoryError("in the middle of a block")
        return products(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("lrt_lens.moments._cross_moments.pair_products", fail)
        with pytest.raises(MemoryError):
            harvest(pair, corpus, checkpoint=tmp_path, progress=False, **OPTIONS)
    assert read_rank_files(tmp_path, settle(pair, **OPTIONS).arguments) == []
    assert_same(harvest(pair, corpus, checkpoint=tmp_path, progress=False, **OPTIONS), whole)


# ---------------------------------------------------------------------------------------- bad input


@pytest.fixture
def begun(pair: ModelPair, corpus: list[str], tmp_path: Path) -> Path:
    harvest_until(pair, corpus, tmp_path, 6)
    return tmp_path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"context_length": 32}, "context_length was 24 and is 32"),
        ({"n_tokens": 1000}, "n_tokens was None and is 1000"),
        ({"skip_first": 0}, "skip_first was 4 and is 0"),
        ({"target_layers": [1]}, r"pairs was \[\["),
        ({"moment_dtype": "float32"}, "moment_dtype was 'float64' and is 'float32'"),
        ({"null": False}, "null was 'full' and is 'none'"),
        ({"shard": (0, 2)}, r"shard was None and is \[0, 2\]"),
    ],
)
def test_other_arguments_are_refused_by_name_with_the_remedy(
    begun: Path, pair: ModelPair, corpus: list[str], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(
        MismatchError,
        match=f"begun with other arguments: .*{message}.*"
        r"another checkpoint folder, or remove_checkpoints\(folder\) to begin again",
    ):
        harvest(pair, corpus, checkpoint=begun, progress=False, **OPTIONS | change)


def test_another_model_is_refused_by_name(
    begun: Path, load: Any, pair: ModelPair, corpus: list[str]
) -> None:
    other = ModelPair(load("llama", d=16, layers=2, seed=7), pair.target)
    with pytest.raises(
        MismatchError,
        match=r"source.config_hash was '\w+' and is '\w+'; "
        r"give the same arguments \(every rank the same models\)",
    ):
        harvest(other, corpus, checkpoint=begun, progress=False, **OPTIONS)


def test_another_precision_of_a_model_is_refused(
    begun: Path, build_hf: Any, tokenizer: Any, pair: ModelPair, corpus: list[str]
) -> None:
    source = HookedModel.load(
        build_hf("llama", d=16, layers=2, seed=1).bfloat16(), tokenizer=tokenizer
    )
    with pytest.raises(MismatchError, match="source_dtype was 'float32' and is 'bfloat16'"):
        harvest(ModelPair(source, pair.target), corpus, checkpoint=begun, progress=False, **OPTIONS)


@pytest.mark.parametrize("change", ["other text", "other order"])
def test_other_documents_are_refused(
    begun: Path, pair: ModelPair, corpus: list[str], change: str
) -> None:
    documents = [text + " cat" for text in corpus] if change == "other text" else corpus[::-1]
    with pytest.raises(
        MismatchError,
        match=r"block \d+ holds other tokens than when .* was begun.*"
        r"remove_checkpoints\(folder\) to begin again",
    ):
        harvest(pair, documents, checkpoint=begun, progress=False, **OPTIONS)


def test_fewer_documents_are_refused(run: HarvestRun, corpus: list[str], tmp_path: Path) -> None:
    """Documents are left out so that all remaining blocks are unchanged."""
    harvest(run.models, corpus, checkpoint=tmp_path, progress=False, **OPTIONS)
    [file] = read_rank_files(tmp_path, run.arguments)
    with Checkpoint(tmp_path, run.arguments, Share()) as opened:
        opened.own = file.blocks
        with pytest.raises(
            MismatchError, match=rf"holds block {max(file.blocks)}, and the documents fill only 5"
        ):
            opened.refuse_shorter_stream(5)
        opened.refuse_shorter_stream(max(file.blocks) + 1)


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped bit", "foreign"])
@pytest.mark.parametrize("name", ["rank0.safetensors", "rank1.safetensors", "run.safetensors"])
def test_a_damaged_file_is_set_aside_and_its_blocks_are_harvested_again(
    run: HarvestRun,
    corpus: list[str],
    whole: CrossMoments,
    tmp_path: Path,
    caplog: Any,
    damage: str,
    name: str,
) -> None:
    for rank in range(2):
        share = Share(rank=(rank, 2))
        with pytest.raises(Stop), Checkpoint(tmp_path, run.arguments, share) as opened:
            run.harvest(
                corpus, share, checkpoint=opened, on_block=stopping_after(6), progress=False
            )
    path = tmp_path / name
    content = path.read_bytes()
    middle = len(content) - 2000 if name.startswith("rank") else len(content) - 20
    broken = {
        "truncated": content[: len(content) // 2],
        "empty": b"",
        "flipped bit": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "foreign": b"not a checkpoint at all",
    }
    path.write_bytes(broken[damage])
    with caplog.at_level(logging.WARNING):
        found = harvest(run.models, corpus, checkpoint=tmp_path, progress=False, **OPTIONS)
    assert f"renamed to {name}.damaged and its blocks are harvested again" in caplog.text
    assert (tmp_path / f"{name}.damaged").read_bytes() == broken[damage]
    assert_same(found, whole)


def test_a_file_that_its_rank_writes_while_another_reads_it_is_not_damaged(
    run: HarvestRun, corpus: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Stop), Checkpoint(tmp_path, run.arguments, Share(rank=(0, 2))) as opened:
        run.harvest(
            corpus,
            Share(rank=(0, 2)),
            checkpoint=opened,
            on_block=stopping_after(4),
            progress=False,
        )
    path, read, calls = tmp_path / "rank0.safetensors", checkpoint_module.mapped_tensors, []

    def replaced_meanwhile(*arguments: Any) -> Any:
        found = read(*arguments)
        if not calls:
            calls.append(path)
            # The rank renames a new file over its old one, as it does at each checkpoint.
            again = tmp_path / "again"
            again.write_bytes(path.read_bytes())
            again.replace(path)
        return found

    monkeypatch.setattr(checkpoint_module, "mapped_tensors", replaced_meanwhile)
    [file] = read_rank_files(tmp_path, run.arguments, verify=True)
    assert len(file.blocks) == 4
    assert calls
    assert not list(tmp_path.glob("*.damaged"))


def test_two_runs_that_wrote_at_once_are_noticed(
    run: HarvestRun, corpus: list[str], tmp_path: Path
) -> None:
    for rank in ((0, 1), (1, 2)):
        with (
            pytest.raises(Stop),
            Checkpoint(tmp_path / str(rank[1]), run.arguments, Share(rank=rank)) as opened,
        ):
            run.harvest(
                corpus,
                Share(rank=rank),
                checkpoint=opened,
                on_block=stopping_after(4),
                progress=False,
            )
    (tmp_path / "2" / "rank1.safetensors").rename(tmp_path / "1" / "rank1.safetensors")
    with pytest.raises(
        MismatchError,
        match=r"both hold block [13]: two runs wrote there at once; remove the folder",
    ):
        read_rank_files(tmp_path / "1", run.arguments)


def test_a_process_that_is_still_there_keeps_others_out(run: HarvestRun, tmp_path: Path) -> None:
    with (
        Checkpoint(tmp_path, run.arguments, Share()),
        pytest.raises(MismatchError, match=rf"another process \(id {os.getpid()}\) is harvesting"),
    ):
        Checkpoint(tmp_path, run.arguments, Share()).__enter__()
    with (
        Checkpoint(tmp_path, run.arguments, Share(rank=(2, 3))),
        pytest.raises(MismatchError, match="as rank2; end it, or wait for it"),
    ):
        Checkpoint(tmp_path, run.arguments, Share(rank=(0, 2))).__enter__()
    with Checkpoint(tmp_path, run.arguments, Share()):
        pass


def test_no_time_between_checkpoints_is_refused(
    pair: ModelPair, corpus: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="checkpoint_every is 0.0; expected seconds above 0"):
        harvest(pair, corpus, checkpoint=tmp_path, checkpoint_every=0.0, **OPTIONS)


def test_a_bad_batch_spoils_nothing_that_was_written(
    pair: ModelPair,
    corpus: list[str],
    whole: CrossMoments,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = random.Random(0)

    def spoil(block: Any, order: Any, x: dict[str, torch.Tensor], y: Any) -> None:
        if rng.random() < 0.1:
            next(iter(x.values()))[0, 0] = float("nan")

    with pytest.raises(NonFiniteError, match=r"\(source 'LlamaForCausalLM'|\(source "):
        harvest(
            pair,
            corpus,
            checkpoint=tmp_path,
            checkpoint_every=1e-6,
            on_block=spoil,
            progress=False,
            **OPTIONS,
        )
    assert_same(harvest(pair, corpus, checkpoint=tmp_path, progress=False, **OPTIONS), whole)


def test_versions_of_an_earlier_run_are_named_in_the_result(
    run: HarvestRun,
    corpus: list[str],
    whole: CrossMoments,
    tmp_path: Path,
    caplog: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    versions = dict(whole.provenance.versions) | {"torch": "1.0"}
    with monkeypatch.context() as patch:
        patch.setattr(block_rows_module, "package_versions", lambda: versions)
        harvest_until(run.models, corpus, tmp_path, 4)
    with caplog.at_level(logging.WARNING):
        found = harvest(run.models, corpus, checkpoint=tmp_path, progress=False, **OPTIONS)
    versions = whole.provenance.versions
    assert_same(replace(found, provenance=replace(found.provenance, versions=versions)), whole)
    both = f"{whole.provenance.versions['torch']}, 1.0"
    assert found.provenance.versions == whole.provenance.versions | {"torch": both}
    assert f"was begun with other versions of torch ({both})" in caplog.text
    saved = CrossMoments.load(found.save(tmp_path / "moments.safetensors"))
    assert saved.provenance.versions["torch"] == both


@pytest.mark.parametrize("name", ["rank0.safetensors", "run.safetensors"])
def test_every_byte_of_a_checkpoint_is_checked(
    run: HarvestRun, corpus: list[str], whole: CrossMoments, tmp_path: Path, name: str
) -> None:
    """Headers too: one bit there made the whole run unusable."""
    harvest_until(run.models, corpus, tmp_path, 6)
    path, rng = tmp_path / name, random.Random(name)
    octets = path.read_bytes()
    header = int.from_bytes(octets[:8], "little")
    for at in [*rng.sample(range(header), 20), *rng.sample(range(header, len(octets)), 5)]:
        changed = bytearray(octets)
        changed[at] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        fresh = CrossMoments(whole.pairs, whole.token_hook, whole.moment_dtype, whole.null)
        with Checkpoint(tmp_path, run.arguments, Share(), every=1e9) as opened:
            opened.resume(fresh, torch.device("cpu"))
        aside = tmp_path / f"{name}.damaged"
        assert aside.exists() or octets[at : at + 1].isspace(), (at, octets[at - 20 : at + 20])
        aside.unlink(missing_ok=True)
    path.write_bytes(octets)
    assert_same(harvest(run.models, corpus, checkpoint=tmp_path, progress=False, **OPTIONS), whole)
