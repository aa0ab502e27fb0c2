"""Datasets with the rewards of a reward function, and their steps as transitions for one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from herdbook.core.types import Array, RewardFunction, Transitions
from herdbook.datasets.episodes import Episodes
from herdbook.datasets.replay import ReplayBuffer
from herdbook.datasets.rewards import check_reward_discount, rewards_from

BATCH_SIZE = 4096
"""Steps that a reward function gets at once."""


def relabel(
    episodes: Episodes,
    reward: RewardFunction,
    *,
    discount: float,
    description: str,
    batch_size: int = BATCH_SIZE,
    device: str | torch.device = "cpu",
) -> Episodes:
    """The same steps with the rewards of a function.

    Args:
        episodes: The recorded steps. A mask is kept; masked steps get new rewards too.
        reward: Reads raw one-step transitions: the recorded rewards, and discounts γ · (1 − terminated). A truncated
            step keeps its discount.
        discount: γ, which only shaped rewards read.
        description: Where the rewards come from, recorded in `transforms`.
        batch_size: Steps at once.
        device: Device of the transitions, which must be that of the reward function.

    Raises DataError, with episode and step, for rewards that are not finite, ValueError for rewards of a wrong shape
    and as `check_reward_discount`.
    """
    check_reward_discount(reward, discount)
    batches = transitions_of(episodes, discount=discount, batch_size=batch_size, device=device)
    return episodes.with_rewards(rewards_of(reward, batches), description)


def rewards_of(reward: RewardFunction, batches: Iterator[Transitions]) -> Array:
    """The rewards of all transitions, [N] float64. Raises ValueError unless each batch [B] gets rewards [B]."""
    values = []
    for batch in batches:
        values.append(rewards_from(reward, batch).detach().cpu().numpy().astype(np.float64))
    return np.concatenate(values)


def transitions_of(
    episodes: Episodes,
    steps: Array | None = None,
    *,
    discount: float,
    batch_size: int = BATCH_SIZE,
    device: str | torch.device = "cpu",
) -> Iterator[Transitions]:
    """The transitions of the steps with these numbers `[N]`, by default of all, in batches `[B, …]` and in order."""
    replay = ReplayBuffer(episodes, device=device)
    numbers = torch.arange(episodes.num_steps) if steps is None else torch.as_tensor(steps)
    for some in torch.split(numbers, batch_size):
        yield replay.gather(some.to(device), discount=discount)
