"""Playing a policy's episodes in parallel environments and recording them as `Episodes`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from herdbook.core.runner import VectorRunner, VectorStep
from herdbook.core.types import Policy, tree_map
from herdbook.datasets.episodes import Episodes


def played_steps(runner: VectorRunner, policy: Policy, generator: torch.Generator) -> Iterator[VectorStep]:
    """Play the runner's schedule to its end, then close its environments."""
    try:
        while runner.active:
            yield runner.step(policy, generator)
    finally:
        runner.close()


def play(
    runner: VectorRunner,
    policy: Policy,
    generator: torch.Generator,
    metadata: Sequence[Mapping[str, Any]],
    **fields: Any,
) -> Episodes:
    """Play the runner's fixed episodes, one for each entry of `metadata`; `fields` are further fields of `Episodes`."""
    steps, raw = list(played_steps(runner, policy, generator)), runner.raw_observation_space
    return Episodes.from_episodes(
        _episodes(steps, metadata),
        observation_space=runner.observation_space,
        action_space=runner.action_space,
        raw_observation_space=None if raw == runner.observation_space else raw,
        observation_keys=runner.observation_keys,
        **fields,
    )


def _episodes(steps: Sequence[VectorStep], metadata: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Cut the lockstep record `[steps, lanes]` into episodes, each of which is a run of steps in one lane."""
    observations = tree_map(lambda *leaves: np.stack(leaves), *(s.played.observations for s in steps))
    actions, rewards = np.stack([s.played.actions for s in steps]), np.stack([s.played.rewards for s in steps])
    begins: dict[int, int] = {}
    found: list[dict[str, Any]] = [{}] * len(metadata)
    for t, step in enumerate(steps):
        played = step.played
        for lane in np.flatnonzero(step.first).tolist():
            begins[int(step.episodes[lane])] = t
        for lane in np.flatnonzero(played.terminated | played.truncated).tolist():
            number = int(step.episodes[lane])
            rows = slice(begins[number], t + 1), lane
            found[number] = {
                "observations": tree_map(
                    lambda leaf, final, rows=rows: np.concatenate([leaf[rows], final[rows[1]][None]]),
                    observations,
                    played.next_observations,
                ),
                "actions": actions[rows],
                "rewards": rewards[rows],
                "terminated": bool(played.terminated[lane]),
                "truncated": bool(played.truncated[lane]),
                "metadata": metadata[number],
            }
    return found
