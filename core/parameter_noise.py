"""Exploration by noise on parameters instead of actions (Plappert et al. 2018, arXiv:1706.01905).

    θ̃ = θ + N(0, σ²), drawn at the start of an episode and kept until its end                            (1)
    σ ← 1.01 σ   if d(π_θ, π_θ̃) <= δ,   else   σ / 1.01                                                  (2)
    d = √(mean (π_θ(s) − π_θ̃(s))²)   for continuous actions, over a batch and all dimensions             (3)
    d = mean KL(softmax Q_θ(s, ·) ‖ softmax Q_θ̃(s, ·))   for discrete ones,   δ = −log(1 − ε + ε / |A|)   (4)

Within an episode, equal states thus have equal actions. Every lane has its own parameters, and all lanes act in one
batched pass. (2) evaluates d with fresh noise on the newest parameters, on the batch of every 50th update, as in the
DDPG of OpenAI Baselines (its DQN does so at every step). δ in (4) is the distance between a greedy policy and an
ε-greedy one (appendix C).

The paper uses layer normalisation, so that one σ suits all hidden layers. Our networks have none, and σ starts small.
The parameters of a `torch.nn.LayerNorm` in a user's own module get no noise, as in the paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from herdbook.core.distributions import Categorical, Deterministic
from herdbook.core.learner import Learner, Network, Parameters
from herdbook.core.policy import ScaledDistribution, Scaling, greedy
from herdbook.core.types import Carry, Distribution, Metrics, Step, Tree, tree_map

FACTOR = 1.01  # eq. 2
PERIOD = 50  # number of updates between two changes of σ
ACTOR_SIGMA, VALUE_SIGMA = 0.03, 0.01
"""Initial σ. The first one changes the actions of a new 256 × 256 actor by 0.12 to 0.14; the second is Baselines'."""


def action_distance(actions: Tensor, perturbed: Tensor) -> Tensor:
    """d of eq. 3. π_θ(s), π_θ̃(s): [B, A] both → []."""
    return (actions - perturbed).square().mean().sqrt()


def value_divergence(q: Tensor, perturbed: Tensor) -> Tensor:
    """d of eq. 4. Q_θ(s, ·), Q_θ̃(s, ·): [B, n] both → []."""
    return Categorical(q).divergence(Categorical(perturbed)).mean()


def greedy_divergence(epsilon: float, actions: int) -> float:
    """δ of eq. 4: KL(greedy ‖ ε-greedy) for |A| = `actions`."""
    return -math.log(1 - epsilon + epsilon / actions)


def adapted(sigma: Tensor, distance: Tensor, threshold: float) -> Tensor:
    """Eq. 2. sigma: σ; distance: d; threshold: δ. [*S], [*S] → [*S]"""
    return torch.where(distance <= threshold, sigma * FACTOR, sigma / FACTOR)


class ParameterNoise:
    """Noise on one network of a learner: σ of each seed, and the policies with noisy parameters.

    Args:
        learner, name: The learner and the name of its network, which gives actions in [−1, 1] or Q-values.
        scaling: Units of the policies' observations and actions.
        distance: d of eq. 3 or 4.
        threshold: Maps the number of updates to δ of eq. 2.
        sigma: Initial σ.
    """

    def __init__(
        self,
        learner: Learner,
        name: str,
        scaling: Scaling,
        distance: Callable[[Tensor, Tensor], Tensor],
        threshold: Callable[[int], float],
        sigma: float,
    ) -> None:
        self.learner, self.name, self.network, self.distance = learner, name, learner.networks[name], distance
        self.threshold = threshold
        self.sigma = torch.full((len(learner.seeds),), sigma, device=learner.device)  # [S]
        fixed = _normalising(self.network.module)
        online = learner.params.online[name]
        self.noisy = [key for key, value in online.items() if value.requires_grad and key not in fixed]
        self.shapes = [learner.parameters_of(name)[key].shape for key in self.noisy]
        self.sizes = [shape.numel() for shape in self.shapes]
        self.policies = [PerturbedPolicy(self, index, scaling) for index in range(len(learner.seeds))]

    def adapt(self, observations: Tree) -> Metrics:
        """Adapt σ by eq. 2 at the first and then every 50th update; returns σ and d of these updates.

        observations: In the network's units, [*S, B, …].
        """
        if self.learner.updates % PERIOD != 1 % PERIOD:
            return {}
        noise = self.learner.normal(sum(self.sizes))  # [*S, P]
        sigma = self.sigma if self.learner.batched else self.sigma[0]
        lifted = torch.vmap(self._distance) if self.learner.batched else self._distance
        with torch.no_grad():
            distance = lifted(self.learner.params.frozen[self.name], noise, sigma, observations)  # [*S]
            sigma = adapted(sigma, distance, self.threshold(self.learner.updates))
            self.sigma.copy_(sigma)
        return {"noise/sigma": sigma, "noise/distance": distance}

    def _distance(self, parameters: Parameters, noise: Tensor, sigma: Tensor, observations: Tree) -> Tensor:
        perturbed = self.perturbed(parameters, noise, sigma)
        return self.distance(self.network(parameters, observations), self.network(perturbed, observations))

    def perturbed(self, parameters: Parameters, noise: Tensor, sigma: Tensor) -> Parameters:
        """θ̃ of eq. 1. parameters: θ of one seed; noise: N(0, 1), [P]; sigma: []."""
        parts = torch.split(noise, self.sizes)
        moved = zip(self.noisy, self.shapes, parts, strict=True)
        return {**parameters, **{key: parameters[key] + sigma * part.view(shape) for key, shape, part in moved}}

    def state_dict(self) -> dict[str, Any]:
        return {"sigma": self.sigma}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.sigma.copy_(state["sigma"])


class PerturbedPolicy:
    """The policy of a perturbed network.

    Its carry is a tuple: θ̃ of each lane, a mask of the lanes whose noise has been drawn, and the last frames if the
    scaling stacks them. The warm-up policy's carry, only frames, is accepted too.
    """

    def __init__(self, noise: ParameterNoise, seed_index: int, scaling: Scaling) -> None:
        self.noise, self.seed_index, self.scaling = noise, seed_index, scaling
        self.network: Network = noise.network

    @property
    def frame_stack(self) -> int:
        return self.scaling.frame_stack

    def initial(self, num_envs: int) -> Carry:
        """A carry without noise; each lane draws its own at its first step."""
        return self._begun(num_envs, None)

    def _begun(self, num_envs: int, frames: Tree | None) -> Carry:
        theta = self.noise.learner.parameters_of(self.noise.name, self.seed_index)
        parameters = {key: value.expand(num_envs, *value.shape) for key, value in theta.items()}
        return parameters, torch.zeros(num_envs, dtype=torch.bool, device=self.noise.learner.device), frames

    @torch.no_grad()
    def __call__(self, step: Step, carry: Carry, generator: torch.Generator | None = None) -> tuple[Tensor, Carry]:
        if not isinstance(carry, tuple):
            carry = self._begun(len(step.reset), carry)
        lanes = (step.reset | ~carry[1]).nonzero()[:, 0].tolist()
        if lanes:
            carry = self._redrawn(carry, lanes, generator)
        distribution, carry = self.distribution(step, carry)
        return distribution.mode(), carry

    def _redrawn(self, carry: Carry, lanes: list[int], generator: torch.Generator | None) -> Carry:
        """Draw new parameters for some lanes."""
        noise, (parameters, drawn, frames) = self.noise, carry
        theta = noise.learner.parameters_of(noise.name, self.seed_index)
        parameters = {key: value.clone(memory_format=torch.contiguous_format) for key, value in parameters.items()}
        drawn = drawn.clone()
        for lane in lanes:
            normal = torch.empty(sum(noise.sizes), device=drawn.device).normal_(generator=generator)
            for key, value in noise.perturbed(theta, normal, noise.sigma[self.seed_index]).items():
                parameters[key][lane] = value
            drawn[lane] = True
        return parameters, drawn, frames

    @torch.no_grad()
    def distribution(self, step: Step, carry: Carry) -> tuple[Distribution, Carry]:
        """A point mass on the action of the carry's parameters."""
        parameters, drawn, frames = carry
        seen, frames = self.scaling.see(step, frames)
        if len(drawn) == 1:
            outputs = self.network({key: value[0] for key, value in parameters.items()}, seen)
        else:
            outputs = torch.vmap(self._alone)(parameters, seen)
        chosen = greedy(Categorical(outputs)) if self.scaling.discrete else Deterministic(outputs)
        return ScaledDistribution(chosen, self.scaling), (parameters, drawn, frames)

    def _alone(self, parameters: Parameters, observation: Tree) -> Tensor:
        output: Tensor = self.network(parameters, tree_map(lambda leaf: leaf[None], observation))[0]
        return output


def noise_on_actor(learner: Learner, scaling: Scaling, threshold: float | None) -> ParameterNoise | None:
    """Noise on an actor with actions in [−1, 1]. threshold: δ; None gives no noise."""
    if threshold is None:
        return None
    return ParameterNoise(learner, "actor", scaling, action_distance, lambda updates: threshold, ACTOR_SIGMA)


def noise_on_values(learner: Learner, scaling: Scaling, threshold: Callable[[int], float]) -> ParameterNoise:
    """Noise on a critic [B, …] → Q [B, n] of a greedy policy. threshold: Maps the number of updates to δ."""
    return ParameterNoise(learner, "critic", scaling, value_divergence, threshold, VALUE_SIGMA)


def _normalising(module: nn.Module) -> set[str]:
    """Names of the parameters of all `LayerNorm` layers."""
    return {
        f"{name}.{key}" if name else key
        for name, part in module.named_modules()
        if isinstance(part, nn.LayerNorm)
        for key, _ in part.named_parameters()
    }
