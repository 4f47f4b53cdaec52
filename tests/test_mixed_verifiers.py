"""A verifier a row: known names, named ones, and what is rejected; and the run that results."""

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from curate.config import TagConfig, changed_settings, read_config_file
from curate.datasets.fields import RowRejected
from curate.errors import UsageError
from curate.run.run import Run
from probes.verifiers.by_row import RowVerifiers, kinds_hint
from probes.verifiers.pool import VerifierPool
from tests.tag_runs import Ran, read_jsonl, read_rollouts, run_curate, tag, write_jsonl


def by(field: str = "dataset", **table: str) -> RowVerifiers:
    return RowVerifiers(TagConfig(verifier_field=field, verifiers=table))


@pytest.mark.parametrize(
    ("value", "verifier"),
    [
        ("gsm8k", "numeric"),
        ("MATH", "math"),
        (["math"], "math"),
        ("string_matcher", "exact"),
        ("openai/gsm8k", "numeric"),
        ("DigitalLearningGmbH/MATH-lighteval", "math"),
        ("math_dapo", "math"),
        ("aime2024", "math"),
        ("numina_olympiads", "math"),
        ("train-math-numinamath1.5_olympiads", "math"),
        ("searchR1_nq", "exact"),
        ("verifiable_math", "math"),
        ("choice", "choice"),
        ("mine", "choice"),
        ("other", "tests.verifiers_loading:f"),
    ],
)
def test_a_row_s_kind_names_its_verifier(value: Any, verifier: str) -> None:
    verifiers = by(mine="choice", other="tests.verifiers_loading:f")
    assert verifiers.of({"dataset": value}) == verifier
    assert verifier in verifiers.names


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, "'dataset' is missing or null"),
        ({"dataset": None}, "missing or null"),
        ({"dataset": ""}, "missing or null"),
        ({"dataset": ["math", "code"]}, "is a list, not a name"),
        ({"dataset": "poetry"}, r"no verifier is known for dataset 'poetry'; name one in \[verif"),
        ({"dataset": "x" * 500}, "no verifier is known"),
        ({"dataset": "ifeval"}, "constraints on the wording, which no verifier here judges"),
        ({"dataset": "general-quality_ref"}, "language model's judgement"),
        ({"dataset": "llm_judgeable_groundtruth_similarity"}, "language model's judgement"),
    ],
)
def test_a_kind_without_a_verifier_is_a_reason(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowRejected, match=reason) as caught:
        by().of(row)
    assert len(str(caught.value)) < 200


def test_the_table_wins_and_its_star_is_for_all_others() -> None:
    verifiers = by("extra_info.kind", **{"gsm8k": "exact", "*": "math"})
    assert verifiers.of({"extra_info": {"kind": "gsm8k"}}) == "exact"
    assert verifiers.of({"extra_info": {"kind": "poetry"}}) == "math"
    assert verifiers.of({"extra_info": '{"kind": "openai/gsm8k"}'}) == "numeric"


@pytest.mark.parametrize("value", ["taco", "codecontests", "train-code-leetcode", "code"])
def test_programs_are_judged_where_they_have_a_sandbox(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("probes.verifiers.by_row.why_no_sandbox", lambda: ("none is here", ""))
    with pytest.raises(RowRejected, match="needs the verifier code: none is here"):
        by().of({"dataset": value})
    assert "code" not in by().names
    monkeypatch.setattr("probes.verifiers.by_row.why_no_sandbox", lambda: None)
    assert by().of({"dataset": value}) == "code" and "code" in by().names
    tests = json.dumps({"inputs": ["1"], "outputs": ["2"]})
    assert by().why_no_answer("code", tests) is None
    assert "tests of a program" in str(by().why_no_answer("math", tests))


def test_without_a_field_all_rows_have_the_run_s_verifier() -> None:
    verifiers = RowVerifiers(TagConfig(verifier="exact"))
    assert verifiers.of({"dataset": "gsm8k"}) == "exact"
    assert verifiers.names == ("exact",)
    assert verifiers.why_no_answer("mine:judge", "proof") is None


def test_a_table_needs_its_field_and_names() -> None:
    with pytest.raises(UsageError, match="needs --verifier-field"):
        TagConfig(verifiers={"a": "math"})
    with pytest.raises(UsageError, match=r"\[verifiers\] a is 5"):
        TagConfig(verifier_field="x", verifiers={"a": 5})


def test_a_run_of_before_goes_on_and_another_verifier_is_another_run() -> None:
    old = tomllib.loads(TagConfig().to_toml())
    del old["verifiers"], old["verifier_field"]
    assert changed_settings(old, TagConfig()) == []
    changed = changed_settings(old, TagConfig(verifier_field="x", verifiers={"a": "math"}))
    assert [line.partition(":")[0] for line in changed] == ["verifier_field", "verifiers"]


def test_kinds_that_are_judged_differently_are_hinted_at() -> None:
    rows = [{"dataset": "gsm8k"}, {"dataset": ["MATH"]}, {"dataset": "mine"}]
    assert "--verifier-field dataset" in kinds_hint(rows, "dataset")
    assert kinds_hint(rows[:1], "dataset") == kinds_hint(rows, "source") == ""
    assert kinds_hint([{"dataset": "openai/gsm8k"}, {"dataset": "gsm8k"}], "dataset") == ""


def test_one_pool_judges_by_several_verifiers() -> None:
    with VerifierPool("exact", others=("numeric", "choice", "exact"), workers=1) as pool:
        verdicts = pool.judge(
            [
                ("it is 4.0", "4"),
                ("it is 4.0", "4", "numeric"),
                ("The answer is (B)", "B", "choice"),
                ("The answer is (B)", "B", None),
            ]
        )
        assert [verdict.reward for verdict in verdicts] == [0, 1, 1, 0]
        why = pool.check_golds(["x", "x", "x"], verifiers=["exact", "numeric", "choice"])
    assert why[0] is None
    assert str(why[1]).startswith("numeric verifier") and str(why[2]).startswith("choice verifier")
    with (
        pytest.raises(UsageError, match="unknown verifier 'nothing'"),
        VerifierPool("exact", others=("nothing",), workers=1),
    ):
        pass


# --- A run ---------------------------------------------------------------------------------------

KINDS: list[tuple[Any, str, str | None]] = [
    ("gsm8k", "1.0", "numeric"),
    (["MATH"], "2", "math"),
    ("words", "3", "exact"),
    ("mmlu", "B", "choice"),
    ("ifeval", '{"func_name": "validate_lowercase"}', None),
    ("poetry", "roses", None),
    (None, "4", None),
    ("math", "proof", None),
    ("mmlu", "5", None),
]


@pytest.fixture(scope="module")
def ran(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Ran, Path]]:
    folder = tmp_path_factory.mktemp("mixed")
    rows = [
        {
            "messages": [{"role": "user", "content": f"what is {n} + 1 ?"}],
            "ground_truth": gold,
            "dataset": kind,
        }
        for n, (kind, gold, _) in enumerate(KINDS)
    ]
    write_jsonl(folder / "a.jsonl", rows)
    (folder / "c.toml").write_text(
        'verifier_field = "dataset"\n[verifiers]\nwords = "exact"\nmmlu = "choice"\n'
    )
    ran = tag(
        *(folder / "a.jsonl", "--model", tiny_model, "--config", folder / "c.toml"),
        *("--out", folder / "out.jsonl", "--run-dir", folder / "run"),
        *("--min-rollouts", "128", "--instruction", "", "--temperature", "1.0"),
    )
    assert ran.status == 0, ran.stderr
    yield ran, folder


def test_the_file_says_what_judged_each_row(ran: tuple[Ran, Path]) -> None:
    rows = read_jsonl(ran[1] / "out.jsonl")
    assert [row["verified_by"] for row in rows] == [verifier for _, _, verifier in KINDS]
    reasons = [row["tag_reason"] for row in rows[4:]]
    words = ("wording", "poetry", "missing or null", "'proof'", "choice verifier")
    for reason, word in zip(reasons, words, strict=True):
        assert reason.startswith("rejected: ") and word in reason


def test_each_rollout_is_judged_by_its_own(ran: tuple[Ran, Path]) -> None:
    items = {row["item_id"]: row for row in pq.read_table(ran[1] / "run/items.parquet").to_pylist()}
    assert [item["verifier"] for item in items.values()] == ["numeric", "math", "exact", "choice"]
    rollouts = read_rollouts(ran[1] / "run").to_pylist()
    asked = [
        (row["completion"], items[row["item_id"]]["answer"], items[row["item_id"]]["verifier"])
        for row in rollouts
    ]
    with VerifierPool("math", others=("numeric", "exact", "choice"), workers=1) as pool:
        verdicts = pool.judge(asked)
    for row, verdict in zip(rollouts, verdicts, strict=True):
        expected = 0 if row["finish_reason"] == "length" else verdict.reward
        assert row["reward"] == expected
    # The numeric verifier takes "1" for "1.0", which no text equals.
    (numeric,) = (item_id for item_id, item in items.items() if item["verifier"] == "numeric")
    assert any(row["reward"] for row in rollouts if row["item_id"] == numeric)


def test_the_run_tells_it_again(ran: tuple[Ran, Path]) -> None:
    run = Run.open(ran[1] / "run")
    assert run.items()["verifier"].to_pylist() == ["numeric", "math", "exact", "choice"]
    assert read_config_file(ran[1] / "run/config.toml")["verifiers"] == {
        "words": "exact",
        "mmlu": "choice",
    }
    done = run_curate("card", ran[1] / "run")
    assert done.status == 0, done.stderr
    card = (ran[1] / "run/README.md").read_text()
    assert "the row's own, by `dataset`" in card
    assert "| `verified_by` |" in card


def test_runs_of_before_have_no_such_column(ran: tuple[Ran, Path], tmp_path: Path) -> None:
    table = pq.read_table(ran[1] / "run/items.parquet")
    from curate.run.tables import ITEMS

    pq.write_table(table.drop_columns("verifier"), tmp_path / "items.parquet")
    assert ITEMS.lacks(tmp_path, "row", "verifier") == ["verifier"]
    pq.write_table(table, tmp_path / "items.parquet")
    assert ITEMS.lacks(tmp_path, "row", "verifier") == []


def test_a_mixed_dataset_under_one_verifier_is_warned_of(tiny_model: Path, tmp_path: Path) -> None:
    rows = [
        {"question": "what is 1 ?", "answer": "1", "data_source": "openai/gsm8k"},
        {"question": "what is 2 ?", "answer": "2", "data_source": "math_dapo"},
    ]
    done = tag(
        *(write_jsonl(tmp_path / "a.jsonl", rows), "--model", tiny_model, "--min-rollouts", "1"),
        *("--out", tmp_path / "out.jsonl", "--run-dir", tmp_path / "run"),
    )
    assert "--verifier-field data_source" in done.stderr
    assert "verified_by" not in read_jsonl(tmp_path / "out.jsonl")[0]
