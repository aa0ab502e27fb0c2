"""What an environment with many agents gives is checked by field and agent: at the start, and in each step."""

import logging
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from pettingzoo import AECEnv, ParallelEnv
from pettingzoo.utils.conversions import aec_to_parallel

from herdbook.core.environments import EnvironmentUnavailable
from herdbook.core.joint.actor import JointActor
from herdbook.core.joint.boundary import legal_actions, number
from herdbook.core.joint.environments import check_reset, make_joint_environment, with_others
from herdbook.core.joint.random_policy import JointRandomPolicy
from herdbook.core.joint.runner import JointRunner
from herdbook.core.registry import cause
from herdbook.core.runner import EnvironmentFailed
from herdbook.experiments.domain import Task
from herdbook.experiments.many_agents import ManyAgents

BOX = spaces.Box(-np.inf, np.inf, (2,), np.float32)
THREE = spaces.Discrete(3)
LIMIT = 30


class Plain(ParallelEnv):
    """Agents a and b, who see the step and their own number; each step pays 1. Tests change one answer."""

    metadata: ClassVar[dict[str, Any]] = {"name": "plain_v0"}
    render_mode = None
    names: ClassVar[Any] = ("a", "b")
    seen: ClassVar[Any] = BOX

    def __init__(self) -> None:
        self.possible_agents = list(self.names)
        self.agents: list[Any] = []

    def observation_space(self, agent: Any) -> Any:
        return self.seen

    def action_space(self, agent: Any) -> Any:
        return THREE

    def look(self, agent: Any) -> Any:
        return np.array([self.t, self.names.index(agent)], np.float32)

    def present(self) -> list[Any]:
        """The agents after this step."""
        return list(self.names) if self.t < LIMIT else []

    def infos(self, agents: list[Any]) -> Any:
        return {agent: {} for agent in agents}

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.t = 0
        self.agents = self.present()
        return {agent: self.look(agent) for agent in self.agents}, self.infos(self.agents)

    def step(self, actions: Mapping[Any, Any]) -> Any:
        acted, self.t = list(self.agents), self.t + 1
        assert set(actions) == set(acted)
        self.agents = self.present()
        told = list(dict.fromkeys([*acted, *self.agents]))
        observations = {agent: self.look(agent) for agent in told}
        no, cut = dict.fromkeys(told, False), dict.fromkeys(told, self.t >= LIMIT)
        return self.told(observations, dict.fromkeys(acted, 1.0), no, cut, self.infos(told))

    def told(self, *given: Any) -> Any:
        return given


def played(source: Any, episodes: int = 1, **options: Any) -> Any:
    """Random episodes, none lost, and the runner."""
    runner = JointRunner(source, 1, **options)
    result = runner.run(JointRandomPolicy(runner.spec), range(episodes))
    assert not result.failures
    return result.episodes, runner


def stepped(change: Callable[[Any], None]) -> type[Plain]:
    """`Plain` with its answers to `step` changed in place."""

    class Changed(Plain):
        def told(self, *given: Any) -> Any:
            change(given)
            return given

    return Changed


# Fields and agents


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda given: given[1].update(a=np.array([1.0, 2.0])), r"rewards of a: expected a number, got an array of sh"),
        (lambda given: given[1].update(a=[1.0, [2.0]]), r"rewards of a: expected a number, got list"),
        (lambda given: given[1].update(b=None), r"rewards of b: expected a number, got None"),
        (lambda given: given[1].update(b="much"), r"rewards of b: expected a number, got array\('much'|got 'much'"),
        (lambda given: given[1].update(team=1.0), r"rewards: expected agents among possible_agents, got \['team'\]"),
        (lambda given: given[0].update(team=1.0), r"observations: expected agents among possible_agents, got \['team'"),
        (lambda given: given[2].update(c=False), r"terminations: expected agents among possible_agents, got \['c'\]"),
        (lambda given: given[3].update(a=np.zeros(2)), r"truncations of a: expected a number, got an array"),
        (lambda given: given[3].update(__all__="no"), r"truncations of __all__: expected a number, got 'no'"),
        (lambda given: given[0].pop("b"), "observations: expected an observation of b, which acts next, got none"),
        (
            lambda given: given[0].update(b=None),
            "observations: expected an observation of b, which acts next, got none",
        ),
        (lambda given: given[0].update(b=np.zeros(3)), r"observations of b: expected an observation in Box.* \(3,\)"),
        (lambda given: given[4]["a"].update(action_mask=[1, 1]), r"action_mask of a: expected shape \(3,\), .* \(2,\)"),
        (lambda given: given[4]["a"].update(action_mask=[1]), r"action_mask of a: expected shape \(3,\), .* \(1,\)"),
        (lambda given: given[4]["a"].update(action_mask=[0, -9, 0]), "action_mask of a: expected 1 for legal actions"),
    ],
)
def test_a_wrong_answer_names_its_field_and_agent_at_the_start(change: Callable[[Any], None], words: str) -> None:
    with pytest.raises(EnvironmentUnavailable, match=f"Changed: {words}"):
        JointRunner(stepped(change), 1)


@pytest.mark.parametrize("value", [1, np.float32(1), np.array(1.0), np.array([1.0]), [1.0], np.array([[1]]), True])
def test_a_reward_may_be_any_single_number(value: Any) -> None:
    episodes, _ = played(stepped(lambda given: given[1].update(a=value, b=value)))
    assert (episodes[0].rewards == 1).all()


def test_a_missing_reward_is_zero_and_a_missing_flag_false() -> None:
    def change(given: Any) -> None:
        given[1].pop("b")
        given[2].clear()

    episodes, _ = played(stepped(change))
    assert episodes[0].rewards.sum(0).tolist() == [LIMIT, 0]


def test_a_flag_for_all_holds_for_every_agent() -> None:
    """As RLlib's environments give it, without flags by agent."""

    class Flagged(Plain):
        def told(self, *given: Any) -> Any:
            if self.t == 4:
                self.agents = []
            return given[0], given[1], {"__all__": self.t == 4}, {"__all__": False}, given[4]

    episodes, _ = played(Flagged)
    assert len(episodes[0]) == 4
    assert episodes[0].terminated.sum(0).tolist() == [1, 1]
    assert not episodes[0].truncated.any()


@pytest.mark.parametrize(
    ("method", "answer", "words"),
    [
        ("reset", {"a": np.zeros(2), "b": np.zeros(2)}, r"reset\(\): expected \(observations, infos\), got dict"),
        ("reset", (np.zeros((2, 2)), {}), "observations: expected a dict by agent, got ndarray"),
        ("reset", ({"a": np.zeros(2), "b": np.zeros(2)}, 3.0), "infos: expected a dict by agent, got float"),
        ("step", ({}, {}, {}, {}), r"step\(\): expected \(observations, .*infos\), got 4 values"),
        ("step", ({}, 1.0, {}, {}, {}), "rewards: expected a dict by agent, got float"),
    ],
)
def test_an_answer_of_another_form_names_the_method(method: str, answer: Any, words: str) -> None:
    class Old(Plain):
        pass

    def given(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.t, self.agents = 0, ["a", "b"]
        return answer

    setattr(Old, method, given)
    with pytest.raises(EnvironmentUnavailable, match=f"Old: {words}"):
        JointRunner(Old, 1)


def test_a_wrong_answer_later_loses_the_episode_and_says_the_same() -> None:
    class Later(Plain):
        def told(self, *given: Any) -> Any:
            if self.t == 26:
                given[1]["b"] = np.ones(2)
            return given

    runner = JointRunner(Later, 1)
    result = runner.run(JointRandomPolicy(runner.spec), [7])
    assert "Later broke its interface: rewards of b: expected a number" in result.failures[0]
    assert "reset seed 7, step 25" in result.failures[0]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({"a", "b"}, "possible_agents: expected a list, which has an order, got a set"),
        ("ab", "possible_agents: expected a list, which has an order, got a str"),
        (None, "possible_agents: expected a list, which has an order, got a NoneType"),
        ([("a", 1)], r"possible_agents: expected agents named by strings or integers, got \[\('a', 1\)\]"),
        (["a", "a"], "expected distinct agents"),
    ],
)
def test_possible_agents_are_a_list_of_names(names: Any, words: str) -> None:
    def make() -> Plain:
        env = Plain()
        env.possible_agents = names
        return env

    with pytest.raises(EnvironmentUnavailable, match=words):
        make_joint_environment(make)


def test_spaces_may_be_a_dict_by_agent() -> None:
    def make() -> Plain:
        env: Any = Plain()
        env.observation_space, env.action_space = dict.fromkeys("ab", BOX), spaces.Dict(a=THREE, b=spaces.Discrete(2))
        return env

    episodes, runner = played(make)
    assert runner.spec.action_spaces == {"a": THREE, "b": spaces.Discrete(2)}
    assert len(episodes[0]) == LIMIT


@pytest.mark.parametrize(
    ("attribute", "value", "words"),
    [
        ("observation_space", BOX, "observation_space: expected a method .* got an attribute, Box"),
        ("action_space", None, "action_space: expected a method .* got an attribute, NoneType"),
        ("action_space", {"a": THREE}, r"action_space\('b'\) raised KeyError: 'b'"),
        ("action_space", lambda agent: {"a": THREE}[agent], r"action_space\('b'\) raised KeyError: 'b'"),
        ("observation_space", lambda agent: None, r"observation_space\('a'\): expected a space of Gymnasium, got None"),
    ],
)
def test_a_missing_space_names_the_method_and_the_agent(attribute: str, value: Any, words: str) -> None:
    def make() -> Plain:
        env = Plain()
        setattr(env, attribute, value)
        return env

    with pytest.raises(EnvironmentUnavailable, match=f"make: {words}"):
        make_joint_environment(make)


@pytest.mark.parametrize("entry", [3.5, np.arange(6), {"time": 1}, "goal", None])
def test_infos_that_belong_to_no_agent_do_not_matter(entry: Any) -> None:
    class Common(Plain):
        def infos(self, agents: list[Any]) -> Any:
            return {**super().infos(agents), "a": entry, "common": entry}

    class Nothing(Plain):
        def infos(self, agents: list[Any]) -> Any:
            return None

    for source in (Common, Nothing):
        episodes, runner = played(source)
        assert not runner.spec.masked
        assert len(episodes[0]) == LIMIT


def test_an_exception_without_a_text_says_where_it_was_raised() -> None:
    class Silent(Plain):
        def step(self, actions: Any) -> Any:
            if self.t == 3:
                raise ValueError
            return super().step(actions)

    with pytest.raises(EnvironmentFailed, match=r"ValueError without a message, in test_joint_boundary.py, line"):
        JointRunner(Silent, 1)
    assert cause(ValueError("two\n  lines")) == "ValueError: two lines"
    assert cause(KeyError()) == "KeyError"


def test_numbers_and_masks_by_hand() -> None:
    assert number("rewards", "a", np.array([[2]])) == 2.0
    assert type(number("rewards", "a", np.array([2]))) is float
    assert legal_actions("a", [0, 1, 1], 3).tolist() == [False, True, True]
    assert legal_actions("a", np.array([1.0, 0.0]), 2).tolist() == [True, False]


# Names


class Numbered(Plain):
    names: ClassVar[Any] = (0, np.int64(1))


class NumberedTurns(AECEnv):
    """Agents 0 and 1 in turn, three times each; each turn pays the other agent its number + 1."""

    metadata: ClassVar[dict[str, Any]] = {"name": "turns_v0", "is_parallelizable": True}
    render_mode = None

    def __init__(self) -> None:
        super().__init__()
        self.possible_agents = [0, 1]

    def observation_space(self, agent: Any) -> Any:
        return BOX

    def action_space(self, agent: Any) -> Any:
        return THREE

    def observe(self, agent: Any) -> Any:
        return np.array([self.t, agent], np.float32)

    def reset(self, seed: int | None = None, options: Any = None) -> None:
        self.agents, self.t, self.agent_selection = [0, 1], 0, 0
        self.rewards, self._cumulative_rewards = {0: 0.0, 1: 0.0}, {0: 0.0, 1: 0.0}
        self.terminations, self.truncations = {0: False, 1: False}, {0: False, 1: False}
        self.infos: dict[Any, Any] = {0: {}, 1: {}}

    def step(self, action: Any) -> None:
        agent = self.agent_selection
        if self.terminations[agent]:
            self._was_dead_step(action)
            return
        self._cumulative_rewards[agent] = 0.0
        self.rewards = {other: (other + 1.0) * (other != agent) for other in self.agents}
        self._accumulate_rewards()
        self.t += 1
        self.agent_selection = 1 - agent
        self.terminations = dict.fromkeys(self.agents, self.t == 6)
        self._deads_step_first()


def test_agents_may_be_named_by_integers() -> None:
    episodes, runner = played(Numbered)
    assert runner.spec.agents == ("0", "1")
    assert episodes[0].observations["0"][3].tolist() == [[3, 0], [3, 1]]
    assert episodes[0].rewards.sum(0).tolist() == [LIMIT, LIMIT]
    assert episodes[0].truncated[-1].all()
    env = with_others(make_joint_environment(Numbered), [1])  # type: ignore[list-item]  # as a user would
    assert env.spec.agents == ("1",)
    assert env.reset(0).alive.tolist() == [True]
    assert env.step({"1": np.array([0])}).rewards.tolist() == [1]


@pytest.mark.parametrize("parallel", [False, True])
def test_agents_named_by_integers_take_turns(parallel: bool) -> None:
    episodes, runner = played(lambda: aec_to_parallel(NumberedTurns()) if parallel else NumberedTurns())
    assert runner.spec.agents == ("0", "1")
    assert runner.spec.turn_based != parallel
    assert episodes[0].rewards.sum(0).tolist() == [3, 6]
    assert episodes[0].terminated.sum(0).tolist() == [1, 1]


def test_an_actor_answers_by_the_environments_own_names() -> None:
    runner = JointRunner(Numbered, 1)
    actor = JointActor(JointRandomPolicy(runner.spec), runner.spec)
    env = Numbered()
    observations, _ = env.reset()
    assert set(actor.act(observations, rewards={0: 1.0})) == {0, 1}  # type: ignore[arg-type,dict-item]  # the point


@pytest.mark.parametrize(
    ("names", "learn", "chosen"),
    [
        (("agent[0]", "agent[1]", "agent0"), ["agent[0]"], ("agent[0]",)),
        (("agent[0]", "agent[1]", "agent0"), ["agent[[]?[]]"], ("agent[0]", "agent[1]")),
        (("x?team=0", "x?team=1", "xxteam=0"), ["x?team=0"], ("x?team=0",)),
        (("*", "a", "b"), ["*"], ("*",)),
        (("*", "a", "b"), ["*", "b"], ("*", "b")),
    ],
)
def test_the_name_of_an_agent_is_no_pattern(names: Any, learn: list[str], chosen: Any) -> None:
    source = type("Named", (Plain,), {"names": names})
    assert with_others(make_joint_environment(source), learn).spec.agents == chosen


# Masks of legal actions

MASK = spaces.Box(0, 1, (3,), np.int8)


class Masked(Plain):
    """Only action t mod 3 is legal at step t; the mask is a part of the observation."""

    parts: ClassVar[dict[str, Any]] = {"observations": BOX}
    seen = None
    illegal: ClassVar[list[int]] = []

    def observation_space(self, agent: Any) -> Any:
        return spaces.Dict({**self.parts, "action_mask": MASK})

    def look(self, agent: Any) -> Any:
        flat = super().look(agent)
        given = {"observation": flat, "observations": flat, "board": flat, "hand": 2, "to_play": np.array([42.0])}
        return {**{name: given[name] for name in self.parts}, "action_mask": np.eye(3, dtype=np.int8)[self.t % 3]}

    def step(self, actions: Any) -> Any:
        self.illegal.extend(int(action) for action in actions.values() if action != self.t % 3)
        return super().step(actions)


@pytest.mark.parametrize(
    ("parts", "row"),
    [
        ({"observations": BOX}, [5, 1]),
        ({"board": BOX}, [5, 1]),
        ({"board": BOX, "hand": spaces.Discrete(4)}, [5, 1, 0, 0, 1, 0]),
        ({"observation": BOX, "to_play": spaces.Box(0, 99, (1,))}, [5, 1, 42]),
    ],
)
def test_an_action_mask_beside_any_part_is_the_mask(parts: dict[str, Any], row: list[int]) -> None:
    source = type("Source", (Masked,), {"parts": parts, "illegal": []})
    episodes, runner = played(source, 3)
    assert runner.spec.masked
    assert not source.illegal  # type: ignore[attr-defined]
    assert episodes[0].observations["a"][5, 1].tolist() == row
    assert episodes[0].action_mask["a"][5, 1].tolist() == [False, False, True]


def test_an_actor_and_other_players_split_the_same_masks() -> None:
    source = type("Source", (Masked,), {"parts": {"board": BOX, "hand": spaces.Discrete(4)}, "illegal": []})
    runner = JointRunner(source, 1)
    actor = JointActor(JointRandomPolicy(runner.spec), runner.spec)
    env: Any = source()
    observations, _ = env.reset()
    assert actor.act(observations) == {"a": 0, "b": 0}
    whole = {
        agent: {"observation": seen, "action_mask": seen.pop("action_mask")} for agent, seen in observations.items()
    }
    assert actor.act(whole) == {"a": 0, "b": 0}
    played(source, 2, learners=["a"], others=actor)
    played(source, 2, learners=["a"])
    assert not source.illegal  # type: ignore[attr-defined]


def test_a_mask_of_another_length_than_the_actions_is_refused_by_name() -> None:
    space = spaces.Dict({"observation": BOX, "action_mask": spaces.Box(0, 1, (4,), np.int8)})
    source = type("Source", (Plain,), {"seen": space})
    with pytest.raises(EnvironmentUnavailable, match=r"action_mask in observation_space\('a'\): expected shape \(3,\)"):
        make_joint_environment(source)
    alone = type("Source", (Plain,), {"seen": spaces.Dict({"action_mask": MASK})})
    with pytest.raises(EnvironmentUnavailable, match=r"observation_space\('a'\): expected an observation beside"):
        make_joint_environment(alone)


class LateMasks(Plain):
    """Agent b has a mask in its info from step `first` on; only action 1 is legal for it then."""

    first = 3
    illegal: ClassVar[list[int]] = []

    def infos(self, agents: list[Any]) -> Any:
        masked = self.t >= self.first
        return {a: {"action_mask": np.array([0, 1, 0], np.int8)} if a == "b" and masked else {} for a in agents}

    def step(self, actions: Any) -> Any:
        self.illegal.extend([actions["b"]] * (self.t >= self.first and actions["b"] != 1))
        return super().step(actions)


def test_masks_of_any_agent_are_looked_for_in_the_first_steps() -> None:
    source = type("Source", (LateMasks,), {"illegal": []})
    runner = JointRunner(source, 2)
    assert runner.spec.masked
    assert not runner.rebuild
    source.illegal.clear()  # type: ignore[attr-defined]
    result = runner.run(JointRandomPolicy(runner.spec), range(4))
    assert not result.failures
    assert not source.illegal  # type: ignore[attr-defined]
    mask = result.episodes[0].action_mask  # type: ignore[union-attr]
    assert mask is not None
    assert mask["a"][2:4].tolist() == [[[True] * 3] * 2, [[True] * 3, [False, True, False]]]


def test_a_mask_that_appears_after_the_first_steps_names_its_agent() -> None:
    runner = JointRunner(type("Source", (LateMasks,), {"first": 26}), 1)
    assert not runner.spec.masked
    failures = runner.run(JointRandomPolicy(runner.spec), [0]).failures
    assert "infos: expected no action_mask of b, since the first steps had none, got one" in failures[0]


def test_a_mask_of_a_box_is_an_ordinary_part() -> None:
    class Boxed(Plain):
        seen = spaces.Dict({"x": BOX, "action_mask": MASK})

        def action_space(self, agent: Any) -> Any:
            return spaces.Box(-1, 1, (1,))

        def look(self, agent: Any) -> Any:
            return {"x": super().look(agent), "action_mask": np.ones(3, np.int8)}

        def infos(self, agents: list[Any]) -> Any:
            return {agent: {"action_mask": np.ones(7)} for agent in agents}

    episodes, _ = played(Boxed)
    assert episodes[0].observations["a"].shape == (LIMIT + 1, 2, 5)


# The global state


def stated(state: Callable[[Any], Any]) -> type[Plain]:
    """`Plain` with a method `state`, a function of the environment."""
    return type("Stated", (Plain,), {"state": lambda self: state(self)})


@pytest.mark.parametrize(
    ("state", "row"),
    [
        (lambda env: {0: np.array([env.t, 1.0]), 1: np.array([2.0])}, [4, 1, 2]),
        (lambda env: {"x": {1: np.array([env.t])}, "y": [5.0, 6.0]}, [4, 5, 6]),
        (lambda env: (np.array([env.t, 1.0]), np.array([2.0])), [4, 1, 2]),
        (lambda env: [np.array([env.t, 1.0]), {"x": 2.0}], [4, 1, 2]),
        (lambda env: (np.array([env.t, 1.0]), np.array([2.0, 3.0])), [4, 1, 2, 3]),
        (lambda env: float(env.t), [4]),
    ],
)
def test_a_state_may_have_number_keys_and_uneven_parts(state: Callable[[Any], Any], row: list[float]) -> None:
    episodes, _ = played(stated(state))
    assert episodes[0].state[4].tolist() == row


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (lambda env: np.zeros(1 if env.t == 3 else 4), r"state\(\): expected shape \(4,\), .* got \(1,\)"),
        (lambda env: np.zeros((1, 4) if env.t == 3 else 4), r"state\(\): expected shape \(4,\), .* got \(1, 4\)"),
        (lambda env: np.zeros((2, 1) if env.t == 3 else (2, 2)), r"state\(\): expected .*\(2, 2\).* got \(2, 1\)"),
        (
            lambda env: np.zeros((2, 3, 3) if env.t == 3 else (3, 3, 3), np.uint8),
            r"state\(\): .*\(3, 3, 3\).*\(2, 3, 3\)",
        ),
        (lambda env: {"x": np.zeros(1 if env.t == 3 else 2)}, r"state\(\): expected .*'x'.*\(2,\).* got \(1,\)"),
        (lambda env: {"y" if env.t == 3 else "x": np.zeros(2)}, r"state\(\): expected values with a part 'x'"),
        (lambda env: 1 / (env.t - 3), r"state\(\) raised ZeroDivisionError"),
        (lambda env: "here", r"state\(\): expected numbers, got str"),
    ],
)
def test_a_state_that_changes_its_shape_or_raises_is_named(state: Callable[[Any], Any], words: str) -> None:
    with pytest.raises(EnvironmentUnavailable, match=words):
        JointRunner(stated(state), 1)


def test_a_state_that_raises_after_the_end_is_repeated_and_named(caplog: pytest.LogCaptureFixture) -> None:
    """As multiwalker's does after a fall."""
    source = stated(lambda env: np.array([env.t]) if env.agents else None.position)  # type: ignore[attr-defined]
    with caplog.at_level(logging.WARNING, logger="herdbook"):
        runner = JointRunner(source, 3)
        result = runner.run(JointRandomPolicy(runner.spec), range(6))
    assert not result.failures
    state: Any = result.episodes[0].state  # type: ignore[union-attr]
    assert state[:, 0].tolist() == [*range(LIMIT), LIMIT - 1]
    assert [record.message for record in caplog.records] == [
        "Stated: state() raised AttributeError: 'NoneType' object has no attribute 'position' where an episode is over"
        "; the state before is repeated there"
    ]


def test_a_state_that_always_raises_is_none_and_is_told_to_those_who_read_it(caplog: pytest.LogCaptureFixture) -> None:
    source = stated(lambda env: env.nothing)
    for state, told in ((False, 0), (True, 1)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="herdbook"):
            _, runner = played(source, state=state)
        assert runner.spec.state_space is None
        assert len(caplog.records) == told
    assert "Stated: state() raised AttributeError" in caplog.text
    assert "the joint observation stands in for it" in caplog.text


def test_a_state_that_raises_does_not_matter_to_those_who_do_not_read_it() -> None:
    source = stated(lambda env: np.zeros(2 // (env.t != 3)))
    domain = ManyAgents()
    spec = domain.environment_spec(source)
    assert spec.state_space is not None
    task = Task(domain=domain, spec=spec, environment=source)
    domain.try_environment(task, "cpu")
    assert domain.score(task, JointRandomPolicy(spec), 1, 0, "cpu")["returns"] == [2.0 * LIMIT]
    with pytest.raises(EnvironmentUnavailable, match=r"Stated: state\(\) raised ZeroDivisionError"):
        domain.play(task, JointRandomPolicy(spec), 1, 0, "cpu", 1)


# Arrays of the environment are copied


class Reused(Plain):
    """Writes into the same arrays at every step; b leaves at step 3, and nothing is told of it then."""

    def __init__(self) -> None:
        super().__init__()
        self.buffers = {agent: np.zeros(2, np.float32) for agent in "ab"}
        self.whole, self.paid = np.zeros(1, np.float32), {agent: np.zeros(1) for agent in "ab"}

    def look(self, agent: Any) -> Any:
        self.buffers[agent][:] = super().look(agent)
        return self.buffers[agent]

    def present(self) -> list[Any]:
        self.whole[:] = self.t
        return [agent for agent in super().present() if agent == "a" or self.t < 3]

    def told(self, *given: Any) -> Any:
        for agent in given[1]:
            self.paid[agent][:] = self.t
            given[1][agent] = self.paid[agent]
        if self.t == 3:
            given[0].pop("b")
            self.buffers["b"][:] = -9
        return given

    def state(self) -> Any:
        return self.whole


def test_arrays_that_the_environment_uses_again_are_copied() -> None:
    episodes, _ = played(Reused)
    assert episodes[0].observations["a"][:4].tolist() == [[[t, 0], [t, 1]] for t in range(3)] + [[[3, 0], [2, 1]]]
    assert episodes[0].state[:, 0].tolist() == [*range(LIMIT + 1)]
    assert episodes[0].rewards[:, 0].tolist() == [*range(1, LIMIT + 1)]
    env = make_joint_environment(Reused)
    rows = [env.reset(0), env.step({"a": np.zeros(2, int)}), env.step({"a": np.zeros(2, int)})]
    assert [row.state.tolist() for row in rows] == [[0], [1], [2]]


def test_a_state_in_one_array_does_not_hide_an_incomplete_reset() -> None:
    """Kept by reference, every row of both runs would show the last value."""

    class Counting(Plain):
        count, whole = 0, np.zeros(1, np.float32)

        def present(self) -> list[Any]:
            type(self).count += 1
            self.whole[:] = self.count % 10 == 0
            return super().present()

        def state(self) -> Any:
            return self.whole

    assert not check_reset(make_joint_environment(Counting))


def test_what_a_learner_saw_last_is_kept_while_others_play_on() -> None:
    """The learner b leaves at step 3 with an array that is written again at each later step."""

    class Leaving(Reused):
        def present(self) -> list[Any]:
            return super(Reused, self).present() if self.t < 3 else ["a"] if self.t < 9 else []

        def told(self, *given: Any) -> Any:
            observations, rewards, terminated, truncated, infos = given
            if self.t > 3:
                self.buffers["b"][:] = -9
            return observations, rewards, terminated, truncated, infos

    episodes, _ = played(Leaving, learners=["b"])
    assert len(episodes[0]) == 3
    assert episodes[0].observations["b"][-1].tolist() == [[3, 1]]
    assert episodes[0].truncated[-1].all()


class LastWords(NumberedTurns):
    """Ends after 6 turns; removing the dead writes into the arrays of all observations."""

    def __init__(self) -> None:
        super().__init__()
        self.board = np.zeros(2, np.float32)

    def observe(self, agent: Any) -> Any:
        return self.board

    def reset(self, seed: int | None = None, options: Any = None) -> None:
        super().reset(seed, options)
        self.board[:] = 0

    def step(self, action: Any) -> None:
        self.board += -9 if self.terminations[self.agent_selection] else 1
        super().step(action)


@pytest.mark.parametrize("parallel", [False, True])
def test_last_observations_are_kept_while_the_dead_are_removed(parallel: bool) -> None:
    episodes, _ = played(lambda: aec_to_parallel(LastWords()) if parallel else LastWords())
    last = episodes[0].observations["0"][-1]
    assert last[0].tolist() == [6, 6]
    assert last[1].tolist() == ([6, 6] if parallel else [-3, -3])  # in turns, its own last look comes after a removal


# Absence and ends


class Pausing(Plain):
    """Agent b is away while 3 <= t < 5, without a flag."""

    def present(self) -> list[Any]:
        return [agent for agent in super().present() if agent == "a" or not 3 <= self.t < 5]


def test_a_pause_is_no_end() -> None:
    episodes, _ = played(Pausing)
    episode = episodes[0]
    assert episode.alive[:7, 1].tolist() == [True] * 3 + [False] * 2 + [True] * 2
    assert episode.truncated[:, 1].nonzero()[0].tolist() == [LIMIT - 1]
    assert not episode.terminated.any()
    assert episode.observations["a"][:7, 1].tolist() == [[0, 1], [1, 1], [2, 1], [3, 1], [0, 0], [5, 1], [6, 1]]


def test_an_agent_that_is_away_at_the_end_was_truncated_where_it_acted_last() -> None:
    class Gone(Plain):
        def present(self) -> list[Any]:
            return [agent for agent in super().present() if agent == "a" or self.t < 3]

    episodes, _ = played(Gone)
    assert episodes[0].truncated.nonzero()[0].tolist() == [2, LIMIT - 1]
    assert episodes[0].alive[:, 1].sum() == 3


def test_a_flag_that_comes_in_a_pause_ends_the_last_own_step() -> None:
    class Dying(Pausing):
        def present(self) -> list[Any]:
            return [agent for agent in super().present() if agent == "a" or self.t < 3]

        def told(self, *given: Any) -> Any:
            given[2].update(b=self.t == 6)
            return given

    episodes, _ = played(Dying)
    assert episodes[0].terminated.nonzero() == (np.array([2]), np.array([1]))
    assert not episodes[0].truncated[:, 1].any()


def revived(at: int) -> type[Plain]:
    """Agent b dies with its flag two steps before `at`, and is back then."""

    class Reviving(Plain):
        def present(self) -> list[Any]:
            return [agent for agent in super().present() if agent == "a" or self.t not in (at - 2, at - 1)]

        def told(self, *given: Any) -> Any:
            given[2].update(b=self.t == at - 2)
            return given

    return Reviving


def test_an_agent_that_is_back_after_its_flag_is_refused_at_the_start() -> None:
    words = "agents: expected b to stay away after its end, but it is back after step 5, and its flag was set by step 3"
    with pytest.raises(EnvironmentUnavailable, match=f"Reviving: {words}"):
        JointRunner(revived(5), 1)


def test_a_late_revival_loses_its_episode_and_is_counted() -> None:
    runner = JointRunner(revived(27), 2)
    failures = runner.run(JointRandomPolicy(runner.spec), range(3)).failures
    assert len(failures) == 3
    assert all("expected b to stay away after its end" in failure for failure in failures)


def test_others_may_come_back_after_their_flag() -> None:
    episodes, _ = played(revived(5), learners=["a"])
    assert len(episodes[0]) == LIMIT


def test_a_learner_in_a_pause_is_waited_for() -> None:
    episodes, _ = played(Pausing, learners=["b"])
    assert len(episodes[0]) == LIMIT - 2  # the steps of the pause are joined to the step before
    assert episodes[0].alive[:-1].all()
    assert episodes[0].truncated.nonzero()[0].tolist() == [LIMIT - 3]


def test_a_learner_that_never_comes_back_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless(Plain):
        def present(self) -> list[Any]:
            return ["a", "b"] if self.t < 3 else ["a"]

    monkeypatch.setattr("herdbook.core.joint.games.PATIENCE", 5)
    episodes, _ = played(Endless, learners=["b"], max_steps=50)
    assert len(episodes[0]) == 3
    assert episodes[0].truncated.nonzero()[0].tolist() == [2]


def test_a_gymnasium_environment_of_another_form_is_named() -> None:
    class Old(gymnasium.Env[Any, Any]):
        observation_space, action_space = BOX, THREE

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            return np.zeros(2, np.float32)

    with pytest.raises(EnvironmentUnavailable, match=r"Old: reset\(\): expected \(observation, info\), got ndarray"):
        make_joint_environment(Old)
