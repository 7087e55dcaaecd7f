"""What validators receive from one another, as the system counts it for their connections (`ss`)."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter

from cli.localnets import LocalNetwork

_CONNECTION = re.compile(r"^ESTAB +\d+ +\d+ +\S+:(\d+) +\S+:(\d+) .*?pid=(\d+),.*? bytes_received:(\d+)", re.MULTILINE)


def received_bytes(net: LocalNetwork) -> dict[str, int]:
    """By validator, on links so far, TLS included; blobs and clients are not in it. Empty where the system has no
    `ss`."""
    if shutil.which("ss") is None:
        return {}
    told = subprocess.run(["ss", "-tinpHO"], capture_output=True, text=True, check=True).stdout
    ports = {int(member.address.rpartition(":")[2]) for member in net.members.values()}
    by_process = received_by_links(told, ports)
    return {name: by_process[member.pid] for name, member in net.members.items() if member.pid is not None}


def received_by_links(told: str, link_ports: set[int]) -> Counter[int]:
    """Bytes by process, of connections to or from these ports, as `ss -tinpHO` tells them."""
    found = Counter[int]()
    for own, other, pid, size in _CONNECTION.findall(told):
        if link_ports & {int(own), int(other)}:
            found[int(pid)] += int(size)
    return found
