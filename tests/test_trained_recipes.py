"""Recipes whose policies are trained on first use: once, to the bit, on from where it was interrupted."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import minari
import numpy as np
import pytest
import torch

import herdbook
from herdbook.cli.main import main
from herdbook.core import checkpoint
from herdbook.core.environments import EnvironmentSpec, EnvironmentUnavailable, ReferenceScores
from herdbook.core.runs import Run, locked
from herdbook.datasets.episodes import DataError, Episodes
from herdbook.datasets.learned import LearnedBy
from herdbook.datasets.load import list_datasets, load_dataset
from herdbook.datasets.minari import write_minari
from herdbook.datasets.recipes import registry
from herdbook.datasets.recipes.recipe import Recipe
from herdbook.datasets.recipes.training import Share, Training

SMALL = {"hidden_sizes": (8, 8), "batch_size": 8, "warmup_steps": 50, "epsilon_steps": 200}
TINY = Recipe(
    id="herdbook/tiny/cartpole/mixed-v0",
    description="a few steps of DQN",
    environment=EnvironmentSpec(id="CartPole-v1"),
    behaviours=Training(
        algorithm="dqn",
        steps=300,
        config=SMALL,
        shares=[Share(episodes=3, at=150), Share(episodes=4, noise=0.5), Share(episodes=2, at=0.5)],
        replay=True,
        minutes=0.1,
    ),
    reference_scores=ReferenceScores(20, 500, "herdbook: a test"),
    seed=3,
)
NAME, LEFT = "tiny/cartpole/mixed", ".training-herdbook-tiny-cartpole-mixed-v0"


def changed(recipe: Recipe = TINY, **training: Any) -> Recipe:
    """The recipe with other values of its training."""
    assert recipe.training is not None
    return dataclasses.replace(recipe, behaviours=dataclasses.replace(recipe.training, **training))


@pytest.fixture
def known(minari_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`TINY` is the only recipe, and nothing is stored yet."""
    monkeypatch.setattr(registry, "RECIPES", {TINY.id: TINY})
    return minari_root


@pytest.fixture(scope="module")
def made() -> Episodes:
    return TINY.make()


def said(capsys: pytest.CaptureFixture[str], name: str) -> str:
    """What `data show` said of this name."""
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(f"{name}  "))
    return line.removeprefix(name).strip()


class Trained:
    """Counts how many updates are made, and ends one of them as Ctrl-C would, or a kill."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, ends_at: int | None = None) -> None:
        from herdbook.online.dqn import DQN

        self.updates = 0
        update = DQN.update

        def counted(algorithm: DQN, batch: Any) -> Any:
            self.updates += 1
            if self.updates == ends_at:
                raise KeyboardInterrupt
            return update(algorithm, batch)

        monkeypatch.setattr(DQN, "update", counted)


def test_it_is_trained_once_and_stored_as_a_minari_dataset(
    known: Path, made: Episodes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trained = Trained(monkeypatch)
    caplog.set_level("INFO", "herdbook")
    data = load_dataset(NAME)
    assert trained.updates == 125  # half of the 250 steps after the warm-up
    assert "dqn is trained for 300 steps first, about a minute on one core" in caplog.text
    again = load_dataset(TINY.id)
    assert trained.updates == 125
    assert data.fingerprint() == again.fingerprint() == made.fingerprint()  # to the bit, in another folder too
    assert data.source == TINY.id and data.reference_scores == TINY.reference_scores
    assert data.learned_by == (
        LearnedBy(algorithm="dqn", step=150, seed=3),
        LearnedBy(algorithm="dqn", step=300, seed=3),
    )
    plain = minari.load_dataset(TINY.id)
    assert plain.storage.metadata["algorithm_name"] == "dqn" and plain.storage.metadata["author"] == {"herdbook"}
    assert plain.recover_environment().spec.id == "CartPole-v1"
    assert [path.name for path in known.iterdir()] == ["herdbook"]  # the run has done its work


def test_parts_come_in_order_each_from_its_checkpoint_and_the_replay_last(made: Episodes) -> None:
    parts = [(m.get("step"), m.get("noise")) for m in made.episode_metadata]
    assert parts == [(150, 0)] * 3 + [(300, 0.5)] * 4 + [(150, 0)] * 2 + [(None, None)] * (len(made) - 9)
    assert made.lengths()[9:].sum() == 300  # what it played while it learned
    seeds = [m["seed"] for m in made.episode_metadata[:9]]
    assert len(set(seeds)) == 9 and max(seeds) < 2**31 + 9
    env = gymnasium.make("CartPole-v1")
    for number in (0, 5, 8):
        first, _ = env.reset(seed=seeds[number])
        np.testing.assert_array_equal(first, made.observations[made.offsets[number] + number])


def test_a_checkpoint_plays_as_its_run_does(tmp_path: Path) -> None:
    """An independent run of the same settings has the same policy at that step."""
    data = TINY.make()
    run = herdbook.train(
        "dqn",
        env="CartPole-v1",
        steps=300,
        seeds=(3,),
        run_dir=tmp_path / "own",
        eval_episodes=0,
        threads=1,
        checkpoint_every=150,
        keep=3,
        quiet=True,
        **SMALL,
    )
    for number, step in ((1, 150), (7, 150)):
        actor = herdbook.load(run.path, step=step)
        one = data.episode(number)
        assert [int(actor.act(o)) for o in one.observations[:-1]] == one.actions.tolist()


@pytest.mark.parametrize("killed", [False, True])
def test_an_interrupted_first_use_goes_on_to_the_same_bits(
    killed: bool, known: Path, made: Episodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        Trained(patch, ends_at=100)
        load_dataset(NAME)
    assert list_datasets() == [] and minari.list_local_datasets() == {}
    if killed:  # between two writes: half a checkpoint, which nothing points to
        (known / LEFT / "run/checkpoints/.step_255.tmp-1").mkdir()
    last = Run(known / LEFT / "run").checkpoints.last()
    assert last == 240
    trained = Trained(monkeypatch)
    assert load_dataset(NAME).fingerprint() == made.fingerprint()
    assert trained.updates == 125 - (last - 50) // 2  # none is made again that a checkpoint holds
    assert not (known / LEFT).exists()


def test_a_first_use_that_is_interrupted_while_they_play_does_not_train_again(
    known: Path, made: Episodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("herdbook.experiments.recipes.evaluate", stop)
        load_dataset(NAME)
    assert list_datasets() == []
    trained = Trained(monkeypatch)
    assert load_dataset(NAME).fingerprint() == made.fingerprint() and trained.updates == 0


def break_checkpoint(folder: Path) -> None:
    (folder / "run/checkpoints/step_240" / checkpoint.TENSORS).write_bytes(b"half")


def break_config(folder: Path) -> None:
    (folder / "run/config.json").write_text('{"algor')


def of_other_versions(folder: Path) -> None:
    note = json.loads((folder / "recipe.json").read_text())
    (folder / "recipe.json").write_text(json.dumps(note | {"versions": {"torch": "0.4"}}, sort_keys=True))


@pytest.mark.parametrize("spoil", [break_checkpoint, break_config, of_other_versions])
def test_a_run_that_cannot_go_on_to_the_same_bits_is_begun_again(
    spoil: Any, known: Path, made: Episodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        Trained(patch, ends_at=100)
        load_dataset(NAME)
    spoil(known / LEFT)
    trained = Trained(monkeypatch)
    assert load_dataset(NAME).fingerprint() == made.fingerprint() and trained.updates == 125


def test_a_recipe_that_changed_does_not_go_on_with_the_old_run(known: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        Trained(patch, ends_at=100)
        load_dataset(NAME)
    other = changed(config={**SMALL, "lr": 1e-2})
    monkeypatch.setattr(registry, "RECIPES", {other.id: other})
    assert load_dataset(NAME).fingerprint() == other.make().fingerprint()


def test_two_at_once_do_not_train_the_same(known: Path) -> None:
    (known / LEFT).mkdir()
    with locked(known / LEFT), pytest.raises(DataError, match="another process is training it"):
        load_dataset(NAME)
    assert list_datasets() == []


def test_threads_are_given_back_and_change_no_bit(made: Episodes) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert TINY.make().fingerprint() == made.fingerprint()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_run_in_rounds_plays_from_the_round_that_reaches_the_step() -> None:
    rounds = changed(
        algorithm="a2c", config={"rollout_steps": 7, "hidden_sizes": (8,)}, num_envs=3, replay=False, shares=[
            Share(episodes=2, at=150, deterministic=False)
        ]
    )  # fmt: skip
    assert rounds.make().learned_by == (LearnedBy(algorithm="a2c", step=168, seed=3),)  # 8 rounds of 21


def test_the_command_clones_a_trained_recipe(known: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--steps", "4", "--batch-size", "8", "--hidden-sizes", "8", "--eval-episodes", "2", "--run-dir", "clone"]
    assert main(["train", "bc", "--dataset", NAME, *small]) == 0
    assert Run("clone").config["dataset"]["source"] == TINY.id
    assert main(["data", "show", NAME]) == 0
    assert said(capsys, "learned by") == "dqn (step 150, seed 3), dqn (step 300, seed 3)"
    assert main(["data", "list"]) == 0
    assert "(made, trained first: dqn, 300 steps)" in capsys.readouterr().out


@pytest.mark.slow  # half a minute each
@pytest.mark.parametrize(
    ("name", "low", "high", "measured"),
    [
        ("classic/pendulum/replay", -1000, -600, -841.3),
        ("classic/pendulum/medium-expert", -800, -300, -513.9),
        ("classic/acrobot/medium", -300, -110, -170.5),
        ("classic/acrobot/expert", -110, -70, -89.2),
    ],
)
def test_trained_recipes_in_full(name: str, low: float, high: float, measured: float) -> None:
    """The bounds of each kind hold on any processor; how near the documented mean is, depends on it."""
    recipe = registry.resolve(name)
    assert recipe is not None
    data = recipe.make()
    mean = float(data.returns().mean())
    assert low < mean < high, f"documented: {measured}"
    assert data.learned_by[-1].step == recipe.training.steps  # type: ignore[union-attr]  # it is one that is trained


# --- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"algorithm": "dqnn"}, "unknown algorithm 'dqnn'; did you mean 'dqn'"),
        ({"algorithm": "bc"}, "expected an algorithm of one agent that learns in an environment, got bc"),
        ({"algorithm": "qmix"}, "expected an algorithm of one agent that learns in an environment, got qmix"),
        ({"algorithm": "sac", "config": {}}, "SAC"),  # CartPole has discrete actions
        ({"config": {"lrr": 0.1}}, "DQNConfig has no field 'lrr'; did you mean 'lr'"),
        ({"config": {"lr": -1.0}}, "lr"),
        ({"shares": [Share(episodes=1, noise=1.5)], "steps": 60}, r"noise: expected noise in \[0, 1\], got 1.5"),
        ({"algorithm": "no_such_package:Mine"}, r"no_such_package.*pip install 'herdbook\[box2d\]' brings it"),
    ],
)
def test_what_cannot_be_trained_is_told_with_the_recipes_name(
    training: dict[str, Any], message: str, known: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = dataclasses.replace(changed(**training), extra="box2d")
    monkeypatch.setattr(registry, "RECIPES", {wrong.id: wrong})
    with pytest.raises(DataError, match=rf"{TINY.id} cannot be made: .*{message}"):
        load_dataset(NAME)
    assert list_datasets() == [] and (not (known / LEFT).exists() or (known / LEFT / "recipe.json").is_file())


def test_an_algorithm_whose_package_is_missing_names_the_extra(
    known: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "herdbook.online.dqn", None)
    needing = dataclasses.replace(TINY, extra="sweep")
    monkeypatch.setattr(registry, "RECIPES", {needing.id: needing})
    assert main(["data", "make", NAME]) == 2
    assert "cannot be made: " in (told := capsys.readouterr().err) and "pip install 'herdbook[sweep]'" in told


def test_an_environment_whose_package_is_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = dataclasses.replace(TINY, environment=EnvironmentSpec(id="no_such_package:make"))
    with pytest.raises(EnvironmentUnavailable, match=rf"{TINY.id} cannot be made: .*no_such_package"):
        absent.make()


@pytest.mark.parametrize("near", ["tiny/cartpole/mixd", "tiny/cartpol/mixed-v0", "herdbook/tiny/cartpole/mixed-v1"])
def test_a_name_near_a_recipes_trains_nothing_and_names_it(
    near: str, known: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = Trained(monkeypatch)
    with pytest.raises(DataError, match=r"did you mean .*tiny/cartpole/mixed"):
        load_dataset(near, download=False)
    assert trained.updates == 0 and list(known.iterdir()) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps: expected 1 or more, got 0"),
        ({"shares": (), "replay": False}, "expected shares, the replay or both"),
        ({"shares": [Share(episodes=1, at=301)]}, "at: expected at most 300, the steps of the run, got 301"),
        (
            {"steps": 1000, "shares": [Share(episodes=1, at=501)]},
            r"common divisor.* at least 10 .*got \[501\]",
        ),
    ],
)
def test_a_training_that_makes_no_sense_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        changed(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"episodes": 0}, "episodes: expected 1 or more, got 0"),
        ({"at": 1.5}, r"at: expected a step of 0 or more, or a share of the steps in \[0, 1\], got 1.5"),
        ({"at": -1}, "at: expected a step"),
        ({"noise": -0.1}, "noise: expected 0 or more"),
        ({"noise": float("nan")}, "noise: expected 0 or more"),
    ],
)
def test_a_share_that_makes_no_sense_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Share(**{"episodes": 1, **values})


@pytest.mark.parametrize(
    ("steps", "at", "every"),
    [
        (300, [1.0], 15),  # 5 %
        (300, [150, 0.5], 15),
        (5_000, [0.3, 1.0], 250),
        (1_000, [430], 10),  # the largest below 5 % that divides 430 and 1000
        (900, [299, 898, 0], 1),
        (7, [1.0], 1),
    ],
)
def test_checkpoints_are_written_at_every_step_that_plays(steps: int, at: Sequence[int | float], every: int) -> None:
    shares = [Share(episodes=1, at=one) for one in at]
    if steps // every > 100:
        with pytest.raises(ValueError, match="greatest common divisor"):
            changed(steps=steps, shares=shares)
        return
    training = changed(steps=steps, shares=shares).training
    assert training is not None and training.checkpoint_every == every
    assert all(training.step_of(share) % every == 0 for share in shares)


# --- who learned ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policies", "name", "told"),
    [
        ((LearnedBy(algorithm="sac", step=5_000, seed=0),), "sac", "sac (step 5,000, seed 0)"),
        ((LearnedBy(algorithm="mine"), LearnedBy(algorithm="sac", seed=2)), "mine, sac", "mine, sac (seed 2)"),
        ((), None, "none recorded"),
    ],
)
def test_who_learned_is_stored_and_shown(
    policies: tuple[LearnedBy, ...],
    name: str | None,
    told: str,
    made: Episodes,
    minari_root: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_minari(dataclasses.replace(made, learned_by=policies), "me/first-v0")
    assert load_dataset("me/first-v0").learned_by == policies
    assert minari.load_dataset("me/first-v0").storage.metadata.get("algorithm_name") == name
    assert main(["data", "convert", "me/first-v0", "me/again-v0"]) == main(["data", "show", "me/again-v0"]) == 0
    assert said(capsys, "learned by") == told


def test_other_peoples_data_say_their_algorithm(made: Episodes, minari_root: Path) -> None:
    write_minari(dataclasses.replace(made, learned_by=()), "me/first-v0", algorithm_name="SAC of another library")
    assert load_dataset("me/first-v0").learned_by == (LearnedBy(algorithm="SAC of another library"),)


@pytest.mark.parametrize("record", ['"sac"', "[7]", '[{"algorithm": 3}]', '[{"algorithm": "sac", "step": "x"}]', "5"])
def test_a_record_that_we_did_not_write_is_refused(record: str, made: Episodes, minari_root: Path) -> None:
    path = write_minari(made, "me/first-v0") / "data/metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"herdbook_learned_by": json.loads(record)}))
    with pytest.raises(DataError, match="herdbook_learned_by"):
        load_dataset("me/first-v0")


def test_parts_of_data_keep_who_learned_and_their_sum_has_all(made: Episodes) -> None:
    one, two = (dataclasses.replace(made, learned_by=(LearnedBy(algorithm=name),)) for name in ("dqn", "sac"))
    assert one.split(0.5)[0].learned_by == one.select([2]).learned_by == (LearnedBy(algorithm="dqn"),)
    assert one.concat(two, one).learned_by == (LearnedBy(algorithm="dqn"), LearnedBy(algorithm="sac"))
    assert one.fingerprint() == made.fingerprint()
