"""The member's side of the network: read what is proven, train, submit, keep the receipt.

Enters: a network file (`networkfile`, all that is trusted), a key file (`keyfile`), arrays, files. Leaves: verified
models, signed transactions, receipts with their proofs on disk. No node is believed: every state is checked against the
validators' certificates (`reader`), every blob against its CID, and heads of f + 1 nodes are compared. It needs neither
a compiler nor a database; it works inside a running event loop.

Reading order: `nodes` (asking several as one), `reader` (verified reads), `home` (what is on disk), `sender`
(transactions on their way), `job` (rounds as tasks), `network` (the async face), `sync` (the plain one), `errors`.
What is too large for a transaction: `blobs`, and under it `upload`, `download`, `doors` (where nodes take and give
them) and `blobfile` (where they are here); `ipfs` for those that other networks have; `datasets`. A trainer ready to
run is in `trainer`, with its data in `digits` and its numbers in `perceptron`.
"""
