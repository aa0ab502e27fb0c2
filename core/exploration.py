"""How agents explore, and schedules that last a part of the training."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from herdbook.core.distributions import Categorical, Normal
from herdbook.core.rollout import Uniform
from herdbook.core.types import Tree


def uniform_box(observations: Tree, size: int) -> Uniform:
    """Uniform actions [B, size] in [−1, 1], one for each observation."""
    leaf: Tensor = pytree.tree_leaves(observations)[0]
    ones = torch.ones(len(leaf), size, device=leaf.device)
    return Uniform(-ones, ones)


def gaussian_noise(actions: Tensor, sigma: float) -> Normal:
    """N(actions, σ²), whose samples are clipped to [−1, 1]. actions: [*B, A]."""
    return Normal(actions, torch.full_like(actions, sigma).log(), clip=True)


def epsilon_greedy(values: Tensor, legal: Tensor | None, epsilon: float) -> Categorical:
    """ε shared by all legal actions, and the rest for the best of them. values: [*B, n]; legal: None for all."""
    if legal is None:
        share = epsilon / values.shape[-1]
        probs = torch.full_like(values, share).scatter_(-1, values.argmax(-1, keepdim=True), 1 - epsilon + share)
        return Categorical(probs.log())
    best = values.masked_fill(~legal, -torch.inf).argmax(-1, keepdim=True)
    uniform = legal.float() / legal.sum(-1, keepdim=True)
    probs = (epsilon * uniform).expand_as(values)
    return Categorical((probs + torch.zeros_like(values).scatter_(-1, best, 1 - epsilon)).log())


def linear_schedule(start: float, end: float, steps: int, step: int | None) -> float:
    """From `start` to `end` over so many steps, and `end` ever after, or where no step is given."""
    return end if step is None else start + (end - start) * min(step / steps, 1.0)


def updates_after(steps: int, warmup_steps: int, updates_per_step: float) -> int:
    """How many updates should have been made after so many environment steps, of which the first are a warm-up."""
    return int(max(steps - warmup_steps, 0) * updates_per_step)
