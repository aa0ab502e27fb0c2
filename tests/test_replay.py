"""The replay: tables worked by hand, a plain loop to agree with, and offline equal to online."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from sameness import equal

from herdbook.core.types import Spec, Steps, TimeLimit, Transitions, tree_map
from herdbook.datasets.episodes import Episodes
from herdbook.datasets.replay import ReplayBuffer

BOX = spaces.Box(-np.inf, np.inf, (1,), np.float32)
ACTIONS = spaces.Box(-1e6, 1e6, (1,), np.float32)


def make(lengths: tuple[int, ...], terminated: tuple[bool, ...], seed: int | None = None, **fields: Any) -> Episodes:
    """Episode e, step t: observation 10 e + t, action (10 e + t) / 100, reward 10^t; random numbers with a seed."""
    generator = np.random.default_rng(seed)

    def numbers(e: int, n: int, values: Any) -> Any:
        return values if seed is None else generator.uniform(-1, 1, n)

    episodes = [
        {
            "observations": np.asarray(numbers(e, n + 1, 10.0 * e + np.arange(n + 1)))[:, None],
            "actions": np.asarray(numbers(e, n, (10 * e + np.arange(n)) / 100))[:, None],
            "rewards": numbers(e, n, 10.0 ** np.arange(n)),
            "terminated": ended,
            "truncated": not ended,
        }
        for e, (n, ended) in enumerate(zip(lengths, terminated, strict=True))
    ]
    return Episodes.from_episodes(episodes, observation_space=BOX, action_space=ACTIONS, **fields)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def slow_gather(data: Episodes, step: int, discount: float, n_step: int, terminal: bool) -> dict[str, Any]:
    """The same transition by a loop over one episode."""
    e = int(np.searchsorted(data.offsets, step, side="right")) - 1
    start, end = data.offsets[e], data.offsets[e + 1]
    observations = data.observations[start + e : end + e + 1]
    reward, t, factor = 0.0, step - start, 1.0
    for k in range(n_step):
        if start + t >= end:
            break
        reward += discount**k * data.rewards[start + t]
        factor *= discount
        t += 1
    over = t == end - start
    if over and (data.terminated[end - 1] or (terminal and data.truncated[end - 1])):
        factor = 0.0
    return {
        "observations": observations[step - start],
        "actions": data.actions[step],
        "rewards": reward,
        "discounts": factor,
        "next_observations": observations[t],
        "next_action_mask": not over,
        "next_actions": None if over else data.actions[start + t],
    }


# Episode 0: 3 steps, terminated. Episode 1: 2 steps, truncated. γ = .5. Rewards 1, 10, 100 and 1, 10.
TABLE = [  # step, n, reward, discount, next observation
    (0, 1, 1, 0.5, 1),
    (2, 1, 100, 0.0, 3),  # the termination: its own final observation, no bootstrap
    (4, 1, 10, 0.5, 12),  # the truncation: bootstrap from the episode's own final observation
    (0, 2, 6, 0.25, 2),
    (1, 2, 60, 0.0, 3),
    (2, 2, 100, 0.0, 3),  # cut short by the end
    (3, 2, 6, 0.25, 12),
    (4, 2, 10, 0.5, 12),  # cut short: one step, so γ to the power of one
    (0, 3, 31, 0.0, 3),
    (3, 9, 6, 0.25, 12),
]


@pytest.mark.parametrize(("step", "n", "reward", "discount", "following"), TABLE)
def test_n_step_windows_cut_short_use_the_real_length(
    step: int, n: int, reward: float, discount: float, following: float
) -> None:
    batch = ReplayBuffer(make((3, 2), (True, False))).gather(torch.tensor([step]), discount=0.5, n_step=n)
    assert batch.rewards.tolist() == [reward]
    assert batch.discounts.tolist() == [discount]
    assert batch.next_observations.tolist() == [[following]]


def test_timeout_is_not_termination_unless_the_run_says_so() -> None:
    data = make((3, 2), (True, False))
    steps = torch.arange(5)
    bootstrap = ReplayBuffer(data).gather(steps, discount=0.5)
    terminal = ReplayBuffer(data, time_limit="terminal").gather(steps, discount=0.5)
    assert bootstrap.discounts.tolist() == [0.5, 0.5, 0.0, 0.5, 0.5]
    assert terminal.discounts.tolist() == [0.5, 0.5, 0.0, 0.5, 0.0]
    with pytest.raises(ValueError, match="expected time_limit"):
        ReplayBuffer(data, time_limit="never")  # type: ignore[arg-type]


def test_next_observation_at_a_boundary_is_the_episodes_own() -> None:
    batch = ReplayBuffer(make((3, 2), (True, False))).gather(torch.tensor([2, 4]), discount=1.0)
    assert batch.next_observations.squeeze(1).tolist() == [3, 12]  # never 10, the next episode's first


def test_the_observations_between_are_those_of_the_episode() -> None:
    """Steps 0, 1, 2 see 0, 1, 2 and terminate; steps 3 and 4 see 10 and 11 and are cut off. γ = ½, n = 3."""
    replay = ReplayBuffer(make((3, 2), (True, False)))
    batch = replay.gather(torch.arange(5), discount=0.5, n_step=3, between=True)
    assert batch.between is not None and batch.between_discounts is not None
    assert batch.between_discounts.tolist() == [[0.5, 0.25], [0.5, 0], [0, 0], [0.5, 0], [0, 0]]
    assert batch.between[:2, 0, 0].tolist() == [1, 2] and batch.between[0, 1, 0] == 2 and batch.between[3, 0, 0] == 11
    assert batch.between.shape == (5, 2, 1)
    both = replay.sample(6, generators(4, 5), discount=0.5, n_step=3, between=True)
    assert both.between.shape == (2, 6, 2, 1) and both.between_discounts.shape == (2, 6, 2)
    assert replay.gather(torch.arange(5), discount=0.5, between=True).between is None
    assert replay.gather(torch.arange(5), discount=0.5, n_step=3).between is None


def test_next_action_at_a_boundary_is_masked() -> None:
    replay = ReplayBuffer(make((3, 2), (True, False)))
    batch = replay.gather(torch.arange(5), discount=1.0, next_actions=True)
    assert batch.next_action_mask is not None and batch.next_actions is not None
    assert batch.next_action_mask.tolist() == [True, True, False, True, False]
    torch.testing.assert_close(batch.next_actions[batch.next_action_mask, 0], torch.tensor([0.01, 0.02, 0.11]))
    assert replay.gather(torch.arange(5), discount=1.0).next_actions is None


@pytest.mark.parametrize("time_limit", ["bootstrap", "terminal"])
@pytest.mark.parametrize("n_step", [1, 2, 5])
def test_gather_agrees_with_a_plain_loop(n_step: int, time_limit: Any) -> None:
    data = make((3, 1, 7, 2, 4), (True, True, False, False, True), seed=n_step)
    replay = ReplayBuffer(data, time_limit=time_limit)
    batch = replay.gather(torch.arange(data.num_steps), discount=0.9, n_step=n_step, next_actions=True)
    for step in range(data.num_steps):
        for name, value in slow_gather(data, step, 0.9, n_step, time_limit == "terminal").items():
            if value is not None:
                actual = getattr(batch, name)[step].numpy()
                np.testing.assert_allclose(actual, value, rtol=1e-5, atol=1e-6, err_msg=f"{name} of step {step}")


def test_every_step_is_drawn_the_last_slot_too() -> None:
    replay = ReplayBuffer(make((3, 2), (True, False)))
    drawn = replay.draw(2_000, generators(0))
    counts = torch.bincount(drawn, minlength=5)
    assert len(counts) == 5 and counts.min() > 300


def test_a_mask_restricts_which_steps_are_drawn_only() -> None:
    replay = ReplayBuffer(make((5, 4), (True, False)).subsample(3, 1))
    assert len(replay) == 3
    assert set(replay.draw(500, generators(0)).tolist()) == {1, 4, 6}
    assert replay.gather(torch.tensor([1]), discount=1.0).next_observations.tolist() == [[2.0]]


def test_seeds_are_an_axis_and_equal_the_solo_draws() -> None:
    replay = ReplayBuffer(make((3, 1, 7), (True, True, False), seed=3))
    both = replay.sample(6, generators(4, 5), discount=0.9, n_step=2, next_actions=True)
    assert both.observations.shape == (2, 6, 1) and both.rewards.shape == (2, 6)
    for i, seed in enumerate((4, 5)):
        solo = replay.sample(6, generators(seed), discount=0.9, n_step=2, next_actions=True)
        for name in ("observations", "actions", "rewards", "discounts", "next_observations", "next_action_mask"):
            torch.testing.assert_close(getattr(both, name)[i], getattr(solo, name), rtol=0, atol=0)


def test_frame_stacks_do_not_reach_into_the_episode_before() -> None:
    replay = ReplayBuffer(make((3, 2), (True, False)))
    batch = replay.gather(torch.tensor([0, 1, 2, 3, 4]), discount=1.0, frame_stack=3)
    assert batch.observations.squeeze(-1).tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 2], [10, 10, 10], [10, 10, 11]]
    assert batch.next_observations.squeeze(-1).tolist() == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [10, 10, 11], [10, 11, 12]]


def test_a_reward_function_applies_to_every_step_before_the_sum() -> None:
    replay = ReplayBuffer(make((3, 2), (True, False)))

    def reward(step: Transitions) -> torch.Tensor:
        return step.next_observations[:, 0] ** 2 + 1000 * step.discounts

    batch = replay.gather(torch.tensor([0, 1, 4]), discount=0.5, n_step=2, reward=reward)
    assert batch.rewards.tolist() == [501 + 0.5 * 504, 504 + 0.5 * 9, 144 + 500]  # the first episode terminates
    with pytest.raises(ValueError, match=r"expected the reward function to give \[1\], got \[1, 1\]"):
        replay.gather(torch.tensor([0]), discount=0.5, reward=lambda step: step.next_observations)


@pytest.mark.parametrize("n_step", [1, 2])
def test_a_reward_function_reads_terminations_and_raw_rewards_whatever_the_learner_does(n_step: int) -> None:
    """A time limit that counts as an end, and a transform of the learner's rewards, say nothing about the reward."""
    seen = []

    def reward(step: Transitions) -> torch.Tensor:
        seen.append((step.rewards.tolist(), step.discounts.tolist()))
        return step.discounts

    data = make((2, 2), (True, False))
    spec = Spec(BOX, ACTIONS)
    online = ReplayBuffer.online(spec, 4, time_limit="terminal", reward_transform=lambda r: -r)
    for start in (0, 2):
        part = slice(start, start + 2)
        rows = data.step_rows[part]
        fields = (data.actions[part], data.rewards[part], data.terminated[part], data.truncated[part])
        online.extend(
            Steps(
                data.observations[rows][:, None],
                *(values[:, None] for values in fields),
                data.observations[rows + 1][:, None],
            )
        )
    for replay in (ReplayBuffer(data, time_limit="terminal"), online):
        batch = replay.gather(torch.tensor([1, 3]), discount=0.5, n_step=n_step, reward=reward)
        assert batch.rewards.tolist() == [0, 0.5] and batch.discounts.tolist() == [0, 0]
        rewards, discounts = seen.pop()
        assert rewards[::n_step] == [10, 10] and discounts[::n_step] == [0, 0.5]


def test_segments_by_hand() -> None:
    replay = ReplayBuffer(make((3, 2), (True, False)))
    segments = replay.gather_segments(torch.tensor([1, 3]), 3)
    assert segments.mask.tolist() == [[True, True, False], [True, True, False]]
    assert segments.observations.squeeze(-1).tolist() == [[1, 2, 2], [10, 11, 11]]
    assert segments.next_observations.squeeze(-1).tolist() == [[2, 3, 3], [11, 12, 12]]
    assert segments.rewards.tolist() == [[10, 100, 0], [1, 10, 0]]
    assert segments.terminated.tolist() == [[False, True, False], [False, False, False]]
    assert segments.truncated.tolist() == [[False, False, False], [False, True, False]]
    assert segments.returns_to_go is not None and segments.timesteps is not None
    assert segments.returns_to_go.tolist() == [[110, 100, 0], [11, 10, 0]]
    assert segments.timesteps.tolist() == [[1, 2, 2], [0, 1, 1]]
    assert replay.sample_segments(4, 5, generators(0, 1, 2)).rewards.shape == (3, 4, 5)


def test_discrete_actions_stay_in_the_numbering_of_their_space() -> None:
    episode = {
        "observations": np.array([3, 0, 2]),
        "actions": np.array([5, 4]),
        "rewards": np.zeros(2),
        "terminated": True,
        "truncated": False,
    }
    data = Episodes.from_episodes(
        [episode], observation_space=spaces.Discrete(4), action_space=spaces.Discrete(2, start=4)
    )
    batch = ReplayBuffer(data).gather(torch.tensor([0, 1]), discount=1.0)
    assert batch.actions.tolist() == [5, 4] and batch.observations.tolist() == [3, 0]
    assert batch.actions.dtype == torch.int64


def test_dict_observations_are_gathered_leaf_by_leaf() -> None:
    images = np.random.default_rng(0).integers(0, 255, (3, 4, 4, 3), dtype=np.uint8)
    episode = {
        "observations": {"camera": images, "speed": np.arange(3.0)[:, None]},
        "actions": np.zeros((2, 1)),
        "rewards": np.zeros(2),
        "terminated": False,
        "truncated": True,
    }
    space = spaces.Dict({"camera": spaces.Box(0, 255, (4, 4, 3), np.uint8), "speed": BOX})
    data = Episodes.from_episodes([episode], observation_space=space, action_space=ACTIONS)
    batch = ReplayBuffer(data).sample(5, generators(0, 1), discount=0.9)
    assert batch.observations["camera"].dtype == torch.uint8
    assert batch.observations["camera"].shape == (2, 5, 4, 4, 3) and batch.next_observations["speed"].shape == (2, 5, 1)


def test_next_observations_are_not_stored_twice() -> None:
    """On the CPU the replay shares the memory of its episodes."""
    data = make((3, 2), (True, False))
    replay = ReplayBuffer(data)
    assert replay._observations.data_ptr() == data.observations.ctypes.data
    assert replay._actions.data_ptr() == data.actions.ctypes.data


def test_read_only_arrays_are_taken() -> None:
    data = make((3, 2), (True, False))
    data.observations.flags.writeable = False
    assert ReplayBuffer(data).gather(torch.tensor([0]), discount=1.0).observations.tolist() == [[0.0]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"discount": 1.5}, r"expected a discount in \[0, 1\], got 1.5"),
        ({"discount": 0.9, "n_step": 0}, "expected n_step >= 1"),
        ({"discount": 0.9, "frame_stack": 0}, "frame_stack in"),
    ],
)
def test_numbers_out_of_range(arguments: dict[str, Any], message: str) -> None:
    replay = ReplayBuffer(make((3, 2), (True, False)))
    with pytest.raises(ValueError, match=message):
        replay.gather(torch.tensor([0]), **arguments)
    with pytest.raises(ValueError, match="expected a batch size of at least 1, got 0"):
        replay.draw(0, generators(0))
    with pytest.raises(ValueError, match="expected length >= 1"):
        replay.sample_segments(1, 0, generators(0))


# --- online ----------------------------------------------------------------------------------------------------------


def online(capacity: int, lanes: int = 1, **arguments: Any) -> ReplayBuffer:
    return ReplayBuffer.online(Spec(observation_space=BOX, action_space=ACTIONS), capacity, lanes, **arguments)


def feed(replay: ReplayBuffer, lanes: list[Episodes], steps: int, start: int = 0) -> None:
    """Steps `start … steps` of each lane's episodes, one vectorised step at a time."""
    step_rows = [data.step_rows for data in lanes]
    for t in range(start, steps):
        rows = [of_lane[t] for of_lane in step_rows]
        replay.add(
            Steps(
                np.stack([d.observations[r] for d, r in zip(lanes, rows, strict=True)]),
                np.stack([d.actions[t] for d in lanes]),
                [d.rewards[t] for d in lanes],
                [d.terminated[t] for d in lanes],
                [d.truncated[t] for d in lanes],
                np.stack([d.observations[r + 1] for d, r in zip(lanes, rows, strict=True)]),
            )
        )


def assert_same(left: Transitions, right: Transitions) -> None:
    for name in ("observations", "actions", "rewards", "discounts", "next_observations", "next_action_mask"):
        torch.testing.assert_close(getattr(left, name), getattr(right, name), rtol=0, atol=0, msg=name)
    mask = left.next_action_mask
    assert mask is not None and left.next_actions is not None and right.next_actions is not None
    torch.testing.assert_close(left.next_actions[mask], right.next_actions[mask], rtol=0, atol=0)


@pytest.mark.parametrize("frame_stack", [1, 3])
@pytest.mark.parametrize("n_step", [1, 3])
def test_online_equals_offline_on_the_same_data(n_step: int, frame_stack: int) -> None:
    data = make((3, 1, 7, 2, 4), (True, True, False, False, True), seed=1)
    replay = online(data.num_steps, frame_stack=frame_stack)
    feed(replay, [data], data.num_steps)
    arguments: Any = {"discount": 0.9, "n_step": n_step, "next_actions": True, "frame_stack": frame_stack}
    arguments["between"] = True
    assert_same(
        replay.sample(64, generators(7), **arguments), ReplayBuffer(data).sample(64, generators(7), **arguments)
    )
    ours, theirs = (r.sample_segments(16, 4, generators(3)) for r in (replay, ReplayBuffer(data)))
    assert ours.returns_to_go is None
    for name in ("observations", "rewards", "mask", "terminated", "truncated", "next_observations", "timesteps"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=0, atol=0)


@pytest.mark.parametrize("seed", range(6))
def test_the_rings_wrap_without_mixing_episodes_or_lanes(seed: int) -> None:
    """After any number of steps, each drawable step of each lane is what was recorded there."""
    generator = np.random.default_rng(seed)
    lanes = []
    for lane in range(3):
        lengths = tuple(int(n) for n in generator.integers(1, 6, 30))
        lanes.append(make(lengths, tuple(bool(b) for b in generator.integers(0, 2, 30)), seed=100 * seed + lane))
    steps = min(data.num_steps for data in lanes)
    frame_stack = 1 + seed % 3
    replay = online(3 * 11, 3, frame_stack=frame_stack)
    arguments: Any = {"discount": 0.9, "n_step": 3, "next_actions": True, "frame_stack": frame_stack}
    whole = [ReplayBuffer(data).gather(torch.arange(steps), **arguments) for data in lanes]
    ends = [data.offsets[1:][np.searchsorted(data.offsets[1:], np.arange(steps), side="right")] for data in lanes]
    for t in range(steps):
        feed(replay, lanes, t + 1, start=t)
        numbers = np.arange(max(0, t - 10), t + 1)
        assert len(replay) == 3 * len(numbers)
        for lane, reference in enumerate(whole):
            ours = replay.gather(torch.from_numpy(numbers % 11 * 3 + lane), **arguments)
            torch.testing.assert_close(ours.observations, reference.observations[numbers])
            complete = np.minimum(numbers + 3, ends[lane][numbers]) <= t + 1  # the window is wholly recorded
            for name in ("rewards", "discounts", "next_observations"):
                torch.testing.assert_close(
                    getattr(ours, name)[complete], getattr(reference, name)[numbers[complete]], msg=name
                )


def test_the_last_slot_of_a_full_ring_is_sampled() -> None:
    data = make((20,), (False,))
    replay = online(8)
    for steps, expected in ((8, range(8)), (11, range(3, 11))):
        feed(replay, [data], steps, start=0 if steps == 8 else 8)
        drawn = replay.gather(replay.draw(500, generators(0)), discount=1.0).observations
        assert set(drawn.flatten().tolist()) == set(map(float, expected))


def test_one_step_episodes_fill_a_small_ring() -> None:
    data = make((1,) * 20, (True,) * 20)
    replay = online(8)
    feed(replay, [data], 20)
    assert len(replay) == 8
    batch = replay.gather(replay.draw(300, generators(0)), discount=1.0)
    torch.testing.assert_close(batch.next_observations, batch.observations + 1)
    assert set(batch.observations.flatten().tolist()) == {10.0 * e for e in range(12, 20)}


def test_steps_leave_with_their_rows() -> None:
    """A large ring has rows for episodes of 8 steps on average; of shorter ones, fewer steps can be drawn."""
    count = 7_000
    data = make((1,) * count, (True,) * count)
    replay = online(3_000)
    feed(replay, [data], count)
    assert 2_000 < len(replay) < 3_000
    batch = replay.sample(2_000, generators(0), discount=1.0)
    torch.testing.assert_close(batch.next_observations, batch.observations + 1)


def test_an_unfinished_episodes_latest_step_is_usable() -> None:
    data = make((5,), (False,))
    replay = online(8)
    feed(replay, [data], 2)
    batch = replay.gather(torch.tensor([0, 1]), discount=0.5, n_step=3, next_actions=True)
    assert batch.rewards.tolist() == [6, 10]
    assert batch.discounts.tolist() == [0.25, 0.5]
    assert batch.next_observations.flatten().tolist() == [2, 2]
    assert batch.next_action_mask is not None and batch.next_action_mask.tolist() == [False, False]
    feed(replay, [data], 3, start=2)
    assert replay.gather(torch.tensor([0]), discount=0.5, n_step=3).rewards.tolist() == [31]


def test_online_state_round_trips_to_the_bit() -> None:
    data = [make((4, 3, 9, 2, 8), (True, False, True, True, False), seed=s) for s in (0, 1)]
    replay = online(14, 2, frame_stack=2)
    feed(replay, data, 17)
    copy = online(14, 2, frame_stack=2)
    copy.load_state_dict(replay.state_dict())
    for r in (replay, copy):
        feed(r, data, 22, start=17)
    arguments: Any = {"discount": 0.9, "n_step": 2, "next_actions": True, "frame_stack": 2}
    assert_same(replay.sample(50, generators(1), **arguments), copy.sample(50, generators(1), **arguments))
    with pytest.raises(ValueError, match="build it with the same capacity"):
        online(16, 2, frame_stack=2).load_state_dict(replay.state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"observations": np.zeros((2, 2))},
            r"expected observations of shape \(1, 2, 1\), \[steps, lanes, …\], got \(1, 2, 2\)",
        ),
        ({"next_observations": np.zeros(2)}, r"expected next_observations of shape \(1, 2, 1\)"),
        ({"actions": np.zeros((1, 1))}, r"expected actions of shape \(1, 2, 1\), \[steps, lanes, …\], got \(1, 1, 1\)"),
        ({"rewards": 1.0}, r"expected rewards of shape \(1, 2\), \[steps, lanes, …\], got \(1,\)"),
        ({"observations": [[0.0], [np.nan]]}, "expected finite observations, got nan in lane 1"),
        ({"next_observations": [[np.inf], [0.0]]}, "expected finite next_observations, got inf in lane 0"),
        ({"actions": [[0.0], [np.nan]]}, "expected finite actions, got nan in lane 1"),
        ({"rewards": np.array([0, 1e39])}, "expected finite rewards, got 1e.39 in lane 1"),
        ({"terminated": [0.0, np.nan]}, "expected bool terminated, got nan in lane 1"),
    ],
)
def test_a_refused_step_leaves_the_replay_as_it_was(change: dict[str, Any], message: str) -> None:
    step: dict[str, Any] = {"observations": np.zeros((2, 1)), "actions": np.zeros((2, 1)), "rewards": [0.0, 0.0]}
    step |= {"terminated": [False, True], "truncated": [False, False], "next_observations": np.zeros((2, 1))}
    replay = online(8, 2)
    with pytest.raises(ValueError, match=message):
        replay.add(Steps(**step | change))
    assert len(replay) == 0
    replay.add(Steps(**step))
    assert len(replay) == 2


def random_steps(count: int, lanes: int, seed: int = 0) -> list[Any]:
    """Columns `[count, lanes, …]` of episodes of 1 to about 10 steps, in the order of `add`."""
    rng = np.random.default_rng(seed)
    observations, following, actions = (rng.normal(size=(count, lanes, 1)).astype(np.float32) for _ in range(3))
    terminated, truncated = (rng.random((count, lanes)) < 0.15 for _ in range(2))
    return [observations, actions, rng.normal(size=(count, lanes)), terminated, truncated & ~terminated, following]


@pytest.mark.parametrize(("capacity", "lanes", "frame_stack"), [(7, 1, 1), (60, 2, 1), (60, 3, 3), (4, 4, 1)])
@pytest.mark.parametrize("time_limit", ["bootstrap", "terminal"])
def test_a_block_is_its_steps(capacity: int, lanes: int, frame_stack: int, time_limit: TimeLimit) -> None:
    """Blocks of 1 to 40 steps, longer than some of the rings, with an episode given up now and then."""
    blocks, steps = (online(capacity, lanes, frame_stack=frame_stack, time_limit=time_limit) for _ in range(2))
    columns, at, rng = random_steps(300, lanes), 0, np.random.default_rng(1)
    while at < 300:
        part = slice(at, at + rng.integers(1, 41))
        lost = rng.random(lanes) < 0.2
        for replay in (blocks, steps):
            replay.cut(lost)
        blocks.extend(Steps(*(column[part] for column in columns)))
        for number in range(at, min(part.stop, 300)):
            steps.add(Steps(*(column[number] for column in columns)))
        at = part.stop
        assert len(blocks) == len(steps)
        assert equal(blocks.state_dict(), steps.state_dict())


def test_a_block_of_more_rows_than_the_ring_has() -> None:
    """Episodes of one step need two rows each: 3,000 steps have 4,025."""
    rng, ones = np.random.default_rng(0), np.ones((2_500, 1), np.bool_)
    columns = [*rng.normal(size=(2, 2_500, 1, 1)).astype(np.float32), rng.normal(size=(2_500, 1)), ones, ~ones]
    columns.append(columns[0] + 1)
    blocks, steps = online(3_000), online(3_000)
    assert blocks.rings is not None and blocks.rings.longest_block == 2_012
    blocks.extend(Steps(*columns))
    for number in range(2_500):
        steps.add(Steps(*(column[number] for column in columns)))
    assert len(blocks) == len(steps) == 2_012
    assert equal(blocks.state_dict(), steps.state_dict())


def test_a_block_of_trees_and_tensors() -> None:
    """Images and a number, as tensors; the table is written as on another device."""
    space = spaces.Dict({"image": spaces.Box(0, 255, (2, 2, 1), np.uint8), "level": spaces.Discrete(9)})
    blocks, steps = (ReplayBuffer.online(Spec(space, ACTIONS), 20, 2) for _ in range(2))
    tables = dict(blocks._tables)
    for table in (*tables.pop("observations").values(), *tables.values()):
        table.array = None
    rng, columns = np.random.default_rng(0), random_steps(30, 2)
    trees = [
        {"image": rng.integers(0, 256, (30, 2, 2, 2, 1), np.uint8), "level": rng.integers(0, 9, (30, 2))}
        for _ in range(2)
    ]
    columns[0], columns[5] = trees
    for part in (slice(0, 7), slice(7, 8), slice(8, 30)):
        blocks.extend(Steps(*(tree_map(lambda x, at=part: torch.from_numpy(x[at]), column) for column in columns)))
    for number in range(30):
        steps.add(Steps(*(tree_map(lambda x, at=number: x[at], column) for column in columns)))
    assert equal(blocks.state_dict(), steps.state_dict())


def test_no_steps_change_nothing() -> None:
    replay = online(8, 2)
    replay.extend(Steps(*random_steps(0, 2)))
    assert len(replay) == 0 and not replay.state_dict()["rings"]["added"]


def test_a_block_of_another_length_is_refused() -> None:
    replay, columns = online(8, 2), random_steps(3, 2)
    columns[3] = columns[3][:2]
    with pytest.raises(ValueError, match=r"expected terminated of shape \(3, 2\), \[steps, lanes, …\], got \(2, 2\)"):
        replay.extend(Steps(*columns))
    columns = random_steps(3, 2)
    columns[5][2, 1] = np.nan
    with pytest.raises(ValueError, match="expected finite next_observations, got nan in lane 1 of step 2"):
        replay.extend(Steps(*columns))
    assert len(replay) == 0 and not replay.state_dict()["rings"]["added"]


def test_only_first_observations_are_read() -> None:
    data = make((3,), (True,))
    replay = online(8)
    feed(replay, [data], 1)
    replay.add(Steps([[np.nan]], [[0.0]], [10.0], [False], [False], [[2.0]]))
    assert replay.gather(torch.tensor([1]), discount=1.0).observations.tolist() == [[1.0]]


def test_the_state_of_another_replay_is_refused_and_changes_nothing() -> None:
    data = make((3, 2), (True, False))
    replay = online(8)
    feed(replay, [data], 5)
    wide = ReplayBuffer.online(
        Spec(observation_space=spaces.Box(-1, 1, (2,), np.float32), action_space=spaces.Discrete(2)), 8
    )
    parts = spaces.Dict({"camera": spaces.Box(0, 255, (2, 2, 3), np.uint8), "speed": BOX})
    for other, message in (
        (wide, r"expected a replay of observations \[7, 2\] torch.float32, got \[7, 1\] torch.float32"),
        (
            ReplayBuffer.online(Spec(observation_space=parts, action_space=ACTIONS), 8),
            r"keys \['camera', 'speed'\], got",
        ),
        (online(8, time_limit="terminal"), "expected a replay with time_limit=\"terminal\", got 'bootstrap'"),
    ):
        with pytest.raises(ValueError, match=message):
            other.load_state_dict(replay.state_dict())
        assert len(other) == 0


def test_rewards_that_float32_cannot_hold_are_refused() -> None:
    data = make((3, 2), (True, False), source="mine")
    for rewards, message in (
        ([0, 0, 0, 0, 1e39], "mine: expected finite rewards as float32, got inf at episode 1, step 1"),
        ([0, 3e38, 3e38, 0, 0], "mine: expected finite returns-to-go as float32, got inf at episode 0, step 0"),
    ):
        with pytest.raises(ValueError, match=message):
            ReplayBuffer(data.with_rewards(np.array(rewards), "large"))


def test_a_replay_that_does_not_fit_is_refused_with_its_bytes() -> None:
    with pytest.raises(MemoryError, match=r"needs [\d,]{16,} bytes on cpu, which has [\d,]+ free"):
        online(10**12)


def test_misuse_of_an_online_replay() -> None:
    with pytest.raises(ValueError, match="the replay is empty"):
        online(8).draw(1, generators(0))
    with pytest.raises(ValueError, match="capacity >= lanes"):
        online(1, 2)
    with pytest.raises(TypeError, match="an offline replay does not grow"):
        feed(ReplayBuffer(make((1,), (True,))), [make((1,), (True,))], 1)
    with pytest.raises(ValueError, match=r"expected actions of shape \(1, 2, 1\)"):
        feed(online(8, 2), [make((1,), (True,))], 1)
    with pytest.raises(ValueError, match=r"frame_stack in \[1, 1\]"):
        online(8).gather(torch.tensor([0]), discount=1.0, frame_stack=2)


def test_a_copy_is_written_to_in_its_own_memory() -> None:
    replay = online(8)
    value = np.zeros((1, 1), np.float32)
    replay.add(Steps(value, value, [1.0], [False], [False], value))
    copied = copy.deepcopy(replay)
    for each, reward in ((replay, 2.0), (copied, 3.0)):
        each.add(Steps(value, value, [reward], [False], [False], value))
    entries = torch.arange(2)
    assert replay.gather(entries, discount=1.0).rewards.tolist() == [1.0, 2.0]
    assert copied.gather(entries, discount=1.0).rewards.tolist() == [1.0, 3.0]
