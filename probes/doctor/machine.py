"""What the libraries of a machine can do, each looked at in a process of its own.

    python -m probes.doctor.machine torch

A library that was built for another machine may not only fail to import, it may end its process;
and importing one is no reason to hold its memory. The last line of the output is JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

from curate.files import CODE_ROOT

Facts = dict[str, Any]

_SECONDS = 300
_MOST_CHARACTERS = 300


def look_at(names: Iterable[str]) -> dict[str, Facts]:
    """Look at several of `LOOKS` at once: facts by name; `failed` says why there are none."""
    paths = [str(CODE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    processes = {
        name: subprocess.Popen(
            [sys.executable, "-P", "-m", "probes.doctor.machine", name],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        for name in names
    }
    try:
        return {name: _facts_of(process) for name, process in processes.items()}
    finally:
        for process in processes.values():
            process.kill()
            process.wait()


def _facts_of(process: subprocess.Popen[bytes]) -> Facts:
    try:
        output, _ = process.communicate(timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        return {"failed": f"importing it took more than {_SECONDS} s"}
    status = process.returncode
    if status:
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        return {"failed": f"importing it ended the process ({how})"}
    facts: Facts = json.loads(output.splitlines()[-1])
    return facts


def _torch() -> Facts:
    import torch
    from transformers import AutoModelForCausalLM  # noqa: F401 (whether it can be had)

    from probes.models.load import choose_device, choose_dtype

    device = choose_device()
    return {
        "device": device.type,
        "dtype": str(choose_dtype(device)).removeprefix("torch."),
        "cpu_dtype": str(choose_dtype(torch.device("cpu"))).removeprefix("torch."),
        "cuda": torch.version.cuda,
        "gpus": [_gpu(number) for number in range(torch.cuda.device_count())],
    }


def _gpu(number: int) -> Facts:
    import torch

    free, total = torch.cuda.mem_get_info(number)
    major, minor = torch.cuda.get_device_capability(number)
    return {
        "name": torch.cuda.get_device_name(number),
        "bytes": total,
        "free_bytes": free,
        "capability": f"{major}.{minor}",
    }


def _vllm() -> Facts:
    import vllm
    from vllm import LLM  # noqa: F401 (imported when first asked for)
    from vllm.platforms import current_platform

    return {"version": vllm.__version__, "device": current_platform.device_type}


def _train() -> Facts:
    for name in ("accelerate", "peft", "trl"):
        importlib.import_module(name)
    from trl import GRPOTrainer  # noqa: F401 (imported when first asked for)

    return {}


def _ray() -> Facts:
    import ray

    return {"version": ray.__version__}


LOOKS = {"torch": _torch, "vllm": _vllm, "train": _train, "ray": _ray}
"""What can be looked at."""


def main(name: str) -> None:
    """Print the facts of one of `LOOKS`."""
    try:
        facts = LOOKS[name]()
    except Exception as error:  # noqa: BLE001 (whatever an import raises is the finding)
        reason = " ".join(str(error).split())[:_MOST_CHARACTERS]
        facts = {"failed": f"{type(error).__name__}: {reason}"}
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
