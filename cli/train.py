"""`herdbook train ALGORITHM --dataset … | --env … [--FIELD VALUE …]`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import make_dataclass
from typing import Annotated, Any

from herdbook.cli.parse import flag, parse, show, wants_help
from herdbook.experiments.catalogue import ALGORITHMS, SUMMARIES, algorithm_class, config_class


def usage() -> str:
    """What `herdbook train --help` prints, without importing any algorithm."""
    width = max(map(len, ALGORITHMS))
    names = "\n".join(f"  {name:<{width}}  {SUMMARIES[name]}" for name in ALGORITHMS)
    return (
        "usage: herdbook train ALGORITHM --dataset ID_OR_PATH | --env ID [--steps N] [--seeds 0 1 2] "
        "[--FIELD VALUE …]\n\n"
        f"algorithms:\n{names}\n  module:Class  your own\n\n"
        "herdbook train ALGORITHM --help lists every field."
    )


def run(arguments: Sequence[str]) -> int:
    """Train; returns the exit status."""
    words = list(arguments)
    if wants_help(words):
        show(usage())
        return 0 if words else 2
    name = flag(words, "algorithm")
    if name is not None and words[0].startswith("-"):
        words = _without(words, "--algorithm")
    else:
        name, words = words[0], words[1:]
    algorithm = algorithm_class(name)
    config_type = config_class(algorithm)

    import tyro

    from herdbook.core.memory import keep_freed_memory
    from herdbook.experiments.build import learns_in_environment, settings_of
    from herdbook.experiments.catalogue import UserError
    from herdbook.experiments.options import RunOptions, literal_pairs
    from herdbook.experiments.records import build_config, check_reserved
    from herdbook.experiments.settings import Setting, settings_for
    from herdbook.experiments.train import start

    check_reserved(config_type)
    both = make_dataclass(
        "Arguments",
        [
            ("run", Annotated[RunOptions, tyro.conf.arg(name="")]),
            ("config", Annotated[config_type, tyro.conf.arg(name="")]),
        ],
    )
    required = "env" if learns_in_environment(algorithm) else "dataset"

    def parsed_with(applied: Sequence[Setting]) -> Any:
        defaults: dict[str, Any] = {key: value for row in applied for key, value in row.config.items()}
        run_defaults: dict[str, Any] = {key: value for row in applied for key, value in row.run.items()}
        try:
            return parse(
                both,
                words,
                f"train {name}",
                description=SUMMARIES.get(name) or algorithm.__doc__ or config_type.__doc__ or name,
                default=both(
                    RunOptions(**{required: tyro.MISSING}, **run_defaults), build_config(config_type, defaults)
                ),
            )
        except UserError:
            raise
        except ValueError as error:  # the config refuses a value
            raise UserError(str(error)) from error

    applied = settings_for(name, flag(words, "dataset"), flag(words, "env"))
    parsed = parsed_with(applied)  # mistakes are told before a dataset is fetched, which names its environment
    options = parsed.run
    named = settings_of(
        name,
        algorithm,
        dataset=options.dataset,
        data_dir=options.data_dir,
        env=options.env,
        env_kwargs=literal_pairs(options.env_kwargs),
    )
    if named != applied:
        applied, parsed = named, parsed_with(named)
    keep_freed_memory()
    result = start(name, algorithm, parsed.config, parsed.run, applied=applied)
    report(result)
    return 0


def report(result: Any) -> None:
    """The last scores of a run, and where it is."""
    final: dict[int, dict[str, Any]] = {line["seed"]: line for line in result.evaluations()}
    for seed, line in final.items():
        score = line["normalized_score"]
        text = "" if score is None else f", normalised score {score:.1f}"
        show(f"seed {seed}: return {line['return_mean']:.1f} ± {line['return_std']:.1f} at step {line['step']:,}{text}")
    show(f"run: {result.path}")


def _without(words: Sequence[str], name: str) -> list[str]:
    """The words without `--name value` or `--name=value`."""
    kept, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word == name:
            skip = True
        elif not word.startswith(f"{name}="):
            kept.append(word)
    return kept
