"""Notices are lines of the logger `herdbook`: no Python warning of ours reaches a user with a path."""

import logging
import re
from pathlib import Path
from typing import Any

import gymnasium
import pytest

from herdbook.core.notices import notice
from herdbook.core.random_policy import RandomPolicy
from herdbook.evaluation.evaluate import evaluate


def test_a_notice_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    for text in ("one", "two", "one"):
        notice(text)
    assert caplog.messages == ["one", "two"]
    assert {record.name for record in caplog.records} == {"herdbook"}
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_the_package_issues_no_python_warnings(repo_root: Path) -> None:
    folders = [each for each in (repo_root / "src" / "herdbook").iterdir() if each.is_dir()]
    files = [path for folder in folders for path in folder.rglob("*.py")]
    assert len(files) > 100
    assert not [path for path in files if re.search(r"\bwarnings\.warn\(", path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(
    ("wrapper", "option"),
    [
        (gymnasium.wrappers.NormalizeObservation, "--normalise-observations"),
        (gymnasium.wrappers.NormalizeReward, "--scale-rewards"),
    ],
)
def test_a_wrapper_that_normalises_is_named(wrapper: Any, option: str, caplog: pytest.LogCaptureFixture) -> None:
    def make() -> Any:
        return gymnasium.wrappers.TimeLimit(wrapper(gymnasium.make("Pendulum-v1")), 5)

    evaluate(RandomPolicy(make().action_space), make, 2, seed=0)
    (told,) = caplog.messages
    assert f"running statistics of its {wrapper.__name__} begin anew in each episode and are kept nowhere" in told
    assert option in told
