"""The domain of one agent: Gymnasium environments, `Episodes`, policies that play step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, SupportsFloat

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from herdbook.core.actor import Actor
from herdbook.core.config import Config
from herdbook.core.environments import (
    EnvironmentSource,
    EnvironmentUnavailable,
    ReferenceScores,
    describe_environment,
    make_environment,
    whole_games,
)
from herdbook.core.exploration import NoisyPolicy
from herdbook.core.fine_tuning import FineTuned
from herdbook.core.needs import Interaction, Needs
from herdbook.core.random_policy import RandomPolicy
from herdbook.core.runner import VectorRunner, fixed_episodes
from herdbook.core.seeds import SeedBySeed
from herdbook.core.spaces import check_action_space, flat_action_space, flat_space, with_bounds
from herdbook.core.specs import spec_from_state, spec_state
from herdbook.core.step_collector import StepCollector
from herdbook.core.types import Policy, Spec
from herdbook.datasets.demonstrations import choose_demonstrations
from herdbook.datasets.episodes import DataError, Episodes
from herdbook.datasets.minari import environment_json, write_minari
from herdbook.datasets.mixed import MixedReplay
from herdbook.datasets.prioritised import PrioritisedReplay
from herdbook.datasets.relabel import relabel
from herdbook.datasets.replay import ReplayBuffer
from herdbook.datasets.rewards import PlayedRewards, RewardMap, reads_data, reward_map, transform_rewards
from herdbook.datasets.rollout_buffer import RolloutBuffer
from herdbook.evaluation.evaluate import evaluate, score
from herdbook.evaluation.scores import find_references, score_line
from herdbook.experiments.catalogue import UserError
from herdbook.experiments.domain import EVALUATION_ENVIRONMENTS, Networks, Recorded, Task, drawn
from herdbook.experiments.options import RunOptions
from herdbook.irl.rewards import LearnedReward


class SingleAgent:
    """See `Domain`."""

    title = "one agent"
    has_opponents = False
    interactions: Sequence[Interaction] = ("steps", "rollouts")

    def serves(self, needs: Needs) -> bool:
        return needs.agents == "one"

    def holds(self, data: Any) -> bool:
        return isinstance(data, Episodes)

    def check_options(self, options: RunOptions) -> None:
        if options.learn or options.others != "random":
            raise UserError("learn, others: expected none, there is one agent; they are for environments with many")
        if options.workers:
            raise UserError(f"workers: expected 0, the learner steps one agent itself; got {options.workers}")
        if not reads_data(options.reward_transform):
            reward_transform(options.reward_transform)

    def check_actions(self, spec: Spec, needs: Needs, algorithm: str) -> None:
        check_action_space(spec.action_space, needs.actions, algorithm)

    def cautions(self, task: Task, config: Config) -> list[str]:
        return []

    def environment_spec(
        self,
        source: EnvironmentSource,
        observation_keys: tuple[str, ...] | None = None,
        opponents: Mapping[str, Any] | None = None,
    ) -> Spec:
        env = make_environment(source)
        env.close()
        raw = env.observation_space
        try:
            seen = flat_space(raw, observation_keys)
            actions = flat_action_space(env.action_space)
            own = env.action_space if isinstance(actions, spaces.Box) and env.action_space.dtype != np.float32 else None
            return Spec(seen, actions, None if raw == seen else raw, observation_keys, raw_action_space=own)
        except EnvironmentUnavailable:
            raise
        except ValueError as error:  # of the keys, or of a space that is not supported
            raise UserError(str(error)) from error

    def bounded(self, spec: Spec, bounds: tuple[float, float] | None) -> Spec:
        if bounds is None:
            return spec
        try:
            return replace(spec, action_space=with_bounds(spec.action_space, *bounds))
        except ValueError as error:  # other actions
            raise UserError(str(error)) from error

    def data_spec(self, data: Episodes) -> Spec:
        return data.spec()

    def spec_state(self, spec: Spec) -> dict[str, Any]:
        return spec_state(spec)

    def spec_from_state(self, state: Mapping[str, Any]) -> Spec:
        return spec_from_state(state)

    def chosen(self, data: Episodes, options: RunOptions) -> Episodes:
        return choose_demonstrations(
            data, first=options.demonstrations, every=options.subsample, min_return=options.min_return
        )

    def transformed(self, data: Episodes, transform: str, reward: LearnedReward | None) -> Episodes:
        try:
            return transform_rewards(relabelled(data, reward), transform)
        except DataError:
            raise
        except ValueError as error:  # an unknown name
            raise UserError(str(error)) from error

    def transforms(self, data: Episodes) -> list[str]:
        return list(data.transforms)

    def references(self, source: EnvironmentSource) -> ReferenceScores | None:
        return find_references(None, describe_environment(source))

    def check_storable(self, task: Task) -> None:
        if (environment := describe_environment(task.place)) is not None:
            environment_json(environment)

    def write(self, data: Episodes, dataset_id: str, data_dir: str | None) -> Path:
        return write_minari(data, dataset_id, data_dir=data_dir)

    def dataset_replay(self, task: Task, algorithm: Any, options: RunOptions, device: str) -> ReplayBuffer:
        assert task.data is not None  # the caller asks where there is a dataset
        return ReplayBuffer(task.data.episodes, device=device, time_limit=options.time_limit)

    def empty_replays(self, task: Task, algorithms: Sequence[Any], options: RunOptions, device: str) -> list[Any]:
        return [self.storage(task, algorithm, options, device) for algorithm in algorithms]

    def storage(self, task: Task, algorithm: Any, options: RunOptions, device: str) -> Any:
        """Storage of one seed's steps: a rollout for on-policy algorithms, else a replay, prioritised on request."""
        c, transform = algorithm.config, reward_transform(options.reward_transform)
        reward = played_rewards(task.reward, device)
        if algorithm.needs.on_policy:
            return RolloutBuffer(
                device=device, time_limit=options.time_limit, reward=reward, reward_transform=transform
            )
        for name, changed in (("reward_transform", options.reward_transform != "none"), ("reward", reward is not None)):
            if c.scale_rewards and changed:
                raise UserError(
                    f"scale_rewards: expected no {name} beside it, since the scale is that of the rewards as they were "
                    f"played; got {getattr(options, name)}"
                )
        try:
            replay = ReplayBuffer.online(
                task.spec,
                c.replay_steps,
                options.lanes(algorithm.needs),
                device=device,
                time_limit=options.time_limit,
                frame_stack=c.frame_stack,
                reward=reward,
                reward_transform=transform,
            )
        except (ValueError, MemoryError) as error:
            raise UserError(f"replay_steps: {error}") from error
        return PrioritisedReplay(replay, c.priority_exponent) if c.prioritised else replay

    def collector(
        self, task: Task, algorithms: Sequence[Any], options: RunOptions, device: str, networks: Networks | None
    ) -> StepCollector:
        needs: Needs = algorithms[0].needs
        lanes = options.lanes(needs)
        if needs.max_envs is not None and lanes > needs.max_envs:
            name = type(algorithms[0]).__name__
            raise UserError(f"num_envs: expected at most {needs.max_envs} for {name}, got {lanes}")
        try:
            return StepCollector(task.place, task.spec, options.seeds, lanes, device, task.max_steps)
        except EnvironmentUnavailable:
            raise
        except ValueError as error:  # a callable that gives the same environment twice
            raise UserError(str(error)) from error

    def fine_tuning(
        self, task: Task, algorithms: SeedBySeed, replay: ReplayBuffer, options: RunOptions, device: str
    ) -> tuple[SeedBySeed, list[MixedReplay]]:
        space, needs = task.spec.action_space, algorithms.algorithms[0].needs
        noise = options.online_noise
        if noise is None:
            noise = needs.online_noise if isinstance(space, spaces.Box) else 0.0
        try:
            players = [
                FineTuned(one, space, noise=noise, updates_per_step=options.online_updates)
                for one in algorithms.algorithms
            ]
        except ValueError as error:
            raise UserError(f"online_noise: {error}") from error
        rewards = reward_transform(options.reward_transform, task.data, task.reward)
        try:
            replays = [
                MixedReplay(
                    replay,
                    ReplayBuffer.online(
                        task.spec,
                        options.online_replay,
                        options.lanes(players[0].needs),
                        device=device,
                        time_limit=options.time_limit,
                        frame_stack=algorithms.config.frame_stack,
                        reward=played_rewards(task.reward, device),
                        reward_transform=rewards,
                    ),
                    options.online_share,
                )
                for _ in options.seeds
            ]
        except (ValueError, MemoryError) as error:
            raise UserError(f"online_replay: {error}") from error
        return SeedBySeed(players), replays

    def try_environment(self, task: Task, device: str) -> None:
        schedule = fixed_episodes(1, 0)
        VectorRunner(task.place, 1, schedule, spec=task.spec, max_steps=task.max_steps, device=device).close()

    def play(self, task: Task, policy: Policy, episodes: int, seed: int, device: str, num_envs: int) -> Episodes:
        source, lanes, limit = whole_games(task.place), min(episodes, num_envs), task.max_steps
        return evaluate(policy, source, episodes, seed, num_envs=lanes, max_steps=limit, device=device, spec=task.spec)

    def score(self, task: Task, policy: Policy, episodes: int, seed: int, device: str) -> dict[str, Any]:
        # `score` keeps no frames, `evaluate` all of them.
        source, lanes, limit = whole_games(task.place), min(episodes, EVALUATION_ENVIRONMENTS), task.max_steps
        played = score(policy, source, episodes, seed, num_envs=lanes, max_steps=limit, device=device, spec=task.spec)
        return score_line(played.returns(), played.lengths(), task.references)

    def random_policy(self, spec: Spec) -> Policy:
        try:
            return RandomPolicy(spec.action_space)
        except ValueError as error:  # actions without bounds
            raise UserError(str(error)) from error

    def noisy_policy(self, policy: Policy, spec: Spec, noise: float) -> Policy:
        try:
            return NoisyPolicy(policy, spec.action_space, noise)
        except ValueError as error:
            raise UserError(f"noise: {error}") from error

    def actor(self, policy: Policy, spec: Spec, *, device: str, generator: torch.Generator) -> Actor:
        return Actor(policy, spec, device=device, generator=generator)

    def film(self, task: Task, policy: Policy, seed: int) -> list[Any]:
        films: list[_Filmed] = []

        def filmed() -> Any:
            films.append(_Filmed(make_environment(task.place)))
            return films[-1]

        evaluate(policy, filmed, 1, seed, max_steps=task.max_steps, spec=task.spec)
        return films[-1].frames


class _Filmed(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Keeps the pictures of the present episode."""

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        given = self.env.reset(**options)
        self.frames = [drawn(self.env.render)]
        return given

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        given = self.env.step(action)
        self.frames.append(drawn(self.env.render))
        return given


def reward_note(reward: LearnedReward) -> str:
    """The note on a learned reward in the `transforms` of episodes that have its rewards."""
    return f"reward: {reward.digest()}"


def played_rewards(reward: LearnedReward | None, device: str) -> PlayedRewards | None:
    """The learned reward of the steps that are played; None for the environment's."""
    return None if reward is None else PlayedRewards(reward.to(device), reward.discount, device)


def relabelled(data: Episodes, reward: LearnedReward | None) -> Episodes:
    """The same steps with the rewards of a learned reward, if there is one."""
    if reward is None:
        return data
    return relabel(data, reward, discount=reward.discount, description=reward_note(reward))


def reward_transform(name: str, data: Recorded | None = None, reward: LearnedReward | None = None) -> RewardMap | None:
    """The transform of the rewards of what is played, the same as that of the run's dataset; None for none.

    Raises UserError or DataError.
    """
    given = None if data is None else data.given
    if given is not None and (changed := [t for t in given.transforms if t.startswith("rewards:")]):
        raise UserError(
            f"online_steps: expected the rewards of {given.source} as the environment gives them, they were changed: "
            f"{', '.join(changed)}; give the raw data, and --reward-transform"
        )
    try:
        if given is not None and reads_data(name):
            given = relabelled(given, reward)
        return None if name == "none" else reward_map(name, given)
    except DataError:
        raise
    except ValueError as error:
        raise UserError(f"reward_transform: {error}") from error
