"""The herdbook side of `d3rlpy_speed.py`: eager torch and one seed, as `herdbook train` runs on a CPU."""

from __future__ import annotations

import os
from typing import Any

import torch
from gymnasium import spaces
from worker import EPISODE, arrays, serve

import herdbook
from herdbook.core.memory import keep_freed_memory
from herdbook.datasets.episodes import Episodes
from herdbook.datasets.replay import ReplayBuffer
from herdbook.offline.bcq import BCQ, BCQConfig
from herdbook.offline.cql import CQL, CQLConfig
from herdbook.offline.iql import IQL, IQLConfig
from herdbook.offline.td3_bc import TD3BC, TD3BCConfig

import numpy as np  # isort: skip


def synthetic(steps: int, observation_size: int, action_size: int, seed: int) -> Episodes:
    """The shared synthetic arrays as episodes; the last observation of an episode is repeated as its final one."""
    made = arrays(steps, observation_size, action_size, seed)
    rows = [made["observations"][i : i + EPISODE] for i in range(0, steps, EPISODE)]
    return Episodes(
        observations=np.concatenate([np.concatenate([part, part[-1:]]) for part in rows]),
        actions=made["actions"],
        rewards=made["rewards"],
        terminated=np.zeros(steps, dtype=np.bool_),
        truncated=made["truncated"],
        offsets=np.arange(0, steps + 1, EPISODE),
        observation_space=spaces.Box(-np.inf, np.inf, (observation_size,), np.float32),
        action_space=spaces.Box(-1.0, 1.0, (action_size,), np.float32),
    )


def algorithm(name: str, shape: dict[str, Any], episodes: Episodes, seeds: tuple[int, ...] = (0,)) -> Any:
    """A herdbook algorithm with the batch size, widths and candidate counts that the command gives."""
    settings = {"batch_size": shape["batch_size"], "hidden_sizes": tuple(shape["hidden_sizes"])}
    spec = episodes.spec()
    if name == "td3_bc":
        return TD3BC(TD3BCConfig(**settings), spec, seeds=seeds)
    if name == "iql":
        return IQL(IQLConfig(**settings), spec, seeds=seeds)
    if name in ("cql", "cql_lagrange"):
        config = CQLConfig(num_actions=shape["candidates"], lagrange=name == "cql_lagrange", **settings)
        return CQL(config, spec, seeds=seeds)
    if name == "bcq":
        vae = tuple(shape["vae_hidden_sizes"])
        config = BCQConfig(num_target_actions=shape["candidates"], vae_hidden_sizes=vae, **settings)
        return BCQ(config, spec, seeds=seeds)
    raise ValueError(f"unknown algorithm {name!r}")


class HerdbookTrial:
    """One algorithm, its replay and sixteen batches."""

    def __init__(self, command: dict[str, Any]) -> None:
        episodes = synthetic(command["steps"], command["observation_size"], command["action_size"], command["seed"])
        self.replay = ReplayBuffer(episodes)
        self.algorithm = algorithm(command["algorithm"], command["shape"], episodes)
        self.generators = [torch.Generator().manual_seed(0)]
        self.batches = [self.algorithm.sample(self.replay, self.generators) for _ in range(16)]

    def run(self, updates: int, sampling: bool) -> None:
        for i in range(updates):
            batch = self.algorithm.sample(self.replay, self.generators) if sampling else self.batches[i % 16]
            self.algorithm.update(batch)


if __name__ == "__main__":
    kept = "HERDBOOK_DEFAULT_MALLOC" not in os.environ and keep_freed_memory()
    serve(f"herdbook {herdbook.__version__}{' (keeps freed memory)' if kept else ''}", HerdbookTrial)
