"""`herdbook data list|show|make|convert|relabel`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from herdbook.cli.parse import parse, show, wants_help
from herdbook.experiments.catalogue import UserError, nearest


@dataclass(frozen=True, kw_only=True)
class ListArguments:
    """List the datasets on this machine, and the recipes, which need no network."""

    data_dir: str | None = None
    """Directory of the Minari datasets. The default is Minari's own, then the user's cache."""


@dataclass(frozen=True, kw_only=True)
class ShowArguments:
    """Show the spaces, environment, returns and episode ends of a dataset."""

    dataset: tyro.conf.Positional[str]
    """Minari id, recipe, D4RL or d3rlpy file (.hdf5, .h5) or Minari directory."""
    data_dir: str | None = None
    """Directory of the Minari datasets. The default is Minari's own, then the user's cache."""


@dataclass(frozen=True, kw_only=True)
class MakeArguments:
    """Make the dataset of a recipe and store it as an ordinary Minari dataset."""

    recipe: tyro.conf.Positional[str]
    """Name of the recipe, such as classic/pendulum."""
    data_dir: str | None = None
    """Directory for the dataset. The default is Minari's own."""


@dataclass(frozen=True, kw_only=True)
class ConvertArguments:
    """Convert a dataset, for example a D4RL file, to a Minari dataset."""

    dataset: tyro.conf.Positional[str]
    """The dataset to read: a D4RL or d3rlpy file (.hdf5, .h5), a Minari id or directory, or a recipe."""
    out: tyro.conf.Positional[str]
    """Minari id of the new dataset, for example me/hopper/medium-v0."""
    episode_steps: int | None = None
    """For a D4RL file without timeouts: the length at which its episodes were cut. By default they end at terminals."""
    data_dir: str | None = None
    """Directory of the Minari datasets. The default is Minari's own, then the user's cache."""


@dataclass(frozen=True, kw_only=True)
class RelabelArguments:
    """Write a dataset with the rewards of a learned reward, on which every offline algorithm can train."""

    dataset: tyro.conf.Positional[str]
    """The dataset to read: a Minari id or directory, a recipe, or a D4RL or d3rlpy file (.hdf5, .h5)."""
    out: tyro.conf.Positional[str]
    """Minari id of the new dataset, for example me/hopper/learned-v0."""
    reward: str
    """The learned reward: a directory with reward.json, or a run that learned one."""
    seed: int | None = None
    """Seed of the run whose reward is used. It can be left out if the run has one seed."""
    shaped: bool = False
    """Keep the shaping of a shaped reward (AIRL), with the discount of its run. The default is the reward without
    it, which is the part that transfers."""
    data_dir: str | None = None
    """Directory of the Minari datasets. The default is Minari's own, then the user's cache."""


_COMMANDS = ("list", "show", "make", "convert", "relabel")


def run(arguments: Sequence[str]) -> int:
    """Run one of the sub-commands; returns the exit status."""
    if wants_help(arguments):
        show(
            "usage: herdbook data COMMAND …\n\ncommands:\n"
            "  list     list the datasets on this machine, and the recipes\n"
            "  show     show what is in a dataset\n"
            "  make     make the dataset of a recipe (needs no network)\n"
            "  convert  convert a dataset, for example a D4RL file, to a Minari dataset\n"
            "  relabel  write a dataset with the rewards of a learned reward"
        )
        return 0 if arguments else 2
    command, words = arguments[0], arguments[1:]
    if command == "list":
        _list(parse(ListArguments, words, "data list"))
    elif command == "show":
        _show(parse(ShowArguments, words, "data show"))
    elif command == "make":
        _make(parse(MakeArguments, words, "data make"))
    elif command == "convert":
        _convert(parse(ConvertArguments, words, "data convert"))
    elif command == "relabel":
        _relabel(parse(RelabelArguments, words, "data relabel"))
    else:
        raise UserError(
            f"unknown command data {command!r}{nearest(command, _COMMANDS)}; there are {', '.join(_COMMANDS)}"
        )
    return 0


def _list(parsed: ListArguments) -> None:
    from herdbook.datasets.load import dataset_roots, list_datasets
    from herdbook.datasets.recipes.registry import RECIPES

    here = list_datasets(parsed.data_dir)
    show(f"datasets in {', '.join(map(str, dataset_roots(parsed.data_dir)))}:")
    show("\n".join(f"  {name}" for name in here) or "  none yet")
    show("recipes (made on first use):")
    for recipe in RECIPES.values():
        state = "made" if recipe.id in here else "not made yet"
        needs = "" if recipe.extra is None else f", needs herdbook[{recipe.extra}]"
        first = recipe.training
        trained = "" if first is None else f", trained first: {first.algorithm}, {first.steps:,} steps"
        show(f"  {recipe.name:<28} {recipe.description} ({state}{needs}{trained})")


def _show(parsed: ShowArguments) -> None:
    from herdbook.datasets.d4rl import d4rl_differences
    from herdbook.datasets.joint.episodes import JointEpisodes
    from herdbook.datasets.load import load_dataset

    episodes = load_dataset(parsed.dataset, data_dir=parsed.data_dir)
    environment, references = episodes.environment, episodes.reference_scores
    differences = d4rl_differences(environment, references)
    numbers = {
        name: f"{value:,.0f}" if value.is_integer() else f"{value:,.3f}"
        for name, value in episodes.statistics().items()
    }
    if isinstance(episodes, JointEpisodes):
        spaces = {
            f"agents {', '.join(kind.agents)}": f"observe {kind.observation_space}, act in {kind.action_space}"
            for kind in episodes.spec.kinds
        }
        transforms = "none"
    else:
        spaces = {
            "observations": str(episodes.raw_observation_space or episodes.observation_space),
            "actions": str(episodes.action_space),
        }
        transforms = ", ".join(episodes.transforms) or "none"
    facts = {
        "dataset": episodes.source,
        "environment": "none recorded" if environment is None else environment.id,
        "learned by": ", ".join(map(str, episodes.learned_by)) or "none recorded",
        **spaces,
        **numbers,
        "references": "none"
        if references is None
        else f"0 is {references.minimum:g}, 100 is {references.maximum:g} ({references.source})",
        **({} if differences is None else {"unlike D4RL": differences}),
        "transforms": transforms,
        "megabytes": f"{episodes.nbytes / 1e6:.1f}",
        "fingerprint": episodes.fingerprint(),
    }
    width = max(map(len, facts))
    show("\n".join(f"{name.replace('_', ' '):<{width}}  {value}" for name, value in facts.items()))


def _make(parsed: MakeArguments) -> None:
    from herdbook.datasets.load import find_dataset, load_dataset
    from herdbook.datasets.recipes.registry import RECIPES, resolve

    recipe = resolve(parsed.recipe)
    if recipe is None:
        names = [r.name for r in RECIPES.values()]
        hint = nearest(parsed.recipe, names)
        raise UserError(f"unknown recipe {parsed.recipe!r}{hint}; there are {', '.join(names)}")
    episodes = load_dataset(recipe.id, data_dir=parsed.data_dir)
    returns = episodes.returns()
    show(
        f"{recipe.id}: {len(episodes):,} episodes, {episodes.num_steps:,} steps, mean return {returns.mean():.1f}, "
        f"in {find_dataset(recipe.id, data_dir=parsed.data_dir)}"
    )


def _convert(parsed: ConvertArguments) -> None:
    from herdbook.datasets.load import load_dataset
    from herdbook.datasets.storage import check_new
    from herdbook.experiments.domains import domain_of

    check_new(parsed.out, parsed.data_dir)  # before a dataset is fetched or made
    episodes = load_dataset(parsed.dataset, data_dir=parsed.data_dir, episode_steps=parsed.episode_steps)
    folder = domain_of(episodes).write(episodes, parsed.out, parsed.data_dir)
    show(f"{parsed.out}: {len(episodes):,} episodes, {episodes.num_steps:,} steps, in {folder}")


def _relabel(parsed: RelabelArguments) -> None:
    from herdbook.experiments.relabel import relabel_dataset

    episodes, folder = relabel_dataset(
        parsed.dataset,
        parsed.out,
        parsed.reward,
        seed=parsed.seed,
        shaped=parsed.shaped,
        data_dir=parsed.data_dir,
    )
    mean, rewards = episodes.returns().mean(), episodes.rewards
    show(
        f"{parsed.out}: {len(episodes):,} episodes, {episodes.num_steps:,} steps, learned rewards from "
        f"{rewards.min():.3g} to {rewards.max():.3g}, mean return {mean:.1f}, in {folder}"
    )
