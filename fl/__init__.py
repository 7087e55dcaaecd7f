"""Federated learning as a state machine: what members of a chain may do, and what each of it changes.

Enters: the bytes of transactions and of the blobs that they name, and final blocks (batches of transactions, items,
block time, proposer). Leaves: verdicts on bytes (`fl.check`, `fl.blobs`); per block the rows of state to write,
receipts, events and the aggregations to start (`fl.machine`); the model that a round ends with (`fl.aggregation`); and
the blobs that a state needs (`fl.retention`). Everything in this room is a pure function of what enters; clocks, disks
and links stay in the rooms above, except in `fl.client`, which is the member's side of the network.

Reading order: `errors` (every refusal), `records` (what is stored), `transactions` (the table of kinds),
`machine` (a block), `phases` and `course` (a round), `blobs` (what a transaction promises of bytes that it does not
carry).
"""
