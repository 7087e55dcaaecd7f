"""A Flower app of the older sort: a NumPyClient, and a strategy that has the initial parameters."""
