"""Agents and mixers that see the time: where a limit ends the game, values depend on it (Pardo et al. 2018)."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from herdbook.core.joint import JointSegments, JointSpec
from herdbook.core.types import Step
from herdbook.marl.independent_q import IndependentQ, IndependentQConfig
from herdbook.marl.qmix import QMIX, QMIXConfig, mixer_view
from herdbook.marl.qmix_cql import QMIXCQL, QMIXCQLConfig
from herdbook.marl.vdn import VDN, VDNConfig

T, B, HORIZON = 3, 2, 5
BOX = spaces.Box(-np.inf, np.inf, (2,), np.float32)
SPEC = JointSpec(
    agents=("a", "b"),
    observation_spaces={"a": BOX, "b": BOX},
    action_spaces={"a": spaces.Discrete(3), "b": spaces.Discrete(3)},
    state_space=BOX,
)
ALGORITHMS: dict[str, Any] = {
    "independent_q": (IndependentQ, IndependentQConfig),
    "vdn": (VDN, VDNConfig),
    "qmix": (QMIX, QMIXConfig),
    "qmix_cql": (QMIXCQL, QMIXCQLConfig),
}


def make(name: str, **options: Any) -> Any:
    algorithm, config = ALGORITHMS[name]
    return algorithm(config(horizon=HORIZON, hidden_sizes=(8, 8), **options), SPEC)


def segments() -> JointSegments:
    alive = torch.ones(B, T, 2, dtype=torch.bool)
    return JointSegments(
        observations={"a": torch.randn(B, T + 1, 2, 2)},
        actions={"a": torch.randint(3, (B, T, 2))},
        rewards=torch.randn(B, T, 2),
        discounts=torch.full((B, T, 2), 0.9),
        alive=alive,
        next_alive=alive,
        team_rewards=torch.randn(B, T),
        team_discounts=torch.full((B, T), 0.9),
        mask=alive[..., 0],
        state=torch.randn(B, T + 1, 2),
    )


def seen_in_play(algorithm: Any, batch: JointSegments, row: int, carry: Any, first: bool) -> tuple[torch.Tensor, Any]:
    previous = batch.actions["a"][:, row - 1] if row else torch.zeros(B, 2, dtype=torch.long)
    start = torch.full((B,), first)
    step = Step(
        observations={"a": batch.observations["a"][:, row]},
        previous_actions={"a": previous},
        previous_rewards=torch.zeros(B, 2),
        first=start,
        reset=start,
        alive=torch.ones(B, 2, dtype=torch.bool),
    )
    values, carry = algorithm.q.at(algorithm.learner.parameters_of("agents"), step, carry)
    return values, carry


@pytest.mark.parametrize("options", [{}, {"last_action": True}, {"recurrent": True, "last_action": True}])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_policy_counts_as_the_update_does(name: str, options: dict[str, Any]) -> None:
    algorithm, batch = make(name, **options), segments()
    at_once = algorithm.q.over(algorithm.learner.parameters_of("agents"), batch)
    carry = algorithm.q.initial(B)
    for episode in range(2):  # the count begins anew with an episode
        for row in range(T + 1):
            values, carry = seen_in_play(algorithm, batch, row, carry, first=row == 0)
            torch.testing.assert_close(values, at_once[:, row], msg=f"episode {episode}, row {row}")


def test_the_last_input_is_the_share_of_the_horizon() -> None:
    algorithm, batch = make("vdn", agent_id=False), segments()
    given: list[torch.Tensor] = []
    algorithm.learner.networks["agents"].module.register_forward_pre_hook(lambda _, inputs: given.append(inputs[1]))
    algorithm.q.over(algorithm.learner.parameters_of("agents"), batch)
    assert given[0].shape == (B, T + 1, 2, 1)
    assert given[0][1, :, 1, 0].tolist() == pytest.approx([0.0, 0.2, 0.4, 0.6])


def test_the_mixer_sees_the_time_of_the_row_that_it_values() -> None:
    batch = segments()
    (state, now), (next_state, later) = mixer_view(SPEC, batch, HORIZON)
    assert now[0].tolist() == pytest.approx([0.0, 0.2, 0.4]) and later[1].tolist() == pytest.approx([0.2, 0.4, 0.6])
    assert torch.equal(state, batch.state[:, :-1]) and torch.equal(next_state, batch.state[:, 1:])  # type: ignore[index]  # there is one
    assert torch.equal(mixer_view(SPEC, batch, None)[0], state)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_agent_that_sees_the_time_learns_what_depends_on_it_alone(name: str) -> None:
    """Everything looks the same, and only the last of three steps pays: V = γ², γ, 1."""
    options = {"alpha": 0.0} if name == "qmix_cql" else {}
    algorithm = make(name, lr=1e-2, target_period=1, tau=0.05, discount=0.9, agent_id=False, **options)
    base = segments()
    paid = torch.tensor([0.0, 0.0, 1.0]).expand(B, T)
    ends = torch.tensor([0.9, 0.9, 0.0]).expand(B, T)
    batch = JointSegments(
        observations={"a": torch.zeros(B, T + 1, 2, 2)},
        actions={"a": torch.zeros(B, T, 2, dtype=torch.long)},
        rewards=paid.unsqueeze(-1).expand(B, T, 2),
        discounts=ends.unsqueeze(-1).expand(B, T, 2),
        alive=base.alive,
        next_alive=base.next_alive & torch.tensor([True, True, False])[:, None],
        team_rewards=paid,
        team_discounts=ends,
        mask=base.mask,
        action_mask={"a": torch.tensor([True, False, False]).expand(B, T + 1, 2, 3)},
        state=torch.zeros(B, T + 1, 2),
    )
    for _ in range(600):
        metrics = algorithm.update(batch)
    loss = next(value for key, value in metrics.items() if key.startswith("loss/"))
    assert float(loss) < 1e-3
    assert float(metrics["q"]) == pytest.approx((0.81 + 0.9 + 1) / 3, abs=0.05)
