"""Settings: one declaration makes the field, the option and the sentence that refuses a value."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curate.config import config_from_mapping
from curate.errors import UsageError
from curate.settings import Settings, argument, declared_in, option, settings


@settings
class Planned(Settings):
    """What the tests set."""

    run: str | Path = argument("a run", metavar="RUN")
    _: KW_ONLY
    seeds: Sequence[int] = option("seeds", default=(1, 2), least=0, commas=True)
    names: str | Sequence[str] = option("names", default=())
    rate: float = option("a rate", default=0.5, above=0, below=1)
    price: float | None = option("a price", default=None, least=0)
    loss: str = option("a loss", default="grpo", choices=("grpo", "dapo"))
    is_dry: bool = option("nothing is done", default=False)
    table: Mapping[str, Any] = option("a table", default=dict)


def test_values_get_the_form_of_their_fields() -> None:
    made = Planned(Path("a/b"), seeds=[np.int64(3)], names="one", price=2, rate=np.float32(0.25))
    assert made == Planned("a/b", seeds=(3,), names=("one",), price=2.0, rate=0.25)
    assert [type(each) for each in (made.seeds[0], made.price, made.rate)] == [int, float, float]
    assert Planned("a", seeds=range(3)).seeds == (0, 1, 2)
    assert Planned.from_mapping({"run": "a", "price": None}, "here") == Planned("a")
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.loss = "dapo"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"rate": 1.0}, "--rate is 1.0; it must be between 0 and 1"),
        ({"rate": float("nan")}, "--rate is nan; it must be between 0 and 1"),
        ({"rate": True}, "--rate is True; it must be a number"),
        ({"rate": "much"}, "--rate is 'much'; it must be a number"),
        ({"seeds": (1, -1)}, "--seeds is [1, -1]; it must be at least 0 each"),
        ({"seeds": {}}, "--seeds is {}; it must be a whole number"),
        ({"seeds": 1.5}, "--seeds is 1.5; it must be a whole number"),
        ({"names": ["a", 1]}, "--names is ['a', 1]; it must be a list of text"),
        (
            {"seeds": [1, 10**19]},
            f"--seeds is [1, {10**19}]; it must be a whole number of at most 64 bits each",
        ),
        ({"price": -1}, "--price is -1.0; it must be a number, at least 0"),
        ({"price": float("inf")}, "--price is inf; it must be a number, at least 0"),
        ({"loss": "ppo"}, "--loss is 'ppo'; it must be grpo or dapo"),
        ({"is_dry": 1}, "--is-dry is 1; it must be true or false"),
        ({"table": []}, "--table is []; it must be a table: [name], then key = value"),
        ({"run": 3}, "RUN is 3; it must be text"),
    ],
)
def test_what_cannot_be_is_refused_by_name(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as refused:
        Planned(**{"run": "a", **values})
    assert str(refused.value) == said
    if (
        "must be a" in said and "at least" not in said and "at most" not in said
    ):  # A type, which a file is told of by name.
        with pytest.raises(UsageError, match=r"^x\.toml: \w+ is "):
            Planned.from_mapping({"run": "a", **values}, "x.toml")


def test_an_unknown_key_is_refused_and_the_nearest_named() -> None:
    with pytest.raises(UsageError) as refused:
        Planned.from_mapping({"los": "grpo"}, "x.toml")
    assert str(refused.value) == "x.toml: unknown setting 'los'; did you mean 'loss'?"
    with pytest.raises(UsageError, match="known: run, seeds, names"):
        Planned.from_mapping({"qqq": 1}, "x.toml")


def test_the_help_tells_a_default_that_says_something() -> None:
    helps = [each.help for each in declared_in(Planned).values()]
    assert helps == [
        "a run", "seeds (default: 1,2)", "names", "a rate (default: 0.5)", "a price",
        "a loss (default: grpo)", "nothing is done", "a table",
    ]  # fmt: skip


def test_a_name_in_a_dataset_may_be_a_number() -> None:
    values = {"subset": 2024, "split": 0, "answer_field": 1.5}
    config = config_from_mapping(values, "config.toml")
    assert (config.subset, config.split, config.answer_field) == ("2024", "0", "1.5")
    with pytest.raises(UsageError, match="subset is True; it must be text"):
        config_from_mapping({"subset": True}, "config.toml")
