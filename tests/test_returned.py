"""What a Gymnasium environment returns is checked by field, and arrays that it writes over are copied."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import herdbook
from herdbook.core.actor import Actor
from herdbook.core.environments import EnvironmentUnavailable, check_reset, make_environment
from herdbook.core.joint.actor import JointActor
from herdbook.core.joint.random_policy import JointRandomPolicy
from herdbook.core.joint.runner import JointRunner
from herdbook.core.random import generator
from herdbook.core.random_policy import RandomPolicy
from herdbook.core.runner import EnvironmentFailed, VectorRunner, fixed_episodes
from herdbook.core.specs import spec_from_state, spec_state
from herdbook.core.types import Spec
from herdbook.evaluation.evaluate import evaluate
from herdbook.experiments.catalogue import UserError
from herdbook.experiments.collect import collect
from herdbook.experiments.domain import Task
from herdbook.experiments.evaluate import evaluate_run
from herdbook.experiments.single_agent import SingleAgent
from herdbook.experiments.train import train

BOX = spaces.Box(-9, 9, (3,), np.float32)
RANDOM = RandomPolicy(spaces.Discrete(2))


class Replies(gymnasium.Env[Any, Any]):
    """Returns `first` at reset, and `answer` at every step; a changing observation where they are None."""

    observation_space: Any = BOX
    action_space: Any = spaces.Discrete(2)

    def __init__(self, first: Any = None, answer: Any = None, space: spaces.Space[Any] = BOX) -> None:
        self.first, self.answer, self.observation_space = first, answer, space

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.t = 0
        return (np.zeros(3, np.float32), {}) if self.first is None else self.first

    def step(self, action: Any) -> Any:
        self.t += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.answer is None:
            return np.full(3, self.t, np.float32), 1.0, False, self.t == 3, {}
        return self.answer


def _play(make: Any) -> Any:
    return evaluate(RANDOM, make, 2, seed=0, num_envs=2, max_steps=5)


ZERO = np.zeros(3, np.float32)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((ZERO, None, False, False, {}), "at step: expected reward as a number, got None"),
        ((ZERO, np.ones(2), False, False, {}), r"at step: expected reward as a number, got an array of shape \(2,\)"),
        ((ZERO, "1", False, False, {}), "at step: expected reward as a number, got '1'"),
        ((ZERO, {"a": 1.0}, False, False, {}), r"at step: expected reward as a number, got \{'a': 1.0\}"),
        ((ZERO, 1.0, None, False, {}), "at step: expected terminated as True or False, got None"),
        ((ZERO, 1.0, False, [True, False], {}), r"at step: expected truncated as True or False, got \[True, False\]"),
        ((ZERO, 1.0, False, {}), r"at step: expected \(observation, .*\), got 4 values; Gymnasium replaced `done`"),
        (ZERO, r"at step: expected \(observation, .*\), got an array of shape \(3,\)"),
        ((ZERO[None], 1.0, False, False, {}), r"at step: expected an observation of shape \(3,\), got \(1, 3\)"),
        ((None, 1.0, False, False, {}), r"at step: expected an observation of shape \(3,\), got \(\)"),
        (("up", 1.0, False, False, {}), "at step: expected an observation in Box"),
        (
            RuntimeError(),
            r"raised RuntimeError( in its first steps)? without a message, in test_returned.py, line \d+: ",
        ),
    ],
)
def test_a_wrong_answer_is_named_by_its_field(answer: Any, message: str) -> None:
    with pytest.raises(EnvironmentFailed, match=f"^Replies {message}"):
        _play(lambda: Replies(answer=answer))


@pytest.mark.parametrize(
    ("first", "message"),
    [
        (ZERO, r"at reset: expected \(observation, info\), got an array of shape \(3,\)"),
        ((ZERO, {}, {}), r"at reset: expected \(observation, info\), got 3 values"),
        ((BOX, {}), "at reset: expected an observation in Box"),
        ((ZERO[:2], {}), r"at reset: expected an observation of shape \(3,\), got \(2,\)"),
    ],
)
def test_a_wrong_reset_is_named(first: Any, message: str) -> None:
    with pytest.raises(EnvironmentFailed, match=f"^Replies {message}"):
        _play(lambda: Replies(first=first))


def test_a_reset_of_the_old_signature_is_named() -> None:
    class Old(Replies):
        def reset(self) -> Any:  # type: ignore[override]
            return super().reset()

    with pytest.raises(EnvironmentFailed, match=r"^Old at reset: expected reset\(\*, seed=None, options=None\)"):
        _play(Old)


@pytest.mark.parametrize("reward", [2, np.float32(2), np.array([2.0]), np.array(2), np.array([[2]]), True + 1])
def test_a_reward_of_one_element_is_a_number(reward: Any) -> None:
    played = _play(lambda: Replies(answer=(ZERO, reward, np.array([False]), np.bool_(True), {})))
    assert played.rewards.tolist() == [2.0, 2.0] and played.truncated.all() and not played.terminated.any()
    assert check_reset(Replies(answer=(ZERO, reward, 0, 1, {})))


@pytest.mark.parametrize("space", ["observation_space", "action_space"])
def test_a_missing_space_is_named(space: str) -> None:
    class Spaceless(Replies):
        def __init__(self) -> None:
            super().__init__()
            setattr(self, space, None)

    with pytest.raises(EnvironmentUnavailable, match=rf"Spaceless: expected {space} as a gymnasium.Space, got None"):
        make_environment(Spaceless)
    with pytest.raises((EnvironmentUnavailable, UserError), match=f"expected {space} as a gymnasium.Space, got None"):
        train("dqn", env=Spaceless, steps=10)


def test_an_environment_in_place_of_a_callable_is_refused() -> None:
    env, told = gymnasium.make("CartPole-v1"), "expected an id or a callable that makes a new environment .* lambda"
    run = herdbook.train("dqn", env="CartPole-v1", steps=10, run_dir="run", quiet=True, eval_episodes=0)
    for function in (
        lambda: train("dqn", env=env, steps=10),
        lambda: evaluate(RANDOM, env, 2, seed=0),  # type: ignore[arg-type]
        lambda: collect("random", env=env, episodes=1, out="mine/one-v0"),
        lambda: collect(run.path, env=env, episodes=1, out="mine/one-v0"),
        lambda: evaluate_run(run.path, env=env, episodes=1),
        lambda: train("qmix", env=env, steps=10),
    ):
        with pytest.raises(EnvironmentUnavailable, match=told):
            function()


TEXT = spaces.Dict({"eye": BOX, "mission": spaces.Text(9), "kind": spaces.Discrete(3)})
SEEN = {"eye": ZERO, "mission": "go there", "kind": 1}


def test_parts_that_are_not_chosen_do_not_matter() -> None:
    spec = SingleAgent().environment_spec(lambda: Replies(space=TEXT), ("eye", "kind"))
    spec = spec_from_state(spec_state(spec))
    actor = Actor(RANDOM, spec, generator=generator(0))
    actor.act(SEEN)
    actor.act({"eye": ZERO, "kind": 1})
    strange = {**SEEN, "mission": None, "more": "x"}
    make = lambda: Replies((SEEN, {}), (strange, 1.0, False, True, {}), TEXT)  # noqa: E731
    assert len(evaluate(RANDOM, make, 2, seed=0, spec=spec)) == 2


def test_text_is_refused_and_the_option_is_named() -> None:
    with pytest.raises(UserError, match="Text.* choose other parts with observation_keys"):
        SingleAgent().environment_spec(lambda: Replies(space=TEXT))


@pytest.mark.parametrize(
    ("seen", "message"),
    [
        ({"eye": ZERO[:2], "kind": 1}, r"\['eye'\] of shape \(3,\)"),
        ({"kind": 1}, "with a part 'eye', got the parts 'kind'"),
        (ZERO, "as a dict, got ndarray"),
        ({"eye": ZERO, "kind": 3}, r"\['kind'\] in \[0, 2\]"),
    ],
)
def test_a_wrong_observation_given_to_act_names_its_part(seen: Any, message: str) -> None:
    spec = SingleAgent().environment_spec(lambda: Replies(space=TEXT), ("eye", "kind"))
    with pytest.raises(ValueError, match=f"^act: expected an observation.*{message}"):
        Actor(RANDOM, spec).act(seen)


@pytest.mark.parametrize(("space", "seen"), [(BOX, np.zeros(4)), (BOX, np.zeros((1, 3))), (spaces.Discrete(4), 4)])
def test_an_observation_of_another_size_given_to_act_is_refused(space: Any, seen: Any) -> None:
    with pytest.raises(ValueError, match="^act: expected an observation"):
        Actor(RANDOM, Spec(space, spaces.Discrete(2))).act(seen)


# --- arrays that the environment keeps --------------------------------------------------------------------------------


class OneBuffer(Replies):
    """Every environment of the class writes its observations into the same array."""

    buffer = np.zeros((8, 8, 3), np.uint8)
    count = 0

    def __init__(self) -> None:
        OneBuffer.count += 1
        super().__init__(space=spaces.Box(0, 255, (8, 8, 3), np.uint8))
        self.number = OneBuffer.count
        self.render_mode = "rgb_array"

    def _look(self) -> Any:
        self.buffer[:] = 10 * self.number + self.t
        return self.buffer

    def reset(self, **_: Any) -> Any:
        self.t = 0
        return self._look(), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        return self._look(), np.array([1.0]), False, self.t == 3, {}

    def render(self) -> Any:
        return self.buffer


def test_observations_are_copied_before_another_environment_steps() -> None:
    OneBuffer.count = 0
    runner = VectorRunner(OneBuffer, 3, fixed_episodes(3, 0))
    assert runner._observations[:, 0, 0, 0].tolist() == [10, 20, 30]
    stepped = runner.step(RANDOM)
    assert stepped.played.next_observations[:, 0, 0, 0].tolist() == [11, 21, 31]


def test_pictures_of_a_film_are_copied_before_the_next_step() -> None:
    OneBuffer.count = 0
    domain, make = SingleAgent(), OneBuffer
    task = Task(domain=domain, spec=domain.environment_spec(make), environment=make)
    assert [int(frame[0, 0, 0]) for frame in domain.film(task, RANDOM, 0)] == [20, 21, 22, 23]


def test_an_observation_of_another_size_given_to_one_of_many_agents_is_refused() -> None:
    runner = JointRunner("mpe2/simple_speaker_listener_v4", 1)
    actor = JointActor(JointRandomPolicy(runner.spec), runner.spec, generator=generator(0))
    for seen in (np.zeros(2), np.zeros(1), np.zeros((1, 11))):
        with pytest.raises(ValueError, match=r"^act: expected an observation of listener_0 of shape \(11,\), got"):
            actor.act({"speaker_0": np.zeros(3), "listener_0": seen})
