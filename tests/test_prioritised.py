"""Prioritised replay: the tree against plain sums, shares and weights by hand, and what the ring does to both."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from sameness import equal

from herdbook.core import checkpoint
from herdbook.core.types import Spec, Steps, Transitions
from herdbook.datasets.episodes import Episodes
from herdbook.datasets.prioritised import PrioritisedReplay, SumTree
from herdbook.datasets.replay import ReplayBuffer

SPEC = Spec(spaces.Box(-np.inf, np.inf, (1,)), spaces.Discrete(2))


def make(capacity: int = 8, lanes: int = 1, exponent: float = 1.0) -> PrioritisedReplay:
    return PrioritisedReplay(ReplayBuffer.online(SPEC, capacity, lanes), exponent)


def fill(replay: PrioritisedReplay, steps: int, lanes: int = 1, start: int = 0) -> None:
    """Steps whose observation, and reward, is their number (·10 + lane)."""
    for number in range(start, start + steps):
        value = np.array([10.0 * number + lane for lane in range(lanes)])
        flags = np.zeros(lanes, dtype=np.bool_)
        replay.add(Steps(value[:, None], np.zeros(lanes, np.int64), value, flags, flags, value[:, None] + 10))


def draw(replay: Any, count: int, seed: int = 0, **options: Any) -> Transitions:
    batch: Transitions = replay.sample(count, [torch.Generator().manual_seed(seed)], discount=0.9, **options)
    return batch


@pytest.mark.parametrize(("capacity", "lanes"), [(8, 1), (6, 2), (40, 2)])
def test_a_block_is_its_steps(capacity: int, lanes: int) -> None:
    """Blocks of 1 to 12 steps, in which priorities were set before; the larger is longer than the smallest ring."""
    rng = np.random.default_rng(capacity)
    blocks, steps = make(capacity, lanes), make(capacity, lanes)
    for count in (3, 1, 12, 2, 5, 12, 1):
        value = rng.normal(size=(count, lanes)).astype(np.float32)
        over = rng.random((count, lanes)) < 0.3
        columns = (value[..., None], np.zeros((count, lanes), np.int64), value, over, np.zeros_like(over))
        blocks.extend(Steps(*columns, value[..., None] + 10))
        for number in range(count):
            steps.add(Steps(*(column[number] for column in columns), value[number, :, None] + 10))
        assert equal(blocks.state_dict(), steps.state_dict())
        drawn = draw(blocks, 4).indices
        assert drawn is not None
        for replay in (blocks, steps):
            replay.set_priorities(drawn, torch.tensor([0.5, 2.0, 3.0, 1.0]))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 100])
def test_the_tree_is_the_running_sum(size: int) -> None:
    generator = np.random.default_rng(size)
    tree, plain = SumTree(size), np.zeros(size)
    for _ in range(30):
        indices = generator.integers(0, size, generator.integers(1, 6))
        values = generator.choice([0.0, 1.0, 2.5, 1e-3], len(indices))
        for index, value in zip(indices, values, strict=True):
            plain[index] = value
        tree[indices] = values
        assert tree.total == pytest.approx(plain.sum())
        np.testing.assert_array_equal(tree[np.arange(size)], plain)
        if plain.sum():
            heights = generator.uniform(0, plain.sum(), 50)
            np.testing.assert_array_equal(tree.find(heights), np.searchsorted(np.cumsum(plain), heights, side="right"))


def test_the_tree_finds_by_hand() -> None:
    tree = SumTree(4)
    tree[np.array([0, 1, 3])] = [1.0, 2.0, 1.0]  # cumulative: 1, 3, 3, 4
    assert tree.find(np.array([0.0, 0.99, 1.0, 2.99, 3.0, 3.99])).tolist() == [0, 0, 1, 1, 3, 3]


def test_rounding_never_finds_what_has_no_share() -> None:
    tree = SumTree(4)
    tree[np.array([0, 1])] = [1.0, 2.0]
    assert tree.find(np.array([3.0, 5.0])).tolist() == [1, 1]  # at and above the total


def test_shares_and_weights_by_hand() -> None:
    """Priorities 1, 1, 2, 4: shares 1/8, 1/8, 1/4, 1/2 of N = 4; w = (4 P)^−½ = √2, √2, 1, 1/√2, over the largest."""
    replay = make()
    fill(replay, 4)
    replay.set_priorities(torch.tensor([0, 1, 2, 3]), torch.tensor([1.0, 1.0, 2.0, 4.0]))
    batch = draw(replay, 8000, importance_exponent=0.5)
    assert batch.indices is not None and batch.weights is not None
    # One from each of 8,000 equal parts: the counts are exact.
    assert torch.bincount(batch.indices).tolist() == [1000, 1000, 2000, 4000]
    expected = torch.tensor([1.0, 1.0, 0.5**0.5, 0.5])
    torch.testing.assert_close(batch.weights, expected[batch.indices])
    torch.testing.assert_close(batch.rewards, 10.0 * batch.indices)


def test_the_exponent_flattens_the_priorities() -> None:
    for exponent, shares in ((0.0, [1, 1, 1]), (0.5, [1, 2, 3]), (1.0, [1, 4, 9])):
        replay = make(exponent=exponent)
        fill(replay, 3)
        replay.set_priorities(torch.arange(3), torch.tensor([1.0, 4.0, 9.0]))
        assert draw(replay, sum(shares) * 100).indices.bincount().tolist() == [100 * s for s in shares]  # type: ignore[union-attr]  # they are there


def test_new_steps_have_the_largest_priority_that_ever_was() -> None:
    replay = make()
    fill(replay, 2)
    replay.set_priorities(torch.tensor([0, 1]), torch.tensor([6.0, 1.0]))
    replay.set_priorities(torch.tensor([0]), torch.tensor([1.0]))
    fill(replay, 1, start=2)
    assert replay.tree[np.arange(3)].tolist() == [1.0, 1.0, 6.0]


@pytest.mark.parametrize("lanes", [1, 3])
def test_steps_that_left_the_ring_are_drawn_no_more(lanes: int) -> None:
    replay = make(capacity=4 * lanes, lanes=lanes)
    fill(replay, 7, lanes)
    batch = draw(replay, 600)
    assert set(batch.rewards.tolist()) == {10.0 * number + lane for number in (3, 4, 5, 6) for lane in range(lanes)}
    torch.testing.assert_close(batch.observations[:, 0], batch.rewards)
    assert replay.tree.total == len(replay) == 4 * lanes


@pytest.fixture(scope="module")
def short() -> PrioritisedReplay:
    """3,500 episodes of one step in a ring of 2,048: each takes two rows, and there are too few for all."""
    replay = make(capacity=2048)
    over, action = np.array([True]), np.zeros(1, np.int64)
    for number in range(3500):
        value = np.array([float(number)])
        replay.add(Steps(value[:, None], action, value, over, ~over, value[:, None]))
    return replay


def test_short_episodes_use_up_rows_and_their_steps_leave_sooner(short: PrioritisedReplay) -> None:
    held = len(short)
    assert 1500 < held < 1600 and short.tree.total == held
    assert sorted(set(draw(short, held).rewards.tolist())) == [float(n) for n in range(3500 - held, 3500)]


def test_a_priority_that_comes_after_its_step_has_left_is_passed_over(short: PrioritisedReplay) -> None:
    gone = int(np.flatnonzero(short.tree[np.arange(2048)] == 0)[0])
    short.set_priorities(torch.tensor([gone]), torch.tensor([0.5]))
    assert short.tree.total == len(short)


def test_n_step_sums_are_those_of_the_replay() -> None:
    replay = make()
    fill(replay, 5)
    batch = draw(replay, 64, n_step=2)
    assert batch.indices is not None
    plain = replay.replay.gather(batch.indices, discount=0.9, n_step=2)
    torch.testing.assert_close(batch.rewards, plain.rewards)
    torch.testing.assert_close(batch.discounts, plain.discounts)


def test_it_goes_on_from_its_state(tmp_path: Any) -> None:
    one, other = make(capacity=6, lanes=2, exponent=0.6), make(capacity=6, lanes=2, exponent=0.6)
    fill(one, 5, lanes=2)
    one.set_priorities(torch.tensor([0, 3]), torch.tensor([3.0, 0.1]))
    fill(other, 2, lanes=2)
    checkpoint.save(tmp_path / "state", one.state_dict())
    other.load_state_dict(checkpoint.load(tmp_path / "state"))
    for replay in (one, other):
        fill(replay, 2, lanes=2, start=5)
    mine, theirs = draw(one, 50), draw(other, 50)
    for name in ("indices", "weights", "rewards", "next_observations"):
        assert torch.equal(getattr(mine, name), getattr(theirs, name))
    assert one.largest == other.largest == 3.0


def test_what_it_refuses() -> None:
    with pytest.raises(ValueError, match="the replay is empty"):
        draw(make(), 2)
    replay = make()
    fill(replay, 2)
    with pytest.raises(ValueError, match="expected one generator"):
        replay.sample(2, [torch.Generator(), torch.Generator()], discount=0.9)
    row = {"observations": np.zeros((2, 1)), "actions": [0], "rewards": [0.0], "terminated": True, "truncated": False}
    episodes = Episodes.from_episodes([row], observation_space=SPEC.observation_space, action_space=SPEC.action_space)
    with pytest.raises(TypeError, match="offline one"):
        PrioritisedReplay(ReplayBuffer(episodes))
