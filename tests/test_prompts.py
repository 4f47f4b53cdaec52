"""Prompts as people have them: system messages, templates of their own, texts rendered before."""

import shutil
import tomllib
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, LlamaForCausalLM

from curate import tag as tag_function
from curate.datasets.rendered import rendered_opening
from curate.errors import UsageError
from curate.run.run import Run
from probes.models.chat import plain_ids, read_chat_template
from recipes.train.tagged_run import TaggedRun
from tests.tag_runs import Ran, additions, read_jsonl, run_curate, tag, write_jsonl
from tests.tiny import save_tiny_model

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "[INST] {{ m.content }} [/INST]{% endfor %}"
)
USERS_ALONE = "{% for m in messages if m.role == 'user' %}{{ m.content }} {% endfor %}= "
QUESTION = "what is 1 + 2 ?"
RENDERED = {
    CHATML: f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n",
    LLAMA: (
        f"<s><|start_header_id|>user<|end_header_id|>\n\n{QUESTION}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    MISTRAL: f"<s>[INST] {QUESTION} [/INST]",
}


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def with_template(template: str | None) -> Path:
    """The tiny model with a chat template, and `<s>` to begin a text with."""
    folder = save_tiny_model(Path("model"), chat_template=template)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.save_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    return folder


def tag_prompts(model: Path, prompts: list[Any], *options: object, run: str = "run") -> Ran:
    """One rollout of each prompt, all of which have the answer 3."""
    rows = [{"prompt": prompt, "answer": "3"} for prompt in prompts]
    write_jsonl(Path("a.jsonl"), rows)
    return tag(
        *("a.jsonl", "--model", model, "--min-rollouts", "1", "--gold-prefixes", "0"),
        *("--instruction", "auto", "--out", "out.jsonl", "--run-dir", run, *options),
    )


def prompts_of(run: str = "run") -> list[str]:
    return pq.read_table(f"{run}/items.parquet")["prompt"].to_pylist()


# --- System messages ---------------------------------------------------------------------------


def test_a_system_message_goes_before_prompts_that_have_none() -> None:
    own = [{"role": "system", "content": "be 1"}, {"role": "user", "content": "what ?"}]
    model = with_template(CHATML)
    ran = tag_prompts(model, [QUESTION, own], "--system", "be 0", "--instruction", "")
    assert ran.status == 0, ran.stderr
    first, second = prompts_of()
    assert first == f"<|im_start|>system\nbe 0<|im_end|>\n{RENDERED[CHATML]}"
    assert second.startswith("<|im_start|>system\nbe 1<|im_end|>\n<|im_start|>user\nwhat ?")
    assert "1 of 2 prompts have a system message of their own" in ran.stderr
    # A changed one is another run.
    again = tag_prompts(model, [QUESTION, own], "--system", "be 9", "--instruction", "")
    assert again.status == 2 and "system: 'be 0' -> 'be 9'" in again.last_line


def test_a_system_message_without_a_template_is_a_turn_of_plain_text(tiny_model: Path) -> None:
    assert tag_prompts(tiny_model, [QUESTION], "--system", "be 0", "--instruction", "").status == 0
    assert prompts_of() == [f"be 0\n\n{QUESTION}\n"]


@pytest.mark.parametrize(
    ("template", "said"),
    [(USERS_ALONE, "does not show the system message"), (MISTRAL, "roles must alternate")],
)
def test_a_template_that_knows_no_system_message_is_one_line(template: str, said: str) -> None:
    ran = tag_prompts(with_template(template), [QUESTION], "--system", "be 0")
    assert ran.status == 2 and said in ran.last_line
    assert not Path("run/rollouts").exists()


def test_trainers_get_the_system_message_too() -> None:
    ran = tag_prompts(with_template(CHATML), [QUESTION], "--system", "be 0", "--instruction", "")
    assert ran.status == 0, ran.stderr
    assert run_curate("order", "run", "-o", "train.jsonl", "--format", "trl").status == 0
    (row,) = read_jsonl(Path("train.jsonl"))
    assert row["prompt"] == [
        {"role": "system", "content": "be 0"},
        {"role": "user", "content": QUESTION},
    ]


# --- Templates and their variables -------------------------------------------------------------


def test_a_template_file_takes_the_place_of_the_tokenizers(small: Path) -> None:
    (small / "own.jinja").write_text(CHATML)
    model = with_template(USERS_ALONE)
    options = ("--chat-template", "own.jinja", "--instruction", "")
    assert tag_prompts(model, [QUESTION], *options).status == 0
    assert prompts_of() == [RENDERED[CHATML]]
    # The run keeps the template itself: the file may go, and what is rendered later is the same.
    assert tomllib.loads(Path("run/config.toml").read_text())["chat_template"] == CHATML
    held_out = write_jsonl(small / "held.jsonl", [{"prompt": QUESTION, "answer": "3"}])
    (small / "own.jinja").rename("moved.jinja")
    (found,) = TaggedRun(Path("run")).read_prompts(str(held_out), small / "held")
    (token_ids,) = pq.read_table("run/items.parquet")["prompt_token_ids"].to_pylist()
    assert list(found.prompt_token_ids) == token_ids
    again = tag_prompts(model, [QUESTION], "--chat-template", "moved.jinja", "--instruction", "")
    assert again.status == 0, again.stderr
    Path("moved.jinja").write_text(LLAMA)
    changed = tag_prompts(model, [QUESTION], "--chat-template", "moved.jinja", "--instruction", "")
    assert changed.status == 2 and "chat_template: '{% for" in changed.last_line
    assert len(changed.last_line) < 500
    ordered = run_curate("order", "run", "-o", "train.jsonl", "--format", "trl")
    assert "--chat-template" in ordered.stdout + ordered.stderr


def test_variables_reach_the_template(small: Path) -> None:
    model = with_template(CHATML)
    off = '{"enable_thinking": false}'
    options = ("--instruction", "", "--chat-template-kwargs", off)
    assert tag_prompts(model, [QUESTION], *options).status == 0
    assert prompts_of() == [RENDERED[CHATML] + "<think>\n\n</think>\n\n"]
    held_out = write_jsonl(small / "held.jsonl", [{"prompt": QUESTION, "answer": "3"}])
    (found,) = TaggedRun(Path("run")).read_prompts(str(held_out), small / "held")
    (token_ids,) = pq.read_table("run/items.parquet")["prompt_token_ids"].to_pylist()
    assert list(found.prompt_token_ids) == token_ids
    # In a configuration and in Python they may be a table.
    Path("set.toml").write_text("[chat_template_kwargs]\nenable_thinking = false\n")
    options = ("--instruction", "", "--config", "set.toml")
    assert tag_prompts(model, [QUESTION], *options).status == 0  # The same run.


def test_a_template_that_writes_the_day_has_that_of_the_run(small: Path) -> None:
    """As Llama 3's and gpt-oss' do; items that are rendered later have the same day."""
    clock = CHATML.replace("{{ m.role }}", "{{ m.role }} {{ strftime_now('%-d') }} ")
    model = with_template(clock)
    ran = tag_prompts(model, [QUESTION], "--instruction", "")
    assert ran.status == 0, ran.stderr
    today = str(date.today())
    assert f"the chat template writes the day: {today}" in ran.stderr
    assert Run.open(Path("run")).manifest["date"] == today
    ids = {}
    for day in ("2026-01-03", "2026-01-04"):
        options = ("--instruction", "", "--date", day)
        assert tag_prompts(model, [QUESTION], *options, run=day).status == 0
        (prompt,) = prompts_of(day)
        assert f"user {day[-1]} " in prompt
        ((ids[day]),) = pq.read_table(f"{day}/items.parquet")["prompt_token_ids"].to_pylist()
    assert ids["2026-01-03"] != ids["2026-01-04"]
    manifest = small / "run/manifest.json"
    manifest.write_text(manifest.read_text().replace(f'"date": "{today}"', '"date": "2026-01-04"'))
    held_out = write_jsonl(small / "held.jsonl", [{"prompt": QUESTION, "answer": "3"}])
    (found,) = TaggedRun(Path("run")).read_prompts(str(held_out), small / "held")
    assert list(found.prompt_token_ids) == ids["2026-01-04"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--date", "31.1.2026"), "--date is '31.1.2026'; it must be a day as 2026-01-31"),
        (("--chat-template", "nowhere.jinja"), "nowhere.jinja cannot be read: No such file"),
        (("--chat-template", "{% for m in messages %}"), "is no Jinja template"),
        (("--chat-template", "{{ question }}"), "shows no messages"),
        (("--chat-template-kwargs", "enable"), "which is no JSON"),
        (("--chat-template-kwargs", "[1]"), "must be a JSON object"),
        (("--chat-template-kwargs", '{"tools": []}'), "curate sets tools itself"),
        (("--chat-template-kwargs", '{"enable_thinkin": 1}'), "did you mean 'enable_thinking'"),
        (("--top-p", "1.5"), "--top-p is 1.5; it must be at most 1"),
        (("--top-p", "0"), "--top-p is 0.0; it must be a number above 0"),
        (("--min-p", "2"), "--min-p is 2; it must be at most 1"),
    ],
)
def test_a_wrong_one_is_one_line(options: tuple[str, ...], said: str) -> None:
    ran = tag_prompts(with_template(CHATML), [QUESTION], *options)
    assert ran.status == 2 and said in ran.last_line, ran.stderr
    assert "Traceback" not in ran.stderr and not Path("run/rollouts").exists()


def test_variables_need_a_template(tiny_model: Path) -> None:
    ran = tag_prompts(tiny_model, [QUESTION], "--chat-template-kwargs", '{"a": 1}')
    assert ran.status == 2 and "the model has no chat template" in ran.last_line


def test_a_template_may_mark_what_the_assistant_writes() -> None:
    """transformers' own tag, which plain Jinja does not know."""
    text = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    assert read_chat_template(text) == text


# --- Rendered before ---------------------------------------------------------------------------


@pytest.mark.parametrize("template", RENDERED, ids=["ChatML", "Llama", "Mistral"])
def test_a_rendered_prompt_is_taken_as_it_is(template: str) -> None:
    model = with_template(template)
    ran = tag_prompts(model, [RENDERED[template], "what is 3 ?"], "--instruction", "auto")
    assert ran.status == 0, ran.stderr
    first, second = prompts_of()
    assert first == RENDERED[template]
    assert second != "what is 3 ?" and "boxed" in second
    (line,) = [line for line in ran.stderr.splitlines() if "rendered already" in line]
    assert line.startswith("warning: 1 of 2 prompts are rendered already (they begin with ")
    # A trainer would render it again.
    ordered = run_curate("order", "run", "-o", "train.jsonl", "--format", "trl")
    assert ordered.status == 2 and "row 1: its prompt is rendered already" in ordered.last_line


def test_a_prompt_of_another_template_is_refused() -> None:
    ran = tag_prompts(with_template(CHATML), [RENDERED[LLAMA], RENDERED[MISTRAL], QUESTION])
    assert ran.status == 0, ran.stderr
    reasons = {each["row"]: each["reason"] for each in read_jsonl(Path("run/rejects.jsonl"))}
    assert set(reasons) == {1, 2}
    assert "by another template than the model's: it begins with '<|start_header" in reasons[1]
    assert "it begins with '[INST]'" in reasons[2]


def test_a_rendered_prompt_must_end_where_the_model_begins() -> None:
    closed = RENDERED[CHATML] + "3<|im_end|>\n<|im_start|>user\nwhy ?<|im_end|>\n"
    ran = tag_prompts(with_template(CHATML), [f"<|im_start|>user\n{QUESTION}", closed])
    assert ran.status == 2
    assert "does not end where the model's turn begins, with '<|im_start|>assi" in ran.last_line


def test_a_base_model_takes_a_rendered_prompt_without_another_end(tiny_model: Path) -> None:
    text = "<|user|>\nwhat is 1 + 2 ?\n<|assistant|>\n"
    ran = tag_prompts(tiny_model, [text])
    assert ran.status == 0 and prompts_of() == [text]
    assert "1 of 1 prompts are rendered already" in ran.stderr


@pytest.mark.parametrize(
    ("text", "opening"),
    [
        ("<s>[INST] What is 2 + 2? [/INST]", "[INST]"),
        ("\n<|im_start|>system\nYou are", "<|im_start|>"),
        ("<bos><start_of_turn>user\nHi", "<start_of_turn>"),
        ("Write <|im_start|> in Unicode.", ""),
        ("<html> is a tag. Name another one.", ""),
        ("[1, 2] + [3]?", ""),
        ("", ""),
    ],
)
def test_rendered_prompts_are_told_by_how_they_begin(text: str, opening: str) -> None:
    assert rendered_opening(text) == opening


# --- Tokens ------------------------------------------------------------------------------------


def appending(folder: Path, template: str) -> Path:
    """The tiny model with a tokenizer that adds special tokens as `template` says."""
    save_tiny_model(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=template, special_tokens=[("<eos>", 1), ("<pad>", 0)]
    )
    tokenizer.save_pretrained(folder)
    return folder


def test_an_end_token_that_the_tokenizer_appends_is_dropped() -> None:
    model = appending(Path("model"), "<pad> $A <eos>")
    tokenizer = AutoTokenizer.from_pretrained(model)
    whole = tokenizer(QUESTION)["input_ids"]
    assert whole[-1] == 1  # Else there is nothing to drop.
    assert plain_ids(tokenizer, QUESTION) == whole[:-1] and whole[0] == 0
    ran = tag_prompts(model, [QUESTION], "--prompt-end", "", "--instruction", "")
    assert ran.status == 0, ran.stderr
    (token_ids,) = pq.read_table("run/items.parquet")["prompt_token_ids"].to_pylist()
    assert token_ids == whole[:-1]


def test_a_token_without_an_embedding_is_one_line() -> None:
    model = save_tiny_model(Path("model"), chat_template=CHATML)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.save_pretrained(model)
    ran = tag_prompts(model, [QUESTION])
    assert ran.status == 2
    assert "has the token '<|im_start|>' (id 18), and the model has embeddings of 18" in (
        ran.last_line
    )
    assert not Path("run/rollouts").exists()


def test_from_python_variables_are_a_dictionary(small: Path) -> None:
    with pytest.raises(UsageError, match="reads no variable 'thinking'"):
        shutil.copy(write_jsonl(small / "b.jsonl", additions(2)), "a.jsonl")
        tag_function(
            "a.jsonl",
            model=str(with_template(CHATML)),
            chat_template_kwargs={"thinking": False},
            run_dir="python",
        )
