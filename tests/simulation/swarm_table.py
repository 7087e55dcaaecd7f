"""What one blob costs on the wire, from one validator to all others.

python -m tests.simulation.swarm_table [--leaves 64] [--seeds 3]
"""

from __future__ import annotations

import argparse
from functools import partial

from tests.simulation.loop import simulate
from tests.simulation.spreading import Spread, spread


def row(spreads: list[Spread]) -> str:
    """The worst of the seeds in each column."""
    size = spreads[0].size
    origin = max(each.origin for each in spreads)
    total = max(each.total for each in spreads)
    most = max(each.most for each in spreads)
    seconds = max(each.seconds for each in spreads)
    return f"| {size} | {origin:.2f} | {size - 1} | {total:.3f} | {most:.2f} | {seconds:.2f} s |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--leaves", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    print("| n | origin's egress / blob | if all pulled from it | total / ((n-1) · blob) | most of another | time |")
    print("| --- | --- | --- | --- | --- | --- |")
    for size in (4, 7, 10):
        seeds = range(1, 1 + arguments.seeds)
        print(row([simulate(partial(spread, size, arguments.leaves, seed)) for seed in seeds]), flush=True)


if __name__ == "__main__":
    main()
