"""`curate push` with the real huggingface_hub client, against a stand-in of the Hub over HTTP."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cards.splits import write_splits
from curate.errors import UsageError
from curate.tags import tag_schema
from tests.hub_stand_in import READ_TOKEN, SIGNATURE, TOKEN, HubStandIn
from tests.publishable_runs import write_run
from tests.tag_runs import ROOT, Ran, run_curate

NAME = "me/tagged"
DATA = {
    f"data/{tag}-00000-of-00001.parquet"
    for tag in ("easy", "learnable", "no_positive", "undetermined")
}
# Waiting between tries is huggingface_hub's own; here nothing waits.
_DRIVER = (
    "import sys, time; waits = []; time.sleep = waits.append\n"
    "from curate.cli import main\n"
    "status = main(sys.argv[1:])\n"
    "print('waited', *waits, file=sys.stderr)\n"
    "sys.exit(status)\n"
)


@pytest.fixture
def hub() -> Iterator[HubStandIn]:
    with HubStandIn().running() as running:
        yield running


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path)


def _environment(hub: HubStandIn, home: Path, token: str) -> dict[str, str]:
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_TOKEN": token,
        # The stand-in speaks LFS, not Xet.
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONPATH": str(ROOT),
    }


def push(hub: HubStandIn, run: Path, *options: str, repo: str = NAME, token: str = TOKEN) -> Ran:
    """Push in a process of its own, whose only Hub is the stand-in; no secret is ever printed."""
    ran = subprocess.run(
        [sys.executable, "-c", _DRIVER, "push", run, "--repo", repo, *options],
        env=_environment(hub, run.parent / "hf", token),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "Traceback" not in ran.stderr, ran.stderr
    for secret in filter(None, (token, SIGNATURE)):
        assert secret not in ran.stdout + ran.stderr
    said = "".join(f"{line}\n" for line in ran.stderr.splitlines() if line[:6] != "waited")
    return Ran(ran.returncode, ran.stdout, said)


def pushed(ran: Ran) -> Ran:
    assert ran.status == 0, ran.stderr
    return ran


# --- What is pushed ------------------------------------------------------------------------------


def test_a_push_is_one_commit_that_datasets_reads_back(hub: HubStandIn, run: Path) -> None:
    (run / "report.html").write_text("<p>report</p>")
    (run / "figures").mkdir()
    (run / "figures/pass_rates.png").write_bytes(b"png")
    summary = json.loads(pushed(push(hub, run, "--json", "--private", "--with-rollouts")).stdout)
    repository = hub.repositories[NAME]
    assert len(repository.commits) == 2 and repository.private
    more = {".gitattributes", "README.md", "report.html", "figures/pass_rates.png"}
    assert set(repository.files) == DATA | more | {"rollouts/00000.parquet"}
    assert {each["path"]: each["bytes"] for each in summary["files"]} == {
        path: len(blob.data) for path, blob in repository.files.items() if path != ".gitattributes"
    }
    assert summary["commit"] == repository.head and summary["changed"]
    assert "](figures/pass_rates.png)" in repository.files["README.md"].data.decode()
    script = (
        "import json, sys\n"
        "from datasets import load_dataset\n"
        f"splits = load_dataset({NAME!r})\n"
        f"rollouts = load_dataset({NAME!r}, 'rollouts', split='train')\n"
        "rows = {name: split.to_list() for name, split in splits.items()}\n"
        "same = len({str(split.features) for split in splits.values()}) == 1\n"
        "print(json.dumps([rows, same, len(rollouts)]))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script],
        env=_environment(hub, run.parent / "hf-reader", TOKEN),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    rows, same_features, rollouts = json.loads(ran.stdout)
    assert same_features and rollouts == 7
    tagged = [json.loads(line) for line in (run.parent / "tagged.jsonl").open()]
    assert rows == {
        tag: [row for row in tagged if row["trainability"] == tag]
        for tag in ("easy", "learnable", "no_positive", "undetermined")
    }
    assert len(rows["easy"]) == 4  # One of its items is there twice.


def test_rollouts_go_up_only_when_asked_for_and_go_away_again(hub: HubStandIn, run: Path) -> None:
    pushed(push(hub, run))
    assert not [path for path in hub.repositories[NAME].files if "rollouts" in path]
    pushed(push(hub, run, "--with-rollouts"))
    assert "rollouts/00000.parquet" in hub.repositories[NAME].files
    assert "rollouts/*.parquet" in hub.repositories[NAME].files["README.md"].data.decode()
    ran = pushed(push(hub, run))
    assert "deleted there: rollouts/00000.parquet" in ran.stdout
    assert not [path for path in hub.repositories[NAME].files if "rollouts" in path]


def test_a_dry_run_lists_sizes_and_uses_no_network(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a dry run opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("huggingface_hub.get_token", refuse)
    ran = run_curate("push", run, "--repo", NAME, "--dry-run", "--with-rollouts", "--json")
    assert ran.status == 0, ran.stderr
    summary = json.loads(ran.stdout)
    assert {each["path"] for each in summary["files"]} == DATA | {
        "README.md",
        "rollouts/00000.parquet",
    }
    assert all(each["bytes"] > 0 for each in summary["files"]) and summary["dry_run"]
    text = run_curate("push", run, "--repo", NAME, "--dry-run")
    assert (
        "nothing was uploaded" in text.stdout and "data/easy-00000-of-00001.parquet" in text.stdout
    )
    assert not (run / "push/files").exists()


def test_the_same_push_again_has_nothing_to_do(hub: HubStandIn, run: Path) -> None:
    pushed(push(hub, run, "--license", "mit"))
    ran = pushed(push(hub, run, "--license", "mit"))
    assert "has all of it already" in ran.stdout
    assert len(hub.repositories[NAME].commits) == 2
    assert len(hub.asked("PUT", "/storage")) == len(DATA)


def test_a_name_without_an_owner_is_ones_own(hub: HubStandIn, run: Path) -> None:
    hub.add("tagged")  # A dataset without an owner, as there are some.
    summary = json.loads(pushed(push(hub, run, "--json", repo="tagged")).stdout)
    assert summary["repo"] == NAME
    assert "README.md" in hub.repositories[NAME].files
    assert f'load_dataset("{NAME}"' in hub.repositories[NAME].files["README.md"].data.decode()


def test_large_splits_are_sharded_and_old_shards_are_deleted(hub: HubStandIn, run: Path) -> None:
    pushed(push(hub, run))
    # As if an earlier version of the run had been larger.
    first = hub.repositories[NAME].files["data/easy-00000-of-00001.parquet"].data
    made = json.loads((run / "push/made.json").read_text())
    old = "data/easy-00000-of-00002.parquet"
    hub.repositories[NAME].write(old, first)
    refused = push(hub, run)
    assert refused.status == 2 and old in refused.last_line and "--overwrite" in refused.last_line
    made[old] = made["data/easy-00000-of-00001.parquet"]
    (run / "push/made.json").write_text(json.dumps(made))
    assert f"deleted there: {old}" in pushed(push(hub, run)).stdout
    assert old not in hub.repositories[NAME].files


def test_shards_hold_all_rows_in_their_order(run: Path, tmp_path: Path) -> None:
    tagged = tmp_path / "tagged.jsonl"
    rows = pa.table(
        {
            name: [json.loads(line)[name] for line in tagged.open()]
            for name in ("item_id", "trainability")
        }
    )
    paths = write_splits(tagged, rows, tag_schema([1]), tmp_path / "whole")
    assert set(paths) == DATA
    write_splits(tagged, rows, tag_schema([1]), tmp_path / "again")
    for path in paths:
        assert (tmp_path / "whole" / path).read_bytes() == (tmp_path / "again" / path).read_bytes()
    write_splits(tagged, rows, tag_schema([1]), tmp_path / "sharded", shard_bytes=1)
    whole = pq.read_table(tmp_path / "whole/data/easy-00000-of-00001.parquet")
    shards = sorted((tmp_path / "sharded/data").glob("easy-*"))
    assert [shard.name for shard in shards] == ["easy-00000-of-00001.parquet"]
    assert pa.concat_tables([pq.read_table(shard) for shard in shards]).equals(whole)


# --- What is there already -----------------------------------------------------------------------


OTHERS_CARD = """---
license: mit  # chosen with care
configs:
- config_name: raw
  data_files: raw/*.parquet
# what the next key is for
pretty_name: Mine
---
# My data

Text of mine.
"""


def test_an_existing_card_keeps_its_text_and_configs(hub: HubStandIn, run: Path) -> None:
    repository = hub.add(NAME)
    repository.write("README.md", OTHERS_CARD)
    repository.write("raw/part.parquet", b"PAR1")
    pushed(push(hub, run))
    card = repository.files["README.md"].data.decode()
    assert "license: mit  # chosen with care\n" in card
    assert "# what the next key is for\npretty_name: Mine\n" in card
    assert "---\n# My data\n\nText of mine.\n\n<!-- curate: begin" in card
    assert "- config_name: raw\n  data_files: raw/*.parquet\n- config_name: trainability\n" in card
    assert f'load_dataset("{NAME}", "trainability", split="learnable")' in card
    assert repository.files["raw/part.parquet"].data == b"PAR1"


def test_a_card_edited_since_keeps_the_edit(hub: HubStandIn, run: Path) -> None:
    pushed(push(hub, run))
    repository = hub.repositories[NAME]
    card = repository.files["README.md"].data.decode()
    edited = card.replace("# `train`, tagged", "# My set, tagged") + "\nMore of mine.\n"
    repository.write("README.md", edited)
    pushed(push(hub, run, "--license", "mit"))
    after = repository.files["README.md"].data.decode()
    assert after == edited.replace("\n---\n", "\nlicense: mit\n---\n", 1)


def test_other_data_that_its_card_does_not_name_is_not_hidden(hub: HubStandIn, run: Path) -> None:
    repository = hub.add(NAME)
    repository.write("data/train-00000-of-00001.parquet", b"PAR1")
    refused = push(hub, run)
    assert refused.status == 2 and "data/train-00000-of-00001.parquet" in refused.last_line
    assert "`configs`" in refused.last_line and len(repository.commits) == 2
    pushed(push(hub, run, "--overwrite"))


def test_files_of_others_are_not_replaced_unseen(hub: HubStandIn, run: Path) -> None:
    path = "data/easy-00000-of-00001.parquet"
    pushed(push(hub, run))
    repository = hub.repositories[NAME]
    repository.write(path, b"somebody's corrections")
    refused = push(hub, run)
    assert refused.status == 2
    assert path in refused.last_line and "--overwrite" in refused.last_line
    assert repository.files[path].data == b"somebody's corrections"
    pushed(push(hub, run, "--overwrite"))
    assert repository.files[path].data != b"somebody's corrections"


def test_a_run_that_changed_replaces_what_it_pushed(hub: HubStandIn, run: Path) -> None:
    pushed(push(hub, run))
    tagged = run.parent / "tagged.jsonl"
    tagged.write_text(tagged.read_text().replace("made up to be easy", "another reason"))
    pushed(push(hub, run))
    split = hub.repositories[NAME].files["data/easy-00000-of-00001.parquet"].data
    reasons = pq.read_table(pa.BufferReader(split))["tag_reason"].to_pylist()
    assert set(reasons) == {"another reason"}


def test_a_repository_that_changes_during_the_upload_is_not_overwritten(
    hub: HubStandIn, run: Path
) -> None:
    repository = hub.add(NAME)

    def somebody_writes() -> None:
        repository.write("README.md", OTHERS_CARD)

    hub.fault("POST", "/commit/", happens=somebody_writes)
    refused = push(hub, run)
    assert refused.status == 1
    assert "changed during the upload (README.md)" in refused.last_line
    assert "the same command" in refused.last_line
    assert set(repository.files) == {".gitattributes", "README.md"}
    uploads = len(hub.asked("PUT", "/storage"))
    pushed(push(hub, run))
    assert len(hub.asked("PUT", "/storage")) == uploads == len(DATA)
    assert "Text of mine." in repository.files["README.md"].data.decode()


def test_private_does_not_pretend_of_a_public_repository(hub: HubStandIn, run: Path) -> None:
    hub.add(NAME)
    refused = push(hub, run, "--private")
    assert refused.status == 2 and "public" in refused.last_line
    assert len(hub.repositories[NAME].commits) == 1


def test_a_pull_request_leaves_the_repository_alone(hub: HubStandIn, run: Path) -> None:
    absent = push(hub, run, "--create-pr")
    assert absent.status == 2 and "--create-pr" in absent.last_line and not hub.repositories
    hub.add(NAME)
    summary = json.loads(pushed(push(hub, run, "--create-pr", "--json")).stdout)
    assert summary["url"].endswith("/discussions/1")
    assert len(hub.repositories[NAME].commits) == 1


# --- What goes wrong -----------------------------------------------------------------------------


def test_a_refused_token_is_one_line_before_anything_is_made(hub: HubStandIn, run: Path) -> None:
    refused = push(hub, run, token="hf_thisOneIsWrong")
    assert refused.status == 2
    assert "refused the token (401" in refused.last_line and "hf auth login" in refused.last_line
    assert not hub.repositories
    none = push(hub, run, token="")
    assert none.status == 2 and "no token" in none.last_line


def test_a_token_that_may_not_write_is_told_so(hub: HubStandIn, run: Path) -> None:
    refused = push(hub, run, token=READ_TOKEN)
    assert refused.status == 2 and "(403: this token may only read)" in refused.last_line
    foreign = push(hub, run, repo="somebody/else")
    assert foreign.status == 2 and "no rights in the namespace somebody" in foreign.last_line


@pytest.mark.parametrize("name", ["a/b/c", "me/-x", "me/a--b", "../x", "me/é", ""])
def test_a_name_that_cannot_be_is_refused_without_asking(
    hub: HubStandIn, run: Path, name: str
) -> None:
    ran = run_curate("push", run, "--repo", name)
    assert ran.status == 2 and "--repo" in ran.last_line and not hub.requests


def test_a_name_that_the_hub_refuses(hub: HubStandIn, run: Path) -> None:
    refused = push(hub, run, repo="me/reserved-name")
    assert refused.status == 2
    assert "me/reserved-name (400: this name is reserved)" in refused.last_line


def test_metadata_that_the_hub_refuses(hub: HubStandIn, run: Path) -> None:
    refused = push(hub, run, "--license", "no-such-license")
    assert refused.status == 2 and '"license" must be one of' in refused.last_line
    assert not hub.asked("PUT", "/storage")


def test_a_lost_connection_continues_with_what_is_missing(hub: HubStandIn, run: Path) -> None:
    hub.fault("PUT", "/storage", times=1000, skip=2, drop=True)
    lost = push(hub, run)
    assert lost.status == 1
    assert "lost the connection" in lost.last_line and "same command" in lost.last_line
    assert len(hub.repositories[NAME].commits) == 1
    stored = set(hub.verified)
    assert len(stored) == 2
    hub.faults.clear()
    hub.requests.clear()
    pushed(push(hub, run))
    assert len(hub.asked("PUT", "/storage")) == len(DATA) - 2
    assert not {path for path in hub.asked("PUT", "/storage") if path.rpartition("/")[2] in stored}
    assert set(hub.repositories[NAME].files) > DATA


def test_a_commit_whose_answer_was_lost_is_not_made_twice(hub: HubStandIn, run: Path) -> None:
    def committed_but_lost() -> None:
        hub.fault("POST", "/commit/", drop=True)

    hub.fault("POST", "/verify", happens=committed_but_lost)
    assert push(hub, run).status == 1
    pushed(push(hub, run))
    assert len(hub.repositories[NAME].commits) == 2


def test_a_killed_push_continues(hub: HubStandIn, run: Path) -> None:
    victim = subprocess.Popen(
        [sys.executable, "-m", "curate", "push", run, "--repo", NAME],
        env=_environment(hub, run.parent / "hf", TOKEN),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    hub.fault("POST", "/commit/", happens=lambda: victim.send_signal(signal.SIGKILL))
    victim.wait(timeout=60)
    commits = len(hub.repositories[NAME].commits)
    hub.requests.clear()
    pushed(push(hub, run))
    assert not hub.asked("PUT", "/storage")
    assert set(hub.repositories[NAME].files) > DATA and commits <= 2
    assert not (run / "push/files").exists()


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/api/datasets/me/tagged$"), ("PUT", "/storage"), ("POST", "/commit/")],
)
def test_a_rate_limit_is_waited_for(hub: HubStandIn, run: Path, method: str, path: str) -> None:
    hub.add(NAME)
    hub.fault(method, path, times=2, status=429, headers={"Retry_After": "7"})
    pushed(push(hub, run))
    assert set(hub.repositories[NAME].files) > DATA


def test_a_rate_limit_that_stays_is_told(hub: HubStandIn, run: Path) -> None:
    hub.fault("GET", "/api/datasets", times=1000, status=429, headers={"Retry_After": "7"})
    ran = push(hub, run)
    assert ran.status == 1 and "rate limit" in ran.last_line
    assert "going on in 7 s" in ran.stderr


def test_an_error_of_the_hub_is_one_line_without_the_token(hub: HubStandIn, run: Path) -> None:
    hub.fault("POST", "/repos/create", status=500, message=f"cannot serve {TOKEN}")
    ran = push(hub, run)
    assert ran.status == 1 and "the Hub failed (500: cannot serve …)" in ran.last_line


# --- The tagged file -----------------------------------------------------------------------------


def test_a_tagged_file_that_is_not_there_can_be_named(run: Path, tmp_path: Path) -> None:
    (tmp_path / "tagged.jsonl").rename(tmp_path / "moved.jsonl")
    ran = run_curate("push", run, "--repo", NAME, "--dry-run")
    assert ran.status == 2 and "--tagged" in ran.last_line
    moved = tmp_path / "moved.jsonl"
    assert run_curate("push", run, "--repo", NAME, "--dry-run", "--tagged", moved).status == 0


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ('"easy-1"', '"another"', "item_id of row 2"),
        ('"trainability": "learnable"', '"trainability": "easy"', "trainability of row 4"),
        ('"pass_rate": 0.5', '"pass_rate": "half"', "rows 1 to 9"),
        ('"tag_reason"', '"reason"', "no column tag_reason"),
    ],
)
def test_a_file_that_the_run_did_not_write_is_refused(
    run: Path, tmp_path: Path, old: str, new: str, word: str
) -> None:
    tagged = tmp_path / "tagged.jsonl"
    tagged.write_text(tagged.read_text().replace(old, new))
    ran = run_curate("push", run, "--repo", NAME, "--dry-run")
    assert ran.status == 2 and word in ran.last_line, ran.stderr


@pytest.mark.parametrize("change", ["more", "fewer"])
def test_a_file_of_another_length_is_refused(run: Path, tmp_path: Path, change: str) -> None:
    tagged = tmp_path / "tagged.jsonl"
    lines = tagged.read_text().splitlines(keepends=True)
    tagged.write_text("".join([*lines, lines[0]] if change == "more" else lines[:-1]))
    ran = run_curate("push", run, "--repo", NAME, "--dry-run")
    assert ran.status == 2 and "rows" in ran.last_line, ran.stderr


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".json"])
def test_every_format_gives_the_same_tag_columns(tmp_path: Path, suffix: str) -> None:
    from curate.datasets import open_source
    from curate.tagged import write_tagged

    write_run(tmp_path)
    schema = tag_schema([1])
    rows = [json.loads(line) for line in (tmp_path / "tagged.jsonl").open()]
    bare = tmp_path / "bare.jsonl"
    bare.write_text("".join(json.dumps({"question": row["question"]}) + "\n" for row in rows))
    other = tmp_path / f"tagged{suffix}"
    write_tagged(open_source(bare), other, rows, schema)
    keys = pa.table({name: [row[name] for row in rows] for name in ("item_id", "trainability")})
    write_splits(tmp_path / "tagged.jsonl", keys, schema, tmp_path / "a")
    write_splits(other, keys, schema, tmp_path / "b")
    for path in DATA:
        one, two = (pq.read_table(tmp_path / name / path) for name in ("a", "b"))
        assert one.select(schema.names).equals(two.select(schema.names))
        assert one.select(schema.names).schema == schema


def test_a_run_that_is_not_finished_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path, manifest={"stages": {"tags": {"state": "started"}}})
    with pytest.raises(UsageError, match="not finished"):
        from curate import commands

        commands.push(run, NAME, dry_run=True)
