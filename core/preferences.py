"""Losses of preferences between pairs: pure functions of rewards or of log-probabilities.

    x = Σ_t γᵗ r(s_t, a_t)                             Bradley & Terry 1952; Christiano et al. 2017                  (1)
    x = Σ_t γᵗ α log π(a_t|s_t)                        CPL: Hejna et al. 2024, arXiv:2310.13639, eq. 5               (2)
    x = Σ_t γᵗ α (log π(a_t|s_t) − log π₀(a_t|s_t))    CPL-KL; at one step DPO: Rafailov et al. 2023, eq. 7          (3)
    L = −(1 − p) log σ(x₁ − λ x₂) − p log σ(x₂ − λ x₁)                                                               (4)
    L = (1 − p) (h − 1/2τ)² + p (h + 1/2τ)²            IPO: Azar et al. 2024, arXiv:2310.12036, eq. 17               (5)

The label p is the probability that the second of a pair is preferred; 0.5 says that both are equally good. λ = 1 is the
Bradley-Terry model; λ < 1 is the bias of CPL, which discounts the score of the segment that is not preferred. h is
log π/π₀ of the first less that of the second. Losses are per pair, so that sums, means and weights are the caller's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def segment_sum(values: Tensor, mask: Tensor, *, discount: float = 1.0) -> Tensor:
    """Σ_t γᵗ values_t of eqs. 1 to 3 over the steps in `mask`. values: [*B, T], t from 0; mask: [*B, T] bool → [*B]."""
    powers = discount ** torch.arange(values.shape[-1], device=values.device, dtype=values.dtype)
    return torch.where(mask, values * powers, 0).sum(-1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the values in `mask`, zeros among them; 0 if there is none. values, mask: [*B] → []."""
    return torch.where(mask, values, 0).sum() / mask.sum().clamp(min=1)


def segment_advantage(
    log_prob: Tensor, mask: Tensor, *, alpha: float, discount: float, reference: Tensor | None = None
) -> Tensor:
    """The score of a segment under a policy, eq. 2, or with the reference policy's log-probabilities eq. 3.

    log_prob, reference, mask: [*B, T] → [*B].
    """
    ratio = log_prob if reference is None else log_prob - reference
    return segment_sum(alpha * ratio, mask, discount=discount)


def preference_loss(first: Tensor, second: Tensor, labels: Tensor, *, bias: float = 1.0) -> Tensor:
    """Eq. 4 for each pair. first, second: scores x₁ and x₂; labels: p in [0, 1]; all [*B] → [*B]. bias: λ."""
    first_better = F.softplus(bias * second - first)  # −log σ(x₁ − λ x₂)
    second_better = F.softplus(bias * first - second)
    return (1 - labels) * first_better + labels * second_better


def ipo_loss(first: Tensor, second: Tensor, labels: Tensor, *, tau: float) -> Tensor:
    """Eq. 5 for each pair. first, second: log π/π₀ of the two, sums or means over steps; labels: p; all [*B] → [*B]."""
    margin, gap = first - second, 1 / (2 * tau)
    return (1 - labels) * (margin - gap).square() + labels * (margin + gap).square()


def agreement(first: Tensor, second: Tensor, labels: Tensor) -> Tensor:
    """Share of the pairs with a preference (label not 0.5) whose scores are ordered as labelled. [*B] each → []."""
    return masked_mean(((second > first) == (labels > 0.5)).float(), labels != 0.5)
