"""The model that a run probed, found again."""

from __future__ import annotations

from pathlib import Path

from curate.config import TagConfig
from curate.errors import UsageError
from curate.run.folder import read_manifest
from probes.models.files import ModelFiles, resolve_model


def probed_model(
    run: Path, config: TagConfig, moved_to: str = "", *, flag: str = "--model"
) -> ModelFiles:
    """The files of the policy that a run probed.

    Args:
        run: its folder.
        config: of the run.
        moved_to: where the model lies now; "" where it was.
        flag: what a command calls that.

    Raises:
        UsageError: the model is not there, or is another one.
    """
    files = resolve_model(moved_to or config.model)
    if files.weight_hash != read_manifest(run)["model"]["weight_hash"]:
        raise UsageError(
            f"model {moved_to or config.model} is not the one that {run} probed; "
            f"give that one with {flag}"
        )
    return files
