"""What an auditor works out who takes nothing on trust: a round again from its recorded updates, and what it was like.

Enters: records that a quorum's signatures lead to, transactions and blobs whose bytes were compared with their names.
Leaves: steps, each with a verdict and with what was expected and found; measures of updates; models that would have
come about without a member. Nothing here fetches or writes: `fl.client.audit` brings what these functions ask for.

Reading order: `steps` (verdicts), `recorded` (a round's evidence), `checks` (what holds between records, transactions
and blobs), `recompute` (the aggregation again), `measures` (for explanations), `replay` (without a member). The last
three need the kernels; a client that only reads imports none of them.
"""
