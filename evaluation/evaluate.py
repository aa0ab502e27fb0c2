"""Evaluation of a policy in its environment: complete episodes, or their returns and lengths only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from herdbook.core.environments import EnvironmentSource, ReferenceScores, describe_environment
from herdbook.core.random import generator as make_generator
from herdbook.core.runner import VectorRunner, fixed_episodes
from herdbook.core.types import Array, Policy, Spec
from herdbook.datasets.episodes import Episodes
from herdbook.datasets.play import play, played_steps


def evaluate(
    policy: Policy,
    make_env: EnvironmentSource,
    episodes: int,
    seed: int,
    *,
    num_envs: int = 8,
    max_steps: int | None = None,
    device: str | torch.device = "cpu",
    spec: Spec | None = None,
    reference_scores: ReferenceScores | None = None,
) -> Episodes:
    """Run a policy for a fixed list of episodes: episode i is reset with `seed + i`.

    Every episode that starts is run to its end and counted once, so short episodes are not over-represented. The
    result is a function of the seed. For a deterministic policy it does not depend on `num_envs`, except for rounding
    in matrix products of another batch size.

    Args:
        policy: Raw observations in, raw actions out. Actions are clipped to the action space.
        make_env: An environment's name, its recorded spec, or a callable that returns a new one.
        episodes: Number of episodes.
        seed: Seed of the first episode and of the policy's sampling.
        num_envs: Number of parallel environments.
        max_steps: Truncate episodes after this many steps, on top of the environment's own limit. Without any limit
            episodes are truncated after 10,000 steps, with a warning.
        device: Device of the policy.
        spec: The spaces that the policy was trained on; they must be the environment's.
        reference_scores: Stored in the result.

    Returns:
        `Episodes` in the order of their seeds, with metadata `{"seed": …}`.

    Raises:
        EnvironmentUnavailable: The environment cannot be made; the message says what to install.
        EnvironmentFailed: The environment raised or gave NaN; the message gives the seed and the step.
        PolicyFailed: The policy gave an action that is not finite.
        ValueError: The spaces are not those of `spec`, or the policy's actions do not fit.
    """
    runner = _runner(make_env, episodes, seed, num_envs, max_steps=max_steps, device=device, spec=spec)
    metadata, described = [{"seed": seed + i} for i in range(episodes)], describe_environment(make_env)
    return play(
        runner,
        policy,
        make_generator(seed, device=runner.device),
        metadata,
        environment=described,
        reference_scores=reference_scores,
        source="evaluation" if described is None else f"evaluation in {described.id}",
    )


@dataclass(frozen=True)
class Scores:
    """Returns and lengths of N episodes, read by `returns()` and `lengths()` as those of `Episodes` are."""

    _returns: Array
    _lengths: Array

    def returns(self) -> Array:
        """Undiscounted returns. `[N]`"""
        return self._returns

    def lengths(self) -> Array:
        """Numbers of steps. `[N]`"""
        return self._lengths


def score(
    policy: Policy,
    make_env: EnvironmentSource,
    episodes: int,
    seed: int,
    *,
    num_envs: int = 8,
    max_steps: int | None = None,
    device: str | torch.device = "cpu",
    spec: Spec | None = None,
) -> Scores:
    """Run the episodes of `evaluate`, but keep only returns and lengths: ten episodes of images may take gigabytes.

    Arguments and errors are those of `evaluate`.
    """
    runner = _runner(make_env, episodes, seed, num_envs, max_steps=max_steps, device=device, spec=spec)
    returns, lengths = np.zeros(episodes), np.zeros(episodes, dtype=np.int64)
    for step in played_steps(runner, policy, make_generator(seed, device=runner.device)):
        numbers = step.episodes[step.active]
        returns[numbers] += step.played.rewards[step.active]
        lengths[numbers] += 1
    return Scores(returns, lengths)


def check_counts(episodes: int, seed: int, num_envs: int) -> None:
    """Raise ValueError unless there are episodes and environments, and the seed is not negative."""
    for name, value, least in (("episodes", episodes, 1), ("seed", seed, 0), ("num_envs", num_envs, 1)):
        if value < least:
            raise ValueError(f"expected {name} >= {least}, got {value}")


def _runner(make_env: EnvironmentSource, episodes: int, seed: int, num_envs: int, **options: Any) -> VectorRunner:
    check_counts(episodes, seed, num_envs)
    return VectorRunner(make_env, min(num_envs, episodes), fixed_episodes(episodes, seed), **options)
