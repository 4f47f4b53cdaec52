"""The words and the added columns are those of the contract."""

import subprocess
import sys

import pyarrow as pa
import pytest

from curate.tags import Trainability, tag_schema


def test_the_five_words():
    assert [str(tag) for tag in Trainability] == [
        "easy",
        "learnable",
        "unlearnable",
        "no_positive",
        "undetermined",
    ]
    assert Trainability("no_positive") is Trainability.NO_POSITIVE
    assert pa.array([Trainability.EASY], pa.string()).to_pylist() == ["easy"]


def test_columns_names_order_and_types():
    schema = tag_schema([1, 8])
    assert schema.names == [
        "item_id",
        "trainability",
        "p_unlearnable",
        "forecast_pass_rate",
        "forecast_low",
        "forecast_high",
        "total_rollouts",
        "total_correct_rollouts",
        "pass_rate",
        "pass_rate_low",
        "pass_rate_high",
        "pass_at_1",
        "pass_at_8",
        "majority_answer",
        "majority_share",
        "suspect_gold",
        "no_positive_kind",
        "lift",
        "lift_low",
        "lift_high",
        "teaching",
        "gradient_similarity",
        "gradient_similarity_low",
        "gradient_similarity_high",
        "gradient_reliability",
        "tag_reason",
        "confirmed_trainability",
    ]
    strings = {"item_id", "trainability", "tag_reason", "confirmed_trainability"}
    strings |= {"majority_answer", "no_positive_kind"}
    integers = {"total_rollouts", "total_correct_rollouts"}
    for field in schema:
        if field.name in strings:
            assert field.type == pa.string()
        elif field.name == "suspect_gold":
            assert field.type == pa.bool_()
        elif field.name in integers:
            assert field.type == pa.int64()
        else:
            assert field.type == pa.float64()
        assert field.nullable


def test_rewards_of_a_users_function_have_columns_of_their_own():
    names = tag_schema([1], rewards=True).names
    assert names[names.index("pass_at_1") + 1 :][:2] == ["reward_mean", "reward_std"]
    assert not {"reward_mean", "reward_std"} & {*tag_schema([1]).names}


def test_no_ks_no_pass_at_columns():
    assert not [name for name in tag_schema([]).names if name.startswith("pass_at_")]


@pytest.mark.parametrize("ks", [[0], [1, -2], [4, 4]])
def test_impossible_ks_are_refused(ks):
    with pytest.raises(ValueError, match="pass@k"):
        tag_schema(ks)


def test_the_words_load_neither_torch_nor_probes():
    code = (
        "import sys, curate.tags; "
        "print([name for name in ('torch', 'probes', 'recipes', 'cards') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
