"""Several seeds of an algorithm that trains one seed at a time: recurrent networks, learning with environments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from herdbook.core.types import Algorithm, Metrics, Policy


class Interactive(Algorithm, Protocol):
    """An algorithm that learns from the episodes that its own policies play. It trains one seed.

    Its config says how many `replay_steps` are kept.
    """

    acting: tuple[str, ...]
    """The networks that its policies read."""
    learner: Any

    def sample(self, replay: Any, generators: Sequence[torch.Generator]) -> Any: ...
    def update(self, batch: Any) -> Metrics: ...
    def policy(self, seed_index: int = 0, *, deterministic: bool = True, step: int | None = None) -> Policy:
        """Greedy, or exploring as its schedule says at environment step `step`."""
        ...

    def updates_due(self, episodes: int, steps: int) -> int:
        """How many updates should have been made after so many episodes and environment steps."""
        ...


class SeedBySeed:
    """Algorithms of one seed each, which look like one algorithm of several seeds.

    `sample` gives a list of batches, one per seed, and `update` takes it; its metrics are `[S]`.
    """

    def __init__(self, algorithms: Sequence[Any]) -> None:
        self.algorithms = tuple(algorithms)
        self.config = self.algorithms[0].config

    def sample(self, replay: Any, generators: Sequence[torch.Generator]) -> list[Any]:
        """Every seed's batch, from the same replay."""
        return [
            algorithm.sample(replay, [generator])
            for algorithm, generator in zip(self.algorithms, generators, strict=True)
        ]

    def update(self, batches: Sequence[Any]) -> Metrics:
        """One update of every seed."""
        return stacked([a.update(batch) for a, batch in zip(self.algorithms, batches, strict=True)])

    def policy(self, seed_index: int = 0, **options: Any) -> Policy:
        """What the seed's own algorithm gives."""
        chosen: Policy = self.algorithms[seed_index].policy(0, **options)
        return chosen

    def state_dict(self) -> dict[str, Any]:
        return {"seed_by_seed": [algorithm.state_dict() for algorithm in self.algorithms]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError for the state of another number of seeds, or of another algorithm."""
        saved = state.get("seed_by_seed", ())
        if len(saved) != len(self.algorithms):
            raise ValueError(f"expected the state of {len(self.algorithms)} seeds, got {len(saved)}")
        for algorithm, own in zip(self.algorithms, saved, strict=True):
            algorithm.load_state_dict(own)


class Member:
    """One seed that learns with environments: its algorithm, its replay, and what has been counted."""

    def __init__(self, algorithm: Interactive, replay: Any, generator: torch.Generator) -> None:
        self.algorithm, self.replay, self.generator = algorithm, replay, generator
        self.rounds = self.episodes = self.steps = self.updates = self.lost = self.lost_in_a_row = 0
        self.metrics: Metrics = {}

    def add(self, episodes: Sequence[Any], lost: int) -> None:
        """Take what was played in a round, `lost` episodes less."""
        self.rounds += 1
        self.lost += lost
        self.lost_in_a_row = 0 if episodes else self.lost_in_a_row + lost
        self.episodes += len(episodes)
        self.steps += sum(map(len, episodes))
        if episodes:
            self.replay.add(*episodes)
            returns = [float(episode.rewards.sum()) for episode in episodes]
            self._count("return", sum(returns) / len(returns))
            self._count("length", sum(map(len, episodes)) / len(episodes))
        self._count("lost", float(self.lost))

    def _count(self, name: str, value: float) -> None:
        self.metrics[f"collected/{name}"] = torch.tensor(value, device=self.generator.device)  # where the losses are

    def learn(self) -> None:
        """Make the updates that are due."""
        due = self.algorithm.updates_due(self.episodes, self.steps)
        while self.updates < due:
            self.metrics |= self.algorithm.update(self.algorithm.sample(self.replay, [self.generator]))
            self.updates += 1

    def acting(self) -> dict[str, dict[str, Any]]:
        """The parameters that its policies read, on the host: copies."""
        learner = self.algorithm.learner
        return {
            name: {key: value.cpu().numpy().copy() for key, value in learner.parameters_of(name).items()}
            for name in self.algorithm.acting
        }

    def state_dict(self) -> dict[str, Any]:
        """Counters and metrics; algorithm, generator and replay are stored for themselves."""
        return {**{name: getattr(self, name) for name in _COUNTERS}, "metrics": self.metrics}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in _COUNTERS:
            setattr(self, name, int(state[name]))
        saved = state.get("metrics", {})  # of a run that was begun before they were stored: until it learns again
        self.metrics = {name: value.to(self.generator.device) for name, value in saved.items()}


_COUNTERS = ("rounds", "episodes", "steps", "updates", "lost", "lost_in_a_row")


def stacked(metrics: Sequence[Metrics]) -> Metrics:
    """Metrics of single seeds, each a scalar, as `[S]` (a scalar for one seed): those that every seed has."""
    if len(metrics) == 1:
        return metrics[0]
    common = [name for name in metrics[0] if all(name in each for each in metrics)]
    return {name: torch.stack([each[name] for each in metrics]) for name in common}
