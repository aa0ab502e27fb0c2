"""The default number of threads, and how the command's threads wait."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import herdbook
from herdbook.core.threads import default_threads, keep_threads, multiplications_of, usable_cores

WIDE, NARROW = 200e6, 2e6  # TD3+BC with 256 × 256, PPO with 64 × 64


@pytest.mark.parametrize(
    ("cores", "workers", "multiplications", "expected"),
    [
        (1, 0, WIDE, 1),
        (1, 1, WIDE, 1),  # no core is left: one all the same
        (2, 0, WIDE, 2),
        (2, 1, WIDE, 1),
        (2, 4, WIDE, 1),
        (8, 1, WIDE, 6),
        (8, 4, WIDE, 4),
        (64, 0, WIDE, 6),
        (64, 0, 2000e6, 20),
        (2, 0, NARROW, 1),
        (64, 0, NARROW, 1),
        (64, 0, 0, 1),
        (2, 0, 12.8e6, 2),  # CQL on classic/pendulum
        (2, 0, 3.2e6, 1),  # QMIX on mpe2/simple_spread_v3, without workers
    ],
)
def test_default(cores: int, workers: int, multiplications: float, expected: int) -> None:
    assert default_threads(cores=cores, workers=workers, multiplications=multiplications) == expected


def test_multiplications_count_what_is_multiplied() -> None:
    state = {
        "updates": 7,
        "online": {"critic": {"weight": torch.zeros(2, 3, 4)}},  # two seeds
        "optimisers": [{"averages": torch.zeros(2, 3, 4)}],
        "generators": [torch.zeros(5056, dtype=torch.uint8)],
    }
    assert multiplications_of(state, {"batch_size": 10}, 2) == 240
    assert multiplications_of(state, {}, 2) == 24 * 256


def test_cores_are_those_of_the_affinity_mask() -> None:
    if sys.platform != "linux":
        pytest.skip("no affinity mask")
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_threads_are_given_back_after_an_error() -> None:
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError), keep_threads():
        torch.set_num_threads(before + 1)
        raise RuntimeError
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("given", "recorded"), [(None, 1), (2, 2)])
def test_a_run_records_its_threads_and_gives_them_back(
    given: int | None, recorded: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The user's process has three threads; a small network takes one of them by default."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        run = herdbook.train(
            "dqn",
            env="CartPole-v1",
            steps=10,
            hidden_sizes=(8,),
            eval_episodes=0,
            run_dir=tmp_path / "r",
            threads=given,
        )
        assert run.options["threads"] == recorded
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert ("threads: 1" in capsys.readouterr().out) == (given is None)


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
)
def test_only_the_command_says_how_threads_wait(given: dict[str, str], expected: str | None) -> None:
    program = (
        "import json, os, sys; from herdbook.cli.main import main; main(['--help']); "
        "before = os.environ.get('GOMP_SPINCOUNT'); sys.argv = ['herdbook', '--version']; main(); "
        "print(json.dumps([before, os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules]))"
    )
    environment = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    output = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, env=environment | given
    ).stdout
    assert json.loads(output.splitlines()[-1]) == [given.get("GOMP_SPINCOUNT"), expected, False]
