"""A vector of one's own: numbers from anywhere, a block by its number, and controls through it."""

from typing import Any

import numpy as np
import pytest
import torch

from lrt_lens import AffineMap, LinearProbe, SteeringVector
from lrt_lens._given_tensors import float_tensor
from lrt_lens.errors import HookPointError, MismatchError, NonFiniteError
from lrt_lens.models import ModelPair
from lrt_lens.stitching import Stitch

# What users write is wider than what the fields are.
pytestmark = pytest.mark.usefixtures("unchecked")
HOOK = "blocks.1.hook_resid_post"
NUMBERS = [0.5 * i - 3 for i in range(16)]


@pytest.mark.parametrize(
    ("numbers", "dtype"),
    [
        (NUMBERS, torch.float32),
        (tuple(NUMBERS), torch.float32),
        ([torch.tensor(number) for number in NUMBERS], torch.float32),
        (np.array(NUMBERS), torch.float64),
        (np.array(NUMBERS, "float32"), torch.float32),
        (np.array(NUMBERS[::-1])[::-1], torch.float64),
        (torch.tensor(NUMBERS), torch.float32),
        (torch.tensor(NUMBERS, dtype=torch.bfloat16), torch.bfloat16),
    ],
)
def test_a_direction_may_be_a_tensor_an_array_or_a_list(numbers: Any, dtype: torch.dtype) -> None:
    vector = SteeringVector(numbers, HOOK)
    assert vector.direction.dtype == dtype
    assert vector.direction.tolist() == NUMBERS


def test_whole_numbers_are_a_direction() -> None:
    whole: Any = [np.array([1, 0, -2]), [1, 0, -2], torch.tensor([1, 0, -2])]
    for numbers in whole:
        vector = SteeringVector(numbers, HOOK)
        assert (vector.direction.dtype, vector.direction.tolist()) == (torch.float32, [1, 0, -2])


def test_an_array_that_changes_later_leaves_the_vector_as_it_is() -> None:
    numbers: Any = np.ones(4)
    vector = SteeringVector(numbers, HOOK)
    numbers[:] = 7
    assert vector.direction.tolist() == [1.0] * 4


@pytest.mark.parametrize("numbers", ["abc", None, [1j, 2], [True, False], [[1.0], [1.0, 2.0]]])
def test_what_is_no_direction_is_refused_with_what_would_be_one(numbers: Any) -> None:
    with pytest.raises(TypeError, match="expected a tensor, a numpy array or a list of real"):
        SteeringVector(numbers, HOOK)
    with pytest.raises(TypeError, match="^the name is a "):
        float_tensor("the name", numbers)


def test_a_wrong_shape_and_nan_are_refused_in_arrays_too() -> None:
    numbers: Any = np.ones((2, 3))
    with pytest.raises(ValueError, match=r"direction has shape \(2, 3\); expected \[d_model\]"):
        SteeringVector(numbers, HOOK)
    with pytest.raises(NonFiniteError, match="holds NaN or infinity"):
        SteeringVector(numbers[0] * np.nan, HOOK)


def test_the_number_of_a_block_is_the_stream_after_it(pair: ModelPair) -> None:
    layers: Any = [1, np.int64(1), -1]
    for layer in layers:
        assert SteeringVector(torch.ones(16), layer, pair.source.identity).hook == HOOK
    unknown: Any = 9
    assert SteeringVector(torch.ones(16), unknown).hook == "blocks.9.hook_resid_post"


def test_a_block_that_the_model_lacks_is_refused(pair: ModelPair) -> None:
    layers: Any = [(2, "it has 2 blocks: use 0 to 1"), (-3, "it has 2 blocks")]
    for layer, message in layers:
        with pytest.raises(HookPointError, match=message):
            SteeringVector(torch.ones(16), layer, pair.source.identity)
    wrong: Any = [(-1, "counts from the last block"), (1.5, "the number of a block, such as 9")]
    for layer, message in wrong:
        with pytest.raises((HookPointError, TypeError), match=message):
            SteeringVector(torch.ones(16), layer)


def test_a_model_stands_for_its_identity(pair: ModelPair) -> None:
    model: Any = pair.source
    vector = SteeringVector(torch.ones(16), HOOK, model)
    assert vector.model == pair.source.identity
    name: Any = "mine"
    with pytest.raises(TypeError, match="model is str 'mine'; expected a HookedModel"):
        SteeringVector(torch.ones(16), HOOK, name)


def test_a_probe_of_ones_own_weights_follows_the_same_rules(pair: ModelPair) -> None:
    weight: Any = np.linspace(-1, 1, 16)[:, None]
    bias: Any = [0.5]
    classes: Any = ["bad", "good"]
    hook: Any = -1
    model: Any = pair.source
    probe = LinearProbe(weight, bias, classes, hook, model)
    assert (probe.hook, probe.model, probe.classes) == (HOOK, model.identity, ("bad", "good"))
    rows = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(probe.logits(rows), rows.double().numpy() @ weight + 0.5)


def test_a_map_takes_and_maps_arrays() -> None:
    weight: Any = np.arange(6.0).reshape(2, 3)
    bias: Any = [1, 2, 3]
    hooks: Any = (1, "blocks.2.hook_resid_post")
    affine = AffineMap(weight, bias, *hooks)
    assert affine.source_hook == HOOK
    x = np.array([[1.0, -1.0], [0.5, 2.0]])
    np.testing.assert_allclose(affine.points(x).numpy(), x @ weight + [1, 2, 3])
    np.testing.assert_allclose(affine.directions(x.tolist()).numpy(), x @ weight)


def test_a_list_has_the_fidelity_of_its_tensor(stitch: Stitch) -> None:
    assert repr(stitch.fidelity(NUMBERS)) == repr(stitch.fidelity(torch.tensor(NUMBERS)))


def test_a_bare_tensor_is_refused_with_all_that_transfers(stitch: Stitch) -> None:
    for bare in (torch.ones(16), np.ones(16)):
        with pytest.raises(TypeError) as caught:
            stitch.transfer(bare)
        for kind in ("SteeringVector(direction", "LinearProbe(weight", "SAE of SAELens", "points"):
            assert kind in str(caught.value)


def test_vectors_and_probes_go_through_the_map_of_shuffled_pairs(stitch: Stitch) -> None:
    assert stitch.null is not None
    vector = SteeringVector(torch.tensor(NUMBERS), stitch.source_hook)
    control = stitch.transfer(vector, through=stitch.null, norm="mapped")
    expected = vector.direction.double() @ stitch.null.up.weight
    torch.testing.assert_close(control.direction, expected.float())
    assert control.cosine(stitch.transfer(vector)) < 0.99

    weight = torch.tensor(NUMBERS)[:, None]
    probe = LinearProbe(weight, torch.zeros(1), ("no", "yes"), stitch.source_hook)
    moved = stitch.transfer(probe, through=stitch.null)
    torch.testing.assert_close(moved.weight, stitch.null.down.weight @ weight.double())


def test_maps_of_other_hook_points_are_refused_as_controls(stitch: Stitch) -> None:
    vector = SteeringVector(torch.tensor(NUMBERS), stitch.source_hook)
    other = AffineMap(torch.eye(16), torch.zeros(16), "blocks.0.hook_resid_post", HOOK)
    with pytest.raises(MismatchError, match="through="):
        stitch.transfer(vector, through=other)
