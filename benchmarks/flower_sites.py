"""A member's site as processes: the gateway from this environment, and a stock flower-supernode from Flower's own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from cli.localnets import LocalNetwork, free_port

ROOT = Path(__file__).resolve().parent.parent
FLOWER = ROOT / ".venv-flower-1.41" / "bin"
"""Made by tests/flower/environments.sh."""

_POLL_S = 0.1


def of_flower(home: Path) -> dict[str, str]:
    """The environment of Flower's programs."""
    return {
        "PATH": f"{FLOWER}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


class Site:
    """Its processes are in groups of their own, and all of them are gone when it is left."""

    def __init__(self, directory: Path, name: str, environment: Mapping[str, str] | None = None) -> None:
        self.directory = directory / name
        self.directory.mkdir(parents=True)
        self.port = free_port()
        self._environment = environment or {}
        self._processes: list[subprocess.Popen[bytes]] = []
        self._supernode: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Site:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            _kill(process)
        if kind is not None:
            for log in sorted(self.directory.glob("*.log")):
                print(f"\n== {log}\n{log.read_text(errors='replace')[-3000:]}")

    def start_gateway(
        self, net: LocalNetwork, account: str, job: str, app: Path, *options: object
    ) -> subprocess.Popen[bytes]:
        given = ("flower", "serve", job, "--app", app, "--listen", f"127.0.0.1:{self.port}")
        client = ("--network", net.network_file, "--key", net.key_file(account), "--home", self.directory / "home")
        command = [sys.executable, "-m", "cli.main", *map(str, (*given, *client, *options))]
        return self.start("gateway", command, {"PYTHONPATH": str(ROOT)})

    def start_supernode(self, node_config: str, *options: object) -> None:
        """With --insecure, unless other options are given."""
        command = [str(FLOWER / "flower-supernode"), "--superlink", f"127.0.0.1:{self.port}"]
        command += ["--port", str(free_port()), "--node-config", node_config, *map(str, options or ("--insecure",))]
        self._supernode = self.start("supernode", command, of_flower(self.directory / "flwr"))

    def kill_supernode(self) -> None:
        """SIGKILL, and to its app as well."""
        assert self._supernode is not None
        _kill(self._supernode)

    def start(self, name: str, command: Sequence[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        with open(self.directory / f"{name}.log", "ab") as log:
            process = subprocess.Popen(
                command,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **environment, **self._environment},
            )
        self._processes.append(process)
        return process

    def log(self, name: str = "gateway") -> str:
        return (self.directory / f"{name}.log").read_text(errors="replace")

    def wait_for(self, text: str, name: str = "gateway", patience_s: float = 240.0) -> None:
        ends = time.monotonic() + patience_s
        while text not in self.log(name):
            assert time.monotonic() < ends, f"no '{text}' in the {name}'s log"
            time.sleep(_POLL_S)


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
