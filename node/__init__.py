"""The process: one validator, from its keys on disk to its answers on the wire.

What enters: frames of peers, requests of clients, what the disk holds from before. What leaves: frames, answers,
and rows and files that are durable before anything that depends on them is said. The cores of `consensus` decide
and the machine of `fl` executes; this room runs them behind five ports and adds nothing to what they promise.
"""
