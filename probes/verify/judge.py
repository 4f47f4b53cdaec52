"""The work of `curate verify`: every answer through the verifier's workers, with its reason."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.csv as pa_csv

from curate.datasets.fields import RowRejected
from curate.datasets.golds import read_gold
from curate.errors import RunError, UsageError
from curate.files import atomic_writer, write_atomically
from curate.progress import Progress
from curate.run.folder import read_run_config
from curate.run.names import MANIFEST
from curate.run.tables import write_parquet
from probes.verifiers.by_row import RowVerifiers
from probes.verifiers.pool import VerifierPool
from probes.verifiers.verdict import Verdict, shortened
from probes.verify.cases import Case, file_cases, run_cases

if TYPE_CHECKING:
    from probes.verify.command import Verify

_VERDICTS = pa.schema(
    [
        ("row", pa.int64()),
        ("item_id", pa.string()),
        ("sample", pa.int64()),
        ("reward", pa.float64()),
        ("verdict", pa.string()),
        ("answer_found", pa.string()),
        ("answer_read", pa.string()),
        ("gold", pa.string()),
        ("gold_read", pa.string()),
        ("reason", pa.string()),
        ("recorded", pa.float64()),
    ]
)
_OF_RUNS = ("item_id", "sample")
_AT_ONCE = 4096
_SUFFIXES = (".jsonl", ".csv", ".parquet")
_CUT = Verdict(0, "truncated", None, "it was cut at --max-tokens, and counts as wrong")
# Rewards of float32 functions are kept in double precision.
_SAME = 1e-6


def judge_pairs(
    completions: Sequence[str],
    answers: Sequence[Any],
    verifier: str,
    *,
    pass_threshold: float | None,
    seconds: float,
    workers: int | None,
) -> list[Verdict]:
    """The explained verdict of each completion; see `probes.verify.command.verify`."""
    for place, text in enumerate(completions):
        if not isinstance(text, str):
            raise UsageError(f"verify(): completion {place} is {text!r:.60}, no text")
    golds = []
    for place, answer in enumerate(answers):
        if not isinstance(answer, str):
            try:
                answer = read_gold(answer, "answer", must_be_marked=False)
            except RowRejected as error:
                raise UsageError(f"verify(): answer {place}: {error}") from error
        golds.append(answer)
    pool = VerifierPool(
        verifier, workers=workers, seconds=seconds, pass_threshold=pass_threshold, explain=True
    )
    with pool:
        return pool.judge(list(zip(completions, golds, strict=True)))


def judge_source(wanted: Verify) -> dict[str, Any]:
    """Judge what a command line asks for; see `Verify.work`.

    Raises:
        UsageError: bad input.
        RunError: a file of the run is damaged, or the disk is full.
    """
    out = Path(wanted.out) if wanted.out else None
    if out is not None and out.suffix not in _SUFFIXES:
        raise UsageError(f"--out is {out}; it must end in {' or '.join(_SUFFIXES)}")
    verifier, threshold = wanted.verifier or "math", wanted.pass_threshold
    others: tuple[str, ...] = ()
    if not wanted.source:
        cases = iter([Case(1, wanted.answer, wanted.gold)])
    elif (Path(wanted.source) / MANIFEST).exists():
        config = read_run_config(Path(wanted.source))
        if not wanted.verifier:
            verifier = config.verifier
            threshold = config.pass_threshold if threshold is None else threshold
            others = RowVerifiers(config).names
        cases = run_cases(Path(wanted.source), bool(others) and bool(config.verifier_field))
    else:
        cases = file_cases(wanted)
    cases = islice(cases, wanted.limit) if wanted.limit else cases
    pool = VerifierPool(
        verifier,
        others=others,
        workers=wanted.verifier_workers or None,
        seconds=wanted.verifier_seconds,
        pass_threshold=threshold,
        explain=True,
    )
    found: list[dict[str, Any]] = []
    unreadable: list[dict[str, Any]] = []
    against_itself = 0
    # One answer needs no line that says how far it is.
    shown = Progress("verifying", None, "answers") if wanted.source else nullcontext(None)
    with pool, shown as progress:
        while block := list(islice(cases, _AT_ONCE)):
            unreadable += [{"row": c.row, "reason": c.problem} for c in block if c.problem]
            block = [case for case in block if not case.problem]
            against_itself += sum(case.completion is None for case in block)
            found += map(_told, block, _judged(block, pool, wanted.boxed))
            if progress is not None:
                progress.advance(len(block))
    if not found:
        first = f"; first: row {unreadable[0]['row']}: {unreadable[0]['reason']}"
        raise UsageError(f"{wanted.source} has no answer to judge{first if unreadable else ''}")
    compared = [each for each in found if each["recorded"] is not None]
    facts: dict[str, Any] = {
        "verifier": verifier,
        "answers": len(found),
        "against_itself": against_itself,
        "counts": dict(Counter(each["verdict"] for each in found).most_common()),
        "mean_reward": _mean([each["reward"] for each in found if each["reward"] is not None]),
        "recorded": len(compared),
        "differ": sum(map(_differs, compared)),
        "unreadable": unreadable,
    }
    if out is not None:
        _write(out, found)
        facts["file"] = str(out)
        return facts | {"shown": [each for each in found if each["verdict"] != "correct"]}
    return facts | {"verdicts": found}


def _judged(block: Sequence[Case], pool: VerifierPool, boxed: bool) -> Iterator[Verdict]:
    golds = iter(pool.judge_golds([case.gold for case in block if case.completion is None]))
    judged = iter(
        pool.judge(
            [
                (
                    rf"\boxed{{{case.completion}}}" if boxed else case.completion,
                    case.gold,
                    case.verifier,
                )
                for case in block
                if case.completion is not None and not case.is_cut
            ]
        )
    )
    for case in block:
        yield _CUT if case.is_cut else next(golds if case.completion is None else judged)


def _told(case: Case, verdict: Verdict) -> dict[str, Any]:
    told = {
        "row": case.row,
        "item_id": case.item_id,
        "sample": case.sample,
        "reward": verdict.reward,
        "verdict": verdict.verdict,
        "answer_found": verdict.answer_found,
        "answer_read": verdict.answer_read,
        "gold": shortened(case.gold),
        "gold_read": verdict.gold_read,
        "reason": verdict.reason,
        "recorded": case.recorded,
    }
    if case.item_id is None:
        told = {name: value for name, value in told.items() if name not in _OF_RUNS}
    return told


def _differs(told: dict[str, Any]) -> bool:
    reward = told["reward"]
    return reward is None or abs(reward - told["recorded"]) > _SAME * max(1, abs(told["recorded"]))


def _mean(rewards: Sequence[float]) -> float | None:
    return sum(rewards) / len(rewards) if rewards else None


def _write(out: Path, found: Sequence[dict[str, Any]]) -> None:
    try:
        if out.suffix == ".jsonl":
            lines = (json.dumps(each, ensure_ascii=False) + "\n" for each in found)
            write_atomically(out, "".join(lines))
            return
        names = [name for name in _VERDICTS.names if name in found[0]]
        table = pa.Table.from_pylist(list(found), _VERDICTS).select(names)
        if out.suffix == ".parquet":
            write_parquet(out, table)
            return
        with atomic_writer(out) as file:
            pa_csv.write_csv(table, file)
    except OSError as error:
        raise RunError(f"cannot write {out}: {error.strerror or error}") from error
