"""`curate push` with the real huggingface_hub client, against a stand-in of the Hub over HTTP."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cards.push.splits import write_splits
from curate import push as push_run
from curate.errors import UsageError
from curate.tags import tag_schema
from tests.made.published import write_published_run
from tests.stand_ins.hub import READ_TOKEN, SIGNATURE, TOKEN, HubStandIn
from tests.tag_runs import ROOT, Ran, run_curate

NAME = "me/tagged"
DATA = {
    f"data/{tag}-00000-of-00001.parquet"
    for tag in ("easy", "learnable", "no_positive", "undetermined")
}
# What a push needs is imported once; each push is a fork of that, a process of its own. Waiting
# between tries is huggingface_hub's doing; here nothing waits.
_PUSHER = """
import json, os, sys, time, traceback
import cards.push.push
from curate.cli import main
time.sleep = lambda seconds: None
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        os.environ["HF_TOKEN"] = job["token"]
        for number, name in ((1, job["stdout"]), (2, job["stderr"])):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        status = 99
        try:
            status = main(job["arguments"])
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def module_hub() -> Iterator[HubStandIn]:
    with HubStandIn().running() as running:
        yield running


@pytest.fixture
def hub(module_hub: HubStandIn) -> HubStandIn:
    module_hub.forget()
    return module_hub


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_published_run(tmp_path)


def _environment(hub: HubStandIn, home: Path) -> dict[str, str]:
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_TOKEN": TOKEN,
        # The stand-in speaks LFS, not Xet.
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONPATH": str(ROOT),
    }


class Push(Protocol):
    def __call__(self, *options: str, repo: str = NAME, token: str = TOKEN) -> Ran: ...


@pytest.fixture(scope="module")
def pusher(
    module_hub: HubStandIn, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", _PUSHER],
        env=_environment(module_hub, tmp_path_factory.mktemp("hf")),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        assert process.stdin
        process.stdin.close()


@pytest.fixture
def push(pusher: subprocess.Popen[str], hub: HubStandIn, run: Path) -> Push:
    """Push the run in a process whose only Hub is the stand-in; no secret is ever printed."""

    def call(*options: str, repo: str = NAME, token: str = TOKEN) -> Ran:
        out, err = run.parent / "stdout", run.parent / "stderr"
        arguments = ["push", str(run), "--repo", repo, *options]
        job = {"arguments": arguments, "token": token, "stdout": str(out), "stderr": str(err)}
        assert pusher.stdin and pusher.stdout
        print(json.dumps(job), file=pusher.stdin, flush=True)
        ran = Ran(int(pusher.stdout.readline()), out.read_text(), err.read_text())
        assert "Traceback" not in ran.stderr, ran.stderr
        for secret in filter(None, (token, SIGNATURE)):
            assert secret not in ran.stdout + ran.stderr
        return ran

    return call


def pushed(ran: Ran) -> Ran:
    assert ran.status == 0, ran.stderr
    return ran


REPORT = (
    '<p>report</p><script type="application/json" id="rollouts-data">'
    '{"kinds":["correct"],"of_items":1,"items":{"0":[["a private completion"]]}}</script>'
)


# --- What is pushed ------------------------------------------------------------------------------


def test_a_push_is_one_commit_that_datasets_reads_back(
    hub: HubStandIn, run: Path, push: Push
) -> None:
    (run / "report.html").write_text(REPORT)
    (run / "figures").mkdir()
    (run / "figures/pass_rates.png").write_bytes(b"png")
    options = ("--private", "--with-rollouts", "--with-rewards")
    summary = json.loads(pushed(push("--json", *options)).stdout)
    repository = hub.repositories[NAME]
    assert len(repository.commits) == 2 and repository.private
    more = {".gitattributes", "README.md", "report.html", "figures/pass_rates.png"}
    tables = {path.replace("data/", "rewards/") for path in DATA}
    assert set(repository.files) == DATA | tables | more | {"rollouts/00000.parquet"}
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
        f"rewards = load_dataset({NAME!r}, 'rewards')\n"
        "counts = {name: len(split) for name, split in rewards.items()}\n"
        "rows = {name: split.to_list() for name, split in splits.items()}\n"
        "same = len({str(split.features) for split in splits.values()}) == 1\n"
        "print(json.dumps([rows, same, len(rollouts), counts]))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script],
        env=_environment(hub, run.parent / "hf-reader"),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ran.returncode == 0, ran.stderr
    rows, same_features, rollouts, rewards = json.loads(ran.stdout)
    assert same_features and rollouts == 7
    # A rollout of each item; rows of one item share it.
    assert rewards == {"easy": 3, "learnable": 2, "no_positive": 1, "undetermined": 1}
    tagged = [json.loads(line) for line in (run.parent / "tagged.jsonl").open()]
    assert rows == {
        tag: [row for row in tagged if row["trainability"] == tag]
        for tag in ("easy", "learnable", "no_positive", "undetermined")
    }
    assert len(rows["easy"]) == 4  # One of its items is there twice.


def test_rollouts_and_rewards_go_up_only_when_asked_for_and_go_away_again(
    hub: HubStandIn, push: Push
) -> None:
    pushed(push())
    assert not [path for path in hub.repositories[NAME].files if "rollouts" in path]
    pushed(push("--with-rollouts"))
    assert "rollouts/00000.parquet" in hub.repositories[NAME].files
    assert "rollouts/*.parquet" in hub.repositories[NAME].files["README.md"].data.decode()
    ran = pushed(push())
    assert "deleted there: rollouts/00000.parquet" in ran.stdout
    assert not [path for path in hub.repositories[NAME].files if "rollouts" in path]
    pushed(push("--with-rewards"))
    assert "rewards/easy-00000-of-00001.parquet" in hub.repositories[NAME].files
    assert "- config_name: rewards" in hub.repositories[NAME].files["README.md"].data.decode()
    ran = pushed(push())
    assert "deleted there: rewards/easy-00000-of-00001.parquet" in ran.stdout
    assert not [path for path in hub.repositories[NAME].files if "rewards" in path]
    card = hub.repositories[NAME].files["README.md"].data.decode()
    assert "config_name: rewards" not in card and "### Rewards" not in card


def test_a_report_goes_up_without_the_completions_in_it(
    hub: HubStandIn, run: Path, push: Push
) -> None:
    (run / "report.html").write_text(REPORT)
    pushed(push())
    page = hub.repositories[NAME].files["report.html"].data.decode()
    assert "private completion" not in page and page.startswith("<p>report</p>")
    assert json.loads(page.partition('data">')[2].removesuffix("</script>")) == {
        "kinds": ["correct"],
        "of_items": 0,
        "items": {},
    }
    pushed(push("--with-rollouts"))
    assert hub.repositories[NAME].files["report.html"].data.decode() == REPORT
    (run / "report.html").write_text("<p>a private completion, elsewhere</p>")
    refused = push()
    assert refused.status == 2 and "--with-rollouts" in refused.last_line


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


def test_the_same_push_again_has_nothing_to_do(hub: HubStandIn, push: Push) -> None:
    pushed(push("--license", "mit"))
    ran = pushed(push("--license", "mit"))
    assert "has all of it already" in ran.stdout
    assert len(hub.repositories[NAME].commits) == 2
    assert len(hub.asked("PUT", "/storage")) == len(DATA)


def test_a_name_without_an_owner_is_ones_own(hub: HubStandIn, push: Push) -> None:
    hub.add("tagged")  # A dataset without an owner, as there are some.
    summary = json.loads(pushed(push("--json", repo="tagged")).stdout)
    assert summary["repo"] == NAME
    assert "README.md" in hub.repositories[NAME].files
    assert f'load_dataset("{NAME}"' in hub.repositories[NAME].files["README.md"].data.decode()


def test_shards_that_an_earlier_push_left_are_deleted(
    hub: HubStandIn, run: Path, push: Push
) -> None:
    pushed(push())
    # As if an earlier version of the run had been larger.
    first = hub.repositories[NAME].files["data/easy-00000-of-00001.parquet"].data
    made = json.loads((run / "push/made.json").read_text())
    old = "data/easy-00000-of-00002.parquet"
    hub.repositories[NAME].write(old, first)
    refused = push()
    assert refused.status == 2 and old in refused.last_line and "--overwrite" in refused.last_line
    made[old] = made["data/easy-00000-of-00001.parquet"]
    (run / "push/made.json").write_text(json.dumps(made))
    assert f"deleted there: {old}" in pushed(push()).stdout
    assert old not in hub.repositories[NAME].files


def test_shards_hold_all_rows_in_their_order_and_are_the_same_again(tmp_path: Path) -> None:
    write_published_run(tmp_path)
    lines = (tmp_path / "tagged.jsonl").read_text().splitlines(keepends=True)
    many, tagged = lines * 300, tmp_path / "many.jsonl"
    tagged.write_text("".join(many))
    keys = [json.loads(line) for line in many]
    rows = pa.table({name: [row[name] for row in keys] for name in ("item_id", "trainability")})
    for name, limit in (("whole", 10**9), ("again", 10**9), ("sharded", 1)):
        paths = write_splits(tagged, rows, tag_schema([1]), tmp_path / name, shard_bytes=limit)
        if name != "sharded":
            assert set(paths) == DATA
    for path in DATA:
        whole = (tmp_path / "whole" / path).read_bytes()
        assert whole == (tmp_path / "again" / path).read_bytes()
        stem = path.partition("-")[0]
        shards = [tmp_path / "sharded" / f"{stem}-{n:05d}-of-00003.parquet" for n in range(3)]
        sharded = pa.concat_tables([pq.read_table(shard) for shard in shards])
        assert sharded.equals(pq.read_table(tmp_path / "whole" / path))


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


def test_an_existing_card_keeps_its_text_and_configs(hub: HubStandIn, push: Push) -> None:
    repository = hub.add(NAME)
    repository.write("README.md", OTHERS_CARD)
    repository.write("raw/part.parquet", b"PAR1")
    pushed(push())
    card = repository.files["README.md"].data.decode()
    assert "license: mit  # chosen with care\n" in card
    assert "# what the next key is for\npretty_name: Mine\n" in card
    assert "---\n# My data\n\nText of mine.\n\n<!-- curate: begin" in card
    assert "- config_name: raw\n  data_files: raw/*.parquet\n- config_name: trainability\n" in card
    assert f'load_dataset("{NAME}", "trainability", split="learnable")' in card
    assert repository.files["raw/part.parquet"].data == b"PAR1"


def test_a_card_edited_since_keeps_the_edit(hub: HubStandIn, push: Push) -> None:
    pushed(push())
    repository = hub.repositories[NAME]
    card = repository.files["README.md"].data.decode()
    edited = card.replace("# `train`, tagged", "# My set, tagged") + "\nMore of mine.\n"
    repository.write("README.md", edited)
    pushed(push("--license", "mit"))
    after = repository.files["README.md"].data.decode()
    assert after == edited.replace("\n---\n", "\nlicense: mit\n---\n", 1)


def test_other_data_that_its_card_does_not_name_is_not_hidden(hub: HubStandIn, push: Push) -> None:
    repository = hub.add(NAME)
    repository.write("data/train-00000-of-00001.parquet", b"PAR1")
    refused = push()
    assert refused.status == 2 and "data/train-00000-of-00001.parquet" in refused.last_line
    assert "`configs`" in refused.last_line and len(repository.commits) == 2
    pushed(push("--overwrite"))


def test_files_of_others_are_not_replaced_unseen(hub: HubStandIn, push: Push) -> None:
    path = "data/easy-00000-of-00001.parquet"
    pushed(push())
    repository = hub.repositories[NAME]
    repository.write(path, b"somebody's corrections")
    refused = push()
    assert refused.status == 2
    assert path in refused.last_line and "--overwrite" in refused.last_line
    assert repository.files[path].data == b"somebody's corrections"
    pushed(push("--overwrite"))
    assert repository.files[path].data != b"somebody's corrections"


def test_a_run_that_changed_replaces_what_it_pushed(hub: HubStandIn, run: Path, push: Push) -> None:
    pushed(push())
    tagged = run.parent / "tagged.jsonl"
    tagged.write_text(tagged.read_text().replace("made up to be easy", "another reason"))
    pushed(push())
    split = hub.repositories[NAME].files["data/easy-00000-of-00001.parquet"].data
    reasons = pq.read_table(pa.BufferReader(split))["tag_reason"].to_pylist()
    assert set(reasons) == {"another reason"}


def test_a_repository_that_changes_during_the_upload_is_not_overwritten(
    hub: HubStandIn, push: Push
) -> None:
    repository = hub.add(NAME)

    def somebody_writes() -> None:
        repository.write("README.md", OTHERS_CARD)

    hub.fault("POST", "/commit/", happens=somebody_writes)
    refused = push()
    assert refused.status == 1
    assert "changed during the upload (README.md)" in refused.last_line
    assert "the same command" in refused.last_line
    assert set(repository.files) == {".gitattributes", "README.md"}
    uploads = len(hub.asked("PUT", "/storage"))
    pushed(push())
    assert len(hub.asked("PUT", "/storage")) == uploads == len(DATA)
    assert "Text of mine." in repository.files["README.md"].data.decode()


def test_private_does_not_pretend_of_a_public_repository(hub: HubStandIn, push: Push) -> None:
    hub.add(NAME)
    refused = push("--private")
    assert refused.status == 2 and "public" in refused.last_line
    assert len(hub.repositories[NAME].commits) == 1


def test_a_pull_request_leaves_the_repository_alone(hub: HubStandIn, push: Push) -> None:
    absent = push("--create-pr")
    assert absent.status == 2 and "--create-pr" in absent.last_line and not hub.repositories
    hub.add(NAME)
    summary = json.loads(pushed(push("--create-pr", "--json")).stdout)
    assert summary["url"].endswith("/discussions/1")
    assert len(hub.repositories[NAME].commits) == 1


# --- What goes wrong -----------------------------------------------------------------------------


def test_a_refused_token_is_one_line_before_anything_is_made(hub: HubStandIn, push: Push) -> None:
    refused = push(token="hf_thisOneIsWrong")
    assert refused.status == 2
    assert "refused the token (401" in refused.last_line and "hf auth login" in refused.last_line
    assert not hub.repositories
    none = push(token="")
    assert none.status == 2 and "no token" in none.last_line


def test_a_token_that_may_not_write_is_told_so(hub: HubStandIn, push: Push) -> None:
    refused = push(token=READ_TOKEN)
    assert refused.status == 2 and "(403: this token may only read)" in refused.last_line
    foreign = push(repo="somebody/else")
    assert foreign.status == 2 and "no rights in the namespace somebody" in foreign.last_line


@pytest.mark.parametrize("name", ["a/b/c", "me/-x", "me/a--b", "../x", "me/é", ""])
def test_a_name_that_cannot_be_is_refused_without_asking(
    hub: HubStandIn, run: Path, name: str
) -> None:
    ran = run_curate("push", run, "--repo", name)
    assert ran.status == 2 and "--repo" in ran.last_line and not hub.requests


def test_a_name_that_the_hub_refuses(hub: HubStandIn, push: Push) -> None:
    refused = push(repo="me/reserved-name")
    assert refused.status == 2
    assert "me/reserved-name (400: this name is reserved)" in refused.last_line


def test_metadata_that_the_hub_refuses(hub: HubStandIn, push: Push) -> None:
    refused = push("--license", "no-such-license")
    assert refused.status == 2 and '"license" must be one of' in refused.last_line
    assert not hub.asked("PUT", "/storage")


def test_a_lost_connection_continues_with_what_is_missing(hub: HubStandIn, push: Push) -> None:
    hub.fault("PUT", "/storage", times=1000, skip=2, drop=True)
    lost = push()
    assert lost.status == 1
    assert "lost the connection" in lost.last_line and "same command" in lost.last_line
    assert len(hub.repositories[NAME].commits) == 1
    stored = set(hub.verified)
    assert len(stored) == 2
    hub.faults.clear()
    hub.requests.clear()
    pushed(push())
    assert len(hub.asked("PUT", "/storage")) == len(DATA) - 2
    assert not {path for path in hub.asked("PUT", "/storage") if path.rpartition("/")[2] in stored}
    assert set(hub.repositories[NAME].files) > DATA


def test_a_commit_whose_answer_was_lost_is_not_made_twice(hub: HubStandIn, push: Push) -> None:
    def committed_but_lost() -> None:
        hub.fault("POST", "/commit/", drop=True)

    hub.fault("POST", "/verify", happens=committed_but_lost)
    assert push().status == 1
    pushed(push())
    assert len(hub.repositories[NAME].commits) == 2


def test_a_killed_push_continues(hub: HubStandIn, run: Path, push: Push) -> None:
    victim = subprocess.Popen(
        [sys.executable, "-m", "curate", "push", run, "--repo", NAME],
        env=_environment(hub, run.parent / "hf"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    hub.fault("POST", "/commit/", happens=lambda: victim.send_signal(signal.SIGKILL))
    victim.wait(timeout=600)
    commits = len(hub.repositories[NAME].commits)
    hub.requests.clear()
    pushed(push())
    assert not hub.asked("PUT", "/storage")
    assert set(hub.repositories[NAME].files) > DATA and commits <= 2
    assert not (run / "push/files").exists()


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/api/datasets/me/tagged$"), ("PUT", "/storage"), ("POST", "/commit/")],
)
def test_a_rate_limit_is_waited_for(hub: HubStandIn, push: Push, method: str, path: str) -> None:
    hub.add(NAME)
    hub.fault(method, path, times=2, status=429, headers={"Retry_After": "7"})
    pushed(push())
    assert set(hub.repositories[NAME].files) > DATA


def test_a_rate_limit_that_stays_is_told(hub: HubStandIn, push: Push) -> None:
    hub.fault("GET", "/api/datasets", times=1000, status=429, headers={"Retry_After": "7"})
    ran = push()
    assert ran.status == 1 and "rate limit" in ran.last_line
    assert "going on in 7 s" in ran.stderr


def test_an_error_of_the_hub_is_one_line_without_the_token(hub: HubStandIn, push: Push) -> None:
    hub.fault("POST", "/repos/create", status=500, message=f"cannot serve {TOKEN}")
    ran = push()
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
    from curate.datasets.source import open_source
    from curate.tagged.write import write_tagged

    write_published_run(tmp_path)
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
    run = write_published_run(tmp_path, manifest={"stages": {"tags": {"state": "started"}}})
    with pytest.raises(UsageError, match="not finished"):
        push_run(run, NAME, dry_run=True)
