"""Comparison of run directories written by hand."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from herdbook.core.runs import Run, RunError
from herdbook.evaluation.compare import compare
from herdbook.evaluation.marl_eval import marl_eval_records

REFERENCES = {"minimum": 0.0, "maximum": 200.0, "source": "our own"}


def write_run(
    path: Path,
    returns: dict[int, dict[int, float | None]],
    *,
    algorithm: str = "cql",
    steps: int = 200,
    reward_transform: str = "none",
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
        "run": {"steps": steps, "reward_transform": reward_transform},
    }
    (path / "config.json").write_text(json.dumps(config | changes))
    with (path / "evaluations.jsonl").open("w") as file:
        for seed, values in returns.items():
            for step, value in values.items():
                each = [None if value is None else value + d for d in per_episode]
                line = {"step": step, "seed": seed, "return_mean": value, "returns": each, "lengths": [200, 200]}
                file.write(json.dumps(line) + "\n")
    return path


def wrapped(*wrappers: str, **kwargs: Any) -> dict[str, Any]:
    """The environment as config.json has it, with wrappers of its own; `kwargs` are the last one's."""
    listed: list[dict[str, Any]] = [{"name": name, "entry_point": "m:C", "kwargs": {}} for name in wrappers]
    if listed:
        listed[-1]["kwargs"] = kwargs
    spec = {"id": "Pendulum-v1", "additional_wrappers": listed}
    return {"id": "Pendulum-v1", "kwargs": {}, "max_episode_steps": 200, "gymnasium": spec}


def learned_from(fingerprint: str, *, given: str = "ab", transforms: tuple[str, ...] = ()) -> dict[str, Any]:
    """A dataset as config.json has it: what the run learned from, and what it was given."""
    data = {"source": "herdbook/classic/pendulum-v0", "given": {"fingerprint": given * 32, "transforms": []}}
    return data | {"fingerprint": fingerprint * 32, "transforms": list(transforms)}


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
        {"environment": wrapped("ClipAction")},
        {"dataset": {"source": "herdbook/classic/pendulum-v0", "fingerprint": "cd" * 32}},
        {"dataset": {"source": "herdbook/classic/pendulum-v0", "fingerprint": "ab" * 32, "transforms": ["rewards: x"]}},
        {"dataset": learned_from("ab", given="cd")},
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


def test_rows_that_differ_in_steps_say_so(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "a", {0: {200: 1.0}}),
        write_run(tmp_path / "b", {0: {400: 2.0}}, steps=400),
        write_run(tmp_path / "c", {0: {400: 2.0}}, steps=400, algorithm="bc"),
        write_run(tmp_path / "d", {0: {100: 2.0}}, steps=100, algorithm="bc", time_limit="terminal"),  # another section
    ]
    assert [row.algorithm for row in compare(runs).rows] == ["cql (steps=200)", "cql (steps=400)", "bc", "bc"]


def test_a_transform_of_the_rewards_that_a_run_learned_from_is_a_setting_not_another_task(tmp_path: Path) -> None:
    """Evaluation returns are the environment's: IQL, which transforms them, stands beside TD3+BC, which does not."""
    scaled = learned_from("cd", transforms=("rewards: return_range",))
    runs = [
        write_run(tmp_path / "a", {0: {200: 1.0}}, algorithm="iql", dataset=scaled, reward_transform="return_range"),
        write_run(tmp_path / "b", {0: {200: 2.0}}, algorithm="iql", dataset=learned_from("ab")),
        write_run(tmp_path / "c", {0: {200: 3.0}}, algorithm="td3_bc"),  # written before `given` was
    ]
    comparison = compare(runs)
    assert len(comparison.tasks) == 1
    assert [row.algorithm for row in comparison.rows] == ["iql (reward_transform=return_range)", "iql", "td3_bc"]
    assert [row.algorithm for row in compare(runs[:1]).rows] == ["iql (reward_transform=return_range)"]


def test_runs_with_networks_of_the_users_own_are_rows_of_their_own(tmp_path: Path) -> None:
    """The same seed in each: pooled, they would be one seed twice."""
    runs = [
        write_run(tmp_path / "a", {0: {200: 1.0}}, networks=[]),
        write_run(tmp_path / "b", {0: {200: 2.0}}, networks=["actor"]),
        write_run(tmp_path / "c", {0: {200: 3.0}}, networks=["critic", "actor"]),
        write_run(tmp_path / "d", {1: {200: 3.0}}),  # before networks were recorded
    ]
    rows = compare(runs).rows
    assert [row.algorithm for row in rows] == ["cql", "cql (own actor)", "cql (own actor, critic)"]
    assert rows[0].seeds == (0, 1)


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        (wrapped(), "Pendulum-v1, 200 steps"),
        (wrapped() | {"gymnasium": None}, "Pendulum-v1, 200 steps"),
        (wrapped("ClipAction", "Mine"), "Pendulum-v1, 200 steps, ClipAction(), Mine()"),
        (
            wrapped("RescaleAction", min_action=-1, max_action=2),
            "200 steps, RescaleAction(max_action=2, min_action=-1)",
        ),
    ],
)
def test_an_environment_is_named_with_its_wrappers(tmp_path: Path, environment: dict[str, Any], name: str) -> None:
    (row,) = compare([write_run(tmp_path / "a", {0: {200: 1.0}}, environment=environment)]).rows
    assert row.task.environment.endswith(name)


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


@pytest.mark.parametrize("out", ["file", "file/deep"])
def test_a_report_is_not_written_over_a_file(tmp_path: Path, out: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=f"{out}: expected a folder for the report, got a file"):
        compare([write_run(tmp_path / "a", {0: {200: 1.0}})]).write(tmp_path / out)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_seed_counted_twice_is_refused(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, {0: {200: 1.0}}) for name in "ab"]
    with pytest.raises(ValueError, match="both hold seed 0"):
        compare(runs)
    with pytest.raises(ValueError, match="expected distinct run directories"):
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


@pytest.mark.parametrize(
    ("one", "other", "names", "left_out"),
    [
        ((0, 1), (0, 1), ["seed_0", "seed_1"], False),
        ((0, 1), (2, 3), ["run_1", "run_2"], False),
        ((0, 1), (3, 5, 7), ["run_1", "run_2"], True),
        ((0, 1, 2), (0,), ["run_1"], True),
    ],
)
def test_marl_eval_finds_the_runs_of_the_first_algorithm_in_all_others(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    one: tuple[int, ...],
    other: tuple[int, ...],
    names: list[str],
    left_out: bool,
) -> None:
    """It reads `data[algorithm][run]` for the runs of the first one, and refuses commas in names of algorithms."""
    labels = {"vdn": one, "qmix (horizon=25, mixer=4)": other}
    rows = []
    for label, seeds in labels.items():
        path = write_run(tmp_path / label, {seed: {100: 1.0, 200: float(seed)} for seed in seeds}, algorithm="vdn")
        rows.append(("Pendulum-v1", label, Run(path)))
    found = marl_eval_records(rows)["gymnasium"]["Pendulum-v1"]
    assert list(found) == ["vdn", "qmix (horizon=25; mixer=4)"]
    for (_, seeds), runs in zip(labels.items(), found.values(), strict=True):
        assert list(runs) == names
        finals = [run["absolute_metrics"]["return"] for run in runs.values()]
        assert finals == [[seed - 10.0, seed + 10.0] for seed in seeds[: len(names)]]
    assert ("its file holds the first" in caplog.text) == left_out
