"""Rollouts of evaluations: logs of inspect_ai and samples of lm-eval, as these wrote them.

The files in tests/data/evaluations were written by inspect_ai 0.3.285 and lm-eval 0.4.13, on
models that answer by rote, and by verifiers 0.1.14: `tests/evaluations_writing.py` made them, and
says how. slime's rows are written by hand, as its `Sample.to_dict` (commit 0d234f3) gives them: pip
does not have it.
"""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest

from curate.errors import UsageError
from curate.rollout_files.bounded_zip import BoundedZip
from curate.rollout_files.read import open_rollouts
from curate.rollout_files.record import Drawn
from tests.tag_runs import write_jsonl

FILES = Path(__file__).parent / "data/evaluations"
SAMPLES = FILES / "samples_sums_2026-11-29T16-00-00.jsonl"
VOTED = FILES / "samples_sums_voted_2026-11-29T16-00-00.jsonl"
QUESTION = "What is 1 + 1? " + "Think before you answer. " * 5


# --- inspect_ai ----------------------------------------------------------------------------------


def test_a_log_of_inspect_is_read() -> None:
    log = open_rollouts(FILES / "sums.eval")
    found = list(log.rollouts())
    assert log.format == "inspect_ai" and not log.unreadable
    assert log.drawn() == Drawn("mockllm/model", 0.7, 64)
    assert [each.reward for each in found] == [1, 1, 0, 1, 0, 1]
    assert [each.completion for each in found[:2]] == ["The answer is 2.", "4"]
    assert [each.answer for each in found] == ["2", "4", "6"] * 2
    assert {each.turns for each in found} == {1}
    prompt: Any = found[0].prompt
    # As the policy saw it, the system message included.
    assert [(each["role"], each["content"]) for each in prompt] == [
        ("system", "Be brief."),
        ("user", QUESTION),
    ]


def test_the_same_log_as_json_is_the_same() -> None:
    log = open_rollouts(FILES / "sums.json")
    as_zip = [each for each in open_rollouts(FILES / "sums.eval").rollouts() if each.answer == "2"]
    assert log.drawn() == Drawn("mockllm/model", 0.7, 64)
    for ours, theirs in zip(log.rollouts(), as_zip, strict=True):
        assert (ours.completion, ours.reward, ours.answer) == (
            theirs.completion,
            theirs.reward,
            theirs.answer,
        )


def test_scorers_are_named_and_turns_and_cuts_are_told() -> None:
    with pytest.raises(UsageError, match=r"2 scorers \(includes, match\): say which"):
        list(open_rollouts(FILES / "tools.eval").rollouts())
    with pytest.raises(UsageError, match="no scorer 'mach', only includes, match"):
        list(open_rollouts(FILES / "tools.eval", {"reward": "mach"}).rollouts())
    agent, cut = open_rollouts(FILES / "tools.eval", {"reward": "includes"}).rollouts()
    assert (agent.turns, agent.completion, agent.finish_reason) == (2, "It is 2 in all", None)
    assert (cut.turns, cut.finish_reason) == (1, "length")
    named = open_rollouts(FILES / "tools.eval", {"reward": "includes", "item_id": "id"})
    assert [each.item_id for each in named.rollouts()] == ["sum-1", "sum-2"]


def a_log(path: Path, **changes: Any) -> Path:
    """The JSON log with its first sample changed."""
    log = json.loads((FILES / "sums.json").read_text())
    log["samples"][0].update(changes)
    path.write_text(json.dumps(log))
    return path


@pytest.mark.parametrize(
    ("value", "reward"),
    [("P", 0.5), ("N", 0.0), (0.25, 0.25), (True, 1.0), ("unsure", None), ({"a": 1}, None)],
)
def test_the_values_of_scores(tmp_path: Path, value: Any, reward: float | None) -> None:
    log = a_log(tmp_path / "log.json", scores={"match": {"value": value}})
    assert next(iter(open_rollouts(log).rollouts())).reward == reward


def test_samples_that_failed_or_are_damaged(tmp_path: Path) -> None:
    failed = a_log(tmp_path / "failed.json", error={"message": "no server"})
    assert [each.reward for each in open_rollouts(failed).rollouts()] == [None, 1.0]
    odd = open_rollouts(a_log(tmp_path / "odd.json", messages="?", output=[], attachments=3))
    assert next(iter(odd.rollouts())).completion is None
    log = json.loads((FILES / "sums.json").read_text())
    log["samples"] = [7, *log["samples"]]
    (tmp_path / "seven.json").write_text(json.dumps(log))
    seven = open_rollouts(tmp_path / "seven.json")
    assert len(list(seven.rollouts())) == 2 and "row 1: not a JSON object" in seven.unreadable[0]
    log["samples"] = None
    (tmp_path / "none.json").write_text(json.dumps(log))
    with pytest.raises(UsageError, match="has no samples"):
        open_rollouts(tmp_path / "none.json")
    (tmp_path / "cut.eval").write_bytes((FILES / "sums.eval").read_bytes()[:9000])
    with pytest.raises(UsageError, match="no readable zip archive"):
        open_rollouts(tmp_path / "cut.eval")


@pytest.mark.parametrize("name", ["log.json", "log.eval"])
def test_half_a_surrogate_pair_spoils_one_sample(tmp_path: Path, name: str) -> None:
    """No file of a run could hold it."""
    log = json.loads((FILES / "sums.json").read_text())
    log["samples"][0]["input"] = "\ud83d"
    if name == "log.json":
        (tmp_path / name).write_text(json.dumps(log))
    else:
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for place, sample in enumerate(log["samples"]):
                archive.writestr(f"samples/{place}.json", json.dumps(sample))
    files = open_rollouts(tmp_path / name)
    assert len(list(files.rollouts())) == 1
    (problem,) = files.unreadable
    assert "row 1: half of a \\ud800-style surrogate pair" in problem


@pytest.mark.parametrize(
    ("row", "odd"),
    [
        ({"traces": [], "task": {}}, {"traces": None}),
        ({"nodes": [], "rewards": {}, "task": {}}, {"nodes": 5}),
        ({"responses_create_params": {}, "response": {}, "reward": 1}, {"response": {"output": 1}}),
        (json.loads(SAMPLES.read_text().splitlines()[0]), {"metrics": [[]]}),
    ],
)
def test_values_of_another_kind_stop_no_other_row(tmp_path: Path, row: Any, odd: Any) -> None:
    ours = list(open_rollouts(write_jsonl(tmp_path / "a.jsonl", [row])).rollouts())
    both = list(open_rollouts(write_jsonl(tmp_path / "b.jsonl", [row, row | odd, row])).rollouts())
    assert both[: len(ours)] == ours and both[len(both) - len(ours) :] == ours


def test_a_log_that_was_cut_off_tells_what_its_start_told(tmp_path: Path) -> None:
    started = tmp_path / "started.eval"
    with zipfile.ZipFile(started, "w", zipfile.ZIP_DEFLATED) as archive:
        whole = BoundedZip(FILES / "sums.eval")
        for name in ("_journal/start.json", "samples/sum-1_epoch_1.json"):
            archive.writestr(name, whole.read(name))
    log = open_rollouts(started)
    assert len(list(log.rollouts())) == 1 and log.drawn().policy == "mockllm/model"


# --- Archives that nobody vouches for ------------------------------------------------------------


@pytest.mark.parametrize("method", ["deflated", "zstd"])
def test_an_archive_unpacks_to_no_more_than_is_allowed(tmp_path: Path, method: str) -> None:
    bomb, size = tmp_path / "bomb.eval", 4 * 1024 * 1024
    if method == "deflated":
        with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("samples/a_epoch_1.json", b" " * size)
    else:
        write_zstd_member(bomb, "samples/a_epoch_1.json", b" " * size, said=10)
    assert bomb.stat().st_size < size / 100
    with pytest.raises(UsageError, match="unpacks to more than 1 MiB"):
        BoundedZip(bomb, most_bytes=1024 * 1024).read("samples/a_epoch_1.json")
    # All that is read together has a limit too.
    whole = BoundedZip(bomb)
    whole._left = size - 1
    with pytest.raises(UsageError, match="unpacks to more than"):
        whole.read("samples/a_epoch_1.json")


def write_zstd_member(path: Path, name: str, content: bytes, said: int) -> None:
    """An archive with one member packed by zstd, which says that it unpacks to `said` bytes."""
    import pyarrow as pa

    packed = pa.compress(content, codec="zstd", asbytes=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, packed)
    raw = bytearray(path.read_bytes())
    central = raw.index(b"PK\x01\x02")
    for start, at in ((0, 8), (central, 10)):
        raw[start + at : start + at + 2] = (93).to_bytes(2, "little")
    for start, at in ((0, 22), (central, 24)):
        raw[start + at : start + at + 4] = said.to_bytes(4, "little")
    path.write_bytes(raw)


def test_one_sample_that_is_too_large_spoils_no_others(tmp_path: Path) -> None:
    log = tmp_path / "log.eval"
    shutil.copy(FILES / "sums.eval", log)
    with zipfile.ZipFile(log, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("samples/bomb_epoch_1.json", b" " * (64 * 1024 * 1024 + 1))
    files = open_rollouts(log)
    assert len(list(files.rollouts())) == 6
    (problem,) = files.unreadable
    assert "row 7" in problem and "bomb_epoch_1.json unpacks to more than 64 MiB" in problem


def test_a_member_that_is_no_sample_is_never_read(tmp_path: Path) -> None:
    log = tmp_path / "log.eval"
    shutil.copy(FILES / "sums.eval", log)
    with zipfile.ZipFile(log, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../outside.json", "{}")
        archive.writestr("samples/../../outside.json", "{}")
    assert len(list(open_rollouts(log).rollouts())) == 6
    assert not list(tmp_path.parent.rglob("outside.json"))


# --- lm-eval -------------------------------------------------------------------------------------


def test_samples_of_lm_eval_are_read() -> None:
    with pytest.raises(UsageError, match=r"several filters \(strict-match, flexible-extract\)"):
        list(open_rollouts(SAMPLES).rollouts())
    rewards = {}
    for name in ("strict-match", "flexible-extract"):
        log = open_rollouts(SAMPLES, {"reward": f"exact_match,{name}"})
        found = list(log.rollouts())
        rewards[name] = [each.reward for each in found]
    assert log.format == "lm-eval" and log.drawn() == Drawn(None, 0.7, 64)
    assert rewards == {"strict-match": [1, 0, 0], "flexible-extract": [1, 1, 0]}
    assert [each.completion for each in found] == ["The answer is 2.", "4", "No idea"]
    assert [each.answer for each in found] == ["2", "4", "6"]
    assert found[0].prompt == f"{QUESTION}\nAnswer:"
    with pytest.raises(UsageError, match="no rows of 'loose', only of strict-match, flexible"):
        list(open_rollouts(SAMPLES, {"reward": "exact_match,loose"}).rollouts())
    named = {"reward": "exact_match,strict-match", "prompt": "doc.question", "item_id": "doc_id"}
    first = next(open_rollouts(SAMPLES, named).rollouts())
    assert (first.prompt, first.item_id) == (QUESTION, "0")


def test_a_vote_is_no_reward_of_its_rollouts() -> None:
    found = list(open_rollouts(VOTED).rollouts())
    assert [each.reward for each in found] == [None] * 6
    assert [each.completion for each in found[:2]] == ["So 2", "The answer is 2."]


def test_lm_evals_choices_have_no_completion(tmp_path: Path) -> None:
    """By hand: as version 0.4 writes a task of choices, whose requests are likelihoods."""
    row = {
        **{"doc_id": 0, "doc": {"q": "?"}, "target": 1, "filter": "none", "acc": 1.0},
        "arguments": [["Q: ?", " yes"], ["Q: ?", " no"]],
        **{"resps": [[["-1.2", "False"]], [["-0.1", "True"]]], "filtered_resps": []},
    }
    (found,) = open_rollouts(write_jsonl(tmp_path / "samples_x.jsonl", [row])).rollouts()
    assert (found.prompt, found.completion, found.reward) == ("Q: ?", None, 1.0)
    two = write_jsonl(tmp_path / "two.jsonl", [row | {"acc_norm": 0.0}])
    with pytest.raises(UsageError, match=r"2 metrics \(acc, acc_norm\): say which"):
        list(open_rollouts(two).rollouts())
    assert next(open_rollouts(two, {"reward": "acc_norm"}).rollouts()).reward == 0


def test_the_results_beside_samples_are_no_rollouts(tmp_path: Path) -> None:
    shutil.copy(VOTED, tmp_path)
    (tmp_path / "results_2026-11-29T16-00-00.json").write_text('{"results": {}}')
    assert [file.name for file in open_rollouts(tmp_path).files] == [VOTED.name]


# --- verifiers before it had traces --------------------------------------------------------------


def test_results_of_earlier_verifiers_are_read(tmp_path: Path) -> None:
    log = open_rollouts(FILES / "verifiers")
    found = list(log.rollouts())
    assert log.format == "verifiers (results of earlier versions)"
    assert log.drawn() == Drawn("rote", 0.7, 64)
    # What ended in an error was given a reward of 0, which nothing earned.
    assert [each.reward for each in found] == [1, 1, 0, None]
    assert [each.turns for each in found] == [1, 2, 1, 1]
    assert [each.finish_reason for each in found] == [None, None, "length", None]
    assert [each.completion for each in found] == ["The answer is 2.", "2", "The answer is", None]
    assert [each.answer for each in found] == ["2", "2", "4", "6"]
    shutil.copy(FILES / "verifiers/results.jsonl", tmp_path)
    assert open_rollouts(tmp_path).drawn() == Drawn()


# --- Several files, and slime --------------------------------------------------------------------


def test_several_files_are_one(tmp_path: Path) -> None:
    log = open_rollouts([FILES / "sums.eval", FILES / "sums.json"])
    assert len(list(log.rollouts())) == 8 and log.where.endswith("sums.eval and 1 more")
    with pytest.raises(UsageError, match="there are files of inspect_ai and of lm-eval"):
        open_rollouts([FILES / "sums.eval", VOTED])
    with pytest.raises(UsageError, match="named twice"):
        open_rollouts([VOTED, VOTED])


def test_slimes_samples_are_read_and_its_pickles_refused(tmp_path: Path) -> None:
    sample = {
        **{"group_index": 0, "index": 0, "prompt": "<|im_start|>user\n1+1?", "tokens": [1, 2, 3]},
        **{"response": "2", "response_length": 1, "label": "2", "reward": 1.0, "loss_mask": None},
        **{"status": "completed", "metadata": {"item_id": "x"}},
    }
    rows = [
        sample,
        sample | {"status": "truncated", "reward": 0.0, "loss_mask": [1]},
        sample | {"status": "aborted", "reward": 0.0},
        sample | {"response_length": 2, "loss_mask": [0, 1]},
    ]
    log = open_rollouts(write_jsonl(tmp_path / "rollout_1.jsonl", rows))
    found = list(log.rollouts())
    assert log.format == "slime"
    assert (found[0].prompt_token_ids, found[0].completion_token_ids) == ([1, 2], [3])
    assert (found[0].item_id, found[0].answer, found[0].reward) == ("x", "2", 1.0)
    assert [each.reward for each in found] == [1, 0, None, 1]
    assert found[1].finish_reason == "length"
    assert (found[3].turns, found[3].completion_token_ids) == (2, None)
    parts = write_jsonl(tmp_path / "parts.jsonl", [sample | {"reward": {"acc": 1, "form": 0}}])
    with pytest.raises(UsageError, match=r"has parts \(acc, form\)"):
        list(open_rollouts(parts).rollouts())
    (tmp_path / "dump").mkdir()
    (tmp_path / "dump/rollout_1.pt").write_bytes(b"\x80\x04.")
    for place in (tmp_path / "dump", tmp_path / "dump/rollout_1.pt"):
        with pytest.raises(UsageError, match="is a pickle, which can run any code"):
            open_rollouts(place)
