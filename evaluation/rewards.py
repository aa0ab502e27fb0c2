"""Judging a reward function on a dataset without training on it, by correlations and the EPIC distance."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from herdbook.core.types import RewardFunction
from herdbook.datasets.episodes import Episodes
from herdbook.datasets.relabel import rewards_of, transitions_of
from herdbook.datasets.rewards import check_reward_discount
from herdbook.evaluation.correlations import SINGLE, FloatArray, Undefined, pearson, spearman
from herdbook.evaluation.epic import SampledCoverage, sampled_epic_distance


@dataclass(frozen=True, kw_only=True)
class RewardReport:
    """Comparison of a reward function with the true reward over a dataset. None: undefined, and `notices` says why."""

    dataset: str
    steps: int
    pearson: float | None
    spearman: float | None
    epic: float | None
    discount: float
    """γ of the EPIC distance and of shaped rewards."""
    transitions: int
    """n of the EPIC distance."""
    samples: int
    """m of the EPIC distance."""
    seed: int
    notices: tuple[str, ...]

    def json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {**asdict(self), "notices": list(self.notices)}


def judge(
    reward: RewardFunction,
    episodes: Episodes,
    true: RewardFunction | None = None,
    *,
    discount: float,
    transitions: int = 4096,
    samples: int = 256,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> RewardReport:
    """Compare a reward function with the true one over the steps of a dataset.

    Args:
        reward: The function to judge.
        episodes: The dataset, whose recorded rewards are the true ones; steps outside its mask are left out.
        true: The true reward as a function of any transition, which the EPIC distance needs. None: no EPIC distance.
        discount: γ.
        transitions: Largest number of transitions for the EPIC distance.
        samples: Number of states and of actions for its means.
        seed: Seed of the sampling.
        device: Device of the transitions, which must be that of the functions.

    A statistic that is undefined, because one of the rewards is constant, is None, with a notice; so is the EPIC
    distance for γ = 1 where episodes end. A true function whose values are not the recorded rewards is reported in a
    notice too. Raises ValueError as `check_reward_discount`.
    """
    notices: list[str] = []
    if changed := episodes.reward_transforms():
        notices.append(f"the recorded rewards are not the environment's: {', '.join(changed)}")
    learned = step_rewards(reward, episodes, discount=discount, device=device)
    recorded = step_rewards(None, episodes, discount=discount)
    linear, ranks, epic = None, None, None
    sides = {"learned": learned, "true": recorded}
    constant = [name for name, side in sides.items() if np.ptp(side) <= SINGLE * np.abs(side).max()]
    for name in constant:
        notices.append(f"the {name} reward is {sides[name][0]:g} at every step: correlations with it are undefined")
    if not constant:
        linear, ranks = pearson(learned, recorded), spearman(learned, recorded)
    if true is None:
        notices.append("the EPIC distance needs the true reward as a function of any transition: it was not computed")
    else:
        off = np.abs(step_rewards(true, episodes, discount=discount, device=device) - recorded)
        if off.max() > 1e-3 * max(1.0, float(np.abs(recorded).max())):
            told = "the correlations use the recorded rewards, the EPIC distance uses the function"
            notices.append(f"the true reward function differs from the recorded rewards by up to {off.max():g}: {told}")
        try:
            coverage = SampledCoverage.from_episodes(
                episodes, discount=discount, transitions=transitions, samples=samples, seed=seed, device=device
            )
            epic = sampled_epic_distance(reward, true, coverage)
        except Undefined as error:
            if error.constant is None:
                notices.append(f"the EPIC distance is undefined: {error}")
            else:
                which = ("learned", "true")[error.constant]
                notices.append(f"the {which} reward is zero up to shaping: its EPIC distance is undefined")
    return RewardReport(
        dataset=episodes.source,
        steps=len(recorded),
        pearson=linear,
        spearman=ranks,
        epic=epic,
        discount=discount,
        transitions=min(transitions, len(recorded)),
        samples=samples,
        seed=seed,
        notices=tuple(notices),
    )


def step_rewards(
    reward: RewardFunction | None, episodes: Episodes, *, discount: float, device: str | torch.device = "cpu"
) -> FloatArray:
    """The rewards of a function, or the recorded ones, for the steps in the mask of the episodes, [N] float64.

    Raises ValueError as `check_reward_discount`.
    """
    steps = np.arange(episodes.num_steps) if episodes.mask is None else np.flatnonzero(episodes.mask)
    if reward is None:
        return episodes.rewards[steps]
    check_reward_discount(reward, discount)
    return rewards_of(reward, transitions_of(episodes, steps, discount=discount, device=device))


def draw_scatter(learned: ArrayLike, true: ArrayLike, path: str | Path, *, title: str = "") -> None:
    """Draw learned against true rewards, `[N]` each; the suffix of `path` determines the format (png, pdf, svg)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 4))
    axes = figure.add_subplot()
    axes.scatter(np.asarray(true), np.asarray(learned), s=4, alpha=0.3, linewidths=0, rasterized=True)
    axes.set(xlabel="true reward", ylabel="learned reward", title=title)
    figure.savefig(path, bbox_inches="tight", dpi=120)
