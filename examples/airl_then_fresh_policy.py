"""Learn a reward from demonstrations by AIRL, then train a fresh policy on it where the dynamics have changed.

    python examples/airl_then_fresh_policy.py [steps]

A point mass goes around a barrier that begins on the left. `airl` sees 50 episodes and learns a reward of the state
alone. Then a barrier begins on the right, and the policy of AIRL runs into it. PPO trains a new policy there on the
learned reward, and never sees the true one. `steps` are those of each of the two runs, which are written to
`transferred/`. All returns are true ones: the demonstrator has about −31 on its side, a random policy −159.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import herdbook
from herdbook.core.environments import EnvironmentSpec
from herdbook.irl.airl import AIRLConfig
from herdbook.online.ppo import PPOConfig

ENV, FOLDER = "herdbook/PointMass-v0", Path("transferred")
SIDES: dict[str, dict[str, Any]] = {"left": {"barrier": "left"}, "right": {"barrier": "right", "length": 1.1}}
PPO = PPOConfig(hidden_sizes=(32, 32), lr=1e-3, entropy_weight=0.1)


def main(steps: int) -> None:
    options: dict[str, Any] = {"steps": steps, "eval_episodes": 0, "quiet": True}
    imitator = AIRLConfig(ppo=PPO, reward_inputs="state", old_rollouts=10)
    airl = herdbook.train(
        imitator, dataset="point-mass/left/expert", demonstrations=50, run_dir=FOLDER / "airl", **options
    )
    learner = replace(PPO, entropy_weight=0.05, scale_rewards=True)
    fresh = herdbook.train(
        learner, env=ENV, env_kwargs=SIDES["right"], reward=airl.path, run_dir=FOLDER / "fresh", **options
    )
    for run, side in ((airl, "left"), (airl, "right"), (fresh, "right")):
        place = EnvironmentSpec(id=ENV, kwargs=SIDES[side])
        episodes = herdbook.evaluate(herdbook.load(run.path).policy, place, episodes=20, seed=0)
        print(f"{run.path.name}, barrier on the {side}: return {episodes.returns().mean():.1f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 40_000)
