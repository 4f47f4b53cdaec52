"""A process with a model takes no package that it does not use, and finds it where one is asked."""

import subprocess
import sys
from pathlib import Path

from tests.tag_runs import ROOT


def _run(script: str) -> None:
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0


def test_tagging_imports_neither_scikit_learn_nor_a_compiler_nor_a_library_of_images(
    tmp_path: Path,
) -> None:
    model = tmp_path / "m.gguf"
    model.write_bytes(b"GGUF? no")
    _run(
        "import sys, torch, probes.tag, probes.stages.lift, probes.predictor.predictor\n"
        "from contextlib import suppress\n"
        "from curate.errors import UsageError\n"
        "from probes.models.files import resolve_model\n"
        "from probes.models.load import load_tokenizer\n"
        "from transformers import AutoModelForCausalLM, LlamaForCausalLM\n"
        f"with suppress(UsageError):\n    load_tokenizer(resolve_model({str(model)!r}))\n"
        "assert 'gguf' in sys.modules\n"
        "unused = {'sklearn', 'scipy.stats', 'pandas', 'mistral_common', 'cv2'}\n"
        "unused |= set() if torch.cuda.is_available() else {'triton'}\n"
        "sys.exit(bool(unused & {*sys.modules}))"
    )


def test_what_was_left_out_is_there_for_others() -> None:
    _run(
        "import sys, probes.models.load\n"
        "from importlib.util import find_spec\n"
        "from probes.models.light import import_gguf\n"
        "from torch.utils._triton import has_triton_package\n"
        "from transformers.utils import is_sklearn_available\n"
        "import_gguf()\n"
        "import sklearn\n"
        "seen = has_triton_package(), is_sklearn_available(), 'mistral_common' in sys.modules\n"
        "sys.exit(seen != (find_spec('triton') is not None, True, False))"
    )
