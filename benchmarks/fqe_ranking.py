"""Rank policies by fitted Q evaluation and compare with the ranking by their true returns.

    python benchmarks/fqe_ranking.py pendulum [--out fqe.json]
    python benchmarks/fqe_ranking.py runs runs/bc runs/td3_bc runs/iql --steps 5000 20000 60000 [--out fqe.json]

`pendulum` ranks the scripted controller with 0, 12.5, …, 100 % random actions, from the data of the recipe. `runs`
ranks the policies of training runs on one dataset, at each of the given steps, from that dataset. The runs must have
kept the checkpoints of these steps (train with a large `--keep`).

The true values are discounted Monte-Carlo returns in the environment. The benchmark prints a Markdown table and
Spearman's rank correlation with a bootstrap interval over the policies, and writes JSON to `--out`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from herdbook.core.environments import EnvironmentSource
from herdbook.core.runs import Run
from herdbook.core.types import Policy, Spec
from herdbook.datasets.episodes import Episodes
from herdbook.datasets.load import load_dataset
from herdbook.datasets.recipes.pendulum import PendulumController
from herdbook.evaluation.evaluate import evaluate
from herdbook.evaluation.fqe import FQEConfig, discounted_returns, fitted_q_evaluation
from herdbook.evaluation.statistics import rank_correlation
from herdbook.experiments.environments import environment_from_record
from herdbook.experiments.restore import load

SMALL_PROBLEM: dict[str, Any] = {
    "updates": 10_000,
    "learning_rate": 3e-4,
    "target_period": 20,
    "hidden_sizes": (64, 64),
}


@dataclass(frozen=True)
class Candidate:
    """A policy to be ranked."""

    name: str
    policy: Policy
    environment: EnvironmentSource
    spec: Spec | None = None


def controllers() -> Iterator[Candidate]:
    """Nine scripted controllers on Pendulum, with 0 to 100 % random actions."""
    for fraction in np.linspace(0, 1, 9).tolist():
        yield Candidate(f"{100 * fraction:g} % random", PendulumController(random_fraction=fraction), "Pendulum-v1")


def checkpoints(paths: list[Path], steps: list[int], seed: int) -> Iterator[Candidate]:
    """Each run's policy at each of the steps. Raises SystemExit for runs on different data.

    The runs may transform rewards differently, because the estimates use the untransformed rewards of the dataset.
    """
    fingerprints = {path: Run(path).config["dataset"]["given"]["fingerprint"] for path in paths}
    if len(set(fingerprints.values())) > 1:
        raise SystemExit(f"expected runs on one dataset, got fingerprints {fingerprints}")
    for path in paths:
        run = Run(path)
        environment = environment_from_record(run.config["environment"])
        for step in steps:
            actor = load(path, step=step, seed=seed, device="cpu")
            yield Candidate(f"{run.algorithm}, {step:,} updates", actor.policy, environment, actor.spec)


def judge(candidate: Candidate, data: Episodes, config: FQEConfig, episodes: int, seed: int) -> dict[str, Any]:
    """The true value of one policy and its estimate by fitted Q evaluation."""
    played = evaluate(
        candidate.policy, candidate.environment, episodes, 10_000, num_envs=min(episodes, 20), spec=candidate.spec
    )
    true = discounted_returns(played, config.discount)[played.offsets[:-1]]
    began = time.perf_counter()
    estimate = fitted_q_evaluation(candidate.policy, data, config, seed=seed)
    return {
        "policy": candidate.name,
        "return": float(played.returns().mean()),
        "monte_carlo": float(true.mean()),
        "standard_error": float(true.std(ddof=1) / np.sqrt(len(true))),
        "estimate": estimate.mean,
        "seconds": time.perf_counter() - began,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    pendulum, runs = kinds.add_parser("pendulum"), kinds.add_parser("runs")
    runs.add_argument("paths", nargs="+", type=Path)
    runs.add_argument("--steps", type=int, nargs="+", default=[5_000, 20_000, 60_000])
    for kind, defaults, episodes in ((pendulum, FQEConfig(**SMALL_PROBLEM), 200), (runs, FQEConfig(), 20)):
        kind.add_argument("--seed", type=int, default=0, help="seed of the estimate, and the seed of the runs to rank")
        kind.add_argument("--episodes", type=int, default=episodes, help="Monte-Carlo episodes per policy")
        kind.add_argument("--updates", type=int, default=defaults.updates)
        kind.add_argument("--learning-rate", type=float, default=defaults.learning_rate)
        kind.add_argument("--target-period", type=int, default=defaults.target_period)
        kind.add_argument("--hidden-sizes", type=int, nargs="+", default=list(defaults.hidden_sizes))
        kind.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(1)

    config = FQEConfig(
        updates=args.updates,
        learning_rate=args.learning_rate,
        target_period=args.target_period,
        hidden_sizes=tuple(args.hidden_sizes),
    )
    if args.kind == "pendulum":
        candidates, data = controllers(), load_dataset("classic/pendulum")
    else:
        candidates = checkpoints(args.paths, args.steps, args.seed)
        data = load_dataset(Run(args.paths[0]).options["dataset"])
    print("| policy | return | discounted, Monte Carlo ± standard error | estimate |\n|---|---|---|---|")
    rows = []
    for candidate in candidates:
        rows.append(judge(candidate, data, config, args.episodes, args.seed))
        truth = "{monte_carlo:.1f} ± {standard_error:.1f}".format(**rows[-1])
        print("| {policy} | {return:.1f} | {truth} | {estimate:.1f} |".format(truth=truth, **rows[-1]), flush=True)
    spearman = rank_correlation([r["monte_carlo"] for r in rows], [r["estimate"] for r in rows])
    print(
        f"\nSpearman {spearman.value:.3f} [{spearman.low:.3f}, {spearman.high:.3f}] over {len(rows)} policies, "
        f"γ = {config.discount}, seed {args.seed}"
    )
    if args.out is not None:
        record = {"dataset": data.source, "fingerprint": data.fingerprint(), "config": asdict(config)}
        record |= {"seed": args.seed, "episodes": args.episodes, "policies": rows, "spearman": asdict(spearman)}
        args.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
