"""`curate tag`: every stage in its order, each reading files of the run folder and writing its own.

items -> rounds of (sample -> verify -> gradients -> gold -> lift -> plan)
      -> pass_rates -> gradients -> similarity -> lift -> gold -> tags -> write
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curate.config import TagConfig
from curate.datasets.layouts import choices_line, choose_layout
from curate.datasets.source import Source, open_source
from curate.errors import UsageError
from curate.profiling import make_profile, profile_text
from curate.progress import Progress, say
from curate.run.features import joined
from curate.run.folder import RunFolder, open_run, read_manifest, read_run_config
from curate.run.names import MANIFEST, REJECTS, TARGET
from curate.run.quality import run_schema
from curate.run.rollouts import Outcomes, drawn_rollouts, outcomes_of, rollout_shards
from curate.run.tables import ITEMS, PASS_RATES, SIMILARITY
from curate.tagged.write import check_columns, check_out
from probes.engines.base import Engine
from probes.engines.choose import SERVER, LoadedModel, ModelFacts
from probes.found_work import found_work
from probes.gradients.lora import Adapter, Coverage
from probes.lift.gradients import LiftInputs
from probes.machines.busy import THREADS, busy_remedy, found_busy
from probes.machines.shard import Part, parse_part
from probes.models.chat import read_chat_template, run_tokenizer
from probes.models.load import ModelFiles, describe_machine, resolve_model
from probes.predictor.predictor import Predictor, apply_predictor, is_judged_anew, read_predictor
from probes.rounds import Rounds
from probes.stages.forecast import (
    is_decided,
    run_constants,
    run_forecast,
    run_probability,
)
from probes.stages.gold import score_golds
from probes.stages.gradients import differentiate, differentiate_here, gathered, join
from probes.stages.items import Item, read_items, reject_items
from probes.stages.lift import (
    GRADIENTS,
    lift_inputs,
    measured_lift,
    write_lift,
    write_teaching,
)
from probes.stages.pass_rates import count_rollouts
from probes.stages.render import PromptForm, render_items
from probes.stages.sample import draw_here, sample_items
from probes.stages.similarity import measure_items, measure_to_target, similarity_table
from probes.stages.tags import tag_items
from probes.stages.verify import verify_rollouts
from probes.stages.write import write_rows
from probes.statistics.plan import Plan, label_risk, next_round
from probes.verifiers.by_row import RowVerifiers, hints
from probes.verifiers.pool import VerifierPool

if TYPE_CHECKING:
    from probes.machines.ray import RayExecutor

# A shard is what a kill can lose. On a CPU that is about two minutes of sampling.
_SHARD_TOKENS = {"cpu": 128 * 1024, "cuda": 4 * 1024 * 1024}
# Above this share of cut completions the pass rates say more of --max-tokens than of the policy.
_TRUNCATED_WARNING = 0.2
# Share of the weights in a model's blocks without gradients from which on it is said.
_UNCOVERED = 0.01
# Rows an item from which on it is said that rows repeat.
_REPEATED = 2
# Prompts, from the first on, that are tried as answers: long ones in LaTeX take 40 ms each.
_PROMPTS_CHECKED = 200


def tag_dataset(config: TagConfig, started: float | None = None) -> tuple[TagConfig, Path]:
    """Probe every item of a dataset and write the tagged dataset.

    Args:
        config: `dataset` and `model` are required; `out` and `run_dir` have defaults.
        started: since when, by `time.monotonic`, the profile counts; from now on if None.

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
        config, source, model = resolve(config, ray)
        with open_tagging(config, source, model, ray=ray) as tagging:
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
        finished = _is_sampled(whole)
        if not finished:
            with open_tagging(config, source, model, folder, ray) as tagging:
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


def _is_sampled(run: Path) -> bool:
    """Whether a run, which need not exist yet, has all its rollouts."""
    if not (run / MANIFEST).exists():
        return False
    return bool(read_manifest(run)["stages"].get("plan", {}).get("state") == "done")


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
    config: TagConfig, ray: RayExecutor | None = None
) -> tuple[TagConfig, Source, PolicyFiles]:
    """Find the dataset and the policy's files; fill in the default output file and run folder."""
    for name in ("dataset", "model"):
        if not getattr(config, name):
            raise UsageError(f"no {name} given: curate tag DATASET --model MODEL needs both")
    _plan(config)
    source = open_source(config.dataset, split=config.split, subset=config.subset or None)
    files = resolve_model(config.model)
    suffix = {"jsonl": ".jsonl", "json": ".json", "csv": ".csv"}.get(source.format, ".parquet")
    config = config.replace(
        out=config.out or f"{source.name}.tagged{suffix}",
        run_dir=config.run_dir or f"runs/{source.name}-{files.name}",
        chat_template=read_chat_template(config.chat_template),
    )
    machine = ray.machine() if ray else describe_machine()
    if ray:
        ray.use_model(files.weight_hash, machine["dtype"])
    return config, source, PolicyFiles(files, machine)


@contextmanager
def open_tagging(
    config: TagConfig,
    source: Source,
    policy: PolicyFiles,
    folder: Path | None = None,
    ray: RayExecutor | None = None,
) -> Iterator[_Tagging]:
    """Open a run, new or to be continued, in `folder` or else in its run folder."""
    plan = _plan(config)
    target = open_source(config.target, split=config.split) if config.target else None
    predictor = read_predictor(config.predictor) if config.predictor else None
    schema = run_schema(Path(config.run_dir), config)
    check_out(source, Path(config.out))
    check_columns(source.columns, schema, config.replace_columns)
    files, machine = policy.files, policy.machine
    identity: dict[str, dict[str, Any]] = {
        "dataset": {"fingerprint": source.fingerprint},
        "target": {"fingerprint": target.fingerprint if target else None},
        "predictor": {"sha256": predictor.sha256 if predictor else None},
        "model": {"weight_hash": files.weight_hash, "dtype": machine["dtype"]},
    }
    with (
        open_run(folder or Path(config.run_dir), config, identity) as run,
        closing(LoadedModel(config, files)) as model,
    ):
        yield _Tagging(
            config, plan, source, model, machine, run, schema, target, predictor, ray=ray
        )


def _plan(config: TagConfig) -> Plan:
    try:
        return Plan(
            min_rollouts=config.min_rollouts,
            max_rollouts=config.max_rollouts,
            tau=config.tau,
            rollout_budget=config.rollout_budget or None,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


@dataclass
class _Tagging:
    """One run in progress: its settings, its folder, and what is loaded when first needed."""

    config: TagConfig
    plan: Plan
    source: Source
    model: LoadedModel
    machine: Mapping[str, str]
    """What the model runs on: here, or on the workers of `ray`."""
    run: RunFolder
    schema: pa.Schema
    target: Source | None = None
    predictor: Predictor | None = None
    part: Part | None = None
    """Where one of several machines does its part of the run: which part."""
    ray: RayExecutor | None = None
    """Who draws and differentiates in place of this process."""
    this_time: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What this process did in each stage, over all rounds."""
    tells_what_is_found: bool = False
    """Whether it says what earlier commands left: `curate tag` does, `curate merge` does not."""

    def begin(self) -> None:
        """Say what earlier commands left, and what can make this one slow: others on the CPU."""
        self.tells_what_is_found = True
        self._say_what_is_found()
        if self.ray or self.machine["device"] != "cpu" or os.environ.get(THREADS):
            return
        busy = "" if self.run.is_done("tags") else found_busy()
        if busy:
            say(f"warning: {busy}, which can make this several times slower; {busy_remedy()}")

    def _say_what_is_found(self) -> None:
        if not self.tells_what_is_found:
            return
        found = found_work(
            self.run,
            self.config.min_rollouts,
            has_target=self.target is not None,
            is_part=bool(self.config.shard),
        )
        if found:
            say(found)

    def all_stages(self) -> None:
        """Run every stage that is not done yet."""
        self._probe_items()
        self._stage("similarity", self._similarity)
        self._stage("lift", self._lift)
        self._stage("gold", self._gold)
        # `curate judge` comes after the tags; a predictor that goes by its scores then tags anew.
        self._stage("tags", self._tags, again=is_judged_anew(self.predictor, self.run))
        # The tagged file is written every time: it may have been moved, or --out changed.
        with self.run.stage("write") as entry:
            self._record("write", entry, self._write())

    def lift_anew(self) -> None:
        """Measure the lift from the gradients again, in the place of another source's."""
        self._stage("lift", self._lift, again=True)

    def tag_anew(self, horizon: float | None) -> None:
        """Make the tags and the tagged file again."""
        if horizon is not None:
            self.run.update(horizon=horizon)
        self._stage("tags", self._tags, again=True)
        with self.run.stage("write") as entry:
            self._record("write", entry, self._write())

    def one_part(self, part: Part, whole: Path) -> None:
        """Do a part of the open round of the run in the folder `whole`; say so in the manifest."""
        self.part = part
        self._read_inputs()
        files = self.run.manifest.get("shard", {}).get("files", [])
        number = self._rounds().do_part(part.own(len(self._row_of)), whole)
        self._stage("gold", self._gold)
        # By round: how many files of rollouts there are after it. `curate merge` goes by this.
        files = [*files[:number], len(rollout_shards(self.run))]
        self.run.update(shard={"number": part.number, "of": part.of, "files": files})

    def end_joined_round(self) -> bool:
        """Go on after `curate merge` has joined a round; tell whether the run is finished."""
        if self.target:
            self._stage("target", self._probe_target)
        if not self.run.is_done("plan") and not self._rounds().end_round():
            return False
        self.all_stages()
        return True

    def _read_inputs(self) -> None:
        self._record_inputs()
        self._stage("items", self._read_and_render)
        if self.target:
            # First, because what is wrong with it must show before much is spent.
            self._stage("target", self._probe_target)

    def _probe_items(self) -> None:
        self._read_inputs()
        if not self.run.is_done("plan"):
            self._rounds().go_on()
        self._stage("pass_rates", self._pass_rates)
        self._stage("gradients", self._gradients)

    def profile(self, started: float) -> None:
        """Write and print where the time since `started` went."""
        work = {}
        for stage, counts in self.this_time.items():
            for unit in ("rollouts", "rows", "items"):
                if f"{unit}_this_time" in counts:
                    work[stage] = (counts[f"{unit}_this_time"], unit)
        profile = make_profile(self.run.seconds, work, time.monotonic() - started)
        self.run.update(profile=profile)
        say(profile_text(profile))

    def _stage(self, name: str, work: Callable[[], dict[str, Any]], *, again: bool = False) -> None:
        if again or not self.run.is_done(name):
            with self.run.stage(name) as entry:
                self._record(name, entry, work())

    def _record(self, stage: str, entry: dict[str, Any], counts: dict[str, Any]) -> None:
        """Put counts into a stage's entry; what this command did adds up over its rounds."""
        entry.update(counts)
        this_time = self.this_time.setdefault(stage, {})
        for name, value in counts.items():
            if name.endswith("_this_time"):
                entry[name] = this_time[name] = this_time.get(name, 0) + value

    def _record_inputs(self) -> None:
        manifest = self.run.manifest
        dataset = {"id": self.config.dataset, "name": self.source.name}
        files = self.model.files
        model = {"id": self.config.model, "name": files.name, "revision": files.revision}
        self.run.update(
            dataset={**manifest["dataset"], **dataset, "format": self.source.format},
            model={**manifest["model"], **model},
            seeds={"sampling": self.config.seed, "adapter": self._adapter.seed},
            device=self.machine["name"],
        )

    @cached_property
    def _adapter(self) -> Adapter:
        return Adapter.from_config(self.config)

    @cached_property
    def _tokenizer(self) -> Any:
        return run_tokenizer(self.model.files, self.config)

    @cached_property
    def _items(self) -> pa.Table:
        # One chunk a column: its entries are looked up by position.
        names = ["item_id", "prompt_token_ids", "answer"]
        if self.config.verifier_field:
            names.append("verifier")
        return ITEMS.read(self.run, *names).combine_chunks()

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {item_id: row for row, item_id in enumerate(self._items["item_id"].to_pylist())}

    def _engine(self) -> Engine:
        engine = self.model.engine()
        self.run.update(engine={**engine.facts(), "why": self.model.why})
        return engine

    def _pool(self) -> VerifierPool:
        return VerifierPool(
            self.config.verifier,
            others=RowVerifiers(self.config).names,
            workers=self.config.verifier_workers or None,
            seconds=self.config.verifier_seconds,
        )

    def _read_and_render(self) -> dict[str, Any]:
        layout = choose_layout(self.source, self.config.prompt_field, self.config.answer_field)
        answer_field = layout.answer_field or "the last assistant turn"
        say(f"layout {layout.name}: prompt in {layout.prompt_field}, answer in {answer_field}")
        if layout.choices:
            say(f"warning: {choices_line(layout, self.config.verifier)}")
        self.run.update(
            dataset={
                **self.run.manifest["dataset"],
                "layout": layout.name,
                "prompt_field": layout.prompt_field,
                "answer_field": answer_field,
            }
        )
        verifiers = RowVerifiers(self.config)
        for line in [] if verifiers.is_mixed else hints(self.source):
            say(f"warning: {line}")
        with self._pool() as pool:

            def check_golds(golds: Sequence[str], names: Sequence[str]) -> list[str | None]:
                with Progress("checking", len(golds), "gold answers") as progress:
                    return pool.check_golds(golds, progress.reach, names)

            items, counts = read_items(
                self.source,
                layout,
                self.config.limit,
                self.run,
                verifiers=verifiers,
                check_columns=self._check_columns,
                check_golds=check_golds,
                into_csv=Path(self.config.out).suffix.lower() == ".csv"
                and self.source.format != "csv",
            )
            self._warn_of_echoes(items, pool)
        facts = self._check_model()
        refused = render_items(
            self.run,
            items,
            self._tokenizer,
            PromptForm.from_config(self.config),
            is_mixed=verifiers.is_mixed,
            max_tokens=self.config.max_tokens,
            context_length=facts.context_length,
            embeddings=facts.embeddings,
        )
        if len(refused) == len(items):
            raise UsageError(
                f"{self.source.name}: none of its items can be used; "
                f"first: {next(iter(refused.values()))}"
            )
        if refused:
            rows = reject_items(self.run, self.source, refused)
            counts["rows_probed"] -= rows
            counts["rows_rejected"] += rows
            counts["items"] -= len(refused)
        self._check_budget(counts["items"])
        self.run.update(counts=counts)
        if counts["rows_probed"] >= _REPEATED * counts["items"]:
            say(
                f"{counts['rows_probed']:,} rows are {counts['items']:,} items: what repeats "
                "prompt and answer is probed once"
            )
        if counts["rows_rejected"]:
            say(
                f"rejected {counts['rows_rejected']:,} of {counts['rows']:,} rows; "
                f"each with its reason in {self.run / REJECTS}"
            )
        return {"rows_this_time": counts["rows"]}

    def _check_model(self) -> ModelFacts:
        """Show a wrong option, or a model that cannot be probed, now and not once all is sampled.

        What of the model has no gradients is said, and kept in the manifest.
        """
        if self.ray and self.model.choice != SERVER:
            facts = self.ray.check_model()
        else:
            self._engine()
            facts = self.model.check(self._adapter)
        if self._adapter.targets == ("auto",) and 1 - facts.covered > _UNCOVERED:
            covered = Coverage(facts.covered, tuple(facts.left_out))
            say(f"warning: {covered}")
            self.run.update(
                differentiated={"share": round(covered.share, 4), "without": list(covered.left_out)}
            )
        return facts

    def _warn_of_echoes(self, items: Sequence[Item], pool: VerifierPool) -> None:
        """Say so where repeating the prompt is rewarded: GRPO finds that sooner than the answer."""
        checked = items[:_PROMPTS_CHECKED]
        pairs = [
            (item.question.messages[-1][1], item.question.answer, item.verifier) for item in checked
        ]
        with Progress("checking", len(pairs), "prompts as answers") as progress:
            verdicts = pool.judge(pairs, progress.reach)
        echoes = [item for item, found in zip(checked, verdicts, strict=True) if found.reward == 1]
        self.run.update(echoes={"prompts_checked": len(checked), "accepted": len(echoes)})
        if echoes:
            say(
                f"warning: the verifier accepts the prompt itself as an answer for {len(echoes):,} "
                f"of {len(checked):,} items, first in row {echoes[0].row}: a policy can learn to "
                "repeat the prompt; look at correct rollouts, or use another --verifier"
            )

    def _check_budget(self, items: int) -> None:
        """Refuse a budget that does not reach --min-rollouts for every item."""
        nothing = np.zeros(items, dtype=np.int64)
        try:
            next_round(self.plan, nothing, nothing)
        except ValueError as error:
            config = self.config
            raise UsageError(
                f"--rollout-budget is {config.rollout_budget}, but {items:,} items with "
                f"--min-rollouts {config.min_rollouts} need at least {items * config.min_rollouts}"
            ) from error

    def _check_columns(self, names: Iterable[str]) -> None:
        check_columns(names, self.schema, self.config.replace_columns)

    # --- Rounds ------------------------------------------------------------------------------

    def _rounds(self) -> Rounds:
        return Rounds(
            run=self.run,
            config=self.config,
            plan=self.plan,
            item_ids=self._items["item_id"],
            row_of=self._row_of,
            sample=self._sample,
            verify=self._verify,
            differentiate=self._differentiate,
            decided=self._decided,
            record=self._record,
        )

    def _sample(self, target: NDArray[np.int64]) -> dict[str, Any]:
        drawn = drawn_rollouts(self.run, self._row_of)
        if np.all(drawn >= target):
            return {"rollouts": int(drawn.sum())}
        shard_tokens = _SHARD_TOKENS[self.machine["device"]]
        if self.model.choice == SERVER:
            # The GPUs are elsewhere.
            shard_tokens = _SHARD_TOKENS["cuda"] * len(self.config.base_url)
        shard_size = max(self.config.min_rollouts, shard_tokens // self.config.max_tokens)
        if self.ray and self.model.choice != SERVER:
            draw = self.ray.draw(lambda facts: self.run.update(engine=facts))
        else:
            draw = draw_here(self._engine(), self._tokenizer)
        return sample_items(self.run, self._items, drawn, target, draw, shard_size)

    def _verify(self) -> dict[str, Any]:
        items = self._items
        verifiers = items["verifier"] if self.config.verifier_field else None
        return verify_rollouts(self.run, self._pool(), items["answer"], self._row_of, verifiers)

    # --- After the last round ----------------------------------------------------------------

    def _pass_rates(self) -> dict[str, Any]:
        found, totals = count_rollouts(self.run, self._row_of, self.config.k, self.plan)
        drawn, truncated = totals["rollouts_drawn"], totals["rollouts_truncated"]
        if truncated > _TRUNCATED_WARNING * drawn:
            say(
                f"warning: {truncated / drawn:.0%} of the completions were cut at --max-tokens "
                f"{self.config.max_tokens} and count as wrong; a run of its own (--run-dir) with "
                "more, or with an --instruction that asks for shorter answers, may tell more"
            )
        counts = {
            "rounds": self.run.manifest["stages"]["plan"]["rounds"],
            **totals,
            "expected_label_changes": round(self._expected_label_changes(found), 3),
        }
        self.run.update(counts={**self.run.manifest["counts"], **counts})
        return {"items_this_time": len(found.drawn)}

    def _expected_label_changes(self, found: Outcomes) -> float:
        """Labels that the rollouts saved by stopping early are expected to have cost."""
        plan, early = self.plan, found.drawn < self.plan.max_rollouts
        if not early.any():
            return 0.0
        risk = label_risk(plan, found.judged, found.correct)
        changes = max(float(np.nansum(risk[early])), 0.0)  # Never -0.0.
        say(
            f"sampling stopped early: about {changes:.1f} of {len(risk):,} labels would be "
            f"different after {plan.max_rollouts:,} rollouts an item"
        )
        return changes

    def _differentiate(self) -> dict[str, Any]:
        here = differentiate_here(lambda: self.model.probe(self._adapter))
        work = self.ray.differentiate if self.ray else here
        most, most_wrong = self.config.gradient_rollouts, self.config.gradient_wrong_rollouts
        return differentiate(self.run, self._items, self._row_of, work, most, most_wrong)

    def _gradients(self) -> dict[str, Any]:
        return self._differentiate() | join(self.run, self._row_of, self.config.gradient_dim)

    def _similarity(self) -> dict[str, Any]:
        outcomes = outcomes_of(PASS_RATES.read(self.run))
        features = joined(self.run.path, self._row_of)
        found = measure_items(features, outcomes, self._row_of, self.plan)
        table = similarity_table(self._items["item_id"], found)
        if self.target:
            for name, values in measure_to_target(self.run, self._row_of, self.plan).items():
                table = table.append_column(name, values)
        SIMILARITY.write(self.run, table)
        return {"items_this_time": table.num_rows}

    def _gold(self) -> dict[str, Any]:
        """Score the golds after what the first rollouts of every item wrote before their answers.

        On the workers of a Ray cluster this is not done: there the counts alone speak.
        """
        config = self.config
        if self.ray and config.gold_prefixes:
            say("the gold is not scored on Ray workers: the forecast goes by the counts alone")
        if self.ray or not config.gold_prefixes:
            return {"items_with_gold": 0}
        return score_golds(
            self.run,
            self._items,
            self._row_of,
            self._tokenizer,
            self.model.policy(),
            self._pool(),
            most_prefixes=min(config.gold_prefixes, config.min_rollouts),
            temperature=config.temperature,
        )

    def _decided(self, found: Outcomes) -> NDArray[np.bool_]:
        self._stage("gold", self._gold)
        with gathered(self.run, self._row_of, self.config.gradient_dim) as features:
            lift, _, _ = measured_lift(features, found, self.config)
        constants = run_constants(GRADIENTS, self._fitted)
        forecast = run_forecast(
            found,
            lift,
            GRADIENTS,
            constants,
            run_probability(self.run, found),
            tau=self.config.tau,
            horizon=self.config.horizon,
        )
        return is_decided(forecast, constants)

    @property
    def _fitted(self) -> Mapping[str, Any] | None:
        """Constants of the forecast that `curate calibrate` fitted."""
        return self.predictor.forecast if self.predictor else None

    def _lift(self) -> dict[str, Any]:
        found = outcomes_of(PASS_RATES.read(self.run))
        features = joined(self.run.path, self._row_of)
        learners = self._target_learners() if self.target else None
        lift, raw, facts = measured_lift(features, found, self.config, learners, with_pairs=True)
        write_teaching(self.run.path, self._items["item_id"], raw, facts["unit"])
        write_lift(self.run.path, lift, GRADIENTS, facts)
        return {"items_this_time": len(lift.lift)}

    def _target_learners(self) -> LiftInputs:
        """Rollouts of the target's items, whom teaching is for."""
        folder = self.run / TARGET
        ids = ITEMS.read(folder, "item_id")["item_id"].to_pylist()
        row_of = {item_id: row for row, item_id in enumerate(ids)}
        found = outcomes_of(PASS_RATES.read(folder))
        return lift_inputs(joined(folder, row_of), found)

    def _probe_target(self) -> dict[str, Any]:
        """Probe the target as a run of its own, in the folder `target` of this one."""
        assert self.target is not None
        config, columns = self.config, self.target.columns
        own = config.replace(
            dataset=config.target,
            target="",
            out="",
            run_dir=str(self.run / TARGET),
            limit=0,
            prompt_field=config.prompt_field if config.prompt_field in columns else "",
            answer_field=config.answer_field if config.answer_field in columns else "",
            gold_prefixes=0,
            # Nobody asks whether a target item is easy, so there is no reason to go on or to stop.
            max_rollouts=config.min_rollouts,
            rollout_budget=0,
        )
        identity = {
            "dataset": {"fingerprint": self.target.fingerprint},
            "model": {n: self.run.manifest["model"][n] for n in ("weight_hash", "dtype")},
        }
        say(f"target: {config.target}")
        with open_run(self.run / TARGET, own, identity) as run:
            probing = replace(
                self,
                config=own,
                plan=_plan(own),
                source=self.target,
                run=run,
                target=None,
                predictor=None,
                this_time={},
            )
            probing._say_what_is_found()
            if self.part:
                probing.one_part(self.part, self.run / TARGET)
            else:
                probing._probe_items()
            counts = run.manifest["counts"]
            rollouts = run.manifest["stages"]["sample"]["rollouts"]
        return {"items": counts["items"], "rollouts_this_time": rollouts}

    def _tags(self) -> dict[str, Any]:
        learned = apply_predictor(self.predictor, self.run, self.config)
        return tag_items(self.run, self.config, learned, self._fitted)

    def _write(self) -> dict[str, Any]:
        return write_rows(self.run, self.config, self.source, self.schema, self._row_of)
