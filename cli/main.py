"""The command itself: which groups there are, and how every failure of theirs reaches the user."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from cli.output import Exit, Manner, failed
from cli.packages import EXTRAS, missing
from fl.client.errors import BadInput, QuorateError

GROUPS: dict[str, tuple[str, str]] = {
    "keys": ("cli.keys", "A validator's keys, and the keys of accounts."),
    "genesis": ("cli.genesis", "Build, verify and show the document that a chain starts from."),
    "network": ("cli.network", "What clients need to know of a chain."),
    "node": ("cli.node", "Run a validator and look after it."),
    "evidence": ("cli.evidence", "Find validators that contradicted themselves."),
    "new": ("cli.new", "A directory with an app that trains at once, to begin with."),
    "run": ("cli.run", "Run a job file: simulated, on this machine, or on a chain."),
    "localnet": ("cli.localnet", "A chain of several validators on this machine."),
    "member": ("cli.member", "Register members, list and show them."),
    "job": ("cli.job", "Create, list, show, watch and stop training jobs."),
    "train": ("cli.train", "Train in a job, with the code and the data of this site."),
    "flower": ("cli.flower", "Stock Flower SuperNodes as trainers of a job."),
    "submit": ("cli.submit", "Submit an update that is in a file."),
    "model": ("cli.model", "The models that rounds have made."),
    "verify": ("cli.verify", "Verify what a round came to, with nothing taken on trust."),
    "explain": ("cli.explaining", "What a round's members did, or what a code means."),
    "replay": ("cli.replay", "Rounds again, without a member."),
    "preflight": ("cli.preflight", "Whether this machine and this account can take part, and what to do if not."),
    "policy": ("cli.policy", "What this site admits, whoever asks."),
    "blob": ("cli.blob", "Put, get and check blobs: files of any size, named by their CIDs."),
    "dataset": ("cli.dataset", "Register data sets, list them, and withdraw them."),
    "receipt": ("cli.receipt", "What became of transactions, with proofs that need nobody's word."),
    "tx": ("cli.tx", "How far a transaction is; signing one offline, and sending it."),
    "demo": ("cli.demo", "Four validators and eight trainers learn to read digits."),
    "bench": ("cli.bench", "Measure the product on this machine."),
    "completion": ("cli.completion", "Complete this command in your shell."),
}


class Lazy(click.Group):
    """Imports a group when it is called, so that help and completion come at once."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(GROUPS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in GROUPS:
            return None
        command: click.Command = getattr(importlib.import_module(GROUPS[name][0]), name)
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, meaning) for name, (_, meaning) in GROUPS.items()])


def _version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"quorate {version('quorate')}")
        context.exit()


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Say which this is."
)
def quorate() -> None:
    """A permissioned chain on which a model update is a transaction."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    manner = Manner()
    try:
        code = quorate.main(arguments, prog_name="quorate", standalone_mode=False, obj=manner)
    except click.UsageError as error:
        # An option that is not known ends the parsing, before the others have been looked at.
        manner.json |= "--json" in (sys.argv[1:] if arguments is None else arguments)
        if manner.json:
            failed(BadInput("USAGE", error.format_message(), "See --help."), manner)
        else:
            error.show()
        code = Exit.USAGE
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        code = Exit.INTERRUPTED
    except QuorateError as error:
        code = failed(error, manner)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        code = failed(missing(package, EXTRAS[package]), manner)
    except BrokenPipeError:
        # Whoever read the output has seen enough; what is left in the buffer has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = Exit.OK
    sys.exit(int(code or 0))


if __name__ == "__main__":
    main()
