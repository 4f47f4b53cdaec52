"""The final table of `curate tag`, from what the manifest says."""

import json
from pathlib import Path
from typing import Any

import pytest

from curate.errors import RunError
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
