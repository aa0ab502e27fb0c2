"""Rewards and policies from preferences: the updates against plain implementations, pair sources, and whole runs."""

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

import herdbook
from herdbook.cli.main import main
from herdbook.core.notices import notice
from herdbook.datasets.demonstrations import choose_demonstrations
from herdbook.datasets.episodes import DataError, Episodes
from herdbook.datasets.minari import save_preferences, write_minari
from herdbook.datasets.preferences import PreferencePairs
from herdbook.datasets.relabel import relabel
from herdbook.datasets.replay import ReplayBuffer
from herdbook.experiments.catalogue import UserError
from herdbook.experiments.rewards import named_reward
from herdbook.experiments.train import resume
from herdbook.irl.cpl import CPL, CPLConfig
from herdbook.irl.pairs import PairTable, transitions
from herdbook.irl.preference_reward import PreferenceReward, PreferenceRewardConfig

LENGTHS = (6, 11, 8)
SMALL: dict[str, Any] = {"pairs": 20, "segment_length": 4, "batch_size": 8, "hidden_sizes": (8,)}


def episodes(discrete: bool = False, **fields: Any) -> Episodes:
    """The reward is the action's size, so that the best action is the largest."""
    rng, steps = np.random.default_rng(0), sum(LENGTHS)
    actions = rng.integers(0, 3, steps) if discrete else rng.uniform(-1, 1, (steps, 1)).astype(np.float32)
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)])
    ends = np.zeros(steps, dtype=np.bool_)
    ends[offsets[1:] - 1] = True
    recorded: dict[str, Any] = {
        "observations": rng.normal(size=(steps + len(LENGTHS), 2)).astype(np.float32),
        "actions": actions,
        "rewards": actions.reshape(steps).astype(np.float64),
        "terminated": ends & (np.arange(steps) < 10),
        "truncated": ends & (np.arange(steps) >= 10),
        "offsets": offsets,
        "observation_space": spaces.Box(-np.inf, np.inf, (2,), np.float32),
        "action_space": spaces.Discrete(3) if discrete else spaces.Box(-1, 1, (1,), np.float32),
        "source": "me/sizes-v0",
    }
    return Episodes(**{**recorded, **fields})


def own_pairs(**fields: Any) -> PreferencePairs:
    given: dict[str, Any] = {
        "episodes": [[0, 1], [2, 1]],
        "starts": [[0, 9], [6, 2]],
        "lengths": [[6, 2], [2, 5]],
        "labels": [1.0, 0.5],
        "labelled_by": ("Ada", "Ada"),
    }
    return PreferencePairs(**{**given, **fields})


def generators(count: int = 1) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(7 + i) for i in range(count)]


# --- pairs ----------------------------------------------------------------------------------------------------------


def test_segments_are_the_recorded_steps_with_their_successors() -> None:
    """T actions and T+1 observations: the last one of a segment at an episode's end is the episode's final one."""
    recorded = episodes(preferences=own_pairs())
    table = PairTable(CPLConfig(teacher="stored"), ReplayBuffer(recorded), (0,))
    batch = table.gather(torch.tensor([0, 1]))
    mask = [[[1] * 6, [1] * 2 + [0] * 4], [[1] * 2 + [0] * 4, [1] * 5 + [0]]]
    assert batch.segments.mask.int().tolist() == mask and batch.labels.tolist() == [1, 0.5]
    rows = torch.as_tensor(recorded.observations)
    assert torch.equal(batch.segments.observations[0, 0], rows[0:6])
    assert torch.equal(batch.segments.next_observations[0, 0], rows[1:7])  # row 6 is the final one of episode 0
    assert torch.equal(batch.segments.observations[0, 1, :2], rows[7 + 9 : 7 + 11])
    assert torch.equal(batch.segments.next_observations[0, 1, :2], rows[7 + 10 : 7 + 12])
    assert torch.equal(batch.segments.actions[1, 1, :5, 0], torch.as_tensor(recorded.actions[6 + 2 : 6 + 7, 0]))
    steps = transitions(batch.segments, 0.5)
    assert steps.discounts[0, 0].tolist() == [0.5] * 5 + [0]  # terminated
    assert steps.discounts[0, 1, :2].tolist() == [0.5, 0.5]  # truncated


def test_every_seed_has_pairs_of_its_own_and_the_same_ones_again() -> None:
    replay = ReplayBuffer(episodes())
    config = CPLConfig(**SMALL)
    both, one = PairTable(config, replay, (3, 4)), PairTable(config, replay, (4,))
    for name, value in both.state_dict().items():
        assert torch.equal(value[1], one.state_dict()[name][0])
    assert not torch.equal(both.first[0], both.first[1])
    numbers = torch.tensor([[5, 2], [5, 2]])
    for index in (0, 1):
        alone = PairTable(config, replay, ((3, 4)[index],)).gather(numbers[0])
        assert torch.equal(both.gather(numbers).segments.actions[index], alone.segments.actions)
        assert torch.equal(both.gather(numbers).labels[index], alone.labels)


@pytest.mark.parametrize(("kind", "config"), [(CPL, CPLConfig), (PreferenceReward, PreferenceRewardConfig)])
def test_pairs_that_cannot_be_had_are_refused(kind: Any, config: Any) -> None:
    recorded = episodes()
    chosen = choose_demonstrations(episodes(preferences=own_pairs()), first=1)
    with pytest.raises(DataError, match=r"in the chosen episodes, got none \(demonstrations: the first 1\); choose"):
        kind(config(teacher="stored"), recorded.spec(), demonstrations=ReplayBuffer(chosen))
    with pytest.raises(DataError, match="me/sizes-v0: expected preference pairs in the dataset, got none; store some"):
        kind(config(teacher="stored"), recorded.spec(), demonstrations=ReplayBuffer(recorded))
    with pytest.raises(DataError, match="expected segments of at most 11 steps, the longest episode, got 64"):
        kind(config(), recorded.spec(), demonstrations=ReplayBuffer(recorded))
    with pytest.raises(DataError, match="expected all steps, since segments are successive; got a subsample"):
        kind(config(**SMALL), recorded.spec(), demonstrations=ReplayBuffer(recorded.subsample(2)))
    with pytest.raises(ValueError, match=rf"{config.__name__}: expected teacher among oracle, .*, stored, got 'me'"):
        config(teacher="me")
    with pytest.raises(ValueError, match="expected demonstrations=ReplayBuffer"):
        kind(config(**SMALL), recorded.spec()).sample(ReplayBuffer(recorded), generators())


@pytest.mark.parametrize(("kind", "config"), [(CPL, CPLConfig), (PreferenceReward, PreferenceRewardConfig)])
def test_a_run_goes_on_with_the_pairs_that_it_began_with(kind: Any, config: Any) -> None:
    recorded = episodes(preferences=own_pairs())
    stored = {**SMALL, "teacher": "stored"}
    state = kind(config(**stored), recorded.spec(), demonstrations=ReplayBuffer(recorded)).state_dict()
    other = replace(recorded, preferences=own_pairs(labels=[0.0, 0.5]))
    with pytest.raises(ValueError, match="expected the pairs and labels that the run began with, got other labels"):
        kind(config(**stored), recorded.spec(), demonstrations=ReplayBuffer(other)).load_state_dict(state)
    kind(config(**stored), recorded.spec()).load_state_dict(state)  # for what was learned, no pairs are needed


# --- rewards --------------------------------------------------------------------------------------------------------


def test_the_reward_loss_agrees_with_a_plain_implementation() -> None:
    recorded = episodes(preferences=own_pairs())
    config = PreferenceRewardConfig(**{**SMALL, "teacher": "stored", "members": 2, "discount": 0.9, "anchor": 0.5})
    learner = PreferenceReward(config, recorded.spec(), demonstrations=ReplayBuffer(recorded))
    batch = learner.sample(ReplayBuffer(recorded), generators())
    reward = learner.reward()  # before the update
    standard = torch.nn.functional.binary_cross_entropy_with_logits
    losses = []
    for member in (0, 1):
        mean, std = reward.moments[member]
        scores = torch.zeros(8, 2)
        for pair in range(8):
            for side in (0, 1):
                own = torch.utils._pytree.tree_map(lambda x, at=(member, pair, side): x[at], batch.segments)
                values = reward.each(transitions(own, 1.0))[member] * std + mean
                scores[pair, side] = sum(0.9**t * values[t] for t in range(config.segment_length + 2) if own.mask[t])
        steps = transitions(torch.utils._pytree.tree_map(lambda x, at=member: x[at], batch.segments), 1.0)
        rewards = reward.each(steps)[member] * std + mean
        constant = rewards[batch.segments.mask[member]].mean()
        losses.append(standard(scores[:, 1] - scores[:, 0], batch.labels[member]) + 0.5 * constant**2)
    metrics = learner.update(batch)
    torch.testing.assert_close(metrics["loss/reward"], sum(losses), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("one_length", [True, False])
def test_members_are_normalised_over_the_steps_of_the_pairs(one_length: bool) -> None:
    """Averaged as they are, the member with the largest rewards would decide alone.

    Pairs of different lengths say what a constant is worth, so it stays.
    """
    lengths = np.full((2, 2), 2) if one_length else np.array([[6, 2], [2, 5]])
    recorded = episodes(preferences=own_pairs(lengths=lengths))
    replay = ReplayBuffer(recorded)
    learner = PreferenceReward(
        PreferenceRewardConfig(**{**SMALL, "teacher": "stored"}), recorded.spec(), demonstrations=replay
    )
    with torch.no_grad():
        for value in learner.learner.params.frozen["member_1"].values():
            value.mul_(20)
    segments = learner.table.gather(torch.arange(2)).segments  # type: ignore[union-attr]
    flat: Any = torch.utils._pytree.tree_map(lambda x: x[segments.mask], transitions(segments, 1.0))
    values = learner.reward().each(flat)
    assert values.shape == (3, int(lengths.sum()))
    torch.testing.assert_close(values.std(1, correction=0), torch.ones(3), atol=1e-4, rtol=0)
    if one_length:
        torch.testing.assert_close(values.mean(1), torch.zeros(3), atol=1e-5, rtol=0)
    else:
        assert [mean for mean, _ in learner.reward().moments] == [0, 0, 0] and (values.mean(1).abs() > 0.01).all()


def test_pairs_of_one_length_of_episodes_that_terminate_are_pointed_out(caplog: pytest.LogCaptureFixture) -> None:
    """Such pairs do not identify the constant on which it depends whether an early end is good."""

    def noticed(**fields: Any) -> bool:
        notice.cache_clear()
        caplog.clear()
        recorded = episodes(**fields)
        stored: dict[str, Any] = {"teacher": "stored"} if recorded.preferences is not None else {}
        config = PreferenceRewardConfig(**{**SMALL, **stored})
        PreferenceReward(config, recorded.spec(), demonstrations=ReplayBuffer(recorded))
        return "1 episodes of me/sizes-v0 terminate" in caplog.text and "shift:2" in caplog.text

    assert noticed()
    assert not noticed(preferences=own_pairs())
    plain = episodes()
    ends = plain.terminated | plain.truncated
    assert not noticed(terminated=np.zeros_like(ends), truncated=ends)


def test_each_member_has_its_own_bootstrap() -> None:
    recorded = episodes()
    build = {"spec": recorded.spec(), "demonstrations": ReplayBuffer(recorded), "seeds": (0, 1)}
    drawn = PreferenceReward(PreferenceRewardConfig(**SMALL), **build).drawn
    assert drawn.shape == (2, 3, 20)
    assert all(len(set(own.tolist())) < 20 for own in drawn.view(6, 20))
    assert len({tuple(own.tolist()) for own in drawn.view(6, 20)}) == 6
    plain = PreferenceReward(PreferenceRewardConfig(**SMALL, bootstrap=False), **build).drawn
    assert torch.equal(plain, torch.arange(20).expand(2, 3, 20))


@pytest.mark.parametrize("discrete", [False, True])
def test_the_true_reward_is_found_again(discrete: bool) -> None:
    recorded = episodes(discrete)
    replay = ReplayBuffer(recorded)
    config = PreferenceRewardConfig(**{**SMALL, "pairs": 200, "batch_size": 32, "lr": 1e-2, "members": 2})
    learner, drawn = PreferenceReward(config, recorded.spec(), demonstrations=replay), generators()
    for _ in range(150):
        metrics = learner.update(learner.sample(replay, drawn))
    assert metrics["accuracy"] > 0.9
    learned = relabel(recorded, learner.reward(), discount=1.0, description="learned")
    assert np.corrcoef(learned.rewards, recorded.rewards)[0, 1] > 0.9


def test_networks_of_a_user_are_refused_since_no_file_could_hold_them() -> None:
    with pytest.raises(ValueError, match="preference_reward: expected no networks of your own"):
        PreferenceReward(
            PreferenceRewardConfig(), episodes().spec(), networks={"member_0": lambda: torch.nn.Linear(1, 1)}
        )


# --- CPL ------------------------------------------------------------------------------------------------------------


def cpl(recorded: Episodes, **changes: Any) -> CPL:
    config = CPLConfig(**{**SMALL, "dropout": 0.0, "standardise_observations": False, **changes})
    return CPL(config, recorded.spec(), demonstrations=ReplayBuffer(recorded))


@pytest.mark.parametrize("discrete", [False, True])
def test_both_stages_agree_with_a_plain_implementation(discrete: bool) -> None:
    recorded = episodes(discrete, preferences=own_pairs())
    learner = cpl(recorded, teacher="stored", cloning_updates=1, lr=1e-3)
    replay, drawn = ReplayBuffer(recorded), generators()
    plain = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3 if discrete else 1))
    for ours, theirs in zip(learner.learner.parameters_of("actor").values(), plain.parameters(), strict=True):
        theirs.data.copy_(ours)

    def likelihood(segments: Any) -> Tensor:
        outputs = plain(segments.observations)
        if discrete:
            return outputs.log_softmax(-1).gather(-1, segments.actions[..., None])[..., 0]
        return -((outputs.tanh() - segments.actions) ** 2).sum(-1)

    for update in range(4):
        batch = learner.sample(replay, drawn)
        metrics = learner.update(batch)
        log_prob, mask = likelihood(batch.segments), batch.segments.mask
        if update == 0:  # all steps of both segments
            loss = -log_prob[mask].mean()
        else:
            powers = 0.99 ** torch.arange(6)
            first, second = (0.1 * (powers * log_prob * mask).sum(-1)).unbind(-1)
            better = torch.exp(first) / (torch.exp(first) + torch.exp(0.5 * second))
            worse = torch.exp(second) / (torch.exp(second) + torch.exp(0.5 * first))
            loss = -((1 - batch.labels) * better.log() + batch.labels * worse.log()).mean()
        if update <= 1:  # cloning, and then the same weights with an optimiser that knows nothing of it
            optimiser = torch.optim.Adam(plain.parameters(), lr=1e-3)
        torch.testing.assert_close(metrics["loss/preference" if update else "loss/cloning"], loss.detach())
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        for ours, theirs in zip(learner.learner.parameters_of("actor").values(), plain.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_the_second_stage_has_a_fresh_optimiser() -> None:
    """Its first step has Adam's full size, whatever the gradients of cloning were."""
    recorded = episodes()
    learner, replay, drawn = cpl(recorded, cloning_updates=30, lr=1e-3), ReplayBuffer(recorded), generators()
    for _ in range(30):
        learner.update(learner.sample(replay, drawn))
    state = learner.state_dict()["optimisers"]
    assert (state["cloning"]["steps"], state["preference"]["steps"]) == (30, 0)
    assert all(not value.any() for value in state["preference"]["averages"].values())
    before = {key: value.clone() for key, value in learner.learner.parameters_of("actor").items()}
    learner.update(learner.sample(replay, drawn))
    for key, value in learner.learner.parameters_of("actor").items():
        moved = (value - before[key]).abs()
        assert moved[moved > 1e-6].allclose(torch.tensor(1e-3), rtol=1e-2)
    assert learner.state_dict()["optimisers"]["cloning"]["steps"] == 30


def test_all_segments_are_cloned_and_not_the_preferred_ones() -> None:
    recorded = episodes()
    learner, replay = cpl(recorded, cloning_updates=10), ReplayBuffer(recorded)
    other = cpl(recorded, cloning_updates=10)
    drawn, same = generators(), generators()
    for _ in range(10):
        learner.update(learner.sample(replay, drawn))
        batch = other.sample(replay, same)
        other.update(replace(batch, labels=1 - batch.labels))
    for ours, theirs in zip(*(each.learner.parameters_of("actor").values() for each in (learner, other)), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("discrete", [False, True])
def test_cpl_prefers_the_better_action(discrete: bool) -> None:
    """Cloning gives the mean action; preferences for large actions give larger ones."""
    recorded = episodes(discrete)
    replay, drawn = ReplayBuffer(recorded), generators()
    learner = cpl(recorded, cloning_updates=100, lr=1e-2, pairs=200, alpha=1.0)
    means = []
    for update in range(200):
        metrics = learner.update(learner.sample(replay, drawn))
        if update in (99, 199):
            outputs = learner.actor(learner.learner.parameters_of("actor"), torch.as_tensor(recorded.observations))
            values = outputs.softmax(-1) @ torch.arange(3.0) if discrete else outputs[:, 0]
            means.append(float(values.mean()))
    assert metrics["accuracy"] > 0.6
    assert means[1] > means[0] + 0.15


def test_dropout_is_for_training_alone() -> None:
    recorded = episodes()
    learner = cpl(recorded, dropout=0.5)
    inputs: Any = (torch.as_tensor(recorded.observations[:4]), torch.zeros(4, 1))
    params, mask, labels = learner.learner.params, torch.ones(2, 2, 1, dtype=torch.bool), torch.zeros(2)
    shaped = (inputs[0].view(2, 2, 1, 2), inputs[1].view(2, 2, 1, 1), mask, labels)
    full = learner.losses(params, *shaped)
    assert torch.equal(
        learner.losses(params, *shaped, torch.full((2, 2, 1, 8), -1.0))[0],
        learner.losses(params, *shaped, torch.full((2, 2, 1, 8), -0.5))[0],
    )  # all units are dropped
    assert not torch.equal(learner.losses(params, *shaped, torch.full((2, 2, 1, 8), 0.5))[0], full[0])  # kept, doubled


# --- runs -----------------------------------------------------------------------------------------------------------

QUICK: dict[str, Any] = {**SMALL, "steps": 12, "seeds": (0, 1), "quiet": True, "log_every": 1, "checkpoint_every": 4}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", ["preference_reward", "cpl"])
def test_a_resumed_run_equals_an_uninterrupted_one(name: str) -> None:
    options: dict[str, Any] = {**QUICK, **({"cloning_updates": 6} if name == "cpl" else {})}
    whole = herdbook.train(name, dataset=episodes(), run_dir="whole", **options)
    herdbook.train(name, dataset=episodes(), run_dir="parts", **{**options, "steps": 8})
    parts, _ = resume("parts", steps=12, dataset=episodes(), quiet=True)
    assert lines(whole.path / "metrics.jsonl") == lines(parts.path / "metrics.jsonl")
    one, two = (run.checkpoints.load()["state"] for run in (whole, parts))
    for ours, theirs in zip(*(torch.utils._pytree.tree_leaves(state) for state in (one, two)), strict=True):
        assert torch.equal(ours, theirs) if isinstance(ours, Tensor) else ours == theirs


def test_a_reward_run_writes_rewards_and_says_that_it_has_no_policy(capsys: Any, monkeypatch: Any) -> None:
    run = herdbook.train("preference_reward", dataset=episodes(), run_dir="reward", **{**QUICK, "quiet": False})
    printed = capsys.readouterr()
    assert "a reward is learned and no policy, so nothing is evaluated" in printed.out + printed.err
    assert run.evaluations() == []
    learned = named_reward("reward", 1)
    assert len(learned.members) == len(learned.moments) == 3 and learned.about["teacher"] == "oracle"
    assert learned.moments[0] != (0.0, 1.0)
    assert main(["eval", "reward", "--env", "Pendulum-v1"]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said == ["herdbook: preference_reward learns a reward and no policy; train a policy on it with --reward RUN"]
    with pytest.raises(UserError, match="learns a reward and no policy"):
        herdbook.load("reward")
    policy = herdbook.train(
        "iql",
        dataset=episodes(),
        reward="reward/rewards/seed_0",
        steps=2,
        eval_episodes=0,
        batch_size=4,
        hidden_sizes=(4,),
        quiet=True,
    )
    assert "reward" in " ".join(policy.config["dataset"]["transforms"])


def test_the_command_learns_from_stored_pairs(tmp_path: Path, capsys: Any) -> None:
    write_minari(episodes(), "me/sizes-v0", data_dir=tmp_path)
    command = ["train", "preference_reward", "--dataset", "me/sizes-v0", "--data-dir", str(tmp_path), "--teacher"]
    sizes = ["--steps", "3", "--batch-size", "4", "--hidden-sizes", "4"]
    assert main([*command, "stored", *sizes, "--run-dir", "one"]) == 2
    assert "expected preference pairs in the dataset, got none" in capsys.readouterr().err
    assert main([*command, "oracle", *sizes, "--pairs", "5", "--run-dir", "one"]) == 2
    assert "expected segments of at most 11 steps" in capsys.readouterr().err
    assert not Path("one").exists()  # the same command can be given again
    save_preferences(own_pairs(), "me/sizes-v0", data_dir=tmp_path)
    assert main([*command, "stored", *sizes, "--run-dir", "one"]) == 0
    assert main([*command, "oracle", *sizes, "--pairs", "5", "--segment-length", "4", "--run-dir", "two"]) == 0
    capsys.readouterr()
    save_preferences(own_pairs(labels=[0.0, 1.0]), "me/sizes-v0", data_dir=tmp_path)
    assert main(["resume", "two", "--steps", "4"]) == 0  # its own teacher has labelled
    capsys.readouterr()
    assert main(["resume", "one", "--steps", "4"]) == 2
    assert "expected the pairs and labels that the run began with, got other labels" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["preference_reward", "cpl"])
def test_fine_tuning_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="online_steps: expected 0, .* learns from pairs of segments; got 5"):
        herdbook.train(name, dataset=episodes(), env="Pendulum-v1", online_steps=5, quiet=True)
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        main(["train", name, "--help"])
    assert "--online-steps" not in text.getvalue() and "--segment-length" in text.getvalue()
