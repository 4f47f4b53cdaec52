"""`curate doctor --try`: the checks pass here, find what is wrong, and survive each other."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from curate.config import TagConfig
from curate.errors import RunError
from probes.doctor import checks as doctor_checks
from probes.doctor import command, tries
from probes.doctor import findings as doctor
from probes.doctor.checks import CHECKS, Trial, longest, run_checks
from probes.doctor.small_model import policy_of_size
from probes.doctor.tries import NAMES, Tried, try_machine
from tests.tag_runs import run_curate

CPU = torch.device("cpu")


def trial(dtype: torch.dtype = torch.float32) -> Trial:
    return Trial(device=CPU, dtype=dtype)


def of(found: Iterator[Tried] | list[Tried]) -> dict[str, Tried]:
    return {one.about: one for one in found}


# --- The checks ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_pass_on_a_cpu(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    # Whatever other tests take of this machine's memory.
    monkeypatch.setattr(doctor_checks, "free_bytes", lambda device: 2**36)
    names = NAMES if dtype == torch.bfloat16 else [name for name in NAMES if name != "verifying"]
    began: list[str] = []
    found = of(run_checks(trial(dtype), names, begins=began.append))
    assert list(found) == began == list(names)
    assert [one.text for one in found.values() if not one.passed] == []
    assert found["sampling"].numbers["rollouts"] == 64
    assert found["gradients"].numbers["tokens_per_second"] > 0
    assert ("from_cpu" in found["re-scoring"].numbers) == (dtype == torch.bfloat16)
    step = found["training step"].numbers
    if dtype == torch.float32:
        # Of first order, and autograd shares no code with the gradients: all digits must agree.
        assert step["cosine"] > 0.9999 and abs(step["size"] - 1) < 0.01
    assert found["longest"].numbers["0.5B"] > found["longest"].numbers["1.5B"] > 0


def test_weights_that_the_device_garbled_are_found() -> None:
    broken = trial(torch.bfloat16)
    with torch.no_grad():
        broken.policy.model.model.layers[2].mlp.down_proj.weight.mul_(-1)
    found = of(run_checks(broken, ["sampling", "same again", "re-scoring", "gradients"]))
    assert [name for name, one in found.items() if not one.passed] == ["re-scoring", "gradients"]
    assert "versions that were tested" in found["gradients"].remedy


def test_gradients_that_training_does_not_follow_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = trial()
    real = wrong.features

    def shifted(*arguments: Any) -> np.ndarray:
        return np.roll(real(*arguments), 1, axis=1)

    monkeypatch.setattr(wrong, "features", shifted)
    found = of(run_checks(wrong, ["gradients", "training step"]))
    assert not found["gradients"].passed and not found["training step"].passed


def test_rollouts_that_do_not_repeat_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    fickle = trial()
    real, seeds = fickle.draw, iter((1, 2))
    monkeypatch.setattr(
        fickle,
        "draw",
        lambda: (monkeypatch.setattr(doctor_checks, "_SEED", next(seeds)), real())[1],
    )
    found = of(run_checks(fickle, ["sampling", "same again"]))
    assert found["sampling"].passed and not found["same again"].passed
    assert "draws other rollouts" in found["same again"].remedy


def fails(error: Exception) -> Callable[[Trial], Tried]:
    def check(trial: Trial) -> Tried:
        raise error

    return check


def test_an_error_of_one_check_stops_no_other() -> None:
    checks = {
        **CHECKS,
        "sampling": fails(RuntimeError("CUDA error: device-side assert\nmore of it")),
        "same again": fails(RuntimeError("CUDA error: out of memory")),
        "re-scoring": fails(RunError("policy gives no probabilities (NaN)")),
    }
    names = ["model", "sampling", "same again", "re-scoring", "gradients"]
    found = of(run_checks(trial(), names, checks))
    assert list(found) == names
    assert [name for name, one in found.items() if not one.passed] == names[1:4]
    assert found["sampling"].text == "RuntimeError: CUDA error: device-side assert"
    assert "nvidia-smi" in found["same again"].remedy
    assert found["re-scoring"].text == "policy gives no probabilities (NaN)"
    assert all(found[name].remedy for name in names[1:4])
    # It had no rollouts of sampling, and made some.
    assert found["gradients"].numbers["tokens_per_second"] > 0


def test_a_model_that_cannot_be_loaded_is_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = []
    broken = Trial("nothing/here", device=CPU, dtype=torch.float32)
    monkeypatch.setattr(broken, "_loaded", lambda *_: loads.append(1) or fails(OSError("gone"))(0))
    found = of(run_checks(broken, ["model", "sampling", "gradients"]))
    assert not any(one.passed for one in found.values()) and len(loads) == 1
    assert "no model" in found["gradients"].text


def test_the_longest_rollout_follows_memory() -> None:
    model = policy_of_size("7B", torch.bfloat16)
    assert longest(model, 10**9, with_weights=True) == 0
    assert 15_000 < longest(model, 80 * 10**9, with_weights=True) < 120_000
    assert longest(model, 80 * 10**9) > longest(model, 80 * 10**9, with_weights=True)


# --- The process that runs them --------------------------------------------------------------

_PROCESS = """#!{python}
import json, os, signal, sys, time
asked = json.loads(sys.argv[-1])
say = lambda **said: print({mark!r} + json.dumps(said), flush=True)
print("a library says something")
for name in asked["names"]:
    say(begins=name)
    {what}
    say(about=name, passed=True, text="fine", remedy="", numbers={{}})
"""


@pytest.fixture
def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Has the checks be run by a script that does something in each."""

    def stand_in(what: str) -> None:
        script = tmp_path / "python"
        script.write_text(_PROCESS.format(python=sys.executable, mark=tries.MARK, what=what))
        script.chmod(0o755)
        monkeypatch.setattr(tries.sys, "executable", str(script))

    return stand_in


def test_a_check_that_ends_its_process_is_a_failure(processes: Callable[[str], None]) -> None:
    processes("if name == 'gradients': sys.stderr.write('bad\\nworse'); os.kill(os.getpid(), 11)")
    told: list[str] = []
    found = try_machine(tell=lambda one: told.append(one.about))
    assert told == [one.about for one in found] == list(NAMES)
    (failed,) = [one for one in found if not one.passed]
    assert failed.about == "gradients" and failed.remedy
    assert failed.text == "it ended its process (signal SIGSEGV): worse"


def test_a_process_that_gives_up_after_a_failure_is_followed_by_another(
    processes: Callable[[str], None],
) -> None:
    processes(
        "if name == 'sampling': say(about=name, passed=False, text='x', remedy='y', numbers={}); "
        "sys.exit(1)"
    )
    found = of(try_machine())
    assert list(found) == list(NAMES)
    assert [name for name, one in found.items() if not one.passed] == ["sampling"]


def test_a_check_that_hangs_is_ended(
    processes: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tries, "SECONDS", 1.0)
    processes("if name == 'training step': time.sleep(60)")
    found = of(try_machine())
    assert found["training step"].text.startswith("it was not over within 1 s")
    assert found["longest"].text.startswith("it was not reached")
    assert sum(one.passed for one in found.values()) == len(NAMES) - 2


def test_nothing_begins_where_torch_ends_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("import os; os.kill(os.getpid(), 11)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = try_machine()
    assert [one.about for one in found] == list(NAMES)
    assert found[0].text == "it ended its process (signal SIGSEGV)"
    assert {one.text for one in found[1:]} == {"it was not reached"}
    assert not any(one.passed for one in found)


# --- The command -----------------------------------------------------------------------------


@pytest.mark.parametrize("passes", [True, False])
def test_the_command_tells_each_and_fails_with_any(
    passes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch_ = {"gpus": [], "dtype": "float32", "cpu_dtype": "float32", "cuda": None}
    monkeypatch.setattr(doctor, "look_at", lambda names: {"torch": torch_})
    asked: list[Any] = []

    def tried(model: str, *, tell: Any, begins: Any, **more: Any) -> list[Tried]:
        asked.append(model)
        found = [
            Tried("sampling", True, "64 rollouts, 9 tokens/s", numbers={"tokens_per_second": 9.0}),
            Tried(
                "gradients", passes, "cosine 0.1", "" if passes else "buy another", {"x": np.nan}
            ),
        ]
        for one in found:
            begins(one.about)
            tell(one)
        return found

    monkeypatch.setattr(command, "try_machine", tried)
    line = ("doctor", "--try", "--run-dir", tmp_path, "--items", 7)
    ran = run_curate(*line)
    assert ran.status == (0 if passes else 1)
    assert "passed  sampling      64 rollouts, 9 tokens/s\n" in ran.stdout
    if passes:
        assert ran.stdout.endswith("\ncurate tag can run here\nall 2 checks passed\n")
    else:
        assert f"failed  gradients     cosine 0.1\n{'':22}-> buy another\n" in ran.stdout
        assert ran.stdout.endswith("1 of 2 checks failed: gradients\n")
    as_json = json.loads(run_curate(*line, "--json").stdout)
    assert [one["passed"] for one in as_json["tried"]] == [True, passes]
    assert as_json["tried"][1]["numbers"] == {"x": None}
    assert asked == ["", ""]
    assert "tried" not in command.doctor(TagConfig(run_dir=str(tmp_path)), items=7)
