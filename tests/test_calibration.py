"""`curate calibrate`: what it fits, how it tells how good that is, and what it refuses."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate import calibrate
from curate.config import TagConfig
from probes.forecast.model import Constants, Lifts
from probes.predictor.features import FEATURES, PROBED_FEATURES, read_features
from probes.stages.forecast import CONSTANTS, read_forecast
from recipes.calibrate.calibrate import calibrate_run, cross_validate
from recipes.calibrate.confirmed_items import (
    ConfirmedItems,
    RunOutcomes,
    read_confirmed,
    read_run_outcomes,
)
from recipes.calibrate.forecast_constants import fit_constants, log_likelihood
from recipes.calibrate.text import calibration_text
from tests.made.confirmed import ROLLOUTS, THRESHOLD, make_world, write_confirmed_run
from tests.made.run import write_quality
from tests.tag_runs import run_curate


def _items(run: Path) -> ConfirmedItems:
    return read_confirmed([run])[0]


def _scores(items: ConfirmedItems) -> dict[str, dict[str, float]]:
    return dict(cross_validate(items, seed=0, resamples=200)["scores"])


# --- Features --------------------------------------------------------------------------------


def test_features_are_what_their_description_says(tmp_path: Path) -> None:
    world = make_world()
    run = write_confirmed_run(tmp_path / "run", world)
    found = read_features(run, TagConfig())
    assert found.item_ids == world.item_ids  # The easy items are not among them.
    assert found.lift_source == "gradients"
    columns = dict(zip(FEATURES, found.values.T, strict=True))
    np.testing.assert_allclose(columns["gradient_similarity"], world.similarity / THRESHOLD)
    np.testing.assert_allclose(columns["standard_error"], world.standard_error / THRESHOLD)
    c = world.correct
    np.testing.assert_allclose(columns["pass_rate"], np.log((c + 0.5) / (ROLLOUTS - c + 0.5)))
    np.testing.assert_allclose(columns["correct_completion_length"], np.log1p(world.tokens))
    mean = (c * world.tokens + (ROLLOUTS - c) * 10) / ROLLOUTS
    np.testing.assert_allclose(columns["completion_length"], np.log1p(mean))
    np.testing.assert_array_equal(columns["no_similarity"], np.isnan(world.similarity))
    lift = np.sign(world.lift) * np.log(1 + np.abs(world.lift))
    np.testing.assert_allclose(columns["lift"], lift)
    np.testing.assert_allclose(columns["lift_error"], np.log(world.lift_error))
    p = read_forecast(run, TagConfig()).forecast.p_unlearnable[: len(c)]
    np.testing.assert_allclose(1 / (1 + np.exp(-columns["forecast"])), p, atol=1e-6)
    assert np.isnan(columns["gradient_reliability"][np.isnan(world.similarity)]).all()


def test_similarities_are_in_units_of_the_run(tmp_path: Path) -> None:
    world = make_world()
    run = write_confirmed_run(tmp_path / "run", world)
    expected = read_features(run, TagConfig()).values
    table = pq.read_table(run / "similarity.parquet")
    for name in ("gradient_similarity", "standard_error"):
        place = table.schema.get_field_index(name)
        doubled = pa.array(table[name].to_numpy() * 2, from_pandas=True)
        table = table.set_column(place, name, doubled)
    pq.write_table(table, run / "similarity.parquet")
    np.testing.assert_allclose(read_features(run, TagConfig()).values, expected)


# --- What cross-validation says --------------------------------------------------------------


def test_a_feature_that_carries_signal_beats_the_forecast(tmp_path: Path) -> None:
    scores = _scores(_items(write_confirmed_run(tmp_path / "run", make_world(length_effect=2.0))))
    ours, built_in = scores["predictor"], scores["built_in"]
    assert ours["auroc"] > 0.87
    assert 0.65 < built_in["auroc"] < 0.85
    assert built_in["auroc_difference_low"] > 0
    assert ours["log_loss"] < built_in["log_loss"] < math.log(2)
    assert ours["brier"] < built_in["brier"]
    assert ours["average_precision"] > built_in["average_precision"]
    for name in ("auroc", "average_precision", "log_loss", "brier"):
        assert ours[f"{name}_low"] < ours[name] < ours[f"{name}_high"]
    assert 0.35 < scores["pass_rate"]["auroc"] < 0.65


def test_features_of_noise_do_not_hurt(tmp_path: Path) -> None:
    world = make_world(200, similarity_effect=2.0)
    scores = _scores(_items(write_confirmed_run(tmp_path / "run", world)))
    # What the other features add is noise, and the built-in knows the right one beforehand.
    assert scores["predictor"]["auroc"] > scores["built_in"]["auroc"] - 0.03
    assert scores["predictor"]["log_loss"] < scores["built_in"]["log_loss"] + 0.05
    assert 0.8 < scores["boosted_trees"]["auroc"] < 1


def test_a_feature_that_no_item_has_is_no_obstacle(tmp_path: Path) -> None:
    items = _items(write_confirmed_run(tmp_path / "run", make_world(200, similarity_effect=2.0)))
    values = items.values.copy()
    values[:, FEATURES.index("gradient_reliability")] = np.nan
    scores = _scores(dataclasses.replace(items, values=values))
    assert 0.8 < scores["predictor"]["auroc"] < 1
    assert 0.8 < scores["boosted_trees"]["auroc"] < 1


def test_shuffled_outcomes_cannot_be_predicted(tmp_path: Path) -> None:
    items = _items(write_confirmed_run(tmp_path / "run", make_world(100, similarity_effect=3.0)))
    aurocs = []
    for seed in range(3):
        shuffled = np.random.default_rng(seed).permutation(items.is_unlearnable)
        found = dataclasses.replace(items, is_unlearnable=shuffled)
        aurocs.append(_scores(found)["predictor"]["auroc"])
    assert 0.4 < np.mean(aurocs) < 0.6


def test_an_item_of_several_runs_stays_in_one_fold() -> None:
    random = np.random.default_rng(1)
    items, copies = 20, 4
    # Noise alone, but a model that saw a copy of an item knows its outcome.
    copied = ConfirmedItems(
        np.tile(np.arange(items).astype(np.str_), copies),
        np.tile(random.normal(size=(items, len(FEATURES))), (copies, 1)),
        np.tile(np.arange(items) % 2 == 0, copies),
        np.full(items * copies, np.nan),
        np.repeat(np.arange(copies), items),
    )
    apart = dataclasses.replace(copied, item_ids=np.arange(items * copies).astype(np.str_))
    kept, leaking = (_scores(each)["predictor"]["auroc"] for each in (copied, apart))
    assert kept < 0.7 < 0.8 < leaking


def test_the_built_in_is_that_of_the_evidence_even_if_a_predictor_tagged_the_run(
    tmp_path: Path,
) -> None:
    world = make_world()
    run = write_confirmed_run(tmp_path / "run", world)
    items = _items(run)
    assert not (run / "tags.parquet").exists()
    expected = read_forecast(run, TagConfig()).forecast.p_unlearnable[: len(items.built_in)]
    np.testing.assert_array_equal(items.built_in, expected)
    # Of items with as many correct rollouts, that of the larger lift is expected to do better; one
    # without a lift stands among them.
    same = world.correct == 5
    order = np.argsort(world.lift[same])
    assert (np.diff(items.built_in[same][order]) < 0).all()
    alone = items.built_in[world.correct == 1]
    assert len(set(alone)) == 1 and 0 < alone[0] < 1


# --- The constants of the forecast -----------------------------------------------------------


def _simulated(items: int, truth: Constants, seed: int = 0, seeds: int = 3) -> RunOutcomes:
    """Items of known lifts and pass rates, whose outcomes follow the model with these constants."""
    random = np.random.default_rng(seed)
    rates = np.array([0.01, 0.03, 0.06])
    which = random.integers(3, size=items)
    lift = random.normal(1.0, 1.5, size=items)
    start = np.log(rates / (1 - rates))[which]
    moved = truth.drift + truth.gain * np.sign(lift) * np.log1p(np.abs(lift))
    end = (start + moved)[:, None] + truth.spread * random.normal(size=(items, seeds))
    return RunOutcomes(
        np.array([f"item-{n}" for n in range(items)]),
        (end < math.log(0.1 / 0.9)).mean(axis=1),
        rates,
        np.eye(3)[which],
        Lifts(lift, np.full(items, 1e-6)),
        (1.0, 2.25),
        tau=0.1,
        horizon=1.0,
    )


def test_refitting_finds_the_constants_that_made_the_outcomes() -> None:
    truth = Constants(drift=-0.8, gain=2.5, spread=0.6)
    runs = [_simulated(400, truth), _simulated(400, truth, seed=1)]
    found = fit_constants(runs, CONSTANTS["gradients"])
    # About three standard errors of 800 items, as other seeds of the simulation scatter.
    assert found.constants.drift == pytest.approx(truth.drift, abs=0.3)
    assert found.constants.gain == pytest.approx(truth.gain, abs=0.5)
    assert found.constants.spread == pytest.approx(truth.spread, abs=0.25)
    assert found.items == 800
    assert found.log_likelihood == log_likelihood(runs, found.constants)
    assert found.log_likelihood_built_in == log_likelihood(runs, CONSTANTS["gradients"])
    assert found.log_likelihood > found.log_likelihood_built_in + 10


def test_few_items_do_not_run_away() -> None:
    built_in = CONSTANTS["gradients"]
    # All learned, although their lifts are all over: without a prior drift would have no end.
    few = dataclasses.replace(_simulated(5, built_in), below=np.zeros(5))
    found = fit_constants([few], built_in).constants
    assert built_in.drift < found.drift < built_in.drift + 2
    assert abs(found.gain - built_in.gain) < 1.5
    assert 0.3 < found.spread / built_in.spread < 3
    none = few.only(np.zeros(5, dtype=bool))
    assert fit_constants([none], built_in).constants == built_in


def test_an_item_counts_once_by_the_share_of_its_seeds() -> None:
    built_in = CONSTANTS["gradients"]
    run = _simulated(50, built_in)
    p = run.p_unlearnable(built_in)
    open_ones = (p > 0.01) & (p < 0.99)
    run, p = run.only(open_ones), p[open_ones]
    expected = (run.below * np.log(p) + (1 - run.below) * np.log(1 - p)).sum()
    assert len(set(run.below)) == 4
    assert log_likelihood([run], built_in) == pytest.approx(expected)


def test_outcomes_are_those_of_all_hard_items(tmp_path: Path) -> None:
    world = make_world(30)
    world.correct[3] = 0
    world.lift[3] = world.lift_error[3] = np.nan
    world.outcomes = {"hard-3": "no_positive", "hard-5": "undetermined"}
    run = read_run_outcomes(write_confirmed_run(tmp_path / "run", world))
    assert run.item_ids.tolist() == world.item_ids
    expected = world.is_unlearnable.astype(float)
    expected[3], expected[5] = 1, 1 / 3
    np.testing.assert_allclose(run.below, expected)
    built_in = read_forecast(tmp_path / "run", TagConfig()).forecast.p_unlearnable[:30]
    np.testing.assert_allclose(run.p_unlearnable(CONSTANTS["gradients"]), built_in)


def test_the_refitted_forecast_is_written_and_scored_on_other_items(tmp_path: Path) -> None:
    runs = [
        write_confirmed_run(tmp_path / "one", make_world(100, similarity_effect=2.0)),
        write_confirmed_run(tmp_path / "two", make_world(60, seed=2, similarity_effect=2.0)),
    ]
    document = calibrate_run(runs, resamples=20)
    found, built_in = document["forecast"], CONSTANTS["gradients"]
    assert found["source"] == "gradients" and found["items"] == 160
    assert found["log_likelihood"] > found["log_likelihood_built_in"]
    constants = Constants.from_mapping(found)
    assert constants != built_in
    scores = document["cross_validation"]["scores"]
    assert scores["forecast"]["log_loss"] < scores["built_in"]["log_loss"] + 0.05
    assert scores["forecast"]["auroc"] > 0.85
    text = calibration_text(document)
    assert "refitted forecast          0." in text
    assert f"refitted on 160 hard items: drift {constants.drift:.2f}, gain " in text


def test_lifts_of_different_sources_are_not_pooled(tmp_path: Path) -> None:
    one = write_confirmed_run(tmp_path / "one", make_world(40))
    other = write_confirmed_run(tmp_path / "other", make_world(40), lift_source="pilot")
    ran = run_curate("calibrate", one, other)
    assert ran.status == 2 and ran.stderr.count("\n") == 1
    assert "differ in the source of their lift (pilot and gradients)" in ran.stderr
    assert calibrate_run([other], resamples=20)["forecast"]["source"] == "pilot"


# --- Reasoning quality -----------------------------------------------------------------------


def test_reasoning_quality_is_used_where_it_is_asked_for(tmp_path: Path) -> None:
    world = make_world(60, similarity_effect=0.5)
    run = write_confirmed_run(tmp_path / "run", world)
    ran = run_curate("calibrate", run, "--reasoning-quality")
    assert ran.status == 2 and "has no reasoning quality: `curate judge" in ran.last_line
    random = np.random.default_rng(0)
    scores = np.where(world.is_unlearnable, 1.5, 3.5) + 0.8 * random.normal(size=60)
    known = dict(zip(world.item_ids, np.clip(scores, 0, 5).tolist(), strict=True))
    write_quality(run, {each: None if each == "hard-7" else s for each, s in known.items()})
    document = calibrate_run([run], reasoning_quality=True, resamples=20)
    assert "AUROC gained by the reasoning quality: 0." in calibration_text(document)
    assert document["features"][-1]["name"] == "reasoning_quality"
    found = document["cross_validation"]["scores"]
    assert found["predictor"]["auroc"] > 0.85 > 0.75 > found["without_quality"]["auroc"]
    # Nothing changes for who does not ask.
    without = calibrate_run([run], tmp_path / "without.json", resamples=20)
    assert [feature["name"] for feature in without["features"]] == list(PROBED_FEATURES)
    theirs = without["cross_validation"]["scores"]["predictor"]["auroc"]
    assert theirs == found["without_quality"]["auroc"]


# --- The command -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibration")
    return write_confirmed_run(folder / "run", make_world(60, length_effect=2.0))


def test_the_command_writes_the_file_and_tells_how_good_it_is(run: Path) -> None:
    ran = run_curate("calibrate", run)
    assert ran.status == 0, ran.stderr
    document = json.loads((run / "validation/predictor.json").read_text())
    assert "fitted on 60 hard items (30 learnable, 30 unlearnable) of 1 run" in ran.stdout
    ours = document["cross_validation"]["scores"]["predictor"]
    assert f"this predictor             {ours['auroc']:.2f} (" in ran.stdout
    assert document["learnable"] == document["unlearnable"] == 30
    assert document["runs"][0]["dataset_fingerprint"] == "d" * 64
    assert document["cross_validation"]["note"] is None
    # The same command gives the same numbers, as JSON too.
    ran = run_curate("calibrate", run, "--json", "-o", run.parent / "other.json")
    again = json.loads(ran.stdout)
    assert again.pop("file") == str(run.parent / "other.json")
    assert {**again, "created": 0} == {**document, "created": 0}


def test_runs_are_pooled(run: Path, tmp_path: Path) -> None:
    more = make_world(40, seed=1, prefix="more")
    other = write_confirmed_run(tmp_path / "other", more, weight_hash="b")
    summary = calibrate(run, other, out=tmp_path / "predictor.json")
    assert summary["items"] == 100
    assert set(summary["models"]) == {"a" * 64, "b"}
    assert [facts["unlearnable"] for facts in summary["runs"]] == [30, 20]


def test_undetermined_items_and_those_without_a_positive_are_left_out(tmp_path: Path) -> None:
    world = make_world(60)
    world.correct[3] = 0
    world.outcomes = {"hard-5": "undetermined", "hard-6": "no_positive"}
    items = _items(write_confirmed_run(tmp_path / "run", world))
    left_out = {"hard-3", "hard-5", "hard-6"}
    assert set(items.item_ids) == set(world.item_ids) - left_out


def test_it_says_when_there_are_too_few_items_for_a_claim(tmp_path: Path) -> None:
    world = make_world(24, similarity_effect=0.5)
    run = write_confirmed_run(tmp_path / "run", world)
    ran = run_curate("calibrate", run)
    assert ran.status == 0, ran.stderr
    assert "Too few items for a claim" in ran.stdout


def test_with_fewer_than_ten_of_a_class_it_refuses(tmp_path: Path) -> None:
    world = make_world(60)
    world.outcomes = {f"hard-{n}": "undetermined" for n in range(0, 60, 2) if n >= 18}
    ran = run_curate("calibrate", write_confirmed_run(tmp_path / "run", world))
    assert ran.status == 2
    assert "30 learnable and 9 unlearnable" in ran.stderr and "10 of each" in ran.stderr
    assert not (tmp_path / "run/validation/predictor.json").exists()


def _edit_manifest(run: Path, **changes: object) -> None:
    file = run / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_bad_input_is_one_line_and_exit_2(run: Path, tmp_path: Path) -> None:
    def refused(*arguments: object) -> str:
        ran = run_curate("calibrate", *arguments)
        assert ran.status == 2 and ran.stderr.count("\n") == 1, ran.stderr
        return ran.stderr

    world = make_world(40)
    assert "no run folder" in refused(tmp_path / "nowhere")
    assert "given twice" in refused(run, run.parent / "." / "run")
    assert "it is a folder" in refused(run, "-o", tmp_path)
    hotter = write_confirmed_run(tmp_path / "hotter", world, settings={"temperature": 0.7})
    assert "differ in temperature" in refused(run, hotter)
    unconfirmed = write_confirmed_run(tmp_path / "unconfirmed", world)
    (unconfirmed / "validation/confirmed.parquet").unlink()
    assert "curate confirm" in refused(unconfirmed)
    unfinished = write_confirmed_run(tmp_path / "unfinished", world)
    _edit_manifest(unfinished, stages={"tags": {"state": "started"}})
    assert "not finished" in refused(unfinished)
    foreign = write_confirmed_run(tmp_path / "foreign", world)
    table = pa.table({"item_id": ["someone"], "confirmed_trainability": ["learnable"]})
    pq.write_table(table, foreign / "validation/confirmed.parquet")
    assert "does not belong" in refused(foreign)
    pq.write_table(table.drop(["item_id"]), foreign / "validation/confirmed.parquet")
    assert "no column item_id" in refused(foreign)


def test_a_run_whose_similarities_have_no_scale_is_calibrated_by_the_rest(tmp_path: Path) -> None:
    world = make_world(60, length_effect=3.0)
    run = write_confirmed_run(tmp_path / "run", world)
    table = pq.read_table(run / "similarity.parquet")
    place = table.schema.get_field_index("gradient_similarity")
    unknown = pa.nulls(table.num_rows, pa.float64())
    pq.write_table(table.set_column(place, "gradient_similarity", unknown),
                   run / "similarity.parquet")  # fmt: skip
    document = calibrate_run([run], resamples=20)
    features = {feature["name"]: feature for feature in document["features"]}
    assert features["gradient_similarity"]["coefficient"] == 0
    assert document["cross_validation"]["scores"]["predictor"]["auroc"] > 0.85
