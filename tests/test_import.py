"""`curate import`: a run folder of rollouts that exist, with a policy and without one."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import curate
from curate.config import TagConfig, changed_settings, config_from_mapping
from curate.errors import UsageError
from curate.rollout_files import own_prompts
from curate.rollout_files.read import RolloutFiles, open_rollouts
from curate.rollout_files.record import LoggedRollout
from curate.run.folder import lock_folder, read_manifest
from curate.run.run import Run
from curate.run.tables import LIFT, PASS_RATES, SIMILARITY, TAGS, TEACHING
from probes.statistics.pass_rates import pass_rate_interval
from recipes.train.tagged_run import TaggedRun
from tests.tag_runs import Ran, additions, read_jsonl, run_curate, write_jsonl

EVALUATIONS = Path(__file__).parent / "data/evaluations"
SAMPLES = 20
# Right ones of twenty rollouts of each item, and what they alone say of it.
RIGHT = {0: "no_positive", 1: "undetermined", 2: "easy", 20: "easy"}
QUESTIONS = additions(len(RIGHT))


def rollouts(**more: Any) -> list[dict[str, Any]]:
    """Rows of a table, item by item."""
    return [
        {
            "prompt": question["question"],
            "completion": question["answer"] if sample < right else "9 9",
            "reward": float(sample < right),
            "answer": question["answer"],
            **more,
        }
        for question, right in zip(QUESTIONS, RIGHT, strict=True)
        for sample in range(SAMPLES)
    ]


def take(folder: Path, *arguments: object) -> Ran:
    """`curate import` of files into folder/run and folder/out.jsonl."""
    return run_curate(
        *("import", *arguments, "--run-dir", folder / "run", "--out", folder / "out.jsonl")
    )


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run without a policy, and of its files."""
    folder = tmp_path_factory.mktemp("imported")
    log = write_jsonl(folder / "log.jsonl", rollouts())
    ran = take(folder, log, "--rollouts-by", "a 7B", "--temperature", "0.6", "--max-tokens", "64")
    assert ran.status == 0, ran.stderr
    (folder / "said.txt").write_text(ran.stdout)
    return folder


def test_pass_rates_and_tags_without_a_policy(imported: Path) -> None:
    run = Run.open(imported / "run")
    rates = PASS_RATES.read(run.path).to_pydict()
    assert rates["total_rollouts"] == [SAMPLES] * 4
    assert rates["total_correct_rollouts"] == [*RIGHT]
    assert rates["pass_rate"] == [right / SAMPLES for right in RIGHT]
    for right, low, high in zip(
        RIGHT, rates["pass_rate_low"], rates["pass_rate_high"], strict=True
    ):
        assert (low, high) == pytest.approx(pass_rate_interval(right, SAMPLES))
    # Nobody knows how long text is in tokens.
    assert rates["mean_completion_tokens"] == [None] * 4
    assert run.tags() == [*RIGHT.values()]
    rows = read_jsonl(imported / "out.jsonl")
    assert [row["trainability"] for row in rows] == [*RIGHT.values()]
    assert {row["forecast_pass_rate"] for row in rows} == {None}
    assert "there is no forecast" in rows[1]["tag_reason"]
    assert run.features() is None and run.weight_hash is None
    for table in (SIMILARITY, LIFT, TEACHING, TAGS):
        assert table.read(run.path).schema.names == [*table.columns]


def test_the_summary_says_what_drew_them_and_how_to_go_on(imported: Path) -> None:
    said = (imported / "said.txt").read_text()
    assert "    drawn by a 7B, temperature 0.6, at most 64 tokens\n" in said
    assert (
        "forecast: none, since there is no policy: rollouts were imported without --model" in said
    )
    assert f"--model MODEL --rollouts {imported / 'run'} --golds optional --instruction ''" in said
    assert "0 cut, 0 not judged)\n" in said


def test_what_drew_them_is_on_the_card_or_that_it_is_not_known(
    imported: Path, tmp_path: Path
) -> None:
    ran = run_curate("card", imported / "run", "-o", imported / "card.md")
    assert ran.status == 0, ran.stderr
    card = (imported / "card.md").read_text()
    assert "rollouts that existed: drawn by a 7B, temperature 0.6, at most 64 tokens." in card
    assert "- Model: none: rollouts were imported" in card and "LoRA" not in card
    assert "that takes a policy, and rollouts alone were imported" in card
    log = write_jsonl(tmp_path / "log.jsonl", rollouts()[:2])
    assert take(tmp_path, log).status == 0
    assert run_curate("card", tmp_path / "run", "-o", tmp_path / "card.md").status == 0
    assert "**which policy drew them, and how, is not known**" in (tmp_path / "card.md").read_text()
    # It may be said later, without a second run.
    assert take(tmp_path, log, "--max-tokens", "9").status == 0
    assert run_curate("card", tmp_path / "run", "-o", tmp_path / "card.md").status == 0
    words = "at most 9 tokens, **which policy drew them and at which temperature is not known**"
    assert words in (tmp_path / "card.md").read_text()


def test_commands_that_need_no_policy_work_and_others_say_what_to_do(
    imported: Path, tmp_path: Path
) -> None:
    run = imported / "run"
    for arguments in (
        ("report", run, "-o", tmp_path / "report.html"),
        ("filter", run, "--keep", "easy", "-o", tmp_path / "easy.jsonl"),
        ("order", run, "--by", "pass_rate", "-o", tmp_path / "ordered.jsonl"),
        ("push", run, "--repo", "a/b", "--dry-run"),
    ):
        ran = run_curate(*arguments)
        assert ran.status == 0, ran.stderr
    assert len(read_jsonl(tmp_path / "easy.jsonl")) == 2
    assert '"model": "a 7B"' in (tmp_path / "report.html").read_text().replace(
        '"model":"a 7B"', '"model": "a 7B"'
    )
    ran = run_curate("forecast", run, "--lift", "gradients")
    assert ran.status == 2 and "was imported without a policy: curate tag" in ran.last_line
    with pytest.raises(UsageError, match="was imported without a policy: curate tag"):
        TaggedRun(run)


def test_outcomes_of_a_training_elsewhere_confirm_it(imported: Path) -> None:
    rows = [row | {"step": step} for step in (1, 2) for row in rollouts()]
    log = write_jsonl(imported / "training.jsonl", rows)
    ran = run_curate("confirm", imported / "run", "--training", log)
    assert ran.status == 0, ran.stderr
    ran = run_curate("calibrate", imported / "run")
    assert ran.status == 2 and "was imported without a policy" in ran.last_line


def test_tag_goes_on_from_the_run_with_a_policy(
    imported: Path, tiny_model: Path, tmp_path: Path
) -> None:
    dataset = write_jsonl(tmp_path / "sums.jsonl", QUESTIONS)
    ran = run_curate(
        *("tag", dataset, "--model", tiny_model, "--rollouts", imported / "run"),
        *("--instruction", "", "--verifier", "numeric", "--gradient-dim", "64"),
        *("--verifier-workers", "1", "--run-dir", tmp_path / "run", "--out", tmp_path / "o.jsonl"),
    )
    assert ran.status == 0, ran.stderr
    assert "(a run of curate): 80, at most 20 of an item" in ran.stderr
    assert "80 came as text only: their tokens are encoded anew" in ran.stdout
    assert "    drawn by a 7B, temperature 0.6, at most 64 tokens" in ran.stdout
    names = ("total_correct_rollouts", "pass_rate", "pass_rate_low", "pass_rate_high")
    ours, theirs = (PASS_RATES.read(each / "run", *names) for each in (tmp_path, imported))
    assert ours.equals(theirs)
    lifts = LIFT.read(tmp_path / "run")["lift"].to_pylist()
    assert lifts[0] is None and None not in lifts[1:]
    card = run_curate("card", tmp_path / "run", "-o", tmp_path / "card.md")
    assert card.status == 0, card.stderr
    assert "Gradients are of `" in (tmp_path / "card.md").read_text()


def test_completions_of_token_ids_are_read_by_the_policy_that_comes_later(
    tiny_model: Path, tmp_path: Path
) -> None:
    told = [
        {"prompt": QUESTIONS[0]["question"], "completion": [token], "reward": float(token == 5)}
        for token in (5, 6)
    ]
    log = write_jsonl(tmp_path / "log.jsonl", [row | QUESTIONS[0] for row in told])
    assert take(tmp_path, log).status == 0
    kept = pq.read_table(tmp_path / "run/rollouts/00000.parquet").to_pylist()
    assert [row["completion_token_ids"] for row in kept] == [[5], [6]]
    dataset = write_jsonl(tmp_path / "sums.jsonl", QUESTIONS[:1])
    ran = run_curate(
        *("tag", dataset, "--model", tiny_model, "--rollouts", tmp_path / "run"),
        *("--instruction", "", "--verifier", "numeric", "--gradient-dim", "64"),
        *("--verifier-workers", "1", "--run-dir", tmp_path / "r2", "--out", tmp_path / "o.jsonl"),
    )
    assert ran.status == 0, ran.stderr
    read = pq.read_table(tmp_path / "r2/rollouts/00000.parquet").to_pylist()
    assert [row["completion_token_ids"] for row in read] == [[5], [6]]
    assert all(row["completion"] for row in read)


def test_a_dataset_may_be_named(tmp_path: Path) -> None:
    dataset = write_jsonl(tmp_path / "sums.jsonl", [*QUESTIONS, {"question": "?", "answer": "1"}])
    log = write_jsonl(tmp_path / "log.jsonl", rollouts(answer=None))
    ran = take(tmp_path, log, "--dataset", dataset)
    assert ran.status == 0, ran.stderr
    rows = read_jsonl(tmp_path / "out.jsonl")
    assert [row["trainability"] for row in rows] == [*RIGHT.values(), "undetermined"]
    assert rows[4]["tag_reason"] == "no judged rollouts"
    assert "1 items have none" in ran.stdout


def test_golds_are_optional_unless_completions_are_judged(tmp_path: Path) -> None:
    told = rollouts(answer=None)
    # The same prompt twice, once with a gold that no verifier would take.
    told += [told[-1] | {"answer": "see the appendix, as the proof is long", "reward": 0.0}]
    log = write_jsonl(tmp_path / "log.jsonl", told)
    ran = take(tmp_path, log)
    assert ran.status == 0, ran.stderr
    assert [row["total_rollouts"] for row in read_jsonl(tmp_path / "out.jsonl")] == [20] * 4 + [1]
    ran = run_curate("import", log, "--verifier", "numeric", "--run-dir", tmp_path / "judged")
    assert ran.status == 2 and "can be used" in ran.last_line


def test_completions_are_judged_anew(tmp_path: Path) -> None:
    log = write_jsonl(tmp_path / "log.jsonl", rollouts(reward=0.0))
    ran = take(tmp_path, log, "--verifier", "numeric")
    assert ran.status == 0, ran.stderr
    found = [row["total_correct_rollouts"] for row in read_jsonl(tmp_path / "out.jsonl")]
    assert found == [*RIGHT]


def test_agents_count_and_the_summary_says_that_they_have_no_gradients(tmp_path: Path) -> None:
    ran = take(tmp_path, EVALUATIONS / "tools.eval", "--column", "reward=includes")
    assert ran.status == 0, ran.stderr
    assert "1 are of several turns: they count, and their gradients are not measured" in ran.stdout
    assert "warning: 50% of the completions were cut at their limit of tokens" in ran.stderr
    turns = pq.read_table(tmp_path / "run/rollouts/00000.parquet")["turns"].to_pylist()
    assert turns == [2, 1]
    # Another run that takes them knows it still.
    again = run_curate(
        "import", tmp_path / "run", "--run-dir", tmp_path / "r2", "--out", tmp_path / "r2.jsonl"
    )
    assert "1 are of several turns" in again.stdout
    assert run_curate("card", tmp_path / "r2", "-o", tmp_path / "card.md").status == 0
    card = (tmp_path / "card.md").read_text()
    assert "1 are of several turns, and their gradients are not measured" in card


def test_evaluations_tell_what_drew_them(tmp_path: Path) -> None:
    ran = take(tmp_path, EVALUATIONS / "sums.eval", EVALUATIONS / "sums.json")
    assert ran.status == 0, ran.stderr
    assert "sums.eval and 1 more (inspect_ai): 8, at most 4 of an item" in ran.stdout
    assert "    drawn by mockllm/model, temperature 0.7, at most 64 tokens" in ran.stdout
    rows = read_jsonl(tmp_path / "out.jsonl")
    assert [row["pass_rate"] for row in rows] == [1.0, 0.5, 0.5]
    assert [turn["role"] for turn in rows[0]["prompt"]] == ["system", "user"]


def test_prompts_of_verl_are_messages_again_and_token_ids_need_a_policy(
    tiny_model: Path, tmp_path: Path
) -> None:
    told = [
        {"input": text, "output": "2", "gts": "2", "score": 1.0, "step": 1}
        for text in (
            "system\nBe brief.\nuser\n1+1=?\nassistant\n",
            "user\n\n1+1=?assistant\n\n",
            "user\n1+1=?\nassistant\n2\nuser\nAgain?\nassistant\n",
            "user\n1+1=?\nassistant\n<think>\n",
            "1+1=?",
        )
    ]
    ran = take(tmp_path, write_jsonl(tmp_path / "1.jsonl", told))
    assert ran.status == 0, ran.stderr
    user = {"role": "user", "content": "1+1=?"}
    assert [row["prompt"] for row in read_jsonl(tmp_path / "out.jsonl")] == [
        [{"role": "system", "content": "Be brief."}, user],
        [user],
        told[2]["input"],
        "1+1=?",
    ]
    # The fourth is the second again, and the last, which is plain text, the same item.
    assert [row["total_rollouts"] for row in read_jsonl(tmp_path / "out.jsonl")] == [1, 3, 1, 3]
    start = time.monotonic()
    for text in ("system\n" + "user\n" * 200_000, "user\nassistant\n" * 100_000):
        told = [{"input": text + "assistant", "output": "", "score": 1.0}]
        assert own_prompts._as_messages(told[0]["input"]) == told[0]["input"]
    assert time.monotonic() - start < 2
    tokens = {"prompt_tokens": [5, 6, 7], "response_tokens": [4], "reward": 10.0}
    ids = write_jsonl(
        tmp_path / "ids.jsonl", [tokens, tokens | {"response_tokens": [5], "reward": 0.0}]
    )
    more = ("--run-dir", tmp_path / "ids", "--out", tmp_path / "ids.out.jsonl")
    ran = run_curate("import", ids, *more)
    assert ran.status == 2 and "a prompt of token ids only: --model names" in ran.last_line
    ran = run_curate("import", ids, *more, "--model", tiny_model)
    assert ran.status == 0, ran.stderr
    (row,) = read_jsonl(tmp_path / "ids.out.jsonl")
    assert row["pass_rate"] == 0.5 and row["lift"] is not None
    # As they were logged, and not as they would be rendered.
    items = pq.read_table(tmp_path / "ids/items.parquet").to_pylist()
    assert [item["prompt_token_ids"] for item in items] == [[5, 6, 7]]
    assert read_manifest(tmp_path / "ids")["rollouts"]["encoded"] == 0
    many = write_jsonl(tmp_path / "many.jsonl", [tokens | {"prompt_tokens": [10**7]}])
    ran = run_curate("import", many, "--model", tiny_model, "--run-dir", tmp_path / "many")
    assert ran.status == 2, ran.stderr


def test_the_library_function_and_a_run_that_is_there(tmp_path: Path) -> None:
    log = write_jsonl(tmp_path / "log.jsonl", rollouts())
    run, out = str(tmp_path / "run"), str(tmp_path / "out.jsonl")
    found = curate.import_rollouts([log], run_dir=run, out=out)
    assert found["tags"]["easy"]["items"] == 2 and found["run_dir"] == run
    before = (tmp_path / "run/imported/log.jsonl").read_bytes()
    # The same again continues; others are refused, and leave it as it is.
    assert curate.import_rollouts(log, run_dir=run, out=out)["items"] == 4
    (tmp_path / "more").mkdir()
    other = write_jsonl(tmp_path / "more/log.jsonl", rollouts()[:3])
    with pytest.raises(UsageError, match="holds other rollouts: give these their own --run-dir"):
        curate.import_rollouts(other, run_dir=run, out=out)
    assert (tmp_path / "run/imported/log.jsonl").read_bytes() == before
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/todo.txt").write_text("x")
    with pytest.raises(UsageError, match="it is no run folder"):
        curate.import_rollouts(log, run_dir=str(tmp_path / "notes"), out=out)
    assert [each.name for each in (tmp_path / "notes").iterdir()] == ["todo.txt"]


def test_a_log_that_has_grown_is_not_taken_for_what_was_imported(tmp_path: Path) -> None:
    log = write_jsonl(tmp_path / "log.jsonl", rollouts())
    assert take(tmp_path, log).status == 0
    before = (tmp_path / "out.jsonl").read_bytes()
    write_jsonl(log, [*rollouts(), *rollouts()])
    ran = take(tmp_path, log)
    assert ran.status == 2 and "it has changed since: give this run its own --run-dir" in ran.stderr
    assert (tmp_path / "out.jsonl").read_bytes() == before
    # Nor is a run of ours that has others now; what is gone was taken, and is not needed again.
    again = ("--dataset", write_jsonl(tmp_path / "sums.jsonl", QUESTIONS))
    again += ("--run-dir", tmp_path / "again", "--out", tmp_path / "again.jsonl")
    assert run_curate("import", tmp_path / "run", *again).status == 0
    (shard,) = (tmp_path / "run/rollouts").iterdir()
    pq.write_table(pq.read_table(shard).slice(1), shard)
    ran = run_curate("import", tmp_path / "run", *again)
    assert ran.status == 2 and "it has changed since" in ran.stderr
    shutil.rmtree(tmp_path / "run")
    assert run_curate("import", tmp_path / "run", *again).status == 0


def test_a_log_that_grows_while_it_is_read_is_refused_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = write_jsonl(tmp_path / "log.jsonl", rollouts())
    arguments = (log, "--dataset", write_jsonl(tmp_path / "sums.jsonl", QUESTIONS))
    read = RolloutFiles.rollouts

    def growing(files: RolloutFiles) -> Iterator[LoggedRollout]:
        yield from read(files)
        write_jsonl(log, [*rollouts(), *rollouts()])

    with monkeypatch.context() as patch:
        patch.setattr(RolloutFiles, "rollouts", growing)
        assert take(tmp_path, *arguments).status == 0
    ran = take(tmp_path, *arguments)
    assert ran.status == 2 and "it has changed since" in ran.stderr


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    log = write_jsonl(tmp_path / "log.jsonl", rollouts())
    lock = lock_folder(tmp_path / "run", "")
    try:
        ran = take(tmp_path, log)
    finally:
        os.close(lock)
    assert ran.status == 2 and f"in use by process {os.getpid()}; wait for it" in ran.last_line
    assert not list((tmp_path / "run").rglob("*.jsonl"))


@pytest.mark.parametrize(
    ("row", "more", "said"),
    [
        ({"prompt": "", "reward": 1.0}, (), "rollout 1 has no prompt: name its column"),
        ({"prompt": "?", "reward": 0.5}, (), "none reaches 1: say from which"),
        ({"prompt": "?", "reward": None}, (), "no rollout has a reward"),
        ({"prompt": "?", "score": 1.0}, (), "no column 'reward'"),
        ({"prompt": "?", "reward": 1.0, "rollouts": 4}, (), "means of several rollouts"),
        ({"prompt": [{"role": "user", "content": [{"type": "image"}]}], "reward": 1.0}, (),
         "can be used; first: message 1 of the prompt holds 'image'"),
        ({"prompt": "?", "reward": 1.0}, ("--split", "test"), "--split is about --dataset"),
        ({"prompt": "?", "reward": 1.0}, ("--verifier", "math", "--correct-from", "0.5"),
         "--correct-from is for the rewards of the files"),
    ],
)  # fmt: skip
def test_what_cannot_be_imported_is_refused(
    tmp_path: Path, row: dict[str, Any], more: tuple[str, ...], said: str
) -> None:
    ran = take(tmp_path, write_jsonl(tmp_path / "log.jsonl", [row]), *more)
    assert ran.status == 2 and said in ran.last_line
    # A corrected command begins afresh.
    good = write_jsonl(tmp_path / "log.jsonl", [{"prompt": "??", "reward": 1.0}])
    ran = take(tmp_path, good)
    assert ran.status == 0, ran.stderr


def test_rows_that_are_wrong_stop_no_others(tmp_path: Path) -> None:
    good = {"prompt": "?", "completion": "1", "reward": 1.0}
    odd: list[dict[str, Any]] = [
        *({**good, "prompt": prompt} for prompt in ("", None, [5])),
        {"prompt": "?", "completion": "1"},
        {**good, "rollouts": 0},
        {**good, "completion": [10**30]},
        {**good, "completion": [-1]},
        {**good, "reward": 10**400},
    ]
    ran = take(tmp_path, write_jsonl(tmp_path / "log.jsonl", [good, *odd, good]))
    assert ran.status == 0, ran.stderr
    rates = PASS_RATES.read(tmp_path / "run").to_pylist()
    assert [(each["total_rollouts"], each["total_correct_rollouts"]) for each in rates] == [(4, 4)]
    assert "    3 are of no item of the dataset, such as a rollout without a prompt\n" in ran.stdout
    assert "    1 have no reward, and do not count\n" in ran.stdout
    first = f"{tmp_path / 'log.jsonl'}, row 5: there is no column 'reward'"
    assert f"    2 rows could not be read, such as {first}" in ran.stdout


def test_prompts_of_parquet_may_hold_what_json_has_not(tmp_path: Path) -> None:
    told = [{"role": "user", "content": None, "at": datetime(2026, 1, 2), "image": b"\xff"}]
    rows: list[dict[str, Any]] = [
        {"prompt": told, "completion": "1", "reward": Decimal("0.0")},
        {"prompt": [{**told[0], "content": "?"}], "completion": "1", "reward": Decimal("1.0")},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "log.parquet")
    ran = take(tmp_path, tmp_path / "log.parquet")
    assert ran.status == 0, ran.stderr
    assert "1 are of no item of the dataset, such as a prompt that is not of text" in ran.stdout
    assert "rollouts: 1 (1 correct" in ran.stdout


def test_numbers_of_csv_are_read(tmp_path: Path) -> None:
    """Each of its cells is text."""
    names = ("prompt", "completion", "reward", "step", "rollouts")
    rows = [("?", "1", reward, "2", "4") for reward in ("1.0", "0", " True", "false", "", "good")]
    text = "\n".join(",".join(cells) for cells in (names, *rows))
    (tmp_path / "log.csv").write_text(text)
    found = list(open_rollouts(tmp_path / "log.csv").rollouts())
    assert [each.reward for each in found] == [1.0, 0.0, 1.0, 0.0, None, None]
    assert {(each.step, each.rollouts) for each in found} == {(2, 4)}


def test_a_file_by_two_names_counts_once(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    log = write_jsonl(tmp_path / "logs/1.jsonl", rollouts())
    (tmp_path / "logs/latest.jsonl").symlink_to(log)
    (tmp_path / "link.jsonl").symlink_to(log)
    assert open_rollouts(tmp_path / "logs").files == (log,)
    # A store keeps what links name by its hash, without an ending.
    (tmp_path / "store").mkdir()
    shutil.copy(log, tmp_path / "store/3fa9")
    (tmp_path / "store/2.jsonl").symlink_to(tmp_path / "store/3fa9")
    assert open_rollouts(tmp_path / "store").files == (tmp_path / "store/2.jsonl",)
    for again in (log.parent / "../logs/1.jsonl", tmp_path / "link.jsonl"):
        with pytest.raises(UsageError, match="is named twice, once as"):
            open_rollouts([tmp_path / "logs", again])


def test_no_file_at_all_is_refused() -> None:
    ran = run_curate("import")
    assert ran.status == 2 and "FILE" in ran.last_line


# --- The options of `tag` about rollouts ---------------------------------------------------------


@pytest.mark.parametrize(
    "option",
    [
        ("--column", "reward=x"),
        ("--correct-from", "0.5"),
        ("--rollouts-by", "me"),
        ("--rollouts-temperature", "1"),
        ("--rollouts-max-tokens", "9"),
        ("--rollout-rewards", "judged"),
        ("--golds", "optional"),
    ],
)
def test_options_about_rollouts_need_rollouts(option: tuple[str, str]) -> None:
    ran = run_curate("tag", "sums.jsonl", "--model", "m", *option)
    assert ran.status == 2
    assert ran.last_line == (
        f"curate: {option[0]} is about rollouts that exist: name their files with --rollouts PATH, "
        f"or leave {option[0]} out"
    )


def test_options_that_contradict_each_other_are_refused() -> None:
    judged = {"rollouts": "x", "rollout_rewards": "judged"}
    for more in ({"golds": "optional"}, {"correct_from": 0.5}):
        with pytest.raises(UsageError, match="is for rewards as logged: leave it out"):
            config_from_mapping(judged | more, "test")
    # What samples has none of them.
    config = TagConfig(rollouts=("x",), correct_from=0.5, golds="optional")
    assert config.without_rollouts() == TagConfig()


def test_tag_without_a_model_names_import(tmp_path: Path) -> None:
    log = write_jsonl(tmp_path / "log.jsonl", rollouts())
    ran = run_curate("tag", log, "--rollouts", log)
    assert ran.status == 2 and "pass rates alone need no model: curate import" in ran.last_line


def test_settings_of_earlier_runs_are_the_same() -> None:
    old = {"dataset": "x", "model": "m"}
    assert changed_settings(old | {"rollouts": "", "column": []}, TagConfig()) == []
    assert changed_settings(old | {"rollouts": "a"}, TagConfig(rollouts=("a",))) == []
    assert changed_settings(old, TagConfig()) == []
    assert changed_settings(old, TagConfig(rollouts=("a",))) == ["rollouts: [] -> ['a']"]
    assert config_from_mapping({"rollouts": ""}, "test") == TagConfig()


def test_no_policy_is_loaded(tmp_path: Path) -> None:
    """Without --model nothing of a policy is touched; told by who would be asked for it."""
    log = write_jsonl(tmp_path / "log.jsonl", rollouts()[:2])
    with pytest.MonkeyPatch.context() as patch:
        for name in ("files.resolve_model", "load.load_policy", "load.load_tokenizer"):
            patch.setattr(f"probes.models.{name}", None)
        patch.setattr("probes.tag.resolve_model", None)
        patch.setattr("probes.tagging.run_tokenizer", None)
        assert take(tmp_path, log).status == 0
    assert read_manifest(tmp_path / "run")["model"] == {
        **{"weight_hash": None, "dtype": None, "id": "", "name": None, "revision": None},
    }
    assert json.loads((tmp_path / "run/lift.json").read_text())["source"] == "none"


def test_imports_of_several_policies_are_joined(imported: Path, tmp_path: Path) -> None:
    runs = []
    for name, rewards in (("weak", 0.0), ("strong", 1.0)):
        log = write_jsonl(tmp_path / "log.jsonl", rollouts(reward=rewards))
        run = tmp_path / name
        ran = run_curate("import", log, "--run-dir", run, "--out", tmp_path / f"{name}.jsonl")
        assert ran.status == 0, ran.stderr
        runs.append(run)
    ran = run_curate("join", *runs, imported / "run", "-o", tmp_path / "joined.jsonl")
    assert ran.status == 0, ran.stderr
    assert "what drew them is not known" in ran.stdout + ran.stderr
    (row, *_) = read_jsonl(tmp_path / "joined.jsonl")
    rates = [row[f"{name}.pass_rate"] for name in ("weak", "strong", "run")]
    assert rates == [0, 1, 0]
