"""What each reward method learns: the return of its own policy, of fresh policies, and the distance to the true reward.

    python benchmarks/reward_table.py TASK [--methods NAME …] [--seeds 0 1 2] [--fresh-seeds 0] [--out DIR]

TASK is pendulum, fixed-horizon-cartpole or gridworld. For each method and seed, a run learns a reward from the
demonstrations, and fresh policies learn from that reward (`herdbook reward eval`). EPIC distance and the correlations
are taken over a dataset of the task: episodes of a random and of the demonstrating policy. `preference_reward` learns
from pairs of segments of that dataset and has no policy of its own; the gridworld's reward is -1 at every step, so that
all its segments are equally good. The settings of the task apply. Finished parts in DIR are not repeated. The output is
Markdown.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import herdbook
from herdbook.core.random_policy import RandomPolicy
from herdbook.core.runs import Run
from herdbook.datasets.episodes import Episodes
from herdbook.datasets.load import load_dataset
from herdbook.datasets.minari import write_minari
from herdbook.evaluation.evaluate import evaluate
from herdbook.evaluation.statistics import t_interval
from herdbook.experiments.reward_evaluation import RESULTS, evaluate_reward
from herdbook.experiments.train import resume

RANDOM_SEED = 5_000  # of the first random episode, away from the seeds of evaluations
PREFERENCES = "preference_reward"
PAIRS = {"teacher": "oracle", "pairs": 500, "segment_length": 25}


@dataclass(frozen=True, kw_only=True)
class Task:
    """Demonstrations, the steps of each method, and the algorithm of the fresh policies."""

    dataset: str
    demonstrations: int
    steps: dict[str, int]  # of each method
    options: dict[str, dict[str, Any]]  # further options of a method
    fresh: str
    fresh_steps: int
    fresh_options: dict[str, Any]


TASKS = {
    "pendulum": Task(
        dataset="classic/pendulum/expert",
        demonstrations=5,
        steps={"gail": 100_000, "airl": 100_000, "dac": 15_000, "iq_learn": 20_000, "ls_iq": 20_000, PREFERENCES: 500},
        options={PREFERENCES: PAIRS},
        fresh="ppo",
        fresh_steps=100_000,
        fresh_options={"scale_rewards": True},
    ),
    "fixed-horizon-cartpole": Task(
        dataset="classic/fixed-horizon-cartpole/expert",
        demonstrations=5,
        steps={"gail": 200_000, "airl": 200_000, "iq_learn": 1_000, PREFERENCES: 500},
        options={"iq_learn": {"temperature": 0.01}, PREFERENCES: PAIRS},
        fresh="ppo",
        fresh_steps=200_000,
        fresh_options={
            "scale_rewards": True,
            "normalise_observations": True,
            "discount": 0.95,
            "lr": 1e-3,
            "decay_lr": True,
        },
    ),
    "gridworld": Task(
        dataset="gridworld/room/soft",
        demonstrations=100,
        steps={"mce_irl": 2_000, "maxent_irl": 2_000, "airl": 100_000, "gail": 100_000},
        options={name: {"allow_variable_horizon": True} for name in ("airl", "gail")},
        fresh="ppo",
        fresh_steps=100_000,
        fresh_options={},
    ),
}


def compared(task: Task, folder: Path) -> str:
    """The id of a dataset of 20 demonstrating and 20 random episodes, made on first use."""
    name = "compared/steps-v0"
    if not (folder / "data" / name).is_dir():
        shown = load_dataset(task.dataset).select(range(20))
        assert isinstance(shown, Episodes) and shown.environment is not None
        spec = shown.spec()
        random = evaluate(RandomPolicy(spec.action_space), shown.environment, 20, RANDOM_SEED)
        write_minari(shown.concat(random), name, data_dir=folder / "data")
    return name


def learned(task: Task, method: str, seeds: Sequence[int], data: str, folder: Path) -> Run:
    """The run of a method, made or continued."""
    path = folder / method
    if (path / "config.json").is_file():
        return resume(path, quiet=True)[0]
    shown: dict[str, Any] = {"dataset": task.dataset, "demonstrations": task.demonstrations}
    if method == PREFERENCES:
        shown = {"dataset": data, "data_dir": folder / "data"}
    return herdbook.train(
        method,
        steps=task.steps[method],
        seeds=seeds,
        eval_episodes=20,
        run_dir=path,
        quiet=True,
        **shown,
        **task.options.get(method, {}),
    )


def judged(task: Task, run: Run, seed: int, fresh_seeds: Sequence[int], data: str, folder: Path) -> dict[str, Any]:
    """The report on the reward of one seed, made or read."""
    out = folder / f"{run.path.name}-judged-{seed}"
    if (out / RESULTS).is_file():
        return dict(json.loads((out / RESULTS).read_text()))
    return evaluate_reward(
        run.path / "rewards" / f"seed_{seed}",
        out=out,
        steps=task.fresh_steps,
        algorithm=task.fresh,
        seeds=fresh_seeds,
        env=load_dataset(task.dataset).environment,
        dataset=data,
        data_dir=folder / "data",
        eval_seed=10_000,
        quiet=True,
        **task.fresh_options,
    )


def row(method: str, run: Run, reports: Sequence[dict[str, Any]]) -> str:
    """A line of the table: means over the seeds of the reward, with 95 % intervals of the returns."""
    own = {line["seed"]: line["return_mean"] for line in run.evaluations()}  # the last one of each seed
    fresh = [report["return"]["mean"] for report in reports]
    cells = [f"`{method}`", _interval(list(own.values())) if own else "none", _interval(fresh)]
    for name in ("epic", "spearman", "pearson"):
        values = [report["judgement"][name] for report in reports]
        cells.append("undefined" if None in values else f"{np.mean(values):.3f}")
    return f"| {' | '.join(cells)} |"


def _interval(values: Sequence[float]) -> str:
    mean = t_interval(values)
    text = f"**{mean.value:.1f}**"
    return f"{text} [{mean.low:.1f}, {mean.high:.1f}]" if len(values) > 1 else text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("--methods", nargs="+")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--fresh-seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--out", type=Path, default=Path("runs/reward_table"))
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    task, folder = TASKS[given.task], given.out / given.task
    data = compared(task, folder)
    print("| method | imitating policy | fresh policy | EPIC distance | Spearman | Pearson |")
    print("|---|---|---|---|---|---|")
    for method in given.methods or task.steps:
        run = learned(task, method, given.seeds, data, folder)
        print(row(method, run, [judged(task, run, seed, given.fresh_seeds, data, folder) for seed in given.seeds]))


if __name__ == "__main__":
    main()
