"""The member's side of the network: read what is proven, train, submit, keep the receipt.

Enters: a network file (`networkfile`, all that is trusted), a key file (`keyfile`), arrays, files. Leaves: verified
models, signed transactions, receipts with their proofs on disk. No node is believed: every state is checked against the
validators' certificates (`reader`), every blob against its CID, and heads of f + 1 nodes are compared. It needs neither
a compiler nor a database; it works inside a running event loop.

Reading order: `nodes` (asking several as one), `reader` (verified reads), `home` (what is on disk), `signing` and
`sender` (transactions, signed once), `courier` (on their way until their fate is proven), `receiptfile` (the proof,
checked by whoever has the network file), `job` (rounds as tasks), `network` (the async face), `sync` (the plain one),
`errors`. Beside them, a directory each: `transfer` (blobs, from and to nodes and IPFS), `audit` (rounds looked at
again), `site` (what a site admits, and whether all is ready), `adapters` (frameworks), `flowergate` (for Flower's
SuperNodes), `scaffold` (projects to begin with). A trainer ready to run is in `trainer`; what code of one's own looks
like is in `apps`.
"""
