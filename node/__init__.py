"""The process: everything of a validator that touches the world.

What enters: configuration, keys, frames of peers, requests of clients. What leaves: frames, files, answers,
numbers. The world itself is reached only through `node.ports`; all other modules import asyncio and nothing
else impure, so that the tests run this whole room on virtual time.
"""
