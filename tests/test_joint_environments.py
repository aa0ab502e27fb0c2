"""Environments with many agents by name, and as arrays by kind: nothing that PettingZoo gives is lost or bent."""

import copy
import importlib
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from gymnasium import spaces
from mpe2 import simple_spread_v3, simple_tag_v3
from pettingzoo import AECEnv, ParallelEnv
from pettingzoo.classic.tictactoe.tictactoe import env as tictactoe
from pettingzoo.utils.conversions import parallel_to_aec

from herdbook.core.environments import (
    EnvironmentSpec,
    EnvironmentUnavailable,
    describe_environment,
    make_environment,
    registered_only,
)
from herdbook.core.joint.environments import (
    JointEnvironment,
    Rows,
    check_reset,
    make_joint_environment,
    with_others,
)
from herdbook.core.joint.games import IllegalAction, random_action
from herdbook.core.registry import joint_names

BOX = spaces.Box(-np.inf, np.inf, (2,), np.float64)
THREE = spaces.Discrete(3)
KAZ = {"spawn_delay": 3, "max_cycles": 150}


class Scripted(ParallelEnv):
    """A parallel environment whose every step is one entry of a list: what `step` returns and who goes on.

    An entry is a dict of agent -> (observation, reward, terminated, truncated), and who is in `agents` after it.
    """

    metadata: ClassVar[dict[str, Any]] = {"name": "scripted_v0"}
    render_mode = None

    def __init__(
        self,
        script: list[tuple[dict[str, Any], list[str]]],
        *,
        agents: tuple[str, ...] = ("a", "b", "c"),
        observation: Any = BOX,
        action: Any = THREE,
        infos: list[dict[str, Any]] | None = None,
    ) -> None:
        self.script, self.possible_agents, self.infos = script, list(agents), infos or []
        self.observation, self.action = observation, action
        self.received: list[dict[str, Any]] = []

    def observation_space(self, agent: str) -> Any:
        return self.observation

    def action_space(self, agent: str) -> Any:
        return self.action

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.t = 0
        observations, _, _, _, infos = self._given()
        return observations, infos

    def step(self, actions: dict[str, Any]) -> Any:
        self.received.append(actions)
        self.t += 1
        return self._given()

    def _given(self) -> Any:
        entry, self.agents = self.script[self.t][0], list(self.script[self.t][1])
        infos = self.infos[self.t] if self.infos else {agent: {} for agent in entry}
        return *({agent: given[i] for agent, given in entry.items() if given[i] is not None} for i in range(4)), infos


def look(number: float, reward: float = 0.0, terminated: bool = False, truncated: bool = False) -> Any:
    """What an agent gets at a step; its observation is this number, twice."""
    return np.full(2, number), reward, terminated, truncated


def scripted(script: Any, **kwargs: Any) -> JointEnvironment:
    return make_joint_environment(lambda: Scripted(script, **kwargs))


def all_play(env: JointEnvironment, action: Any) -> dict[str, Any]:
    return {kind.name: np.stack([np.asarray(action)] * len(kind.agents)) for kind in env.spec.kinds}


def seen(env: JointEnvironment, rows: Rows) -> dict[str, float]:
    """The first number that each agent sees."""
    return {a: float(rows.observations[k.name][i, 0]) for k in env.spec.kinds for i, a in enumerate(k.agents)}


def names(env: JointEnvironment, flags: Any) -> list[str]:
    return [agent for agent, flag in zip(env.spec.agents, flags, strict=True) if flag]


def raw(module: str) -> Any:
    """A module of PettingZoo behind the one that recommends its registry; skips where its extra is missing."""
    try:
        return importlib.import_module(f"pettingzoo.{module}")
    except ImportError as error:
        pytest.skip(str(error))


# Names


def test_mpe2_by_name_with_arguments() -> None:
    env = make_joint_environment("mpe2/simple_spread_v3", N=4, max_cycles=3)
    assert env.spec.agents == ("agent_0", "agent_1", "agent_2", "agent_3")
    assert [len(kind.agents) for kind in env.spec.kinds] == [4]
    assert env.declares_limit
    env.reset(0)
    rows = [env.step(all_play(env, 1)) for _ in range(3)]
    assert [row.truncated.all() for row in rows] == [False, False, True]


@pytest.mark.parametrize(
    ("name", "agents", "turn_based", "masked"),
    [
        ("classic/tictactoe_v3", ("player_1", "player_2"), True, True),
        ("classic/rps_v2", ("player_0", "player_1"), False, False),  # has both APIs
        ("sisl/pursuit_v5", tuple(f"pursuer_{i}" for i in range(8)), False, False),
        ("CartPole-v1", ("agent",), False, False),
        ("Taxi-v4", ("agent",), False, True),  # Gymnasium gives legal actions in its info
    ],
)
def test_pettingzoo_and_gymnasium_by_name(name: str, agents: Any, turn_based: bool, masked: bool) -> None:
    if name.startswith("sisl"):
        raw("sisl.pursuit.pursuit")
    spec = make_joint_environment(name).spec
    assert (spec.agents, spec.turn_based, spec.masked) == (agents, turn_based, masked)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mpe2/simple_spred_v3", "did you mean 'mpe2/simple_spread_v3'"),
        ("mpe/simple_tag_v3", "did you mean 'mpe2/simple_tag_v3'"),
        ("classic/tictactoe_v2", "did you mean 'classic/tictactoe_v3'"),
        ("simple_spread_v3", "did you mean 'mpe2/simple_spread_v3'"),
        ("CartPol-v1", "did you mean 'CartPole-v1'"),
        ("no_such_package/game_v0", "unknown environment 'no_such_package/game_v0'"),
        ("os:sep", "expected a callable"),
    ],
)
def test_unknown_names_say_what_is_near(name: str, words: str) -> None:
    with pytest.raises(EnvironmentUnavailable, match=words):
        make_joint_environment(name)


def test_one_that_acts_alone_is_not_looked_for_among_many() -> None:
    with pytest.raises(EnvironmentUnavailable, match="has many agents"):
        make_environment("mpe2/simple_spread_v3")


@pytest.mark.parametrize("name", ["mpe2/simple_spread_v3", "CartPole-v1"])
def test_arguments_that_the_environment_refuses(name: str) -> None:
    with pytest.raises(EnvironmentUnavailable, match=rf"{name} with \{{'gravitation': 3\}}.*gravitation"):
        make_joint_environment(name, gravitation=3)


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("butterfly/pistonball_v6", "pygame", "butterfly"),
        ("sisl/pursuit_v5", "pygame", "sisl"),
        ("classic/connect_four_v3", "pygame", "classic"),
        ("atari/pong_v3", "multi_agent_ale_py", "pettingzoo-atari"),
    ],
)
def test_a_missing_package_names_its_extra(
    monkeypatch: pytest.MonkeyPatch, name: str, package: str, extra: str
) -> None:
    ours = f"pettingzoo.{name.partition('/')[0]}"
    for loaded in [m for m in sys.modules if m.split(".")[0] == package or m.startswith(ours)]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EnvironmentUnavailable, match=rf"pip install 'herdbook\[{extra}\]'"):
        make_joint_environment(name)


def test_a_missing_package_is_not_an_unknown_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(module: str) -> Any:
        raise ModuleNotFoundError("No module named 'mpe2'", name="mpe2")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(EnvironmentUnavailable, match="mpe2/simple_spread_v3 needs a package that cannot be imported"):
        make_joint_environment("mpe2/simple_spread_v3")


def test_names_are_listed_without_importing_an_environment() -> None:
    loaded = set(sys.modules)
    names = joint_names()
    assert {"mpe2/simple_spread_v3", "butterfly/pistonball_v6", "atari/pong_v3", "classic/chess_v6"} <= set(names)
    assert not {m for m in set(sys.modules) - loaded if m.startswith("mpe2.") or m.count(".") > 1}


USER_MODULE = """
from mpe2 import simple_spread_v3
def make(kind, **kwargs):
    return getattr(simple_spread_v3, kind)(**kwargs)
def nothing():
    return 7
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_games.py").write_text(USER_MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_games", raising=False)
    return "own_games"


def test_module_and_callable(own_module: str) -> None:
    assert not make_joint_environment(f"{own_module}:make", kind="parallel_env", N=2).spec.turn_based
    env = make_joint_environment(EnvironmentSpec(id=f"{own_module}:make", kwargs={"kind": "env"}, max_episode_steps=4))
    assert env.spec.turn_based
    assert env.max_steps == 4
    with pytest.raises(EnvironmentUnavailable, match="expected a ParallelEnv, an AECEnv or a gymnasium.Env"):
        make_joint_environment(f"{own_module}:nothing")


def test_a_module_inside_a_package_of_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "plays" / "grids"
    folder.mkdir(parents=True)
    (folder / "spread_v0.py").write_text("from mpe2.simple_spread_v3 import parallel_env\n")
    monkeypatch.syspath_prepend(tmp_path)
    spec = describe_environment("plays.grids/spread_v0", N=2)
    assert spec is not None
    assert make_joint_environment(spec).spec.agents == ("agent_0", "agent_1")
    with pytest.raises(EnvironmentUnavailable, match=r"is code, plays.grids.spread_v0"):
        registered_only(spec)
    with pytest.raises(EnvironmentUnavailable, match=r"unknown environment 'plays.grids/spread_v1'"):
        make_joint_environment("plays.grids/spread_v1")


def test_what_is_recorded_of_a_name_makes_the_same_environment() -> None:
    spec = describe_environment("mpe2/simple_spread_v3", N=4)
    assert spec is not None
    again = EnvironmentSpec.from_json(spec.to_json())
    assert again.to_json() == spec.to_json()
    assert len(make_joint_environment(registered_only(again)).spec.agents) == 4
    assert len(make_joint_environment(again, N=2).spec.agents) == 2


def test_a_spec_out_of_a_file_names_no_code_but_that_of_known_packages(own_module: str) -> None:
    foreign = '{"id": "mpe2/simple_spread_v3", "entry_point": "os:system", "additional_wrappers": [{"name": "W"}]}'
    assert registered_only(EnvironmentSpec.from_json(foreign)) == EnvironmentSpec(id="mpe2/simple_spread_v3")
    for name, code in (("own_games/game_v1", "own_games.game_v1"), (f"{own_module}:make", f"{own_module}:make")):
        with pytest.raises(EnvironmentUnavailable, match=f"is code, {code}"):
            registered_only(EnvironmentSpec(id=name))
    assert own_module not in sys.modules


def test_a_recorded_time_limit_of_gymnasium_yields_to_the_argument() -> None:
    env = make_joint_environment(EnvironmentSpec(id="Pendulum-v1", max_episode_steps=3), max_episode_steps=5)
    env.reset(0)
    ends = [bool(env.step({"agent": np.zeros((1, 1))}).truncated[0]) for _ in range(5)]
    assert ends == [False] * 4 + [True]


# Agents and spaces


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: Scripted([({}, [])], agents=(0.5, 1)), "named by strings or integers, got"),  # type: ignore[arg-type]
        (lambda: Scripted([({}, [])], observation=spaces.Sequence(BOX)), "no fixed size"),
        (lambda: Scripted([({}, [])], action=spaces.MultiDiscrete([2, 2])), "expected a Box or Discrete action space"),
        (lambda: Scripted([]), "IndexError"),  # raises at its first reset
    ],
)
def test_agents_and_spaces_that_cannot_be_handled(made: Callable[[], Any], words: str) -> None:
    with pytest.raises(EnvironmentUnavailable, match=words):
        make_joint_environment(made)


def test_an_environment_must_say_who_may_take_part() -> None:
    def make() -> Scripted:
        env = Scripted([({}, [])])
        del env.possible_agents
        return env

    with pytest.raises(EnvironmentUnavailable, match="expected an environment with possible_agents"):
        make_joint_environment(make)


def test_agents_keep_the_order_of_the_environment_beyond_ten() -> None:
    """`gymnasium.spaces.Dict` would put agent_10 before agent_2."""
    env = make_joint_environment("mpe2/simple_spread_v3", N=11)
    assert env.spec.agents == tuple(f"agent_{i}" for i in range(11))
    expected, _ = simple_spread_v3.parallel_env(N=11).reset(seed=3)
    rows = env.reset(3)
    assert np.array_equal(rows.observations["agent_0"], np.stack([expected[a] for a in env.spec.agents]))


def test_the_speaker_comes_before_the_listener_and_is_another_kind() -> None:
    env = make_joint_environment("mpe2/simple_speaker_listener_v4")
    assert env.spec.agents == ("speaker_0", "listener_0")
    assert {kind.name: kind.observation_space.shape for kind in env.spec.kinds} == {
        "speaker_0": (3,),
        "listener_0": (11,),
    }


def test_kinds_in_tag_are_the_sides() -> None:
    spec = make_joint_environment("mpe2/simple_tag_v3").spec
    assert [kind.agents for kind in spec.kinds] == [("adversary_0", "adversary_1", "adversary_2"), ("agent_0",)]


def test_observations_are_float32_pictures_uint8_and_composites_flat() -> None:
    picture, parts = np.arange(12, dtype=np.uint8).reshape(2, 2, 3), {"n": 2, "x": np.array([[0.1, 0.2]])}
    space = spaces.Dict({"n": spaces.Discrete(3), "x": spaces.Box(-1, 1, (1, 2), np.float64)})
    image = spaces.Box(0, 255, (2, 2, 3), np.uint8)
    for own, given, expected in (
        (BOX, np.array([0.1, 1e-9]), np.array([0.1, 1e-9], np.float32)),
        (spaces.Box(0, 9, (2, 2), np.int64), np.array([[1, 2], [3, 4]]), np.array([1, 2, 3, 4], np.float32)),
        (image, picture, picture),
        (spaces.Discrete(5), 3, np.int64(3)),
        (space, parts, np.array([0, 0, 1, 0.1, 0.2], np.float32)),
    ):
        env = scripted([({"a": (given, 0, False, False)}, ["a"])], agents=("a",), observation=own)
        row = env.reset(0).observations["a"]
        assert row.dtype == expected.dtype
        assert np.array_equal(row[0], expected)
    both = spaces.Dict({"eye": image, "x": BOX})
    given = {"eye": picture, "x": np.ones(2)}
    env = scripted([({"a": (given, 0, False, False)}, ["a"])], agents=("a",), observation=both)
    row = env.reset(0).observations["a"]
    assert np.array_equal(row["eye"], picture[None])
    assert np.array_equal(row["x"], np.ones((1, 2)))


@pytest.mark.parametrize(
    ("space", "given"),
    [(BOX, np.zeros(1)), (BOX, 0.0), (spaces.Box(0, 255, (2, 2, 3), np.uint8), np.zeros((2, 2, 3)))],
)
def test_an_observation_of_another_shape_or_type_is_not_stretched(space: Any, given: Any) -> None:
    script = [({"a": (space.sample(), 0, False, False)}, ["a"]), ({"a": (given, 0, False, False)}, ["a"])]
    env = scripted(script, agents=("a",), observation=space)
    env.reset(0)
    with pytest.raises(ValueError, match="expected an observation in Box"):
        env.step(all_play(env, 0))


# The parallel API


@pytest.mark.parametrize(
    ("name", "module", "kwargs"),
    [
        ("mpe2/simple_spread_v3", "mpe2.simple_spread_v3", {}),
        ("mpe2/simple_tag_v3", "mpe2.simple_tag_v3", {"continuous_actions": True}),
        ("mpe2/simple_speaker_listener_v4", "mpe2.simple_speaker_listener_v4", {}),
        ("butterfly/knights_archers_zombies_v11", "butterfly.knights_archers_zombies.knights_archers_zombies", KAZ),
        ("sisl/pursuit_v5", "sisl.pursuit.pursuit", {"max_cycles": 20}),
    ],
)
def test_the_parallel_api_is_what_pettingzoos_own_wrapper_gives(name: str, module: str, kwargs: Any) -> None:
    """Every dict of every step of equal actions; ours steps what is beneath PettingZoo's checks."""
    theirs = (importlib.import_module(module) if name.startswith("mpe2") else raw(module)).parallel_env(**kwargs)
    ours = make_joint_environment(name, **kwargs)
    ours.renew()  # the game has been reset, and of one of these a reset does not put everything back
    generator = np.random.default_rng(0)
    expected, got = theirs.reset(seed=5), ours.game.env.reset(seed=5)
    for _ in range(200):
        for left, right in zip(expected, got, strict=True):
            assert {**left}.keys() == right.keys()
            assert all(np.array_equal(left[agent], right[agent]) for agent in left)
        assert theirs.agents == ours.game.env.agents
        assert np.array_equal(theirs.state(), ours.game.env.state())
        if not theirs.agents:
            break
        actions = {agent: random_action(theirs.action_space(agent), None, generator) for agent in theirs.agents}
        actions = {a: np.float32(action) if "tag" in name else action for a, action in actions.items()}
        expected, got = theirs.step(copy.copy(actions)), ours.game.env.step(actions)
    else:
        raise AssertionError("no episode ended")


def test_what_claims_pettingzoos_api_passes_its_test() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # importing it imports a module that recommends another
        from pettingzoo.test import parallel_api_test
    for name in ("mpe2/simple_spread_v3", "mpe2/simple_tag_v3", "CartPole-v1"):
        parallel_api_test(make_joint_environment(name).game.env, num_cycles=60)


def test_agents_that_die_join_and_are_cut_off_keep_their_last_reward_and_observation() -> None:
    env = scripted(
        [
            ({"a": look(1), "b": look(2)}, ["a", "b"]),
            ({"a": look(3, 5.0, terminated=True), "b": look(4, 6.0), "c": look(5)}, ["b", "c"]),
            ({"b": look(6, 7.0, truncated=True), "c": look(7, 8.0)}, ["c"]),
            ({"c": look(8, 9.0, terminated=True)}, []),
        ]
    )
    rows = env.reset(0)
    assert (names(env, rows.alive), seen(env, rows)) == (["a", "b"], {"a": 1, "b": 2, "c": 0})
    assert not rows.rewards.any()
    told = []
    for _ in range(3):
        rows = env.step(all_play(env, 2))
        told.append((rows.rewards.tolist(), *(names(env, f) for f in (rows.terminated, rows.truncated, rows.alive))))
        told.append(seen(env, rows))
    assert told == [
        ([5, 6, 0], ["a"], [], ["b", "c"]),
        {"a": 3, "b": 4, "c": 5},
        ([0, 7, 8], [], ["b"], ["c"]),
        {"a": 0, "b": 6, "c": 7},
        ([0, 0, 9], ["c"], [], []),
        {"a": 0, "b": 0, "c": 8},
    ]
    assert env.game.env.received == [{"a": 2, "b": 2}, {"b": 2, "c": 2}, {"c": 2}]


def test_who_is_away_when_the_episode_ends_was_cut_off() -> None:
    """One in the middle, without a last look; the others where the episode ends."""
    env = scripted(
        [
            ({"a": look(1), "b": look(2), "c": look(3)}, ["a", "b", "c"]),
            ({"a": look(4), "b": look(5)}, ["a", "b"]),
            ({"a": look(6, 1.0), "b": look(7, 2.0, terminated=True)}, []),
        ]
    )
    env.reset(0)
    rows = env.step(all_play(env, 0))
    assert (names(env, rows.truncated), seen(env, rows)["c"]) == ([], 3)  # it may come back
    rows = env.step(all_play(env, 0))
    assert (names(env, rows.terminated), names(env, rows.truncated), names(env, rows.alive)) == (["b"], ["a", "c"], [])
    assert rows.rewards.tolist() == [1, 2, 0]
    assert seen(env, rows) == {"a": 6, "b": 7, "c": 0}


def test_the_dead_stay_dead_where_the_environment_goes_on_about_them() -> None:
    """Some give dicts of everyone for ever, and leave in `agents` who has ended."""
    dead = look(0, 0.0, terminated=True)
    env = scripted(
        [
            ({"a": look(1), "b": look(2)}, ["a", "b"]),
            ({"a": look(3, 1.0, terminated=True), "b": look(4)}, ["a", "b"]),
            ({"a": dead, "b": look(5, 2.0)}, ["a", "b"]),
        ],
        agents=("a", "b"),
    )
    env.reset(0)
    rows = env.step(all_play(env, 0))
    assert (names(env, rows.terminated), names(env, rows.alive)) == (["a"], ["b"])
    rows = env.step(all_play(env, 0))
    assert (names(env, rows.terminated), names(env, rows.alive), rows.rewards.tolist()) == ([], ["b"], [0, 2])


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (({"a": look(1)}, ["a", "b"]), "expected an observation of b, which acts next"),
        (({"a": look(1), "d": look(1)}, ["a", "d"]), r"among possible_agents, got \['d'\]"),
    ],
)
def test_what_the_environment_must_give(entry: Any, words: str) -> None:
    env = scripted([({"a": look(1), "b": look(2)}, ["a", "b"]), entry], agents=("a", "b"))
    env.reset(0)
    with pytest.raises(ValueError, match=words):
        env.step(all_play(env, 0))


def test_box_actions_are_clipped_and_arrive_in_the_agents_own_shape_and_type() -> None:
    space = spaces.Box(-1.0, 2.0, (2, 1), np.float64)
    env = scripted([({"a": look(1)}, ["a"]), ({"a": look(1)}, [])], agents=("a",), action=space)
    env.reset(0)
    env.step({"a": np.array([[0.5, 7.0]], np.float32)})
    received = env.game.env.received[0]["a"]
    assert (received.tolist(), received.dtype) == ([[0.5], [2.0]], np.float64)


# Legal actions


MASKED = spaces.Dict({"observation": BOX, "action_mask": spaces.Box(0, 1, (3,), np.int8)})


def masked(where: str, *masks: list[int] | None) -> JointEnvironment:
    """One agent, whose step t has this mask, in its observation or in its info."""

    def given(mask: list[int] | None) -> Any:
        seen = np.zeros(2) if where == "info" else {"observation": np.zeros(2), "action_mask": np.array(mask, np.int8)}
        return seen, 0.0, False, False

    return scripted(
        [({"a": given(mask)}, ["a"]) for mask in masks],
        agents=("a",),
        observation=BOX if where == "info" else MASKED,
        action=spaces.Discrete(3, start=4),
        infos=[{"a": {} if mask is None or where != "info" else {"action_mask": mask}} for mask in masks],
    )


@pytest.mark.parametrize("where", ["observation", "info"])
def test_legal_actions_are_found_and_are_no_part_of_what_is_seen(where: str) -> None:
    env = masked(where, [1, 0, 1], [0, 1, 0], [0, 0, 0])
    assert env.spec.masked
    assert env.spec.observation_spaces["a"] == BOX
    rows = env.reset(0)
    assert rows.observations["a"].shape == (1, 2)
    assert rows.action_mask is not None
    assert rows.action_mask["a"].tolist() == [[True, False, True]]
    with pytest.raises(IllegalAction, match=r"a cannot play 5 now: expected one of the legal actions \[4, 6\]"):
        env.step({"a": np.array([5])})
    rows = env.step({"a": np.array([6])})
    assert rows.action_mask is not None
    assert rows.action_mask["a"].tolist() == [[False, True, False]]
    rows = env.step({"a": np.array([5])})
    assert rows.action_mask is not None
    assert rows.action_mask["a"].all()  # nothing to choose


def test_an_info_without_a_mask_means_that_all_is_legal() -> None:
    env = masked("info", [1, 0, 1], None)
    env.reset(0)
    rows = env.step({"a": np.array([4])})
    assert rows.action_mask is not None
    assert rows.action_mask["a"].all()


@pytest.mark.parametrize("action", [3, 7, -1, 4.5])
def test_an_action_outside_its_space_names_agent_and_action(action: float) -> None:
    env = masked("info", [1, 1, 1], None)
    env.reset(0)
    with pytest.raises(ValueError, match=f"a cannot play {action}: expected an action in Discrete"):
        env.step({"a": np.array([action])})


# The global state


class WithState(Scripted):
    """Its state is whatever it is given."""

    def __init__(self, state: Any) -> None:
        super().__init__([({"a": look(1)}, ["a"]), ({"a": look(2)}, [])], agents=("a",))
        self.asked = 0
        if state is not None:
            self.state = state


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (lambda: np.array([0.1, 2.0]), np.array([0.1, 2.0], np.float32)),
        (lambda: np.array([[1, 2], [3, 4]]), np.array([1, 2, 3, 4], np.float32)),
        (lambda: {"b": np.array([1.0]), "a": np.array([2.0, 3.0])}, np.array([2, 3, 1], np.float32)),
        (lambda: np.ones((2, 2, 3), np.uint8), np.ones((2, 2, 3), np.uint8)),
        (np.array([1.0]), None),  # an attribute of that name
        ({"speed": 1.0}, None),
        (None, None),  # PettingZoo's own, which raises NotImplementedError
    ],
)
def test_the_state_is_a_methods_or_there_is_none(state: Any, expected: Any) -> None:
    env = make_joint_environment(lambda: WithState(state))
    rows = env.reset(0)
    if expected is None:
        assert env.spec.state_space is None
        assert rows.state is None
    else:
        assert env.spec.state_space is not None
        assert env.spec.state_space.shape == expected.shape
        assert rows.state.dtype == expected.dtype
        assert np.array_equal(rows.state, expected)


def test_a_state_that_nobody_reads_is_not_computed() -> None:
    asked = []
    env = make_joint_environment(lambda: WithState(lambda: asked.append(1) or np.zeros(1)))
    env.with_state, before = False, len(asked)
    assert env.reset(0).state is None
    assert env.step(all_play(env, 0)).state is None
    assert len(asked) == before


# Turns


class Script(AECEnv):
    """Turns as listed: (agent, who is paid what by its move, who is out after it: terminated, or cut off with "-")."""

    metadata: ClassVar[dict[str, Any]] = {"name": "script_v0"}

    def __init__(
        self, turns: list[tuple[str, dict[str, float], list[str]]], agents: tuple[str, ...] = ("a", "b")
    ) -> None:
        super().__init__()
        self.turns, self.possible_agents, self.received = turns, list(agents), []

    def observation_space(self, agent: str) -> Any:
        return BOX

    def action_space(self, agent: str) -> Any:
        return spaces.Discrete(3)

    def observe(self, agent: str) -> Any:
        return np.array([self.t, self.possible_agents.index(agent)], np.float64)

    def reset(self, seed: int | None = None, options: Any = None) -> None:
        self.agents, self.t = list(self.possible_agents), 0
        self.rewards, self._cumulative_rewards = (dict.fromkeys(self.agents, 0.0) for _ in range(2))
        self.terminations, self.truncations = (dict.fromkeys(self.agents, False) for _ in range(2))
        self.infos: dict[str, Any] = {a: {} for a in self.agents}
        self.agent_selection = self.turns[0][0]

    def step(self, action: Any) -> None:
        agent = self.agent_selection
        if self.terminations[agent] or self.truncations[agent]:
            self._was_dead_step(action)
            return
        self.received.append((agent, action))
        self._cumulative_rewards[agent] = 0.0
        _, paid, out = self.turns[self.t]
        self.rewards = {a: paid.get(a, 0.0) for a in self.agents}
        self._accumulate_rewards()
        for name in out:
            flags = self.truncations if name.startswith("-") else self.terminations
            flags[name.lstrip("-")] = True
        self.t += 1
        if self.t < len(self.turns):
            self.agent_selection = self.turns[self.t][0]
        self._deads_step_first()


def turns(*listed: Any, agents: tuple[str, ...] = ("a", "b")) -> JointEnvironment:
    return make_joint_environment(lambda: Script(list(listed), agents))


def play(env: JointEnvironment, seed: int = 0) -> list[Any]:
    """(who acted, rewards, who ended, who was cut off) of every step of an episode."""
    rows, told = env.reset(seed), []
    while rows.alive.any():
        acted, rows = names(env, rows.alive), env.step(all_play(env, 0))
        told.append((acted, rows.rewards.tolist(), names(env, rows.terminated), names(env, rows.truncated)))
    return told


def test_turns_pass_between_agents_and_rewards_come_with_the_next_own_turn() -> None:
    env = turns(("a", {"b": 1.0}, []), ("b", {"a": 2.0}, []), ("a", {"a": 3.0, "b": 4.0}, ["a", "-b"]))
    rows = env.reset(0)
    assert (names(env, rows.alive), rows.observations["a"].tolist()) == (["a"], [[0, 0], [0, 0]])
    rows = env.step(all_play(env, 1))
    assert (names(env, rows.alive), rows.observations["a"].tolist()) == (["b"], [[0, 0], [1, 1]])
    assert rows.rewards.tolist() == [0, 1]
    rows = env.step(all_play(env, 2))
    assert (names(env, rows.alive), rows.rewards.tolist()) == (["a"], [2, 0])
    rows = env.step(all_play(env, 0))
    assert (names(env, rows.alive), rows.rewards.tolist()) == ([], [3, 4])
    assert (names(env, rows.terminated), names(env, rows.truncated)) == (["a"], ["b"])
    assert rows.observations["a"].tolist() == [[3, 0], [3, 1]]
    assert env.game.env.received == [("a", 1), ("b", 2), ("a", 0)]


def test_one_who_is_out_leaves_and_the_others_play_on() -> None:
    env = turns(
        ("a", {}, []), ("b", {"c": -1.0}, ["c"]), ("a", {"a": 2.0}, []), ("b", {}, ["a", "b"]), agents=("a", "b", "c")
    )
    assert play(env) == [
        (["a"], [0, 0, 0], [], []),
        (["b"], [0, 0, -1], ["c"], []),
        (["a"], [0, 0, 0], [], []),
        (["b"], [2, 0, 0], ["a", "b"], []),
    ]


def test_a_game_that_forgets_its_agents_cut_them_off() -> None:
    class Forgetful(Script):
        def step(self, action: Any) -> None:
            super().step(action)
            if self.t == 2:
                self.agents = []

    listed = [("a", {"b": 1.0}, []), ("b", {"a": 2.0}, [])]
    env = make_joint_environment(lambda: Forgetful(listed))
    assert play(env)[-1] == (["b"], [2, 0], [], ["a", "b"])


def test_a_cut_after_so_many_turns_gives_everyone_a_last_look_and_what_is_owed() -> None:
    env = turns(*[("a", {"b": 1.0}, []), ("b", {"a": 10.0}, [])] * 5)
    env.max_steps = 2
    told = play(env)
    assert [acted for acted, *_ in told] == [["a"], ["b"], ["a"], ["b"]]
    assert told[-1] == (["b"], [10, 0], [], ["a", "b"])
    rows = [env.reset(0)] + [env.step(all_play(env, 0)) for _ in range(4)]
    assert rows[-1].observations["a"].tolist() == [[4, 0], [4, 1]]
    assert sum(row.rewards for row in rows).tolist() == [20, 2]


def test_a_cut_of_the_parallel_api_is_no_termination() -> None:
    env = make_joint_environment("mpe2/simple_spread_v3")
    env.max_steps = 3
    told = play(env)
    assert [(ended, len(cut)) for _, _, ended, cut in told] == [([], 0), ([], 0), ([], 3)]


def test_an_environment_of_turns_that_is_a_parallel_one_in_disguise_is_unwrapped() -> None:
    env = make_joint_environment(lambda: parallel_to_aec(Scripted([({"a": look(1)}, ["a"])])))
    assert not env.spec.turn_based


def test_tictactoe_sees_the_board_alone_and_refuses_a_taken_square() -> None:
    env = make_joint_environment(tictactoe)
    assert env.spec.observation_spaces["player_1"].shape == (3, 3, 2)
    rows = env.reset(0)
    assert rows.observations["player_1"].shape == (2, 18)
    env.step(all_play(env, 4))
    with pytest.raises(IllegalAction, match=r"player_2 cannot play 4 now: .*\[0, 1, 2, 3, 5, 6, 7, 8\]"):
        env.step(all_play(env, 4))


# Learners and others


def test_patterns_say_who_learns() -> None:
    env = with_others(make_joint_environment("mpe2/simple_tag_v3"), ["adversary_1", "adv*_2"])
    assert env.spec.agents == ("adversary_1", "adversary_2")
    assert env.reset(0).observations["adversary_1"].shape == (2, 16)
    assert env.spec.state_space is not None
    assert env.spec.state_space.shape == (62,)  # the game's, not the learners'


def test_all_may_learn() -> None:
    env = make_joint_environment("mpe2/simple_tag_v3")
    assert with_others(env, ["*"]) is env


@pytest.mark.parametrize("patterns", [["prey"], ["adversary_*", "agent"]])
def test_a_pattern_that_no_agent_fits_names_the_agents(patterns: list[str]) -> None:
    with pytest.raises(EnvironmentUnavailable, match=f"no agent fits '{patterns[-1]}'.*adversary_0, .*agent_0"):
        with_others(make_joint_environment("mpe2/simple_tag_v3"), patterns)


def test_someone_must_learn_and_random_players_need_bounds() -> None:
    with pytest.raises(EnvironmentUnavailable, match="expected agents that learn"):
        with_others(make_joint_environment("mpe2/simple_tag_v3"), [])
    unbounded = scripted([({"a": look(1), "b": look(1)}, ["a", "b"])], action=spaces.Box(-np.inf, np.inf, (1,)))
    with pytest.raises(EnvironmentUnavailable, match="random play needs bounded actions of"):
        with_others(unbounded, ["a"])


def test_what_learners_get_is_what_the_game_gives_them() -> None:
    """The prey plays its own moves, replayed by a plain loop."""
    env, plain = (
        with_others(make_joint_environment("mpe2/simple_tag_v3"), ["adversary_*"]),
        simple_tag_v3.parallel_env(),
    )
    rows = env.reset(4)
    expected = plain.reset(seed=4)
    moves = np.random.default_rng((4, 1))
    while rows.alive.any():
        rows = env.step({"adversary_0": np.array([1, 2, 3])})
        prey = int(moves.integers(5))
        expected = plain.step({"adversary_0": 1, "adversary_1": 2, "adversary_2": 3, "agent_0": prey})
        assert np.array_equal(rows.observations["adversary_0"], np.stack([expected[0][a] for a in env.spec.agents]))
        assert rows.rewards.tolist() == [expected[1][a] for a in env.spec.agents]
        assert rows.truncated.tolist() == [expected[3][a] for a in env.spec.agents]


def test_random_players_are_a_function_of_the_reset_seed_and_play_what_is_legal() -> None:
    env = with_others(make_joint_environment("classic/tictactoe_v3"), ["player_2"])

    def first_moves(seed: int) -> list[Any]:
        rows, moves = env.reset(seed), []
        while rows.alive.any():
            assert names(env, rows.alive) == ["player_2"]
            moves.append(rows.observations["player_2"].tolist())
            assert rows.action_mask is not None
            rows = env.step({"player_2": rows.action_mask["player_2"].argmax(1)})
        return moves

    games = [first_moves(seed) for seed in range(20)]
    assert games == [first_moves(seed) for seed in range(20)]
    assert len({str(game[0]) for game in games}) > 5


def test_players_of_another_policy_see_what_the_environment_gives_them() -> None:
    class Player:
        def __init__(self) -> None:
            self.seen: list[Any] = []
            self.resets = 0

        def reset(self) -> None:
            self.resets += 1

        def act(self, observations: Any) -> dict[str, Any]:
            self.seen.append(observations)
            return {agent: int(np.flatnonzero(o["action_mask"])[-1]) for agent, o in observations.items()}

    player = Player()
    env = with_others(make_joint_environment("classic/tictactoe_v3"), ["player_1"], player)
    rows, before = env.reset(0), player.resets
    rows = env.step({"player_1": np.array([0])})
    assert [observation.keys() for observation in player.seen] == [{"player_2"}]
    assert player.seen[0]["player_2"]["observation"].shape == (3, 3, 2)
    assert rows.observations["player_1"].reshape(3, 3, 2)[2, 2].tolist() == [0, 1]  # the last square is taken
    env.reset(1)
    assert player.resets == before + 1


@pytest.mark.parametrize(
    ("answer", "words"), [({}, "policy of the other agents, got none"), ({"b": 7}, "b cannot play 7")]
)
def test_a_policy_of_others_that_does_not_answer_is_not_the_environments_fault(answer: Any, words: str) -> None:
    class Player:
        def reset(self) -> None:
            pass

        def act(self, observations: Any) -> Any:
            return answer

    both = {"a": look(1), "b": look(2)}
    env = with_others(scripted([(both, ["a", "b"])] * 3, agents=("a", "b")), ["a"], Player())
    env.reset(0)
    with pytest.raises(IllegalAction, match=words):
        env.step({"a": np.array([0])})


def test_rewards_before_a_learners_first_turn_come_with_its_first_step() -> None:
    env = with_others(turns(("a", {"b": 1.0}, []), ("b", {"b": 2.0}, ["a", "b"])), ["b"])
    rows = env.reset(0)
    assert (rows.rewards.tolist(), names(env, rows.alive)) == ([0], ["b"])
    assert play(env) == [(["b"], [3], ["b"], [])]


def test_a_game_that_is_over_before_a_learners_turn_has_one_step_in_which_nobody_acts() -> None:
    env = with_others(turns(("a", {"b": -1.0}, ["a", "b"])), ["b"])
    rows = env.reset(0)
    assert not (rows.alive.any() or rows.rewards.any() or rows.terminated.any())
    rows = env.step(all_play(env, 0))
    assert (rows.rewards.tolist(), rows.terminated.tolist(), rows.alive.tolist()) == ([-1], [True], [False])


def test_learners_who_join_later_are_waited_for_and_those_who_left_are_not() -> None:
    env = scripted(
        [
            ({"a": look(1)}, ["a"]),
            ({"a": look(2), "b": look(3)}, ["a", "b"]),
            ({"a": look(4), "b": look(5, 6.0, terminated=True)}, ["a"]),
            ({"a": look(7)}, []),
        ],
        agents=("a", "b"),
    )
    env = with_others(env, ["b"])
    assert seen(env, env.reset(0)) == {"b": 3}
    env.game.env.received.clear()
    assert play(env) == [(["b"], [6], ["b"], [])]
    assert len(env.game.env.received) == 2


# Resets


class Counting(Scripted):
    """Counts its steps, and forgets the count at a reset only if asked to; every 20th step looks different."""

    def __init__(self, forgets: bool) -> None:
        super().__init__([], agents=("a",))
        self.forgets, self.count = forgets, 0

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.agents, self.count = ["a"], 0 if self.forgets else self.count
        return {"a": np.zeros(2)}, {"a": {}}

    def step(self, actions: Any) -> Any:
        self.count += 1
        given = look(self.count % 20 == 0)
        return *({"a": part} for part in given), {"a": {}}


@pytest.mark.parametrize("forgets", [True, False])
def test_reset_that_does_not_put_everything_back_is_found_out(forgets: bool) -> None:
    assert check_reset(make_joint_environment(lambda: Counting(forgets))) == forgets


@pytest.mark.parametrize(
    "name", ["mpe2/simple_spread_v3", "mpe2/simple_tag_v3", "classic/tictactoe_v3", "CartPole-v1", "Pendulum-v1"]
)
def test_reset_determines_the_state(name: str) -> None:
    assert check_reset(make_joint_environment(name))


def test_knights_archers_zombies_is_not_complete_at_a_reset() -> None:
    raw("butterfly.knights_archers_zombies.knights_archers_zombies")
    assert not check_reset(make_joint_environment("butterfly/knights_archers_zombies_v11"))


def test_random_actions_are_legal_and_reach_every_legal_one() -> None:
    generator = np.random.default_rng(0)
    discrete = spaces.Discrete(4, start=-2)
    assert {random_action(discrete, [1, 0, 0, 1], generator) for _ in range(50)} == {-2, 1}
    assert {random_action(discrete, None, generator) for _ in range(200)} == {-2, -1, 0, 1}
    box = spaces.Box(np.array([0.0, -np.inf]), np.array([1.0, 0.5]), dtype=np.float64)
    assert all(box.contains(random_action(box, None, generator)) for _ in range(50))
