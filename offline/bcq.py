"""Batch-constrained Q-learning (Fujimoto, Meger & Precup 2019, arXiv:1812.02900): act only as the data might have.

    L_VAE = mean (D(s, z) − a)² + w KL(N(μ, σ) ‖ N(0, 1)),   z = μ + σ ε,   (μ, σ) = E(s, a)                (1)
    a_i   = clip(ã_i + Φ ξ(s, ã_i), −1, 1),   ã_i = D(s, z_i),   z_i = clip(N(0, 1), −0.5, 0.5)              (2)
    y     = r + γ max_i [λ min_j Q̄_j(s′, a_i) + (1 − λ) max_j Q̄_j(s′, a_i)]   for candidates a_i at s′     (3)
    L_Q   = Σ_j mean (Q_j(s, a) − y)²                                                                      (4)
    L_ξ   = −mean Q_1(s, a_1),   a_1 by (2) at s                                                           (5)

The policy draws candidates by (2) and takes the one with the largest Q_1. The KL term of (1) is also averaged over the
dimensions of the latent, as in the authors' code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from herdbook.core.config import COUNT, FRACTION, NOT_NEGATIVE, POSITIVE, UNIT, Config
from herdbook.core.learner import Adam, Learner, Network, Parameters, Params, Setup
from herdbook.core.needs import Needs
from herdbook.core.networks import Critic, JointHead
from herdbook.core.policy import FeedForwardPolicy, Scaling
from herdbook.core.spaces import check_action_space
from herdbook.core.types import Metrics, Policy, Replay, Spec, Transitions, Tree, tree_leaves

LATENT_CLIP = 0.5


@dataclass(frozen=True, kw_only=True)
class BCQConfig(Config):
    """Settings of BCQ for continuous actions; the defaults are the authors'."""

    algorithm: ClassVar[str] = "bcq"
    perturbation: float = 0.05  # Φ, largest change of a candidate action by ξ, eq. 2
    soft_minimum: float = 0.75  # λ, weight of the minimum over the critics in eq. 3; the maximum has 1 − λ
    kl_weight: float = 0.5  # w, weight of the KL term in eq. 1
    num_target_actions: int = 10  # candidate actions per next state in eq. 3
    num_policy_actions: int = 100  # candidate actions from which the policy chooses
    discount: float = 0.99  # γ, discount factor
    tau: float = 0.005  # target networks: θ̄ ← (1 − tau) θ̄ + tau θ after each update
    batch_size: int = 100  # transitions per update
    lr: float = 1e-3  # learning rate of all networks
    hidden_sizes: tuple[int, ...] = (400, 300)  # widths of the hidden layers of Q_j and ξ
    vae_hidden_sizes: tuple[int, ...] = (750, 750)  # widths of the hidden layers of E and D, eq. 1
    n_step: int = 1  # n of the n-step return: rewards summed before bootstrapping
    standardise_observations: bool = False  # networks see (s − μ) / (σ + 1e-3), μ and σ of the dataset; vectors only

    def __post_init__(self) -> None:
        self.require(discount=UNIT, tau=FRACTION, soft_minimum=UNIT, perturbation=UNIT, kl_weight=NOT_NEGATIVE)
        self.require(num_target_actions=COUNT, num_policy_actions=COUNT, batch_size=COUNT, n_step=COUNT)
        self.require(hidden_sizes=COUNT, vae_hidden_sizes=COUNT, lr=POSITIVE)


def vae_loss(decoded: Tensor, actions: Tensor, mean: Tensor, log_std: Tensor, kl_weight: float) -> Tensor:
    """Eq. 1. decoded, actions: [B, A]; mean, log_std: μ and log σ of the latent [B, Z] → []."""
    kl = -0.5 * (1 + 2 * log_std - mean.square() - (2 * log_std).exp()).mean()
    return (decoded - actions).square().mean() + kl_weight * kl


def soft_clipped_target(next_q: Tensor, rewards: Tensor, discounts: Tensor, soft_minimum: float) -> Tensor:
    """Eq. 3. next_q: [critics, N, B]; rewards, discounts: [B] → [B]."""
    mixed = soft_minimum * next_q.amin(0) + (1 - soft_minimum) * next_q.amax(0)  # [N, B]
    return rewards + discounts * mixed.amax(0)


class BestCandidate:
    """The policy's distribution: a sample draws N candidate actions by eq. 2 and takes the one with the largest Q_1."""

    def __init__(self, algorithm: BCQ, parameters: Mapping[str, Parameters], observations: Tree) -> None:
        self.algorithm, self.parameters, self.observations = algorithm, parameters, observations
        self.count = len(tree_leaves(observations)[0])  # B

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return self._best(self._draw(self.count, generator))

    def mode(self) -> Tensor:
        """The best candidate from one fixed draw of latents for all states, so that it depends only on the state."""
        draw = self._draw(1, torch.Generator(self.algorithm.learner.device).manual_seed(0))
        return self._best(draw.expand(-1, self.count, -1))

    def _draw(self, count: int, generator: torch.Generator | None) -> Tensor:
        shape = (self.algorithm.config.num_policy_actions, count, self.algorithm.latent_size)
        return torch.empty(shape, device=self.algorithm.learner.device).normal_(generator=generator)

    def _best(self, latent: Tensor) -> Tensor:
        actions = self.algorithm.candidates(
            self.parameters["decoder"], self.parameters["perturbation"], self.observations, latent
        )  # [N, B, A]
        first = self.algorithm.critic.first_copy(self.parameters["critic"])
        q = self.algorithm.critic(first, self.observations, actions)[0]  # [N, B]
        return actions.gather(0, q.argmax(0)[None, :, None].expand(1, *actions.shape[1:])).squeeze(0)

    def log_prob(self, actions: Tensor) -> Tensor:
        raise TypeError("BCQ's policy has no density: log_prob is undefined")


class BCQ:
    """BCQ. `networks` may replace `encoder` (s, a → [B, 2 Z]), `decoder` (s, z → [B, A]), `perturbation`, `critic`."""

    needs: ClassVar[Needs] = Needs(data=True, actions="box")

    def __init__(self, config: BCQConfig, spec: Spec, **setup: Unpack[Setup]) -> None:
        self.config = c = config
        check_action_space(spec.action_space, self.needs.actions, c.algorithm)
        self.scaling = Scaling(spec, standardise=c.standardise_observations, device=setup.get("device", "cpu"))
        space, size = spec.observation_space, self.scaling.action_size
        self.latent_size = 2 * size
        self.learner = Learner(
            {
                "encoder": lambda: JointHead(space, size, 2 * self.latent_size, c.vae_hidden_sizes),
                "decoder": lambda: JointHead(space, self.latent_size, size, c.vae_hidden_sizes),
                "perturbation": lambda: JointHead(space, size, size, c.hidden_sizes),
                "critic": lambda: Critic(space, size, c.hidden_sizes),
            },
            {
                "vae": Adam(lr=c.lr, networks=("encoder", "decoder")),
                "critic": Adam(lr=c.lr),
                "perturbation": Adam(lr=c.lr),
            },
            targets=("perturbation", "critic"),
            **setup,
        )
        networks: dict[str, Network] = self.learner.networks
        self.encoder, self.decoder = networks["encoder"], networks["decoder"]
        self.perturbation, self.critic = networks["perturbation"], networks["critic"]

    def sample(self, replay: Replay, generators: Sequence[torch.Generator]) -> Transitions:
        c = self.config
        return replay.sample(c.batch_size, generators, discount=c.discount, n_step=c.n_step)

    def update(self, batch: Transitions) -> Metrics:
        self.learner.updates += 1
        batch = self.scaling(batch)
        size, latent = batch.actions.shape[-2], self.latent_size  # B, Z
        step, normal = self.learner.step, self.learner.normal
        metrics = step("vae", self.vae_objective, batch, normal(size, latent))
        metrics |= step("critic", self.critic_objective, batch, normal(self.config.num_target_actions, size, latent))
        metrics |= step("perturbation", self.perturbation_objective, batch, normal(1, size, latent))
        self.learner.move_targets(self.config.tau)
        return metrics

    def candidates(self, decoder: Parameters, perturbation: Parameters, observations: Tree, latent: Tensor) -> Tensor:
        """Eq. 2. latent: standard normal [*N, B, Z] → actions [*N, B, A]."""
        decoded = self.decoder(decoder, observations, latent.clamp(-LATENT_CLIP, LATENT_CLIP)).tanh()
        shift = self.config.perturbation * self.perturbation(perturbation, observations, decoded).tanh()
        return (decoded + shift).clamp(-1, 1)  # type: ignore[no-any-return]

    def vae_objective(self, params: Params, batch: Transitions, noise: Tensor) -> tuple[Tensor, Metrics]:
        mean, log_std = self.encoder(params["encoder"], batch.observations, batch.actions).chunk(2, -1)  # [B, Z] each
        log_std = log_std.clamp(-4, 15)
        decoded = self.decoder(params["decoder"], batch.observations, mean + log_std.exp() * noise).tanh()  # [B, A]
        return vae_loss(decoded, batch.actions, mean, log_std, self.config.kl_weight), {}

    def critic_objective(self, params: Params, batch: Transitions, noise: Tensor) -> tuple[Tensor, Metrics]:
        with torch.no_grad():
            next_actions = self.candidates(
                params["decoder"], params.target["perturbation"], batch.next_observations, noise
            )  # [N, B, A]
            next_q = self.critic(params.target["critic"], batch.next_observations, next_actions)  # [2, N, B]
            target = soft_clipped_target(next_q, batch.rewards, batch.discounts, self.config.soft_minimum)  # eq. 3
        q = self.critic(params["critic"], batch.observations, batch.actions)  # [2, B]
        return (q - target).square().mean(-1).sum(), {"q": q.mean()}  # eq. 4

    def perturbation_objective(self, params: Params, batch: Transitions, noise: Tensor) -> tuple[Tensor, Metrics]:
        actions = self.candidates(params["decoder"], params["perturbation"], batch.observations, noise)  # [1, B, A]
        first = self.critic.first_copy(params["critic"])
        return -self.critic(first, batch.observations, actions)[0].mean(), {}  # eq. 5

    def policy(self, seed_index: int = 0, *, deterministic: bool = True) -> Policy:
        """The best of `num_policy_actions` candidates; `deterministic` fixes the draw of their latents."""
        parameters = {name: self.learner.parameters_of(name, seed_index) for name in self.learner.networks}
        return FeedForwardPolicy(
            self.scaling, lambda o: BestCandidate(self, parameters, o), deterministic=deterministic
        )

    def state_dict(self) -> dict[str, Any]:
        return self.learner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.learner.load_state_dict(state)
