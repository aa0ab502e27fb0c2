"""Whole episodes of many agents: what is recorded is what a plain loop over the environment's own API sees."""

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from mpe2 import simple_spread_v3, simple_tag_v3
from pettingzoo import AECEnv, ParallelEnv

from herdbook.core.environments import EnvironmentUnavailable
from herdbook.core.joint.games import IllegalAction
from herdbook.core.joint.random_policy import JointRandomPolicy
from herdbook.core.joint.rounds import in_rounds
from herdbook.core.joint.runner import JointRunner
from herdbook.core.joint.types import JointEpisode, JointSpec
from herdbook.core.random import generator
from herdbook.core.runner import EnvironmentFailed, PolicyFailed
from herdbook.core.types import Carry, Step

BOX = spaces.Box(-np.inf, np.inf, (3,), np.float64)
TEAM = tuple(f"agent_{i}" for i in range(11))


class Crowd(ParallelEnv):
    """Eleven agents of two kinds. Everything is a function of the seed and the step.

    Agents 8, 9 and 10 join at step 2, 3 and 4. Agent i leaves at step 3 + 7i, terminated if i is even and cut off if it
    is odd; at step 9 + seed mod 80 those who are left are cut off, all but the first two of them by a flag.
    """

    metadata: ClassVar[dict[str, Any]] = {"name": "crowd_v0"}

    def __init__(self) -> None:
        self.possible_agents = list(TEAM)

    def observation_space(self, agent: str) -> Any:
        return BOX

    def action_space(self, agent: str) -> Any:
        return spaces.Discrete(4) if agent in TEAM[3:] else spaces.Discrete(5, start=1)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        assert type(seed) is int
        self.seed, self.t, self.agents = seed, 0, list(TEAM[:8])
        return self._look(self.agents), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, int]) -> Any:
        assert list(actions) == self.agents
        self.t += 1
        acted, over = self.agents, self.t >= 9 + self.seed % 80
        out = [agent for agent in acted if self.t == 3 + 7 * TEAM.index(agent)]
        joining = [TEAM[6 + self.t]] if self.t in (2, 3, 4) else []
        self.agents = [] if over else [agent for agent in acted if agent not in out] + joining
        involved = acted + (joining if self.agents else [])
        left = [agent for agent in acted if agent not in out]
        return (
            self._look(involved),
            {agent: actions.get(agent, 0) + self.t / 8 + TEAM.index(agent) / 64 for agent in acted},
            {agent: agent in out and TEAM.index(agent) % 2 == 0 for agent in involved},
            {a: (a in out and TEAM.index(a) % 2 == 1) or (over and a in left[2:]) for a in involved},
            {agent: {} for agent in involved},
        )

    def state(self) -> Any:
        return np.array([self.seed, self.t, len(self.agents)])

    def _look(self, agents: list[str]) -> dict[str, Any]:
        return {agent: np.array([self.seed, self.t, TEAM.index(agent)], np.float64) for agent in agents}


class Picking:
    """The n-th legal action, or a point of the box, n and the point being functions of what the agent sees."""

    def __init__(self, spec: JointSpec) -> None:
        self.spec = spec
        self.seen: list[Step] = []

    def initial(self, num_envs: int) -> Carry:
        return torch.zeros(num_envs)

    def __call__(self, step: Step, carry: Carry, generator: torch.Generator | None = None) -> tuple[Any, Carry]:
        self.seen.append(step)
        carry = torch.where(step.reset, 0, carry) + 1
        actions = {}
        for kind in self.spec.kinds:
            observations = step.observations[kind.name]
            mask = None if step.action_mask is None else step.action_mask[kind.name]
            chosen = [
                [
                    pick(kind.action_space, seen.numpy(), None if mask is None else mask[lane, i].numpy())
                    for i, seen in enumerate(row)
                ]
                for lane, row in enumerate(observations)
            ]
            actions[kind.name] = torch.as_tensor(np.array(chosen))
        return actions, carry

    def distribution(self, step: Step, carry: Carry) -> tuple[Any, Carry]:
        raise NotImplementedError  # of the protocol; a runner never asks for it


def pick(space: Any, observation: Any, mask: Any = None) -> Any:
    number = int(np.abs(np.asarray(observation, np.float32)).sum() * 7)
    if isinstance(space, spaces.Box):
        return np.resize(np.float32([np.sin(number), np.cos(number), 5.0]), space.shape)
    legal = np.arange(space.n) if mask is None or not np.any(mask) else np.flatnonzero(mask)
    return int(space.start + legal[number % len(legal)])


class Record:
    """What happened to each agent, row by row."""

    def __init__(self) -> None:
        self.observations: dict[str, dict[int, Any]] = {}
        self.actions: dict[str, dict[int, Any]] = {}
        self.rewards: dict[str, dict[int, float]] = {}
        self.ended: dict[str, tuple[int, str]] = {}
        self.length = 0


def parallel_loop(env: Any, seed: int, choose: Callable[[str, Any], Any], most: int = 10_000) -> Record:
    """A plain loop over the parallel API. Who leaves without a flag is cut off."""
    record = Record()
    seen, _ = env.reset(seed=seed)
    for t in range(most):
        acting = list(env.agents)
        for agent in acting:
            record.observations.setdefault(agent, {})[t] = seen[agent]
        actions = {agent: choose(agent, seen[agent]) for agent in acting}
        seen, rewards, terminated, _, _ = env.step(actions)
        for agent in acting:
            record.actions.setdefault(agent, {})[t] = actions[agent]
            record.rewards.setdefault(agent, {})[t] = rewards[agent]
            if terminated[agent] or agent not in env.agents or t == most - 1:
                record.ended[agent] = t, "terminated" if terminated[agent] else "truncated"
                record.observations[agent][t + 1] = seen[agent]
        record.length = t + 1
        if not env.agents:
            break
    return record


def turn_loop(env: Any, seed: int, choose: Callable[[str, Any], Any]) -> Record:
    """A plain loop over the AEC API; row k of an agent is its k-th turn."""
    record, owed = Record(), {}
    env.reset(seed=seed)
    for agent in env.agent_iter():
        observation, reward, terminated, truncated, _ = env.last()
        row = len(record.actions.get(agent, {}))
        record.observations.setdefault(agent, {})[row] = observation
        if row:
            record.rewards[agent][row - 1] += reward
        else:
            owed[agent] = reward
        if terminated or truncated:
            env.step(None)
            record.ended[agent] = max(row - 1, 0), "terminated" if terminated else "truncated"
            continue
        action = choose(agent, observation)
        record.actions.setdefault(agent, {})[row] = action
        record.rewards.setdefault(agent, {})[row] = owed.pop(agent, 0.0)
        env.step(action)
        record.length = max(record.length, row + 1)
    return record


def assert_same(episode: JointEpisode | None, spec: JointSpec, record: Record) -> None:
    """Every cell of an episode, those of absent agents included."""
    assert episode is not None
    assert len(episode) == record.length
    for kind in spec.kinds:
        for i, agent in enumerate(kind.agents):
            number = spec.index[agent]
            looks, actions = record.observations.get(agent, {}), record.actions.get(agent, {})
            for t in range(record.length + 1):
                given, mask = looks.get(t, np.zeros(1)), np.ones(1)
                if isinstance(given, dict):
                    given, mask = given["observation"], given["action_mask"]
                row = episode.observations[kind.name][t, i]
                assert np.array_equal(row, np.broadcast_to(np.float32(given).reshape(-1), row.shape)), (agent, t)
                assert episode.alive[t, number] == (t in actions), (agent, t)
                if episode.action_mask is not None:
                    legal = episode.action_mask[kind.name][t, i]
                    assert (legal == (np.bool_(mask) | ~np.any(mask))).all(), (agent, t)
            for t in range(record.length):
                nothing = getattr(kind.action_space, "start", 0.0)
                assert np.array_equal(episode.actions[kind.name][t, i], actions.get(t, nothing)), (agent, t)
                assert episode.rewards[t, number] == record.rewards.get(agent, {}).get(t, 0.0), (agent, t)
                for flag in ("terminated", "truncated"):
                    expected = record.ended.get(agent) == (t, flag)
                    assert getattr(episode, flag)[t, number] == expected, (agent, t, flag)


# Nothing is lost


@pytest.mark.parametrize("num_envs", [1, 3, 20])
def test_eleven_agents_that_die_join_and_are_cut_off_singly(num_envs: int) -> None:
    """No step, reward or final observation is lost, whichever lane plays an episode and however long the others are."""
    runner, seeds = JointRunner(Crowd, num_envs), [3, 90, 41, 0, 7, 160, 12, 79]
    assert runner.spec.agents == TEAM
    assert [len(kind.agents) for kind in runner.spec.kinds] == [3, 8]
    played = runner.run(Picking(runner.spec), seeds)
    assert played.failures == []
    for seed, episode in zip(seeds, played.episodes, strict=True):
        env = Crowd()
        record = parallel_loop(env, seed, lambda a, seen, env=env: pick(env.action_space(a), seen))
        assert record.length == min(9 + seed % 80, 73)
        assert_same(episode, runner.spec, record)
        assert episode is not None
        assert episode.metadata == {"seed": seed}
        assert episode.state is not None
        assert episode.state[:, 1].tolist() == list(range(record.length + 1))


def test_what_is_recorded_has_the_declared_types() -> None:
    runner = JointRunner(Crowd, 2)
    episode = runner.run(Picking(runner.spec), [0]).episodes[0]
    assert episode is not None
    assert {leaf.dtype for leaf in episode.observations.values()} == {np.dtype(np.float32)}
    assert {leaf.dtype for leaf in episode.actions.values()} == {np.dtype(np.int64)}
    assert episode.rewards.dtype == np.float64
    assert {f.dtype for f in (episode.terminated, episode.truncated, episode.alive)} == {np.dtype(np.bool_)}
    assert all(leaf.flags["C_CONTIGUOUS"] for leaf in (*episode.observations.values(), episode.rewards))


@pytest.mark.parametrize(
    ("name", "make", "kwargs"),
    [
        ("mpe2/simple_spread_v3", simple_spread_v3, {"N": 4}),
        ("mpe2/simple_tag_v3", simple_tag_v3, {"continuous_actions": True}),
    ],
)
def test_mpe_is_played_as_a_plain_loop_plays_it(name: str, make: Any, kwargs: Any) -> None:
    runner = JointRunner(lambda: make.parallel_env(**kwargs), 3)
    played = runner.run(Picking(runner.spec), range(5))
    env = make.parallel_env(**kwargs)
    for seed, episode in enumerate(played.episodes):

        def choose(agent: str, seen: Any) -> Any:
            action = pick(env.action_space(agent), seen)
            return np.clip(action, 0, 1) if kwargs.get("continuous_actions") else action

        assert_same(episode, runner.spec, parallel_loop(env, seed, choose))


def test_a_single_agent_is_the_case_of_one() -> None:
    runner = JointRunner("CartPole-v1", 4)
    played = runner.run(Picking(runner.spec), range(9))
    env = gymnasium.make("CartPole-v1")
    for seed, episode in enumerate(played.episodes):
        observation, _ = env.reset(seed=seed)
        observations, rewards, ended = [observation], [], False
        while not ended:
            observation, reward, terminated, truncated, _ = env.step(pick(env.action_space, observation))
            observations.append(observation)
            rewards.append(reward)
            ended = terminated or truncated
        assert episode is not None
        assert np.array_equal(episode.observations["agent"][:, 0], observations)
        assert episode.rewards[:, 0].tolist() == rewards
        assert episode.terminated[:, 0].tolist() == [False] * (len(rewards) - 1) + [terminated]


def pettingzoo(module: str) -> Any:
    """A module of PettingZoo behind the one that recommends its registry; skips where its extra is missing."""
    try:
        return importlib.import_module(f"pettingzoo.{module}")
    except ImportError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    ("name", "module", "kwargs"),
    [
        ("classic/tictactoe_v3", "classic.tictactoe.tictactoe", {}),
        ("classic/connect_four_v3", "classic.connect_four.connect_four", {}),
        ("classic/texas_holdem_v4", "classic.rlcard_envs.texas_holdem", {"num_players": 3}),
    ],
)
def test_turns_are_recorded_as_rounds(name: str, module: str, kwargs: Any) -> None:
    """Turns, masks, rewards and last looks of every player are those of a plain loop over `last()`."""
    make = pettingzoo(module).env
    runner = JointRunner(lambda: make(**kwargs), 3)
    played = runner.run(Picking(runner.spec), range(30))
    assert played.failures == []
    env = make(**kwargs)
    for seed, episode in enumerate(played.episodes):
        record = turn_loop(
            env, seed, lambda a, seen: pick(env.action_space(a), np.float32(seen["observation"]), seen["action_mask"])
        )
        assert_same(episode, runner.spec, record)


def test_the_loser_of_tictactoe_gets_its_reward() -> None:
    """Player 1 takes 0, 1, 2; player 2 answers 3, 4: the winner has three turns, the loser two."""

    class Fixed(Picking):
        def __call__(self, step: Step, carry: Carry, generator: torch.Generator | None = None) -> tuple[Any, Carry]:
            self.seen.append(step)
            turn = len(self.seen) - 1
            return {"player_1": torch.tensor([[0, 3, 1, 4, 2][turn]]).expand(1, 2)}, carry

    runner = JointRunner("classic/tictactoe_v3", 1)
    episode = runner.run(Fixed(runner.spec), [0]).episodes[0]
    assert episode is not None
    assert episode.actions["player_1"].tolist() == [[0, 3], [1, 4], [2, 0]]
    assert episode.alive.tolist() == [[True, True], [True, True], [True, False], [False, False]]
    assert episode.rewards.tolist() == [[0, 0], [0, -1], [1, 0]]
    assert episode.terminated.tolist() == [[False, False], [False, True], [True, False]]
    board = np.array([[1, 0], [1, 0], [1, 0], [0, 1], [0, 1]] + [[0, 0]] * 4)
    assert np.array_equal(episode.observations["player_1"][3, 0], board.reshape(-1))
    assert np.array_equal(episode.observations["player_1"][2, 1], board[:, ::-1].reshape(-1))
    assert not episode.observations["player_1"][3, 1].any()
    assert episode.action_mask is not None
    assert episode.action_mask["player_1"][1].tolist() == [
        [square not in (0, 3) for square in range(9)],
        [square not in (0, 1, 3) for square in range(9)],
    ]


def test_turns_to_rounds_by_hand() -> None:
    """Turns of a, b, a, c, a; b leaves after the fourth turn, a and c at the end; d never has one.

    |        | turn 0 | 1  | 2 | 3  | 4  | end |
    | acts   | a      | b  | a | c  | a  |     |
    | a gets |        |    | 1 |    | 2  | 4   |
    | b gets |        |    |   | 8  | 16 |     |
    | c gets | 32     |    |   | 64 |    | 128 |
    | d gets |        | 256|   |    |    | 512 |
    """
    agents = ("a", "b", "c", "d")
    spec = JointSpec(
        agents=agents,
        observation_spaces=dict.fromkeys(agents, BOX),
        action_spaces=dict.fromkeys(agents, spaces.Discrete(9, start=2)),
        turn_based=True,
    )
    acts = [0, 1, 0, 2, 0]
    alive = np.zeros((6, 4), np.bool_)
    alive[range(5), acts] = True
    rewards = np.array([[0, 0, 32, 256], [1, 0, 0, 0], [0, 8, 64, 0], [2, 16, 0, 0], [4, 0, 128, 512]], np.float64)
    terminated, truncated = np.zeros((2, 5, 4), np.bool_)
    terminated[3, 1] = terminated[4, 0] = terminated[4, 3] = truncated[4, 2] = True
    observations = np.zeros((6, 4, 1), np.float32)
    for turn, agent in [*enumerate(acts), (4, 1), (5, 0), (5, 2), (5, 3)]:
        observations[turn, agent] = 10 * turn + agent + 1
    actions = np.full((5, 4), 2)
    actions[range(5), acts] = [3, 4, 5, 6, 7]
    masks = observations != 0
    episode = in_rounds(
        spec,
        JointEpisode(
            observations={"a": observations},
            actions={"a": actions},
            rewards=rewards,
            terminated=terminated,
            truncated=truncated,
            alive=alive,
            action_mask={"a": ~masks},
            state=np.arange(6),
        ),
    )
    assert episode.alive.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert episode.actions["a"].tolist() == [[3, 4, 6, 2], [5, 2, 2, 2], [7, 2, 2, 2]]
    assert episode.rewards.tolist() == [[1, 24, 224, 768], [2, 0, 0, 0], [4, 0, 0, 0]]
    assert episode.observations["a"][..., 0].tolist() == [
        [1, 12, 33, 54],
        [21, 42, 53, 0],
        [41, 0, 0, 0],
        [51, 0, 0, 0],
    ]
    assert episode.terminated.tolist() == [[0, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]]
    assert episode.truncated.tolist() == [[0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert episode.action_mask is not None
    assert episode.action_mask["a"][..., 0].tolist() == [[0, 0, 0, 0], [0, 0, 0, 1], [0, 1, 1, 1], [0, 1, 1, 1]]
    assert np.array_equal(episode.state, [0, 2, 4, 5])


def test_a_game_over_before_a_learners_turn_is_an_episode_with_its_reward() -> None:
    leduc = pettingzoo("classic.rlcard_envs.leduc_holdem").env
    runner = JointRunner(leduc, 4, learners=["player_1"])
    played = runner.run(JointRandomPolicy(runner.spec), range(200), generator(0))
    walkovers = [episode for episode in played.episodes if episode is not None and not episode.alive.any()]
    assert (played.failures, {len(episode) for episode in walkovers}) == ([], {1})
    assert all(episode.rewards[0, 0] > 0 and episode.terminated[0, 0] for episode in walkovers)


# What the policy sees


def test_a_policy_sees_what_is_recorded_and_its_previous_actions_and_rewards() -> None:
    runner = JointRunner(Crowd, 2)
    policy = Picking(runner.spec)
    seeds = [3, 0, 1]
    played = runner.run(policy, seeds)
    starts = {0: (0, 0), 1: (1, 0), 2: (1, 9)}  # episode to (lane, call): the second is the shortest one
    for number, (lane, start) in starts.items():
        episode = played.episodes[number]
        assert episode is not None
        for t in range(len(episode)):
            step = policy.seen[start + t]
            assert bool(step.first[lane]) == bool(step.reset[lane]) == (t == 0)
            assert step.alive is not None
            assert np.array_equal(step.alive[lane], episode.alive[t])
            assert np.allclose(step.previous_rewards[lane], episode.rewards[t - 1] if t else 0)
            for kind in runner.spec.kinds:
                acted = episode.alive[: t + 1, [runner.spec.index[agent] for agent in kind.agents]]
                expected = (
                    episode.actions[kind.name][t - 1] if t else np.full(len(kind.agents), kind.action_space.start)
                )
                known = acted[t]  # of those who left, nobody reads it
                assert np.array_equal(step.previous_actions[kind.name][lane][known], expected[known])
                assert np.array_equal(step.observations[kind.name][lane], episode.observations[kind.name][t])
    last = policy.seen[-1]
    assert last.alive is not None
    assert (last.first.tolist(), last.alive.any(1).tolist()) == ([True, False], [False, True])  # lane 0 rests
    assert last.previous_rewards.dtype == torch.float32


def test_in_a_turn_based_game_the_previous_action_is_the_last_own_one() -> None:
    runner = JointRunner("classic/tictactoe_v3", 1)
    policy = Picking(runner.spec)
    episode = runner.run(policy, [0]).episodes[0]
    assert episode is not None
    for turn, step in enumerate(policy.seen):
        row, player = divmod(turn, 2)
        assert step.alive is not None
        assert step.alive.tolist() == [[player == 0, player == 1]]
        expected = episode.actions["player_1"][row - 1, player] if row else 0
        assert step.previous_actions["player_1"][0, player] == expected
        assert step.first.tolist() == [turn == 0]
        assert step.action_mask is not None
        assert episode.action_mask is not None
        assert np.array_equal(step.action_mask["player_1"][0, player], episode.action_mask["player_1"][row, player])
        assert step.action_mask["player_1"][0, 1 - player].all()


class Paying(AECEnv):
    """Two take turns, twice each; every move pays the other 1."""

    metadata: ClassVar[dict[str, Any]] = {"name": "paying_v0"}

    def __init__(self) -> None:
        super().__init__()
        self.possible_agents = ["a", "b"]

    def observation_space(self, agent: str) -> Any:
        return BOX

    def action_space(self, agent: str) -> Any:
        return spaces.Discrete(2)

    def observe(self, agent: str) -> Any:
        return np.zeros(3)

    def reset(self, seed: int | None = None, options: Any = None) -> None:
        self.agents, self.agent_selection, self.turn = ["a", "b"], "a", 0
        self.rewards, self._cumulative_rewards = ({"a": 0.0, "b": 0.0} for _ in range(2))
        self.terminations, self.truncations = ({"a": False, "b": False} for _ in range(2))
        self.infos: dict[str, Any] = {"a": {}, "b": {}}

    def step(self, action: Any) -> None:
        agent = self.agent_selection
        if self.terminations[agent]:
            self._was_dead_step(action)
            return
        other = "b" if agent == "a" else "a"
        self._cumulative_rewards[agent] = 0.0
        self.rewards = {agent: 0.0, other: 1.0}
        self._accumulate_rewards()
        self.turn += 1
        self.terminations = dict.fromkeys(self.agents, self.turn == 4)
        self.agent_selection = other


def test_in_a_turn_based_game_the_previous_reward_is_that_of_the_last_own_turn() -> None:
    """b is paid before its first turn: recorded with it, and no reward of anything that b did."""
    runner = JointRunner(Paying, 1)
    policy = Picking(runner.spec)
    for episode in runner.run(policy, [0, 1]).episodes:
        assert episode is not None
        assert episode.rewards.tolist() == [[1, 2], [1, 0]]
    on_turn = [step.previous_rewards[step.alive].tolist() for step in policy.seen]
    assert on_turn == [[0], [0], [1], [1]] * 2


# Lanes, seeds, limits


@pytest.mark.parametrize("num_envs", [2, 5])
def test_the_result_does_not_depend_on_the_number_of_environments(num_envs: int) -> None:
    def play(lanes: int) -> list[bytes]:
        runner = JointRunner("mpe2/simple_spread_v3", lanes)
        played = runner.run(Picking(runner.spec), [9, 2, 2, 4, 7, 5])
        return [episode.observations["agent_0"].tobytes() for episode in played.episodes if episode is not None]

    assert play(num_envs) == play(1)


def test_a_rollout_can_be_run_again_and_is_then_the_same() -> None:
    runner = JointRunner("mpe2/simple_spread_v3", 2)
    policy = JointRandomPolicy(runner.spec)
    first, second = (runner.run(policy, [1, 2, 3], generator(5)).episodes for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert a is not None
        assert b is not None
        assert np.array_equal(a.rewards, b.rewards)
    assert runner.run(policy, []).episodes == []


@pytest.mark.parametrize("limit", [1, 7, 200])
def test_max_steps_cuts_and_does_not_end(limit: int) -> None:
    runner = JointRunner(Crowd, 2, max_steps=limit)
    episode = runner.run(Picking(runner.spec), [70]).episodes[0]
    env = Crowd()
    record = parallel_loop(env, 70, lambda a, seen: pick(env.action_space(a), seen), limit)
    assert record.length == min(limit, 73)
    assert_same(episode, runner.spec, record)


def test_max_steps_of_a_turn_based_game_are_rounds() -> None:
    runner = JointRunner("classic/connect_four_v3", 2, max_steps=2)
    episode = runner.run(Picking(runner.spec), [0]).episodes[0]
    assert episode is not None
    assert episode.alive.tolist() == [[True, True], [True, True], [False, False]]
    assert episode.truncated.tolist() == [[False, False], [True, True]]
    pieces = episode.observations["player_0"][2].reshape(2, 42, 2).sum(1)
    assert pieces.tolist() == [[2, 2], [2, 2]]  # both look at the board as it is at the end


def test_an_environment_without_a_limit_does_not_hang(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("herdbook.core.joint.runner.UNDECLARED_LIMIT", 30)
    runner = JointRunner(Crowd, 1)
    played = runner.run(Picking(runner.spec), [79])
    assert "Crowd declares no time limit; its episodes are cut after 30 steps: choose another limit" in caplog.text
    assert [len(episode) for episode in played.episodes if episode is not None] == [30]


def test_the_state_is_recorded_only_if_it_is_wanted() -> None:
    for state in (True, False):
        runner = JointRunner("mpe2/simple_speaker_listener_v4", 2, state=state)
        episode = runner.run(JointRandomPolicy(runner.spec), [0], generator(0)).episodes[0]
        assert episode is not None
        if not state:
            assert episode.state is None
            continue
        joined = [episode.observations[name][:, 0] for name in ("speaker_0", "listener_0")]
        assert np.array_equal(episode.state, np.concatenate(joined, 1))  # what mpe2's state() is


def test_pictures_beside_vectors_are_recorded_in_their_own_types() -> None:
    class Seeing(gymnasium.Env[Any, Any]):
        observation_space = spaces.Dict({"eye": spaces.Box(0, 255, (2, 2, 3), np.uint8), "x": spaces.Box(-1, 1, (2,))})
        action_space = spaces.Box(-1, 1, (2,))

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            self.t = 0
            return self._look(), {}

        def step(self, action: Any) -> Any:
            self.t += 1
            return self._look(), 0.0, self.t == 3, False, {}

        def _look(self) -> Any:
            return {"eye": np.full((2, 2, 3), self.t, np.uint8), "x": np.full(2, self.t / 4, np.float32)}

    runner = JointRunner(Seeing, 2)
    policy = JointRandomPolicy(runner.spec)
    episode = runner.run(policy, [0, 1, 2], generator(0)).episodes[2]
    assert episode is not None
    seen = episode.observations["agent"]
    assert (seen["eye"].dtype, seen["eye"].shape) == (np.uint8, (4, 1, 2, 2, 3))
    assert seen["eye"][:, 0, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert seen["x"][:, 0, 0].tolist() == [0, 0.25, 0.5, 0.75]


# Learners and others


def test_only_learners_are_recorded() -> None:
    runner = JointRunner("mpe2/simple_tag_v3", 2, learners=["adversary_*"])
    assert runner.spec.agents == ("adversary_0", "adversary_1", "adversary_2")
    played = runner.run(JointRandomPolicy(runner.spec), range(4), generator(1))
    assert [e.rewards.shape for e in played.episodes if e is not None] == [(25, 3)] * 4


def test_each_lane_has_others_with_a_memory_of_their_own() -> None:
    class Remembering:
        """Plays what it has seen so far in its episode."""

        def reset(self) -> None:
            self.count = 0

        def act(self, observations: Any) -> dict[str, int]:
            self.count += 1
            return dict.fromkeys(observations, self.count % 5)

    def play(lanes: int) -> list[Any]:
        runner = JointRunner("mpe2/simple_tag_v3", lanes, learners=["agent_0"], others=Remembering())
        return [e.rewards.tolist() for e in runner.run(Picking(runner.spec), range(4)).episodes if e is not None]

    assert play(3) == play(1)


@pytest.mark.parametrize("from_step", [0, 60])
def test_others_who_play_what_is_illegal_are_no_fault_of_the_environment(from_step: int) -> None:
    """At once, or only after the first episodes."""

    class Cheating:
        steps = 0

        def reset(self) -> None:
            pass

        def act(self, observations: Any) -> dict[str, int]:
            self.steps += 1
            return dict.fromkeys(observations, 7 if self.steps > from_step else 0)

    with pytest.raises(IllegalAction, match="agent_0 cannot play 7"):
        runner = JointRunner("mpe2/simple_tag_v3", 1, learners=["adversary_*"], others=Cheating())
        runner.run(Picking(runner.spec), range(4))


def test_others_play_beside_learners_only() -> None:
    with pytest.raises(ValueError, match="expected learners beside others"):
        JointRunner("mpe2/simple_tag_v3", 1, others=object())


# What fails


class Broken(Crowd):
    """Goes wrong in step 4 of the episode with seed 13, and is of no use from then on."""

    how = ""

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        assert not getattr(self, "broken", False), "should have been made anew"
        if seed == 13 and self.how == "reset":
            self.broken = True
            raise ZeroDivisionError("sparks")
        return super().reset(seed, options)

    def step(self, actions: Any) -> Any:
        observations, rewards, *rest = super().step(actions)
        if self.seed == 13 and self.t == 5:
            self.broken = True
            if self.how == "raises":
                raise ZeroDivisionError("sparks")
            if self.how == "reward":
                rewards["agent_2"] = np.nan
            if self.how == "observation":
                observations["agent_9"][1] = np.inf
            if self.how == "shape":
                observations["agent_9"] = np.zeros(2)
        return observations, rewards, *rest

    def state(self) -> Any:
        return np.array([np.nan]) if self.how == "state" and self.seed == 13 and self.t == 5 else np.zeros(1)


@pytest.mark.parametrize(
    ("how", "step", "words"),
    [
        ("raises", 4, "raised ZeroDivisionError: sparks"),
        ("reset", 0, "raised ZeroDivisionError: sparks"),
        ("reward", 4, "gave rewards that are not finite"),
        ("observation", 4, "gave agent_9 an observation that is not finite"),
        ("shape", 4, "broke its interface: observations of agent_9: expected an observation in Box"),
        ("state", 4, "gave a state that is not finite"),
    ],
)
def test_an_environment_that_fails_loses_one_episode_and_the_others_go_on(how: str, step: int, words: str) -> None:
    source = type("Broken", (Broken,), {"how": how})
    runner, seeds = JointRunner(source, 2), [11, 13, 12, 14, 13, 15]
    played = runner.run(Picking(runner.spec), seeds)
    assert len(played.failures) == 2
    assert all(told.startswith(f"Broken {words}") for told in played.failures)
    assert all(told.endswith(f"(reset seed 13, step {step}); this episode is lost") for told in played.failures)
    whole = JointRunner(Crowd, 1)
    for seed, episode in zip(seeds, played.episodes, strict=True):
        assert (episode is None) == (seed == 13)
        if episode is not None:
            expected = whole.run(Picking(whole.spec), [seed]).episodes[0]
            assert expected is not None
            assert np.array_equal(episode.rewards, expected.rewards)


def test_what_an_environment_gave_at_last_is_seen_by_nobody() -> None:
    """The lane that lost its episode rests, while the other one plays on."""
    runner = JointRunner(type("Broken", (Broken,), {"how": "observation"}), 2)
    policy = Picking(runner.spec)
    runner.run(policy, [13, 11])
    assert len(policy.seen) == 20
    for call, step in enumerate(policy.seen):
        assert all(bool(leaf.isfinite().all()) for leaf in step.observations.values())
        assert step.alive is not None
        assert bool(step.alive[0].any()) == (call < 5)


def test_all_episodes_may_be_lost() -> None:
    source = type("Broken", (Broken,), {"how": "reset"})
    runner = JointRunner(source, 2)
    played = runner.run(Picking(runner.spec), [13] * 5)
    assert (played.episodes, len(played.failures)) == ([None] * 5, 5)


def test_an_environment_that_raises_at_once_cannot_be_played() -> None:
    class Useless(Crowd):
        def step(self, actions: Any) -> Any:
            raise ZeroDivisionError("sparks")

    with pytest.raises(EnvironmentFailed, match="Useless: its first steps raised ZeroDivisionError: sparks"):
        JointRunner(Useless, 1)


class Constant(Picking):
    """Gives the same answer to everything."""

    def __init__(self, spec: JointSpec, answer: Any) -> None:
        super().__init__(spec)
        self.answer = answer

    def __call__(self, step: Step, carry: Carry, generator: torch.Generator | None = None) -> tuple[Any, Carry]:
        return self.answer, carry


@pytest.mark.parametrize(
    ("name", "answer", "error", "words"),
    [
        ("CartPole-v1", {"agent": torch.zeros(2, 2, dtype=torch.long)}, ValueError, r"of shape \(2, 1\) for agent"),
        ("CartPole-v1", {"agent": torch.zeros(2, 1)}, ValueError, "expected integer actions of agent"),
        (
            "CartPole-v1",
            {"walker": torch.zeros(2, 1)},
            ValueError,
            r"the kinds \['agent'\], the policy gave \['walker'\]",
        ),
        ("CartPole-v1", torch.zeros(2, 1), ValueError, r"the kinds \['agent'\], the policy gave Tensor"),
        ("CartPole-v1", {"agent": torch.full((2, 1), 2)}, ValueError, "agent cannot play 2"),
        ("Pendulum-v1", {"agent": torch.full((2, 1, 1), torch.nan)}, PolicyFailed, "agent that is not finite"),
    ],
)
def test_actions_that_do_not_fit_are_the_policys_fault(name: str, answer: Any, error: Any, words: str) -> None:
    runner = JointRunner(name, 2)
    with pytest.raises(error, match=words):
        runner.run(Constant(runner.spec, answer), [0])


def test_box_actions_are_recorded_as_they_were_played() -> None:
    runner = JointRunner("Pendulum-v1", 2, max_steps=3)
    episode = runner.run(Constant(runner.spec, {"agent": torch.full((2, 1, 1), 7.0)}), [0]).episodes[0]
    assert episode is not None
    assert episode.actions["agent"].tolist() == [[[2.0]]] * 3


def test_the_same_environment_twice_is_refused() -> None:
    env = Crowd()
    with pytest.raises(ValueError, match="expected a new environment from each call"):
        JointRunner(lambda: env, 2)


@pytest.mark.parametrize("arguments", [{"num_envs": 0}, {"num_envs": 1, "max_steps": 0}])
def test_numbers_that_do_not_fit(arguments: Any) -> None:
    with pytest.raises(ValueError, match="expected (num_envs|max_steps) >= 1, got 0"):
        JointRunner("CartPole-v1", **arguments)


def test_an_environment_that_is_not_the_policys_is_refused() -> None:
    own = JointRunner("mpe2/simple_spread_v3", 1).spec
    JointRunner("mpe2/simple_spread_v3", 1, spec=own)
    looser = {a: spaces.Box(-9.0, 9.0, space.shape) for a, space in own.observation_spaces.items()}
    JointRunner("mpe2/simple_spread_v3", 1, spec=dataclasses.replace(own, observation_spaces=looser))
    for changed, words in (
        ({"agents": own.agents[:2]}, r"expected the agents \['agent_0', 'agent_1'\]"),
        ({"agents": own.agents[::-1]}, "expected the agents"),
        ({"action_spaces": dict.fromkeys(own.agents, spaces.Discrete(6))}, r"action_space of agent_0 Discrete\(6\)"),
        ({"observation_spaces": dict.fromkeys(own.agents, BOX)}, "observation_space of agent_0"),
        ({"observation_spaces": own.observation_spaces | {"agent_1": BOX}}, "expected agents of equal spaces"),
        ({"masked": True}, "expected masked: True"),
        ({"turn_based": True}, "expected turn_based: True"),
    ):
        with pytest.raises(EnvironmentUnavailable, match=f"mpe2/simple_spread_v3: .*{words}"):
            JointRunner("mpe2/simple_spread_v3", 1, spec=dataclasses.replace(own, **changed))


def test_an_environment_whose_reset_is_incomplete_is_made_anew_for_each_episode(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """knights_archers_zombies carries the zombies' clock over a reset; its agents die one by one."""
    make = pettingzoo("butterfly.knights_archers_zombies.knights_archers_zombies").parallel_env
    runner = JointRunner("butterfly/knights_archers_zombies_v11", 2, max_steps=400)
    assert "rebuilt for each episode" in caplog.text
    played = runner.run(Picking(runner.spec), [4, 5, 6, 7])
    died = []
    for seed, episode in zip([4, 5, 6, 7], played.episodes, strict=True):
        env = make()
        record = parallel_loop(env, seed, lambda a, seen, env=env: pick(env.action_space(a), seen), 400)  # type: ignore[misc]  # bound now
        assert_same(episode, runner.spec, record)
        died += [row for row, _ in record.ended.values() if row + 1 < record.length]
    assert died


# The random policy


def test_random_actions_are_uniform_among_the_legal_ones() -> None:
    spec = JointSpec(
        agents=("a", "b"),
        observation_spaces=dict.fromkeys("ab", BOX),
        action_spaces={"a": spaces.Discrete(3, start=5), "b": spaces.Box(-1, 3, (2,))},
    )
    lanes = 20_000
    zeros = torch.zeros(lanes, dtype=torch.bool)
    mask = torch.tensor([True, False, True]).expand(lanes, 1, 3)
    step = Step({}, {}, torch.zeros(lanes, 2), zeros, zeros, action_mask={"a": mask})
    actions, _ = JointRandomPolicy(spec)(step, None, generator(0))
    counts = torch.bincount(actions["a"][:, 0] - 5, minlength=3)
    assert counts[1] == 0
    assert abs(int(counts[0]) - lanes / 2) < 4 * lanes**0.5 / 2
    assert actions["b"].shape == (lanes, 1, 2)
    assert abs(float(actions["b"].mean()) - 1) < 4 * (4 / 12**0.5) / (2 * lanes) ** 0.5
    assert bool(((actions["b"] >= -1) & (actions["b"] <= 3)).all())
    free, _ = JointRandomPolicy(spec)(dataclasses.replace(step, action_mask=None), None, generator(0))
    assert set(free["a"].unique().tolist()) == {5, 6, 7}


def test_random_actions_need_bounds() -> None:
    spec = JointSpec(agents=("a",), observation_spaces={"a": BOX}, action_spaces={"a": BOX})
    with pytest.raises(ValueError, match="expected bounded actions of a"):
        JointRandomPolicy(spec)


def test_a_random_team_on_spread_has_the_published_return() -> None:
    """Team return, the sum over the agents: −79.4, and 23.6 its standard deviation over episodes."""
    runner = JointRunner("mpe2/simple_spread_v3", 8, state=False)
    played = runner.run(JointRandomPolicy(runner.spec), range(200), generator(0))
    returns = [episode.rewards.sum() for episode in played.episodes if episode is not None]
    assert len(returns) == 200
    assert abs(np.mean(returns) + 79.4) < 4 * 23.6 / 200**0.5
