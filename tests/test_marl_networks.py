"""Networks and policies of many agents: order, padding, masks, sharing, memory; and what every algorithm keeps."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor, nn

from herdbook.core.distributions import EpsilonGreedy
from herdbook.core.exploration import linear_schedule
from herdbook.core.joint.actions import JointActions, only_legal
from herdbook.core.joint.networks import AgentNetworks, JointCritic, StateEncoder, joint_view, rows_present
from herdbook.core.joint.types import JointSegments, JointSpec, JointTransitions
from herdbook.core.networks import GRU
from herdbook.core.recurrence import fast_recurrence, plain_recurrence
from herdbook.core.types import Step, tree_map
from herdbook.marl.independent_q import IndependentQ, IndependentQConfig
from herdbook.marl.maddpg import MADDPG, MADDPGConfig
from herdbook.marl.matd3 import MATD3, MATD3Config
from herdbook.marl.matd3_bc import MATD3BC, MATD3BCConfig
from herdbook.marl.qmix import QMIX, QMIXConfig
from herdbook.marl.qmix_cql import QMIXCQL, QMIXCQLConfig
from herdbook.marl.vdn import VDN, VDNConfig

IMAGE = spaces.Box(0, 255, (8, 8, 2), np.uint8)


def _box(size: int) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, (size,), np.float32)


def _spec(
    observations: Mapping[str, spaces.Space[Any]], actions: Mapping[str, spaces.Space[Any]], **changes: Any
) -> JointSpec:
    return JointSpec(
        agents=tuple(observations),
        observation_spaces=observations,
        action_spaces=actions,
        **{"masked": True, **changes},
    )


def _alike(count: int = 3, **changes: Any) -> JointSpec:
    """Agents of one kind: 3 numbers, 4 actions."""
    names = [f"agent_{number}" for number in range(count)]
    return _spec(dict.fromkeys(names, _box(3)), dict.fromkeys(names, spaces.Discrete(4)), **changes)


def _mixed(box: bool = False, **changes: Any) -> JointSpec:
    """Three kinds, the first with two agents that are not next to each other; agents in no kind's order."""
    seen: dict[str, spaces.Space[Any]] = {"ear": _box(4), "eye": _box(2), "ear_2": _box(4), "nose": spaces.Discrete(5)}
    chosen: dict[str, spaces.Space[Any]] = {
        "ear": spaces.Discrete(3),
        "eye": spaces.Discrete(4, start=1),
        "ear_2": spaces.Discrete(3),
        "nose": spaces.Discrete(2),
    }
    if box:
        chosen = {
            "ear": spaces.Box(-2, 2, (2,), np.float32),
            "eye": spaces.Box(0, 3, (3,), np.float32),
            "ear_2": spaces.Box(-2, 2, (2,), np.float32),
            "nose": spaces.Box(-1, 1, (1,), np.float32),
        }
    return _spec(seen, chosen, **changes)


def _draw(space: spaces.Space[Any], *lead: int) -> Tensor:
    if isinstance(space, spaces.Discrete):
        return torch.randint(int(space.start), int(space.start + space.n), lead)
    assert isinstance(space, spaces.Box)
    if space.dtype == np.uint8:
        return torch.randint(0, 256, (*lead, *space.shape), dtype=torch.uint8)
    if not space.is_bounded():
        return torch.randn(*lead, *space.shape)
    low, high = torch.from_numpy(space.low), torch.from_numpy(space.high)
    return low + (high - low) * torch.rand(*lead, *space.shape)


def _seen(spec: JointSpec, *lead: int) -> dict[str, Tensor]:
    return {kind.name: _draw(kind.observation_space, *lead, len(kind.agents)) for kind in spec.kinds}


def _done_by(spec: JointSpec, *lead: int) -> dict[str, Tensor]:
    return {kind.name: _draw(kind.action_space, *lead, len(kind.agents)) for kind in spec.kinds}


def _masks(spec: JointSpec, *lead: int) -> dict[str, Tensor] | None:
    """Random legal actions, at least one for everyone."""
    if not spec.discrete or not spec.masked:
        return None
    masks = {}
    for kind in spec.kinds:
        assert isinstance(kind.action_space, spaces.Discrete)
        masks[kind.name] = torch.rand(*lead, len(kind.agents), int(kind.action_space.n)) < 0.6
        masks[kind.name][..., 1] = True
    return masks


def _segments(spec: JointSpec, *lead: int, length: int = 6) -> JointSegments:
    """Random steps of agents that die or join at a random step, or are there from first to last."""
    agents, rows = len(spec.agents), (*lead, length + 1)
    steps = torch.arange(length + 1).unsqueeze(-1)
    joined, left = torch.randint(-2, 3, (*lead, 1, agents)), torch.randint(3, length + 4, (*lead, 1, agents))
    alive = (steps >= joined) & (steps < left)
    alive[..., -1, :] = False
    dies = alive[..., :-1, :] & ~alive[..., 1:, :] & (left <= length)
    before = alive[..., :-1, :]
    return JointSegments(
        observations=_seen(spec, *rows),
        actions=_done_by(spec, *lead, length),
        rewards=torch.randn(*lead, length, agents),
        discounts=0.9 * (~dies).float(),
        alive=before,
        next_alive=torch.where(before, ~dies, alive[..., 1:, :]),
        team_rewards=torch.randn(*lead, length),
        team_discounts=torch.full((*lead, length), 0.9),
        timesteps=torch.zeros(lead, dtype=torch.long),
        mask=torch.ones(*lead, length, dtype=torch.bool),
        action_mask=_masks(spec, *rows),
        state=None if spec.state_space is None else _draw(spec.state_space, *rows),
    )


def _transitions(spec: JointSpec, *lead: int) -> JointTransitions:
    """Steps 2 of such segments."""
    batch = _segments(spec, *lead)
    now, later = (lambda leaf: leaf[..., 2, :]), (lambda leaf: leaf[..., 3, :])
    seen, axis = _segments(spec, *lead).observations, len(lead)
    pick = lambda tree, row: tree_map(lambda leaf: leaf.select(axis, row), tree)  # noqa: E731  # of one line
    return JointTransitions(
        observations=pick(seen, 2),
        actions=pick(batch.actions, 2),
        rewards=now(batch.rewards),
        discounts=now(batch.discounts),
        next_observations=pick(seen, 3),
        alive=now(batch.alive),
        next_alive=now(batch.next_alive),
        team_rewards=batch.team_rewards[..., 2],
        team_discounts=batch.team_discounts[..., 2],
        timesteps=torch.full(lead, 2),
        action_mask=None if batch.action_mask is None else pick(batch.action_mask, 2),
        next_action_mask=None if batch.action_mask is None else pick(batch.action_mask, 3),
        state=None if batch.state is None else now(batch.state),
        next_state=None if batch.state is None else later(batch.state),
    )


def _step(spec: JointSpec, envs: int, **changes: Any) -> Step:
    first = torch.ones(envs, dtype=torch.bool)
    step = Step(
        observations=_seen(spec, envs),
        previous_actions=_done_by(spec, envs),
        previous_rewards=torch.zeros(envs, len(spec.agents)),
        first=first,
        reset=first,
        action_mask=_masks(spec, envs),
        alive=torch.ones(envs, len(spec.agents), dtype=torch.bool),
    )
    return replace(step, **changes)


# --- GRU ------------------------------------------------------------------------------------------------------------


def _torchs_own(gru: GRU, copy: int | None = None) -> nn.GRU:
    """nn.GRU with the same weights: its gates are in the order r, z, n, and it has a second bias of r and z."""
    size = gru.weight.shape[-2]
    theirs = nn.GRU(gru.gates.weight.shape[-1 if copy is None else -2], size)
    weight, bias = gru.gates.weight.detach(), gru.gates.bias.detach()
    recurrent, extra = gru.weight.detach(), gru.bias.detach()
    if copy is not None:
        weight, bias, recurrent, extra = weight[copy].T, bias[copy, 0], recurrent[copy], extra[copy, 0]
    theirs.weight_ih_l0.data = weight.roll(-size, 0)
    theirs.bias_ih_l0.data = bias.roll(-size, 0)
    theirs.weight_hh_l0.data = recurrent.T.clone()
    theirs.bias_hh_l0.data = torch.cat([torch.zeros(2 * size), extra])
    return theirs


def test_gru_is_torchs_own_over_the_sequence_and_step_by_step() -> None:
    gru, x, state = GRU(4, 5), torch.randn(7, 3, 4), torch.randn(3, 5)
    held = torch.zeros(7, 3, 1, dtype=torch.bool)
    expected, _ = _torchs_own(gru)(x, state.unsqueeze(0))
    torch.testing.assert_close(gru(x, state, held), expected)
    gru.requires_grad_(False)  # rows then overwrite each other's workings
    torch.testing.assert_close(gru(x, state, held), expected)
    for row in range(7):
        state = gru(x[row : row + 1], state, held[:1])[0]
        torch.testing.assert_close(state, expected[row])


def test_gru_has_torchs_gradient() -> None:
    gru, x, state = GRU(4, 5), torch.randn(7, 3, 4).requires_grad_(), torch.randn(3, 5).requires_grad_()
    theirs, weights = _torchs_own(gru), torch.randn(7, 3, 5)
    ours = torch.autograd.grad(
        (gru(x, state, torch.zeros(7, 3, 1, dtype=torch.bool)) * weights).sum(), [x, state, *gru.parameters()]
    )
    by_name = dict(zip([name for name, _ in gru.named_parameters()], ours[2:], strict=True))
    expected = torch.autograd.grad((theirs(x, state.unsqueeze(0))[0] * weights).sum(), [x, state, *theirs.parameters()])
    torch.testing.assert_close(ours[:2], expected[:2])
    of_input, of_state, of_bias, of_state_bias = expected[2:]
    torch.testing.assert_close(by_name["gates.weight"], of_input.roll(5, 0))
    torch.testing.assert_close(by_name["gates.bias"], of_bias.roll(5, 0))
    torch.testing.assert_close(by_name["weight"], of_state.T)
    torch.testing.assert_close(by_name["bias"], of_state_bias[10:])


def test_copies_of_a_gru_are_grus_of_their_own() -> None:
    gru, x, state = GRU(4, 5, copies=2), torch.randn(2, 7, 3, 4), torch.randn(2, 3, 5)
    states = gru(x, state, torch.zeros(2, 7, 3, 1, dtype=torch.bool))
    for copy in range(2):
        expected, _ = _torchs_own(gru, copy)(x[copy], state[copy].unsqueeze(0))
        torch.testing.assert_close(states[copy], expected)
    weights = torch.randn_like(states)
    (slope,) = torch.autograd.grad((states * weights).sum(), gru.weight)
    theirs = _torchs_own(gru, 1)
    loss = (theirs(x[1], state[1].unsqueeze(0))[0] * weights[1]).sum()
    (expected_slope,) = torch.autograd.grad(loss, theirs.weight_hh_l0)
    torch.testing.assert_close(slope[1], expected_slope.T)


def test_a_held_state_passes_unchanged_and_so_does_its_gradient() -> None:
    """As if the row were not there."""
    gru, x, state = GRU(4, 5), torch.randn(6, 1, 4).requires_grad_(), torch.randn(1, 5).requires_grad_()
    held = torch.tensor([True, False, True, True, False, False]).reshape(6, 1, 1)
    states, steps = gru(x, state, held), ~held.flatten()
    short = gru(x[steps], state, held[steps])
    torch.testing.assert_close(states[steps], short)
    assert torch.equal(states[0], state) and torch.equal(states[2], states[1]) and torch.equal(states[3], states[1])
    inputs = [x, state, *gru.parameters()]
    ours, expected = (torch.autograd.grad(out[-1].sum(), inputs) for out in (states, short))
    torch.testing.assert_close(ours, expected)
    assert not ours[0][held.flatten()].any()


@pytest.mark.parametrize("copies", [(), (2,)])
def test_the_backward_pass_by_hand_is_autograds(copies: tuple[int, ...]) -> None:
    """Slopes of all inputs where some states are held, and values where nothing is asked for."""
    rows, lanes, size = 6, 3, 4
    bias = (*copies, 1, size) if copies else (size,)
    shapes = ((*copies, rows, lanes, 3 * size), (*copies, lanes, size), (*copies, size, 3 * size), bias)
    given = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    held = torch.rand(*copies, rows, lanes, 1) < 0.3
    fast, plain = fast_recurrence(*given, held), plain_recurrence(*given, held)
    torch.testing.assert_close(fast, plain)
    slopes = (torch.autograd.grad(states.sin().sum(), given) for states in (fast, plain))
    for ours, theirs in zip(*slopes, strict=True):
        torch.testing.assert_close(ours, theirs)
    with torch.no_grad():  # rows then overwrite each other's workings
        torch.testing.assert_close(fast_recurrence(*given, held), plain)


def test_gru_starts_within_torchs_bound() -> None:
    for parameter in GRU(40, 16).parameters():
        assert 0.2 < float(parameter.detach().abs().max()) <= 0.25


# --- actions in one tensor ------------------------------------------------------------------------------------------


def test_actions_keep_the_agents_order_whatever_their_names_sort_to() -> None:
    """`gymnasium.spaces.Dict` sorts its keys: agent_10 before agent_2. Odd agents are a kind of their own."""
    names = [f"agent_{number}" for number in range(11)]
    counts = [5 if number % 2 else 12 for number in range(11)]
    spec = _spec(
        {name: _box(2 + number % 2) for number, name in enumerate(names)},
        {name: spaces.Discrete(count) for name, count in zip(names, counts, strict=True)},
    )
    actions = JointActions(spec)
    raw = {"agent_0": torch.tensor([0, 2, 4, 6, 8, 10]), "agent_1": torch.tensor([1, 3, 0, 2, 4])}
    assert actions.indices(raw).tolist() == [0, 1, 2, 3, 4, 0, 6, 2, 8, 4, 10]
    back = actions.raw(actions.indices(raw))
    assert {name: part.tolist() for name, part in back.items()} == {name: part.tolist() for name, part in raw.items()}


def test_discrete_actions_count_from_their_start_and_those_of_the_absent_are_0() -> None:
    actions = JointActions(_mixed())
    raw = {"ear": torch.tensor([[2, 0]]), "eye": torch.tensor([[4]]), "nose": torch.tensor([[1]])}
    assert actions.indices(raw).tolist() == [[2, 3, 0, 1]]
    assert actions.indices({**raw, "eye": torch.tensor([[0]])}).tolist() == [[2, 0, 0, 1]]  # no action of its space
    assert actions.raw(torch.tensor([[2, 3, 0, 1]]))["eye"].tolist() == [[4]]
    vectors = actions.vectors(raw, torch.tensor([[True, True, True, False]]))
    assert vectors.tolist() == [[[0, 0, 1, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]]]


def test_slots_beyond_an_agents_own_actions_are_illegal() -> None:
    actions = JointActions(_mixed())
    own = [[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]]
    legal = actions.legal(None)
    assert legal is not None and legal.int().tolist() == own
    mask = {
        "ear": torch.tensor([[[True, False, True], [True] * 3]]),
        "eye": torch.tensor([[[False, True, True, True]]]),
    }
    legal = actions.legal({**mask, "nose": torch.ones(1, 1, 2, dtype=torch.bool)})
    assert legal is not None and legal.int().tolist() == [[[1, 0, 1, 0], [0, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]]]
    assert JointActions(_alike()).legal(None) is None


def test_box_actions_are_scaled_padded_and_back() -> None:
    actions = JointActions(_mixed(box=True))
    raw = {
        "ear": torch.tensor([[[-2.0, 1.0], [0.0, 2.0]]]),
        "eye": torch.tensor([[[0.0, 1.5, 3.0]]]),
        "nose": torch.tensor([[[0.5]]]),
    }
    vectors = actions.vectors(raw, torch.tensor([[True, True, False, True]]))
    assert vectors.tolist() == [[[-1, 0.5, 0], [-1, 0, 1], [0, 0, 0], [0.5, 0, 0]]]
    back = actions.raw(actions.vectors(raw, torch.ones(1, 4, dtype=torch.bool)))
    for name, part in raw.items():
        torch.testing.assert_close(back[name], part)
    outputs = torch.full((1, 4, 3), 0.3)
    assert (actions.greedy(outputs) != 0).int().tolist() == [[[1, 1, 0], [1, 1, 1], [1, 1, 0], [1, 0, 0]]]


# --- networks of agents ---------------------------------------------------------------------------------------------


def _networks(spec: JointSpec, **changes: Any) -> AgentNetworks:
    settings: dict[str, Any] = {"sharing": "kind", "agent_id": False} | changes
    return AgentNetworks(spec, 4, (8, 6), **settings)


def _values(networks: AgentNetworks, observations: dict[str, Tensor]) -> Tensor:
    """Of a recurrent network, with nothing remembered and every row taken."""
    if networks.bodies[0].memory is None:
        outputs: Tensor = networks(observations)[0]
        return outputs
    lead, agents = next(iter(observations.values())).shape[:2], sum(leaf.shape[2] for leaf in observations.values())
    held = torch.zeros(*lead, agents, dtype=torch.bool)
    outputs = networks(observations, None, torch.zeros(lead[0], agents, 6), held)[0]
    return outputs


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("sharing", ["all", "kind"])
def test_permuting_agents_permutes_outputs_under_sharing(sharing: str, recurrent: bool) -> None:
    spec, order = _alike(4), torch.tensor([2, 0, 3, 1])
    networks = _networks(spec, sharing=sharing, recurrent=recurrent)
    seen = _seen(spec, 5, 6)
    permuted = {name: leaf[:, :, order] for name, leaf in seen.items()}
    torch.testing.assert_close(_values(networks, permuted), _values(networks, seen)[:, :, order])
    for told_apart in (_networks(spec, sharing=sharing, agent_id=True), _networks(spec, sharing="none")):
        assert not torch.allclose(_values(told_apart, permuted), _values(told_apart, seen)[:, :, order], atol=1e-3)


def test_permuting_agents_under_sharing_does_not_change_the_teams_value_of_vdn() -> None:
    spec, order = _alike(4, state_space=None), torch.tensor([2, 0, 3, 1])
    algorithm, batch = VDN(VDNConfig(agent_id=False), spec), _segments(spec, 8)
    permuted = replace(
        batch,
        observations={"agent_0": batch.observations["agent_0"][:, :, order]},
        actions={"agent_0": batch.actions["agent_0"][:, :, order]},
        action_mask={"agent_0": batch.action_mask["agent_0"][:, :, order]},  # type: ignore[index]  # there are masks
        alive=batch.alive[..., order],
        next_alive=batch.next_alive[..., order],
    )
    one, other = (algorithm.objective(algorithm.learner.params, b)[0].detach() for b in (batch, permuted))
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("recurrent", [False, True])
def test_agents_that_share_nothing_are_networks_of_their_own(recurrent: bool) -> None:
    """Each agent's outputs depend on its own copy of the parameters and on what it sees, and on nothing else."""
    spec = _mixed()
    networks, seen = _networks(spec, sharing="none", recurrent=recurrent), _seen(spec, 5, 6)
    before = _values(networks, seen)
    assert before.shape == (5, 6, 4, 4)
    with torch.no_grad():
        for parameter in networks.bodies[0].parameters():
            parameter[1] += 0.1  # the second ear
    changed = (_values(networks, seen) != before).flatten(0, 1).any(0).any(-1)
    assert changed.tolist() == [False, False, True, False]
    seen["eye"] = seen["eye"] + 1
    changed = (_values(networks, seen) != before).flatten(0, 1).any(0).any(-1)
    assert changed.tolist() == [False, True, True, False]


@pytest.mark.parametrize("sharing", ["all", "kind", "none"])
def test_outputs_are_in_the_agents_order(sharing: str) -> None:
    """Whoever sees something else gets something else, and nobody besides."""
    spec = _mixed()
    networks, seen = _networks(spec, sharing=sharing, agent_id=True), _seen(spec, 5)
    before = _values(networks, seen)
    for number, agent in enumerate(spec.agents):
        kind = next(kind for kind in spec.kinds if agent in kind.agents)
        changed = {name: leaf.clone() for name, leaf in seen.items()}
        row = changed[kind.name][:, kind.agents.index(agent)]
        row.copy_((row + 1) % 5 if kind.name == "nose" else row + 1)
        rows = (_values(networks, changed) != before).any(-1).any(0)
        assert rows.tolist() == [other == number for other in range(4)]


def test_sharing_across_kinds_fills_observations_up_with_zeros() -> None:
    spec = _mixed()
    networks, seen = _networks(spec, sharing="all"), _seen(spec, 6)
    (body,) = networks.bodies
    wide = torch.zeros(6, 4, 5)  # ear, ear_2, eye, nose
    wide[:, :2, :4], wide[:, 2, :2] = seen["ear"], seen["eye"][:, 0]
    wide[:, 3] = F.one_hot(seen["nose"][:, 0], 5).float()
    expected = body(wide)[0][:, [0, 2, 1, 3]]
    torch.testing.assert_close(_values(networks, seen), expected)
    sizes = {
        name: sum(p.numel() for p in _networks(spec, sharing=name).parameters()) for name in ("all", "kind", "none")
    }
    width = lambda inputs: inputs * 8 + 8 + 8 * 6 + 6 + 6 * 4 + 4  # noqa: E731  # parameters of one network
    assert sizes == {
        "all": width(5),
        "kind": width(4) + width(2) + width(5),
        "none": 2 * width(4) + width(2) + width(5),
    }


def test_a_second_input_is_each_agents_own() -> None:
    spec = _mixed()
    networks, seen, extra = _networks(spec, extra=3), _seen(spec, 5), torch.randn(5, 4, 3)
    before, _ = networks(seen, extra)
    extra[:, 1] += 1
    changed = (networks(seen, extra)[0] != before).any(-1).any(0)
    assert changed.tolist() == [False, True, False, False]


def test_images_that_cannot_be_filled_up_are_refused_with_what_to_set() -> None:
    spec = _spec({"eye": IMAGE, "ear": _box(3)}, dict.fromkeys(("eye", "ear"), spaces.Discrete(2)))
    with pytest.raises(ValueError, match=r"expected vectors to pad .* of eye, Box.* of ear; set sharing='kind'"):
        _networks(spec, sharing="all")
    with pytest.raises(
        ValueError, match=r"expected vectors for agents that share nothing.* of eye; set sharing='kind'"
    ):
        _networks(spec, sharing="none")
    assert _values(_networks(spec, sharing="kind"), _seen(spec, 5)).shape == (5, 2, 4)
    twins = _spec(dict.fromkeys("ab", IMAGE), {"a": spaces.Discrete(2), "b": spaces.Discrete(3)})
    assert _values(_networks(twins, sharing="all"), _seen(twins, 5, 2)).shape == (5, 2, 2, 4)  # one encoder for both


def test_the_state_is_the_tasks_own_or_the_joined_observations_in_agent_order() -> None:
    spec = _mixed()
    seen, present = _seen(spec, 5), torch.ones(5, 4, dtype=torch.bool)
    present[2, 1] = False
    encoder = StateEncoder(spec)
    features = encoder(joint_view(spec, None, seen, present))
    assert features.shape == (5, encoder.size) == (5, 4 + 2 + 4 + 5)
    eye = seen["eye"][:, 0] * present[:, 1:2]
    nose = F.one_hot(seen["nose"][:, 0], 5)
    assert torch.equal(features, torch.cat([seen["ear"][:, 0], eye, seen["ear"][:, 1], nose], -1))
    with_state = replace(spec, state_space=_box(7))
    state = torch.randn(5, 7)
    assert torch.equal(StateEncoder(with_state)(joint_view(with_state, state, seen, present)), state)


@pytest.mark.parametrize("sharing", ["all", "kind", "none"])
def test_a_critic_values_each_agents_row_as_if_it_were_the_only_one(sharing: Any) -> None:
    spec = _mixed(box=True, state_space=_box(7))
    critic = JointCritic(spec, 3, (8,), sharing=sharing, agent_id=True)
    state, actions = torch.randn(5, 7), torch.randn(5, 4, 4, 3)
    values = critic(state, actions)
    assert values.shape == (5, 4)
    for number in range(4):
        alone = critic(state, actions[:, number].unsqueeze(1))
        torch.testing.assert_close(values[:, number], alone[:, number])


# --- policies -------------------------------------------------------------------------------------------------------


def test_epsilon_greedy_explores_legal_actions_only() -> None:
    values = torch.tensor([[5.0, 1.0, 9.0], [5.0, 1.0, 9.0]])
    legal = torch.tensor([[True, True, False], [False, True, False]])
    torch.testing.assert_close(EpsilonGreedy(values, legal, 0.5).probs, torch.tensor([[0.75, 0.25, 0], [0, 1.0, 0]]))
    torch.testing.assert_close(EpsilonGreedy(values, legal, 1.0).probs, torch.tensor([[0.5, 0.5, 0], [0, 1.0, 0]]))
    assert EpsilonGreedy(values, legal, 0.0).probs.tolist() == [[1, 0, 0], [0, 1, 0]]
    torch.testing.assert_close(EpsilonGreedy(values[:1], None, 0.3).probs, torch.tensor([[0.1, 0.1, 0.8]]))
    padded = torch.tensor([[True, True, False], [True, True, True]])  # without an axis of environments
    assert EpsilonGreedy(values.expand(4, 2, 3), padded, 1.0).probs[:, 0, 2].tolist() == [0.0] * 4


@pytest.mark.parametrize(("step", "expected"), [(0, 1.0), (50, 0.6), (100, 0.2), (10**9, 0.2), (None, 0.2)])
def test_the_schedule_is_linear_in_environment_steps(step: int | None, expected: float) -> None:
    assert linear_schedule(1.0, 0.2, 100, step) == pytest.approx(expected)


DISCRETE = [
    (IndependentQ, IndependentQConfig),
    (VDN, VDNConfig),
    (QMIX, QMIXConfig),
    (QMIXCQL, QMIXCQLConfig),
    (MADDPG, MADDPGConfig),
    (MATD3, MATD3Config),
]
BOXES = [(MADDPG, MADDPGConfig), (MATD3, MATD3Config), (MATD3BC, MATD3BCConfig)]


def _act(algorithm: Any, seen: Step, /, **how: Any) -> dict[str, Tensor]:
    policy = algorithm.policy(**how)
    actions: dict[str, Tensor] = policy(seen, policy.initial(len(seen.first)), torch.Generator().manual_seed(0))[0]
    return actions


@pytest.mark.parametrize("sharing", ["all", "kind", "none"])
@pytest.mark.parametrize(("algorithm", "config"), DISCRETE)
def test_no_policy_ever_takes_an_illegal_or_padded_action(algorithm: Any, config: Any, sharing: str) -> None:
    """Greedy, exploring and random; and every legal one is explored."""
    spec = _mixed()
    made, step = algorithm(config(sharing=sharing), spec), _step(spec, 2000)
    for how in ({"deterministic": True}, {"deterministic": False, "step": 0}, {"deterministic": False, "step": 10**7}):
        actions = _act(made, step, **how)
        for kind in spec.kinds:
            chosen = actions[kind.name]
            assert chosen.shape == (2000, len(kind.agents)) and chosen.dtype == torch.int64
            assert all(kind.action_space.contains(int(action)) for action in chosen.unique())
            index = chosen - int(kind.action_space.start)  # type: ignore[attr-defined]  # it is Discrete
            assert bool(step.action_mask[kind.name].gather(-1, index.unsqueeze(-1)).all())  # type: ignore[index]  # there are masks
            if not how["deterministic"] and how["step"] == 0 and algorithm is not QMIXCQL:
                assert len(chosen.unique()) == kind.action_space.n  # type: ignore[attr-defined]  # it is Discrete


@pytest.mark.parametrize(("algorithm", "config"), DISCRETE[:3])
def test_exploration_follows_the_schedule(algorithm: Any, config: Any) -> None:
    """At ε = 0 it is greedy; the count of other actions at ε = ½ is binomial(6000, ½ · ¾)."""
    spec = _alike(masked=False)
    made = algorithm(config(epsilon_start=1.0, epsilon_end=0.0, epsilon_steps=1000), spec)
    step = _step(spec, 2000)
    best = _act(made, step)["agent_0"]
    assert torch.equal(_act(made, step, deterministic=False)["agent_0"], best)
    assert torch.equal(_act(made, step, deterministic=False, step=1000)["agent_0"], best)
    differ = (_act(made, step, deterministic=False, step=500)["agent_0"] != best).float().mean()
    assert abs(float(differ) - 0.375) < 5 * (0.375 * 0.625 / 6000) ** 0.5


@pytest.mark.parametrize(("algorithm", "config"), BOXES)
def test_box_policies_act_within_their_bounds(algorithm: Any, config: Any) -> None:
    spec = _mixed(box=True)
    noisy = {} if algorithm is MATD3BC else {"exploration_noise": 0.5}
    made, step = algorithm(config(**noisy), spec), _step(spec, 500)
    still, moved = _act(made, step), _act(made, step, deterministic=False)
    for kind in spec.kinds:
        assert isinstance(kind.action_space, spaces.Box)
        for actions in (still, moved):
            assert actions[kind.name].shape == (500, len(kind.agents), *kind.action_space.shape)
            assert all(kind.action_space.contains(action) for action in actions[kind.name].flatten(0, 1).numpy())
        half = torch.from_numpy(kind.action_space.high - kind.action_space.low) / 2
        spread = ((moved[kind.name] - still[kind.name]) / half).std()
        assert (0.3 < float(spread) <= 0.5) if noisy else float(spread) == 0  # σ, but for what is clipped


@pytest.mark.parametrize(("algorithm", "config"), [*DISCRETE, BOXES[-1]])
def test_distributions_of_policies_are_over_raw_actions(algorithm: Any, config: Any) -> None:
    spec = _mixed(box=algorithm is MATD3BC)
    made, step = algorithm(config(), spec), _step(spec, 6)
    for deterministic in (True, False):
        policy = made.policy(deterministic=deterministic, step=0)
        distribution, _ = policy.distribution(step, policy.initial(6))
        sample = distribution.sample(torch.Generator().manual_seed(0))
        acted = _act(made, step, deterministic=deterministic, step=0)
        for kind in spec.kinds:
            assert torch.equal(sample[kind.name], acted[kind.name])
        if algorithm is MATD3BC:
            with pytest.raises(TypeError, match="no density"):
                distribution.log_prob(sample)
        else:
            log_prob = distribution.log_prob(sample)
            assert log_prob.shape == (6, 4) and bool(log_prob.isfinite().all())


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("last_action", [False, True])
@pytest.mark.parametrize("sharing", ["all", "kind", "none"])
def test_a_policy_sees_step_by_step_what_the_update_sees_at_once(
    sharing: Any, last_action: bool, recurrent: bool
) -> None:
    """Agents join and die on the way; what a policy is shown of those that are absent is of no account."""
    spec = _mixed()
    config = IndependentQConfig(sharing=sharing, last_action=last_action, recurrent=recurrent)
    algorithm, batch = IndependentQ(config, spec), _segments(spec, 40)
    parameters, present = algorithm.learner.parameters_of("agents"), rows_present(batch)
    assert 0 < int((~batch.alive[:, 0]).sum()) < batch.alive[:, 0].numel()
    carry = algorithm.q.initial(40)
    with torch.no_grad():
        for episode in range(2):  # the second time from another carry, which is forgotten
            expected = algorithm.q.over(parameters, batch)
            for row in range(batch.alive.shape[1]):
                first = torch.full((40,), row == 0)
                step = _step(
                    spec,
                    40,
                    observations={
                        kind.name: torch.where(
                            _spread(present[:, row][:, [spec.index[agent] for agent in kind.agents]], leaf[:, row]),
                            leaf[:, row],
                            _draw(kind.observation_space, 40, len(kind.agents)),
                        )
                        for kind in spec.kinds
                        for leaf in [batch.observations[kind.name]]
                    },
                    previous_actions={name: leaf[:, row - 1] for name, leaf in batch.actions.items()},
                    first=first,
                    reset=first,
                    alive=batch.alive[:, row],
                )
                values, carry = algorithm.q.at(parameters, step, carry)
                there = batch.alive[:, row]
                torch.testing.assert_close(values[there], expected[:, row][there])
            batch = _segments(spec, 40)
            present = rows_present(batch)
            assert episode == 0 or last_action or recurrent or carry == {}


def _spread(mask: Tensor, leaf: Tensor) -> Tensor:
    return mask.reshape(mask.shape + (1,) * (leaf.dim() - mask.dim()))


def test_in_a_game_of_turns_a_memory_takes_its_agents_own_turns() -> None:
    """The policy is asked at everyone's turn; a recorded row of an agent is its next turn."""
    spec = _alike(2, turn_based=True)
    algorithm = IndependentQ(IndependentQConfig(last_action=True, recurrent=True), spec)
    parameters, batch = algorithm.learner.parameters_of("agents"), _segments(spec, 1, length=4)
    batch = replace(batch, alive=torch.ones_like(batch.alive), next_alive=torch.ones_like(batch.next_alive))
    with torch.no_grad():
        expected = algorithm.q.over(parameters, batch)[0]
        carry = algorithm.q.initial(1)
        for turn in range(8):
            row, agent = divmod(turn, 2)
            first = torch.tensor([turn == 0])
            before = batch.actions["agent_0"][:, row - 1] if row else torch.zeros(1, 2, dtype=torch.int64)
            step = _step(
                spec,
                1,
                observations={"agent_0": torch.randn(1, 2, 3)},
                previous_actions={"agent_0": before},
                first=first,
                reset=first,
                alive=torch.tensor([[agent == 0, agent == 1]]),
            )
            step.observations["agent_0"][:, agent] = batch.observations["agent_0"][:, row, agent]
            values, carry = algorithm.q.at(parameters, step, carry)
            torch.testing.assert_close(values[0, agent], expected[row, agent])


def test_the_row_after_a_cut_is_read_and_the_row_after_death_is_not() -> None:
    """An agent that is cut off takes its memory one row further, where its value is bootstrapped."""
    spec = _alike(2)
    algorithm, batch = IndependentQ(IndependentQConfig(recurrent=True), spec), _segments(spec, 1, length=3)
    alive = torch.ones(1, 3, 2, dtype=torch.bool)
    goes_on = alive.clone()
    goes_on[0, 2, 1] = False  # both stop after the last step: the first is cut off, the second dies
    batch = replace(batch, alive=alive, next_alive=goes_on)
    assert rows_present(batch)[0].tolist() == [[True, True]] * 3 + [[True, False]]
    parameters = algorithm.learner.parameters_of("agents")
    with torch.no_grad():
        q = algorithm.q.over(parameters, batch)[0]
    assert not torch.equal(q[3, 0], q[2, 0])
    torch.testing.assert_close(q[3, 1], q[2, 1])


# --- what every algorithm keeps -------------------------------------------------------------------------------------

SETTINGS: list[tuple[Any, Any, dict[str, Any], bool]] = [
    *(
        (algorithm, config, {"sharing": how}, False)
        for algorithm, config in DISCRETE
        for how in ("all", "kind", "none")
    ),
    *((algorithm, config, {"sharing": how}, True) for algorithm, config in BOXES for how in ("all", "kind", "none")),
    *((algorithm, config, {"horizon": 6}, False) for algorithm, config in (*DISCRETE, (MADDPG, MADDPGConfig))),
    *((algorithm, config, {"horizon": 6}, True) for algorithm, config in BOXES),
    (QMIX, QMIXConfig, {"last_action": True, "target_period": 2, "double_q": False}, False),
    (QMIXCQL, QMIXCQLConfig, {"joint_actions": 3}, False),
    (QMIXCQL, QMIXCQLConfig, {"centralised": False}, False),
    (MATD3BC, MATD3BCConfig, {"centralised": False, "horizon": 6}, True),
]
RECURRENT: list[tuple[Any, Any, dict[str, Any], bool]] = [
    (algorithm, config, {"recurrent": True, "last_action": True, "sharing": how}, False)
    for algorithm, config in DISCRETE[:4]
    for how in ("kind", "none")
]


def _batch(made: Any, spec: JointSpec, *lead: int) -> Any:
    return _segments(spec, *lead) if made.needs.actions == "discrete" else _transitions(spec, *lead)


def _weights(made: Any, index: int = 0) -> dict[str, Tensor]:
    state = made.state_dict()
    return {
        f"{part}/{name}/{key}": value[index].clone()
        for part in ("online", "target")
        for name, parameters in state[part].items()
        for key, value in parameters.items()
    }


def _assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    for name, value in ours.items():
        difference, size = float((value - theirs[name]).norm()), float(theirs[name].norm())
        assert difference <= (1e-5 * size or 1e-6), f"{name}: differs by {difference} of {size}"


@pytest.mark.usefixtures("no_environment")
@pytest.mark.parametrize("state", [True, False])
@pytest.mark.parametrize(("algorithm", "config", "changes", "box"), [*SETTINGS, *RECURRENT])
def test_metrics_are_finite_and_every_parameter_moves(
    algorithm: Any, config: Any, changes: dict[str, Any], box: bool, state: bool
) -> None:
    spec = _mixed(box, state_space=_box(7) if state else None)
    made = algorithm(config(**changes), spec)
    before = _weights(made)
    for _ in range(4):
        for name, value in made.update(_batch(made, spec, 32)).items():
            assert value.shape == () and bool(value.isfinite()) and not value.requires_grad, name
    moved = _weights(made)
    still = {name for name in moved if name.startswith("online") and torch.equal(moved[name], before[name])}
    assert not still


@pytest.mark.parametrize(("algorithm", "config", "changes", "box"), SETTINGS)
def test_batched_seeds_equal_solo_seeds(algorithm: Any, config: Any, changes: dict[str, Any], box: bool) -> None:
    spec = _mixed(box)
    together = algorithm(config(**changes), spec, seeds=(2, 0, 9))
    solo = [algorithm(config(**changes), spec, seeds=(seed,)) for seed in (2, 0, 9)]
    for _ in range(12):
        batch = _batch(together, spec, 3, 16)
        for name, value in together.update(batch).items():
            assert value.shape == (3,), name
        for index, one in enumerate(solo):
            one.update(tree_map(lambda leaf, i=index: leaf[i], batch))
    for index, one in enumerate(solo):
        _assert_close(_weights(together, index), _weights(one))
        step = _step(spec, 5)
        first, second = (made.policy(place) for made, place in ((together, index), (one, 0)))
        torch.testing.assert_close(first(step, first.initial(5))[0], second(step, second.initial(5))[0])


@pytest.mark.parametrize(("algorithm", "config", "changes", "box"), [*SETTINGS[::3], *SETTINGS[-4:], *RECURRENT[::2]])
def test_state_round_trips_and_the_same_seed_gives_the_same_bits(
    algorithm: Any, config: Any, changes: dict[str, Any], box: bool
) -> None:
    spec = _mixed(box)
    one, other = (algorithm(config(**changes), spec, seeds=(4,)) for _ in range(2))
    batches = [_batch(one, spec, 8) for _ in range(5)]
    for batch in batches[:3]:
        one.update(batch)
    other.update(batches[4])  # what was there is gone afterwards
    other.load_state_dict(one.state_dict())
    for batch in batches:
        ours, theirs = one.update(batch), other.update(batch)
        assert {name: value.item() for name, value in ours.items()} == {n: v.item() for n, v in theirs.items()}
    ours, theirs = _weights(one), _weights(other)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


COMPILED = [
    (QMIX, QMIXConfig, {"last_action": True}, False),
    (IndependentQ, IndependentQConfig, {"recurrent": True, "sharing": "none"}, False),
    (MADDPG, MADDPGConfig, {"sharing": "all", "horizon": 6}, False),
]


@pytest.mark.parametrize(("algorithm", "config", "changes", "box"), COMPILED)
def test_compiled_equals_eager(algorithm: Any, config: Any, changes: dict[str, Any], box: bool) -> None:
    spec = _mixed(box)
    compiled, eager = (algorithm(config(**changes), spec, compile=how) for how in ("aot_eager", False))
    for _ in range(6):
        batch = _batch(eager, spec, 16)
        compiled.update(batch)
        eager.update(batch)
    _assert_close(_weights(compiled), _weights(eager))


@pytest.mark.parametrize(
    ("algorithm", "config", "changes", "box"), [SETTINGS[0], SETTINGS[6], SETTINGS[12], SETTINGS[-1]]
)
def test_one_agent_is_a_team_of_one(algorithm: Any, config: Any, changes: dict[str, Any], box: bool) -> None:
    action: spaces.Space[Any] = spaces.Box(-1, 1, (2,), np.float32) if box else spaces.Discrete(3)
    spec = _spec({"only": _box(3)}, {"only": action}, masked=False)
    made = algorithm(config(**changes), spec)
    for _ in range(2):
        metrics = made.update(_batch(made, spec, 8))
    assert all(bool(value.isfinite()) for value in metrics.values())
    assert len(_act(made, _step(spec, 5))["only"]) == 5


@pytest.mark.parametrize("image_state", [True, False])
@pytest.mark.parametrize(("algorithm", "config"), [(QMIX, QMIXConfig), (MADDPG, MADDPGConfig)])
def test_images_train_and_act(algorithm: Any, config: Any, image_state: bool) -> None:
    names = ("left", "right")
    spec = _spec(
        dict.fromkeys(names, IMAGE),
        dict.fromkeys(names, spaces.Discrete(3)),
        state_space=IMAGE if image_state else None,
    )
    made = algorithm(config(), spec, seeds=(0, 1))
    before = _weights(made, 1)
    lead = (2, 4)
    batch = _segments(spec, *lead, length=3) if algorithm is QMIX else _image_transitions(spec, *lead)
    made.update(batch)
    after = _weights(made, 1)
    encoders = [name for name in after if "convolutions" in name and name.startswith("online")]
    assert encoders and all(not torch.equal(after[name], before[name]) for name in encoders)
    assert _act(made, _step(spec, 5))["left"].shape == (5, 2)


def _image_transitions(spec: JointSpec, *lead: int) -> JointTransitions:
    there = torch.ones(*lead, 2, dtype=torch.bool)
    return JointTransitions(
        observations=_seen(spec, *lead),
        actions=_done_by(spec, *lead),
        rewards=torch.randn(*lead, 2),
        discounts=torch.full((*lead, 2), 0.9),
        next_observations=_seen(spec, *lead),
        alive=there,
        next_alive=there,
        team_rewards=torch.randn(*lead),
        team_discounts=torch.full(lead, 0.9),
        timesteps=torch.randint(9, lead),
        state=None if spec.state_space is None else _draw(spec.state_space, *lead),
        next_state=None if spec.state_space is None else _draw(spec.state_space, *lead),
    )


def test_only_legal_leaves_values_alone_where_all_are_legal() -> None:
    values = torch.randn(3, 4)
    assert only_legal(values, None) is values
    assert only_legal(values, torch.tensor([True, False, True, True]))[:, 1].tolist() == [-np.inf] * 3


@pytest.mark.parametrize(("algorithm", "config"), [row for row in DISCRETE if row[0].needs.acting])
def test_policies_read_the_networks_that_workers_are_sent(algorithm: Any, config: Any) -> None:
    """Its actions change with the parameters of `needs.acting`, and with no others."""
    spec = _mixed(False)
    made, step = algorithm(config(), spec), _step(spec, 50)

    def play() -> Tensor:
        policy = made.policy()
        return torch.cat([leaf.flatten() for leaf in policy(step, policy.initial(50))[0].values()])

    before = play()
    for acting in (False, True):
        for name, parameters in made.learner.params.frozen.items():
            for value in parameters.values() if (name in made.needs.acting) is acting else ():
                value.normal_()
        assert torch.equal(play(), before) is not acting
