"""The validator's face to clients and operators: HTTP, JSON and WebSocket over what the node knows.

What enters: requests of anyone who can reach the listening address. What leaves: answers, each built from final
and executed state, with the raw records and proofs by which a client can check them; problem documents (RFC 9457)
with stable codes; events as they happen.

    server.py       start, close; listening, TLS, HTTP to requests and back (the only files that know aiohttp
    connection.py   are these two): who may connect, how long anything may take
    routes.py       the table: method, path, handler, parameters, answers. It routes, and OpenAPI is made from it
    requests.py     a request as a handler sees it, and a response; parameters and how strictly they are read
    problems.py     every refusal by its code
    schema.py       JSON schemas from the types of the answers (views.py, fl_views.py): one cannot leave the other
    event_log.py    events by index; whoever follows them has a place in it and no queue
    limits.py       what one client, and all together, may ask at once
    the rest        handlers, by subject: plain async functions that know nothing of HTTP servers
"""
