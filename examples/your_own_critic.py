"""A module of your own as the critic of CQL.

    python examples/your_own_critic.py [steps]

`networks` maps the algorithm's name for a network to a function that builds the module; the docstring of each algorithm
class lists these names. `Ensemble` turns a critic of (observations [M, D], actions [M, A]) into the twin critics that
CQL needs.
"""

import sys

import torch
from torch import nn

import herdbook
from herdbook.core.networks import Ensemble
from herdbook.offline.cql import CQLConfig


class NormalisedCritic(nn.Module):
    """Q(s, a) with layer normalisation, as in RLPD and ReBRAC."""

    def __init__(self, observation_size: int, action_size: int, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(observation_size + action_size, width),
            nn.LayerNorm(width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.LayerNorm(width),
            nn.ReLU(),
            nn.Linear(width, 1),
        )

    def forward(self, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        return self.layers(torch.cat([observations, actions], -1))  # [M, 1]


def main(steps: int = 2_000) -> None:
    run = herdbook.train(
        CQLConfig(hidden_sizes=(64, 64), num_actions=4),
        dataset="classic/pendulum",
        steps=steps,
        networks={"critic": lambda: Ensemble(lambda: NormalisedCritic(3, 1), copies=2)},
    )
    print(f"trained: {run.path}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
