"""`curate merge`: the parts that several machines did of a run become one run folder.

A merge ends a round: the parts' files are joined, as hard links where they lie on one disk, and the
rounds' plan says which items go on. As long as some do, the machines have another round to do.
"""

from __future__ import annotations

import filecmp
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from curate.config import TagConfig, changed_settings, read_config_file
from curate.datasets.source import open_source
from curate.errors import RunError, UsageError
from curate.files import atomic_writer
from curate.run.folder import RunFolder, open_run, read_manifest, read_run_config
from curate.run.names import CONFIG, MANIFEST, REJECTS, SHARDS, TARGET
from curate.run.rollouts import drawn_rollouts, rollout_shards
from curate.run.tables import (
    GOLD,
    ITEMS,
    ROLLOUTS,
    ROUNDS,
    ROWS,
    gradient_shard,
    read_parquet,
    write_parquet,
)
from probes.machines.shard import Part
from probes.models.files import ModelFiles
from probes.models.load import describe_machine
from probes.stages.gold import join_golds
from probes.tag import PolicyFiles, open_tagging

# Another version of these can give another rollout, verdict or gradient.
_VERSIONS = ("curate", "torch", "transformers", "tokenizers", "math-verify", "numpy", "vllm")
_STAGES = ("sample", "verify", "gradients")


@dataclass(frozen=True)
class _PartFolder:
    """A part of a run that `curate tag --shard` did."""

    path: Path
    part: Part
    manifest: Mapping[str, Any]

    @property
    def files(self) -> list[int]:
        """How many files of rollouts there are after each round that is finished."""
        return list(self.manifest["shard"]["files"])

    @cached_property
    def config(self) -> TagConfig:
        return read_run_config(self.path)

    @property
    def target(self) -> _PartFolder:
        """What it did of the target."""
        path = self.path / TARGET
        return _PartFolder(path, self.part, read_manifest(path))


def merge_run(
    run_dir: Path, others: Sequence[Path] = (), *, dataset: str = "", out: str = ""
) -> dict[str, Any]:
    """Join what the shards of a run did; finish the run if no item goes on.

    Args:
        run_dir: the `--run-dir` of the shards, on this machine.
        others: where more shards lie: their folders, or run folders of other machines.
        dataset: the dataset, where it is not at the place that the shards had it.
        out: the tagged file, if it is to be another than the shards were told.

    Returns:
        finished, shards, round (from 1: the one that is open, or the last), run_dir, tagged_file
        (None before the run is finished).

    Raises:
        UsageError: the shards do not belong together, or one is missing or not finished.
        RunError: a file is damaged or the disk is full; the same call continues.
    """
    parts = _find_parts(run_dir, others)
    _check_parts(parts)
    first = parts[0]
    if first.config.target:
        _check_parts([part.target for part in parts])
    config = first.config.replace(shard="", run_dir=str(run_dir))
    config = config.replace(dataset=dataset or config.dataset, out=out or config.out)
    source = open_source(config.dataset, split=config.split, subset=config.subset or None)
    if source.fingerprint != first.manifest["dataset"]["fingerprint"]:
        raise UsageError(f"{config.dataset} is not the dataset that the shards probed")
    model = first.manifest["model"]
    # The weights are not needed any more, so they need not be on this machine.
    files = ModelFiles(
        model["name"], Path(config.model), None, model["revision"], model["weight_hash"]
    )
    policy = PolicyFiles(files, describe_machine() | {"dtype": model["dtype"]})
    with open_tagging(config, source, policy) as tagging:
        run = tagging.run
        if not run.is_done("plan"):
            _join(run, parts)
            _join_golds(run, parts)
            if config.target and not run.is_done("target"):
                _join_target(run, parts)
        # A round that is planned already waits for the shards.
        is_open = not run.is_done("plan") and _rounds(run) > len(first.files)
        finished = not is_open and tagging.end_joined_round()
        run.update(device=first.manifest["device"])  # Of the shards, not of this machine.
        rounds = _rounds(run)
    return {
        "finished": finished,
        "shards": len(parts),
        "round": rounds,
        "run_dir": str(run_dir),
        "tagged_file": config.out if finished else None,
    }


def _find_parts(run_dir: Path, others: Sequence[Path]) -> list[_PartFolder]:
    """The parts in a run folder and in other places, by number."""
    found: dict[Path, _PartFolder] = {}
    for place in (run_dir, *others):
        if not place.is_dir():
            raise UsageError(f"no such folder: {place}")
        folders = [place, *sorted((place / SHARDS).glob("*"))]
        parts = [part for folder in folders if (part := _read_part(folder))]
        if not parts and place != run_dir:
            raise UsageError(f"{place} is no folder of a shard, and holds none in {SHARDS}/")
        found |= {part.path.resolve(): part for part in parts}
    if not found:
        raise UsageError(f"{run_dir} holds no shards: curate tag ... --shard I/N makes them")
    return sorted(found.values(), key=lambda each: (each.part.of, each.part.number))


def _read_part(folder: Path) -> _PartFolder | None:
    """Read what a folder says of itself; None where it is no part of a run."""
    if not (folder / MANIFEST).exists():
        return None
    manifest = read_manifest(folder)
    if "shard" not in manifest:
        if folder.parent.name == SHARDS:
            raise UsageError(f"{folder} has not finished its first round; run its command again")
        return None
    shard = manifest["shard"]
    return _PartFolder(folder, Part(shard["number"], shard["of"]), manifest)


def _check_parts(parts: Sequence[_PartFolder]) -> None:
    """Refuse parts that are not all the parts of one run, each as far as the others."""
    first = parts[0]
    for part in parts[1:]:
        if part.part.of != first.part.of:
            raise UsageError(
                f"shards of different runs: {first.part} in {first.path}, "
                f"{part.part} in {part.path}"
            )
    by_number: dict[int, _PartFolder] = {}
    for part in parts:
        other = by_number.setdefault(part.part.number, part)
        if other is not part:
            raise UsageError(f"shard {part.part} is there twice: {other.path} and {part.path}")
    missing = [str(i) for i in range(1, first.part.of + 1) if i not in by_number]
    if missing:
        raise UsageError(
            f"shard {', '.join(missing)} of {first.part.of} is missing; run it, or say with "
            "--from where it is"
        )
    old = read_config_file(first.path / CONFIG)
    for part in parts[1:]:
        differences = [*changed_settings(old, part.config), *_differences(first, part)]
        if differences:
            raise UsageError(
                f"shard {part.part} does not belong with shard {first.part}: "
                f"{'; '.join(differences)}"
            )
    furthest = max(len(part.files) for part in parts)
    for part in parts:
        if len(part.files) < furthest:
            raise UsageError(
                f"shard {part.part} has not finished round {furthest}, which others have; "
                "run its command again"
            )
    items = ITEMS.read(first.path, "item_id", "prompt_token_ids")
    for part in parts:
        own = ITEMS.read(part.path, "item_id", "prompt_token_ids")
        if not own["item_id"].equals(items["item_id"]):
            raise UsageError(f"shard {part.part} has other items than shard {first.part}")
        if not own["prompt_token_ids"].equals(items["prompt_token_ids"]):
            raise UsageError(
                f"shard {part.part} has other prompts than shard {first.part}: its tokenizer or "
                "its chat template is another one; where that writes the day's date, give all "
                "shards the same --date"
            )
        _check_rollouts(part, items["item_id"].to_pylist())


def _differences(first: _PartFolder, other: _PartFolder) -> Iterator[str]:
    """Name what two parts' results depend on and what is not the same."""
    pairs = [("dataset", "fingerprint"), ("target", "fingerprint"), ("predictor", "sha256")]
    pairs += [("model", "weight_hash"), ("model", "dtype"), ("engine", "name")]
    pairs += [("versions", name) for name in _VERSIONS]
    for group, name in pairs:
        values = [part.manifest.get(group, {}).get(name) for part in (first, other)]
        if group == "engine" and None in values:
            continue  # It had nothing to draw.
        if values[0] != values[1]:
            # Of a hash its start is enough to see that it is another.
            yield f"{group} {name}: {str(values[0])[:12]} -> {str(values[1])[:12]}"


def _check_rollouts(part: _PartFolder, item_ids: Sequence[str]) -> None:
    """Refuse a part with rollouts of another's items, or with fewer or more than it should have."""
    row_of = {item_id: row for row, item_id in enumerate(item_ids)}
    target_file = ROUNDS.path(part.path, len(part.files) - 1)
    target = read_parquet(target_file, ["rollouts"])["rollouts"].to_numpy()
    drawn = drawn_rollouts(part.path, row_of)
    strange = np.flatnonzero((drawn > 0) & ~part.part.own(len(item_ids)))
    if len(strange):
        raise UsageError(
            f"shard {part.part} holds rollouts of item {item_ids[strange[0]]}, which belongs to "
            f"shard {strange[0] % part.part.of + 1}/{part.part.of}"
        )
    if len(wrong := np.flatnonzero(drawn != target)):
        row = wrong[0]
        raise RunError(
            f"shard {part.part} holds {drawn[row]} rollouts of item {item_ids[row]} and should "
            f"hold {target[row]}: run its command again, or anew in an empty folder"
        )


def _join(run: RunFolder, parts: Sequence[_PartFolder]) -> None:
    """Join the files of a run's parts; what an earlier merge joined is there already."""
    first = parts[0]
    if not run.is_done("items"):
        for name in (ROWS.file, REJECTS, ITEMS.file):
            _copy(first.path / name, run / name)
        facts = ("dataset", "model", "counts", "echoes", "device", "engine", "seeds")
        run.update(**{name: first.manifest[name] for name in facts if name in first.manifest})
        run.manifest["stages"]["items"] = dict(first.manifest["stages"]["items"])
    files = list(_files(parts))
    if len(rollout_shards(run)) > len(files):
        raise _gone_on(run)
    for new, (part, old) in enumerate(files):
        rollouts = ROLLOUTS.path(part.path, old)
        joined = ROLLOUTS.path(run, new)
        if joined.exists() and not filecmp.cmp(rollouts, joined, shallow=False):
            raise _gone_on(run)
        _link(rollouts, joined)
        for suffix in ("npy", "parquet"):  # The table last: where it is, the features are.
            _link(gradient_shard(part.path, old, suffix), gradient_shard(run, new, suffix))
    for number in range(_rounds(run), len(first.files)):
        tables = [read_parquet(ROUNDS.path(part.path, number)) for part in parts]
        target = np.sum([table["rollouts"].to_numpy() for table in tables], axis=0)
        write_parquet(
            ROUNDS.path(run, number),
            pa.table({"item_id": tables[0]["item_id"], "rollouts": target}),
        )
    for stage in _STAGES:
        entries = [part.manifest["stages"][stage] for part in parts]
        seconds = round(sum(entry["seconds"] for entry in entries), 3)
        run.manifest["stages"][stage] = {"seconds": seconds, "state": "open"}
    run.update(
        shards=[
            {
                "shard": str(part.part),
                "machine": part.manifest["machine"],
                "device": part.manifest.get("device"),
                "seconds": {stage: part.manifest["stages"][stage]["seconds"] for stage in _STAGES},
            }
            for part in parts
        ]
    )


def _join_golds(run: RunFolder, parts: Sequence[_PartFolder]) -> None:
    """Take over what the parts' golds say; of a target nobody asks."""
    folders = [part.path for part in parts]
    if not run.is_done("gold") and all(GOLD.is_in(each) for each in folders):
        with run.stage("gold") as entry:
            join_golds(run, folders)
            entry["items_with_gold"] = sum(
                part.manifest["stages"]["gold"]["items_with_gold"] for part in parts
            )


def _join_target(run: RunFolder, parts: Sequence[_PartFolder]) -> None:
    """Join what the parts did of the target, in the run folder within the run's."""
    targets = [part.target for part in parts]
    config = targets[0].config.replace(run_dir=str(run / TARGET))
    manifest = targets[0].manifest
    identity = {
        "dataset": {"fingerprint": manifest["dataset"]["fingerprint"]},
        "model": {name: manifest["model"][name] for name in ("weight_hash", "dtype")},
    }
    with open_run(run / TARGET, config, identity) as target:
        _join(target, targets)


def _files(parts: Sequence[_PartFolder]) -> Iterator[tuple[_PartFolder, int]]:
    """The files of rollouts of all parts, round by round, and within a round part by part."""
    for number in range(len(parts[0].files)):
        for part in parts:
            start = part.files[number - 1] if number else 0
            for file in range(start, part.files[number]):
                yield part, file


def _rounds(run: RunFolder) -> int:
    """How many rounds are planned."""
    return len(ROUNDS.files(run))


def _gone_on(run: RunFolder) -> UsageError:
    return UsageError(
        f"{run.path} holds rollouts that no shard drew: it has gone on by itself; finish it with "
        "`curate tag`, without --shard"
    )


def _link(source: Path, goal: Path) -> None:
    """Give a file a second name, or copy it to another disk; an earlier merge may have done so."""
    if goal.exists():
        return
    try:
        goal.parent.mkdir(parents=True, exist_ok=True)
        os.link(source, goal)
    except OSError:  # Another disk, or one that knows no links.
        _copy(source, goal)


def _copy(source: Path, goal: Path) -> None:
    try:
        with source.open("rb") as file, atomic_writer(goal) as copy:
            shutil.copyfileobj(file, copy)
    except OSError as error:
        raise RunError(f"cannot join {source}: {error.strerror or error}") from error
