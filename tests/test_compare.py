"""Comparison of run directories written by hand."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from herdbook.core.runs import RunError
from herdbook.evaluation.compare import compare

REFERENCES = {"minimum": 0.0, "maximum": 200.0, "source": "our own"}


def write_run(
    path: Path,
    returns: dict[int, dict[int, float | None]],
    *,
    algorithm: str = "cql",
    steps: int = 200,
    per_episode: tuple[float, ...] = (-10.0, 10.0),
    **changes: Any,
) -> Path:
    """A run of `returns[seed][step]`; the episodes of an evaluation are `per_episode` around the mean."""
    path.mkdir(parents=True)
    config = {
        "algorithm": algorithm,
        "config": {"alpha": 5.0, "discount": 0.99},
        "dataset": {"source": "herdbook/classic/pendulum-v0", "fingerprint": "ab" * 32, "transforms": []},
        "environment": {"id": "Pendulum-v1", "kwargs": {}, "max_episode_steps": 200},
        "references": REFERENCES,
        "seeds": sorted(returns),
        "time_limit": "bootstrap",
        "run": {"steps": steps},
    }
    (path / "config.json").write_text(json.dumps(config | changes))
    with (path / "evaluations.jsonl").open("w") as file:
        for seed, values in returns.items():
            for step, value in values.items():
                each = [None if value is None else value + d for d in per_episode]
                line = {"step": step, "seed": seed, "return_mean": value, "returns": each, "lengths": [200, 200]}
                file.write(json.dumps(line) + "\n")
    return path


def test_final_returns_and_intervals_over_seeds(tmp_path: Path) -> None:
    """Means 40, 60, 80 over seeds: 60 ± t(.975, 2)·20/√3; normalised by 0 and 200: half of it."""
    run = write_run(tmp_path / "a", {0: {100: 999.0, 200: 40.0}, 1: {100: 0.0, 200: 60.0}, 2: {100: 0.0, 200: 80.0}})
    (row,) = compare([run]).rows
    half = 4.302653 * 20 / math.sqrt(3)
    assert (row.algorithm, row.steps, row.seeds, row.episodes, row.interval_over) == ("cql", 200, (0, 1, 2), 2, "seeds")
    assert row.returns is not None and row.score is not None and row.iqm is not None
    assert (row.returns.value, row.returns.low, row.returns.high) == pytest.approx((60, 60 - half, 60 + half))
    assert (row.score.value, row.score.low) == pytest.approx((30, (60 - half) / 2))
    assert row.iqm.value == pytest.approx(30)
    assert [step for step, _ in row.curve] == [100, 200]


def test_the_final_evaluation_counts_not_the_best(tmp_path: Path) -> None:
    (row,) = compare([write_run(tmp_path / "a", {0: {100: 150.0, 200: 20.0}})]).rows
    assert row.returns is not None
    assert row.returns.value == 20


def test_one_seed_has_an_interval_over_its_episodes_and_says_so(tmp_path: Path) -> None:
    comparison = compare([write_run(tmp_path / "a", {0: {200: 50.0}}, per_episode=(-10.0, 0.0, 10.0))])
    (row,) = comparison.rows
    assert row.interval_over == "episodes"
    assert row.returns is not None
    assert row.returns.high - 50 == pytest.approx(4.302653 * 10 / math.sqrt(3), rel=1e-6)
    assert "| episodes |" in comparison.markdown()


def test_runs_with_equal_settings_are_one_row_and_others_are_told_apart(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "a", {0: {200: 1.0}}),
        write_run(tmp_path / "b", {1: {200: 2.0}}),
        write_run(tmp_path / "c", {0: {200: 3.0}}, config={"alpha": 10.0, "discount": 0.99}),
        write_run(tmp_path / "d", {0: {200: 4.0}}, algorithm="bc", config={}),
    ]
    rows = compare(runs).rows
    assert [row.algorithm for row in rows] == ["cql (alpha=5.0)", "cql (alpha=10.0)", "bc"]
    assert [row.seeds for row in rows] == [(0, 1), (0,), (0,)]


@pytest.mark.parametrize(
    "changes",
    [
        {"time_limit": "terminal"},
        {"environment": {"id": "Pendulum-v2", "kwargs": {}, "max_episode_steps": 200}},
        {"environment": {"id": "Pendulum-v1", "kwargs": {"g": 9.0}, "max_episode_steps": 200}},
        {"dataset": {"source": "herdbook/classic/pendulum-v0", "fingerprint": "cd" * 32}},
        {"dataset": {"source": "herdbook/classic/pendulum-v0", "fingerprint": "ab" * 32, "transforms": ["rewards: x"]}},
        {"references": {"minimum": 0.0, "maximum": 1.0, "source": "another"}},
        {"references": None},
    ],
)
def test_what_cannot_be_compared_is_kept_apart(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Another version of the data, environment, time limit or references: a section of its own, never one average."""
    runs = [write_run(tmp_path / "a", {0: {200: 1.0}}), write_run(tmp_path / "b", {1: {200: 2.0}}, **changes)]
    comparison = compare(runs)
    assert len(comparison.rows) == len(comparison.tasks) == 2
    assert comparison.markdown().count("###") == 2


def test_numbers_of_updates_are_not_mixed(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "a", {0: {200: 1.0}}),
        write_run(tmp_path / "b", {0: {200: 1.5, 400: 2.0}}, steps=400),
    ]
    assert [row.steps for row in compare(runs).rows] == [200, 400]


def test_seeds_that_stopped_or_are_not_finite_are_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", {0: {100: 1.0, 200: 2.0}, 1: {100: 1.0}, 2: {100: 3.0, 200: None}, 3: {}})
    comparison = compare([run])
    (row,) = comparison.rows
    assert row.seeds == (0,)
    text = comparison.markdown()
    assert "seed 1 ends at step 100" in text
    assert "seed 2, step 200: the return is not finite" in text
    assert "seed 3 has no evaluation" in text


def test_a_run_without_evaluations_is_a_row_without_numbers(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a", {0: {}}), write_run(tmp_path / "b", {0: {200: 1.0}}, algorithm="bc")]
    (runs[0] / "evaluations.jsonl").unlink()
    comparison = compare(runs)
    assert comparison.rows[0].returns is None
    assert "| cql | 0 | 0 | 0 | — |" in comparison.markdown()
    comparison.write(tmp_path / "out")


def test_everything_is_written(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "a", {s: {100: float(s), 200: 10.0 * s} for s in range(3)}),
        write_run(tmp_path / "b", {0: {100: 1.0, 200: 2.0}}, algorithm="bc", references=None),
    ]
    paths = compare(runs).write(tmp_path / "report" / "deep")
    assert {path.name for path in paths.values()} == {"report.md", "report.csv", "report.json", "learning_curves.png"}
    assert paths["png"].read_bytes().startswith(b"\x89PNG")
    with paths["csv"].open() as file:
        table = list(csv.DictReader(file))
    assert [row["algorithm"] for row in table] == ["cql", "bc"]
    assert table[1]["score_value"] == ""
    assert float(table[0]["reference_maximum"]) == 200
    records = json.loads(paths["json"].read_text())
    assert records[0]["returns"]["value"] == pytest.approx(10)
    assert records[1]["curve"][0][1]["low"] is None  # one seed: no interval
    assert "our own" in paths["md"].read_text()


def test_a_seed_counted_twice_is_refused(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, {0: {200: 1.0}}) for name in "ab"]
    with pytest.raises(ValueError, match="both hold seed 0"):
        compare(runs)
    with pytest.raises(ValueError, match="given twice"):
        compare([runs[0], tmp_path / "b" / ".." / "a"])


def test_no_run_there(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run here"):
        compare([tmp_path])
    with pytest.raises(ValueError, match="at least one"):
        compare([])


def test_a_half_written_last_line_is_ignored(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", {0: {200: 1.0}})
    with (run / "evaluations.jsonl").open("a") as file:
        file.write('{"step": 300, "se')
    (row,) = compare([run]).rows
    assert row.steps == 200


def test_the_same_runs_give_the_same_report(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    run = write_run(tmp_path / "a", {s: {200: float(rng.normal())} for s in range(5)})
    first, again = (compare([run]).write(tmp_path / name) for name in ("x", "y"))
    assert all(first[kind].read_bytes() == again[kind].read_bytes() for kind in first)
