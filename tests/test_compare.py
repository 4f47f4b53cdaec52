"""`curate compare` on run folders of which the truth is known, and on two tiny models."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import curate
from recipes.statistics.changes import wilson_limits
from tests.made.run import Items, made_run, planted_gradients, write_quality
from tests.tag_runs import Ran, additions, read_jsonl, run_curate, tag, write_jsonl
from tests.tiny import save_tiny_model

IDS = [f"{number:016x}" for number in range(60)]
TAGS = ["easy"] * 20 + ["learnable"] * 20 + ["unlearnable"] * 20

# --- Runs with a known truth -----------------------------------------------------------------


def _planted(
    seed: int, alignment: float, correct: Sequence[int], ids: Sequence[str] = IDS, **more: Any
) -> Items:
    """Items of which easy items have an alignment of 0.5, and hard ones as given."""
    rng = np.random.default_rng(seed)
    tags = [TAGS[IDS.index(each)] for each in ids]
    shares = [0.5 if tag == "easy" else alignment for tag in tags]
    options: dict[str, Any] = {
        "similarity": shares,
        "gradients": planted_gradients(rng, shares, rng.integers(2, 12, len(ids)).tolist()),
        **more,
    }
    return Items(ids, correct, tags, **options)


def _write(
    folder: Path, items: Items, *, weight_hash: str = "", settings: Any = None, **facts: Any
) -> Path:
    """Write a run of a policy of its own, or of the one with this hash."""
    return made_run(
        folder,
        items,
        settings={"model": folder.name, **(settings or {})},
        manifest={"model": {"weight_hash": weight_hash or folder.name}, **facts},
    )


@pytest.fixture
def planted(tmp_path: Path) -> tuple[Path, Path]:
    """Hard items rise from a pass rate of 1/32 to 16/32 and an alignment of 0.1 to 0.5."""
    before = _write(tmp_path / "base", _planted(0, 0.1, [20] * 20 + [1] * 40))
    after = _write(tmp_path / "step50", _planted(1, 0.5, [20] * 20 + [16] * 40))
    return before, after


def _compare(*arguments: object) -> dict[str, Any]:
    ran = run_curate("compare", *arguments, "--json")
    assert ran.status == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def test_a_planted_rise_is_found(planted: tuple[Path, Path]) -> None:
    summary = _compare(*planted)
    assert summary["items"]["compared"] == 60
    assert summary["pass_rates"] == {"items": 60, "rose": 40, "fell": 0}
    assert summary["similarities"] == {"items": 60, "rose": 40, "fell": 0}
    groups = {group["group"]: group for group in summary["groups"]}
    assert list(groups) == ["easy", "learnable", "unlearnable", "hard", "all"]
    assert groups["hard"]["pass_rate"]["change"] == pytest.approx(15 / 32)
    assert groups["easy"]["pass_rate"]["low"] == groups["easy"]["pass_rate"]["high"] == 0
    assert groups["hard"]["gradient_similarity"]["before"] == pytest.approx(0.1)
    assert groups["hard"]["gradient_similarity"]["after"] == pytest.approx(0.5)
    blocks, place = summary["alignment"], {n: i for i, n in enumerate(groups)}
    hard = place["hard"]
    for side, truth in (("before", 0.1), ("after", 0.5), ("change", 0.4)):
        # How often the interval holds the truth is tested above, over many runs.
        low, high = (blocks[side][f"cosine_{end}"][hard][hard] for end in ("low", "high"))
        assert blocks[side]["cosine"][hard][hard] == pytest.approx(truth, abs=high - low)
        assert high - low < 0.15
    assert blocks["change"]["cosine_low"][hard][hard] > 0
    easy = blocks["change"]
    assert easy["cosine_low"][0][0] < 0 < easy["cosine_high"][0][0]


def test_a_row_an_item(planted: tuple[Path, Path]) -> None:
    table, summary = curate.compare(*planted)
    file = planted[1] / "comparison" / "base.parquet"
    assert pq.read_table(file).equals(table)
    assert json.loads(file.with_suffix(".json").read_text()) == summary
    rows = table.to_pylist()
    assert [row["item_id"] for row in rows] == IDS
    assert [row["group"] for row in rows] == TAGS
    hard = rows[-1]
    assert hard["pass_rate_change"] == pytest.approx(15 / 32) and hard["pass_rate_moved"]
    assert hard["gradient_similarity_change_low"] == pytest.approx(0.4 - 0.1395, abs=1e-3)
    assert hard["gradient_similarity_moved"] and not rows[0]["gradient_similarity_moved"]


def test_order_and_items_of_one_run_only(planted: tuple[Path, Path], tmp_path: Path) -> None:
    whole, _ = curate.compare(*planted)
    ids = [*IDS[:-5][::-1], *(f"{number:016x}" for number in range(100, 103))]
    old = _planted(1, 0.5, [20] * 20 + [16] * 40)
    assert old.gradients
    place = np.array([ids.index(each) if each in ids else -1 for each in IDS])
    features, item = old.gradients
    kept = place[item] >= 0
    order = np.argsort(place[item[kept]], kind="stable")
    other = Items(
        ids,
        [*([16] * 35 + [20] * 20), 9, 9, 9],
        [*TAGS[:-5][::-1], "easy", "easy", "easy"],
        similarity=[*([0.5] * 55), 0.1, 0.1, 0.1],
        gradients=(features[kept][order], place[item[kept]][order]),
    )
    table, summary = curate.compare(planted[0], _write(tmp_path / "other", other))
    assert summary["items"] == {
        "compared": 55, "only_in_a": 5, "only_in_b": 3, "without_group": 0
    }  # fmt: skip
    assert table.equals(whole.slice(0, 55))
    assert (
        "55 in both, 5 only before, 3 only after"
        in run_curate("compare", planted[0], tmp_path / "other").stdout
    )
    # The first 40 items are whole groups, and the same in both: so are their cosines.
    again = curate.compare(*planted)[1]["alignment"]["after"]["cosine"]
    assert summary["alignment"]["after"]["cosine"][0][:2] == pytest.approx(again[0][:2], rel=1e-4)


def test_groups_come_from_what_was_confirmed_or_from_another_run(
    planted: tuple[Path, Path], tmp_path: Path
) -> None:
    a, b = planted
    assert "tags.parquet" in _compare(a, b)["groups_from"]
    assert "regression to the mean" in _warnings(a, b)
    words = ["easy"] * 20 + ["unlearnable"] * 38 + [None, "no_positive"]
    (a / "validation").mkdir()
    confirmed = pa.table({"item_id": IDS, "confirmed_trainability": words})
    pq.write_table(confirmed, a / "validation" / "confirmed.parquet")
    summary = _compare(a, b)
    assert "confirmed_trainability" in summary["groups_from"]
    counts = {group["group"]: group["items"] for group in summary["groups"]}
    assert counts == {"easy": 20, "unlearnable": 38, "no_positive": 1, "hard": 39, "all": 59}
    assert summary["items"]["without_group"] == 1
    again = _write(tmp_path / "again", _planted(7, 0.1, [1] * 60), weight_hash="base")
    told = _warnings(a, b, "--groups-from", again)
    assert "regression" not in told
    assert str(again) in _compare(a, b, "--groups-from", again)["groups_from"]


def test_quality_at_two_checkpoints(planted: tuple[Path, Path]) -> None:
    a, b = planted
    quality = {"easy": (4.0, 4.5), "learnable": (3.0, 4.0), "unlearnable": (1.0, 1.0)}
    # An item that the first policy never got right was judged in the second run only.
    before: dict[str, float | None] = dict.fromkeys(IDS[:1])
    before |= {each: quality[tag][0] for each, tag in list(zip(IDS, TAGS, strict=True))[1:]}
    write_quality(a, before)
    told = run_curate("compare", a, b)
    assert "reasoning quality " not in told.stdout
    assert f"warning: reasoning was judged in one run only; `curate judge {b}`" in told.stdout
    write_quality(b, {each: quality[tag][1] for each, tag in zip(IDS, TAGS, strict=True)})
    summary = _compare(a, b)
    assert "judged" not in "\n".join(summary["warnings"])
    for run, judge in ((a, "one"), (b, "another")):
        told_of = {"model": judge, "rubric_sha256": "ab"}
        (run / "judging/summary.json").write_text(json.dumps(told_of))
    assert "judged with another model (before: {'model': 'one'" in _warnings(a, b)
    for group in summary["groups"][:3]:
        found, (old, new) = group["reasoning_quality"], quality[group["group"]]
        assert (found["before"], found["after"]) == (old, new)
        assert found["low"] == found["high"] == found["change"] == new - old
    easy = summary["groups"][0]["reasoning_quality"]
    assert (easy["items"], easy["items_before"], easy["items_after"]) == (19, 19, 20)
    first, second = pq.read_table(b / "comparison/base.parquet").slice(0, 2).to_pylist()
    assert first["reasoning_quality_before"] is first["reasoning_quality_change"] is None
    assert (first["reasoning_quality_n_before"], first["reasoning_quality_n_after"]) == (0, 4)
    assert second["reasoning_quality_change"] == 0.5
    assert "learnable                   20    3.000    4.000   +1.000" in (
        run_curate("compare", a, b).stdout
    )


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ({IDS[0]: 5.5}, "not between 0 and 5"),
        ({IDS[0]: float("nan")}, "not between 0 and 5"),
        ({}, "reasoning_quality"),
        (None, "missing or damaged"),
    ],
)
def test_a_damaged_quality_file_is_named(
    planted: tuple[Path, Path], scores: dict[str, float | None] | None, words: str
) -> None:
    file = write_quality(planted[0], scores or {})
    if scores is None:
        file.write_bytes(b"PAR1 no more")
    elif not scores:
        pq.write_table(pa.table({"item_id": IDS}), file)
    ran = run_curate("compare", *planted)
    assert ran.status == 1 and "quality.parquet" in ran.last_line and words in ran.last_line
    assert ran.stderr.count("\n") == 1


def test_a_comparison_of_an_earlier_version_is_replaced(
    planted: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "old.parquet"
    table, _ = curate.compare(*planted, out=out)
    names = table.column_names
    for first_later in ("reasoning_quality_before", "forecast_pass_rate_before"):
        pq.write_table(table.select(names[: names.index(first_later)]), out)
        assert curate.compare(*planted, out=out)[0].equals(pq.read_table(out))
    pq.write_table(table.select(["item_id"]), out)
    assert "is no comparison" in run_curate("compare", *planted, "-o", out).last_line


def _forecast(run: Path, lift: Sequence[float], forecast: Sequence[float], source: str) -> None:
    """Give a run a forecast and a lift, with intervals."""
    tags = pq.read_table(run / "tags.parquet").select(["item_id", "trainability"])
    for name, values in (("pass_rate", forecast), ("low", forecast), ("high", forecast)):
        tags = tags.append_column(f"forecast_{name}", pa.array(values, pa.float64()))
    pq.write_table(tags, run / "tags.parquet")
    ends = {f"lift{end}": pa.array(lift, pa.float64()) for end in ("", "_low", "_high")}
    pq.write_table(pa.table({"item_id": tags["item_id"], **ends}), run / "lift.parquet")
    _set_forecast(run, {"source": source})


def _set_forecast(run: Path, facts: dict[str, Any] | None) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    manifest.pop("forecast", None)
    known = {} if facts is None else {"forecast": facts}
    (run / "manifest.json").write_text(json.dumps(manifest | known))


def test_how_forecast_and_lift_moved(planted: tuple[Path, Path]) -> None:
    a, b = planted
    _forecast(a, [0.5] * 60, [0.7] * 20 + [0.1] * 40, "gradients")
    _forecast(b, [0.5] * 20 + [1.5] * 40, [0.7] * 20 + [0.4] * 40, "gradients")
    table, summary = curate.compare(a, b)
    hard = {group["group"]: group for group in summary["groups"]}["hard"]
    assert hard["lift"]["change"] == pytest.approx(1)
    assert hard["forecast_pass_rate"]["before"] == pytest.approx(0.1)
    assert hard["forecast_pass_rate"]["change"] == pytest.approx(0.3)
    last = table.to_pylist()[-1]
    assert last["lift_change"] == pytest.approx(1) and last["lift_low_after"] == 1.5
    assert last["forecast_pass_rate_change"] == pytest.approx(0.3)
    printed = run_curate("compare", a, b).stdout
    assert "forecast              " in printed and "lift                  " in printed
    assert "the lift came from" not in printed
    _set_forecast(b, {"source": "pilot"})
    assert "the lift came from gradients before and from pilot after" in _warnings(a, b)


def test_runs_of_an_earlier_version_have_neither(planted: tuple[Path, Path]) -> None:
    a, b = planted
    _set_forecast(a, None)
    (a / "lift.parquet").unlink(missing_ok=True)
    _forecast(b, [0.5] * 60, [0.4] * 60, "gradients")
    table, summary = curate.compare(a, b)
    for name in ("lift", "forecast_pass_rate"):
        found = summary["groups"][-1][name]
        assert found["change"] is None and (found["items"], found["items_after"]) == (0, 60)
        assert table[f"{name}_change"].null_count == table[f"{name}_before"].null_count == 60
    ran = run_curate("compare", a, b)
    assert ran.status == 0 and "\nforecast   " not in ran.stdout


def _warnings(*arguments: object) -> str:
    return "\n".join(_compare(*arguments)["warnings"])


def test_a_second_probe_of_the_same_policy_shows_no_change(tmp_path: Path) -> None:
    rng, runs = np.random.default_rng(6), []
    rates = np.array([0.6] * 20 + [0.05] * 40)
    for number in (1, 2):
        similarity = (0.3 + 0.05 * rng.normal(size=60)).tolist()
        correct = rng.binomial(32, rates).tolist()
        items = _planted(number, 0.1, correct, similarity=similarity)
        runs.append(_write(tmp_path / f"run{number}", items, weight_hash="same"))
    groups = _write(tmp_path / "groups", _planted(3, 0.1, [0] * 60))
    summary = _compare(*runs, "--groups-from", groups)
    assert "same weights" in "\n".join(summary["warnings"])
    for name in ("pass_rates", "similarities"):
        assert summary[name]["rose"] + summary[name]["fell"] <= 8  # 3 of 60 expected
    for group in summary["groups"]:
        for name in ("pass_rate", "gradient_similarity"):
            # Seven dependent intervals: wide by a half, so that none misses.
            half = (group[name]["high"] - group[name]["low"]) / 2
            assert abs(group[name]["change"]) < 1.5 * half
    change = summary["alignment"]["change"]
    for low, high in zip(change["cosine_low"], change["cosine_high"], strict=True):
        assert all(a - 0.05 < 0 < b + 0.05 for a, b in zip(low, high, strict=True))


def test_settings_that_differ_are_told(planted: tuple[Path, Path], tmp_path: Path) -> None:
    assert "differently" not in _warnings(*planted)
    prompts = ["another"] * 7 + [f"prompt of {each}" for each in IDS[7:]]
    other = _write(
        tmp_path / "other",
        _planted(1, 0.5, [16] * 60, prompts=prompts),
        settings={
            **{"verifier": "exact", "temperature": 0.7, "max_tokens": 64, "instruction": "hm"},
            "tau": 0.2,
        },
    )
    told = _warnings(planted[0], other)
    for name in ("verifier", "temperature", "max_tokens", "instruction", "tau"):
        assert f"{name} was " in told
    assert "7 of 60 prompts were rendered differently" in told
    assert "warning: verifier was 'math' before" in run_curate("compare", planted[0], other).stdout


@pytest.mark.parametrize("what", ["gradient_dim", "adapter seed"])
def test_projections_may_differ(planted: tuple[Path, Path], tmp_path: Path, what: str) -> None:
    rng = np.random.default_rng(1)
    shares = [0.5] * 60
    gradients = planted_gradients(rng, shares, rng.integers(2, 12, 60).tolist(), dim=128)
    other = _write(
        tmp_path / "other",
        _planted(1, 0.5, [16] * 60, gradients=gradients),
        settings={"gradient_dim": 128} if what == "gradient_dim" else {},
        seeds={"adapter": 7 if what == "adapter seed" else 42},
    )
    summary = _compare(planted[0], other)
    assert f"gradients were taken with another {what}" in "\n".join(summary["warnings"])
    for side, truth in (("before", 0.1), ("after", 0.5)):
        assert summary["alignment"][side]["cosine"][3][3] == pytest.approx(truth, abs=0.08)


@pytest.mark.parametrize("which", [0, 1])
def test_a_run_without_gradients_leaves_the_cosines_of_the_other(
    planted: tuple[Path, Path], which: int
) -> None:
    shutil.rmtree(planted[which] / "gradients")
    summary = _compare(*planted)
    sides = ("before", "after")
    assert f"no cosines {sides[which]}" in "\n".join(summary["warnings"])
    assert summary["alignment"][sides[which]] is None and summary["alignment"]["change"] is None
    assert summary["alignment"][sides[1 - which]]["cosine"][0][0] is not None
    assert summary["groups"][0]["gradient_similarity"]["change"] == pytest.approx(0)
    shutil.rmtree(planted[1 - which] / "gradients")
    assert _compare(*planted)["alignment"]["before"] is None
    assert run_curate("compare", *planted).status == 0


def test_cosines_are_over_the_same_items_in_both_runs(tmp_path: Path) -> None:
    """Ten learnable items point away from the rest before, and have one rollout after."""
    rng, draws = np.random.default_rng(8), np.full(60, 8)
    features, item = planted_gradients(rng, [0.5] * 60, draws.tolist())
    is_lost = (item >= 30) & (item < 40)
    features[is_lost] *= -1
    before = _write(tmp_path / "before", _planted(0, 0.5, [9] * 60, gradients=(features, item)))
    draws[30:40] = 1
    few = planted_gradients(rng, [0.5] * 60, draws.tolist())
    after = _write(tmp_path / "after", _planted(1, 0.5, [9] * 60, gradients=few))
    blocks = _compare(before, after)["alignment"]
    assert blocks["items"][:3] == [20, 10, 20]
    for side in ("before", "after"):
        assert blocks[side]["cosine"][0][1] == pytest.approx(0.5, abs=0.08)


def test_rounds_use_the_limits_that_know_of_stopping(tmp_path: Path) -> None:
    a, b = (
        _write(tmp_path / str(seed), _planted(seed, 0.3, [4] * 60), settings={"max_rollouts": most})
        for seed, most in ((0, 32), (1, 64))
    )
    row = curate.compare(a, b)[0].to_pylist()[0]
    p, low, (_, high) = 4 / 32, row["pass_rate_low_after"], wilson_limits(*np.array([[4], [32]]))
    assert low < 0.04  # Wilson's is 0.0497.
    assert row["pass_rate_change_low"] == pytest.approx(-np.hypot(p - low, high[0] - p))


# --- Errors ----------------------------------------------------------------------------------


def _fails(status: int, words: str, *arguments: object) -> None:
    ran: Ran = run_curate("compare", *arguments)
    assert ran.status == status
    assert words in ran.stderr and ran.stderr.count("\n") == 1 and not ran.stdout


def test_bad_usage_is_one_line(planted: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = planted
    _fails(2, "is no run folder", a, tmp_path / "nowhere")
    _fails(2, "are one run folder", a, a)
    _fails(2, "must end in .parquet", a, b, "-o", tmp_path / "x.csv")
    _fails(2, "is no comparison", a, b, "-o", b / "tags.parquet")
    _fails(2, "is no comparison", a, b, "-o", _folder(tmp_path / "folder.parquet"))
    (tmp_path / "mine.json").write_text("{}")
    _fails(2, "would replace", a, b, "-o", tmp_path / "mine.parquet")
    strangers = _write(tmp_path / "strangers", Items(["f" * 16], [1], ["easy"]))
    _fails(2, "no item in common", a, strangers)
    _fails(2, "has a group", a, b, "--groups-from", strangers)
    (b / "manifest.json").write_text('{"stages": {"tags": {"state": "started"}}}')
    _fails(2, "has no tags yet", a, b)
    assert not (b / "comparison").exists()


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_an_earlier_comparison_is_replaced(planted: tuple[Path, Path], tmp_path: Path) -> None:
    file = tmp_path / "new" / "moved.parquet"
    for _ in range(2):
        assert run_curate("compare", *planted, "-o", file).status == 0
    assert sorted(each.name for each in file.parent.iterdir()) == ["moved.json", "moved.parquet"]


def test_damaged_files_are_one_line(planted: tuple[Path, Path]) -> None:
    a, b = planted
    tags = pq.read_table(b / "tags.parquet").to_pydict()
    all_but_one = {name: values[1:] for name, values in tags.items()}
    damages: list[tuple[str, Any, str]] = [
        ("tags.parquet", tags | {"trainability": ["wizard"] * 60}, "'wizard' is no tag"),
        ("tags.parquet", all_but_one, f"item {IDS[0]} is not"),
        ("tags.parquet", {"item_id": IDS, "trainability": TAGS}, "forecast_pass_rate"),
        ("lift.parquet", None, "damaged"),
        ("pass_rates.parquet", {"item_id": IDS}, "damaged"),
        ("items.parquet", {"item_id": IDS[:1] * 60, "prompt": IDS}, "not unique"),
        ("similarity.parquet", None, "damaged"),
        ("gradients/rollouts.parquet", {"item_id": ["x"], "weight": [1]}, "not in items.parquet"),
        ("gradients/rollouts.parquet", {"item_id": IDS, "weight": [1] * 60}, "damaged"),
        ("gradients/rollouts.npy", None, "damaged"),
    ]
    for name, columns, words in damages:
        path = b / name
        good = path.read_bytes()
        if columns is None:
            path.write_bytes(b"rubbish")
        else:
            pq.write_table(pa.table(columns), path)
        _fails(1, words, a, b)
        path.write_bytes(good)
    features = np.load(b / "gradients" / "rollouts.npy")
    features[3] = np.nan
    np.save(b / "gradients" / "rollouts.npy", features)
    _fails(1, "not finite", a, b)


# --- Two models ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One dataset probed with two models: the second as a checkpoint that a trainer saved."""
    folder = tmp_path_factory.mktemp("probed")
    data = write_jsonl(folder / "data.jsonl", additions(24))
    runs = []
    for seed, name in enumerate(("base", "validation/baseline/1/policy-50")):
        model = save_tiny_model(folder / name, seed=seed)
        runs.append(folder / f"run{seed}")
        out = folder / f"{seed}.jsonl"
        ran = tag(data, "--model", model, "--run-dir", runs[-1], "--out", out, "--max-tokens", 8)
        assert ran.status == 0, ran.stderr
    return runs


def test_two_probes_by_two_models(probed: list[Path]) -> None:
    summary = _compare(*probed)
    table = pq.read_table(probed[1] / "comparison" / "run0.parquet").to_pylist()
    tagged = [
        {row["item_id"]: row for row in read_jsonl(run.parent / f"{number}.jsonl")}
        for number, run in enumerate(probed)
    ]
    assert len(table) == summary["items"]["compared"] == 24
    for row in table:
        for side, rows in zip(("before", "after"), tagged, strict=True):
            there = rows[row["item_id"]]
            for name in ("pass_rate", "gradient_similarity", "trainability", "total_rollouts"):
                assert row[f"{name}_{side}"] == there[name]
    everything = summary["groups"][-1]
    assert everything["items"] == 24
    assert sum(sum(row.values()) for row in everything["transitions"].values()) == 24
    assert "same weights" not in "\n".join(summary["warnings"])
    text = run_curate("compare", *probed).stdout
    assert "policy-50" in text and "tag before, after" in text
