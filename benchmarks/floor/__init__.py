"""The floor: what the same updates cost at least, in as many processes, with no chain around them.

    run_floor(Workload(validators=4, updates=4096, parameters=1000)).updates_s
    python -m benchmarks.floor --updates 4096 --parameters 1000

One process a validator and one for all clients. Every update is sent by the client to one validator, which relays it
to the others; every validator has its bytes checked, hashed, written and synced, and in its sums, when the clock stops.
That is what a replicated aggregator cannot leave out. There is no ordering, no vote, no state, no receipt, no API; a
crash loses the run.

- From the client to validators: plain sockets, as on a local network of the product. Small updates are signed ahead; of
  large ones the client hashes what it sends, as whoever names bytes by their hash must.
- Between validators: TLS 1.3 with both sides authenticated, on blocking sockets, read into buffers that are used again.
- Small updates (`small`) are signed transactions, many in a frame. A validator decodes each strictly, takes its id and
  the hash of its payload, verifies the signature, looks at the values and adds them up; one sync covers all frames that
  came meanwhile.
- Large updates (`large`) come in leaves of 1 MiB, each hashed, looked at and written as it comes, one sync a blob. They
  are summed four at a time by the product's kernels. In the end each validator writes the next model.

What would be cheaper with other cryptography (batches of signatures verified together, another hash) is not done here,
as the libraries that the product builds on do not offer it.

Bytes that are written need pages. Those of a new file must be found first, which on a virtual machine whose host takes
free memory back costs ten times what the copying costs. So there are two floors: `Pages.FRESH` writes new files, as a
store does that creates and unlinks; `Pages.REUSED` writes over files of the pass before, as one does that keeps a pool.
"""

from benchmarks.floor.run import run_floor
from benchmarks.floor.workload import FloorResult, Pages, Workload

__all__ = ["FloorResult", "Pages", "Workload", "run_floor"]
