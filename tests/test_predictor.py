"""The predictor file: exact, checked on reading, and aware of where it does not apply."""

import hashlib
import json
import math
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.config import TagConfig
from curate.errors import UsageError
from probes.predictor.features import FEATURES, read_features
from probes.predictor.predictor import outside_reasons, read_predictor
from probes.stages import tags as stage
from probes.stages.forecast import read_forecast
from recipes.calibrate.calibrate import calibrate_run, fit_logistic
from recipes.calibrate.confirmed_items import read_confirmed
from tests.made.confirmed import World, make_world, write_confirmed_run
from tests.made.run import write_quality
from tests.tag_runs import additions, read_jsonl, tag, write_jsonl

Document = dict[str, Any]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that a predictor was fitted on, with the predictor in it."""
    run = write_confirmed_run(
        tmp_path_factory.mktemp("fitted") / "run", make_world(100, length_effect=2.0, singles=20)
    )
    calibrate_run([run], resamples=20)
    return run


@pytest.fixture(scope="module")
def file(fitted: Path) -> Path:
    return fitted / "validation/predictor.json"


# --- Applying --------------------------------------------------------------------------------


def test_probabilities_are_those_of_scikit_learn(fitted: Path, file: Path) -> None:
    items, _ = read_confirmed([fitted])
    model = fit_logistic(items.values, items.is_unlearnable, items.item_ids, seed=0)
    values = np.vstack([items.values, items.values * 3 - 5, np.full((1, len(FEATURES)), np.nan)])
    expected = model.predict_proba(values)[:, 1]
    found = read_predictor(file).p_unlearnable(values)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)
    assert np.ptp(expected) > 0.9


def test_features_may_stand_in_any_order_and_some_may_be_missing(
    fitted: Path, file: Path, tmp_path: Path
) -> None:
    document = json.loads(file.read_text())
    values = read_features(fitted, TagConfig()).values
    expected = read_predictor(file).p_unlearnable(values)
    document["features"].reverse()
    other = tmp_path / "other.json"
    other.write_text(json.dumps(document))
    np.testing.assert_allclose(read_predictor(other).p_unlearnable(values), expected)
    document["features"] = [f for f in document["features"] if f["name"] == "pass_rate"]
    other.write_text(json.dumps(document))
    only = document["features"][0]
    x = (values[:, FEATURES.index("pass_rate")] - only["mean"]) / only["scale"]
    expected = 1 / (1 + np.exp(-document["intercept"] - only["coefficient"] * x))
    np.testing.assert_allclose(read_predictor(other).p_unlearnable(values), expected)


def test_extreme_evidence_still_gives_a_probability(file: Path) -> None:
    values = np.array([np.full(len(FEATURES), 1e300), np.full(len(FEATURES), -1e12)])
    found = read_predictor(file).p_unlearnable(values)
    assert ((found >= 0) & (found <= 1)).all()


# --- Damaged files ---------------------------------------------------------------------------


def _without(key: str) -> Callable[[Document], None]:
    return lambda document: document.__delitem__(key)


def _with(key: str, value: object) -> Callable[[Document], None]:
    return lambda document: document.__setitem__(key, value)


def _feature(key: str, value: object) -> Callable[[Document], None]:
    return lambda document: document["features"][0].__setitem__(key, value)


def _forecast(key: str, value: object) -> Callable[[Document], None]:
    return lambda document: document["forecast"].__setitem__(key, value)


DAMAGES: dict[str, tuple[Callable[[Document], None], str]] = {
    "foreign": (_without("format"), "format"),
    "newer": (_with("version", 3), "version: Input should be 2"),
    "older": (_with("version", 1), "version: Input should be 2"),
    "no features": (_with("features", []), "features: "),
    "features that are none": (_with("features", ["pass_rate"]), "features.0: "),
    "a feature of the future": (_feature("name", "mood"), "features.0.name: Input should be"),
    "a feature name that is a list": (_feature("name", []), "features.0.name: Input should be"),
    "a feature twice": (
        lambda document: document["features"].append(document["features"][0]), "twice",
    ),
    "no coefficient": (lambda d: d["features"][0].pop("coefficient"), "0.coefficient: Field"),
    "text for a number": (_feature("mean", "0"), "0.mean: Input should be a valid number"),
    "a truth for a number": (_feature("mean", True), "0.mean: Input should be a valid number"),
    "a number beyond reason": (_feature("mean", 10**400), "features.0.mean: "),
    "an infinite number": (_with("intercept", math.inf), "intercept: "),
    "nan": (_feature("coefficient", math.nan), "features.0.coefficient: "),
    "a scale of 0": (_feature("scale", 0), "features.0.scale: "),
    "a range upside down": (_feature("low", 1e9), "'low' is above"),
    "items that are no count": (_with("items", 1.5), "items: "),
    "models that are a list": (_with("models", ["a"]), "models: "),
    "no settings": (_without("settings"), "settings: Field required"),
    "no forecast": (_without("forecast"), "forecast: Field required"),
    "a lift of the future": (_forecast("source", "mood"), "source: Input should be 'gradients', "),
    "a source that is a list": (_forecast("source", []), "source: Input should be 'gradients', "),
    "no gain": (lambda d: d["forecast"].pop("gain"), "forecast.gain: Field required"),
    "a spread of 0": (_forecast("spread", 0), "forecast.spread: "),
    "a drift beyond reason": (_forecast("drift", -1e9), "forecast.drift: "),
    "settings without tau": (lambda document: document["settings"].pop("tau"), "'settings' lacks"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_predictor_is_refused(damage: str, file: Path, tmp_path: Path) -> None:
    change, message = DAMAGES[damage]
    document = json.loads(file.read_text())
    change(document)
    damaged = tmp_path / "damaged.json"
    damaged.write_text(json.dumps(document))
    with pytest.raises(UsageError, match="damaged or no predictor") as error:
        read_predictor(damaged)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\x80\x04\x95", b"[" * 200_000, b"null", b'{"version": ' + b"9" * 5000 + b"}",
     b'{"intercept": 1e999, "format": "curate predictor", "version": 2}', b" " * 2_000_000],
    ids=["empty", "cut", "pickle", "deep", "null", "digits", "overflow", "large"],
)  # fmt: skip
def test_what_is_no_predictor_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_bytes(content)
    with pytest.raises(UsageError):
        read_predictor(tmp_path / "p.json")
    for other in (tmp_path, tmp_path / "nowhere.json", Path("/dev/zero")):
        with pytest.raises(UsageError, match="no such file"):
            read_predictor(other)


# --- Outside ---------------------------------------------------------------------------------


def _outside(file: Path, run: Path, **settings: Any) -> list[str]:
    manifest = json.loads((run / "manifest.json").read_text())
    config = TagConfig().replace(**settings)
    return outside_reasons(read_predictor(file), manifest, config, read_features(run, config))


@pytest.mark.parametrize("seed", range(1, 9))
@pytest.mark.parametrize("items", [10, 40, 300])
def test_a_resample_of_the_same_is_not_outside(
    items: int, seed: int, file: Path, tmp_path: Path
) -> None:
    world = make_world(items, seed=seed, length_effect=2.0, singles=items // 5)
    assert _outside(file, write_confirmed_run(tmp_path / "run", world)) == []


def test_another_model_is_outside(file: Path, tmp_path: Path) -> None:
    run = write_confirmed_run(
        tmp_path / "run", make_world(seed=1, length_effect=2.0), weight_hash="b"
    )
    assert _outside(file, run) == [
        "the model is 'made-up-model', and it was fitted on 'made-up-model'"
    ]


def test_another_source_of_the_lift_is_outside(file: Path, tmp_path: Path) -> None:
    world = make_world(seed=1, length_effect=2.0)
    run = write_confirmed_run(tmp_path / "run", world, lift_source="pilot")
    assert _outside(file, run) == [
        "the lift is by pilot, and it was fitted on the lift by gradients: `curate forecast "
        "--lift` measures that"
    ]


def test_other_settings_are_outside(file: Path, tmp_path: Path) -> None:
    run = write_confirmed_run(tmp_path / "run", make_world(seed=1, length_effect=2.0))
    assert _outside(file, run, temperature=0.6, gradient_targets=("q_proj",), seed=9) == [
        "temperature is 0.6, and it was fitted at 1.0",
        "gradient_targets is ['q_proj'], and it was fitted at ['auto']",
    ]
    reasons = _outside(file, run, tau=0.2)
    assert reasons[0] == "tau is 0.2, and it was fitted at 0.1"


@pytest.mark.parametrize(
    ("change", "feature"),
    [
        (lambda world: world.tokens.__imul__(4), "correct_completion_length"),
        (lambda world: world.similarity.__iadd__(0.3), "gradient_similarity"),
        (lambda world: world.standard_error.__imul__(5), "standard_error"),
        (lambda world: world.lift.__iadd__(8), "lift"),
        (lambda world: world.lift_error.__imul__(5), "lift_error"),
    ],
)
def test_shifted_features_are_outside(
    change: Callable[[World], object], feature: str, file: Path, tmp_path: Path
) -> None:
    world = make_world(60, seed=1, length_effect=2.0)
    change(world)
    reasons = _outside(file, write_confirmed_run(tmp_path / "run", world))
    assert any(reason.startswith(f"{feature} of ") for reason in reasons), reasons


def test_items_without_similarity_are_outside_where_none_was_before(tmp_path: Path) -> None:
    known = write_confirmed_run(tmp_path / "known", make_world(60, singles=0))
    calibrate_run([known], tmp_path / "predictor.json", resamples=20)
    run = write_confirmed_run(tmp_path / "run", make_world(60, seed=1, singles=30))
    reasons = _outside(tmp_path / "predictor.json", run)
    assert any(reason.startswith("no_similarity of 30 of 60 items") for reason in reasons)


def test_a_run_whose_easy_items_set_no_scale_is_outside(file: Path, tmp_path: Path) -> None:
    run = write_confirmed_run(tmp_path / "run", make_world(60, seed=1))
    table = pq.read_table(run / "similarity.parquet")
    place = table.schema.get_field_index("gradient_similarity")
    similarity = pa.array(-np.abs(table["gradient_similarity"].to_numpy()), from_pandas=True)
    pq.write_table(
        table.set_column(place, "gradient_similarity", similarity), run / "similarity.parquet"
    )
    assert any("no scale" in reason for reason in _outside(file, run))
    assert np.isfinite(
        read_predictor(file).p_unlearnable(read_features(run, TagConfig()).values)
    ).all()


# --- curate tag --predictor ------------------------------------------------------------------


@pytest.fixture(scope="module")
def tagged(tiny_model: Path, file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dataset, a predictor, and a run that it tagged."""
    folder = tmp_path_factory.mktemp("predicted")
    write_jsonl(folder / "sums.jsonl", additions(14))
    document = json.loads(file.read_text())
    for feature in document["features"]:
        feature["coefficient"] = 0.01
        if feature["name"] == "pass_rate":  # So that 1 of 32 is learnable and 2 of 32 are not.
            feature |= {"mean": -2.77, "scale": 0.1, "coefficient": 2.0}
    document["intercept"] = 0.0
    (folder / "mine.json").write_text(json.dumps(document))
    ran = _tag(folder, tiny_model)
    assert ran.status == 0, ran.stderr
    (folder / "stderr").write_text(ran.stderr)
    (folder / "stdout").write_text(ran.stdout)
    return folder


def _tag(folder: Path, model: Path, *more: object, predictor: str = "mine.json") -> Any:
    return tag(
        *(folder / "sums.jsonl", "--model", model, "--run-dir", folder / "run", "--tau", 0.1),
        *("--out", folder / "out.jsonl", "--predictor", folder / predictor, *more),
    )


def _predicted(rows: list[dict[str, Any]]) -> dict[str, float]:
    """p_unlearnable of the hard items with a correct rollout, by item_id."""
    return {
        row["item_id"]: row["p_unlearnable"]
        for row in rows
        if row["p_unlearnable"] is not None and row["total_correct_rollouts"]
    }


def _by_hand(folder: Path) -> dict[str, float]:
    """p_unlearnable of every hard item with a correct rollout, from the run's own tables."""
    document = json.loads((folder / "mine.json").read_text())
    run = folder / "run"
    rates, near, lifts, rollouts = (
        pq.read_table(run / name).to_pylist()
        for name in ("pass_rates.parquet", "similarity.parquet", "lift.parquet", "rollouts")
    )
    config = TagConfig().replace(tau=0.1)
    forecast = read_forecast(run, config).forecast.p_unlearnable.tolist()
    easy = [
        similar["gradient_similarity"]
        for rate, similar in zip(rates, near, strict=True)
        if rate["total_correct_rollouts"] / rate["total_rollouts"] >= 0.1
        and similar["gradient_similarity"] is not None
    ]
    unit = statistics.median(easy) / 3 if len(easy) >= 5 else None
    unit = unit if unit and unit > 0 else None
    expected = {}
    for rate, similar, lifted, p in zip(rates, near, lifts, forecast, strict=True):
        n, c = rate["total_rollouts"], rate["total_correct_rollouts"]
        if c == 0 or c / n >= 0.1:
            continue
        mine = [r for r in rollouts if r["item_id"] == rate["item_id"]]
        lengths = [len(r["completion_token_ids"]) for r in mine]
        right = [len(r["completion_token_ids"]) for r in mine if r["reward"] == 1]
        similarity = similar["gradient_similarity"] if unit else None
        known, lift = similarity is not None, lifted["lift"]
        x = {
            "forecast": math.log(p / (1 - p)),
            "lift": None if lift is None else math.copysign(math.log1p(abs(lift)), lift),
            "lift_error": None if lift is None else math.log(lifted["standard_error"]),
            "gradient_similarity": similarity / unit if known else None,
            "standard_error": similar["standard_error"] / unit if known else None,
            "gradient_reliability": similar["gradient_reliability"],
            "pass_rate": math.log((c + 0.5) / (n - c + 0.5)),
            "correct_completion_length": math.log1p(sum(right) / len(right)),
            "completion_length": math.log1p(sum(lengths) / len(lengths)),
            "no_similarity": float(not known),
        }
        log_odds = document["intercept"]
        for feature in document["features"]:
            value = x[feature["name"]]
            if value is not None:
                log_odds += feature["coefficient"] * (value - feature["mean"]) / feature["scale"]
        expected[rate["item_id"]] = 1 / (1 + math.exp(-log_odds))
    return expected


def test_every_hard_item_with_a_positive_gets_its_probability(tagged: Path) -> None:
    expected = _by_hand(tagged)
    rows = read_jsonl(tagged / "out.jsonl")
    assert _predicted(rows) == pytest.approx(expected, abs=1e-9)
    singles = [r for r in rows if r["total_correct_rollouts"] == 1]
    assert len(expected) > len(singles) > 0
    assert all(r["gradient_similarity"] is None for r in singles)


def test_the_forecast_is_by_the_constants_of_the_predictor(tagged: Path) -> None:
    run, document = tagged / "run", json.loads((tagged / "mine.json").read_text())
    config, rows = TagConfig().replace(tau=0.1), read_jsonl(tagged / "out.jsonl")
    ours = read_forecast(run, config, document["forecast"]).forecast
    built_in = read_forecast(run, config).forecast
    # Of items whose rollouts were mostly cut nothing is forecast.
    known = [n for n, row in enumerate(rows) if row["forecast_pass_rate"] is not None]
    expected = [rows[n]["forecast_pass_rate"] for n in known]
    np.testing.assert_allclose(ours.pass_rate[known], expected)
    assert not np.allclose(built_in.pass_rate[known], expected, rtol=0.02)
    stated = json.loads((run / "manifest.json").read_text())["forecast"]["constants"]
    assert stated == {name: document["forecast"][name] for name in ("drift", "gain", "spread")}


def test_of_items_without_a_correct_rollout_the_forecast_speaks(
    tagged: Path, tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(tagged, folder)
    # As if none had been cut: of those that mostly were nothing is forecast.
    rates = pq.read_table(folder / "run/pass_rates.parquet")
    place = rates.column_names.index("truncated_rollouts")
    none = pa.array([0] * len(rates), rates.schema.field(place).type)
    pq.write_table(
        rates.set_column(place, "truncated_rollouts", none), folder / "run/pass_rates.parquet"
    )
    manifest = json.loads((folder / "run/manifest.json").read_text())
    manifest["stages"]["tags"]["state"] = "started"
    (folder / "run/manifest.json").write_text(json.dumps(manifest))
    assert _tag(folder, tiny_model).status == 0
    rows = read_jsonl(folder / "out.jsonl")
    nothing = [n for n, row in enumerate(rows) if row["trainability"] == "no_positive"]
    document = json.loads((folder / "mine.json").read_text())
    config = TagConfig().replace(tau=0.1)
    expected = read_forecast(folder / "run", config, document["forecast"]).forecast
    found = [rows[n]["p_unlearnable"] for n in nothing]
    assert found
    np.testing.assert_allclose(found, expected.p_unlearnable[nothing])


def test_the_tag_follows_the_probability_and_names_the_predictor(tagged: Path) -> None:
    manifest = json.loads((tagged / "run/manifest.json").read_text())
    sha256 = manifest["predictor"]["sha256"]
    rows = read_jsonl(tagged / "out.jsonl")
    hard = [row for row in rows if row["item_id"] in _predicted(rows)]
    for row in hard:
        p = row["p_unlearnable"]
        tags = {p <= 0.1: "learnable", p >= 0.9: "unlearnable"}
        assert row["trainability"] == tags.get(True, "undetermined")
        assert row["tag_reason"].startswith(f"predictor mine.json ({sha256[:8]}) gives a probab")
        assert row["tag_reason"].endswith(" is below 0.1") or "though" in row["tag_reason"]
    assert {row["trainability"] for row in hard} >= {"learnable", "unlearnable"}


def test_warnings_are_printed_and_in_the_manifest(tagged: Path) -> None:
    outside = json.loads((tagged / "run/manifest.json").read_text())["predictor"]["outside"]
    stderr, stdout = (tagged / "stderr").read_text(), (tagged / "stdout").read_text()
    assert outside[0].startswith("the model is 'tiny-llama', and it was fitted on 'made-up-model'")
    for reason in outside:
        assert f"lies outside of what it was fitted on: {reason}" in stderr
        assert reason in stdout


def test_a_changed_predictor_is_noticed_and_a_moved_one_is_the_same(
    tagged: Path, tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(tagged, folder)
    (folder / "mine.json").rename(folder / "moved.json")
    assert _tag(folder, tiny_model, predictor="moved.json").status == 0
    document = json.loads((folder / "moved.json").read_text())
    (folder / "moved.json").write_text(json.dumps(document | {"intercept": 0.5}))
    ran = _tag(folder, tiny_model, predictor="moved.json")
    assert ran.status == 2 and "changed: predictor sha256" in ran.stderr
    ran = tag(
        *(folder / "sums.jsonl", "--model", tiny_model, "--run-dir", folder / "run", "--tau", 0.1),
        *("--out", folder / "out.jsonl"),
    )
    assert ran.status == 2 and "changed: predictor" in ran.stderr
    ran = _tag(folder, tiny_model, predictor="nowhere.json")
    assert ran.status == 2 and "no such file" in ran.last_line


def test_an_interrupted_run_goes_on(
    tagged: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("sums.jsonl", "mine.json"):
        shutil.copy(tagged / name, tmp_path)

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage, "predict", interrupt)  # After the predictor has spoken.
        assert _tag(tmp_path, tiny_model).status == 130
    assert not (tmp_path / "run/tags.parquet").exists()
    ran = _tag(tmp_path, tiny_model)
    assert ran.status == 0, ran.stderr
    assert (tmp_path / "out.jsonl").read_text() == (tagged / "out.jsonl").read_text()


def test_what_is_judged_later_is_tagged_anew(
    tagged: Path, tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(tagged, folder)
    document = json.loads((folder / "mine.json").read_text())
    quality = {"name": "reasoning_quality", "mean": 2.5, "scale": 1, "coefficient": -2}
    document["features"].append(quality | {"low": 0, "high": 5})
    (folder / "mine.json").write_text(json.dumps(document))
    # The run as if it had been tagged by this predictor, up to the tags.
    manifest = json.loads((folder / "run/manifest.json").read_text())
    sha256 = hashlib.sha256((folder / "mine.json").read_bytes()).hexdigest()
    manifest["predictor"] = {"sha256": sha256}
    manifest["stages"]["tags"]["state"] = "started"
    (folder / "run/manifest.json").write_text(json.dumps(manifest))
    warning = "items have no reasoning_quality, and stand at the mean of the others"

    def tagged_now() -> dict[str, float]:
        ran = _tag(folder, tiny_model)
        assert ran.status == 0, ran.stderr
        assert (warning in ran.stderr) == (not (folder / "run/judging").exists())
        return _predicted(read_jsonl(folder / "out.jsonl"))

    before = tagged_now()
    assert before == pytest.approx(_by_hand(tagged), abs=1e-9)  # At the mean it says nothing.
    write_quality(folder / "run", dict.fromkeys(before, 4.5))
    after = tagged_now()
    for item_id, p in before.items():
        odds = math.log(p / (1 - p)) - 4
        assert after[item_id] == pytest.approx(1 / (1 + math.exp(-odds)), abs=1e-6)
    tags = (folder / "run/tags.parquet").stat().st_mtime_ns
    assert _tag(folder, tiny_model).status == 0
    assert (folder / "run/tags.parquet").stat().st_mtime_ns == tags
