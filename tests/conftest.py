import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from xdist.scheduler import LoadScopeScheduling

from probes.models.files import resolve_model
from probes.models.load import Policy, load_policy
from tests.smollm2 import export
from tests.tiny import save_tiny_model
from tests.vllm_servers import RealServer, real_servers

SHARED_DATA = Path(__file__).parent.parent.parent / "shared" / "data"


# A suite that was started in the background inherits that interruptions are ignored, and so would
# the commands that it interrupts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Files that share what takes a minute to start: they run one after the other, and first.
TOGETHER = (
    *("test_vllm_servers.py", "test_real_language_model.py", "test_vllm_engine.py"),
    "test_exported_model.py",
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Give each process of `pytest -n 2` whole files, since a file shares what it prepared."""

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "vllm" if file.rpartition("/")[2] in TOGETHER else file

    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest."""
    items.sort(key=lambda item: item.path.name not in TOGETHER)


@pytest.fixture(autouse=True)
def nobody_else_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command says does not depend on what else this machine does."""
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny-llama")


@pytest.fixture(scope="session")
def tiny_policy(tiny_model: Path) -> Policy:
    return load_policy(
        resolve_model(str(tiny_model)), device=torch.device("cpu"), dtype=torch.float32
    )


@pytest.fixture(scope="session")
def smollm2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 as a Hugging Face folder; `XDG_CACHE_HOME=parents[2]` makes `curate` find it too."""
    return export(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def vllm_servers(
    smollm2_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[RealServer]]:
    """Two vLLM servers of SmolLM2, started once; a test may kill the second."""
    with real_servers(2, smollm2_folder, tmp_path_factory.mktemp("servers")) as started:
        yield started
