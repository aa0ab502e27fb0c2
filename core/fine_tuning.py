"""Fine-tuning: an offline algorithm continues to learn in an environment, from its dataset and new experience."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from gymnasium import Space

from herdbook.core.book import Evaluate
from herdbook.core.exploration import NoisyPolicy, steps_between_updates, updates_after
from herdbook.core.types import GoesOnline, Metrics, OffPolicy, Policy, Replay


class FineTuned:
    """Adapts an offline algorithm of one seed to `core.loop.train_online`. Its `state_dict` is the algorithm's own.

    It explores with the algorithm's stochastic policy, wrapped in a `NoisyPolicy` if `noise` is not 0. Raises
    ValueError for noise that does not fit the actions, as `NoisyPolicy` does.
    """

    def __init__(
        self, algorithm: OffPolicy[Any], action_space: Space[Any], *, noise: float = 0.0, updates_per_step: float = 1.0
    ) -> None:
        self.algorithm, self.config, self.updates_per_step = algorithm, algorithm.config, updates_per_step
        self.action_space, self.noise = action_space, noise
        self.needs = replace(algorithm.needs, environment=True, interaction="steps", follows=False, num_envs=1)
        self.policy(deterministic=False)  # validates the noise

    def begin(self) -> None:
        """Prepare the algorithm for fine-tuning."""
        if self.algorithm.needs.goes_online:
            cast(GoesOnline, self.algorithm).go_online()

    def sample(self, replay: Replay, generators: Sequence[torch.Generator]) -> Any:
        return self.algorithm.sample(replay, generators)

    def update(self, batch: Any) -> Metrics:
        return self.algorithm.update(batch)

    def policy(self, seed_index: int = 0, *, deterministic: bool = True, step: int | None = None) -> Policy:
        """The algorithm's policy, with noise unless `deterministic`; it does not depend on `step`."""
        policy = self.algorithm.policy(seed_index, deterministic=deterministic)
        return policy if deterministic or not self.noise else NoisyPolicy(policy, self.action_space, self.noise)

    def round_steps(self, num_envs: int) -> int:
        return steps_between_updates(self.updates_per_step, num_envs)

    def updates_due(self, episodes: int, steps: int) -> int:
        return updates_after(steps, 0, self.updates_per_step)

    def state_dict(self) -> dict[str, Any]:
        return self.algorithm.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.algorithm.load_state_dict(state)


def collapsed(score: float, before: float) -> bool:
    """True if a score has dropped by more than half of |before|, i.e. below half of a positive one."""
    return score < before - abs(before) / 2


def score_of(line: Mapping[str, Any]) -> float:
    """The normalised score in a line of evaluations.jsonl, or the mean return if there is none."""
    normalised = line.get("normalized_score")
    return float(line["return_mean"] if normalised is None else normalised)


def watched(evaluate: Evaluate, before: Mapping[int, float], tell: Callable[[int, int, float], None]) -> Evaluate:
    """Wrap `evaluate`: if a score has collapsed, call `tell(seed index, step, score)` and mark the line.

    before: The score of each seed at the start of fine-tuning, by index.
    """

    def function(seed_index: int, step: int) -> Mapping[str, Any]:
        line = evaluate(seed_index, step)
        if seed_index not in before or not collapsed(score_of(line), before[seed_index]):
            return line
        tell(seed_index, step, score_of(line))
        return {**line, "collapsed": True}

    return function
