"""The first stage of a run: rows read, golds and prompts tried on the verifier, prompts rendered.

What is wrong with a dataset, a model or a setting shows here, before anything is spent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from curate.config import TagConfig
from curate.datasets.layouts import choices_line, run_layout
from curate.datasets.source import Source
from curate.errors import UsageError
from curate.progress import Progress, say
from curate.run.folder import RunFolder
from probes.engines.choose import ModelFacts
from probes.models.chat import writes_the_date
from probes.stages.items import CheckColumns, Item, read_items, reject_items
from probes.stages.render import PromptForm, plain_items, render_items
from probes.statistics.plan import Plan, next_round
from probes.verifiers.by_row import CODE, RowVerifiers, hints
from probes.verifiers.pool import VerifierPool

# Rows an item from which on it is said that rows repeat.
_REPEATED = 2
# Prompts, from the first on, that are tried as answers: long ones in LaTeX take 40 ms each.
_PROMPTS_CHECKED = 200


def read_and_render(
    run: RunFolder,
    config: TagConfig,
    plan: Plan,
    source: Source,
    tokenizer: Any,
    pool: VerifierPool,
    *,
    check_columns: CheckColumns,
    check_model: Callable[[], ModelFacts],
) -> dict[str, Any]:
    """Read the items of a run and render their prompts; return the stage's counts.

    Args:
        run: gets `rows.parquet`, `items.parquet` and `rejects.jsonl`, and in its manifest the
            layout, the counts of rows and items, and how many prompts the verifier accepts.
        config, plan: of the run.
        source: the dataset.
        tokenizer: the policy's; None where there is none, and prompts stay as they are.
        pool: of the run's verifier, not entered.
        check_columns: raises UsageError for column names that cannot be tagged.
        check_model: raises UsageError where the model or an option of its engine is wrong.

    Raises:
        UsageError: not one item can be used, the budget is too small, or what the checks raise.
    """
    layout = run_layout(source, config)
    answer_field = layout.answer_field or (
        "the last assistant turn" if layout.name == "messages" else "no column"
    )
    say(f"layout {layout.name}: prompt in {layout.prompt_field}, answer in {answer_field}")
    if layout.choices:
        say(f"warning: {choices_line(layout, config.verifier)}")
    run.update(
        dataset={
            **run.manifest["dataset"],
            "layout": layout.name,
            "prompt_field": layout.prompt_field,
            "answer_field": answer_field,
        }
    )
    verifiers = RowVerifiers(config)
    for line in [] if verifiers.is_mixed else hints(source):
        say(f"warning: {line}")
    is_checked = config.golds == "needed"
    with pool if is_checked else nullcontext():

        def check_golds(
            golds: Sequence[str], names: Sequence[str], solutions: Sequence[Sequence[str]]
        ) -> list[str | None]:
            if not is_checked:
                return [None] * len(golds)
            with Progress("checking", len(golds), "different gold answers") as progress:
                return pool.check_golds(golds, progress.reach, names, solutions)

        items, counts = read_items(
            source,
            layout,
            config.limit,
            run,
            verifiers=verifiers,
            check_columns=check_columns,
            check_golds=check_golds,
            into_csv=Path(config.out).suffix.lower() == ".csv" and source.format != "csv",
        )
        if is_checked:
            _warn_of_echoes(run, items, pool)
    refused: dict[str, str] = {}
    if tokenizer is None:
        plain_items(run, items, is_mixed=verifiers.is_mixed)
    else:
        facts = check_model()
        refused = render_items(
            run,
            items,
            tokenizer,
            PromptForm.from_config(config, _day(run, config, tokenizer)),
            is_mixed=verifiers.is_mixed,
            # Nothing is sampled where rollouts exist.
            max_tokens=0 if config.rollouts else config.max_tokens,
            context_length=facts.context_length,
            embeddings=facts.embeddings,
        )
    if len(refused) == len(items):
        raise UsageError(
            f"{source.name}: none of its items can be used; first: {next(iter(refused.values()))}"
        )
    if refused:
        rows = reject_items(run, source, refused)
        counts["rows_probed"] -= rows
        counts["rows_rejected"] += rows
        counts["items"] -= len(refused)
    _check_budget(plan, config, counts["items"])
    run.update(counts=counts)
    if counts["rows_probed"] >= _REPEATED * counts["items"]:
        say(
            f"{counts['rows_probed']:,} rows are {counts['items']:,} items: what repeats prompt "
            "and answer is probed once"
        )
    return {"rows_this_time": counts["rows"]}


def _day(run: RunFolder, config: TagConfig, tokenizer: Any) -> str:
    """The day of a run's prompts, kept where the chat template writes it; "" where none does."""
    if not writes_the_date(tokenizer):
        return ""
    day = config.date or str(run.manifest.get("date") or date.today())
    run.update(date=day)
    say(f"the chat template writes the day: {day}; with --date {day} other runs have it as well")
    return day


def _warn_of_echoes(run: RunFolder, items: Sequence[Item], pool: VerifierPool) -> None:
    """Say so where repeating the prompt is rewarded: GRPO finds that sooner than the answer."""
    # A prompt is no program.
    checked = [item for item in items if item.verifier != CODE][:_PROMPTS_CHECKED]
    pairs = [
        (item.question.messages[-1][1], item.question.answer, item.verifier) for item in checked
    ]
    what = "checking whether the prompt itself would pass as an answer"
    with Progress(what, len(pairs), "prompts") as progress:
        verdicts = pool.judge(pairs, progress.reach)
    echoes = [item for item, found in zip(checked, verdicts, strict=True) if found.is_correct]
    run.update(echoes={"prompts_checked": len(checked), "accepted": len(echoes)})
    if echoes:
        say(
            f"warning: the verifier accepts the prompt itself as an answer for {len(echoes):,} "
            f"of {len(checked):,} items, first in row {echoes[0].row}: a policy can learn to "
            "repeat the prompt; look at correct rollouts, or use another --verifier"
        )


def _check_budget(plan: Plan, config: TagConfig, items: int) -> None:
    """Refuse a budget that does not reach --min-rollouts for every item."""
    nothing = np.zeros(items, dtype=np.int64)
    try:
        next_round(plan, nothing, nothing)
    except ValueError as error:
        raise UsageError(
            f"--rollout-budget is {config.rollout_budget}, but {items:,} items with "
            f"--min-rollouts {config.min_rollouts} need at least {items * config.min_rollouts}"
        ) from error
