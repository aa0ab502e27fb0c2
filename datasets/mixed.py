"""`MixedReplay`: a dataset and newly played steps, sampled as one replay, for online fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from herdbook.core.growing import Growing
from herdbook.core.types import Array, Steps, Transitions, tree_map
from herdbook.datasets.replay import ReplayBuffer
from herdbook.datasets.sampling import drawn_numbers


class MixedReplay(Growing):
    """Uniform over the steps of both (Kostrikov et al. 2021, arXiv:2110.06169), or with a fixed share of new steps.

    offline: the dataset; several replays may share it.
    online: the replay of one seed, which grows by `extend` and `add`.
    share: fraction of new steps in every batch, once there are any; 0.5 in Ball et al. 2023 (arXiv:2302.02948). None:
        every step is equally likely.

    Raises ValueError for a share outside [0, 1], and for replays with different time limits.
    """

    def __init__(self, offline: ReplayBuffer, online: ReplayBuffer, share: float | None = None) -> None:
        if share is not None and not 0 <= share <= 1:
            raise ValueError(f"expected a share of online steps in [0, 1], got {share}")
        if online.rings is None or offline.rings is not None:
            raise TypeError("expected an offline replay, of Episodes, and an online one (ReplayBuffer.online)")
        if offline.time_limit != online.time_limit:
            raise ValueError(f"expected one time_limit, got {offline.time_limit!r} and {online.time_limit!r}")
        self.offline, self.online, self.share = offline, online, share

    def __len__(self) -> int:
        return len(self.offline) + len(self.online)

    @property
    def nbytes(self) -> int:
        """Bytes of all tables of both."""
        return self.offline.nbytes + self.online.nbytes

    def sample(
        self, batch_size: int, generators: Sequence[torch.Generator], *, discount: float, n_step: int = 1, **gather: Any
    ) -> Transitions:
        """Transitions `[B, …]`, those of the dataset first. `gather`: arguments of `ReplayBuffer.gather`.

        Raises ValueError for more than one generator: the new steps belong to one seed.
        """
        if len(generators) != 1:
            raise ValueError(f"expected one generator, as the new steps belong to one seed, got {len(generators)}")
        old, new = self._draw(batch_size, generators)
        parts = [
            replay.gather(replay.entries(numbers), discount=discount, n_step=n_step, **gather)
            for replay, numbers in ((self.offline, old), (self.online, new))
            if len(numbers)
        ]
        batch: Transitions = parts[0] if len(parts) == 1 else tree_map(lambda *leaves: torch.cat(leaves), *parts)
        return batch

    def _draw(self, batch_size: int, generators: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
        """Numbers of steps of the dataset, and numbers of new steps; B in total."""
        device = self.offline.device
        if self.share is None:
            numbers = drawn_numbers(len(self), batch_size, generators, device)
            old = numbers < len(self.offline)
            return numbers[old], numbers[~old] - len(self.offline)
        new = round(self.share * batch_size)
        if 0 < self.share < 1 < batch_size:
            new = min(max(new, 1), batch_size - 1)
        if not len(self.online):
            new = 0
        empty = torch.empty(0, dtype=torch.int64, device=device)
        return (
            drawn_numbers(len(self.offline), batch_size - new, generators, device) if new < batch_size else empty,
            drawn_numbers(len(self.online), new, generators, device) if new else empty,
        )

    def extend(self, steps: Steps) -> None:
        self.online.extend(steps)

    def cut(self, lanes: Array) -> None:
        self.online.cut(lanes)

    def state_dict(self) -> dict[str, Any]:
        """State of the online replay; runs record the dataset's fingerprint instead."""
        return self.online.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.online.load_state_dict(state)
