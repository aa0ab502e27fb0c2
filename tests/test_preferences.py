"""Losses of preferences, labelled pairs in datasets, and simulated teachers."""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from herdbook.core.preferences import (
    agreement,
    ipo_loss,
    masked_mean,
    preference_loss,
    segment_advantage,
    segment_sum,
)
from herdbook.datasets.episodes import DataError, Episodes
from herdbook.datasets.load import load_dataset
from herdbook.datasets.minari import PREFERENCES, save_preferences, write_minari
from herdbook.datasets.preferences import PreferencePairs, draw_segments, pairs_from_record
from herdbook.datasets.teachers import (
    TEACHERS,
    answered,
    answers,
    equal,
    labelled_pairs,
    margin,
    mistaken,
    myopic,
    noisy,
    oracle,
)

LENGTHS = (3, 7, 4)


def doubles(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def episodes(lengths: tuple[int, ...] = LENGTHS, **fields: Any) -> Episodes:
    """The reward of a step is its number, over all episodes."""
    steps, rows = sum(lengths), sum(lengths) + len(lengths)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    truncated = np.zeros(steps, dtype=np.bool_)
    truncated[offsets[1:] - 1] = True
    recorded: dict[str, Any] = {
        "observations": np.arange(rows, dtype=np.float32)[:, None],
        "actions": np.linspace(-1, 1, steps, dtype=np.float32)[:, None],
        "rewards": np.arange(steps, dtype=np.float64),
        "terminated": np.zeros_like(truncated),
        "truncated": truncated,
        "offsets": offsets,
        "observation_space": spaces.Box(-np.inf, np.inf, (1,), np.float32),
        "action_space": spaces.Box(-1, 1, (1,), np.float32),
        "source": "me/steps-v0",
    }
    return Episodes(**{**recorded, **fields})


def pairs(**fields: Any) -> PreferencePairs:
    given: dict[str, Any] = {
        "episodes": [[0, 1], [1, 2], [2, 2]],
        "starts": [[0, 4], [2, 1], [0, 2]],
        "lengths": [[3, 3], [2, 3], [2, 2]],
        "labels": [1.0, 0.0, 0.5],
        "labelled_by": ("oracle", "Ada", "Ada"),
    }
    return PreferencePairs(**{**given, **fields})


# --- losses ---------------------------------------------------------------------------------------------------------

LOG2, LOG3, LOG4 = math.log(2), math.log(3), math.log(4)


@pytest.mark.parametrize(
    ("first", "second", "label", "bias", "expected"),
    [
        (0.0, 0.0, 0.0, 1.0, LOG2),
        (LOG3, 0.0, 0.0, 1.0, math.log(4 / 3)),  # σ(log 3) = 3/4
        (LOG3, 0.0, 1.0, 1.0, LOG4),
        (LOG3, 0.0, 0.5, 1.0, (math.log(4 / 3) + LOG4) / 2),
        (0.0, LOG3, 0.25, 1.0, 0.75 * LOG4 + 0.25 * math.log(4 / 3)),
        (LOG3, 2 * LOG3, 0.0, 0.5, LOG2),  # λ lowers the second: log 3 − log 3
        (2 * LOG3, LOG3, 1.0, 0.5, LOG2),
        (2 * LOG3, 2 * LOG3, 0.0, 0.5, math.log(4 / 3)),
        (-2 * LOG3, -2 * LOG3, 0.0, 0.5, LOG4),  # unlikely segments cost more: the bias of CPL
        (1000.0, 0.0, 0.0, 1.0, 0.0),
        (1000.0, 0.0, 1.0, 1.0, 1000.0),
    ],
)
def test_the_preference_loss_by_hand(first: float, second: float, label: float, bias: float, expected: float) -> None:
    loss = preference_loss(doubles(first), doubles(second), doubles(label), bias=bias)
    torch.testing.assert_close(loss, doubles(expected))


@pytest.mark.parametrize(
    ("label", "expected"),
    [(0.0, (2 - 0.5) ** 2), (1.0, (2 + 0.5) ** 2), (0.5, (1.5**2 + 2.5**2) / 2), (0.25, 0.75 * 1.5**2 + 0.25 * 2.5**2)],
)
def test_the_ipo_loss_by_hand(label: float, expected: float) -> None:
    """h = 3 − 1 = 2 and 1/2τ = 0.5."""
    assert ipo_loss(doubles(3.0), doubles(1.0), doubles(label), tau=1.0).item() == expected


def test_the_ipo_loss_is_least_at_the_margin_of_its_paper() -> None:
    first, labels = torch.linspace(-3, 3, 61, dtype=torch.float64), torch.zeros(61, dtype=torch.float64)
    loss = ipo_loss(first, torch.zeros_like(first), labels, tau=0.25)
    assert first[loss.argmin()].item() == pytest.approx(2.0)  # 1 / (2 · 0.25)


def test_cpl_keeps_the_discount_in_its_sum() -> None:
    """The authors' code drops γᵗ of eq. 5."""
    log_prob, mask = doubles(-1.0, -2.0, -4.0), torch.ones(3, dtype=torch.bool)
    assert segment_advantage(log_prob, mask, alpha=0.5, discount=0.5).item() == 0.5 * (-1 - 1 - 1)
    assert segment_advantage(log_prob, mask, alpha=0.5, discount=1.0).item() == 0.5 * -7
    assert segment_advantage(log_prob, mask, alpha=0.5, discount=0.0).item() == 0.5 * -1  # the first step alone


def test_padding_is_masked_and_not_by_its_value() -> None:
    values, mask = (
        doubles([0.0, 1.0, 7.0], [2.0, 0.0, math.nan]),
        torch.tensor([[1, 1, 0], [1, 1, 0]], dtype=torch.bool),
    )
    assert segment_sum(values, mask, discount=0.5).tolist() == [0.5, 2.0]
    assert masked_mean(values, mask).item() == 0.75  # of four values, zeros among them
    assert masked_mean(values, torch.zeros_like(mask)).item() == 0.0


def test_pairs_that_are_fitted_perfectly_stay_in_the_mean() -> None:
    """Masked by `loss != 0`, they would leave it."""
    loss = preference_loss(torch.tensor([1000.0, 0.0]), torch.zeros(2), torch.zeros(2))
    assert loss[0] == 0
    assert masked_mean(loss, torch.ones(2, dtype=torch.bool)).item() == pytest.approx(LOG2 / 2)


def test_cpl_kl_of_one_step_segments_is_dpo() -> None:
    draw = partial(torch.rand, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log_prob, reference = (-3 * draw(2, 50, 1) for _ in range(2))  # [2, B, T = 1]
    labels = draw(50).round()
    mask, beta = torch.ones(50, 1, dtype=torch.bool), 0.3
    first, second = (
        segment_advantage(log_prob[i], mask, alpha=beta, discount=0.7, reference=reference[i]) for i in (0, 1)
    )
    ours = preference_loss(first, second, labels).mean()

    total = 0.0
    for pair in range(50):  # Rafailov et al. 2023, eq. 7
        winner = int(labels[pair])
        chosen, rejected = (math.exp(log_prob[i, pair, 0] - reference[i, pair, 0]) for i in (winner, 1 - winner))
        total -= math.log(1 / (1 + math.exp(-(beta * math.log(chosen) - beta * math.log(rejected)))))
    assert ours.item() == pytest.approx(total / 50, abs=1e-7)


def test_the_loss_agrees_with_an_independent_implementation_of_cpl() -> None:
    rng = np.random.default_rng(1)
    log_prob, mask = -rng.random((6, 2, 5)), rng.random((6, 2, 5)) < 0.7
    labels, alpha, bias, discount = rng.choice([0.0, 0.5, 1.0], 6), 0.7, 0.5, 0.9
    expected = []
    for pair in range(6):
        scores = [sum(discount**t * alpha * log_prob[pair, i, t] for t in range(5) if mask[pair, i, t]) for i in (0, 1)]
        first, second = (math.exp(scores[i]) / (math.exp(scores[i]) + math.exp(bias * scores[1 - i])) for i in (0, 1))
        expected.append(-(1 - labels[pair]) * math.log(first) - labels[pair] * math.log(second))  # eq. 5 with λ
    ours = segment_advantage(torch.tensor(log_prob), torch.tensor(mask), alpha=alpha, discount=discount)
    np.testing.assert_allclose(preference_loss(*ours.unbind(-1), torch.tensor(labels), bias=bias), expected, atol=1e-12)


def test_the_agreement_counts_pairs_with_a_preference() -> None:
    first, second = torch.tensor([0.0, 1.0, 0.0, 5.0]), torch.tensor([1.0, 0.0, 1.0, 0.0])
    assert agreement(first, second, torch.tensor([1.0, 0.0, 0.0, 0.5])).item() == pytest.approx(2 / 3)
    assert agreement(first, second, torch.full((4,), 0.5)).item() == 0


# --- pairs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"labels": [1.0, math.nan, 0.5]}, r"expected a label in \[0, 1\], got nan in pair 1$"),
        ({"labels": [1.0, 0.0, 1.5]}, r"expected a label in \[0, 1\], got 1.5 in pair 2$"),
        ({"labels": [1.0, 0.0]}, r"expected labels \[pairs\] and the others \[pairs, 2\]"),
        ({"episodes": [[0, 1], [-1, 2], [2, 2]]}, "expected episodes of 0 or more, got -1 in pair 1, first segment"),
        ({"starts": [[0, 4], [2, -3], [0, 2]]}, "expected starts of 0 or more, got -3 in pair 1, second segment"),
        ({"starts": [[0, 4], [2, 1.5], [0, 2]]}, "expected starts of the pairs as whole numbers, got 1.5"),
        ({"lengths": [[3, 3], [2, 3], [2, 0]]}, "expected lengths of 1 or more, got 0 in pair 2, second segment"),
        ({"labelled_by": ("oracle",)}, "expected the name of who labelled each of 3 pairs, got 1"),
        ({"episodes": [0, 1, 2]}, r"the others \[pairs, 2\], a pair at least; got episodes \(3,\)"),
    ],
)
def test_bad_pairs_are_refused_with_their_place(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        pairs(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"episodes": [[0, 1], [1, 3], [2, 2]]}, r"v0: expected episodes in \[0, 2\], got 3 in pair 1, second segment"),
        (
            {"starts": [[1, 4], [2, 1], [0, 2]]},
            "steps 1 to 3 of episode 0, which has 3 steps, in pair 0, first segment",
        ),
        (
            {"starts": [[0, 5], [2, 1], [0, 2]]},
            "steps 5 to 7 of episode 1, which has 7 steps, in pair 0, second segment",
        ),
    ],
)
def test_segments_lie_within_one_episode(fields: dict[str, Any], message: str) -> None:
    assert episodes(preferences=pairs()).preferences is not None  # they end with their episodes
    with pytest.raises(DataError, match=message):
        episodes(preferences=pairs(**fields))


def test_pairs_follow_their_episodes() -> None:
    recorded = episodes(preferences=pairs())
    chosen = recorded.select([2, 1]).preferences
    assert chosen is not None
    assert (chosen.episodes.tolist(), chosen.labels.tolist(), chosen.labelled_by) == (
        [[1, 0], [0, 0]],
        [0, 0.5],
        ("Ada",) * 2,
    )
    assert chosen.starts.tolist() == [[2, 1], [0, 2]]
    assert recorded.select([0, 1, 1]).preferences.episodes.tolist() == [[0, 1]]  # type: ignore[union-attr]
    assert recorded.select([0]).preferences is None
    assert recorded.with_rewards(np.ones(14), "ones").preferences is recorded.preferences
    both = episodes().concat(recorded, recorded).preferences
    assert both is not None and len(both) == 6
    assert both.episodes.tolist() == [[3, 4], [4, 5], [5, 5], [6, 7], [7, 8], [8, 8]]
    assert recorded.fingerprint() == episodes().fingerprint()


def test_the_last_valid_start_is_drawn() -> None:
    """Of 7 steps and segments of 3, the last one begins at step 4."""
    _, starts = draw_segments("data", np.array([7]), 3, 1000, np.random.default_rng(0))
    assert (starts.min(), starts.max()) == (0, 4)


def test_segments_are_drawn_per_episode_since_lengths_differ() -> None:
    """Uniform over the segments that there are: 5 of the second episode, 2 of the third, and 1 of the first."""
    lengths, count = np.array([3, 7, 4, 2]), 16_000
    numbers, starts = draw_segments("data", lengths, 3, count, np.random.default_rng(0))
    assert (starts + 3 <= lengths[numbers]).all()
    found, counts = np.unique(np.stack([numbers, starts]), axis=1, return_counts=True)
    assert list(zip(*found.tolist(), strict=True)) == [(0, 0), *((1, i) for i in range(5)), (2, 0), (2, 1)]
    assert np.abs(counts / count - 1 / 8).max() < 4 * math.sqrt(7 / 64 / count)


def test_segments_longer_than_every_episode_are_refused() -> None:
    assert draw_segments("data", np.array([3, 7]), 7, 5, np.random.default_rng(0))[0].tolist() == [1] * 5
    with pytest.raises(DataError, match="data: expected segments of at most 7 steps, the longest episode, got 8"):
        draw_segments("data", np.array([3, 7]), 8, 5, np.random.default_rng(0))


def test_pairs_round_trip_through_minari_and_open_in_plain_minari(tmp_path: Path, monkeypatch: Any) -> None:
    import minari

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    folder = write_minari(episodes(), "me/steps-v0")
    before = json.loads((folder / "data" / "metadata.json").read_text())
    save_preferences(pairs(), "me/steps-v0")
    plain = minari.load_dataset("me/steps-v0")
    stored = plain.storage.metadata[PREFERENCES]
    assert stored == pairs().record()
    episode, start, length = (stored[name][0][1] for name in ("episodes", "starts", "lengths"))
    assert plain[episode].rewards[start : start + length].tolist() == [7, 8, 9]  # the end of the second episode
    assert len(plain[episode].observations[start : start + length + 1]) == length + 1
    after = json.loads((folder / "data" / "metadata.json").read_text())
    assert {key: value for key, value in after.items() if key != PREFERENCES} == before

    read = load_dataset("me/steps-v0")
    assert read.preferences is not None and read.preferences.record() == pairs().record()
    write_minari(read, "me/copy-v0")
    assert load_dataset("me/copy-v0").preferences.record() == pairs().record()  # type: ignore[union-attr]
    plain.storage.update_metadata({PREFERENCES: pairs(labels=[0.0, 0.0, 1.0]).record()})  # written by plain Minari
    assert load_dataset("me/steps-v0").preferences.labels.tolist() == [0, 0, 1]  # type: ignore[union-attr]


def test_pairs_of_other_episodes_are_not_stored(tmp_path: Path) -> None:
    write_minari(episodes(), "me/steps-v0", data_dir=tmp_path)
    with pytest.raises(DataError, match=r"steps-v0: expected episodes in \[0, 2\], got 9 in pair 0, first segment"):
        save_preferences(pairs(episodes=[[9, 1], [1, 2], [2, 2]]), "me/steps-v0", data_dir=tmp_path)
    assert load_dataset("me/steps-v0", data_dir=tmp_path).preferences is None
    with pytest.raises(DataError, match="no Minari dataset there"):
        save_preferences(pairs(), "me/none-v0", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("record", "came"),
    [([], "got list"), ({**pairs().record(), "format": 2}, "format 1 with"), ({"format": 1}, r"got \['format'\]")],
)
def test_another_record_is_refused(record: Any, came: str) -> None:
    with pytest.raises(DataError, match=f"^mine: expected preference pairs of format 1 .*{came}|{came}"):
        pairs_from_record("mine", record)


# --- teachers -------------------------------------------------------------------------------------------------------

FIRST = np.array([[1.0, 2.0], [0.0, 3.0], [2.0, 2.0], [3.0, 0.0]])  # sums 3, 3, 4, 3
SECOND = np.array([[2.0, 2.0], [3.0, 0.0], [0.0, 3.5], [0.0, 3.0]])  # sums 4, 3, 3.5, 3


def test_teachers_by_hand() -> None:
    uniform = np.array([0.05, 0.05, 0.1, 0.95])
    assert oracle(FIRST, SECOND).tolist() == [1, 0.5, 0, 0.5]
    assert mistaken(FIRST, SECOND, uniform).tolist() == [0, 0.5, 0, 0.5]  # a mistake below 0.1
    assert noisy(FIRST, SECOND, np.array([0.73, 0.49, 0.38, 0.51])).tolist() == [1, 1, 0, 0]  # σ(1), σ(0), σ(−.5), σ(0)
    assert noisy(FIRST, SECOND, np.array([0.74, 0.49, 0.37, 0.51])).tolist() == [0, 1, 1, 0]
    assert myopic(FIRST, SECOND).tolist() == [1, 0, 0, 1]  # the last step counts most
    assert myopic(FIRST, SECOND, gamma=0.0).tolist() == [0.5, 0, 1, 1]
    assert equal(FIRST, SECOND, margin=1.0).tolist() == [1, 0.5, 0.5, 0.5]  # a difference of 1 is not below 1
    assert answered(FIRST, SECOND, margin=3.0).tolist() == [True, False, True, False]  # a sum of 3 is not above 3
    assert noisy(FIRST * 1e4, SECOND * 1e4, uniform).tolist() == [1, 1, 0, 0]


def test_the_rates_of_mistakes_and_of_noise() -> None:
    rng, count = np.random.default_rng(0), 20_000
    first, second = np.zeros((count, 2)), np.full((count, 2), 0.5)
    for teacher, share in (("mistake", 0.9), ("noisy", 1 / (1 + math.exp(-1)))):
        labels, given = answers(teacher, first, second, mean_reward=1.0, generator=rng)  # type: ignore[arg-type]
        assert given.all() and abs(labels.mean() - share) < 4 * math.sqrt(share * (1 - share) / count)


def test_thresholds_are_multiplied_by_epsilon_once() -> None:
    """A mean reward of 2 over 5 steps makes 10, of which the margin is a tenth, not a hundredth."""
    assert margin(2.0, 5) == pytest.approx(1.0)
    first, second = np.zeros((2, 5)), np.array([[0.9, 0, 0, 0, 0], [1.1, 0, 0, 0, 0]])
    rng = np.random.default_rng(0)
    assert answers("equal", first, second, mean_reward=2.0, generator=rng).labels.tolist() == [0.5, 1]
    assert answers("skip", first, second, mean_reward=2.0, generator=rng).given.tolist() == [False, True]


def test_a_share_of_a_loss_is_no_margin() -> None:
    rng = np.random.default_rng(0)
    for mean in (-1.0, 0.0, math.nan):
        with pytest.raises(ValueError, match="skip, equal: expected a mean reward above 0"):
            answers("skip", FIRST, SECOND, mean_reward=mean, generator=rng)
    with pytest.raises(ValueError, match="teacher: expected one of oracle, .*, got 'random'"):
        answers("random", FIRST, SECOND, mean_reward=1.0, generator=rng)  # type: ignore[arg-type]


@pytest.mark.parametrize("teacher", TEACHERS)
def test_labels_are_those_of_the_rewards_of_the_segments(teacher: Any) -> None:
    recorded = episodes()
    found = labelled_pairs(recorded, teacher, pairs=40, segment_length=3, generator=np.random.default_rng(3))
    assert len(found) == 40 and set(found.labelled_by) == {teacher} and (found.lengths == 3).all()
    found.check_inside("data", recorded.lengths())
    steps = recorded.offsets[found.episodes] + found.starts
    sums = 3 * steps + 3  # the rewards of steps t, t + 1 and t + 2
    if teacher == "oracle":
        assert found.labels.tolist() == ((np.sign(sums[:, 1] - sums[:, 0]) + 1) / 2).tolist()
    if teacher == "skip":
        assert sums.max(1).min() > 0.1 * 3 * 6.5
    same = labelled_pairs(recorded, teacher, pairs=40, segment_length=3, generator=np.random.default_rng(3))
    assert same.record() == found.record()


def test_labels_that_say_nothing_are_refused() -> None:
    constant = episodes(rewards=np.ones(14))
    with pytest.raises(
        DataError, match="expected segments that differ in their rewards, but to oracle the two of each"
    ):
        labelled_pairs(constant, "oracle", pairs=5, segment_length=3, generator=np.random.default_rng(0))
    generator = np.random.default_rng(0)
    rare = labelled_pairs(
        episodes(rewards=np.r_[np.zeros(13), 0.1]), "skip", pairs=5, segment_length=3, generator=generator
    )
    assert ((rare.episodes == 2) & (rare.starts == 1)).any(1).all()  # the only segment with a reward
    short = episodes(rewards=np.r_[np.ones(3), np.zeros(11)])  # only the shortest episode has rewards
    with pytest.raises(DataError, match="expected 5 labels, got 0 for 500 pairs: skip answers too few"):
        labelled_pairs(short, "skip", pairs=5, segment_length=4, generator=generator)


def test_a_start_near_the_largest_integer_is_beyond_the_episode() -> None:
    own = pairs(episodes=[[0, 0]], starts=[[2**63 - 1, 0]], lengths=[[1, 1]], labels=[1.0], labelled_by=("Ada",))
    with pytest.raises(DataError, match=r"got steps 9223372036854775807 to 9223372036854775807 of episode 0"):
        own.check_inside("data", np.array([10]))
