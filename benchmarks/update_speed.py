"""Updates per second of several algorithms on a CPU, alone or against another checkout of herdbook.

    python benchmarks/update_speed.py [--algorithms td3_bc qmix_recurrent] [--against OTHER_CHECKOUT] [--threads 1]

Every algorithm trains one seed, except for `td3_bc_5_seeds`. The data are synthetic, and batches are drawn before the
measurement. With `--against`, each checkout runs in a process of its own, and the two are measured alternately; the
ratio is the median over the pairs. A process keeps its speed for its lifetime, so `--restarts` restarts both sides that
often. The output is Markdown.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from d3rlpy_speed import DATA, SHAPES, Worker
from gymnasium import spaces
from herdbook_worker import algorithm, synthetic
from worker import serve

from herdbook.core.memory import keep_freed_memory
from herdbook.core.types import Segments
from herdbook.datasets.replay import ReplayBuffer
from herdbook.marl import qmix
from herdbook.online.ppo import PPO, PPOConfig
from herdbook.online.sac import SAC, SACConfig

NAMES = ("td3_bc", "td3_bc_5_seeds", "iql", "cql", "bcq", "sac", "ppo", "qmix", "qmix_recurrent")
AGENTS, EPISODE, ENVIRONMENTS, ROLLOUT = 3, 25, 8, 128  # simple_spread's agents and steps; PPO's rollouts


class Trial:
    """One algorithm and the batches that it learns from."""

    def __init__(self, command: dict[str, Any]) -> None:
        name, generator = command["algorithm"], torch.Generator().manual_seed(0)
        if name.startswith("qmix"):
            self.algorithm: Any = qmix.QMIX(qmix.QMIXConfig(recurrent=name == "qmix_recurrent"), joint_spec())
            self.batches: list[Any] = [joint_batch(generator, 32) for _ in range(16)]
            return
        episodes = synthetic(DATA["steps"], DATA["observation_size"], DATA["action_size"], DATA["seed"])
        seeds = tuple(range(5)) if name.endswith("_5_seeds") else (0,)
        if name == "ppo":
            self.algorithm = PPO(PPOConfig(), episodes.spec())
            self.batches = [rollout(generator) for _ in range(4)]
            return
        if name == "sac":
            self.algorithm = SAC(SACConfig(), episodes.spec())
        else:
            name = name.removesuffix("_5_seeds")
            self.algorithm = algorithm(name, SHAPES[name], episodes, seeds)
        replay, generators = ReplayBuffer(episodes), [torch.Generator().manual_seed(seed) for seed in seeds]
        self.batches = [self.algorithm.sample(replay, generators) for _ in range(16)]

    def run(self, updates: int, sampling: bool) -> None:
        for number in range(updates):
            self.algorithm.update(self.batches[number % len(self.batches)])


def rollout(generator: torch.Generator) -> Segments:
    """A rollout of several environments whose episodes do not end, [environments, steps, …]."""
    lead = (ENVIRONMENTS, ROLLOUT)
    sizes = (DATA["observation_size"], DATA["action_size"], DATA["observation_size"])
    seen, acted, next_seen = (torch.randn(*lead, size, generator=generator) for size in sizes)
    no = torch.zeros(lead, dtype=torch.bool)
    rewards = torch.randn(lead, generator=generator)
    return Segments(seen, acted, rewards, mask=~no, terminated=no, truncated=no, next_observations=next_seen)


def joint_spec() -> Any:
    """A task with the sizes of simple_spread."""
    names = [f"agent_{number}" for number in range(AGENTS)]
    seen = spaces.Box(-float("inf"), float("inf"), (18,))
    return qmix.JointSpec(  # type: ignore[attr-defined]  # its module differs between checkouts
        agents=tuple(names),
        observation_spaces=dict.fromkeys(names, seen),
        action_spaces=dict.fromkeys(names, spaces.Discrete(5)),
        state_space=spaces.Box(-float("inf"), float("inf"), (54,)),
    )


def joint_batch(generator: torch.Generator, batch: int) -> Any:
    """Whole episodes in which every agent acts to the end."""
    kind, lead = joint_spec().kinds[0].name, (batch, EPISODE)
    yes = torch.ones(*lead, AGENTS, dtype=torch.bool)
    return qmix.JointSegments(  # type: ignore[attr-defined]
        observations={kind: torch.randn(batch, EPISODE + 1, AGENTS, 18, generator=generator)},
        actions={kind: torch.randint(5, (*lead, AGENTS), generator=generator)},
        rewards=torch.randn(*lead, AGENTS, generator=generator),
        discounts=torch.full((*lead, AGENTS), 0.99),
        alive=yes,
        next_alive=yes,
        team_rewards=torch.randn(lead, generator=generator),
        team_discounts=torch.full(lead, 0.99),
        timesteps=torch.zeros(batch, dtype=torch.long),
        mask=yes[..., 0],
        state=torch.randn(batch, EPISODE + 1, 54, generator=generator),
    )


def measure(name: str, sides: dict[str, str], options: argparse.Namespace) -> dict[str, list[float]]:
    """Updates per second of each side, for each pair of measurements."""
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(options.restarts):
        workers = {
            side: Worker(sys.executable, __file__, {"PYTHONPATH": path, ROLE: "1"}) for side, path in sides.items()
        }
        for worker in workers.values():
            worker.ask(do="build", algorithm=name, threads=options.threads)
        seconds = max(worker.ask(do="run", updates=4, sampling=False)["wall"] for worker in workers.values())
        updates = max(2, 2 * round(options.seconds * 2 / seconds))
        for _ in range(options.pairs):
            for side, worker in workers.items():
                rates[side].append(updates / worker.ask(do="run", updates=updates, sampling=False)["wall"])
        for worker in workers.values():
            worker.close()
    return rates


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithms", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--against", type=Path, help="root of another checkout of herdbook")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0, help="length of one measurement")
    parser.add_argument("--pairs", type=int, default=5, help="measurements of each side after each start")
    parser.add_argument("--restarts", type=int, default=2)
    options = parser.parse_args()
    sides = {"here": str(Path(__file__).parent.parent / "src")}
    if options.against is not None:
        sides["there"] = str(options.against.resolve() / "src")
    print(f"{platform.platform()}, {os.cpu_count()} cores, {options.threads} threads, torch {torch.__version__}\n")
    print("| algorithm | updates/s | updates/s of the other checkout | ratio (range) |\n|---|---|---|---|")
    for name in options.algorithms:
        rates = measure(name, sides, options)
        cells = [name, *(f"{statistics.median(rates[side]):.1f}" for side in sides)]
        if "there" in sides:
            ratios = sorted(a / b for a, b in zip(rates["here"], rates["there"], strict=True))
            cells.append(f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f})")
        else:
            cells += ["–", "–"]
        print("| " + " | ".join(cells) + " |", flush=True)


ROLE = "HERDBOOK_SPEED_WORKER"

if __name__ == "__main__":
    if ROLE in os.environ:
        keep_freed_memory()  # as the command does
        serve("herdbook", Trial)
    else:
        main()
