"""The QMIX mixer and its loss in a training loop of your own, on the two-step game (Rashid et al. 2018).

    python examples/qmix_mixer_in_your_loop.py [updates]

Two agents have two actions each. The first action of the first agent chooses between two matrix games. The first game
pays 7 for every joint action. The second pays 8 if both agents choose the second action, and 0 or 1 otherwise. The data
contain every joint action once.
"""

import sys
from itertools import product

import torch
from torch import nn

from herdbook.marl.independent_q import td_loss
from herdbook.marl.qmix import Mixer

PAYOFFS = torch.tensor([[[7.0, 7.0], [7.0, 7.0]], [[0.0, 1.0], [1.0, 8.0]]])  # of the two games that end the episode


def main(updates: int = 1_500) -> float:
    """Train, print and return the greedy return."""
    torch.manual_seed(0)  # a script of your own may; herdbook itself touches no global seed
    agents = nn.Linear(3 + 2, 2)  # which of three situations, and which agent
    mixer = Mixer(agents=2, state_size=3, embedding=8, hidden=16)
    optimiser = torch.optim.Adam([*agents.parameters(), *mixer.parameters()], lr=1e-2)

    actions = torch.tensor(list(product(range(2), repeat=2)))  # [4, 2] all joint actions
    situations = torch.eye(3)

    def values(situation: torch.Tensor) -> torch.Tensor:
        """[B, 3] → Q_i [B, 2 agents, 2 actions]."""
        seen = situation.unsqueeze(1).expand(-1, 2, -1)
        return agents(torch.cat([seen, torch.eye(2).expand(len(situation), 2, 2)], -1))

    def total(situation: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """Q_tot [B] of joint actions [B, 2]."""
        return mixer(values(situation).gather(-1, chosen.unsqueeze(-1)).squeeze(-1), situation)

    first = situations[:1].expand(4, -1)
    for _ in range(updates):
        following = situations[1 + actions[:, 0]]  # the first agent's action chooses the game
        with torch.no_grad():
            target = total(following, values(following).argmax(-1))  # nothing is paid yet; discount 1
        loss = td_loss(total(first, actions), target, torch.ones(4))
        for game in range(2):
            paid = PAYOFFS[game][actions[:, 0], actions[:, 1]]
            loss = loss + td_loss(total(situations[1 + game].expand(4, -1), actions), paid, torch.ones(4))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    game = int(values(situations[:1]).argmax(-1)[0, 0])
    chosen = values(situations[1 + game : 2 + game]).argmax(-1)[0]
    reached = float(PAYOFFS[game][chosen[0], chosen[1]])
    print(f"greedy return {reached:.0f}")
    return reached


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
