"""From the dataset and the environment that a user named to a `Task`, and its evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import herdbook.irl.environments  # importing these registers our environments, so that a wrong name finds a near one
import herdbook.tabular.environment  # noqa: F401
from herdbook.core.book import Evaluate
from herdbook.core.config import Config
from herdbook.core.environments import EnvironmentSource, EnvironmentUnavailable, describe_environment
from herdbook.core.runner import EnvironmentFailed
from herdbook.core.runs import Run, RunError
from herdbook.core.types import Algorithm
from herdbook.datasets.episodes import DataError
from herdbook.datasets.load import dataset_name, load_dataset, recorded_environment
from herdbook.evaluation.scores import find_references
from herdbook.experiments.build import check_domain
from herdbook.experiments.catalogue import UserError, needs_of
from herdbook.experiments.domain import Data, Recorded, Task
from herdbook.experiments.domains import domain_for, domain_of
from herdbook.experiments.environments import as_recorded, environment_record, same_record, trusted, with_arguments
from herdbook.experiments.opponents import opponents_of
from herdbook.experiments.options import RunOptions, literal_pairs
from herdbook.experiments.rewards import named_reward
from herdbook.experiments.settings import Setting, settings_for
from herdbook.irl.rewards import LearnedReward
from herdbook.tabular.environment import model_of
from herdbook.tabular.mdp import MDP

Named = str | Path | Data
"""A dataset: what `load_dataset` takes, or episodes."""


def load_task(
    algorithm: type[Any], config: Config, options: RunOptions, dataset: Named | None, env: EnvironmentSource | None
) -> Task:
    """The task of an algorithm, as its needs and config say: a dataset, an environment, or both.

    Raises UserError, DataError or EnvironmentUnavailable.
    """
    named, source = check_task(algorithm, config, options, dataset, env)
    if named is None:
        return _environment_task(algorithm, options, source)
    return _dataset_task(algorithm, options, named, source)


def check_task(
    algorithm: type[Any], config: Config, options: RunOptions, dataset: Named | None, env: EnvironmentSource | None
) -> tuple[Named | None, EnvironmentSource | None]:
    """The dataset and the environment as they were named. Raises UserError if they or the options do not fit the needs.

    It reads no data and makes no environment.
    """
    needs, name = needs_of(algorithm), algorithm.__name__
    named = options.dataset if dataset is None else dataset
    if named is not None and not needs.data:
        raise UserError(f"{name} learns in an environment: give --env, not --dataset")
    if named is None and needs.data is True:
        raise UserError(f"{name} learns from a dataset: give --dataset (dataset= in Python)")
    for part, value in options.part_of_data.items() if named is None else ():
        raise UserError(f"{part}: expected a dataset beside it, of which {value} chooses a part; got none")
    plays = needs.plays(named is not None, config.online)
    if plays and options.online_steps:
        raise UserError(
            f"online_steps: expected 0, all steps of {name} are those of an environment; got {options.online_steps}"
        )
    if needs.preferences and options.online_steps:
        raise UserError(f"online_steps: expected 0, {name} learns from pairs of segments; got {options.online_steps}")
    source = env or options.env
    if plays and source is None and named is None:
        raise UserError("expected --env (env= in Python), an environment to learn in; got none")
    domain_for(needs).check_options(options)
    return named, source


def try_named_environment(algorithm: type[Any], options: RunOptions, env: EnvironmentSource | None) -> None:
    """Make the environment that the user named, before hours go into a dataset for it. Raises UserError if it fails."""
    source = with_arguments(env or options.env, literal_pairs(options.env_kwargs))
    if source is not None and (options.eval_episodes or options.online_steps):
        try:
            domain_for(needs_of(algorithm)).environment_spec(source, options.observation_keys, opponents_of(options))
        except EnvironmentUnavailable as error:
            raise UserError(str(error)) from error


def _environment_task(algorithm: type[Any], options: RunOptions, source: EnvironmentSource | None) -> Task:
    domain = domain_for(needs_of(algorithm))
    check_domain(algorithm, domain)
    source = with_arguments(source, literal_pairs(options.env_kwargs))
    assert source is not None  # the caller has checked
    opponents = opponents_of(options)
    spec = domain.environment_spec(source, options.observation_keys, opponents)
    spec = domain.bounded(spec, options.action_bounds)
    references = domain.references(source)
    return Task(
        domain=domain,
        spec=spec,
        environment=source,
        references=references,
        opponents=opponents,
        reward=_reward(options, spec, "--env"),
        max_steps=options.max_steps,
    )


def _dataset_task(algorithm: type[Any], options: RunOptions, dataset: Named, source: EnvironmentSource | None) -> Task:
    if isinstance(dataset, (str, Path)):
        try:
            given: Data = load_dataset(
                dataset,
                data_dir=options.data_dir,
                observation_keys=options.observation_keys,
                action_bounds=options.action_bounds,
            )
        except DataError:
            raise
        except ValueError as error:
            raise UserError(str(error)) from error
    else:
        given = dataset
    domain = domain_of(given)
    check_domain(algorithm, domain)
    given = domain.chosen(given, options)  # first, so that the spec's statistics are those of what is learned from
    arguments = literal_pairs(options.env_kwargs)
    recorded, references = given.environment, find_references(given.reference_scores, given.environment)
    place = with_arguments(recorded if source is None else as_recorded(source, recorded), arguments)
    if recorded is not None and not same_record(environment_record(place), environment_record(recorded)):
        references = None  # those of the dataset's environment say nothing about another one
    spec = domain.bounded(domain.data_spec(given), options.action_bounds)
    reward = _reward(options, spec, given.source)
    return Task(
        domain=domain,
        data=Recorded(given=given, episodes=domain.transformed(given, options.reward_transform, reward)),
        reward=reward,
        spec=spec,
        environment=place,
        references=references,
        opponents=opponents_of(options),
        max_steps=options.max_steps,
    )


def _reward(options: RunOptions, spec: Any, where: str) -> LearnedReward | None:
    """The learned reward that a run learns from, without its shaping; None for the rewards as they are."""
    return None if options.reward is None else named_reward(options.reward, spec=spec, where=where).unshaped()


def settings_of(
    name: str,
    algorithm: type[Any],
    *,
    dataset: Named | None,
    data_dir: str | Path | None,
    env: EnvironmentSource | None,
    env_kwargs: Mapping[str, Any],
    offline: bool = False,
) -> list[Setting]:
    """The settings of a task, known by its dataset, which is fetched or made if need be, and by its environment.

    Of a path, only the name of a D4RL file counts. Fields that follow an argument of the environment follow the one
    that the data were recorded with, where there are data. `offline` is that of `settings_for`. Raises DataError for a
    dataset that is not there.
    """
    known, recorded = None, None
    if dataset is not None and needs_of(algorithm).data:
        if isinstance(dataset, (str, Path)):
            known, recorded = dataset, recorded_environment(dataset, data_dir=data_dir)
        else:
            known, recorded = dataset.source, dataset.environment
    chosen = None if env is None else describe_environment(env)
    ids = [spec.id for spec in (recorded, chosen) if spec is not None]
    arguments = recorded.kwargs if recorded else {**(chosen.kwargs if chosen else {}), **env_kwargs}
    known_name = None if known is None else dataset_name(known)
    return settings_for(name, *ids, dataset=known_name, arguments=arguments, offline=offline)


def trusted_task(task: Task, given: bool) -> Task:
    """The task in an environment that the user gave, or in a dataset's, of which only what is registered is made.

    Raises UserError where there is none, EnvironmentUnavailable for code that a dataset names.
    """
    if task.environment is None:
        raise UserError(f"{task.source}: names no environment to learn in; name one with --env")
    return replace(task, environment=trusted(task.environment, given))


def known_model(task: Task, given: bool) -> MDP:
    """The `MDP` of the task's environment, whose rewards and discount the algorithm does not read.

    Raises UserError where there is no environment, or none whose model is known.
    """
    if task.environment is None:
        raise UserError(f"{task.source}: names no environment, whose transition probabilities are needed; give --env")
    try:
        return model_of(trusted_task(task, given).place, discount=1.0)
    except ValueError as error:  # EnvironmentUnavailable too
        raise UserError(str(error)) from error


def make_evaluation(
    algorithm: Algorithm, task: Task, *, episodes: int, seed: int, device: str, required: bool
) -> tuple[Evaluate | None, str | None]:
    """The loop's evaluation, or None and the reason: training goes on where the environment cannot be made.

    `required`: the user named the environment, so that failing to make it is an error. Otherwise it is the dataset's,
    of which only what is registered is made.
    """
    if not algorithm.needs.policy:
        return None, "a reward is learned and no policy, so nothing is evaluated; train one on it with --reward"
    if episodes == 0:
        return None, None
    if task.environment is None:
        return None, f"{task.source}: names no environment, so nothing is evaluated; name one with --env"
    try:  # now rather than after the first updates
        task = trusted_task(task, required)
        task.domain.try_environment(task, device)
    except (EnvironmentUnavailable, EnvironmentFailed) as error:
        if required and isinstance(error, EnvironmentUnavailable):
            raise UserError(str(error)) from error
        if required:
            raise
        return None, f"training goes on without evaluation: {error}"

    def function(seed_index: int, step: int) -> dict[str, Any]:
        return task.domain.score(task, algorithm.policy(seed_index), episodes, seed, device)

    return function, None


def check_dataset(run: Run, task: Task) -> None:
    """Raise RunError unless these are the data that the run was begun with."""
    if task.data is None:
        return
    episodes = task.data.episodes
    expected, found = run.config["dataset"].get("fingerprint"), episodes.fingerprint()
    if found != expected:
        raise RunError(
            f"{episodes.source}: the dataset has changed since the run began (fingerprint {found[:12]}, the run has "
            f"{str(expected)[:12]}); restore the data, or begin a new run"
        )


def dataset_record(task: Task) -> dict[str, Any] | None:
    """The record of a dataset in config.json; `given` is without the run's own transform of rewards."""
    if task.data is None:
        return None
    episodes, given = task.data.episodes, task.data.given
    return {
        "source": episodes.source,
        "fingerprint": episodes.fingerprint(),
        "transforms": task.domain.transforms(episodes),
        "given": {"fingerprint": given.fingerprint(), "transforms": task.domain.transforms(given)},
        "statistics": episodes.statistics(),
    }
