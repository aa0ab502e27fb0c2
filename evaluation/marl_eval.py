"""Results of many agents in the format of marl-eval (Gorsane et al. 2022, arXiv:2209.10485)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from herdbook.core.runs import Run


def marl_eval_records(rows: Sequence[tuple[str, str, Run]]) -> dict[str, Any]:
    """(task, label, run) to environment → task → algorithm → seed → step → metric, a list over evaluation episodes.

    A task is called as its environment is, and only where several have the same environment as it is called here. The
    metric `return` is the team's, the sum over the agents. `step_count` is in environment steps, of a run on a dataset
    in updates. `absolute_metrics` holds the final evaluation, where marl-eval's own protocol has the best policy's over
    ten times the episodes: herdbook reports final policies.
    """
    records: dict[str, Any] = {}
    titles = defaultdict(set)
    for title, _, run in rows:
        titles[_environment(run)].add(title)
    for title, label, run in rows:
        name = _environment(run)
        package, _, task = name.rpartition("/")
        task = task if len(titles[name]) == 1 else title
        seeds = records.setdefault(package or "gymnasium", {}).setdefault(task, {}).setdefault(label, {})
        evaluations = run.evaluations()
        for seed in run.seeds:
            lines = [line for line in evaluations if line["seed"] == seed]
            steps = {
                f"step_{number}": {"step_count": line["step"], "return": line["returns"]}
                for number, line in enumerate(lines, 1)
            }
            if lines:
                steps["absolute_metrics"] = {"return": lines[-1]["returns"]}
                seeds[f"seed_{seed}"] = steps
    return records


def _environment(run: Run) -> str:
    return str((run.config.get("environment") or {}).get("id", "no environment"))
