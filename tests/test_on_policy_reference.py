"""Each on-policy algorithm against a second implementation, written plainly from its paper.

One `nn.Sequential` per network, `torch.optim.Adam` without fusing, `torch.distributions`, advantages as sums that are
written out, units from all that was ever seen. TRPO's Fisher matrix is built from the network's Jacobian and solved
directly. Both start from the same weights and the same state of the generator that shuffles, and see the same rollouts;
after three updates every parameter agrees, and what the policy does.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.distributions import Categorical, Normal, kl_divergence

from herdbook.core.types import Segments, Spec, Step
from herdbook.online.a2c import A2C, A2CConfig
from herdbook.online.ppo import PPO, PPOConfig
from herdbook.online.reinforce import Reinforce, ReinforceConfig
from herdbook.online.trpo import TRPO, TRPOConfig

OBSERVATIONS, ACTIONS, LANES, STEPS, UPDATES, HIDDEN = 3, 2, 3, 14, 3, (8, 6)
LOW, HIGH = np.array([-2.0, 0.0], np.float32), np.array([2.0, 5.0], np.float32)
UNITS = {"normalise_observations": True, "scale_rewards": True}


def spec(discrete: bool) -> Spec:
    actions = spaces.Discrete(4, start=1) if discrete else spaces.Box(LOW, HIGH)
    return Spec(spaces.Box(-np.inf, np.inf, (OBSERVATIONS,)), actions)


def rollouts(discrete: bool, lanes: int = LANES) -> list[Segments]:
    """Random ones. Episodes end inside in all three ways, with observations of their own; in one lane, also with it."""
    draws, made = np.random.default_rng(8), []
    position = np.zeros(lanes, np.int64)
    for number in range(UPDATES):
        terminated, truncated = draws.random((2, lanes, STEPS)) < 0.15
        assert all(flags[:, :-1].any() for flags in (terminated & ~truncated, truncated & ~terminated)) or lanes == 1
        if lanes == 1:
            terminated[0, 4], truncated[0, 9] = True, True
            terminated[0, -1], truncated[0, -1] = number == 1, number != 1
        rows, final = draws.normal(1, 2, (2, lanes, STEPS + 1, OBSERVATIONS))
        following = np.where((terminated | truncated)[..., None], final[:, 1:], rows[:, 1:])
        numbers = draws.uniform(LOW, HIGH, (lanes, STEPS, ACTIONS))
        numbers[:, 1::4, 0], numbers[:, ::3, 1] = HIGH[0], LOW[1]
        actions = draws.integers(1, 5, (lanes, STEPS)) if discrete else numbers.astype(np.float32)
        rewards = draws.normal(1, 3, (lanes, STEPS)).astype(np.float32)
        seen, after = rows[:, :-1].astype(np.float32), following.astype(np.float32)
        timesteps = np.zeros((lanes, STEPS), np.int64)
        for t in range(STEPS):
            timesteps[:, t] = position
            position = np.where(terminated[:, t] | truncated[:, t], 0, position + 1)
        mask = np.ones((lanes, STEPS), np.bool_)
        columns = (seen, actions, rewards, mask, terminated, truncated, after)  # in the order of the fields
        made.append(Segments(*map(torch.from_numpy, columns), timesteps=torch.from_numpy(timesteps)))
    return made


def sequential(parameters: dict[str, Tensor]) -> nn.Sequential:
    """The perceptron with these weights."""
    layers: list[nn.Module] = []
    for number in range(len(HIDDEN) + 1):
        weight, bias = (parameters[f"mlp.layers.{number}.{kind}"] for kind in ("weight", "bias"))
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.weight.data, layer.bias.data = weight.clone(), bias.clone()
        layers += [layer, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


class Plain:
    """What a plain script has. `critic`: the name of the algorithm's value network."""

    def __init__(self, algorithm: Any, critic: str = "critic") -> None:
        self.algorithm, self.config, self.critic = algorithm, algorithm.config, critic
        draws = torch.Generator().manual_seed(1)
        for name in ("actor", critic):  # as initialised it would be nearly uniform
            for parameter in algorithm.learner.parameters_of(name).values():
                parameter += 0.3 * torch.randn(parameter.shape, generator=draws)
        first = algorithm.learner.parameters_of("actor")
        self.actor, self.value_net = sequential(first), sequential(algorithm.learner.parameters_of(critic))
        self.log_std = nn.Parameter(first["log_std"].clone()) if "log_std" in first else None
        self.shuffle = torch.Generator()
        self.shuffle.set_state(algorithm.learner.generators[0].get_state())
        self.seen: list[Tensor] = []
        self.sums: list[float] = []
        self.totals: list[float] = []

    @property
    def policy_parameters(self) -> list[nn.Parameter]:
        return [*self.actor.parameters(), *([] if self.log_std is None else [self.log_std])]

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [*self.policy_parameters, *self.value_net.parameters()]

    def states(self, raw: Tensor) -> Tensor:
        """By mean and deviation of all observations of the rollouts before."""
        if not self.config.normalise_observations or not self.seen:
            return raw
        rows = torch.cat(self.seen).double()
        return ((raw - rows.mean(0)) / (rows.std(0, correction=0) + 1e-3)).float()

    def rewards(self, rollout: Segments) -> Tensor:
        """By the deviation of all discounted sums so far, this rollout's included."""
        if not self.config.scale_rewards:
            return rollout.rewards
        self.totals = self.totals or [0.0] * len(rollout.rewards)
        for lane, rewards in enumerate(rollout.rewards.tolist()):
            for t, reward in enumerate(rewards):
                self.totals[lane] = self.config.discount * self.totals[lane] + reward
                self.sums.append(self.totals[lane])
                if rollout.terminated[lane, t] or rollout.truncated[lane, t]:
                    self.totals[lane] = 0.0
        return rollout.rewards / float(np.std(self.sums))

    def values(self, states: Tensor) -> Tensor:
        return self.value_net(states).squeeze(-1)

    def advantages(self, rollout: Segments, trace: float, baseline: bool = True) -> tuple[Tensor, Tensor]:
        """Â, Σ (γλ)^l δ_{t+l} as far as the episode goes, and Â + V: one step after the other, lane by lane."""
        gamma, rewards = self.config.discount, self.rewards(rollout)
        with torch.no_grad():
            v, v2 = (baseline * self.values(self.states(o)) for o in (rollout.observations, rollout.next_observations))
        deltas = rewards + gamma * v2 * (1 - rollout.terminated.float()) - v
        advantages = torch.zeros_like(rewards)
        for lane in range(len(rewards)):
            for t in range(STEPS):
                for k in range(t, STEPS):
                    advantages[lane, t] += (gamma * trace) ** (k - t) * deltas[lane, k]
                    if rollout.terminated[lane, k] or rollout.truncated[lane, k]:
                        break
        return advantages.flatten(), (advantages + v).flatten()

    def policy(self, states: Tensor) -> Any:
        output = self.actor(states)
        return Categorical(logits=output) if self.log_std is None else Normal(output, self.log_std.exp())

    def log_prob(self, states: Tensor, actions: Tensor) -> Tensor:
        """Of raw actions. One at a bound of the Box has the mass of all that would have been clipped to it."""
        policy: Any = self.policy(states)
        if self.log_std is None:
            return policy.log_prob(actions - 1)
        unit = 2 * (actions - torch.from_numpy(LOW)) / torch.from_numpy(HIGH - LOW) - 1
        below, above = policy.cdf(-torch.ones(1)), Normal(-policy.mean, policy.stddev).cdf(-torch.ones(1))
        scores = torch.where(unit == -1, below.log(), torch.where(unit == 1, above.log(), policy.log_prob(unit)))
        return scores.sum(-1)

    def per_state(self, amounts: Tensor) -> Tensor:
        return amounts if self.log_std is None else amounts.sum(-1)

    def entropy(self, states: Tensor) -> Tensor:
        return self.per_state(self.policy(states).entropy()).mean()

    def parts(self, size: int, epochs: int, count: int) -> Iterator[Tensor]:
        """Which steps make a minibatch."""
        for _ in range(epochs):
            yield from torch.randperm(count, generator=self.shuffle).split(size)

    def train(
        self, update: Callable[[Segments], dict[str, Tensor]], lanes: int = LANES, tolerance: float = 1e-5
    ) -> list[dict[str, Tensor]]:
        """Update both on the same rollouts. The plain one gives metrics, which must be the algorithm's too."""
        metrics = []
        for rollout in rollouts(self.log_std is None, lanes):
            metrics.append(self.algorithm.update(rollout))
            for name, value in update(rollout).items():
                torch.testing.assert_close(metrics[-1][name], value.detach(), rtol=1e-4, atol=1e-5)
            self.seen.append(rollout.observations.flatten(0, 1))
        self.assert_agrees(tolerance)
        return metrics

    def assert_agrees(self, tolerance: float) -> None:
        """Every tensor within this share of its norm."""
        for name, net in (("actor", self.actor), (self.critic, self.value_net)):
            ours = self.algorithm.learner.parameters_of(name)
            for key, theirs in net.named_parameters():
                number, kind = key.split(".")
                close(ours[f"mlp.layers.{int(number) // 2}.{kind}"], theirs.detach(), tolerance, f"{name} {key}")
        if self.log_std is not None:
            close(self.algorithm.learner.parameters_of("actor")["log_std"], self.log_std.detach(), tolerance, "log σ")
        raw = torch.randn(20, OBSERVATIONS)
        flags = torch.zeros(20, dtype=torch.bool)
        chosen, _ = self.algorithm.policy()(Step(raw, flags, torch.zeros(20), flags, flags), None)
        with torch.no_grad():
            policy = self.policy(self.states(raw))
        if self.log_std is None:
            assert torch.equal(chosen, policy.logits.argmax(-1) + 1)
        else:
            expected = torch.from_numpy(LOW) + torch.from_numpy(HIGH - LOW) * (1 + policy.mean.clip(-1, 1)) / 2
            torch.testing.assert_close(chosen, expected, rtol=0, atol=50 * tolerance)


def close(ours: Tensor, theirs: Tensor, tolerance: float, name: str) -> None:
    difference, size = float((ours - theirs).norm()), float(theirs.norm())
    assert difference <= max(tolerance * size, 1e-6), f"{name}: differs by {difference} of {size}"


def adam(lr: float, parameters: list[nn.Parameter]) -> torch.optim.Adam:
    return torch.optim.Adam(parameters, lr=lr, foreach=False, fused=False)


def descend(optimiser: torch.optim.Optimizer, loss: Tensor, most: float | None = None) -> None:
    optimiser.zero_grad()
    loss.backward()
    if most is not None:
        nn.utils.clip_grad_norm_(optimiser.param_groups[0]["params"], most)
    optimiser.step()


def standard(numbers: Tensor) -> Tensor:
    return (numbers - numbers.mean()) / (numbers.std(correction=0) + 1e-8)


# --- REINFORCE ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("units", [{}, UNITS], ids=["raw", "units"])
@pytest.mark.parametrize("discrete", [True, False])
@pytest.mark.parametrize(
    ("baseline", "normalise", "clip"), [(True, True, None), (True, False, 0.5), (False, True, 1.0)]
)
def test_reinforce(baseline: bool, normalise: bool, clip: float | None, discrete: bool, units: dict[str, bool]) -> None:
    config = ReinforceConfig(
        discount=0.9,
        baseline=baseline,
        baseline_epochs=2,
        batch_size=5,
        normalise_advantages=normalise,
        entropy_weight=0.1,
        lr=2e-2,
        baseline_lr=1e-2,
        max_grad_norm=clip,
        hidden_sizes=HIDDEN,
        initial_std=0.6,
        **units,
    )
    plain = Plain(Reinforce(config, spec(discrete), seeds=(3,)), "baseline")
    policy_optimiser, value_optimiser = adam(2e-2, plain.policy_parameters), adam(1e-2, [*plain.value_net.parameters()])

    def update(rollout: Segments) -> dict[str, Tensor]:
        advantages, returns = plain.advantages(rollout, 1.0, baseline)  # with λ = 1, G less b
        s, a = plain.states(rollout.observations.flatten(0, 1)), rollout.actions.flatten(0, 1)
        entropy = plain.entropy(s)
        scaled = standard(advantages) if baseline else advantages / (advantages.pow(2).mean().sqrt() + 1e-8)
        weights = scaled if normalise else advantages
        loss = -(plain.log_prob(s, a) * weights).mean() - 0.1 * entropy
        descend(policy_optimiser, loss, clip)
        for part in plain.parts(5, 2 if baseline else 0, STEPS):
            descend(value_optimiser, (plain.values(s[part]) - returns[part]).square().mean(), clip)
        return {"loss/actor": loss, "entropy": entropy}

    metrics = plain.train(update, lanes=1)
    assert ("loss/baseline" in metrics[0]) == baseline


# --- A2C ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("units", [{}, UNITS], ids=["raw", "units"])
@pytest.mark.parametrize("discrete", [True, False])
@pytest.mark.parametrize(("trace", "normalise", "decay", "clip"), [(1.0, False, False, 0.5), (0.8, True, True, None)])
def test_a2c(
    trace: float, normalise: bool, decay: bool, clip: float | None, discrete: bool, units: dict[str, bool]
) -> None:
    config = A2CConfig(
        discount=0.9,
        trace=trace,
        value_weight=0.7,
        entropy_weight=0.05,
        normalise_advantages=normalise,
        lr=2e-2,
        decay_lr=decay,
        max_grad_norm=clip,
        hidden_sizes=HIDDEN,
        initial_std=0.6,
        **units,
    ).for_run(UPDATES * LANES * STEPS)
    plain = Plain(A2C(config, spec(discrete), seeds=(3,)))
    optimiser = adam(2e-2, plain.parameters)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda k: 1 - k / UPDATES if decay else 1.0)

    def update(rollout: Segments) -> dict[str, Tensor]:
        advantages, returns = plain.advantages(rollout, trace)
        s, a = plain.states(rollout.observations.flatten(0, 1)), rollout.actions.flatten(0, 1)
        policy_loss = -(plain.log_prob(s, a) * (standard(advantages) if normalise else advantages)).mean()
        value_loss = 0.5 * (plain.values(s) - returns).square().mean()
        loss = policy_loss + 0.7 * value_loss - 0.05 * plain.entropy(s)
        descend(optimiser, loss, clip)
        schedule.step()
        return {"loss/policy": policy_loss, "loss/value": value_loss, "loss/agent": loss}

    plain.train(update)


# --- PPO ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("units", [{}, UNITS], ids=["raw", "units"])
@pytest.mark.parametrize("discrete", [True, False])
@pytest.mark.parametrize(("normalise", "decay", "clip"), [(True, True, 0.5), (False, False, None)])
def test_ppo(normalise: bool, decay: bool, clip: float | None, discrete: bool, units: dict[str, bool]) -> None:
    config = PPOConfig(
        discount=0.9,
        trace=0.8,
        clip=0.1,
        value_weight=0.7,
        entropy_weight=0.05,
        epochs=4,
        batch_size=16,
        normalise_advantages=normalise,
        lr=1e-2,
        decay_lr=decay,
        max_grad_norm=clip,
        hidden_sizes=HIDDEN,
        initial_std=0.6,
        **units,
    ).for_run(UPDATES * LANES * STEPS)
    plain = Plain(PPO(config, spec(discrete), seeds=(3,)))
    optimiser = adam(1e-2, plain.parameters)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda k: 1 - k / UPDATES if decay else 1.0)

    def update(rollout: Segments) -> dict[str, Tensor]:
        advantages, returns = plain.advantages(rollout, 0.8)
        s, a = plain.states(rollout.observations.flatten(0, 1)), rollout.actions.flatten(0, 1)
        old = plain.log_prob(s, a).detach()
        metrics: dict[str, Tensor] = {}
        for part in plain.parts(16, 4, LANES * STEPS):
            weights = standard(advantages[part]) if normalise else advantages[part]
            ratio = torch.exp(plain.log_prob(s[part], a[part]) - old[part])
            held = torch.where(ratio > 1.1, 1.1, torch.where(ratio < 0.9, 0.9, ratio))
            policy_loss = -torch.min(ratio * weights, held * weights).mean()
            value_loss = 0.5 * (plain.values(s[part]) - returns[part]).square().mean()
            entropy = plain.entropy(s[part])
            loss = policy_loss + 0.7 * value_loss - 0.05 * entropy
            clipped = ((ratio > 1.1) | (ratio < 0.9)).float().mean()
            metrics = {"loss/policy": policy_loss, "loss/value": value_loss, "entropy": entropy, "clipped": clipped}
            metrics |= {"loss/agent": loss, "divergence": (ratio - 1 - ratio.log()).mean()}
            descend(optimiser, loss, clip)
        schedule.step()
        return metrics

    assert any(float(metrics["clipped"]) > 0 for metrics in plain.train(update))  # else ε would not have been tried


# --- TRPO -----------------------------------------------------------------------------------------------------------


def fisher_matrix(plain: Plain, states: Tensor) -> Tensor:
    """Mean of JᵀMJ in double precision: J of the network's outputs, M what the outputs of a policy are worth to its KL.

    M is diag(p) − ppᵀ for logits, 1/σ² for means; log σ has 2 and nothing in common with the others.
    """
    named = {name: value.detach().double() for name, value in plain.actor.named_parameters()}
    call: Any = torch.func.functional_call
    slopes = torch.func.jacrev(lambda p: call(plain.actor, p, (states.double(),)))(named)
    jacobian = torch.cat([slopes[name].flatten(2) for name in named], -1)  # [N, outputs, P]
    if plain.log_std is None:
        p = torch.softmax(call(plain.actor, named, (states.double(),)), -1)
        metric = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
        return torch.einsum("noi,nok,nkj->ij", jacobian, metric, jacobian) / len(states)
    precision = (-2 * plain.log_std.detach().double()).exp()
    means = torch.einsum("noi,o,noj->ij", jacobian, precision, jacobian) / len(states)
    return torch.block_diag(means, 2 * torch.eye(ACTIONS, dtype=torch.float64))


@pytest.mark.parametrize("units", [{}, UNITS], ids=["raw", "units"])
@pytest.mark.parametrize("discrete", [True, False])
@pytest.mark.parametrize(("delta", "damping", "normalise"), [(0.01, 0.1, True), (1.0, 0.1, False)])
def test_trpo(delta: float, damping: float, normalise: bool, discrete: bool, units: dict[str, bool]) -> None:
    config = TRPOConfig(
        discount=0.9,
        trace=0.8,
        max_divergence=delta,
        conjugate_steps=400,  # to the end: the plain one solves the equation
        damping=damping,
        backtracks=6,
        shrinkage=0.7,
        normalise_advantages=normalise,
        critic_epochs=2,
        batch_size=16,
        critic_lr=1e-2,
        hidden_sizes=HIDDEN,
        initial_std=0.6,
        **units,
    )
    plain = Plain(TRPO(config, spec(discrete), seeds=(3,)))
    optimiser = adam(1e-2, [*plain.value_net.parameters()])

    def improve(s: Tensor, a: Tensor, advantages: Tensor) -> float:
        """Which share of the full step is taken."""
        with torch.no_grad():
            old_policy, old = plain.policy(s), plain.log_prob(s, a)
        before = [parameter.detach().clone() for parameter in plain.policy_parameters]
        gain = (torch.exp(plain.log_prob(s, a) - old) * advantages).mean()
        g = torch.cat([part.flatten() for part in torch.autograd.grad(gain, plain.policy_parameters)]).double()
        damped = fisher_matrix(plain, s) + damping * torch.eye(len(g), dtype=torch.float64)
        x = torch.linalg.solve(damped, g)
        full = torch.sqrt(2 * delta / (x @ damped @ x)) * x
        for share in [0.7**j for j in range(6)] + [0.0]:
            steps = torch.split((share * full).float(), [value.numel() for value in before])
            for parameter, start, step in zip(plain.policy_parameters, before, steps, strict=True):
                parameter.data = start + step.view_as(start)
            with torch.no_grad():
                better = (torch.exp(plain.log_prob(s, a) - old) * advantages).mean() > gain
                near = plain.per_state(kl_divergence(old_policy, plain.policy(s))).mean() <= delta
            if better and near:
                return share
        return 0.0

    def update(rollout: Segments) -> dict[str, Tensor]:
        advantages, returns = plain.advantages(rollout, 0.8)
        s, a = plain.states(rollout.observations.flatten(0, 1)), rollout.actions.flatten(0, 1)
        share = improve(s, a, standard(advantages) if normalise else advantages)
        for part in plain.parts(16, 2, LANES * STEPS):
            loss = 0.5 * (plain.values(s[part]) - returns[part]).square().mean()
            descend(optimiser, loss)
        return {"accepted": torch.tensor(share)}

    tolerance = 2e-3 if delta > 0.1 else 1e-5  # far steps add up what conjugate gradients leave
    assert max(float(metrics["accepted"]) for metrics in plain.train(update, tolerance=tolerance)) > 0
