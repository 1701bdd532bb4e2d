"""Plans of a harvest, compared with measured sizes, and passes under a memory budget."""

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers

from lrt_lens._byte_sizes import human_bytes, parse_bytes
from lrt_lens.models import ModelPair
from lrt_lens.moments import HarvestPlan, HarvestSettings, ModelShape, harvest, plan_harvest
from lrt_lens.moments._harvesting import settle
from lrt_lens.moments._placement import available_memory, refuse_more_than_there_is
from lrt_lens.moments._plan import Throughput, measure_throughput, moment_bytes
from lrt_lens.moments._survey_plan import answer, survey_first

QUIET: dict[str, Any] = {"n_tokens": None, "context_length": 24, "progress": False}


@pytest.fixture(scope="module")
def gemma() -> tuple[ModelShape, ModelShape]:
    """Return the shapes of Gemma 2 2B and 9B, from their configs."""
    shared = {"head_dim": 256, "vocab_size": 256_000}
    small = transformers.Gemma2Config(
        hidden_size=2304,
        num_hidden_layers=26,
        intermediate_size=9216,
        num_attention_heads=8,
        num_key_value_heads=4,
        **shared,
    )
    large = transformers.Gemma2Config(
        hidden_size=3584,
        num_hidden_layers=42,
        intermediate_size=14336,
        num_attention_heads=16,
        num_key_value_heads=8,
        **shared,
    )
    return ModelShape.of_config(small, "2B", "bfloat16"), ModelShape.of_config(
        large, "9B", "bfloat16"
    )


# ---------------------------------------------------------------------------------------- estimates


@pytest.mark.parametrize("null", ["none", "sketch", "full"])
@pytest.mark.parametrize("layers", [{}, {"target_layers": "proportional"}, {"joint": True}])
def test_bytes_of_the_moments_are_exact(
    pair: ModelPair, corpus: list[str], null: str, layers: dict[str, Any]
) -> None:
    moments = harvest(pair, corpus, null=null, **layers, **QUIET)
    expected = moment_bytes(
        moments.pairs, moments.token_hook, null, pair.source.d_model, pair.target.d_model
    )
    assert sum(tensor.nbytes for tensor in moments.tensors().values()) == sum(expected.values())


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "neox", "gemma", "qwen2"])
def test_a_shape_from_a_config_is_that_of_the_model(build_hf: Any, architecture: str) -> None:
    model = build_hf(architecture, d=16, layers=3)
    shape = ModelShape.of_config(model.config)
    assert (shape.d_model, shape.n_layers) == (16, 3)
    assert shape.n_parameters == sum(p.numel() for p in model.parameters())
    blocks = next(
        module
        for module in model.modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == 3
    )
    assert shape.layer_parameters == sum(p.numel() for p in blocks[0].parameters())


def test_floating_point_operations_are_those_that_torch_counts(build_hf: Any) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = build_hf("llama", d=64, layers=2)
    model.set_attn_implementation("eager")
    shape = ModelShape.of_config(model.config)
    tokens = torch.randint(5, 300, (1, 64))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.model(tokens)
    # torch counts attention over whole windows, the estimate counts the causal half; norms have
    # parameters but no products.
    found = shape.flops_per_token(["blocks.1.hook_resid_post"], 64)
    assert found == pytest.approx(counter.get_total_flops() / 64 - 2 * 2 * 64 * 64, rel=0.01)
    assert shape.flops_per_token(["blocks.0.hook_resid_post"], 64) == pytest.approx(found / 2)
    assert shape.flops_per_token(["hook_embed"], 64) == 0


def test_gemma_2b_to_9b_without_a_weight(gemma: tuple[ModelShape, ModelShape]) -> None:
    small, large = gemma
    assert small.n_parameters == pytest.approx(2.61e9, rel=0.01)
    assert large.n_parameters == pytest.approx(9.24e9, rel=0.01)
    plan = plan_harvest(small, large, target_layers="all")
    held = plan.moments_of(plan.pairs)
    assert len(plan.pairs) == 26 * 42
    assert held["cross"] == 13 * 8 * 27 * 42 * 2304 * 3584
    assert held["source"] == pytest.approx(13 * 8 * 27 * 2304**2, rel=1e-3)
    assert held["target"] == pytest.approx(13 * 8 * 42 * 3584**2, rel=1e-3)
    assert plan.null == "sketch"
    assert plan.moments == pytest.approx(1.05e12, rel=0.02)
    table = plan.table(Throughput(model=1e14, products=2e13)).set_index("item")
    assert table.loc["weights", "amount"] == human_bytes(
        2 * (small.n_parameters + large.n_parameters)
    )
    assert table.loc["moments, largest pass", "amount"] == "1.05 TB"
    # 2 FLOP per parameter of the blocks, and attention; 2 per stored number.
    blocks = 2 * (26 * small.layer_parameters + 42 * large.layer_parameters) + 2 * 256 * (
        26 * 2304 + 42 * 3584
    )
    assert table.loc["models, per token", "value"] == pytest.approx(blocks * 256 / 252)
    products = 2 * (27 * 2304**2 + 42 * 3584**2 + 27 * 42 * 2304 * 3584 + 26 * 42 * 2304 * 64)
    assert table.loc["products, per token", "value"] == pytest.approx(products, rel=1e-3)
    seconds = 1e6 * (blocks * 256 / 252 / 1e14 + products / 2e13)
    assert table.loc["time per million tokens", "value"] == pytest.approx(seconds, rel=1e-3)


def test_time_falls_with_ranks_and_rises_with_passes(gemma: tuple[ModelShape, ModelShape]) -> None:
    speed = Throughput(1e14, 2e13)
    one = plan_harvest(*gemma, target_layers="proportional")
    eight = plan_harvest(*gemma, target_layers="proportional", ranks=8)
    passes = plan_harvest(*gemma, target_layers="proportional", memory_budget=parse_bytes("40GB"))
    assert eight.seconds_per_million(speed) == pytest.approx(one.seconds_per_million(speed) / 8)
    assert len(passes.passes) > 2
    assert passes.flops_per_token[0] > 1.5 * one.flops_per_token[0]


def test_throughput_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    speed = measure_throughput(d=128, seconds=0.02, moment_dtype=torch.float64)
    assert speed.model > 1e8
    assert speed.products > 1e8


# ------------------------------------------------------------------------------------------- passes


def test_passes_hold_every_pair_once_in_order_and_fit_the_budget(
    gemma: tuple[ModelShape, ModelShape],
) -> None:
    budget = parse_bytes("120GB")
    whole = plan_harvest(*gemma)
    plan = plan_harvest(*gemma, memory_budget=budget)
    assert sorted(plan.pairs) == sorted(whole.pairs)
    assert plan.null == whole.null, "as the whole grid has it"
    sizes = [sum(plan.moments_of(pairs).values()) for pairs in plan.passes]
    assert max(sizes) <= budget
    targets = [tuple(dict.fromkeys(t for _, t in pairs)) for pairs in plan.passes]
    assert [t for some in targets for t in some] == [
        f"blocks.{layer}.hook_resid_post" for layer in range(42)
    ]
    more = [*plan.passes[0], *[pair for pair in plan.passes[1] if pair[1] == targets[1][0]]]
    assert sum(plan.moments_of(more).values()) > budget, "and no more passes than needed"


def test_a_budget_that_holds_all_makes_one_pass(gemma: tuple[ModelShape, ModelShape]) -> None:
    assert len(plan_harvest(*gemma, memory_budget=parse_bytes("2TB")).passes) == 1


def test_a_budget_below_a_single_target_hook_says_what_to_choose(
    gemma: tuple[ModelShape, ModelShape],
) -> None:
    with pytest.raises(
        ValueError,
        match=r"'blocks.0.hook_resid_post' with 26 source hook point\(s\) alone take .* GB, "
        "more than the memory budget of 8 GB; choose 'prop",
    ):
        plan_harvest(*gemma, memory_budget=parse_bytes("8GB"))
    plan = plan_harvest(*gemma, target_layers="proportional", memory_budget=parse_bytes("8GB"))
    assert plan.moments <= 8e9


# ------------------------------------------------------------------------------------- this machine


def test_more_than_there_is_is_refused_before_anything_is_read(
    pair: ModelPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unread() -> Any:
        raise AssertionError("read")
        yield ""

    monkeypatch.setattr("lrt_lens.moments._placement.available_memory", lambda device: 100_000)
    needed = human_bytes(
        sum(moment_bytes(settle(pair).pairs, "hook_embed", "full", 16, 24).values())
    )
    with pytest.raises(
        ValueError,
        match=f"the moments of these pairs take {needed} and 100 KB are free on cpu; "
        r"let fit_stitches\(.*choose 'proportional'",
    ):
        harvest(pair, unread(), **QUIET)


def test_a_plan_counts_the_moments_where_they_live(gemma: tuple[ModelShape, ModelShape]) -> None:
    plan = plan_harvest(*gemma, pairs=[(12, 20)])

    def values(place: str) -> dict[str, float]:
        table = replace(plan, place=place).table()
        return dict(zip(table["item"], table["value"], strict=True))

    device, host, disk = (values(place) for place in ("device", "host", "disk"))
    beside = plan.source.weight_bytes + plan.target.weight_bytes + plan.workspace
    assert device["memory, per process"] == plan.moments + beside
    assert host["memory of the host, per process"] == plan.moments
    assert host["memory of the device, per process"] == beside
    assert disk["memory, per process"] == beside
    assert disk["disk"] == device["disk"] + plan.moments


def test_what_will_hardly_fit_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        refuse_more_than_there_is(90, 100)
        refuse_more_than_there_is(10, 100)
        refuse_more_than_there_is(10, None)
    assert caplog.text.count("nearly all of the 100 B that are free") == 1


def test_free_memory_is_what_the_system_says() -> None:
    free = available_memory()
    assert free is not None
    assert 1e8 < free < 1e14


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8GB", 8 * 10**9),
        ("8GiB", 8 * 2**30),
        ("500 MB", 5 * 10**8),
        ("1.5tb", 15 * 10**11),
        ("123", 123),
        ("2 kib", 2048),
    ],
)
def test_amounts_of_memory_are_read(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "much", "8 bananas", "-3GB", "GB"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(
        ValueError, match="is no amount of memory; write it like 8GB, 500MB or 16GiB"
    ):
        parse_bytes(text)


def test_amounts_are_shown_in_their_unit() -> None:
    assert [human_bytes(n) for n in (12, 1500, 2_340_000, 72 * 10**8, 105 * 10**10)] == [
        "12 B",
        "1.5 KB",
        "2.34 MB",
        "7.2 GB",
        "1.05 TB",
    ]


def test_a_model_without_a_config_is_named() -> None:
    with pytest.raises(OSError, match="no config at 'nowhere/at-all'"):
        ModelShape.of_pretrained("nowhere/at-all")


def test_a_plan_of_a_pair_says_the_same_as_its_harvest(
    pair: ModelPair, build_hf: Any, corpus: list[str]
) -> None:
    shapes = [
        ModelShape.of_config(build_hf("llama", d=d, layers=n).config) for d, n in ((16, 2), (24, 3))
    ]
    plan: HarvestPlan = plan_harvest(*shapes, context_length=24)
    assert (plan.pairs, plan.null) == (
        settle(pair, context_length=24).pairs,
        settle(pair, context_length=24).null,
    )
    assert plan.moments == sum(
        tensor.nbytes for tensor in harvest(pair, corpus, **QUIET).tensors().values()
    )


def test_a_survey_of_gemma_2b_to_9b_takes_gigabytes_and_a_plan_says_what_fits(
    gemma: tuple[ModelShape, ModelShape],
) -> None:
    settings = HarvestSettings(n_tokens=1_000_000)
    plan = plan_harvest(*gemma, settings=settings)
    assert plan.moments > 1e12
    whole = survey_first(plan, settings, 10**13)
    assert whole.sketch.source_columns is None
    assert len(whole.pairs) == 26 * 42
    # 27 sources whole, and 27 · 42 pairs of 128 columns, in six parts
    expected = 27 * 2304**2 * 6 * 8 + 27 * 42 * 2304 * 128 * 6 * 4
    assert expected < whole.moments < min(1.06 * expected, 16e9)
    speed = Throughput(4e14, 4e13)
    line = answer(plan, settings, 20 * 10**9, speed)
    assert line.startswith("survey of 1092 pairs: at least ")
    assert "15.7 GB; then exact moments of the best 5: at least " in line
    # A small machine sees the sources through fewer columns, and has room for one pair.
    line = answer(plan, settings, 6 * 10**9, speed)
    assert "5.39 GB, sources through 1024 columns; then exact moments of the best 1" in line
    line = answer(plan, settings, 10**9, speed)
    assert line.endswith("exact moments of one pair take 4.29 GB")
    few = replace(plan, passes=(plan.pairs[:2],))
    assert answer(few, settings, 10**11, speed).startswith("exact moments of all 2 pairs: at least")


def test_blocks_of_wide_pairs_have_fewer_rows(gemma: tuple[ModelShape, ModelShape]) -> None:
    plan = plan_harvest(*gemma)
    # 27 · 2304 + 42 · 3584 numbers a row, 16 bytes each: 1,024 rows are the most below 4 GB.
    assert plan.block_rows == 1024
    assert plan.workspace < 8e9
    assert plan_harvest(*gemma, source_layers=[3], target_layers=[5]).block_rows == 4096
    assert plan_harvest(*gemma, block_rows=2000).block_rows == 2000
    with pytest.raises(ValueError, match="block_rows"):
        plan_harvest(*gemma, block_rows=0)


def test_time_of_a_survey_rises_with_tokens_columns_and_directions(
    gemma: tuple[ModelShape, ModelShape],
) -> None:
    plan = plan_harvest(*gemma)
    settings, speed = HarvestSettings(), Throughput(1e11, 1e11)
    usual = survey_first(plan, settings, 10**13)
    assert usual.settings.n_tokens == 20_000
    seconds = usual.seconds(speed)
    for changed in ({"n_tokens": 40_000}, {"columns": 128}, {"down": True}):
        more = replace(usual, settings=replace(usual.settings, **changed))
        assert more.seconds(speed) > 1.02 * seconds, changed
    # Both passes alone: a survey is no faster than the models.
    models = plan.flops_per_token[0] * 20_000 / speed.model
    assert seconds > models
