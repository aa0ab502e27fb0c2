"""Returns of the expert recipes and of random actions in the same environments, over the same number of episodes.

python benchmarks/expert_recipes.py [--episodes 1000] [--only NAME …]
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from herdbook.core.environments import make_environment
from herdbook.core.random_policy import RandomPolicy
from herdbook.datasets.recipes.recipe import Behaviour, collect
from herdbook.datasets.recipes.registry import RECIPES

SEED = 1_000_000  # no episode of the recipes themselves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--only", nargs="*", help="short names of recipes")
    arguments = parser.parse_args()
    print("| recipe | mean | std | worst | best | mean length | random: mean |\n|---|---|---|---|---|---|---|")
    for recipe in RECIPES.values():
        if recipe.training or recipe.extra or recipe.name.count("/") < 2:  # the experts have names of three parts
            continue
        if arguments.only and recipe.name not in arguments.only:
            continue
        (behaviour,) = recipe.behaviours()
        played = collect(recipe.environment, replace(behaviour, episodes=arguments.episodes), SEED)
        actions = make_environment(recipe.environment).action_space
        random = collect(recipe.environment, Behaviour(RandomPolicy(actions), arguments.episodes, {}), SEED)
        returns = played.returns()
        numbers = (returns.mean(), returns.std(), returns.min(), returns.max(), played.lengths().mean())
        cells = [*(f"{number:.1f}" for number in numbers), f"{random.returns().mean():.1f}"]
        print(f"| `{recipe.name}` | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
