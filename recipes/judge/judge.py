"""`curate judge`: how good the reasoning of correct rollouts is, 0 to 5, as a model sees it.

The paper (arXiv 2605.16787) had a strong model grade the chains of correct rollouts, and found that
those of unlearnable items are often right by a shortcut. Here each rollout is graded twice, the
second time with the rubric's lists in the opposite order, so that one sees what a score is worth.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from curate.errors import RunError, UsageError
from curate.files import path_or_none, write_atomically
from curate.progress import say
from curate.run.choose import check_tags, choose_items
from curate.run.correct_rollouts import CorrectRollout, correct_rollouts
from curate.run.folder import lock_folder
from curate.run.names import ANSWERS, JUDGEMENT, JUDGING
from curate.run.run import Run
from curate.run.tables import ITEMS, PASS_RATES, QUALITY, SCORES
from curate.tagged.fill import fill_tagged
from curate.tags import REASONING_QUALITY
from probes.gradients.alignment import FEWEST_ITEMS
from probes.servers.asking import Answer, Asker, LanguageModel, Question, estimate_tokens
from probes.servers.kept_answers import KeptAnswers
from recipes.judge.command import Judge
from recipes.judge.prompt import PASSES, Rubric, Score, judge_messages, read_rubric
from recipes.statistics.changes import mean_interval
from recipes.statistics.kappa import score_agreement

_RESAMPLES = 1000


@dataclass(frozen=True)
class _Work:
    """What is to be judged: rollouts by item, and a question for each rollout and pass."""

    rollouts: Mapping[str, Sequence[CorrectRollout]]
    questions: Sequence[Question]

    @property
    def asked(self) -> list[tuple[CorrectRollout, int]]:
        """The rollout and the pass of each question."""
        return [
            (rollout, number)
            for rollouts in self.rollouts.values()
            for rollout in rollouts
            for number in range(PASSES)
        ]


def judge_run(
    run_dir: Path, settings: Judge, model: LanguageModel, *, dry_run: bool = False
) -> dict[str, Any]:
    """Grade correct rollouts of a run.

    Writes `judging/quality.parquet` (a row an item), `scores.parquet` (a row a rollout and pass),
    `summary.json`, and fills two columns of the tagged file. Requests and answers are in
    `judging/answers.jsonl`: the same again asks only what was not answered.

    Args:
        run_dir: the folder of a finished run of `curate tag`.
        dry_run: ask nothing; return the estimate.

    Returns:
        the summary, as docs/judging.md tells it; of a dry run what it would ask.

    Raises:
        UsageError: bad input, no correct rollout, or a server that refuses.
        RunError: no server is left, or the disk failed; the same call continues.
    """
    check_tags(settings.tags)
    run, rubric = Run.open(run_dir), read_rubric(path_or_none(settings.rubric))
    folder = run_dir / JUDGING
    lock = lock_folder(folder, "stop it")
    try:
        with KeptAnswers(folder / ANSWERS) as kept:
            asker = Asker(model, Score, kept)
            groups, groups_from = run.groups(run.ids)
            group_of = dict(zip(run.ids.to_pylist(), groups, strict=True))
            work = _work(run, group_of, settings, rubric, _secret(folder))
            estimate = asker.estimate(work.questions)
            facts = {
                "run_dir": str(run_dir),
                "model": model.model,
                "base_urls": list(model.base_urls),
                "rubric": str(settings.rubric or "recipes/rubric.md"),
                "rubric_sha256": rubric.sha256,
                "groups_from": groups_from,
                "per_item": settings.per_item,
                "items": len(work.rollouts),
                "rollouts": sum(map(len, work.rollouts.values())),
                "questions": len(work.questions),
                "estimate": estimate.facts(model),
            }
            if dry_run:
                return {"dry_run": True, **facts}
            _say_estimate(facts)
            answers = asker.ask(work.questions, "judging")
            summary = {
                "dry_run": False,
                **facts,
                "asked": asker.asked.facts(model),
                "reused": asker.reused.facts(model),
            }
            return _write(run, work, answers, group_of, summary)
    finally:
        os.close(lock)


def _work(
    run: Run,
    group_of: Mapping[str, str | None],
    settings: Judge,
    rubric: Rubric,
    secret: str,
) -> _Work:
    counts = run.columns(PASS_RATES, "total_correct_rollouts")
    correct = counts["total_correct_rollouts"].to_pylist()
    with_correct = [
        (item_id, group)
        for (item_id, group), count in zip(group_of.items(), correct, strict=True)
        if count
    ]
    chosen = choose_items(
        [item_id for item_id, _ in with_correct],
        [group for _, group in with_correct],
        settings.tags,
        settings.limit,
    )
    rollouts = correct_rollouts(run, chosen, settings.per_item)
    if not rollouts:
        of = f" with the tag {' or '.join(settings.tags)}" if settings.tags else ""
        raise UsageError(f"{run.path} has no item{of} with a correct rollout: nothing to judge")
    names = ("prompt", "prompt_token_ids", "answer")
    items = run.columns(ITEMS, *names, ids=pa.array(list(rollouts))).to_pylist()
    nothing = {"prompt": "", "gold": "", "completion": "", "secret": secret}
    around = sum(
        estimate_tokens(message["content"]) for message in judge_messages(rubric, 0, **nothing)
    )
    questions = [
        Question(
            judge_messages(
                rubric,
                number,
                prompt=item["prompt"],
                gold=item["answer"],
                completion=rollout.completion,
                secret=secret,
            ),
            # Counted by the run's tokenizer, which is not the judge's.
            len(item["prompt_token_ids"]) + rollout.tokens + around,
        )
        for item, of_item in zip(items, rollouts.values(), strict=True)
        for rollout in of_item
        for number in range(PASSES)
    ]
    return _Work(rollouts, questions)


def _secret(folder: Path) -> str:
    """What markers are made of: drawn once for a run, so that the same request stays the same."""
    file = folder / "marker_secret"
    if not file.exists():
        try:
            write_atomically(file, secrets.token_hex(16))
        except OSError as error:
            raise RunError(f"cannot write {file}: {error.strerror}") from error
    return file.read_text(encoding="utf-8")


def _say_estimate(facts: Mapping[str, Any]) -> None:
    estimate = facts["estimate"]
    cost = "" if estimate["cost"] is None else f", at most {estimate['cost']:,.4g}"
    say(
        f"judging {facts['rollouts']:,} rollouts of {facts['items']:,} items: "
        f"{estimate['requests']:,} requests, about {estimate['prompt_tokens']:,} tokens in, at "
        f"most {estimate['completion_tokens']:,} out{cost}"
    )


# --- Results -------------------------------------------------------------------------------------


def _write(
    run: Run,
    work: _Work,
    answers: Sequence[Answer],
    group_of: Mapping[str, str | None],
    summary: dict[str, Any],
) -> dict[str, Any]:
    scores = _scores_table(work, answers)
    quality = _quality_table(run.ids, scores)
    SCORES.write(run.path, scores)
    QUALITY.write(run.path, quality)
    problems: dict[str, int] = {}
    for problem in filter(None, scores["problem"].to_pylist()):
        problems[problem] = problems.get(problem, 0) + 1
    # The passes of a rollout stand beside each other.
    found = scores["score"].to_pylist()
    pairs = [
        pair for pair in zip(found[::PASSES], found[1::PASSES], strict=True) if None not in pair
    ]
    summary |= {
        "scored": len(work.questions) - sum(problems.values()),
        "not_scored": sum(problems.values()),
        "problems": dict(sorted(problems.items(), key=lambda entry: -entry[1])[:10]),
        "agreement": score_agreement([a for a, _ in pairs], [b for _, b in pairs]),
        "groups": _groups(quality, group_of),
        "notes": fill_tagged(
            run, REASONING_QUALITY, {row["item_id"]: row for row in quality.to_pylist()}
        ),
    }
    text = json.dumps(summary, indent=2, allow_nan=False) + "\n"
    try:
        write_atomically(run.path / JUDGEMENT, text)
    except OSError as error:
        raise RunError(f"cannot write the summary: {error.strerror}") from error
    return summary


def _scores_table(work: _Work, answers: Sequence[Answer]) -> pa.Table:
    rows = []
    for (rollout, number), answer in zip(work.asked, answers, strict=True):
        value = answer.value or {}
        rows.append(
            {
                "item_id": rollout.item_id,
                "sample": rollout.sample,
                "pass": number,
                "score": value.get("score"),
                "reason": value.get("reason"),
                "problem": answer.problem,
            }
        )
    return pa.Table.from_pylist(rows, SCORES.schema)


def _quality_table(ids: pa.Array, scores: pa.Table) -> pa.Table:
    """A row an item of the run: the mean over its rollouts, of a rollout the mean of its passes."""
    of_rollout: dict[tuple[str, int], list[int]] = {}
    columns = (scores[name].to_pylist() for name in ("item_id", "sample", "score"))
    for item_id, sample, score in zip(*columns, strict=True):
        if score is not None:
            of_rollout.setdefault((item_id, sample), []).append(score)
    of_item: dict[str, list[float]] = {}
    for (item_id, _), each in of_rollout.items():
        of_item.setdefault(item_id, []).append(float(np.mean(each)))
    found = [of_item.get(item_id, []) for item_id in ids.to_pylist()]
    quality, count = REASONING_QUALITY.names
    return pa.table(
        {
            "item_id": ids,
            quality: pa.array([float(np.mean(each)) if each else None for each in found],
                              pa.float64()),
            count: pa.array([len(each) for each in found], pa.int64()),
        }
    )  # fmt: skip


def _groups(quality: pa.Table, group_of: Mapping[str, str | None]) -> list[dict[str, Any]]:
    """The mean quality of each group's items, with the 95 % interval over items."""
    values: dict[str, list[float]] = {}
    columns = (quality[name].to_pylist() for name in ("item_id", REASONING_QUALITY.names[0]))
    for item_id, value in zip(*columns, strict=True):
        if value is not None:
            values.setdefault(group_of[item_id] or "no tag", []).append(value)
    told = []
    for group, each in values.items():
        low, high = None, None
        if len(each) >= FEWEST_ITEMS:
            low, high = mean_interval(np.array(each), _RESAMPLES, 0)
        told.append(
            {"group": group, "items": len(each), "mean": float(np.mean(each)), "low": low,
             "high": high}
        )  # fmt: skip
    return told
