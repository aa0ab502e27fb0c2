"""Fitted Q evaluation (Le, Voloshin & Yue 2019, arXiv:1903.08738): off-policy estimation of a policy's value.

    y = r + γ (1 − terminated) E_{a′ ~ π(s′)} Q̄(s′, a′)          (1)
    L = mean (Q(s, a) − y)²                                      (2)
    v(s₀) = E_{a ~ π(s₀)} Q(s₀, a)                               (3)

The expectation is under the policy, not its mode: exact if the policy's distribution has `probs` (discrete actions),
otherwise over sampled actions. Values are bootstrapped through truncations, unless `time_limit="terminal"` makes the
limit part of the task.

Q̄ is a copy of Q, renewed after each regression, as in the paper. A regression here is a fixed number of updates P, and
the network is not reset before it. A copy contracts the error by γ at best, so n updates leave up to γ^(n/P) of the
first error, and a budget that leaves more than 1 % is reported.

Differences from the paper: Q is an offset plus a scale times the network's output, so the learning rate does not depend
on the scale of rewards. The offset is the mean of the data's discounted returns. The scale is their standard deviation,
or the error of the offset as a value if that is larger. Observations are standardised.
"""

from __future__ import annotations

import copy
import logging
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from herdbook.core.config import COUNT, POSITIVE, require
from herdbook.core.networks import MLP
from herdbook.core.parameter_noise import PerturbedPolicy
from herdbook.core.policy import FeedForwardPolicy
from herdbook.core.random import generator as make_generator
from herdbook.core.random import scoped_seed
from herdbook.core.spaces import check_action_space
from herdbook.core.types import Array, Policy, Step, TimeLimit, in_spaces
from herdbook.datasets.episodes import Episodes
from herdbook.datasets.layout import row_offsets
from herdbook.datasets.sampling import checked_time_limit

logger = logging.getLogger("herdbook")

REMAINDER = 0.01
"""Largest share of the first error that a sufficient number of updates may leave."""


@dataclass(frozen=True, kw_only=True)
class FQEConfig:
    """Settings of fitted Q evaluation. Raises ValueError for numbers out of range."""

    discount: float = 0.99  # γ, eq. 1
    updates: int = 20_000
    learning_rate: float = 1e-4  # Adam's, decaying linearly to 0
    batch_size: int = 256
    target_period: int = 40  # P, updates between two copies of Q to Q̄
    hidden_sizes: tuple[int, ...] = (256, 256)
    action_samples: int = 10  # sampled actions per state for the expectation, without `probs`

    def __post_init__(self) -> None:
        if not 0 <= self.discount < 1:
            raise ValueError(f"expected discount in [0, 1), got {self.discount}")
        require(self, updates=COUNT, batch_size=COUNT, action_samples=COUNT, hidden_sizes=COUNT)
        require(self, learning_rate=POSITIVE, target_period=COUNT)


@dataclass(frozen=True, slots=True)
class FQEEstimate:
    """Result of fitted Q evaluation."""

    values: Array
    """v(s₀) of eq. 3 at the first state of each episode, `[episodes]` float64."""
    loss: float
    """Eq. 2 over the last batch, in units of the variance of returns."""

    @property
    def mean(self) -> float:
        """The estimated discounted return of the policy."""
        return float(self.values.mean())


def fitted_q_evaluation(
    policy: Policy,
    episodes: Episodes,
    config: FQEConfig | None = None,
    *,
    time_limit: TimeLimit = "bootstrap",
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> FQEEstimate:
    """Estimate the discounted return of `policy` from recorded episodes.

    Args:
        policy: Raw observations in, raw actions out. It sees single states, so it must have no carry, neither a memory
            nor a count of steps. A stochastic policy must sample.
        episodes: Vector or Discrete observations, bounded Box or Discrete actions; only steps in the mask are used.
        config: Settings.
        time_limit: "bootstrap" bootstraps through truncations; with "terminal" they end the task.
        seed: Seed of the network, the batches and the policy's samples.
        device: Device of the computation.

    Raises:
        ValueError: The observations or actions are not supported, the policy stacks frames or has a carry, or
            `time_limit` is unknown.
        ArithmeticError: The estimate diverged.
    """
    c = config or FQEConfig()
    checked_time_limit(time_limit)
    if isinstance(policy, (FeedForwardPolicy, PerturbedPolicy)) and policy.frame_stack > 1:
        frames = policy.frame_stack
        raise ValueError(f"fitted Q evaluation: expected a policy of single observations, got a stack of {frames}")
    if not isinstance(policy, PerturbedPolicy) and policy.initial(1) is not None:
        raise ValueError("fitted Q evaluation: expected a policy of single states, got one with a carry")
    ended = episodes.terminated | episodes.truncated if time_limit == "terminal" else episodes.terminated
    if c.discount ** (c.updates / c.target_period) > REMAINDER:
        logger.warning("fitted Q evaluation: %s", _shortfall(c))
    policy = in_spaces(policy, episodes.observation_space, episodes.action_space)
    data = _Data(policy, episodes, ended, c, seed, torch.device(device))
    with scoped_seed(seed):
        network = MLP(data.inputs, data.outputs, c.hidden_sizes).to(device)
    target = copy.deepcopy(network).requires_grad_(False)
    parameters: list[Tensor] = list(network.parameters())
    copies: list[Tensor] = list(target.parameters())
    optimiser = torch.optim.Adam(parameters, lr=c.learning_rate, fused=True)
    draws = make_generator(seed, 1, device=device)
    loss = torch.zeros(())
    for update in range(c.updates):
        optimiser.param_groups[0]["lr"] = c.learning_rate * (1 - update / c.updates)
        steps = data.draw(c.batch_size, draws)
        y = data.rewards[steps] + data.discounts[steps] * data.value(target, data.rows[steps] + 1, draws)  # eq. 1
        loss = (data.q(network, steps) - y).square().mean()  # eq. 2
        loss.backward()  # type: ignore[no-untyped-call]  # torch ships no types for it
        optimiser.step()
        optimiser.zero_grad()
        if (update + 1) % c.target_period == 0:
            with torch.no_grad():  # otherwise Q̄ would keep the graph of every update
                torch._foreach_copy_(copies, parameters)
    values = data.initial_values(network)
    if not np.isfinite(values).all():
        advice = f"lower learning_rate ({c.learning_rate}) or raise target_period ({c.target_period})"
        raise ArithmeticError(f"fitted Q evaluation diverged after {c.updates} updates; {advice}")
    return FQEEstimate(values, float(loss.detach()))


def _shortfall(c: FQEConfig) -> str:
    needed = math.ceil(math.log(REMAINDER) / math.log(c.discount)) * c.target_period
    left = 100 * c.discount ** (c.updates / c.target_period)
    return (
        f"{c.updates:,} updates with a copy every {c.target_period} may leave {left:.0f} % of the first error "
        f"(discount {c.discount}); use {needed:,} updates, or a shorter target_period"
    )


class _Data:
    """The recorded steps in the network's units, and the policy's actions at every state, sampled once."""

    def __init__(
        self, policy: Policy, episodes: Episodes, ended: Array, c: FQEConfig, seed: int, device: torch.device
    ) -> None:
        check_action_space(episodes.action_space, "any", "fitted Q evaluation")

        def put(array: Any) -> Tensor:
            return torch.as_tensor(np.ascontiguousarray(array), device=device)

        space, self.space = episodes.observation_space, episodes.action_space
        self.discrete = isinstance(self.space, spaces.Discrete)
        raw = put(episodes.observations) if not isinstance(episodes.observations, dict) else None
        if raw is not None and isinstance(space, spaces.Discrete):
            self.observations = torch.nn.functional.one_hot(raw - int(space.start), int(space.n)).float()  # [rows, D]
        elif raw is not None and raw.dim() == 2:
            self.observations = (raw - raw.mean(0)) / (raw.std(0) + 1e-3)
        else:
            raise ValueError(f"fitted Q evaluation: expected vector or Discrete observations, got {space}")
        returns = discounted_returns(episodes, c.discount)
        self.offset = float(returns.mean())
        discounts = c.discount * (1 - ended.astype(np.float64))
        shifted = episodes.rewards - self.offset + discounts * self.offset
        self.scale = max(float(returns.std()), abs(float(shifted.mean())) / (1 - c.discount))
        largest = float(np.abs(returns).max())
        if self.scale <= 1e-9 * largest:  # all returns are equal, up to rounding
            self.scale = largest or 1.0
        self.rewards, self.discounts = put((shifted / self.scale).astype(np.float32)), put(discounts.astype(np.float32))
        self.rows, self.first_rows = put(episodes.step_rows), put(row_offsets(episodes.offsets)[:-1])
        self.drawn = None if episodes.mask is None else put(np.flatnonzero(episodes.mask))
        previous_actions = np.zeros((len(raw), *episodes.actions.shape[1:]), dtype=episodes.actions.dtype)
        previous_rewards = np.zeros(len(raw), dtype=np.float32)
        after = episodes.step_rows + 1
        previous_actions[after], previous_rewards[after] = episodes.actions, episodes.rewards
        first = torch.zeros(len(raw), dtype=torch.bool, device=device)
        first[self.first_rows] = True
        states = Step(raw, put(previous_actions), put(previous_rewards), first, torch.ones_like(first))
        self.probs, self.choices = self._ask(policy, states, c.action_samples, make_generator(seed, 0, device=device))
        self.actions = self._encode(put(episodes.actions))  # [steps, A] or [steps]
        self.inputs = self.observations.shape[1] + (0 if self.discrete else self.actions.shape[1])
        self.outputs = int(self.space.n) if isinstance(self.space, spaces.Discrete) else 1

    @torch.no_grad()
    def _ask(
        self, policy: Policy, states: Step, samples: int, generator: torch.Generator, chunk: int = 8192
    ) -> tuple[Tensor | None, Tensor | None]:
        """π at every row: probabilities [rows, n], or sampled actions [rows, K, A] or [rows, K].

        K is 1 for a policy that leaves its generator untouched: it has one action per state.
        """
        fields = (states.observations, states.previous_actions, states.previous_rewards, states.first, states.reset)
        found: list[Tensor] = []
        exact = False
        for parts in zip(*(f.split(chunk) for f in fields), strict=True):
            step = Step(*parts)
            carry = policy.initial(len(step.first))
            probs = _probs(policy, step, carry) if self.discrete else None
            if probs is not None:
                exact = True
                found.append(probs.float())
            else:
                before = generator.get_state()
                drawn = [self._encode(policy(step, carry, generator)[0])]
                if not torch.equal(before, generator.get_state()):  # else the policy is deterministic
                    drawn += [self._encode(policy(step, carry, generator)[0]) for _ in range(samples - 1)]
                found.append(torch.stack(drawn, dim=1))
        if exact:
            return torch.cat(found), None
        width = max(part.shape[1] for part in found)
        return None, torch.cat([part.expand(-1, width, *part.shape[2:]) for part in found])

    def _encode(self, actions: Tensor) -> Tensor:
        """Raw actions as indices from 0, or scaled to [−1, 1] (clipped, as in evaluation)."""
        if isinstance(self.space, spaces.Discrete):
            return actions.long() - int(self.space.start)
        assert isinstance(self.space, spaces.Box)
        low, high = (torch.as_tensor(bound, device=actions.device) for bound in (self.space.low, self.space.high))
        return (2 * (actions - low) / (high - low) - 1).clamp(-1, 1)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Uniformly drawn step numbers [B]; all steps if a batch can hold them."""
        total = len(self.rewards) if self.drawn is None else len(self.drawn)
        if total <= count:
            return torch.arange(total, device=self.rewards.device) if self.drawn is None else self.drawn
        numbers = torch.randint(total, (count,), generator=generator, device=self.rewards.device)
        return numbers if self.drawn is None else self.drawn[numbers]

    def q(self, network: MLP, steps: Tensor) -> Tensor:
        """Q(s, a) at recorded steps [B], in units of the network."""
        return self._q(network, self.observations[self.rows[steps]], self.actions[steps])

    @torch.no_grad()
    def value(self, network: MLP, rows: Tensor, generator: torch.Generator) -> Tensor:
        """E_π Q̄ at observation rows [B]: exact, or for one of the sampled actions each."""
        if self.choices is None:
            assert self.probs is not None
            value: Tensor = (network(self.observations[rows]) * self.probs[rows]).sum(-1)
            return value
        which = torch.randint(self.choices.shape[1], rows.shape, generator=generator, device=rows.device)
        return self._q(network, self.observations[rows], self.choices[rows, which])

    @torch.no_grad()
    def initial_values(self, network: MLP) -> Array:
        """Eq. 3 in units of the rewards, over all sampled actions. [episodes]"""
        observations = self.observations[self.first_rows]
        if self.choices is None:
            assert self.probs is not None
            value = (network(observations) * self.probs[self.first_rows]).sum(-1)
        else:
            choices = self.choices[self.first_rows].transpose(0, 1)  # [K, episodes, …]
            value = torch.stack([self._q(network, observations, actions) for actions in choices]).mean(0)
        return self.offset + self.scale * np.asarray(value.cpu().numpy(), dtype=np.float64)

    def _q(self, network: MLP, observations: Tensor, actions: Tensor) -> Tensor:
        if self.discrete:
            q: Tensor = network(observations).gather(-1, actions.unsqueeze(-1)).squeeze(-1)
            return q
        q = network(torch.cat([observations, actions], dim=-1)).squeeze(-1)
        return q


def _probs(policy: Policy, step: Step, carry: Any) -> Tensor | None:
    """Probabilities of discrete actions; None if the policy has none."""
    try:
        distribution, _ = policy.distribution(step, carry)
    except (AttributeError, NotImplementedError):
        return None
    probs = getattr(distribution, "probs", None)
    return probs if isinstance(probs, Tensor) else None


def discounted_returns(episodes: Episodes, discount: float) -> Array:
    """Discounted return from each step to its episode's end, `[steps]`; entries `offsets[:-1]` are the episodes'."""
    returns = episodes.rewards.copy()
    lengths = episodes.lengths()
    last = episodes.offsets[1:] - 1
    for back in range(1, int(lengths.max())):
        steps = (last - back)[lengths > back]
        returns[steps] += discount * returns[steps + 1]
    return returns
