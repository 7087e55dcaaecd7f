"""A gateway for stock Flower SuperNodes, in the member's own domain.

What enters: the calls of a `flower-supernode` (1.40 and later), protobuf over HTTP, and the tasks of one job. What
leaves: each task as a Flower message, its model as content-addressed objects, and each reply as an update that the
member's account signs. The SuperNode never sees the chain's key, and the chain never sees the SuperNode.

`protobuf` and `wire` are the encoding, `objects` the content-addressed objects, `parcels` what is sent and `arrivals`
what is received, `forms` which record is called what, `fab` the bundle of the app, `visitors` who may call, `desk` what
the SuperNode is told, `door` the HTTP server, `serve` the way between the job and the desk.
"""
