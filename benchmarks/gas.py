"""docs/gas.md: what an EVM chain would have to burn each second to do what was measured here.

    python -m benchmarks.gas small.json large.json --write docs/gas.md
    python -m benchmarks.gas --check docs/gas.md

Reports are those of `quorate bench SCENARIO --json FILE`. The page keeps what it was computed from, so that it can be
computed again from itself.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.floors import LARGE_RATE
from benchmarks.windows import RATE

MIB = 1024 * 1024
SEI_GGAS_S = 5.0
"""Published by Sei for Giga, of an internal devnet of 40 nodes."""
_FROM, _TO = "<!-- measured: ", " -->"


@dataclass(frozen=True, slots=True)
class Way:
    """A way to average in an EVM: gas for one parameter of one client's update, int8."""

    name: str
    submits: str
    gas: tuple[float, ...]
    """Two where it was measured as a range, or with and without EIP-7623's floor."""


WAYS = (
    Way(
        "all signed updates in one transaction, the model in the event log; the second figure with EIP-7623's floor",
        "an aggregator",
        (20.2, 40.4),
    ),
    Way("each update stored as code (SSTORE2), summed later", "each client", (225,)),
    Way("each update in packed storage slots that are used again", "each client", (268,)),
    Way("int32 accumulators in storage, any weights", "each client", (699,)),
    Way("int256[] in storage, as most published projects do", "each client", (9_872, 26_791)),
)


@dataclass(frozen=True, slots=True)
class Measured:
    name: str
    validators: int
    parameters: int
    encoding: str
    updates_s: float
    command: str

    @property
    def rate(self) -> float:
        """Parameters × updates a second."""
        return self.parameters * self.updates_s


def measured_of(report: Mapping[str, Any]) -> Iterator[Measured]:
    """Of each case that says how many updates a second were executed, or how many bytes of them."""
    for case in report["cases"]:
        told = {**report["settings"], **case["settings"]}
        if RATE in case["figures"]:
            updates_s = case["figures"][RATE]["median"]
        elif LARGE_RATE in case["figures"]:
            updates_s = case["figures"][LARGE_RATE]["median"] * MIB / told["update_bytes"]
        else:
            continue
        name = case["name"] if case["name"] == report["scenario"] else f"{report['scenario']}: {case['name']}"
        yield Measured(
            name,
            int(told["validators"]),
            int(told["parameters"]),
            str(told.get("encoding", "q8")),
            round(float(updates_s), 3),
            str(report["command"]),
        )


def render(measured: Sequence[Measured]) -> str:
    kept = json.dumps([asdict(each) for each in measured])
    return _PAGE.format(
        rates="\n".join(_rates(measured)),
        ways="\n".join(_ways(measured)),
        chains="\n".join(_chains(measured)),
        commands="\n".join(f"    {command}" for command in dict.fromkeys(each.command for each in measured)),
        kept=f"{_FROM}{kept}{_TO}",
    )


def kept_in(page: str) -> list[Measured]:
    text = page.partition(_FROM)[2].partition(_TO)[0]
    return [Measured(**each) for each in json.loads(text)]


def _rates(measured: Iterable[Measured]) -> Iterator[str]:
    yield "| measured | validators | parameters | encoding | updates a second | M p·u/s |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for each in measured:
        cells = (each.name, each.validators, f"{each.parameters:,}", each.encoding, _short(each.updates_s))
        yield "| " + " | ".join(map(str, (*cells, _short(each.rate / 1e6)))) + " |"


def _ways(measured: Sequence[Measured]) -> Iterator[str]:
    quantised = [each for each in measured if each.encoding == "q8"]
    yield "| how, in an EVM | who submits | gas a p·u | " + " | ".join(each.name for each in quantised) + " |"
    yield "| --- | --- | --- |" + " --- |" * len(quantised)
    for way in WAYS:
        needed = [_range(gas * each.rate / 1e9 for gas in way.gas) for each in quantised]
        yield "| " + " | ".join((way.name, way.submits, _range(way.gas), *needed)) + " |"


def _chains(measured: Sequence[Measured]) -> Iterator[str]:
    quantised = [each for each in measured if each.encoding == "q8"]
    yield (
        "| how, in an EVM | M p·u/s at 5 Ggas/s | "
        + " | ".join(f"{each.name}, times as many" for each in quantised)
        + " |"
    )
    yield "| --- | --- |" + " --- |" * len(quantised)
    for way in WAYS:
        could = [SEI_GGAS_S * 1e9 / gas for gas in way.gas]
        times = [_range(each.rate / one for one in could) for each in quantised]
        yield "| " + " | ".join((way.name, _range(one / 1e6 for one in could), *times)) + " |"


def _range(values: Iterable[float]) -> str:
    return " to ".join(_short(each) for each in sorted(values))


def _short(value: float) -> str:
    """Three figures, or all of those before the point."""
    if value >= 100:
        return f"{value:,.0f}"
    if value >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


_PAGE = """# What it would cost in gas

Quorate has no gas. To compare it with chains that count in it, this page says how much gas a second an EVM chain
would have to execute to do the same averaging, and what a chain of the highest published rate could do.

## What was measured

A *p·u* is one parameter of one client's update, received, ordered, checked and averaged by every validator. What a
chain of this kind does in a second is parameters × updates a second.

{rates}

{commands}

Validators and the load generator shared one small machine; [throughput](throughput.md) says which, and how much of
what that machine can do at all this was.

## The same in an EVM

Gas a p·u was measured with contracts written for it (solc 0.8.37, several numbers worked on in one 256-bit word,
results checked against an exact reference): weighted averaging of 10 clients' updates of 8 bits a parameter, in
steady state. The columns on the right are the gas a second, in Ggas, that would do what was measured here, at this
width.

{ways}

"Each client" means what a chain is for: every client's own signed transaction is ordered, and the contract averages.
In the first way somebody in the middle collects all updates, and could leave some out. Half the width halves the
first row, twice the width doubles it.

## Beside Sei

Sei's published headline for Giga is 5 Ggas/s, on an internal devnet of 40 nodes; its mainnet runs at about 0.1. At 5
Ggas/s, and if nothing but this ran on it:

{chains}

## How to read this

- **Equal width.** Rows are of 8 bits a parameter, so they are beside q8 here. f32 is four times the bytes; it was not
  measured in an EVM, and no ratio is given for it.
- **Not equal machines.** Sei's figure is of 40 nodes, of hardware that is not ours; the figure here is of four
  validators and their clients on two cores. More cores or nodes would change each in its own way. Ordering among 40
  is dearer than among four ([limits](limits.md)).
- **Not equal work.** An EVM chain runs any program, and its gas pays for that generality. This chain does federated
  learning and nothing else. Gas is also a price, set with margins: in memory, one core of the same machine interprets
  27 to 60 M p·u/s of the averaging alone (revm), without signatures, network, consensus or storage.
- **A headline is not a workload.** 5 Ggas/s is mostly execution. A transaction that carries updates is mostly
  calldata: at 16 gas a byte, 5 Ggas/s are 312 MB/s of calldata (125 MB/s with EIP-7623's floor), which every node
  would have to receive. Whether the devnet can was not published. No chain is known to us that publishes figures for
  payloads above 64 KB a transaction.
- **What is left out here** counts for both: training, and clients' own work.

The rows of gas are measurements of ours, made once. Figures of this page are computed by

    python -m benchmarks.gas REPORT.json … --write docs/gas.md

{kept}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", nargs="*", type=Path)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--check", type=Path, help="fails unless this page is what its own figures give")
    given = parser.parse_args()
    if given.check is not None:
        page = given.check.read_text()
        if render(kept_in(page)) != page:
            raise SystemExit(f"{given.check} is not what its figures give; write it again")
        return
    if not given.reports:
        parser.error("name at least one report")
    reports = [json.loads(path.read_text()) for path in given.reports]
    page = render([each for report in reports for each in measured_of(report)])
    if given.write is not None:
        given.write.write_text(page)
    else:
        print(page)


if __name__ == "__main__":
    main()
