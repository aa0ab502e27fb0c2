"""Two pieces of herdbook in a bare PyTorch script: the replay buffer and the conservative term of CQL.

    python examples/cql_loss_in_your_script.py [updates]

The script runs plain fitted Q-iteration on the pendulum recipe and adds the conservative term (eq. 2 of offline/cql.py)
to its loss. The networks, the optimiser and the loop are plain PyTorch.
"""

import sys

import torch
from torch import nn

from herdbook.datasets.load import load_dataset
from herdbook.datasets.replay import ReplayBuffer
from herdbook.offline.cql import conservative_gap

ALPHA, CANDIDATES, MAX_TORQUE = 1.0, 10, 2.0


def main(updates: int = 1_000) -> float:
    """Returns the last loss."""
    replay = ReplayBuffer(load_dataset("classic/pendulum"))
    generator = torch.Generator().manual_seed(0)
    critic = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    slow = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    slow.load_state_dict(critic.state_dict())
    optimiser = torch.optim.Adam(critic.parameters(), lr=3e-4)

    def q(network: nn.Module, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """observations [B, 3], actions [N, B, 1] → values [N, B]."""
        inputs = torch.cat([observations.expand(len(actions), -1, -1), actions], -1)
        return network(inputs).squeeze(-1)

    for update in range(1, updates + 1):
        batch = replay.sample(256, [generator], discount=0.99)
        candidates = torch.empty(CANDIDATES, 256, 1).uniform_(-MAX_TORQUE, MAX_TORQUE, generator=generator)
        with torch.no_grad():
            next_value = q(slow, batch.next_observations, candidates).amax(0)  # [B]
            target = batch.rewards + batch.discounts * next_value  # terminal states are in the discounts
        data_q = q(critic, batch.observations, batch.actions.unsqueeze(0))  # [1, B]
        candidate_q = q(critic, batch.observations, candidates).unsqueeze(0)  # [critics = 1, N, B]
        gap = conservative_gap(candidate_q, data_q, log_density=0.0)  # [1, B]
        loss = (data_q - target).square().mean() + ALPHA * gap.mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            for mine, followed in zip(slow.parameters(), critic.parameters(), strict=True):
                mine.lerp_(followed, 0.005)
        if update % 200 == 0 or update == updates:
            print(f"update {update}: loss {loss.item():.3f}, conservative gap {gap.mean().item():.3f}")
    return loss.item()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
