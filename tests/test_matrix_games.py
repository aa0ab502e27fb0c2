"""Games with known answers: what value decomposition can represent, trained on every joint action alike."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from herdbook.core.joint.types import JointSegments, JointSpec
from herdbook.core.types import Step
from herdbook.marl.independent_q import IndependentQ, IndependentQConfig
from herdbook.marl.qmix import QMIX, QMIXConfig
from herdbook.marl.vdn import VDN, VDNConfig

CLIMBING = [[11.0, -30.0, 0.0], [-30.0, 7.0, 6.0], [0.0, 0.0, 5.0]]
PENALTY = [[10.0, 0.0, -100.0], [0.0, 2.0, 0.0], [-100.0, 0.0, 10.0]]
FULL_BATCH: dict[str, Any] = {"reward_scaling": False, "max_grad_norm": None, "agent_id": False, "sharing": "none"}


def _spec(states: int, actions: int) -> JointSpec:
    """Two agents that both see the state, as a one-hot vector."""
    names = ("row", "column")
    seen = spaces.Box(0, 1, (states,), np.float32)
    return JointSpec(
        agents=names,
        observation_spaces=dict.fromkeys(names, seen),
        action_spaces=dict.fromkeys(names, spaces.Discrete(actions)),
        state_space=seen,
    )


def _segments(states: Sequence[Sequence[int]], actions: Any, rewards: Any, *, count: int) -> JointSegments:
    """Whole episodes that terminate at their last step: states [B][T + 1], actions [B][T][2], team rewards [B][T]."""
    state = torch.eye(count)[torch.tensor(states)]  # [B, T + 1, S]
    chosen, team = torch.tensor(actions), torch.tensor(rewards, dtype=torch.float32)
    alive = torch.ones(chosen.shape, dtype=torch.bool)
    goes_on = alive.clone()
    goes_on[:, -1] = False
    return JointSegments(
        observations={"row": state.unsqueeze(-2).expand(-1, -1, 2, -1)},
        actions={"row": chosen},
        rewards=(team / 2).unsqueeze(-1).expand(chosen.shape),
        discounts=0.99 * goes_on.float(),
        alive=alive,
        next_alive=goes_on,
        team_rewards=team,
        team_discounts=0.99 * goes_on[..., 0].float(),
        timesteps=torch.zeros(len(team), dtype=torch.long),
        mask=torch.ones(team.shape, dtype=torch.bool),
        state=state,
    )


def _one_step(payoff: list[list[float]]) -> JointSegments:
    joint = list(itertools.product(range(len(payoff)), repeat=2))
    rewards = [[payoff[a][b]] for a, b in joint]
    return _segments([[0, 0]] * len(joint), [[pair] for pair in joint], rewards, count=1)


def _act(algorithm: Any, state: int, count: int) -> list[int]:
    """What the greedy policy does in a state."""
    policy = algorithm.policy()
    there, first = torch.ones(1, 2, dtype=torch.bool), torch.ones(1, dtype=torch.bool)
    step = Step(
        observations={"row": torch.eye(count)[state].expand(1, 2, -1)},
        previous_actions={"row": torch.zeros(1, 2, dtype=torch.int64)},
        previous_rewards=torch.zeros(1, 2),
        first=first,
        reset=first,
        alive=there,
    )
    actions, _ = policy(step, policy.initial(1))
    return [int(action) for action in actions["row"][0]]


def _joint_values(algorithm: Any, batch: JointSegments) -> Tensor:
    """Q_i of every action in the first state: [N, n]."""
    with torch.no_grad():
        values: Tensor = algorithm.q.over(algorithm.learner.parameters_of("agents"), batch)[0, 0]
    return values


@pytest.mark.parametrize(("payoff", "greedy"), [(CLIMBING, 5.0), (PENALTY, 2.0)])
def test_vdn_on_uniform_data_is_the_additive_fit(payoff: list[list[float]], greedy: float) -> None:
    """Least squares by Q_1(a) + Q_2(b) over all pairs is row mean + column mean − mean."""
    batch, matrix = _one_step(payoff), torch.tensor(payoff)
    algorithm = VDN(VDNConfig(hidden_sizes=(), lr=0.5, **FULL_BATCH), _spec(1, 3))
    for _ in range(700):
        algorithm.update(batch)
    rows, columns = _joint_values(algorithm, batch)
    fit = matrix.mean(1, keepdim=True) + matrix.mean(0, keepdim=True) - matrix.mean()
    torch.testing.assert_close(rows.unsqueeze(1) + columns, fit, atol=1e-3, rtol=1e-3)
    row, column = _act(algorithm, 0, 1)
    assert payoff[row][column] == greedy


@pytest.mark.parametrize(("payoff", "greedy"), [(CLIMBING, 5.0), (PENALTY, 2.0)])
def test_independent_learners_on_uniform_data_learn_the_mean_over_the_other(
    payoff: list[list[float]], greedy: float
) -> None:
    batch, matrix = _one_step(payoff), torch.tensor(payoff) / 2  # each gets half
    algorithm = IndependentQ(IndependentQConfig(hidden_sizes=(), lr=0.5, **FULL_BATCH), _spec(1, 3))
    for _ in range(700):
        algorithm.update(batch)
    expected = torch.stack([matrix.mean(1), matrix.mean(0)])
    torch.testing.assert_close(_joint_values(algorithm, batch), expected, atol=1e-3, rtol=1e-3)
    row, column = _act(algorithm, 0, 1)
    assert payoff[row][column] == greedy


def _two_step() -> JointSegments:
    """Rashid et al. 2018, section 5.1: the first agent's first action leads to game A, all of it 7, or to game B."""
    second = {1: [[7.0, 7.0], [7.0, 7.0]], 2: [[0.0, 1.0], [1.0, 8.0]]}
    pairs = list(itertools.product(range(2), repeat=2))
    states, actions, rewards = [], [], []
    for first, last in itertools.product(pairs, repeat=2):
        game = 1 + first[0]
        states.append([0, game, game])
        actions.append([first, last])
        rewards.append([0.0, second[game][last[0]][last[1]]])
    return _segments(states, actions, rewards, count=3)


def _play_two_step(algorithm: Any) -> float:
    game = 1 + _act(algorithm, 0, 3)[0]
    row, column = _act(algorithm, game, 3)
    return 7.0 if game == 1 else [[0.0, 1.0], [1.0, 8.0]][row][column]


def test_vdn_gets_7_in_the_two_step_game() -> None:
    """Its additive fit of game B is worth 4.5 + 4.5 − 2.5 = 6.5 at most, less than game A."""
    algorithm = VDN(VDNConfig(hidden_sizes=(), lr=0.1, target_period=50, **FULL_BATCH), _spec(3, 2))
    batch = _two_step()
    for _ in range(500):
        algorithm.update(batch)
    assert _play_two_step(algorithm) == 7.0
    with torch.no_grad():
        q = algorithm.q.over(algorithm.learner.parameters_of("agents"), batch)
    second = q[-1, 1].amax(-1).sum()  # the best of game B
    torch.testing.assert_close(second, torch.tensor(6.5), atol=1e-2, rtol=0)


def test_qmix_gets_8_in_the_two_step_game() -> None:
    """Game B is monotonic: both agents prefer their second action, whatever the other does."""
    algorithm = QMIX(QMIXConfig(hidden_sizes=(16,), lr=5e-3, target_period=50, **FULL_BATCH), _spec(3, 2))
    batch = _two_step()
    for _ in range(500):
        metrics = algorithm.update(batch)
    assert float(metrics["loss/team"]) < 0.01
    assert _play_two_step(algorithm) == 8.0
