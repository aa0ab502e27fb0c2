"""Export of multi-agent results in the format of marl-eval (Gorsane et al. 2022, arXiv:2209.10485)."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from herdbook.core.runs import Run

logger = logging.getLogger("herdbook")


def marl_eval_records(rows: Sequence[tuple[str, str, Run]]) -> dict[str, Any]:
    """Nested records, environment → task → algorithm → seed → step → metric, from rows (task title, label, run).

    A metric is a list over evaluation episodes. The task is the environment's name, or the title if several tasks have
    the same environment. `return` is the team's, the sum over agents. `step_count` counts environment steps (updates
    for a run on a dataset). `absolute_metrics` holds the final evaluation, because herdbook reports final policies;
    marl-eval's own protocol evaluates the best policy over ten times the episodes.

    marl-eval looks for the runs of the first algorithm in all others. So where seeds differ between the algorithms of
    an environment, the runs are numbered instead (`run_1`, …), equally many of each algorithm; it is logged if some are
    left out. Names of algorithms have no commas, which marl-eval refuses.
    """
    titles = defaultdict(set)
    for title, _, run in rows:
        titles[_environment(run)].add(title)
    found: dict[str, dict[tuple[str, str], dict[int, Any]]] = defaultdict(lambda: defaultdict(dict))
    for title, label, run in rows:
        name = _environment(run)
        package, _, task = name.rpartition("/")
        algorithm = (task if len(titles[name]) == 1 else title, label.replace(",", ";"))
        evaluations = run.evaluations()
        for seed in run.seeds:
            lines = [line for line in evaluations if line["seed"] == seed]
            entries = ({"step_count": line["step"], "return": line["returns"]} for line in lines)
            steps = {f"step_{number}": record for number, record in enumerate(entries, 1)}
            if lines:
                steps["absolute_metrics"] = {"return": lines[-1]["returns"]}
                found[package or "gymnasium"][algorithm][seed] = steps
    records: dict[str, Any] = {}
    for package, algorithms in found.items():
        equal = len({tuple(sorted(seeds)) for seeds in algorithms.values()}) == 1
        counts = [len(seeds) for seeds in algorithms.values()]
        if min(counts) < max(counts):
            text = "marl-eval needs equally many seeds of each algorithm of %s; its file holds the first %d"
            logger.warning(text, package, min(counts))
        for (task, label), seeds in algorithms.items():
            chosen = enumerate(sorted(seeds)[: min(counts)], 1)
            named = {f"seed_{seed}" if equal else f"run_{number}": seeds[seed] for number, seed in chosen}
            records.setdefault(package, {}).setdefault(task, {})[label] = named
    return records


def _environment(run: Run) -> str:
    return str((run.config.get("environment") or {}).get("id", "no environment"))
