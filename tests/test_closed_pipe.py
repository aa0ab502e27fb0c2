"""Every command survives a reader that closes the pipe: it says nothing of it and does its work."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from herdbook.cli.main import COMMANDS
from herdbook.core.policy import Scaling
from herdbook.core.runs import Run
from herdbook.core.types import Spec
from herdbook.datasets.minari import read_minari
from herdbook.irl.rewards import LearnedReward, RewardDesign

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")

DRIVER = '''
"""Run each command of a list in a process of its own whose standard output nobody reads; PyTorch is imported once."""
import json, os, sys
import herdbook.experiments.train
from herdbook.cli.main import main

ends = []
for number, words in enumerate(json.loads(sys.argv[1])):
    child = os.fork()
    if child == 0:
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, 1)
        os.dup2(os.open(f"said-{number}", os.O_WRONLY | os.O_CREAT), 2)
        sys.argv = ["herdbook", *words]
        sys.exit(main())
    ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(ends))
'''


def through_closed_pipe(*commands: tuple[object, ...]) -> list[tuple[int, str]]:
    """The exit status and the standard error of each command."""
    words = json.dumps([[str(word) for word in command] for command in commands])
    done = subprocess.run([sys.executable, "-c", DRIVER, words], capture_output=True, text=True, check=True)
    said = [Path(f"said-{number}").read_text() for number in range(len(commands))]
    return list(zip(json.loads(done.stdout), said, strict=True))


def save_a_reward(directory: str, spec: Spec) -> None:
    design = RewardDesign(inputs="state", hidden_sizes=())
    parameters = {name: torch.ones_like(value) for name, value in design.build(Scaling(spec)).named_parameters()}
    LearnedReward(design=design, spec=spec, discount=0.9, members=(parameters,)).save(directory)


def test_a_run_is_trained_resumed_evaluated_collected_compared_and_judged(small_dataset: str) -> None:
    small = ("--steps", 2, "--batch-size", 4, "--hidden-sizes", 4, "--eval-episodes", 1)
    there = Path(os.environ["MINARI_DATASETS_PATH"]) / small_dataset
    save_a_reward("reward", read_minari(small_dataset).spec())
    judged = ("--algorithm", "td3_bc", "--dataset", small_dataset, "--steps", 2, "--episodes", 1, "--out", "judged")
    commands: list[tuple[object, ...]] = [
        ("train", "td3_bc", "--dataset", small_dataset, "--run-dir", "r", *small),
        ("resume", "r", "--steps", 4),
        ("eval", "r", "--episodes", 1, "--out", "r.json"),
        ("collect", "r", "--episodes", 1, "--out", "mine/x-v0", "--data-dir", "data"),
        ("compare", "r", "--out", "report"),
        ("data", "show", small_dataset),
        ("data", "convert", there, "mine/y-v0", "--data-dir", "data"),
        ("reward", "eval", "reward", *judged, "--options", "batch_size", 4, "eval_episodes", 0),
    ]
    assert {command[0] for command in commands} == set(COMMANDS) - {"list"}
    assert through_closed_pipe(*commands) == [(0, "")] * len(commands)
    assert Run("r").checkpoints.last() == 4
    for made in ("r.json", "data/mine/x-v0", "data/mine/y-v0", "report/report.md", "judged/reward_eval.json"):
        assert Path(made).exists(), made


def test_what_prints_ends_quietly() -> None:
    helps = [(name, "--help") for name in COMMANDS]
    lists = [("list", "algorithms"), ("list", "environments"), ("list", "settings"), ("data", "list")]
    commands = [*helps, *lists, ("--help",), ("--version",), ("train", "cql", "--help")]
    for words, (status, said) in zip(commands, through_closed_pipe(*commands), strict=True):
        assert status == 0 and "Traceback" not in said and "Broken" not in said, words


def test_mistakes_keep_their_exit_status() -> None:
    (unknown, said), (wrong, _) = through_closed_pipe(("eval", "nowhere"), ("eval", "--episodes", "x"))
    assert unknown == wrong == 2 and said.startswith("herdbook: nowhere: there is no run here")


def test_a_closed_standard_error_changes_nothing() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "herdbook.cli.main", "eval", "nowhere"]
    assert subprocess.run(command, stdout=writer, stderr=writer).returncode == 2
    os.close(writer)


def test_output_that_is_read_is_unchanged() -> None:
    command = [sys.executable, "-m", "herdbook.cli.main", "list", "algorithms"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "td3_bc" in done.stdout and done.stderr == ""
