"""Rows laid out as the datasets people train on are: recognised without options, read right.

The columns and their nesting are those of the datasets' cards; the content is our own.
"""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.datasets.fields import RowRejected
from curate.datasets.golds import why_no_answer
from curate.datasets.layouts import (
    INSTRUCTION,
    Question,
    choices_line,
    choose_layout,
    instruct,
    read_question,
    recognise_layout,
)
from curate.datasets.rates import rates_line, told_rates
from curate.datasets.source import open_source

ASKED = "What is 6 times 7?"
USER = [{"role": "user", "content": ASKED}]
DAPO = (
    "Solve the following math problem step by step. The last line of your response should be of "
    "the form Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n"
    f'{ASKED}\n\nRemember to put your answer on its own line after "Answer:".'
)
TESTS = json.dumps({"inputs": ["6 7\n"], "outputs": ["42\n"]})


def verl(prompt: Any, truth: Any, **more: Any) -> dict[str, Any]:
    return {
        "data_source": "some",
        "prompt": prompt,
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": truth},
        "extra_info": {"index": 0, "split": "train"},
        **more,
    }


# By dataset: a row, and the layout that it is.
LAYOUTS: dict[str, tuple[dict[str, Any], str]] = {
    "open-instruct": (
        {
            "messages": USER,
            "ground_truth": "42",
            "dataset": "gsm8k",
            "constraint_type": None,
            "constraint": None,
        },
        "messages",
    ),
    "open-instruct, lists of one": (
        {"messages": USER, "ground_truth": ["42"], "dataset": ["math"]},
        "messages",
    ),
    "OpenR1-Math-220k": (
        {
            "problem": ASKED,
            "solution": "Six sevens are 42.",
            "answer": "42",
            "problem_type": "Algebra",
            "question_type": "math-word-problem",
            "source": "olympiads",
            "uuid": "0",
            "is_reasoning_complete": [True, False],
            "generations": ["<think>6 * 7</think> \\boxed{42}", "41"],
            "correctness_math_verify": [True, False],
            "correctness_count": 1,
            "messages": [*USER, {"role": "assistant", "content": "\\boxed{41}"}],
        },
        "problem/answer",
    ),
    "DAPO-Math-17k": (
        verl([{"role": "user", "content": DAPO}], "42", data_source="math_dapo", ability="MATH"),
        "verl",
    ),
    "DAPO-Math-17k-Processed": (
        {
            **verl(ASKED, "42", data_source="math_dapo"),
            "solution": "42",
            "source_prompt": [{"role": "user", "content": DAPO}],
        },
        "verl",
    ),
    "Eurus-2": (
        verl([{"role": "system", "content": "[ASSESS]"}, *USER], "42", data_source="numina_cn_k12"),
        "verl",
    ),
    "Skywork-OR1": (
        verl(
            USER,
            '["42"]',
            data_source="train-math-deepscaler",
            extra_info={"index": 0, "model_difficulty": {"DeepSeek-R1-Distill-Qwen-7B": 3}},
        ),
        "verl",
    ),
    "SYNTHETIC-1": (
        {
            "problem_id": "vfm_0",
            "source": "numina",
            "task_type": "verifiable_math",
            "prompt": ASKED,
            "gold_standard_solution": "Six sevens are \\boxed{41}, no: 42.",
            "verification_info": "{'ground_truth': '42'}",
            "metadata": "{}",
        },
        "prime-rl",
    ),
    "SYNTHETIC-2": (
        {
            "problem_id": "0",
            "task_type": "verifiable_math",
            "prompt": ASKED,
            "verification_info": json.dumps({"ground_truth": "42"}),
            "metadata": "{}",
        },
        "prime-rl",
    ),
    "INTELLECT-2": (
        {
            "problem_id": "0",
            "task_type": "verifiable_math",
            "prompt": ASKED,
            "verification_info": json.dumps({"ground_truth": 42}),
            "metadata": "{}",
            "solve_rate_qwen_r1_distill_7b": 0.25,
        },
        "prime-rl",
    ),
    "prime-rl environments": (
        {"question": ASKED, "answer": "42", "info": "{}", "task": "math"},
        "question/answer",
    ),
    "Big-Math": (
        {
            "problem": ASKED,
            "answer": "42",
            "source": "cn_k12",
            "domain": ["Mathematics -> Algebra"],
            "llama8b_solve_rate": 0.5,
        },
        "problem/answer",
    ),
    "DeepScaleR": (
        {"problem": ASKED, "answer": "42", "solution": "Six sevens are 42."},
        "problem/answer",
    ),
    "Open-Reasoner-Zero": (
        {
            "0": {"from": "human", "value": ASKED},
            "1": {"from": "assistant", "ground_truth": {"value": "42", "pass_at_n": None}},
        },
        "Open-Reasoner-Zero",
    ),
    "OpenMathReasoning": (
        {
            "expected_answer": "42",
            "problem_type": "has_answer_extracted",
            "problem_source": "aops",
            "generation_model": "x",
            "pass_rate_72b_tir": "0.5",
            "problem": ASKED,
            "generated_solution": "41",
            "inference_mode": "cot",
        },
        "problem/expected_answer",
    ),
    "AIME": (
        {"ID": "2024-I-1", "Problem": ASKED, "Solution": "Six sevens.", "Answer": 42},
        "Problem/Answer",
    ),
    "ShareGPT": (
        {
            "system": "Be brief.",
            "conversations": [
                {"from": "human", "value": ASKED},
                {"from": "gpt", "value": "\\boxed{42}"},
            ],
        },
        "messages",
    ),
    "NuminaMath-CoT": (
        {
            "source": "cn_k12",
            "problem": ASKED,
            "solution": "Six sevens are $\\boxed{42}$.",
            "messages": [*USER, {"role": "assistant", "content": "Six sevens are $\\boxed{42}$."}],
        },
        "problem/solution",
    ),
    "NuminaMath-1.5": (
        {
            "problem": ASKED,
            "solution": "Six sevens.",
            "answer": "42",
            "problem_type": "Algebra",
            "question_type": "math-word-problem",
            "problem_is_valid": "Yes",
            "solution_is_valid": "Yes",
            "source": "cn_k12",
            "synthetic": False,
        },
        "problem/answer",
    ),
}


def read(row: dict[str, Any], *others: dict[str, Any]) -> Question:
    return read_question(row, recognise_layout([row, *others]))


@pytest.mark.parametrize("dataset", LAYOUTS)
def test_a_published_layout_is_recognised_without_options(dataset: str) -> None:
    row, name = LAYOUTS[dataset]
    assert recognise_layout([row]).name == name
    question = read(row)
    assert question.answer == "42"
    assert ASKED in question.messages[-1][1]


@pytest.mark.parametrize("dataset", LAYOUTS)
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_it_is_the_same_item_in_either_format(tmp_path: Path, dataset: str, kind: str) -> None:
    row, _ = LAYOUTS[dataset]
    path = tmp_path / f"a.{kind}"
    if kind == "jsonl":
        path.write_text(json.dumps(row) + "\n")
    else:
        pq.write_table(pa.Table.from_pylist([row]), path)
    source = open_source(path)
    (value,) = (each.value for each in source.rows())
    assert value is not None
    assert read_question(value, choose_layout(source, "", "")).item_id == read(row).item_id


def test_sharegpt_s_system_prompt_is_a_turn() -> None:
    row, _ = LAYOUTS["ShareGPT"]
    assert read(row).messages == (("system", "Be brief."), ("user", ASKED))
    assert read({**row, "system": None}).messages == (("user", ASKED),)


def test_dapos_rows_are_one_item_and_keep_their_own_instruction() -> None:
    row, _ = LAYOUTS["DAPO-Math-17k"]
    again = {**row, "extra_info": {"index": 1}}
    assert read(row).item_id == read(again).item_id
    assert instruct(read(row), "auto") == [{"role": "user", "content": DAPO}]


@pytest.mark.parametrize(
    "asked",
    [DAPO, f"{ASKED}\nPresent the answer as: Final Answer: \\boxed{{your_answer}}."],
)
def test_plain_text_that_asks_for_a_form_is_not_asked_for_another(asked: str) -> None:
    question = read({"prompt": asked, "answer": "42"})
    assert question.is_plain_text
    assert instruct(question, "auto") == [{"role": "user", "content": asked}]
    assert instruct(question, "Think.")[0]["content"] == f"{asked} Think."
    plain = read({"prompt": ASKED, "answer": "42"})
    assert instruct(plain, "auto")[0]["content"] == f"{ASKED} {INSTRUCTION}"


def test_orz_s_file_is_a_list_of_lists(tmp_path: Path) -> None:
    pairs = [
        [
            {"from": "human", "value": f"What is {n} + {n}?"},
            {"from": "assistant", "ground_truth": {"value": str(2 * n)}},
        ]
        for n in range(3)
    ]
    path = tmp_path / "orz.json"
    path.write_text(json.dumps(pairs))
    source = open_source(path)
    layout = choose_layout(source, "", "")
    questions = [read_question(row.value or {}, layout) for row in source.rows()]
    assert [question.answer for question in questions] == ["0", "2", "4"]
    assert questions[1].messages == (("user", "What is 1 + 1?"),)
    assert [json.loads(row.text or "") for row in source.rows()][2]["1"] == pairs[2][1]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (verl(USER, '["1", "2"]'), "a list of 2"),
        ({**LAYOUTS["SYNTHETIC-2"][0], "verification_info": "{}"}, "'verification_info.ground"),
        ({**LAYOUTS["SYNTHETIC-2"][0], "verification_info": "[" * 100_000}, "verification_info"),
        ({**LAYOUTS["SYNTHETIC-2"][0], "verification_info": "{" + "-" * 60_000}, "verification"),
        ({**LAYOUTS["SYNTHETIC-2"][0], "verification_info": "{'a': __import__('os')}"}, "missing"),
    ],
)
def test_what_has_not_one_answer_says_so(row: dict[str, Any], reason: str) -> None:
    layout = recognise_layout([row, LAYOUTS["SYNTHETIC-2"][0], LAYOUTS["Eurus-2"][0]][:2])
    if "reward_model" in row:
        layout = recognise_layout([row])
    with pytest.raises(RowRejected, match=reason.replace("[", r"\[")):
        read_question(row, layout)


@pytest.mark.parametrize(
    ("gold", "word"),
    [
        ("proof", "'proof'"),
        ("notfound", "'notfound'"),
        (TESTS, "tests of a program"),
        (json.dumps({"fn_name": "f", "inputs": [[1]], "outputs": [2]}), "tests of a program"),
        (json.dumps([{"input": "1", "output": "2", "fn_name": "f"}]), "tests of a program"),
        (json.dumps(["assert f(1) == 2"]), "tests of a program"),
        ("{'language': 'python', 'test_cases': []}", "tests of a program"),
        (json.dumps({"func_name": "validate_lowercase", "N": None}), "wording"),
        ("[{'instruction_id': ['keywords:x'], 'kwargs': [None]}]", "wording"),
    ],
)
def test_a_gold_that_is_no_answer_is_told_from_one(gold: str, word: str) -> None:
    assert word in str(why_no_answer(gold))


@pytest.mark.parametrize(
    "gold", ["42", "[1, 2]", "{1, 2}", "\\{1\\}", "[", "{}", "[[1]]", "a proof"]
)
def test_an_answer_is_one(gold: str) -> None:
    assert why_no_answer(gold) is None


# --- Multiple choice -----------------------------------------------------------------------------

CITIES = ["Rome", "Oslo", "Bern", "Lima"]
SHOWN = "Which city is Norway's?\n\nA. Rome\nB. Oslo\nC. Bern\nD. Lima"
WITH_CHOICES = f"{SHOWN}\n\nAnswer with the letter of one choice."
NORWAY = "Which city is Norway's?"
CHOICES: dict[str, tuple[dict[str, Any], str]] = {
    "MMLU": (
        {"question": NORWAY, "subject": "geography", "choices": CITIES, "answer": 1},
        "question/answer",
    ),
    "MMLU-Pro": (
        {
            "question_id": 1,
            "question": NORWAY,
            "options": CITIES,
            "answer": "B",
            "answer_index": 1,
            "cot_content": "",
            "category": "other",
            "src": "x",
        },
        "question/answer",
    ),
    "ARC": (
        {
            "id": "0",
            "question": NORWAY,
            "choices": {"text": CITIES, "label": ["1", "2", "3", "4"]},
            "answerKey": "2",
        },
        "question/answerKey",
    ),
    "C-Eval": (
        {"id": 0, "question": NORWAY, **dict(zip("ABCD", CITIES, strict=True)), "answer": "B"},
        "question/answer",
    ),
    "MedQA": (
        {
            "question": NORWAY,
            "answer": "B",
            "options": dict(zip("ABCD", CITIES, strict=True)),
            "meta_info": "",
        },
        "question/answer",
    ),
    "text of CSV": (
        {"question": NORWAY, "choices": json.dumps(CITIES), "answer": "1"},
        "question/answer",
    ),
}


@pytest.mark.parametrize("dataset", CHOICES)
def test_choices_are_shown_and_the_gold_is_the_letter(dataset: str) -> None:
    row, name = CHOICES[dataset]
    layout = recognise_layout([row])
    assert layout.name == name
    question = read_question(row, layout)
    assert question.answer == "B"
    assert question.messages == (("user", WITH_CHOICES),)
    assert repr(layout.choices) in choices_line(layout, "math")
    assert "--verifier choice" in choices_line(layout, "math")
    assert "--verifier" not in choices_line(layout, "choice")


def test_gpqa_s_right_answer_has_a_place_of_its_own_in_each_row() -> None:
    rows = [
        {
            "Question": f"Which is {n}?",
            "Correct Answer": f" right {n}\n",
            "Incorrect Answer 1": "one",
            "Incorrect Answer 2": "two",
            "Incorrect Answer 3": "three",
            "Explanation": "It is.",
            "High-level domain": "Physics",
        }
        for n in range(40)
    ]
    layout = recognise_layout(rows)
    assert layout.name == "GPQA"
    golds = set()
    for n, row in enumerate(rows):
        question = read_question(row, layout)
        assert f"\n{question.answer}. right {n}\n" in question.messages[-1][1]
        assert question == read_question(dict(row), layout)
        golds.add(question.answer)
    assert golds == set("ABCD")


def test_positions_may_count_from_one() -> None:
    rows = [{"question": NORWAY, "choices": CITIES, "answer": n} for n in (1, 2, 4)]
    layout = recognise_layout(rows)
    assert [read_question(row, layout).answer for row in rows] == ["A", "B", "D"]
    assert "count from 1" in choices_line(layout, "choice")
    with pytest.raises(RowRejected, match="choice 5 of 4"):
        read_question({**rows[0], "answer": 5}, layout)


def test_choices_that_the_prompt_shows_are_not_shown_twice() -> None:
    row = {"question": SHOWN, "choices": CITIES, "answer": 1}
    assert read(row) == Question((("user", SHOWN),), "B")
    letter = {**row, "answer": "B"}
    assert read(letter) == Question((("user", SHOWN),), "B")
    numbered = {"question": f"{NORWAY} 1) Rome 2) Oslo 3) Bern 4) Lima", "choices": CITIES}
    assert read({**numbered, "answer": 2}).answer == "2"


@pytest.mark.parametrize(
    "row",
    [
        {"question": NORWAY, "choices": CITIES, "answer": "Oslo"},
        {"question": "What is 1 + 1?", "options": ["1", "2", "3"], "answer": 2},
        {"question": NORWAY, "choices": ["Oslo"], "answer": "B"},
        {"question": NORWAY, "choices": None, "answer": "B"},
        {"question": NORWAY, "A": "a column", "answer": "B"},
        {"question": NORWAY, "answer": 1},
    ],
)
def test_an_answer_of_its_own_leaves_the_prompt_alone(row: dict[str, Any]) -> None:
    assert read(row) == Question((("user", row["question"]),), str(row["answer"]))


# --- Tools and images ----------------------------------------------------------------------------

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 6}}}
CALLING = [
    *USER,
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "42", "name": "add"},
]


def test_tools_and_calls_are_part_of_the_item() -> None:
    question = read({"messages": CALLING, "tools": TOOLS, "answer": "42"})
    assert question.tools == TOOLS
    assert question.conversation() == [
        USER[0],
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "42", "name": "add"},
    ]
    others = [
        {"messages": CALLING, "answer": "42"},
        {"messages": CALLING, "tools": [], "answer": "42"},
        {"messages": USER, "tools": TOOLS, "answer": "42"},
        {"messages": USER, "answer": "42"},
    ]
    ids = {read(row).item_id for row in others}
    assert len(ids) == 3 and question.item_id not in ids
    assert read(others[3]).tools is None
    as_text = {"messages": CALLING, "tools": json.dumps(TOOLS), "answer": "42"}
    assert read(as_text).item_id == question.item_id


def test_nulls_that_arrow_fills_in_make_no_other_item(tmp_path: Path) -> None:
    other = {"type": "function", "function": {"name": "f", "parameters": {"y": {"type": "int"}}}}
    adds = {"type": "function", "function": {"name": "add", "parameters": {"x": {"type": "int"}}}}
    rows = [
        {"messages": CALLING, "tools": [adds], "answer": "42"},
        {"messages": USER, "tools": [other], "answer": "42"},
        {"messages": USER, "tools": None, "answer": "42"},
    ]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    source = open_source(path)
    layout = choose_layout(source, "", "")
    ids = [read_question(row.value or {}, layout).item_id for row in source.rows()]
    assert ids == [read(row).item_id for row in rows]


@pytest.mark.parametrize(("tools", "word"), [("{", "no JSON"), (["add"], "no list of objects")])
def test_tools_that_are_none_are_a_reason(tools: Any, word: str) -> None:
    with pytest.raises(RowRejected, match=word):
        read({"messages": USER, "tools": tools, "answer": "42"})


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"prompt": "<image>How many?"}, "'<image>'"),
        ({"prompt": "<image_1> How many?"}, "'<image_1>'"),
        ({"prompt": "<|vision_start|><|image_pad|> How many?"}, "vision_start"),
        ({"images": [{"bytes": b"x", "path": None}]}, "'images'"),
        ({"image": "/9j/4AAQ"}, "'image'"),
        ({"decoded_image": {"bytes": None, "path": "a.png"}}, "'decoded_image'"),
        ({"video": "a.mp4"}, "'video'"),
    ],
)
def test_what_a_policy_of_text_cannot_see_is_a_reason(more: dict[str, Any], word: str) -> None:
    with pytest.raises(RowRejected, match=word):
        read({"prompt": "How many?", "answer": "42", **more})


@pytest.mark.parametrize(
    "more",
    [
        {"images": []},
        {"image": None},
        {"image": ""},
        {"images": [{"bytes": None, "path": None}]},
        {"image_count": 3, "imagery": "vivid", "picture": "A cat on a mat."},
        {"prompt": "Close <image><src/></image> in XML."},
    ],
)
def test_what_holds_no_image_is_read(more: dict[str, Any]) -> None:
    assert read({"prompt": "How many?", "answer": "42", **more}).answer == "42"


@pytest.mark.parametrize(
    ("row", "rates", "difficulties"),
    [
        ({"llama8b_solve_rate": 0.5}, ["llama8b_solve_rate"], []),
        ({"solve_rate_qwen_r1_distill_7b": 0.5}, ["solve_rate_qwen_r1_distill_7b"], []),
        ({"pass_rate_72b_tir": "0.5", "passrate": 1}, ["pass_rate_72b_tir", "passrate"], []),
        ({"pass_at_8": 1.0, "correctness_count": 2}, ["pass_at_8", "correctness_count"], []),
        ({"difficulty": 5.5, "level": "Level 4"}, [], ["difficulty", "level"]),
        (
            {"extra_info": {"model_difficulty": {"x": 3}, "index": 0}},
            [],
            ["extra_info.model_difficulty"],
        ),
        ({"pass_rate": None, "difficulty": None}, [], []),
        ({"source": "x", "rate": 1, "answer": "0.5", "levels": 2, "bypass_ratelimit": 1}, [], []),
    ],
)
def test_columns_of_how_hard_it_was_to_others_are_known(
    row: dict[str, Any], rates: list[str], difficulties: list[str]
) -> None:
    assert told_rates([row]) == (rates, difficulties)
    line = rates_line(rates, difficulties)
    assert all(repr(name) in line for name in (*rates, *difficulties))
    assert ("another policy" in line) == bool(rates)
    assert ("not known" in line) == bool(difficulties)


def test_a_tagged_file_s_own_pass_rate_is_not_another_s() -> None:
    assert told_rates([{"pass_rate": 0.5}], {"pass_rate"}) == ([], [])


def test_a_conversation_as_json_text_is_one() -> None:
    assert read({"prompt": json.dumps(USER), "answer": "42"}) == Question(
        (tuple(USER[0].values()),), "42"
    )
    for text in ("[1, 2]", '[{"role": 1}', '["role"]', json.dumps([{"role": "user"}]), "[]"):
        assert read({"prompt": text, "answer": "42"}).messages == (("user", text),)
