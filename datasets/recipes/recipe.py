"""What a recipe is: a dataset that herdbook makes by itself in a real environment, from scripted controllers or from
policies that it trains first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from herdbook.core.environments import EnvironmentSpec, EnvironmentUnavailable, ReferenceScores, make_environment
from herdbook.core.random import derive, generator
from herdbook.core.runner import VectorRunner, fixed_episodes
from herdbook.core.types import Policy
from herdbook.datasets.episodes import Episodes
from herdbook.datasets.recipes.training import Training

OWN_SCORES = "herdbook: mean returns of a random and of a scripted policy, measured by ourselves"
"""The source that is recorded with the reference scores of scripted recipes."""
TRAINER = "herdbook.experiments.recipes:trained_episodes"
"""What trains the policies of a recipe. Algorithms are known only above this layer, hence a string."""
LANES = 16
"""Environments stepped side by side; part of what determines a recipe's bytes."""


@dataclass(frozen=True, slots=True)
class Behaviour:
    """A policy, how many episodes of it a recipe holds, and what their metadata says of it."""

    policy: Policy
    episodes: int
    metadata: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A dataset that can be made on a machine without a network: the same bytes each time.

    The same bytes are promised for the same versions of the environment, NumPy and torch; where policies are trained
    first, on the same kind of processor.
    """

    id: str
    """The Minari id that it is stored under: `herdbook/classic/pendulum-v0`."""
    description: str
    environment: EnvironmentSpec
    behaviours: Callable[[], Sequence[Behaviour]] | Training
    """Who acts. A function, since a controller may need the environment (a maze); or what is trained first."""
    reference_scores: ReferenceScores
    extra: str | None = None
    """The extra of herdbook that brings the environment; None where the base installation does."""
    seed: int = 0

    @property
    def name(self) -> str:
        """The short name: `classic/pendulum`."""
        return self.id.removeprefix("herdbook/").rpartition("-v")[0]

    @property
    def training(self) -> Training | None:
        """What is trained first; None where everyone is scripted."""
        return self.behaviours if isinstance(self.behaviours, Training) else None

    def make(self, folder: Path | None = None) -> Episodes:
        """Make the episodes: each behaviour acts for its number of them, every episode with a reset seed of its own.

        folder: where the run lies of what is trained first, which goes on from there if it was interrupted; None: in a
        temporary one.

        Raises:
            EnvironmentUnavailable: the environment's package is missing; the message names the extra.
            DataError, RunFailed: the training cannot be begun, or cannot go on.
        """
        try:
            parts = self._parts(folder)
        except EnvironmentUnavailable as error:
            raise EnvironmentUnavailable(f"{self.id} cannot be made: {error}") from error
        return replace(parts[0].concat(*parts[1:]), reference_scores=self.reference_scores, source=self.id)

    def _parts(self, folder: Path | None) -> list[Episodes]:
        if not isinstance(self.behaviours, Training):
            return [collect(self.environment, b, derive(self.seed, i)) for i, b in enumerate(self.behaviours())]
        module, _, name = TRAINER.partition(":")
        trained_episodes = getattr(import_module(module), name)
        environment = environment_spec(self.environment)
        with TemporaryDirectory() as temporary:
            parts = trained_episodes(self, self.behaviours, Path(temporary) if folder is None else folder)
        return [replace(part, environment=environment) for part in parts]


def collect(environment: EnvironmentSpec, behaviour: Behaviour, seed: int) -> Episodes:
    """Episodes of one behaviour. Actions are those that were executed; a time limit truncates.

    Episode i is reset with `seed + i`, and recorded in its metadata so, beside the behaviour's own metadata.
    """
    runner = VectorRunner(environment, min(LANES, behaviour.episodes), fixed_episodes(behaviour.episodes, seed))
    recorded: list[dict[str, list[Any]]] = [
        {"observations": [], "actions": [], "rewards": []} for _ in range(behaviour.episodes)
    ]
    ends: list[dict[str, Any]] = [{} for _ in recorded]
    noise = generator(seed)
    while runner.active:
        step = runner.step(behaviour.policy, noise)
        played = step.played
        for lane in np.flatnonzero(step.active):
            episode = int(step.episodes[lane])
            rows = recorded[episode]
            rows["observations"].append(played.observations[lane])
            rows["actions"].append(played.actions[lane])
            rows["rewards"].append(played.rewards[lane])
            if played.terminated[lane] or played.truncated[lane]:
                rows["observations"].append(played.next_observations[lane])
                ends[episode] = {"terminated": played.terminated[lane], "truncated": played.truncated[lane]}
    runner.close()
    metadata = [{"seed": seed + i, **behaviour.metadata} for i in range(behaviour.episodes)]
    return Episodes.from_episodes(
        (
            {**{name: np.stack(values) for name, values in rows.items()}, **end, "metadata": m}
            for rows, end, m in zip(recorded, ends, metadata, strict=True)
        ),
        observation_space=runner.observation_space,
        action_space=runner.action_space,
        raw_observation_space=(
            None if runner.raw_observation_space == runner.observation_space else runner.raw_observation_space
        ),
        environment=environment_spec(environment),
    )


def environment_spec(environment: EnvironmentSpec) -> EnvironmentSpec:
    """The whole spec, as the environment itself tells it: with it, plain Minari can recover the environment."""
    env = make_environment(environment)
    env.close()
    assert env.spec is not None
    return EnvironmentSpec.from_gymnasium(env.spec)
