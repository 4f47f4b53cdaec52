"""`--shard I/N` and `curate merge`: N machines give what one gives; strange parts are refused."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from probes.models import load as models
from tests.killed_runs import run_until_killed
from tests.tag_runs import (
    Ran,
    additions,
    assert_same_rollouts,
    read_jsonl,
    read_rollouts,
    run_curate,
    tag,
    write_jsonl,
)

N, ITEMS = 3, 14
# In a process of its own: small files, and float32 as here.
SETTINGS = (
    "import torch; from probes.models import load as models; tagging._SHARD_TOKENS = {'cpu': 200}; "
    "models.choose_dtype = lambda _: torch.float32"
)
ONE_ROUND = ("--min-rollouts", 16)
# Hard items stop once they have two positives; the others go on for three rounds.
IN_ROUNDS = (*("--min-rollouts", 8, "--max-rollouts", 32, "--tau", 0.6, "--gradient-rollouts", 2),)


@pytest.fixture(scope="module", autouse=True)
def exact(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """In float32 a rollout does not depend on what else is in its batch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "choose_dtype", lambda _: models.torch.float32)
        yield


@pytest.fixture(scope="module")
def inputs(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A dataset, and another that serves as a target; three of its items are in both."""
    folder = tmp_path_factory.mktemp("inputs")
    sums = additions(ITEMS + 5)
    return (
        write_jsonl(folder / "sums.jsonl", [*sums[:ITEMS], {"question": "no answer"}]),
        write_jsonl(folder / "target.jsonl", sums[ITEMS - 3 :]),
    )


def merge(*arguments: object) -> Ran:
    return run_curate("merge", *arguments)


def draw_shards(common: tuple[object, ...], run_of: Callable[[int], Path], of: int = N) -> None:
    for number in range(1, of + 1):
        ran = tag(*common, "--run-dir", run_of(number), "--shard", f"{number}/{of}")
        assert ran.status == 0, ran.stderr


ROUNDED = tuple(
    f"{name}.parquet" for name in ("index", "similarity", "gold", "lift", "teaching", "tags")
)


def tables(run: Path) -> set[str]:
    """The Parquet files of a run by name; how many hold its rollouts may differ."""
    names = {str(path.relative_to(run)) for path in run.rglob("*.parquet")}
    return {name for name in names if not name.startswith(("rollouts/", "shards/"))} - {
        name for name in names if "/rollouts/" in name
    }


def assert_same_run(run: Path, local: Path) -> None:
    """The two hold the same items, rollouts and tags, in the same layout."""
    assert tables(run) == tables(local)
    assert_same_rollouts(read_rollouts(run), read_rollouts(local))
    for name in tables(local):
        # Gradients and log-probabilities are the same but for rounding, and so is what is made of
        # them, which `assert_same_tags` allows for.
        if "rollouts/" in name:
            assert_same_rollouts(pq.read_table(run / name), pq.read_table(local / name))
        elif not name.endswith(ROUNDED):
            assert pq.read_table(run / name).equals(pq.read_table(local / name)), name
    assert (run / "rejects.jsonl").read_bytes() == (local / "rejects.jsonl").read_bytes()
    assert not list(run.glob("gradients/shard-*")) and not list(run.rglob("*.tmp"))


def assert_same_tags(out: Path, local: Path) -> None:
    for row, expected in zip(read_jsonl(out), read_jsonl(local), strict=True):
        assert row.keys() == expected.keys()
        for name, value in expected.items():
            assert (
                row[name] == pytest.approx(value, abs=1e-5)
                if isinstance(value, float)
                else (row[name] == value)
            ), name


@pytest.fixture(scope="module")
def local(
    tiny_model: Path, inputs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with the runs of one machine."""
    folder = tmp_path_factory.mktemp("local")
    data, target = inputs
    for name, options in (("one", ONE_ROUND), ("rounds", (*IN_ROUNDS, "--target", target))):
        ran = tag(
            *(data, "--model", tiny_model, *options),
            *("--run-dir", folder / name, "--out", folder / f"{name}.jsonl"),
        )
        assert ran.status == 0, ran.stderr
    return folder


@pytest.fixture(scope="module")
def drawn(
    tiny_model: Path, inputs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run folder with the shards of its first round, in one of several rounds, not merged."""
    run = tmp_path_factory.mktemp("drawn") / "run"
    common = (inputs[0], "--model", tiny_model, *IN_ROUNDS, "--out", run.parent / "out.jsonl")
    draw_shards(common, lambda _: run)
    return run


@pytest.fixture
def run(drawn: Path, tmp_path: Path) -> Path:
    """The same in a folder of its own."""
    shutil.copytree(drawn, tmp_path / "run")
    return tmp_path / "run"


# --- The same as one machine -----------------------------------------------------------------


def test_merged_shards_are_what_one_machine_gives(
    local: Path, inputs: tuple[Path, Path], tiny_model: Path, tmp_path: Path
) -> None:
    run, out = tmp_path / "run", tmp_path / "out.jsonl"
    common = (inputs[0], "--model", tiny_model, *ONE_ROUND, "--out", out)
    draw_shards(common, lambda _: run)
    ran = merge(run, "--json")
    assert ran.status == 0, ran.stderr
    assert json.loads(ran.stdout) == {
        **{"finished": True, "shards": N, "round": 1, "run_dir": str(run)},
        "tagged_file": str(out),
    }
    assert_same_run(run, local / "one")
    assert_same_tags(out, local / "one.jsonl")
    # It is a run like any other: a second merge and `curate tag` find nothing left to do.
    assert json.loads(merge(run, "--json").stdout)["finished"]
    before = read_rollouts(run)
    assert tag(*common, "--run-dir", run).status == 0
    assert_same_rollouts(read_rollouts(run), before)
    manifest = json.loads((run / "manifest.json").read_text())
    assert [each["shard"] for each in manifest["shards"]] == ["1/3", "2/3", "3/3"]


def test_in_rounds_and_on_machines_without_a_common_disk(
    local: Path, inputs: tuple[Path, Path], tiny_model: Path, tmp_path: Path
) -> None:
    data, target = inputs
    run, out = tmp_path / "run", tmp_path / "out.jsonl"
    common = (data, "--model", tiny_model, *IN_ROUNDS, "--target", target, "--out", out)

    def machine(number: int) -> Path:
        return tmp_path / f"machine{number}"

    froms = [argument for i in range(1, N + 1) for argument in ("--from", machine(i))]
    run.mkdir()
    rounds = 0
    finished = False
    while not finished:
        draw_shards(common, machine)
        ran = merge(run, *froms, "--json")
        assert ran.status == 0, ran.stderr
        rounds += 1
        said = json.loads(ran.stdout)
        finished = said["finished"]
        assert said["round"] == (rounds if finished else rounds + 1)
        for number in range(1, N + 1):
            shutil.copytree(run / "rounds", machine(number) / "rounds", dirs_exist_ok=True)
    assert rounds == 3
    assert_same_run(run, local / "rounds")
    assert_same_run(run / "target", local / "rounds/target")
    assert_same_tags(out, local / "rounds.jsonl")
    # Once more, they find that nothing is left to do.
    shutil.copy(run / "manifest.json", machine(1))
    ran = tag(*common, "--run-dir", machine(1), "--shard", "1/3", "--json")
    assert ran.status == 0 and json.loads(ran.stdout)["finished"]


def test_an_open_round_can_be_ended_on_one_machine(
    run: Path, local: Path, inputs: tuple[Path, Path], tiny_model: Path, tmp_path: Path
) -> None:
    said = [json.loads(merge(run, "--json").stdout) for _ in range(2)]
    assert said[0] == said[1] and not said[0]["finished"] and said[0]["round"] == 2
    out = tmp_path / "out.jsonl"
    common = (inputs[0], "--model", tiny_model, *IN_ROUNDS, "--run-dir", run)
    assert tag(*common, "--out", out).status == 0
    assert_same_rollouts(read_rollouts(run), read_rollouts(local / "rounds"))
    names = ["item_id", "trainability", "pass_rate", "tag_reason"]
    for row, expected in zip(read_jsonl(out), read_jsonl(local / "rounds.jsonl"), strict=True):
        assert [row[name] for name in names] == [expected[name] for name in names]


def test_a_run_that_has_gone_on_by_itself_is_not_merged_into(run: Path) -> None:
    assert merge(run).status == 0
    rollouts = sorted((run / "rollouts").iterdir())
    shutil.copy(rollouts[0], run / "rollouts" / f"{len(rollouts):05d}.parquet")
    ran = merge(run)
    assert ran.status == 2 and "has gone on by itself" in ran.last_line


def test_a_killed_shard_goes_on(
    run: Path, drawn: Path, inputs: tuple[Path, Path], tiny_model: Path, tmp_path: Path
) -> None:
    shard = run / "shards/2-of-3"
    shutil.rmtree(shard)
    command = (
        *(inputs[0], "--model", tiny_model, *IN_ROUNDS, "--run-dir", run, "--shard", "2/3"),
        *("--out", drawn.parent / "out.jsonl"),
    )
    moment = ("probes.stages.sample", "write_parquet", 2)
    run_until_killed(tmp_path, moment, *command, before=SETTINGS)
    written = {path.name: path.read_bytes() for path in (shard / "rollouts").glob("*.parquet")}
    assert len(written) == 1
    ran = merge(run)
    assert ran.status == 2 and "has not finished its first round" in ran.last_line
    again = tag(*command)
    assert again.status == 0
    found = next(line for line in again.stderr.splitlines() if str(shard) in line)
    assert found.startswith(f"continuing {shard}: ") and found.endswith("; next: sample")
    assert "continuing" not in tag(*command).stderr  # It waits for the others now.
    assert_same_rollouts(read_rollouts(shard), read_rollouts(drawn / "shards/2-of-3"))
    assert merge(run).status == 0


# --- What does not belong together -----------------------------------------------------------


def change(folder: Path, **facts: Any) -> None:
    """Set facts of a shard's manifest: what a damaged or foreign one would say."""
    file = folder / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | facts))


def second(run: Path) -> Path:
    return run / "shards/2-of-3"


def versions(run: Path) -> dict[str, str]:
    return dict(json.loads((second(run) / "manifest.json").read_text())["versions"])


def rendered_anew(file: Path) -> None:
    """Write other prompts for the same items, as a template that tells the day does."""
    table = pq.read_table(file)
    prompts = pa.array(
        [[*ids, 5] for ids in table["prompt_token_ids"].to_pylist()],
        table.schema.field("prompt_token_ids").type,
    )
    place = table.column_names.index("prompt_token_ids")
    pq.write_table(table.set_column(place, "prompt_token_ids", prompts), file)


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda run: shutil.rmtree(second(run)), "shard 2 of 3 is missing"),
    "unfinished": (
        lambda run: change(second(run), shard={"number": 2, "of": 3, "files": []}),
        "shard 2/3 has not finished round 1",
    ),
    "twice": (
        lambda run: shutil.copytree(second(run), run / "shards/copy"),
        "shard 2/3 is there twice",
    ),
    "another number of shards": (
        lambda run: change(second(run), shard={"number": 2, "of": 4, "files": [1]}),
        "shards of different runs: 1/3 in",
    ),
    "overlapping": (
        lambda run: (
            shutil.rmtree(second(run)),
            shutil.copytree(run / "shards/1-of-3", second(run)),
            change(second(run), shard={"number": 2, "of": 3, "files": [1]}),
        ),
        "shard 2/3 holds rollouts of item",
    ),
    "another version": (
        lambda run: change(second(run), versions=versions(run) | {"torch": "1.0"}),
        "shard 2/3 does not belong with shard 1/3: versions torch: ",
    ),
    "another day's prompts": (
        lambda run: rendered_anew(second(run) / "items.parquet"),
        "shard 2/3 has other prompts than shard 1/3",
    ),
    "a lost file": (
        lambda run: next((second(run) / "rollouts").iterdir()).unlink(),
        "shard 2/3 holds 0 rollouts of item",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_shards_that_are_not_those_of_one_run_are_refused(what: str, run: Path) -> None:
    damage, reason = REFUSED[what]
    damage(run)
    ran = merge(run)
    assert ran.status == (1 if what == "a lost file" else 2)
    assert ran.last_line.startswith("curate: ") and reason in ran.last_line
    assert not (run / "rollouts").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--seed", "7"), "shard 2/3 does not belong with shard 1/3: seed: 0 -> 7"),
        (("--limit", "9"), "shard 2/3 does not belong with shard 1/3: limit: none -> 9"),
        (("DATASET",), "shard 2/3 does not belong with shard 1/3: dataset fingerprint: "),
    ],
)
def test_a_shard_with_another_setting_or_dataset_is_refused(
    options: tuple[str, ...],
    reason: str,
    run: Path,
    inputs: tuple[Path, Path],
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    data = inputs[0]
    if options == ("DATASET",):
        data, options = write_jsonl(tmp_path / "sums.jsonl", additions(5)), ()
    shutil.rmtree(second(run))
    common = (data, "--model", tiny_model, *IN_ROUNDS, "--run-dir", run, "--shard", "2/3")
    assert tag(*common, *options).status == 0
    ran = merge(run)
    assert ran.status == 2 and reason in ran.last_line


def test_what_is_no_shard_is_one_clear_line(
    run: Path, inputs: tuple[Path, Path], tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, reason in (
        ((tmp_path / "empty",), "holds no shards"),
        ((tmp_path / "nowhere",), "no such folder"),
        ((run, "--from", tmp_path / "empty"), "is no folder of a shard"),
        ((run, "--dataset", inputs[1]), "is not the dataset that the shards probed"),
    ):
        ran = merge(*arguments)
        assert ran.status == 2 and reason in ran.last_line, ran.stderr
    for shard in ("0/3", "4/3", "3", "a/b", "-1/3", "1/0"):
        ran = tag(inputs[0], "--model", tiny_model, f"--shard={shard}")
        assert ran.status == 2 and "it must be I/N" in ran.last_line
