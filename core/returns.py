"""Returns and advantages along rollouts. Tensor arguments and results are `[lanes, T]`.

A terminated episode has no value after its last step; a truncated one is bootstrapped by the value of its final
observation. Both flags end the sum over later steps, because the next step belongs to another episode.
"""

from __future__ import annotations

import torch
from torch import Tensor


def discounted_returns(
    rewards: Tensor, terminated: Tensor, truncated: Tensor, next_values: Tensor, discount: float
) -> Tensor:
    """G_t = r_t + γ G_{t+1}, bootstrapped by V(s_{t+1}) at truncations and at the end of the rollout.

    This equals `generalised_advantage` with λ = 1, plus V(s_t).
    """
    returns = torch.empty_like(rewards)
    following = next_values[:, -1]
    goes_on = torch.where(terminated, 0.0, discount)
    for t in range(rewards.shape[1] - 1, -1, -1):
        following = torch.where(truncated[:, t], next_values[:, t], following)
        returns[:, t] = following = rewards[:, t] + goes_on[:, t] * following
    return returns


def generalised_advantage(
    rewards: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    values: Tensor,
    next_values: Tensor,
    discount: float,
    trace: float,
) -> Tensor:
    """Â_t = Σ_l (γλ)^l δ_{t+l}, δ_t = r_t + γ V(s_{t+1}) − V(s_t) (Schulman et al. 2016, arXiv:1506.02438, eq. 16).

    The sum ends with the episode, and V(s_{t+1}) is 0 after a termination.

    next_values: V(s_{t+1}), for the episode's final observation at its end; trace: λ.
    """
    errors = rewards + discount * torch.where(terminated, 0.0, next_values) - values
    decay = torch.where(terminated | truncated, 0.0, discount * trace)
    advantages = torch.empty_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    for t in range(rewards.shape[1] - 1, -1, -1):
        advantages[:, t] = following = errors[:, t] + decay[:, t] * following
    return advantages
