"""`curate tag --dry-run`, and the estimate that opens a real run."""

import hashlib
import json
import math
import shlex
import tempfile
import time
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from curate.cli import read
from curate.config import TagConfig
from probes import estimate, opening, tagging, trial
from probes.engines.base import Rollout, SampleRequest
from probes.estimate import Span
from probes.gradients.batch import TokenizedRollout
from probes.trial import _draw, _token_price, _up_to, _Wave
from tests.tag_runs import additions, read_rollouts, tag, write_jsonl

ROWS: list[Any] = [
    *additions(6),
    '{"question": "what is',
    {"question": "what is 2 + 2 ?"},
    {"question": "what is 1 + 2 ?", "answer": "no number"},
    {"question": "what is 1 + 3 ?", "answer": "none"},
    {"question": "what is " + "1 + " * 200 + "?", "answer": "9"},
    additions(1)[0],
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a dataset in it, and an empty folder for what is temporary."""
    (tmp_path / "work").mkdir()
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    write_jsonl(Path("sums.jsonl"), ROWS)
    return tmp_path


def _files(folder: Path) -> dict[str, str]:
    """Every file and folder, by a hash of what is in it."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "a folder"
        for path in folder.rglob("*")
    }


# --- Before anything is spent --------------------------------------------------------------------


def test_it_says_what_it_read_and_what_the_run_costs(here: Path, tiny_model: Path) -> None:
    before = _files(here)
    ran = tag("sums.jsonl", "--model", tiny_model, "--dry-run", "--out", "new/sums.jsonl")
    assert ran.status == 0, ran.stderr
    for words in (
        "rows      12: 7 probed, 5 rejected; 6 items",
        "2 x numeric verifier finds no finite number in the gold; gold 'no number' (row 9, 10)",
        "1 x no gold answer",
        "1 x its prompt of 403 tokens and --max-tokens 12 exceed the model's context of 256",
        "prompts   6 to 6 tokens, median 6",
        "engine    transformers: ",
        "runs/sums-tiny-llama: not there yet; tagged file: new/sums.jsonl",
        "rollouts  192, in one round",
        "gradients from ",
        "nothing was written",
    ):
        assert words in ran.stdout
    assert "each with its reason in" not in ran.stderr  # The file would be gone.
    assert _files(here) == before


def test_json_says_the_same(here: Path, tiny_model: Path) -> None:
    most = ("--max-rollouts", "128", "--mean-rollouts", "0")
    ran = tag("sums.jsonl", "--model", tiny_model, "--dry-run", "--json", *most)
    assert ran.status == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert (found["rows"], found["rows_rejected"], found["items"]) == (12, 5, 6)
    (golds,) = (each for each in found["rejects"] if each["rows"] == 2)
    assert golds["first_rows"] == [9, 10] and "no finite number" in golds["reason"]
    assert sum(each["rows"] for each in found["rejects"]) == 5
    assert found["prompt_tokens"] == {"min": 6, "median": 6.0, "max": 6}
    assert found["engine"]["name"] == "transformers" and found["engine"]["why"]
    assert found["continues"] is False and found["target"] is None
    sample, cost = found["sample"], found["estimate"]
    assert 0 < sample["correct"] < sample["judged"] == sample["rollouts"] <= 192
    assert sample["cut"] > 0 and sample["differentiated"] > 1
    rollouts = cost["rollouts"]
    assert rollouts["round_one"] == 192 and rollouts["at_most"] == 6 * 128
    assert 192 < rollouts["low"] <= rollouts["expected"] <= rollouts["high"] <= 6 * 128
    seconds = cost["seconds"]
    assert seconds["low"] < seconds["expected"] < seconds["high"]
    stages = seconds["by_stage"]
    assert set(stages) == {"start", "sampling", "verifying", "gradients", "gold"}
    assert sum(each["expected"] for each in stages.values()) == pytest.approx(
        seconds["expected"], rel=1e-2
    )
    assert cost["disk_bytes"]["expected"] < cost["disk_bytes"]["at_most"]
    assert cost["memory_bytes"] > 1e8
    assert any(line.strip().startswith("rollouts  192 in round one") for line in found["lines"])


def test_a_target_is_read_and_counted(here: Path, tiny_model: Path) -> None:
    write_jsonl(Path("target.jsonl"), additions(9)[6:])
    line = ("sums.jsonl", "--model", tiny_model, "--dry-run", "--json", "--target", "target.jsonl")
    found = json.loads(tag(*line).stdout)
    assert found["target"]["items"] == 3
    assert found["estimate"]["rollouts"]["round_one"] == 9 * 32


def test_a_part_is_estimated_alone(here: Path, tiny_model: Path) -> None:
    line = ("sums.jsonl", "--model", tiny_model, "--dry-run", "--json", "--shard", "1/2")
    found = json.loads(tag(*line).stdout)
    assert found["estimate"]["rollouts"]["round_one"] == 3 * 32
    assert found["run_dir"].endswith("shards/1-of-2")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--rollout-budget", "100"), "need at least 192"),
        (("--prompt-field", "quest"), "quest"),
        (("--verifier", "nowhere:judge"), "nowhere"),
        (("--executor", "ray"), "--executor ray"),
    ],
)
def test_what_is_wrong_is_refused_as_ever(
    here: Path, tiny_model: Path, more: tuple[str, ...], words: str
) -> None:
    before = _files(here)
    ran = tag("sums.jsonl", "--model", tiny_model, "--dry-run", *more)
    assert ran.status == 2 and words in ran.last_line and not ran.stdout
    assert _files(here) == before


def test_a_real_run_after_it_is_the_same(here: Path, tiny_model: Path) -> None:
    command = ("sums.jsonl", "--model", tiny_model, "--run-dir", "run", "--out", "tagged.jsonl")
    assert tag(*command, "--dry-run").status == 0
    assert not Path("run").exists()
    assert tag(*command).status == 0
    after = _files(here / "work")
    assert "dry_run" not in tomllib.loads(Path("run/config.toml").read_text())
    Path("run").rename(here / "first")
    Path("tagged.jsonl").unlink()
    assert tag(*command).status == 0
    different = {
        name for name, content in _files(here / "work").items() if after.get(name) != content
    }
    # Times and process ids.
    assert different == {"run/manifest.json"}
    assert after.keys() == _files(here / "work").keys()

    # And over a run that is there it changes nothing, though it knows of it.
    before = _files(here)
    ran = tag(*command, "--dry-run")
    assert ran.status == 0 and "run: there already, and continued" in ran.stdout
    # A real run with other settings would be refused there; nothing is written, so this is not.
    other = tag(*command, "--dry-run", "--max-tokens", "11")
    assert other.status == 0 and "estimate, " in other.stdout
    assert "run: belongs to another run, so this one needs its own --run-dir" in other.stdout
    assert "note: run folder run belongs to another run" in other.stderr
    assert "max_tokens: 12 -> 11" in other.stderr
    settings = tag("--config", "run/config.toml", "--run-dir", "other", "--dry-run", "--json")
    assert settings.status == 0, settings.stderr
    assert json.loads(settings.stdout)["run_dir"] == "other"
    assert _files(here) == before


def test_a_long_run_comes_with_smaller_plans(
    here: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "DAY", 0.05)
    command = ("sums.jsonl", "--model", tiny_model, "--max-rollouts", "1024", "--dry-run")
    command += ("--mean-rollouts", "0")
    ran = tag(*command, "--json")
    assert ran.status == 0, ran.stderr
    found = json.loads(ran.stdout)
    plans = found["smaller_plans"]
    assert {"--max-rollouts 256", "--max-rollouts 32"} <= {each["options"] for each in plans}
    expected = [each["seconds"]["expected"] for each in plans]
    assert expected == sorted(expected, reverse=True)
    assert expected[0] < found["estimate"]["seconds"]["expected"]
    for each in plans:
        # They can be typed as they stand.
        TagConfig(**read(shlex.split(f"x --model y {each['options']}"), "tag"))
        assert any(each["options"] in line and each["loses"] in line for line in found["lines"])
    assert any("more than a day; smaller plans" in line for line in found["lines"])


# --- What is tried -------------------------------------------------------------------------------


class _Steps:
    """An engine on a clock of its own, whose step takes 0.1 s and some more a rollout."""

    name, has_own_weights, stops_at = "steps", False, math.inf

    def __init__(
        self, clock: list[float], most: int, least: int = 1, each: float = 0.005, tells: bool = True
    ) -> None:
        self.clock, self.least, self.most = clock, least, most
        self.each, self.tells = each, tells
        self.asked: list[tuple[str, int]] = []
        self.sizes: list[int] = []
        self._making: list[int] = []

    def sample(self, requests: Iterable[SampleRequest]) -> Iterator[Rollout]:
        keys = [
            (each.item_id, number)
            for each in requests
            for number in range(each.first_sample, each.first_sample + each.samples)
        ]
        self.asked += keys
        self.sizes.append(len(keys))
        lengths = {
            key: self.least + (7 * place) % (self.most - self.least + 1)
            for place, key in enumerate(keys)
        }
        step = 0
        while lengths and self.clock[0] < self.stops_at:
            step += 1
            self.clock[0] += 0.1 + self.each * len(lengths)
            ended = [key for key, length in lengths.items() if length == step]
            for key in ended:
                del lengths[key]
            self._making = [step] * len(lengths)
            for item, number in ended:
                yield Rollout(item, number, [5] * step, "stop")

    def unfinished(self) -> list[int] | None:
        return list(self._making) if self.tells else None

    def facts(self) -> dict[str, Any]:
        return {"name": self.name, "options": {"max_rows": 128, "batch_tokens": 10**9}}

    def close(self) -> None: ...


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(trial.time, "monotonic", lambda: now[0])
    return now


def _items(count: int) -> pa.Table:
    return pa.table(
        {
            "item_id": [f"item {n}" for n in range(count)],
            "prompt_token_ids": pa.array([[1, 2, 3]] * count, pa.list_(pa.int32())),
            "answer": ["1"] * count,
        }
    )


CONFIG = TagConfig(min_rollouts=32, max_rollouts=32, max_tokens=20)


def test_waves_grow_to_a_full_batch_and_no_rollout_comes_twice(clock: list[float]) -> None:
    engine, items = _Steps(clock, most=20), _items(200)
    waves = _draw(engine, items, CONFIG, grows=True)
    assert engine.sizes[:2] == [4, 128] and set(engine.sizes[2:]) <= {128}
    assert len(engine.asked) == len(set(engine.asked)) == sum(len(w.rollouts) for w in waves)
    assert len({item for item, _ in engine.asked}) >= 4 + 8
    price = _token_price(waves, engine, items, CONFIG)
    # 128 rollouts at once: a step of 0.74 s brings 128 tokens.
    assert price.low < 0.74 / 128 < price.high
    assert price.middle == pytest.approx(0.74 / 128, rel=0.1)
    assert engine.stops_at == math.inf


def test_a_slow_engine_is_stopped_by_the_clock_and_told_as_it_was(clock: list[float]) -> None:
    engine, items = _Steps(clock, least=60, most=90, each=0.02), _items(200)
    begun = clock[0]
    waves = _draw(engine, items, CONFIG, grows=True)
    assert clock[0] - begun < trial.SECONDS + 3
    assert engine.sizes == [4, 128]
    few, full = waves
    # A step of four takes 0.18 s, one of 128 takes 2.66 s: the first tell more of the lengths.
    assert len(few.rollouts) + len(few.unfinished) == 4 and few.seconds < 16
    assert not full.rollouts and len(full.unfinished) == 128 and 10 < full.unfinished[0] < 20
    price = _token_price(waves, engine, items, CONFIG)
    assert price.middle == pytest.approx(2.66 / 128, rel=0.05)


def test_a_batch_that_was_not_full_is_extended() -> None:
    def wave(asked: int) -> _Wave:
        return _Wave(asked, [], [], 1.0, 1 / asked + 0.1, is_steady=True)

    found = _token_price([wave(4), wave(32)], _Steps([0.0], 3), _items(9), CONFIG)
    assert found.middle == pytest.approx(1 / 128 + 0.1)
    alone = _token_price([wave(4)], _Steps([0.0], 3), _items(9), CONFIG)
    assert alone.low < found.middle < alone.high and alone.high > 20 * alone.low
    full = _token_price([wave(4), wave(32), wave(128)], _Steps([0.0], 3), _items(9), CONFIG)
    assert full == pytest.approx(Span(0.8, 1, 1.25).times(1 / 128 + 0.1))


def test_an_engine_that_does_not_tell_gets_one_wave_and_a_range(clock: list[float]) -> None:
    engine, items = _Steps(clock, most=40, each=0.001, tells=False), _items(200)
    waves = _draw(engine, items, CONFIG, grows=False)
    assert set(engine.sizes) == {256}
    found = _token_price(waves, engine, items, CONFIG)
    # The truth: a full batch of 256.
    assert found.low < 0.356 / 256 < found.high
    lengths = [len(rollout.completion_token_ids) for rollout in waves[-1].rollouts]
    assert found.low / found.high == pytest.approx(float(np.mean(lengths)) / max(lengths))


def test_a_batch_of_gradients_counts_its_padding() -> None:
    rollouts = [TokenizedRollout([1] * 10, [2] * length) for length in (5, 20, 20, 90)]
    assert [len(_up_to(rollouts, tokens)) for tokens in (1, 59, 60, 90, 399, 400)] == [
        *(1, 1, 2, 3, 3, 4)
    ]
    assert _up_to([], 100) == []


def test_few_items_and_few_rollouts_are_all_drawn_once(clock: list[float]) -> None:
    engine, config = _Steps(clock, most=3), CONFIG.replace(min_rollouts=5, max_rollouts=5)
    _draw(engine, _items(3), config, grows=True)
    assert sorted(engine.asked) == sorted((f"item {n}", s) for n in range(3) for s in range(5))


# --- The estimate that opens a run ---------------------------------------------------------------


def _estimates(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if line.startswith("estimate, ")]


@pytest.mark.parametrize("when", ["after round one", "after a file", "in the making"])
def test_a_run_opens_with_it_and_draws_as_ever(
    here: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    command = ("sums.jsonl", "--model", tiny_model, "--max-rollouts", "64", "--out", "t.jsonl")
    if when != "after round one":
        monkeypatch.setattr(tagging, "_SHARD_TOKENS", {"cpu": 2 * 32 * 12})
    with monkeypatch.context() as patch:
        patch.setattr(opening.Opening, "tell", lambda self, *_: setattr(self, "is_told", True))
        silent = tag(*command, "--run-dir", "silent")
    assert not _estimates(silent.stderr)
    if when != "after round one":
        monkeypatch.setattr(opening, "SECONDS", 0.0)
    if when == "after a file":  # As where the engine does not tell what is in the making.
        monkeypatch.setattr(opening.Opening, "saw", lambda self, *_: None)
    ran = tag(*command, "--run-dir", "run")
    assert ran.status == 0, ran.stderr
    (line,) = _estimates(ran.stderr)
    from_prompts = {
        "after round one": "6 prompts",
        "after a file": "2 prompts",
        "in the making": "prompt ",
    }
    assert f"of its first {from_prompts[when]}" in line
    assert ("in the making" in line) == (when == "in the making")
    told = ran.stderr.index(line)
    assert told < ran.stderr.index("round 2: ")
    assert (told < ran.stderr.index("sampling: ")) == (when != "after round one")
    assert "192 in round one; in all about " in ran.stderr
    for name in ("rollouts", "gradients"):
        assert _files(Path("run") / name) == _files(Path("silent") / name)
    assert Path("run/tags.parquet").read_bytes() == Path("silent/tags.parquet").read_bytes()


def test_a_continued_run_tells_what_is_drawn_anew_or_nothing(
    here: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("sums.jsonl", "--model", tiny_model, "--run-dir", "run", "--out", "t.jsonl")
    assert len(_estimates(tag(*command).stderr)) == 1
    again = tag(*command)
    assert again.status == 0 and not _estimates(again.stderr)
    assert read_rollouts(Path("run")).num_rows == 192


def test_a_long_real_run_says_what_is_smaller(
    here: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "DAY", 0.05)
    ran = tag("sums.jsonl", "--model", tiny_model, "--max-rollouts", "128")
    assert "more than a day; smaller plans, by what is added to the command:" in ran.stderr
    assert "--max-rollouts 32 " in ran.stderr


def test_the_clock_of_the_trial_is_the_real_one() -> None:
    assert abs(trial.time.monotonic() - time.monotonic()) < 1


def test_the_trial_says_at_once_how_long_it_may_take(here: Path, tiny_model: Path) -> None:
    said = tag("sums.jsonl", "--model", tiny_model, "--dry-run").stderr
    first = said.index("trying: drawing rollouts for up to 60 s, then gradients, together up to 90")
    assert first < said.index("trying: 1")


class _SlowProbe:
    """Gradients that take a second a token on a clock of their own."""

    batch_tokens = 4096

    def __init__(self, clock: list[float]) -> None:
        self.clock = clock

    def gradients(self, rollouts: Sequence[TokenizedRollout]) -> Iterator[None]:
        self.clock[0] += sum(each.tokens for each in rollouts)
        return iter(())


@pytest.mark.parametrize(("left", "most", "known"), [(30, 30, True), (12, 12, True), (0, 0, False)])
def test_gradients_end_within_what_drawing_left(
    monkeypatch: pytest.MonkeyPatch, left: float, most: float, known: bool
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(trial.time, "monotonic", lambda: clock[0])
    items = _items(8)
    rollouts = [
        Rollout(item_id, sample, [sample, number], "stop")
        for number, item_id in enumerate(items["item_id"].to_pylist())
        for sample in range(8)
    ]
    row_of = {item_id: row for row, item_id in enumerate(items["item_id"].to_pylist())}
    price, done = trial._gradient_price(
        rollouts, items, row_of, lambda: _SlowProbe(clock), clock[0] + left
    )
    assert clock[0] - 1000.0 <= most
    assert (price is not None) == known == (done > 0)
