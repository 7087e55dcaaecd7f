"""Tensors as bytes: what a job's schema makes of a model and of an update, and the grid their sums lie on.

Enters: a schema with its encoding and range, arrays on the client's side, payloads from anywhere. Leaves:
safetensors files whose every byte the schema implies (`model`, `encodings`), verdicts on payloads that are
pure functions of bytes, and the constants of the fixed-point grid (`grid`). An update holds the *change* of
each averaged tensor against the round's model.

Reading order: `layout` (schema, headers, the flat order), `encodings` (the table of encodings and what is
done with each), `model`, `grid`, `closing` (the record that closes a round). Plain numpy, so that a client
needs no compiler; the compiled kernels live in `fl.kernels`.
"""
