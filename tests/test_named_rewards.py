"""Learned rewards by name: directories, runs, and the names that are refused."""

from pathlib import Path

import pytest
import torch
from gymnasium import spaces

from herdbook.core.policy import Scaling
from herdbook.core.runs import create_run
from herdbook.core.types import Spec
from herdbook.experiments.catalogue import UserError
from herdbook.experiments.rewards import named_reward, reward_directory
from herdbook.irl.rewards import LearnedReward, RewardDesign

GRID = Spec(spaces.Discrete(3), spaces.Discrete(2))


def reward_of(value: float) -> LearnedReward:
    design = RewardDesign(inputs="state", hidden_sizes=())
    parameters = {name: torch.full_like(p, value) for name, p in design.build(Scaling(GRID)).named_parameters()}
    return LearnedReward(design=design, spec=GRID, discount=0.9, members=(parameters,))


def run_of(path: Path, *seeds: int) -> Path:
    """A run that learned a reward for each seed, with weights equal to the seed."""
    create_run(path, {"algorithm": "airl", "seeds": seeds, "run": {}})
    for seed in seeds:
        reward_of(seed).save(path / "rewards" / f"seed_{seed}")
    return path


def test_a_reward_is_found_by_its_directory_or_by_its_run_and_seed(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", 3, 5)
    assert named_reward(run, 5).members[0]["head.layers.0.bias"] == 5
    assert named_reward(str(run / "rewards" / "seed_3"), spec=GRID).members[0]["head.layers.0.bias"] == 3
    assert reward_directory(run_of(tmp_path / "one", 7)) == tmp_path / "one" / "rewards" / "seed_7"


def test_names_without_a_reward_are_refused_with_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing: expected a learned reward \(a directory with reward.json, or a run"):
        named_reward(tmp_path / "nothing")
    create_run(tmp_path / "bc", {"algorithm": "bc", "seeds": [0], "run": {}})
    with pytest.raises(UserError, match="expected a run that learned a reward, got a bc run without rewards/seed_<n>"):
        named_reward(tmp_path / "bc")
    run = run_of(tmp_path / "run", 3, 5)
    with pytest.raises(UserError, match=r"expected one of the seeds 3, 5, got none; or name one directory, .*_3"):
        named_reward(run)
    with pytest.raises(UserError, match="expected one of the seeds 3, 5, got 4"):
        named_reward(run, 4)
    with pytest.raises(UserError, match="expected no seed, because the directory holds one reward; got 3"):
        named_reward(run / "rewards" / "seed_3", 3)
    (run / "rewards" / "seed_3" / "reward.safetensors").unlink()
    with pytest.raises(UserError, match="seed_3: expected a saved reward function"):
        named_reward(run, 3)


def test_a_reward_of_another_space_is_refused(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", 0)
    with pytest.raises(UserError, match=r"my data: expected the action_space Discrete\(2\) of the reward function"):
        named_reward(run, spec=Spec(spaces.Discrete(3), spaces.Discrete(4)), where="my data")
