"""The gold in the place of an answer: where that is, what it becomes, what its chance means."""

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from curate.run.tables import ROLLOUTS, read_parquet, write_parquet
from probes.forecast.gold import (
    AnswerPlace,
    GoldCompletion,
    answer_place,
    decoded,
    encoded,
    gold_completion,
    gold_probability,
    placed_form,
)
from probes.gradients.batch import TokenizedRollout
from probes.rescoring.teacher_forcing import log_probabilities
from probes.stages.gold import read_gold, score_golds
from probes.verifiers.load import load_verifier
from probes.verifiers.pool import VerifierPool


@pytest.fixture(scope="module")
def tokenizer():
    """Bytes, and a few merges that put an answer and its surroundings into one token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "4"), ("{", "7"), ("4", "}"), ("1", "2"), ("Ġ", "s"), ("b", "o")]
    vocabulary = {"<eos>": 0}
    for piece in [*letters, *("".join(pair) for pair in merges)]:
        vocabulary[piece] = len(vocabulary)
    bare = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bare.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bare, eos_token="<eos>")


def pieces(tokenizer, token_ids):
    return [tokenizer.decode([token]) for token in token_ids]


@pytest.mark.parametrize(
    ("completion", "answer", "lead", "tail"),
    [
        (r"so \boxed{7}", "7", "{", ""),
        (r"so \boxed{4} or 4", "4", "", "}"),
        ("it is 4 surely", "4", " ", ""),
        ("it is 4. No, 12.", "12", "", ""),
        ("4 and 5\n#### 4\n5", "4", " ", ""),
        (r"\boxed{1 + 3 = 4} \boxed{", "4", " ", ""),
        ("5", "5", "", ""),
        ("ä é 12 ü", "12", "", ""),
    ],
)
def test_an_answer_is_found_in_the_tokens(tokenizer, completion, answer, lead, tail):
    ids = [*encoded(tokenizer, completion), 0]
    place = answer_place(ids, tokenizer, completion, answer)
    assert (place.lead, place.tail) == (lead, tail)
    inside = decoded(tokenizer, ids[place.first_token : place.end_token])
    assert inside == lead + answer + tail


def test_the_answer_is_the_boxed_one_not_a_later_number(tokenizer):
    completion = r"\boxed{4} is 4"
    place = answer_place(encoded(tokenizer, completion), tokenizer, completion, "4")
    assert decoded(tokenizer, encoded(tokenizer, completion)[: place.first_token]) == r"\boxed{"


def test_a_character_of_several_tokens_is_not_cut(tokenizer):
    completion = "é≥é"
    ids = encoded(tokenizer, completion)
    assert len(ids) == 7
    assert answer_place(ids, tokenizer, completion, "≥") == AnswerPlace(2, 5, "", "")


@pytest.mark.parametrize("answer", ["9", "", "x" * 2_000])
def test_no_place_for_what_is_not_there(tokenizer, answer):
    assert answer_place(encoded(tokenizer, "so 4"), tokenizer, "so 4", answer) is None


def test_no_place_where_tokens_and_text_differ(tokenizer):
    assert answer_place(encoded(tokenizer, "so 4"), tokenizer, "so  4", "4") is None


@pytest.mark.parametrize(
    ("completion", "answer", "gold", "scored"),
    [
        (r"so \boxed{7}", "7", "12", ["{", "12", "}"]),
        (r"so \boxed{4}.", "4", "7", ["7", "}", "."]),
        ("it is 4 surely", "4", "12", [" ", "12", " s"]),
        ("it is 9", "9", "-4", ["-", "4", "<eos>"]),
    ],
)
def test_the_gold_takes_the_place_of_the_answer(tokenizer, completion, answer, gold, scored):
    ids = [*encoded(tokenizer, completion), 0]
    place = answer_place(ids, tokenizer, completion, answer)
    found = gold_completion(ids, place, tokenizer, completion, gold)
    assert pieces(tokenizer, found.scored) == scored
    assert found.prefix == tuple(ids[: place.first_token])
    assert found.text == decoded(tokenizer, found.token_ids) == completion.replace(answer, gold)
    assert found.token_ids[-1] == 0


def test_tokens_that_were_sampled_in_another_way_are_kept(tokenizer):
    # Sampled as b, o: encoded it would be one token.
    ids = [*encoded(tokenizer, "b"), *encoded(tokenizer, "o"), *encoded(tokenizer, " 4"), 0]
    place = answer_place(ids, tokenizer, "bo 4", "4")
    found = gold_completion(ids, place, tokenizer, "bo 4", "12")
    assert found.prefix == tuple(ids[:2])
    assert pieces(tokenizer, found.scored) == [" ", "12", "<eos>"]


@pytest.mark.parametrize(
    ("verifier", "gold", "form"),
    [
        ("choice", "(B)", "B"),
        ("math", r"$\frac{1}{2}$", r"\frac{1}{2}"),
        ("numeric", "42 apples", "42"),
        ("exact", " e a f ", "e a f"),
    ],
)
def test_the_gold_is_written_as_an_answer(verifier, gold, form):
    verdict = load_verifier(verifier)(rf"\boxed{{{gold}}}", gold)
    assert verdict.reward == 1
    assert placed_form(gold, verdict.answer_found) == form


def one(prefix, scored):
    return GoldCompletion(tuple(prefix), tuple(scored), (), "")


def test_of_two_beginnings_the_longer_is_dropped():
    rollouts = [(1, 2), (3, 1, 2), (4, 4)]
    found = gold_probability(
        rollouts, [one((), (1, 2)), one((1, 2), (5, 1, 2))], np.log([0.4, 0.9]), [False] * 3
    )
    assert found.probability == pytest.approx(0.4)
    assert found.standard_error == 0
    assert found.weights == pytest.approx([0.4, 0])


def test_rollouts_without_an_answer_count():
    rollouts = [(7, 1), (7, 2), (8,), (9,)]
    found = gold_probability(rollouts, [one((7,), (1, 0))], np.log([0.5]), [False] * 4)
    assert found.probability == pytest.approx(0.25)
    values = np.array([0.5, 0.5, 0, 0])
    assert found.standard_error == pytest.approx(values.std(ddof=1) / 2)


def test_a_right_rollout_without_a_place_counts_as_itself():
    found = gold_probability([(1,), (2,)], [one((2,), (3,))], np.log([0.5]), [True, False])
    assert found.probability == pytest.approx((1 + 0.5) / 2)


def test_the_estimate_is_the_pass_probability_with_a_fraction_of_the_variance():
    """A policy that writes 0 to 2 words of three, then one of ten answers; answer 0 is right."""
    random = np.random.default_rng(1)
    answers = random.dirichlet(np.full(10, 0.5), size=(4, 4))

    def draw():
        prefix = []
        while len(prefix) < 2 and random.random() < 0.6:
            prefix.append(int(random.integers(3)))
        return tuple(prefix)

    def answer_law(prefix):
        first, second = (*prefix, 3, 3)[:2]
        return answers[first, second]

    share = {(): 0.4}
    share |= {(a,): 0.6 / 3 * 0.4 for a in range(3)}
    share |= {(a, b): 0.36 / 9 for a in range(3) for b in range(3)}
    p = sum(weight * answer_law(prefix)[0] for prefix, weight in share.items())

    def stops(prefix):
        return 0.4 if len(prefix) < 2 else 1.0

    estimates, counts = [], []
    for _ in range(300):
        prefixes = [draw() for _ in range(64)]
        drawn = [int(random.choice(10, p=answer_law(prefix))) for prefix in prefixes]
        rollouts = [(*s, 100 + a, 0) for s, a in zip(prefixes, drawn, strict=True)]
        distinct = sorted(set(prefixes))
        completions = [one(s, (100, 0)) for s in distinct]
        scores = [np.log(stops(s) * answer_law(s)[0]) for s in distinct]
        found = gold_probability(rollouts, completions, scores, [False] * 64)
        estimates.append(found.probability)
        counts.append(drawn.count(0) / 64)
    error = np.std(estimates) / 300**0.5
    assert np.mean(estimates) == pytest.approx(p, abs=4 * error + 0.01 * p)
    assert np.std(estimates) < 0.6 * np.std(counts)


# --- the stage ------------------------------------------------------------------------------------

WORDS = {word: 3 + place for place, word in enumerate("0123456789+=?")}


def write_run(folder, rollouts, items):
    lines = [
        {
            "item_id": item_id,
            "sample": sample,
            "completion": text,
            "completion_token_ids": [
                *(WORDS[word] for word in text.split()),
                *([] if cut else [1]),
            ],
            "finish_reason": "length" if cut else "stop",
            "reward": reward,
            "verdict": "correct" if reward else "wrong",
            "answer_found": answer,
        }
        for item_id, drawn in rollouts.items()
        for sample, (text, answer, reward, cut) in enumerate(drawn)
    ]
    write_parquet(folder / "rollouts/00000.parquet", pa.Table.from_pylist(lines, ROLLOUTS.schema))
    table = pa.table(
        {
            "item_id": list(items),
            "prompt_token_ids": pa.array(
                [[WORDS[word] for word in prompt.split()] for prompt, _ in items.values()],
                pa.list_(pa.int32()),
            ),
            "answer": [gold for _, gold in items.values()],
        }
    )
    return table, {item_id: row for row, item_id in enumerate(items)}


@pytest.fixture
def scored_run(tmp_path, tiny_policy):
    items = {
        "direct": ("1 + 2 =", "3"),
        "worked": ("2 + 2 =", "4"),
        "silent": ("3 + 3 =", "6"),
        "unjudged": ("4 + 4 =", "8"),
    }
    rollouts = {
        "direct": [("5", "5", 0, False), ("7", "7", 0, False), ("1 1 1 1", None, 0, True)],
        "worked": [
            ("2 = 4", "4", 1, False),
            ("1 = 5", "5", 0, False),
            ("2 = 9", "9", 0, False),
            ("= 8", "8", 0, False),
            ("? ?", None, 0, False),
        ],
        "silent": [("1 1 1 1", None, 0, True), ("=", None, 0, False)],
        "unjudged": [("8", None, None, False)],
    }
    table, row_of = write_run(tmp_path, rollouts, items)

    def score(**options):
        return score_golds(
            tmp_path,
            table,
            row_of,
            tiny_policy.tokenizer,
            tiny_policy,
            VerifierPool("numeric", workers=1),
            **options,
        )

    return tmp_path, score


def probability(policy, prompt, completion, scored_words):
    """Of the last words of a completion, the end included, at temperature 1."""
    ids = [*(WORDS[word] for word in completion.split()), 1]
    given = [*(WORDS[word] for word in prompt.split()), *ids[: len(ids) - scored_words]]
    rollout = TokenizedRollout(given, ids[len(ids) - scored_words :])
    return float(np.exp(log_probabilities(policy, [rollout])[0]))


def test_the_stage_gives_what_the_policy_says(scored_run, tiny_policy):
    folder, score = scored_run
    counts = score()
    table = {row["item_id"]: row for row in read_parquet(folder / "gold.parquet").to_pylist()}

    # All that a rollout can write before a direct answer is nothing, so that this is exact.
    direct = probability(tiny_policy, "1 + 2 =", "3", 2)
    assert table["direct"]["gold_probability"] == pytest.approx(direct, rel=1e-5)
    assert table["direct"]["standard_error"] == 0
    assert table["direct"]["seen_rollouts"] == 0

    values = [probability(tiny_policy, "2 + 2 =", f"{s} 4", 2) for s in ("2 =", "1 =", "=")]
    a, b, c = values
    expected = np.array([a, b, a, c, 0])
    assert table["worked"]["gold_probability"] == pytest.approx(expected.mean(), rel=1e-5)
    assert table["worked"]["standard_error"] == pytest.approx(
        expected.std(ddof=1) / 5**0.5, rel=1e-5
    )
    assert table["worked"]["distinct_prefixes"] == 3
    assert (table["worked"]["seen_rollouts"], table["worked"]["seen_correct"]) == (5, 1)

    assert table["silent"]["gold_probability"] is None
    assert (table["silent"]["prefixes"], table["unjudged"]["prefixes"]) == (2, 0)
    gold = read_gold(folder)
    assert np.isfinite(gold.probability).tolist() == [True, True, False, False]
    assert gold.probability[0] == pytest.approx(direct, rel=1e-5)
    assert gold.seen_correct.tolist() == [0, 1, 0, 0]
    assert counts["items_with_gold"] == 2
    assert counts["prefixes_this_time"] == 4


def test_the_stage_is_done_once(scored_run):
    _, score = scored_run
    assert score()["prefixes_this_time"] == 4
    assert score() == {"items_with_gold": 2, "prefixes_this_time": 0}


def test_only_the_first_rollouts_are_looked_at(scored_run, tiny_policy):
    folder, score = scored_run
    score(most_prefixes=1)
    table = {row["item_id"]: row for row in read_parquet(folder / "gold.parquet").to_pylist()}
    value = probability(tiny_policy, "2 + 2 =", "2 = 4", 2)
    assert table["worked"]["gold_probability"] == pytest.approx(value, rel=1e-5)
    assert table["worked"]["prefixes"] == 1


def test_a_gold_that_the_verifier_does_not_accept_gives_nothing(tmp_path, tiny_policy):
    # The last number decides, and the answer that was found stands before it.
    table, row_of = write_run(
        tmp_path, {"odd": [("5 = 7", "5", 0, False)]}, {"odd": ("1 + 2 =", "3")}
    )
    pool = VerifierPool("numeric", workers=1)
    score_golds(tmp_path, table, row_of, tiny_policy.tokenizer, tiny_policy, pool)
    assert read_parquet(tmp_path / "gold.parquet")["gold_probability"].to_pylist() == [None]
