"""`herdbook train ALGORITHM --dataset … | --env … [--FIELD VALUE …]`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, make_dataclass
from typing import TYPE_CHECKING, Annotated, Any

from herdbook.cli.parse import flag, parse, show, wants_help
from herdbook.core.config import has_inner
from herdbook.experiments.catalogue import ALGORITHMS, SUMMARIES, UserError, algorithm_class, config_class, needs_of

if TYPE_CHECKING:
    from herdbook.core.config import Config
    from herdbook.core.needs import Needs
    from herdbook.experiments.options import RunOptions
    from herdbook.experiments.settings import Setting


def usage() -> str:
    """The text of `herdbook train --help`; no algorithm is imported."""
    width = max(map(len, ALGORITHMS))
    names = "\n".join(f"  {name:<{width}}  {SUMMARIES[name]}" for name in ALGORITHMS)
    return (
        "usage: herdbook train ALGORITHM --dataset ID_OR_PATH | --env ID [--steps N] [--seeds 0 1 2] "
        "[--FIELD VALUE …]\n\n"
        f"algorithms:\n{names}\n  {'module:Class':<{width}}  your own\n\n"
        "herdbook train ALGORITHM --help lists every option of an algorithm."
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

    from herdbook.core.memory import keep_freed_memory
    from herdbook.datasets.load import dataset_name
    from herdbook.experiments.options import literal_pairs
    from herdbook.experiments.records import check_reserved
    from herdbook.experiments.settings import settings_for
    from herdbook.experiments.tasks import settings_of
    from herdbook.experiments.train import check_start, start

    check_reserved(config_type)
    summary = f"{SUMMARIES[name]}; equations: {algorithm.__module__}" if name in SUMMARIES else algorithm.__doc__
    description = summary or name
    command = _Command(name, description, needs_of(algorithm), config_type)
    dataset, offline = flag(words, "dataset"), "--no-online" in words
    known = None if dataset is None else dataset_name(dataset)
    applied = settings_for(name, flag(words, "env"), dataset=known, offline=offline)
    config, options = command.parse(words, applied)  # mistakes are told before a dataset is fetched
    check_start(algorithm, config, options)
    named = settings_of(
        name,
        algorithm,
        dataset=options.dataset,
        data_dir=options.data_dir,
        env=options.env,
        env_kwargs=literal_pairs(options.env_kwargs),
        offline=offline,
    )
    if named != applied:  # the dataset names its environment
        applied, (config, options) = named, command.parse(words, named)
    keep_freed_memory()
    result = start(name, algorithm, config, options, applied=applied)
    report(result)
    return 0


@dataclass(frozen=True)
class _Command:
    """The options of `herdbook train NAME`: the algorithm's config, and the groups of run options that apply to it."""

    name: str
    description: str
    needs: Needs
    config_type: type[Config]

    def parse(self, words: Sequence[str], applied: Sequence[Setting]) -> tuple[Config, RunOptions]:
        """The config and the options, with the settings of the task as defaults."""
        import tyro

        from herdbook.experiments.options import RunOptions
        from herdbook.experiments.records import build_config

        config = build_config(self.config_type, {key: value for row in applied for key, value in row.config.items()})
        defaults = asdict(RunOptions(**{key: value for row in applied for key, value in row.run.items()}))
        if self.needs.data is True:
            defaults["dataset"] = tyro.MISSING
        if self.needs.environment is True and self.needs.data is not True:
            defaults["env"] = tyro.MISSING
        if self.needs.expert:
            defaults["expert"] = tyro.MISSING
        groups = self._groups(defaults)
        short = tyro.conf.OmitArgPrefixes
        # An inner algorithm's options keep their prefix, as in --ppo.lr; tyro then shows the others without a title.
        own = (
            Annotated[self.config_type, tyro.conf.arg(name="")]
            if has_inner(self.config_type)
            else short[self.config_type]
        )
        members = [("algorithm", own), *((group, short[made]) for group, made in groups)]
        arguments: Any = make_dataclass("Arguments", members, frozen=True)
        try:
            parsed: Any = parse(
                arguments,
                words,
                f"train {self.name}",
                description=self.description,
                default=arguments(config, *(group() for _, group in groups)),
            )
            chosen = {key: value for group, _ in groups for key, value in vars(getattr(parsed, group)).items()}
            return parsed.algorithm, RunOptions(**{**defaults, **chosen})
        except UserError:
            raise
        except ValueError as error:  # the config refuses a value
            raise UserError(str(error)) from error

    def _groups(self, defaults: Mapping[str, Any]) -> list[tuple[str, type[Any]]]:
        """A dataclass for each group of options that apply."""
        import typing

        import tyro

        from herdbook.experiments.options import GROUPS, RunOptions, descriptions, options_for

        types, texts = typing.get_type_hints(RunOptions), descriptions()
        groups = []
        for group, names in options_for(self.needs).items():
            described = {name: Annotated[types[name], tyro.conf.arg(help=texts[name])] for name in names}
            members = [(name, hint, field(default=defaults[name])) for name, hint in described.items()]
            made = make_dataclass(group, members, frozen=True)
            made.__doc__ = GROUPS[group]
            groups.append((group, made))
        return groups


def report(result: Any) -> None:
    """Print the last scores of a run, and its directory."""
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
