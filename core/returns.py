"""Returns and advantages along rollouts. Every argument is `[lanes, T]` unless said otherwise, and so is what is given.

Two flags are kept apart: after a termination nothing follows, after a truncation the value of what would have followed
does. Both end the sum over later steps, for the step after them is of another episode.
"""

from __future__ import annotations

import torch
from torch import Tensor


def discounted_returns(
    rewards: Tensor, terminated: Tensor, truncated: Tensor, next_values: Tensor, discount: float
) -> Tensor:
    """G_t = r_t + γ G_{t+1}, bootstrapped by V(s_{t+1}) where an episode is cut off, and at the end of the rollout.

    The same as `generalised_advantage` with λ = 1, plus V(s_t).
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

    next_values: V(s_{t+1}), at the end of an episode that of its own final observation; trace: λ. The sum ends with the
    episode, and V(s_{t+1}) counts unless it terminated.
    """
    errors = rewards + discount * torch.where(terminated, 0.0, next_values) - values
    decay = torch.where(terminated | truncated, 0.0, discount * trace)
    advantages = torch.empty_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    for t in range(rewards.shape[1] - 1, -1, -1):
        advantages[:, t] = following = errors[:, t] + decay[:, t] * following
    return advantages
