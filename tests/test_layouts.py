"""Each known layout is recognised, equal items have equal ids, and a reject says why."""

import time
from decimal import Decimal
from typing import Any

import pytest

from curate.datasets.fields import RowRejected
from curate.datasets.golds import extract_gold, last_boxed
from curate.datasets.layouts import Layout, Question, read_question, recognise_layout
from curate.errors import UsageError

USER = [{"role": "user", "content": "2 + 2?"}]
CHAT = [{"role": "system", "content": "Be brief."}, *USER]
REPLY = [{"role": "assistant", "content": "It is \\boxed{4}."}]
TWO_PLUS_TWO = Question((("user", "2 + 2?"),), "4")
LAYOUTS: dict[str, tuple[dict[str, Any], str]] = {
    "prompt/answer": ({"prompt": "2 + 2?", "answer": "4"}, "prompt/answer"),
    "an int": ({"prompt": "2 + 2?", "answer": 4}, "prompt/answer"),
    "a list of one": ({"prompt": "2 + 2?", "answer": [4]}, "prompt/answer"),
    "gsm8k": ({"question": "2 + 2?", "answer": "2+2=4\n#### 4"}, "question/answer"),
    "problem/answer": ({"problem": "2 + 2?", "answer": "4", "solution": "-"}, "problem/answer"),
    "MATH": ({"problem": "2 + 2?", "solution": "So $\\boxed{4}$."}, "problem/solution"),
    "ground_truth": ({"question": "2 + 2?", "ground_truth": "4"}, "question/ground_truth"),
    "conversation": ({"prompt": USER, "answer": "4"}, "prompt/answer"),
    "messages/answer": ({"messages": USER, "answer": "4"}, "messages"),
    "messages, answer too": ({"messages": USER + REPLY, "answer": "4"}, "messages"),
    "messages only": ({"messages": USER + REPLY}, "messages"),
    "verl": (
        {
            "data_source": "gsm8k",
            "prompt": USER,
            "reward_model": {"style": "rule", "ground_truth": "4"},
            "extra_info": {"answer": "2+2=4"},
        },
        "verl",
    ),
    "verl, an answer too": (
        {"prompt": USER, "answer": "four", "reward_model": {"ground_truth": "4"}},
        "verl",
    ),
    "text parts": (
        {
            "prompt": [
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "2 + "}, {"type": "text", "text": "2?"}],
                }
            ],
            "answer": "4",
        },
        "prompt/answer",
    ),
    "null columns beside": (
        {"prompt": None, "question": "2 + 2?", "answer": "4", "reward_model": None},
        "question/answer",
    ),
    "space around": ({"prompt": " 2 + 2?\n", "answer": " 4 "}, "prompt/answer"),
}


def read(row: dict[str, Any], **fields: str) -> Question:
    return read_question(row, recognise_layout([row], **fields))


@pytest.mark.parametrize("case", LAYOUTS)
def test_a_known_layout_needs_no_options_and_gives_the_same_item_id(case: str) -> None:
    row, name = LAYOUTS[case]
    assert recognise_layout([row]).name == name
    question = read(row)
    assert question.answer == "4"
    assert question.item_id == TWO_PLUS_TWO.item_id


def test_an_item_id_is_16_hex_digits_of_prompt_and_answer() -> None:
    assert TWO_PLUS_TWO.item_id == "44ce04a9b89072b7"  # Changing it would orphan users' tags.
    assert int(TWO_PLUS_TWO.item_id, 16)
    others = [
        Question((("user", "2 + 2?"),), "5"),
        Question((("user", "2 + 3?"),), "4"),
        Question((("tool", "2 + 2?"),), "4"),
        Question((("system", ""), ("user", "2 + 2?")), "4"),
        Question((("user", "2 + 2?4"),), ""),
    ]
    assert len({question.item_id for question in [TWO_PLUS_TWO, *others]}) == 6


def test_a_conversation_keeps_its_roles_and_its_text() -> None:
    question = read({"prompt": CHAT, "answer": "4"})
    assert question.messages == (("system", "Be brief."), ("user", "2 + 2?"))
    assert question.conversation() == CHAT
    assert read({"prompt": " 2?\n", "answer": 4}).messages == (("user", " 2?\n"),)


def test_messages_end_before_the_reply_and_may_have_turns_before() -> None:
    turns = [*USER, {"role": "assistant", "content": "4"}, {"role": "user", "content": "+ 1?"}]
    question = read({"messages": [*turns, {"role": "assistant", "content": "#### 5"}]})
    assert question.conversation() == turns
    assert question.answer == "5"


def test_a_prompt_may_end_with_a_tool_s_turn() -> None:
    turns = [*USER, {"role": "tool", "content": "4"}]
    assert read({"prompt": turns, "answer": "4"}).conversation() == turns


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        (72, "72"),
        ("72", "72"),
        (72.0, "72.0"),
        (True, "True"),
        (10**30, "1" + "0" * 30),
        (Decimal("1.50"), "1.50"),
        (0.00001, "0.00001"),
        (-1.5e-7, "-0.00000015"),
        (1e22, "1" + "0" * 22),
        (Decimal("1E-7"), "0.0000001"),
        (Decimal("1E+3"), "1000"),
        (0.0, "0.0"),
        (1.5e-300, "1.5 \\times 10^{-300}"),
        (-1e300, "-1 \\times 10^{300}"),
        (["x"], "x"),
        ("1,000", "1,000"),
        (" \\frac{1}{2}\n", "\\frac{1}{2}"),
    ],
)
def test_an_answer_may_be_text_or_a_number(answer: object, gold: str) -> None:
    assert read({"prompt": "p", "answer": answer}).answer == gold


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        ("so\n#### 72", "72"),
        ("#### 1\n#### 2 \n", "2"),
        ("#### 1,234,567.5", "1234567.5"),
        ("#### -1,000", "-1000"),
        ("#### 1,2", "1,2"),
        ("#### (1,000, 2)", "(1,000, 2)"),
        ("#### \\boxed{7}", "7"),
        ("\\boxed{1} #### 2", "2"),
        ("#### Solution\nIt is\n\\boxed{7}", "7"),
        ("#### 72\nand more", "72\nand more"),
        ("\\boxed{1} then \\boxed{2}", "2"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{\\left\\{1, 2\\right\\}}", "\\left\\{1, 2\\right\\}"),
        ("\\boxed {\n 3 }", "3"),
        ("\\fbox{4}", "4"),
        ("\\boxed{\\fbox{5}}", "5"),
        ("\\\\boxed{6}", "6"),
        ("\\boxed{7} but \\boxed{8", "7"),
        ("} } \\boxed{9}", "9"),
        ("{ { \\boxed{10}", "10"),
        ("\\boxed{}", ""),
        ("boxed{1} \\boxed 2", None),
        ("\\boxed{{1}", None),
        ("plain", None),
        ("", None),
    ],
)
def test_the_last_mark_in_a_text_is_its_gold_answer(text: str, gold: str | None) -> None:
    assert extract_gold(text) == gold


@pytest.mark.parametrize(
    "unit",
    ["\\boxed{", "\\boxed", "\\", "{", "}", "\\boxed{}", "####", "#### 1,", "1,000,", "\n", "\\{"],
)
def test_a_megabyte_of_anything_is_read_in_linear_time(unit: str) -> None:
    text = unit * (1_000_000 // len(unit))
    begin = time.perf_counter()
    last_boxed(text)
    extract_gold("#### " + text)
    extract_gold(text + " x")
    assert time.perf_counter() - begin < 60  # Quadratic would be hours.


# --- Options -----------------------------------------------------------------------------------


def test_options_win_and_may_be_dotted_paths() -> None:
    row = {"prompt": "no", "in": {"q": "yes"}, "meta": {"deep": {"gold": 5}}, "answer": "no"}
    layout = recognise_layout([row], "in.q", "meta.deep.gold")
    assert layout == Layout("in.q/meta.deep.gold", "in.q", "meta.deep.gold")
    assert read_question(row, layout) == Question((("user", "yes"),), "5")


def test_one_option_leaves_the_other_to_be_recognised() -> None:
    row = {"text": "t", "prompt": "p", "answer": "1", "label": "2"}
    assert read(row, prompt_field="text") == Question((("user", "t"),), "1")
    assert read(row, answer_field="label") == Question((("user", "p"),), "2")


def test_a_column_whose_name_has_a_dot_comes_before_a_path() -> None:
    row = {"a.b": "flat", "a": {"b": "deep"}, "answer": 1}
    assert read(row, prompt_field="a.b").messages == (("user", "flat"),)


def test_the_field_may_be_missing_from_the_first_rows() -> None:
    rows = [{"id": 1}, {"id": 2, "question": "q", "answer": None}, {"answer": "4"}]
    assert recognise_layout(rows).name == "question/answer"
    assert recognise_layout([{"q": "x", "a": 1}, {"b": None}], "q", "b").answer_field == "b"


@pytest.mark.parametrize(
    ("row", "options", "parts"),
    [
        ({"text": 1, "label": 2}, {}, ["'text', 'label'", "--prompt-field", "--answer-field"]),
        ({"prompt": "p", "label": 2}, {}, ["'prompt', 'label'", "--answer-field"]),
        ({"prompt": USER, "label": 2}, {}, ["--answer-field"]),
        ({"messages": USER}, {}, ["--answer-field"]),
        ({}, {}, ["no column", "--prompt-field"]),
        (
            {"problem": "p", "answer": "4"},
            {"prompt_field": "problems"},
            ["--prompt-field 'problems'", "did you mean 'problem'?"],
        ),
        (
            {"prompt": "p", "reward_model": {"ground_truth": 1}},
            {"answer_field": "reward_model.groundtruth"},
            ["--answer-field", "did you mean 'reward_model.ground_truth'?"],
        ),
        (
            {"question": "p", "answer": "4"},
            {"answer_field": "solution"},
            ["among the columns 'question', 'answer'; without --answer-field it is 'answer'"],
        ),
        ({f"c{n}": n for n in range(1000)}, {}, ["'c0'", "…"]),
    ],
)
def test_what_is_not_recognised_names_columns_and_options(
    row: dict[str, Any], options: dict[str, str], parts: list[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        recognise_layout([row], **options)
    assert all(part in str(caught.value) for part in parts)
    assert len(str(caught.value)) < 500


# --- Rejects -----------------------------------------------------------------------------------

PLAIN = Layout("prompt/answer", "prompt", "answer")
MESSAGES = Layout("messages", "messages", None)
MATH = Layout("problem/solution", "problem", "solution")
REJECTS: list[tuple[Layout, dict[str, Any], str]] = [
    (PLAIN, {"answer": "4"}, "no prompt: 'prompt' is missing or null"),
    (PLAIN, {"prompt": None, "answer": "4"}, "no prompt"),
    (PLAIN, {"prompt": "", "answer": "4"}, "empty prompt"),
    (PLAIN, {"prompt": " \n", "answer": "4"}, "empty prompt"),
    (PLAIN, {"prompt": [], "answer": "4"}, "empty prompt"),
    (PLAIN, {"prompt": 7, "answer": "4"}, "the prompt is a number"),
    (PLAIN, {"prompt": True, "answer": "4"}, "the prompt is true or false"),
    (PLAIN, {"prompt": {"role": "user"}, "answer": "4"}, "the prompt is an object"),
    (PLAIN, {"prompt": b"2 + 2?", "answer": "4"}, "the prompt is of type bytes"),
    (PLAIN, {"prompt": ["2 + 2?"], "answer": "4"}, "message 1 of the prompt is a string"),
    (PLAIN, {"prompt": [None], "answer": "4"}, "message 1 of the prompt is null"),
    (PLAIN, {"prompt": [{"content": "x"}], "answer": "4"}, "message 1 of the prompt has no role"),
    (PLAIN, {"prompt": [{"role": 1, "content": "x"}], "answer": "4"}, "has no role"),
    (PLAIN, {"prompt": [{"role": "user"}], "answer": "4"}, "has no text as its content"),
    (PLAIN, {"prompt": [{"role": "user", "content": None}], "answer": 4}, "has no text"),
    (PLAIN, {"prompt": [{"role": "user", "content": " "}], "answer": 4}, "empty prompt"),
    (PLAIN, {"prompt": [{"role": "user", "content": []}], "answer": 4}, "empty prompt"),
    (
        PLAIN,
        {"prompt": [{"role": "user", "content": [{"type": "image", "url": "x"}]}], "answer": 4},
        "holds 'image', not only text",
    ),
    (
        PLAIN,
        {"prompt": [{"role": "user", "content": [{"type": "text"}]}], "answer": 4},
        "holds 'text', not only text",
    ),
    (PLAIN, {"prompt": [{"role": "user", "content": ["x"]}], "answer": 4}, "holds 'a string'"),
    (PLAIN, {"prompt": CHAT[:1], "answer": "4"}, "ends with the turn of 'system'"),
    (PLAIN, {"prompt": USER + REPLY, "answer": "4"}, "ends with the turn of 'assistant'"),
    (PLAIN, {"prompt": [{"role": "human", "content": "x"}], "answer": "4"}, "turn of 'human'"),
    (PLAIN, {"prompt": "p"}, "no gold answer: 'answer' is missing or null"),
    (PLAIN, {"prompt": "p", "answer": None}, "no gold answer"),
    (PLAIN, {"prompt": "p", "answer": ""}, "no gold answer: it is empty"),
    (PLAIN, {"prompt": "p", "answer": "  "}, "no gold answer: it is empty"),
    (PLAIN, {"prompt": "p", "answer": "so\n####  "}, "no gold answer: it is empty"),
    (PLAIN, {"prompt": "p", "answer": "\\boxed{ }"}, "no gold answer: it is empty"),
    (PLAIN, {"prompt": "p", "answer": float("nan")}, "no gold answer: it is nan"),
    (PLAIN, {"prompt": "p", "answer": float("-inf")}, "no gold answer: it is -inf"),
    (PLAIN, {"prompt": "p", "answer": {"value": 4}}, "the gold answer is an object"),
    (PLAIN, {"prompt": "p", "answer": b"4"}, "the gold answer is of type bytes"),
    (PLAIN, {"prompt": "p", "answer": []}, "a list of 0"),
    (PLAIN, {"prompt": "p", "answer": ["4", "5"]}, "a list of 2"),
    (PLAIN, {"prompt": "p", "answer": [None]}, "no gold answer"),
    (PLAIN, {"prompt": "p", "answer": [["4"]]}, "the gold answer is a list"),
    (MATH, {"problem": "p", "solution": "It is 4."}, "neither \\boxed{} nor ####"),
    (MATH, {"problem": "p", "solution": "\\boxed{4"}, "neither \\boxed{} nor ####"),
    (MATH, {"problem": "p", "solution": ""}, "neither \\boxed{} nor ####"),
    (MESSAGES, {"messages": USER}, "the last message is not the assistant's"),
    (MESSAGES, {"messages": REPLY}, "nothing stands before the assistant's message"),
    (MESSAGES, {"messages": USER + REPLY + REPLY}, "ends with the turn of 'assistant'"),
    (MESSAGES, {"messages": [*USER, {"role": "assistant", "content": ""}]}, "it is empty"),
    (
        Layout("verl", "prompt", "reward_model.ground_truth"),
        {"prompt": "p", "reward_model": None},
        "'reward_model.ground_truth' is missing or null",
    ),
]


@pytest.mark.parametrize(("layout", "row", "reason"), REJECTS)
def test_a_row_that_cannot_be_used_is_rejected_with_its_reason(
    layout: Layout, row: dict[str, Any], reason: str
) -> None:
    with pytest.raises(RowRejected) as caught:
        read_question(row, layout)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
