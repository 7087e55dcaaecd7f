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
    name: str
    decided_by: DecidedBy
    sentence: str


_BYTES = {
    "UNDECODABLE": "The bytes are no canonical encoding of such a transaction; let the SDK encode it.",
    "WRONG_CHAIN": "The transaction names another chain; check the chain id of your network file.",
    "BAD_SIGNATURE": "The signature does not match the transaction and its public key; sign it again.",
    "WEAK_KEY": "The public key is of an unknown type, or signatures can be forged under it.",
    "OVERSIZE": "The transaction or its payload is larger than the chain admits.",
    "UNKNOWN_KIND": "No transaction kind has this number under the chain's rules version.",
    "BAD_NAME": "A name must be 1 to 64 characters of letters, digits, dot, dash and underscore.",
    "BAD_ROLES": "Roles must be known, distinct and sorted.",
    "BAD_PROOF": "The proof that the new key is held does not verify; sign it with the new key.",
    "BAD_RULES": "The job's rules are out of their limits.",
    "BAD_SCHEMA": "The job's model schema is malformed.",
    "BAD_CONFIG": "The job's config entries must be sorted, distinct and hold values of their stated types.",
    "BAD_GROUPS": "The job's groups must be sorted and hold each averaged tensor once.",
    "PRIVACY_NOT_OFFERED": "The chain does not offer this privacy yet.",
    "BAD_MODEL": "The initial model is not the canonical model blob of the job's schema.",
    "NOT_SUPPORTED": "The chain does not offer this yet.",
    "WRONG_HEADER": "The blob's header is not the one that the job, the round and the member imply.",
    "NON_FINITE": "The update holds NaN or infinity.",
    "OUT_OF_RANGE": "The update holds a value beyond the job's range.",
    "BAD_INDEX": "The update's indices do not rise strictly within the model, up to zeros at the end.",
    "BAD_EXAMPLES": "The number of examples must be from 1 to 2^32.",
    "BAD_METRICS": "The update must give one value for each metric that the job names.",
    "NO_CHECK_IN": "The job's rounds begin without a check-in.",
    "NO_EVALUATION": "The job asks nothing of evaluators.",
    "UNKNOWN_GROUP": "The job has no group of tensors with this number.",
    "BAD_CID": "The payload does not hash to the CID that the transaction names, or no payload of its size can.",
    "BAD_DATASET": "The data set's entry is out of its limits.",
    "BLOB_MISSING": "The blob that the transaction names is not whole on this node; put it here, then send again.",
    "BLOB_FULL": "The node has no room for the blob, or its account has put as many bytes as it may; use another node.",
}

_STATE = {
    "VALID_UNTIL_FAR": "valid_until is further ahead of block time than the chain admits.",
    "UNAUTHORISED": "The sender's roles do not allow this.",
    "NOT_MEMBER": "The sender is not a member; ask a registrar to register its key.",
    "REVOKED": "The member has been revoked.",
    "UNKNOWN_MEMBER": "No member has this account id.",
    "ALREADY_MEMBER": "The account is a member already.",
    "NAME_TAKEN": "Another member, another open job, or another data set of this owner has this name.",
    "UNKNOWN_JOB": "No job has this id.",
    "JOB_CLOSED": "The job is finished or stopped.",
    "JOB_NOT_PAUSED": "Only a paused job can be resumed.",
    "JOB_PAUSED": "The job is paused already, or will be after its round.",
    "JOB_FULL": "The job has as many members as it can hold.",
    "TOO_MANY_JOBS": "The chain admits no more open jobs, or parameters in them; stop one first.",
    "WRONG_RULES": "The rules hash is not this job's; read its rules again before accepting them.",
    "ALREADY_JOINED": "The member has joined this job already.",
    "NOT_JOINED": "The member is not in this round's cohort; join the job and wait for its next round.",
    "WRONG_ROUND": "The job has not reached this round.",
    "LATE": "The round takes no more updates.",
    "DUPLICATE": "The member has answered this round already.",
    "NOT_COLLECTING": "The round does not take updates yet; wait until it collects.",
    "NOT_CHECKED_IN": "The member has not checked in for this round.",
    "TOO_STALE": "The update starts from an older model than the job takes; train from the newest one.",
    "BUFFER_CLOSED": "No buffer is open at the moment; send the same payload again once the next one is.",
    "NO_WEIGHT": "The member's update would weigh nothing in this job.",
    "WRONG_BASE": "The update starts from another model than the round's.",
    "NOT_DRAWN": "The member is not among those who are asked this time.",
    "WRONG_MODEL": "The answer is about another model than the one that is evaluated.",
    "STORED_LIMIT": "The member's stored data sets would take more than the chain admits; withdraw one first.",
    "UNKNOWN_DATASET": "No data set has this id.",
    "WITHDRAWN": "The data set has been withdrawn.",
    "FAULT": "Execution met a fault of its own and left the state untouched; please report it.",
}

_NOBODY = {
    "EXPIRED": "Block time has passed the transaction's valid_until; sign it again with a later one.",
    "NONCE_USED": "The nonce has been used by an executed transaction.",
    "NONCE_FAR": "The nonce is beyond the account's window; wait for earlier transactions.",
    "WRONG_KEY": "The public key is not the account's present key.",
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
