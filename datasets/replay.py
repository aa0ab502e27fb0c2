"""`ReplayBuffer`: a replay buffer with the same sampling code offline and online.

There are two tables: observation rows (T+1 per episode), and steps, each with the number of its row. Offline they are
the arrays of `Episodes`, on the device. Online they are rings: every environment is a lane, and position p of lane l
is entry p · lanes + l. A vectorised step is therefore written as one slice, and the successor of an entry is `lanes`
further. Sampling draws entries of the step table uniformly (the only randomness), then gathers; nothing is rejected.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from herdbook.core.growing import Growing
from herdbook.core.trees import indexed, write
from herdbook.core.types import Array, RewardFunction, Segments, Spec, Steps, TimeLimit, Transitions, Tree, tree_map
from herdbook.datasets.episodes import Episodes
from herdbook.datasets.layout import positions_in_episodes
from herdbook.datasets.rewards import PlayedRewards, check_reward_discount, rewards_from
from herdbook.datasets.rings import Rings, positions_of, ring_sizes, saved_rings
from herdbook.datasets.sampling import check_discount, checked_time_limit, drawn_numbers
from herdbook.datasets.tables import Table, check_memory, empty_table, gathered, restore, table_bytes, to_table
from herdbook.datasets.validation import single


class ReplayBuffer(Growing):
    """Uniform sampling of transitions and segments; implements `core.types.Replay`.

    `ReplayBuffer(episodes)` is offline; `ReplayBuffer.online(spec, …)` begins empty and grows by `extend` and `add`. On
    the CPU an offline replay shares the memory of its `Episodes`, which are its `episodes` (None online). Its length is
    the number of steps to sample from.

    time_limit: "terminal" zeroes the discount of a truncated step; "bootstrap" does not.

    Raises DataError, with episode and step, if rewards or returns-to-go overflow float32.
    """

    def __init__(
        self, episodes: Episodes, *, device: torch.device | str = "cpu", time_limit: TimeLimit = "bootstrap"
    ) -> None:
        check_memory(episodes.nbytes if torch.device(device).type != "cpu" else 0, device, "the dataset")
        put = functools.partial(to_table, device=device)
        self.spaces = (episodes.observation_space, episodes.action_space)  # of observations and of actions
        steps = episodes.num_steps
        last = np.zeros(steps, dtype=np.bool_)
        last[episodes.offsets[1:] - 1] = True
        self._fill(
            time_limit,
            observations=tree_map(put, episodes.observations),
            rows=put(episodes.step_rows),
            actions=put(episodes.actions),
            rewards=put(single(episodes.source, episodes.offsets, "rewards", episodes.rewards)),
            terminated=put(episodes.terminated),
            truncated=put(episodes.truncated),
            last=put(last),
            positions=put(positions_in_episodes(episodes.offsets).astype(np.int32)),
        )
        self._drawable = None if episodes.mask is None else put(np.flatnonzero(episodes.mask))
        self._returns_to_go: Tensor | None = put(_returns_to_go(episodes))
        self._rings: Rings | None = None
        self.episodes: Episodes | None = episodes
        self._lanes = 1
        self.frame_stack = 2**31

    @classmethod
    def online(
        cls,
        spec: Spec,
        capacity: int,
        lanes: int = 1,
        *,
        device: torch.device | str = "cpu",
        time_limit: TimeLimit = "bootstrap",
        frame_stack: int = 1,
        reward: PlayedRewards | None = None,
        reward_transform: Callable[[Tensor], Tensor] | None = None,
    ) -> ReplayBuffer:
        """An empty replay for `lanes` environments that step together and hold `capacity // lanes` steps each.

        `frame_stack` is the largest stack that will be gathered: a step is dropped with the first of its frames. The
        ring of observation rows has room for the final observations if episodes last 8 steps or more on average, and
        for episodes of any length if a lane holds at most 1024 steps. With shorter episodes the oldest steps are
        dropped sooner. `reward` replaces the rewards of steps when they are added. `reward_transform` maps rewards
        `[N]` when they are gathered; stored rewards stay as they are.

        Raises MemoryError, with the number of bytes, if the replay does not fit.
        """
        actions = spec.action_space
        n_steps, n_rows = (size * lanes for size in ring_sizes(capacity, lanes, frame_stack))
        row_bytes, action_bytes = (
            table_bytes(empty_table(space, (1,), "meta")) for space in (spec.observation_space, actions)
        )
        step_bytes = action_bytes + 8 + 4 + 3 + 4 + 4  # row, reward, three flags, position, continuation
        check_memory(n_rows * row_bytes + n_steps * step_bytes, device, f"{capacity} steps")
        self = cls.__new__(cls)
        self.spaces = (spec.observation_space, actions)

        def zeros(dtype: torch.dtype) -> Tensor:
            return torch.zeros(n_steps, dtype=dtype, device=device)

        self._fill(
            time_limit,
            observations=empty_table(spec.observation_space, (n_rows,), device),
            rows=zeros(torch.int64),
            actions=empty_table(actions, (n_steps,), device),
            rewards=zeros(torch.float32),
            terminated=zeros(torch.bool),
            truncated=zeros(torch.bool),
            last=zeros(torch.bool),
            positions=zeros(torch.int32),
        )
        self._drawable = self._returns_to_go = self.episodes = None
        self._played_rewards, self._reward_transform = reward, reward_transform
        self._tables = {name: tree_map(Table, getattr(self, f"_{name}")) for name in ("observations", *_STEP_TABLES)}
        self._rings, self._lanes, self.frame_stack = Rings(capacity, lanes, frame_stack), lanes, frame_stack
        return self

    def _fill(self, time_limit: TimeLimit, **tables: Any) -> None:
        self.time_limit = checked_time_limit(time_limit)
        self._played_rewards: PlayedRewards | None = None
        self._reward_transform: Callable[[Tensor], Tensor] | None = None
        self._tables: dict[str, Any] = {}  # online: each table as a `Table`, the observations as a tree of them
        self._observations: Tree = tables["observations"]  # leaves [rows, …]
        self._rows: Tensor = tables["rows"]  # [steps] the observation row of a step; its next one is `lanes` further
        self._actions: Tensor = tables["actions"]
        self._rewards: Tensor = tables["rewards"]
        self._terminated: Tensor = tables["terminated"]
        self._truncated: Tensor = tables["truncated"]
        self._last: Tensor = tables["last"]  # no later step of the same episode is stored
        self._positions: Tensor = tables["positions"]  # earlier steps of the episode
        ends = self._terminated if time_limit == "bootstrap" else self._terminated | self._truncated
        self._continues = (~ends).float()
        self.device = self._rewards.device

    def __len__(self) -> int:
        if self._rings is not None:
            return len(self._rings)
        return len(self._rewards) if self._drawable is None else len(self._drawable)

    @property
    def rings(self) -> Rings | None:
        """The counters of the online rings; None offline."""
        return self._rings

    @property
    def terminated_share(self) -> float:
        """Share of the steps that end their episode with a discount of 0; 0 if there are no steps.

        In a subsampled dataset, it is the share of all steps of the full episodes, not of those that can be sampled.
        """
        ends = self._terminated if self.time_limit == "bootstrap" else self._terminated | self._truncated
        stored = [ends]
        if self._rings is not None:
            first, last = self._rings.first_entry, self._rings.first_entry + len(self)
            stored = [ends[first:last], ends[: max(last - len(ends), 0)]]
        return sum(map(_count, stored)) / max(sum(map(len, stored)), 1)

    @property
    def nbytes(self) -> int:
        """Bytes of all tables; offline on the CPU, this includes the dataset's arrays."""
        return table_bytes([self._observations, *(getattr(self, f"_{name}") for name in _STEP_TABLES)])

    def initial_observations(self) -> Tree:
        """The first observation of every episode of the dataset, leaves `[episodes, …]`; subsampling drops none.

        Raises TypeError online, where the first steps of an episode may have been overwritten.
        """
        if self._rings is not None:
            raise TypeError("an online replay does not keep the first observation of every episode")
        return gathered(self._observations, self._rows[self._positions == 0])

    def episode_ends(self) -> tuple[Tensor, Tensor]:
        """Lengths `[episodes]` int64 and `terminated` `[episodes]` of whole episodes, sampled or not. Offline only."""
        if self._rings is not None:
            raise TypeError("the rings of an online replay hold parts of episodes")
        ends = self._last.nonzero().squeeze(-1)
        return self._positions[ends].long() + 1, self._terminated[ends]

    # --- sampling: draw, then gather ---------------------------------------------------------------------------------

    def draw(self, batch_size: int, generators: Sequence[torch.Generator]) -> Tensor:
        """Entries of the step table `[B]`, or `[S, B]` for S > 1 generators, uniform with replacement."""
        return self.entries(drawn_numbers(len(self), batch_size, generators, self.device))

    def entries(self, numbers: Tensor) -> Tensor:
        """Entries of the steps with these numbers, counted from 0 among the steps that can be sampled. Any shape."""
        if self._drawable is not None:
            return self._drawable[numbers]
        if self._rings is not None and self._rings.first:
            return (numbers + self._rings.first_entry) % len(self._rewards)
        return numbers

    def sample(
        self,
        batch_size: int,
        generators: Sequence[torch.Generator],
        *,
        discount: float,
        n_step: int = 1,
        next_actions: bool = False,
        frame_stack: int = 1,
        between: bool = False,
        reward: RewardFunction | None = None,
    ) -> Transitions:
        """`gather(draw(…), …)`: `[B, …]` for one generator, `[S, B, …]` for S."""
        return self.gather(
            self.draw(batch_size, generators),
            discount=discount,
            n_step=n_step,
            next_actions=next_actions,
            frame_stack=frame_stack,
            between=between,
            reward=reward,
        )

    def gather(
        self,
        indices: Tensor,
        *,
        discount: float,
        n_step: int = 1,
        next_actions: bool = False,
        frame_stack: int = 1,
        between: bool = False,
        reward: RewardFunction | None = None,
    ) -> Transitions:
        """The transitions at `indices` `[*B]` int64, without randomness.

        n_step: sum rewards over up to n steps of one episode; the discount is γ to the power of the real length.
        next_actions: include the action taken at the next observation, with a mask that is False at an episode's end.
        frame_stack: stack observations to `[*B, k, …]`, oldest first; an episode's first frame is repeated before it.
        between: include the observations between the first and the last one, `[*B, n − 1, …]`, and their discounts.
        reward: function that replaces the reward of every single step, before the n-step sum. It reads the stored
            rewards without `reward_transform`, and discounts γ (1 − terminated) whatever `time_limit` is.
        """
        check_discount(discount)
        self._check_window("n_step", n_step, frame_stack)
        first, inside = indices.reshape(-1), {}
        if n_step == 1:
            final = first
            rewards = self._step_rewards(first, frame_stack, reward, discount)
            discounts = self._continues.index_select(0, first) * discount
        else:
            window, mask = self._window(first, n_step)  # [B, n]
            powers = discount ** torch.arange(n_step + 1, device=self.device, dtype=torch.float32)
            single = self._step_rewards(window.reshape(-1), frame_stack, reward, discount).view_as(window)
            rewards = torch.where(mask, single * powers[:-1], 0).sum(1)
            lengths = mask.sum(1)
            final = window.gather(1, lengths[:, None] - 1)[:, 0]
            discounts = powers[lengths] * self._continues.index_select(0, final)
            if between:
                seen = self._observe(window[:, 1:].reshape(-1), frame_stack)
                inside = {
                    "between": tree_map(lambda x: x.view(len(first), n_step - 1, *x.shape[1:]), seen),
                    "between_discounts": torch.where(mask[:, 1:], powers[1:-1], 0),
                }
        batch = Transitions(
            observations=self._observe(first, frame_stack),
            actions=self._actions.index_select(0, first),
            rewards=rewards,
            discounts=discounts,
            next_observations=self._observe(final, frame_stack, after=1),
            next_actions=self._actions.index_select(0, self._later(final, 1)) if next_actions else None,
            next_action_mask=~self._last.index_select(0, final) if next_actions else None,
            **inside,
        )
        return batch if indices.dim() == 1 else tree_map(lambda x: x.view(*indices.shape, *x.shape[1:]), batch)

    def sample_segments(
        self, batch_size: int, length: int, generators: Sequence[torch.Generator], *, frame_stack: int = 1
    ) -> Segments:
        """`gather_segments(draw(…), length)`: windows that begin at uniformly drawn steps."""
        return self.gather_segments(self.draw(batch_size, generators), length, frame_stack=frame_stack)

    def gather_segments(self, indices: Tensor, length: int, *, frame_stack: int = 1) -> Segments:
        """Windows of `length` steps that begin at `indices` `[*B]`; every field is `[*B, T, …]`.

        `mask` is False after the episode's end. There rewards, flags and returns-to-go are zero, and the other fields
        repeat the last step. Returns-to-go are undiscounted, and None online, where returns are not yet known.
        """
        self._check_window("length", length, frame_stack)
        window, mask = self._window(indices.reshape(-1), length)
        final = window.gather(1, mask.sum(1, keepdim=True) - 1)
        flat, real = torch.where(mask, window, final).reshape(-1), mask.reshape(-1)

        def masked(table: Tensor) -> Tensor:
            values = table.index_select(0, flat)
            return torch.where(real, values, torch.zeros_like(values))

        segments = Segments(
            observations=self._observe(flat, frame_stack),
            actions=self._actions.index_select(0, flat),
            rewards=torch.where(real, self._own_rewards(flat), 0),
            mask=real,
            terminated=masked(self._terminated),
            truncated=masked(self._truncated),
            next_observations=self._observe(flat, frame_stack, after=1),
            returns_to_go=None if self._returns_to_go is None else masked(self._returns_to_go),
            timesteps=self._positions.index_select(0, flat).long(),
        )
        windows: Segments = tree_map(lambda x: x.view(*indices.shape, length, *x.shape[1:]), segments)
        return windows

    def _check_window(self, name: str, length: int, frame_stack: int) -> None:
        if length < 1 or not 1 <= frame_stack <= self.frame_stack:
            wanted = f"{name} >= 1 and frame_stack in [1, {self.frame_stack}]"
            raise ValueError(f"expected {wanted}, got {length} and {frame_stack}")

    # --- the two tables ----------------------------------------------------------------------------------------------

    def _later(self, entries: Tensor, steps: int | Tensor) -> Tensor:
        """The entries `steps` further in the same lanes, modulo the ring's size."""
        return (entries + steps * self._lanes) % len(self._rewards)

    def _window(self, first: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Entries `[B, length]` from `first` on, and a mask of those in the same episode."""
        window = self._later(first[:, None], torch.arange(length, device=self.device))
        mask = torch.ones_like(window, dtype=torch.bool)
        mask[:, 1:] = (~self._last[window[:, :-1]]).cumprod(1)
        return window, mask

    def _observe(self, entries: Tensor, frame_stack: int, after: int = 0) -> Tree:
        """The observation of each step, or with after=1 the next one: leaves `[N, …]`, or `[N, k, …]` stacked."""
        rows = self._rows.index_select(0, entries)
        if after:
            rows = self._shift_rows(rows, 1)
        if frame_stack == 1:
            return gathered(self._observations, rows)
        back = torch.arange(frame_stack - 1, -1, -1, device=self.device)
        back = torch.minimum(back, self._positions.index_select(0, entries)[:, None] + after)  # clamped: [N, k]
        return gathered(self._observations, self._shift_rows(rows[:, None], -back))

    def _shift_rows(self, rows: Tensor, by: int | Tensor) -> Tensor:
        shifted = rows + by * self._lanes
        if self._rings is None or not self._rings.first:  # no row was overwritten yet, so rows do not wrap
            return shifted
        return shifted % (self._rings.rows * self._lanes)

    def _own_rewards(self, entries: Tensor) -> Tensor:
        rewards = self._rewards.index_select(0, entries)
        return rewards if self._reward_transform is None else self._reward_transform(rewards)

    def _step_rewards(
        self, entries: Tensor, frame_stack: int, reward: RewardFunction | None, discount: float
    ) -> Tensor:
        if reward is None:
            return self._own_rewards(entries)
        check_reward_discount(reward, discount)
        step = Transitions(
            observations=self._observe(entries, frame_stack),
            actions=self._actions.index_select(0, entries),
            rewards=self._rewards.index_select(0, entries),
            discounts=(~self._terminated.index_select(0, entries)).float() * discount,
            next_observations=self._observe(entries, frame_stack, after=1),
        )
        return rewards_from(reward, step)

    # --- online ------------------------------------------------------------------------------------------------------

    def extend(self, steps: Steps) -> None:
        """Append T successive steps of every lane: leaves `[T, lanes, …]`, arrays or tensors.

        `observations` are read only where an episode begins; later ones equal the `next_observations` of the step
        before. `reset` and `task` are not stored.

        Raises ValueError, and adds nothing, for another shape, NaN, infinity, or values that the table cannot hold.
        """
        rings, count, tables = self._rings, tuple(np.shape(steps.rewards)[:1]), self._tables
        if rings is None:
            raise TypeError("an offline replay does not grow; build one with ReplayBuffer.online")
        steps = steps if self._played_rewards is None else self._played_rewards(steps)
        columns: dict[str, Tree] = {
            name: self._checked(name, tables[name], getattr(steps, name), count)
            for name in ("actions", "rewards", "terminated", "truncated")
        }
        over = columns["terminated"] | columns["truncated"]
        columns["continues"] = ~(columns["terminated"] if self.time_limit == "bootstrap" else over)
        following = self._checked("next_observations", tables["observations"], steps.next_observations, count)
        if not len(over):
            return
        positions, began = positions_of(rings.position, over)
        starts = bool(began.any())
        name = "observations"
        first = self._checked(name, tables[name], steps.observations, count, began) if starts else None
        columns["last"] = np.concatenate([began[1:], np.ones_like(over[:1])])
        columns["positions"] = positions
        for begin in range(0, len(over), rings.longest_block):
            block = slice(begin, begin + rings.longest_block)
            written = rings.append(positions[block], began[block], over[block])
            if written.previous is not None and not begin:
                tables["last"][written.previous] = began[0]
            for name, values in columns.items():
                tables[name][written.steps] = values[block]
            tables["rows"][written.steps] = written.step_rows
            if starts:
                own = slice(np.count_nonzero(began[:begin]), np.count_nonzero(began[: block.stop]))
                write(tables["observations"], written.step_rows[began[block]], indexed(first, own))
            write(tables["observations"], written.next_rows, indexed(following, block))

    def cut(self, lanes: Array) -> None:
        """Give up the episodes of these lanes (a mask `[lanes]`): the newest step is their last.

        Neither flag is set there, so values are bootstrapped from its next observation.
        """
        if self._rings is None:
            raise TypeError("an offline replay does not grow; its episodes are complete")
        self._rings.position[lanes] = 0

    def _checked(
        self, name: str, table: Tree, values: Tree, steps: tuple[int, ...], which: Array | None = None
    ) -> Tree:
        """`values` `[T, lanes, …]`, or the entries `which` `[N, …]`, in the type of `table`. Raises ValueError."""
        if isinstance(table, dict):
            if not isinstance(values, Mapping) or set(values) != set(table):
                came = sorted(values) if isinstance(values, Mapping) else type(values).__name__
                raise ValueError(f"expected {name} with the keys {sorted(table)}, got {came}")
            parts = {key: (f"{name}[{key!r}]", leaf, values[key]) for key, leaf in table.items()}
            return {key: self._checked(*part, steps, which) for key, part in parts.items()}
        given = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
        if given.shape != (shape := (*steps, self._lanes, *table.shape)):
            raise ValueError(f"expected {name} of shape {shape}, [steps, lanes, …], got {given.shape}")
        given, dtype = given if which is None else given[which], table.dtype
        if given.dtype == dtype and (dtype.kind != "f" or np.isfinite(given).all()):
            return given
        with np.errstate(over="ignore", invalid="ignore"):
            stored: Array = given.astype(dtype, copy=False)
        good = np.isfinite(stored) if dtype.kind == "f" else stored == given
        if not good.all():
            bad = tuple(np.argwhere(~good)[0])
            step, lane = bad[:2] if which is None else np.argwhere(which)[bad[0]]
            kind = "finite" if dtype.kind == "f" else dtype.name
            raise ValueError(f"expected {kind} {name}, got {given[bad].item()} in lane {lane} of step {step}")
        return stored

    def to_episodes(self, spec: Spec, **fields: Any) -> Episodes:
        """All steps of an online replay, lane by lane, as `Episodes`; `fields` are further fields of `Episodes`.

        The oldest episode of a lane may lack its first steps. An unfinished episode counts as truncated.

        Raises TypeError offline, and DataError if the replay is empty.
        """
        if self._rings is None:
            raise TypeError("an offline replay was built from Episodes: use those")
        rings, found = self._rings, []
        numbers = np.arange(rings.first, rings.added)
        for lane in range(self._lanes):
            entries = torch.from_numpy(numbers % rings.steps * self._lanes + lane).to(self.device)
            ends = np.flatnonzero(self._last[entries].cpu().numpy()) + 1
            for part in np.split(np.arange(len(entries)), ends[ends < len(entries)]):
                steps = entries[torch.from_numpy(part).to(self.device)]
                terminated, truncated = (table[steps].cpu().numpy() for table in (self._terminated, self._truncated))
                truncated[-1] |= not terminated[-1]
                seen, final = self._observe(steps, 1), self._observe(steps[-1:], 1, after=1)
                observations = tree_map(lambda *leaves: torch.cat(leaves).cpu().numpy(), seen, final)
                actions, rewards = self._actions[steps].cpu().numpy(), self._rewards[steps].double().cpu().numpy()
                values = (observations, actions, rewards, terminated, truncated)
                names = ("observations", "actions", "rewards", "terminated", "truncated")
                found.append(dict(zip(names, values, strict=True)))
        return Episodes.from_episodes(
            found,
            observation_space=spec.observation_space,
            action_space=spec.action_space,
            raw_observation_space=spec.raw_observation_space,
            observation_keys=spec.observation_keys,
            **fields,
        )

    def state_dict(self) -> dict[str, Any]:
        """State of an online replay: the filled part of each table (not a copy), and the counters."""
        if self._rings is None:
            raise TypeError("an offline replay has no state: it is its dataset, whose fingerprint runs record")
        steps, rows = self._rings.filled_steps * self._lanes, self._rings.filled_rows * self._lanes
        return {
            "observations": tree_map(lambda leaf: leaf[:rows], self._observations),
            **{name: getattr(self, f"_{name}")[:steps] for name in _STEP_TABLES},
            "time_limit": self.time_limit,
            "rings": self._rings.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()` of a replay with the same settings.

        Raises ValueError, and changes nothing, if capacity, lanes, frame_stack, time_limit or shapes differ.
        """
        rings = saved_rings(self._rings, self.time_limit, state)
        steps, rows = rings.filled_steps * self._lanes, rings.filled_rows * self._lanes
        restore(
            ("observations", self._observations, state["observations"], rows),
            *((name, getattr(self, f"_{name}"), state[name], steps) for name in _STEP_TABLES),
        )
        self._rings = rings


_STEP_TABLES = ("rows", "actions", "rewards", "terminated", "truncated", "last", "positions", "continues")


def _count(flags: Tensor) -> int:
    """The number of flags that are set; they stay on their device."""
    if flags.device.type == "cpu":
        return int(np.count_nonzero(flags.numpy()))  # several times as fast as a tensor's own
    return int(flags.count_nonzero())


def _returns_to_go(episodes: Episodes) -> Array:
    """Undiscounted return-to-go at each step. `[steps]` float32"""
    total = np.cumsum(episodes.rewards[::-1])[::-1]
    after = np.append(total, 0.0)[episodes.offsets[1:]]
    returns = total - np.repeat(after, episodes.lengths())
    return single(episodes.source, episodes.offsets, "returns-to-go", returns)
