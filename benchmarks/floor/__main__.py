"""python -m benchmarks.floor [--updates 4096] [--parameters 1000] [--encoding q8] [--pages fresh] [--json FILE]"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.floor import Pages, Workload, run_floor


def main() -> None:
    asked = Workload()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.floor", description=__doc__)
    parser.add_argument("--validators", type=int, default=asked.validators)
    parser.add_argument("--updates", type=int, default=asked.updates)
    parser.add_argument("--parameters", type=int, default=asked.parameters)
    parser.add_argument("--encoding", choices=("q8", "f32"), default=asked.encoding)
    parser.add_argument("--pages", type=Pages, choices=tuple(Pages), help="one of the two; both if left out")
    parser.add_argument("--passes", type=int, default=asked.passes)
    parser.add_argument("--directory", type=Path, help="where validators write")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    reports = []
    for pages in [given.pages] if given.pages else [*Pages]:
        workload = Workload(given.validators, given.updates, given.parameters, given.encoding, pages, given.passes)
        reports.append(run_floor(workload, given.directory).report())
    text = json.dumps(reports, indent=2)
    print(text)
    if given.json is not None:
        given.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
