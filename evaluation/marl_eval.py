"""Export of multi-agent results in the format of marl-eval (Gorsane et al. 2022, arXiv:2209.10485)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from herdbook.core.runs import Run


def marl_eval_records(rows: Sequence[tuple[str, str, Run]]) -> dict[str, Any]:
    """Nested records, environment → task → algorithm → seed → step → metric, from rows (task title, label, run).

    A metric is a list over evaluation episodes. The task is the environment's name, or the title if several tasks have
    the same environment. `return` is the team's, the sum over agents. `step_count` counts environment steps (updates
    for a run on a dataset). `absolute_metrics` holds the final evaluation, because herdbook reports final policies;
    marl-eval's own protocol evaluates the best policy over ten times the episodes.
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
            entries = ({"step_count": line["step"], "return": line["returns"]} for line in lines)
            steps = {f"step_{number}": record for number, record in enumerate(entries, 1)}
            if lines:
                steps["absolute_metrics"] = {"return": lines[-1]["returns"]}
                seeds[f"seed_{seed}"] = steps
    return records


def _environment(run: Run) -> str:
    return str((run.config.get("environment") or {}).get("id", "no environment"))
