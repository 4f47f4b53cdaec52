"""The run folder: what a run is, which of its stages are done, and a lock against a second run."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from curate.config import (
    RETIRED_SETTINGS,
    TagConfig,
    changed_settings,
    config_from_mapping,
    read_config_file,
)
from curate.errors import UsageError
from curate.files import write_atomically
from curate.run.names import CONFIG, IMPORTED, MANIFEST, PILOTS, SHARDS, VALIDATION
from curate.version import __version__

# Folders in a run's whose folders have locks of their own.
_LOCKED_THEMSELVES = (SHARDS, VALIDATION, PILOTS)
# Settings of earlier versions, which their run folders still name.
_PACKAGES = ("torch", "transformers", "tokenizers", "math-verify", "pyarrow", "numpy", "datasets")


class RunFolder:
    """One run's folder, locked for this process from `open_run` to `close`.

    Attributes:
        path: the folder.
        manifest: what is written to `manifest.json`; change it through `update` and `stage`.
        seconds: of each stage that this process worked on; the manifest's are over all tries.
    """

    def __init__(self, path: Path, lock: int, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self.seconds: dict[str, float] = {}
        self._lock: int | None = lock

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def update(self, **facts: Any) -> None:
        """Set top-level facts of the manifest and write it."""
        self.manifest.update(facts)
        write_atomically(self.path / MANIFEST, json.dumps(self.manifest, indent=2) + "\n")

    def is_done(self, stage: str) -> bool:
        """Tell whether a stage was finished, by this process or an earlier one."""
        return bool(self.manifest["stages"].get(stage, {}).get("state") == "done")

    @contextmanager
    def stage(self, name: str) -> Iterator[dict[str, Any]]:
        """Run a stage: its state, its seconds (over all tries) and the counts put into the dict.

        `tries` counts the processes that were at it, where one ended before it was done.

        A block that puts in another `state` has not finished the stage: it will be run again.
        """
        entry = self.manifest["stages"].setdefault(name, {"seconds": 0.0})
        if entry.get("state") == "started" and name not in self.seconds:
            entry["tries"] = entry.get("tries", 1) + 1
        entry["state"] = "started"
        self.update()
        start = time.monotonic()
        try:
            yield entry
            if entry["state"] == "started":
                entry["state"] = "done"
        finally:
            seconds = time.monotonic() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds
            entry["seconds"] = round(entry["seconds"] + seconds, 3)
            self.update()

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def lock_folder(path: Path, otherwise: str) -> int:
    """Lock a folder for this process, made when it does not exist; closing the lock releases it.

    Args:
        otherwise: what the user can do instead of waiting.

    Raises:
        UsageError: another process holds it, or it cannot be used.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UsageError(f"cannot use run folder {path}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
        os.close(lock)
        raise UsageError(
            f"run folder {path} is in use by process {holder or 'unknown'}; "
            f"wait for it, or {otherwise}"
        ) from error
    try:
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
    except OSError as error:
        os.close(lock)
        raise UsageError(f"cannot use run folder {path}: {error.strerror}") from error
    return lock


def open_run(path: Path, config: TagConfig, identity: Mapping[str, Mapping[str, Any]]) -> RunFolder:
    """Open a run folder, new or to be continued, and lock it.

    Args:
        path: the folder; made when it does not exist.
        config: the resolved settings.
        identity: what the run's results depend on beside the settings, by the setting that it
            comes from: `{"dataset": {"fingerprint": ...}, "model": {"weight_hash": ...}}`.

    Raises:
        UsageError: another process holds the folder; or it belongs to a run with another dataset,
            model or setting (names what changed); or it holds something else.
    """
    lock = lock_folder(path, "give this run its own --run-dir")
    try:
        manifest = _open_manifest(path, config, identity)
        _remove_leftovers(path)
        run = RunFolder(path, lock, manifest)
        write_atomically(path / CONFIG, config.to_toml())
        run.update()
    except OSError as error:
        os.close(lock)
        raise UsageError(f"cannot use run folder {path}: {error.strerror}") from error
    except BaseException:
        os.close(lock)
        raise
    return run


class OtherRun(UsageError):
    """A folder belongs to a run with another dataset, model or setting."""


def check_run(path: Path, config: TagConfig, identity: Mapping[str, Mapping[str, Any]]) -> bool:
    """Check, without a change to it, that `open_run` would take a folder; tell whether it exists.

    Raises:
        OtherRun: the folder belongs to a run with another dataset, model or setting.
        UsageError: as `open_run`, but for a folder that another process holds.
    """
    if path.exists():
        try:
            _open_manifest(path, config, identity)
        except OSError as error:
            raise UsageError(f"cannot use run folder {path}: {error.strerror}") from error
    return (path / MANIFEST).exists()


def _open_manifest(
    path: Path, config: TagConfig, identity: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    if not (path / MANIFEST).exists():
        refuse_foreign_files(path)
        return _new_manifest(identity)
    manifest = read_manifest(path)
    done = {name for name, stage in manifest["stages"].items() if stage.get("state") == "done"}
    # What was only read, for rollouts that were not taken then, is read again.
    if not done - ({"items"} if config.rollouts else set()):
        # It stopped at bad input, before anything was spent: a corrected command starts afresh.
        return _new_manifest(identity)
    old = read_config_file(path / CONFIG)
    changes = [
        *_changed_identity(manifest, identity, old, config),
        *changed_settings(old, config),
    ]
    if changes:
        raise OtherRun(
            f"run folder {path} belongs to another run; changed: {'; '.join(changes)}. "
            "Give this run its own --run-dir, where it begins anew, or remove the folder"
        )
    return manifest


def _changed_identity(
    manifest: Mapping[str, Any],
    identity: Mapping[str, Mapping[str, Any]],
    old: Mapping[str, Any],
    new: TagConfig,
) -> Iterator[str]:
    for setting, facts in identity.items():
        before = manifest.get(setting, {})
        changed = [name for name, value in facts.items() if before.get(name) != value]
        if changed and old.get(setting) != getattr(new, setting):
            yield f"{setting}: {old.get(setting)!r} -> {getattr(new, setting)!r}"
        else:
            for name in changed:
                # Of a hash its start is enough to see that it is another.
                yield f"{setting} {name}: {str(before.get(name))[:12]} -> {str(facts[name])[:12]}"


def _remove_leftovers(path: Path) -> None:
    """Remove what a killed process was writing aside; the lock says that no other is writing."""
    for aside in path.rglob(".*.tmp"):
        if not set(_LOCKED_THEMSELVES) & set(aside.relative_to(path).parts):
            aside.unlink(missing_ok=True)


def refuse_foreign_files(path: Path) -> None:
    """Refuse a folder that holds files but no manifest: it is not a run folder."""
    # A kill before the first manifest leaves the lock, the config or a file written aside.
    foreign = [
        entry.name
        for entry in path.iterdir()
        if not entry.name.startswith(".") and entry.name not in (CONFIG, SHARDS, IMPORTED)
    ]
    if foreign:
        raise UsageError(
            f"{path} holds files but no manifest.json, so it is no run folder "
            f"({sorted(foreign)[0]} is there); give another --run-dir"
        )


def _new_manifest(identity: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    versions = {"curate": __version__, "python": platform.python_version()}
    versions |= {name: metadata.version(name) for name in _PACKAGES}
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions,
        "machine": {"platform": platform.platform(), "cores": os.cpu_count()},
        **{kind: dict(facts) for kind, facts in identity.items()},
        "stages": {},
        "counts": {},
    }


def read_manifest(path: Path) -> dict[str, Any]:
    """Read a run's manifest.

    Raises:
        UsageError: the folder holds none, or not one that can be read.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"{path} is no run folder: it has no manifest.json") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{path / MANIFEST} cannot be read: {error}") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("stages"), dict):
        raise UsageError(f"{path / MANIFEST} is not the manifest of a run")
    return manifest


def has_rollouts(path: Path) -> bool:
    """Whether a folder, which need not exist, is that of a run that has all its rollouts."""
    if not (path / MANIFEST).exists():
        return False
    return bool(read_manifest(path)["stages"].get("plan", {}).get("state") == "done")


def no_policy(path: Path) -> str:
    """What to say where a policy is needed, and a run was imported without one."""
    return (
        f"{path} was imported without a policy: curate tag DATASET --model MODEL --rollouts {path} "
        "goes on from its rollouts with one"
    )


def find_run(path: Path) -> Path:
    """The run folder that a path means: itself, or the run in `runs/` that wrote a tagged file.

    Raises:
        UsageError: neither; or several runs wrote the file.
    """
    if path.is_dir():
        read_manifest(path)
        return path
    if not path.exists():
        raise UsageError(f"no such run folder or tagged file: {path}")
    found = []
    for config in sorted(Path("runs").glob(f"*/{CONFIG}")):
        out = read_config_file(config).get("out", "")
        if isinstance(out, str) and out and Path(out).resolve() == path.resolve():
            found.append(config.parent)
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"{path} was written by several runs: {', '.join(map(str, found))}")
    raise UsageError(f"no run in ./runs wrote {path}; give the run folder itself")


def other_writer(out: Path, run_dir: Path) -> Path | None:
    """Another run folder, in `runs/` or beside this one, whose tagged file is `out` and is there.

    None where this run has written it too: then it is a copy, or they have shared it before.
    """
    if not out.exists() or _has_written(run_dir, out):
        return None
    beside = {folder.resolve(): folder for folder in (run_dir.parent, Path("runs"))}
    others = (each.parent for folder in beside.values() for each in folder.glob(f"*/{CONFIG}"))
    return next((each for each in others if _has_written(each, out)), None)


def _has_written(path: Path, out: Path) -> bool:
    """Whether a folder is that of a run that wrote this tagged file."""
    if not (path / MANIFEST).exists() or not (path / CONFIG).exists():
        return False
    if read_manifest(path)["stages"].get("write", {}).get("state") != "done":
        return False
    theirs = read_config_file(path / CONFIG).get("out", "")
    return isinstance(theirs, str) and bool(theirs) and Path(theirs).resolve() == out.resolve()


def read_run_config(path: Path) -> TagConfig:
    """Read the resolved settings of a run, less those that only earlier versions had.

    Where its tagged file is not there as seen from here, `out` is as seen from the folder that the
    run was started in, if it is there.
    """
    file = path / CONFIG
    values = {k: v for k, v in read_config_file(file).items() if k not in RETIRED_SETTINGS}
    config = config_from_mapping(values, str(file))
    started_in = _started_in(path, config)
    if started_in and config.out and not Path(config.out).exists():
        out = started_in / config.out
        config = config.replace(out=str(out)) if out.exists() else config
    return config


def _started_in(path: Path, config: TagConfig) -> Path | None:
    """The folder that a run was started in, where its own folder was given from there."""
    ending = Path(config.run_dir).parts
    whole = path.resolve()
    if not ending or ".." in ending or whole.parts[-len(ending) :] != ending:
        return None
    return Path(*whole.parts[: -len(ending)])
