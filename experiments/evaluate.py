"""Evaluation of every policy of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from herdbook.core.environments import EnvironmentSource, ReferenceScores, whole_games
from herdbook.core.runs import Run
from herdbook.experiments.build import choose_device
from herdbook.experiments.domain import Networks, Task
from herdbook.experiments.environments import environment_record, own_environment, same_record
from herdbook.experiments.opponents import opponents_of
from herdbook.experiments.records import options_of
from herdbook.experiments.restore import Restored, restore


def evaluate_run(
    path: str | Path,
    *,
    episodes: int = 100,
    seed: int = 0,
    step: int | None = None,
    algorithm: str | type[Any] | None = None,
    env: EnvironmentSource | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    max_steps: int | None = None,
    networks: Networks | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Evaluate every seed of a run: episode i is reset with `seed + i`, and cut off after `max_steps` steps.

    None: after as many as in the run.

    `env` that names the run's own environment keeps its arguments, time limit and wrappers; `env_kwargs` replace single
    arguments.

    Returns what `herdbook eval --out` writes: run, algorithm, environment, references, and per seed its step, returns,
    lengths, mean, standard deviation and normalised score.
    """
    run = Run(path)
    device = choose_device(device)
    recorded, trained_in = run.config.get("references"), run.config.get("environment")
    source = own_environment(trained_in, env, env_kwargs)
    same, bound = same_record(environment_record(source), trained_in), whole_games(source)
    references = ReferenceScores(**recorded) if recorded and same else None
    options = options_of(run)
    opponents, limit = opponents_of(options), max_steps or options.max_steps
    results, at = [], dict[int, Restored]()
    everyone = []
    for each in run.seeds:  # all are restored before one plays
        restored = restore(run, algorithm, step, each, device, networks)
        own = at.setdefault(restored.step, restored)  # seeds of one checkpoint share it
        everyone.append(replace(own, seed_index=restored.seed_index))
    for each, restored in zip(run.seeds, everyone, strict=True):
        domain, spec = restored.domain, restored.spec
        task = Task(
            domain=domain,
            spec=spec,
            environment=bound,
            references=references,
            opponents=opponents,
            max_steps=limit,
        )
        line = domain.score(task, restored.policy(), episodes, seed, device)
        results.append({"seed": each, "step": restored.step, **line})
    return {
        "run": str(run.path),
        "algorithm": run.algorithm,
        "dataset": (run.config["dataset"] or {}).get("source"),
        "environment": environment_record(bound),
        "references": recorded if references is not None else None,
        "episodes": episodes,
        "eval_seed": seed,
        "time_limit": run.config.get("time_limit"),
        "seeds": results,
    }
