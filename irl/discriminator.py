"""Discriminators of adversarial imitation: their loss, the rewards from their logits, and the gradient penalty.

    D(s, a) = 1 / (1 + e^−z), the probability that (s, a) is the expert's; z: the logit
    L = −mean_E log D − mean_π log(1 − D)                                           (1)  Ho & Ermon 2016, eq. 16
    r = −log(1 − D)   or   log D   or   z = log D − log(1 − D)                      (2)
    P = mean (‖∇z(x̂)‖ − 1)²,   x̂ = u x_E + (1 − u) x_π,   u ~ U[0, 1]              (3)  Gulrajani et al. 2017, eq. 3

The signs of eq. 2 matter where episodes end early: −log(1 − D) is never negative, so that a long life pays whatever the
policy does in it; log D is never positive, so that an early end pays; the logit has both signs (Kostrikov et al. 2019,
section 4.1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from herdbook.core.types import Metrics

RewardConvention = Literal["-log(1-D)", "log D", "logit"]
"""The reward of a discriminator, eq. 2."""
_NORM_OFFSET = 1e-10  # under the root of eq. 3, whose derivative is infinite at 0


def logistic_loss(expert_logits: Tensor, policy_logits: Tensor) -> Tensor:
    """Eq. 1. Logits of the expert's and of the policy's transitions, any shapes → []."""
    return F.softplus(-expert_logits).mean() + F.softplus(policy_logits).mean()  # −log D, −log(1 − D)


def imitation_reward(logits: Tensor, convention: RewardConvention) -> Tensor:
    """Eq. 2. logits: z [*B] → [*B]. Raises ValueError for an unknown convention."""
    if convention == "-log(1-D)":
        return F.softplus(logits)
    if convention == "log D":
        return -F.softplus(-logits)
    check_convention(convention)
    return logits


def check_convention(convention: str) -> None:
    """Raise ValueError unless `convention` is one of `RewardConvention`."""
    if convention not in get_args(RewardConvention):
        raise ValueError(f"expected reward_convention {' or '.join(get_args(RewardConvention))}, got {convention!r}")


def gradient_penalty(logit: Callable[[Tensor], Tensor], expert: Tensor, policy: Tensor, mix: Tensor) -> Tensor:
    """Eq. 3. logit: z as a function of inputs [B, K] → [B]; expert, policy: inputs [B, K]; mix: u [B] → [].

    The result can be differentiated with respect to the parameters that `logit` reads.
    """
    inputs = mix[:, None] * expert + (1 - mix[:, None]) * policy  # x̂ [B, K]
    gradients: Tensor = torch.func.grad(lambda x: logit(x).sum())(inputs)  # a row's logit reads that row alone: [B, K]
    norms = (gradients.square().sum(-1) + _NORM_OFFSET).sqrt()
    return (norms - 1).square().mean()


def accuracies(expert_logits: Tensor, policy_logits: Tensor) -> Metrics:
    """Shares of the expert's and of the policy's transitions that the discriminator recognises, [] each."""
    expert, policy = (expert_logits > 0).float().mean(), (policy_logits < 0).float().mean()
    return {"accuracy/expert": expert, "accuracy/policy": policy}
