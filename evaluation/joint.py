"""Evaluation of many agents: episodes of a joint policy in its environment, as a dataset."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from herdbook.core.environments import EnvironmentSource, ReferenceScores, describe_environment
from herdbook.core.joint.runner import JointRunner
from herdbook.core.joint.types import JointSpec
from herdbook.core.random import generator as make_generator
from herdbook.core.registry import package_versions
from herdbook.core.runner import EnvironmentFailed
from herdbook.core.types import Policy
from herdbook.datasets.joint.episodes import JointEpisodes

logger = logging.getLogger("herdbook")


def evaluate_joint(
    policy: Policy,
    make_env: EnvironmentSource,
    episodes: int,
    seed: int,
    *,
    num_envs: int = 20,
    max_steps: int | None = None,
    device: str | torch.device = "cpu",
    spec: JointSpec | None = None,
    learners: Sequence[str] | None = None,
    others: Any = None,
    reference_scores: ReferenceScores | None = None,
    state: bool = False,
) -> JointEpisodes:
    """Run a joint policy for a fixed list of episodes: episode i is reset with `seed + i`; see `evaluate`.

    An episode in which the environment raises or gives NaN is lost, which a warning in the log says.
    `JointEpisodes.returns()` is the team's (the sum over the agents), `agent_returns()` each agent's own.

    Args:
        policy: Raw observations by kind in, raw actions by kind out.
        make_env: An environment's name, its recorded spec, or a callable that returns a new one.
        episodes: How many.
        seed: Of the first episode; it seeds the policy's sampling too.
        num_envs: Environments stepped side by side.
        max_steps: Cut episodes there (truncated), on top of the environment's own limit.
        device: Where the policy's tensors live.
        spec: The task that the policy was trained on; it must be the environment's.
        learners, others: Whom the policy plays, and who plays the rest, as `JointRunner` takes them.
        reference_scores: Kept in the result.
        state: Whether the global state is recorded, where there is one.

    Raises:
        EnvironmentUnavailable: The environment cannot be made, or has other agents or spaces than `spec`.
        EnvironmentFailed: It raised or gave NaN in every episode; the first one's seed and step are named.
    """
    if episodes < 1 or num_envs < 1:
        raise ValueError(f"expected episodes >= 1 and num_envs >= 1, got {episodes} and {num_envs}")
    if seed < 0:
        raise ValueError(f"expected seed >= 0, got {seed}")
    runner = JointRunner(
        make_env,
        min(num_envs, episodes),
        max_steps=max_steps,
        device=device,
        spec=spec,
        learners=learners,
        others=others,
        state=state,
    )
    try:
        played = runner.run(policy, range(seed, seed + episodes), make_generator(seed, device=device))
    finally:
        runner.close()
    if len(played.failures) == episodes:
        raise EnvironmentFailed(played.failures[0])
    if played.failures:
        logger.warning("evaluation: %d of %d episodes are lost: %s", len(played.failures), episodes, played.failures[0])
    described = describe_environment(make_env)
    return JointEpisodes.from_episodes(
        [episode for episode in played.episodes if episode is not None],
        runner.spec,
        environment=described,
        packages={} if described is None else package_versions(described.id),
        reference_scores=reference_scores,
        source="evaluation" if described is None else f"evaluation in {described.id}",
    )
