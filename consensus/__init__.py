"""The protocol cores: how validators agree, without any input or output of their own.

What enters: messages of peers, verdicts of the application, the time. What leaves: records to make durable,
messages to send once they are, questions to the application, final blocks. Nothing in this room reads a clock,
a disk, a socket or a source of chance, so every schedule that a test can think of can be replayed.
"""
