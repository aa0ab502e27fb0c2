"""The action that is stored is the one that was executed, whatever the type of the environment's Box."""

from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from pettingzoo import ParallelEnv

from herdbook.core.actor import Actor
from herdbook.core.joint.actor import JointActor
from herdbook.core.joint.random_policy import JointRandomPolicy
from herdbook.core.joint.runner import JointRunner
from herdbook.core.random import generator
from herdbook.core.random_policy import RandomPolicy
from herdbook.core.runner import VectorRunner, fixed_episodes
from herdbook.core.spaces import check_action_space, executed, flat_action_space, raw_actions
from herdbook.core.specs import spec_from_state, spec_state
from herdbook.evaluation.evaluate import evaluate
from herdbook.experiments.single_agent import SingleAgent

WHOLE = spaces.Box(-3, 7, (2,), np.int64)
FINE = spaces.Box(-0.1, 0.1, (2, 1), np.float64)
HALF = spaces.Box(-1, 1, (2,), np.float16)
LAST = spaces.Box(-np.inf, np.inf, (2,), np.float32)


class Echo(gymnasium.Env[Any, Any]):
    """The next observation is the executed action, which must be in the space."""

    def __init__(self, space: spaces.Box) -> None:
        self.observation_space, self.action_space = LAST, space

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action!r} outside {self.action_space}"
        self.t += 1
        return action.reshape(-1).astype(np.float32), 0.0, False, self.t == 20, {}


class EchoGame(ParallelEnv):
    """`Echo` for agents with different spaces."""

    metadata: ClassVar[dict[str, Any]] = {"name": "echo_v0"}
    boxes: ClassVar[dict[str, spaces.Box]] = {
        "whole": WHOLE,
        "fine": FINE,
        "same": spaces.Box(-0.1, 0.1, (2, 1), np.float32),
    }

    def __init__(self) -> None:
        self.possible_agents = list(self.boxes)

    def observation_space(self, agent: str) -> Any:
        return LAST

    def action_space(self, agent: str) -> Any:
        return self.boxes[agent]

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.t, self.agents = 0, list(self.possible_agents)
        return {agent: np.zeros(2, np.float32) for agent in self.agents}, {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, Any]) -> Any:
        for agent, action in actions.items():
            assert self.action_space(agent).contains(action), (agent, action)
        self.t += 1
        acted, over = self.agents, self.t == 20
        self.agents = [] if over else acted
        seen = {agent: actions[agent].reshape(-1).astype(np.float32) for agent in acted}
        return (
            seen,
            dict.fromkeys(acted, 0.0),
            dict.fromkeys(acted, False),
            dict.fromkeys(acted, over),
            {a: {} for a in acted},
        )


@pytest.mark.parametrize("space", [WHOLE, FINE, HALF])
def test_one_agents_stored_actions_are_the_executed_ones(space: spaces.Box) -> None:
    played = evaluate(RandomPolicy(space), lambda: Echo(space), 3, seed=0)
    np.testing.assert_array_equal(played.actions, played.observations[played.step_rows + 1])


def test_many_agents_stored_actions_are_the_executed_ones() -> None:
    runner = JointRunner(EchoGame, 2)
    played = runner.run(JointRandomPolicy(runner.spec), range(3), generator(0))
    for episode in played.episodes:
        assert episode is not None
        for kind in runner.spec.kinds:
            np.testing.assert_array_equal(episode.actions[kind.name], episode.observations[kind.name][1:])


def test_agents_act_in_the_type_and_the_bounds_of_their_own_spaces() -> None:
    runner = JointRunner(EchoGame, 1)
    actor = JointActor(JointRandomPolicy(runner.spec), runner.spec, generator=generator(0))
    chosen = actor.act({agent: np.zeros(2, np.float32) for agent in EchoGame.boxes})
    assert all(EchoGame.boxes[agent].contains(action) for agent, action in chosen.items())


def test_every_integer_has_the_same_share_of_uniform_actions() -> None:
    played = evaluate(RandomPolicy(WHOLE), lambda: Echo(WHOLE), 500, seed=0)
    _, counts = np.unique(played.actions, return_counts=True)
    assert len(counts) == 11
    np.testing.assert_allclose(counts / counts.sum(), 1 / 11, atol=0.01)


@pytest.mark.parametrize(
    ("value", "integer"), [(-3, -3), (7, 7), (6.3, 7), (-2.3, -3), (2, 2), (2.4, 2), (99, 7), (-99, -3)]
)
def test_the_nearest_part_of_the_range_is_the_integer(value: float, integer: int) -> None:
    assert raw_actions(WHOLE, np.float32([value, value])).tolist() == [integer, integer]


@pytest.mark.parametrize("high", [1, 2, 10, 255, 10_000, 2**24])
def test_integers_are_executed_as_they_are(high: int) -> None:
    space, values = spaces.Box(0, high, (1,), np.int32), np.unique(np.linspace(0, high, 5001).astype(np.int64))
    assert raw_actions(space, values[:, None].astype(np.float32))[:, 0].tolist() == values.tolist()


def test_bounds_that_float32_cannot_hold_are_kept() -> None:
    bound = flat_action_space(FINE)
    assert isinstance(bound, spaces.Box) and bound.high[0] > FINE.high[0, 0]
    assert FINE.contains(raw_actions(FINE, bound.high)) and FINE.contains(raw_actions(FINE, bound.low))
    np.testing.assert_array_equal(executed(FINE, bound.high), bound.high)  # the nearest float32


def test_an_integer_box_without_bounds_is_unbounded() -> None:
    space = spaces.Box(0, np.inf, (1,), np.int64)
    with pytest.raises(ValueError, match="expected bounded actions"):
        check_action_space(flat_action_space(space), "box", "sac")


def test_what_a_replayed_episode_executes_is_what_it_executed_before() -> None:
    runner = VectorRunner(lambda: Echo(WHOLE), 1, fixed_episodes(1, 0))
    policy, noise = RandomPolicy(WHOLE), generator(0)
    for _ in range(5):
        stepped = runner.step(policy, noise)
    lost: list[Exception] = []
    again = VectorRunner(lambda: Echo(WHOLE), 1, fixed_episodes(1, 0), on_failure=lost.append)
    again.load_state_dict(runner.state_dict())
    assert not lost
    np.testing.assert_array_equal(again._observations, stepped.played.next_observations)


def test_an_actor_acts_in_the_environments_own_space() -> None:
    spec = SingleAgent().environment_spec(lambda: Echo(WHOLE))
    spec = spec_from_state(spec_state(spec))
    actor = Actor(RandomPolicy(spec.action_space), spec, generator=generator(0))
    for _ in range(5):
        action = actor.act(np.zeros(2, np.float32))
        assert WHOLE.contains(action)
        assert actor._previous[0].tolist() == action.tolist()
