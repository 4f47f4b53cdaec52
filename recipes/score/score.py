"""Final rollouts of a run's items from checkpoints, and the outcomes that they give.

RUN/validation/<name>/<seed>: rollouts in shards -> verdicts -> outcomes

Each step goes on from what a killed process left. Rollouts of a seed share no random numbers with
the probe's; with the same settings they are those that `curate validate` draws from such a policy.
The initial pass rate is the probe's. `run.json` has under `score` what was scored and with which
settings, so that others are refused.
"""

from __future__ import annotations

import gc
import json
import os
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from curate.config import AUTO, TagConfig
from curate.errors import UsageError
from curate.files import write_atomically
from curate.progress import say
from curate.run.folder import lock_folder, no_policy
from curate.run.names import RECIPE, TRAINING, VALIDATION
from curate.run.rollouts import rollout_shards
from curate.run.run import Run
from curate.run.tables import ITEMS, OUTCOMES, PASS_RATES, REWARDS, read_json, read_parquet
from curate.settings import declared_in
from probes.engines.choose import SERVER, TRANSFORMERS, VLLM, LoadedModel, choose_engine
from probes.models.checkpoints import has_tokenizer
from probes.models.load import describe_machine
from probes.stages.sample import DrawShards, draw_here
from probes.tagging import shard_rollouts
from probes.verifiers.by_row import run_pool
from recipes.score.checkpoints import ScoredCheckpoint, open_checkpoints
from recipes.score.command import Score
from recipes.score.text import UNKNOWN
from recipes.validate.evaluation import FINAL_SEED, evaluate, write_outcomes

_RECIPE = 'hypothesis = "trained elsewhere: final pass rates are those of its checkpoints"\n'
# Above this share of cut completions the pass rates say more of --max-tokens than of the policy.
_MANY_CUT = 0.2
# Options of vLLM that change no rollouts' law, and may differ between two commands.
_MAY_DIFFER = declared_in(TagConfig)["vllm"].declared["may_differ"]


def score_run(wanted: Score, models: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
    """Score checkpoints on the items of a run.

    Args:
        wanted: what is asked for.
        models: the checkpoints.
        seeds: of the training that left each.

    Returns:
        as `Score.work`.

    Raises:
        UsageError: bad input, or a folder that was made with other settings; nothing was spent.
        RunError: a step failed; the same call continues.
    """
    run = Run.open(wanted.run)
    if not run.config.has_policy:
        raise UsageError(no_policy(run.path))
    checkpoints = open_checkpoints(run, tuple(models), str(wanted.base))
    jobs = [
        _Job(run, wanted, checkpoint, seed)
        for checkpoint, seed in zip(checkpoints, seeds, strict=True)
    ]
    _check(jobs)
    for job in jobs:
        job.work()
    return {
        "run_dir": str(run.path),
        "name": wanted.name,
        "tau": run.config.tau,
        "seeds": [job.summary() for job in jobs],
        "notes": [note for job in jobs for note in job.notes()] + _notes(run, jobs[0]),
    }


@dataclass
class _Job:
    """One checkpoint."""

    run: Run
    wanted: Score
    checkpoint: ScoredCheckpoint
    seed: int

    @property
    def folder(self) -> Path:
        return self.run.path / VALIDATION / self.wanted.name / str(self.seed)

    @cached_property
    def config(self) -> TagConfig:
        """The run's settings, with those of the final rollouts."""
        wanted, config = self.wanted, self.run.config
        engine = wanted.engine
        if self.checkpoint.is_adapter and engine == AUTO:
            engine = TRANSFORMERS
        return config.without_rollouts().replace(
            model=self.checkpoint.name,
            engine=engine,
            seed=FINAL_SEED + self.seed,
            temperature=wanted.temperature or config.temperature,
            max_tokens=wanted.max_tokens or config.max_tokens,
            min_rollouts=wanted.rollouts,
            max_rollouts=wanted.rollouts,
            rollout_budget=0,
            shard="",
            vllm={**config.vllm, **_vllm_options(wanted.vllm)},
            base_url=tuple(wanted.base_url),
            served_model=wanted.served_model,
            api_key_env=wanted.api_key_env,
            executor=wanted.executor,
            ray_address=wanted.ray_address,
            workers=wanted.workers,
        )

    @cached_property
    def engine(self) -> str:
        """What draws, by name; on a cluster the workers choose where nothing is asked for."""
        if self.config.executor == "ray":
            return self.config.engine
        return choose_engine(self.config)[0]

    @property
    def is_on_ray(self) -> bool:
        # Servers are asked from here.
        return self.config.executor == "ray" and self.engine != SERVER

    def settings(self, dtype: str | None) -> dict[str, Any]:
        """What its rollouts depend on, by the names that a user gives."""
        config = self.config
        options = {name: each for name, each in config.vllm.items() if name not in _MAY_DIFFER}
        return {
            "rollouts": self.wanted.rollouts,
            "temperature": config.temperature,
            "max_tokens": config.max_tokens,
            "engine": self.engine,
            "vllm": options if self.engine in (VLLM, AUTO) else {},
            # None where others compute, and it is not known yet.
            "dtype": dtype,
        }

    @cached_property
    def items(self) -> pa.Table:
        return self.run.columns(ITEMS, *ITEMS.columns).combine_chunks()

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What `run.json` says; nothing where there is none."""
        file = self.folder / TRAINING
        return read_json(file) if file.exists() else {}

    @property
    def is_done(self) -> bool:
        return self.facts.get("state") == "done"

    def check(self) -> None:
        """Refuse what cannot be drawn."""
        name, engine = self.checkpoint.name, self.engine
        if self.checkpoint.is_adapter and (engine == VLLM or self.is_on_ray):
            where = "--engine vllm" if engine == VLLM else "--executor ray"
            raise UsageError(
                f"{name} is an adapter, which {where} does not draw from: merge it (peft's "
                "merge_and_unload, then save_pretrained), or leave the option out"
            )
        if self.is_on_ray and not has_tokenizer(self.checkpoint.loading.files):
            raise UsageError(
                f"{name} has no tokenizer, which the workers of --executor ray need: save the "
                "run's beside it (tokenizer.save_pretrained)"
            )
        room = self.checkpoint.loading.outline(
            trust_remote_code=self.config.trust_remote_code
        ).context_length
        longest = pc.max(pc.list_value_length(self.items["prompt_token_ids"])).as_py() or 0
        if longest + self.config.max_tokens > room:
            raise UsageError(
                f"a prompt of {longest:,} tokens and --max-tokens {self.config.max_tokens:,} do "
                f"not fit into the {room:,} tokens of {name}"
            )

    def work(self) -> None:
        """Do what is missing."""
        name = self.checkpoint.name
        if self.is_done:
            say(f"seed {self.seed}: {name} is scored already, in {self.folder}")
            return
        say(
            f"seed {self.seed}: {name}, {self.wanted.rollouts:,} rollouts of "
            f"{len(self.run.ids):,} items"
        )
        lock = lock_folder(self.folder, "choose another --name")
        try:
            for aside in self.folder.rglob(".*.tmp"):
                aside.unlink(missing_ok=True)  # What a killed process was writing.
            start = time.monotonic()
            with self._drawing() as (draw, shard):
                judged, correct = evaluate(
                    self.folder,
                    self.items,
                    run_pool(self.run.config),
                    draw,
                    rollouts=self.wanted.rollouts,
                    shard_rollouts=shard,
                )
            self._finish(judged, correct, time.monotonic() - start)
        finally:
            os.close(lock)

    @contextmanager
    def _drawing(self) -> Iterator[tuple[Callable[[], DrawShards], int]]:
        """What gives the drawer of shards, and the rollouts of a shard; closed at the end."""
        config, loading = self.config, self.checkpoint.loading
        with ExitStack() as stack:
            if self.is_on_ray:
                from probes.machines.ray import RayExecutor

                ray = stack.enter_context(closing(RayExecutor(config)))
                machine = ray.machine()
                ray.use_model(loading.files.weight_hash, machine["dtype"])
            else:
                machine = describe_machine()

            def begin(engine: Mapping[str, Any]) -> None:
                self._begin(machine, engine)

            def draw() -> DrawShards:
                lengths = pc.list_value_length(self.items["prompt_token_ids"])
                longest = pc.max(lengths).as_py()
                if self.is_on_ray:
                    # Before anything is drawn: the weights may be of another precision there.
                    self._refuse_other_dtype(machine["dtype"])
                    return ray.draw(begin, longest)
                model = stack.enter_context(closing(LoadedModel(config, loading.files, loading)))
                model.longest_prompt = longest
                model.check_sampling()
                begin({**model.engine().facts(), "why": model.why})
                return draw_here(model.engine(), loading.tokenizer)

            yield draw, shard_rollouts(config, machine["device"], is_served=self.engine == SERVER)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def dtype(self) -> str | None:
        """The precision of the weights that are loaded here; None where others load them."""
        if self.is_on_ray or self.engine == SERVER:
            return None
        return describe_machine()["dtype"]

    def _refuse_other_dtype(self, dtype: str) -> None:
        before = self.facts.get("score", {}).get("settings", {}).get("dtype")
        if before not in (None, dtype):
            raise UsageError(_refusal(self.folder, [f"dtype: {before} -> {dtype}"]))

    def _begin(self, machine: Mapping[str, str], engine: Mapping[str, Any]) -> None:
        """Say in `run.json` what is drawn from, once it is known that it can be."""
        dtype = machine["dtype"] if self.is_on_ray else self.dtype()
        files = self.checkpoint.loading.files
        self._note(
            state="started",
            recipe=self.wanted.name,
            seed=self.seed,
            device=machine["name"],
            engine=dict(engine),
            score={
                "model": self.checkpoint.name,
                "weight_hash": files.weight_hash,
                "revision": files.revision,
                "adapter": self.checkpoint.is_adapter,
                "settings": self.settings(dtype),
                "notes": list(self.checkpoint.notes),
            },
        )

    def _note(self, **facts: Any) -> None:
        self.facts = self.facts | facts
        write_atomically(self.folder.parent / RECIPE, _RECIPE)
        write_atomically(self.folder / TRAINING, json.dumps(self.facts, indent=2) + "\n")

    def _finish(
        self, judged: NDArray[np.int64], correct: NDArray[np.int64], seconds: float
    ) -> None:
        drawn = truncated = 0
        for file in rollout_shards(self.folder):
            reasons = read_parquet(file, ["finish_reason"])["finish_reason"]
            drawn += len(reasons)
            truncated += pc.sum(pc.equal(reasons, "length")).as_py() or 0
        rates = self.run.columns(PASS_RATES, *PASS_RATES.columns)
        REWARDS.write(self.folder, pa.Table.from_pylist([], REWARDS.schema))
        write_outcomes(OUTCOMES.path(self.folder), rates, None, judged, correct)
        counts = {"rollouts": drawn, "judged": int(judged.sum()), "correct": int(correct.sum())}
        self._note(
            state="done",
            seconds={"evaluation": round(seconds, 1)},
            counts=counts | {"truncated": truncated},
            sampling={
                "final_rollouts": self.wanted.rollouts,
                "temperature": self.config.temperature,
                "max_tokens": self.config.max_tokens,
            },
        )

    def summary(self) -> dict[str, Any]:
        """What came out."""
        table = OUTCOMES.read(self.folder)
        before, after = (
            table[name].to_numpy().astype(np.float64)
            for name in ("initial_pass_rate", "final_pass_rate")
        )
        is_hard = before < self.run.config.tau
        return {
            "seed": self.seed,
            "model": self.checkpoint.name,
            "folder": str(self.folder),
            **self.facts["counts"],
            "pass_rate_before": _mean(before),
            "pass_rate_after": _mean(after),
            "hard_items": int(is_hard.sum()),
            "hard_items_reached": int((is_hard & (after >= self.run.config.tau)).sum()),
        }

    def notes(self) -> list[str]:
        """What a reader has to know of this checkpoint."""
        notes, counts = list(self.checkpoint.notes), self.facts["counts"]
        if counts["truncated"] > _MANY_CUT * counts["rollouts"]:
            notes.append(
                f"seed {self.seed}: {counts['truncated'] / counts['rollouts']:.0%} of the "
                f"completions were cut at --max-tokens {self.config.max_tokens:,} and count as "
                "wrong"
            )
        return notes


def _check(jobs: Sequence[_Job]) -> None:
    """Refuse what is asked for before anything is spent."""
    hashes = {job.checkpoint.weight_hash: job for job in jobs}
    for job in jobs:
        other = hashes[job.checkpoint.weight_hash]
        if other is not job:
            _refuse_same(job.checkpoint.name, other.checkpoint.name)
    by_folder = {job.folder: job for job in jobs}
    for file in sorted(jobs[0].folder.parent.glob(f"*/{TRAINING}")):
        facts = read_json(file)
        if "score" not in facts:
            raise UsageError(
                f"{file.parent} is no outcome of `curate score`: give these another name with "
                "--name"
            )
        was = facts["score"]
        mine = by_folder.get(file.parent)
        changed = _changed(was["settings"], (mine or jobs[0]).settings((mine or jobs[0]).dtype()))
        if mine and was["weight_hash"] != mine.checkpoint.weight_hash:
            names = was["model"], mine.checkpoint.name
            is_moved = names[0] != names[1]
            changed.insert(0, f"model: {names[0]} -> {names[1]}" if is_moved else "its weights")
        if changed:
            raise UsageError(_refusal(file.parent, changed))
        if not mine and was["weight_hash"] in hashes:
            _refuse_same(hashes[was["weight_hash"]].checkpoint.name, f"that of {file.parent}")
    for job in jobs:
        if not job.is_done:
            job.check()


def _refuse_same(one: str, other: str) -> None:
    raise UsageError(
        f"--model {one} has the weights of {other}: seeds are trainings of their own; for more "
        "certainty about one give it more --rollouts"
    )


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return [
        f"{name}: {old[name]} -> {value}"
        for name, value in new.items()
        if old.get(name) is not None and value is not None and old[name] != value
    ]


def _refusal(folder: Path, changed: Sequence[str]) -> str:
    return (
        f"{folder} was scored otherwise; changed: {', '.join(changed)}. Give these outcomes "
        "another --name, or remove the folder"
    )


def _notes(run: Run, job: _Job) -> list[str]:
    """What a reader has to know of all of them."""
    notes = []
    if "rollouts" in run.manifest:
        notes.append(
            "the probe's rollouts were taken from files: before and after compare only if these "
            f"were drawn as the final ones, at temperature {job.config.temperature:g} and at most "
            f"{job.config.max_tokens:,} tokens"
        )
    else:
        for name, word in (("temperature", "temperature"), ("max_tokens", "a limit of tokens of")):
            probe, final = getattr(run.config, name), getattr(job.config, name)
            if probe != final:
                notes.append(
                    f"final rollouts have {word} {final:g}, the probe's {probe:g}: that alone "
                    "moves pass rates"
                )
    return [*notes, UNKNOWN]


def _vllm_options(words: Sequence[str]) -> dict[str, Any]:
    """Engine arguments of vLLM, of NAME=VALUE each.

    Raises:
        UsageError: one has no value.
    """
    options = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name or not equals:
            raise UsageError(f"--vllm is {word!r}; it must be NAME=VALUE")
        try:
            options[name] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            options[name] = value  # A text without quotes.
    return options


def _mean(values: NDArray[np.float64]) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None
