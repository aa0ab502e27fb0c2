"""`Episodes`: layout, validation and what it offers."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from herdbook.datasets.arrays import from_arrays
from herdbook.datasets.episodes import DataError, Episodes
from herdbook.datasets.rewards import transform_rewards


def make(
    lengths: tuple[int, ...] = (3, 1, 2), terminated: tuple[bool, ...] = (True, False, True), **fields: Any
) -> Episodes:
    """Episode e, step t: observation [10 e + t, -t], action t / 10, reward 10 e + t."""
    episodes = [
        {
            "observations": np.stack([10.0 * e + np.arange(n + 1), -np.arange(n + 1.0)], axis=1),
            "actions": np.arange(n)[:, None] / 10,
            "rewards": 10.0 * e + np.arange(n),
            "terminated": ended,
            "truncated": not ended,
        }
        for e, (n, ended) in enumerate(zip(lengths, terminated, strict=True))
    ]
    return Episodes.from_episodes(
        episodes,
        observation_space=spaces.Box(-np.inf, np.inf, (2,), np.float32),
        action_space=spaces.Box(-1, 1, (1,), np.float32),
        **fields,
    )


def changed(episodes: Episodes, field: str, index: Any, value: Any) -> dict[str, Any]:
    array = getattr(episodes, field).copy()
    array[index] = value
    return {field: array}


def test_t_plus_one_alignment() -> None:
    """Step t of episode e reads observation rows t+e and t+e+1, whatever came before."""
    data = make()
    rows = data.step_rows
    assert rows.tolist() == [0, 1, 2, 4, 6, 7]
    assert data.observations[rows, 0].tolist() == [0, 1, 2, 10, 20, 21]
    assert data.observations[rows + 1, 0].tolist() == [1, 2, 3, 11, 21, 22]
    assert data.rewards.tolist() == [0, 1, 2, 10, 20, 21]


def test_lengths_and_returns() -> None:
    data = make()
    assert (len(data), data.num_steps) == (3, 6)
    assert data.lengths().tolist() == [3, 1, 2]
    assert data.returns().tolist() == [3, 10, 41]


def test_values_are_cast_once_at_the_door_and_kept_where_they_fit() -> None:
    data = make()
    assert (data.observations.dtype, data.actions.dtype, data.rewards.dtype) == (np.float32, np.float32, np.float64)
    again = replace(data, source="copy")
    assert again.observations is data.observations
    assert again.actions is data.actions


def test_a_boundary_is_the_offset_not_a_flag(caplog: pytest.LogCaptureFixture) -> None:
    """An episode whose last step carries neither flag counts as truncated, with a notice."""
    data = make()
    with caplog.at_level(logging.WARNING, "herdbook"):
        data = replace(data, **changed(data, "truncated", 3, False))
    assert "1 of 3 episodes end with neither flag" in caplog.text
    assert data.truncated.tolist() == [False, False, False, True, False, False]
    assert data.offsets.tolist() == [0, 3, 4, 6]


def test_both_flags_at_the_last_step_are_kept() -> None:
    data = make()
    data = replace(data, **changed(data, "truncated", 2, True))
    assert data.terminated[2] and data.truncated[2]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("field", "index", "place"),
    [
        ("observations", (5, 1), "episode 1, step 1"),
        ("observations", (8, 0), "episode 2, step 2"),
        ("actions", (4, 0), "episode 2, step 0"),
        ("rewards", 1, "episode 0, step 1"),
    ],
)
def test_nan_and_infinite_values_name_field_episode_and_step(value: float, field: str, index: Any, place: str) -> None:
    data = make(source="mine")
    with pytest.raises(DataError, match=rf"mine: expected finite {field}, got {value} at {place}"):
        replace(data, **changed(data, field, index, value))


def test_opposite_infinities_do_not_cancel() -> None:
    data = make()
    with pytest.raises(DataError, match="episode 0, step 1"):
        replace(data, rewards=np.array([0, np.inf, -np.inf, 0, 0, 0]))


def test_float64_overflow_is_an_infinite_value() -> None:
    data = make()
    observations = data.observations.astype(np.float64)
    observations[2, 0] = 1e300
    with pytest.raises(DataError, match="expected finite observations, got inf at episode 0, step 2"):
        replace(data, observations=observations)


def test_large_finite_rewards_are_accepted() -> None:
    data = make()
    assert replace(data, rewards=np.full(6, 1e308)).rewards[0] == 1e308


def test_t_instead_of_t_plus_one_observations() -> None:
    data = make()
    with pytest.raises(DataError, match=r"expected T\+1 observations for T actions \(9 rows .* got T \(6\)"):
        replace(data, observations=data.observations[:6])


def test_t_instead_of_t_plus_one_names_the_episode() -> None:
    episode = {
        "observations": np.zeros((3, 2)),
        "actions": np.zeros((3, 1)),
        "rewards": np.zeros(3),
        "terminated": True,
        "truncated": False,
    }
    with pytest.raises(DataError, match=r"expected T\+1 = 4 observations for the T = 3 rewards of episode 0, got 3"):
        Episodes.from_episodes(
            [episode], observation_space=spaces.Box(-1, 1, (2,)), action_space=spaces.Box(-1, 1, (1,))
        )


@pytest.mark.parametrize("field", ["actions", "rewards", "terminated", "truncated"])
def test_lengths_that_disagree(field: str) -> None:
    data = make()
    with pytest.raises(DataError, match=f"expected {field} for 6 steps .* got 5"):
        replace(data, **{field: getattr(data, field)[:-1]})
    with pytest.raises(DataError, match="9 rows of observations"):
        replace(data, observations=data.observations[:-1])


@pytest.mark.parametrize("field", ["terminated", "truncated"])
def test_a_termination_inside_an_episode(field: str) -> None:
    data = make()
    with pytest.raises(DataError, match=f"{field} is set inside episode 2, at step 0 of 2"):
        replace(data, **changed(data, field, 4, True))


def test_actions_outside_the_space() -> None:
    data = make()
    with pytest.raises(DataError, match=r"actions in \[-1, 1\], got \[0, 1.5\] in dimension 0, .* episode 2, step 1"):
        replace(data, **changed(data, "actions", (5, 0), 1.5))
    assert replace(data, **changed(data, "actions", (5, 0), 1 + 5e-6)).actions[5, 0] > 1  # float32 rounding


def test_discrete_actions_outside_the_space() -> None:
    space = spaces.Discrete(2, start=1)
    good = from_arrays(np.zeros((3, 2)), [1, 2], [0, 0], [False, True], [False, False], action_space=space)
    assert good.actions.tolist() == [1, 2]  # in the numbering of the space
    with pytest.raises(DataError, match=r"expected actions in \[1, 2\] .* got \[0, 2\], first at episode 0, step 0"):
        from_arrays(np.zeros((3, 2)), [0, 2], [0, 0], [False, True], [False, False], action_space=space)


def test_empty_datasets() -> None:
    with pytest.raises(DataError, match="the dataset is empty"):
        make((), ())
    data = make()
    with pytest.raises(DataError, match="the dataset is empty"):
        data.filter(data.returns() > 1e9)
    with pytest.raises(DataError, match="episode 1 has 0 steps"):
        replace(data, offsets=[0, 3, 3, 6])


IMAGE = spaces.Box(0, 255, (1, 1, 3), np.uint8)
KIND = spaces.Dict({"kind": spaces.Discrete(3), "speed": spaces.Box(-1, 1, (1,))})


def images(last: float) -> Any:
    return np.concatenate([np.zeros((3, 1, 1, 3)), np.full((1, 1, 1, 3), last)])


@pytest.mark.parametrize(
    ("space", "changes", "message"),
    [
        (IMAGE, {"observations": images(0.5)}, r"observations as whole numbers in \[0, 255\], got 0.5 at .* 1, step 1"),
        (IMAGE, {"observations": images(300).astype(int)}, r"observations .*, got 300 at episode 1, step 1"),
        (IMAGE, {"observations": images(np.nan)}, "observations .*, got nan at episode 1, step 1"),
        (spaces.Discrete(3), {"observations": [0, 1, 1.5, 1]}, "observations .*, got 1.5 at episode 1, step 0"),
        (KIND, {"kind": [0, 0, -1, 0]}, r"observations\['kind'\] in \[0, 2\] .*, got -1 at episode 1, step 0"),
        (KIND, {"kind": [0, 5, 0, 0]}, r"observations\['kind'\] in \[0, 2\] .*, got 5 at episode 0, step 1"),
        (KIND, {"kind": [0, 0, 0]}, r"observations with as many rows in each part, got \[3, 4\]"),
        (KIND, {"observations": {"speed": np.zeros((4, 1))}}, "observations with a part 'kind', got the parts 'speed'"),
        (None, {"terminated": [True, np.nan]}, r"terminated as booleans \(0 or 1\), got nan at episode 1, step 0"),
        (None, {"truncated": [0, 2]}, "truncated .*, got 2 at episode 1, step 0"),
        (None, {"actions": [0, np.nan]}, "actions as whole numbers, got nan at episode 1, step 0"),
        (None, {"actions": [0, 0.5]}, "actions as whole numbers, got 0.5 at episode 1, step 0"),
        (None, {"rewards": ["a", "b"]}, "rewards as an array of float64, got <U1"),
        (None, {"offsets": [0, 1.5]}, "offsets as whole numbers, got 1.5"),
        (None, {"observations": [[0.0], [1.0, 2.0]]}, "observations as an array, got list: .*inhomogeneous"),
        (None, {"observations": [["a"]] * 4}, "observations as an array of float32, got <U1"),
    ],
)
def test_values_that_a_field_cannot_hold_are_refused(space: Any, changes: dict[str, Any], message: str) -> None:
    """Before they are converted, and by field, episode and step; two episodes of one step each."""
    speed = np.zeros((4, 1))
    fields: dict[str, Any] = {"observations": speed, "actions": [0, 1], "rewards": [0, 0]}
    fields |= {"terminated": [True, True], "truncated": [False, False], "action_space": spaces.Discrete(2)}
    if "kind" in changes:
        changes = {"observations": {"kind": changes["kind"], "speed": speed}}
    with pytest.raises(DataError, match=f"mine: expected {message}"):
        from_arrays(**fields | changes, observation_space=space, source="mine")


def test_rows_as_lists_are_arrays() -> None:
    data = from_arrays([[0.0], [1.0], [2.0]], [[0.5], [0.5]], [0, 0], [0, 1], [0, 0])
    assert data.observations.tolist() == [[0], [1], [2]] and data.terminated.tolist() == [False, True]


def test_episodes_of_another_form_are_refused() -> None:
    episode = {"observations": [[0.0], [1.0]], "actions": [0], "rewards": [0.0], "terminated": True, "truncated": False}
    fields: dict[str, Any] = {"observation_space": spaces.Box(-1, 1, (1,)), "action_space": spaces.Discrete(1)}
    assert len(Episodes.from_episodes([episode] * 2, **fields)) == 2
    for change, message in (
        ({"observations": [[0.0, 1.0], [1.0, 2.0]]}, "expected observations of the same form in every episode"),
        ({"terminated": np.nan}, "expected terminated as booleans .*, got nan at episode 1, step 0"),
    ):
        with pytest.raises(DataError, match=message):
            Episodes.from_episodes([episode, episode | change], **fields)


def test_ragged_arrays_are_refused() -> None:
    data = make(source="mine")
    with pytest.raises(DataError, match="mine: expected observations as an array of float32"):
        replace(data, observations=[[1.0], [1.0, 2.0]])


@pytest.mark.parametrize("seed", range(5))
def test_select_split_filter_and_concat_agree(seed: int) -> None:
    """Random episodes in any order carry their own rows, flags and metadata."""
    generator = np.random.default_rng(seed)
    lengths = tuple(int(n) for n in generator.integers(1, 6, 8))
    flags = tuple(bool(b) for b in generator.integers(0, 2, 8))
    data = make(lengths, flags, episode_metadata=tuple({"seed": e} for e in range(8)))
    order = generator.permutation(8)
    chosen = data.select(order)
    for place, number in enumerate(order):
        one, same = chosen.episode(place), data.episode(int(number))
        assert one.fingerprint() == same.fingerprint()
        assert one.episode_metadata == ({"seed": number},)
        assert one.observations[:, 0].tolist() == [10 * number + t for t in range(lengths[number] + 1)]
    first, rest = data.split(0.3, generator)
    assert len(first) == 2 and len(rest) == 6
    assert sorted(m["seed"] for m in (*first.episode_metadata, *rest.episode_metadata)) == list(range(8))
    first, rest = data.split(0.3)
    assert first.concat(rest).fingerprint() == data.fingerprint()
    assert data.filter(lambda e: e.num_steps > 2).fingerprint() == data.filter(data.lengths() > 2).fingerprint()


def test_concat_of_other_spaces_is_refused() -> None:
    data = make()
    other = replace(data, action_space=spaces.Box(-2, 2, (1,), np.float32), source="other")
    with pytest.raises(DataError, match="other: expected action_space"):
        data.concat(other)


def test_concat_keeps_what_reading_noted_and_refuses_other_rewards() -> None:
    one = make(source="one", transforms=("dropped 1 step",))
    other = make(source="other", transforms=("dropped 2 steps",))
    assert one.concat(other, one).transforms == ("dropped 1 step", "dropped 2 steps")
    negated = one.with_rewards(-one.rewards, "minus")
    assert negated.concat(other.with_rewards(-other.rewards, "minus")).transforms[1:] == (
        "dropped 2 steps",
        "rewards: minus",
    )
    with pytest.raises(DataError, match=r"other: expected the transforms \('rewards: minus',\) as in one, got \(\)"):
        negated.concat(other)


def test_concat_of_other_observation_keys_is_refused() -> None:
    space = spaces.Dict({"x": spaces.Box(-1, 1, (2,)), "y": spaces.Box(-1, 1, (2,))})
    x, y = (make(raw_observation_space=space, observation_keys=(key,), source=key) for key in "xy")
    with pytest.raises(DataError, match=r"y: expected observation_keys \('x',\) as in x, got \('y',\)"):
        x.concat(y)


def test_subsample_is_a_mask_and_leaves_the_storage() -> None:
    data = make((5, 4), (True, False))
    third = data.subsample(3, 1)
    assert third.mask is not None
    assert np.flatnonzero(third.mask).tolist() == [1, 4, 6]  # steps 1 and 4 of the first, 1 of the second
    assert third.observations is data.observations
    each = data.subsample(3, np.array([0, 2]))
    assert each.mask is not None
    assert np.flatnonzero(each.mask).tolist() == [0, 3, 7]
    with pytest.raises(ValueError, match=r"expected offsets in \[0, 2\], got 3 to 3"):
        data.subsample(3, 3)
    with pytest.raises(DataError, match="at least one True"):
        make((1,), (True,)).subsample(3, 2)


def test_spec_is_over_the_observations_that_are_acted_in() -> None:
    data = make()
    spec = data.spec()
    acted = data.observations[data.step_rows].astype(np.float64)
    np.testing.assert_allclose(spec.observation_mean, acted.mean(0), rtol=1e-6)
    np.testing.assert_allclose(spec.observation_std, acted.std(0), rtol=1e-6)
    masked = data.subsample(2).spec()
    np.testing.assert_allclose(masked.observation_mean, acted[[0, 2, 3, 4]].mean(0), rtol=1e-6)


def test_the_fingerprint_changes_when_one_value_changes() -> None:
    data = make()
    seen = {data.fingerprint()}
    for field, index, value in (
        ("observations", (8, 1), 1e-30),
        ("actions", (0, 0), 1e-7),
        ("rewards", 2, 2 + 1e-15),
        ("truncated", 2, True),
    ):
        seen.add(replace(data, **changed(data, field, index, value)).fingerprint())
    seen.add(replace(data, action_space=spaces.Box(-2, 2, (1,), np.float32)).fingerprint())
    seen.add(data.subsample(2).fingerprint())
    assert len(seen) == 7
    assert replace(data, source="elsewhere").fingerprint() == data.fingerprint()


def test_statistics() -> None:
    numbers = make().statistics()
    assert (numbers["episodes"], numbers["steps"], numbers["return_max"]) == (3, 6, 41)
    assert (numbers["terminated_episodes"], numbers["truncated_episodes"]) == (2, 1)
    assert numbers["actions_at_bound"] == 0


def test_with_rewards_is_recorded() -> None:
    data = make().with_rewards(lambda e: e.observations[e.step_rows, 0], "first coordinate")
    assert data.rewards.tolist() == [0, 1, 2, 10, 20, 21]
    assert data.transforms == ("rewards: first coordinate",)
    with pytest.raises(DataError, match="expected rewards for 6 steps"):
        data.with_rewards(np.zeros(5), "short")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("none", [0, 1, 2, 10, 20, 21]),
        ("minus_one", [-1, 0, 1, 9, 19, 20]),
        ("clip", [0, 1, 1, 1, 1, 1]),
        ("return_range", [0, 1000 / 38, 2000 / 38, 10000 / 38, 20000 / 38, 21000 / 38]),  # returns 3, 10, 41
        ("scale:0.5", [0, 0.5, 1, 5, 10, 10.5]),
        ("shift:-2", [-2, -1, 0, 8, 18, 19]),
        ("shift:1,return_range", [1000 / 37 * r for r in (1, 2, 3, 11, 21, 22)]),  # returns 6, 11, 43
        ("scale:0.5,shift:-1,clip", [-1, -0.5, 0, 1, 1, 1]),
    ],
)
def test_reward_transforms(name: str, expected: list[float]) -> None:
    data = transform_rewards(make(), name)
    np.testing.assert_allclose(data.rewards, expected, rtol=1e-12)
    assert len(data.transforms) == (0 if name == "none" else 1)


def test_standardised_rewards_are_noticed_where_episodes_terminate(caplog: pytest.LogCaptureFixture) -> None:
    """The mean that is subtracted is a reward for ending, or for not ending."""
    data = make()
    assert data.terminated.any()
    transform_rewards(replace(data, terminated=np.zeros_like(data.terminated)), "standardise")
    assert not [line for line in caplog.messages if "standardise" in line]
    transform_rewards(data, "standardise")
    (line,) = [line for line in caplog.messages if "standardise" in line]
    assert "another policy may become" in line


def test_standardised_rewards() -> None:
    rewards = transform_rewards(make(), "standardise").rewards
    assert rewards.mean() == pytest.approx(0) and rewards.std() == pytest.approx(1)


def test_reward_transforms_that_cannot_be_done() -> None:
    data = make()
    with pytest.raises(ValueError, match="did you mean 'return_range'"):
        transform_rewards(data, "return_rnge")
    with pytest.raises(ValueError, match="expected a finite number"):
        transform_rewards(data, "scale:much")
    with pytest.raises(ValueError, match="expected clip as the last of several"):
        transform_rewards(data, "clip,scale:2")
    with pytest.raises(ValueError, match="unknown reward transform ''"):
        transform_rewards(data, "shift:1,")
    flat = data.with_rewards(np.zeros(6), "zero")
    with pytest.raises(DataError, match="all are 0"):
        transform_rewards(flat, "return_range")
    turned = data.with_rewards(np.array([0.1, 0.1, 0.1, 0.3, 0.15, 0.15]), "sums of 0.3, but for rounding")
    assert 0 < np.ptp(turned.returns()) < 1e-15
    with pytest.raises(DataError, match=r"all are 0\.3"):
        transform_rewards(turned, "return_range")
    for value in (0, 0.1):  # the deviation of equal rewards of 0.1 is rounding, 1.4e-17, not 0
        with pytest.raises(DataError, match=f"all are {value}"):
            transform_rewards(data.with_rewards(np.full(6, value), "flat"), "standardise")


def test_arrays_with_next_observations_keep_the_own_final_one() -> None:
    """At a boundary the next observation is the episode's own final one, never the next episode's first."""
    data = from_arrays(
        np.array([[0.0], [1.0], [7.0]]),
        np.zeros((3, 1)),
        [0, 0, 0],
        [False, False, False],
        [False, True, True],
        next_observations=np.array([[1.0], [2.0], [8.0]]),
    )
    assert data.observations[:, 0].tolist() == [0, 1, 2, 7, 8]
    assert data.offsets.tolist() == [0, 2, 3]


def test_arrays_without_an_action_space() -> None:
    flags = {"rewards": [0, 0], "terminated": [False, True], "truncated": [False, False]}
    assert from_arrays(np.zeros((3, 2)), [0, 3], **flags).action_space == spaces.Discrete(4)
    with pytest.raises(
        DataError, match=r"expected actions in \[-1, 1\], got \[0, 2\]; give action_bounds or the action_space"
    ):
        from_arrays(np.zeros((3, 2)), np.array([[0.0], [2.0]]), **flags)
    with pytest.raises(DataError, match=r"got T \(2\)"):
        from_arrays(np.zeros((2, 2)), [0, 3], **flags)


def test_arrays_of_dict_and_image_observations() -> None:
    images = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 3), dtype=np.uint8)
    data = from_arrays({"camera": images, "speed": np.ones((3, 1))}, [0, 1], [0, 0], [False, True], [False, False])
    assert isinstance(data.observation_space, spaces.Dict)
    assert data.observations["camera"].dtype == np.uint8
    assert data.spec().observation_mean is None
    with pytest.raises(DataError, match=r"expected finite observations\['speed'\], got nan at episode 0, step 1"):
        replace(data, observations={**data.observations, "speed": np.array([[0], [np.nan], [0]])})


def test_episodes_whose_raw_space_is_left_out_are_joined_with_others_of_that_space() -> None:
    whole = make()
    stated = replace(whole, raw_observation_space=whole.observation_space)
    for one, other in ((whole, stated), (stated, whole)):
        assert len(one.concat(other)) == 6
    with pytest.raises(DataError, match="expected raw_observation_space"):
        whole.concat(replace(whole, raw_observation_space=spaces.Box(-7, 7, (9,))))
