"""Spaces: flattening by Gymnasium's rule, images, and which action spaces fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector.utils import concatenate, create_empty_array

from herdbook.core.spaces import (
    check_action_space,
    flat_action_space,
    flat_space,
    flatten,
    flatten_batch,
    is_image,
    unflatten_batch,
)

IMAGE = spaces.Box(0, 255, (6, 5, 3), np.uint8)
VECTOR = spaces.Box(-2.0, 3.0, (2,), np.float64)
MANY = [
    VECTOR,
    spaces.Box(-1, 1, (2, 3), np.float32),
    spaces.Discrete(4, start=2),
    spaces.MultiDiscrete([2, 3], start=[1, 0]),
    spaces.MultiBinary(3),
    spaces.Dict({"goal": VECTOR, "kind": spaces.Discrete(3, start=1), "grid": spaces.Box(0, 9, (2, 2), np.int64)}),
    spaces.Tuple((VECTOR, spaces.Tuple((spaces.Discrete(2), spaces.MultiBinary(2))))),
    IMAGE,
    spaces.Dict({"camera": IMAGE, "arm": spaces.Dict({"angle": VECTOR, "speed": VECTOR})}),
    spaces.Tuple((spaces.Dict({"eye": IMAGE, "kind": spaces.Discrete(3)}), VECTOR)),
]


def batch(space: spaces.Space[Any], count: int = 7) -> tuple[list[Any], Any]:
    space.seed(0)
    single = [space.sample() for _ in range(count)]
    return single, concatenate(space, single, create_empty_array(space, count))


def assert_equal(left: Any, right: Any) -> None:
    if isinstance(right, dict):
        assert list(left) == list(right)
        for key in right:
            assert_equal(left[key], right[key])
    elif isinstance(right, tuple):
        for one, other in zip(left, right, strict=True):
            assert_equal(one, other)
    else:
        np.testing.assert_array_almost_equal_nulp(np.asarray(left, np.float32), np.asarray(right, np.float32))


@pytest.mark.parametrize("space", MANY, ids=str)
def test_a_batch_is_flattened_as_its_members_are(space: spaces.Space[Any]) -> None:
    single, many = batch(space)
    flat, together = flat_space(space), flatten_batch(space, many)
    for i, observation in enumerate(single):
        one = flatten(space, observation)
        assert flat.contains(one if not isinstance(flat, spaces.Discrete) else np.int64(one))
        assert_equal(one, {k: v[i] for k, v in together.items()} if isinstance(together, dict) else together[i])


@pytest.mark.parametrize("space", MANY, ids=str)
def test_unflattening_is_the_inverse(space: spaces.Space[Any]) -> None:
    _, many = batch(space)
    assert_equal(unflatten_batch(space, flatten_batch(space, many)), many)


@pytest.mark.parametrize("space", [MANY[i] for i in (0, 1, 3, 4, 5, 6)], ids=str)
def test_vectors_follow_gymnasium(space: spaces.Space[Any]) -> None:
    for observation in batch(space)[0]:
        np.testing.assert_allclose(flatten(space, observation), spaces.utils.flatten(space, observation), rtol=1e-6)


def test_one_that_holds_an_image_stays_a_dict() -> None:
    flat = flat_space(MANY[-1])
    assert isinstance(flat, spaces.Dict)
    assert list(flat.spaces) == ["0.eye", "0.kind", "1"]
    assert is_image(flat["0.eye"]) and flat["0.kind"] == spaces.Discrete(3) and flat["1"].dtype == np.float32
    assert flatten(MANY[-1], MANY[-1].sample())["0.eye"].dtype == np.uint8


def test_observation_keys_choose_parts() -> None:
    space = MANY[5]
    assert flat_space(space, ["goal"]) == spaces.Box(-2.0, 3.0, (2,), np.float32)
    sample = space.sample()
    np.testing.assert_allclose(flatten(space, sample, ["goal"]), sample["goal"], rtol=1e-6)
    with pytest.raises(ValueError, match="no observation key 'gaol'.*did you mean 'goal'"):
        flat_space(space, ["gaol"])
    with pytest.raises(ValueError, match="chooses parts of a Dict"):
        flat_space(VECTOR, ["goal"])
    with pytest.raises(ValueError, match="is empty"):
        flat_space(space, [])


def test_float64_bounds_beyond_float32_become_infinite() -> None:
    flat = flat_space(spaces.Box(-1e300, 1e300, (1,), np.float64))
    assert isinstance(flat, spaces.Box) and flat.high[0] == np.inf


def test_spaces_without_a_fixed_size_are_refused() -> None:
    with pytest.raises(ValueError, match="no fixed size; choose other parts"):
        flat_space(spaces.Dict({"text": spaces.Sequence(spaces.Discrete(3))}))


def test_action_spaces_that_fit() -> None:
    box = spaces.Box(-1, 1, (2, 2), np.float64)
    assert flat_action_space(box) == spaces.Box(-1, 1, (4,), np.float32)
    check_action_space(flat_action_space(box), "box", "cql")
    check_action_space(spaces.Discrete(2), "any", "bc")
    with pytest.raises(ValueError, match="expected a Box or Discrete action space"):
        flat_action_space(spaces.MultiDiscrete([2, 2]))


@pytest.mark.parametrize(
    ("space", "kind", "message"),
    [
        (spaces.Discrete(2), "box", "expected continuous .* try bc, discrete_bcq or discrete_cql"),
        (spaces.Box(-1, 1, (2,)), "discrete", "expected discrete actions, got Box.* try bc, bcq, cql, td3_bc or iql"),
        (spaces.Box(-np.inf, 1, (2,)), "box", "expected bounded actions"),
    ],
)
def test_discrete_algorithm_on_continuous_data_and_the_reverse(space: Any, kind: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_action_space(space, kind, "algorithm")
