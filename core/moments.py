"""Running mean and variance, by which observations and rewards are normalised while they are collected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

_Value = TypeVar("_Value", float, Tensor)


def merged(first: tuple[int, _Value, _Value], second: tuple[int, _Value, _Value]) -> tuple[int, _Value, _Value]:
    """Count, mean and Σ (x − mean)² of two sets of rows together, from those of each (Chan, Golub & LeVeque 1983).

    Means and sums are floats or tensors of one shape. The second set is not empty.
    """
    count, mean, squares = first
    more, other, others = second
    total, difference = count + more, other - mean
    return (
        total,
        mean + difference * (more / total),
        squares + others + difference * difference * (count * more / total),
    )


class RunningMoments:
    """Mean and variance of all rows that were ever given, in double precision on the host.

    shape: of a row.
    """

    def __init__(self, *shape: int) -> None:
        self.count = 0
        self.mean = torch.zeros(shape, dtype=torch.float64)
        self.squares = torch.zeros(shape, dtype=torch.float64)  # Σ (x − mean)²

    def update(self, rows: Tensor) -> None:
        """rows: [*B, *shape]."""
        rows = rows.detach().cpu().double().reshape(-1, *self.mean.shape)
        mean = rows.mean(0)
        given = (len(rows), mean, (rows - mean).square().sum(0))
        self.count, self.mean, self.squares = merged((self.count, self.mean, self.squares), given)

    @property
    def std(self) -> Tensor:
        """1 before anything was given, and where all rows are equal."""
        std = (self.squares / max(self.count, 1)).sqrt()
        return torch.where(std > 0, std, 1.0)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError for rows of another shape."""
        if state["mean"].shape != self.mean.shape:
            raise ValueError(f"expected moments of shape {list(self.mean.shape)}, got {list(state['mean'].shape)}")
        self.count = int(state["count"])
        self.mean, self.squares = (state[name].to("cpu", torch.float64, copy=True) for name in ("mean", "squares"))


class RewardScale:
    """Divides rewards by the running standard deviation of their discounted sum (Engstrom et al. 2020, appendix A).

    Nothing is subtracted: that would change what is optimal where episodes differ in length.
    """

    def __init__(self, discount: float) -> None:
        self.discount = discount
        self.moments = RunningMoments()
        self.sums: Tensor | None = None  # of each lane, since its episode began

    def __call__(self, rewards: Tensor, first: Tensor) -> Tensor:
        """Take these rewards into account, and scale them. Both [lanes, T]; first: an episode begins with the step."""
        self.follow(rewards, first)
        return self.scaled(rewards)

    def scaled(self, rewards: Tensor) -> Tensor:
        """Rewards, or sums of them, in units of the deviation so far. [*B] → [*B]"""
        return rewards / self.moments.std.to(rewards)

    def follow(self, rewards: Tensor, first: Tensor) -> None:
        """Take these rewards into account. Both [lanes, T]; first: an episode begins with the step."""
        sums = torch.zeros_like(rewards[:, 0]) if self.sums is None else self.sums.to(rewards)
        seen = []
        for reward, begins in zip(rewards.unbind(1), first.unbind(1), strict=True):
            sums = torch.where(begins, 0.0, self.discount * sums) + reward
            seen.append(sums)
        self.sums = sums
        self.moments.update(torch.stack(seen))

    def end(self, lanes: Tensor) -> None:
        """The episodes of these lanes (a mask `[lanes]`) are over: their sums begin anew."""
        if self.sums is not None:
            self.sums = torch.where(lanes, 0.0, self.sums)

    def state_dict(self) -> dict[str, Any]:
        return {"moments": self.moments.state_dict(), "sums": self.sums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.moments.load_state_dict(state["moments"])
        self.sums = state["sums"]
