"""The final table of `curate tag`, from what the manifest says."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from curate.errors import RunError, UsageError
from curate.run.folder import RunFolder, read_run_config
from curate.tagged.rows import open_tagged
from probes.summary import summarize, summary_text
from tests.made.published import FORECAST, write_published_run


def summary_of(folder: Path, forecast: Any) -> dict[str, Any]:
    run = write_published_run(folder)
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["forecast"] = forecast
    manifest["counts"] |= {
        "tags": {"easy": 3, "learnable": 2, "unlearnable": 0, "no_positive": 1, "undetermined": 1},
        **{"rounds": 1, "expected_label_changes": 0.0, "completion_tokens": 700},
    }
    manifest["stages"]["sample"] = {"state": "done", "seconds": 7.0}
    (run / "manifest.json").write_text(json.dumps(manifest))
    return summarize(run)


def test_the_forecast_is_told_in_words_and_numbers(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, FORECAST)
    assert summary["forecast"].pop("words") == (
        "the pass rate after a GRPO training 2 times as long as it takes to solve most easy items, "
        "from what was counted and the lift by the gradients of its rollouts"
    )
    assert summary["forecast"] == FORECAST


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"horizon": 1.0}, "a GRPO training as long as it takes to solve most easy items, from"),
        ({"source": "pilot"}, "the lift by a pilot of a few GRPO steps"),
        ({"source": "checkpoint"}, "the lift by an early checkpoint"),
        ({"pass_probability": {"gold_used": True}}, "counted, the probability of the gold answers"),
    ],
)
def test_the_words_follow_what_it_was_made_of(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    lines = summary_text(summary_of(tmp_path, FORECAST | changes)).splitlines()
    (line,) = [line for line in lines if line.startswith("forecast: ")]
    assert words in line


def test_a_run_of_an_earlier_version_says_so(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, None)
    assert summary["forecast"] == {"words": "tagged by an earlier version of curate: no forecast"}
    assert "forecast: tagged by an earlier version of curate" in summary_text(summary)


def test_a_damaged_forecast_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"manifest\.json is damaged: its forecast says no 'spread'"):
        summary_of(tmp_path, FORECAST | {"constants": {"drift": 0.1, "gain": 1}})


def test_rates_and_times_say_over_how_many_tries_they_are(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, FORECAST)
    assert summary["tries"] == {"tags": 1, "sample": 1} and "tries" not in summary_text(summary)
    run = tmp_path / "run"
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["stages"]["sample"]["tries"] = 2
    (run / "manifest.json").write_text(json.dumps(manifest))
    text = summary_text(summarize(run))
    assert "700 tokens at 100 tokens/s over 2 tries" in text
    assert text.splitlines()[-4] == "time: 8 s over 2 tries (tags 1 s, sample 7 s)"


def test_a_tagged_file_is_found_from_another_folder_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started_in, elsewhere = tmp_path / "work", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (started_in / "run").mkdir(parents=True)
    written = {"stages": {"write": {"state": "done", "seconds": 1.0}}}
    settings = {"out": "tagged.jsonl", "run_dir": "run"}
    run = write_published_run(started_in, settings=settings, manifest=written)
    monkeypatch.chdir(started_in)
    assert read_run_config(Path("run")).out == "tagged.jsonl"
    monkeypatch.chdir(elsewhere)
    for path in (run, Path("../work/run")):
        found = open_tagged(path)
        assert found.config and Path(found.config.out) == started_in / "tagged.jsonl"
        assert found.source.path == started_in / "tagged.jsonl"
    # A run folder that was moved says nothing of where it was started.
    run.rename(elsewhere / "moved")
    with pytest.raises(UsageError, match=r"its tagged file to tagged\.jsonl, which is not there"):
        open_tagged(Path("moved"))
    # What is there as seen from here is the file that is meant.
    (elsewhere / "tagged.jsonl").write_text("")
    assert read_run_config(elsewhere / "moved").out == "tagged.jsonl"


def _opened(folder: Path) -> RunFolder:
    lock = os.open(folder / "lock", os.O_CREAT)
    return RunFolder(folder, lock, json.loads((folder / "manifest.json").read_text()))


def test_a_try_counts_where_the_one_before_did_not_end_its_stage(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "manifest.json").write_text('{"stages": {}}')
    for _ in range(2):  # Both of them are stopped.
        with _opened(folder) as run:
            with run.stage("items"):
                pass
            with pytest.raises(KeyboardInterrupt), run.stage("sample"):
                raise KeyboardInterrupt
    with _opened(folder) as run:
        for _ in range(2):  # Rounds of one process are one try.
            with run.stage("sample") as entry:
                entry["state"] = "started"
    stages = json.loads((folder / "manifest.json").read_text())["stages"]
    assert stages["sample"]["tries"] == 3 and "tries" not in stages["items"]
