"""Fitted Q evaluation against the environment, for policies that were learned from the same data.

    python benchmarks/fqe_hopper.py runs/bc runs/td3_bc runs/iql --steps 5000 20000 60000 --out fqe_hopper.json

Each run's policy at each of the steps (checkpoints: train with --keep large enough) is evaluated from the run's dataset
and in its environment by discounted Monte-Carlo returns. Prints a table and Spearman's rank correlation with a
bootstrap interval over the policies, whatever it is, and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from herdbook.cli.api import load
from herdbook.cli.assemble import environment_from_record
from herdbook.core.runs import Run
from herdbook.datasets.load import load_dataset
from herdbook.evaluation.evaluate import evaluate
from herdbook.evaluation.fqe import FQEConfig, discounted_returns, fitted_q_evaluation
from herdbook.evaluation.statistics import rank_correlation


def main() -> None:
    defaults = FQEConfig()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--steps", type=int, nargs="+", default=[5_000, 20_000, 60_000])
    parser.add_argument("--seed", type=int, default=0, help="which of the runs' seeds, and that of the estimate")
    parser.add_argument("--episodes", type=int, default=20, help="Monte-Carlo episodes per policy")
    parser.add_argument("--updates", type=int, default=defaults.updates)
    parser.add_argument("--learning-rate", type=float, default=defaults.learning_rate)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(1)

    config = FQEConfig(updates=args.updates, learning_rate=args.learning_rate)
    first = Run(args.runs[0])
    data = load_dataset(first.options["dataset"])
    rows = []
    for path in args.runs:
        run = Run(path)
        if run.config["dataset"]["fingerprint"] != first.config["dataset"]["fingerprint"]:
            raise SystemExit(f"{path}: expected a run on the data of {args.runs[0]}")
        environment = environment_from_record(run.config["environment"])
        for step in args.steps:
            actor = load(path, step=step, seed=args.seed, device=args.device)
            played = evaluate(
                actor.policy, environment, args.episodes, 10_000, num_envs=20, spec=actor.spec, device=args.device
            )
            true = discounted_returns(played, config.discount)[played.offsets[:-1]]
            began = time.perf_counter()
            estimate = fitted_q_evaluation(actor.policy, data, config, seed=args.seed, device=args.device)
            rows.append(
                {
                    "algorithm": run.algorithm,
                    "step": step,
                    "monte_carlo": float(true.mean()),
                    "standard_error": float(true.std(ddof=1) / np.sqrt(len(true))),
                    "return": float(played.returns().mean()),
                    "estimate": estimate.mean,
                    "seconds": time.perf_counter() - began,
                }
            )
            print("  ".join(f"{k} {v:.1f}" if isinstance(v, float) else f"{k} {v}" for k, v in rows[-1].items()))
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
