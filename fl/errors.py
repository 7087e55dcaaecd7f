"""Every refusal, by a stable code: who decides it, and the sentence that a person reads.

What *bytes* decide is refused at admission and consumes nothing. So is a transaction whose blob one node does not
hold, or has no room for, though another node may (BLOB_MISSING, BLOB_FULL). What *state* decides is refused in
execution: one receipt, and the nonce is consumed. *Nobody's* refusals leave neither, because the account that would
pay is not the one that signed, or its nonce is not free. A *round's* codes say why a round or an evaluation failed, an
*item's* why it was ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class DecidedBy(Enum):
    BYTES = "bytes"
    STATE = "state"
    NOBODY = "nobody"
    ROUND = "round"
    ITEM = "item"


@dataclass(frozen=True, slots=True)
class Code:
    """The sentence says what is so and, after a semicolon, what to do; every refusal of a transaction has both."""

    name: str
    decided_by: DecidedBy
    sentence: str

    @property
    def what(self) -> str:
        return f"{self.sentence.partition('; ')[0].rstrip('.')}."

    @property
    def todo(self) -> str:
        step = self.sentence.partition("; ")[2]
        return step[:1].upper() + step[1:]


_BYTES = {
    "UNDECODABLE": "The bytes are no canonical encoding of such a transaction; let the SDK encode it.",
    "WRONG_CHAIN": "The transaction names another chain; check the chain id of your network file.",
    "BAD_SIGNATURE": "The signature does not match the transaction and its public key; sign it again.",
    "WEAK_KEY": "The public key is of an unknown type, or signatures can be forged under it; make a new key.",
    "OVERSIZE": (
        "The transaction or its payload is larger than the chain admits; "
        "name large bytes by their CID, as the SDK does."
    ),
    "UNKNOWN_KIND": (
        "No transaction kind has this number under the chain's rules version; use the program that its members use."
    ),
    "BAD_NAME": "A name must be 1 to 64 characters of letters, digits, dot, dash and underscore; choose another.",
    "BAD_ROLES": "Roles must be known, distinct and sorted; write them so.",
    "BAD_PROOF": "The proof that the new key is held does not verify; sign it with the new key.",
    "BAD_RULES": "The job's rules are out of their limits; change the one that is named.",
    "BAD_SCHEMA": "The job's model schema is malformed; let the SDK draft it.",
    "BAD_CONFIG": (
        "The job's config entries must be sorted, distinct and hold values of their stated types; "
        "let the SDK draft them."
    ),
    "BAD_GROUPS": "The job's groups must be sorted and hold each averaged tensor once; name each in one group.",
    "PRIVACY_NOT_OFFERED": "The chain does not offer this privacy yet; only visible-to-validators is offered.",
    "BAD_MODEL": "The initial model is not the canonical model blob of the job's schema; let the SDK build it.",
    "NOT_SUPPORTED": "The chain does not offer this yet; leave it out.",
    "WRONG_HEADER": (
        "The blob's header is not the one that the job, the round and the member imply; let the SDK encode it."
    ),
    "NON_FINITE": "The update holds NaN or infinity; train with a smaller learning rate, or clip gradients.",
    "OUT_OF_RANGE": (
        "The update holds a value beyond the job's range; train with a smaller learning rate, or clip it to that range."
    ),
    "BAD_INDEX": (
        "The update's indices do not rise strictly within the model, up to zeros at the end; let the SDK encode it."
    ),
    "BAD_EXAMPLES": "The number of examples must be from 1 to 2^32; give how many were trained on.",
    "BAD_METRICS": "The update must give one value for each metric that the job names; `quorate job show` lists them.",
    "NO_CHECK_IN": "The job's rounds begin without a check-in; submit an update at once.",
    "NO_EVALUATION": "The job asks nothing of evaluators; join it as a trainer.",
    "UNKNOWN_GROUP": "The job has no group of tensors with this number; `quorate job show` lists them.",
    "BAD_CID": (
        "The payload does not hash to the CID that the transaction names, or no payload of its size can; "
        "let the SDK name it."
    ),
    "BAD_DATASET": "The data set's entry is out of its limits; shorten what it says.",
    "BLOB_MISSING": "The blob that the transaction names is not whole on this node; put it here, then send again.",
    "BLOB_FULL": "The node has no room for the blob, or its account has put as many bytes as it may; use another node.",
}

_STATE = {
    "VALID_UNTIL_FAR": (
        "valid_until is further ahead of block time than the chain admits; sign it again with an earlier one."
    ),
    "UNAUTHORISED": (
        "The sender's roles do not allow this; ask a registrar for the role, or use the key of a member who has it."
    ),
    "NOT_MEMBER": "The sender is not a member; ask a registrar to register its key.",
    "REVOKED": "The member has been revoked; ask a registrar why.",
    "UNKNOWN_MEMBER": "No member has this account id; check it.",
    "ALREADY_MEMBER": "The account is a member already; there is nothing to do.",
    "NAME_TAKEN": "Another member, another open job, or another data set of this owner has this name; choose another.",
    "UNKNOWN_JOB": "No job has this id; `quorate job list` tells which there are.",
    "JOB_CLOSED": "The job is finished or stopped; fetch its model, or train in another.",
    "JOB_NOT_PAUSED": "Only a paused job can be resumed; `quorate job show` tells how it is.",
    "JOB_PAUSED": "The job is paused already, or will be after its round; resume it when it is to go on.",
    "JOB_FULL": "The job has as many members as it can hold; wait until one leaves it.",
    "TOO_MANY_JOBS": "The chain admits no more open jobs, or parameters in them; stop one first.",
    "WRONG_RULES": "The rules hash is not this job's; read its rules again before accepting them.",
    "ALREADY_JOINED": "The member has joined this job already; go on and answer its rounds.",
    "NOT_JOINED": "The member is not in this round's cohort; join the job and wait for its next round.",
    "WRONG_ROUND": "The job has not reached this round; wait for it.",
    "LATE": "The round takes no more updates; go on with the next one, as a loop over tasks does.",
    "DUPLICATE": "The member has answered this round already; go on with the next one, as a loop over tasks does.",
    "NOT_COLLECTING": "The round does not take updates yet; wait until it collects.",
    "NOT_CHECKED_IN": (
        "The member has not checked in for this round; wait for the next one: a loop over tasks checks in."
    ),
    "TOO_STALE": "The update starts from an older model than the job takes; train from the newest one.",
    "BUFFER_CLOSED": "No buffer is open at the moment; send the same payload again once the next one is.",
    "NO_WEIGHT": (
        "The member's update would weigh nothing in this job; "
        "look at the data set it joined with and its organisation's cap."
    ),
    "WRONG_BASE": "The update starts from another model than the round's; train from the round's own.",
    "NOT_DRAWN": "The member is not among those who are asked this time; wait for the next.",
    "WRONG_MODEL": "The answer is about another model than the one that is evaluated; measure that one.",
    "STORED_LIMIT": "The member's stored data sets would take more than the chain admits; withdraw one first.",
    "UNKNOWN_DATASET": "No data set has this id; `quorate dataset list` tells which there are.",
    "WITHDRAWN": "The data set has been withdrawn; register it anew.",
    "FAULT": "Execution met a fault of its own and left the state untouched; please report it.",
}

_NOBODY = {
    "EXPIRED": "Block time has passed the transaction's valid_until; sign it again with a later one.",
    "NONCE_USED": "The nonce has been used by an executed transaction; sign it again with the next one.",
    "NONCE_FAR": "The nonce is beyond the account's window; wait for earlier transactions.",
    "WRONG_KEY": (
        "The public key is not the account's present key; "
        "use the newest key file, and name the account if it was rotated."
    ),
}

_ROUND = {
    "BELOW_MINIMUM": "Fewer updates than the job's minimum arrived in time.",
    "NO_RESULT": "No quorum of validators agreed on a result in time.",
    "MODEL_RANGE": "The aggregated model would hold a value that is not finite.",
    "STOPPED": "The job was stopped.",
    "OVERTAKEN": "A later round's model was due for evaluation before the minimum of answers arrived.",
    "GOAL_REACHED": "An earlier round's model was measured to be as good as the job wants it.",
}

_ITEM = {
    "STALE": "The item speaks of a round that no longer waits for it.",
    "REPEATED": "The state holds what the item says.",
}

CODES: dict[str, Code] = {
    name: Code(name, decided_by, sentence)
    for decided_by, table in (
        (DecidedBy.BYTES, _BYTES),
        (DecidedBy.STATE, _STATE),
        (DecidedBy.NOBODY, _NOBODY),
        (DecidedBy.ROUND, _ROUND),
        (DecidedBy.ITEM, _ITEM),
    )
    for name, sentence in table.items()
}


class Refused(Exception):
    """A refusal by its code; `sentence` says more than the table's when the place knows more."""

    def __init__(self, code: str, sentence: str = "") -> None:
        self.code = code
        self.sentence = sentence or CODES[code].sentence
        super().__init__(code, self.sentence)

    @property
    def decided_by(self) -> DecidedBy:
        return CODES[self.code].decided_by

    def __str__(self) -> str:
        return f"{self.code}: {self.sentence}"


class PendingJob(Exception):
    """The bytes can be judged only under the rules of a job that this node does not know yet."""

    def __init__(self, job: bytes) -> None:
        self.job = job
        super().__init__(f"the rules of job {job.hex()} are not known here yet")
