"""The errors of the rooms below, as the ones that this command reports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from chain.genesis import GenesisError
from cli.output import Exit
from fl.client.errors import BadFile, QuorateError
from node.config import ConfigError
from node.keystore import KeystoreError
from node.ports import PortError

UNVERIFIED = frozenset(
    {"CORRUPT_LOG", "LOG_MISSING", "LOG_EXISTS", "WRONG_STORE", "WRONG_OWNER", "NOT_INITIALISED"}
    | {"STATE_AHEAD", "FORK", "KEY_IN_USE", "ROOT_DIVERGED", "RESULT_DIVERGED", "UNKNOWN_SET"}
)
"""Codes of what this machine holds or computes and must not be trusted: trying again does not help."""


class NodeStopped(QuorateError):
    """A validator that cannot start or go on."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(code, sentence[:1].upper() + sentence[1:].rstrip(".") + ".")
        self.exit_code = Exit.UNVERIFIED if code in UNVERIFIED else Exit.FAILED


@contextmanager
def explained() -> Iterator[None]:
    try:
        yield
    except KeystoreError as error:
        raise BadFile(error.code, str(error)) from error
    except ConfigError as error:
        raise BadFile("BAD_CONFIGURATION", str(error)) from error
    except GenesisError as error:
        raise BadFile("BAD_GENESIS", str(error)) from error
    except PortError as error:
        raise NodeStopped(error.code, str(error)) from error
