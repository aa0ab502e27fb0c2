"""Several seeds of an algorithm that trains one seed at a time: recurrent networks, learning with environments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from herdbook.core.types import Algorithm, Metrics, Policy

FAILURES = 10
"""Episodes that an environment may lose one after the other before the run fails."""


class Interactive(Algorithm, Protocol):
    """An algorithm that learns from what its own policies play. It trains one seed.

    Its config says how many `replay_steps` are kept, and its needs how it plays.
    """

    learner: Any
    follows: Any
    """Where `needs.follows`: takes every step in once, as the replay does; None: nothing is to be followed."""

    def sample(self, replay: Any, generators: Sequence[torch.Generator]) -> Any: ...
    def update(self, batch: Any) -> Metrics: ...
    def policy(self, seed_index: int = 0, *, deterministic: bool = True, step: int | None = None) -> Policy:
        """Greedy, or exploring as its schedule says at environment step `step`."""
        ...

    def round_steps(self, num_envs: int) -> int:
        """Of one agent: how many steps it takes in each of its environments between updates."""
        ...

    def updates_due(self, episodes: int, steps: int) -> int:
        """How many updates should have been made after so many episodes and environment steps."""
        ...


class Played(Protocol):
    """What one seed played in a round."""

    @property
    def failures(self) -> list[str]:
        """Why episodes were lost."""
        ...

    @property
    def policy_failed(self) -> str | None:
        """Why the policy could not act; None: it could."""
        ...

    @property
    def returns(self) -> list[float]:
        """Of the episodes that ended, those of all agents together."""
        ...

    @property
    def lengths(self) -> list[int]: ...
    @property
    def count(self) -> int:
        """Environment steps."""
        ...

    def add_to(self, replay: Any) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...


class SeedBySeed:
    """Algorithms of one seed each, which look like one algorithm of several seeds.

    `sample` gives a list of batches, one per seed, and `update` takes it; its metrics are `[S]`.
    """

    def __init__(self, algorithms: Sequence[Any]) -> None:
        self.algorithms = tuple(algorithms)
        self.config, self.needs = self.algorithms[0].config, self.algorithms[0].needs

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
        self.follows: Any = algorithm.follows if algorithm.needs.follows else None
        self.rounds = self.episodes = self.steps = self.updates = self.lost = self.lost_in_a_row = 0
        self.metrics: Metrics = {}

    def add(self, played: Played) -> None:
        """Take what was played in a round. Raises ValueError where the replay cannot hold it."""
        self.rounds += 1
        self.steps += played.count
        played.add_to(self.replay)
        if self.follows is not None:
            played.add_to(self.follows)
        if played.failures or self.rounds == 1:
            self.lost += len(played.failures)
            self._count("lost", float(self.lost))
            self.lost_in_a_row += len(played.failures)
        if played.lengths:
            self.lost_in_a_row = 0
            self.episodes += len(played.lengths)
            self._count("return", sum(played.returns) / len(played.returns))
            self._count("length", sum(played.lengths) / len(played.lengths))

    def _count(self, name: str, value: float) -> None:
        self.metrics[f"collected/{name}"] = torch.tensor(value, device=self.generator.device)  # where the losses are

    def learn(self) -> None:
        """Make the updates that are due."""
        due = self.algorithm.updates_due(self.episodes, self.steps)
        while self.updates < due:
            if self.algorithm.needs.on_policy:
                batch = self.replay.take()
            else:
                batch = self.algorithm.sample(self.replay, [self.generator])
            metrics = self.algorithm.update(batch)
            priorities = metrics.pop("priorities", None)
            if priorities is not None:
                self.replay.set_priorities(batch.indices, priorities)
            self.metrics |= metrics
            self.updates += 1

    def acting(self) -> dict[str, dict[str, Any]]:
        """The parameters that its policies read, on the host: copies."""
        learner = self.algorithm.learner
        return {
            name: {key: value.cpu().numpy().copy() for key, value in learner.parameters_of(name).items()}
            for name in self.algorithm.needs.acting
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


def stacked(metrics: Sequence[Metrics], active: Sequence[int] | None = None) -> Metrics:
    """Metrics of single seeds, each a scalar, as `[S]` (a scalar for one seed): those that every active seed has.

    active: indices, by default all; where another seed lacks one of them, it is NaN.
    """
    if len(metrics) == 1:
        return metrics[0]
    first, *others = [metrics[index] for index in (range(len(metrics)) if active is None else active)]
    common = {name: value for name, value in first.items() if all(name in each for each in others)}
    return {
        name: torch.stack([each.get(name, torch.full_like(value, torch.nan)) for each in metrics])
        for name, value in common.items()
    }
