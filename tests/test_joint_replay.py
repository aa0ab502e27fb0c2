"""The joint replay: a table worked by hand, a plain loop to agree with, and offline equal to online."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.utils import _pytree as pytree

from herdbook.core.checkpoint import load, save
from herdbook.core.joint.types import JointEpisode, JointSpec
from herdbook.datasets.joint.episodes import JointEpisodes
from herdbook.datasets.joint.replay import JointReplay
from herdbook.datasets.validation import DataError

BOX = spaces.Box(-np.inf, np.inf, (1,), np.float32)
AGENTS = ("a", "b", "c")
SPEC = JointSpec(
    agents=AGENTS,
    observation_spaces=dict.fromkeys(AGENTS, BOX),
    action_spaces=dict.fromkeys(AGENTS, spaces.Discrete(2)),
    state_space=BOX,
)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def build(number: int, alive: Any, terminated: Any, truncated: Any) -> JointEpisode:
    """Agent i of episode e sees 100 e + 10 t + i in row t and gets 10^i; the state is 100 e + t."""
    acts = np.array(alive, dtype=bool)
    rows = np.concatenate([acts, np.zeros((1, 3), bool)])
    present = rows.copy()
    present[1:] |= acts
    moments = np.arange(len(rows))[:, None]
    return JointEpisode(
        observations={"a": ((100 * number + 10 * moments + np.arange(3)) * present)[..., None].astype(np.float32)},
        actions={"a": np.ones((len(acts), 3), np.int64) * acts},
        rewards=10.0 ** np.arange(3) * acts,
        terminated=np.array(terminated, dtype=bool),
        truncated=np.array(truncated, dtype=bool),
        alive=rows,
        state=(100.0 * number + moments).astype(np.float32),
    )


# a terminates early, b is truncated at the end, c joins late and is truncated at the end.
MIXED = build(
    0,
    [(1, 1, 0), (1, 1, 0), (0, 1, 1), (0, 1, 1)],
    [(0, 0, 0), (1, 0, 0), (0, 0, 0), (0, 0, 0)],
    [(0, 0, 0), (0, 0, 0), (0, 0, 0), (0, 1, 1)],
)
# It is over for everyone, for a one step earlier.
OVER = build(1, [(1, 1, 1), (0, 1, 1)], [(1, 0, 0), (0, 1, 1)], [(0, 0, 0), (0, 0, 0)])
# It is only cut off.
CUT = build(2, [(1, 1, 1), (1, 1, 1)], [(0, 0, 0), (0, 0, 0)], [(0, 0, 0), (1, 1, 1)])

H = 0.5  # γ
TABLE = [  # step, rewards, next_alive, discounts if bootstrap, if terminal, team reward, team discount if …, if …
    (0, (1, 10, 0), (1, 1, 0), (H, H, H), (H, H, H), 11, H, H),
    (1, (1, 10, 0), (0, 1, 1), (0, H, H), (0, H, H), 11, H, H),
    (2, (0, 10, 100), (0, 1, 1), (H, H, H), (H, H, H), 110, H, H),
    (3, (0, 10, 100), (0, 1, 1), (H, H, H), (H, 0, 0), 110, H, 0),
    (4, (1, 10, 100), (0, 1, 1), (0, H, H), (0, H, H), 111, H, H),
    (5, (0, 10, 100), (0, 0, 0), (H, 0, 0), (H, 0, 0), 110, 0, 0),
    (6, (1, 10, 100), (1, 1, 1), (H, H, H), (H, H, H), 111, H, H),
    (7, (1, 10, 100), (1, 1, 1), (H, H, H), (0, 0, 0), 111, H, 0),
]
ALIVE = [(1, 1, 0), (1, 1, 0), (0, 1, 1), (0, 1, 1), (1, 1, 1), (0, 1, 1), (1, 1, 1), (1, 1, 1)]


def table_replay(time_limit: Any, online: bool) -> JointReplay:
    if not online:
        return JointReplay(JointEpisodes.from_episodes([MIXED, OVER, CUT], SPEC), time_limit=time_limit)
    replay = JointReplay.online(SPEC, 8, time_limit=time_limit)
    for episode in (MIXED, OVER, CUT):
        replay.add(episode)
    return replay


@pytest.mark.parametrize("online", [False, True], ids=["offline", "online"])
@pytest.mark.parametrize("time_limit", ["bootstrap", "terminal"])
def test_the_table_by_hand(time_limit: Any, online: bool) -> None:
    batch = table_replay(time_limit, online).gather(torch.arange(8), discount=H)
    terminal = time_limit == "terminal"
    for step, rewards, next_alive, bootstrap, cut, team, team_bootstrap, team_cut in TABLE:
        assert batch.rewards[step].tolist() == list(rewards)
        assert batch.alive[step].tolist() == list(map(bool, ALIVE[step]))
        goes_on = [n and d > 0 for n, d in zip(next_alive, cut, strict=True)] if terminal else next_alive
        assert batch.next_alive[step].tolist() == list(map(bool, goes_on))
        assert batch.discounts[step].tolist() == list(cut if terminal else bootstrap)
        assert batch.team_rewards[step] == team
        assert batch.team_discounts[step] == (team_cut if terminal else team_bootstrap)
    assert batch.observations["a"].squeeze(-1).tolist() == [
        [0, 1, 0], [10, 11, 0], [20, 21, 22], [0, 31, 32], [100, 101, 102], [110, 111, 112], [200, 201, 202],
        [210, 211, 212],
    ]  # fmt: skip
    assert batch.next_observations["a"].squeeze(-1).tolist() == [
        [10, 11, 0], [20, 21, 22], [0, 31, 32], [0, 41, 42], [110, 111, 112], [0, 121, 122], [210, 211, 212],
        [220, 221, 222],
    ]  # fmt: skip
    assert batch.state is not None and batch.next_state is not None
    assert batch.state.squeeze(-1).tolist() == [0, 1, 2, 3, 100, 101, 200, 201]
    assert batch.next_state.squeeze(-1).tolist() == [1, 2, 3, 4, 101, 102, 201, 202]
    assert batch.timesteps.tolist() == [0, 1, 2, 3, 0, 1, 0, 1]
    assert batch.indices is not None and batch.indices.tolist() == list(range(8))


@pytest.mark.parametrize("online", [False, True], ids=["offline", "online"])
def test_segments_by_hand(online: bool) -> None:
    """The terminal step stays in; behind it nobody is alive, nothing is earned, and the final row is repeated."""
    segments = table_replay("terminal", online).gather_segments(torch.tensor([2, 4]), 3, discount=H)
    assert segments.mask.tolist() == [[True, True, False], [True, True, False]]
    assert segments.alive[0].tolist() == [[False, True, True], [False, True, True], [False] * 3]
    assert segments.next_alive[0].tolist() == [[False, True, True], [False] * 3, [False] * 3]
    assert segments.next_alive[1].tolist() == [[False, True, True], [False] * 3, [False] * 3]
    assert segments.rewards[1].tolist() == [[1, 10, 100], [0, 10, 100], [0, 0, 0]]
    assert segments.discounts[0].tolist() == [[H, H, H], [H, 0, 0], [0, 0, 0]]
    assert segments.team_rewards.tolist() == [[110, 110, 0], [111, 110, 0]]
    assert segments.team_discounts.tolist() == [[H, 0, 0], [H, 0, 0]]
    assert segments.actions["a"].tolist() == [[[0, 1, 1]] * 3, [[1, 1, 1], [0, 1, 1], [0, 1, 1]]]
    assert segments.observations["a"].squeeze(-1).tolist() == [
        [[20, 21, 22], [0, 31, 32], [0, 41, 42], [0, 41, 42]],
        [[100, 101, 102], [110, 111, 112], [0, 121, 122], [0, 121, 122]],
    ]
    assert segments.state is not None
    assert segments.state.squeeze(-1).tolist() == [[2, 3, 4, 4], [100, 101, 102, 102]]


# --- random data, and a plain loop -----------------------------------------------------------------------------------

IMAGES = spaces.Dict({"camera": spaces.Box(0, 255, (2, 2, 3), np.uint8), "speed": BOX})
WALK = spaces.Discrete(3, start=2)
RICH = JointSpec(  # kinds whose agents are not one after the other, masks for one of them, images, a state of two parts
    agents=("walker_0", "drone", "walker_1"),
    observation_spaces={"walker_0": BOX, "drone": IMAGES, "walker_1": BOX},
    action_spaces={"walker_0": WALK, "drone": spaces.Box(-1, 1, (2,)), "walker_1": WALK},
    state_space=IMAGES,
    masked=True,
)


def random_episode(generator: np.random.Generator, longest: int = 6) -> JointEpisode:
    """Agents join and leave at random; someone always acts."""
    length = int(generator.integers(1, longest + 1))
    rows, steps = length + 1, np.arange(length)[:, None]
    first, last = generator.integers(0, length, (2, 3))
    first[0], last[0] = 0, length - 1
    acts = (steps >= first) & (steps <= last)
    ends = (steps == last) & acts
    terminated = ends & generator.integers(0, 2, 3).astype(bool)
    alive = np.concatenate([acts, np.zeros((1, 3), bool)])
    present = alive.copy()
    present[1:] |= acts
    present |= ~acts.any(0)
    mask = np.ones((rows, 2, 3), bool)
    choices = generator.integers(2, 5, (length, 2))
    mask[:-1] = choices[..., None] - 2 >= np.arange(3)
    walkers, drone = [0, 2], slice(1, 2)
    return JointEpisode(
        observations={
            "walker_0": generator.normal(size=(rows, 2, 1)).astype(np.float32) * present[:, walkers, None],
            "drone": {
                "camera": generator.integers(0, 256, (rows, 1, 2, 2, 3), dtype=np.uint8)
                * present[:, drone, None, None, None],
                "speed": generator.normal(size=(rows, 1, 1)).astype(np.float32) * present[:, drone, None],
            },
        },
        actions={
            "walker_0": np.where(acts[:, walkers], choices, 2),
            "drone": generator.uniform(-1, 1, (length, 1, 2)).astype(np.float32) * acts[:, drone, None],
        },
        rewards=generator.normal(size=(length, 3)) * acts,
        terminated=terminated,
        truncated=ends & ~terminated,
        alive=alive,
        action_mask={"walker_0": mask},
        state={
            "camera": generator.integers(0, 256, (rows, 2, 2, 3), dtype=np.uint8),
            "speed": generator.normal(size=(rows, 1)).astype(np.float32),
        },
    )


def random_episodes(count: int, seed: int = 0, longest: int = 6) -> list[JointEpisode]:
    generator = np.random.default_rng(seed)
    return [random_episode(generator, longest) for _ in range(count)]


def slow_step(episode: JointEpisode, t: int, discount: float, terminal: bool) -> dict[str, Any]:
    """The same transition by a loop over agents."""
    discounts, next_alive = [], []
    for i in range(3):
        over = episode.terminated[t, i] or (terminal and episode.truncated[t, i])
        discounts.append(0.0 if over else discount)
        next_alive.append(not over if episode.alive[t, i] else bool(episode.alive[t + 1, i]))
    team = discount
    if t == len(episode) - 1:
        left = [i for i in range(3) if episode.alive[t, i]]
        if terminal or all(episode.terminated[t, i] for i in left):
            team = 0.0
    seen = {
        name: pytree.tree_map(lambda leaf: leaf[t], getattr(episode, name))
        for name in ("observations", "actions", "action_mask", "state")
    }
    following = {
        f"next_{name}": pytree.tree_map(lambda leaf: leaf[t + 1], getattr(episode, name))
        for name in ("observations", "action_mask", "state")
    }
    return {
        **seen,
        **following,
        "rewards": episode.rewards[t].astype(np.float32),
        "team_rewards": np.float32(episode.rewards[t].sum()),
        "alive": episode.alive[t],
        "next_alive": np.array(next_alive),
        "discounts": np.array(discounts, np.float32),
        "team_discounts": np.float32(team),
        "timesteps": t,
    }


def assert_same(batch: Any, index: Any, expected: dict[str, Any]) -> None:
    for name, tree in expected.items():
        for got, wanted in zip(pytree.tree_leaves(getattr(batch, name)), pytree.tree_leaves(tree), strict=True):
            np.testing.assert_array_equal(got[index].numpy(), wanted, err_msg=name)


@pytest.mark.parametrize("time_limit", ["bootstrap", "terminal"])
@pytest.mark.parametrize("online", [False, True], ids=["offline", "online"])
def test_gather_agrees_with_a_plain_loop(time_limit: Any, online: bool) -> None:
    episodes = random_episodes(12)
    data = JointEpisodes.from_episodes(episodes, RICH)
    replay = JointReplay(data, time_limit=time_limit)
    if online:
        replay = JointReplay.online(RICH, data.num_steps, time_limit=time_limit)
        replay.add(*episodes)
    batch = replay.gather(torch.arange(data.num_steps), discount=0.75)
    steps = [(episode, t) for episode in episodes for t in range(len(episode))]
    assert len(steps) == len(replay) == data.num_steps and replay.num_episodes == 12
    for number, (episode, t) in enumerate(steps):
        assert_same(batch, number, slow_step(episode, t, 0.75, time_limit == "terminal"))


@pytest.mark.parametrize("time_limit", ["bootstrap", "terminal"])
def test_segments_agree_with_a_plain_loop(time_limit: Any) -> None:
    episodes = random_episodes(12, seed=1)
    data = JointEpisodes.from_episodes(episodes, RICH)
    segments = JointReplay(data, time_limit=time_limit).gather_segments(torch.arange(data.num_steps), 4, discount=0.75)
    steps = [(episode, t) for episode in episodes for t in range(len(episode))]
    seen = ("observations", "action_mask", "state")
    for number, (episode, start) in enumerate(steps):
        for k in range(4):
            inside = start + k < len(episode)
            assert segments.mask[number, k] == inside
            if inside:
                step = slow_step(episode, start + k, 0.75, time_limit == "terminal")
                assert segments.timesteps[number] == start == step.pop("timesteps") - k
                following = {name: step.pop(f"next_{name}") for name in seen}
                assert_same(segments, (number, k), step)
                assert_same(segments, (number, k + 1), following)
            else:
                for name in ("rewards", "discounts", "alive", "next_alive", "team_rewards", "team_discounts"):
                    assert not getattr(segments, name)[number, k].any(), name
                final = slow_step(episode, len(episode) - 1, 0.75, False)
                assert_same(segments, (number, k), {"actions": final["actions"]})
                assert_same(segments, (number, k + 1), {name: final[f"next_{name}"] for name in seen})


def test_seeds_are_an_axis_and_equal_the_solo_draws() -> None:
    replay = JointReplay(JointEpisodes.from_episodes(random_episodes(9), RICH))
    for draw in (
        lambda g: replay.sample(6, g, discount=0.9),
        lambda g: replay.sample_episodes(6, g, discount=0.9),
        lambda g: replay.sample_segments(6, 3, g, discount=0.9),
    ):
        both = draw(generators(4, 5))
        assert both.team_rewards.shape[:2] == (2, 6)
        for i, seed in enumerate((4, 5)):
            solo = draw(generators(seed))
            for name in (field.name for field in fields(solo)):
                for left, right in zip(
                    pytree.tree_leaves(getattr(both, name)), pytree.tree_leaves(getattr(solo, name)), strict=True
                ):
                    if left is not None:
                        assert torch.equal(left[i], right), name


def test_whole_episodes_are_drawn_uniformly_from_their_first_step() -> None:
    """However long they are; and every step is drawn as a step, the last slot too."""
    replay = table_replay("bootstrap", online=False)
    starts = replay.draw_episodes(3_000, generators(0))
    assert torch.bincount(starts, minlength=8)[[0, 4, 6]].min() > 850
    assert set(starts.tolist()) == {0, 4, 6}
    steps = torch.bincount(replay.draw(3_000, generators(0)), minlength=8)
    assert len(steps) == 8 and steps.min() > 280


@pytest.mark.parametrize("online", [False, True], ids=["offline", "online"])
def test_segments_of_episodes_are_as_long_as_the_longest_stored(online: bool) -> None:
    replay = table_replay("bootstrap", online)
    assert replay.sample_episodes(2, generators(0), discount=0.9).mask.shape == (2, 4)
    assert replay.sample_episodes(2, generators(0), discount=0.9, length=3).mask.shape == (2, 3)
    if online:
        replay.add(OVER, CUT)
        assert replay.sample_episodes(2, generators(0), discount=0.9).mask.shape == (2, 2)  # the longest has left


def test_a_known_length_makes_shapes_static_and_is_kept_to() -> None:
    replay = JointReplay.online(SPEC, 16, length=3)
    replay.add(OVER)
    assert replay.sample_episodes(2, generators(0), discount=0.9).mask.shape == (2, 3)
    with pytest.raises(ValueError, match="episodes of at most 3 steps, the replay's length, got 4"):
        replay.add(MIXED)
    assert (len(replay), replay.num_episodes) == (2, 1)
    with pytest.raises(ValueError, match=r"expected a length in \[1, 16\], the capacity, got 17"):
        JointReplay.online(SPEC, 16, length=17)


def test_the_state_is_stored_only_if_asked_for() -> None:
    data = JointEpisodes.from_episodes([MIXED, OVER], SPEC)
    for with_state, without in (
        (JointReplay(data), JointReplay(data, state=False)),
        (JointReplay.online(SPEC, 100), JointReplay.online(SPEC, 100, state=False)),
    ):
        rows = 8 if with_state.num_episodes else 100 + 100 + 1
        assert with_state.nbytes - without.nbytes == 4 * rows
        if not with_state.num_episodes:
            with_state.add(MIXED)
            without.add(replace(MIXED, state=None))
        assert with_state.gather(torch.tensor([0]), discount=1.0).next_state is not None
        assert without.gather(torch.tensor([0]), discount=1.0).state is None
        assert without.gather_segments(torch.tensor([0]), 2, discount=1.0).state is None


def test_a_state_that_was_not_recorded_is_missed_at_once() -> None:
    blind = replace(MIXED, state=None)
    with pytest.raises(ValueError, match=r"mine: expected the recorded state .*, got none; .* state=False"):
        JointReplay(JointEpisodes.from_episodes([blind], SPEC, source="mine"))
    replay = JointReplay.online(SPEC, 8)
    with pytest.raises(ValueError, match="expected the recorded state"):
        replay.add(blind)
    assert (len(replay), replay.num_episodes, replay.reward_std) == (0, 0, 1.0)
    no_state = replace(SPEC, state_space=None)
    assert (
        JointReplay(JointEpisodes.from_episodes([blind], no_state)).gather(torch.tensor([0]), discount=1.0).state
        is None
    )


def test_an_offline_replay_shares_the_memory_of_its_episodes() -> None:
    """Next observations are not stored twice, nor is anything else that is large."""
    data = JointEpisodes.from_episodes(random_episodes(5), RICH)
    replay = JointReplay(data)
    assert (
        replay._seen["observations"]["drone"]["camera"].data_ptr() == data.observations["drone"]["camera"].ctypes.data
    )
    assert replay._seen["state"]["speed"].data_ptr() == data.state["speed"].ctypes.data
    assert replay._taken["actions"]["walker_0"].data_ptr() == data.actions["walker_0"].ctypes.data


# --- online ----------------------------------------------------------------------------------------------------------


def numbered(number: int, length: int) -> JointEpisode:
    """Every row holds a number of its own, and no two rows of any two episodes the same."""
    episode = build(0, [(1, 1, 1)] * length, np.zeros((length, 3)), np.eye(length)[:, [-1] * 3])
    rows = (1000.0 * number + np.arange(length + 1)).astype(np.float32)
    return replace(
        episode, observations={"a": rows[:, None, None] + np.zeros((1, 3, 1), np.float32)}, state=rows[:, None]
    )


@pytest.mark.parametrize("seed", range(6))
def test_the_rings_wrap_without_mixing_episodes(seed: int) -> None:
    """After every episode, what can be drawn is the newest steps as they were recorded, and whole episodes whole."""
    generator = np.random.default_rng(seed)
    replay, recorded = JointReplay.online(SPEC, 11), []
    for number in range(60):
        length = int(generator.integers(1, 8))
        replay.add(numbered(number, length))
        recorded += [(number, t, length) for t in range(length)]
        newest = recorded[-11:]
        assert len(replay) == len(newest)
        drawn = replay.sample(200, generators(number), discount=1.0)
        seen = drawn.observations["a"][:, 0, 0].tolist()
        assert set(seen) == {1000.0 * n + t for n, t, _ in newest}
        torch.testing.assert_close(drawn.next_observations["a"], drawn.observations["a"] + 1)
        assert drawn.timesteps.tolist() == [int(number) % 1000 for number in seen]
        assert drawn.next_state is not None
        torch.testing.assert_close(drawn.next_state[:, 0], drawn.next_observations["a"][:, 0, 0])
        whole = {n: size for n, t, size in newest if t == 0}
        assert replay.num_episodes == len(whole)
        episodes = replay.sample_episodes(100, generators(number), discount=1.0)
        assert episodes.mask.shape[1] == max(whole.values())
        for row, real in zip(episodes.observations["a"][..., 0, 0], episodes.mask, strict=True):
            first = int(row[0]) // 1000
            assert real.sum() == whole[first]
            steps = np.minimum(np.arange(len(row)), whole[first])
            assert row.tolist() == (1000.0 * first + steps).tolist()


def test_an_episode_that_is_partly_overwritten_is_never_drawn_as_one() -> None:
    replay = JointReplay.online(SPEC, 8)
    replay.add(numbered(0, 4), numbered(1, 4))
    replay.add(numbered(2, 1))
    assert (len(replay), replay.num_episodes) == (8, 2)
    starts = replay.gather(replay.draw_episodes(300, generators(0)), discount=1.0).observations["a"][:, 0, 0]
    assert set(starts.tolist()) == {1000.0, 2000.0}
    steps = replay.sample(300, generators(0), discount=1.0).observations["a"][:, 0, 0]
    assert set(steps.tolist()) == {1, 2, 3, 1000, 1001, 1002, 1003, 2000}


def test_steps_leave_with_their_rows() -> None:
    """A large ring has rows for episodes of 8 steps on average; of shorter ones, fewer steps can be drawn."""
    replay = JointReplay.online(SPEC, 1_500)
    for start in range(0, 3_000, 1_000):
        replay.add(*(numbered(number, 1) for number in range(start, start + 1_000)))
    assert 1_000 < len(replay) < 1_500 and replay.num_episodes == len(replay)
    batch = replay.sample(2_000, generators(0), discount=1.0)
    torch.testing.assert_close(batch.next_observations["a"], batch.observations["a"] + 1)


def test_several_episodes_at_once_are_as_one_after_the_other() -> None:
    episodes = random_episodes(40, seed=3)
    together, apart = (JointReplay.online(RICH, 30) for _ in range(2))
    for start in range(0, 40, 4):
        together.add(*episodes[start : start + 4])
        for episode in episodes[start : start + 4]:
            apart.add(episode)
    left, right = together.state_dict(), apart.state_dict()
    torch.testing.assert_close(left.pop("spreads"), right.pop("spreads"))  # summed in another order
    assert_equal_trees(left, right)


def assert_equal_trees(left: Any, right: Any) -> None:
    leaves, others = pytree.tree_leaves(left), pytree.tree_leaves(right)
    assert len(leaves) == len(others) > 5
    for mine, theirs in zip(leaves, others, strict=True):
        assert torch.equal(mine, theirs) if isinstance(mine, torch.Tensor) else mine == theirs


def cloned(tree: Any) -> Any:
    return pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, tree)


@pytest.mark.parametrize("added", [3, 40])
def test_online_state_round_trips_to_the_bit(added: int) -> None:
    """Before and after the rings wrap; and both go on alike."""
    episodes = random_episodes(60, seed=4)
    replay = JointReplay.online(RICH, 32, time_limit="terminal")
    for episode in episodes[:added]:
        replay.add(episode)
    copy = JointReplay.online(RICH, 32, time_limit="terminal")
    copy.add(*episodes[-2:])  # forgotten
    copy.load_state_dict(
        pytree.tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, replay.state_dict())
    )
    for number in range(added, 55):
        assert (len(copy), copy.num_episodes) == (len(replay), replay.num_episodes)
        assert (copy.team_reward_std, copy.reward_std) == (replay.team_reward_std, replay.reward_std)
        for draw in ("sample", "sample_episodes"):
            ours, theirs = (getattr(r, draw)(9, generators(number), discount=0.9) for r in (replay, copy))
            assert_equal_trees(ours, theirs)
        replay.add(episodes[number])
        copy.add(episodes[number])
    assert_equal_trees(replay.state_dict(), copy.state_dict())


@pytest.mark.parametrize("added", [0, 8])
def test_the_state_survives_a_checkpoint(tmp_path: Path, added: int) -> None:
    replay = JointReplay.online(RICH, 32)
    for episode in random_episodes(added):
        replay.add(episode)
    save(tmp_path / "replay", replay.state_dict())
    copy = JointReplay.online(RICH, 32)
    copy.load_state_dict(load(tmp_path / "replay"))
    assert_equal_trees(replay.state_dict(), copy.state_dict())
    assert copy.num_episodes == replay.num_episodes


def test_the_state_of_another_replay_is_refused_and_changes_nothing() -> None:
    replay = JointReplay.online(SPEC, 8)
    replay.add(OVER)
    wide = replace(SPEC, observation_spaces=dict.fromkeys(AGENTS, spaces.Box(-1, 1, (2,))))
    for other, message in (
        (JointReplay.online(SPEC, 9), "build it with the same capacity"),
        (
            JointReplay.online(SPEC, 8, time_limit="terminal"),
            'expected a replay with time_limit="terminal", got \'boot',
        ),
        (JointReplay.online(SPEC, 8, state=False), r"keys \['observations'\], got \['observations', 'state'\]"),
        (
            JointReplay.online(wide, 8),
            r"of seen\['observations'\]\['a'\] \[3, 3, 2\] .* got \[3, 3, 1\]",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            other.load_state_dict(replay.state_dict())
        assert len(other) == 0


@pytest.mark.parametrize("online", [False, True], ids=["offline", "online"])
def test_reward_deviations_are_over_all_steps_ever_added(online: bool) -> None:
    """The team's over every step, the agents' over those that acted; also over what the ring has forgotten."""
    episodes = random_episodes(50, seed=5)
    if online:
        replay = JointReplay.online(RICH, 20)
        for episode in episodes:
            replay.add(episode)
    else:
        replay = JointReplay(JointEpisodes.from_episodes(episodes, RICH))
    team = np.concatenate([episode.rewards.sum(1) for episode in episodes])
    own = np.concatenate([episode.rewards[episode.alive[:-1]] for episode in episodes])
    assert replay.team_reward_std == pytest.approx(team.std(), rel=1e-12)
    assert replay.reward_std == pytest.approx(own.std(), rel=1e-12)
    assert replay.team_reward_mean == pytest.approx(team.mean(), rel=1e-12)
    assert replay.reward_mean == pytest.approx(own.mean(), rel=1e-12)
    assert isinstance(replay.reward_std, float)


def test_equal_rewards_have_a_deviation_of_one() -> None:
    """Rounding gives equal rewards of 0.1 a deviation of 1e-17, not 0; fewer than two values have none."""
    replay = JointReplay.online(SPEC, 100)
    assert (replay.team_reward_std, replay.reward_std) == (1.0, 1.0)
    assert (replay.team_reward_mean, replay.reward_mean) == (0.0, 0.0)
    replay.add(replace(CUT, rewards=np.full((2, 3), 0.1)))
    replay.add(*[replace(numbered(0, 7), rewards=np.full((7, 3), 0.1))] * 2)
    assert (replay.team_reward_std, replay.reward_std) == (1.0, 1.0)
    replay.add(replace(CUT, rewards=np.full((2, 3), 0.2)))
    assert replay.reward_std == pytest.approx(np.std([0.1] * 48 + [0.2] * 6))


@pytest.mark.parametrize("online", [False, True], ids=["offline", "online"])
def test_episodes_of_other_lengths_are_noticed_for_each_agent(online: bool) -> None:
    """An agent that leaves a game early has a shorter episode, even if the game goes on to its usual end."""
    late = build(3, [(1, 1, 1), (1, 1, 1)], [(0, 0, 0), (1, 1, 1)], [(0, 0, 0), (0, 0, 0)])

    def check(*episodes: JointEpisode) -> None:
        replay = JointReplay.online(SPEC, 30)
        if online:
            for episode in episodes:
                replay.add(episode)
        else:
            replay = JointReplay(JointEpisodes.from_episodes(episodes, SPEC))
        replay.require_equal_episodes("centring")

    check(CUT)
    check(CUT, late)
    check(MIXED, MIXED)  # each agent acts as often in one as in the other
    with pytest.raises(DataError, match=r"^centring: expected episodes of equal length, got 2 to 4 steps$"):
        check(CUT, MIXED)
    with pytest.raises(DataError, match=r"^centring: expected .*, got 1 to 2 steps of a$"):
        check(CUT, OVER, CUT)


def test_another_length_is_noticed_after_the_ring_has_forgotten_it_and_after_a_resume() -> None:
    def resumed(replay: JointReplay) -> JointReplay:
        copy = JointReplay.online(SPEC, 8)
        copy.load_state_dict(cloned(replay.state_dict()))
        return copy

    replay = JointReplay.online(SPEC, 8)
    replay.require_equal_episodes("centring")  # nothing was added
    resumed(replay).require_equal_episodes("centring")
    replay.add(*[CUT] * 4)
    resumed(replay).require_equal_episodes("centring")
    replay.add(OVER)
    for each in (replay, resumed(replay)):
        with pytest.raises(DataError, match="1 to 2 steps of a"):
            each.require_equal_episodes("centring")
    replay.add(*[CUT] * 4)
    with pytest.raises(DataError, match="1 to 2 steps of a"):
        replay.require_equal_episodes("centring")


def test_a_refused_episode_leaves_the_replay_as_it_was() -> None:
    replay = JointReplay.online(SPEC, 8)
    replay.add(OVER)
    before = cloned(replay.state_dict())
    bad = replace(CUT, rewards=np.array([[0, 0, 0], [0, np.nan, 0]]))
    with pytest.raises(ValueError, match="expected finite rewards of b, got nan at episode 1, step 1"):
        replay.add(MIXED, bad)
    with pytest.raises(ValueError, match="expected finite rewards as float32, got inf at episode 0, step 0"):
        replay.add(replace(CUT, rewards=np.full((2, 3), 1e39)))
    with pytest.raises(ValueError, match="expected at most 8 steps and 17 rows, got 9 and 10 in 1 episodes"):
        replay.add(numbered(0, 9))
    assert_equal_trees(before, replay.state_dict())


def test_a_replay_that_does_not_fit_is_refused_with_its_bytes() -> None:
    with pytest.raises(MemoryError, match=r"a replay of 1000000000000 steps needs [\d,]{16,} bytes on cpu, which has"):
        JointReplay.online(RICH, 10**12)


def test_misuse() -> None:
    offline, empty = table_replay("bootstrap", online=False), JointReplay.online(SPEC, 8)
    for sample in (empty.sample, empty.sample_episodes):
        with pytest.raises(ValueError, match="the replay is empty"):
            sample(1, generators(0), discount=0.9)
    with pytest.raises(TypeError, match="an offline replay does not grow"):
        offline.add(CUT)
    for call in (offline.state_dict, lambda: offline.load_state_dict({})):
        with pytest.raises(TypeError, match="an offline replay has no state"):
            call()
    with pytest.raises(ValueError, match="expected time_limit"):
        JointReplay.online(SPEC, 8, time_limit="never")  # type: ignore[arg-type]  # that is the test
    with pytest.raises(ValueError, match=r"expected a discount in \[0, 1\], got 1.5"):
        offline.sample(1, generators(0), discount=1.5)
    for call in (
        lambda: offline.sample_segments(1, 0, generators(0), discount=0.9),
        lambda: offline.sample_episodes(1, generators(0), discount=0.9, length=0),
    ):
        with pytest.raises(ValueError, match="expected length >= 1, got 0"):
            call()
    with pytest.raises(ValueError, match="expected a batch size of at least 1, got 0"):
        offline.sample_episodes(0, generators(0), discount=0.9)
