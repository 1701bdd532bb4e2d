"""One settings object for every function that harvests or plans a harvest."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from lrt_lens.models import ModelPair
from lrt_lens.models._hook_points import with_token
from lrt_lens.moments import HarvestSettings, ModelShape, harvest, plan_harvest
from lrt_lens.moments._harvest_settings import checked_cap, checked_n_tokens
from lrt_lens.moments._harvesting import settle
from lrt_lens.stitching import fit_stitches

OPTIONS: dict[str, Any] = {
    "source_layers": [0],
    "target_layers": [1],
    "n_tokens": 900,
    "context_length": 24,
    "seed": 3,
    "null": "sketch",
    "skip_first": 5,
    "lag": 1,
    "block_rows": 300,
    "moment_dtype": "float64",
}

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "harvest": harvest,
    "settle": settle,
    "plan_harvest": plan_harvest,
    "fit_stitches": fit_stitches,
}


def test_fields_as_keywords_and_as_an_object_give_the_same_run(pair: ModelPair) -> None:
    run = settle(pair, settings=HarvestSettings(**OPTIONS))
    assert settle(pair, **OPTIONS) == run
    assert (run.plan.seed, run.plan.lag, run.plan.skip_first) == (3, 1, 5)
    assert (run.plan.block_rows, run.plan.n_tokens, run.null) == (300, 900, "sketch")


def test_a_keyword_replaces_the_field_of_the_object(pair: ModelPair) -> None:
    run = settle(pair, settings=HarvestSettings(**OPTIONS), seed=4)
    assert run.plan.seed == 4
    assert run.plan.lag == 1


def test_harvest_and_plan_take_the_same_settings(pair: ModelPair, corpus: list[str]) -> None:
    settings = HarvestSettings(**OPTIONS)
    moments = harvest(pair, corpus, settings=settings, progress=False)
    shapes = [
        ModelShape("tiny", model.d_model, model.n_layers, 1000, 300)
        for model in (pair.source, pair.target)
    ]
    plan = plan_harvest(shapes[0], shapes[1], settings=settings)
    assert plan.pairs == moments.pairs
    assert (plan.null, plan.moment_dtype) == (moments.null, moments.moment_dtype)
    assert plan.moments == moments.n_bytes


@pytest.fixture
def call(pair: ModelPair) -> Callable[..., Any]:
    """Return ``call(name, **options)``, which calls a function with no document to read."""
    shape = ModelShape("tiny", d_model=16, n_layers=3, n_parameters=1000, layer_parameters=300)

    def call(name: str, **options: Any) -> Any:
        arguments = {"plan_harvest": (shape, shape), "settle": (pair,)}.get(name, (pair, []))
        return FUNCTIONS[name](*arguments, **options)

    return call


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("n_tokens", 0, "n_tokens is 0; expected a positive number"),
        ("context_length", 5, "context_length is 5; windows need at least 8 tokens"),
        ("skip_first", 150, "context_length is 256; windows need at least 300 tokens"),
        ("lag", -1, "lag is -1; expected 0, or the number of rows"),
    ],
)
def test_every_function_refuses_a_value_out_of_range(
    call: Callable[..., Any], name: str, option: str, value: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        call(name, **{option: value})


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_refuses_an_unknown_null(call: Callable[..., Any], name: str) -> None:
    # The type checker of the tests refuses it before `HarvestSettings` does.
    with pytest.raises((ValueError, TypeCheckError), match="half"):
        call(name, null="half")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_names_an_unknown_option(call: Callable[..., Any], name: str) -> None:
    with pytest.raises(TypeError, match="unknown option n_token; HarvestSettings has"):
        call(name, n_token=100)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_help_lists_every_field(name: str) -> None:
    assert set(vars(HarvestSettings())) <= set(inspect.signature(FUNCTIONS[name]).parameters)


def test_moments_and_plan_keep_the_same_hook_pairs(pair: ModelPair, corpus: list[str]) -> None:
    moments = harvest(pair, corpus, settings=HarvestSettings(**OPTIONS), progress=False)
    hook_pairs = with_token(moments.pairs, moments.token_hook)
    assert moments.kept_pairs == hook_pairs == (*moments.pairs, ("hook_embed", moments.pairs[0][1]))
    assert set(moments.cross) == set(hook_pairs)
    assert with_token(moments.pairs, None) == moments.pairs
    assert with_token(hook_pairs, moments.token_hook) == hook_pairs


@pytest.mark.parametrize("value", [5_000, 5e3, np.int64(5_000), np.float32(5_000)])
def test_numbers_of_tokens_of_any_type_are_whole_numbers(value: Any) -> None:
    for checked in (checked_n_tokens, checked_cap):
        found = checked(value)
        assert (found, type(found)) == (5_000, int)


@pytest.mark.parametrize("value", ["5000", True, np.True_, 0.5, np.nan, np.inf, -3, [9]])
def test_other_numbers_of_tokens_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"n_tokens is .*; expected a positive number, or None"):
        checked_n_tokens(value)
    with pytest.raises(ValueError, match=r"max_document_tokens is .*; expected 'auto', None, or"):
        checked_cap(value)
    assert checked_n_tokens(None) is checked_cap(None) is None
    assert checked_cap("auto") == "auto"
