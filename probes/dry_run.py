"""`curate tag --dry-run`: all that a run checks before it spends anything, and what it would cost.

Everything is done in a temporary folder, which goes at the end: no run folder is made, none that is
there is changed, and no tagged file is written. A model or dataset from the Hub is fetched, though.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from curate.config import TagConfig
from curate.errors import UsageError
from curate.run.names import MANIFEST
from curate.run.tables import ROWS
from probes.estimate import Work, estimate, smaller_plans
from probes.estimate_words import basis, counted, estimate_lines
from probes.machines.shard import parse_part
from probes.tag import open_tagging, resolve
from probes.tagging import Tagging, with_budget

_ROWS_SHOWN = 5


def dry_run(config: TagConfig, started: float | None = None) -> dict[str, Any]:
    """Read, render and check what a run needs, draw a few rollouts, and tell what it will cost.

    Args:
        config: as for `tag_dataset`.
        started: since when, by `time.monotonic`, the start of the run counts; from now on if None.

    Returns:
        dataset, model, run_dir, tagged_file, continues (whether the run folder is there already
        and goes on), of_another_run (whether it is there and belongs to a run with other settings);
        layout, rows, rows_probed, rows_rejected, items, rejects (reason, rows, first_rows), echoes
        and prompt_tokens (min, median, max); target, the same of the items of `--target`, or None;
        engine, with why and where; sample (what was drawn); estimate; smaller_plans (options,
        loses, seconds, rollouts); basis and lines, the estimate in words.

    Raises:
        UsageError: bad input or settings, as `tag_dataset` would find them.
        RunError: a rollout could not be drawn, judged or differentiated.
    """
    started = time.monotonic() if started is None else started
    if config.executor != "local":
        raise UsageError("--dry-run draws in this process: leave --executor ray out, for it alone")
    config, source, policy = resolve(config)
    part = parse_part(config.shard) if config.shard else None
    run_dir = part.folder(Path(config.run_dir)) if part else Path(config.run_dir)
    with (
        TemporaryDirectory(prefix="curate-dry-run-") as folder,
        open_tagging(config, source, policy, Path(folder) / "run", is_dry=True) as tagging,
    ):
        whole, *targets = tagging.read()
        trial = whole.try_out()
        ready = max(time.monotonic() - started - trial.took, 0.0)
        prices = replace(trial.prices, ready=ready)
        tokens = whole.prompt_tokens()
        items = int(part.own(len(tokens)).sum()) if part else len(tokens)
        target_items = sum(len(each.prompt_tokens()) for each in targets)
        plan = with_budget(whole.plan, config, items)
        work = Work.of(config, plan, items, float(tokens.mean()), target_items=target_items)
        cost = estimate(work, trial.sample, prices)
        smaller = smaller_plans(work, trial.sample, prices) if cost.is_long else []
        origin = basis(trial.sample, trial.tokens, trial.seconds, prices, trial.differentiated)
        return {
            "dataset": config.dataset,
            "model": config.model,
            "run_dir": str(run_dir),
            "tagged_file": config.out,
            "continues": (run_dir / MANIFEST).exists() and not tagging.is_of_another_run,
            "of_another_run": tagging.is_of_another_run,
            **_read_facts(whole),
            "target": _read_facts(targets[0]) if targets else None,
            "engine": {
                **whole.model.engine().facts(),
                "why": whole.model.why,
                "where": whole.model.where(),
            },
            "sample": trial.facts(),
            "estimate": cost.facts(),
            "smaller_plans": [
                {
                    "options": each.options,
                    "loses": each.loses,
                    "seconds": each.estimate.facts()["seconds"],
                    "rollouts": each.estimate.facts()["rollouts"],
                }
                for each in smaller
            ],
            "basis": origin,
            "lines": estimate_lines(work, trial.sample, prices, cost, smaller),
        }


def _read_facts(tagging: Tagging) -> dict[str, Any]:
    """What was read of a dataset."""
    manifest, tokens = tagging.run.manifest, tagging.prompt_tokens()
    counts = manifest["counts"]
    return {
        "layout": {n: manifest["dataset"][n] for n in ("layout", "prompt_field", "answer_field")},
        "rows": counts["rows"],
        "rows_probed": counts["rows_probed"],
        "rows_rejected": counts["rows_rejected"],
        "items": counts["items"],
        "rejects": _rejects(tagging),
        "echoes": manifest["echoes"],
        "prompt_tokens": {
            "min": int(tokens.min()),
            "median": float(np.median(tokens)),
            "max": int(tokens.max()),
        },
    }


def _rejects(tagging: Tagging) -> list[dict[str, Any]]:
    """Why rows cannot be used: reasons that differ in numbers and quoted text alone are one."""
    table = ROWS.read(tagging.run, "row", "reason")
    found: dict[str, dict[str, Any]] = {}
    for row, reason in zip(table["row"].to_pylist(), table["reason"].to_pylist(), strict=True):
        if reason is None or reason.startswith("not probed"):
            continue
        kind = re.sub(r"'.*'|\d[\d,.]*", "", reason)
        entry = found.setdefault(kind, {"reason": reason, "rows": 0, "first_rows": []})
        entry["rows"] += 1
        if len(entry["first_rows"]) < _ROWS_SHOWN:
            entry["first_rows"].append(row)
    return sorted(found.values(), key=lambda each: -each["rows"])


def dry_run_text(found: Mapping[str, Any]) -> str:
    """Write what a dry run found for a terminal."""
    engine, sample = found["engine"], found["sample"]
    lines = [*_read_lines(found)]
    if found["target"]:
        lines += ["", f"target: {found['target']['items']:,} items"]
        lines += _read_lines(found["target"])
    judged, correct = sample["judged"], sample["correct"]
    making = f"; {sample['unfinished']:,} in the making" if sample["unfinished"] else ""
    tried = (
        f"{counted(sample['rollouts'], 'rollout')} of {counted(sample['prompts'], 'prompt')}: "
        f"{correct:,} of {judged:,} correct, {sample['cut']:,} cut{making}"
    )
    if sample["unfinished"] and not sample["rollouts"]:
        tried = f"{counted(sample['unfinished'], 'rollout')}, of which none was finished"
    there = "there already, and continued" if found["continues"] else "not there yet"
    if found["of_another_run"]:
        there = "belongs to another run, so this one needs its own --run-dir"
    return "\n".join(
        [
            *lines,
            f"engine    {engine['name']}: {engine['why']}; {engine['where']}",
            f"tried     {tried}",
            f"run       {found['run_dir']}: {there}; tagged file: {found['tagged_file']}",
            "",
            f"estimate, {found['basis']}:",
            *found["lines"],
            "",
            "A dry run: nothing was written, and what was drawn is not kept.",
        ]
    )


def _read_lines(found: Mapping[str, Any]) -> list[str]:
    beyond = found["rows"] - found["rows_probed"] - found["rows_rejected"]
    limit = f", {beyond:,} beyond --limit" if beyond else ""
    prompts = found["prompt_tokens"]
    lines = [
        f"rows      {found['rows']:,}: {found['rows_probed']:,} probed, "
        f"{found['rows_rejected']:,} rejected{limit}; {found['items']:,} items"
    ]
    for each in found["rejects"]:
        rows = ", ".join(map(str, each["first_rows"]))
        more = ", ..." if each["rows"] > len(each["first_rows"]) else ""
        lines.append(f"          {each['rows']:,} x {each['reason']} (row {rows}{more})")
    lines.append("golds     the verifier accepts those of all items against themselves")
    if found["echoes"]["accepted"]:
        lines[-1] += (
            f"; of {found['echoes']['prompts_checked']:,} prompts it accepts "
            f"{found['echoes']['accepted']:,} as answers"
        )
    lines.append(
        f"prompts   {prompts['min']:,} to {prompts['max']:,} tokens, median {prompts['median']:g}"
    )
    return lines
