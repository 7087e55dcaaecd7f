"""Ordering: Simplex consensus over small blocks, as a core without input or output.

Time is cut into views, numbered from 1 in each epoch; each has one leader, by turns. There are three votes:

    notarize(view, parent view, block)   "the one proposal of this view that I accept"; the leader's is the proposal
    nullify(view)                        "nothing may become final in this view by my vote"
    finalize(view, block)                "I hold its notarization, and I shall not nullify"

A quorum q = n - f of one vote over one subject is a certificate: notarization, nullification, finalization.

On entering a view: wait for the leader's proposal. The leader proposes once, on the highest view below that is final or
notarized, every view between being nullified.
On a proposal: judge its parent, its header and its body. Valid: make the body durable, notarize. Invalid for ever:
nullify. Undecided for want of data: fetch it, wait.
On a timeout in the current view, or the leader's own nullify: nullify.
On a notarization of view v: enter v+1; finalize v unless v was nullified by me, its leader was seen to equivocate, or
something at or above v is final.
On a nullification of v: enter v+1. On a finalization of v: its block and all its ancestors are final; enter v+1.

Why no fork. An honest validator notarizes once a view, so a view has at most one notarization. It never both nullifies
and finalizes a view, so a view with a finalization has no nullification. A child names a notarized parent and needs
every view between to be nullified, so whatever is notarized above a finalized block descends from it. There are no
locks; the three guards in `view.py` are the whole safety surface.

Why no stall. Certificates that were missing are relayed once; a validator that is stuck in a view says so each second,
with the certificate by which it entered, and is answered with the one by which others left; after ten seconds without
finality everyone says all that it knows above the last final block. Timeouts grow with the views since the last final.

Why no loss. A validator notarizes a body only once it is durable with it, so a notarization is f+1 honest copies. What
was voted is journalled before it is said, and said again after a restart, to itself as well.

Deviations from the paper: no certify step (the body's durability is in the vote); views burn only while something is
pending; a validator silent for 4n views is passed over at once; growing timeouts and standstill resends as in TON's
lossy-network proof; the last block of an epoch is repeated until it is final.
"""
