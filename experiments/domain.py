"""One protocol for what differs between one agent and many agents in a run.

A domain knows its specs and replays, how a policy plays and is scored, and how episodes are written. The rest of
`experiments/` asks it and never looks at the kind of a spec. A new domain is one file beside `single_agent.py` and
`many_agents.py`, and one entry in `domains.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from herdbook.core.collector import Collector
from herdbook.core.config import Config
from herdbook.core.environments import EnvironmentSource, ReferenceScores
from herdbook.core.needs import Interaction, Needs
from herdbook.core.registry import cause
from herdbook.core.seeds import SeedBySeed
from herdbook.core.types import Policy
from herdbook.experiments.catalogue import UserError
from herdbook.experiments.environments import environment_record
from herdbook.experiments.options import RunOptions

EVALUATION_ENVIRONMENTS = 20
"""Environments that an evaluation steps side by side."""

Networks = Mapping[str, Callable[[], torch.nn.Module]]
"""A user's own modules, by the name that the algorithm gives them."""
Data = Any
"""Episodes of some domain: `Episodes`, or `JointEpisodes`."""


def drawn(render: Callable[[], Any]) -> Any:
    """A copy of what an environment's `render` gives. Raises UserError if it raises."""
    try:
        return copy.deepcopy(render())  # some environments draw into the same array again
    except Exception as error:  # an environment may raise anything
        raise UserError(f"video: render() raised {cause(error)}") from error


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """The dataset of a run."""

    given: Data
    """As it was loaded, or the demonstrations that the run chooses among it."""
    episodes: Data
    """With the run's own transform of rewards."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """The data and the environment of a run."""

    domain: Domain
    spec: Any
    data: Recorded | None = None
    environment: EnvironmentSource | None = None
    references: ReferenceScores | None = None
    opponents: Mapping[str, Any] = field(default_factory=dict)
    """Which agents learn and who plays the others, as keyword arguments of the domain's player; empty: all learn."""
    reward: Any = None
    """A `LearnedReward` that replaces the rewards which are learned from, or None."""
    max_steps: int | None = None
    """Episodes are cut off after this many steps, on top of the environment's own limit."""

    @property
    def place(self) -> EnvironmentSource:
        """The environment, where there is certain to be one."""
        assert self.environment is not None
        return self.environment

    @property
    def source(self) -> str:
        """Its name in messages and run directories."""
        if self.data is not None:
            return str(self.data.episodes.source)
        record = environment_record(self.environment)
        return "environment" if record is None else str(record["id"])


class Domain(Protocol):
    """One kind of task. Methods that are given something it cannot handle raise UserError."""

    title: str  # as messages name it: "one agent"
    has_opponents: bool  # other agents may play beside those that learn
    interactions: Sequence[Interaction]  # the ways in which its policies can play while they learn

    def serves(self, needs: Needs) -> bool:
        """True if algorithms with these needs belong to it."""

    def holds(self, data: Data) -> bool:
        """True if these are episodes of this domain."""

    def check_options(self, options: RunOptions) -> None:
        """Raise UserError for options of a run that do not apply here."""

    def check_actions(self, spec: Any, needs: Needs, algorithm: str) -> None:
        """Raise ValueError for actions that the algorithm cannot take."""

    def cautions(self, task: Task, config: Config) -> list[str]:
        """Notices about what an algorithm would learn in a task that its user may not expect."""

    def environment_spec(
        self, source: EnvironmentSource, observation_keys: tuple[str, ...] | None, opponents: Mapping[str, Any]
    ) -> Any:
        """The spec of an environment. Raises EnvironmentUnavailable where it is not of this domain."""

    def bounded(self, spec: Any, bounds: tuple[float, float] | None) -> Any:
        """The spec of an environment with bounds for actions that have none; None changes nothing."""

    def data_spec(self, data: Data) -> Any:
        """The spec of episodes, with their statistics."""

    def spec_state(self, spec: Any) -> dict[str, Any]:
        """A spec as a checkpoint holds it."""

    def spec_from_state(self, state: Mapping[str, Any]) -> Any:
        """The inverse of `spec_state`."""

    def chosen(self, data: Data, options: RunOptions) -> Data:
        """The part of a dataset that the run learns from."""

    def transformed(self, data: Data, transform: str, reward: Any) -> Data:
        """Episodes with the run's learned reward, if it is not None, and then its transform of rewards."""

    def transforms(self, data: Data) -> list[str]:
        """The transforms that episodes have gone through."""

    def references(self, source: EnvironmentSource) -> ReferenceScores | None:
        """Reference scores that are known for an environment."""

    def check_storable(self, task: Task) -> None:
        """Raise DataError if episodes of this task could not be written."""

    def write(self, data: Data, dataset_id: str, data_dir: str | None) -> Path:
        """Write episodes as a Minari dataset; returns its folder."""

    def dataset_replay(self, task: Task, algorithm: Any, options: RunOptions, device: str) -> Any:
        """The replay of the task's dataset."""

    def empty_replays(self, task: Task, algorithms: Sequence[Any], options: RunOptions, device: str) -> list[Any]:
        """For each seed, what the steps that it plays go into."""

    def collector(
        self, task: Task, algorithms: Sequence[Any], options: RunOptions, device: str, networks: Networks | None
    ) -> Collector:
        """The collector that plays while the seeds learn, as `needs.interaction` says."""

    def fine_tuning(
        self, task: Task, algorithms: SeedBySeed, replay: Any, options: RunOptions, device: str
    ) -> tuple[SeedBySeed, list[Any]]:
        """The algorithms as they go on in an environment, and for each seed the dataset with room for its steps."""

    def try_environment(self, task: Task, device: str) -> None:
        """Make the environment and reset it once, so that what is wrong with it shows before training."""

    def play(self, task: Task, policy: Policy, episodes: int, seed: int, device: str, num_envs: int) -> Data:
        """Episodes of a policy in the task's environment; episode i is reset with `seed + i`."""

    def score(self, task: Task, policy: Policy, episodes: int, seed: int, device: str) -> dict[str, Any]:
        """The returns and scores of such episodes: a line of evaluations.jsonl without its step and seed."""

    def random_policy(self, spec: Any) -> Policy:
        """Uniform legal actions."""

    def noisy_policy(self, policy: Policy, spec: Any, noise: float) -> Policy:
        """A policy with noise on its actions."""

    def actor(self, policy: Policy, spec: Any, *, device: str, generator: torch.Generator) -> Any:
        """A policy with NumPy in and out: an `Actor`, or a `JointActor`."""

    def film(self, task: Task, policy: Policy, seed: int) -> list[Any]:
        """The pictures `[H, W, 3]` of the episode that is reset with `seed`."""
