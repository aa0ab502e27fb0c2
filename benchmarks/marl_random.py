"""Team returns of uniformly random agents on MPE tasks, next to the published values, as a check of the conventions.

    python benchmarks/marl_random.py [--episodes 1000]

The output is a Markdown table: the mean return, the standard deviation of one episode, and the 95 % interval of the
mean (normal approximation).
"""

from __future__ import annotations

import argparse
import math

from herdbook.core.joint.random_policy import JointRandomPolicy
from herdbook.core.joint.runner import JointRunner
from herdbook.evaluation.joint import evaluate_joint

EXPECTED = {"mpe2/simple_spread_v3": "−79.4 ± 2.3", "mpe2/simple_speaker_listener_v4": "−79 ± 5"}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=1000)
    episodes = parser.parse_args().episodes
    print("| task | episodes | team return | of one episode | 95 % interval | expected |\n|---|---|---|---|---|---|")
    for name, expected in EXPECTED.items():
        runner = JointRunner(name, 1)
        runner.close()
        returns = evaluate_joint(JointRandomPolicy(runner.spec), name, episodes, seed=0).returns()
        half = 1.96 * returns.std(ddof=1) / math.sqrt(episodes)
        mean = returns.mean()
        print(
            f"| {name} | {episodes:,} | {mean:.1f} | ± {returns.std(ddof=1):.1f} | "
            f"[{mean - half:.1f}, {mean + half:.1f}] | {expected} |"
        )


if __name__ == "__main__":
    main()
