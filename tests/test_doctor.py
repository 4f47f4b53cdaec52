"""`curate doctor`: what is here, what is in the way, and what a run would need."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

import curate
from curate.cli import main
from curate.config import TagConfig
from curate.errors import UsageError
from curate.settings import declared_in
from probes import busy
from probes.doctor import findings as doctor
from probes.doctor import installation
from probes.doctor.command import Doctor
from probes.doctor.expected_size import expected_size
from probes.doctor.installation import DISTRIBUTION, PACKAGES, Dependency, dependencies
from tests.tag_runs import ROOT, additions, curate_command, run_curate, write_jsonl

_CLASHES = (
    "import dataclasses, json\n"
    "from probes.doctor.installation import clashes\n"
    "print(json.dumps([dataclasses.astuple(clash) for clash in clashes()]))\n"
)


def in_process(script: str, *paths: Path, cwd: Path) -> Any:
    """The JSON that a script prints in a process with these folders first on its path."""
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=cwd, check=True, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))},
    )  # fmt: skip
    return json.loads(ran.stdout)


def build_wheel(project: Path, folder: Path) -> Path:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder],
        cwd=project, check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(wheel: Path, target: Path) -> None:
    """What an installer does with a wheel of pure Python: later files replace earlier ones."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)


@pytest.fixture(scope="module")
def cookbook(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of another distribution that installs `recipes` as well."""
    project = tmp_path_factory.mktemp("cookbook")
    (project / "recipes").mkdir()
    (project / "recipes" / "__init__.py").write_text("SOUP = 'soup'\n")
    (project / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        '[project]\nname = "cookbook"\nversion = "2.0"\n'
        '[tool.hatch.build.targets.wheel]\npackages = ["recipes"]\n'
    )
    return build_wheel(project, project / "dist")


# --- The installation ------------------------------------------------------------------------


def test_without_another_distribution_nothing_clashes(tmp_path: Path) -> None:
    assert in_process(_CLASHES, ROOT, cwd=tmp_path) == []


def test_a_distribution_that_shadows_recipes_blocks(cookbook: Path, tmp_path: Path) -> None:
    install(cookbook, tmp_path / "site")
    assert in_process(_CLASHES, tmp_path / "site", ROOT, cwd=tmp_path) == [
        ["recipes", "cookbook", True]
    ]
    assert in_process(_CLASHES, ROOT, tmp_path / "site", cwd=tmp_path) == [
        ["recipes", "cookbook", False]
    ]


def test_a_folder_that_shadows_recipes_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine" / "recipes").mkdir(parents=True)
    (tmp_path / "mine" / "recipes" / "__init__.py").touch()
    assert in_process(_CLASHES, tmp_path / "mine", ROOT, cwd=tmp_path) == [
        ["recipes", str(tmp_path / "mine" / "recipes"), True]
    ]


def test_the_wheel_knows_the_tested_versions_and_files_that_another_replaced(
    cookbook: Path, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    install(build_wheel(ROOT, tmp_path / "dist"), site)
    script = (
        "import dataclasses, json\n"
        "from probes.doctor.installation import dependencies, tested_versions\n"
        "found = [dataclasses.astuple(each) for each in dependencies()]\n"
        "print(json.dumps([tested_versions(), found]))\n"
    )
    tested, found = in_process(script, site, cwd=tmp_path)
    assert tested == installation.tested_versions()
    assert [Dependency(*each) for each in found] == dependencies()
    assert in_process(_CLASHES, site, cwd=tmp_path) == []
    install(cookbook, site)
    assert in_process(_CLASHES, site, cwd=tmp_path) == [["recipes", "cookbook", True]]


def test_tested_versions_are_those_of_the_constraints_file() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    tested = installation.tested_versions()
    assert len(tested) == sum("==" in line for line in lines)
    assert f"torch=={tested['torch']}" in lines
    assert f"tomli_w=={tested['tomli-w']}" in lines


def test_dependencies_are_those_installed() -> None:
    found = {each.name: each for each in dependencies()}
    assert {"torch", "pyarrow", "trl", "ray"} <= set(found)
    assert DISTRIBUTION not in found and "pytest" not in found
    assert found["torch"].version == metadata.version("torch")
    assert found["torch"].fits and not found["torch"].extra and found["trl"].extra == "train"


@pytest.mark.parametrize(
    ("version", "fits", "is_tested"),
    [
        ("2.13.0+cu130", True, True),
        ("2.12.1", True, False),
        ("2.5.1", False, False),
        (None, False, True),
    ],
)
def test_versions_are_compared(version: str | None, fits: bool, is_tested: bool) -> None:
    torch_ = Dependency("torch", "", ">=2.6", version, "2.13.0")
    assert (torch_.fits, torch_.is_tested) == (fits, is_tested)
    states = {finding.state for finding in doctor._packages([torch_])}
    assert states == ({"ok"} if fits and is_tested else {"limit"} if fits else {"blocks"})
    optional = Dependency("trl", "train", ">=1.16", version, "2.13.0")
    assert "blocks" not in {finding.state for finding in doctor._packages([optional])}


# --- The whole -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def examined(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the command says of this machine."""
    folder = tmp_path_factory.mktemp("doctor")
    rows = write_jsonl(folder / "rows.jsonl", additions(20))
    ran = subprocess.run(
        curate_command(
            "doctor", "--json", "--model", tiny_model, "--dataset", rows,
            "--run-dir", folder / "run", "--max-tokens", 12, "--max-rollouts", 32,
        ),
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return dict(json.loads(ran.stdout))


def finding(facts: dict[str, Any], about: str) -> dict[str, str]:
    (found,) = (each for each in facts["findings"] if each["about"] == about)
    return dict(found)


def test_it_says_what_this_machine_can_do(examined: dict[str, Any]) -> None:
    assert examined["can_tag"] is True
    assert all(each["remedy"] for each in examined["findings"] if each["state"] != "ok")
    versions = " ".join(f["text"] for f in examined["findings"] if f["about"] == "versions")
    for name in ("torch", "transformers", "pyarrow"):
        assert f"{name} {metadata.version(name)}" in versions
    assert "--engine transformers" in finding(examined, "transformers")["text"]
    if not torch.cuda.is_available():
        assert finding(examined, "GPU")["state"] == "limit"
    assert finding(examined, "training")["state"] == "ok"
    parameters = "parameters"
    assert parameters in finding(examined, "model")["text"]
    assert "20 items" in finding(examined, "memory")["text"]
    assert "640 rollouts of 12 tokens" in finding(examined, "disk")["text"]


def test_the_text_ends_with_the_verdict(examined: dict[str, Any]) -> None:
    assert doctor.conclusion(examined) == "\ncurate tag can run here"
    full = doctor.Finding("disk", "blocks", "1 GB free", "buy one")
    blocked = doctor.doctor_facts([full])
    assert blocked["can_tag"] is False
    assert "-> buy one" in full.text_lines()
    assert doctor.conclusion(blocked).endswith("cannot run here: disk")


def test_a_library_that_ends_its_process_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "__init__.py").write_text("import os, signal; os.kill(os.getpid(), 11)\n")
    (tmp_path / "vllm.py").write_text("raise RuntimeError('torchvision::nms does not exist')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    facts = doctor.look_at(["ray", "vllm"])
    assert facts["ray"]["failed"] == "importing it ended the process (signal SIGSEGV)"
    assert "torchvision::nms" in facts["vllm"]["failed"]
    (found,) = [f for f in doctor._engines({"torch": {"failed": "x"}, **facts}, dependencies())
                if f.about == "vllm"]  # fmt: skip
    assert found.state == "limit" and "nms" in found.text and found.remedy
    assert doctor._ray(facts["ray"]).state == "limit"


def test_it_works_where_nothing_else_can_be_imported(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "for name in ('torch', 'numpy', 'pyarrow', 'transformers', 'huggingface_hub'):\n"
        "    sys.modules[name] = None\n"
        "from curate.cli import main\n"
        "from probes.doctor import findings as doctor\n"
        "doctor.look_at = lambda names: {'torch': {'failed': 'ImportError: no torch'}}\n"
        f"sys.exit(main(['doctor', '--json', '--run-dir', {str(tmp_path)!r}]))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 1, ran.stderr
    facts = json.loads(ran.stdout)
    assert facts["can_tag"] is False and finding(facts, "torch")["state"] == "blocks"


def test_the_function_says_what_the_command_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "look_at", lambda names: {"torch": {"failed": "no torch"}})
    config = TagConfig(run_dir=str(tmp_path))
    ran = run_curate("doctor", "--json", "--run-dir", tmp_path, "--items", 7)
    told = {finding["about"]: finding for finding in json.loads(ran.stdout)["findings"]}
    asked = {finding["about"]: finding for finding in curate.doctor(config, items=7)["findings"]}
    assert ran.status == 1 and told.keys() == asked.keys()
    assert told["torch"] == asked["torch"] and "7 items" in asked["memory"]["text"]


def test_findings_are_told_as_they_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    early: list[str] = []

    def look_at(names: object) -> dict[str, Any]:
        early.append(capsys.readouterr().out)
        return {"torch": {"failed": "no torch"}}

    monkeypatch.setattr(doctor, "look_at", look_at)
    assert main(["doctor", "--run-dir", str(tmp_path)]) == 1
    later = capsys.readouterr().out
    assert early[0].startswith("ok      Python ") and "Python" not in later.splitlines()[0]
    assert later.startswith("blocks  torch ") and "\n\ncurate tag cannot run here: " in later
    assert main(["doctor", "--run-dir", str(tmp_path), "--json"]) == 1
    assert early[1] == ""
    assert json.loads(capsys.readouterr().out)["can_tag"] is False


# --- Others on the machine -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("load", "own_seconds", "cores", "threads", "state"),
    [
        (2.1, 0.0, 4, "", "limit"),
        (2.1, 0.0, 4, "1", "ok"),
        (1.9, 0.0, 4, "", None),
        (2.1, 12.0, 4, "", None),  # 0.2 of it are our own
        (9.0, 0.0, 1, "", None),  # one thread waits for no other
        (None, 0.0, 4, "", None),
    ],
)
def test_others_at_work_are_found_and_what_to_do(
    load: float | None,
    own_seconds: float,
    cores: int,
    threads: str,
    state: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load_averages() -> tuple[float, float, float]:
        if load is None:
            raise OSError("not known")
        return load, 0.0, 0.0

    monkeypatch.setattr(os, "getloadavg", load_averages)
    monkeypatch.setattr(busy.time, "process_time", lambda: own_seconds)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)), raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    torch_ = {"gpus": [], "dtype": "float32", "cpu_dtype": "float32", "cuda": None}
    monkeypatch.setattr(doctor, "look_at", lambda names: {"torch": torch_})
    found = {f.about: f for f in doctor.examine(TagConfig(run_dir=str(tmp_path)), 7)}
    assert ("load" in found) == (state is not None)
    if state:
        assert found["load"].state == state
        assert "2.1 of 4 cores" in found["load"].text
        assert ("OMP_NUM_THREADS=1 curate tag" in found["load"].remedy) == (state == "limit")
    on_gpu = list(doctor._others("other processes", {"gpus": [{}]}))
    assert on_gpu == []


def test_a_broken_torch_blocks() -> None:
    (found,) = doctor._devices({"failed": "ImportError: libcudart.so.13"})
    assert found.state == "blocks" and "libcudart" in found.text and found.remedy


# --- What a run would need -------------------------------------------------------------------


def test_a_run_too_large_for_the_disk_blocks(tmp_path: Path) -> None:
    config = TagConfig(run_dir=str(tmp_path / "run"))
    assert doctor._disk(config, expected_size(config, 10)).state == "ok"
    free = shutil.disk_usage(tmp_path).free
    items = int(free / (17 * 4 * 4096)) + 1
    found = doctor._disk(config, expected_size(config, items))
    assert found.state == "blocks" and "--gradient-dim" in found.remedy


def test_too_little_memory_blocks_and_a_gpu_takes_the_model() -> None:
    size = expected_size(TagConfig(), 10)
    assert doctor._memory(size, 0, {"gpus": []}).state == "ok"
    assert doctor._memory(size, 10**15, {"gpus": []}).state == "blocks"
    assert doctor._memory(size, 10**15, {"gpus": [{"bytes": 10**16}]}).state == "ok"


def test_expected_size_follows_the_settings() -> None:
    config = TagConfig(min_rollouts=32, max_rollouts=32, max_tokens=100, gradient_dim=1000)
    size = expected_size(config, 1000)
    assert size.rollouts == 32_000
    assert size.rollout_bytes == 32_000 * (320 + 10)
    assert size.gradient_bytes == 1000 * 41 * 4000
    assert expected_size(config.replace(gradient_rollouts=100), 1000).gradient_bytes == (
        1000 * 65 * 4000  # No item has more correct rollouts than rollouts.
    )
    adaptive = config.replace(max_rollouts=1000)
    assert expected_size(adaptive, 1000).rollouts == 64_000
    assert expected_size(adaptive.replace(mean_rollouts=0), 1000).rollouts == 300_000
    assert expected_size(adaptive.replace(rollout_budget=50_000), 1000).rollouts == 50_000


def test_the_parameters_of_a_model_are_counted(tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    size, (found,) = doctor._weights(str(tiny_model), {"dtype": "bfloat16", "gpus": []})
    assert size == 2 * sum(each.numel() for each in model.parameters())
    assert found.state == "ok"
    _, (found,) = doctor._weights(
        str(tiny_model), {"dtype": "bfloat16", "gpus": [{"bytes": size - 1}]}
    )
    assert found.state == "limit"


def test_a_model_that_cannot_be_read_blocks(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    _, (found,) = doctor._weights(str(tmp_path), {})
    assert found.state == "blocks" and "no .safetensors" in found.text
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 7)
    _, (found,) = doctor._weights(str(tmp_path), {})
    assert found.state == "blocks"
    with pytest.raises(UsageError, match="no such model"):
        doctor._weights("./nothing", {})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--items", "0"], "at least 1"),
        (["--dataset", "nothing.jsonl"], "no such file"),
        (["--min-rollouts", "64", "--max-rollouts", "32"], "--max-rollouts"),
        (["--items", "5", "--dataset", "x.jsonl"], "not allowed with"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "look_at", lambda names: {"torch": {"failed": "not asked"}})
    ran = run_curate("doctor", *arguments)
    assert ran.status == 2 and words in ran.last_line


def test_columns_of_the_dataset_can_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "look_at", lambda names: {"torch": {"failed": "not asked"}})
    file = write_jsonl(tmp_path / "own.jsonl", [{"task": "what is 1+1", "number": 2}])

    def dataset(*options: str) -> dict[str, str]:
        ran = run_curate("doctor", "--dataset", file, "--run-dir", tmp_path, "--json", *options)
        return finding(json.loads(ran.stdout), "dataset")

    assert "name it with --prompt-field" in dataset()["text"]
    named = dataset("--prompt-field", "task", "--answer-field", "number")
    assert named["state"] == "ok" and "prompt in task, answer in number" in named["text"]


def test_settings_of_tag_have_the_help_that_they_have_there() -> None:
    of_doctor, of_tag = declared_in(Doctor), declared_in(TagConfig)
    shared = of_doctor.keys() & of_tag.keys() - {"dataset", "model"}
    assert {"run_dir", "mean_rollouts", "prompt_field"} <= shared
    for name in shared:
        assert of_doctor[name].help == of_tag[name].help
    assert of_doctor["mean_rollouts"].help.endswith("(default: 64)")


def test_every_package_of_the_wheel_is_looked_at() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    shipped = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert set(shipped) == set(PACKAGES)
