"""Run directories that earlier versions wrote go on and are evaluated (tests/runs, written by commit 11d16a5)."""

import json
import shutil
from pathlib import Path

import pytest

from herdbook.cli.main import main
from herdbook.core.checkpoint import Checkpoints

UPDATES = {"offline": 60, "online": 70, "joint": 20}
"""Updates that each run has made by then."""
CONTINUED = {
    "offline": (60, {"loss/critic": 108.30443572998047, "loss/actor": 2.7658863067626953}, -1215.2430026126258),
    "online": (90, {"loss/critic": 75.68666076660156, "temperature": 0.9796532392501831}, -848.7943428666889),
    "joint": (300, {"loss/team": 33.55751037597656, "collected/return": -59.99877166748047}, -84.0858166002668),
}
"""Steps to go to, and the results of the version that wrote the run: metrics of its first seed, its last return."""


@pytest.fixture
def old(repo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the runs; their dataset is where Minari looks."""
    folder = tmp_path / "old"
    shutil.copytree(repo_root / "tests" / "runs", folder, symlinks=True)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder / "data"))
    return folder


@pytest.mark.parametrize("name", CONTINUED)
def test_an_old_run_goes_on_as_it_would_have(name: str, old: Path) -> None:
    steps, metrics, returned = CONTINUED[name]
    before = (old / name / "metrics.jsonl").read_text()
    assert main(["resume", str(old / name), "--steps", str(steps)]) == 0
    lines = (old / name / "metrics.jsonl").read_text()
    assert lines.startswith(before)
    first = next(line for line in map(json.loads, lines.splitlines()) if line["step"] == steps)
    assert {metric: first[metric] for metric in metrics} == pytest.approx(metrics, rel=1e-4)
    state = Checkpoints(old / name / "checkpoints").load()["state"]
    assert state.get("seed_by_seed", [state])[0]["updates"] == UPDATES[name]
    last = json.loads((old / name / "evaluations.jsonl").read_text().splitlines()[-1])
    assert last["step"] == steps and last["return_mean"] == pytest.approx(returned, rel=1e-3)


@pytest.mark.parametrize("name", CONTINUED)
def test_an_old_run_is_evaluated(name: str, old: Path) -> None:
    recorded = json.loads((old / name / "evaluations.jsonl").read_text().splitlines()[-1])
    out = old / "results.json"
    assert main(["eval", str(old / name), "--episodes", "1", "--seed", "10000", "--out", str(out)]) == 0
    assert json.loads(out.read_text())["seeds"][-1]["returns"] == pytest.approx(recorded["returns"], rel=1e-4)
