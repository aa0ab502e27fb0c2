"""`herdbook reward eval RUN_OR_DIR --env ID --algorithm ppo --steps N --seeds 0 1 2`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import tyro

from herdbook.cli.parse import parse, show, wants_help
from herdbook.experiments.catalogue import UserError, nearest


@dataclass(frozen=True, kw_only=True)
class EvalArguments:
    """Train fresh policies on a learned reward and evaluate them on the true one; compare the two rewards.

    The directory `out` gets reward_eval.json, a picture of learned against true rewards, and the run of the policies.
    """

    reward: tyro.conf.Positional[str]
    """The learned reward: a directory with reward.json, or a run that learned one."""
    steps: int
    """Training steps of each fresh policy."""
    algorithm: str = "ppo"
    """Algorithm of the fresh policies, with its settings for the task. One that learns from data needs --dataset."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the fresh policies."""
    options: tuple[str, ...] = ()
    """Options of `herdbook train` for the fresh policies, as `name value name value ...`."""
    env: str | None = None
    """Environment id, or module:callable. The default is the environment in which the reward was learned, else that of
    the dataset."""
    env_kwargs: tuple[str, ...] = ()
    """Keyword arguments of the environment, as `name value name value ...`."""
    dataset: str | None = None
    """Dataset over whose steps the rewards are compared; its rewards must be the true ones. By default these are
    episodes of the random policy and of the fresh ones."""
    data_dir: str | None = None
    """Directory of the Minari datasets. The default is Minari's own, then the user's cache."""
    reward_seed: int | None = None
    """Seed of the run whose reward is used. It can be left out if the run has one seed."""
    episodes: int = 20
    """Evaluation episodes of each policy."""
    eval_seed: int = 0
    """Episode i is reset with the seed `eval_seed + i`."""
    discount: float | None = None
    """Discount of the EPIC distance. The default is the reward's."""
    out: str | None = None
    """A new directory for the results. The default is a free one in runs/. An interrupted evaluation goes on if it is
    named with the same arguments."""


_COMMANDS = ("eval",)


def run(arguments: Sequence[str]) -> int:
    """Run one of the sub-commands; returns the exit status."""
    if wants_help(arguments):
        show(
            "usage: herdbook reward COMMAND …\n\ncommands:\n"
            "  eval     judge a learned reward: fresh policies trained on it, correlations, EPIC distance"
        )
        return 0 if arguments else 2
    if arguments[0] not in _COMMANDS:
        hint = nearest(arguments[0], _COMMANDS)
        raise UserError(f"unknown command reward {arguments[0]!r}{hint}; there is {', '.join(_COMMANDS)}")
    parsed = parse(EvalArguments, arguments[1:], "reward eval")

    from herdbook.core.runs import next_free_directory
    from herdbook.experiments.options import check, literal_pairs
    from herdbook.experiments.reward_evaluation import evaluate_reward

    options = literal_pairs(parsed.options, "options")
    own, in_python = {f.name for f in fields(EvalArguments)}, {"config", "networks", "quiet"}
    for name in options:
        check(name not in own, "options", f"{name} as --{name.replace('_', '-')}", name)
        check(name not in in_python, "options", "options of `herdbook train`", name)
    out = parsed.out or next_free_directory("runs", f"reward-eval-{parsed.algorithm}")
    results = evaluate_reward(
        parsed.reward,
        out=out,
        steps=parsed.steps,
        algorithm=parsed.algorithm,
        seeds=parsed.seeds,
        env=parsed.env,
        env_kwargs=literal_pairs(parsed.env_kwargs),
        dataset=parsed.dataset,
        data_dir=parsed.data_dir,
        reward_seed=parsed.reward_seed,
        episodes=parsed.episodes,
        eval_seed=parsed.eval_seed,
        discount=parsed.discount,
        **options,
    )
    print_results(results)
    show(f"written: {out}")
    return 0


def print_results(results: Mapping[str, Any]) -> None:
    """Print the return of the fresh policies, the comparison of the rewards, and its notices."""
    judgement, returns, references = results["judgement"], results["return"], results["references"]
    seeds = [line["seed"] for line in results["seeds"]]
    interval = f" [{returns['low']:.1f}, {returns['high']:.1f}]" if len(seeds) > 1 else ""
    lines = {
        "reward": results["reward"]["directory"],
        "fresh policies": f"{results['algorithm']}, {results['steps']:,} steps, "
        f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}",
        "true return": f"{returns['mean']:.1f}{interval}",
    }
    if references is not None:
        low, high = references["minimum"], references["maximum"]
        lines["normalised score"] = (
            f"{results['normalized_score']:.1f} (0 is {low:g}, 100 is {high:g}: {references['source']})"
        )
    for name in ("pearson", "spearman", "epic"):
        value = judgement[name]
        lines[f"{name} distance" if name == "epic" else name] = "undefined" if value is None else f"{value:.3f}"
    lines["compared over"] = f"{judgement['steps']:,} steps of {judgement['dataset']}"
    width = max(map(len, lines))
    show("\n".join(f"{name:<{width}}  {value}" for name, value in lines.items()))
    for notice in judgement["notices"]:
        show(f"notice: {notice}")
