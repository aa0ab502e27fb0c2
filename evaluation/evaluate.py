"""Evaluation: episodes of a policy in its environment, as a dataset, or no more than what they came to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from herdbook.core.environments import EnvironmentSource, ReferenceScores, describe_environment
from herdbook.core.random import generator as make_generator
from herdbook.core.runner import VectorRunner, VectorStep, fixed_episodes
from herdbook.core.types import Array, Policy, Spec, tree_map
from herdbook.datasets.episodes import Episodes


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
    result is a function of the seed; for a deterministic policy it does not depend on `num_envs` beyond the rounding
    of matrix products of another batch size.

    Args:
        policy: Raw observations in, raw actions out. Actions outside the action space are clipped to it.
        make_env: An environment's name, its recorded spec, or a callable that returns a new one.
        episodes: How many.
        seed: Of the first episode; it seeds the policy's sampling too.
        num_envs: Environments stepped side by side.
        max_steps: Cut episodes there (truncated), on top of the environment's own limit. An environment that declares
            none is cut after 10,000 steps, with a warning.
        device: Where the policy's tensors live.
        spec: The spaces that the policy was trained on; they must be the environment's.
        reference_scores: Kept in the result.

    Returns:
        `Episodes` in order of their number, with `{"seed": …}` as metadata of each.

    Raises:
        EnvironmentUnavailable: The environment cannot be made; what to install is named.
        EnvironmentFailed: It raised or gave NaN; the episode, its seed and the step are named.
        ValueError: Its spaces are not those of `spec`, or the policy's actions do not fit it.
    """
    runner = _runner(make_env, episodes, seed, num_envs, max_steps, device, spec)
    steps = list(_steps(runner, policy, seed))
    raw = runner.raw_observation_space
    described = describe_environment(make_env)
    return Episodes.from_episodes(
        _episodes_of(steps, episodes, seed),
        observation_space=runner.observation_space,
        action_space=runner.action_space,
        raw_observation_space=None if raw == runner.observation_space else raw,
        observation_keys=runner.observation_keys,
        environment=described,
        reference_scores=reference_scores,
        source="evaluation" if described is None else f"evaluation in {described.id}",
    )


@dataclass(frozen=True)
class Scores:
    """What episodes came to, each an array `[N]`; asked for as it is of `Episodes`."""

    _returns: Array
    _lengths: Array

    def returns(self) -> Array:
        """Undiscounted sums of rewards."""
        return self._returns

    def lengths(self) -> Array:
        """Steps."""
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
    """Run the same episodes as `evaluate`, and keep nothing of them but their returns and lengths.

    Ten games of pixels may be gigabytes. Arguments and errors are those of `evaluate`.
    """
    runner = _runner(make_env, episodes, seed, num_envs, max_steps, device, spec)
    returns, lengths = np.zeros(episodes), np.zeros(episodes, dtype=np.int64)
    for step in _steps(runner, policy, seed):
        numbers = step.episodes[step.active]
        returns[numbers] += step.played.rewards[step.active]
        lengths[numbers] += 1
    return Scores(returns, lengths)


def _runner(
    make_env: EnvironmentSource,
    episodes: int,
    seed: int,
    num_envs: int,
    max_steps: int | None,
    device: str | torch.device,
    spec: Spec | None,
) -> VectorRunner:
    if episodes < 1:
        raise ValueError(f"expected episodes >= 1, got {episodes}")
    if seed < 0:
        raise ValueError(f"expected seed >= 0, got {seed}")
    if num_envs < 1:
        raise ValueError(f"expected num_envs >= 1, got {num_envs}")
    lanes, schedule = min(num_envs, episodes), fixed_episodes(episodes, seed)
    return VectorRunner(make_env, lanes, schedule, spec=spec, max_steps=max_steps, device=device)


def _steps(runner: VectorRunner, policy: Policy, seed: int) -> Iterator[VectorStep]:
    """Play to the end, and close the environments."""
    try:
        generator = make_generator(seed, device=runner.device)
        while runner.active:
            yield runner.step(policy, generator)
    finally:
        runner.close()


def _episodes_of(steps: list[VectorStep], count: int, seed: int) -> list[dict[str, object]]:
    """Cut the lockstep record `[steps, lanes]` into episodes: each is one run of steps of one lane."""
    observations = tree_map(lambda *leaves: np.stack(leaves), *(s.played.observations for s in steps))
    actions, rewards = np.stack([s.played.actions for s in steps]), np.stack([s.played.rewards for s in steps])
    begins: dict[int, int] = {}
    found: list[dict[str, object]] = [{}] * count
    for t, step in enumerate(steps):
        played = step.played
        for lane in np.flatnonzero(step.first).tolist():
            begins[int(step.episodes[lane])] = t
        for lane in np.flatnonzero(played.terminated | played.truncated).tolist():
            number = int(step.episodes[lane])
            start = begins[number]
            found[number] = {
                "observations": tree_map(
                    lambda rows, final, start=start, t=t, lane=lane: np.concatenate(
                        [rows[start : t + 1, lane], final[lane][None]]
                    ),
                    observations,
                    played.next_observations,
                ),
                "actions": actions[start : t + 1, lane],
                "rewards": rewards[start : t + 1, lane],
                "terminated": bool(played.terminated[lane]),
                "truncated": bool(played.truncated[lane]),
                "metadata": {"seed": seed + number},
            }
    return found
