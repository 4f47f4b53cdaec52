"""A real vLLM server with SmolLM2 as writer, checker and judge: the path, not its quality.

A model of this size can neither judge nor write problems, so what is asserted is that every request
was answered in its form, counted, kept and never asked for again.
"""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.made.report import write_report_run
from tests.tag_runs import read_jsonl, run_curate
from tests.test_augment import with_real_ids
from tests.vllm_servers import MODEL, RealServer

ITEMS = 5


@pytest.fixture
def server(vllm_servers: list[RealServer]) -> RealServer:
    """One that no other test has killed."""
    return next(server for server in vllm_servers if server.is_alive)


def _summary(server: RealServer, *arguments: object) -> dict[str, Any]:
    ran = run_curate(*arguments, "--base-url", server.url, "--judge-model", MODEL, "--json")
    assert ran.status == 0, ran.stderr
    # The server keeps to the schema, and takes every field of the request.
    assert "takes no" not in ran.stderr and "wants" not in ran.stderr
    return dict(json.loads(ran.stdout))


def test_a_real_server_judges(server: RealServer, tmp_path: Path) -> None:
    reasoned = "0 plus 0 is 0, because adding nothing changes nothing. The answer is 0."
    run = write_report_run(tmp_path / "run", ITEMS, completions=[reasoned])
    command = ("judge", run, "--per-item", 1, "--max-tokens", 160)
    estimate = _summary(server, *command, "--dry-run")["estimate"]
    first = _summary(server, *command)
    rows = pq.read_table(run / "judging/scores.parquet").to_pylist()
    assert len(rows) == first["questions"] == 8
    for row in rows:
        # Cut at the limit it is no answer; else the schema holds.
        assert (row["score"] in range(6)) if row["problem"] is None else "cut" in row["problem"]
    assert first["scored"] >= 4
    assert first["asked"]["not_counted"] == 0
    # Its own tokenizer counts no less than half and no more than twice of what was estimated.
    per_request = first["asked"]["prompt_tokens"] / first["asked"]["requests"]
    assert 0.5 < per_request / (estimate["prompt_tokens"] / estimate["requests"]) < 2
    again = _summary(server, *command)
    assert again["asked"]["requests"] == 0
    assert again["groups"] == first["groups"]


def test_a_real_server_writes_and_checks(server: RealServer, tmp_path: Path) -> None:
    run = with_real_ids(write_report_run(tmp_path / "run", ITEMS))
    found = _summary(
        server, "augment", run, "--mode", "subproblems", "--per-item", 2, "--max-tokens", 300
    )
    rows = read_jsonl(run / "augmentation/subproblems.jsonl")
    rejected = read_jsonl(run / "augmentation/subproblems.rejected.jsonl")
    assert (len(rows), len(rejected)) == (found["kept"], found["rejected"])
    # Whatever it wrote: one item was asked about, and what came of it is accounted for.
    assert found["parents"] == 1 and found["asked"]["writer"]["requests"] in (1, 2)
    assert found["written"] + sum(found["not_written"].values()) >= 1
    for row in rejected:
        assert row["reason"]
