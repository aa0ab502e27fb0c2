"""Recover the reward of a gridworld from demonstrations, by maximum causal entropy inverse RL, and draw it.

    python examples/recover_gridworld_reward.py [updates]

A demonstrator walks over a field for 30 steps at a time, and slips. It likes the meadow in one corner and avoids the
swamp in the middle. `mce_irl` sees where it walks and knows how it slips. It writes the true and the learned reward as
pictures, with the policies as arrows, and the run to `recovered/`.
"""

import sys
from pathlib import Path

import numpy as np

import herdbook
from herdbook.evaluation.evaluate import evaluate
from herdbook.irl.rewards import load_reward
from herdbook.tabular.environment import MDPEnv
from herdbook.tabular.gridworld import GridWorld
from herdbook.tabular.mdp import MDP, Floats
from herdbook.tabular.picture import draw
from herdbook.tabular.planning import occupancy, soft_value_iteration, visitation
from herdbook.tabular.policy import TabularPolicy

FOLDER = Path("recovered")
GRID = GridWorld(text="S......\n.......\n..#....\n..#....\n.......\n.......", slip=0.2)
HORIZON, DEMONSTRATIONS = 30, 200


def field() -> MDP:
    """The gridworld with a reward for each cell in which an action is taken."""
    rows, columns = np.array(GRID.cells).T
    meadow, swamp = (rows >= 4) & (columns >= 5), (abs(rows - 2) <= 1) & (abs(columns - 4) <= 1)
    return GRID.mdp(discount=1.0).with_rewards(1.0 * meadow - 1.0 * swamp)


def value(mdp: MDP, rewards: Floats) -> float:
    """The true return of the policy that is soft-optimal for some rewards."""
    policy = soft_value_iteration(mdp.with_rewards(rewards), horizon=HORIZON).policy
    return float((occupancy(mdp, policy) * mdp.expected_rewards).sum())


def main(updates: int) -> None:
    mdp = field()
    truth = mdp.expected_rewards[:, 0]
    demonstrator = soft_value_iteration(mdp, horizon=HORIZON)
    policy = TabularPolicy(demonstrator.policy, deterministic=False)
    data = evaluate(policy, lambda: MDPEnv(mdp), episodes=DEMONSTRATIONS, seed=0, max_steps=HORIZON)
    print(f"{len(data)} demonstrations of {HORIZON} steps, mean return {data.returns().mean():.2f}")

    options = {"steps": updates, "horizon": HORIZON, "discount": 1.0, "lr": 0.05, "eval_episodes": 0, "quiet": True}
    run = herdbook.train("mce_irl", dataset=data, env=lambda: MDPEnv(mdp), run_dir=FOLDER / "run", **options)
    learned = load_reward(run.path / "rewards" / "seed_0").at(np.arange(mdp.num_states)).astype(np.float64)

    seen = visitation(mdp, demonstrator.policy)[:-1].sum(0) > 1  # cells that are visited once in an episode, or more
    correlation = np.corrcoef(learned[seen], truth[seen])[0, 1]
    print(f"correlation of the learned with the true reward in the cells that are visited: {correlation:.2f}")
    returns = [value(mdp, rewards) for rewards in (truth, learned, np.zeros_like(truth))]
    print("return for the true, the learned and no reward: " + ", ".join(f"{each:.2f}" for each in returns))
    for name, rewards in (("true", truth), ("learned", learned - learned.mean())):  # a constant changes no policy
        first = soft_value_iteration(mdp.with_rewards(rewards), horizon=HORIZON).policy[0]
        draw(GRID, rewards, first, path=FOLDER / f"{name}.png")
        print(f"wrote {FOLDER / name}.png")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
