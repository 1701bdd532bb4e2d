"""One rule for 'does this belong here': every entry point gives the same answer."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

import lrt_lens as lrt
from lrt_lens.adapters.vectors import NeutralText, SteeringVector, calibrate_on
from lrt_lens.data import ContrastSet
from lrt_lens.errors import MismatchError
from lrt_lens.models import ModelPair
from lrt_lens.models._belonging import identity_of
from lrt_lens.stitching import AffineMap
from tests.adapters.vectors.test_entry_points import CONTRAST, ITEMS

SOURCE, TARGET = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"
COLOUR = ContrastSet(
    [text.replace("happy", "red") for text in CONTRAST.positive],
    [text.replace("sad", "blue") for text in CONTRAST.negative],
    name="colour",
)
Entries = dict[str, Callable[[Any], Any]]


def the_message(entries: Entries, foreign: Any) -> str:
    """Return the one message with which every entry point refuses ``foreign``."""
    messages = {}
    for entry, call in entries.items():
        with pytest.raises(MismatchError) as caught:
            call(foreign)
        messages[entry] = str(caught.value)
    assert len(set(messages.values())) == 1, messages
    return next(iter(messages.values()))


@pytest.fixture(scope="module")
def grid(pair: ModelPair, passages: list[str]) -> Any:
    options: dict[str, Any] = {"source_layers": [0, 1], "target_layers": [1, 2], "null": "full"}
    return lrt.fit_stitches(pair, passages, context_length=32, progress=False, **options)


@pytest.fixture(scope="module")
def stitch(grid: Any) -> Any:
    return grid[0, 1]


@pytest.fixture(scope="module")
def strangers(load: Callable[..., Any]) -> ModelPair:
    """Two models of the same shapes as those of ``pair``, with other weights."""
    return ModelPair(load("llama", d=16, layers=2, seed=91), load("llama", d=24, layers=3, seed=92))


def foreign_identity(model: Any, field: str) -> Any:
    values = {"config_hash": "0" * 16, "basis": "centred", "tokenizer_hash": "0" * 16}
    return replace(model, **{field: values[field]})


# ------------------------------------------------------------------------------------ vectors


@pytest.fixture(scope="module")
def vector(pair: ModelPair) -> SteeringVector:
    return SteeringVector.mean_difference(pair.source, CONTRAST, at=0)


@pytest.fixture(scope="module")
def to_transfer(pair: ModelPair, stitch: Any, passages: list[str]) -> Entries:
    neutral, quick = passages[:4], {"progress": False}
    return {
        "transfer": stitch.transfer,
        "transfer through the null": lambda v: stitch.transfer(v, through=stitch.null.up),
        "evaluate_steering": lambda v: lrt.evaluate_steering(
            pair, stitch, v, ITEMS, neutral=neutral, **quick
        ),
        "evaluate_clamping": lambda v: lrt.evaluate_clamping(
            pair, stitch, v, neutral, lambda _: True, **quick
        ),
        "evaluate_ablation": lambda v: lrt.evaluate_ablation(
            pair, stitch, v, neutral=neutral, items=ITEMS, **quick
        ),
    }


@pytest.fixture(scope="module")
def to_steer(pair: ModelPair, passages: list[str]) -> Entries:
    model, neutral = pair.source, passages[:4]
    ready = NeutralText(model, neutral, SOURCE)
    return {
        "apply": lambda v: v.apply(model).remove(),
        "apply_together": lambda v: lrt.apply_together(model, [v]).remove(),
        "mean_component": lambda v: v.mean_component(model, neutral),
        "calibrate_scale": lambda v: lrt.calibrate_scale(model, v, neutral, damage=0.05),
        "calibrate_on": lambda v: calibrate_on(ready, v, 0.05),
        "compare_continuations": lambda v: lrt.compare_continuations(
            model, neutral[:1], {"a": v}, scales={"a": 1.0}, max_new_tokens=1
        ),
    }


@pytest.mark.parametrize("field", ["config_hash", "basis", "tokenizer_hash"])
def test_a_vector_of_another_model_is_not_transferred(
    vector: SteeringVector, to_transfer: Entries, field: str
) -> None:
    foreign = replace(vector, model=foreign_identity(vector.model, field))
    message = the_message(to_transfer, foreign)
    assert message.startswith("vector 'mood' was learnt on a model that is ")
    assert f"with {field}" in message


def test_a_vector_of_another_hook_point_is_not_transferred(
    vector: SteeringVector, to_transfer: Entries, pair: ModelPair, stitch: Any, passages: list[str]
) -> None:
    def explore(v: SteeringVector) -> Any:
        return lrt.explore(pair, v, stitch=stitch, neutral=passages[:4])

    message = the_message(to_transfer | {"explore": explore}, replace(vector, hook=TARGET))
    assert message.startswith(
        f"vector 'mood' was learnt at '{TARGET}' on '{pair.source.name}'; this stitch starts at "
        f"'{SOURCE}' of '{pair.source.name}'; "
    )


@pytest.mark.parametrize("field", ["config_hash", "basis"])
def test_a_vector_of_another_model_steers_nothing(
    vector: SteeringVector, to_steer: Entries, field: str
) -> None:
    foreign = replace(vector, model=foreign_identity(vector.model, field))
    assert the_message(to_steer, foreign).startswith("the model to steer by vector 'mood' is ")


def test_a_vector_may_have_been_learnt_with_another_tokenizer_of_its_model(
    vector: SteeringVector, to_steer: Entries
) -> None:
    other = replace(vector, model=foreign_identity(vector.model, "tokenizer_hash"))
    for call in to_steer.values():
        call(other)
    assert vector.cosine(other) == pytest.approx(1)
    assert (vector + other).norm == pytest.approx(2 * vector.norm)


def test_every_width_is_refused_with_one_message(
    vector: SteeringVector,
    to_steer: Entries,
    to_transfer: Entries,
    pair: ModelPair,
    stitch: Any,
    passages: list[str],
) -> None:
    concept_map = lrt.ConceptMap.fit(pair, CONTRAST, source_hook=SOURCE, target_hook=TARGET)
    others: Entries = {
        "ConceptMap.transfer": concept_map.transfer,
        "explore": lambda v: lrt.explore(
            pair, replace(v, model=None), stitch=stitch, neutral=passages[:4]
        ),
        "cosine": vector.cosine,
        "add": vector.__add__,
    }
    wide = SteeringVector(torch.ones(24), SOURCE)
    assert the_message(to_steer | to_transfer | others, wide) == (
        f"vector 'vector' has width 24; expected 16 dimensions, as at '{SOURCE}' of "
        f"'{pair.source.name}': give one of this width, or transfer it with a stitch first"
    )


def test_a_pair_is_not_taken_for_a_model(pair: ModelPair) -> None:
    with pytest.raises(TypeError, match=r"source is a ModelPair; .* check\(pair.source, pair.targ"):
        identity_of("source", pair)
    with pytest.raises(TypeError, match=r"target is a str; expected a HookedModel: load it with"):
        identity_of("target", "org/large")
    assert identity_of("target", pair.target) == pair.target.identity
    assert identity_of("target", None) is None


def test_a_vector_of_a_place_that_its_model_does_not_have_is_refused(
    vector: SteeringVector, pair: ModelPair
) -> None:
    with pytest.raises(MismatchError, match="has width 24; expected 16 dimensions, as at"):
        SteeringVector(torch.ones(24), SOURCE, pair.source.identity)
    n_layers = pair.source.n_layers
    missing = f"blocks.{n_layers}.hook_resid_post"
    with pytest.raises(MismatchError, match=f"{missing}.* has {n_layers} blocks, counted from 0"):
        replace(vector, hook=missing)
    assert SteeringVector(torch.ones(24), SOURCE).model is None, "nothing is known of its model"


@pytest.mark.parametrize("field", ["config_hash", "basis"])
def test_vectors_of_two_models_are_not_combined(vector: SteeringVector, field: str) -> None:
    entries: Entries = {"cosine": vector.cosine, "add": vector.__add__}
    foreign = replace(vector, model=foreign_identity(vector.model, field))
    assert the_message(entries, foreign).startswith("the model of vector 'mood' is ")


def test_texts_prepared_at_another_hook_point_are_refused(
    vector: SteeringVector, pair: ModelPair, passages: list[str]
) -> None:
    elsewhere = NeutralText(pair.source, passages[:4], 1)
    with pytest.raises(MismatchError, match=r"these neutral texts were prepared at 'blocks\.1"):
        calibrate_on(elsewhere, vector, 0.05)


def test_contrast_texts_of_another_vector_are_refused(
    pair: ModelPair, stitch: Any, vector: SteeringVector, passages: list[str]
) -> None:
    neutral, quick = passages[:4], {"progress": False}
    entries: Entries = {
        "evaluate_steering": lambda c: lrt.evaluate_steering(
            pair, stitch, vector, ITEMS, neutral=neutral, contrast=c, **quick
        ),
        "evaluate_clamping": lambda c: lrt.evaluate_clamping(
            pair, stitch, vector, neutral, lambda _: True, contrast=c, **quick
        ),
        "evaluate_ablation": lambda c: lrt.evaluate_ablation(
            pair, stitch, vector, neutral=neutral, items=ITEMS, contrast=c, **quick
        ),
    }
    assert "was learnt from other texts than contrast='colour'" in the_message(entries, COLOUR)


# ------------------------------------------------------------------------------------- probes


@pytest.fixture(scope="module")
def labelled(passages: list[str]) -> tuple[list[str], list[str]]:
    return passages[:20], ["a", "b"] * 10


@pytest.fixture(scope="module")
def probe(pair: ModelPair, labelled: Any) -> Any:
    return lrt.LinearProbe.fit(pair.source, *labelled, at=0, penalties=(0.1,))


def test_every_entry_point_gives_one_answer_about_a_probe(
    pair: ModelPair, stitch: Any, probe: Any, labelled: Any
) -> None:
    to_transfer: Entries = {
        "transfer": stitch.transfer,
        "through": lambda p: stitch.transfer(p, through=stitch.null.down),
        "evaluate_probe": lambda p: lrt.evaluate_probe(
            pair, stitch, *labelled, probe=p, ks=(2,), progress=False
        ),
    }
    to_read: Entries = {
        "predict": lambda p: p.predict(pair.source, labelled[0]),
        "rows": lambda p: p.rows(pair.source, labelled[0]),
        "auroc": lambda p: p.auroc(pair.source, *labelled),
    }
    for field in ("config_hash", "basis", "tokenizer_hash"):
        foreign = replace(probe, model=foreign_identity(probe.model, field))
        assert the_message(to_transfer, foreign).startswith("probe 'probe' was fitted on a model")
        if field != "tokenizer_hash":
            assert the_message(to_read, foreign).startswith("the model to read by probe 'probe' is")
    assert f"starts at '{SOURCE}'" in the_message(to_transfer, replace(probe, hook=TARGET))
    wide = replace(probe, weight=torch.ones(24, 1), model=None)
    message = the_message(to_transfer | to_read, wide)
    assert message.startswith("probe 'probe' has width 24; expected 16 dimensions")


# --------------------------------------------------------------------------------------- maps


def family(pair: ModelPair, stitch: Any, labelled: Any, passages: list[str], **options: Any) -> Any:
    return lrt.evaluate_family_baselines(
        pair,
        {"ridge": stitch},
        **{
            "contrast": CONTRAST,
            "items": ITEMS,
            "neutral": passages[:4],
            "texts": labelled[0],
            "labels": labelled[1],
            "test_texts": labelled[0],
            "test_labels": labelled[1],
            "n_random": 1,
            "progress": False,
        }
        | options,
    )


@pytest.fixture(scope="module")
def token_map(pair: ModelPair, passages: list[str]) -> AffineMap:
    moments = lrt.harvest(
        pair.reversed(),
        passages,
        source_layers=[1],
        target_layers=[0],
        context_length=32,
        progress=False,
    )
    return lrt.token_identity_map(moments, SOURCE)


def test_every_entry_point_gives_one_answer_about_a_token_map(
    pair: ModelPair,
    strangers: ModelPair,
    grid: Any,
    labelled: Any,
    token_map: AffineMap,
    passages: list[str],
) -> None:
    stitch = grid[0, 1]
    entries: Entries = {
        "evaluate_probe": lambda t: lrt.evaluate_probe(
            pair, stitch, *labelled, token_map=t, ks=(2,), progress=False
        ),
        "evaluate_family_baselines": lambda t: family(
            pair, stitch, labelled, passages, moments=grid.moments, token_map=t
        ),
    }
    foreign = {
        "hook": replace(token_map, target_hook=TARGET),
        "start": replace(token_map, source_hook=SOURCE),
        "model": replace(token_map, source_model=strangers.target.identity),
        "width": AffineMap(torch.ones(40, 16), torch.zeros(16), "hook_embed", SOURCE),
    }
    for question, one in foreign.items():
        message = the_message(entries, one)
        begin = "the source model of token_map is" if question == "model" else "token_map maps"
        assert message.startswith(begin)
    assert token_map.source_model == pair.target.identity
    with pytest.raises(MismatchError, match="token_maps maps 'hook_embed' → 'blocks.0"):
        lrt.evaluate_stitch_loss(pair, stitch, passages, token_maps=token_map, progress=False)


def test_every_entry_point_gives_one_answer_about_the_hook_points_of_a_map(
    pair: ModelPair,
    grid: Any,
    probe: Any,
    vector: SteeringVector,
    passages: list[str],
    strangers: ModelPair,
) -> None:
    stitch = grid[0, 1]
    up: Entries = {
        "vector": lambda m: stitch.transfer(vector, through=m.up),
        "evaluate_stitch_loss": lambda m: lrt.evaluate_stitch_loss(
            pair, stitch, passages, others={"through=": m}, progress=False
        ),
    }
    down: Entries = {"probe": lambda m: stitch.transfer(probe, through=m.down)}
    for place in (grid[1, 2].maps, grid[0, 2].maps, stitch.maps.reversed()):
        assert the_message(up, place).startswith("through= maps 'blocks.")
        assert the_message(down, place).startswith("through= maps 'blocks.")
    others = (strangers.source.identity, strangers.target.identity)
    of_strangers = stitch.maps.between(*others)
    assert the_message(up, of_strangers).startswith("the source model of through= is")
    assert the_message(down, of_strangers).startswith("the source model of through= is")
    # A map without names and models is compared by its widths.
    unnamed = AffineMap(stitch.up.weight, stitch.up.bias)
    assert torch.equal(
        stitch.transfer(vector, through=unnamed).direction, stitch.transfer(vector).direction
    )
    with pytest.raises(MismatchError, match=r"through= maps 'source' \[24\] → 'target' \[16\]"):
        stitch.transfer(vector, through=AffineMap(stitch.down.weight, stitch.down.bias))


def test_moments_of_other_models_or_hook_points_score_nothing(
    pair: ModelPair, strangers: ModelPair, grid: Any, labelled: Any, passages: list[str]
) -> None:
    stitch, hooks = grid[0, 1], (SOURCE, TARGET)
    options: dict[str, Any] = {"source_layers": [0], "target_layers": [1]}
    moments = lrt.harvest(strangers, passages, context_length=32, progress=False, **options)
    with pytest.raises(MismatchError, match="the source model of these moments is"):
        family(pair, stitch, labelled, passages, moments=moments)
    with pytest.raises(MismatchError, match="the source model of this map is"):
        lrt.score_intervals(stitch.up, moments, hooks)
    foreign = lrt.fit_grid(moments, lrt.Ridge())
    with pytest.raises(MismatchError, match="the source model of this map is"):
        foreign.score(stitch.up)
    with pytest.raises(MismatchError, match=r"this map maps .*expected 'blocks\.1"):
        lrt.score_intervals(stitch.up, grid.moments, ("blocks.1.hook_resid_post", TARGET))
    with pytest.raises(MismatchError, match="down=True"):
        lrt.score_intervals(stitch.down, grid.moments, hooks)
    assert len(lrt.score_intervals(stitch.down, grid.moments, hooks, down=True)) == 3


def test_a_map_may_be_loaded_reversed_composed_and_inverted(
    pair: ModelPair, stitch: Any, tmp_path: Any
) -> None:
    stitch.save_pretrained(tmp_path / "stitch")
    models = (pair.source.identity, pair.target.identity)
    for again in (stitch, lrt.Stitch.from_pretrained(tmp_path / "stitch")):
        assert (again.up.source_model, again.up.target_model) == models
        assert all((maps.down.source_model,) == models[1:] for maps in again.refits)
    assert stitch.reversed().up.source_model == models[1]
    there = stitch.up.compose(stitch.down)
    assert (there.source_model, there.target_model) == (models[0], models[0])
    assert stitch.up.inverse().source_model == models[1]
    with pytest.raises(MismatchError, match="the model of the next map is"):
        stitch.up.compose(replace(stitch.down, source_model=models[0]))


# ------------------------------------------------------------------------- rows and explorers


def test_every_entry_point_gives_one_answer_about_rows(
    pair: ModelPair, strangers: ModelPair, passages: list[str]
) -> None:
    sets, hooks = [CONTRAST, COLOUR], {"source_hook": SOURCE, "target_hook": TARGET}
    concepts = [lrt.Concept(CONTRAST, ITEMS), lrt.Concept(COLOUR, replace(ITEMS, name="colour"))]

    def read(models: ModelPair = pair, texts: Sequence[ContrastSet] = sets, **more: Any) -> Any:
        return lrt.read_rows(models, texts, **{**hooks, **more})

    entries: Entries = {
        "evaluate_interpolation": lambda rows: lrt.evaluate_interpolation(
            pair, sets, rows=rows, counts=[4], n_draws=1, ridge=False, progress=False, **hooks
        ),
        "evaluate_concept_transfer": lambda rows: lrt.evaluate_concept_transfer(
            pair, concepts, rows=[rows], neutral=passages[:4], progress=False, **hooks
        ),
    }
    texts = [replace_texts(one, passages, 20 * i) for i, one in enumerate(sets)]
    for foreign, beginning in (
        (read(strangers), "the source model of rows of 'mood' is"),
        (read(pair.reversed()), "the source model of rows of 'mood' is"),
        (read(source_hook=1), "rows of 'mood' join 'blocks.1"),
        (read(read="mean"), "rows of 'mood' were read from these texts with read='mean'"),
        (read(texts=texts), "rows of 'mood' were read from other texts"),
    ):
        assert the_message(entries, foreign).startswith(beginning)
    assert len(entries["evaluate_interpolation"](read()).table)


def replace_texts(one: ContrastSet, passages: list[str], start: int) -> ContrastSet:
    """Return a set of the same name and size with other texts."""
    n = len(one)
    return ContrastSet(
        passages[start : start + n], passages[start + n : start + 2 * n], name=one.name
    )


def test_the_explorer_checks_the_stitch_also_for_a_vector_of_the_target(
    pair: ModelPair, strangers: ModelPair, grid: Any, vector: SteeringVector, passages: list[str]
) -> None:
    transferred = grid[0, 1].transfer(vector)
    provenance = replace(
        grid[0, 1].provenance, source=strangers.source.identity, target=strangers.target.identity
    )
    foreign = replace(grid[0, 1], provenance=provenance)
    with pytest.raises(MismatchError, match="the source model is"):
        lrt.explore(pair, transferred, stitch=foreign, neutral=passages[:4])
    with pytest.raises(MismatchError, match="this stitch ends at 'blocks.2.*leave stitch= out"):
        lrt.explore(pair, transferred, stitch=grid[0, 2], neutral=passages[:4])
    other = replace(vector, model=foreign_identity(vector.model, "config_hash"))
    with pytest.raises(MismatchError, match=r"\(config_hash 0{16}, raw basis\), and the pair is"):
        lrt.explore(pair, other, stitch=grid[0, 1], neutral=passages[:4])
