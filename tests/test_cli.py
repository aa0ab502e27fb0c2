"""The herdbook command: what it prints, its exit statuses, and every mistake of a user told in one line."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from herdbook.cli.main import main
from herdbook.core.runs import Run
from herdbook.experiments import settings
from herdbook.experiments.catalogue import ALGORITHMS, SUMMARIES, algorithm_class, config_class
from herdbook.experiments.options import RESERVED, literal_pairs
from herdbook.experiments.records import build_config

COMMAND = (sys.executable, "-m", "herdbook.cli.main")


@pytest.fixture
def herdbook(capfd: pytest.CaptureFixture[str]):
    """Run the command in this process: (status, standard output, standard error)."""

    def run(*words: object) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            status = main([str(word) for word in words])
        except SystemExit as end:
            status = int(end.code or 0)
        out, err = capfd.readouterr()
        return status, out, err

    return run


def one_line(err: str) -> str:
    assert err.count("\n") == 1 and "Traceback" not in err, err
    return err


def test_help_needs_nothing_heavy() -> None:
    code = "import sys; from herdbook.cli.main import main; main(['--help']); main(['train', '--help']);"
    code += "main(['list', 'algorithms']); sys.exit(bool({'torch', 'numpy', 'gymnasium'} & set(sys.modules)))"
    done = subprocess.run((sys.executable, "-c", code), capture_output=True, text=True, check=True)
    assert "usage: herdbook COMMAND" in done.stdout and "discrete_cql" in done.stdout


def test_only_the_named_algorithm_is_imported(small_dataset: str) -> None:
    code = "import sys; from herdbook.cli.main import main; "
    code += f"main('train td3_bc --dataset {small_dataset} --steps 1 --eval-episodes 0'.split());"
    code += "print(sorted(m for m in sys.modules if m.startswith('herdbook.offline.')))"
    done = subprocess.run((sys.executable, "-c", code), capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "['herdbook.offline.td3_bc']"


@pytest.mark.parametrize("words", [[], ["train"], ["data"], ["list"]])
def test_no_arguments_show_the_usage_and_fail(herdbook, words: list[str]) -> None:
    status, out, _ = herdbook(*words)
    assert status == 2 and out.startswith("usage: herdbook")


def test_help_of_an_algorithm_says_what_it_is_and_lists_every_field(herdbook) -> None:
    status, out, _ = herdbook("train", "td3_bc", "--help")
    assert status == 0 and SUMMARIES["td3_bc"] in out
    fields = [f.name for f in dataclasses.fields(config_class(algorithm_class("td3_bc")))]
    for name in (*fields, "dataset", "steps", "seeds", "run_dir", "time_limit", "eval_seed"):
        assert f"--{name.replace('_', '-')}" in out


def test_train_eval_resume_end_to_end(herdbook, small_dataset: str) -> None:
    status, out, err = herdbook(
        "train", "td3_bc", "--dataset", small_dataset, "--steps", "2e1", "--seeds", "0", "3", "--run-dir", "r",
        "--eval-episodes", "2", "--hidden-sizes", "16", "--no-standardise-observations", "--checkpoint_every", "10",
    )  # fmt: skip
    assert status == 0, err
    assert "seed 3: return" in out and "run: r" in out
    run = Run("r")
    assert run.config["config"]["hidden_sizes"] == [16] and not run.config["config"]["standardise_observations"]
    assert run.options["steps"] == 20 and run.checkpoints.steps() == [10, 20]
    status, out, err = herdbook("eval", "r", "--episodes", 3, "--seed", 5, "--out", "result.json")
    assert status == 0, err
    assert "95 % interval" in out and "mean of the seeds" in out
    results = json.loads(Path("result.json").read_text())
    assert [(line["seed"], line["step"], len(line["returns"])) for line in results["seeds"]] == [(0, 20, 3), (3, 20, 3)]
    status, out, err = herdbook("resume", "r")
    assert status == 0 and "nothing to do" in out
    status, out, err = herdbook("resume", "r", "--steps", 30)
    assert status == 0 and Run("r").checkpoints.last() == 30


def test_booleans_integers_and_sequences(herdbook, small_dataset: str, user_module: str) -> None:
    status, _, err = herdbook(
        "train", "--algorithm", "user_code:Mine", "--dataset", small_dataset, "--steps=1e1", "--batch-size", "8",
        "--env", "user_code:make_pendulum", "--env-kwargs", "limit", "5", "--eval-episodes", "1", "--run-dir", "r",
    )  # fmt: skip
    assert status == 0, err
    run = Run("r")
    assert run.algorithm == "user_code:Mine" and run.options["steps"] == 10
    assert run.evaluations()[-1]["lengths"] == [5]
    given = ("--algorithm", "user_code:Mine", "--env", "user_code:make_pendulum")
    assert herdbook("resume", "r", "--steps", 12)[0] == 2
    assert herdbook("resume", "r", "--steps", 12, *given)[0] == 0
    assert Run("r").evaluations()[-1]["lengths"] == [5]
    assert herdbook("eval", "r", *given, "--episodes", 1)[0] == 0


TRAIN = ("train", "td3_bc", "--steps", "2", "--run-dir", "r", "--dataset")
MISTAKES = [
    (("trian",), "unknown command 'trian'; did you mean 'train'?"),
    (("train", "td3bc", "--dataset", "x"), "unknown algorithm 'td3bc'; did you mean 'td3_bc'?"),
    (("train", "nowhere:Mine", "--dataset", "x"), "nowhere:Mine: cannot be imported: No module named 'nowhere'"),
    (("train", ":Mine", "--dataset", "x"), ":Mine: cannot be imported"),
    (("train", "json:Nothing", "--dataset", "x"), "json:Nothing: module 'json' has no attribute 'Nothing'"),
    (("train", "json:dumps", "--dataset", "x"), "expected a class, got function"),
    ((*TRAIN, "tests/pendulum/randon-v0"), "did you mean 'tests/pendulum/random-v0'"),
    ((*TRAIN, "nothing.hdf5"), "nothing.hdf5"),
    ((*TRAIN, "DATASET", "--seeds", "1", "2", "1"), "seeds: expected each one once, got 1 2 1"),
    ((*TRAIN, "DATASET", "--seeds", "-1"), "seeds: expected numbers of 0 or more"),
    ((*TRAIN, "DATASET", "--steps", "-5"), "steps: expected 0 or more, got -5"),
    ((*TRAIN, "DATASET", "--log-every", "0"), "log_every: expected 1 or more, got 0"),
    ((*TRAIN, "DATASET", "--keep", "1"), "keep: expected 2 or more, got 1"),
    ((*TRAIN, "DATASET", "--device", "cuda:9"), "device: cuda:9 is not there; this machine has cpu"),
    ((*TRAIN, "DATASET", "--device", "gpu"), "device: expected auto, cpu, cuda or cuda:<n>, got 'gpu'"),
    ((*TRAIN, "DATASET", "--env", "Pendulom-v1"), "unknown environment 'Pendulom-v1'; did you mean 'Pendulum-v1'?"),
    ((*TRAIN, "DATASET", "--env", "CartPole-v1"), "expected observations in"),
    ((*TRAIN, "DATASET", "--env-kwargs", "g"), "env_kwargs: expected pairs of a name and a value, got 1 words: g"),
    ((*TRAIN, "DATASET", "--observation-keys", "a"), "observation_keys chooses parts of a Dict"),
    ((*TRAIN, "DATASET", "--reward-transform", "return_rage"), "did you mean 'return_range'?"),
    ((*TRAIN, "DATASET", "--wandb", "p"), "pip install 'herdbook[wandb]'"),
    (("train", "discrete_cql", "--dataset", "DATASET"), "expected discrete actions"),
    (("resume", "nowhere"), "nowhere: there is no run here"),
    (("eval", "nowhere"), "nowhere: there is no run here"),
    (("data", "shw"), "did you mean 'show'?"),
    (("data", "make", "classic/pendolum"), "did you mean 'classic/pendulum'?"),
    (("data", "show", "nothing/here-v0"), "no dataset 'nothing/here-v0'"),
    (("list", "algoritms"), "did you mean 'algorithms'?"),
]


@pytest.mark.parametrize(("words", "expected"), MISTAKES, ids=[e[:40] for _, e in MISTAKES])
def test_a_mistake_is_told_in_one_line(
    herdbook, small_dataset: str, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], expected: str
) -> None:
    if "--wandb" in words:
        monkeypatch.setitem(sys.modules, "wandb", None)
    status, _, err = herdbook(*(small_dataset if word == "DATASET" else word for word in words))
    assert status == 2
    assert expected in one_line(err)
    assert not Path("r").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("train", "td3_bc", "--dataset", "x", "--batch-sise", "3"), "--batch-size"),
        (("train", "td3_bc", "--dataset", "x", "--steps", "1.5"), "expected an integer, got 1.5"),
        (("train", "td3_bc"), "--dataset"),
        (("train", "td3_bc", "--dataset", "x", "--batch-size", "0"), "expected batch_size >= 1, got 0"),
        (("train", "td3_bc", "--dataset", "x", "--discount", "1.5"), "expected discount in [0, 1], got 1.5"),
        (("train", "td3_bc", "--dataset", "x", "--learn", "agent_0"), "Unrecognized options: --learn"),
        (("train", "ppo", "--env", "x", "--online-updates", "2"), "Unrecognized options: --online-updates"),
        (("eval", "nowhere", "--episodes", "0"), "episodes: expected 1 or more, got 0"),
    ],
)
def test_a_wrong_flag_gets_a_box_with_the_nearest(herdbook, words: tuple[str, ...], expected: str) -> None:
    status, out, err = herdbook(*words)
    assert status == 2 and expected in out + err and "Traceback" not in err


def test_mistakes_with_a_run_are_told_in_one_line_too(herdbook, small_dataset: str) -> None:
    assert herdbook(*TRAIN, small_dataset, "--eval-episodes", "1")[0] == 0
    Path("file").touch()
    for words, expected in (
        (("eval", "r", "--env", "CartPole-v1"), "expected observations in"),
        (("eval", "r", "--out", "file/x.json"), "out: file/x.json cannot be written"),
        (("compare", "r", "--out", "file"), "file"),
        (("compare", "r", "r"), "got r twice"),
        (("resume", "r", "--steps", "4", "--env", "CartPole-v1"), "the environment that the run was begun with"),
    ):
        status, _, err = herdbook(*words)
        assert status == 2 and expected in one_line(err), words
    assert herdbook("eval", "r", "--episodes", "1", "--out", "new/folder/x.json")[0] == 0
    assert json.loads(Path("new/folder/x.json").read_text())["episodes"] == 1


def test_a_folder_with_a_datasets_name_does_not_hide_the_dataset(herdbook, small_dataset: str) -> None:
    Path(small_dataset).mkdir(parents=True)
    assert herdbook(*TRAIN, small_dataset, "--eval-episodes", "0")[0] == 0
    assert Run("r").options["dataset"] == small_dataset


def test_the_installed_command_finds_code_in_the_working_directory(small_dataset: str, user_module: str) -> None:
    """As `herdbook`, not `python -m`, which puts the working directory on the path by itself."""
    command = Path(sys.executable).with_name("herdbook")
    words = ("user_code:Mine", "--dataset", small_dataset, "--env", "user_code:make_pendulum", "--steps", "2")
    result = subprocess.run((command, "train", *words, "--run-dir", "r"), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert Run("r").evaluations()[-1]["lengths"] == [20] * 10


def test_a_corrupt_checkpoint_is_told(herdbook, small_dataset: str) -> None:
    assert herdbook(*TRAIN, small_dataset, "--eval-episodes", "0")[0] == 0
    file = Path("r/checkpoints/step_2/tensors.safetensors")
    file.write_bytes(file.read_bytes()[:100])
    status, _, err = herdbook("eval", "r")
    assert status == 2 and "step_2/tensors.safetensors: truncated or corrupt" in one_line(err)


def test_a_run_without_a_finite_seed_fails_with_1(herdbook, small_dataset: str, user_module: str) -> None:
    words = ("--dataset", small_dataset, "--steps", 20, "--run-dir", "r", "--fail-seed", 0, "--fail-step", 5)
    status, _, err = herdbook("train", "user_code:Mine", *words)
    assert status == 1 and "no seed is left: seed 0: loss/clone is nan" in one_line(err)
    status, _, _ = herdbook("train", "user_code:Mine", *words[:-5], "r2", *words[-4:], "--seeds", 0, 1)
    assert status == 0


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    from herdbook.cli import list as listing

    def broken(words: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(listing, "run", broken)
    with pytest.raises(ZeroDivisionError):
        main(["list", "algorithms"])


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_writes_a_checkpoint(small_dataset: str, user_module: str, number: int, status: int) -> None:
    words = ("train", "user_code:Mine", "--dataset", small_dataset, "--steps", "100000", "--run-dir", "r")
    more = ("--pause", "0.001", "--eval-episodes", "0", "--checkpoint-every", "100000", "--log-every", "100")
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen((*COMMAND, *words, *more), env=environment, **pipes)
    deadline = time.monotonic() + 60
    while not (Path("r/metrics.jsonl").exists() and Path("r/metrics.jsonl").stat().st_size):
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert b"Traceback" not in err
    assert number == signal.SIGTERM or b"herdbook: interrupted" in err
    run = Run("r")
    last = run.checkpoints.last()
    assert last is not None and last >= 100 and run.checkpoints.steps() == [0, last]


def test_kill_9_at_a_random_instant_then_resume_equals_the_uninterrupted_run(
    herdbook, small_dataset: str, user_module: str
) -> None:
    words = ("train", "user_code:Mine", "--dataset", small_dataset, "--steps", "300", "--seeds", "0", "1")
    more = ("--eval-episodes", "2", "--log-every", "7", "--evaluate-every", "50", "--checkpoint-every", "13")
    assert herdbook(*words, *more, "--run-dir", "whole")[0] == 0
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    slowly = (*COMMAND, *words, *more, "--run-dir", "cut", "--pause", "0.02")  # six seconds, killed in the first two
    process = subprocess.Popen(slowly, env=environment, stdout=subprocess.DEVNULL)
    last = Path("cut/checkpoints/last")
    while not (last.is_symlink() and int(os.readlink(last).removeprefix("step_")) >= 13):
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(random.uniform(0, 1))
    process.kill()
    process.wait()
    assert 13 <= (Run("cut").checkpoints.last() or 0) < 300
    assert herdbook("resume", "cut", "--algorithm", "user_code:Mine")[0] == 0
    for name in ("metrics.jsonl", "evaluations.jsonl", "checkpoints/step_300/tensors.safetensors"):
        assert Path("cut", name).read_bytes() == Path("whole", name).read_bytes(), name


def test_no_config_has_a_field_of_a_reserved_name() -> None:
    for name in ALGORITHMS:
        chosen = config_class(algorithm_class(name))
        assert not RESERVED & {f.name for f in dataclasses.fields(chosen)}, name
        assert chosen.algorithm == name


def test_a_users_config_with_a_reserved_name_is_refused(herdbook, user_module: str, tmp_path: Path) -> None:
    text = (tmp_path / "user_code.py").read_text()
    (tmp_path / "user_code.py").write_text(text.replace("pause: float = 0.0", "steps: int = 3"))
    status, _, err = herdbook("train", "user_code:Mine", "--dataset", "x")
    assert status == 2 and "the names steps are reserved" in one_line(err)


def test_the_catalogue_is_complete(repo_root: Path) -> None:
    assert ALGORITHMS.keys() == SUMMARIES.keys()
    families = ("offline", "online", "marl", "irl")
    paths = [path for family in families for path in (repo_root / family).glob("*.py")]
    files = {path.stem for path in paths if path.parent.name != "irl" or "ClassVar[Needs]" in path.read_text("utf-8")}
    assert {target.partition(":")[0].rpartition(".")[2] for target in ALGORITHMS.values()} == files


def test_settings_name_fields_that_exist() -> None:
    for row in settings.SETTINGS:
        build_config(config_class(algorithm_class(row.algorithm)), row.config)  # which refuses unknown fields
        assert row.run.keys() <= RESERVED and row.source


def test_settings_apply_before_the_users_flags(herdbook, small_dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    row = settings.Setting(
        algorithm="td3_bc",
        patterns=("Pendulum-v*",),
        config={"alpha": 9.0, "hidden_sizes": (8,)},
        run={"reward_transform": "minus_one"},
        source="a test",
    )
    monkeypatch.setattr(settings, "SETTINGS", (row,))
    status, out, err = herdbook(*TRAIN, small_dataset, "--alpha", "1", "--eval-episodes", "0")
    assert status == 0, err
    assert "settings: td3_bc on Pendulum-v*: alpha = 9.0" in out
    run = Run("r")
    assert run.config["config"]["alpha"] == 1.0 and run.config["config"]["hidden_sizes"] == [8]
    assert run.config["dataset"]["transforms"] == ["rewards: minus_one"]
    assert run.config["settings"][0]["source"] == "a test"


def test_keyword_arguments_of_environments_are_literals() -> None:
    words = ("n", "0", "x", "-1.5", "on", "True", "name", "fast", "sizes", "[1, 2]")
    assert literal_pairs(words) == {"n": 0, "x": -1.5, "on": True, "name": "fast", "sizes": [1, 2]}


def test_data_commands(herdbook, small_dataset: str, tmp_path: Path) -> None:
    status, out, _ = herdbook("data", "list")
    assert status == 0 and small_dataset in out and "classic/pendulum" in out
    status, out, _ = herdbook("data", "show", small_dataset)
    assert status == 0 and "Pendulum-v1" in out and "return mean" in out
    status, out, err = herdbook("data", "convert", small_dataset, "me/copy-v0", "--data-dir", tmp_path / "other")
    assert status == 2 and "no dataset" in one_line(err)  # --data-dir is where both are
    status, out, err = herdbook("data", "convert", small_dataset, "me/copy-v0")
    assert status == 0, err
    assert "120 steps" in herdbook("data", "convert", "me/copy-v0", "me/copy-v1")[1]


def test_lists(herdbook) -> None:
    assert "td3_bc" in herdbook("list", "algorithms")[1]
    assert "Pendulum-v1" in herdbook("list", "environments")[1]
    assert "D4RL/antmaze/*" in herdbook("list", "settings")[1]
    assert herdbook("--version")[1].startswith("herdbook ")


def test_options_may_be_none_and_help_does_not_show_it(herdbook, small_dataset: str) -> None:
    words = ("train", "iql", "--dataset", small_dataset, "--steps", "1e0", "--eval-episodes", "0", "--run-dir", "r")
    assert herdbook(*words, "--actor-decay-updates", "None", "--name", "None", "--threads", "1")[0] == 0
    assert Run("r").options["name"] is None and Run("r").options["threads"] == 1
    out = herdbook("train", "iql", "--help")[1]
    assert "{None}|INT" not in out and "--actor-decay-updates INT" in out and "--name STR" in out
