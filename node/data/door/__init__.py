"""Where members and the world put and get blobs over HTTP, at an address of the data process itself.

What enters: manifests and leaves with leaves of absence from suspicion: a `Leave` that a member signed, checked before
anything is allocated. What leaves: blobs, whole or in part, from their mapped files; problem documents as everywhere.

    server.py       open_door: the public door over TCP, the operator's over a Unix socket
    api.py          what the handlers work with, and what the door wants of the rest of the data process
    routes.py       the tables; the core's OpenAPI document lists the public one too
    permits.py      signed leaves, and who may do what
    uploads.py      manifests and leaves, or a whole blob as a stream
    downloads.py    blobs, what is known of them, lists
    operator.py     pins, verification, repair, import
    views.py        what the answers look like

The HTTP is that of node/rpc: one door, one desk, one set of problems for both processes.
"""
