"""Datasets with learned rewards: values by hand, the T+1 layout, records, and the command."""

import json
from pathlib import Path

import minari
import numpy as np
import pytest
import torch
from gymnasium import spaces

from herdbook.cli.main import main
from herdbook.core.policy import Scaling
from herdbook.core.types import Spec, Transitions
from herdbook.datasets.episodes import DataError, Episodes
from herdbook.datasets.load import load_dataset
from herdbook.datasets.minari import read_minari, write_minari
from herdbook.datasets.relabel import relabel
from herdbook.irl.rewards import LearnedReward, RewardDesign

GRID = Spec(spaces.Discrete(4), spaces.Discrete(2))
POTENTIAL = [10.0, 20.0, 30.0, 40.0]


def two_episodes() -> Episodes:
    """States 0, 1, 2 and the end of the first episode in 3; states 3, 0 and the second one cut off in 1."""
    episodes = [
        {"observations": [0, 1, 2, 3], "actions": [0, 1, 0], "rewards": [5, 6, 7], "terminated": True},
        {"observations": [3, 0, 1], "actions": [1, 1], "rewards": [8, 9], "terminated": False},
    ]
    return Episodes.from_episodes(
        [{**episode, "truncated": not episode["terminated"]} for episode in episodes],
        observation_space=GRID.observation_space,
        action_space=GRID.action_space,
    )


def learned() -> LearnedReward:
    """g(s) = 1, 2, 4, 8 with the potential 10, 20, 30, 40."""
    design = RewardDesign(inputs="state", hidden_sizes=(), shaped=True, shaping_sizes=())
    names = {
        "base.head.layers.0.weight": [[1.0, 2.0, 4.0, 8.0]],
        "base.head.layers.0.bias": [0.0],
        "potential.head.layers.0.weight": [POTENTIAL],
        "potential.head.layers.0.bias": [0.0],
    }
    parameters = {name: torch.tensor(values) for name, values in names.items()}
    assert parameters.keys() == dict(design.build(Scaling(GRID)).named_parameters()).keys()
    return LearnedReward(design=design, spec=GRID, discount=0.5, members=(parameters,))


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_every_step_gets_its_own_reward_and_ends_are_masked(batch_size: int) -> None:
    """f = g(s) + γ (1 − terminated) h(s′) − h(s): the end in state 3 has no potential, the cut in state 1 keeps it."""
    data = two_episodes()
    relabelled = relabel(data, learned(), discount=0.5, description="mine", batch_size=batch_size)
    first = [1 + 10 - 10, 2 + 15 - 20, 4 + 0 - 30]
    assert relabelled.rewards.tolist() == [*first, 8 + 5 - 40, 1 + 10 - 10]
    assert relabelled.transforms == ("rewards: mine",)
    assert relabel(data, learned().unshaped(), discount=0.9, description="").rewards.tolist() == [1, 2, 4, 8, 1]
    np.testing.assert_array_equal(relabelled.terminated, data.terminated)
    np.testing.assert_array_equal(relabelled.observations, data.observations)


def test_the_function_sees_the_recorded_rewards_and_a_mask_is_kept() -> None:
    data = two_episodes().subsample(2)
    relabelled = relabel(data, lambda step: 2 * step.rewards + step.actions, discount=1.0, description="twice")
    assert relabelled.rewards.tolist() == [10, 13, 14, 17, 19]
    assert relabelled.mask is not None and relabelled.mask.tolist() == [True, False, True, True, False]


def test_rewards_that_are_no_rewards_are_refused() -> None:
    def infinite(step: Transitions) -> torch.Tensor:
        return torch.where(step.observations == 2, torch.inf, 0.0)

    with pytest.raises(DataError, match=r"rewards.*episode 0, step 2"):
        relabel(two_episodes(), infinite, discount=1.0, description="")
    with pytest.raises(ValueError, match=r"expected the reward function to give \[5\], got \[5, 1\]"):
        relabel(two_episodes(), lambda step: step.rewards[:, None], discount=1.0, description="")


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of datasets with `me/grid-v0`."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    write_minari(two_episodes(), "me/grid-v0", data_dir=tmp_path / "minari")
    return tmp_path / "minari"


def test_the_command_writes_a_minari_dataset_that_says_where_its_rewards_came_from(
    stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learned().save(tmp_path / "airl")
    assert main(["data", "relabel", "me/grid-v0", "me/g-v0", "--reward", "airl"]) == 0
    assert "2 episodes, 5 steps, learned rewards from 1 to 8" in capsys.readouterr().out
    assert main(["data", "relabel", "me/grid-v0", "me/f-v0", "--reward", "airl", "--shaped"]) == 0
    plain = minari.load_dataset("me/g-v0")
    assert [list(episode.rewards) for episode in plain] == [[1, 2, 4], [8, 1]]
    shaped = load_dataset("me/f-v0", data_dir=stored)
    assert isinstance(shaped, Episodes) and shaped.rewards.tolist() == [1, -3, -26, -27, 1]
    assert shaped.transforms[0].startswith("rewards: learned (airl, digest ")
    assert shaped.transforms[0].endswith(", shaped with discount 0.5)")
    record = json.loads((stored / "me/g-v0/data/metadata.json").read_text())["herdbook_reward"]
    assert (record["directory"], record["dataset"]) == ("airl", "me/grid-v0")
    assert record["digest"] == learned().unshaped().digest()
    assert (record["shaped"], record["discount"], record["inputs"]) == (False, 0.5, "state")
    assert read_minari("me/grid-v0", data_dir=stored).rewards.tolist() == [5, 6, 7, 8, 9]


@pytest.mark.usefixtures("stored")
def test_the_command_refuses_other_spaces_and_a_taken_name_in_one_line(
    small_dataset: str, session_minari_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learned().save(tmp_path / "airl")
    pendulum = str(session_minari_root / small_dataset)
    for words, told in (
        (
            (pendulum, "me/x-v0", "--reward", "airl"),
            "expected the observation_space Discrete(4) of the reward function",
        ),
        (("me/grid-v0", "me/grid-v0", "--reward", "airl"), "me/grid-v0 exists"),
        (("me/grid-v0", "me/x-v0", "--reward", "none"), "none: expected a learned reward"),
    ):
        assert main(["data", "relabel", *words]) == 2
        error = capsys.readouterr().err
        assert told in error and error.count("\n") == 1
