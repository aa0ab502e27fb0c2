"""Datasets with the rewards of a learned reward, written as ordinary Minari datasets."""

from __future__ import annotations

from pathlib import Path

from herdbook.datasets.episodes import Episodes
from herdbook.datasets.load import load_dataset
from herdbook.datasets.minari import write_minari
from herdbook.datasets.relabel import relabel
from herdbook.datasets.storage import check_new
from herdbook.experiments.catalogue import UserError
from herdbook.experiments.rewards import named_reward, reward_directory

RECORD = "herdbook_reward"
"""The key in a dataset's metadata.json that says where its rewards came from."""


def relabel_dataset(
    dataset: str,
    out: str,
    reward: str | Path,
    *,
    seed: int | None = None,
    shaped: bool = False,
    data_dir: str | Path | None = None,
) -> tuple[Episodes, Path]:
    """Write a dataset whose rewards are those of a learned reward, as an ordinary Minari dataset.

    `reward` and `seed` are those of `named_reward`. `shaped` keeps the shaping of a shaped reward, with the discount of
    the reward. Where the rewards came from is recorded in the transforms, and under `herdbook_reward` in metadata.json.

    Returns the new episodes and their folder. Raises UserError for a dataset of many agents and as `named_reward`,
    DataError as `load_dataset` and `write_minari`.
    """
    check_new(out, data_dir)  # before a dataset is fetched or made
    directory = reward_directory(reward, seed)
    named_reward(directory)
    episodes = load_dataset(dataset, data_dir=data_dir)
    if not isinstance(episodes, Episodes):
        raise UserError(f"{dataset}: expected a dataset of one agent, got one of many agents")
    learned = named_reward(directory, spec=episodes.spec(), where=episodes.source)
    if not shaped:
        learned = learned.unshaped()
    digest = learned.digest()
    record = {
        "dataset": episodes.source,
        "directory": str(directory),
        "digest": digest,
        "inputs": learned.design.inputs,
        "shaped": learned.design.shaped,
        "discount": learned.discount,
        "about": dict(learned.about),
    }
    shaping = f", shaped with discount {learned.discount:g}" if learned.design.shaped else ""
    text = f"learned ({directory}, digest {digest[:12]}{shaping})"
    relabelled = relabel(episodes, learned, discount=learned.discount, description=text)
    return relabelled, write_minari(relabelled, out, data_dir=data_dir, **{RECORD: record})
