"""`JointReplay`: a replay buffer for many agents, with the same sampling code offline and online.

As in `ReplayBuffer`, there are two groups of tables: rows of observations, masks and states (T+1 per episode), and
steps, each with the number of its row. Offline they are the arrays of `JointEpisodes`, on the device. Online they are
rings to which whole episodes are appended. Sampling draws steps or episodes uniformly (the only randomness), then
gathers from each table once.
"""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from herdbook.core.joint.types import JointEpisode, JointSegments, JointSpec, JointTransitions
from herdbook.core.moments import merged
from herdbook.core.trees import mapped, write
from herdbook.core.types import Array, TimeLimit, tree_leaves, tree_map
from herdbook.datasets.joint.episodes import JointEpisodes, longest_pause, masked_kinds
from herdbook.datasets.layout import positions_in_episodes
from herdbook.datasets.rings import Rings, ring_sizes, saved_rings
from herdbook.datasets.sampling import check_discount, checked_time_limit, drawn_numbers
from herdbook.datasets.tables import Table, check_memory, empty_table, gathered, restore, table_bytes, to_table
from herdbook.datasets.validation import DataError, single

Tables = dict[str, Any]


class JointReplay:
    """Uniform sampling of joint transitions, segments and whole episodes.

    `JointReplay(episodes)` is offline; `JointReplay.online(spec, …)` begins empty and grows by `add`. On the CPU an
    offline replay shares the memory of its `JointEpisodes`. The length is the number of steps that can be sampled.

    time_limit: "terminal" zeroes the discounts of truncated steps; "bootstrap" does not.
    state: keep the global state, if the task has one (`spec.state_space`).

    Raises ValueError if the state is to be kept and was not recorded, and DataError, with episode and step, for rewards
    that overflow float32.
    """

    def __init__(
        self,
        episodes: JointEpisodes,
        *,
        device: torch.device | str = "cpu",
        time_limit: TimeLimit = "bootstrap",
        state: bool = True,
    ) -> None:
        check_memory(episodes.nbytes if torch.device(device).type != "cpu" else 0, device, "the dataset")
        seen, taken = _columns(episodes, checked_time_limit(time_limit), state)
        put = functools.partial(to_table, device=device)
        self._fill(
            episodes.spec,
            time_limit,
            seen=tree_map(put, seen),
            taken=tree_map(put, taken),
            rows=put(episodes.step_rows),
            **tree_map(put, _within(episodes)),
            starts=put(episodes.offsets[:-1]),
        )
        self._count_rewards(episodes)
        self._count_episodes(episodes.lengths())
        self._count_turns(taken["alive"], episodes.offsets[:-1])
        self._pause = longest_pause(episodes)

    @classmethod
    def online(
        cls,
        spec: JointSpec,
        capacity: int,
        *,
        device: torch.device | str = "cpu",
        time_limit: TimeLimit = "bootstrap",
        state: bool = True,
        length: int | None = None,
    ) -> JointReplay:
        """An empty replay of `capacity` steps.

        `length`: maximum length of an episode, if known; sampled episodes are then padded to it from the first draw on.
        The ring of rows holds the final rows of episodes of 8 steps or more on average (of any length up to 1024
        steps). With shorter episodes the oldest steps are dropped sooner.

        Raises MemoryError, with the number of bytes, if the replay does not fit.
        """
        n_steps, n_rows = ring_sizes(capacity, 1, 1)
        if length is not None and not 1 <= length <= n_steps:
            raise ValueError(f"expected a length in [1, {n_steps}], the capacity, got {length}")
        check_memory(table_bytes(_tables(spec, n_steps, n_rows, state, "meta")), device, f"{capacity} steps")
        self = cls.__new__(cls)
        self._fill(spec, checked_time_limit(time_limit), **_tables(spec, n_steps, n_rows, state, device))
        self._rings, self._length = Rings(capacity, 1, 1), length
        return self

    def _fill(self, spec: JointSpec, time_limit: TimeLimit, **tables: Any) -> None:
        self.spec, self.time_limit, self.device = spec, time_limit, tables["rows"].device
        self._seen: Tables = tables["seen"]  # leaves [rows, …]
        self._taken: Tables = tables["taken"]  # leaves [steps, …]
        self._rows: Tensor = tables["rows"]  # [steps] the row of a step; its outcome is in the next row
        self._elapsed: Tensor = tables["elapsed"]  # [steps] earlier steps of the episode
        self._remaining: Tensor = tables["remaining"]  # [steps] steps up to the episode's end, this one included
        self._starts: Tensor = tables["starts"]  # first step of each episode; online a ring over episode numbers
        self._row_count = len(tree_leaves(self._seen)[0])
        self._rings: Rings | None = None
        self._begins = np.zeros(len(self._starts), dtype=np.int64)  # online: `_starts` in ever-growing step numbers
        self._first_episode = self._last_episode = 0  # the complete episodes are those from first to last - 1
        self._longest: deque[tuple[int, int]] = deque()  # (number, length) of episodes longer than all later ones
        self._length: int | None = None
        self._team_spread, self._spread = Spread(), Spread()
        self._turns = np.empty((0, 1 + len(spec.agents)))
        """`[2, 1 + N]`: fewest and most steps of an episode, and of each agent in it; `[0, …]` before the first."""
        self._pause = 0  # the longest absence of an agent that acts again; 0 where none pauses

    def __len__(self) -> int:
        return len(self._rows) if self._rings is None else len(self._rings)

    @property
    def num_episodes(self) -> int:
        """Number of complete episodes."""
        return self._last_episode - self._first_episode

    @property
    def nbytes(self) -> int:
        """Bytes of all tables; offline on the CPU, this includes the dataset's arrays."""
        return table_bytes((self._seen, self._taken, self._starts, self._numbers()))

    @property
    def team_reward_std(self) -> float:
        """Standard deviation of the team reward over all steps ever added; 1 if all are equal."""
        return self._team_spread.std

    @property
    def reward_std(self) -> float:
        """Standard deviation of the rewards of acting agents over all steps ever added; 1 if all are equal."""
        return self._spread.std

    @property
    def team_reward_mean(self) -> float:
        """Mean team reward over all steps ever added; 0 before the first."""
        return self._team_spread.mean

    @property
    def reward_mean(self) -> float:
        """Mean reward of acting agents over all steps ever added; 0 before the first."""
        return self._spread.mean

    def require_equal_episodes(self, needed_by: str) -> None:
        """Raise DataError, which names `needed_by`, if an episode is or was longer than another, for any agent.

        An agent that leaves early has a shorter episode than the others. After `load_state_dict` the stored episodes
        count.
        """
        names = ("", *(f" of {agent}" for agent in self.spec.agents))
        for name, low, high in zip(names, *self._turns, strict=True) if len(self._turns) else ():
            if low < high:
                raise DataError(f"{needed_by}: expected episodes of equal length, got {low:g} to {high:g} steps{name}")

    # --- sampling: draw, then gather ---------------------------------------------------------------------------------

    def draw(self, batch_size: int, generators: Sequence[torch.Generator]) -> Tensor:
        """Step indices `[B]`, or `[S, B]` for S > 1 generators, uniform with replacement."""
        numbers = drawn_numbers(len(self), batch_size, generators, self.device)
        return numbers if self._rings is None else (numbers + self._rings.first_entry) % len(self._rows)

    def draw_episodes(self, batch_size: int, generators: Sequence[torch.Generator]) -> Tensor:
        """First steps of complete episodes, `[B]` or `[S, B]`, uniform over episodes with replacement."""
        numbers = drawn_numbers(self.num_episodes, batch_size, generators, self.device)
        return self._starts[(numbers + self._first_episode) % len(self._starts)]

    def sample(self, batch_size: int, generators: Sequence[torch.Generator], *, discount: float) -> JointTransitions:
        """`gather(draw(…))`: `[B, …]` for one generator, `[S, B, …]` for S."""
        return self.gather(self.draw(batch_size, generators), discount=discount)

    def sample_segments(
        self, batch_size: int, length: int, generators: Sequence[torch.Generator], *, discount: float
    ) -> JointSegments:
        """`gather_segments(draw(…), length)`: windows that begin at uniformly drawn steps."""
        return self.gather_segments(self.draw(batch_size, generators), length, discount=discount)

    def sample_episodes(
        self, batch_size: int, generators: Sequence[torch.Generator], *, discount: float, length: int | None = None
    ) -> JointSegments:
        """Complete episodes as segments of `length` steps; default: the `length` of `online`, else of the longest."""
        starts = self.draw_episodes(batch_size, generators)
        longest = self._longest[0][1] if self._length is None else self._length
        return self.gather_segments(starts, longest if length is None else length, discount=discount)

    def gather(self, indices: Tensor, *, discount: float) -> JointTransitions:
        """The transitions at `indices` `[*B]` int64, without randomness."""
        check_discount(discount)
        rows = self._rows[indices]
        following = gathered(self._seen, (rows + 1) % self._row_count)
        return JointTransitions(
            **gathered(self._seen, rows),
            **{f"next_{name}": leaves for name, leaves in following.items()},
            **_discounted(gathered(self._taken, indices), discount),
            timesteps=self._elapsed[indices],
            indices=indices,
            waiting=self._waiting(indices, 1, squeeze=True),
        )

    def gather_segments(self, indices: Tensor, length: int, *, discount: float) -> JointSegments:
        """Windows of `length` steps that begin at `indices` `[*B]`, each within one episode.

        `mask` is False after the episode's end. There no agent is alive, rewards and discounts are zero, and actions
        and rows repeat the last ones.
        """
        check_discount(discount)
        if length < 1:
            raise ValueError(f"expected length >= 1, got {length}")
        ahead = torch.arange(length + 1, device=self.device)
        remaining = self._remaining[indices][..., None]
        mask = ahead[:-1] < remaining  # [*B, T]
        steps = (indices[..., None] + torch.minimum(ahead[:-1], remaining - 1)) % len(self._rows)
        rows = (self._rows[indices][..., None] + torch.minimum(ahead, remaining)) % self._row_count  # [*B, T + 1]
        taken, over = gathered(self._taken, steps), ~mask
        for name, values in taken.items():
            if name != "actions":
                values.masked_fill_(over if name in _TEAM else over[..., None], 0)
        fields = {**gathered(self._seen, rows), **_discounted(taken, discount)}
        waiting = self._waiting(indices, length)
        return JointSegments(**fields, timesteps=self._elapsed[indices], mask=mask, waiting=waiting)

    def _waiting(self, indices: Tensor, length: int, *, squeeze: bool = False) -> Tensor | None:
        """Agents that are absent and act later, in windows of `length` steps: `[*B, length, N]` bool."""
        if not self._pause:
            return None
        ahead = torch.arange(length + self._pause, device=self.device)
        remaining = self._remaining[indices][..., None]
        steps = (indices[..., None] + torch.minimum(ahead, remaining - 1)) % len(self._rows)
        acts = self._taken["alive"][steps] & (ahead < remaining)[..., None]
        later = acts.flip(-2).cumsum(-2).flip(-2) > 0
        waiting: Tensor = (later & ~acts)[..., :length, :]
        return waiting.squeeze(-2) if squeeze else waiting

    # --- online ------------------------------------------------------------------------------------------------------

    def add(self, *episodes: JointEpisode) -> None:
        """Append whole episodes; several at once cost little more than one.

        Raises ValueError, and adds nothing, for more steps than the capacity, for an episode longer than `length`, and
        (as DataError) for episodes that `JointEpisodes` refuses.
        """
        rings = self._rings
        if rings is None:
            raise TypeError("an offline replay does not grow; build one with JointReplay.online")
        new = JointEpisodes.from_episodes(episodes, self.spec)
        row_count, longest = new.num_steps + len(new), int(new.lengths().max())
        if new.num_steps > rings.steps or row_count > rings.rows:
            came = f"{new.num_steps} and {row_count} in {len(new)} episodes; build the replay with a larger capacity"
            raise ValueError(f"expected at most {rings.steps} steps and {rings.rows} rows, got {came}")
        if self._length is not None and longest > self._length:
            raise ValueError(f"expected episodes of at most {self._length} steps, the replay's length, got {longest}")
        seen, taken = _columns(new, self.time_limit, "state" in self._seen)
        steps, rows = rings.append_episodes(new.step_rows, row_count)
        while self.num_episodes and self._begins[self._first_episode % len(self._begins)] < rings.first:
            self._first_episode += 1  # its first step was overwritten
        self._count_episodes(new.lengths())
        numbers = np.arange(self._last_episode - len(new), self._last_episode) % len(self._begins)
        self._begins[numbers] = rings.added - new.num_steps + new.offsets[:-1]
        Table(self._starts)[numbers] = steps[new.offsets[:-1]]
        write(mapped(Table, self._seen), rows, seen)
        values = {"taken": taken, "rows": rows[new.step_rows], **_within(new)}
        write(mapped(Table, {"taken": self._taken, **self._numbers()}), steps, values)
        self._count_rewards(new)
        self._count_turns(taken["alive"], new.offsets[:-1])
        self._pause = max(self._pause, longest_pause(new))

    def _numbers(self) -> dict[str, Tensor]:
        return {"rows": self._rows, "elapsed": self._elapsed, "remaining": self._remaining}

    def _whole(self) -> Array:
        """Positions of the complete episodes in `_starts` and `_begins`, the oldest first."""
        return np.arange(self._first_episode, self._last_episode) % len(self._begins)

    def _count_episodes(self, lengths: Array) -> None:
        """Count new episodes; the first entry of `_longest` is then the longest stored one."""
        for length in lengths.tolist():
            while self._longest and self._longest[-1][1] <= length:
                self._longest.pop()
            self._longest.append((self._last_episode, length))
            self._last_episode += 1
        while self._longest and self._longest[0][0] < self._first_episode:
            self._longest.popleft()

    def _count_rewards(self, episodes: JointEpisodes) -> None:
        self._team_spread.add(episodes.rewards.sum(1))
        self._spread.add(episodes.rewards[episodes.alive[episodes.step_rows]])

    def _count_turns(self, acts: Array, starts: Array) -> None:
        """Count the steps of whole episodes. acts: [steps, N] bool; starts: the first step of each."""
        steps = np.column_stack([np.ones(len(acts)), acts])
        counts = np.concatenate([self._turns, np.add.reduceat(steps, starts)])
        self._turns = np.stack([counts.min(0), counts.max(0)])

    def state_dict(self) -> dict[str, Any]:
        """State of an online replay: the filled part of each table (not a copy), and the counters."""
        if self._rings is None:
            raise TypeError("an offline replay has no state: it is its dataset, whose fingerprint runs record")
        steps = self._rings.filled_steps
        return {
            "seen": tree_map(lambda leaf: leaf[: self._rings.filled_rows], self._seen),
            "taken": tree_map(lambda leaf: leaf[:steps], self._taken),
            **{name: table[:steps] for name, table in self._numbers().items()},
            "begins": torch.from_numpy(self._begins[self._whole()]),
            "first_episode": self._first_episode,
            "spreads": torch.from_numpy(np.stack([self._team_spread.numbers, self._spread.numbers])),
            "time_limit": self.time_limit,
            "rings": self._rings.state_dict(),
            **({"pause": self._pause} if self._pause else {}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()` of a replay with the same settings.

        Raises ValueError, and changes nothing, if capacity, time_limit or shapes differ, or only one has the state.
        """
        rings, per_step = saved_rings(self._rings, self.time_limit, state), {"taken": self._taken, **self._numbers()}
        if missing := sorted({"seen", *per_step} - set(state)):
            raise ValueError(f"expected a replay with {', '.join(missing)}, got one of another version of herdbook")
        restore(
            ("seen", self._seen, state["seen"], rings.filled_rows),
            *((name, table, state[name], rings.filled_steps) for name, table in per_step.items()),
        )
        self._pause = int(state.get("pause", 0))
        begins = state["begins"].cpu().numpy()
        self._rings, self._longest = rings, deque()
        self._first_episode = self._last_episode = int(state["first_episode"])
        self._count_episodes(np.diff(begins, append=rings.added))
        self._begins[self._whole()] = begins
        Table(self._starts)[self._whole()] = begins % rings.steps
        self._team_spread.numbers, self._spread.numbers = state["spreads"].cpu().numpy().copy()
        if len(begins):
            whole = torch.arange(int(begins[0]), rings.added, device=self.device) % rings.steps
            self._turns = self._turns[:0]
            self._count_turns(self._taken["alive"][whole].cpu().numpy(), begins - begins[0])


_TEAM = ("team_rewards", "team_continues")


class Spread:
    """Mean and population standard deviation of all values ever added."""

    def __init__(self) -> None:
        self.numbers = np.zeros(5)  # count, mean, sum of squared deviations from the mean, minimum, maximum

    def add(self, values: Array) -> None:
        """`values` `[n]` float64."""
        if not len(values):
            return
        count, mean, squares, low, high = self.numbers.tolist()
        own = float(values.mean())
        together = merged((int(count), mean, squares), (len(values), own, float(np.square(values - own).sum())))
        low, high = (min(low, values.min()), max(high, values.max())) if count else (values.min(), values.max())
        self.numbers = np.array([*together, low, high])

    @property
    def mean(self) -> float:
        """The mean; 0 for no values."""
        return float(self.numbers[1])

    @property
    def std(self) -> float:
        """The standard deviation; 1 for equal values, despite rounding, and for fewer than two."""
        count, _, squares, low, high = self.numbers
        return (math.sqrt(squares / count) or 1.0) if low < high else 1.0


def _discounted(taken: Tables, discount: float) -> Tables:
    """The fields of a batch from entries of the step tables."""
    fields = {name: values for name, values in taken.items() if "continues" not in name}
    discounts = {"discounts": taken["continues"] * discount, "team_discounts": taken["team_continues"] * discount}
    return {**fields, **discounts}


def _columns(episodes: JointEpisodes, time_limit: TimeLimit, state: bool) -> tuple[Tables, Tables]:
    """The contents of the row tables and of the step tables."""
    seen: Tables = {"observations": episodes.observations}
    if episodes.action_mask is not None:
        seen["action_mask"] = episodes.action_mask
    if state and episodes.spec.state_space is not None:
        if episodes.state is None:
            wanted = f"the recorded state ({episodes.spec.state_space})"
            advice = "pass state=False for an algorithm that does not read it"
            raise ValueError(f"{episodes.source}: expected {wanted}, got none; {advice}")
        seen["state"] = episodes.state
    rows, last = episodes.step_rows, episodes.offsets[1:] - 1
    acts, after = episodes.alive[rows], episodes.alive[rows + 1]
    terminal = time_limit == "terminal"
    left = episodes.terminated | episodes.truncated
    ended = left if terminal else episodes.terminated
    over = np.zeros(len(rows), dtype=np.bool_)
    over[last] = True if terminal else episodes.terminated_for_all()
    to_single = functools.partial(single, episodes.source, episodes.offsets)
    taken = {
        "actions": episodes.actions,
        "rewards": to_single("rewards", episodes.rewards),
        "continues": (~ended).astype(np.float32),
        "alive": acts,
        "next_alive": np.where(acts & left, ~ended, after),
        "team_rewards": to_single("team rewards", episodes.rewards.sum(1)),
        "team_continues": (~over).astype(np.float32),
    }
    return seen, taken


def _within(episodes: JointEpisodes) -> dict[str, Array]:
    """A step's position in its episode, from the start and to the end. `[steps]` int64 each"""
    elapsed, lengths = positions_in_episodes(episodes.offsets), episodes.lengths()
    return {"elapsed": elapsed, "remaining": np.repeat(lengths, lengths) - elapsed}


def _tables(spec: JointSpec, n_steps: int, n_rows: int, state: bool, device: torch.device | str) -> Tables:
    """Empty tables, in the form of `_columns`, and the step numbers."""
    agents = len(spec.agents)

    def zeros(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=dtype, device=device)

    seen: Tables = {
        "observations": {k.name: empty_table(k.observation_space, (n_rows, len(k.agents)), device) for k in spec.kinds}
    }
    if masks := masked_kinds(spec):
        seen["action_mask"] = {k.name: zeros(torch.bool, n_rows, len(k.agents), actions) for k, actions in masks}
    if state and spec.state_space is not None:
        seen["state"] = empty_table(spec.state_space, (n_rows,), device)
    taken: Tables = {
        "actions": {k.name: empty_table(k.action_space, (n_steps, len(k.agents)), device) for k in spec.kinds},
        "rewards": zeros(torch.float32, n_steps, agents),
        "continues": zeros(torch.float32, n_steps, agents),
        "alive": zeros(torch.bool, n_steps, agents),
        "next_alive": zeros(torch.bool, n_steps, agents),
        "team_rewards": zeros(torch.float32, n_steps),
        "team_continues": zeros(torch.float32, n_steps),
    }
    counts = {name: zeros(torch.int64, n_steps) for name in ("rows", "elapsed", "remaining", "starts")}
    return {"seen": seen, "taken": taken, **counts}
