"""Recipes: datasets that herdbook makes itself in a real environment, from scripted or trained policies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from herdbook.core.environments import EnvironmentSpec, EnvironmentUnavailable, ReferenceScores, make_environment
from herdbook.core.random import derive, generator
from herdbook.core.runner import VectorRunner, fixed_episodes
from herdbook.core.types import Policy
from herdbook.datasets.episodes import Episodes
from herdbook.datasets.play import play
from herdbook.datasets.recipes.training import Training

OWN_SCORES = "herdbook: mean returns of a random and of a scripted policy, measured by ourselves"
"""Source recorded with the reference scores of scripted recipes."""
TRAINER = "herdbook.experiments.recipes:trained_episodes"
"""The function that trains a recipe's policies; a string, because this layer may not import algorithms."""
LANES = 16
"""Number of parallel environments; a recipe's bytes depend on it."""


@dataclass(frozen=True, slots=True)
class Behaviour:
    """A policy, its number of episodes in a recipe, and their metadata."""

    policy: Policy
    episodes: int
    metadata: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A dataset that can be made without a network, with the same bytes each time.

    The bytes are equal for equal versions of the environment, NumPy and torch; for trained policies also on the same
    kind of processor.
    """

    id: str
    """Minari id, such as `herdbook/classic/pendulum-v0`."""
    description: str
    environment: EnvironmentSpec
    behaviours: Callable[[], Sequence[Behaviour]] | Training
    """The scripted policies, made by a function because they may need the environment (a maze map); or a training."""
    reference_scores: ReferenceScores
    extra: str | None = None
    """The extra of herdbook that installs the environment; None if the base installation does."""
    seed: int = 0

    @property
    def name(self) -> str:
        """The short name: `classic/pendulum`."""
        return self.id.removeprefix("herdbook/").rpartition("-v")[0]

    @property
    def training(self) -> Training | None:
        """The training run; None if all policies are scripted."""
        return self.behaviours if isinstance(self.behaviours, Training) else None

    def make(self, folder: Path | None = None) -> Episodes:
        """Make the episodes of every behaviour, each with its own reset seed.

        folder: folder of the training run, from which an interrupted run continues; None: a temporary one.

        Raises:
            EnvironmentUnavailable: The environment's package is missing; the message gives the extra.
            DataError, RunFailed: The training cannot begin, or cannot go on.
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
    """Episodes of one behaviour, with the executed actions; a time limit truncates.

    Episode i is reset with `seed + i`, which its metadata records beside the behaviour's.
    """
    runner = VectorRunner(environment, min(LANES, behaviour.episodes), fixed_episodes(behaviour.episodes, seed))
    metadata = [{"seed": seed + i, **behaviour.metadata} for i in range(behaviour.episodes)]
    return play(runner, behaviour.policy, generator(seed), metadata, environment=environment_spec(environment))


def environment_spec(environment: EnvironmentSpec) -> EnvironmentSpec:
    """The complete spec of an environment, from which plain Minari can recover it."""
    env = make_environment(environment)
    env.close()
    assert env.spec is not None
    return EnvironmentSpec.from_gymnasium(env.spec)
