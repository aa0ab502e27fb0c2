"""The cost of the multi-agent adapter: steps/s of PettingZoo's own parallel API, and of `JointRunner` on top of it.

    python benchmarks/joint_adapter.py [--rounds 8] [--lanes 8]

Both sides play the same episodes with the same actions, resets included. The runner also records whole episodes. Its
policy is a table look-up, so that no network is timed. The two sides alternate, and the ratio is the median over the
rounds. Times are CPU time of one process, so that other load on the machine does not count. Only the last column asks
for the global state, because bare stepping does not ask for it either. The output is a Markdown table.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import time
import warnings
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from herdbook.core.environments import EnvironmentSpec
from herdbook.core.joint.runner import JointRunner
from herdbook.core.joint.types import JointSpec
from herdbook.core.registry import joint_module
from herdbook.core.types import Carry, Step

# (environment, arguments that keep its episodes short, largest number of lanes, episodes per lane and round)
TASKS: tuple[tuple[str, dict[str, Any], int, int], ...] = (
    ("mpe2/simple_spread_v3", {}, 8, 2),
    ("mpe2/simple_speaker_listener_v4", {}, 8, 4),
    ("butterfly/pistonball_v6", {"max_cycles": 20}, 2, 1),  # one step has 3.3 MB of observations
    ("sisl/pursuit_v5", {"max_cycles": 25}, 8, 1),
)


class Table:
    """A policy that plays a table of actions, one row per step."""

    def __init__(self, spec: JointSpec, lanes: int, rows: int = 64) -> None:
        generator = np.random.default_rng(0)
        self.actions, self.rows, self.calls = {}, rows, 0
        for kind in spec.kinds:
            shape, space = (rows, lanes, len(kind.agents)), kind.action_space
            if isinstance(space, spaces.Discrete):
                self.actions[kind.name] = torch.from_numpy(generator.integers(space.n, size=shape))
            else:
                drawn = generator.uniform(space.low, space.high, (*shape, *space.shape)).astype(np.float32)
                self.actions[kind.name] = torch.from_numpy(drawn)

    def initial(self, num_envs: int) -> Carry:
        self.calls = 0
        return None

    def __call__(self, step: Step, carry: Carry, generator: torch.Generator | None = None) -> tuple[Any, Carry]:
        row = self.calls % self.rows
        self.calls += 1
        return {name: leaf[row] for name, leaf in self.actions.items()}, carry

    def distribution(self, step: Step, carry: Carry) -> tuple[Any, Carry]:
        raise NotImplementedError  # required by the protocol, not used here


def bare(env: Any, spec: JointSpec, table: Table, seeds: range) -> float:
    """Steps/s of the parallel API; actions come from the same table as the runner's."""
    rows = {name: leaf[:, 0].numpy() for name, leaf in table.actions.items()}
    if spec.discrete:
        rows = {name: leaf.tolist() for name, leaf in rows.items()}
    steps, start = 0, time.process_time()
    for seed in seeds:
        env.reset(seed=seed)
        while env.agents:
            row = steps % table.rows
            env.step({agent: rows[kind.name][row][i] for kind in spec.kinds for i, agent in enumerate(kind.agents)})
            steps += 1
    return steps / (time.process_time() - start)


def adapted(runner: JointRunner, table: Table, seeds: range) -> float:
    """Steps/s of the runner, which plays the same episodes."""
    start = time.process_time()
    played = runner.run(table, seeds)
    assert not played.failures, played.failures
    return sum(len(episode) for episode in played.episodes if episode) / (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--lanes", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| environment | lanes | bare, steps/s | adapter, steps/s | adapter's time / bare's | with state, steps/s |")
    print("|---|--:|--:|--:|--:|--:|")
    for name, kwargs, most, episodes in TASKS:
        lanes = min(options.lanes, most)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PettingZoo recommends its registry
            env = importlib.import_module(str(joint_module(name))).parallel_env(**kwargs)
        source = EnvironmentSpec(id=name, kwargs=kwargs)
        runner, stated = JointRunner(source, lanes, state=False), JointRunner(source, lanes)
        table = Table(runner.spec, lanes)
        rates: list[tuple[float, float, float]] = []
        for number in range(options.rounds + 1):
            first = number * lanes * episodes
            seeds = range(first, first + lanes * episodes)
            rates.append(
                (bare(env, runner.spec, table, seeds), adapted(runner, table, seeds), adapted(stated, table, seeds))
            )
        rates = rates[1:]  # the first round warms up
        plain, ours, with_state = (statistics.median(column) for column in zip(*rates, strict=True))
        ratio = statistics.median(b / a for b, a, _ in rates)
        print(f"| {name} | {lanes} | {plain:,.0f} | {ours:,.0f} | {ratio:.2f} | {with_state:,.0f} |", flush=True)
        runner.close()
        stated.close()
        env.close()


if __name__ == "__main__":
    main()
