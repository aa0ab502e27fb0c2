"""Algorithms of many agents against a second implementation, written plainly from their papers.

One `nn.Module` per network (and per agent, where nothing is shared), loops over episodes, steps and agents,
`torch.optim.Adam` without fusing, `clip_grad_norm_`. Both start from the same weights and see the same batches and the
same noise; after a few updates every parameter and target agrees.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor, nn

from herdbook.core.joint.types import JointSegments, JointSpec, JointTransitions
from herdbook.marl.maddpg import MADDPG, MADDPGConfig
from herdbook.marl.matd3 import MATD3, MATD3Config
from herdbook.marl.matd3_bc import MATD3BC, MATD3BCConfig
from herdbook.marl.qmix import QMIX, QMIXConfig

UPDATES, GAMMA = 6, 0.9


def close(ours: Tensor, theirs: Tensor, name: str) -> None:
    difference, size = float((ours - theirs).norm()), float(theirs.norm())
    assert difference <= max(1e-5 * size, 1e-6), f"{name}: differs by {difference} of {size}"


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight.data, layer.bias.data = weight.clone(), bias.clone()
    return layer


def perceptron(parameters: dict[str, Tensor], prefix: str, agent: int | None = None) -> nn.Sequential:
    """The layers of some agents' network, or agent number `agent` of those that share nothing."""
    names = [name for name in parameters if name.startswith(prefix) and name.endswith("weight")]
    layers: list[nn.Module] = []
    for name in names:
        weight, bias = parameters[name], parameters[name.removesuffix("weight") + "bias"]
        layers += [linear(weight, bias) if agent is None else linear(weight[agent].T, bias[agent, 0]), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def assert_agrees(parameters: dict[str, Tensor], prefix: str, net: nn.Sequential, agent: int | None = None) -> None:
    for ours, theirs in zip(perceptron(parameters, prefix, agent), net, strict=True):
        if isinstance(theirs, nn.Linear):
            assert isinstance(ours, nn.Linear)
            close(ours.weight.detach(), theirs.weight.detach(), f"{prefix} weight")
            close(ours.bias.detach(), theirs.bias.detach(), f"{prefix} bias")


def descend(optimiser: torch.optim.Optimizer, loss: Tensor, max_norm: float | None = None) -> None:
    optimiser.zero_grad()
    loss.backward()
    if max_norm is not None:
        nn.utils.clip_grad_norm_([p for group in optimiser.param_groups for p in group["params"]], max_norm)
    optimiser.step()


def adam(lr: float, *modules: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam([p for m in modules for p in m.parameters()], lr=lr, foreach=False, fused=False)


def polyak(slow: Sequence[nn.Module], fast: Sequence[nn.Module], tau: float) -> None:
    for one, other in zip(slow, fast, strict=True):
        for s, f in zip(one.parameters(), other.parameters(), strict=True):
            s.data = tau * f.data + (1 - tau) * s.data


# --- QMIX -----------------------------------------------------------------------------------------------------------

TEAM, SIZE, CHOICES, STATE, ROWS = 3, 4, 5, 6, 5  # agents, observation, actions, state, T + 1


def _team() -> JointSpec:
    names = [f"agent_{number}" for number in range(TEAM)]
    return JointSpec(
        agents=tuple(names),
        observation_spaces=dict.fromkeys(names, spaces.Box(-np.inf, np.inf, (SIZE,), np.float32)),
        action_spaces=dict.fromkeys(names, spaces.Discrete(CHOICES)),
        state_space=spaces.Box(-np.inf, np.inf, (STATE,), np.float32),
        masked=True,
    )


def _episodes(count: int = 5) -> JointSegments:
    """Episodes of 2 to T steps in which agents die at random steps; half of the episodes are cut off."""
    steps = torch.arange(ROWS - 1).reshape(1, -1, 1)
    lengths = torch.randint(2, ROWS, (count, 1, 1))
    last = torch.minimum(torch.randint(0, 8, (count, 1, TEAM)), lengths - 1)
    last[:, :, 0] = lengths[:, :, 0] - 1  # one is there to the end
    alive = steps <= last
    dies = (steps == last) & ((last < lengths - 1) | (torch.arange(count) % 2 == 0).reshape(-1, 1, 1))
    mask = steps[..., 0] < lengths[..., 0]
    over = (steps[..., 0] == lengths[..., 0] - 1) & (torch.arange(count) % 2 == 0).unsqueeze(-1)
    legal = torch.rand(count, ROWS, TEAM, CHOICES) < 0.6
    legal[..., 2] = True
    legal[:, :-1] |= ~alive.unsqueeze(-1)
    scores = torch.rand(count, ROWS - 1, TEAM, CHOICES).masked_fill(~legal[:, :-1], -1)
    return JointSegments(
        observations={"agent_0": torch.randn(count, ROWS, TEAM, SIZE)},
        actions={"agent_0": scores.argmax(-1) * alive},
        rewards=torch.randn(count, ROWS - 1, TEAM),
        discounts=GAMMA * (~dies).float(),
        alive=alive,
        next_alive=alive & ~dies,
        team_rewards=torch.randn(count, ROWS - 1),
        team_discounts=GAMMA * (~over).float(),
        timesteps=torch.zeros(count, dtype=torch.long),
        mask=mask,
        action_mask={"agent_0": legal},
        state=torch.randn(count, ROWS, STATE),
    )


class PlainAgent(nn.Module):
    """fc–fc–fc, or fc–GRU–fc by its formulas; inputs are observation, last action and the agent's number."""

    def __init__(self, parameters: dict[str, Tensor], recurrent: bool) -> None:
        super().__init__()
        body = {name.removeprefix("bodies.0."): value.clone() for name, value in parameters.items()}
        self.first = linear(body["layers.0.weight"], body["layers.0.bias"])
        self.head = linear(body["head.weight"], body["head.bias"])
        self.recurrent = recurrent
        if recurrent:
            size = len(body["memory.bias"])
            for gate, w, b in zip(
                "nrz", body["memory.gates.weight"].split(size), body["memory.gates.bias"].split(size), strict=True
            ):
                setattr(self, f"w_{gate}", linear(w, b))
            for gate, u in zip("rzn", body["memory.weight"].split(size, 1), strict=True):
                setattr(self, f"u_{gate}", nn.Parameter(u.clone()))
            self.b_u = nn.Parameter(body["memory.bias"].clone())
        else:
            self.second = linear(body["layers.1.weight"], body["layers.1.bias"])

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        x = self.first(x).relu()
        if not self.recurrent:
            return self.head(self.second(x).relu()), h
        r = torch.sigmoid(self.w_r(x) + h @ self.u_r)  # type: ignore[operator]  # they are set by name
        z = torch.sigmoid(self.w_z(x) + h @ self.u_z)  # type: ignore[operator]  # they are set by name
        n = torch.tanh(self.w_n(x) + r * (h @ self.u_n + self.b_u))  # type: ignore[operator]  # they are set by name
        h = (1 - z) * n + z * h
        return self.head(h), h

    def parameters_by_our_names(self) -> dict[str, Tensor]:
        ours = {"layers.0": self.first, "head": self.head} | ({} if self.recurrent else {"layers.1": self.second})
        named = {f"{name}.{part}": getattr(layer, part) for name, layer in ours.items() for part in ("weight", "bias")}
        if self.recurrent:
            for part in ("weight", "bias"):
                gates = [getattr(getattr(self, f"w_{gate}"), part) for gate in "nrz"]
                named[f"memory.gates.{part}"] = torch.cat(gates)
            named["memory.weight"] = torch.cat([getattr(self, f"u_{gate}") for gate in "rzn"], 1)
            named["memory.bias"] = self.b_u
        return {f"bodies.0.{name}": value.detach() for name, value in named.items()}


class PlainMixer(nn.Module):
    """PyMARL's: a hypernetwork for each weight and bias."""

    def __init__(self, parameters: dict[str, Tensor], hidden: int, embedding: int) -> None:
        super().__init__()
        p = {name.removeprefix("mixer."): value.clone() for name, value in parameters.items()}
        sizes = [hidden, hidden, embedding, embedding]
        w1, w2, v, b1 = (
            linear(w, b) for w, b in zip(p["first.weight"].split(sizes), p["first.bias"].split(sizes), strict=True)
        )
        self.hyper_w1 = nn.Sequential(w1, nn.ReLU(), linear(p["weights.weight"], p["weights.bias"]))
        self.hyper_w2 = nn.Sequential(w2, nn.ReLU(), linear(p["last_weights.weight"], p["last_weights.bias"]))
        self.hyper_v = nn.Sequential(v, nn.ReLU(), linear(p["value.weight"], p["value.bias"]))
        self.hyper_b1, self.embedding = b1, embedding

    def forward(self, q: Tensor, state: Tensor) -> Tensor:
        w1 = self.hyper_w1(state).abs().view(len(q), self.embedding)
        hidden = F.elu(q @ w1 + self.hyper_b1(state))
        total: Tensor = hidden @ self.hyper_w2(state).abs() + self.hyper_v(state).squeeze()
        return total

    def parameters_by_our_names(self) -> dict[str, Tensor]:
        first = [self.hyper_w1[0], self.hyper_w2[0], self.hyper_v[0], self.hyper_b1]
        named = {f"first.{part}": torch.cat([getattr(layer, part) for layer in first]) for part in ("weight", "bias")}
        for name, net in (("weights", self.hyper_w1), ("last_weights", self.hyper_w2), ("value", self.hyper_v)):
            named |= {f"{name}.{part}": getattr(net[2], part) for part in ("weight", "bias")}
        return {f"mixer.{name}": value.detach() for name, value in named.items()}


def _all_values(net: PlainAgent, batch: JointSegments, last_action: bool, size: int) -> list[list[list[Tensor]]]:
    """[episode][row][agent]: values of all actions."""
    values = []
    for episode in range(len(batch.mask)):
        rows, memory = [], [torch.zeros(size) for _ in range(TEAM)]
        for row in range(ROWS):
            of_agents = []
            for agent in range(TEAM):
                parts = [batch.observations["agent_0"][episode, row, agent]]
                if last_action:
                    before = torch.zeros(CHOICES)
                    if row > 0 and batch.alive[episode, row - 1, agent]:
                        before[batch.actions["agent_0"][episode, row - 1, agent]] = 1
                    parts.append(before)
                parts.append(torch.eye(TEAM)[agent])
                q, memory[agent] = net(torch.cat(parts), memory[agent])
                of_agents.append(q)
            rows.append(of_agents)
        values.append(rows)
    return values


@pytest.mark.parametrize(
    ("recurrent", "last_action", "double_q", "max_norm"),
    [(False, False, True, 0.5), (True, True, True, 0.5), (False, True, False, None)],
)
def test_qmix(recurrent: bool, last_action: bool, double_q: bool, max_norm: float | None) -> None:
    config = QMIXConfig(
        lr=1e-2,
        hidden_sizes=(8, 7),
        mixer_embedding=4,
        mixer_hidden=6,
        recurrent=recurrent,
        last_action=last_action,
        double_q=double_q,
        target_period=2,
        max_grad_norm=max_norm,
    )
    algorithm = QMIX(config, _team(), seeds=(3,))
    agent = PlainAgent(algorithm.learner.parameters_of("agents"), recurrent)
    mixer = PlainMixer(algorithm.learner.parameters_of("mixer"), 6, 4)
    slow_agent, slow_mixer = copy.deepcopy(agent), copy.deepcopy(mixer)
    optimiser = adam(1e-2, agent, mixer)
    for update in range(1, UPDATES + 1):
        batch = _episodes()
        algorithm.update(batch)

        values = _all_values(agent, batch, last_action, 7)
        with torch.no_grad():
            slow_values = _all_values(slow_agent, batch, last_action, 7)
        errors = []
        for episode in range(len(batch.mask)):
            for step in range(int(batch.mask[episode].sum())):
                zero, q, next_q = torch.zeros(()), [], []
                for i in range(TEAM):
                    action = batch.actions["agent_0"][episode, step, i]
                    q.append(values[episode][step][i][action] if batch.alive[episode, step, i] else zero)
                    if batch.next_alive[episode, step, i]:
                        chooser = (values if double_q else slow_values)[episode][step + 1][i].tolist()
                        legal = batch.action_mask["agent_0"][episode, step + 1, i]  # type: ignore[index]  # there are masks
                        best = max((a for a in range(CHOICES) if legal[a]), key=chooser.__getitem__)
                        next_q.append(slow_values[episode][step + 1][i][best])
                    else:
                        next_q.append(zero)
                with torch.no_grad():
                    next_total = slow_mixer(torch.stack(next_q), batch.state[episode, step + 1])
                    y = batch.team_rewards[episode, step] + batch.team_discounts[episode, step] * next_total
                errors.append((mixer(torch.stack(q), batch.state[episode, step]) - y) ** 2)
        descend(optimiser, torch.stack(errors).mean(), max_norm)
        if update % 2 == 0:
            slow_agent.load_state_dict(agent.state_dict())
            slow_mixer.load_state_dict(mixer.state_dict())
    for name, theirs, part in (
        ("agents", agent, "online"),
        ("mixer", mixer, "online"),
        ("agents", slow_agent, "target"),
    ):
        ours = algorithm.learner.params.frozen[name] if part == "online" else algorithm.learner.params.target[name]
        expected = theirs.parameters_by_our_names()
        assert ours.keys() == expected.keys()
        for key, value in ours.items():
            close(value, expected[key], f"{part} {name} {key}")


# --- MADDPG, MATD3, MATD3+BC ----------------------------------------------------------------------------------------

DUO = ("hen", "fox", "hen_2")  # two kinds; the hens are not next to each other
WIDTHS = {"hen": 3, "fox": 2, "hen_2": 3}
ACTIONS = {"hen": 4, "fox": 2, "hen_2": 4}
WIDEST = 4
LOW, HIGH = -2.0, 3.0


def _duo(box: bool) -> JointSpec:
    action_spaces: dict[str, spaces.Space[Any]] = {
        name: spaces.Box(LOW, HIGH, (size,), np.float32) if box else spaces.Discrete(size)
        for name, size in ACTIONS.items()
    }
    seen = {name: spaces.Box(-np.inf, np.inf, (size,), np.float32) for name, size in WIDTHS.items()}
    return JointSpec(agents=DUO, observation_spaces=seen, action_spaces=action_spaces, masked=not box)


def _steps(box: bool, count: int = 6) -> JointTransitions:
    alive = torch.rand(count, 3) < 0.8
    alive[:, 0] = True
    dies = alive & (torch.rand(count, 3) < 0.3)

    def seen() -> dict[str, Tensor]:
        return {"hen": torch.randn(count, 2, 3), "fox": torch.randn(count, 1, 2)}

    def legal() -> dict[str, Tensor]:
        masks = {"hen": torch.rand(count, 2, 4) < 0.6, "fox": torch.rand(count, 1, 2) < 0.6}
        for mask in masks.values():
            mask[..., 1] = True
        return masks

    if box:
        unit = {"hen": torch.rand(count, 2, 4), "fox": torch.rand(count, 1, 2)}
        actions = {name: LOW + (HIGH - LOW) * part for name, part in unit.items()}
    else:
        actions = {"hen": torch.randint(0, 4, (count, 2)), "fox": torch.randint(0, 2, (count, 1))}
    return JointTransitions(
        observations=seen(),
        actions=actions,
        rewards=torch.randn(count, 3),
        discounts=GAMMA * (~dies).float(),
        next_observations=seen(),
        alive=alive,
        next_alive=alive & ~dies,
        team_rewards=torch.zeros(count),
        team_discounts=torch.zeros(count),
        timesteps=torch.randint(9, (count,)),
        action_mask=None if box else legal(),
        next_action_mask=None if box else legal(),
    )


def _part(tree: dict[str, Tensor], agent: str, row: int) -> Tensor:
    return tree["hen" if agent.startswith("hen") else "fox"][row, 1 if agent == "hen_2" else 0]


class Plain:
    """An actor and one or two critics for each agent, with targets."""

    def __init__(self, algorithm: Any, box: bool, critics: Sequence[str]) -> None:
        self.box, self.critics = box, critics
        self.nets = {
            name: [perceptron(algorithm.learner.parameters_of(name), *_place(agent)) for agent in DUO]
            for name in ("actor", *critics)
        }
        self.slow = copy.deepcopy(self.nets)

    def joint_state(self, tree: dict[str, Tensor], there: Tensor, row: int) -> Tensor:
        return torch.cat([_part(tree, agent, row) * there[row, i] for i, agent in enumerate(DUO)])

    def padded(self, action: Tensor) -> Tensor:
        return F.pad(action, (0, WIDEST - len(action)))

    def data_actions(self, batch: JointTransitions, row: int) -> list[Tensor]:
        """Of those that act: one-hot, or in [−1, 1]; zeros of the others."""
        actions = []
        for i, agent in enumerate(DUO):
            raw = _part(batch.actions, agent, row)
            action = 2 * (raw - LOW) / (HIGH - LOW) - 1 if self.box else torch.eye(ACTIONS[agent])[raw]
            actions.append(self.padded(action) * batch.alive[row, i])
        return actions

    def target_actions(self, batch: JointTransitions, row: int, noise: Tensor | None) -> list[Tensor]:
        actions = []
        for i, agent in enumerate(DUO):
            output = self.slow["actor"][i](_part(batch.next_observations, agent, row))[: ACTIONS[agent]]
            if self.box:
                action = output.tanh()
                if noise is not None:
                    action = (action + (0.2 * noise[row, i, : ACTIONS[agent]]).clamp(-0.5, 0.5)).clamp(-1, 1)
            else:
                legal = _part(batch.next_action_mask, agent, row)  # type: ignore[arg-type]  # there are masks
                best = max((a for a in range(ACTIONS[agent]) if legal[a]), key=output.tolist().__getitem__)
                action = torch.eye(ACTIONS[agent])[best]
            actions.append(self.padded(action) * batch.next_alive[row, i])
        return actions

    def critic_loss(self, batch: JointTransitions, noise: Tensor | None = None) -> Tensor:
        losses = []
        for row in range(len(batch.rewards)):
            with torch.no_grad():
                later = self.joint_state(batch.next_observations, batch.next_alive, row)
                x_next = torch.cat([later, *self.target_actions(batch, row, noise)])
            x = torch.cat([self.joint_state(batch.observations, batch.alive, row), *self.data_actions(batch, row)])
            for i in range(3):
                if batch.alive[row, i]:
                    next_q = min(self.slow[name][i](x_next).item() for name in self.critics)
                    y = batch.rewards[row, i] + batch.discounts[row, i] * next_q
                    losses.append(sum((self.nets[name][i](x).squeeze() - y) ** 2 for name in self.critics))
        return torch.stack(losses).mean()

    def own_values(
        self, batch: JointTransitions, act: Callable[[Tensor, int, str, int], Tensor]
    ) -> list[tuple[int, Tensor, Tensor, Tensor, Tensor]]:
        """(agent, Q_1 of its own new action, its outputs, its new action, the recorded one) of all that act."""
        found = []
        for row in range(len(batch.rewards)):
            state = self.joint_state(batch.observations, batch.alive, row)
            for i, agent in enumerate(DUO):
                if not batch.alive[row, i]:
                    continue
                output = self.nets["actor"][i](_part(batch.observations, agent, row))
                actions = self.data_actions(batch, row)
                recorded, actions[i] = actions[i], self.padded(act(output[: ACTIONS[agent]], row, agent, i))
                q = self.nets["critic"][i](torch.cat([state, *actions])).squeeze()
                found.append((i, q, output, actions[i], recorded))
        return found

    def move(self, tau: float) -> None:
        for name, nets in self.nets.items():
            polyak(self.slow[name], nets, tau)

    def assert_agrees(self, algorithm: Any) -> None:
        for name, nets in self.nets.items():
            for i, agent in enumerate(DUO):
                assert_agrees(algorithm.learner.parameters_of(name), *_at(agent, nets[i]))
                assert_agrees(algorithm.learner.params.target[name], *_at(agent, self.slow[name][i]))


def _place(agent: str) -> tuple[str, int]:
    """Where an agent's own network is: the kind's body, and the copy."""
    return ("bodies.0." if agent.startswith("hen") else "bodies.1."), (1 if agent == "hen_2" else 0)


def _at(agent: str, net: nn.Sequential) -> tuple[str, nn.Sequential, int]:
    prefix, copy_number = _place(agent)
    return prefix, net, copy_number


def _noise_of(algorithm: Any) -> list[Tensor]:
    """Every draw of the learner from here on."""
    drawn: list[Tensor] = []
    for name in ("normal", "uniform"):
        draw = getattr(algorithm.learner, name)
        setattr(algorithm.learner, name, lambda *shape, draw=draw: drawn.append(draw(*shape)) or drawn[-1])
    return drawn


def _modules(nets: dict[str, list[nn.Sequential]], *names: str) -> list[nn.Module]:
    return [net for name in names for net in nets[name]]


@pytest.mark.parametrize("box", [False, True])
def test_maddpg(box: bool) -> None:
    """Nothing is shared, as in the paper."""
    config = MADDPGConfig(
        sharing="none",
        hidden_sizes=(8, 7),
        actor_lr=1e-2,
        critic_lr=5e-3,
        tau=0.1,
        max_grad_norm=0.5,
        logit_penalty=0.05,
        temperature=0.7,
    )
    algorithm = MADDPG(config, _duo(box), seeds=(3,))
    plain, drawn = Plain(algorithm, box, ("critic",)), _noise_of(algorithm)
    critic_optimiser = adam(5e-3, *_modules(plain.nets, "critic"))
    actor_optimiser = adam(1e-2, *_modules(plain.nets, "actor"))
    for _ in range(UPDATES):
        batch = _steps(box)
        drawn.clear()
        algorithm.update(batch)

        def act(output: Tensor, row: int, agent: str, i: int, batch: JointTransitions = batch) -> Tensor:
            if box:
                return output.tanh()
            legal = _part(batch.action_mask, agent, row)  # type: ignore[arg-type]  # there are masks
            noise = -torch.log(-torch.log((drawn[0][row, i, : len(output)] + 1) / 2))
            logits = torch.where(legal, output, -torch.inf)
            soft = torch.softmax((logits + noise) / 0.7, 0)
            hard = torch.eye(len(output))[int(soft.detach().argmax())]
            return soft + (hard - soft).detach()

        descend(critic_optimiser, plain.critic_loss(batch), 0.5)
        found = plain.own_values(batch, act)
        objective = torch.stack([q - 0.05 * (output**2).mean() for _, q, output, _, _ in found])
        descend(actor_optimiser, -objective.mean(), 0.5)
        plain.move(0.1)
    plain.assert_agrees(algorithm)


@pytest.mark.parametrize("delay", [1, 2])
def test_matd3(delay: int) -> None:
    config = MATD3Config(
        sharing="none",
        hidden_sizes=(8, 7),
        policy_delay=delay,
        actor_lr=1e-2,
        critic_lr=5e-3,
        tau=0.1,
        max_grad_norm=None,
        logit_penalty=0.0,
    )
    algorithm = MATD3(config, _duo(True), seeds=(3,))
    plain, drawn = Plain(algorithm, True, ("critic", "twin")), _noise_of(algorithm)
    critic_optimiser = adam(5e-3, *_modules(plain.nets, "critic", "twin"))
    actor_optimiser = adam(1e-2, *_modules(plain.nets, "actor"))
    for update in range(1, UPDATES + 1):
        batch = _steps(True)
        drawn.clear()
        algorithm.update(batch)
        descend(critic_optimiser, plain.critic_loss(batch, drawn[0]))
        if update % delay == 0:
            found = plain.own_values(batch, lambda output, row, agent, i: output.tanh())
            descend(actor_optimiser, -torch.stack([q for _, q, *_ in found]).mean())
            plain.move(0.1)
    plain.assert_agrees(algorithm)


def test_matd3_bc() -> None:
    config = MATD3BCConfig(sharing="none", hidden_sizes=(8, 7), alpha=1.5, actor_lr=1e-2, critic_lr=5e-3, tau=0.1)
    algorithm = MATD3BC(config, _duo(True), seeds=(3,))
    plain, drawn = Plain(algorithm, True, ("critic", "twin")), _noise_of(algorithm)
    critic_optimiser = adam(5e-3, *_modules(plain.nets, "critic", "twin"))
    actor_optimiser = adam(1e-2, *_modules(plain.nets, "actor"))
    for update in range(1, UPDATES + 1):
        batch = _steps(True)
        drawn.clear()
        algorithm.update(batch)
        descend(critic_optimiser, plain.critic_loss(batch, drawn[0]))
        if update % 2 == 0:
            found = plain.own_values(batch, lambda output, row, agent, i: output.tanh())
            losses = []
            for i, agent in enumerate(DUO):
                own = [entry for entry in found if entry[0] == i]
                if own:
                    q = torch.stack([entry[1] for entry in own])
                    errors = [((new - recorded) ** 2).sum() / ACTIONS[agent] for *_, new, recorded in own]
                    losses.append(-1.5 / q.abs().mean().item() * q.mean() + torch.stack(errors).mean())
            descend(actor_optimiser, torch.stack(losses).sum() / 3)
            plain.move(0.1)
    plain.assert_agrees(algorithm)
