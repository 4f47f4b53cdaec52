"""What the rollouts answer: majorities, suspect golds, and why an item is never right."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.run.tables import ROLLOUTS
from probes.stages import answers as stage
from probes.stages.answers import count_answers
from probes.statistics.pass_rates import pass_rate_interval
from probes.summary import answer_lines
from probes.verifiers.pool import VerifierPool
from tests.tag_runs import additions, read_jsonl, run_curate, tag, write_jsonl

Rollouts = list[tuple[str | None, str]]
"""Answer found and verdict of each."""


def right(answer: str, times: int) -> Rollouts:
    return [(answer, "correct")] * times


def wrong(answer: str, times: int) -> Rollouts:
    return [(answer, "wrong")] * times


def without(verdict: str, times: int) -> Rollouts:
    return [(None, verdict)] * times


def counted(
    folder: Path, items: dict[str, Rollouts], verifier: str = "math", files: int = 1
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """The rows of answers.parquet by item, and the facts."""
    rows = [
        {
            "item_id": item,
            "sample": number,
            "completion": rf"\boxed{{{answer}}}" if answer else "so",
            "reward": None if verdict in ("timeout", "error") else int(verdict == "correct"),
            "verdict": verdict,
            "answer_found": None if ":" in verifier else answer,
        }
        for item, rollouts in items.items()
        for number, (answer, verdict) in enumerate(rollouts)
    ]
    (folder / "rollouts").mkdir(parents=True)
    for number in range(files):
        table = pa.Table.from_pylist(rows[number::files], ROLLOUTS.schema)
        pq.write_table(table, folder / f"rollouts/{number:05d}.parquet")
    ids = pa.chunked_array([list(items)])
    row_of = {item: row for row, item in enumerate(items)}
    facts = count_answers(folder, ids, row_of, VerifierPool(verifier, workers=1))
    read = pq.read_table(folder / "answers.parquet").to_pylist()
    assert [row["item_id"] for row in read] == list(items)
    return {row["item_id"]: row for row in read}, facts


def test_a_majority_is_told_with_its_interval(tmp_path: Path) -> None:
    found, facts = counted(
        tmp_path,
        {
            "gold": right("12", 20) + wrong("13", 5) + without("truncated", 7),
            "suspect": wrong("13", 20) + right("12", 2) + wrong("7", 3) + without("no_answer", 4),
            "unsure": wrong("13", 9) + wrong("14", 7) + right("12", 3),
            "few": wrong("13", 7),
            "none": without("timeout", 8),
        },
    )
    assert [found[i]["answers"] for i in found] == [25, 25, 19, 7, 0]
    assert [found[i]["majority_answer"] for i in found] == ["12", "13", "13", "13", None]
    assert found["suspect"]["majority_share"] == 20 / 25
    low, high = pass_rate_interval(20, 25)
    assert (found["suspect"]["majority_low"], found["suspect"]["majority_high"]) == (low, high)
    # 7 of 7 would be sure enough, but is too few to say; 9 of 19 is no majority at all.
    assert [found[i]["suspect_gold"] for i in found] == [False, True, False, None, None]
    assert facts == {
        "suspect_golds": 1,
        "sure_majorities": 2,
        "sure_and_gold": 1,
        "no_positive_kinds": {"another_answer": 1},
    }


@pytest.mark.parametrize(
    ("rollouts", "kind"),
    [
        (wrong("13", 17) + wrong("14", 15), "another_answer"),
        (wrong("13", 16) + wrong("14", 16), "scattered"),
        ([rollout for n in range(32) for rollout in wrong(str(n), 1)], "scattered"),
        (wrong("13", 1), "scattered"),
        (wrong("13", 15) + without("truncated", 17), "truncated"),
        (wrong("13", 16) + without("truncated", 16), "another_answer"),
        (without("no_answer", 9) + without("truncated", 8), "no_answer"),
        (without("timeout", 20) + without("no_answer", 1), "no_answer"),
        (without("timeout", 20), None),
        (wrong("13", 31) + right("12", 1), None),
    ],
)
def test_items_that_are_never_right_are_told_apart(
    tmp_path: Path, rollouts: Rollouts, kind: str | None
) -> None:
    found, _ = counted(tmp_path, {"a": rollouts})
    assert found["a"]["no_positive_kind"] == kind


def test_equal_answers_are_one_by_the_verifiers_own_equality(tmp_path: Path) -> None:
    same = wrong("1/2", 4) + wrong("0.5", 3) + wrong(r"$\frac{1}{2}$", 3) + wrong("3", 2)
    found, _ = counted(tmp_path / "math", {"a": same})
    assert found["a"]["majority_answer"] == "1/2"
    assert found["a"]["majority_share"] == 10 / 12
    assert found["a"]["suspect_gold"]
    found, _ = counted(tmp_path / "exact", {"a": same}, "exact")
    assert found["a"]["majority_share"] == 4 / 12
    words = wrong("New  York", 5) + wrong("new york", 4)
    found, _ = counted(tmp_path / "words", {"a": words}, "exact")
    assert (found["a"]["majority_answer"], found["a"]["majority_share"]) == ("New  York", 1.0)
    numbers = wrong("1,000", 5) + wrong("1000.0", 4)
    found, _ = counted(tmp_path / "numbers", {"a": numbers}, "numeric")
    assert found["a"]["majority_share"] == 1.0


def test_a_users_function_says_nothing_of_what_it_read(tmp_path: Path) -> None:
    found, facts = counted(
        tmp_path,
        {
            "boxed": wrong("13", 9) + right("12", 1),
            "never": wrong("13", 9),
            "bare": without("wrong", 9),
            "some": wrong("13", 9) + without("wrong", 8),
            "mostly": right("*", 1) + without("correct", 2) + without("wrong", 6),
        },
        "no_such_module:f",
    )
    assert found["boxed"]["majority_answer"] == "13" and found["boxed"]["suspect_gold"]
    assert found["never"]["no_positive_kind"] == "another_answer"
    assert found["bare"]["no_positive_kind"] is None
    assert (found["bare"]["answers"], found["bare"]["majority_share"]) == (9, None)
    # What was not read is like nothing else, so that shares are of all answers.
    assert found["some"]["majority_share"] == 9 / 17 and not found["some"]["suspect_gold"]
    assert (found["mostly"]["majority_answer"], found["mostly"]["majority_share"]) == (None, 3 / 9)
    assert facts["no_positive_kinds"] == {"another_answer": 2}


def test_each_item_goes_by_its_own_verifier(tmp_path: Path) -> None:
    same = wrong("1/2", 5) + wrong("0.5", 4)
    items = {"math": same, "exact": same, "a:f": same}
    counted(tmp_path, items)
    ids = pa.chunked_array([list(items)])
    pool = VerifierPool("numeric", others=("math", "exact"), workers=1)
    count_answers(tmp_path, ids, {name: row for row, name in enumerate(items)}, pool, ids)
    shares = pq.read_table(tmp_path / "answers.parquet")["majority_share"].to_pylist()
    assert shares == [1.0, 5 / 9, 5 / 9]


def test_hostile_answers_cost_themselves(tmp_path: Path) -> None:
    tower = wrong("9^{9^{9^{9^9}}}", 10) + wrong("13", 9)
    found, _ = counted(tmp_path, {"a": tower, "b": wrong("5", 8)})
    assert found["a"]["majority_share"] == 10 / 19
    assert found["b"]["suspect_gold"]


def test_blocks_of_items_and_files_make_no_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    items = {
        f"item {n}": [
            (str(a), "correct" if a == 0 else "wrong") for a in rng.integers(0, 3, 20).tolist()
        ]
        for n in range(9)
    }
    whole = counted(tmp_path / "whole", items)
    monkeypatch.setattr(stage, "_ITEMS_AT_ONCE", 2)
    assert counted(tmp_path / "parts", items, files=3) == whole


def test_the_lines_of_the_summary() -> None:
    facts = {
        "suspect_golds": 3,
        "sure_majorities": 1200,
        "sure_and_gold": 1100,
        "no_positive_kinds": {"another_answer": 4, "truncated": 1},
    }
    assert answer_lines(facts) == [
        "no_positive: 4 consistently another answer than the gold, 1 cut at --max-tokens",
        "golds: 3 look wrong (suspect_gold); of 1,200 items whose rollouts agree as surely, 1,100 "
        "agree on the gold",
    ]
    assert answer_lines({}) == answer_lines({"suspect_golds": 0, "no_positive_kinds": {}}) == []


# --- In a run ------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_run_says_it_in_file_report_and_card(
    suffix: str, tiny_model: Path, tmp_path: Path
) -> None:
    rows = additions(8)
    rows[0]["answer"] = "77"
    dataset = write_jsonl(tmp_path / "sums.jsonl", rows)
    run, out = tmp_path / "run", tmp_path / f"tagged.{suffix}"
    ran = tag(dataset, "--model", tiny_model, "--out", out, "--run-dir", run)
    assert ran.status == 0, ran.stderr
    assert "\nno_positive: " in ran.stdout
    table = pq.read_table(run / "answers.parquet").to_pylist()
    told = {row["item_id"]: row for row in table}
    kept = tmp_path / "kept.jsonl"
    ran = run_curate(
        "filter", out, "--expr", "no_positive_kind is not None", "-o", kept, "--format", "jsonl"
    )
    never = [row for row in table if row["no_positive_kind"]]
    assert told[read_jsonl(tmp_path / "kept.jsonl")[0]["item_id"]] in never, ran.stderr
    assert len(read_jsonl(kept)) == len(never) > 0
    for row in read_jsonl(kept):
        expected = told[row["item_id"]]
        names = ("majority_answer", "majority_share", "suspect_gold", "no_positive_kind")
        assert {name: row[name] for name in names} == {name: expected[name] for name in names}
    ran = run_curate("report", run, "--json")
    assert ran.status == 0, ran.stderr
    assert "Golds that look wrong" in (run / "report.html").read_text()
    assert '"lines":["no_positive: ' in (run / "report.html").read_text()
    ran = run_curate("card", run)
    assert ran.status == 0, ran.stderr
    card = (run / "README.md").read_text()
    assert "- `no_positive`: " in card
    assert "`majority_answer`, `majority_share`" in card and "`suspect_gold`" in card


def test_a_run_of_an_earlier_version_goes_on(tiny_model: Path, tmp_path: Path) -> None:
    dataset = write_jsonl(tmp_path / "sums.jsonl", additions(8))
    run, out = tmp_path / "run", tmp_path / "tagged.jsonl"
    arguments = (dataset, "--model", tiny_model, "--out", out, "--run-dir", run)
    assert tag(*arguments).status == 0
    before = out.read_text()
    (run / "answers.parquet").unlink()
    manifest = (run / "manifest.json").read_text()
    (run / "manifest.json").write_text(manifest.replace('"answers"', '"removed"'))
    # Without the table nothing that reads the run stumbles, and the same command makes it.
    for command in ("report", "card"):
        ran = run_curate(command, run)
        assert ran.status == 0, ran.stderr
    assert "suspect_gold" not in (run / "README.md").read_text()
    ran = tag(*arguments)
    assert ran.status == 0, ran.stderr
    assert out.read_text() == before
    assert (run / "answers.parquet").exists()
