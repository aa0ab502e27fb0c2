"""Judging a learned reward by the return of fresh policies trained on it, and by correlations and the EPIC distance."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from herdbook.core.environments import EnvironmentSource, ReferenceScores, whole_games
from herdbook.core.random_policy import RandomPolicy
from herdbook.core.runs import Run, provenance, refuse_existing_run, to_json
from herdbook.datasets.episodes import Episodes
from herdbook.datasets.load import load_dataset, recorded_environment
from herdbook.datasets.rewards import check_reward_discount
from herdbook.evaluation.evaluate import evaluate
from herdbook.evaluation.rewards import draw_scatter, judge, step_rewards
from herdbook.evaluation.scores import normalised_score
from herdbook.evaluation.statistics import t_interval
from herdbook.experiments.catalogue import UserError, needs_of
from herdbook.experiments.domain import Networks
from herdbook.experiments.environments import (
    environment_from_record,
    environment_record,
    own_environment,
    same_record,
    trusted,
    with_arguments,
)
from herdbook.experiments.evaluate import evaluate_run
from herdbook.experiments.experts import expert_name
from herdbook.experiments.options import check
from herdbook.experiments.records import flat_values, is_code, options_of
from herdbook.experiments.restore import resolve, restore
from herdbook.experiments.rewards import named_reward, reward_directory
from herdbook.experiments.train import resume, train
from herdbook.experiments.true_rewards import true_reward
from herdbook.irl.rewards import LearnedReward

RESULTS, RUN, SCATTER = "reward_eval.json", "run", "rewards.png"


def evaluate_reward(
    reward: str | Path,
    *,
    out: str | Path,
    steps: int,
    algorithm: str | type[Any] = "ppo",
    seeds: Sequence[int] = (0,),
    env: EnvironmentSource | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    dataset: str | None = None,
    data_dir: str | Path | None = None,
    reward_seed: int | None = None,
    episodes: int = 20,
    eval_seed: int = 0,
    discount: float | None = None,
    networks: Networks | None = None,
    quiet: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Train fresh policies on a learned reward, evaluate them on the true one, and compare the two rewards.

    Args:
        reward: The directory of a saved reward, or a run that learned one.
        out: A new directory for `reward_eval.json`, `rewards.png` (learned against true rewards) and `run`. If it holds
            an interrupted evaluation, the same arguments continue its run.
        steps: Training steps of each policy.
        algorithm: The algorithm of the fresh policies, a name or a class; one that learns from data learns from
            `dataset`.
        seeds: Seeds of the fresh policies.
        env: The environment, by default that in which the reward was learned, or that of the dataset.
        env_kwargs: Keyword arguments of the environment.
        dataset: The steps over which the rewards are compared; by default episodes of the random policy and of the
            fresh ones. Its recorded rewards must be the true ones.
        data_dir: Directory of the datasets.
        reward_seed: The seed of a run that learned several rewards.
        episodes: Evaluation episodes of each policy.
        eval_seed: Episode i is reset with the seed `eval_seed + i`.
        discount: γ of the EPIC distance, by default that of the reward.
        networks: The user's own modules, as in `train`.
        quiet: Show no progress.
        options: Further options of `train`, of the run or of the algorithm.

    The reward is used without its shaping. Returns what is written to `reward_eval.json`. Raises UserError for a name
    that is no reward or no environment, for an algorithm that learns no policy, for a number out of range, and for an
    interrupted evaluation with other arguments; and what `train` raises.
    """
    name, chosen = resolve(algorithm)
    check(steps >= 1, "steps", "1 or more", steps)
    check(episodes >= 1, "episodes", "1 or more", episodes)
    check(eval_seed >= 0, "eval_seed", "0 or more", eval_seed)
    check(discount is None or 0 <= discount <= 1, "discount", "a number in [0, 1]", discount)
    check(needs_of(chosen).policy, "algorithm", "one that learns a policy", name)
    check("run_dir" not in options, "run_dir", f"none, the run is written to {out}/{RUN}", options.get("run_dir"))
    out, directory = Path(out), reward_directory(reward, reward_seed)
    if (out / RESULTS).exists():
        raise UserError(f"{out}: holds {RESULTS} already; choose another directory")
    learned = named_reward(directory).unshaped()
    gamma = learned.discount if discount is None else discount
    try:
        check_reward_discount(learned, gamma)
    except ValueError as error:
        raise UserError(str(error)) from error
    asked = {"steps": steps, "seeds": tuple(seeds), **options}
    begun = _interrupted(out / RUN, name, learned, asked)
    named = _environment(reward, env, dataset, data_dir)
    source = with_arguments(named, env_kwargs or {}) or named
    data = None if dataset is None else _dataset(dataset, data_dir)
    if data is not None:
        named_reward(directory, spec=data.spec(), where=data.source)
    learns = needs_of(chosen).data
    if learns is True and data is None:
        raise UserError(f"{name} learns from data: expected --dataset, got none")
    given: dict[str, Any] = {"env": source, "dataset": data if learns else None, "networks": networks, "quiet": quiet}
    if begun is None:
        run = train(algorithm, reward=directory, run_dir=out / RUN, **given, **asked)
    else:
        run, _ = resume(begun.path, algorithm=algorithm, expert=_own_expert(options), **given)
    own: dict[str, Any] = {"algorithm": algorithm, "networks": networks}
    scores = evaluate_run(run.path, episodes=episodes, seed=eval_seed, env=source, **own)
    if data is None:
        data = _rollouts(run, source, episodes, eval_seed, **own)
    true = true_reward(source)
    report = judge(learned, data, true, discount=gamma)
    means = t_interval([line["return_mean"] for line in scores["seeds"]])
    references = scores["references"] or _references(data, scores["environment"])
    results = {
        "reward": {"directory": str(directory), "digest": learned.digest(), "about": dict(learned.about)},
        "algorithm": name,
        "environment": scores["environment"],
        "steps": steps,
        "episodes": episodes,
        "eval_seed": eval_seed,
        "return": {"mean": means.value, "low": means.low, "high": means.high},
        "normalized_score": None
        if references is None
        else float(normalised_score(means.value, ReferenceScores(**references))),
        "references": references,
        "seeds": scores["seeds"],
        "judgement": report.json(),
        **provenance(),
    }
    draw_scatter(step_rewards(learned, data, discount=gamma), step_rewards(None, data, discount=gamma), out / SCATTER)
    (out / RESULTS).write_text(json.dumps(to_json(results), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return results


def _interrupted(path: Path, name: str, reward: LearnedReward, asked: Mapping[str, Any]) -> Run | None:
    """The run of an interrupted evaluation, None without one. Raises UserError unless it was begun as is asked now."""
    if not (path / "config.json").is_file():
        refuse_existing_run(path)
        return None
    run = Run(path)
    recorded = {**flat_values(run.config["config"]), **run.options, "algorithm": run.algorithm}
    begun_from = options_of(run).reward
    for option, value in {"algorithm": name, **asked}.items():
        if option in ("device", "expert"):  # recorded as they were resolved
            continue
        if option not in recorded:
            raise UserError(f"{path}: holds an interrupted run, which records no {option}; choose another directory")
        if to_json(value) != recorded[option]:
            raise _other(path, option, recorded[option], value)
    digest = None if begun_from is None else named_reward(begun_from).unshaped().digest()
    if digest != reward.digest():
        raise _other(path, "reward", digest, reward.digest())
    return run


def _other(path: Path, name: str, expected: Any, got: Any) -> UserError:
    return UserError(
        f"{path}: holds an interrupted run; expected {name} {expected}, with which it was begun, got {got}; give the "
        "same arguments, or choose another directory"
    )


def _own_expert(options: Mapping[str, Any]) -> Any:
    """The expert to give again to a run that asks one, where it is code or a policy."""
    expert = options.get("expert")
    return expert if expert is not None and is_code(expert_name(expert)) else None


def _environment(
    reward: str | Path, env: EnvironmentSource | None, dataset: str | None, data_dir: str | Path | None
) -> EnvironmentSource:
    """The environment that is given, else that of the run which learned the reward, else that of the dataset."""
    if env is not None:
        return env
    if (Path(reward) / "config.json").is_file() and (record := Run(reward).config.get("environment")) is not None:
        return environment_from_record(record)
    if dataset is not None and (recorded := recorded_environment(dataset, data_dir=data_dir)) is not None:
        return trusted(recorded, given=False)
    raise UserError("expected --env, the environment of the fresh policies: neither the reward nor a dataset names one")


def _dataset(name: str, data_dir: str | Path | None) -> Episodes:
    data = load_dataset(name, data_dir=data_dir)
    if not isinstance(data, Episodes):
        raise UserError(f"{name}: expected a dataset of one agent, got one of many agents")
    return data


def _references(data: Episodes, environment: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The references of a dataset that was recorded in this environment."""
    recorded = environment_record(data.environment)
    return asdict(data.reference_scores) if data.reference_scores and same_record(recorded, environment) else None


def _rollouts(
    run: Run,
    source: EnvironmentSource,
    episodes: int,
    seed: int,
    algorithm: str | type[Any],
    networks: Networks | None,
) -> Episodes:
    """Episodes of the random policy, and as many of the policy of each seed."""
    everyone = [restore(run, algorithm, None, each, "cpu", networks) for each in run.seeds]
    spec, place = everyone[0].spec, whole_games(own_environment(run.config["environment"], source))
    policies = [RandomPolicy(spec.action_space), *(restored.policy() for restored in everyone)]
    limit = run.options.get("max_steps")
    played = [evaluate(policy, place, episodes, seed, spec=spec, max_steps=limit) for policy in policies]
    return played[0].concat(*played[1:])
