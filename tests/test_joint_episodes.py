"""`JointEpisodes`: layout, validation and what it offers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from herdbook.core.environments import EnvironmentSpec, ReferenceScores
from herdbook.core.joint.types import JointEpisode, JointSpec
from herdbook.datasets.episodes import DataError
from herdbook.datasets.joint.episodes import JointEpisodes

AGENTS = ("walker_0", "rover", "walker_1")  # two kinds, whose agents are not one after the other
SPEC = JointSpec(
    agents=AGENTS,
    observation_spaces={
        "walker_0": spaces.Box(-np.inf, np.inf, (2,), np.float32),
        "rover": spaces.Discrete(4),
        "walker_1": spaces.Box(-np.inf, np.inf, (2,), np.float32),
    },
    action_spaces={
        "walker_0": spaces.Discrete(3, start=1),
        "rover": spaces.Box(0.5, 2, (1,), np.float32),  # zero is outside both spaces
        "walker_1": spaces.Discrete(3, start=1),
    },
    state_space=spaces.Box(-np.inf, np.inf, (5,), np.float32),
    masked=True,
)
WALKERS, ROVER = [0, 2], [1]


def play(alive: Any, ends: str = "truncated", seed: int = 0) -> JointEpisode:
    """An episode in which `alive` `[T, N]` act; each agent ends at its last step, as `ends` says."""
    acts = np.asarray(alive, dtype=bool)
    length, generator = len(acts), np.random.default_rng(seed)
    rows = np.concatenate([acts, np.zeros((1, 3), bool)])
    present = rows.copy()
    present[1:] |= acts
    last = (np.arange(length)[:, None] == [np.flatnonzero(column).max(initial=-1) for column in acts.T]) & acts
    mask = generator.integers(0, 2, (length + 1, 2, 3)).astype(bool)
    choices = generator.integers(1, 4, (length, 2))
    np.put_along_axis(mask[:-1], (choices - 1)[..., None], True, -1)
    mask[-1] = True
    return JointEpisode(
        observations={
            "walker_0": generator.normal(size=(length + 1, 2, 2)).astype(np.float32) * present[:, WALKERS, None],
            "rover": generator.integers(0, 4, (length + 1, 1)) * present[:, ROVER],
        },
        actions={
            "walker_0": choices * acts[:, WALKERS],
            "rover": generator.uniform(0.5, 2, (length, 1, 1)).astype(np.float32) * acts[:, ROVER, None],
        },
        rewards=generator.normal(size=(length, 3)) * acts,
        terminated=last & (ends == "terminated"),
        truncated=last & (ends == "truncated"),
        alive=rows,
        action_mask={"walker_0": mask | ~rows[:, WALKERS, None]},
        state=generator.normal(size=(length + 1, 5)).astype(np.float32),
        metadata={"seed": seed},
    )


FULL = ((1, 1, 1),) * 3
EARLY = ((1, 1, 1), (0, 1, 1))  # walker_0 leaves after its first step
LATE = ((1, 0, 1), (1, 1, 1))  # the rover joins at step 1


def make(**fields: Any) -> JointEpisodes:
    """Three episodes of 3, 2 and 2 steps."""
    episodes = [play(FULL, seed=0), play(EARLY, "terminated", seed=1), play(LATE, seed=2)]
    return JointEpisodes.from_episodes(episodes, SPEC, source="mine", **fields)


def changed(field: str, index: Any, value: Any, kind: str | None = None) -> JointEpisodes:
    """`make()` with one value replaced."""
    data = make()
    tree = getattr(data, field)
    array = (tree if kind is None else tree[kind]).copy()
    array[index] = value
    return replace(data, **{field: array if kind is None else {**tree, kind: array}})


def test_t_plus_one_alignment() -> None:
    """Step t of episode e reads rows t+e and t+e+1, whatever came before."""
    data = make()
    assert (len(data), data.num_steps, data.lengths().tolist()) == (3, 7, [3, 2, 2])
    assert data.step_rows.tolist() == [0, 1, 2, 4, 5, 7, 8]
    assert len(data.alive) == len(data.observations["rover"]) == len(data.state) == 10
    one = play(EARLY, "terminated", seed=1)
    np.testing.assert_array_equal(data.observations["walker_0"][data.step_rows[3:5]], one.observations["walker_0"][:-1])
    np.testing.assert_array_equal(data.observations["walker_0"][data.step_rows[4] + 1], one.observations["walker_0"][2])


def test_a_return_is_the_sum_over_the_agents() -> None:
    data = make()
    data = replace(data, rewards=np.arange(21.0).reshape(7, 3))
    assert data.agent_returns().tolist() == [[9, 12, 15], [21, 23, 25], [33, 35, 37]]
    assert data.returns().tolist() == [36, 69, 105]


def test_single_episodes_come_back_as_they_were() -> None:
    data = make()
    for number, original in enumerate((play(FULL, seed=0), play(EARLY, "terminated", seed=1), play(LATE, seed=2))):
        one = data.episode(number)
        assert one.metadata == {"seed": number} and len(one) == len(original)
        for name in ("rewards", "terminated", "truncated", "alive", "state"):
            np.testing.assert_array_equal(getattr(one, name), getattr(original, name))
        for kind in ("walker_0", "rover"):
            np.testing.assert_array_equal(one.observations[kind], original.observations[kind])
        np.testing.assert_array_equal(one.action_mask["walker_0"], original.action_mask["walker_0"])
        assert np.shares_memory(one.rewards, data.rewards)
    again = JointEpisodes.from_episodes([data.episode(i) for i in range(3)], SPEC)
    assert again.fingerprint() == data.fingerprint()
    with pytest.raises(IndexError, match=r"expected an episode in \[0, 2\], got 3"):
        data.episode(3)


def test_values_are_cast_once_at_the_door_and_kept_where_they_fit() -> None:
    data = make()
    assert data.actions["walker_0"].dtype == np.int64 and data.actions["rover"].dtype == np.float32
    again = replace(data, source="copy")
    for name in ("rewards", "alive", "state"):
        assert getattr(again, name) is getattr(data, name)
    assert again.observations["rover"] is data.observations["rover"]
    wide = replace(data, state=data.state.astype(np.float64), rewards=data.rewards.astype(np.float32))
    assert (wide.state.dtype, wide.rewards.dtype) == (np.float32, np.float64)


def test_an_idle_discrete_action_is_the_first_of_its_space() -> None:
    """Zero, which an absent agent has, need not be an action that can be looked up."""
    actions = make().actions["walker_0"]
    assert actions[4, 0] == 1 and actions.min() == 1
    one = play(EARLY, "terminated", seed=1)
    one.actions["walker_0"][1, 0] = 1  # as rollouts record it
    assert JointEpisodes.from_episodes([one], SPEC).actions["walker_0"][1, 0] == 1


@pytest.mark.parametrize(
    ("field", "kind", "index", "value", "message"),
    [
        (
            "observations",
            "walker_0",
            (5, 1, 0),
            np.nan,
            "finite observations of walker_1, got nan at episode 1, step 1",
        ),
        (
            "observations",
            "walker_0",
            (9, 0, 1),
            np.inf,
            "finite observations of walker_0, got inf at episode 2, step 2",
        ),
        ("observations", "rover", (4, 0), 4, r"observations of rover in \[0, 3\] .* first at episode 1, step 0"),
        ("actions", "rover", (3, 0, 0), np.nan, "finite actions of rover, got nan at episode 1, step 0"),
        ("actions", "rover", (2, 0, 0), 2.5, r"actions of rover in \[0.5, 2\], got .* first at episode 0, step 2"),
        ("actions", "walker_0", (6, 1), 4, r"actions of walker_1 in \[1, 3\] .* first at episode 2, step 1"),
        ("rewards", None, (1, 2), -np.inf, "finite rewards of walker_1, got -inf at episode 0, step 1"),
        ("state", None, (6, 4), np.nan, "finite state, got nan at episode 1, step 2"),
        (
            "action_mask",
            "walker_0",
            (8, 1),
            False,
            "a legal action in action_mask of walker_1 at .* 2, step 1",
        ),
        ("alive", None, (6, 1), True, "no agent to act at the last row of episode 1, .* but rover is alive there"),
        ("alive", None, (1, slice(None)), False, "an agent that acts, got none at episode 0, step 1"),
        ("observations", "walker_0", (6, 0, 1), 9, "0 as observations of walker_0 at episode 1, step 2, .* got 9"),
        ("observations", "rover", (7, 0), 2, "0 as observations of rover at episode 2, step 0, .* got 2"),
        ("actions", "rover", (5, 0, 0), 1, "0 as actions of rover at episode 2, step 0, an absent agent, got 1"),
        ("actions", "walker_0", (4, 0), 3, "1 as actions of walker_0 at episode 1, step 1, an absent agent, got 3"),
    ],
)
def test_bad_values_name_field_agent_episode_and_step(
    field: str, kind: str | None, index: Any, value: Any, message: str
) -> None:
    with pytest.raises(DataError, match=f"mine: expected {message}"):
        changed(field, index, value, kind)


def test_an_action_that_the_mask_forbids() -> None:
    data = make()
    step, row = 6, data.step_rows[6]
    choice = data.actions["walker_0"][step, 1]
    mask = data.action_mask["walker_0"].copy()
    mask[row, 1] = True
    mask[row, 1, choice - 1] = False
    with pytest.raises(
        DataError, match=f"actions of walker_1 that action_mask allows, got {choice} at episode 2, step 1"
    ):
        replace(data, action_mask={"walker_0": mask})


def test_the_legal_actions_of_who_does_not_act_are_not_asked() -> None:
    """Those of a final observation, from which a truncated agent's value is bootstrapped."""
    data = changed("action_mask", (5, 0), [False, True, False], "walker_0")
    assert data.actions["walker_0"][4, 0] == 1 and data.action_mask is not None
    assert data.action_mask["walker_0"][5, 0].tolist() == [False, True, False]


@pytest.mark.parametrize("flag", ["terminated", "truncated"])
def test_an_agent_that_acts_after_its_end(flag: str) -> None:
    with pytest.raises(
        DataError, match=f"walker_1 acts after its end: it is {flag} at episode 1, step 0, and acts last at step 1"
    ):
        changed(flag, (3, 2), True)


def test_an_agent_that_ends_where_it_does_not_act() -> None:
    with pytest.raises(DataError, match="walker_0 ends where it does not act: .* episode 1, step 1, .* at step 0"):
        changed("terminated", (4, 0), True)


@pytest.mark.parametrize(
    ("field", "kind", "value", "message"),
    [
        ("terminated", None, 2, r"mine: expected terminated of rover as booleans .*, got 2.0 at episode 1, step 1"),
        ("alive", None, 0.5, r"mine: expected alive of rover as booleans .*, got 0.5 at episode 1, step 0"),
        (
            "actions",
            "walker_0",
            1.5,
            "mine: expected actions of walker_1 as whole numbers, got 1.5 at episode 1, step 1",
        ),
    ],
)
def test_values_that_a_field_cannot_hold_name_their_agent(
    field: str, kind: str | None, value: Any, message: str
) -> None:
    data = make()
    tree = getattr(data, field)
    array = (tree if kind is None else tree[kind]).astype(float)
    array[4, 1] = value
    with pytest.raises(DataError, match=message):
        replace(data, **{field: array if kind is None else {**tree, kind: array}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"observations": {"rover": np.zeros((2, 1))}},
            r"T\+1 = 3 rows of observations\['rover'\] .* 1, got 2",
        ),
        ({"actions": {"rover": np.zeros((3, 1, 1))}}, r"T = 2 rows of actions\['rover'\] .* of episode 1, got 3"),
        ({"terminated": np.zeros((1, 3), bool)}, "T = 2 rows of terminated for the T = 2 rewards of episode 1, got 1"),
        ({"state": np.zeros((2, 5))}, r"T\+1 = 3 rows of state for the T = 2 rewards of episode 1, got 2"),
        ({"alive": np.ones((2, 3), bool)}, r"T\+1 = 3 rows of alive for the T = 2 rewards of episode 1, got 2"),
        ({"state": None}, "state in every episode or in none, got none in episode 1"),
        ({"action_mask": None}, "action_mask in every episode or in none, got none in episode 1"),
        ({"state": np.zeros((3, 4))}, "state of the same form in every episode"),
    ],
)
def test_episodes_whose_lengths_or_parts_disagree_are_named(change: dict[str, Any], message: str) -> None:
    episodes = [play(FULL), replace(play(EARLY), **change)]
    with pytest.raises(DataError, match=f"mine: expected {message}"):
        JointEpisodes.from_episodes(episodes, SPEC, source="mine")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: {"rewards": d.rewards[:-1]}, "rewards for 7 steps .* got 6"),
        (lambda d: {"state": d.state[:7]}, r"T\+1 observations for T actions \(10 rows of state .* got T \(7\)"),
        (lambda d: {"alive": d.alive[:-1]}, r"T\+1 observations for T actions \(10 rows of alive .* got 9"),
        (lambda d: {"rewards": d.rewards[:, :2]}, r"rewards of 3 agents in each row, got shape \(7, 2\)"),
        (
            lambda d: {"actions": {**d.actions, "rover": d.actions["rover"][..., 0]}},
            r"actions\['rover'\] of shape \(1, 1\) .* got \(1,\)",
        ),
        (
            lambda d: {"observations": {**d.observations, "walker_0": d.observations["walker_0"][:, :1]}},
            r"observations\['walker_0'\] of shape \(2, 2\) .* got \(1, 2\)",
        ),
        (lambda d: {"observations": {"rover": d.observations["rover"]}}, r"observations by kind, .* got \['rover'\]"),
        (lambda d: {"action_mask": None}, r"an action_mask \(spec.masked\), got none"),
        (
            lambda d: {"action_mask": {"walker_0": d.action_mask["walker_0"][..., :2]}},
            r"action_mask.* of shape \(2, 3\) .* got \(2, 2\)",
        ),
        (lambda d: {"spec": replace(SPEC, masked=False)}, r"no action_mask \(spec.masked is False\), got one"),
        (lambda d: {"spec": replace(SPEC, state_space=None)}, r"no state \(spec.state_space is None\), got one"),
        (lambda d: {"episode_metadata": ({},)}, "metadata for 3 episodes or none, got 1"),
    ],
)
def test_arrays_that_do_not_fit_the_spec(change: Callable[[Any], dict[str, Any]], message: str) -> None:
    data = make()
    with pytest.raises(DataError, match=f"mine: expected {message}"):
        replace(data, **change(data))


def test_empty_data() -> None:
    with pytest.raises(DataError, match=r"mine: the dataset is empty \(0 episodes\)"):
        JointEpisodes.from_episodes([], SPEC, source="mine")
    with pytest.raises(DataError, match="episode 1 has 0 steps"):
        JointEpisodes.from_episodes([play(FULL), play(np.zeros((0, 3)))], SPEC)
    data = make()
    with pytest.raises(DataError, match="the dataset is empty"):
        data.filter(data.returns() > 1e9)


def test_an_agent_that_ends_with_neither_flag_counts_as_truncated(caplog: pytest.LogCaptureFixture) -> None:
    """Where it leaves, not where the episode ends."""
    data = make()
    with caplog.at_level(logging.WARNING, "herdbook"):
        data = replace(data, terminated=np.zeros((7, 3), bool))
    assert "mine: in 1 of 3 episodes agents end with neither flag" in caplog.text
    assert data.truncated[3:5].tolist() == [[True, False, False], [False, True, True]]
    assert not data.terminated_for_all().any()


def test_who_never_acts_may_get_rewards_and_an_end() -> None:
    """In a game that is over before its first turn, or before anybody's."""
    last_to_move = play(((1, 0, 1),), "terminated")
    last_to_move.terminated[0, 1] = True
    last_to_move.rewards[0, 1] = -1
    last_to_move.observations["rover"][0, 0] = 3
    over_at_once = play(((0, 0, 0),))
    over_at_once.truncated[0] = True
    data = JointEpisodes.from_episodes([last_to_move, over_at_once], SPEC)
    assert data.agent_returns()[0, 1] == -1
    assert data.terminated_for_all().tolist() == [True, False]


@pytest.mark.parametrize(
    ("terminated", "truncated", "alive", "expected"),
    [
        ((1, 1, 1), (0, 0, 0), (1, 1, 1), True),
        ((1, 1, 0), (0, 0, 1), (1, 1, 1), False),  # one was only cut off
        ((1, 0, 0), (0, 0, 0), (1, 0, 0), True),  # the others left before
        ((0, 0, 0), (0, 1, 0), (0, 1, 0), False),
        ((0, 0, 0), (0, 0, 0), (0, 0, 0), False),  # all([]) is True
        ((1, 1, 1), (0, 0, 0), (0, 0, 0), True),  # over before anyone could act
        ((1, 0, 0), (0, 1, 0), (1, 0, 0), False),  # one who never acted was cut off
    ],
)
def test_an_episode_is_over_when_it_is_for_everyone_who_was_left(
    terminated: Any, truncated: Any, alive: Any, expected: bool
) -> None:
    one = play((alive,), ends="")
    one.terminated[0], one.truncated[0] = terminated, truncated
    assert JointEpisodes.from_episodes([one], SPEC).terminated_for_all().tolist() == [expected]


@pytest.mark.parametrize("seed", range(4))
def test_select_split_filter_and_concat_agree(seed: int) -> None:
    """Random episodes in any order carry their own rows, flags and metadata."""
    generator = np.random.default_rng(seed)
    shapes = [(FULL, EARLY, LATE)[i] for i in generator.integers(0, 3, 8)]
    data = JointEpisodes.from_episodes([play(alive, seed=e) for e, alive in enumerate(shapes)], SPEC)
    order = generator.permutation(8)
    chosen = data.select(order)
    for place, number in enumerate(order):
        one = JointEpisodes.from_episodes([chosen.episode(place)], SPEC)
        assert one.fingerprint() == data.select([int(number)]).fingerprint()
        assert one.episode_metadata == ({"seed": number},)
    first, rest = data.split(0.3, generator)
    assert (len(first), len(rest)) == (2, 6)
    assert sorted(m["seed"] for m in (*first.episode_metadata, *rest.episode_metadata)) == list(range(8))
    first, rest = data.split(0.3)
    assert first.concat(rest).fingerprint() == data.fingerprint()
    assert first.concat(rest).episode_metadata == data.episode_metadata
    long = data.filter(data.lengths() > 2)
    assert data.filter(lambda episode: len(episode) > 2).fingerprint() == long.fingerprint()
    with pytest.raises(IndexError, match=r"expected episodes in \[0, 7\], got -1 to 0"):
        data.select([0, -1])
    with pytest.raises(ValueError, match=r"expected a fraction in \(0, 1\)"):
        data.split(1.0)
    with pytest.raises(ValueError, match="expected 8 booleans"):
        data.filter([True])


def test_concat_keeps_what_all_agree_on_and_refuses_other_tasks() -> None:
    spread = EnvironmentSpec(id="mpe2/simple_spread_v3", kwargs={"max_cycles": 25})
    scores = ReferenceScores(-80, -20, "ours")
    one = make(environment=spread, packages={"mpe2": "1.1.1"}, reference_scores=scores)
    other = replace(one, source="other")
    both = one.concat(other)
    assert (both.environment, both.packages, both.reference_scores) == (spread, {"mpe2": "1.1.1"}, scores)
    assert both.source == "mine + other"
    newer = replace(one, packages={"mpe2": "1.2.0"})
    assert one.concat(newer).packages == {} and one.concat(newer).environment == spread
    with pytest.raises(DataError, match="other: expected JointSpec.* as in mine, got"):
        one.concat(replace(other, spec=replace(SPEC, turn_based=True)))
    with pytest.raises(DataError, match="other: expected the global state if and only if mine has it"):
        one.concat(replace(other, state=None))


def test_the_fingerprint_changes_when_one_value_changes() -> None:
    data = make()
    seen = {data.fingerprint()}
    for field, index, value, kind in (
        ("observations", (8, 0, 1), 1e-30, "walker_0"),
        ("actions", (0, 0, 0), 1.25, "rover"),
        ("rewards", (0, 0), 1e-15, None),
        ("terminated", (2, 0), True, None),
        ("truncated", (4, 1), True, None),
        ("state", (0, 0), 1e-30, None),
        ("action_mask", (3, 0, 0), False, "walker_0"),
    ):
        tree = getattr(data, field)
        array = (tree if kind is None else tree[kind]).copy()
        array[index] = value
        seen.add(replace(data, **{field: array if kind is None else {**tree, kind: array}}).fingerprint())
    seen.add(replace(data, state=None).fingerprint())
    seen.add(replace(data, spec=replace(SPEC, turn_based=True)).fingerprint())
    names = {agent: agent.replace("walker", "runner") for agent in AGENTS}
    renamed = JointSpec(
        agents=tuple(names.values()),
        observation_spaces={names[a]: space for a, space in SPEC.observation_spaces.items()},
        action_spaces={names[a]: space for a, space in SPEC.action_spaces.items()},
        state_space=SPEC.state_space,
        masked=True,
    )
    by_kind = {
        field: {names[kind]: leaf for kind, leaf in getattr(data, field).items()}
        for field in ("observations", "actions", "action_mask")
    }
    seen.add(replace(data, spec=renamed, **by_kind).fingerprint())
    assert len(seen) == 11
    assert replace(data, source="elsewhere", packages={"a": "1"}).fingerprint() == data.fingerprint()


def test_statistics_name_the_teams_return_and_each_agents() -> None:
    numbers = replace(make(), rewards=np.arange(21.0).reshape(7, 3)).statistics()
    assert (numbers["episodes"], numbers["steps"], numbers["agents"]) == (3, 7, 3)
    assert (numbers["team_return_mean"], numbers["team_return_max"]) == (70, 105)
    assert numbers["return_mean/walker_0"] == 21 and numbers["return_mean/walker_1"] == pytest.approx(77 / 3)
    assert (numbers["team_reward_mean"], numbers["team_reward_min"], numbers["team_reward_max"]) == (30, 3, 57)
    assert numbers["agents_acting_mean"] == pytest.approx(19 / 7)
    assert (numbers["terminated_episodes"], numbers["truncated_episodes"]) == (1, 2)
    assert all(type(value) is float for value in numbers.values())


def test_bytes_are_those_of_all_arrays() -> None:
    data = make()
    walkers, rover = 10 * 2 * 2 * 4 + 7 * 2 * 8 + 10 * 2 * 3, 10 * 8 + 7 * 4
    assert data.nbytes == walkers + rover + 7 * 3 * (8 + 1 + 1) + 10 * 3 + 10 * 5 * 4 + 4 * 8
