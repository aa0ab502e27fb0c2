"""Each offline algorithm against a second implementation, written plainly from its paper.

One network per critic, `nn.Sequential`, `torch.optim.Adam` without fusing, candidate actions in a loop, densities from
`torch.distributions`. Both start from the same weights and see the same batches and the same noise; after a few updates
every parameter and target agrees.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor, nn
from torch.distributions import Categorical, Normal
from torch.distributions.transforms import TanhTransform

from herdbook.core.types import Spec, Transitions
from herdbook.offline.bc import BC, BCConfig
from herdbook.offline.bcq import BCQ, BCQConfig
from herdbook.offline.cql import CQL, CQLConfig
from herdbook.offline.discrete_bcq import DiscreteBCQ, DiscreteBCQConfig
from herdbook.offline.discrete_cql import DiscreteCQL, DiscreteCQLConfig
from herdbook.offline.iql import IQL, IQLConfig
from herdbook.offline.td3_bc import TD3BC, TD3BCConfig

OBSERVATIONS, ACTIONS, BATCH, UPDATES = 3, 2, 32, 7
HIDDEN = (16, 12)
MEAN, STD = np.array([0.5, -1.0, 2.0], np.float32), np.array([2.0, 0.5, 1.0], np.float32)
LOW, HIGH = np.array([-2.0, 0.0], np.float32), np.array([2.0, 5.0], np.float32)


def _spec(discrete: bool) -> Spec:
    return Spec(
        spaces.Box(-np.inf, np.inf, (OBSERVATIONS,)),
        spaces.Discrete(4, start=1) if discrete else spaces.Box(LOW, HIGH),
        observation_mean=MEAN,
        observation_std=STD,
    )


def _batches(discrete: bool) -> list[Transitions]:
    generator = torch.Generator().manual_seed(7)
    low, high = torch.from_numpy(LOW), torch.from_numpy(HIGH)
    batches = []
    for _ in range(UPDATES):
        unit = torch.rand(BATCH, ACTIONS, generator=generator)
        unit[:5] = unit[:5].round()  # at the bounds
        batches.append(
            Transitions(
                observations=torch.randn(BATCH, OBSERVATIONS, generator=generator),
                actions=torch.randint(1, 5, (BATCH,), generator=generator) if discrete else low + (high - low) * unit,
                rewards=torch.randn(BATCH, generator=generator),
                discounts=0.99 * (torch.rand(BATCH, generator=generator) < 0.8).float(),
                next_observations=torch.randn(BATCH, OBSERVATIONS, generator=generator),
            )
        )
    return batches


class Plain:
    """What a plain script has: batches in the networks' units, and networks with the algorithm's initial weights."""

    def __init__(self, algorithm: Any, standardise: bool) -> None:
        self.parameters = {name: _clone(p) for name, p in algorithm.learner.params.frozen.items()}
        self.standardise = standardise

    def states(self, raw: Tensor) -> Tensor:
        return (raw - torch.from_numpy(MEAN)) / (torch.from_numpy(STD) + 1e-3) if self.standardise else raw

    def actions(self, raw: Tensor) -> Tensor:
        if raw.dtype == torch.int64:
            return raw - 1
        return 2 * (raw - torch.from_numpy(LOW)) / torch.from_numpy(HIGH - LOW) - 1

    def net(self, name: str, copy: int | None = None) -> nn.Sequential:
        return sequential(self.parameters[name], copy)


def _clone(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in parameters.items()}


def sequential(parameters: dict[str, Tensor], copy: int | None = None) -> nn.Sequential:
    """The perceptron with these weights, or one copy of an ensemble of them."""
    layers: list[nn.Module] = []
    for number in range(len([name for name in parameters if name.endswith("weight")])):
        weight, bias = (parameters[f"mlp.layers.{number}.{kind}"] for kind in ("weight", "bias"))
        if copy is not None:
            weight, bias = weight[copy].mT, bias[copy, 0]
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.weight.data, layer.bias.data = weight.clone(), bias.clone()
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def assert_agrees(parameters: dict[str, Tensor], nets: nn.Sequential | Sequence[nn.Sequential]) -> None:
    """Every tensor within 1e-5 of its norm."""
    for number in range(len([name for name in parameters if name.endswith("weight")])):
        for kind in ("weight", "bias"):
            ours = parameters[f"mlp.layers.{number}.{kind}"]
            if isinstance(nets, nn.Sequential):
                theirs = getattr(nets[2 * number], kind).detach()
            else:
                theirs = torch.stack([getattr(net[2 * number], kind).detach() for net in nets])
                theirs = theirs.mT if kind == "weight" else theirs.unsqueeze(1)
            close(ours, theirs, f"layer {number} {kind}")


def close(ours: Tensor, theirs: Tensor, name: str = "") -> None:
    difference, size = float((ours - theirs).norm()), float(theirs.norm())
    assert difference <= max(1e-5 * size, 1e-6), f"{name}: differs by {difference} of {size}"


def adam(lr: float, *modules: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam([p for m in modules for p in m.parameters()], lr=lr, foreach=False, fused=False)


def descend(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


def polyak(slow: nn.Module, fast: nn.Module, tau: float) -> None:
    for s, f in zip(slow.parameters(), fast.parameters(), strict=True):
        s.data = tau * f.data + (1 - tau) * s.data


def q_of(net: nn.Sequential, states: Tensor, actions: Tensor) -> Tensor:
    return net(torch.cat([states, actions], 1)).squeeze(1)


def train(algorithm: Any, plain: Callable[[Transitions, list[Tensor]], None], discrete: bool = False) -> None:
    """Update both on the same batches; the plain one is handed the noise that the algorithm drew, in order."""
    noise: list[Tensor] = []
    for name in ("normal", "uniform"):
        draw = getattr(algorithm.learner, name)
        setattr(algorithm.learner, name, lambda *shape, draw=draw: noise.append(draw(*shape)) or noise[-1])
    for batch in _batches(discrete):
        noise.clear()
        algorithm.update(batch)
        plain(batch, noise)


# --- BC -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("standardise", [True, False])
@pytest.mark.parametrize("discrete", [True, False])
def test_bc(discrete: bool, standardise: bool) -> None:
    config = BCConfig(lr=1e-2, hidden_sizes=HIDDEN, standardise_observations=standardise)
    algorithm = BC(config, _spec(discrete), seeds=(3,))
    plain = Plain(algorithm, standardise)
    actor = plain.net("actor")
    optimiser = adam(1e-2, actor)

    def update(batch: Transitions, noise: list[Tensor]) -> None:
        output, target = actor(plain.states(batch.observations)), plain.actions(batch.actions)
        descend(optimiser, F.cross_entropy(output, target) if discrete else F.mse_loss(output.tanh(), target))

    train(algorithm, update, discrete)
    assert_agrees(algorithm.learner.parameters_of("actor"), actor)


# --- TD3+BC ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay", [1, 2, 3])
def test_td3_bc(delay: int) -> None:
    config = TD3BCConfig(hidden_sizes=HIDDEN, policy_delay=delay, actor_lr=1e-2, critic_lr=3e-3, tau=0.1)
    algorithm = TD3BC(config, _spec(False), seeds=(3,))
    plain = Plain(algorithm, True)
    actor, slow_actor = plain.net("actor"), plain.net("actor")
    critics, slow_critics = ([plain.net("critic", i) for i in range(2)] for _ in range(2))
    actor_optimiser, critic_optimiser = adam(1e-2, actor), adam(3e-3, *critics)
    updates = itertools.count(1)

    def update(batch: Transitions, noise: list[Tensor]) -> None:
        s, s2, a = plain.states(batch.observations), plain.states(batch.next_observations), plain.actions(batch.actions)
        with torch.no_grad():
            a2 = (slow_actor(s2).tanh() + (0.2 * noise[0]).clamp(-0.5, 0.5)).clamp(-1, 1)
            y = batch.rewards + batch.discounts * torch.min(*(q_of(q, s2, a2) for q in slow_critics))
        descend(critic_optimiser, sum(F.mse_loss(q_of(q, s, a), y) for q in critics))
        if next(updates) % delay == 0:
            pi = actor(s).tanh()
            q = q_of(critics[0], s, pi)
            descend(actor_optimiser, -2.5 / q.abs().mean().item() * q.mean() + F.mse_loss(pi, a))
            for slow, fast in zip([slow_actor, *slow_critics], [actor, *critics], strict=True):
                polyak(slow, fast, 0.1)

    train(algorithm, update)
    assert_agrees(algorithm.learner.parameters_of("actor"), actor)
    assert_agrees(algorithm.learner.parameters_of("critic"), critics)
    assert_agrees(algorithm.learner.params.target["actor"], slow_actor)
    assert_agrees(algorithm.learner.params.target["critic"], slow_critics)


# --- IQL ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expectile", "beta", "decay", "drop"), [(0.7, 3.0, None, 0.0), (0.9, 10.0, 5, 0.0), (0.7, 0.5, 5, 0.1)]
)
def test_iql(expectile: float, beta: float, decay: int | None, drop: float) -> None:
    config = IQLConfig(
        hidden_sizes=HIDDEN,
        expectile=expectile,
        beta=beta,
        actor_lr=1e-2,
        critic_lr=3e-3,
        value_lr=5e-3,
        tau=0.1,
        actor_decay_updates=decay,
        dropout=drop,
    )
    algorithm = IQL(config, _spec(False), seeds=(3,))
    plain = Plain(algorithm, False)
    log_std = nn.Parameter(plain.parameters["actor"].pop("log_std"))
    actor, value = plain.net("actor"), plain.net("value")
    critics, slow_critics = ([plain.net("critic", i) for i in range(2)] for _ in range(2))
    actor_optimiser = torch.optim.Adam([*actor.parameters(), log_std], lr=1e-2, foreach=False)
    value_optimiser, critic_optimiser = adam(5e-3, value), adam(3e-3, *critics)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        actor_optimiser, lambda t: 1.0 if decay is None else 0.5 * (1 + math.cos(math.pi * min(t, decay) / decay))
    )

    def update(batch: Transitions, noise: list[Tensor]) -> None:
        s, s2, a = batch.observations, batch.next_observations, plain.actions(batch.actions)
        with torch.no_grad():
            y = batch.rewards + batch.discounts * value(s2).squeeze(1)
            slow_q = torch.min(*(q_of(q, s, a) for q in slow_critics))
            advantage = slow_q - value(s).squeeze(1)
        u = slow_q - value(s).squeeze(1)
        descend(value_optimiser, (abs(expectile - (u < 0).float()) * u**2).mean())
        descend(critic_optimiser, sum(F.mse_loss(q_of(q, s, a), y) for q in critics))
        hidden, unit = s, 0
        assert len(noise) == bool(drop)  # without dropout, nothing is drawn
        for layer in list(actor)[:-1]:
            hidden = layer(hidden)
            if drop and isinstance(layer, nn.ReLU):
                for k in range(hidden.shape[1]):  # noise in [−1, 1): a unit is dropped with probability drop
                    there = ((noise[0][:, unit] + 1) / 2 >= drop).float() / (1 - drop)
                    hidden = torch.cat([hidden[:, :k], (hidden[:, k] * there)[:, None], hidden[:, k + 1 :]], 1)
                    unit += 1
        log_prob = Normal(actor[-1](hidden).tanh(), log_std.exp()).log_prob(a).sum(1)
        descend(actor_optimiser, -(torch.clamp(torch.exp(beta * advantage), max=100.0) * log_prob).mean())
        schedule.step()
        for slow, fast in zip(slow_critics, critics, strict=True):
            polyak(slow, fast, 0.1)

    train(algorithm, update)
    assert_agrees(algorithm.learner.parameters_of("actor"), actor)
    close(algorithm.learner.parameters_of("actor")["log_std"], log_std.detach(), "log σ")
    assert_agrees(algorithm.learner.parameters_of("value"), value)
    assert_agrees(algorithm.learner.parameters_of("critic"), critics)
    assert_agrees(algorithm.learner.params.target["critic"], slow_critics)


# --- CQL ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deterministic_backup", [True, False])
@pytest.mark.parametrize("max_target_backup", [True, False])
@pytest.mark.parametrize("importance_sampling", [True, False])
@pytest.mark.parametrize("lagrange", [True, False])
def test_cql(lagrange: bool, importance_sampling: bool, max_target_backup: bool, deterministic_backup: bool) -> None:
    n, temperature, weight, threshold = 4, 1.5, 2.0, 3.0
    config = CQLConfig(
        alpha=weight,
        lagrange=lagrange,
        lagrange_threshold=threshold,
        lagrange_lr=2e-2,
        num_actions=n,
        temperature=temperature,
        importance_sampling=importance_sampling,
        max_target_backup=max_target_backup,
        deterministic_backup=deterministic_backup,
        initial_temperature=0.5,
        tau=0.1,
        actor_lr=1e-2,
        critic_lr=3e-3,
        hidden_sizes=HIDDEN,
    )
    algorithm = CQL(config, _spec(False), seeds=(3,))
    plain = Plain(algorithm, False)
    actor = plain.net("actor")
    critics, slow_critics = ([plain.net("critic", i) for i in range(2)] for _ in range(2))
    log_alpha = torch.tensor(math.log(0.5), requires_grad=True)
    log_multiplier = torch.tensor(0.0, requires_grad=True)
    actor_optimiser, critic_optimiser = adam(1e-2, actor), adam(3e-3, *critics)
    alpha_optimiser = torch.optim.Adam([log_alpha], lr=1e-2)
    multiplier_optimiser = torch.optim.Adam([log_multiplier], lr=2e-2)

    def act(states: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        output = actor(states)
        mean, log_std = output[:, :ACTIONS], output[:, ACTIONS:].clamp(-20, 2)
        u = mean + log_std.exp() * noise
        squash = TanhTransform()
        log_prob = Normal(mean, log_std.exp()).log_prob(u) - squash.log_abs_det_jacobian(u, squash(u))
        return squash(u), log_prob.sum(1)

    def update(batch: Transitions, noise: list[Tensor]) -> None:
        random_actions, now_noise, next_noise, actor_noise = noise
        s, s2, a = batch.observations, batch.next_observations, plain.actions(batch.actions)
        with torch.no_grad():
            random = [(random_actions[i], torch.full((BATCH,), math.log(0.5) * ACTIONS)) for i in range(n)]
            current = [act(s, now_noise[i]) for i in range(n)]
            following = [act(s2, next_noise[i]) for i in range(n)]  # at s′, scored at s
            if max_target_backup:
                best = [torch.stack([q_of(q, s2, b) for b, _ in following]).max(0).values for q in slow_critics]
                next_q = torch.min(best[0], best[1])
            else:
                a2, log_prob2 = act(s2, next_noise[n])
                next_q = torch.min(q_of(slow_critics[0], s2, a2), q_of(slow_critics[1], s2, a2))
                if not deterministic_backup:
                    next_q = next_q - log_alpha.exp() * log_prob2
            y = batch.rewards + batch.discounts * next_q

        bellman, gaps = torch.zeros(()), []
        for critic in critics:
            data_q = q_of(critic, s, a)
            bellman = bellman + F.mse_loss(data_q, y)
            if importance_sampling:
                masses = [(q_of(critic, s, b) / temperature).exp() / d.exp() for b, d in random + current + following]
            else:
                scores = [q_of(critic, s, b) for b, _ in random + current + following] + [data_q]
                masses = [(score / temperature).exp() for score in scores]
            total = sum(masses)
            gaps.append((temperature * total.log() - data_q).mean())
        if lagrange:
            multiplier = log_multiplier.exp().clamp(0, 1e6)
            excess = [weight * gap - threshold for gap in gaps]
            descend(multiplier_optimiser, -0.5 * sum(multiplier * e.detach() for e in excess))
            loss = bellman + sum(multiplier.detach() * e for e in excess)
        else:
            loss = bellman + weight * (gaps[0] + gaps[1])
        descend(critic_optimiser, loss)

        pi, log_prob = act(s, actor_noise)
        alpha = log_alpha.exp().detach()
        descend(actor_optimiser, (alpha * log_prob - torch.min(*(q_of(q, s, pi) for q in critics))).mean())
        descend(alpha_optimiser, -(log_alpha * (log_prob.detach() - ACTIONS)).mean())
        for slow, fast in zip(slow_critics, critics, strict=True):
            polyak(slow, fast, 0.1)

    train(algorithm, update)
    assert_agrees(algorithm.learner.parameters_of("actor"), actor)
    assert_agrees(algorithm.learner.parameters_of("critic"), critics)
    assert_agrees(algorithm.learner.params.target["critic"], slow_critics)
    close(algorithm.learner.parameters_of("temperature")["value"], log_alpha.detach(), "log α_T")
    close(algorithm.learner.parameters_of("multiplier")["value"], log_multiplier.detach(), "log α′")


# --- BCQ ------------------------------------------------------------------------------------------------------------


def test_bcq() -> None:
    n, latent, phi, mix = 5, 2 * ACTIONS, 0.3, 0.6
    config = BCQConfig(
        perturbation=phi,
        soft_minimum=mix,
        num_target_actions=n,
        tau=0.1,
        lr=1e-2,
        hidden_sizes=HIDDEN,
        vae_hidden_sizes=(14, 13),
    )
    algorithm = BCQ(config, _spec(False), seeds=(3,))
    plain = Plain(algorithm, False)
    encoder, decoder, actor, slow_actor = (
        plain.net(name) for name in ("encoder", "decoder", "perturbation", "perturbation")
    )
    critics, slow_critics = ([plain.net("critic", i) for i in range(2)] for _ in range(2))
    vae_optimiser, critic_optimiser = adam(1e-2, encoder, decoder), adam(1e-2, *critics)
    actor_optimiser = adam(1e-2, actor)

    def decode(states: Tensor, z: Tensor) -> Tensor:
        return decoder(torch.cat([states, z], 1)).tanh()

    def perturb(net: nn.Module, states: Tensor, actions: Tensor) -> Tensor:
        return (actions + phi * net(torch.cat([states, actions], 1)).tanh()).clamp(-1, 1)

    def update(batch: Transitions, noise: list[Tensor]) -> None:
        vae_noise, target_noise, actor_noise = noise
        s, s2, a = batch.observations, batch.next_observations, plain.actions(batch.actions)
        code = encoder(torch.cat([s, a], 1))
        mean, std = code[:, :latent], code[:, latent:].clamp(-4, 15).exp()
        kl = torch.distributions.kl_divergence(Normal(mean, std), Normal(0.0, 1.0)).mean()
        descend(vae_optimiser, F.mse_loss(decode(s, mean + std * vae_noise), a) + 0.5 * kl)
        with torch.no_grad():
            values = []
            for i in range(n):
                a2 = perturb(slow_actor, s2, decode(s2, target_noise[i].clamp(-0.5, 0.5)))
                q1, q2 = (q_of(q, s2, a2) for q in slow_critics)
                values.append(mix * torch.min(q1, q2) + (1 - mix) * torch.max(q1, q2))
            y = batch.rewards + batch.discounts * torch.stack(values).max(0).values
        descend(critic_optimiser, sum(F.mse_loss(q_of(q, s, a), y) for q in critics))
        with torch.no_grad():
            decoded = decode(s, actor_noise[0].clamp(-0.5, 0.5))
        descend(actor_optimiser, -q_of(critics[0], s, perturb(actor, s, decoded)).mean())
        for slow, fast in zip([slow_actor, *slow_critics], [actor, *critics], strict=True):
            polyak(slow, fast, 0.1)

    train(algorithm, update)
    for name, net in (("encoder", encoder), ("decoder", decoder), ("perturbation", actor)):
        assert_agrees(algorithm.learner.parameters_of(name), net)
    assert_agrees(algorithm.learner.params.target["perturbation"], slow_actor)
    assert_agrees(algorithm.learner.parameters_of("critic"), critics)
    assert_agrees(algorithm.learner.params.target["critic"], slow_critics)


# --- discrete -------------------------------------------------------------------------------------------------------


SOFT, HARD = {"tau": 0.1}, {"target_period": 3, "tau": 1.0, "adam_epsilon": 1e-2}
"""Targets that follow slowly, and the copies and the ε of Adam with which Atari games are learned."""


@pytest.mark.parametrize(("threshold", "targets_by"), [(0.0, SOFT), (0.3, SOFT), (0.9, SOFT), (0.3, HARD)])
def test_discrete_bcq(threshold: float, targets_by: dict[str, Any]) -> None:
    config = DiscreteBCQConfig(threshold=threshold, lr=1e-2, hidden_sizes=HIDDEN, **targets_by)
    algorithm = DiscreteBCQ(config, _spec(True), seeds=(3,))
    plain = Plain(algorithm, False)
    critic, slow, behaviour = plain.net("critic"), plain.net("critic"), plain.net("behaviour")
    optimiser = adam(1e-2, critic, behaviour)
    optimiser.param_groups[0]["eps"], updates = config.adam_epsilon, itertools.count(1)

    def update(batch: Transitions, noise: list[Tensor]) -> None:
        s, s2, a = batch.observations, batch.next_observations, plain.actions(batch.actions)
        targets = []
        with torch.no_grad():
            for row in range(BATCH):
                probs = Categorical(logits=behaviour(s2[row])).probs
                legal = [b for b in range(4) if probs[b] / probs.max() > threshold]
                next_q = critic(s2[row]).tolist()
                chosen = max(legal, key=next_q.__getitem__)
                targets.append(batch.rewards[row] + batch.discounts[row] * slow(s2[row])[chosen])
        logits = behaviour(s)
        q = critic(s).gather(1, a[:, None]).squeeze(1)
        loss = F.smooth_l1_loss(q, torch.stack(targets)) + F.cross_entropy(logits, a) + 1e-2 * logits.pow(2).mean()
        descend(optimiser, loss)
        if next(updates) % config.target_period == 0:
            polyak(slow, critic, config.tau)

    train(algorithm, update, discrete=True)
    assert_agrees(algorithm.learner.parameters_of("critic"), critic)
    assert_agrees(algorithm.learner.parameters_of("behaviour"), behaviour)
    assert_agrees(algorithm.learner.params.target["critic"], slow)


@pytest.mark.parametrize(("alpha", "targets_by"), [(0.0, SOFT), (1.0, SOFT), (4.0, SOFT), (1.0, HARD)])
def test_discrete_cql(alpha: float, targets_by: dict[str, Any]) -> None:
    config = DiscreteCQLConfig(alpha=alpha, lr=1e-2, hidden_sizes=HIDDEN, **targets_by)
    algorithm = DiscreteCQL(config, _spec(True), seeds=(3,))
    plain = Plain(algorithm, False)
    critic, slow = plain.net("critic"), plain.net("critic")
    optimiser = adam(1e-2, critic)
    optimiser.param_groups[0]["eps"], updates = config.adam_epsilon, itertools.count(1)

    def update(batch: Transitions, noise: list[Tensor]) -> None:
        s, s2, a = batch.observations, batch.next_observations, plain.actions(batch.actions)
        with torch.no_grad():
            next_q = slow(s2)[torch.arange(BATCH), critic(s2).argmax(1)]
            y = batch.rewards + batch.discounts * next_q
        q = critic(s)
        data_q = q[torch.arange(BATCH), a]
        conservative = (q.exp().sum(1).log() - data_q).mean()
        descend(optimiser, F.smooth_l1_loss(data_q, y) + alpha * conservative)
        if next(updates) % config.target_period == 0:
            polyak(slow, critic, config.tau)

    train(algorithm, update, discrete=True)
    assert_agrees(algorithm.learner.parameters_of("critic"), critic)
    assert_agrees(algorithm.learner.params.target["critic"], slow)
