"""The validator's face to clients and operators: HTTP, JSON and WebSocket over what the node knows.

What enters: requests of anyone who can reach the listening address. What leaves: answers, each built from final
and executed state, with the raw records and proofs by which a client can check them; problem documents (RFC 9457)
with stable codes; events as they happen.

    server.py       start, close: the core's doors
    listening.py    addresses, sockets, TLS
    connection.py   who may connect, how long anything may take
    desk.py         a request on its way from the door to its handler, and the answer on its way back
    bodies.py       what comes in, whole or in pieces
    sockets.py      event streams over WebSocket
    table.py        what a table of routes is made of, and how a path is found in it
    routes.py       the core's table: it routes, and OpenAPI is made from it
    requests.py     a request as a handler sees it, and a response; parameters and how strictly they are read
    problems.py     every refusal by its code
    schema.py       JSON schemas from the types of the answers (views.py and its like): one cannot leave the other
    event_log.py    events by index; whoever follows them has a place in it and no queue
    tally.py        what is counted
    limits.py       what one client, and all together, may ask at once
    the rest        handlers, by subject: plain async functions that know nothing of HTTP servers

Only connection, desk, bodies and sockets know aiohttp. The data process has its door made of the same parts, with a
table of its own (node/data/door*).
"""
