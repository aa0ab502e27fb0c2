"""Agents, mixers and critics that see the time: where a limit ends it, values depend on it (Pardo et al. 2018)."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from herdbook.core.joint.networks import row_times
from herdbook.core.joint.types import JointSegments, JointSpec, JointTransitions
from herdbook.core.types import Step
from herdbook.marl.independent_q import IndependentQ, IndependentQConfig
from herdbook.marl.maddpg import MADDPG, MADDPGConfig
from herdbook.marl.matd3 import MATD3, MATD3Config
from herdbook.marl.matd3_bc import MATD3BC, MATD3BCConfig
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
        timesteps=torch.zeros(B, dtype=torch.long),
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
        timesteps=base.timesteps,
        mask=base.mask,
        action_mask={"a": torch.tensor([True, False, False]).expand(B, T + 1, 2, 3)},
        state=torch.zeros(B, T + 1, 2),
    )
    for _ in range(600):
        metrics = algorithm.update(batch)
    loss = next(value for key, value in metrics.items() if key.startswith("loss/"))
    assert float(loss) < 1e-3
    assert float(metrics["q"]) == pytest.approx((0.81 + 0.9 + 1) / 3, abs=0.05)


# --- actors and centralised critics ----------------------------------------------------------------------------------

PUSH = spaces.Box(-1, 1, (1,), np.float32)
BOXES = replace(SPEC, action_spaces={"a": PUSH, "b": PUSH})
CRITICS: dict[str, tuple[Any, JointSpec, dict[str, Any]]] = {
    "maddpg": (MADDPG, SPEC, {}),
    "maddpg-box": (MADDPG, BOXES, {}),
    "matd3": (MATD3, SPEC, {}),
    "matd3-box": (MATD3, BOXES, {}),
    "matd3_bc": (MATD3BC, BOXES, {}),
    "matd3_bc-independent": (MATD3BC, BOXES, {"centralised": False}),
}
CONFIGS: dict[Any, Any] = {MADDPG: MADDPGConfig, MATD3: MATD3Config, MATD3BC: MATD3BCConfig}


def make_actors(name: str, **options: Any) -> Any:
    algorithm, spec, special = CRITICS[name]
    return algorithm(CONFIGS[algorithm](hidden_sizes=(16, 16), **special, **options), spec)


def transitions(spec: JointSpec, timesteps: torch.Tensor) -> JointTransitions:
    """Everything looks the same and is done alike; only the last of three steps pays, and ends the game."""
    count, last = len(timesteps), timesteps == T - 1
    there = torch.ones(count, 2, dtype=torch.bool)
    actions = torch.zeros(count, 2, dtype=torch.long) if spec.discrete else torch.zeros(count, 2, 1)
    return JointTransitions(
        observations={"a": torch.zeros(count, 2, 2)},
        actions={"a": actions},
        rewards=last.float().unsqueeze(-1).expand(count, 2),
        discounts=torch.where(last, 0.0, 0.9).unsqueeze(-1).expand(count, 2),
        next_observations={"a": torch.zeros(count, 2, 2)},
        alive=there,
        next_alive=there & ~last.unsqueeze(-1),
        team_rewards=last.float() * 2,
        team_discounts=torch.where(last, 0.0, 0.9),
        timesteps=timesteps,
        action_mask={"a": torch.tensor([True, False, False]).expand(count, 2, 3)} if spec.discrete else None,
        next_action_mask={"a": torch.tensor([True, False, False]).expand(count, 2, 3)} if spec.discrete else None,
        state=torch.zeros(count, 2),
        next_state=torch.zeros(count, 2),
    )


@pytest.mark.parametrize("name", CRITICS)
def test_actors_count_in_play_as_over_transitions(name: str) -> None:
    algorithm = make_actors(name, horizon=HORIZON)
    actors, parameters = algorithm.actors, algorithm.learner.parameters_of("actor")
    seen = torch.randn(B, 2, 2)
    count = torch.zeros(B, dtype=torch.long)
    moments = [replace(transitions(algorithm.spec, count + t), observations={"a": seen}) for t in range(4)]
    alone = replace(moments[0], next_observations={"a": seen})
    torch.testing.assert_close(actors.after(parameters, alone), actors.before(parameters, moments[1]))
    policy = algorithm.policy(deterministic=not algorithm.spec.discrete)
    carry = policy.initial(B)
    for number, t in enumerate([0, 1, 2, 3, 0, 1]):  # the count begins anew with an episode
        start = torch.full((B,), t == 0)
        step = Step(
            observations={"a": seen},
            previous_actions=moments[0].actions,
            previous_rewards=torch.zeros(B, 2),
            first=start,
            reset=start,
            alive=torch.tensor([[True, False]] * B),
        )
        distribution, carry = policy.distribution(step, carry)
        outputs = actors.before(parameters, moments[t])
        if algorithm.spec.discrete:
            got, expected = distribution.base.logits.softmax(-1), outputs.softmax(-1)
        else:
            got, expected = distribution.mode()["a"], outputs.tanh()
        torch.testing.assert_close(got, expected, msg=f"step {number}")


def test_windows_that_begin_within_an_episode_are_as_late_as_they_are() -> None:
    late = replace(segments(), timesteps=torch.tensor([2, 0]))
    expected = torch.tensor([[2, 3, 4, 5], [0, 1, 2, 3]]) / HORIZON
    assert torch.equal(row_times(late, HORIZON), expected)


@pytest.mark.parametrize("name", CRITICS)
def test_the_time_reaches_the_actors_outputs_and_only_with_a_horizon(name: str) -> None:
    seen = transitions(CRITICS[name][1], torch.tensor([0, 2]))
    for horizon in (None, HORIZON):
        algorithm = make_actors(name, horizon=horizon)
        first, last = algorithm.actors.before(algorithm.learner.parameters_of("actor"), seen)
        assert torch.equal(first, last) == (horizon is None)


@pytest.mark.parametrize("name", CRITICS)
def test_critics_that_see_the_time_learn_what_depends_on_it_alone(name: str) -> None:
    """V = γ², γ, 1, as `transitions` pays."""
    noise = {} if name.startswith("maddpg") else {"policy_noise": 0.0}
    algorithm = make_actors(
        name, horizon=HORIZON, critic_lr=1e-2, actor_lr=1e-6, tau=0.05, discount=0.9, agent_id=False, **noise
    )
    batch = transitions(algorithm.spec, torch.arange(T).repeat(8))
    for _ in range(800):
        metrics = algorithm.update(batch)
    assert float(metrics["loss/critic"]) < 2e-3
    assert float(metrics["q"]) == pytest.approx((0.81 + 0.9 + 1) / 3, abs=0.05)


def test_an_agent_that_joins_late_sees_the_time_of_the_episode() -> None:
    """As over segments, whose rows are those of the episode."""
    algorithm, batch = make("vdn"), segments()
    parameters, carry = algorithm.learner.parameters_of("agents"), algorithm.q.initial(B)
    at_once = algorithm.q.over(parameters, batch)
    for row in range(T):
        start = torch.full((B,), row == 0)
        step = Step(
            observations={"a": batch.observations["a"][:, row]},
            previous_actions={"a": torch.zeros(B, 2, dtype=torch.long)},
            previous_rewards=torch.zeros(B, 2),
            first=start,
            reset=start,
            alive=torch.tensor([[True, row == T - 1]] * B),
        )
        values, carry = algorithm.q.at(parameters, step, carry)
    torch.testing.assert_close(values, at_once[:, T - 1])
