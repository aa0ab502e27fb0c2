"""Comparison of run directories: tables with intervals, and learning curves.

Runs of one algorithm with equal settings form a row over all their seeds; the reward transform and a user's own
networks count as settings. Every combination of dataset (by fingerprint), environment, time limit and references is a
task with its own section and picture. A row never mixes tasks or numbers of updates. Its score is that of the final
evaluation, never of the best one.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from herdbook.core.environments import ReferenceScores
from herdbook.core.runs import Run, to_json
from herdbook.evaluation.marl_eval import marl_eval_records
from herdbook.evaluation.scores import normalised_score
from herdbook.evaluation.statistics import Estimate, bootstrap_interval, t_interval


@dataclass(frozen=True, kw_only=True)
class Task:
    """The conditions that the rows of a section share; only rows of one task may be compared."""

    dataset: str
    """The data before the run's own reward transform."""
    fingerprint: str
    environment: str
    time_limit: str
    references: ReferenceScores | None

    @property
    def title(self) -> str:
        data = f"{self.dataset} [{self.fingerprint[:12]}], " if self.fingerprint else ""
        return f"{data}{self.environment}, time limit: {self.time_limit}"


@dataclass(frozen=True, kw_only=True)
class _Group:
    """The settings that the runs of one row share."""

    task: Task
    algorithm: str
    config: str  # JSON, because a group is a dict key
    reward_transform: str
    networks: tuple[str, ...]  # names of the user's own networks
    steps: int


@dataclass(frozen=True, kw_only=True)
class Row:
    """One algorithm with one setting on one task, over its seeds."""

    task: Task
    algorithm: str
    steps: int
    """Updates (environment steps for online runs) at the final evaluation."""
    seeds: tuple[int, ...]
    """Seeds with a final evaluation."""
    episodes: int
    """Evaluation episodes per seed."""
    interval_over: str
    """Sample of the intervals: `seeds`, the `episodes` of the only seed, or `none` without a final evaluation."""
    returns: Estimate | None
    """Mean undiscounted return, with Student's t-interval; None without a final evaluation."""
    score: Estimate | None
    """Mean normalised score, with Student's t-interval; None without references."""
    iqm: Estimate | None
    """Interquartile mean of the normalised score, with a bootstrap interval."""
    curve: tuple[tuple[int, Estimate], ...]
    """(step, mean over seeds) of the normalised score; of the return without references."""
    runs: tuple[str, ...]
    notes: tuple[str, ...]
    joint: bool = False
    """Many agents; the return is the team's, the sum over agents."""


@dataclass(frozen=True)
class Comparison:
    """The rows of all tasks, in the order in which the runs were given."""

    rows: tuple[Row, ...]

    @property
    def tasks(self) -> tuple[Task, ...]:
        return tuple(dict.fromkeys(row.task for row in self.rows))

    def markdown(self) -> str:
        """A table per task, with notes on runs and evaluations that were left out."""
        sections = []
        for task in self.tasks:
            rows = [row for row in self.rows if row.task == task]
            header = list(_cells(rows[0]))
            lines = [f"### {task.title}", "", _line(header), _line(["---"] * len(header))]
            lines += [_line(list(_cells(row).values())) for row in rows]
            lines += ["", "Final evaluation, mean [95 % interval]. " + _reference_text(task)]
            if any(row.joint for row in rows):
                lines[-1] += " The return is the team's, the sum over agents."
            lines += [f"- {row.algorithm}: {note}" for row in rows for note in row.notes]
            sections.append("\n".join(lines))
        return "\n\n".join(sections) + "\n"

    def records(self) -> list[dict[str, Any]]:
        """The rows as JSON values, with None for numbers that are not finite."""
        return [to_json(asdict(row)) for row in self.rows]

    def write(self, out: str | os.PathLike[str]) -> dict[str, Path]:
        """Write report.md, report.csv, report.json and learning_curves.png into a folder, and return their paths.

        For runs of many agents also write marl_eval.json, for the tools of marl-eval.

        Raises ValueError if `out`, or a part of its path, is a file.
        """
        folder = Path(out)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise ValueError(f"{folder}: expected a folder for the report, got a file; choose another") from error
        paths = {kind: folder / f"report.{kind}" for kind in ("md", "csv", "json")}
        paths["png"] = folder / "learning_curves.png"
        paths["md"].write_text(self.markdown(), encoding="utf-8")
        paths["json"].write_text(json.dumps(self.records(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        with paths["csv"].open("w", newline="", encoding="utf-8") as file:
            table = [_flat(row) for row in self.rows]
            writer = csv.DictWriter(file, list(table[0]))
            writer.writeheader()
            writer.writerows(table)
        self.plot(paths["png"])
        joint = [(row.task.title, row.algorithm, Run(path)) for row in self.rows for path in row.runs if row.joint]
        if joint:
            paths["marl-eval"] = folder / "marl_eval.json"
            text = json.dumps(to_json(marl_eval_records(joint)), indent=2, allow_nan=False)
            paths["marl-eval"].write_text(text + "\n", encoding="utf-8")
        return paths

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Save learning curves as PNG, one panel per task: the mean over seeds with its 95 % interval."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        tasks = self.tasks
        figure = Figure(figsize=(7, 4.2 * len(tasks)), layout="constrained")
        FigureCanvasAgg(figure)
        for panel, task in enumerate(tasks):
            axes = figure.add_subplot(len(tasks), 1, panel + 1)
            for row in [row for row in self.rows if row.task == task and row.curve]:
                steps, label = [step for step, _ in row.curve], f"{row.algorithm}, {_count(row.seeds, 'seed')}"
                mean, low, high = ([getattr(e, part) for _, e in row.curve] for part in ("value", "low", "high"))
                (line,) = axes.plot(steps, mean, label=label, marker="." if len(steps) < 30 else None)
                axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
            quantity = "return" if task.references is None else "normalised score"
            axes.set(title=task.title, xlabel="steps", ylabel=quantity)
            axes.title.set_fontsize("small")
            if axes.get_legend_handles_labels()[1]:
                axes.legend(fontsize="small")
            axes.grid(alpha=0.3)
        figure.savefig(path, dpi=120)


def compare(run_dirs: Iterable[str | os.PathLike[str]]) -> Comparison:
    """Read run directories into comparable rows.

    Raises:
        RunError: A directory holds no run, or its files cannot be read.
        ValueError: No directory is given, one is given twice, or two runs with equal settings hold the same seed.
    """
    runs = [Run(path) for path in run_dirs]
    if not runs:
        raise ValueError("expected at least one run directory to compare, got none")
    places = [run.path.resolve() for run in runs]
    for run, place in zip(runs, places, strict=True):
        if places.count(place) > 1:
            raise ValueError(f"expected distinct run directories, got {run.path} twice")
    groups: dict[_Group, list[Run]] = defaultdict(list)
    for run in runs:
        groups[_group(run)].append(run)
    return Comparison(tuple(_row(group.task, _label(group, groups), members) for group, members in groups.items()))


def _group(run: Run) -> _Group:
    settings = dict(run.config.get("config") or {})
    if not run.config.get("dataset") and "num_envs" in run.options:  # it sets the size of an online round
        settings["num_envs"] = run.options["num_envs"]
    if run.config.get("changes"):
        settings["changes"] = run.config["changes"]
    return _Group(
        task=_task(run),
        algorithm=run.algorithm,
        config=json.dumps(settings, sort_keys=True),
        reward_transform=run.options.get("reward_transform") or "none",
        networks=tuple(sorted(run.config.get("networks") or ())),
        steps=int(run.options.get("steps", 0)) + int(run.options.get("online_steps", 0)),
    )


def _task(run: Run) -> Task:
    dataset, environment = run.config.get("dataset") or {}, run.config.get("environment") or {}
    references = run.config.get("references")
    name = environment.get("id", "no environment")
    if kwargs := environment.get("kwargs"):
        name += f" {_arguments(kwargs)}"
    if environment.get("max_episode_steps"):
        name += f", {environment['max_episode_steps']} steps"
    for wrapper in (environment.get("gymnasium") or {}).get("additional_wrappers") or ():
        name += f", {wrapper['name']}({_arguments(wrapper.get('kwargs') or {})})"
    if learn := run.options.get("learn"):
        name += f", learning: {' '.join(learn)}, others: {run.options.get('others')}"
    given = dataset.get("given") or dataset  # evaluation returns do not depend on the run's reward transform
    return Task(
        dataset=" | ".join([dataset.get("source", "no dataset"), *(given.get("transforms") or ())]),
        fingerprint=given.get("fingerprint") or "",
        environment=name,
        time_limit=run.config.get("time_limit") or "bootstrap",
        references=ReferenceScores(**references) if references else None,
    )


def _arguments(kwargs: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in sorted(kwargs.items()))


def _label(group: _Group, groups: Iterable[_Group]) -> str:
    """The algorithm's name, the settings in which its rows differ, the reward transform and the user's networks."""
    others = [other for other in groups if other.algorithm == group.algorithm]
    mine: dict[str, Any] = json.loads(group.config)
    configs = [json.loads(other.config) for other in others]
    parts = [f"{name}={mine[name]}" for name in mine if any(config.get(name) != mine[name] for config in configs)]
    if group.reward_transform != "none":
        parts.append(f"reward_transform={group.reward_transform}")
    if group.networks:
        parts.append(f"own {', '.join(group.networks)}")
    if any(other.steps != group.steps for other in others if other.task == group.task):
        parts.append(f"steps={group.steps}")
    return group.algorithm + (f" ({', '.join(parts)})" if parts else "")


def _row(task: Task, label: str, runs: Sequence[Run]) -> Row:
    """One row from the evaluations of all seeds of its runs."""
    lines: dict[int, dict[int, dict[str, Any]]] = {}  # seed to step to line
    holders: dict[int, str] = {}
    notes: list[str] = []
    for run in runs:
        for seed in run.seeds:
            if seed in holders:
                cause = f"{run.path} and {holders[seed]} both hold seed {seed} of {label} with equal settings"
                raise ValueError(f"{cause}; give one of them, since a seed counted twice narrows the interval")
            holders[seed], lines[seed] = str(run.path), {}
        for line in run.evaluations():
            if line.get("return_mean") is None:
                notes.append(f"seed {line['seed']}, step {line['step']}: the return is not finite; left out")
            else:
                lines[int(line["seed"])][int(line["step"])] = line
    final = max((step for steps in lines.values() for step in steps), default=0)
    finished = {seed: steps[final] for seed, steps in lines.items() if final in steps}
    for seed in sorted(set(lines) - set(finished)):
        reached = f"ends at step {max(lines[seed])}" if lines[seed] else "has no evaluation"
        notes.append(f"seed {seed} {reached} and is not in the final numbers")
    means = np.array([line["return_mean"] for line in finished.values()], dtype=np.float64)
    values, over = means, "seeds"
    if len(finished) == 1:
        (line,) = finished.values()
        values, over = _floats(line.get("returns")) if line.get("returns") else means, "episodes"
    references = task.references
    scores = None if references is None or not len(values) else normalised_score(values, references)
    return Row(
        task=task,
        algorithm=label,
        steps=final,
        seeds=tuple(sorted(finished)),
        episodes=max((len(line.get("returns") or ()) for line in finished.values()), default=0),
        interval_over=over if finished else "none",
        returns=t_interval(values) if len(values) else None,
        score=None if scores is None else t_interval(scores),
        iqm=None if scores is None else bootstrap_interval(scores),
        curve=_curve(lines, references),
        runs=tuple(str(run.path) for run in runs),
        notes=tuple(notes),
        joint=any("agent_returns" in line for line in finished.values()),
    )


def _curve(
    lines: Mapping[int, Mapping[int, Mapping[str, Any]]], references: ReferenceScores | None
) -> tuple[tuple[int, Estimate], ...]:
    points = defaultdict(list)
    for steps in lines.values():
        for step, line in steps.items():
            points[step].append(line["return_mean"])
    scale = (lambda x: x) if references is None else (lambda x: normalised_score(x, references))
    return tuple((step, t_interval(scale(np.array(points[step], dtype=np.float64)))) for step in sorted(points))


def _floats(values: Any) -> NDArray[np.float64]:
    return np.array([value for value in values if value is not None], dtype=np.float64)


def _cells(row: Row) -> dict[str, str]:
    """The cells of the Markdown table."""
    return {
        "algorithm": row.algorithm,
        "steps": str(row.steps),
        "seeds": str(len(row.seeds)),
        "episodes": str(row.episodes),
        "return": _text(row.returns),
        "normalised score": _text(row.score),
        "IQM": _text(row.iqm),
        "interval over": row.interval_over,
    }


def _flat(row: Row) -> dict[str, Any]:
    """The cells of the CSV table; empty where there is no number."""
    task = asdict(row.task)
    references = task.pop("references") or dict.fromkeys(("minimum", "maximum", "source"))
    flat: dict[str, Any] = {**task, "algorithm": row.algorithm, "steps": row.steps}
    flat |= {"seeds": " ".join(map(str, row.seeds)), "episodes": row.episodes, "interval_over": row.interval_over}
    for name in ("returns", "score", "iqm"):
        estimate = getattr(row, name)
        for part in ("value", "low", "high"):
            number = math.nan if estimate is None else getattr(estimate, part)
            flat[f"{name}_{part}"] = number if math.isfinite(number) else ""
    flat |= {f"reference_{name}": value for name, value in references.items()}
    return flat | {"runs": " ".join(row.runs), "notes": "; ".join(row.notes)}


def _text(estimate: Estimate | None) -> str:
    if estimate is None:
        return "—"
    if not math.isfinite(estimate.low):
        return f"{estimate.value:.1f}"
    return f"{estimate.value:.1f} [{estimate.low:.1f}, {estimate.high:.1f}]"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _reference_text(task: Task) -> str:
    if task.references is None:
        return "No reference scores: returns only."
    r = task.references
    return f"Normalised: {r.minimum:g} is 0, {r.maximum:g} is 100 ({r.source})."


def _count(items: Sequence[Any], noun: str) -> str:
    return f"{len(items)} {noun}{'' if len(items) == 1 else 's'}"
