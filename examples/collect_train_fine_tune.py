"""A whole cycle: SAC learns online and collects a dataset, CQL learns from the dataset and is fine-tuned online.

    python examples/collect_train_fine_tune.py [steps]

The script prints the return of each stage in Pendulum. The environment is a callable, which you can replace with one
that makes your own environment.
"""

import sys
from typing import Any

import gymnasium

import herdbook
from herdbook.core.exploration import NoisyPolicy
from herdbook.core.runs import Run
from herdbook.evaluation.evaluate import evaluate
from herdbook.offline.cql import CQLConfig
from herdbook.online.sac import SACConfig


def pendulum() -> gymnasium.Env[Any, Any]:
    return gymnasium.make("Pendulum-v1")


def last(run: Run) -> str:
    line = run.evaluations()[-1]
    return f"{line['return_mean']:.0f} at step {line['step']:,}"


def main(steps: int = 4_000) -> None:
    sac = SACConfig(hidden_sizes=(64, 64), warmup_steps=min(steps, 1_000))
    online = herdbook.train(sac, env=pendulum, steps=steps, name="behaviour")

    actor = herdbook.load(online.path)
    noisy = NoisyPolicy(actor.policy, actor.spec.action_space, noise=0.5)
    episodes = evaluate(noisy, pendulum, episodes=50, seed=1_000)

    cql = CQLConfig(hidden_sizes=(64, 64), num_actions=4)
    tuned = herdbook.train(
        cql, dataset=episodes, env=pendulum, steps=2 * steps, online_steps=steps, name="cql", evaluate_every=steps
    )
    offline = next(line for line in tuned.evaluations() if line["step"] == 2 * steps)
    print(f"online   {last(online)}")
    print(f"its data {episodes.returns().mean():.0f}, with noise")
    print(f"offline  {offline['return_mean']:.0f} at step {offline['step']:,}")
    print(f"tuned    {last(tuned)}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
