"""Each online algorithm against a second implementation, written plainly from its paper.

One `nn.Sequential` per network, `torch.optim.Adam` without fusing, rows and actions in loops, distributions of
`torch.distributions`. Both start from the same weights and the same state of the noise generator and see the same
batches; every metric agrees after each update, and every parameter and target in the end.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, Normal, TanhTransform, TransformedDistribution

from herdbook.core.types import Spec, Transitions
from herdbook.online.ddpg import DDPG, DDPGConfig
from herdbook.online.discrete_sac import DiscreteSAC, DiscreteSACConfig
from herdbook.online.dqn import DQN, DQNConfig
from herdbook.online.sac import SAC, SACConfig
from herdbook.online.td3 import TD3, TD3Config

T = torch.tensor
BATCH, UPDATES, CHOICES, HIDDEN, TAU = 24, 7, 4, (16, 12), 0.2
BOX = spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 5.0], np.float32))
RATES: dict[str, Any] = {"actor_lr": 1e-2, "critic_lr": 3e-3}
Update = Callable[[Transitions], dict[str, Tensor]]


def spec(actions: spaces.Space[Any]) -> Spec:
    return Spec(spaces.Box(-np.inf, np.inf, (3,)), actions)


def batches(algorithm: Any) -> list[Transitions]:
    """Raw ones: rewards beyond Huber's corners, terminations, windows of one and of two steps, actions at bounds."""
    draws, made = np.random.default_rng(5), []
    for _ in range(UPDATES):
        numbers = draws.uniform(BOX.low, BOX.high, (BATCH, 2))
        numbers[:3], numbers[3:6] = BOX.low, BOX.high
        actions = draws.integers(1, 1 + CHOICES, BATCH) if algorithm.scaling.discrete else numbers.astype(np.float32)
        rewards, discounts = 2 * draws.normal(size=BATCH), draws.choice([0.0, 0.9, 0.81], BATCH)
        states, following = draws.normal(size=(2, BATCH, 3)).astype(np.float32)
        columns = (states, actions, rewards.astype(np.float32), discounts.astype(np.float32), following)
        batch = Transitions(*map(torch.from_numpy, columns))
        if algorithm.config.prioritised:
            batch = replace(batch, weights=torch.from_numpy(draws.uniform(0.1, 1, BATCH).astype(np.float32)))
        if algorithm.config.n_step == 3:
            between = torch.from_numpy(draws.normal(size=(BATCH, 2, 3)).astype(np.float32))
            batch = replace(batch, between=between, between_discounts=T([[0.9, 0.81], [0.9, 0.0]] * (BATCH // 2)))
        made.append(batch)
    return made


class Plain:
    """What a plain script has: networks with an algorithm's first weights, and its noise."""

    def __init__(self, algorithm: Any) -> None:
        self.learner = algorithm.learner
        self.noise = torch.Generator()
        self.noise.set_state(self.learner.generators[0].get_state())
        self.pairs: dict[str, tuple[Tensor, Tensor]] = {}  # our tensors, which follow the training, and the plain ones

    def net(self, name: str, copy: int | None = None, *, slow: bool = False, part: str = "mlp") -> nn.Sequential:
        """One perceptron of a network, or one copy of an ensemble's."""
        parameters = (self.learner.params.target if slow else self.learner.params.frozen)[name]
        own = [value for key, value in parameters.items() if key.startswith(f"{part}.")]
        if copy is not None:
            own = [x[copy, 0] if x.shape[1] == 1 else x[copy].mT for x in own]
        made = [module for w in own[::2] for module in (nn.Linear(w.shape[1], w.shape[0]), nn.ReLU())][:-1]
        net = nn.Sequential(*made)
        for number, (ours, plain) in enumerate(zip(own, net.parameters(), strict=True)):
            plain.data = ours.clone(memory_format=torch.contiguous_format)
            self.pairs[f"{name} {part} {copy} {slow} {number}"] = ours, plain
        return net

    def nets(self, *names: str) -> tuple[list[nn.Sequential], list[nn.Sequential]]:
        """Of each name a fast and a slow one; "critic 1" is a copy."""
        split = [(name, int(copy) if copy else None) for name, _, copy in (name.partition(" ") for name in names)]
        fast, slow = ([self.net(*which, slow=slow) for which in split] for slow in (False, True))
        return fast, slow

    def log_temperature(self) -> Tensor:
        ours = self.learner.params.frozen["temperature"]["value"]
        plain: Tensor = ours.clone().requires_grad_()
        self.pairs["log α"] = ours, plain
        return plain

    def normal(self) -> Tensor:
        return torch.randn(BATCH, 2, generator=self.noise)


def enlarge_actor(algorithm: Any) -> None:
    """So that its actions come near their bounds."""
    for networks in (algorithm.learner.params.frozen, algorithm.learner.params.target):
        for value in networks.get("actor", {}).values():
            value.mul_(2)


def train(algorithm: Any, plain: Plain, update: Update) -> None:
    """Both on the same batches; and they agree."""
    before = {name: ours.clone() for name, (ours, _) in plain.pairs.items()}
    for batch in batches(algorithm):
        metrics = algorithm.update(batch)
        for name, expected in update(batch).items():
            assert_close(metrics[name], expected, name)
    for name, (ours, expected) in plain.pairs.items():
        assert_close(ours, expected.detach(), name)
        assert not torch.equal(ours, before[name]) or (name == "log α" and not algorithm.config.tune_temperature)
    assert torch.equal(plain.noise.get_state(), algorithm.learner.generators[0].get_state())  # no more was drawn


def assert_close(ours: Tensor, plain: Tensor, name: str) -> None:
    """Within 1e-5 of the norm."""
    difference, size = float((ours - plain).norm()), float(plain.norm())
    assert difference <= max(1e-5 * size, 1e-6), f"{name}: differs by {difference} of {size}"


def adam(lr: float, *parts: nn.Module | Tensor) -> torch.optim.Adam:
    leaves = [p for part in parts for p in (part.parameters() if isinstance(part, nn.Module) else [part])]
    return torch.optim.Adam(leaves, lr=lr, foreach=False, fused=False)


def descend(optimiser: torch.optim.Optimizer, loss: Tensor) -> Tensor:
    optimiser.zero_grad()
    torch.autograd.backward(loss)
    optimiser.step()
    return loss.detach()


@torch.no_grad()
def follow(slow: list[nn.Sequential], fast: list[nn.Sequential], tau: float = TAU) -> None:
    for s, f in zip(nn.ModuleList(slow).parameters(), nn.ModuleList(fast).parameters(), strict=True):
        s.copy_(tau * f + (1 - tau) * s)


def unit(actions: Tensor) -> Tensor:
    """To [−1, 1]."""
    low, high = torch.from_numpy(BOX.low), torch.from_numpy(BOX.high)
    return 2 * (actions - low) / (high - low) - 1


def value(critic: nn.Module, states: Tensor, actions: Tensor) -> Tensor:
    q: Tensor = critic(torch.cat([states, actions], 1))
    return q[:, 0]


def squared_error(q: list[Tensor], y: Tensor) -> Tensor:
    """Summed over critics, averaged over the batch."""
    return torch.stack([(one - y) ** 2 for one in q]).sum() / len(y)


# --- DQN ------------------------------------------------------------------------------------------------------------


def action_values(plain: Plain, hidden: tuple[int, ...], *, dueling: bool, slow: bool) -> dict[str, nn.Sequential]:
    parts = ("mlp",) if not dueling else ("shared", "value", "advantage")[len(hidden) == 1 :]
    return {part: plain.net("critic", slow=slow, part=part) for part in parts}


def all_q(nets: dict[str, nn.Sequential], states: Tensor) -> Tensor:
    if "mlp" in nets:
        q: Tensor = nets["mlp"](states)
        return q
    features = nets["shared"](states).relu() if "shared" in nets else states
    value, advantages = nets["value"](features)[:, 0], nets["advantage"](features)
    average = sum(advantages[:, b] for b in range(CHOICES)) / CHOICES
    return torch.stack([value + advantages[:, b] - average for b in range(CHOICES)], 1)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"double_q": False},
        {"target_period": 3, "tau": 1.0},
        {"target_period": 3, "tau": 1.0, "double_q": False},
        {"target_period": 2},
        {"dueling": True},
        {"dueling": True, "hidden_sizes": (15, 13, 11)},
        {"dueling": True, "hidden_sizes": (12,), "double_q": False},
        {"prioritised": True, "importance_updates": 9},
        {"prioritised": True, "importance_updates": 9, "dueling": True, "max_grad_norm": 0.05},
        {"max_grad_norm": 0.05},
        {"max_grad_norm": None},
    ],
    ids=str,
)
def test_dqn(settings: dict[str, Any]) -> None:
    config = DQNConfig(**{"target_period": 1, "tau": TAU, "lr": 1e-2, "hidden_sizes": HIDDEN, **settings})
    algorithm = DQN(config, spec(spaces.Discrete(CHOICES, start=1)), seeds=(3,))
    plain, updates, norms = Plain(algorithm), itertools.count(1), []
    fast, slow = (action_values(plain, config.hidden_sizes, dueling=config.dueling, slow=s) for s in (False, True))
    optimiser = adam(1e-2, *fast.values())
    leaves = [leaf for net in fast.values() for leaf in net.parameters()]

    def update(batch: Transitions) -> dict[str, Tensor]:
        q, next_fast, next_slow = (
            all_q(fast, batch.observations),
            all_q(fast, batch.next_observations),
            all_q(slow, batch.next_observations),
        )
        losses, errors = [], []
        for row in range(BATCH):
            chosen = int((next_fast if config.double_q else next_slow)[row].argmax())
            y = batch.rewards[row] + batch.discounts[row] * next_slow[row, chosen].item()
            error = y - q[row, int(batch.actions[row]) - 1]
            weight = 1.0 if batch.weights is None else batch.weights[row]
            losses.append(weight * (error**2 / 2 if abs(error) < 1 else abs(error) - 0.5))
            errors.append(abs(error.detach()))
        loss = torch.stack(losses).sum() / BATCH
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        limit = math.inf if config.max_grad_norm is None else config.max_grad_norm
        norms.append(float(nn.utils.clip_grad_norm_(leaves, limit)))
        optimiser.step()
        if next(updates) % config.target_period == 0:
            follow(list(slow.values()), list(fast.values()), config.tau)
        metrics = {"loss/critic": loss.detach(), "q": q.detach().mean()}
        return metrics | ({"priorities": torch.stack(errors) + 1e-6} if config.prioritised else {})

    train(algorithm, plain, update)
    assert config.max_grad_norm is None or (min(norms) > config.max_grad_norm) == (config.max_grad_norm < 1)


# --- DDPG and TD3 ---------------------------------------------------------------------------------------------------


def test_ddpg() -> None:
    algorithm = DDPG(DDPGConfig(tau=TAU, hidden_sizes=HIDDEN, **RATES), spec(BOX), seeds=(3,))
    enlarge_actor(algorithm)
    plain = Plain(algorithm)
    fast, slow = plain.nets("actor", "critic 0")
    (actor, critic), (slow_actor, slow_critic) = fast, slow
    actor_optimiser, critic_optimiser = adam(1e-2, actor), adam(3e-3, critic)

    def update(batch: Transitions) -> dict[str, Tensor]:
        s, s2, q = batch.observations, batch.next_observations, value(critic, batch.observations, unit(batch.actions))
        y = batch.rewards + batch.discounts * value(slow_critic, s2, torch.tanh(slow_actor(s2))).detach()
        critic_loss = descend(critic_optimiser, squared_error([q], y))
        actor_loss = descend(actor_optimiser, -value(critic, s, torch.tanh(actor(s))).mean())
        follow(slow, fast)
        return {"loss/critic": critic_loss, "loss/actor": actor_loss, "q": q.detach().mean()}

    train(algorithm, plain, update)


@pytest.mark.parametrize("delay", [1, 2])
def test_td3(delay: int) -> None:
    """Noise and clip are of a size that both cut some off."""
    sigma, limit = 0.4, 0.5
    config = TD3Config(tau=TAU, hidden_sizes=HIDDEN, policy_delay=delay, policy_noise=sigma, noise_clip=limit, **RATES)
    algorithm = TD3(config, spec(BOX), seeds=(3,))
    enlarge_actor(algorithm)
    plain, updates = Plain(algorithm), itertools.count(1)
    fast, slow = plain.nets("actor", "critic 0", "critic 1")
    actor, *critics = fast
    actor_optimiser, critic_optimiser = adam(1e-2, actor), adam(3e-3, *critics)

    def update(batch: Transitions) -> dict[str, Tensor]:
        s, s2, a = batch.observations, batch.next_observations, unit(batch.actions)
        with torch.no_grad():
            noise = torch.clip(sigma * plain.normal(), -limit, limit)
            a2 = torch.tanh(slow[0](s2)) + noise
            assert bool((noise.abs() == limit).any()) and bool((a2.abs() > 1).any())
            a2 = torch.clip(a2, -1, 1)
            y = batch.rewards + batch.discounts * torch.min(value(slow[1], s2, a2), value(slow[2], s2, a2))
        q = [value(critic, s, a) for critic in critics]
        metrics = {"q": torch.cat(q).detach().mean(), "loss/critic": descend(critic_optimiser, squared_error(q, y))}
        if next(updates) % delay == 0:
            metrics["loss/actor"] = descend(actor_optimiser, -value(critics[0], s, torch.tanh(actor(s))).mean())
            follow(slow, fast)
        return metrics

    train(algorithm, plain, update)


# --- SAC ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "target_entropy"),
    [
        ({"initial_temperature": 0.5}, -2.0),  # −dim A
        ({"initial_temperature": 0.5, "target_entropy": 0.7, "n_step": 3}, 0.7),
        ({"initial_temperature": 0.2, "tune_temperature": False}, None),
    ],
    ids=str,
)
def test_sac(settings: dict[str, Any], target_entropy: float | None) -> None:
    config = SACConfig(tau=TAU, hidden_sizes=HIDDEN, temperature_lr=2e-2, **RATES, **settings)
    algorithm = SAC(config, spec(BOX), seeds=(3,))
    enlarge_actor(algorithm)
    plain = Plain(algorithm)
    actor, log_alpha = plain.net("actor"), plain.log_temperature()
    critics, slow_critics = plain.nets("critic 0", "critic 1")
    actor_optimiser, critic_optimiser = adam(1e-2, actor), adam(3e-3, *critics)
    temperature_optimiser = adam(2e-2, log_alpha)

    def act(states: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        mean, log_std = actor(states).split(2, 1)
        squash = TanhTransform(cache_size=1)  # remembers u, so that the density needs no atanh
        actions = squash(mean + torch.exp(log_std) * (plain.normal() if noise is None else noise))
        policy: Any = TransformedDistribution(Independent(Normal(mean, torch.exp(log_std)), 1), [squash])
        return actions, policy.log_prob(actions)

    def update(batch: Transitions) -> dict[str, Tensor]:
        s, s2, alpha = batch.observations, batch.next_observations, log_alpha.detach().exp()
        with torch.no_grad():
            r = batch.rewards
            if batch.between is not None and batch.between_discounts is not None:
                noise = torch.randn(BATCH, 2, 2, generator=plain.noise)
                for k in range(2):
                    log_prob = act(batch.between[:, k], noise[:, k])[1]
                    r = r - batch.between_discounts[:, k] * alpha * log_prob
            a2, log_prob2 = act(s2)
            next_q = torch.min(*(value(critic, s2, a2) for critic in slow_critics))
            y = r + batch.discounts * (next_q - alpha * log_prob2)
        q = [value(critic, s, unit(batch.actions)) for critic in critics]
        metrics = {"q": torch.cat(q).detach().mean(), "loss/critic": descend(critic_optimiser, squared_error(q, y))}
        pi, log_prob = act(s)
        metrics |= {"temperature": alpha, "entropy": -log_prob.detach().mean()}
        loss = descend(actor_optimiser, (alpha * log_prob - torch.min(*(value(c, s, pi) for c in critics))).mean())
        if target_entropy is not None:
            surplus = -log_prob.detach().mean() - target_entropy
            loss = loss + descend(temperature_optimiser, log_alpha * surplus)
        follow(slow_critics, critics)
        return metrics | {"loss/actor": loss}

    train(algorithm, plain, update)


@pytest.mark.parametrize(
    ("settings", "target_entropy"),
    [
        ({"initial_temperature": 0.5, "entropy_share": 0.98}, 0.98 * math.log(CHOICES)),
        ({"initial_temperature": 0.5, "n_step": 3}, 0.3 * math.log(CHOICES)),
        ({"initial_temperature": 0.2, "tune_temperature": False}, None),
    ],
    ids=str,
)
def test_discrete_sac(settings: dict[str, Any], target_entropy: float | None) -> None:
    config = DiscreteSACConfig(tau=TAU, hidden_sizes=HIDDEN, temperature_lr=2e-2, **RATES, **settings)
    algorithm = DiscreteSAC(config, spec(spaces.Discrete(CHOICES, start=1)), seeds=(3,))
    enlarge_actor(algorithm)
    plain = Plain(algorithm)
    actor, log_alpha = plain.net("actor"), plain.log_temperature()
    critics, slow_critics = plain.nets("critic 0", "critic 1")
    actor_optimiser, critic_optimiser = adam(1e-2, actor), adam(3e-3, *critics)
    temperature_optimiser = adam(2e-2, log_alpha)

    def soft_value(policy: Any, q: list[Tensor], alpha: Tensor) -> Tensor:
        """E_a [min Q − α log π(a)], action by action."""
        total = torch.zeros(BATCH)
        for b in range(CHOICES):
            log_prob = policy.log_prob(torch.tensor(b))
            total = total + log_prob.exp() * (torch.min(q[0][:, b], q[1][:, b]) - alpha * log_prob)
        return total

    def update(batch: Transitions) -> dict[str, Tensor]:
        s, s2, alpha = batch.observations, batch.next_observations, log_alpha.detach().exp()
        with torch.no_grad():
            next_policy, next_q = Categorical(logits=actor(s2)), [critic(s2) for critic in slow_critics]
            r = batch.rewards
            if batch.between is not None and batch.between_discounts is not None:
                for k in range(2):
                    spread = Categorical(logits=actor(batch.between[:, k])).entropy()
                    r = r + batch.between_discounts[:, k] * alpha * spread
            y = r + batch.discounts * soft_value(next_policy, next_q, alpha)
        q = [critic(s)[torch.arange(BATCH), batch.actions - 1] for critic in critics]
        metrics = {"q": torch.cat(q).detach().mean(), "loss/critic": descend(critic_optimiser, squared_error(q, y))}
        policy: Any = Categorical(logits=actor(s))
        entropy = policy.entropy().detach().mean()
        loss = descend(actor_optimiser, -soft_value(policy, [critic(s) for critic in critics], alpha).mean())
        if target_entropy is not None:
            loss = loss + descend(temperature_optimiser, log_alpha * (entropy - target_entropy))
        follow(slow_critics, critics)
        return metrics | {"loss/actor": loss, "entropy": entropy, "temperature": alpha}

    train(algorithm, plain, update)
