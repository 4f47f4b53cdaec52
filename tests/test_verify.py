"""`curate verify`: verdicts with what was read and why, from files, runs, golds and two strings."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

import curate
from curate.errors import UsageError
from probes.verifiers.verdict import Verdict
from tests.made.run import Items, made_run
from tests.tag_runs import read_jsonl, run_curate, write_jsonl

ONE = ("--verifier-workers", "1")


def facts(*arguments: object) -> dict[str, Any]:
    ran = run_curate("verify", *arguments, *ONE, "--json")
    assert ran.status == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


# --- The library ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verifier", "completion", "gold", "expected"),
    [
        (
            "math",
            r"so \boxed{0.5}",
            "1/2",
            Verdict(1, "correct", "0.5", "its last box equals the gold", "1/2", "1/2"),
        ),
        (
            "math",
            "the answer is 4",
            "5",
            Verdict(0, "wrong", "4", "the answer in its text does not equal the gold", "4", "5"),
        ),
        (
            "math",
            r"\boxed{7 * 8}",
            "56",
            Verdict(
                0,
                "wrong",
                "7 * 8",
                "its last box does not equal the gold: arithmetic is left undone",
                "7*8",
                "56",
            ),
        ),
        (
            "math",
            r"\boxed{5\text{ cm}}",
            r"5\text{ m}",
            Verdict(
                0,
                "wrong",
                r"5\text{ cm}",
                "its last box does not equal the gold: another unit",
                "5 cm",
                "5 m",
            ),
        ),
        (
            "numeric",
            "first 3, then 1,000.5",
            "$1000.50",
            Verdict(
                1,
                "correct",
                "1,000.5",
                "the number in its text equals the gold",
                "1000.5",
                "1000.5",
            ),
        ),
        (
            "numeric",
            "nothing",
            "7",
            Verdict(0, "no_answer", None, "no answer was found in the completion", None, "7"),
        ),
        (
            "exact",
            "well\n#### New  York",
            "new york",
            Verdict(
                1,
                "correct",
                "New  York",
                "the answer that it marks equals the gold",
                "new york",
                "new york",
            ),
        ),
        (
            "choice",
            "The answer is (B)",
            "(C)",
            Verdict(0, "wrong", "B", "the letter in its text does not equal the gold", "B", "C"),
        ),
        (
            "choice",
            "B",
            "maybe",
            Verdict(None, "error", None, "finds no letter from A to J in the gold"),
        ),
    ],
)
def test_a_verdict_says_what_was_read_and_why(
    verifier: str, completion: str, gold: str, expected: Verdict
) -> None:
    assert curate.verify(completion, gold, verifier=verifier, workers=1) == [expected]


def test_answers_are_one_for_all_or_one_each_and_may_be_numbers() -> None:
    assert [v.reward for v in curate.verify(["3", "4"], 4, workers=1)] == [0, 1]
    assert [v.reward for v in curate.verify(["3", "4.5"], [3, 4.5], workers=1)] == [1, 1]
    assert curate.verify([], [], workers=1) == []
    with pytest.raises(UsageError, match="2 completions and 1 answers"):
        curate.verify(["3", "4"], ["3"])
    with pytest.raises(UsageError, match="completion 1 is None"):
        curate.verify(["3", None], ["3", "3"])  # type: ignore[list-item]
    with pytest.raises(UsageError, match="answer 0: the gold answer is a list of 2"):
        curate.verify(["3"], [["3", "4"]])  # type: ignore[list-item]
    with pytest.raises(UsageError, match="did you mean numeric"):
        curate.verify(["3"], ["3"], verifier="numerical")


def test_a_users_function_says_its_number_and_a_hostile_answer_costs_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "verify_rewards.py").write_text(
        "def part(c, a):\n"
        "    while c == 'hang': pass\n"
        "    return len(set(c) & set(a)) / len(set(a))\n"
    )
    monkeypatch.chdir(tmp_path)
    found = curate.verify(["ab", "a", "hang"], "ab", "verify_rewards:part", seconds=1, workers=1)
    assert [v.reward for v in found] == [1, 0.5, None]
    assert found[0].reason == "returned 1, which reaches its maximum"
    assert found[1].reason == "returned 0.5, below its maximum"
    assert found[2].verdict == "timeout" and "1 s" in str(found[2].reason)
    (half,) = curate.verify("a", "ab", "verify_rewards:part", pass_threshold=0.5, workers=1)
    assert half == Verdict(0.5, "correct", None, "returned 0.5, which reaches --pass-threshold 0.5")
    with pytest.raises(UsageError, match="math gives 0 or 1"):
        curate.verify("a", "ab", pass_threshold=0.5, workers=1)


# --- The command ---------------------------------------------------------------------------------


def test_two_strings() -> None:
    ran = run_curate("verify", "--answer", r"it is \boxed{7*8}", "--gold", "56", *ONE)
    assert (ran.status, ran.stderr) == (0, "")
    assert ran.stdout.splitlines() == [
        "verdict:      wrong (reward 0)",
        "answer found: 7*8",
        "read as:      7*8",
        "gold:         56",
        "gold read as: 56",
        "why:          its last box does not equal the gold: arithmetic is left undone",
    ]
    found = facts("--answer", "x^2", "--gold", "x^2", "--boxed")
    assert found["verdicts"][0]["answer_found"] == "x^2"
    assert found["counts"] == {"correct": 1}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give SOURCE, or --answer TEXT with --gold TEXT"),
        (("x.jsonl", "--gold", "3"), "give SOURCE, or --answer TEXT with --gold TEXT"),
        (("--answer", "3"), "--answer needs --gold TEXT"),
        (("no_such.jsonl",), "no_such.jsonl"),
        (("--answer", "3", "--gold", "3", "--out", "x.txt"), "--out is x.txt; it must end in"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(arguments: tuple[str, ...], said: str) -> None:
    ran = run_curate("verify", *arguments, *ONE)
    assert ran.status == 2
    assert said in ran.stderr
    assert ran.stderr.count("\n") == 1


ROWS: list[Any] = [
    {"completion": r"\boxed{3}", "answer": "3", "reward": 1},
    {"completion": "it is 4", "answer": "#### 5", "reward": 1.0},
    {"completion": ["6", r"\boxed{7}"], "answer": 6},
    {"completion": [{"role": "assistant", "content": "8"}], "answer": "8"},
    {"completion": None, "answer": "9"},
    {"completion": "9"},
    '{"completion": ',
]


def test_a_file_of_answers_in_every_format_it_may_have(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "answers.jsonl", ROWS)
    found = facts(file)
    assert [(v["row"], v["reward"]) for v in found["verdicts"]] == [
        (1, 1), (2, 0), (3, 1), (3, 0), (4, 1)
    ]  # fmt: skip
    assert found["counts"] == {"correct": 3, "wrong": 2}
    assert (found["recorded"], found["differ"]) == (2, 1)
    assert [each["row"] for each in found["unreadable"]] == [5, 6, 7]
    plain = [{"response": "it is 4", "gold": "4"}, {"response": "5", "gold": "6"}]
    table = pa.Table.from_pylist(plain)
    pq.write_table(table, tmp_path / "answers.parquet")
    pa_csv.write_csv(table, tmp_path / "answers.csv")
    for name in ("answers.parquet", "answers.csv"):
        assert [v["reward"] for v in facts(tmp_path / name)["verdicts"]] == [1, 0]


@pytest.mark.parametrize(
    ("row", "options", "reward"),
    [
        ({"answer": "it is 4", "gold": "4"}, (), 1),
        ({"prompt": "?", "generation": "4", "reward_model": {"ground_truth": "4"}}, (), 1),
        ({"mine": "4", "theirs": "5", "answer": "4"}, ("--completion-field", "mine"), 1),
        (
            {"mine": "4", "theirs": "5", "answer": "4"},
            ("--completion-field", "mine", "--answer-field", "theirs"),
            0,
        ),
    ],
)
def test_columns_are_known_or_named(
    tmp_path: Path, row: dict[str, Any], options: tuple[str, ...], reward: int
) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [row])
    found = facts(file, *options)
    assert [v["reward"] for v in found["verdicts"]] == [reward]
    assert found["against_itself"] == 0


def test_columns_that_are_not_there_are_named(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [{"completion": "4", "truth": "4"}])
    ran = run_curate("verify", file)
    assert "no column of golds is known beside 'completion'" in ran.last_line
    ran = run_curate("verify", file, "--answer-field", "truht")
    assert "did you mean 'truth'" in ran.last_line


def test_the_columns_that_an_error_asks_for_can_be_named(tmp_path: Path) -> None:
    file = tmp_path / "own.csv"
    file.write_text("task,gold_number\nwhat is 1+1,2\nwhat is 1+2,3\n", encoding="utf-8")
    ran = run_curate("verify", file)
    assert ran.status == 2
    assert "name it with --prompt-field (and the gold answer's with --answer-field)" in ran.stderr
    gold = ("--answer-field", "gold_number")
    for options in (gold, (*gold, "--prompt-field", "task")):
        assert facts(file, *options)["counts"] == {"correct": 2}
    ran = run_curate("verify", file, *gold, "--prompt-field", "tusk")
    assert ran.status == 2 and "did you mean 'task'" in ran.last_line


def test_golds_alone_are_judged_against_themselves(tmp_path: Path) -> None:
    rows = [
        {"question": "one?", "answer": "so\n#### 1,000"},
        {"question": "two?", "answer": "?!"},
        {"question": "three?"},
    ]
    file = write_jsonl(tmp_path / "golds.jsonl", rows)
    found = facts(file)
    assert found["against_itself"] == 2
    assert [v["verdict"] for v in found["verdicts"]] == ["correct", "error"]
    assert found["verdicts"][1]["reason"] == "finds no answer in the gold that it can compare"
    assert [each["row"] for each in found["unreadable"]] == [3]
    ran = run_curate("verify", file, *ONE)
    assert "2 golds, each against itself, by math: 1 correct, 1 error" in ran.stdout
    assert "row 2: error: gold '?!': finds no answer" in ran.stdout


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_every_verdict_can_be_written(tmp_path: Path, suffix: str) -> None:
    file = write_jsonl(tmp_path / "answers.jsonl", ROWS)
    out = tmp_path / f"verdicts.{suffix}"
    ran = run_curate("verify", file, "--out", out, "--show", "1", *ONE)
    assert ran.status == 0, ran.stderr
    assert ran.stdout.splitlines()[:2] == [
        "row 2: wrong: '4' against gold '5': the answer in its text does not equal the gold",
        "… and 1 more that are not correct (--show, --out)",
    ]
    read = {
        "jsonl": read_jsonl,
        "csv": lambda path: pa_csv.read_csv(path).to_pylist(),
        "parquet": lambda path: pq.read_table(path).to_pylist(),
    }[suffix]
    rows = read(out)
    assert [row["reward"] for row in rows] == [1, 0, 1, 0, 1]
    assert rows[1]["recorded"] == 1
    assert "item_id" not in rows[0]
    assert "verdicts" not in facts(file, "--out", out)


def test_a_run_is_judged_by_its_own_verifier_or_another(tmp_path: Path) -> None:
    rows = [
        ("a", 0, "12 boxes", "stop", 1, "correct"),
        ("a", 1, "it is 13", "stop", 1, "correct"),
        ("a", 2, "it is 12", "length", 0, "truncated"),
        ("b", 0, "3", None, None, None),
    ]
    names = ("item_id", "sample", "completion", "finish_reason", "reward", "verdict")
    run = made_run(
        tmp_path / "run",
        Items(["a", "b"], [1, 0]),
        tables={"items": {"answer": ["12", "3"]}},
        rollouts=[[dict(zip(names, row, strict=True)) for row in rows]],
        settings={"verifier": "numeric"},
    )
    found = facts(run)
    assert found["verifier"] == "numeric"
    assert [v["verdict"] for v in found["verdicts"]] == ["correct", "wrong", "truncated"]
    assert (found["recorded"], found["differ"]) == (3, 1)
    assert [(v["item_id"], v["sample"]) for v in found["verdicts"]] == [
        ("a", 0), ("a", 1), ("a", 2)
    ]  # fmt: skip
    found = facts(run, "--verifier", "exact", "--limit", "1")
    assert [v["verdict"] for v in found["verdicts"]] == ["wrong"]
    text = run_curate("verify", run, *ONE).stdout
    assert "item a sample 1: wrong: '13' against gold '12'" in text
    assert "1 of 3 rewards differ from those recorded" in text


def test_a_gold_is_shown_as_it_is_compared() -> None:
    ran = run_curate("verify", "--answer", "72", "--gold", "x #### 72", *ONE)
    assert "gold read as: 72\n" in ran.stdout and "correct (reward 1)" in ran.stdout


def test_golds_that_cannot_be_read_for_one_reason_share_a_line(tmp_path: Path) -> None:
    rows = [{"question": f"how many are {'they' * (n + 1)}?", "answer": "3"} for n in range(7)]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    options = ("--answer-field", "question", "--verifier", "numeric")
    said = run_curate("verify", file, *options, *ONE).stdout
    assert said.startswith(
        "7 x error: finds no finite number in the gold; row 1, row 2, row 3, row 4, row 5, …; "
        "first gold 'how many are they?'\n"
    )
    assert said.count("finds no finite") == 1 and "is this the answer column?" in said
    assert "is this the answer" not in run_curate("verify", file, *ONE).stdout
    # All of them are counted, however few lines are asked for, and with --out as well.
    out = ("--out", tmp_path / "verdicts.csv")
    for more in ((), out):
        said = run_curate("verify", file, *options, "--show", "1", *more, *ONE).stdout
        assert said.startswith("7 x error: ") and "more that are not correct" not in said
