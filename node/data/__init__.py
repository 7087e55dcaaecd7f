"""The data process of a validator: blobs of any size, how they come, where they are kept, and the sums made of them.

What enters: frames of the core process over a pipe (claims to judge, updates to sum, roots to keep), leaves of blobs
from peers over bulk links and from members over HTTP. What leaves: verdicts, CIDs, leaves. It may die at any moment
and be started anew: what it has acknowledged is on its disk, and the core says again what it still wants.
"""
