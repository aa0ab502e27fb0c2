"""A reward ensemble from preferences (Christiano et al. 2017, arXiv:1706.03741), without a policy.

    P(1 ≺ 2) = σ(Σ_t γᵗ r_k(s²_t, a²_t) − Σ_t γᵗ r_k(s¹_t, a¹_t))                          (1)
    L_k = mean [−(1 − p) log P(2 ≺ 1) − p log P(1 ≺ 2)] + κ (mean r_k)²                    (2)
    r = mean_k (r_k − μ_k) / σ_k                                                           (3)

The label p is the probability that the second segment is preferred. Each member k has its own initial weights and its
own bootstrap of the pairs. μ_k and σ_k are moments over all steps of the pairs. A policy is trained on r afterwards;
with IQL this is P-IQL (Hejna et al. 2024, arXiv:2310.13639).

A constant added to r_k changes no probability of segments of one length. The term with κ fixes it; without that term,
Adam would follow the rounding errors of a gradient that is zero. Where episodes terminate, such pairs do not say if it
is better to live on or to end: add a constant by `--reward-transform shift:X`. Pairs of different lengths do say it,
and μ_k is 0 for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from herdbook.core.config import COUNT, NOT_NEGATIVE, POSITIVE, UNIT, Config
from herdbook.core.learner import Adam, Learner, Parameters, Params, Setup
from herdbook.core.needs import Needs
from herdbook.core.notices import notice
from herdbook.core.policy import Scaling
from herdbook.core.preferences import agreement, masked_mean, preference_loss, segment_sum
from herdbook.core.random import generator
from herdbook.core.spaces import check_action_space
from herdbook.core.types import Metrics, Spec, Transitions, tree_map
from herdbook.datasets.replay import ReplayBuffer
from herdbook.irl.pairs import PAIR_SOURCES, PairBatch, PairSource, PairTable, present, table_of, transitions
from herdbook.irl.rewards import LearnedReward, RewardDesign, RewardInputs

_BOOTSTRAP = 201  # stream of randomness from which the pairs of each member are drawn


@dataclass(frozen=True, kw_only=True)
class PreferenceRewardConfig(Config):
    """Settings of reward learning from preferences; the defaults and their sources are in docs/algorithms.md."""

    algorithm: ClassVar[str] = "preference_reward"
    teacher: PairSource = "oracle"  # simulated teacher who labels the pairs, or stored: the pairs in the dataset
    pairs: int = 500  # labelled pairs of segments, if a teacher labels them
    segment_length: int = 64  # steps of a segment, if a teacher labels them
    inputs: RewardInputs = "state_action"  # what the reward depends on: state, next_state, state_action or transition
    members: int = 3  # reward functions in the ensemble, eq. 3
    bootstrap: bool = True  # each member learns from its own sample of the pairs, with replacement
    discount: float = 1.0  # γ in the sums of eq. 1
    anchor: float = 0.01  # κ of eq. 2
    batch_size: int = 64  # pairs per update, for each member
    lr: float = 3e-4  # learning rate
    hidden_sizes: tuple[int, ...] = (64, 64)  # widths of the hidden layers of each member
    standardise_observations: bool = True  # networks see (s − μ) / (σ + 1e-3), μ and σ of the dataset; vectors only

    def __post_init__(self) -> None:
        self.require(pairs=COUNT, segment_length=COUNT, members=COUNT, batch_size=COUNT, hidden_sizes=COUNT)
        self.require(discount=UNIT, lr=POSITIVE, anchor=NOT_NEGATIVE)
        self.require_one_of(teacher=PAIR_SOURCES, inputs=("state", "next_state", "state_action", "transition"))


class PreferenceReward:
    """Learns a `LearnedReward` from labelled pairs of segments of `demonstrations`, the replay of a dataset."""

    needs: ClassVar[Needs] = Needs(data=True, preferences=True, reward=True, policy=False)

    def __init__(
        self,
        config: PreferenceRewardConfig,
        spec: Spec,
        *,
        demonstrations: ReplayBuffer | None = None,
        **setup: Unpack[Setup],
    ) -> None:
        self.config = c = config
        self.spec = spec
        check_action_space(spec.action_space, self.needs.actions, c.algorithm)
        self.scaling = Scaling(spec, standardise=c.standardise_observations, device=setup.get("device", "cpu"))
        self.design = RewardDesign(inputs=c.inputs, hidden_sizes=c.hidden_sizes)
        self.names = tuple(f"member_{number}" for number in range(c.members))
        self.learner = Learner(
            {name: lambda: self.design.build(self.scaling) for name in self.names},
            {"reward": Adam(lr=c.lr, networks=self.names)},
            **setup,
        )
        if setup.get("networks"):
            raise ValueError(
                f"{c.algorithm}: expected no networks of your own: a reward file holds a RewardDesign alone"
            )
        seeds = self.learner.seeds
        self.moments = torch.tensor([0.0, 1.0], dtype=torch.float64).repeat(len(seeds), c.members, 1)  # [S, members, 2]
        self.table = table_of(c, demonstrations, seeds)
        if self.table is not None:
            self.drawn = torch.stack([self._bootstrap(seed, self.table.count) for seed in seeds])  # [S, members, N]
            _notice_offset(self.table, c.algorithm)

    def _bootstrap(self, seed: int, count: int) -> Tensor:
        """The numbers of the pairs that each member learns from, [members, N]."""
        shape, device = (self.config.members, count), self.learner.device
        if not self.config.bootstrap:
            return torch.arange(count, device=device).expand(shape)
        return torch.randint(count, shape, generator=generator(seed, _BOOTSTRAP)).to(device)

    def sample(self, replay: ReplayBuffer, generators: Sequence[torch.Generator]) -> PairBatch:
        """Pairs for each member, [members, B], or [S, members, B]."""
        c, table = self.config, present(self.table)
        numbers = table.numbers(c.members * c.batch_size, generators)  # [members · B], or [S, members · B]
        numbers = numbers.view(*numbers.shape[:-1], c.members, c.batch_size)
        own = self.drawn if len(generators) > 1 else self.drawn[0]
        return table.gather(own.gather(-1, numbers))

    def update(self, batch: PairBatch) -> Metrics:
        self.learner.updates += 1
        steps = self.scaling(transitions(batch.segments, self.config.discount))
        return self.learner.step("reward", self.objective, steps, batch.segments.mask, batch.labels)

    def objective(self, params: Params, steps: Transitions, mask: Tensor, labels: Tensor) -> tuple[Tensor, Metrics]:
        """steps, mask: [members, B, 2, T, …]; labels: [members, B]."""
        c = self.config
        losses, shares = [], []
        for member, name in enumerate(self.names):
            rewards = self.learner.networks[name](params[name], tree_map(lambda x, m=member: x[m], steps))  # [B, 2, T]
            first, second = segment_sum(rewards, mask[member], discount=c.discount).unbind(-1)  # [B] each
            constant = masked_mean(rewards, mask[member])
            loss = preference_loss(first, second, labels[member]).mean() + c.anchor * constant.square()  # eqs. 1 and 2
            losses.append(loss)
            shares.append(agreement(first, second, labels[member]))
        every = torch.stack(losses)
        return every.sum(), {"loss/member": every.mean(), "accuracy": torch.stack(shares).mean()}

    def reward(self, seed_index: int = 0) -> LearnedReward:
        """Eq. 3, with the moments over the steps of the seed's pairs."""
        c, members = self.config, [self.learner.parameters_of(name, seed_index) for name in self.names]
        self._measure()
        return LearnedReward(
            design=self.design,
            spec=self.spec,
            discount=c.discount,
            members=tuple({key: value.clone() for key, value in member.items()} for member in members),
            standardise=c.standardise_observations,
            moments=tuple((float(mean), float(std)) for mean, std in self.moments[seed_index]),
            about={"algorithm": c.algorithm, "teacher": c.teacher, "updates": self.learner.updates},
        )

    @torch.no_grad()
    def _measure(self) -> None:
        """Bring the moments of eq. 3 up to date. Without data, they are those of the checkpoint."""
        if self.table is None:
            return
        for index in range(len(self.learner.seeds)):
            for member, name in enumerate(self.names):
                parameters = self.learner.parameters_of(name, index)
                values = torch.cat([self._values(name, parameters, part) for part in self.table.chunks(index)])
                std = values.std(correction=0).clamp(min=1e-6)
                mean = values.mean() if self.table.one_length else torch.zeros_like(std)
                self.moments[index, member] = torch.stack([mean, std]).cpu()

    def _values(self, name: str, parameters: Parameters, segments: Any) -> Tensor:
        """A member's rewards of all steps of segments, [steps] float64."""
        steps = self.scaling(transitions(segments, self.config.discount))
        rewards: Tensor = self.learner.networks[name](parameters, steps)
        return rewards[segments.mask].double()

    def state_dict(self) -> dict[str, Any]:
        self._measure()
        pairs = {} if self.table is None else {"pairs": self.table.state_dict()}
        return {**self.learner.state_dict(), "moments": self.moments.clone(), **pairs}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.table is not None and "pairs" in state:
            self.table.check_same(state["pairs"])
        self.learner.load_state_dict(state)
        self.moments.copy_(state["moments"])


def _notice_offset(table: PairTable, algorithm: str) -> None:
    """Log a notice if the worth of an early end is not to be learned from the pairs."""
    ends = int(table.replay.episode_ends()[1].sum())
    if table.one_length and ends:
        notice(
            f"{algorithm}: segments of one length do not say what it is worth to live on, and {ends} episodes of "
            f"{table.source} terminate. The mean reward will be 0, so that an end is better than any step below the "
            "mean; train on it with --reward-transform shift:2, or another constant"
        )
