"""Evaluation of a joint policy of many agents in its environment."""

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
from herdbook.evaluation.evaluate import check_counts

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

    An episode in which the environment raises or gives NaN is lost, with a warning in the log. Returns `JointEpisodes`,
    whose `returns()` are the team's (the sum over agents) and `agent_returns()` each agent's.

    Args:
        policy: Raw observations by kind in, raw actions by kind out.
        make_env: An environment's name, its recorded spec, or a callable that returns a new one.
        episodes: Number of episodes.
        seed: Seed of the first episode and of the policy's sampling.
        num_envs: Number of parallel environments.
        max_steps: Truncate episodes after this many steps, on top of the environment's own limit.
        device: Device of the policy.
        spec: The task that the policy was trained on; it must be the environment's.
        learners, others: The agents that the policy plays, and the policy of the others, as in `JointRunner`.
        reference_scores: Stored in the result.
        state: Record the global state, if there is one.

    Raises:
        EnvironmentUnavailable: The environment cannot be made, or has other agents or spaces than `spec`.
        EnvironmentFailed: The environment failed in every episode; the message gives the first seed and step.
    """
    check_counts(episodes, seed, num_envs)
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
        logger.warning("evaluation: %d of %d episodes lost: %s", len(played.failures), episodes, played.failures[0])
    described = describe_environment(make_env)
    return JointEpisodes.from_episodes(
        [episode for episode in played.episodes if episode is not None],
        runner.spec,
        environment=described,
        packages={} if described is None else package_versions(described.id),
        reference_scores=reference_scores,
        source="evaluation" if described is None else f"evaluation in {described.id}",
    )
