"""What `curate tag` can do here, and what is in its way: findings, each with its remedy.

Nothing that could be broken is imported here: libraries are looked at in processes of their own.
"""

from __future__ import annotations

import math
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from curate.config import TagConfig
from curate.errors import UsageError
from probes.busy import THREADS, busy_remedy, found_busy, usable_cores
from probes.doctor.expected_size import ExpectedSize, expected_size
from probes.doctor.finding import Finding, State
from probes.doctor.installation import Dependency, clashes, dependencies
from probes.doctor.machine import LOOKS, Facts, look_at
from probes.verifiers.sandbox import why_no_sandbox

_FEWEST_ITEMS = 1000
_DTYPE_BYTES = {"bfloat16": 2, "float32": 4}


def examine(
    config: TagConfig,
    items: int | None = None,
    tell: Callable[[Finding], None] | None = None,
) -> list[Finding]:
    """Look at everything that a run needs.

    Args:
        config: of the run that is planned: its model, dataset and sizes; all may be the defaults.
        items: of that run; None: those of its dataset, or 1,000 where it names none.
        tell: is called with each finding as it is made.

    Raises:
        UsageError: the dataset cannot be read, the model does not exist, or `items` is below 1.
    """
    if items is not None and items < 1:
        raise UsageError(f"--items is {items}; it must be at least 1")
    findings = []
    for finding in _findings(config, items):
        findings.append(finding)
        if tell:
            tell(finding)
    return findings


def _findings(config: TagConfig, items: int | None) -> Iterator[Finding]:
    busy = found_busy()  # Before the libraries are looked at, which keeps the cores busy itself.
    used = dependencies()
    missing = {each.extra for each in used if each.extra and each.version is None}
    yield _python()
    yield from _packages(used)
    yield from _clashes()
    facts = look_at(name for name in LOOKS if name not in missing)
    yield from _devices(facts["torch"])
    yield from _others(busy, facts["torch"])
    yield from _engines(facts, used)
    yield _training(facts.get("train"), used)
    yield _ray(facts.get("ray"))
    yield _sandbox(config)
    if items is None and config.dataset:
        from probes.doctor.dataset import look_at_dataset  # Needs what may be missing.

        items, read = look_at_dataset(config)
        yield from read
    items = _FEWEST_ITEMS if items is None else items
    size = expected_size(config, items)
    weights, found = _weights(config.model, facts["torch"]) if config.model else (0, [])
    yield from found
    yield _disk(config, size)
    yield _memory(size, weights, facts["torch"])


def can_tag(findings: list[Finding]) -> bool:
    """Whether nothing blocks `curate tag`."""
    return all(finding.state != "blocks" for finding in findings)


def _python() -> Finding:
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if os.name != "posix":
        return Finding("Python", "blocks", text, "use Linux or macOS (on Windows: WSL)")
    return Finding("Python", "ok", text)


# --- Packages --------------------------------------------------------------------------------


def _packages(used: list[Dependency]) -> Iterator[Finding]:
    """What is missing or too old, then what was never tested, then what was."""
    for each in used:
        needed = not each.extra
        if each.version is None and needed:
            yield Finding(
                each.name, "blocks", "not installed", f"pip install '{each.name}{each.wanted}'"
            )
        elif each.version is not None and not each.fits:
            text = f"{each.version} is installed, {each.wanted} is needed"
            state: State = "blocks" if needed else "limit"
            yield Finding(each.name, state, text, f"pip install '{each.name}{each.wanted}'")
    others = [each for each in used if each.fits and not each.is_tested and each.tested]
    if others:
        text = ", ".join(f"{each.name} {each.version} (tested: {each.tested})" for each in others)
        tested = " ".join(f"{each.name}=={each.tested}" for each in others)
        yield Finding("versions", "limit", f"others than tested: {text}", f"pip install {tested}")
    same = [f"{each.name} {each.version}" for each in used if each.version and each.is_tested]
    if same:
        yield Finding("versions", "ok", f"as tested: {', '.join(same)}")


def _clashes() -> Iterator[Finding]:
    for clash in clashes():
        text = f"{clash.other} installs a top-level package of the same name"
        if clash.wins:
            yield Finding(
                clash.package, "blocks", f"{text}, and Python finds that one or its files",
                f"pip uninstall {clash.other}, then install rl-curate again; or give it an "
                "environment of its own",
            )  # fmt: skip
        else:
            yield Finding(
                clash.package, "limit", f"{text}; Python finds ours",
                "give one of them an environment of its own",
            )  # fmt: skip


# --- Devices and engines ---------------------------------------------------------------------


def _devices(torch: Facts) -> Iterator[Finding]:
    if "failed" in torch:
        yield Finding(
            "torch", "blocks", str(torch["failed"]),
            "install torch and transformers anew: pip install --force-reinstall torch transformers",
        )  # fmt: skip
        return
    for number, gpu in enumerate(torch["gpus"]):
        yield Finding(
            f"GPU {number}", "ok",
            f"{gpu['name']}, {_bytes(gpu['bytes'])} ({_bytes(gpu['free_bytes'])} free), compute "
            f"capability {gpu['capability']}",
        )  # fmt: skip
    if torch["gpus"]:
        if torch["dtype"] != "bfloat16":
            yield Finding(
                "GPU", "limit", "it does not compute in bfloat16, so float32 is used",
                "a GPU of compute capability 8.0 or more is several times as fast",
            )  # fmt: skip
    elif Path("/proc/driver/nvidia/version").exists() and torch["cuda"] is None:
        yield Finding(
            "GPU", "limit", "there is an NVIDIA driver, but this torch is built for CPUs",
            "install a torch built for CUDA: https://pytorch.org/get-started/locally",
        )  # fmt: skip
    elif Path("/proc/driver/nvidia/version").exists():
        yield Finding(
            "GPU", "limit", "there is an NVIDIA driver, but torch finds no GPU",
            f"look at nvidia-smi and CUDA_VISIBLE_DEVICES; this torch is built for CUDA "
            f"{torch['cuda']}, which the driver may be too old for",
        )  # fmt: skip
    else:
        yield Finding(
            "GPU", "limit", "none: model and gradients run on the CPU",
            "fine for some hundred items and a small model; else use a machine with a GPU, or "
            "sample on one with --engine server",
        )  # fmt: skip
    cores = usable_cores()
    if torch["cpu_dtype"] == "bfloat16":
        yield Finding("CPU", "ok", f"{cores} cores, computes in bfloat16")
    else:
        yield Finding(
            "CPU", "ok" if torch["gpus"] else "limit",
            f"{cores} cores, does not compute in bfloat16: models take 4 bytes a parameter",
            "" if torch["gpus"] else "a CPU with AVX512-BF16 or AMX is about twice as fast",
        )  # fmt: skip


def _others(busy: str, torch: Facts) -> Iterator[Finding]:
    """Whether a model on the CPU would have to wait for other processes."""
    if not busy or torch.get("gpus"):
        return
    threads = os.environ.get(THREADS)
    if threads:
        yield Finding("load", "ok", f"{busy}; {THREADS} is {threads}")
    else:
        yield Finding(
            "load", "limit",
            f"{busy}: torch's threads wait for each other, and a run can take several times as "
            "long",
            busy_remedy(),
        )  # fmt: skip


def _engines(facts: Mapping[str, Facts], used: list[Dependency]) -> Iterator[Finding]:
    torch, vllm = facts["torch"], facts.get("vllm")
    if "failed" not in torch:
        where = "GPU" if torch["gpus"] else "CPU"
        yield Finding(
            "transformers", "ok", f"--engine transformers, {torch['dtype']} on the {where}"
        )
    if vllm is None:
        gpus = torch.get("gpus", [])
        yield Finding(
            "vllm", "limit" if gpus else "ok", "not installed, so there is no --engine vllm",
            "pip install 'rl-curate[vllm]': several times as fast on a GPU" if gpus else "",
        )  # fmt: skip
    elif "failed" in vllm:
        yield Finding("vllm", "limit", str(vllm["failed"]), _install_again("vllm", used))
    else:
        where = vllm["device"] or "no device that it knows"
        yield Finding("vllm", "ok", f"--engine vllm, {vllm['version']} for {where}")
    if shutil.which("vllm") is None:
        text = "--engine server with --base-url: any server of the OpenAI completions interface"
    else:
        text = "--engine server with --base-url; `vllm serve MODEL` starts one here"
    yield Finding("server", "ok", text)


def _training(train: Facts | None, used: list[Dependency]) -> Finding:
    if train is None:
        return Finding(
            "training", "limit", "trl, peft or accelerate is not installed: no curate validate",
            "pip install 'rl-curate[train]'",
        )  # fmt: skip
    if "failed" in train:
        return Finding("training", "limit", str(train["failed"]), _install_again("train", used))
    return Finding("training", "ok", "curate validate: trl, peft and accelerate can be imported")


def _sandbox(config: TagConfig) -> Finding:
    """Whether programs can be run, tried with one that attempts what it must not do."""
    missing = why_no_sandbox()
    if missing is None:
        return Finding("sandbox", "ok", "--verifier code: bubblewrap runs programs apart")
    state: State = "blocks" if config.verifier == "code" else "limit"
    return Finding("sandbox", state, f"no --verifier code: {missing[0]}", missing[1])


def _ray(ray: Facts | None) -> Finding:
    if ray is None:
        return Finding(
            "ray", "ok", "not installed, so there is no --executor ray; --shard needs none",
            "pip install 'rl-curate[ray]', where there is a Ray cluster",
        )  # fmt: skip
    if "failed" in ray:
        return Finding("ray", "limit", str(ray["failed"]), "pip install 'rl-curate[ray]'")
    return Finding("ray", "ok", f"--executor ray, {ray['version']}")


def _install_again(extra: str, used: list[Dependency]) -> str:
    tested = " ".join(f"{e.name}=={e.tested}" for e in used if e.extra == extra and e.tested)
    return (
        f"pip install --force-reinstall {tested}" if tested else f"pip install 'rl-curate[{extra}]'"
    )


# --- What a run would need -------------------------------------------------------------------


def _weights(model: str, torch: Facts) -> tuple[int, list[Finding]]:
    """Bytes of a model's weights as they would be loaded, and whether they fit."""
    files = _weight_files(model)
    if files is None:
        return 0, [
            Finding("model", "limit", f"{model} is not on this machine yet",
                    "`curate tag` fetches it from the Hub, which needs a network"),
        ]  # fmt: skip
    if not files:
        return 0, [
            Finding("model", "blocks", f"{model} holds no .safetensors or .gguf weights",
                    "give a Hugging Face model folder, a .gguf file or a Hub id"),
        ]  # fmt: skip
    from safetensors import SafetensorError

    try:
        parameters = sum(map(_parameters, files))
    except (OSError, ValueError, KeyError, IndexError, SafetensorError) as error:
        remedy = "fetch the model anew"
        return 0, [Finding("model", "blocks", f"{model} cannot be read: {error}", remedy)]
    size = parameters * _DTYPE_BYTES.get(torch.get("dtype", "float32"), 4)
    text = f"{parameters / 1e9:.3g} billion parameters, {_bytes(size)} as loaded"
    gpus = torch.get("gpus", [])
    if gpus and size > max(gpu["bytes"] for gpu in gpus):
        return size, [
            Finding("model", "limit", f"{text}: more than any one GPU here has",
                    "its gradients need the whole model on one GPU: use a larger one, or a smaller "
                    "model"),
        ]  # fmt: skip
    return size, [Finding("model", "ok", text)]


def _weight_files(model: str) -> list[Path] | None:
    """The files of the weights; None for a Hub id that was not fetched yet."""
    path = Path(model).expanduser()
    if path.is_file():
        return [path] if path.suffix == ".gguf" else []
    if not path.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        repository, _, revision = model.partition("@")
        try:
            path = Path(
                snapshot_download(repository, revision=revision or None, local_files_only=True)
            )
        except HFValidationError as error:
            raise UsageError(
                f"no such model: {model} (neither a file, a folder nor a Hub id)"
            ) from error
        except (LocalEntryNotFoundError, OSError):
            return None
        # Its configuration alone may have been fetched.
        return sorted(path.glob("*.safetensors")) or None
    return sorted(path.glob("*.safetensors"))


def _parameters(file: Path) -> int:
    """Numbers in a file of weights, from its header."""
    if file.suffix == ".gguf":
        from gguf import GGUFReader

        return sum(int(tensor.n_elements) for tensor in GGUFReader(file).tensors)
    from safetensors import safe_open

    with safe_open(file, framework="numpy") as opened:
        return sum(math.prod(opened.get_slice(name).get_shape()) for name in opened.keys())  # noqa: SIM118


def _disk(config: TagConfig, size: ExpectedSize) -> Finding:
    folder = Path(config.run_dir or "runs").absolute()
    there = next(each for each in (folder, *folder.parents) if each.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        return Finding("disk", "blocks", f"{there} is not writable", "give another --run-dir")
    free = shutil.disk_usage(there).free
    text = (
        f"{_bytes(free)} free for {folder}; {size.items:,} items need up to "
        f"{_bytes(size.disk_bytes)}: {_bytes(size.rollout_bytes)} for {size.rollouts:,} rollouts "
        f"of {config.max_tokens:,} tokens, {_bytes(size.gradient_bytes)} for "
        f"{config.gradient_rollouts + config.gradient_wrong_rollouts} gradients an "
        f"item, of {config.gradient_dim:,} numbers each"
    )
    if free < size.disk_bytes:
        return Finding(
            "disk", "blocks", text,
            "give a --run-dir on a larger disk, or take less: --gradient-rollouts, "
            "--gradient-dim, --rollout-budget, --max-tokens (docs/scaling.md)",
        )  # fmt: skip
    return Finding("disk", "ok", text)


def _memory(size: ExpectedSize, weights: int, torch: Facts) -> Finding:
    free = _available_memory()
    wanted = size.memory_bytes + (0 if torch.get("gpus") else weights)
    if free is None:
        return Finding("memory", "ok", f"{_bytes(wanted)} needed; what is free is not known here")
    text = f"{_bytes(free)} free; {size.items:,} items need about {_bytes(wanted)}"
    text += " with the model" if weights and not torch.get("gpus") else " beside the model"
    if free < wanted:
        return Finding(
            "memory", "blocks", text,
            "use a machine with more memory, a smaller model, or fewer items (--limit)",
        )  # fmt: skip
    return Finding("memory", "ok", text)


def _available_memory() -> int | None:
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    found = re.search(r"MemAvailable:\s+(\d+) kB", text)
    return 1024 * int(found[1]) if found else None


def _bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


# --- The report ------------------------------------------------------------------------------


def doctor_facts(findings: list[Finding]) -> dict[str, Any]:
    """The findings in plain values."""
    try:
        version: str | None = metadata.version("rl-curate")
    except metadata.PackageNotFoundError:
        version = None
    return {
        "curate": version,
        "can_tag": can_tag(findings),
        "findings": [vars(finding) for finding in findings],
    }


def conclusion(facts: Mapping[str, Any]) -> str:
    """Say whether `curate tag` can run, and what failed, below a blank line."""
    blocking = [f["about"] for f in facts["findings"] if f["state"] == "blocks"]
    text = "\ncurate tag can run here"
    if blocking:
        text = f"\ncurate tag cannot run here: {', '.join(blocking)}"
    if "tried" not in facts:
        return text
    failed = [one["about"] for one in facts["tried"] if not one["passed"]]
    checks = len(facts["tried"])
    if failed:
        return f"{text}\n{len(failed)} of {checks} checks failed: {', '.join(failed)}"
    return f"{text}\nall {checks} checks passed"
