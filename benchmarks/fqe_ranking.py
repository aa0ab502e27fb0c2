"""Does fitted Q evaluation rank policies as their true returns do? Nine controllers on the pendulum recipe.

    python benchmarks/fqe_ranking.py --out fqe_ranking.json

The scripted controller with 0, 12.5, …, 100 % random actions is evaluated from the recipe's data, and in the real
environment by discounted Monte-Carlo returns (γ = .99). Prints a table and Spearman's rank correlation, writes JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from herdbook.datasets.load import load_dataset
from herdbook.datasets.recipes.pendulum import PendulumController
from herdbook.evaluation.evaluate import evaluate
from herdbook.evaluation.fqe import FQEConfig, discounted_returns, fitted_q_evaluation
from herdbook.evaluation.statistics import rank_correlation


def main() -> None:
    defaults = FQEConfig(updates=10_000, learning_rate=3e-4, tau=0.01, hidden_sizes=(64, 64))  # a small problem
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="classic/pendulum")
    parser.add_argument("--updates", type=int, default=defaults.updates)
    parser.add_argument("--learning-rate", type=float, default=defaults.learning_rate)
    parser.add_argument("--tau", type=float, default=defaults.tau)
    parser.add_argument("--hidden-sizes", type=int, nargs="+", default=list(defaults.hidden_sizes))
    parser.add_argument("--episodes", type=int, default=200, help="Monte-Carlo episodes per policy")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(1)

    config = FQEConfig(
        updates=args.updates,
        learning_rate=args.learning_rate,
        tau=args.tau,
        hidden_sizes=tuple(args.hidden_sizes),
    )
    data = load_dataset(args.dataset)
    rows = []
    for fraction in np.linspace(0, 1, 9).tolist():
        policy = PendulumController(random_fraction=fraction)
        played = evaluate(policy, "Pendulum-v1", args.episodes, 10_000, num_envs=20)
        true = discounted_returns(played, config.discount)[played.offsets[:-1]]
        began = time.perf_counter()
        estimate = fitted_q_evaluation(policy, data, config, seed=args.seed)
        rows.append(
            {
                "random_fraction": fraction,
                "monte_carlo": float(true.mean()),
                "standard_error": float(true.std(ddof=1) / np.sqrt(len(true))),
                "estimate": estimate.mean,
                "seconds": time.perf_counter() - began,
            }
        )
        print("  ".join(f"{name} {value:9.3f}" for name, value in rows[-1].items()), flush=True)
    spearman = rank_correlation([r["monte_carlo"] for r in rows], [r["estimate"] for r in rows])
    print(
        f"Spearman {spearman.value:.3f} [{spearman.low:.3f}, {spearman.high:.3f}] over {len(rows)} policies, "
        f"γ = {config.discount}"
    )
    result = {
        "dataset": data.source,
        "fingerprint": data.fingerprint(),
        "config": asdict(config),
        "seed": args.seed,
        "episodes": args.episodes,
        "policies": rows,
        "spearman": asdict(spearman),
    }
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
