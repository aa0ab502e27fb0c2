"""The losses of many agents against numbers that can be checked on paper."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from herdbook.core.joint.networks import JointCritic
from herdbook.core.joint.types import JointEpisode, JointSegments, JointSpec, JointTransitions
from herdbook.core.types import TimeLimit
from herdbook.datasets.joint.episodes import JointEpisodes
from herdbook.datasets.joint.replay import JointReplay
from herdbook.marl import independent_q, maddpg, matd3_bc, qmix, qmix_cql, vdn
from herdbook.marl.independent_q import IndependentQ, IndependentQConfig
from herdbook.marl.maddpg import MADDPG, MADDPGConfig
from herdbook.marl.matd3 import MATD3, MATD3Config
from herdbook.marl.matd3_bc import MATD3BC, MATD3BCConfig
from herdbook.marl.qmix import QMIX, Mixer, QMIXConfig
from herdbook.marl.qmix_cql import QMIXCQL, QMIXCQLConfig
from herdbook.marl.vdn import VDN, VDNConfig

T = torch.tensor
INF = math.inf
AGENTS = ("ann", "bob")


def _box(size: int) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, (size,), np.float32)


def _spec(action_space: spaces.Space[Any] | None = None, **changes: Any) -> JointSpec:
    """Two agents of one kind that see two numbers and have two actions; the state is one number."""
    return JointSpec(
        agents=AGENTS,
        observation_spaces=dict.fromkeys(AGENTS, _box(2)),
        action_spaces=dict.fromkeys(AGENTS, action_space or spaces.Discrete(2)),
        **{"state_space": _box(1), **changes},
    )


# --- pure functions -------------------------------------------------------------------------------------------------


def test_td_loss_is_the_mean_over_what_the_mask_leaves() -> None:
    q, target = T([[1.0, 5.0], [2.0, 100.0]]), T([[3.0, 5.0], [-1.0, 0.0]])
    mask = T([[True, True], [True, False]])
    assert float(independent_q.td_loss(q, target, mask)) == pytest.approx((4 + 0 + 9) / 3)


@pytest.mark.parametrize(
    ("chooser", "value"),
    [
        ([1.0, 5.0, 2.0], 20.0),
        ([1.0, -INF, 2.0], 30.0),  # the best is illegal
        ([-INF, -INF, -9.0], 30.0),  # one is left
        ([3.0, 3.0, 2.0], 10.0),
    ],
)
def test_greedy_value_is_chosen_by_one_network_and_valued_by_the_other(chooser: list[float], value: float) -> None:
    assert float(independent_q.greedy_value(T(chooser), T([10.0, 20.0, 30.0]))) == value


def test_team_value_is_the_sum_over_those_that_act() -> None:
    q, alive = T([[1.0, 2.0, 4.0], [1.0, 2.0, 4.0]]), T([[True, True, True], [True, False, True]])
    assert vdn.team_value(q, alive).tolist() == [7.0, 5.0]


def test_the_mixer_by_hand() -> None:
    """Two agents, embedding and hidden layers of 1: Q_tot = |−½| · elu(|−2| q₁ + |3| q₂ + s) + 4."""
    mixer = hand_mixer()
    q = T([[1.0, 2.0], [0.0, -1.0], [-1.0, 0.0]])
    state = T([[-3.0], [0.5], [2.0]])
    expected = [0.5 * 5 + 4, 0.5 * (math.exp(-2.5) - 1) + 4, 0.5 * 0 + 4]
    torch.testing.assert_close(mixer(q, state), T(expected))
    torch.testing.assert_close(mixer(q.reshape(3, 1, 2), state.reshape(3, 1, 1)), T(expected).reshape(3, 1))


def hand_mixer() -> Mixer:
    mixer = Mixer(2, 1, embedding=1, hidden=1)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.zero_()
        mixer.first.bias[:3] = 1.0  # the hidden layers of W₁, w₂ and v do not look at the state …
        mixer.first.weight[3] = 1.0  # … and b₁ is the state
        mixer.weights.weight[:, 0] = T([-2.0, 3.0])
        mixer.last_weights.weight[0, 0] = -0.5
        mixer.value.weight[0, 0] = 4.0
    return mixer


def test_the_mixer_never_falls_when_an_agents_value_rises() -> None:
    """For random states, values and weights, far from the initial ones too; and it does depend on every agent."""
    for scale in (0.1, 1.0, 10.0):
        mixer = Mixer(3, 4, embedding=8, hidden=16)
        with torch.no_grad():
            for parameter in mixer.parameters():
                parameter.copy_(scale * torch.randn_like(parameter))
        q = (5 * torch.randn(500, 3)).requires_grad_()
        (slope,) = torch.autograd.grad(mixer(q, torch.randn(500, 4)).sum(), q)
        assert float(slope.min()) >= 0
        assert bool((slope > 0).any(0).all())


def test_straight_through_is_a_one_hot_sample_with_the_slope_of_its_softmax() -> None:
    """Logits log 2, log 1 and an illegal one, at temperature ½: probabilities 4/5, 1/5, 0."""
    logits = T([math.log(2), 0.0, -INF], requires_grad=True)
    sample = maddpg.straight_through(logits, torch.zeros(3), 0.5)
    assert sample.tolist() == [1.0, 0.0, 0.0]
    (slope,) = torch.autograd.grad((sample * T([1.0, 0.0, 7.0])).sum(), logits)
    torch.testing.assert_close(slope, T([2 * 0.8 * 0.2, -2 * 0.8 * 0.2, 0.0]))
    noise = T([0.0, 1.0, 50.0])  # of the illegal one too
    assert maddpg.straight_through(logits.detach(), noise, 0.5).tolist() == [0.0, 1.0, 0.0]


def test_gumbel_noise_at_both_edges_and_its_samples() -> None:
    """−log(−log u); argmax(log p + noise) is a sample of p."""
    noise = maddpg.gumbel(T([-1.0, 0.0, 1 - 2**-24]))
    assert bool(noise.isfinite().all())
    assert float(noise[1]) == pytest.approx(-math.log(math.log(2)))
    uniform = torch.rand(100_000, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    chosen = maddpg.straight_through(T([0.5, 0.3, 0.2]).log().expand(100_000, 3), maddpg.gumbel(uniform), 1.0)
    torch.testing.assert_close(chosen.mean(0), T([0.5, 0.3, 0.2]), atol=0.01, rtol=0)


def test_only_an_agents_own_action_is_replaced_in_its_row() -> None:
    data, own = T([[[1.0], [2.0], [3.0]]]), T([[[-1.0], [-2.0], [-3.0]]])
    rows = maddpg.with_own(data, own)
    assert rows.shape == (1, 3, 3, 1)
    assert rows[0, :, :, 0].tolist() == [[-1, 2, 3], [1, -2, 3], [1, 2, -3]]


def test_maddpg_actor_loss() -> None:
    """Values 1, 2, of an absent agent 100; squared outputs (1 + 9) / 2 and (0 + 4) / 2, ρ = 0.1."""
    q, alive = T([[1.0, 2.0], [100.0, 0.0]]), T([[True, True], [False, False]])
    outputs = T([[[1.0, 3.0], [0.0, 2.0]], [[50.0, 50.0], [50.0, 50.0]]])
    expected = -((1 - 0.1 * 5) + (2 - 0.1 * 2)) / 2
    assert float(maddpg.actor_loss(q, outputs, alive, 0.1)) == pytest.approx(expected)


def test_matd3_bc_actor_loss_weighs_each_agent_by_its_own_values() -> None:
    """α = 2. Agent 1: Q 1, −3, so λ = 2 / 2; agent 2, absent from the second step: Q −4, λ = 2 / 4."""
    q = T([[1.0, -4.0], [-3.0, 100.0]], requires_grad=True)
    cloning, alive = T([[0.5, 2.0], [1.5, 100.0]]), T([[True, True], [True, False]])
    loss = matd3_bc.actor_loss(q, cloning, alive, 2.0)
    assert loss.item() == pytest.approx(((-1 * -1 + 1) + (-0.5 * -4 + 2)) / 2)
    (slope,) = torch.autograd.grad(loss, q)
    assert slope.tolist() == [[-0.25, -0.25], [-0.25, 0.0]]  # −λ_i / (steps · N): λ is a constant


def test_matd3_bc_actor_loss_of_an_agent_that_is_never_there_is_nothing() -> None:
    q, cloning = T([[1.0, 5.0]]), T([[0.5, 7.0]])
    assert float(matd3_bc.actor_loss(q, cloning, T([[True, False]]), 2.0)) == pytest.approx((-2 + 0.5) / 2)


def test_conservative_gap_leaves_out_what_is_illegal() -> None:
    q = T([[0.0, math.log(3), -INF], [math.log(2), math.log(2), math.log(4)]])
    gap = qmix_cql.conservative_gap(q, T([math.log(3), math.log(2)]))
    torch.testing.assert_close(gap, T([math.log(4 / 3), math.log(4)]))


def test_random_indices_are_uniform_over_the_legal_ones() -> None:
    uniform = torch.rand(60_000, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    counts = qmix_cql.random_indices(uniform, T([True, False, True, True])).bincount(minlength=4)
    assert int(counts[1]) == 0
    torch.testing.assert_close(counts[[0, 2, 3]] / 60_000, torch.full((3,), 1 / 3), atol=0.01, rtol=0)


# --- the loss of a batch --------------------------------------------------------------------------------------------


class Shown(nn.Module):
    """Agents whose values are what they observe, times a number that is 1 in the online network."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(T(1.0))

    def forward(self, observations: dict[str, Tensor], extra: None, state: None, held: None) -> tuple[Tensor, None]:
        return self.factor * observations["ann"], None


class HandMixer(nn.Module):
    """The mixer of `test_the_mixer_by_hand` on the task's state."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer = hand_mixer()

    def forward(self, q: Tensor, view: Tensor) -> Tensor:
        total: Tensor = self.mixer(q, view)
        return total


WILD = 1e3
"""What stands where nothing may be read."""


def _table(time_limit: str, discount: float = 0.5) -> JointSegments:
    """Two episodes. Values of the two actions of (ann, bob) at each row, chosen actions in brackets:

    A, 2 steps, then both terminate:  s = 1: (1 [2]) ([0] 1) → 1;  s = −10: ([3] 0) (2 [4]) → 2;  s = 7: (9 9) (9 9)
    B, 3 steps, then ann is cut off:  s = 0: ([4] 0) ([1] 0) → 0, bob terminates;  s = 1: (0 [2]) → 1;
                                      s = −20: ([1] 5*) → −2;  s = 2: (6* 2)      * illegal
    """
    nobody = [[WILD, WILD], [WILD, WILD]]
    a = [[[1, 2], [0, 1]], [[3, 0], [2, 4]], [[9, 9], [9, 9]], nobody]
    b = [[[4, 0], [1, 0]], [[0, 2], [7, 7]], [[1, 5], [WILD, WILD]], [[6, 2], [WILD, WILD]]]
    legal = torch.ones(2, 4, 2, 2, dtype=torch.bool)
    legal[1, 2, 0, 1] = legal[1, 3, 0, 0] = False
    last = 0.0 if time_limit == "terminal" else discount
    g = discount
    return JointSegments(
        observations={"ann": T([a, b]).float()},
        actions={"ann": T([[[1, 0], [0, 1], [1, 1]], [[0, 0], [1, 0], [0, 0]]])},
        rewards=T([[[1.0, 0.0], [0.5, 1.5], [WILD, WILD]], [[2.0, -2.0], [1.0, WILD], [-2.0, WILD]]]),
        discounts=T([[[g, g], [0.0, 0.0], [WILD, WILD]], [[g, 0.0], [g, WILD], [last, WILD]]]),
        alive=T([[[True, True], [True, True], [False, False]], [[True, True], [True, False], [True, False]]]),
        next_alive=T([[[True, True], [False, False], [False, False]], [[True, False], [True, False], [True, False]]]),
        team_rewards=T([[1.0, 2.0, WILD], [0.0, 1.0, -2.0]]),
        team_discounts=T([[g, 0.0, WILD], [g, g, last]]),
        timesteps=torch.zeros(2, dtype=torch.long),
        mask=T([[True, True, False], [True, True, True]]),
        action_mask={"ann": legal},
        state=T([[1.0, -10.0, 7.0, WILD], [0.0, 1.0, -20.0, 2.0]]).unsqueeze(-1),
    )


def _loss(algorithm: Any, batch: JointSegments, slow: float) -> float:
    """The objective with a target network whose values are `slow` times the online ones."""
    algorithm.learner.params.target["agents"]["factor"].fill_(slow)
    loss, _ = algorithm.objective(algorithm.learner.params, batch)
    return loss.item()


@pytest.mark.parametrize(("time_limit", "cut_off"), [("bootstrap", -2 + 0.5 * 9), ("terminal", -2.0)])
def test_qmix_loss_by_hand(time_limit: str, cut_off: float) -> None:
    """Q_tot = ½ elu(2 q₁ + 3 q₂ + s) + 4, and the target network's values are twice the online ones.

    A1: ½ · 5 + 4 = 6.5   y = 1 + ½ (½ (2 · 6 + 3 · 8 − 10) + 4) = 9.5
    A2: ½ · 8 + 4 = 8     y = 2: terminated, and still in the loss; the step after it is not
    B1: ½ · 11 + 4 = 9.5  y = 0 + ½ (½ (2 · 4 + 0 + 1) + 4) = 4.25: bob's game is over, ann's goes on
    B2: ½ · 5 + 4 = 6.5   y = 1 + ½ (½ (e^(2 · 2 − 20) − 1) + 4) = 2.75: the best at B3 is illegal
    B3: ½ (e^(2 − 20) − 1) + 4 = 3.5   y = −2 + ½ (½ (2 · 4 + 2) + 4) = 2.5, or −2 where the time limit is terminal
    """
    algorithm = QMIX(QMIXConfig(), _spec(), networks={"agents": Shown, "mixer": HandMixer})
    errors = [6.5 - 9.5, 8 - 2, 9.5 - 4.25, 6.5 - 2.75, 3.5 - cut_off]
    loss = _loss(algorithm, _table(time_limit), 2.0)
    assert loss == pytest.approx(sum(error**2 for error in errors) / 5, rel=1e-5)


@pytest.mark.parametrize(("time_limit", "cut_off"), [("bootstrap", -2 + 0.5 * 4), ("terminal", -2.0)])
def test_vdn_loss_by_hand(time_limit: str, cut_off: float) -> None:
    """Q_tot = q₁ + q₂ of those that act; the target network's values are twice the online ones."""
    algorithm = VDN(VDNConfig(), _spec(), networks={"agents": Shown})
    errors = [2 - (1 + 0.5 * (6 + 8)), 7 - 2, 5 - 0.5 * 4, 2 - (1 + 0.5 * 2), 1 - cut_off]
    loss = _loss(algorithm, _table(time_limit), 2.0)
    assert loss == pytest.approx(sum(error**2 for error in errors) / 5, rel=1e-5)


@pytest.mark.parametrize(
    ("time_limit", "of_sums", "of_mixed"),
    [
        ("bootstrap", ((5 - 8.5) ** 2 + (6 - 5.5) ** 2) / 2, ((10.5 - 12) ** 2 + (13 - 9.75) ** 2) / 2),
        ("terminal", ((5 - 6) ** 2 + (6 - 1) ** 2) / 2, ((10.5 - 9.5) ** 2 + (13 - 1) ** 2) / 2),
    ],
)
def test_an_agent_cut_off_alone_is_over_where_the_time_limit_is_terminal(
    time_limit: TimeLimit, of_sums: float, of_mixed: float
) -> None:
    """Values of (ann, bob): (1 [2]) ([3] 0), rewards 1 and 2; ann is cut off at (5 4), bob goes on: ([6] 1), reward 1;
    bob is cut off at (8 9). Without the terminal limit, ann's 5 counts in the first target.

    VDN: 5 and 6; y = 3 + ½ (5 + 6) or 3 + ½ · 6, and 1 + ½ · 9 or 1.
    QMIX, s = 0: ½ · 13 + 4 and ½ · 18 + 4; y = 3 + ½ (½ (10 + 18) + 4) or 3 + ½ (½ · 18 + 4), and 1 + ½ · 17.5 or 1.
    """
    spec = _spec()
    rows = [[[1, 2], [3, 0]], [[5, 4], [6, 1]], [[0, 0], [8, 9]]]
    episode = JointEpisode(
        observations={"ann": np.array(rows, np.float32)},
        actions={"ann": np.array([[1, 0], [0, 0]])},
        rewards=np.array([[1.0, 2.0], [0.0, 1.0]]),
        terminated=np.zeros((2, 2), bool),
        truncated=np.array([[True, False], [False, True]]),
        alive=np.array([[True, True], [False, True], [False, False]]),
        state=np.zeros((3, 1), np.float32),
    )
    replay = JointReplay(JointEpisodes.from_episodes([episode], spec), time_limit=time_limit)
    batch = replay.gather_segments(torch.tensor([0]), 2, discount=0.5)
    own = {"agents": Shown, "mixer": HandMixer}
    assert _loss(VDN(VDNConfig(), spec, networks={"agents": Shown}), batch, 1.0) == pytest.approx(of_sums)
    assert _loss(QMIX(QMIXConfig(), spec, networks=own), batch, 1.0) == pytest.approx(of_mixed)
    assert _loss(QMIXCQL(QMIXCQLConfig(alpha=0.0), spec, networks=own), batch, 1.0) == pytest.approx(of_mixed)


@pytest.mark.parametrize("double_q", [True, False])
@pytest.mark.parametrize("time_limit", ["bootstrap", "terminal"])
def test_independent_q_loss_by_hand(time_limit: str, double_q: bool) -> None:
    """The target network's values are −1 times the online ones: it prefers what the online network likes least.

    ann and bob of A1, A2, B1, then ann alone of B2 and B3, where one action is legal.
    """
    algorithm = IndependentQ(IndependentQConfig(double_q=double_q), _spec(), networks={"agents": Shown})
    after_a1 = (-3, -4) if double_q else (0, -2)
    after_b1 = -2 if double_q else 0
    cut_off = -2 - 0.5 * 2 if time_limit == "bootstrap" else -2
    errors = [2 - (1 + 0.5 * after_a1[0]), 0 - 0.5 * after_a1[1], 3 - 0.5, 4 - 1.5]
    errors += [4 - (2 + 0.5 * after_b1), 1 - -2, 2 - (1 + 0.5 * -1), 1 - cut_off]
    loss = _loss(algorithm, _table(time_limit), -1.0)
    assert loss == pytest.approx(sum(error**2 for error in errors) / 8, rel=1e-5)


def test_qmix_cql_loss_by_hand() -> None:
    """The regulariser of (2): log Σ exp of both actions of who acts, less the chosen one's; at B3 one is legal."""
    config = QMIXCQLConfig(alpha=0.5)
    algorithm = QMIXCQL(config, _spec(), networks={"agents": Shown, "mixer": HandMixer})
    gaps = [_gap(1, 2), _gap(1, 0), _gap(0, 3), _gap(2, 4), _gap(0, 4), _gap(0, 1), _gap(0, 2), 0.0]
    plain = QMIX(QMIXConfig(), _spec(), networks={"agents": Shown, "mixer": HandMixer})
    batch = _table("bootstrap")
    expected = _loss(plain, batch, 2.0) + 0.5 * sum(gaps) / 8
    assert _loss(algorithm, batch, 2.0) == pytest.approx(expected, rel=1e-5)

    independent = QMIXCQL(replace(config, centralised=False), _spec(), networks={"agents": Shown})
    plain_q = IndependentQ(IndependentQConfig(), _spec(), networks={"agents": Shown})
    expected = _loss(plain_q, batch, 2.0) + 0.5 * sum(gaps) / 8
    assert _loss(independent, batch, 2.0) == pytest.approx(expected, rel=1e-5)


def _gap(other: float, chosen: float) -> float:
    return math.log(math.exp(other) + math.exp(chosen)) - chosen


def test_qmix_cql_regularises_the_teams_value_over_sampled_joint_actions() -> None:
    """The recorded joint action is in the sum, an agent that is absent counts as 0, and so does no illegal action."""
    config = QMIXCQLConfig(alpha=1.0, joint_actions=2)
    algorithm = QMIXCQL(config, _spec(), networks={"agents": Shown, "mixer": HandMixer})
    uniform = torch.zeros(2, 2, 3, 2, 2)  # argmax: the first action of both …
    uniform[1, ..., 1] = 1.0  # … and the second of both, where it is legal

    def total(q1: float, q2: float, state: float) -> float:
        mixed = 2 * q1 + 3 * q2 + state
        return 0.5 * (mixed if mixed > 0 else math.exp(mixed) - 1) + 4

    rows = [  # the recorded one, the first two, the second two
        (total(2, 0, 1), total(1, 0, 1), total(2, 1, 1)),
        (total(3, 4, -10), total(3, 2, -10), total(0, 4, -10)),
        (total(4, 1, 0), total(4, 1, 0), total(0, 0, 0)),
        (total(2, 0, 1), total(0, 0, 1), total(2, 0, 1)),
        (total(1, 0, -20), total(1, 0, -20), total(1, 0, -20)),  # ann's second is illegal there
    ]
    gap = sum(math.log(sum(map(math.exp, row))) - row[0] for row in rows) / 5
    batch = _table("bootstrap")
    loss, metrics = algorithm.team_objective(algorithm.learner.params, batch, uniform)
    assert metrics["conservative_gap"].item() == pytest.approx(gap, rel=1e-5)
    plain = QMIX(QMIXConfig(), _spec(), networks={"agents": Shown, "mixer": HandMixer})
    assert loss.item() == pytest.approx(_loss(plain, batch, 1.0) + gap, rel=1e-5)


def test_what_follows_an_episode_and_who_is_absent_leave_the_losses_alone() -> None:
    """Whatever stands there. `all([])` is True: a step at which nobody acts is not a terminated one."""
    batch = _table("bootstrap")
    other = replace(
        batch,
        observations={"ann": torch.where(batch.observations["ann"] == WILD, -77.0, batch.observations["ann"])},
        rewards=torch.where(batch.rewards == WILD, -77.0, batch.rewards),
        team_rewards=torch.where(batch.team_rewards == WILD, -77.0, batch.team_rewards),
        discounts=torch.where(batch.discounts == WILD, 0.0, batch.discounts),
        team_discounts=torch.where(batch.team_discounts == WILD, 0.0, batch.team_discounts),
        state=torch.where(batch.state == WILD, -77.0, batch.state),
    )
    for algorithm in (
        IndependentQ(IndependentQConfig(), _spec(), networks={"agents": Shown}),
        VDN(VDNConfig(), _spec(), networks={"agents": Shown}),
        QMIX(QMIXConfig(), _spec(), networks={"agents": Shown, "mixer": HandMixer}),
        QMIXCQL(QMIXCQLConfig(), _spec(), networks={"agents": Shown, "mixer": HandMixer}),
    ):
        assert _loss(algorithm, batch, 1.0) == _loss(algorithm, other, 1.0)


# --- centralised critics --------------------------------------------------------------------------------------------


def _transitions(action_space: spaces.Space[Any]) -> JointTransitions:
    """One step that ann survives and bob does not, one at which bob is absent already and ann is cut off."""
    discrete = isinstance(action_space, spaces.Discrete)
    return JointTransitions(
        observations={"ann": T([[[0.2, 0.0], [0.4, 1.0]], [[0.6, 3.0], [WILD, WILD]]])},
        actions={"ann": T([[1, 0], [0, 1]]) if discrete else T([[[0.5], [-1.0]], [[0.0], [0.25]]])},
        rewards=T([[1.0, 2.0], [3.0, WILD]]),
        discounts=T([[0.5, 0.0], [0.5, WILD]]),
        next_observations={"ann": T([[[-0.2, 0.1], [0.3, 0.9]], [[0.8, 0.5], [WILD, WILD]]])},
        alive=T([[True, True], [True, False]]),
        next_alive=T([[True, False], [True, False]]),
        team_rewards=T([3.0, 3.0]),
        team_discounts=T([0.5, 0.5]),
        timesteps=torch.tensor([3, 1]),
        next_action_mask={"ann": T([[[True, False], [True, True]], [[True, True], [True, True]]])}
        if discrete
        else None,
        state=T([[1.0], [2.0]]),
        next_state=T([[10.0], [20.0]]),
    )


class Linearly(nn.Module):
    """Q_i = factor · (s + Σ_j (j + 1) · (a_j · [1, 100, …])), the same for every agent."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(T(1.0))

    def forward(self, view: Tensor, actions: Tensor) -> Tensor:
        weights = T([1.0, 100.0])[: actions.shape[-1]]
        summed = (actions * weights).sum(-1) @ T([1.0, 2.0])
        return (self.factor * (view + summed)).expand(*view.shape[:-1], 2)


class Outputs(nn.Module):
    """Actors whose outputs are the first numbers that they see."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.factor = size, nn.Parameter(T(1.0))

    def forward(self, observations: dict[str, Tensor]) -> tuple[Tensor, None]:
        return self.factor * observations["ann"][..., : self.size], None


def test_maddpg_critic_loss_by_hand_with_discrete_actions() -> None:
    """Targets take the one-hot of the target actor's largest legal output, nothing for who is absent.

    Step 1: ann's 0.1 would be the largest but is illegal: (1, 0); bob has terminated: (0, 0). Q̄ = 10 + 1 = 11.
    Step 2: ann's 0.8: (1, 0); bob is absent. Q̄ = 20 + 1 = 21.
    Q of the data: 1 + 100 + 2 · 1 = 103; 2 + 1 = 3, bob's recorded action being nobody's.
    """
    spec = _spec(spaces.Discrete(2))
    algorithm = MADDPG(MADDPGConfig(), spec, networks={"actor": lambda: Outputs(2), "critic": Linearly})
    loss, _ = algorithm.critic_objective(algorithm.learner.params, _transitions(spaces.Discrete(2)))
    errors = [103 - (1 + 0.5 * 11), 103 - 2, 3 - (3 + 0.5 * 21)]
    assert loss.item() == pytest.approx(sum(error**2 for error in errors) / 3)


def test_matd3_critic_loss_by_hand_with_box_actions() -> None:
    """Two critics, of which the second is −1 times the first in the targets; smoothing noise is clipped at c.

    Step 1: ann tanh(−0.2) + 0.1; s + a = 10 + a, so the smaller is −(10 + a). Step 2: tanh(0.8) + 0.1 likewise.
    Q of the data: 1 + 0.5 − 2 = −0.5; 2 + 0 = 2. Actions in [−2, 2] are halved.
    """
    box = spaces.Box(-2, 2, (1,), np.float32)
    networks = {"actor": lambda: Outputs(1), "critic": Linearly, "twin": Linearly}
    batch = _transitions(box)
    batch = replace(batch, actions={"ann": 2 * batch.actions["ann"]})
    for algorithm in (
        MATD3(MATD3Config(policy_noise=0.2, noise_clip=0.1), _spec(box), networks=networks),
        MATD3BC(MATD3BCConfig(policy_noise=0.2, noise_clip=0.1), _spec(box), networks=networks),
    ):
        algorithm.learner.params.target["twin"]["factor"].fill_(-1.0)
        loss, _ = algorithm.critic_objective(algorithm.learner.params, batch, torch.full((2, 2, 1), 3.0))
        first, second = 10 + math.tanh(-0.2) + 0.1, 20 + math.tanh(0.8) + 0.1
        errors = [-0.5 - (1 - 0.5 * first), -0.5 - 2, 2 - (3 - 0.5 * second)]
        assert loss.item() == pytest.approx(2 * sum(error**2 for error in errors) / 3, rel=1e-5)


def test_smoothed_actions_stay_in_their_bounds() -> None:
    box = spaces.Box(-1, 1, (1,), np.float32)
    networks = {"actor": lambda: Outputs(1), "critic": Linearly, "twin": Linearly}
    algorithm = MATD3(MATD3Config(), _spec(box), networks=networks)
    batch = _transitions(box)
    far = replace(batch, next_observations={"ann": torch.full((2, 2, 2), 50.0)})
    loss, _ = algorithm.critic_objective(algorithm.learner.params, far, torch.full((2, 2, 1), 3.0))
    errors = [-0.5 - (1 + 0.5 * 11), -0.5 - 2, 2 - (3 + 0.5 * 21)]
    assert loss.item() == pytest.approx(2 * sum(error**2 for error in errors) / 3, rel=1e-5)


def test_an_absent_agent_is_zeros_in_the_joined_observations_and_the_actions() -> None:
    """Where there is no state; what it saw and did when it was still there, or will, is nothing to the others."""
    for space in (spaces.Discrete(2), spaces.Box(-2, 1, (1,), np.float32)):
        spec = _spec(space, state_space=None)
        batch = replace(_transitions(space), state=None, next_state=None)
        wild = replace(
            batch,
            observations={"ann": torch.where(batch.observations["ann"] == WILD, 5.0, batch.observations["ann"])},
            next_observations={"ann": batch.next_observations["ann"].clone()},
            actions={"ann": batch.actions["ann"].clone()},
            rewards=torch.where(batch.rewards == WILD, 5.0, batch.rewards),
            discounts=torch.where(batch.discounts == WILD, 0.5, batch.discounts),
        )
        wild.next_observations["ann"][:, 1] = 5.0
        wild.actions["ann"][1, 1] = 0
        algorithm = MADDPG(MADDPGConfig(), spec)
        for objective in (algorithm.critic_objective, algorithm.actor_objective):
            noise = (
                [torch.rand(2, 2, 2)] if algorithm.actions.discrete and objective != algorithm.critic_objective else []
            )
            one, _ = objective(algorithm.learner.params, batch, *noise)
            other, _ = objective(algorithm.learner.params, wild, *noise)
            assert one.item() == other.item()


def test_a_dead_agent_is_zeros_in_the_joined_observations_of_a_team() -> None:
    """What it saw last, in the row after its last step, is nothing to the mixer; that of one cut off is."""
    spec, batch = _spec(state_space=None), replace(_table("bootstrap"), state=None)
    for algorithm in (QMIX(QMIXConfig(), spec), QMIXCQL(QMIXCQLConfig(), spec)):
        losses = []
        for episode, row, agent in ((1, 1, 1), (1, 3, 0)):  # bob terminated, ann was cut off
            seen = batch.observations["ann"].clone()
            seen[episode, row, agent] += 5.0
            changed = replace(batch, observations={"ann": seen})
            losses.append([algorithm.objective(algorithm.learner.params, b)[0].item() for b in (batch, changed)])
        assert losses[0][0] == losses[0][1]
        assert losses[1][0] != losses[1][1]


def test_the_actor_climbs_its_own_critic_and_each_agent_its_own_action() -> None:
    """With Q_i = s + a_1 + 2 a_2 the slope of agent 1's output is 1 · tanh′, of agent 2's 2 · tanh′."""
    box = spaces.Box(-1, 1, (1,), np.float32)
    networks = {"actor": lambda: Outputs(1), "critic": Linearly}
    algorithm = MADDPG(MADDPGConfig(logit_penalty=0.0), _spec(box), networks=networks)
    loss, _ = algorithm.actor_objective(algorithm.learner.params, _transitions(box))
    (slope,) = torch.autograd.grad(loss, algorithm.learner.params.online["actor"]["factor"])
    expected = sum(weight * x * (1 - math.tanh(x) ** 2) for weight, x in ((1, 0.2), (2, 0.4), (1, 0.6))) / 3
    assert float(slope) == pytest.approx(-expected, rel=1e-5)


# --- cadences, schedules, rewards -----------------------------------------------------------------------------------


class Stored:
    """A replay of one batch, however large a batch is asked for."""

    reward_mean, team_reward_mean = -7.0, -9.0

    def __init__(self, batch: Any, reward_std: float = 1.0, team_reward_std: float = 1.0) -> None:
        self.batch, self.reward_std, self.team_reward_std = batch, reward_std, team_reward_std
        self.asked: dict[str, Any] = {}

    def sample_episodes(self, batch_size: int, generators: Any, *, discount: float) -> JointSegments:
        self.asked = {"batch_size": batch_size, "discount": discount}
        return self.batch  # type: ignore[no-any-return]  # of a stand-in

    sample = sample_episodes

    def require_equal_episodes(self, needed_by: str) -> None:
        self.asked["equal"] = needed_by


def test_rewards_are_divided_by_their_running_deviation_and_nothing_is_subtracted_unasked() -> None:
    """A mean that is subtracted changes which policy is best where episodes can terminate."""
    batch = _table("bootstrap")
    replay = Stored(batch, reward_std=4.0, team_reward_std=5.0)
    for team in (VDN(VDNConfig(), _spec()), QMIX(QMIXConfig(), _spec()), QMIXCQL(QMIXCQLConfig(), _spec())):
        torch.testing.assert_close(team.sample(replay, []).team_rewards, batch.team_rewards / 5)
    own = IndependentQ(IndependentQConfig(discount=0.9, batch_size=7), _spec()).sample(replay, [])
    assert replay.asked == {"batch_size": 7, "discount": 0.9}
    torch.testing.assert_close(own.rewards, batch.rewards / 4)
    shared = IndependentQ(IndependentQConfig(team_reward=True), _spec()).sample(replay, [])
    torch.testing.assert_close(shared.rewards, (batch.team_rewards / 5).unsqueeze(-1).expand(2, 3, 2))
    assert "equal" not in replay.asked
    centred = IndependentQ(IndependentQConfig(reward_centring=True), _spec()).sample(replay, [])
    assert replay.asked["equal"].startswith("independent_q: reward_centring")
    torch.testing.assert_close(centred.rewards, (batch.rewards + 7) / 4)
    both = IndependentQ(IndependentQConfig(reward_centring=True, team_reward=True), _spec()).sample(replay, [])
    torch.testing.assert_close(both.rewards, ((batch.team_rewards + 9) / 5).unsqueeze(-1).expand(2, 3, 2))
    for off in (
        VDN(VDNConfig(reward_scaling=False), _spec()),
        QMIX(QMIXConfig(reward_scaling=False), _spec()),
        QMIXCQL(QMIXCQLConfig(reward_scaling=False), _spec()),
        IndependentQ(IndependentQConfig(reward_scaling=False), _spec()),
    ):
        assert off.sample(replay, []) is batch or torch.equal(off.sample(replay, []).rewards, batch.rewards)

    steps = Stored(_transitions(spaces.Discrete(2)), reward_std=4.0)
    for actor_critic in (MADDPG(MADDPGConfig(), _spec()), MATD3(MATD3Config(), _spec())):
        torch.testing.assert_close(actor_critic.sample(steps, []).rewards, steps.batch.rewards / 4)


@pytest.mark.parametrize(("period", "tau", "moves"), [(3, 1.0, [3, 6]), (1, 0.5, [1, 2, 3, 4, 5, 6])])
def test_target_networks_move_after_so_many_updates(period: int, tau: float, moves: list[int]) -> None:
    """Updates, not episodes and not environment steps."""
    batch = _table("bootstrap")
    for algorithm in (
        IndependentQ(IndependentQConfig(target_period=period, tau=tau), _spec()),
        VDN(VDNConfig(target_period=period, tau=tau), _spec()),
        QMIX(QMIXConfig(target_period=period, tau=tau), _spec()),
        QMIXCQL(QMIXCQLConfig(target_period=period, tau=tau), _spec()),
    ):
        target, online = (part["agents"] for part in (algorithm.learner.params.target, algorithm.learner.params.frozen))
        moved = []
        for update in range(1, 7):
            before = {name: value.clone() for name, value in target.items()}
            algorithm.update(batch)
            if any(not torch.equal(before[name], target[name]) for name in target):
                moved.append(update)
                for name, value in target.items():
                    torch.testing.assert_close(value, before[name] + tau * (online[name] - before[name]))
        assert moved == moves


def test_updates_are_due_by_episodes_or_by_environment_steps() -> None:
    for config in (IndependentQConfig, VDNConfig, QMIXConfig):
        name = {IndependentQConfig: IndependentQ, VDNConfig: VDN, QMIXConfig: QMIX}[config]
        algorithm = name(config(warmup_episodes=10, episodes_per_update=2), _spec())  # type: ignore[operator]  # classes out of a table
        assert [algorithm.updates_due(episodes, 10**6) for episodes in (0, 10, 11, 12, 13, 14)] == [0, 0, 0, 1, 1, 2]
        often = name(config(warmup_episodes=10, episodes_per_update=0.25), _spec())  # type: ignore[operator]  # classes out of a table
        assert [often.updates_due(episodes, 0) for episodes in (10, 11, 12)] == [0, 4, 8]
    for actor_critic in (
        MADDPG(MADDPGConfig(warmup_steps=100, steps_per_update=25), _spec()),
        MATD3(MATD3Config(warmup_steps=100, steps_per_update=25), _spec()),
    ):
        assert [actor_critic.updates_due(10**6, steps) for steps in (0, 124, 125, 200)] == [0, 0, 1, 4]


# --- refusals -------------------------------------------------------------------------------------------------------

BOX = spaces.Box(-1, 1, (1,), np.float32)
ALGORITHMS: dict[str, tuple[Any, Any]] = {
    "independent_q": (IndependentQ, IndependentQConfig),
    "vdn": (VDN, VDNConfig),
    "qmix": (QMIX, QMIXConfig),
    "qmix_cql": (QMIXCQL, QMIXCQLConfig),
    "maddpg": (MADDPG, MADDPGConfig),
    "matd3": (MATD3, MATD3Config),
    "matd3_bc": (MATD3BC, MATD3BCConfig),
}


@pytest.mark.parametrize("name", sorted(ALGORITHMS.keys() - {"independent_q"}))
def test_games_of_turns_are_for_independent_learners(name: str) -> None:
    algorithm, config = ALGORITHMS[name]
    space = BOX if name == "matd3_bc" else spaces.Discrete(2)
    with pytest.raises(ValueError, match=f"^{name}: .* a turn-based game; independent_q learns"):
        algorithm(config(), _spec(space, turn_based=True))
    IndependentQ(IndependentQConfig(), _spec(spaces.Discrete(2), turn_based=True))


def test_rounds_of_turns_do_not_add_up_to_a_team_reward() -> None:
    """Step k of another agent begins before an agent's own turn k, or after it: the sum has what no turn k caused."""
    with pytest.raises(ValueError, match="^independent_q: expected team_reward=False in a turn-based game, got True"):
        IndependentQ(IndependentQConfig(team_reward=True), _spec(turn_based=True))
    IndependentQ(IndependentQConfig(team_reward=True), _spec())


@pytest.mark.parametrize("name", ["independent_q", "vdn", "qmix", "qmix_cql"])
def test_values_of_actions_are_for_discrete_ones(name: str) -> None:
    algorithm, config = ALGORITHMS[name]
    with pytest.raises(ValueError, match=rf"^{name}: expected discrete actions, got Box\(.* of ann; use maddpg"):
        algorithm(config(), _spec(BOX))


def test_matd3_bc_is_for_box_actions() -> None:
    with pytest.raises(ValueError, match=r"^matd3_bc: expected Box actions, got Discrete\(2\) of ann; use .* qmix_cql"):
        MATD3BC(MATD3BCConfig(), _spec())


@pytest.mark.parametrize("name", ["maddpg", "matd3"])
def test_mixed_and_unbounded_actions_are_refused(name: str) -> None:
    algorithm, config = ALGORITHMS[name]
    mixed = JointSpec(
        agents=AGENTS,
        observation_spaces=dict.fromkeys(AGENTS, _box(2)),
        action_spaces={"ann": BOX, "bob": spaces.Discrete(2)},
    )
    with pytest.raises(ValueError, match=rf"^{name}: expected agents that all .* of ann, Discrete\(2\) of bob"):
        algorithm(config(), mixed)
    with pytest.raises(ValueError, match=f"^{name}: ann: expected bounded actions"):
        algorithm(config(), _spec(_box(1)))


@pytest.mark.parametrize("name", ["independent_q", "vdn", "qmix", "qmix_cql"])
def test_recurrent_agents_train_one_seed_at_a_time(name: str) -> None:
    algorithm, config = ALGORITHMS[name]
    with pytest.raises(ValueError, match=rf"^{name}: recurrent agents train one seed at a time, got seeds \[3, 4\]"):
        algorithm(config(recurrent=True), _spec(), seeds=(3, 4))
    algorithm(config(recurrent=True), _spec(), seeds=(3,))


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("independent_q", "epsilon_steps", 0),
        ("independent_q", "epsilon_start", 1.5),
        ("vdn", "target_period", 0),
        ("vdn", "episodes_per_update", 0.0),
        ("qmix", "mixer_embedding", 0),
        ("qmix", "max_grad_norm", 0.0),
        ("qmix_cql", "alpha", -1.0),
        ("qmix_cql", "joint_actions", 0),
        ("maddpg", "temperature", 0.0),
        ("maddpg", "steps_per_update", -1.0),
        ("matd3", "policy_delay", 0),
        ("matd3_bc", "noise_clip", -0.1),
    ],
)
def test_bad_settings_are_named(name: str, field: str, value: float) -> None:
    _, config = ALGORITHMS[name]
    with pytest.raises(ValueError, match=f"{config.__name__}: expected {field}"):
        config(**{field: value})


def test_the_teams_regulariser_needs_the_mixture() -> None:
    with pytest.raises(ValueError, match="needs centralised=True"):
        QMIXCQLConfig(joint_actions=10, centralised=False)


def test_configs_name_their_algorithm_and_no_run_field() -> None:
    reserved = {"steps", "seeds", "dataset", "env", "device", "time_limit"}
    for name, (algorithm, config) in ALGORITHMS.items():
        assert config.algorithm == name
        assert not reserved & set(config.__dataclass_fields__)
        assert algorithm.needs.agents == "many"
        made = algorithm(config(), _spec(BOX if name == "matd3_bc" else None))
        assert set(algorithm.needs.acting) <= set(made.learner.networks)


def test_the_losses_and_the_mixer_are_there_to_be_imported() -> None:
    """Into a user's own training loop."""
    mixer, optimiser_steps = qmix.Mixer(3, 54), 2
    optimiser = torch.optim.Adam(mixer.parameters())
    for _ in range(optimiser_steps):
        loss = independent_q.td_loss(mixer(torch.randn(8, 3), torch.randn(8, 54)), torch.zeros(8), torch.ones(8))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    critic = JointCritic(_spec(), 2, (8,), sharing="all", agent_id=True)
    assert critic(torch.randn(5, 1), torch.randn(5, 1, 2, 2)).shape == (5, 2)
