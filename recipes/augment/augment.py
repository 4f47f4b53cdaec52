"""`curate augment`: new problems from items of a run, kept where two models agree on the answer.

The paper (arXiv 2605.16787) had a strong model write problems similar to the unlearnable ones, and
their sub-problems; trained on beside them, the new ones were learned and the old ones were not. One
model writes each problem with its answer, another solves it without seeing that, and the problem is
kept where the run's verifier accepts the second answer for the first, and the first for itself.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from curate.datasets.layouts import Question as Item
from curate.errors import RunError, UsageError
from curate.files import atomic_writer, path_or_none
from curate.progress import say
from curate.run.choose import check_tags, choose_items
from curate.run.folder import lock_folder
from curate.run.names import ANSWERS, AUGMENTATION
from curate.run.questions import read_questions
from curate.run.run import Run
from curate.run.tables import ITEMS
from probes.servers.asking import Asker, LanguageModel, Question, Usage, estimate_tokens
from probes.servers.kept_answers import KeptAnswers
from probes.verifiers.by_row import RowVerifiers
from probes.verifiers.pool import VerifierPool
from recipes.augment.command import Augment
from recipes.augment.duplicates import DuplicateIndex
from recipes.augment.prompt import (
    CheckedAnswer,
    checker_messages,
    new_problems,
    problem_text,
    writer_messages,
)


@dataclass(frozen=True)
class Candidate:
    """A new problem, and why it is not kept; None where it is."""

    parent_item_id: str
    problem: str
    answer: str
    reason: str | None = None
    check_answer: str | None = None
    """Of the second model; None where it was not asked or did not answer."""


@dataclass(frozen=True)
class _Askers:
    writer: Asker
    checker: Asker


def augment_run(
    run_dir: Path,
    settings: Augment,
    writer: LanguageModel,
    checker: LanguageModel,
    *,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Write new problems from items of a run.

    Writes a dataset with prompt, answer, parent_item_id and mode; beside it `.rejected.jsonl`, what
    was not kept and why, and `.json`, the summary. Requests and answers are in
    `augmentation/answers.jsonl` of the run folder: the same again asks only what was not answered.

    Args:
        run_dir: the folder of a finished run of `curate tag`.
        writer: writes the problems with their answers.
        checker: answers them.
        dry_run: ask nothing; return the estimate.

    Returns:
        the summary, as docs/augmenting.md tells it.

    Raises:
        UsageError: bad input, no such items, or a server that refuses.
        RunError: no server is left, or the disk failed; the same call continues.
    """
    check_tags(settings.tags)
    run = Run.open(run_dir)
    groups, groups_from = run.groups(run.ids)
    chosen = choose_items(run.ids.to_pylist(), groups, settings.tags, settings.limit)
    if not chosen:
        raise UsageError(f"{run_dir} has no item with the tag {' or '.join(settings.tags)}")
    items = read_questions(run)
    parents = {item_id: items[item_id] for item_id in chosen}
    out = _out(run, settings)
    lock = lock_folder(run_dir / AUGMENTATION, "stop it")
    try:
        with KeptAnswers(run_dir / AUGMENTATION / ANSWERS) as kept:
            askers = _Askers(
                Asker(writer, new_problems(settings.per_item), kept),
                Asker(checker, CheckedAnswer, kept),
            )
            questions = [_writer_question(each, settings) for each in parents.values()]
            facts = {
                "run_dir": str(run_dir),
                "mode": settings.mode,
                "tags": list(settings.tags),
                "groups_from": groups_from,
                "parents": len(parents),
                "per_item": settings.per_item,
                "writer": {"model": writer.model, "base_urls": list(writer.base_urls)},
                "checker": {"model": checker.model, "base_urls": list(checker.base_urls)},
                "notes": _notes(writer, checker),
                "estimate": {
                    "writer": askers.writer.estimate(questions).facts(writer),
                    "checker": _checker_estimate(parents, settings, checker).facts(checker),
                },
            }
            if dry_run:
                return {"dry_run": True, **facts}
            _say_start(facts)
            candidates, problems = _candidates(run, items, parents, questions, askers)
            return {"dry_run": False} | _write(
                out,
                candidates,
                parents,
                facts
                | {
                    "not_written": problems,
                    "asked": _usage(askers, "asked"),
                    "reused": _usage(askers, "reused"),
                },
            )
    finally:
        os.close(lock)


def _out(run: Run, settings: Augment) -> Path:
    out = path_or_none(settings.out) or run.path / AUGMENTATION / f"{settings.mode}.jsonl"
    if out.suffix != ".jsonl":
        raise UsageError(f"{out}: the file must end in .jsonl")
    if out.resolve() in (Path(run.config.dataset).resolve(), Path(run.config.out).resolve()):
        raise UsageError(f"{out} is the dataset that was tagged; write to another file")
    return out


def _notes(writer: LanguageModel, checker: LanguageModel) -> list[str]:
    if writer.model != checker.model:
        return []
    return [
        f"{writer.model} wrote and checked: it may make one mistake twice; --check-model names "
        "another"
    ]


def _writer_question(parent: Item, settings: Augment) -> Question:
    messages = writer_messages(parent, settings.mode, settings.per_item)
    return Question(messages, sum(estimate_tokens(each["content"]) for each in messages))


def _checker_question(problem: str) -> Question:
    messages = checker_messages(problem)
    return Question(messages, sum(estimate_tokens(each["content"]) for each in messages))


def _checker_estimate(
    parents: Mapping[str, Item], settings: Augment, checker: LanguageModel
) -> Usage:
    """At most so much: every new problem is checked, and as long as its parent."""
    tokens = [_checker_question(problem_text(each)).tokens for each in parents.values()]
    requests = len(parents) * settings.per_item
    return Usage(requests, sum(tokens) * settings.per_item, requests * checker.max_tokens)


def _usage(askers: _Askers, name: str) -> dict[str, Any]:
    return {
        who: getattr(asker, name).facts(asker.model)
        for who, asker in (("writer", askers.writer), ("checker", askers.checker))
    }


def _say_start(facts: Mapping[str, Any]) -> None:
    say(
        f"writing {facts['mode']} problems from {facts['parents']:,} items: "
        + ", ".join(
            f"{who} {each['requests']:,} requests at most, about {each['prompt_tokens']:,} tokens "
            f"in and at most {each['completion_tokens']:,} out"
            + ("" if each["cost"] is None else f", cost at most {each['cost']:,.4g}")
            for who, each in facts["estimate"].items()
        )
    )


# --- Writing and checking ------------------------------------------------------------------------


def _candidates(
    run: Run,
    items: Mapping[str, Item],
    parents: Mapping[str, Item],
    questions: Sequence[Question],
    askers: _Askers,
) -> tuple[list[Candidate], dict[str, int]]:
    """Have problems written, and settle which are kept; and why parents have none."""
    written: list[Candidate] = []
    problems: Counter[str] = Counter()
    answers = askers.writer.ask(questions, "writing")
    for parent, answer in zip(parents, answers, strict=True):
        if answer.value is None:
            problems[str(answer.problem)] += 1
            continue
        written += [
            Candidate(parent, each["problem"].strip(), each["answer"].strip())
            for each in answer.value["problems"]
        ]
    config = run.config
    pool = VerifierPool(
        config.verifier,
        others=RowVerifiers(config).names,
        workers=config.verifier_workers or None,
        seconds=config.verifier_seconds,
        pass_threshold=config.pass_threshold,
    )
    named = run.columns(ITEMS, "verifier")["verifier"].to_pylist()
    verifiers = {
        item_id: name or config.verifier
        for item_id, name in zip(run.ids.to_pylist(), named, strict=True)
    }
    with pool:
        sound = list(_without_duplicates(_with_sound_golds(written, pool, verifiers), items))
        return _checked(sound, askers.checker, pool, verifiers), dict(problems.most_common())


def _with_sound_golds(
    candidates: Sequence[Candidate], pool: VerifierPool, verifiers: Mapping[str, str]
) -> list[Candidate]:
    """Refuse answers that the parent's verifier does not accept against themselves."""
    asked = [(each.answer, verifiers[each.parent_item_id]) for each in candidates]
    golds = list(dict.fromkeys(asked))
    why_not = pool.check_golds(
        [gold for gold, _ in golds], verifiers=[verifier for _, verifier in golds]
    )
    why = dict(zip(golds, why_not, strict=True))
    return [replace(each, reason=why[gold]) for each, gold in zip(candidates, asked, strict=True)]


def _without_duplicates(
    candidates: Sequence[Candidate], items: Mapping[str, Item]
) -> Iterator[Candidate]:
    """Refuse what is in the dataset, or nearly so, and what an earlier candidate asks."""
    ids = list(items)
    index = DuplicateIndex(problem_text(item) for item in items.values())
    for each in candidates:
        found = None if each.reason else index.find(each.problem)
        if found:
            of = "another new problem"
            if found.position < len(ids):
                of = f"item {ids[found.position]}"
                of = "its parent" if ids[found.position] == each.parent_item_id else of
            how = (
                "the same as" if found.overlap == 1 else f"nearly ({found.overlap:.2f}) the same as"
            )
            each = replace(each, reason=f"{how} {of}")
        elif not each.reason:
            index.add(each.problem)
        yield each


def _checked(
    candidates: Sequence[Candidate],
    checker: Asker,
    pool: VerifierPool,
    verifiers: Mapping[str, str],
) -> list[Candidate]:
    """Have the others answered, and keep those whose two answers agree."""
    asked = [place for place, each in enumerate(candidates) if not each.reason]
    settled = list(candidates)
    answers = checker.ask([_checker_question(settled[p].problem) for p in asked], "checking")
    pairs = {}
    for place, answer in zip(asked, answers, strict=True):
        if answer.value is None:
            settled[place] = replace(settled[place], reason=f"not checked: {answer.problem}")
        else:
            found = str(answer.value["answer"]).strip()
            settled[place] = replace(settled[place], check_answer=found)
            verifier = verifiers[settled[place].parent_item_id]
            pairs[place] = (found, settled[place].answer, verifier)
    for place, why in zip(pairs, _disagreements(list(pairs.values()), pool), strict=True):
        settled[place] = replace(settled[place], reason=why)
    return settled


def _disagreements(pairs: Sequence[tuple[str, str, str]], pool: VerifierPool) -> list[str | None]:
    """Why a second answer is not the first one; None where the verifier accepts it."""
    verdicts = pool.judge([(rf"\boxed{{{found}}}", gold, name) for found, gold, name in pairs])
    # A user's own function may want the bare answer.
    own = [place for place, (_, _, name) in enumerate(pairs) if ":" in name]
    for place, bare in zip(own, pool.judge([pairs[place] for place in own]), strict=True):
        if bare.is_correct:
            verdicts[place] = bare
    return [
        None
        if verdict.is_correct
        else "the answers differ"
        if verdict.reward is not None
        else f"the answers cannot be compared: {verdict.reason or verdict.verdict}"
        for verdict in verdicts
    ]


# --- Results -------------------------------------------------------------------------------------


def _write(
    out: Path,
    candidates: Sequence[Candidate],
    parents: Mapping[str, Item],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    kept = [each for each in candidates if not each.reason]
    rejected = [each for each in candidates if each.reason]
    reasons = Counter((each.reason or "").partition(":")[0] for each in rejected)
    summary = {
        **facts,
        "out": str(out),
        "rejected_file": str(out.with_suffix(".rejected.jsonl")),
        "written": len(candidates),
        "kept": len(kept),
        "parents_with_new_items": len({each.parent_item_id for each in kept}),
        "rejected": len(rejected),
        "reasons": dict(reasons.most_common(10)),
    }
    mode = str(facts["mode"])
    rows = [_row(each, parents[each.parent_item_id], mode) for each in kept]
    refused = [{**vars(each), "mode": mode} for each in rejected]
    try:
        for file, lines in ((out.with_suffix(".rejected.jsonl"), refused), (out, rows)):
            with atomic_writer(file, "w") as opened:
                opened.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        with atomic_writer(out.with_suffix(".json"), "w") as opened:
            opened.write(json.dumps(summary, indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise RunError(f"cannot write {out}: {error.strerror}") from error
    return summary


def _row(candidate: Candidate, parent: Item, mode: str) -> dict[str, Any]:
    """A row of the new dataset, its prompt in the form that the parent's has.

    So `curate tag` adds an instruction to it where it adds one to the parent.
    """
    prompt: Any = candidate.problem
    if not parent.is_plain_text:
        system = [turn for turn in parent.conversation() if turn["role"] == "system"]
        prompt = [*system, {"role": "user", "content": candidate.problem}]
    return {
        "prompt": prompt,
        "answer": candidate.answer,
        "parent_item_id": candidate.parent_item_id,
        "mode": mode,
    }
