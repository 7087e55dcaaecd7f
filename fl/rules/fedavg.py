"""The weighted mean of the updates: c = w·2^G, den = W·2^G."""

from __future__ import annotations

from fl.rules.rule import DENSE, Streaming


class FedAvg(Streaming):
    name = "fedavg"
    encodings = DENSE | {"topk"}
    weighted = groups = stale = True
