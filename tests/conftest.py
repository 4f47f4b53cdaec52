from pathlib import Path

import pytest
import torch

from probes.models import Policy, load_policy, resolve_model
from tests.tiny import save_tiny_model

SHARED_DATA = Path(__file__).parent.parent.parent / "shared" / "data"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny-llama")


@pytest.fixture(scope="session")
def tiny_policy(tiny_model: Path) -> Policy:
    return load_policy(
        resolve_model(str(tiny_model)), device=torch.device("cpu"), dtype=torch.float32
    )
