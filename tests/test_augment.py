"""`curate augment` against a scripted writer and checker: what is kept, what is not, and why."""

import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from curate import augment
from curate.datasets.layouts import Question
from tests.made.report import write_report_run
from tests.stand_ins.language_model import MODEL, language_model
from tests.stand_ins.server import StandIn, status
from tests.tag_runs import ROOT, curate_command, read_jsonl, run_curate, tag, write_jsonl

KEY = "sk-aKeyThatNobodyShallSee"
# The parent's question, what the writer makes of it, its answer, the checker's, and why not.
Case = tuple[str, str, object, str | None]
CASES: dict[str, Case] = {
    "agreement": ("What is 31 + 3?", "34", "34", None),
    "agreement in another form": ("What is 1 divided by 2?", "0.5", r"\frac{1}{2}", None),
    "disagreement": ("What is 32 + 4?", "37", "36", "the answers differ"),
    "no sound gold": ("What is 33 + 5?", "?", "38", "math verifier"),
    "in the dataset": ("what is 0 + 0", "0", "0", "the same as item"),
    "an answer in another language": ("Was ist 34 + 6?", "40", "vierzig", "the answers differ"),
    "a refusal": ("What is 35 + 7?", "42", {"content": None, "refusal": "no"},
                  "not checked: refused: no"),
    "an empty answer": ("What is 36 + 8?", "44", "", "not checked: an empty answer"),
    "malformed": ("What is 37 + 9?", "46", "{", "not checked: not JSON"),
}  # fmt: skip


def _answer(text: str) -> str:
    return json.dumps({"solution": "so", "answer": text})


def _problems(*pairs: tuple[str, str]) -> str:
    return json.dumps({"problems": [{"problem": p, "answer": a} for p, a in pairs]})


def _is_writer(messages: list[dict[str, str]]) -> bool:
    return messages[0]["content"].startswith(("Write", "The problem in the next"))


def _parent(messages: list[dict[str, str]]) -> str:
    return messages[1]["content"].split("\n")[1]


def _added(messages: list[dict[str, str]]) -> str:
    """Writes `a + b + 100` from `a + b`, with its answer; knows sums."""
    if _is_writer(messages):
        a, b = _sum(_parent(messages))
        return _problems((f"What is {a + 100} + {b}?", str(a + b + 100)))
    return _answer(str(sum(_sum(messages[1]["content"]))))


def _sum(text: str) -> tuple[int, int]:
    a, b = (int(part.strip("?. ")) for part in text.removeprefix("What is ").split("+"))
    return a, b


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = write_report_run(tmp_path / "run", 20)
    # Ids as they are: hashes of the questions.
    return with_real_ids(run)


def with_real_ids(run: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = read_jsonl(run.parent / f"{run.name}.jsonl")
    ids = [Question((("user", row["question"]),), row["answer"]).item_id for row in rows]
    for name in ("items", "rows", "pass_rates", "similarity", "tags"):
        table = pq.read_table(run / f"{name}.parquet")
        place = table.schema.get_field_index("item_id")
        pq.write_table(table.set_column(place, "item_id", pa.array(ids)), run / f"{name}.parquet")
    return run


def _unlearnable(run: Path) -> dict[str, str]:
    """The questions that are tagged so, by item_id."""
    rows = read_jsonl(run.parent / f"{run.name}.jsonl")[2::5]
    return {
        Question((("user", row["question"]),), row["answer"]).item_id: row["question"]
        for row in rows
    }


def _augment(run: Path, server: StandIn, *options: object) -> Any:
    return run_curate(
        "augment", run, "--mode", "similar", "--base-url", server.url, "--judge-model", MODEL,
        *options,
    )  # fmt: skip


def _rows(run: Path, name: str = "similar") -> list[dict[str, Any]]:
    return read_jsonl(run / f"augmentation/{name}.jsonl")


def test_problems_are_kept_where_both_answers_agree(run: Path) -> None:
    cases = list(CASES.values())

    def script(messages: list[dict[str, str]]) -> object:
        if _is_writer(messages):
            assert "Its answer" in messages[1]["content"]
            return _problems(*((problem, gold) for problem, gold, _, _ in cases))
        (found,) = (each[2] for each in cases if each[0] == messages[1]["content"])
        return _answer(found) if isinstance(found, str) and found not in ("", "{") else found

    with language_model(script) as server:
        ran = _augment(run, server, "--limit", 1, "--per-item", len(cases))
    assert ran.status == 0, ran.stderr
    kept, rejected = _rows(run), _rows(run, "similar.rejected")
    assert [row["prompt"] for row in kept] == [each[0] for each in cases if each[3] is None]
    reasons = {row["problem"]: row["reason"] for row in rejected}
    assert reasons.keys() == {each[0] for each in cases if each[3]}
    for problem, _, _, why in cases:
        assert why is None or reasons[problem].startswith(why)
    (parent,) = {row["parent_item_id"] for row in kept + rejected}
    assert parent in _unlearnable(run)
    assert {row["mode"] for row in kept + rejected} == {"similar"}
    assert all(set(row) == {"prompt", "answer", "parent_item_id", "mode"} for row in kept)
    # The gold is the writer's; who checks never sees it.
    asked = [body["messages"] for body in server.posted if not _is_writer(body["messages"])]
    assert all("Its answer" not in str(messages) for messages in asked)
    # What fails before it is checked costs no request.
    assert not {"What is 33 + 5?", "what is 0 + 0"} & {messages[1]["content"] for messages in asked}
    summary = json.loads((run / "augmentation/similar.json").read_text())
    assert summary["kept"] == len(kept) and summary["rejected"] == len(rejected)
    assert "wrote and checked" in ran.stdout and "the answers differ" in ran.stdout


def test_each_parent_has_its_own_and_none_is_its_parent(run: Path) -> None:
    def script(messages: list[dict[str, str]]) -> object:
        if not _is_writer(messages):
            return _added(messages)
        parent = _parent(messages)
        a, b = _sum(parent)
        return _problems(
            (parent, str(a + b)),
            (f"What is {a + 100} + {b}?", str(a + b + 100)),
            (f"what is {a + 100}  +  {b} ?", str(a + b + 100)),
        )

    with language_model(script) as server:
        ran = _augment(run, server)
    assert ran.status == 0, ran.stderr
    parents = _unlearnable(run)
    kept = _rows(run)
    assert {row["parent_item_id"] for row in kept} == set(parents)
    for row in kept:
        a, b = _sum(parents[row["parent_item_id"]])
        assert row["prompt"] == f"What is {a + 100} + {b}?"
    reasons = Counter(row["reason"] for row in _rows(run, "similar.rejected"))
    assert reasons == {
        "the same as its parent": len(parents), "the same as another new problem": len(parents)
    }  # fmt: skip


def test_another_model_checks_with_its_own_key(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WRITER_KEY", KEY)
    monkeypatch.setenv("CHECKER_KEY", "sk-checks")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with language_model(_added) as writer, language_model(_added) as checker:
        options = ("--api-key-env", "WRITER_KEY", "--check-base-url", checker.url)
        ran = _augment(run, writer, *options, "--limit", 2)
        assert ran.status == 0, ran.stderr
        assert writer.keys == {f"Bearer {KEY}"} and checker.keys == {None}
        ran = _augment(run, writer, *options, "--check-api-key-env", "CHECKER_KEY")
        assert ran.status == 0, ran.stderr
        assert checker.keys == {None, "Bearer sk-checks"}
    assert all(_is_writer(body["messages"]) for body in writer.posted)
    assert not any(_is_writer(body["messages"]) for body in checker.posted)
    files = [path for path in run.rglob("*") if path.is_file()]
    for key in (KEY, "sk-checks"):
        assert key not in ran.stdout + ran.stderr
        assert not [path for path in files if key.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"content": None, "refusal": "No."}, "refused: No."),
        ("", "an empty answer"),
        ("Here are problems: 1 + 1", "not JSON"),
        ('{"problems": []}', "list should have at least 1 item"),
        (
            '{"problems": [{"problem": " ", "answer": "1"}]}',
            "string should have at least 1 character",
        ),
        (_problems(*[("What is 1 + 1?", "2")] * 5), "list should have at most 4 items"),
    ],
)
def test_a_writer_that_writes_nothing_usable(run: Path, said: object, why: str) -> None:
    with language_model(lambda messages: said) as server:
        ran = _augment(run, server)
    assert ran.status == 0, ran.stderr
    summary = json.loads((run / "augmentation/similar.json").read_text())
    assert summary["written"] == summary["kept"] == 0 == len(_rows(run))
    (reason,) = summary["not_written"]
    assert why in reason and summary["not_written"][reason] == summary["parents"]
    assert f"items with no usable answer: {summary['parents']}" in ran.stdout


def test_a_storm_of_429_loses_nothing(run: Path) -> None:
    with language_model(_added) as server:
        server.faults.extend([status(429, Retry_After="0.01")] * 20)
        assert _augment(run, server).status == 0
    assert len(_rows(run)) == len(_unlearnable(run))


def test_a_kill_in_the_middle_is_resumed_without_paying_twice(tmp_path: Path) -> None:
    run = with_real_ids(write_report_run(tmp_path / "run", 150))
    with language_model(_added, seconds=0.03) as server:
        command = curate_command(
            "augment", run, "--mode", "similar", "--base-url", server.url, "--judge-model", MODEL,
            "--concurrency", 2,
        )  # fmt: skip
        process = subprocess.Popen(
            command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE
        )
        deadline = time.monotonic() + 600
        parents = len(_unlearnable(run))
        while len(server.posted) < parents + 10:  # All are written, some are checked.
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        process.kill()
        process.communicate()
        ran = _augment(run, server)
    assert ran.status == 0, ran.stderr
    assert len(_rows(run)) == parents
    counts = Counter(json.dumps(body) for body in server.posted)
    assert len(counts) == 2 * parents
    assert sum(count > 1 for count in counts.values()) <= 2


def test_the_same_again_asks_nothing_and_a_dry_run_tells_so(run: Path) -> None:
    with language_model(_added) as server:
        dry = _augment(run, server, "--dry-run", "--json", "--price-in", 1, "--price-out", 1)
        assert not server.posted and not server.keys
        assert _augment(run, server).status == 0
        asked = len(server.posted)
    estimate = json.loads(dry.stdout)["estimate"]
    assert estimate["writer"]["requests"] == len(_unlearnable(run))
    assert estimate["checker"]["requests"] == 4 * len(_unlearnable(run))
    assert estimate["checker"]["cost"] > 0
    first = (run / "augmentation/similar.jsonl").read_bytes()
    ran = _augment(run, server)
    assert ran.status == 0, ran.stderr
    assert (run / "augmentation/similar.jsonl").read_bytes() == first
    summary = json.loads((run / "augmentation/similar.json").read_text())
    assert sum(each["requests"] for each in summary["reused"].values()) == asked
    assert "cost not known" in _augment(run, server, "--dry-run").stdout


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--mode", "other"], "--mode is 'other'; it must be similar or subproblems"),
        (["--tags", "hard"], "'hard' is no tag"),
        (["--per-item", "0"], "--per-item"),
        (["-o", "new.parquet"], "must end in .jsonl"),
        (["--check-model", "another"], "has no model 'another'"),
    ],
)
def test_bad_usage_is_one_line(run: Path, options: list[str], why: str) -> None:
    with language_model(_added) as server:
        ran = _augment(run, server, *options)
    assert ran.status == 2, ran.stderr
    assert why in ran.last_line


def test_the_dataset_is_not_overwritten_and_a_dataset_that_is_gone_is_told(run: Path) -> None:
    dataset = run.parent / "run.jsonl"
    with language_model(_added) as server:
        ran = _augment(run, server, "-o", dataset)
        assert ran.status == 2 and "is the dataset that was tagged" in ran.last_line
        write_jsonl(dataset, [{"question": "What is 1 + 1?", "answer": "1"}])
        ran = _augment(run, server)
        assert ran.status == 2 and "has only 1 of the 20 items" in ran.last_line


# --- What takes the new items --------------------------------------------------------------------


@contextmanager
def _tiny_writer() -> Iterator[StandIn]:
    """Writes sums that the tiny model has words for, and knows their answers."""
    made = iter([(a, b) for a in range(9, -1, -1) for b in range(a + 1) if a + b < 10])

    def script(messages: list[dict[str, str]]) -> object:
        if _is_writer(messages):
            a, b = next(made)
            return _problems((f"what is {a} + {b} = ?", str(a + b)))
        a, b = (int(word) for word in messages[1]["content"].split() if word.isdigit())
        return _answer(str(a + b))

    with language_model(script) as server:
        yield server


def test_new_items_are_tagged_and_trained_on(tiny_model: Path, tmp_path: Path) -> None:
    from recipes.train.tagged_run import TaggedRun

    dataset = write_jsonl(
        tmp_path / "sums.jsonl",
        [
            {"question": f"what is {a} + {b} ?", "answer": str(a + b)}
            for a in (1, 2)
            for b in (3, 4)
        ],
    )
    base = ("--model", tiny_model, "--min-rollouts", 8)
    assert (
        tag(dataset, *base, "--run-dir", tmp_path / "run", "--out", tmp_path / "t.jsonl").status
        == 0
    )
    dataset.unlink()  # The tagged file has all that is needed.
    out = tmp_path / "new.jsonl"
    with _tiny_writer() as server:
        found = augment(
            tmp_path / "run", "similar", base_url=server.url, judge_model=MODEL, out=out,
            tags=["easy", "learnable", "unlearnable", "no_positive", "undetermined"],
        )  # fmt: skip
    assert found["kept"] == 4, found
    ran = tag(out, *base, "--run-dir", tmp_path / "more", "--out", tmp_path / "u.jsonl")
    assert ran.status == 0, ran.stderr
    rows = read_jsonl(tmp_path / "u.jsonl")
    assert [row["parent_item_id"] for row in rows] == [
        row["item_id"] for row in read_jsonl(tmp_path / "t.jsonl")
    ]
    assert all(row["trainability"] for row in rows)
    # As `validate --extra-items` reads it: rendered as the run's own items were.
    extra = TaggedRun(tmp_path / "run").read_prompts(str(out), tmp_path / "extra")
    assert [item.item_id for item in extra] == [row["item_id"] for row in rows]


def test_items_of_a_conversation_keep_their_form(tmp_path: Path) -> None:
    from recipes.augment.augment import Candidate, _row

    messages = (("system", "Answer with a number."), ("user", "What is 1 + 1?"))
    row = _row(Candidate("p", "What is 2 + 2?", "4"), Question(messages, "2"), "similar")
    assert row["prompt"] == [
        {"role": "system", "content": "Answer with a number."},
        {"role": "user", "content": "What is 2 + 2?"},
    ]
