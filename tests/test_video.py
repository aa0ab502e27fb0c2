"""Videos: what an environment draws becomes pictures, or one line that says what came."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from pettingzoo import ParallelEnv

from herdbook.core.joint.random_policy import JointRandomPolicy
from herdbook.core.joint.runner import JointRunner
from herdbook.core.random_policy import RandomPolicy
from herdbook.core.types import Spec
from herdbook.experiments.catalogue import UserError
from herdbook.experiments.domain import Task, drawn
from herdbook.experiments.many_agents import ManyAgents
from herdbook.experiments.single_agent import SingleAgent
from herdbook.experiments.video import pictures

BOX, TWO = spaces.Box(-1, 1, (1,)), spaces.Discrete(2)
FRAME = np.zeros((4, 6, 3), np.uint8)
FRAME[:, 2:] = 255


@pytest.mark.parametrize(
    ("frame", "shape"),
    [
        (FRAME, (4, 6, 3)),
        (FRAME / 255.0, (4, 6, 3)),
        (FRAME > 0, (4, 6, 3)),
        (FRAME.astype(np.float32), (4, 6, 3)),
        (FRAME.astype(np.int64), (4, 6, 3)),
        (FRAME[..., 0], (4, 6)),
        (FRAME[..., :1], (4, 6)),
        ([FRAME * 0, FRAME], (4, 6, 3)),
        (torch.from_numpy(FRAME), (4, 6, 3)),
    ],
)
def test_pictures_are_scaled_to_bytes(frame: Any, shape: tuple[int, ...]) -> None:
    (picture,) = pictures([frame])
    assert (picture.dtype, picture.shape) == (np.uint8, shape)
    assert (picture[:, :2] == 0).all() and (picture[:, 2:] == 255).all()


def test_a_dark_picture_of_integers_stays_dark_and_floats_have_one_scale() -> None:
    assert pictures([np.ones((2, 2), np.uint8)])[0].max() == 1
    assert [p.max() for p in pictures([np.full((2, 2), 0.2), np.full((2, 2), 1.0)])] == [51, 255]
    assert [p.max() for p in pictures([np.full((2, 2), 1.0), np.full((2, 2), 200.0)])] == [1, 200]


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        ("letters", "got str"),
        (object(), "got object"),
        (np.zeros((2, 2, 5)), r"got float64 of shape \(2, 2, 5\)"),
        (np.zeros((0, 0, 3)), r"got float64 of shape \(0, 0, 3\)"),
        ([], r"got float64 of shape \(0,\)"),
        (FRAME - 1.0, r"got \[-1.0, 254.0\]"),
        (FRAME * 2.0, r"got \[0.0, 510.0\]"),
        (np.full((2, 2), np.nan), r"got \[nan, nan\]"),
    ],
)
def test_what_is_no_picture_is_named(frame: Any, words: str) -> None:
    with pytest.raises(UserError, match=f"video: expected pictures .*{words}"):
        pictures([frame])


def test_an_environment_that_cannot_draw_says_why() -> None:
    with pytest.raises(UserError, match=r"video: render\(\) raised ZeroDivisionError: division by zero"):
        drawn(lambda: 1 / 0)


class Alone(gymnasium.Env[Any, Any]):
    """Draws the step into one array again and again."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"]}
    render_mode = "rgb_array"
    observation_space, action_space = BOX, TWO

    def __init__(self) -> None:
        self.picture = np.zeros((2, 2, 3), np.uint8)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        return np.zeros(1, np.float32), 0.0, self.t == 3, False, {}

    def render(self) -> Any:
        self.picture[:] = self.t
        return self.picture


class Together(ParallelEnv):
    """The same for two agents."""

    metadata: ClassVar[dict[str, Any]] = {"name": "together_v0"}
    render_mode = "rgb_array"
    render: Callable[[Any], Any] = Alone.render

    def __init__(self) -> None:
        self.possible_agents, self.picture = ["a", "b"], np.zeros((2, 2, 3), np.uint8)

    def observation_space(self, agent: Any) -> Any:
        return BOX

    def action_space(self, agent: Any) -> Any:
        return TWO

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.t, self.agents = 0, ["a", "b"]
        return {agent: np.zeros(1, np.float32) for agent in self.agents}, {agent: {} for agent in self.agents}

    def step(self, actions: Mapping[str, Any]) -> Any:
        self.t += 1
        over = dict.fromkeys("ab", self.t == 3)
        self.agents = [] if self.t == 3 else self.agents
        return (
            {a: np.zeros(1, np.float32) for a in "ab"},
            dict.fromkeys("ab", 0.0),
            over,
            dict.fromkeys("ab", False),
            {},
        )


def test_frames_drawn_into_one_array_differ() -> None:
    spec = JointRunner(Together, 1).spec
    task = Task(domain=ManyAgents(), spec=spec, environment=Together)
    assert [frame.max() for frame in task.domain.film(task, JointRandomPolicy(spec), 0)] == [0, 1, 2, 3]
    alone = Task(domain=SingleAgent(), spec=Spec(BOX, TWO), environment=Alone)
    assert [frame.max() for frame in alone.domain.film(alone, RandomPolicy(TWO), 0)] == [0, 1, 2, 3]
