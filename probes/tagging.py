"""`curate tag`: every stage in its order, each reading files of the run folder and writing its own.

read -> render -> sample -> verify -> pass_rates -> gradients -> similarity -> tags -> write
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.config import AUTO, TagConfig
from curate.datasets import Source, open_source
from curate.errors import UsageError
from curate.progress import Progress
from curate.reading import choose_layout, read_items, reject_items
from curate.run_folder import RunFolder, open_run, read_parquet, write_parquet
from curate.tagged import check_columns, check_out, write_tagged
from curate.tags import Trainability, tag_schema
from probes.counting import count_rollouts, nullable
from probes.gradient_stage import differentiate, read_features
from probes.gradients import Adapter, GradientProbe, target_modules
from probes.judging import VerifierPool
from probes.models import (
    ModelFiles,
    Policy,
    choose_device,
    choose_dtype,
    load_policy,
    load_tokenizer,
    resolve_model,
)
from probes.prediction import (
    Evidence,
    SimilarityThreshold,
    given_threshold,
    predict,
    similarity_threshold,
)
from probes.rendering import render_items
from probes.sampling import sample_items
from probes.similarity import Similarity, measure_similarity
from probes.transformers_engine import TransformersEngine
from probes.verifying import verify_rollouts

# A shard is what a kill can lose. On a CPU that is about two minutes of sampling.
_SHARD_TOKENS = {"cpu": 128 * 1024, "cuda": 4 * 1024 * 1024}
# Above this share of cut completions the pass rates say more of --max-tokens than of the policy.
_TRUNCATED_WARNING = 0.2


def tag_dataset(config: TagConfig) -> tuple[TagConfig, Path]:
    """Probe every item of a dataset and write the tagged dataset.

    Args:
        config: `dataset` and `model` are required; `out` and `run_dir` have defaults.

    Returns:
        the resolved settings, and the tagged file.

    Raises:
        UsageError: bad input or settings; nothing was spent.
        RunError: a stage failed; the same call continues.
    """
    for name in ("dataset", "model"):
        if not getattr(config, name):
            raise UsageError(f"no {name} given: curate tag DATASET --model MODEL needs both")
    source = open_source(config.dataset, split=config.split, subset=config.subset or None)
    files = resolve_model(config.model)
    config = _with_paths(config, source, files)
    schema = tag_schema(config.k)
    check_out(source, Path(config.out))
    check_columns(source.columns, schema, config.replace_columns)
    identity: dict[str, dict[str, Any]] = {
        "dataset": {"fingerprint": source.fingerprint},
        "model": {
            "weight_hash": files.weight_hash,
            "dtype": str(choose_dtype(choose_device())).removeprefix("torch."),
        },
    }
    with open_run(Path(config.run_dir), config, identity) as run:
        _Tagging(config, source, files, run, schema).all_stages()
    return config, Path(config.out)


def _with_paths(config: TagConfig, source: Source, files: ModelFiles) -> TagConfig:
    """Fill in the default output file and run folder."""
    suffix = {"jsonl": ".jsonl", "json": ".json", "csv": ".csv"}.get(source.format, ".parquet")
    return config.replace(
        out=config.out or f"{source.name}.tagged{suffix}",
        run_dir=config.run_dir or f"runs/{source.name}-{files.name}",
    )


@dataclass
class _Tagging:
    """One run in progress: its settings, its folder, and what is loaded when first needed."""

    config: TagConfig
    source: Source
    files: ModelFiles
    run: RunFolder
    schema: pa.Schema

    def all_stages(self) -> None:
        """Run every stage that is not done yet."""
        stages = [
            ("items", self._read_and_render),
            ("sample", self._sample),
            ("verify", self._verify),
            ("pass_rates", self._pass_rates),
            ("gradients", self._gradients),
            ("similarity", self._similarity),
            ("tags", self._tags),
        ]
        self._record_inputs()
        for name, work in stages:
            if self.run.is_done(name):
                continue
            with self.run.stage(name) as entry:
                entry.update(work() or {})
        # The tagged file is written every time: it may have been moved, or --out changed.
        with self.run.stage("write") as entry:
            entry.update(self._write())

    def _record_inputs(self) -> None:
        manifest = self.run.manifest
        dataset = {"id": self.config.dataset, "name": self.source.name}
        model = {"id": self.config.model, "name": self.files.name, "revision": self.files.revision}
        self.run.update(
            dataset={**manifest["dataset"], **dataset, "format": self.source.format},
            model={**manifest["model"], **model},
            seeds={"sampling": self.config.seed, "adapter": self._adapter.seed},
        )

    @cached_property
    def _adapter(self) -> Adapter:
        return Adapter(
            rank=self.config.gradient_rank,
            alpha=self.config.gradient_alpha,
            targets=self.config.gradient_targets,
            dim=self.config.gradient_dim,
        )

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self.files, trust_remote_code=self.config.trust_remote_code)

    @cached_property
    def _policy(self) -> Policy:
        _say(f"loading {self.files.name}")
        policy = load_policy(self.files, trust_remote_code=self.config.trust_remote_code)
        device = "CPU" if policy.device.type == "cpu" else f"GPU ({_gpu_name(policy)})"
        self.run.update(device=device)
        return policy

    @cached_property
    def _items(self) -> pa.Table:
        return read_parquet(self.run / "items.parquet", ["item_id", "prompt_token_ids", "answer"])

    def _pool(self) -> VerifierPool:
        return VerifierPool(
            self.config.verifier,
            workers=self.config.verifier_workers or None,
            seconds=self.config.verifier_seconds,
        )

    def _read_and_render(self) -> dict[str, Any]:
        layout = choose_layout(self.source, self.config.prompt_field, self.config.answer_field)
        answer_field = layout.answer_field or "the last assistant turn"
        _say(f"layout {layout.name}: prompt in {layout.prompt_field}, answer in {answer_field}")
        self.run.update(
            dataset={
                **self.run.manifest["dataset"],
                "layout": layout.name,
                "prompt_field": layout.prompt_field,
                "answer_field": answer_field,
            }
        )
        with self._pool() as pool:

            def check_golds(golds: Sequence[str]) -> list[str | None]:
                with Progress("checking", len(golds), "gold answers") as progress:
                    return pool.check_golds(golds, progress.reach)

            items, counts = read_items(
                self.source,
                layout,
                self.config.limit,
                self.run,
                check_columns=self._check_columns,
                check_golds=check_golds,
            )
        # A wrong name must show now, not once everything is sampled.
        target_modules(self._policy.model, self._adapter.targets)
        refused = render_items(
            self.run,
            items,
            self._tokenizer,
            instruction=self.config.instruction,
            max_tokens=self.config.max_tokens,
            context_length=self._policy.context_length,
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
        self.run.update(counts=counts)
        if counts["rows_rejected"]:
            _say(
                f"rejected {counts['rows_rejected']:,} of {counts['rows']:,} rows; "
                f"each with its reason in {self.run / 'rejects.jsonl'}"
            )
        return {}

    def _check_columns(self, names: Iterable[str]) -> None:
        check_columns(names, self.schema, self.config.replace_columns)

    def _sample(self) -> dict[str, Any]:
        config = self.config
        engine = TransformersEngine(
            self._policy,
            seed=config.seed,
            temperature=config.temperature,
            max_tokens=config.max_tokens,
            batch_tokens=config.batch_tokens or None,
        )
        why = "asked for" if config.engine != AUTO else f"it runs the model here, on {self._device}"
        _say(f"engine {engine.name}: {why}, in {self.run.manifest['model']['dtype']}")
        self.run.update(engine={"name": engine.name, "why": why})
        shard_tokens = _SHARD_TOKENS[self._policy.device.type]
        shard_size = max(config.min_rollouts, shard_tokens // config.max_tokens)
        return sample_items(
            self.run, self._items, engine, self._tokenizer, config.min_rollouts, shard_size
        )

    @property
    def _device(self) -> str:
        return str(self.run.manifest["device"])

    def _verify(self) -> None:
        items = self._items
        answers = dict(zip(items["item_id"].to_pylist(), items["answer"].to_pylist(), strict=True))
        with self._pool() as pool:
            verify_rollouts(self.run, pool, answers)

    def _pass_rates(self) -> None:
        totals = count_rollouts(self.run, self._items["item_id"].to_pylist(), self.config.k)
        drawn, truncated = totals["rollouts_drawn"], totals["rollouts_truncated"]
        if truncated > _TRUNCATED_WARNING * drawn:
            _say(
                f"warning: {truncated / drawn:.0%} of the completions were cut at --max-tokens "
                f"{self.config.max_tokens} and count as wrong; a run of its own (--run-dir) with "
                "more, or with an --instruction that asks for shorter answers, may tell more"
            )
        self.run.update(counts={**self.run.manifest["counts"], **totals})

    def _gradients(self) -> dict[str, Any]:
        probe = GradientProbe(self._policy, self._adapter)
        ids, prompts = self._items["item_id"].to_pylist(), self._items["prompt_token_ids"]
        prompt_of = {i: p.values.to_numpy() for i, p in zip(ids, prompts, strict=True)}
        return differentiate(self.run, prompt_of, probe, self.config.gradient_rollouts)

    def _similarity(self) -> None:
        item_ids = self._items["item_id"].to_pylist()
        row_of = {item_id: row for row, item_id in enumerate(item_ids)}
        table = read_parquet(self.run / "gradients" / "rollouts.parquet")
        index = np.array([row_of[i] for i in table["item_id"].to_pylist()], dtype=np.int64)
        rates = read_parquet(self.run / "pass_rates.parquet", ["pass_rate"])["pass_rate"]
        is_easy = pc.fill_null(pc.greater_equal(rates, self.config.tau), False).to_numpy()
        features = read_features(self.run)
        found = measure_similarity(features, index, table["weight"].to_numpy(), is_easy)
        write_parquet(self.run / "similarity.parquet", _similarity_table(item_ids, found))

    def _tags(self) -> None:
        rates = read_parquet(self.run / "pass_rates.parquet").to_pylist()
        similar = read_parquet(self.run / "similarity.parquet").to_pylist()
        threshold = self._threshold(rates, similar)
        self.run.update(similarity_threshold={"value": threshold.value, "source": threshold.source})
        predictions = [
            predict(
                Evidence(
                    total_rollouts=rate["total_rollouts"],
                    total_correct_rollouts=rate["total_correct_rollouts"],
                    pass_rate_low=rate["pass_rate_low"],
                    pass_rate_high=rate["pass_rate_high"],
                    unjudged_rollouts=rate["unjudged_rollouts"],
                    rollouts_used=near["rollouts_used"],
                    similarity=near["gradient_similarity"],
                    standard_error=near["standard_error"],
                    degrees_of_freedom=near["degrees_of_freedom"],
                    low=near["gradient_similarity_low"],
                    high=near["gradient_similarity_high"],
                    reliability=near["gradient_reliability"],
                ),
                threshold,
                tau=self.config.tau,
            )
            for rate, near in zip(rates, similar, strict=True)
        ]
        table = pa.table(
            {
                "item_id": [rate["item_id"] for rate in rates],
                "trainability": [str(p.trainability) for p in predictions],
                "p_unlearnable": pa.array([p.p_unlearnable for p in predictions], pa.float64()),
                "tag_reason": [p.tag_reason for p in predictions],
            }
        )
        write_parquet(self.run / "tags.parquet", table)
        tags = table["trainability"].to_pylist()
        share = {str(tag): tags.count(str(tag)) for tag in Trainability}
        self.run.update(counts={**self.run.manifest["counts"], "tags": share})

    def _threshold(
        self, rates: list[dict[str, Any]], similar: list[dict[str, Any]]
    ) -> SimilarityThreshold:
        if self.config.similarity_threshold != AUTO:
            return given_threshold(float(self.config.similarity_threshold))
        return similarity_threshold(
            near["gradient_similarity"]
            for rate, near in zip(rates, similar, strict=True)
            if near["gradient_similarity"] is not None
            and rate["pass_rate"] is not None
            and rate["pass_rate"] >= self.config.tau
        )

    def _write(self) -> dict[str, Any]:
        tables = [
            read_parquet(self.run / f"{name}.parquet").drop_columns("item_id")
            for name in ("pass_rates", "similarity", "tags")
        ]
        columns: dict[str, pa.ChunkedArray] = {}
        for table in tables:
            columns |= dict(zip(table.column_names, table.columns, strict=True))
        item_ids = self._items["item_id"].to_pylist()
        wanted = [name for name in self.schema.names if name in columns]
        row_of = {item_id: row for row, item_id in enumerate(item_ids)}
        values = {name: columns[name].to_pylist() for name in wanted}

        def annotations() -> Iterator[dict[str, object]]:
            rows = read_parquet(self.run / "rows.parquet")
            for item_id, reason in zip(
                rows["item_id"].to_pylist(), rows["reason"].to_pylist(), strict=True
            ):
                if item_id is None:
                    not_probed = reason.startswith("not probed")
                    yield {"tag_reason": reason if not_probed else f"rejected: {reason}"}
                else:
                    row = row_of[item_id]
                    yield {"item_id": item_id} | {name: values[name][row] for name in wanted}

        rows = write_tagged(
            self.source,
            Path(self.config.out),
            annotations(),
            self.schema,
            replace_columns=self.config.replace_columns,
        )
        return {"rows": rows, "file": self.config.out}


def _similarity_table(item_ids: list[str], found: Similarity) -> pa.Table:
    nearest = [[item_ids[j] for j in row if j >= 0] for row in found.nearest.tolist()]
    return pa.table(
        {
            "item_id": item_ids,
            "gradient_similarity": nullable(found.similarity),
            "gradient_similarity_low": nullable(found.low),
            "gradient_similarity_high": nullable(found.high),
            "standard_error": nullable(found.standard_error),
            "degrees_of_freedom": nullable(found.degrees_of_freedom),
            "gradient_reliability": nullable(found.reliability),
            "rollouts_used": found.rollouts_used,
            "similarity_easy": nullable(found.similarity_easy),
            "similarity_hard": nullable(found.similarity_hard),
            "nearest": pa.array(nearest, pa.list_(pa.string())),
        }
    )


def _gpu_name(policy: Policy) -> str:
    import torch

    return str(torch.cuda.get_device_name(policy.device))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
