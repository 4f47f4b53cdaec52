"""One run of `curate tag`: its stages in their order, each done once, and its target before it.

What each stage does stands in `probes/stages`; here stands what it is given, and what comes next.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from curate.config import TagConfig
from curate.datasets.source import Source
from curate.errors import UsageError
from curate.profiling import make_profile, profile_text
from curate.progress import say
from curate.rollout_files.own_prompts import is_own, keep_token_ids
from curate.rollout_files.read import open_rollouts, read_columns
from curate.run.features import joined
from curate.run.folder import RunFolder, open_run
from curate.run.names import REJECTS, TARGET
from curate.run.rollouts import Outcomes, as_numbers, drawn_rollouts, outcomes_of, rollout_shards
from curate.run.tables import ITEMS, PASS_RATES, ROUNDS, SIMILARITY, read_parquet
from curate.tagged.write import check_columns
from probes.busy import THREADS, busy_remedy, found_busy
from probes.engines.base import Engine
from probes.engines.choose import SERVER, LoadedModel, ModelFacts
from probes.estimate import Work
from probes.found_work import found_work
from probes.gradients.tap import Adapter
from probes.gradients.targets import Coverage
from probes.lift.gradients import LiftInputs
from probes.machines.shard import Part
from probes.models.chat import run_tokenizer
from probes.opening import COLUMNS as OPENING
from probes.opening import Opening
from probes.predictor.predictor import Predictor, apply_predictor, is_judged_anew
from probes.reading import read_and_render
from probes.rounds import Rounds
from probes.stages.answers import count_answers
from probes.stages.cut import CutRollouts, warn_of_cut
from probes.stages.forecast import (
    is_decided,
    run_constants,
    run_forecast,
    run_probability,
)
from probes.stages.gold import score_golds
from probes.stages.gradients import differentiate, differentiate_here, gathered, join
from probes.stages.lift import (
    GRADIENTS,
    lift_inputs,
    measured_lift,
    read_rewards,
    write_lift,
    write_teaching,
)
from probes.stages.logged import run_matcher, take_rollouts, taken_words
from probes.stages.pass_rates import count_rollouts, expected_label_changes
from probes.stages.sample import draw_here, sample_items
from probes.stages.similarity import measure_items, measure_to_target, similarity_table
from probes.stages.tags import tag_items
from probes.stages.verify import verify_rollouts
from probes.stages.without_policy import write_unknown
from probes.stages.write import write_rows
from probes.statistics.plan import Plan
from probes.trial import Trial, gold_of, try_out
from probes.verifiers.by_row import run_pool
from probes.verifiers.pool import VerifierPool

if TYPE_CHECKING:
    from probes.machines.ray import RayExecutor

# A shard, and what of the next is begun, is what a kill can lose. On a CPU a shard of a model
# like SmolLM2 is some twenty seconds to a minute of sampling.
_SHARD_TOKENS = {"cpu": 8 * 1024, "cuda": 4 * 1024 * 1024}
# Rollouts of a shard at least, however long they may become: a GPU has a thousand in hand at once.
_SHARD_ROLLOUTS = {"cpu": 1, "cuda": 8192}
# Share of the weights in a model's blocks without gradients from which on it is said.
_UNCOVERED = 0.01


def plan_of(config: TagConfig) -> Plan:
    """What the settings of a run let it spend on rollouts.

    Raises:
        UsageError: they contradict one another.
    """
    try:
        return Plan(
            min_rollouts=config.min_rollouts,
            max_rollouts=config.max_rollouts,
            tau=config.tau,
            rollout_budget=config.rollout_budget or None,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


def with_budget(plan: Plan, config: TagConfig, items: int) -> Plan:
    """The plan of so many items: without a budget of its own, one of `--mean-rollouts` an item.

    That never stops an item before `--min-rollouts`.
    """
    if config.rollout_budget or not config.mean_rollouts:
        return plan
    return replace(plan, rollout_budget=max(config.mean_rollouts, plan.min_rollouts) * items)


def shard_rollouts(config: TagConfig, device: str, *, is_served: bool) -> int:
    """Rollouts of a file, at most.

    Args:
        config: of the sampling.
        device: cpu or cuda, where the rollouts are drawn.
        is_served: whether servers draw them.
    """
    tokens, least = _SHARD_TOKENS[device], _SHARD_ROLLOUTS[device]
    if is_served:
        # The GPUs are elsewhere; how fast they are is not known.
        tokens, least = _SHARD_TOKENS["cuda"] * len(config.base_url), 1
    return max(config.min_rollouts, least, tokens // config.max_tokens)


@dataclass
class Tagging:
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
    opening: Opening | None = None
    """Tells, as sampling begins, what the run will cost."""
    is_dry: bool = False
    """Whether its folder goes at the end, and nobody is sent to files in it."""
    is_of_another_run: bool = False
    """Of a dry one: whether the run folder that it is about belongs to another run."""
    tells_what_is_found: bool = False
    """Whether it says what earlier commands left: `curate tag` does, `curate merge` does not."""

    def begin(self) -> None:
        """Say what earlier commands left, and what can make this one slow: others on the CPU."""
        self.tells_what_is_found = True
        self._say_what_is_found()
        if self.ray or self.machine["device"] != "cpu" or os.environ.get(THREADS):
            return
        if not self.config.has_policy:
            return  # Nothing here takes long.
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
        if self.ray:
            if self.config.has_policy:
                self._stage("gold", self._gold)
            self.ray.release()  # What follows is done here.
        self._stage("answers", self._answers)
        if self.config.has_policy:
            self._stage("similarity", self._similarity)
            self._stage("lift", self._lift)
            self._stage("gold", self._gold)
        else:
            self._stage("lift", lambda: write_unknown(self.run))
        # `curate judge` comes after the tags; a predictor that goes by its scores then tags anew.
        self._stage("tags", self._tags, again=is_judged_anew(self.predictor, self.run))
        # The tagged file is written every time: it may have been moved, or --out changed.
        self._stage("write", self._write, again=True)

    def lift_anew(self) -> None:
        """Measure the lift from the gradients again, in the place of another source's."""
        self._stage("lift", self._lift, again=True)

    def tag_anew(self, horizon: float | None) -> None:
        """Make the tags and the tagged file again."""
        if horizon is not None:
            self.run.update(horizon=horizon)
        self._stage("answers", self._answers)
        self._stage("tags", self._tags, again=True)
        self._stage("write", self._write, again=True)

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

    def read(self) -> list[Tagging]:
        """Read the items and draw nothing; this run, and that of the target's items if any."""
        self._read_items()
        found = [self]
        if self.target:
            with open_run(self.run / TARGET, *self._target_run()) as run:
                found.append(self._for_target(run))
                found[-1]._read_items()
        return found

    def try_out(self) -> Trial:
        """Draw a few rollouts of the items that were read, judge them, and take a few gradients."""
        return try_out(
            self.model.engine(),
            self._items,
            self._tokenizer,
            self._pool(),
            lambda: self.model.probe(self._adapter),
            self.config,
            is_slow=self.machine["device"] == "cpu",
        )

    def prompt_tokens(self) -> NDArray[np.int64]:
        """Tokens of the prompts of the items that were read, shape (items,)."""
        lengths = pc.list_value_length(self._items["prompt_token_ids"])
        return np.asarray(lengths.to_numpy(), np.int64)

    def _read_items(self) -> None:
        self._record_inputs()
        self._stage("items", self._read_and_render)

    def _read_inputs(self) -> None:
        self._read_items()
        if self.target:
            # First, because what is wrong with it must show before much is spent.
            self._stage("target", self._probe_target)

    def _probe_items(self) -> None:
        self._read_inputs()
        if self.config.rollouts:
            if self.run.is_done("plan"):
                self._refuse_other_rollouts()
            self._stage("plan", self._take_rollouts)
            most = self.run.manifest["rollouts"]["most"]
            # As many as there are were drawn: nothing stopped early.
            self.plan = replace(
                self.plan, min_rollouts=most, max_rollouts=most, rollout_budget=None
            )
        elif not self.run.is_done("plan"):
            self._rounds().go_on()
        self._stage("pass_rates", self._pass_rates)
        if self.config.has_policy:
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
        model = {"id": self.config.model, "name": files.name or None, "revision": files.revision}
        self.run.update(
            dataset={**manifest["dataset"], **dataset, "format": self.source.format},
            model={**manifest["model"], **model},
            seeds={"sampling": self.config.seed, "adapter": self._adapter.seed}
            if self.config.has_policy
            else {},
            device=self.machine["name"] if self.config.has_policy else None,
        )

    @cached_property
    def _adapter(self) -> Adapter:
        return Adapter.from_config(self.config)

    @cached_property
    def _tokenizer(self) -> Any:
        if not self.config.has_policy:
            return None
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
        return run_pool(self.config)

    def _read_and_render(self) -> dict[str, Any]:
        read = read_and_render(
            self.run,
            self.config,
            self.plan,
            self.source,
            self._tokenizer,
            self._pool(),
            check_columns=self._check_columns,
            check_model=self._check_model,
        )
        if self._tokenizer and is_own(self.run.path, self.source):
            keep_token_ids(self.run, self.source, len(self._tokenizer))
        counts = self.run.manifest["counts"]
        if counts["rows_rejected"] and not self.is_dry:
            say(
                f"rejected {counts['rows_rejected']:,} of {counts['rows']:,} rows; "
                f"each with its reason in {self.run / REJECTS}"
            )
        return read

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

    def _check_columns(self, names: Iterable[str]) -> None:
        check_columns(names, self.schema, self.config.replace_columns)

    # --- Rounds ------------------------------------------------------------------------------

    def _rounds(self) -> Rounds:
        return Rounds(
            run=self.run,
            config=self.config,
            plan=with_budget(self.plan, self.config, self._items.num_rows),
            item_ids=self._items["item_id"],
            row_of=self._row_of,
            sample=self._sample,
            verify=self._verify,
            differentiate=self._differentiate,
            decided=self._decided,
            record=self._record,
        )

    def _take_rollouts(self) -> dict[str, Any]:
        """Take the rollouts of files in the place of sampling, and judge what is to be judged."""
        config = self.config
        files = open_rollouts(config.rollouts, read_columns(config.column))
        matcher = run_matcher(self.run, config, self.source, files, self._tokenizer, self._row_of)
        found = take_rollouts(
            self.run,
            matcher,
            files,
            self._tokenizer,
            judged=config.rollout_rewards == "judged",
            correct_from=config.correct_from,
        )
        self.run.update(rollouts=found)
        say(taken_words(found))
        return {"rounds": 1} | self._verify()

    def _refuse_other_rollouts(self) -> None:
        """Refuse files that are no longer what was taken of them, such as a log that has grown."""
        # Runs of earlier versions do not know.
        known = self.run.manifest["rollouts"].get("sha256")
        try:
            files = open_rollouts(self.config.rollouts, read_columns(self.config.column))
        except UsageError:
            return  # They are gone: the run has all of them.
        if known not in (None, files.fingerprint()):
            raise UsageError(
                f"run folder {self.run.path} has the rollouts of {files.where} as it was then, and "
                "it has changed since: give this run its own --run-dir, or remove the folder"
            )

    def _sample(self, target: NDArray[np.int64]) -> dict[str, Any]:
        is_served = self.model.choice == SERVER
        is_first = len(ROUNDS.files(self.run)) == 1
        most = self.plan.max_rollouts * int((target > 0).sum())
        cut = CutRollouts(self.config.max_tokens, most, stops=self.config.stop_when_cut)
        drawn = drawn_rollouts(self.run, self._row_of)
        is_drawn = bool(np.all(drawn >= target))
        if is_first and (self.config.stop_when_cut or not is_drawn):
            cut.read(rollout_shards(self.run))
            if is_drawn:
                cut.end()
        if is_drawn:
            return {"rollouts": int(drawn.sum())}
        if is_first and not self.opening:
            self.opening = self._opening(drawn, target)
        opening = self.opening if self.opening and not self.opening.is_told else None
        longest = int(self.prompt_tokens().max())
        engine: Engine | None = None  # Ray's workers have their own.
        if self.ray and self.model.choice != SERVER:
            draw = self.ray.draw(lambda facts: self.run.update(engine=facts), longest)
        else:
            self.model.longest_prompt = longest
            engine = self._engine()
            draw = draw_here(opening.watch_engine(engine) if opening else engine, self._tokenizer)
        if opening:
            draw = opening.watch(draw)
        found = sample_items(
            self.run,
            self._items,
            drawn,
            target,
            draw,
            shard_rollouts(self.config, self.machine["device"], is_served=is_served),
            cut.saw if is_first else lambda table: None,
            engine,
            self.config.max_tokens,
        )
        if is_first:
            cut.end()
        return found

    def _opening(self, drawn: NDArray[np.int64], target: NDArray[np.int64]) -> Opening:
        """What tells, from the rollouts that are missing of round one, what the run will cost."""
        own = target > 0
        items = int(own.sum())
        plan = with_budget(self.plan, self.config, items)
        work = Work.of(self.config, plan, items, float(self.prompt_tokens()[own].mean()))
        return Opening(
            work,
            int(np.maximum(target - drawn, 0).sum()),
            lambda item_id: gold_of(self._items, self._row_of[item_id]),
            self._tokenizer,
            self._pool,
        )

    def _verify(self) -> dict[str, Any]:
        items = self._items
        verifiers = items["verifier"] if self.config.verifier_field else None
        found = verify_rollouts(self.run, self._pool(), items["answer"], self._row_of, verifiers)
        drawing = self.this_time.get("sample", {})
        if self.opening and not self.opening.is_told and drawing.get("tokens_this_time"):
            # Round one was over before there was anything to tell.
            tables = [read_parquet(file, OPENING) for file in rollout_shards(self.run)]
            self.opening.tell(
                pa.concat_tables(tables), drawing["tokens_this_time"], drawing["seconds_this_time"]
            )
        return found

    # --- After the last round ----------------------------------------------------------------

    def _pass_rates(self) -> dict[str, Any]:
        as_numbers(self.run)
        found, totals = count_rollouts(
            self.run,
            self._row_of,
            self.config.k,
            self.plan,
            with_rewards=self.config.has_own_rewards,
            is_planned=not self.config.rollouts,
        )
        warn_of_cut(self.config, totals["rollouts_drawn"], totals["rollouts_truncated"])
        counts = {
            "rounds": self.run.manifest["stages"]["plan"]["rounds"],
            **totals,
            "expected_label_changes": 0.0
            if self.config.rollouts
            else round(expected_label_changes(found, self.plan), 3),
        }
        self.run.update(counts={**self.run.manifest["counts"], **counts})
        return {"items_this_time": len(found.drawn)}

    def _answers(self) -> dict[str, Any]:
        ids = self._items["item_id"]
        verifiers = self._items["verifier"] if self.config.verifier_field else None
        found = count_answers(self.run, ids, self._row_of, self._pool(), verifiers)
        self.run.update(answers=found)
        return {"items_this_time": len(ids)}

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
        """Score the golds after what an item's first rollouts wrote before their answers."""
        config = self.config
        if config.rollouts and config.gold_prefixes:
            say("the gold is not scored after rollouts of files: the forecast goes by the counts")
        if config.rollouts or not config.gold_prefixes:
            return {"items_with_gold": 0}
        return score_golds(
            self.run,
            self._items,
            self._row_of,
            self._tokenizer,
            self.model.outline() if self.ray else self.model.policy(),
            self._pool(),
            most_prefixes=min(config.gold_prefixes, config.min_rollouts),
            temperature=config.temperature,
            score=self.ray.score if self.ray else None,
        )

    def _decided(self, found: Outcomes) -> NDArray[np.bool_]:
        self._stage("gold", self._gold)
        with gathered(self.run, self._row_of, self.config.gradient_dim) as features:
            rewards = read_rewards(self.run, self._row_of)
            lift, _, _ = measured_lift(features, found, self.config, rewards=rewards)
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
        lift, raw, facts = measured_lift(
            features,
            found,
            self.config,
            learners,
            rewards=read_rewards(self.run, self._row_of),
            with_pairs=True,
        )
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
        config, identity = self._target_run()
        say(f"target: {config.dataset}")
        with open_run(self.run / TARGET, config, identity) as run:
            probing = self._for_target(run)
            probing._say_what_is_found()
            if self.part:
                probing.one_part(self.part, self.run / TARGET)
            else:
                probing._probe_items()
            counts = run.manifest["counts"]
            rollouts = run.manifest["stages"]["sample"]["rollouts"]
        return {"items": counts["items"], "rollouts_this_time": rollouts}

    def _target_run(self) -> tuple[TagConfig, dict[str, dict[str, Any]]]:
        """Settings and identity of the run of the target's items."""
        assert self.target is not None
        config, columns = self.config, self.target.columns
        own = config.without_rollouts().replace(
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
        return own, identity

    def _for_target(self, run: RunFolder) -> Tagging:
        """The run of the target's items, in its folder."""
        config, _ = self._target_run()
        assert self.target is not None
        return replace(
            self,
            config=config,
            plan=plan_of(config),
            source=self.target,
            run=run,
            target=None,
            predictor=None,
            this_time={},
            opening=None,
        )

    def _tags(self) -> dict[str, Any]:
        learned = apply_predictor(self.predictor, self.run, self.config)
        return tag_items(self.run, self.config, learned, self._fitted)

    def _write(self) -> dict[str, Any]:
        return write_rows(self.run, self.config, self.source, self.schema, self._row_of)
