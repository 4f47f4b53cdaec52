"""Duplicates among problems: the same, nearly the same, and what only looks alike."""

import random
import time

import pytest

from recipes.augment.duplicates import NEAR, DuplicateIndex, _grams, _numbers, _overlap, _tokens

BASE = (
    "A farmer has 12 cows and 7 sheep in two fields by the river. Each cow gives 5 litres of milk "
    "a day and each sheep gives 2 litres. How many litres of milk does the farmer get every day?"
)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (BASE, "same"),
        (BASE.upper().replace(" ", "  ").replace(".", ""), "same"),
        (BASE.replace("１", "1"), "same"),
        (BASE.replace("every day", "each day"), "near"),
        (BASE.replace("12 cows", "13 cows"), None),
        (BASE.replace("12 cows and 7 sheep", "12 cows, 7 goats and no sheep at all"), None),
        ("How many litres of milk do 12 cows give if each gives 5 litres a day?", None),
        ("", None),
    ],
)
def test_what_is_a_duplicate(text: str, found: str | None) -> None:
    duplicate = DuplicateIndex(["What is 2 + 2?", BASE]).find(text)
    kind = duplicate and ("same" if duplicate.overlap == 1 else "near")
    assert kind == found
    assert duplicate is None or duplicate.position == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [("What is 3 + 4?", "What is 3 - 4?"), ("What is 5!?", "What is 5?"), ("3.5 + 1", "35 + 1"),
     ("Is x < y?", "Is x > y?")],
)  # fmt: skip
def test_signs_and_numbers_make_other_problems(one: str, other: str) -> None:
    assert DuplicateIndex([one]).find(other) is None


def test_texts_that_are_added_are_found() -> None:
    index = DuplicateIndex([])
    assert index.find(BASE) is None
    index.add(BASE)
    assert index.find(BASE.replace("every", "each")).position == 0  # type: ignore[union-attr]


def test_the_index_finds_what_comparing_all_pairs_finds() -> None:
    """Copies of random texts with more and more words changed, on either side of the threshold."""
    draw = random.Random(0)
    words = [f"word{'abcdefghijklmnopqrstuvwxyz'[n % 26]}{'xyz'[n % 3]}" for n in range(60)]
    texts = [" ".join(draw.choices(words, k=draw.randint(3, 60))) for _ in range(80)]
    index = DuplicateIndex(texts)
    grams = [_grams(_tokens(text)) for text in texts]
    found = 0
    for text in texts:
        for changed in range(4):
            changing = text.split()
            for place in draw.sample(range(len(changing)), min(changed, len(changing))):
                changing[place] = draw.choice(words)
            copy = " ".join(changing)
            best = max(_overlap(_grams(_tokens(copy)), each) for each in grams)
            duplicate = index.find(copy)
            assert (duplicate.overlap if duplicate else None) == (best if best >= NEAR else None)
            found += duplicate is not None
    assert 80 < found < 320


def test_the_time_is_about_linear_though_all_texts_share_an_instruction() -> None:
    suffix = "Think step by step and write the final answer alone on the last line in a box."

    def seconds(count: int) -> float:
        texts = [
            f"What is the value of {n} plus {n * 7919 % 10007}? {suffix}" for n in range(count)
        ]
        start = time.process_time()
        index = DuplicateIndex(texts)
        assert all(index.find(text.replace("plus", "times")) is None for text in texts)
        return time.process_time() - start

    seconds(100)
    # Eight times as many; quadratic would be 64 times as long. What else runs only adds to a time.
    few, many = (min(seconds(count) for _ in range(3)) for count in (500, 4000))
    assert many < 24 * few + 0.5
    assert _numbers(_tokens("2 and 10 and 3.5")) == ("10", "2", "3.5")
