"""Contrastive preference learning (Hejna et al. 2024, arXiv:2310.13639): a policy from preferences, without a reward.

    x = Σ_t γᵗ α log π(a_t|s_t)                                                            (1)
    L = mean [−(1 − p) log σ(x₁ − λ x₂) − p log σ(x₂ − λ x₁)]                              (2)
    L_BC = mean [−log π(a|s)]  over all steps of both segments                             (3)
    log π(a|s) = −‖μ(s) − a‖²  for continuous actions: a Gaussian of fixed variance        (4)

The label p is the probability that the second segment is preferred. The policy first clones all segments (eq. 3), then
minimises (2) with a new optimiser. λ < 1 holds it near the data. π may drop out hidden units, except when it acts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from herdbook.core.config import COUNT, FRACTION, NOT_NEGATIVE, POSITIVE, UNIT, Config
from herdbook.core.distributions import Categorical, Deterministic
from herdbook.core.learner import Adam, Learner, Params, Setup
from herdbook.core.needs import Needs
from herdbook.core.networks import DeterministicActor, Head, dropout
from herdbook.core.policy import FeedForwardPolicy, Scaling
from herdbook.core.preferences import agreement, masked_mean, preference_loss, segment_advantage
from herdbook.core.spaces import check_action_space
from herdbook.core.types import Metrics, Policy, Spec, Tree
from herdbook.datasets.replay import ReplayBuffer
from herdbook.irl.pairs import PAIR_SOURCES, PairBatch, PairSource, present, table_of


@dataclass(frozen=True, kw_only=True)
class CPLConfig(Config):
    """Settings of CPL; docs/algorithms.md says which defaults differ from the authors' for states in Meta-World."""

    algorithm: ClassVar[str] = "cpl"
    teacher: PairSource = "oracle"  # simulated teacher who labels the pairs, or stored: the pairs in the dataset
    pairs: int = 500  # labelled pairs of segments, if a teacher labels them
    segment_length: int = 64  # steps of a segment, if a teacher labels them
    alpha: float = 0.1  # α, temperature of eq. 1
    bias: float = 0.5  # λ, weight of the segment that is not preferred in eq. 2
    discount: float = 0.99  # γ in the sums of eq. 1
    cloning_updates: int = 40_000  # updates by eq. 3 before those by eq. 2
    batch_size: int = 96  # pairs per update
    lr: float = 1e-4  # learning rate
    hidden_sizes: tuple[int, ...] = (256, 256)  # widths of the policy's hidden layers
    dropout: float = 0.25  # probability of dropping a hidden unit of π during training
    standardise_observations: bool = True  # networks see (s − μ) / (σ + 1e-3), μ and σ of the dataset; vectors only

    def __post_init__(self) -> None:
        self.require(pairs=COUNT, segment_length=COUNT, batch_size=COUNT, hidden_sizes=COUNT, lr=POSITIVE)
        self.require(alpha=POSITIVE, bias=FRACTION, discount=UNIT, dropout=(0, 0.99), cloning_updates=NOT_NEGATIVE)
        self.require_one_of(teacher=PAIR_SOURCES)


def log_likelihood(actions: Tensor, data_actions: Tensor) -> Tensor:
    """Eq. 4. actions, data_actions: [*B, A] in [−1, 1] → [*B]."""
    return -(actions - data_actions).square().sum(-1)


def categorical_log_likelihood(logits: Tensor, data_actions: Tensor) -> Tensor:
    """log π of discrete actions. logits: [*B, n]; data_actions: indices [*B] → [*B]."""
    return Categorical(logits).log_prob(data_actions)


class CPL:
    """CPL. `networks` may replace `actor`: [*B, …] → actions [*B, A] in [−1, 1], or logits [*B, n].

    It learns from labelled pairs of segments of `demonstrations`, the replay of a dataset. With dropout, which is on by
    default, the actor takes the factors of its hidden units as a second argument: see `core.networks.dropout`.
    """

    needs: ClassVar[Needs] = Needs(data=True, preferences=True)

    def __init__(
        self, config: CPLConfig, spec: Spec, *, demonstrations: ReplayBuffer | None = None, **setup: Unpack[Setup]
    ) -> None:
        self.config = c = config
        check_action_space(spec.action_space, self.needs.actions, c.algorithm)
        self.scaling = Scaling(spec, standardise=c.standardise_observations, device=setup.get("device", "cpu"))
        space, size = spec.observation_space, self.scaling.action_size
        head = Head if self.scaling.discrete else DeterministicActor
        rates = {stage: Adam(lr=c.lr, networks=("actor",)) for stage in ("cloning", "preference")}
        self.learner = Learner({"actor": lambda: head(space, size, c.hidden_sizes)}, rates, **setup)
        self.actor = self.learner.networks["actor"]
        self.log_prob = categorical_log_likelihood if self.scaling.discrete else log_likelihood
        self.head: type[Categorical] | type[Deterministic] = Categorical if self.scaling.discrete else Deterministic
        self.table = table_of(c, demonstrations, self.learner.seeds)

    def sample(self, replay: ReplayBuffer, generators: Sequence[torch.Generator]) -> PairBatch:
        table = present(self.table)
        return table.gather(table.numbers(self.config.batch_size, generators))

    def update(self, batch: PairBatch) -> Metrics:
        self.learner.updates += 1
        # Each stage has an optimiser of its own: the moments of the cloning gradients do not enter the second one.
        cloning = self.learner.updates <= self.config.cloning_updates
        stage, objective = ("cloning", self.clone) if cloning else ("preference", self.prefer)
        segments = batch.segments
        widths = (*segments.mask.shape[-3:], sum(self.config.hidden_sizes))
        uniform = [self.learner.uniform(*widths)] if self.config.dropout else []
        observations = self.scaling.observations(segments.observations)
        actions = self.scaling.actions(segments.actions)
        return self.learner.step(stage, objective, observations, actions, segments.mask, batch.labels, *uniform)

    def clone(self, params: Params, *inputs: Any) -> tuple[Tensor, Metrics]:
        """Eq. 3."""
        cloning, preference, share = self.losses(params, *inputs)
        return cloning, {"loss/preference": preference, "accuracy": share}

    def prefer(self, params: Params, *inputs: Any) -> tuple[Tensor, Metrics]:
        """Eq. 2."""
        cloning, preference, share = self.losses(params, *inputs)
        return preference, {"loss/cloning": cloning, "accuracy": share}

    def losses(
        self,
        params: Params,
        observations: Tree,
        actions: Tensor,
        mask: Tensor,
        labels: Tensor,
        uniform: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Eqs. 3 and 2, and the share of pairs that are ordered as labelled.

        Observations, actions, mask: [B, 2, T, …]; labels: [B]; uniform: noise of the dropout, [B, 2, T, hidden units].
        """
        c = self.config
        kept = [] if uniform is None else [dropout(uniform, c.dropout)]
        log_prob = self.log_prob(self.actor(params["actor"], observations, *kept), actions)  # [B, 2, T]
        scores = segment_advantage(log_prob, mask, alpha=c.alpha, discount=c.discount)  # [B, 2], eq. 1
        first, second = scores.unbind(-1)
        preference = preference_loss(first, second, labels, bias=c.bias).mean()  # eq. 2
        return masked_mean(-log_prob, mask), preference, agreement(first, second, labels)  # eq. 3

    def policy(self, seed_index: int = 0, *, deterministic: bool = True) -> Policy:
        """The mean of the Gaussian; with discrete actions the most likely one, or a sample."""
        actor = self.learner.parameters_of("actor", seed_index)
        return FeedForwardPolicy(self.scaling, lambda o: self.head(self.actor(actor, o)), deterministic=deterministic)

    def state_dict(self) -> dict[str, Any]:
        pairs = {} if self.table is None else {"pairs": self.table.state_dict()}
        return {**self.learner.state_dict(), **pairs}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.table is not None and "pairs" in state:
            self.table.check_same(state["pairs"])
        self.learner.load_state_dict(state)
