"""kill -9 at any moment costs at most the shards in hand, and the same command finishes the run."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from probes import tagging
from tests.killed_runs import run_until_killed
from tests.tag_runs import additions, assert_same_rollouts, read_rollouts, tag, write_jsonl

ITEMS, ROLLOUTS = 6, 32
# Two items a shard.
SHARD_TOKENS = {"cpu": 2 * ROLLOUTS * 12}


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tagging, "_SHARD_TOKENS", SHARD_TOKENS)


@pytest.fixture(scope="module")
def uninterrupted(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a dataset and of its run in one go."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    dataset = write_jsonl(folder / "sums.jsonl", additions(ITEMS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tagging, "_SHARD_TOKENS", SHARD_TOKENS)
        ran = tag(
            *(dataset, "--model", tiny_model, "--run-dir", folder / "run"),
            *("--out", folder / "out.jsonl"),
        )
    assert ran.status == 0, ran.stderr
    assert len(list((folder / "run/rollouts").iterdir())) == 3
    return folder


# The moment, and what must be there when it comes: stages that are done, and files.
MOMENTS: dict[str, tuple[tuple[str, str, int], list[str], dict[str, int]]] = {
    "sampling": (
        ("probes.stages.sample", "write_parquet", 3),
        ["items"],
        {"rollouts/*.parquet": 2},
    ),
    "verifying": (
        ("probes.stages.verify", "write_parquet", 2),
        ["items", "sample"],
        {"rollouts/*.parquet": 3},
    ),
    "gradients": (
        ("probes.stages.gradients", "_write_array", 3),
        ["items", "sample", "verify", "plan", "pass_rates"],
        {"gradients/shard-*.parquet": 2},
    ),
    "joining gradients": (
        ("probes.stages.gradients", "_remove_shards", 1),
        ["items", "sample", "verify", "plan", "pass_rates"],
        {"gradients/shard-*.parquet": 3, "gradients/index.parquet": 1},
    ),
    "lift": (
        ("probes.tagging", "write_lift", 1),
        ["items", "sample", "verify", "plan", "pass_rates", "gradients", "answers", "similarity"],
        {"teaching.parquet": 1, "lift.parquet": 0},
    ),
}

# What the next command says that it found.
FOUND = {
    "sampling": "128 of at least 192 rollouts drawn, 0 judged; next: sample",
    "verifying": "192 of at least 192 rollouts drawn, 64 judged; next: verify",
    "gradients": (
        "192 of 192 rollouts drawn, 192 judged, gradients of 2 of 3 files; next: gradients"
    ),
    "joining gradients": (
        "192 of 192 rollouts drawn, 192 judged, gradients of 3 of 3 files; next: gradients"
    ),
    "lift": "192 of 192 rollouts drawn, 192 judged, all gradients taken; next: lift",
}


def _stages(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "manifest.json").read_text())["stages"])


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_is_finished_by_the_same_command(
    moment: str, uninterrupted: Path, tiny_model: Path, tmp_path: Path
) -> None:
    call, done, files = MOMENTS[moment]
    run, out = tmp_path / "run", tmp_path / "out.jsonl"
    command = (
        *(uninterrupted / "sums.jsonl", "--model", tiny_model),
        *("--run-dir", run, "--out", out),
    )
    run_until_killed(tmp_path, call, *command)
    assert [name for name, stage in _stages(run).items() if stage["state"] == "done"] == done
    assert {pattern: len(list(run.glob(pattern))) for pattern in files} == files
    written = {path: path.read_bytes() for path in run.glob("rollouts/*.parquet")}

    ran = tag(*command)
    assert ran.status == 0, ran.stderr
    found = [line for line in ran.stderr.splitlines() if line.startswith("continuing")]
    assert found == [f"continuing {run}: {FOUND[moment]}"]
    rollouts = read_rollouts(run)
    samples = Counter(
        zip(rollouts["item_id"].to_pylist(), rollouts["sample"].to_pylist(), strict=True)
    )
    item_ids = pq.read_table(run / "items.parquet")["item_id"].to_pylist()
    assert samples == {(i, s): 1 for i in item_ids for s in range(ROLLOUTS)}
    if moment not in ("sampling", "verifying"):
        assert {path: path.read_bytes() for path in written} == written
    # What was finished before the kill is not done again.
    now, whole = _stages(run), _stages(uninterrupted / "run")
    for stage, moments in (("sample", ["sampling"]), ("gradients", list(MOMENTS)[2:4])):
        is_less = now[stage]["tokens_this_time"] < whole[stage]["tokens_this_time"]
        assert is_less == (moment in moments), stage
    assert_same_rollouts(rollouts, read_rollouts(uninterrupted / "run"))
    for name in (
        *("pass_rates", "answers", "similarity", "lift", "teaching", "tags"),
        *("gradients/index", "gradients/rollouts"),
    ):
        table = pq.read_table(run / f"{name}.parquet")
        assert table.equals(pq.read_table(uninterrupted / f"run/{name}.parquet")), name
    for name in ("gradients/features.npy", "gradients/rollouts.npy"):
        assert (run / name).read_bytes() == (uninterrupted / "run" / name).read_bytes()
    assert out.read_bytes() == (uninterrupted / "out.jsonl").read_bytes()
    assert not list(run.rglob("*.tmp")) and not list(run.rglob("shard-*"))


def test_a_file_half_written_at_the_kill_is_not_taken_for_whole(
    uninterrupted: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """Killed between the writing and the renaming of a shard: the shard is drawn again."""
    run = tmp_path / "run"
    command = (
        *(uninterrupted / "sums.jsonl", "--model", tiny_model),
        *("--run-dir", run, "--out", tmp_path / "out.jsonl"),
    )
    # Its first calls write rows.parquet and the first round, the next ones write shards.
    run_until_killed(tmp_path, ("pyarrow.parquet", "write_table", 4), *command)
    assert list(run.glob("rollouts/.*.tmp")) and len(list(run.glob("rollouts/*.parquet"))) == 1
    assert tag(*command).status == 0
    assert_same_rollouts(read_rollouts(run), read_rollouts(uninterrupted / "run"))
    assert not list(run.rglob("*.tmp"))


# --- In a later round ------------------------------------------------------------------------

# A shard is two items of the first two rounds, one of the third, half of one in the fourth. Hard
# items stop once their forecast is decided; the others go on.
MOST = 64
IN_ROUNDS = (
    *("--min-rollouts", 8, "--max-rollouts", MOST, "--tau", 0.6, "--gradient-rollouts", 2),
)
SMALLER_SHARD_TOKENS = {"cpu": 2 * 8 * 12}
# The moment, and how many files must be there when it comes.
LATER_MOMENTS: dict[str, tuple[tuple[str, str, int], dict[str, int]]] = {
    "sampling": (
        ("probes.stages.sample", "write_parquet", 5),
        {"rounds/*.parquet": 2, "rollouts/*.parquet": 4},
    ),
    "gradients": (
        ("probes.stages.gradients", "_write_array", 5),
        {"rounds/*.parquet": 2, "gradients/shard-*.parquet": 4},
    ),
    "lift": (
        ("probes.stages.lift", "measure_lift", 2),
        {"rounds/*.parquet": 2, "gradients/shard-*.parquet": 6, "gradients/.*.tmp": 1},
    ),
    "planned": (
        ("probes.rounds", "write_parquet", 3),
        {"rounds/*.parquet": 2, "rollouts/*.parquet": 6, "gradients/shard-*.parquet": 6},
    ),
}


@pytest.fixture(scope="module")
def uninterrupted_rounds(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rounds")
    dataset = write_jsonl(folder / "sums.jsonl", additions(ITEMS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tagging, "_SHARD_TOKENS", SMALLER_SHARD_TOKENS)
        ran = tag(
            *(dataset, "--model", tiny_model, "--run-dir", folder / "run"),
            *("--out", folder / "out.jsonl", *IN_ROUNDS),
        )
    assert ran.status == 0, ran.stderr
    drawn = Counter(read_rollouts(folder / "run")["item_id"].to_pylist())
    assert len(set(drawn.values())) > 1 and max(drawn.values()) == MOST
    return folder


@pytest.mark.parametrize("moment", LATER_MOMENTS)
def test_a_run_killed_in_a_later_round_ends_like_one_that_was_not(
    moment: str,
    uninterrupted_rounds: Path,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tagging, "_SHARD_TOKENS", SMALLER_SHARD_TOKENS)
    call, files = LATER_MOMENTS[moment]
    run, out = tmp_path / "run", tmp_path / "out.jsonl"
    command = (
        *(uninterrupted_rounds / "sums.jsonl", "--model", tiny_model, *IN_ROUNDS),
        *("--run-dir", run, "--out", out),
    )
    run_until_killed(tmp_path, call, *command)
    assert {pattern: len(list(run.glob(pattern))) for pattern in files} == files

    ran = tag(*command)
    assert ran.status == 0, ran.stderr
    (found,) = (line for line in ran.stderr.splitlines() if line.startswith("continuing"))
    following = {"sampling": "sample", "gradients": "gradients"}.get(moment, "plan")
    assert " of at least " in found and found.endswith(f"; next: {following}")
    whole = uninterrupted_rounds / "run"
    tables = {str(path.relative_to(whole)) for path in whole.rglob("*.parquet")}
    assert {str(path.relative_to(run)) for path in run.rglob("*.parquet")} == tables
    for name in tables:
        assert pq.read_table(run / name).equals(pq.read_table(whole / name)), name
    for name in ("gradients/features.npy", "gradients/rollouts.npy"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()
    assert out.read_bytes() == (uninterrupted_rounds / "out.jsonl").read_bytes()
    assert not list(run.rglob("*.tmp")) and not list(run.rglob("shard-*"))
