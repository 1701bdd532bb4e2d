"""Tests of hook point names: short forms, two names for one hook point, and errors."""

import re
from dataclasses import dataclass

import pytest

from lrt_lens.errors import HookPointError
from lrt_lens.models import depth, same_place
from lrt_lens.models._hook_points import EMBED, layer_pairs, place, resolve, resolve_layers


@dataclass(frozen=True)
class Shape:
    """Replacement of a model, with the attributes on which names of hook points depend."""

    name: str
    n_layers: int
    has_mid: bool = True

    @property
    def hook_points(self) -> tuple[str, ...]:
        parts = ("pre", "mid", "post") if self.has_mid else ("pre", "post")
        return (
            EMBED,
            *(
                f"blocks.{layer}.hook_resid_{part}"
                for layer in range(self.n_layers)
                for part in parts
            ),
        )


SIX, TWELVE = Shape("six", 6), Shape("twelve", 12)


@pytest.mark.parametrize(
    ("short", "full"),
    [
        (0, "blocks.0.hook_resid_post"),
        (5, "blocks.5.hook_resid_post"),
        (-1, "blocks.5.hook_resid_post"),
        (-6, "blocks.0.hook_resid_post"),
        ("blocks.2.hook_resid_mid", "blocks.2.hook_resid_mid"),
        ("hook_embed", "hook_embed"),
    ],
)
def test_a_layer_or_a_name_resolves_to_the_full_name(short: int | str, full: str) -> None:
    assert resolve(short, SIX) == full


@pytest.mark.parametrize("layer", [6, -7, 100])
def test_a_layer_out_of_range_names_the_range(layer: int) -> None:
    with pytest.raises(
        HookPointError, match=rf"layer {layer} is not on 'six'; it has 6 blocks: use 0 to 5"
    ):
        resolve(layer, SIX)


@pytest.mark.parametrize(
    "name",
    [
        "blocks.6.hook_resid_post",
        "blocks.2.hook_resid_pots",
        "resid_post",
        "blocks.1.attn.hook_z",
        "",
    ],
)
def test_an_unknown_name_is_quoted_beside_the_names_there_are(name: str) -> None:
    with pytest.raises(
        HookPointError,
        match=rf"{re.escape(repr(name))} is not on 'six'; it has 6 blocks:"
        rf" .*'blocks\.5\.hook_resid_post'",
    ):
        resolve(name, SIX)


def test_a_model_without_resid_mid_says_why_and_what_to_use() -> None:
    with pytest.raises(
        HookPointError,
        match=r"'blocks.1.hook_resid_mid' is not on 'parallel'.*parallel.*use hook_resid_pre"
        r" or hook_resid_post",
    ):
        resolve("blocks.1.hook_resid_mid", Shape("parallel", 3, has_mid=False))


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("blocks.4.hook_resid_pre", "blocks.3.hook_resid_post", True),
        ("blocks.3.hook_resid_post", "blocks.3.hook_resid_post", True),
        ("blocks.3.hook_resid_pre", "blocks.3.hook_resid_post", False),
        ("blocks.3.hook_resid_mid", "blocks.3.hook_resid_post", False),
        (
            "blocks.0.hook_resid_pre",
            "hook_embed",
            False,
        ),  # positions may have been added in between
    ],
)
def test_the_stream_between_two_blocks_is_one_place(first: str, second: str, same: bool) -> None:
    assert same_place(first, second) is same
    assert (place(first) == place(second)) is same


def test_depth_counts_the_blocks_that_have_run() -> None:
    names = [
        "hook_embed",
        "blocks.0.hook_resid_pre",
        "blocks.0.hook_resid_mid",
        "blocks.0.hook_resid_post",
        "blocks.1.hook_resid_mid",
    ]
    assert [depth(name) for name in names] == [-1, 0, 0.5, 1, 1.5]
    assert depth("blocks.1.hook_resid_pre") == depth("blocks.0.hook_resid_post")


def test_a_selection_of_layers_resolves_without_repeats_and_in_order() -> None:
    assert resolve_layers("all", SIX) == [f"blocks.{layer}.hook_resid_post" for layer in range(6)]
    assert resolve_layers([3, "hook_embed", -3], SIX) == ["blocks.3.hook_resid_post", "hook_embed"]


def test_an_empty_selection_is_refused() -> None:
    with pytest.raises(HookPointError, match="no layer of 'six' is selected"):
        resolve_layers([], SIX)


def test_all_layers_pair_with_all_layers() -> None:
    assert len(set(layer_pairs("all", "all", SIX, TWELVE))) == 72


def test_proportional_layers_pair_equal_relative_depths() -> None:
    pairs = layer_pairs("all", "proportional", SIX, TWELVE)
    assert pairs == [
        (f"blocks.{layer}.hook_resid_post", f"blocks.{2 * layer + 1}.hook_resid_post")
        for layer in range(6)
    ]
    back = layer_pairs("proportional", [1, 11], SIX, TWELVE)
    assert back == [
        ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post"),
        ("blocks.5.hook_resid_post", "blocks.11.hook_resid_post"),
    ]
