"""Seconds for one iteration of MCE IRL and of MaxEnt IRL in a random MDP, on a CPU.

    python benchmarks/mce_irl_speed.py [--states 1000] [--horizon 50] [--threads 2] [--iterations 20]

An iteration plans for the reward, computes the occupancy of the plan and takes a gradient step on the reward, a table
of states. Two MDPs are measured: a dense one, whose actions can lead to every state, and a sparse one, with 10
successors for each action (a Garnet). The roof is the time of the products with the transition matrix alone: one for
each step of the horizon in planning and one in counting visits, each of which reads the whole matrix. The
output is Markdown.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from herdbook.core.types import Spec
from herdbook.irl.known_dynamics import Flow
from herdbook.irl.maxent_irl import MaxEntIRL, MaxEntIRLConfig
from herdbook.irl.mce_irl import MCEIRL, MCEIRLConfig
from herdbook.tabular.dynamics import Dynamics
from herdbook.tabular.mdp import MDP
from herdbook.tabular.planning import occupancy, uniform

ACTIONS = 4
METHODS: dict[str, tuple[type[Any], type[Any]]] = {
    "mce_irl": (MCEIRL, MCEIRLConfig),
    "maxent_irl": (MaxEntIRL, MaxEntIRLConfig),
}


def median_time(work: Callable[[], Any], repeats: int) -> float:
    """The median of the seconds that `work` takes, after one call that is not counted."""
    work()
    taken = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def roof(mdp: MDP, horizon: int, repeats: int) -> float:
    """Seconds of the products with p(s′ | s, a) alone: `horizon` of each kind."""
    dynamics = Dynamics(mdp)
    values, visits = np.ones(mdp.num_states), np.ones((mdp.num_states, mdp.num_actions))
    back = median_time(lambda: dynamics.expected(values), 10 * repeats)
    forward = median_time(lambda: dynamics.arrivals(visits), 10 * repeats)
    return horizon * (back + forward)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--states", type=int, default=1_000)
    parser.add_argument("--horizon", type=int, default=50)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    horizon, repeats = options.horizon, options.iterations
    print(f"{platform.processor() or platform.machine()}, {options.threads} threads, torch {torch.__version__}")
    print(f"{options.states:,} states, {ACTIONS} actions, horizon {horizon}; median seconds of {repeats} iterations")
    print("\n| MDP | method | iteration | its products alone |\n|---|---|---|---|")
    spec = Spec(spaces.Discrete(options.states), spaces.Discrete(ACTIONS))
    for name, branching in (("dense", None), ("sparse, 10 successors", 10)):
        generator = np.random.default_rng(0)
        mdp = MDP.random(options.states, ACTIONS, discount=1.0, branching=branching, generator=generator)
        wanted = Flow.of(mdp, occupancy(mdp, np.repeat(uniform(mdp)[None], horizon, 0)), horizon)
        least = roof(mdp, horizon, repeats)
        for method, (make, config) in METHODS.items():
            trained = make(config(horizon=horizon, discount=1.0), spec, mdp=mdp, demonstrations=wanted)
            taken = median_time(trained.update, repeats)
            print(f"| {name} | `{method}` | {taken:.4f} | {least:.4f} |")


if __name__ == "__main__":
    main()
