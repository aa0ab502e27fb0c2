"""Learned rewards by name: the directory of a saved reward, or a run that learned one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from herdbook.core.runs import Run, RunError, remove_whole, written_whole
from herdbook.core.types import Spec
from herdbook.experiments.catalogue import UserError
from herdbook.experiments.domain import Networks
from herdbook.experiments.records import REWARD
from herdbook.experiments.restore import good_step, restore
from herdbook.irl.rewards import HEADER, LearnedReward, RewardError, load_reward

REWARDS = "rewards"
"""The folder of a run that holds `seed_<n>`, the learned reward of each seed."""


def reward_directory(text: str | Path, seed: int | None = None) -> Path:
    """The directory of a saved reward: `text` itself, or `rewards/seed_<seed>` in the run `text`.

    `seed` can be left out where there is one reward. Raises UserError, with what was expected, if there is none, if a
    run has several and no seed is given, and if a seed is given for a directory that holds one reward.
    """
    path = Path(text)
    if (path / HEADER).is_file():
        if seed is not None:
            raise UserError(f"{path}: expected no seed, because the directory holds one reward; got {seed}")
        return path
    try:
        run = Run(path)
    except RunError as error:
        wanted = f"a directory with {HEADER}, or a run with {REWARDS}/seed_<n>"
        raise UserError(f"{path}: expected a learned reward ({wanted}), got neither") from error
    found = {each: path / REWARDS / f"seed_{each}" for each in run.seeds}
    found = {each: directory for each, directory in found.items() if (directory / HEADER).is_file()}
    if not found:
        cause = f"{run.algorithm} run without {REWARDS}/seed_<n>"
        advice = "name a run of an algorithm that learns a reward, trained to its end"
        raise UserError(f"{path}: expected a run that learned a reward, got a {cause}; {advice}")
    if seed is None and len(found) == 1:
        return next(iter(found.values()))
    if seed not in found:
        came = "none" if seed is None else seed
        advice = f"or name one directory, such as {next(iter(found.values()))}"
        raise UserError(f"{path}: expected one of the seeds {', '.join(map(str, found))}, got {came}; {advice}")
    return found[seed]


def named_reward(
    text: str | Path,
    seed: int | None = None,
    *,
    spec: Spec | None = None,
    where: str = "",
    device: str | torch.device = "cpu",
) -> LearnedReward:
    """The learned reward of a directory or a run.

    Args:
        text: A directory that `LearnedReward.save` wrote, or a run directory.
        seed: The seed of a run that learned several rewards.
        spec: The task or dataset for which the reward is meant; its spaces are checked.
        where: Name of that task or dataset in messages.
        device: Device of the reward.

    Raises UserError as `reward_directory` does, for damaged files, and for a reward of other spaces.
    """
    try:
        reward = load_reward(reward_directory(text, seed), device=device)
        if spec is not None:
            reward.check_spaces(spec, where or str(text))
    except RewardError as error:
        raise UserError(str(error)) from error
    return reward


def write_rewards(run: Run, algorithm: type[Any], networks: Networks | None = None) -> None:
    """Write the learned reward of each seed of a finished run to `rewards/seed_<n>`, each whole or not at all.

    They are those of the last checkpoint; of a seed that stopped early, those of its last good one.
    """
    for seed in run.seeds:
        restored = restore(run, algorithm, None, seed, "cpu", networks)
        learned: LearnedReward = restored.algorithm.reward(restored.seed_index)
        dataset = run.config["dataset"] or {}
        about = {
            "algorithm": run.algorithm,
            "run": run.path.name,
            "seed": seed,
            "step": restored.step,
            "dataset": {name: dataset.get(name) for name in ("source", "fingerprint")},
            "config": run.config["config"],
        }
        with written_whole(run.path / REWARDS / f"seed_{seed}") as folder:
            replace(learned, about={**about, **learned.about}).save(folder)


def rewards_written(run: Run) -> bool:
    """True if `write_rewards` has written the rewards of all seeds, and has done so since the last checkpoint."""
    state = run.checkpoints.load()
    return all(_step_of(run.path / REWARDS / f"seed_{seed}") == good_step(state, seed) for seed in run.seeds)


def _step_of(directory: Path) -> int | None:
    """The step at which a run has written this reward; None if there is none that can be read."""
    try:
        step: int | None = load_reward(directory).about.get("step")
    except RewardError:
        return None
    return step


def remove_rewards(run: Run) -> None:
    """Remove the rewards of a run that goes on, which are no longer those of its end."""
    remove_whole(run.path / REWARDS)


def keep_reward(run: Run, reward: LearnedReward | None) -> None:
    """Copy the reward function that a run learns from into its directory, unless it is there."""
    target = run.path / REWARD
    if reward is None or target.is_dir():
        return
    with written_whole(target) as folder:
        reward.save(folder)
