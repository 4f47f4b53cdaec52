"""Real servers for tests: `vllm serve` of SmolLM2 on the CPU, on loopback."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

# Under this name, which its command line serves.
MODEL = "SmolLM2-135M-Instruct"
START_SECONDS = 600
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    # Else every server binds its threads to the same cores.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


@dataclass
class RealServer:
    """One server in processes of its own: the interface, the engine, and its worker."""

    port: int
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        """Kill -9 all of its processes."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def metric(self, name: str) -> float:
        """Add up a metric of the server's: `vllm:num_requests_running`."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if re.match(rf"{name}\b", line))

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/models", timeout=30) as answer:
                return bool(json.load(answer)["data"])
        except (OSError, urllib.error.URLError):
            return False


@contextmanager
def real_servers(count: int, model: Path, logs: Path) -> Iterator[list[RealServer]]:
    """Start servers of a model folder side by side, and kill what is left of them at the end."""
    servers = [_start(model, logs / f"vllm-{number}.log", seed=number) for number in range(count)]
    try:
        deadline = time.monotonic() + START_SECONDS
        for server in servers:
            while not server.answers():
                assert server.is_alive and time.monotonic() < deadline, server.log.read_text()
                time.sleep(0.5)
        yield servers
    finally:
        for server in servers:
            server.kill()


def _start(model: Path, log: Path, seed: int) -> RealServer:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    # What `vllm serve` runs; that command itself asks for a package named vllm, which on a CPU is
    # vllm-cpu.
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)),
        *("--served-model-name", MODEL, "--host", "127.0.0.1", "--port", str(port)),
        *("--enforce-eager", "--max-model-len", "2048", "--max-num-seqs", "32"),
        *("--seed", str(seed), "--disable-uvicorn-access-log"),
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, **_ENVIRONMENT},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return RealServer(port, log, process)
