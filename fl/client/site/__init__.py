"""A site before it takes part: what its policy admits, and whether all is ready."""
