"""The `quorate` command: one file a command group, each thin over the rooms below.

What enters: arguments, files, a terminal. What leaves: tables and progress on a terminal, plain lines in a pipe, one
JSON envelope with `--json`, and an exit code that docs/cli.md explains. A group is imported when it is used.
"""
