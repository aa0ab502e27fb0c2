"""The d3rlpy side of `d3rlpy_speed.py`, which runs in d3rlpy's own environment.

It uses d3rlpy as its documentation shows: `build_with_dataset`, then `update(batch)`, in eager torch (`compile_graph`
is off, as by default).
"""

from __future__ import annotations

from typing import Any

import d3rlpy
import numpy as np
from d3rlpy.models.encoders import VectorEncoderFactory
from worker import arrays, serve


class D3rlpyTrial:
    """One d3rlpy algorithm with the batch size, widths and candidate counts that the command gives."""

    def __init__(self, command: dict[str, Any]) -> None:
        shape = command["shape"]
        made = arrays(command["steps"], command["observation_size"], command["action_size"], command["seed"])
        self.batch_size = shape["batch_size"]
        self.data = d3rlpy.dataset.MDPDataset(
            made["observations"],
            made["actions"],
            made["rewards"],
            terminals=np.zeros(command["steps"], dtype=np.float32),
            timeouts=made["truncated"].astype(np.float32),
        )
        self.algo = config(command["algorithm"], shape).create(device="cpu")
        if self.algo.observation_scaler is not None:  # `fit` does this
            self.algo.observation_scaler.fit_with_transition_picker(self.data.episodes, self.data.transition_picker)
        self.algo.build_with_dataset(self.data)
        self.batches = [self.data.sample_transition_batch(self.batch_size) for _ in range(16)]

    def run(self, updates: int, sampling: bool) -> None:
        for i in range(updates):
            batch = self.data.sample_transition_batch(self.batch_size) if sampling else self.batches[i % 16]
            self.algo.update(batch)


def config(algorithm: str, shape: dict[str, Any]) -> Any:
    """The config of `algorithm`; settings that do not affect the speed keep d3rlpy's defaults."""
    hidden = VectorEncoderFactory(shape["hidden_sizes"])
    settings: dict[str, Any] = {
        "batch_size": shape["batch_size"],
        "actor_encoder_factory": hidden,
        "critic_encoder_factory": hidden,
    }
    if algorithm == "td3_bc":
        return d3rlpy.algos.TD3PlusBCConfig(
            observation_scaler=d3rlpy.preprocessing.StandardObservationScaler(), update_actor_interval=2, **settings
        )
    if algorithm == "iql":
        return d3rlpy.algos.IQLConfig(value_encoder_factory=hidden, **settings)
    if algorithm in ("cql", "cql_lagrange"):
        return d3rlpy.algos.CQLConfig(
            n_action_samples=shape["candidates"],
            alpha_learning_rate=3e-4 if algorithm == "cql_lagrange" else 0.0,
            soft_q_backup=False,
            max_q_backup=False,
            **settings,
        )
    if algorithm == "bcq":
        return d3rlpy.algos.BCQConfig(
            n_action_samples=shape["candidates"],
            imitator_encoder_factory=VectorEncoderFactory(shape["vae_hidden_sizes"]),
            update_actor_interval=1,
            **settings,
        )
    raise ValueError(f"unknown algorithm {algorithm!r}")


if __name__ == "__main__":
    serve(f"d3rlpy {d3rlpy.__version__}", D3rlpyTrial)
