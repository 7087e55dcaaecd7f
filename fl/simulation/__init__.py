"""A job in one process: the state machine and the aggregation of the chain, hundreds of trainers, no network.

Enters: a job's draft, somebody who answers for each trainer, how trainers behave (how long they take, how often they
fail), a seed. Leaves: what became of each round, and the last model, byte for byte as validators would certify it.

Nothing of the chain is imitated: transactions are checked as a vote for their batch checks them and executed in blocks,
results are certified items, cohorts are drawn by a beacon. Only what needs several machines is absent: consensus,
signatures (execution checks none) and time. Time is virtual: a block comes when something happens, and a round of an
hour takes as long as its arithmetic. The same seed gives the same models.

Reading order: `conditions` (how trainers behave), `chain` (blocks in one process), `closing` (a frozen round becomes a
model), `play` (who does what, when), `simulate` (all of it for a job file and its app).
"""
