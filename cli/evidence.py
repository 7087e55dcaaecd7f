"""`quorate evidence`: what the journals of stopped nodes prove about validators.

If more than f validators were dishonest and the chain forked, the journals of the honest ones together hold pairs of
votes that no honest validator casts, of at least n - 2f of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from chain.certificate import ValidatorSet, Vote, verify_vote, votes_of
from chain.codec import encode
from chain.genesis import Genesis
from cli.explain import explained
from cli.founding import read_genesis
from cli.genesis import FILE
from cli.journals import journal_records
from cli.output import Exit, line, reading, table, tell, waiting
from consensus.evidence import offence, scan, view_of
from consensus.ordering.records import Held, Offence, OwnVote


@dataclass(frozen=True, slots=True)
class Conviction:
    validator: str
    consensus_key: str
    epoch: int
    view: int
    rule: str
    proof: str
    """Both votes, encoded: anyone who has the genesis can check them."""


@click.group()
def evidence() -> None:
    """Find validators that contradicted themselves."""


@evidence.command("scan")
@click.argument("directories", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--genesis", "genesis_file", type=FILE, default=Path("genesis.bin"), show_default=True)
@click.option("--fail-if-found", is_flag=True, help="End with exit code 6 if anyone is convicted.")
@reading
def scan_journals(directories: tuple[Path, ...], genesis_file: Path, fail_if_found: bool) -> None:
    """Look for contradictory votes in the journals of stopped nodes.

    DIRECTORIES are data directories (or copies of them), each with its journal. The more nodes' journals there are, the
    more comes to light: two votes that contradict each other may well lie in different ones. The files stay as
    they are.
    """
    with explained():
        genesis = read_genesis(genesis_file)
        with waiting("Reading journals") as say:
            convicted = _convicted(genesis, directories, say)
    data = {"journals": [str(place) for place in directories], "convicted": [asdict(each) for each in convicted]}

    def show() -> None:
        if not convicted:
            line("No validator contradicted itself in these journals.")
            return
        rows = [(each.validator, each.epoch, each.view, each.rule, each.consensus_key) for each in convicted]
        table(("VALIDATOR", "EPOCH", "VIEW", "RULE", "CONSENSUS KEY"), rows)
        line("With --json, the two signed votes of each are printed too.")

    tell(data, show)
    if convicted and fail_if_found:
        click.get_current_context().exit(Exit.UNVERIFIED)


def _convicted(genesis: Genesis, places: Sequence[Path], say: Callable[[str], None]) -> list[Conviction]:
    sets = (genesis.validators, *(change.validators for change in genesis.set_changes))
    members = {epoch: ValidatorSet(epoch, each) for epoch, each in enumerate(sets)}

    def genuine(vote: Vote) -> bool:
        return vote.epoch in members and verify_vote(genesis.chain_id, members[vote.epoch], vote)

    def records() -> Iterator[object]:
        for place in places:
            say(str(place))
            yield from journal_records(place)

    found = scan(records())
    if not all(genuine(each.first) and genuine(each.second) for each in found):
        # A journal was tampered with. Its forged votes convict nobody, nor may they hide the pairs that do.
        found = scan(OwnVote(vote) for record in records() for vote in votes_in(record) if genuine(vote))
    return [_conviction(members[each.first.epoch], each) for each in found]


def votes_in(record: object) -> tuple[Vote, ...]:
    match record:
        case OwnVote(vote):
            return (vote,)
        case Held(certificate):
            return votes_of(certificate)
        case Offence(first, second):
            return (first, second)
    return ()


def _conviction(validators: ValidatorSet, pair: Offence) -> Conviction:
    rule, view = offence(pair.first, pair.second), view_of(pair.first)
    assert rule is not None and view is not None, "scanning finds nothing else"
    member = validators.members[pair.first.signer]
    return Conviction(member.name, member.consensus_key.hex(), pair.first.epoch, view, rule, encode(pair).hex())
