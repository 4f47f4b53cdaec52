"""`curate tag`: every stage in its order, each reading files of the run folder and writing its own.

items -> rounds of (sample -> verify -> gradients -> gold -> lift -> plan)
      -> pass_rates -> gradients -> answers -> similarity -> lift -> gold -> tags -> write
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from curate.config import TagConfig
from curate.datasets.source import Source, open_source
from curate.errors import UsageError
from curate.progress import say
from curate.run.folder import (
    OtherRun,
    check_run,
    has_rollouts,
    no_policy,
    open_run,
    other_writer,
    read_manifest,
    read_run_config,
)
from curate.run.quality import run_schema
from curate.run.rollouts import rollout_shards
from curate.tagged.write import check_columns, check_out
from probes.engines.choose import LoadedModel
from probes.machines.shard import parse_part
from probes.models.chat import read_chat_template
from probes.models.files import ModelFiles, resolve_model
from probes.models.load import describe_machine
from probes.predictor.predictor import read_predictor
from probes.tagging import Tagging, plan_of

NO_MODEL = ModelFiles("", Path(), None, None, "")
"""Of a run of rollouts that exist, of which only pass rates are wanted."""

if TYPE_CHECKING:
    from probes.machines.ray import RayExecutor


def tag_dataset(
    config: TagConfig, started: float | None = None, *, without_policy: bool = False
) -> tuple[TagConfig, Path]:
    """Probe every item of a dataset and write the tagged dataset.

    Args:
        config: `dataset` and `model` are required, the model not with `without_policy`; `out` and
            `run_dir` have defaults.
        started: since when, by `time.monotonic`, the profile counts; from now on if None.
        without_policy: whether a run of rollouts that exist may be without a model.

    Returns:
        the resolved settings, and the tagged file.

    Raises:
        UsageError: bad input or settings; nothing was spent.
        RunError: a stage failed; the same call continues.
    """
    started = time.monotonic() if started is None else started
    if config.shard:
        raise UsageError("a shard is no tagged dataset: run it with `curate tag --shard`")
    with _remote(config) as ray:
        config, source, model = resolve(config, ray, without_policy=without_policy)
        with (
            open_tagging(config, source, model, ray=ray) as tagging,
            _telling_what_is_kept(tagging.run.path),
        ):
            tagging.begin()
            tagging.all_stages()
            if config.profile:
                tagging.profile(started)
    return config, Path(config.out)


def probe_part(config: TagConfig) -> dict[str, Any]:
    """Do what `--shard` asks for: the part of the open round that one of N machines has.

    Returns:
        shard, round (from 1), rollouts (of this part, of all rounds), run_dir, folder, finished
        (whether the whole run needs no more rollouts).

    Raises:
        UsageError: bad input or settings; nothing was spent.
        RunError: a stage failed; the same call continues.
    """
    part = parse_part(config.shard)
    rounds = rollouts = 0
    with _remote(config) as ray:
        config, source, model = resolve(config, ray)
        whole = Path(config.run_dir)
        folder = part.folder(whole)
        finished = has_rollouts(whole)
        if not finished:
            with (
                open_tagging(config, source, model, folder, ray) as tagging,
                _telling_what_is_kept(folder),
            ):
                tagging.begin()
                tagging.one_part(part, whole)
                rounds = len(tagging.run.manifest["shard"]["files"])
                rollouts = tagging.run.manifest["stages"]["sample"]["rollouts"]
    return {
        "shard": str(part),
        "round": rounds,
        "rollouts": rollouts,
        "run_dir": str(whole),
        "folder": str(folder),
        "finished": finished,
    }


@contextmanager
def _telling_what_is_kept(run: Path) -> Iterator[None]:
    """Put into an interruption how many rollouts are kept: files of them are written whole."""
    try:
        yield
    except KeyboardInterrupt as error:
        kept = sum(pq.read_metadata(file).num_rows for file in rollout_shards(run))
        if kept:
            error.args = (f"{kept:,} rollouts are kept in {run}, the same command continues",)
        else:
            error.args = ("no rollouts were kept yet, the same command begins with them",)
        raise


def tag_anew(run_path: Path, *, horizon: float | None = None, by_gradients: bool = False) -> Path:
    """Tag the items of a finished run anew, by the evidence that it has now.

    Nothing is sampled or differentiated, so the weights need not be on this machine.

    Args:
        run_path: the run folder.
        horizon: length of the training that the tags are about, in units of the recipe's; None: as
            the run was tagged before.
        by_gradients: measure the lift from the gradients first, in the place of another source's.

    Returns:
        the tagged file, which is written anew.

    Raises:
        UsageError: the run is not finished or in use, or the dataset is not there or another one.
        RunError: a file of the run is damaged, or the disk is full.
    """
    manifest = read_manifest(run_path)
    if manifest["stages"].get("tags", {}).get("state") != "done":
        raise UsageError(f"{run_path} has no tags yet: continue it with its `curate tag` command")
    config = read_run_config(run_path).replace(run_dir=str(run_path))
    if not config.has_policy and by_gradients:
        raise UsageError(no_policy(run_path))
    source = open_source(config.dataset, split=config.split, subset=config.subset or None)
    model = manifest["model"]
    files = ModelFiles(
        model["name"], Path(config.model), None, model["revision"], model["weight_hash"]
    )
    policy = PolicyFiles(files, describe_machine() | {"dtype": model["dtype"]})
    with open_tagging(config, source, policy) as tagging:
        if by_gradients:
            tagging.lift_anew()
        tagging.tag_anew(horizon)
    return Path(config.out)


@contextmanager
def _remote(config: TagConfig) -> Iterator[RayExecutor | None]:
    """Connect to the workers that do the shards of a run; None where this process does them."""
    if config.executor == "local":
        yield None
        return
    from probes.machines.ray import RayExecutor

    with closing(RayExecutor(config)) as ray:
        yield ray


@dataclass(frozen=True)
class PolicyFiles:
    """The files of a run's policy, and what it runs on: `probes.models.load.describe_machine`."""

    files: ModelFiles
    machine: Mapping[str, str]


def resolve(
    config: TagConfig, ray: RayExecutor | None = None, *, without_policy: bool = False
) -> tuple[TagConfig, Source, PolicyFiles]:
    """Find the dataset and the policy's files; fill in the default output file and run folder."""
    needed = ("dataset",) if config.rollouts and without_policy else ("dataset", "model")
    for name in needed:
        if not getattr(config, name):
            hint = "; pass rates alone need no model: curate import" if config.rollouts else ""
            raise UsageError(f"no {name} given: curate tag DATASET --model MODEL needs both{hint}")
    plan_of(config)
    source = open_source(config.dataset, split=config.split, subset=config.subset or None)
    files = resolve_model(config.model) if config.model else NO_MODEL
    run_dir = config.run_dir or f"runs/{source.name}-{files.name or 'imported'}"
    config = config.replace(
        out=own_out(config.out, source, Path(run_dir)),
        run_dir=run_dir,
        chat_template=read_chat_template(config.chat_template),
    )
    machine = ray.machine() if ray else describe_machine()
    if ray:
        ray.use_model(files.weight_hash, machine["dtype"])
    return config, source, PolicyFiles(files, machine)


def own_out(given: str, source: Source, run_dir: Path) -> str:
    """The tagged file: the one that is given, else one that is no other run's.

    Raises:
        UsageError: those that it could be are other runs'.
    """
    if given:
        if other := other_writer(Path(given), run_dir):
            say(
                f"note: {given} is the tagged file of {other} and will be this run's; --out names "
                "another"
            )
        return given
    suffix = {"jsonl": ".jsonl", "json": ".json", "csv": ".csv"}.get(source.format, ".parquet")
    first = f"{source.name}.tagged{suffix}"
    other = other_writer(Path(first), run_dir)
    if other is None:
        return first
    run = run_dir.resolve().name.removeprefix(f"{source.name}-")
    out = f"{source.name}-{run}.tagged{suffix}"
    if another := other_writer(Path(out), run_dir):
        raise UsageError(
            f"{first} is the tagged file of {other}, and {out} that of {another}: name this run's "
            "with --out"
        )
    say(f"note: {first} is the tagged file of {other}, so this run's is {out}; --out names another")
    return out


@contextmanager
def open_tagging(
    config: TagConfig,
    source: Source,
    policy: PolicyFiles,
    folder: Path | None = None,
    ray: RayExecutor | None = None,
    *,
    is_dry: bool = False,
) -> Iterator[Tagging]:
    """Open a run, new or to be continued, in `folder` or else in its run folder.

    A dry one is opened in a folder that goes at the end, and leaves no other behind.
    """
    plan = plan_of(config)
    target = open_source(config.target, split=config.split) if config.target else None
    predictor = read_predictor(config.predictor) if config.predictor else None
    schema = run_schema(Path(config.run_dir), config)
    check_out(source, Path(config.out), make_folder=not is_dry)
    check_columns(source.columns, schema, config.replace_columns)
    files, machine = policy.files, policy.machine
    identity: dict[str, dict[str, Any]] = {
        "dataset": {"fingerprint": source.fingerprint},
        "target": {"fingerprint": target.fingerprint if target else None},
        "predictor": {"sha256": predictor.sha256 if predictor else None},
        "model": {"weight_hash": files.weight_hash, "dtype": machine["dtype"]}
        if config.has_policy
        else {"weight_hash": None, "dtype": None},
    }
    is_of_another_run = False
    if is_dry:
        part = Path(config.run_dir)
        part = parse_part(config.shard).folder(part) if config.shard else part
        try:
            check_run(part, config, identity)
        except OtherRun as error:
            # Nothing is written into it; the run itself would be refused.
            is_of_another_run = True
            say(f"note: {error}; this dry run leaves it alone")
    with (
        open_run(folder or Path(config.run_dir), config, identity) as run,
        closing(LoadedModel(config, files)) as model,
    ):
        yield Tagging(
            config,
            plan,
            source,
            model,
            machine,
            run,
            schema,
            target,
            predictor,
            ray=ray,
            is_dry=is_dry,
            is_of_another_run=is_of_another_run,
        )
