"""`curate order --by schedule`: difficulty rises, batches mix, rows repeat as often as they may."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import curate
from curate.errors import UsageError
from curate.tagged.schedule import Aim, schedule_rows
from tests.tag_runs import Ran, read_jsonl, run_curate
from tests.tagged_files import some_rows, tagged_row, write_tagged_file

RATES = np.random.default_rng(0).beta(0.5, 0.5, 1200)
"""As pass rates are: most are near 0 or near 1."""


def _means(values: Any, stretches: int) -> list[float]:
    return [float(part.mean()) for part in np.array_split(values, stretches)]


def test_every_row_comes_once_an_epoch_and_the_easy_ones_come_first() -> None:
    found = schedule_rows(RATES, [""] * len(RATES), Aim(), epochs=3, batch=60)
    assert Counter(found.places.tolist()) == dict.fromkeys(range(len(RATES)), 3)
    means = _means(RATES[found.places], 6)
    assert means == sorted(means, reverse=True)
    assert means[0] > 0.85 and means[-1] < 0.15
    # Batches mix: none of those in the middle is of one difficulty.
    spreads = [RATES[batch].std() for batch in np.array_split(found.places, 60)[20:40]]
    assert min(spreads) > 0.1


def test_where_rows_may_repeat_batches_follow_the_target() -> None:
    aim = Aim(first=0.7, last=0.3, width=0.1)
    found = schedule_rows(RATES, [""] * len(RATES), aim, epochs=2, batch=60, repeats=40)
    # Each tenth has the target's mean, as far as the few rows in the middle let it.
    for n, mean in enumerate(_means(RATES[found.places], 10)):
        assert mean == pytest.approx(aim.target((n + 0.5) / 10), abs=0.05)
    times = found.times(len(RATES)).sum(axis=1)
    assert times.sum() == len(found.places) == 2 * ((RATES > 0) & (RATES < 1)).sum()
    assert times.max() <= 40
    assert times[(RATES > 0.4) & (RATES < 0.6)].mean() > 4 * times[RATES > 0.95].mean()


def test_weights_of_an_epoch_are_what_a_draw_at_its_targets_would_be() -> None:
    aim = Aim(first=0.9, last=0.1, width=0.15)
    found = schedule_rows(RATES, [""] * len(RATES), aim, epochs=4)
    assert found.weights.sum(axis=0) == pytest.approx(np.ones(4))
    moments = (np.arange(512) + 0.5) / 512
    kernel = np.exp(-((np.round(RATES, 3)[:, None] - (0.9 - 0.8 * moments)) ** 2) / (2 * 0.15**2))
    kernel /= kernel.sum(axis=0)
    expected = kernel.reshape(len(RATES), 4, 128).mean(axis=2)
    assert found.weights == pytest.approx(expected, rel=1e-6, abs=1e-12)
    means = RATES @ found.weights
    assert list(means) == sorted(means, reverse=True)


def test_bands_follow_one_another_and_leave_the_other_rows_out() -> None:
    aim = Aim(bands=((0.5, 0.9), (0.2, 0.6), (0.05, 0.3)))
    found = schedule_rows(RATES, [""] * len(RATES), aim, epochs=3, batch=20, repeats=30)
    for part, (low, high) in zip(np.array_split(found.places, 3), aim.bands, strict=True):
        rates = np.round(RATES[part], 3)
        # Where a row waited for the next batch it may cross into the next band.
        assert ((rates >= low) & (rates <= high)).mean() > 0.9
    seen = np.round(RATES[np.unique(found.places)], 3)
    assert seen.min() >= 0.05 and seen.max() <= 0.9
    with pytest.raises(UsageError, match=r"no row has a pass rate from 0.4 to 0.45"):
        schedule_rows(np.array([0.1, 0.9]), ["", ""], Aim(bands=((0.4, 0.45),)))


@settings(max_examples=60, deadline=None)
@given(
    rates=st.lists(st.floats(0, 1), min_size=1, max_size=50),
    epochs=st.integers(1, 4),
    batch=st.integers(1, 12),
    repeats=st.none() | st.integers(1, 6),
    width=st.floats(0.05, 1),
    seed=st.integers(0, 3),
)
def test_no_row_comes_too_often_nor_twice_in_a_batch_that_others_could_fill(
    rates: list[float], epochs: int, batch: int, repeats: int | None, width: float, seed: int
) -> None:
    kinds = ["even" if n % 2 == 0 else "odd" for n in range(len(rates))]
    arguments = dict(epochs=epochs, batch=batch, repeats=repeats, seed=seed)  # noqa: C408
    found = schedule_rows(np.array(rates), kinds, Aim(width=width), **arguments)  # type: ignore[arg-type]
    again = schedule_rows(np.array(rates), kinds, Aim(width=width), **arguments)  # type: ignore[arg-type]
    assert found.places.tolist() == again.places.tolist()
    times = Counter(found.places.tolist())
    assert max(times.values()) <= (repeats or epochs)
    assert found.starts[0] == 0 and found.starts[-1] == len(found.places)
    batches = [found.places[at : at + batch] for at in range(0, len(found.places), batch)]
    if max(times.values()) <= len(batches) - 1:
        assert sum(len(each) - len(set(each.tolist())) for each in batches) <= batch


def test_every_stretch_holds_the_shares_of_the_domains() -> None:
    kinds = ["math" if n % 4 else "code" for n in range(len(RATES))]
    found = schedule_rows(RATES, kinds, Aim(), epochs=2, batch=40)
    for batch in np.array_split(found.places, 60):
        assert np.mean([kinds[row] == "code" for row in batch]) == pytest.approx(0.25, abs=0.05)
    shares = {"math": 0.5, "code": 0.5}
    found = schedule_rows(RATES, kinds, Aim(), epochs=1, batch=40, repeats=3, shares=shares)
    for batch in np.array_split(found.places, 30):
        assert np.mean([kinds[row] == "code" for row in batch]) == pytest.approx(0.5, abs=0.05)
    of_code = np.array([kind == "code" for kind in kinds])
    assert found.weights[of_code].sum() == pytest.approx(0.5)
    # Rows that come once each cannot fill half of it.
    short = schedule_rows(RATES, kinds, Aim(), epochs=1, batch=40, shares=shares)
    assert short.notes == ["code: 300 rows of at most 1 times each fill 300 of 600 places"]


def test_a_domain_without_rows_in_a_band_is_stood_in_for_by_its_nearest() -> None:
    rates = np.array([0.1, 0.2, 0.8, 0.9, 0.15, 0.9])
    kinds = ["a", "a", "a", "a", "b", "b"]
    aim = Aim(bands=((0.7, 1.0), (0.0, 0.3)))
    found = schedule_rows(np.append(rates, 0.85), [*kinds, "c"], aim, batch=2)
    assert found.notes == ["c: where no row has a pass rate in the band, the nearest stand in"]
    assert set(found.places.tolist()) == set(range(7))


# --- The command -----------------------------------------------------------------------------


@pytest.fixture
def tagged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_tagged_file(tmp_path / "t.jsonl", some_rows())


def _order(*arguments: object) -> Ran:
    return run_curate("order", "t.jsonl", "--by", "schedule", *arguments)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_all_epochs_are_one_file_that_any_trainer_reads_in_order(tagged: Path, suffix: str) -> None:
    rows = some_rows()
    out = Path(f"o{suffix}")
    ran = _order("--epochs", "3", "--batch", "5", "--seed", "1", "-o", out, "--json")
    assert ran.status == 0, ran.stderr
    if suffix == ".jsonl":
        ids = [row["item_id"] for row in read_jsonl(out)]
    else:
        table = pq.read_table(out) if suffix == ".parquet" else pyarrow.csv.read_csv(out)
        ids = table["item_id"].to_pylist()
    known = [row["item_id"] for row in rows if row["trainability"]]
    assert Counter(ids) == dict.fromkeys(known, 3)
    assert not any(len(set(ids[at : at + 5])) < 5 for at in range(0, 60, 5))
    summary = json.loads(ran.stdout)
    assert summary["left_out"] == {"not tagged": 1}
    assert [each["rows"] for each in summary["epochs"]] == [20, 20, 20]
    rates = [each["pass_rate"] for each in summary["epochs"]]
    assert rates == sorted(rates, reverse=True) and rates[0] > rates[-1]
    assert _order("--epochs", "3", "--batch", "5", "--seed", "1", "-o", f"p{suffix}").status == 0
    assert Path(f"p{suffix}").read_bytes() == out.read_bytes()


def test_it_is_written_for_a_trainer_with_its_repeats(tagged: Path) -> None:
    found = curate.order(
        "t.jsonl", "o.jsonl", by="schedule", epochs=2, band=["0.5:1", "0:0.1"], format="trl",
        instruction="",
    )  # fmt: skip
    rows = read_jsonl(Path("o.jsonl"))
    assert len(rows) == found["written"] == 40
    assert isinstance(rows[0]["prompt"], list) and rows[0]["pass_rate"] >= 0.5
    assert found["epochs"][0]["target"] == pytest.approx(0.75)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_the_weights_by_epoch_are_a_table(tagged: Path, suffix: str) -> None:
    file = Path(f"w{suffix}")
    ran = _order("--epochs", "2", "--repeats", "4", "-o", "o.jsonl", "--weights", file)
    assert ran.status == 0, ran.stderr
    assert f"weights: {file}" in ran.stdout
    if suffix == ".jsonl":
        lines = read_jsonl(file)
    elif suffix == ".csv":
        lines = pyarrow.csv.read_csv(file).to_pylist()
    else:
        lines = pq.read_table(file).to_pylist()
    assert len(lines) == 40
    rows = some_rows()
    for epoch in (1, 2):
        assert sum(each["weight"] for each in lines if each["epoch"] == epoch) == pytest.approx(1)
    for each in lines:
        assert rows[each["row"] - 1]["item_id"] == each["item_id"]
    written = Counter(row["item_id"] for row in read_jsonl(Path("o.jsonl")))
    times = Counter[str]()
    for each in lines:
        times[each["item_id"]] += each["times"]
    assert +times == written and max(written.values()) <= 4


def test_what_cannot_be_is_refused_before_anything_is_written(tagged: Path) -> None:
    for arguments, said in (
        (("--band", "0.6:0.2"), "it must be LOW:HIGH"),
        (("--band", "0.2:0.6", "--width", "0.1"), "--band stands in the place of"),
        (("--band", "0.2:0.3"), "no row has a pass rate from 0.2 to 0.3"),
        (("--first-rate", "1.2"), "--first-rate is 1.2; it must be from 0 to 1"),
        (("--share", "odd=1"), "--share needs --quota COLUMN"),
        (("--quota", "sourze"), "did you mean 'source'"),
        (("--seed", "-1"), "--seed is -1; of --by schedule it must be at least 0"),
        (("--weights", "w.json"), "the suffix must be one of .parquet, .jsonl, .csv"),
        (("--weights", "o.jsonl"), "cannot hold both"),
        (("--width", "1e-200"), "--width is 1e-200; it must be a number, at least 0.001"),
        (("--epochs", str(10**12)), "and a schedule has at most 1,000,000,000"),
        (("--quota", "source", "--share", "odd=0", "--share", "even=0"), "has a share above 0"),
        (("--quota", "source", "--share", "odd=0", "--share", "odd=1"), "has a share already (0)"),
    ):
        ran = _order("-o", "o.jsonl", *arguments)
        assert ran.status == 2 and said in ran.last_line, ran.stderr
    assert _order("-o", "o.jsonl", "--width", "1e300").status == 0
    Path("o.jsonl").unlink()
    ran = run_curate("order", "t.jsonl", "--by", "pass_rate", "--epochs", "2", "-o", "o.jsonl")
    assert "--epochs is of --by schedule, not of pass_rate" in ran.last_line
    assert not Path("o.jsonl").exists()
    write_tagged_file(Path("t.jsonl"), [tagged_row(1, "undetermined"), tagged_row(2, None)])
    ran = _order("-o", "o.jsonl")
    assert "no row of 2 can be scheduled: 1: no pass_rate; 1: not tagged" in ran.last_line
