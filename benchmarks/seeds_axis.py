"""The cost of training several seeds as one program, and the cost of the seed axis for a single seed.

    python benchmarks/seeds_axis.py [--seeds 5] [--threads 1] [--pairs 15]

The benchmark compares the update of S batched seeds with the update of one seed. It also compares TD3+BC with one seed
to the same update written with ordinary modules, `backward()` and `torch.optim.Adam`, without a learner, seeds or
functional parameters. Both sides of a comparison are measured alternately in one process; ratios are medians over the
pairs. The output is Markdown.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from d3rlpy_speed import DATA, SHAPES
from herdbook_worker import algorithm, synthetic

from herdbook.core.memory import keep_freed_memory
from herdbook.core.types import Transitions
from herdbook.datasets.replay import ReplayBuffer
from herdbook.offline.td3_bc import TD3BC


class PlainTD3BC:
    """The update of `offline/td3_bc.py` as a script would write it, from the same modules and settings."""

    def __init__(self, ours: TD3BC) -> None:
        self.config, self.scaling = ours.config, ours.scaling
        made = {name: copy.deepcopy(network.module) for name, network in ours.learner.networks.items()}
        self.actor, self.critic = (made[name].requires_grad_() for name in ("actor", "critic"))
        self.slow_actor, self.slow_critic = (
            copy.deepcopy(made[name]).requires_grad_(False) for name in ("actor", "critic")
        )
        self.actor_adam = torch.optim.Adam(self.actor.parameters(), lr=self.config.actor_lr, fused=True)
        self.critic_adam = torch.optim.Adam(self.critic.parameters(), lr=self.config.critic_lr, fused=True)
        self.generator = torch.Generator().manual_seed(0)
        self.updates = 0

    def update(self, batch: Transitions) -> dict[str, torch.Tensor]:
        c, batch = self.config, self.scaling(batch)
        self.updates += 1
        with torch.no_grad():
            noise = torch.empty_like(batch.actions).normal_(generator=self.generator)
            noise = (c.policy_noise * noise).clamp(-c.noise_clip, c.noise_clip)
            next_actions = (self.slow_actor(batch.next_observations) + noise).clamp(-1, 1)
            next_q = self.slow_critic(batch.next_observations, next_actions).amin(0)
            target = batch.rewards + batch.discounts * next_q
        q = self.critic(batch.observations, batch.actions)
        critic_loss = (q - target).square().mean(-1).sum()
        self.critic_adam.zero_grad()
        critic_loss.backward()
        self.critic_adam.step()
        metrics = {"loss/critic": critic_loss.detach(), "q": q.detach().mean()}
        if self.updates % c.policy_delay == 0:
            actions = self.actor(batch.observations)
            q = self.critic(batch.observations, actions)[0]
            loss = -c.alpha / q.abs().mean().detach() * q.mean() + (actions - batch.actions).square().mean()
            self.actor_adam.zero_grad()
            loss.backward()
            self.actor_adam.step()
            metrics["loss/actor"] = loss.detach()
            with torch.no_grad():
                for fast, slow in ((self.actor, self.slow_actor), (self.critic, self.slow_critic)):
                    torch._foreach_lerp_(list(slow.parameters()), list(fast.parameters()), c.tau)
        return metrics


def seconds(update: Callable[[Any], Any], batch: Any, count: int) -> tuple[float, float]:
    """Wall and CPU seconds per update."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        update(batch)
    return (time.perf_counter() - wall) / count, (time.process_time() - cpu) / count


def compare(a: Any, a_batch: Any, b: Any, b_batch: Any, pairs: int, length: float) -> tuple[float, float, float, float]:
    """Median seconds of one update of a and of b, and the medians of b/a by wall and by CPU time."""
    sides = [(a.update, a_batch), (b.update, b_batch)]
    counts = [max(2, 2 * round(length / seconds(update, batch, 4)[0] / 2)) for update, batch in sides]
    taken = []
    for pair in range(pairs):
        order = (0, 1) if pair % 2 else (1, 0)
        taken.append({i: seconds(*sides[i], counts[i]) for i in order})
    wall, cpu = (statistics.median(t[1][clock] / t[0][clock] for t in taken) for clock in (0, 1))
    return statistics.median(t[0][0] for t in taken), statistics.median(t[1][0] for t in taken), wall, cpu


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithms", nargs="+", default=["td3_bc", "iql", "cql", "bcq"], choices=list(SHAPES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.7, help="length of one measurement")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    episodes = synthetic(**DATA)
    replay = ReplayBuffer(episodes)

    def batched(name: str, seeds: int) -> tuple[Any, Any]:
        made = algorithm(name, SHAPES[name], episodes, tuple(range(seeds)))
        return made, made.sample(replay, [torch.Generator().manual_seed(s) for s in range(seeds)])

    print(f"torch {torch.__version__}, {options.threads} threads, {options.pairs} pairs\n")
    print("| comparison | first, ms | second, ms | second / first | by CPU time |\n|---|---|---|---|---|")
    for name in options.algorithms:
        row = compare(*batched(name, 1), *batched(name, options.seeds), options.pairs, options.seconds)
        cells = f"{1e3 * row[0]:.1f} | {1e3 * row[1]:.1f} | {row[2]:.2f} | {row[3]:.2f}"
        print(f"| {name}: one seed, {options.seeds} seeds | {cells} |", flush=True)
    ours, batch = batched("td3_bc", 1)
    row = compare(PlainTD3BC(ours), batch, ours, batch, 2 * options.pairs, options.seconds)
    cells = f"{1e3 * row[0]:.2f} | {1e3 * row[1]:.2f} | {row[2]:.3f} | {row[3]:.3f}"
    print(f"| td3_bc: plain script, one seed | {cells} |")


if __name__ == "__main__":
    main()
