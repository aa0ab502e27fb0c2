"""Running mean and variance for normalising observations and rewards during collection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

_Value = TypeVar("_Value", float, Tensor)


def merged(first: tuple[int, _Value, _Value], second: tuple[int, _Value, _Value]) -> tuple[int, _Value, _Value]:
    """Count, mean and Σ (x − mean)² of the union of two sets of rows, given those of each (Chan et al. 1983).

    Means and sums are floats or tensors of one shape. The second set must not be empty.
    """
    count, mean, squares = first
    more, other, others = second
    total, difference = count + more, other - mean
    spread = squares + others + difference * difference * (count * more / total)
    return total, mean + difference * (more / total), spread


class RunningMoments:
    """Mean and variance of all rows so far, each of shape `shape`, in double precision on the host."""

    def __init__(self, *shape: int) -> None:
        self.count = 0
        self.mean = torch.zeros(shape, dtype=torch.float64)
        self.squares = torch.zeros(shape, dtype=torch.float64)  # Σ (x − mean)²

    def update(self, rows: Tensor) -> None:
        """Include rows [*B, *shape]."""
        rows = rows.detach().cpu().double().reshape(-1, *self.mean.shape)
        mean = rows.mean(0)
        given = (len(rows), mean, (rows - mean).square().sum(0))
        self.count, self.mean, self.squares = merged((self.count, self.mean, self.squares), given)

    @property
    def std(self) -> Tensor:
        """Standard deviation; 1 without rows and where all rows are equal, despite rounding."""
        std = (self.squares / max(self.count, 1)).sqrt()
        return torch.where(std > 1e-12 * self.mean.abs(), std, 1.0)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError if the state has another shape."""
        if state["mean"].shape != self.mean.shape:
            raise ValueError(f"expected moments of shape {list(self.mean.shape)}, got {list(state['mean'].shape)}")
        self.count = int(state["count"])
        self.mean, self.squares = (state[name].to("cpu", torch.float64, copy=True) for name in ("mean", "squares"))


class RewardScale:
    """Divides rewards by the running standard deviation of their discounted sum (Engstrom et al. 2020, appendix A).

    The mean is not subtracted, because that would change the optimal policy if episodes differ in length.
    """

    def __init__(self, discount: float) -> None:
        self.discount = discount
        self.moments = RunningMoments()
        self.sums: Tensor | None = None  # discounted sum of each lane's current episode, [lanes]

    def __call__(self, rewards: Tensor, first: Tensor) -> Tensor:
        """Update the scale with these rewards and scale them. Both [lanes, T]; first: start of an episode."""
        self.follow(rewards, first)
        return self.scaled(rewards)

    def scaled(self, rewards: Tensor) -> Tensor:
        """Divide rewards or sums of rewards by the current standard deviation. [*B] → [*B]."""
        return rewards / self.moments.std.to(rewards)

    def follow(self, rewards: Tensor, first: Tensor) -> None:
        """Update the scale with these rewards. Both [lanes, T]; first: start of an episode."""
        sums = torch.zeros_like(rewards[:, 0]) if self.sums is None else self.sums.to(rewards)
        seen = []
        for reward, begins in zip(rewards.unbind(1), first.unbind(1), strict=True):
            sums = torch.where(begins, 0.0, self.discount * sums) + reward
            seen.append(sums)
        self.sums = sums
        self.moments.update(torch.stack(seen))

    def end(self, lanes: Tensor) -> None:
        """Reset the sums of these lanes (a mask `[lanes]`), because their episodes have ended."""
        if self.sums is not None:
            self.sums = torch.where(lanes, 0.0, self.sums)

    def state_dict(self) -> dict[str, Any]:
        return {"moments": self.moments.state_dict(), "sums": self.sums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.moments.load_state_dict(state["moments"])
        self.sums = state["sums"]
