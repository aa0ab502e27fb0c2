"""Shared parts of GAIL and AIRL: PPO as the generator, a reward network, demonstrations and earlier rollouts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from herdbook.core.config import Config
from herdbook.core.learner import Adam, Learner, Setup, check_one_seed
from herdbook.core.policy import Scaling
from herdbook.core.random import derive
from herdbook.core.types import Segments, Spec, Transitions, tree_map
from herdbook.datasets.replay import ReplayBuffer
from herdbook.irl.demonstrations import check_horizon, check_spaces, notice_few, notice_variable_horizon, required
from herdbook.irl.rewards import LearnedReward, RewardDesign
from herdbook.online.ppo import PPO, PPOConfig

_DISCRIMINATOR = 1  # the discriminator draws from another stream of randomness than PPO


class AdversarialSettings(Protocol):
    """Config fields that `AdversarialPair` reads."""

    @property
    def algorithm(self) -> str: ...
    @property
    def ppo(self) -> PPOConfig: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def lr(self) -> float: ...
    @property
    def discriminator_updates(self) -> int: ...
    @property
    def old_rollouts(self) -> int: ...
    @property
    def standardise_observations(self) -> bool: ...
    @property
    def allow_variable_horizon(self) -> bool: ...


class AdversarialPair:
    """A PPO agent and the network `reward`, which an algorithm trains by its optimiser `discriminator`.

    Args:
        settings: The algorithm's config.
        design: The form of the reward network.
        spec: The spaces, and the statistics of the demonstrations.
        demonstrations: A replay of the expert's episodes; None where only the policy is wanted.
        setup: The algorithm's further arguments. `networks` are those of PPO.
        compiled: False if the discriminator's loss must not be compiled, because it differentiates a gradient.

    Raises ValueError as `ActorCritic`, `check_spaces` and, unless the settings allow it, `check_horizon` do.
    """

    def __init__(
        self,
        settings: AdversarialSettings,
        design: RewardDesign,
        spec: Spec,
        demonstrations: ReplayBuffer | None,
        setup: Setup,
        *,
        compiled: bool = True,
    ) -> None:
        self.settings, self.design, self.spec, self.demonstrations = settings, design, spec, demonstrations
        check_one_seed(settings.algorithm, setup, "it trains")
        self.ppo = PPO(settings.ppo, spec, **setup)
        check_spaces(demonstrations, spec, settings.algorithm)
        if not settings.allow_variable_horizon:
            check_horizon(demonstrations, settings.algorithm)
        notice_few(demonstrations, settings.batch_size // 2, settings.algorithm)
        device = setup.get("device", "cpu")
        self.scaling = Scaling(spec, standardise=settings.standardise_observations, device=device)
        self.learner = Learner(
            {"reward": partial(design.build, self.scaling)},
            {"discriminator": Adam(lr=settings.lr, networks=("reward",))},
            seeds=[derive(seed, _DISCRIMINATOR) for seed in setup.get("seeds", (0,))],
            device=device,
            compile=setup.get("compile", False) if compiled else False,
        )
        self.network = self.learner.networks["reward"]
        self.earlier: list[Transitions] = []  # rollouts before the newest one, oldest first

    def batches(self, rollout: Segments) -> Iterator[tuple[Transitions, Transitions]]:
        """Batches for the discriminator's updates after a rollout: raw steps of the expert, and as many of the policy.

        The expert's are drawn with replacement, and the policy's from this rollout and the `old_rollouts` before it.
        """
        c = self.settings
        expert, discount = required(self.demonstrations, c.algorithm), c.ppo.discount
        if not c.allow_variable_horizon:
            notice_variable_horizon(rollout, c.algorithm)
        rollouts = [*self.earlier, transitions_of(rollout, discount)]
        steps: Transitions = tree_map(lambda *leaves: torch.cat(leaves), *rollouts)
        self.earlier = rollouts[len(rollouts) - min(c.old_rollouts, len(rollouts)) :]
        size, generator = c.batch_size // 2, self.learner.generators[0]
        for _ in range(c.discriminator_updates):
            drawn = torch.randint(len(steps.rewards), (size,), generator=generator, device=generator.device)
            policy: Transitions = tree_map(lambda leaf, drawn=drawn: leaf[drawn], steps)
            yield expert.sample(size, [generator], discount=discount), policy

    @torch.no_grad()
    def outputs(self, rollout: Segments) -> Tensor:
        """The network's outputs at the steps of a rollout, [lanes, T]."""
        steps = self.scaling(transitions_of(rollout, self.settings.ppo.discount))
        outputs: Tensor = self.network(self.learner.parameters_of("reward"), steps)
        return outputs.view_as(rollout.rewards)

    def reward(self, seed_index: int = 0) -> LearnedReward:
        """A copy of the reward function learned so far."""
        parameters = self.learner.parameters_of("reward", seed_index)
        return LearnedReward(
            design=self.design,
            spec=self.spec,
            discount=self.settings.ppo.discount,
            members=({name: value.clone() for name, value in parameters.items()},),
            standardise=self.settings.standardise_observations,
            about={"algorithm": self.settings.algorithm, "reward_convention": self.design.convention},
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            "ppo": self.ppo.state_dict(),
            "discriminator": self.learner.state_dict(),
            "earlier": [{name: getattr(rollout, name) for name in _STORED} for rollout in self.earlier],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a `state_dict`. Raises ValueError, and changes nothing, if it does not fit."""
        ppo, discriminator = state.get("ppo", {}), state.get("discriminator", {})
        self.ppo.learner.check(ppo)
        self.learner.check(discriminator)
        if "earlier" not in state or any(rollout.keys() != set(_STORED) for rollout in state["earlier"]):
            raise ValueError(f"expected a state with earlier rollouts, each of {', '.join(_STORED)}")
        device = self.learner.device
        earlier = [Transitions(**tree_map(lambda leaf: leaf.to(device), rollout)) for rollout in state["earlier"]]
        self.ppo.load_state_dict(ppo)
        self.learner.load_state_dict(discriminator)
        self.earlier = earlier


_STORED = [field.name for field in fields(Transitions)][:5]
"""The fields of one-step transitions."""


def transitions_of(rollout: Segments, discount: float) -> Transitions:
    """The steps of a rollout [lanes, T, …] as transitions [lanes · T, …], with discounts γ (1 − terminated)."""
    steps = Transitions(
        rollout.observations,
        rollout.actions,
        rollout.rewards,
        discount * (~rollout.terminated).float(),
        rollout.next_observations,
    )
    flat: Transitions = tree_map(lambda leaf: leaf.flatten(0, 1), steps)
    return flat


def check_half_batches(config: Config, batch_size: int) -> None:
    """Raise ValueError unless half of a batch can be the expert's."""
    if batch_size % 2:
        raise ValueError(f"{type(config).__name__}: expected batch_size to be even, got {batch_size}")
