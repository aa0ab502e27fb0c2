"""Several seeds of an algorithm that trains one seed at a time: recurrent networks, learning by interaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from herdbook.core.types import Metrics, Policy, RewardFunction


class SeedBySeed:
    """Combines algorithms of one seed each into an algorithm of several seeds.

    A batch is a list with one batch per seed. The metrics of an update are `[S]`.
    """

    def __init__(self, algorithms: Sequence[Any]) -> None:
        self.algorithms = tuple(algorithms)
        self.config, self.needs = self.algorithms[0].config, self.algorithms[0].needs

    def sample(self, replay: Any, generators: Sequence[torch.Generator]) -> list[Any]:
        """Sample one batch per seed from the same replay."""
        return [a.sample(replay, [generator]) for a, generator in zip(self.algorithms, generators, strict=True)]

    def update(self, batches: Sequence[Any]) -> Metrics:
        """Update every seed once."""
        return stacked([a.update(batch) for a, batch in zip(self.algorithms, batches, strict=True)])

    def policy(self, seed_index: int = 0, **options: Any) -> Policy:
        """The policy of one seed's algorithm."""
        chosen: Policy = self.algorithms[seed_index].policy(0, **options)
        return chosen

    def reward(self, seed_index: int = 0) -> RewardFunction:
        """The learned reward function of one seed's algorithm, if `needs.reward`."""
        learned: RewardFunction = self.algorithms[seed_index].reward(0)
        return learned

    def state_dict(self) -> dict[str, Any]:
        return {"seed_by_seed": [algorithm.state_dict() for algorithm in self.algorithms]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError if the number of seeds or the algorithm differs.

        A state of an algorithm that trained all seeds together is taken apart.
        """
        together = "seed_by_seed" not in state and {"seeds", "generators"} <= state.keys()
        count = len(state["seeds"]) if together else 0
        saved = [_of_one(state, index) for index in range(count)] if together else state.get("seed_by_seed", ())
        if len(saved) != len(self.algorithms):
            raise ValueError(f"expected the state of {len(self.algorithms)} seeds, got {len(saved)}")
        for algorithm, own in zip(self.algorithms, saved, strict=True):
            algorithm.load_state_dict(own)


def _of_one(state: Any, index: int) -> Any:
    """The part of one seed in a learner's state, whose lists and tensors have an axis of seeds in front."""
    if isinstance(state, Mapping):
        return {name: _of_one(value, index) for name, value in state.items()}
    if isinstance(state, (list, torch.Tensor)):
        return state[index : index + 1]
    return state


def stacked(metrics: Sequence[Metrics], active: Sequence[int] | None = None) -> Metrics:
    """Stack the scalar metrics of S seeds to `[S]` (a scalar for S = 1), for names that every active seed has.

    active: Indices of the active seeds, by default all. Values missing for other seeds are NaN.
    """
    if len(metrics) == 1:
        return metrics[0]
    first, *others = [metrics[index] for index in (range(len(metrics)) if active is None else active)]
    common = {name: value for name, value in first.items() if all(name in each for each in others)}
    return {
        name: torch.stack([each.get(name, torch.full_like(value, torch.nan)) for each in metrics])
        for name, value in common.items()
    }
