"""Spaces: flattening by Gymnasium's rule, images, and which action spaces fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector.utils import concatenate, create_empty_array

from herdbook.core.spaces import (
    BadValues,
    cast,
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


@pytest.mark.parametrize(
    ("dtype", "values", "message"),
    [
        (np.uint8, [0.0, 0.5], r"as whole numbers in \[0, 255\], got 0.5 in row 1"),
        (np.uint8, [0, 300], r"as whole numbers in \[0, 255\], got 300 in row 1"),
        (np.uint8, [[0, 0], [0, -1]], "got -1 in row 1"),
        (np.int64, [0.0, np.nan], "as whole numbers, got nan in row 1"),
        (np.int64, [2.0**63], "got 9.2233.*e.18 in row 0"),
        (np.int64, np.array([2**63], np.uint64), "got 9223372036854775808 in row 0"),
        (np.bool_, [0, 2], r"as booleans \(0 or 1\), got 2 in row 1"),
        (np.bool_, [1.0, np.nan], "got nan in row 1"),
        (np.float32, [[1.0], [1.0, 2.0]], r"as an array of float32, got list \(.*inhomogeneous"),
        (np.float32, ["1"], "as an array of float32, got <U1"),
        (np.float32, [1.0, None], "as an array of float32, got object"),
        (np.float32, 1.0, "as an array of float32, got float"),
    ],
)
def test_values_that_a_type_cannot_hold_are_refused(dtype: Any, values: Any, message: str) -> None:
    with pytest.raises(BadValues, match=f"expected values .*{message}"):
        cast(values, dtype)


def test_values_that_a_type_holds_are_cast() -> None:
    assert cast([0.0, 255.0], np.uint8).tolist() == [0, 255]
    assert cast(np.array([0, 1.0, True], dtype=object), np.bool_).tolist() == [False, True, True]
    assert cast([-(2.0**63)], np.int64).tolist() == [-(2**63)]
    assert cast([1e300], np.float32).tolist() == [np.inf]  # for `check_finite` to report
    same = np.zeros(3, np.float32)
    assert cast(same, np.float32) is same


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": [1, 4]}, r"values\['kind'\] in \[1, 3\] \(from Discrete\(3, start=1\)\), got 4 in row 1"),
        ({"kind": [0, 1]}, r"values\['kind'\] in \[1, 3\] .*, got 0 in row 0"),
        ({"kind": [1, 1.5]}, r"values\['kind'\] as whole numbers, got 1.5 in row 1"),
        ({"grid": [[[0, 0]]] * 2}, r"values\['grid'\] of shape \(2, 2\) in each row .*, got \(1, 2\)"),
        ({"goal": np.zeros((3, 2))}, r"values with as many rows in each part, got \[2, 3\]"),
        ({"kind": None}, r"values with a part 'kind', got the parts 'goal', 'grid'"),
    ],
)
def test_parts_that_their_space_cannot_hold_are_refused(change: dict[str, Any], message: str) -> None:
    parts = {"goal": np.zeros((2, 2)), "kind": [1, 2], "grid": np.zeros((2, 2, 2)), **change}
    with pytest.raises(BadValues, match=f"expected {message}"):
        flatten_batch(MANY[5], {name: values for name, values in parts.items() if values is not None})


def test_an_image_inside_is_named_by_its_place() -> None:
    _, many = batch(MANY[-1])
    many[0]["eye"] = np.full((7, 6, 5, 3), 0.5)
    with pytest.raises(BadValues, match=r"expected values\[0\]\['eye'\] as whole numbers in \[0, 255\], got 0.5"):
        flatten_batch(MANY[-1], many)


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
