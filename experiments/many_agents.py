"""The domain of many agents: PettingZoo environments, `JointEpisodes`, policies that play whole episodes."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from herdbook.core.config import Config
from herdbook.core.environments import EnvironmentSource, ReferenceScores, describe_environment
from herdbook.core.episode_collector import EpisodeCollector, Plan
from herdbook.core.joint.actor import JointActor
from herdbook.core.joint.games import IllegalAction
from herdbook.core.joint.random_policy import JointRandomPolicy
from herdbook.core.joint.runner import JointRunner
from herdbook.core.joint.types import JointSpec
from herdbook.core.needs import Interaction, Needs
from herdbook.core.seeds import SeedBySeed
from herdbook.core.specs import joint_spec_from_state, joint_spec_state
from herdbook.core.types import Policy
from herdbook.datasets.joint.episodes import JointEpisodes
from herdbook.datasets.joint.minari import check_storable, save_joint
from herdbook.datasets.joint.replay import JointReplay
from herdbook.evaluation.joint import evaluate_joint
from herdbook.evaluation.scores import score_line
from herdbook.experiments.catalogue import UserError
from herdbook.experiments.domain import EVALUATION_ENVIRONMENTS, Networks, Task, drawn
from herdbook.experiments.environments import environment_record
from herdbook.experiments.options import RunOptions
from herdbook.experiments.sides import sides_of


class ManyAgents:
    """See `Domain`."""

    title = "many agents"
    has_opponents = True
    interactions: Sequence[Interaction] = ("episodes",)

    def serves(self, needs: Needs) -> bool:
        return needs.agents == "many"

    def holds(self, data: Any) -> bool:
        return isinstance(data, JointEpisodes)

    def check_options(self, options: RunOptions) -> None:
        if options.reward is not None:
            raise UserError(f"reward: expected none for many agents, got {options.reward}")
        if options.reward_transform != "none":
            raise UserError(
                f"reward_transform: expected none for many agents, got {options.reward_transform}; "
                "change the rewards in the environment or in the data"
            )
        if options.online_steps:
            raise UserError(f"online_steps: expected 0 for data of many agents, got {options.online_steps}")
        for name, value in options.part_of_data.items():
            raise UserError(f"{name}: expected none for data of many agents, got {value}")

    def check_actions(self, spec: JointSpec, needs: Needs, algorithm: str) -> None:
        """Nothing to check: the constructor of each algorithm raises ValueError and names the algorithms that fit."""

    def cautions(self, task: Task, config: Config) -> list[str]:
        source = task.environment if task.data is None else task.data.given.environment
        record = environment_record(source) if config.team_reward else None
        sides = None if record is None else sides_of(record["id"], task.spec.agents)
        if record is None or sides is None:
            return []
        (one, other), name = sides, config.algorithm or "the algorithm"
        advice = f"--learn {one} trains one side" + ("" if task.data is None else ", which can then collect its data")
        against = f"{record['id']} has sides, {one} against {other}"
        return [f"warning: {against}, but {name} learns from the sum of all agents' rewards; {advice}"]

    def environment_spec(
        self,
        source: EnvironmentSource,
        observation_keys: tuple[str, ...] | None = None,
        opponents: Mapping[str, Any] | None = None,
    ) -> JointSpec:
        try:
            runner = JointRunner(source, 1, **(opponents or {}), state=False)  # not every algorithm reads it
        except IllegalAction as error:  # of the others
            raise UserError(f"others: {error}") from error
        runner.close()
        return runner.spec

    def bounded(self, spec: JointSpec, bounds: tuple[float, float] | None) -> JointSpec:
        if bounds is not None:
            raise UserError(
                f"action_bounds: expected none for many agents, got {bounds}; bound them in the environment"
            )
        return spec

    def data_spec(self, data: JointEpisodes) -> JointSpec:
        return data.spec

    def spec_state(self, spec: JointSpec) -> dict[str, Any]:
        return joint_spec_state(spec)

    def spec_from_state(self, state: Mapping[str, Any]) -> JointSpec:
        return joint_spec_from_state(state)

    def chosen(self, data: JointEpisodes, options: RunOptions) -> JointEpisodes:
        return data  # `check_options` refuses to choose a part

    def transformed(self, data: JointEpisodes, transform: str, reward: Any) -> JointEpisodes:
        return data  # `check_options` refuses every transform and learned reward

    def transforms(self, data: JointEpisodes) -> list[str]:
        return []

    def references(self, source: EnvironmentSource) -> ReferenceScores | None:
        return None

    def check_storable(self, task: Task) -> None:
        check_storable(task.source, task.spec, describe_environment(task.place))

    def write(self, data: JointEpisodes, dataset_id: str, data_dir: str | None) -> Path:
        return save_joint(data, dataset_id, data_dir=data_dir)

    def dataset_replay(self, task: Task, algorithm: Any, options: RunOptions, device: str) -> JointReplay:
        assert task.data is not None  # the caller asks where there is a dataset
        episodes: JointEpisodes = task.data.episodes
        state = _keeps_state(algorithm.needs, episodes.spec)
        return JointReplay(episodes, device=device, time_limit=options.time_limit, state=state)

    def empty_replays(
        self, task: Task, algorithms: Sequence[Any], options: RunOptions, device: str
    ) -> list[JointReplay]:
        return [
            JointReplay.online(
                task.spec,
                one.config.replay_steps,
                device=device,
                time_limit=options.time_limit,
                state=_keeps_state(one.needs, task.spec),
            )
            for one in algorithms
        ]

    def collector(
        self, task: Task, algorithms: Sequence[Any], options: RunOptions, device: str, networks: Networks | None
    ) -> EpisodeCollector:
        first = algorithms[0]
        plan = Plan(
            algorithm=type(first),
            config=first.config,
            spec=task.spec,
            source=task.place,
            num_envs=options.lanes(first.needs),
            runner={
                **task.opponents,
                "state": _keeps_state(first.needs, task.spec),
                "max_steps": task.max_steps,
            },
            networks=networks,
        )
        workers = options.worker_processes(first.needs)
        try:
            if workers:
                pickle.dumps(plan)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise UserError(
                f"workers: expected an environment and networks that another process can import, got {error}; "
                "define them at the top of a module, or set workers=0"
            ) from error
        return EpisodeCollector(plan, options.seeds, workers)

    def fine_tuning(
        self, task: Task, algorithms: SeedBySeed, replay: JointReplay, options: RunOptions, device: str
    ) -> tuple[SeedBySeed, list[Any]]:
        raise UserError(f"online_steps: expected 0 for data of many agents, got {options.online_steps}")

    def try_environment(self, task: Task, device: str) -> None:
        limit = task.max_steps
        JointRunner(
            task.place, 1, spec=task.spec, max_steps=limit, device=device, **task.opponents, state=False
        ).close()

    def play(self, task: Task, policy: Policy, episodes: int, seed: int, device: str, num_envs: int) -> JointEpisodes:
        return self._evaluated(task, policy, episodes, seed, device, num_envs, state=True)

    def score(self, task: Task, policy: Policy, episodes: int, seed: int, device: str) -> dict[str, Any]:
        played = self._evaluated(task, policy, episodes, seed, device, EVALUATION_ENVIRONMENTS, state=False)
        means = dict(zip(played.spec.agents, played.agent_returns().mean(0).tolist(), strict=True))
        return {**score_line(played.returns(), played.lengths(), task.references), "agent_returns": means}

    def _evaluated(
        self, task: Task, policy: Policy, episodes: int, seed: int, device: str, num_envs: int, *, state: bool
    ) -> JointEpisodes:
        return evaluate_joint(
            policy,
            task.place,
            episodes,
            seed,
            num_envs=min(episodes, num_envs),
            max_steps=task.max_steps,
            device=device,
            spec=task.spec,
            state=state,
            **task.opponents,
        )

    def random_policy(self, spec: JointSpec) -> Policy:
        try:
            return JointRandomPolicy(spec)
        except ValueError as error:  # actions without bounds
            raise UserError(str(error)) from error

    def noisy_policy(self, policy: Policy, spec: JointSpec, noise: float) -> Policy:
        raise UserError(f"noise: expected 0 for many agents, got {noise}; deterministic=False explores")

    def actor(self, policy: Policy, spec: JointSpec, *, device: str, generator: torch.Generator) -> JointActor:
        return JointActor(policy, spec, device=device, generator=generator)

    def film(self, task: Task, policy: Policy, seed: int) -> list[Any]:
        frames: list[Any] = []
        runner = JointRunner(task.place, 1, spec=task.spec, max_steps=task.max_steps, **task.opponents, state=False)
        try:
            played = runner.run(policy, [seed], watch=lambda environment: frames.append(drawn(environment.render)))
        finally:
            runner.close()
        if played.failures:
            raise UserError(f"video: {played.failures[0]}")
        return frames


def _keeps_state(needs: Needs, spec: JointSpec) -> bool:
    """True if the global state is stored: the algorithm reads it and the environment has one."""
    return needs.state and spec.state_space is not None
