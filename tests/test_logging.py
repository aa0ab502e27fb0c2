"""What a run shows: a bar on a terminal, lines elsewhere, TensorBoard, Weights & Biases; and rebuilt specs, actors."""

import errno
import io
import os
import subprocess
import sys
import types
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from rich.console import Console

from herdbook.core.actor import Actor
from herdbook.core.checkpoint import load, save
from herdbook.core.logging import Reporter
from herdbook.core.random_policy import RandomPolicy
from herdbook.core.specs import spec_from_state, spec_state
from herdbook.core.types import Spec

LINE = {"step": 50, "seed": 0, "return_mean": 12.5, "return_std": 1.0, "normalized_score": 33.3}


def shown(tmp_path: Path, terminal: bool) -> str:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=150, highlight=False)
    reporter = Reporter(tmp_path / "name", 100, (0, 1), console=console)
    reporter.start()
    for step in range(1, 51):
        reporter.advance(step)
    reporter.evaluation(LINE)
    reporter.evaluation({**LINE, "seed": 1, "normalized_score": None})
    reporter.notice("a notice [with brackets]")
    reporter.close()
    return text.getvalue()


def test_a_terminal_shows_a_bar_with_rate_time_left_and_scores(tmp_path: Path) -> None:
    text = shown(tmp_path, terminal=True)
    for part in ("name", "50/100", "/s", "seed 0: 12.5 (33.3), seed 1: 12.5", "a notice [with brackets]", "━"):
        assert part in text


def test_elsewhere_plain_lines_say_the_same(tmp_path: Path) -> None:
    text = shown(tmp_path, terminal=False)
    assert "\x1b" not in text
    assert "step 50/100" in text and "steps/s" in text and "left" in text and "seed 1: 12.5" in text


def test_tensorboard_gets_every_number(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reporter = Reporter(tmp_path, 100, (0, 1), quiet=True, tensorboard=True)
    reporter.start()
    reporter.metrics(10, 1, {"loss/critic": 0.5})
    reporter.evaluation(LINE)
    reporter.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss/critic/seed_1")] == [(10, 0.5)]
    assert events.Scalars("evaluation/return_mean/seed_0")[0].value == 12.5


def test_weights_and_biases_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"herdbook\[wandb\]"):
        Reporter(tmp_path, 10, (0,), wandb="project")
    sent: list[object] = []
    run = types.SimpleNamespace(log=sent.append, finish=lambda: sent.append("finished"))
    fake = types.SimpleNamespace(init=lambda **arguments: sent.append(arguments["project"]) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    reporter = Reporter(tmp_path, 10, (0,), wandb="project", quiet=True)
    reporter.metrics(3, 0, {"q": 1.0})
    reporter.close()
    assert sent == ["project", {"q": 1.0, "step": 3}, "finished"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_freed_memory_is_kept_only_when_asked() -> None:
    code = "from herdbook.core.memory import keep_freed_memory; print(keep_freed_memory())"
    done = subprocess.run((sys.executable, "-c", code), capture_output=True, text=True, check=True)
    assert done.stdout in ("True\n", "False\n")  # False under another C library


SPACES = [
    spaces.Box(np.float32([-np.inf, -1, 0]), np.float32([np.inf, 1, 2])),
    spaces.Box(0, 255, (4, 4, 3), np.uint8),
    spaces.Discrete(5, start=-2),
    spaces.MultiDiscrete([3, 4]),
    spaces.MultiBinary([2, 3]),
    spaces.Dict({"z": spaces.Discrete(2), "a": spaces.Tuple((spaces.Box(-1, 1, (2,)), spaces.Discrete(3)))}),
]


def test_a_full_disk_ends_tensorboards_file_and_not_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils.tensorboard import SummaryWriter

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    told = io.StringIO()
    reporter = Reporter(tmp_path, 100, (0,), tensorboard=True, console=Console(file=told, soft_wrap=True))
    reporter.start()
    for _ in range(2):
        reporter.evaluation(LINE)
    reporter.close()
    assert told.getvalue().count("TensorBoard's file cannot be written and ends here: No space left on device") == 1


@pytest.mark.parametrize("space", SPACES, ids=lambda space: type(space).__name__)
def test_a_spec_survives_a_checkpoint(tmp_path: Path, space: gymnasium.Space) -> None:
    """Of a Dict, the parts that were chosen: others may be of kinds that cannot be stored."""
    keys = ("z",) if isinstance(space, spaces.Dict) else None
    spec = Spec(
        observation_space=SPACES[0],
        action_space=spaces.Discrete(2),
        raw_observation_space=space,
        observation_keys=keys,
        observation_mean=np.float32([1, 2, 3]),
    )
    save(tmp_path / "c", spec_state(spec))
    again = spec_from_state(load(tmp_path / "c"))
    chosen = spaces.Dict({"z": space["z"]}) if isinstance(space, spaces.Dict) else space
    assert again.raw_observation_space == chosen and again.observation_space == spec.observation_space
    assert again.observation_keys == keys and again.observation_std is None
    assert again.observation_mean is not None and again.observation_mean.tolist() == [1, 2, 3]


class Counting:
    """Acts by the number of steps since the last reset; checks what it is shown."""

    def initial(self, num_envs: int) -> torch.Tensor:
        return torch.zeros(num_envs, dtype=torch.int64)

    def __call__(self, step, carry, generator=None):
        assert step.observations.shape == (1, 4) and bool(step.first) == (carry.item() == 0)
        assert int(step.previous_actions) == max(int(carry) - 1, 0)
        return carry.clone(), carry + 1


def test_an_actor_flattens_keeps_the_carry_and_resets() -> None:
    raw = spaces.Dict({"position": spaces.Box(-1, 1, (2,)), "mode": spaces.Discrete(2)})
    spec = Spec(
        observation_space=spaces.utils.flatten_space(raw), action_space=spaces.Discrete(9), raw_observation_space=raw
    )
    actor = Actor(Counting(), spec)  # type: ignore[arg-type]  # has no distribution
    observation = {"position": np.array([0.5, -0.5]), "mode": 1}
    actions = [actor.act(observation) for _ in range(3)]
    assert [int(a) for a in actions] == [0, 1, 2] and actions[0].dtype == np.int64 and actions[0].shape == ()
    actor.reset()
    assert int(actor.act(observation)) == 0


def test_an_actor_of_a_sampling_policy_draws_from_its_generator() -> None:
    space = spaces.Box(-2, 2, (3,))
    spec = Spec(observation_space=space, action_space=space)
    draws = [
        Actor(RandomPolicy(space), spec, generator=torch.Generator().manual_seed(seed)).act(np.zeros(3))
        for seed in (1, 1, 2)
    ]
    assert draws[0].shape == (3,) and (draws[0] == draws[1]).all() and (draws[0] != draws[2]).any()
