"""How much faster than one math-verify call a rollout is the verifying stage, and is it as right?

The 20,480 completions of `tests/data/completions.parquet`, real rollouts of SmolLM2-135M-Instruct
on examples/arithmetic.jsonl at temperature 1, are judged by

    rival      for every rollout `verify(parse(gold), parse(completion))` of math-verify, in this
               process, with its own defaults
    1 worker   `VerifierPool("math", workers=1)`: a process beside this one
    2 workers  the same with two

    python -m benchmarks.speed.verifying

It prints rollouts a second by the clock, and a second of processor time of all processes together,
which a busy machine changes less; each with how many times the rival's it is. And how many verdicts
differ from those in the file. The rival judges by other rules (`docs/verifiers.md` has ours), so
its differences are only counted. Both are loaded before the clock starts; the workers' processor
time holds their start.
Exit status 1 when a verdict of a pool differs.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
from math_verify import parse, verify

from probes.verifiers.load import Verdict
from probes.verifiers.pool import VerifierPool

COMPLETIONS = Path(__file__).resolve().parents[2] / "tests" / "data" / "completions.parquet"


def processor_seconds() -> float:
    """Of this process and of those it has waited for."""
    own, children = (
        resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def main() -> int:
    """Judge the completions three times and print the table."""
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    rows = pq.read_table(COMPLETIONS).to_pylist()
    pairs = [(row["completion"], row["answer"]) for row in rows]
    expected = [Verdict(row["reward"], row["verdict"], row["answer_found"]) for row in rows]
    print(f"{len(pairs):,} completions, {len(set(pairs)):,} distinct")
    print("            by the clock     processor time   differing")

    verify(parse("1/2"), parse(r"so $\frac{1}{2}$"))
    clock, processor = time.perf_counter(), processor_seconds()
    rewards = [int(verify(parse(gold), parse(completion))) for completion, gold in pairs]
    rival = (time.perf_counter() - clock, processor_seconds() - processor)
    differing = sum(
        reward != verdict.reward for reward, verdict in zip(rewards, expected, strict=True)
    )
    report("rival", len(pairs), rival, rival, differing)

    failed = False
    for name, workers in (("1 worker", 1), ("2 workers", 2)):
        processor = processor_seconds()
        with VerifierPool("math", workers=workers) as pool:
            clock = time.perf_counter()
            verdicts = pool.judge(pairs)
            seconds = time.perf_counter() - clock
        differing = sum(ours != theirs for ours, theirs in zip(verdicts, expected, strict=True))
        failed = failed or differing > 0
        report(name, len(pairs), (seconds, processor_seconds() - processor), rival, differing)
    return 1 if failed else 0


def report(
    name: str, count: int, ours: tuple[float, float], rival: tuple[float, float], differing: int
) -> None:
    """Print one line of the table."""
    columns = (
        f"{count / mine:7,.0f}/s {other / mine:4.1f} ×"
        for mine, other in zip(ours, rival, strict=True)
    )
    print(f"{name:10}", *columns, f"{differing:8}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
