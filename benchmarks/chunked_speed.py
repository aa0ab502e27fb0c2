"""CPU time of an update of CQL with the plain critic over that with `CandidateCritic` (core/chunked.py), one thread.

    python benchmarks/chunked_speed.py [--rounds 10]

The data are synthetic: 17 observations, 6 actions, batches of 256, 10 candidates of each proposal. The two sides take
turns; the ratio is the median over the rounds (range).
"""

import argparse
import statistics
import time
from unittest.mock import patch

import torch
from gymnasium import spaces

from herdbook.core.networks import Critic
from herdbook.core.types import Spec, Transitions
from herdbook.offline.cql import CQL, CQLConfig

BATCH, UPDATES = 256, 8


def batch(generator: torch.Generator) -> Transitions:
    seen, after = torch.randn(2, BATCH, 17, generator=generator)
    actions = torch.rand(BATCH, 6, generator=generator) * 2 - 1
    return Transitions(seen, actions, torch.randn(BATCH, generator=generator), torch.full((BATCH,), 0.99), after)


def seconds(algorithm: CQL, batches: list[Transitions]) -> float:
    start = time.process_time()
    for each in batches:
        algorithm.update(each)
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    spec = Spec(spaces.Box(-1, 1, (17,)), spaces.Box(-1, 1, (6,)))
    batches = [batch(torch.Generator().manual_seed(number)) for number in range(UPDATES)]
    for sizes in ((256, 256), (256, 256, 256)):
        config = CQLConfig(hidden_sizes=sizes)
        with patch("herdbook.offline.cql.CandidateCritic", Critic):
            plain = CQL(config, spec)
        chunked = CQL(config, spec)
        seconds(plain, batches[:3])
        seconds(chunked, batches[:3])
        ratios = [seconds(plain, batches) / seconds(chunked, batches) for _ in range(rounds)]
        low, high = min(ratios), max(ratios)
        print(f"{sizes}: {statistics.median(ratios):.2f} ({low:.2f} to {high:.2f})", flush=True)


if __name__ == "__main__":
    main()
