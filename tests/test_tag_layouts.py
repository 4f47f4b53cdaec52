"""`curate tag`, `order` and `filter` on data as people have it: what is asked, said and written."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from probes.doctor import findings as doctor
from tests.tag_runs import Ran, additions, read_jsonl, run_curate, tag, write_jsonl
from tests.tiny import save_tiny_model

CALLS = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ m['content'] }} "
    "{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}{% endfor %}= "
)
PLAIN = "{% for m in messages %}{{ m['content'] }} {% endfor %}= "
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
CALLING = [
    {"role": "user", "content": "what is 1 + 1 ?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "2"},
]
CHATS = [
    {"prompt": [{"role": "user", "content": row["question"]}], "answer": row["answer"]}
    for row in additions(4)
]


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tag_rows(model: Path, rows: list[dict[str, Any]], *options: object) -> Ran:
    """Two rollouts of each row, into out.jsonl and the folder run."""
    write_jsonl(Path("a.jsonl"), rows)
    return tag_file(model, "a.jsonl", *options)


def tag_file(model: Path, dataset: str, *options: object) -> Ran:
    command = (dataset, "--model", model, "--min-rollouts", "2", "--gold-prefixes", "0")
    return tag(*command, "--out", "out.jsonl", "--run-dir", "run", *options)


def items() -> list[dict[str, Any]]:
    return pq.read_table("run/items.parquet").to_pylist()


def rejects() -> dict[int, str]:
    return {each["row"]: each["reason"] for each in read_jsonl(Path("run/rejects.jsonl"))}


def test_a_small_float_is_no_power_of_ten(tiny_model: Path) -> None:
    rows = [{"question": "what is 1 ?", "answer": 0.00001}, *additions(2)]
    assert tag_rows(tiny_model, rows).status == 0
    assert items()[0]["answer"] == "0.00001"


def test_choices_are_shown_and_said(tiny_model: Path) -> None:
    rows = [
        {"question": f"what is {n} ?", "choices": ["0", "one", "2", "3"], "answer": n}
        for n in range(4)
    ]
    ran = tag_rows(tiny_model, rows, "--verifier", "choice")
    assert ran.status == 0, ran.stderr
    (line,) = [line for line in ran.stderr.splitlines() if "choices" in line]
    assert line.startswith("warning: answers are positions or letters of the choices in 'choices'")
    assert [item["answer"] for item in items()] == ["A", "B", "C", "D"]
    assert all("A. 0\nB. one\nC. 2\nD. 3\n" in item["prompt"] for item in items())


def test_what_cannot_be_shown_is_rejected(tiny_model: Path) -> None:
    rows = [
        {"question": "<image> what is 1 ?", "answer": "1"},
        {"question": "what is 2 ?", "answer": "2", "images": ["a.png"]},
        *additions(2),
    ]
    assert tag_rows(tiny_model, rows).status == 0
    assert set(rejects()) == {1, 2}
    assert "<image>" in rejects()[1] and "'images'" in rejects()[2]


def test_a_template_renders_tools_and_calls(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "m", chat_template=CALLS)
    rows = [{"messages": CALLING, "tools": TOOLS, "answer": "2"}]
    assert tag_rows(model, rows).status == 0
    (item,) = items()
    assert item["prompt"].startswith(json.dumps(TOOLS, sort_keys=True))
    assert json.dumps([CALL], sort_keys=True) in item["prompt"]


@pytest.mark.parametrize(
    ("template", "row", "word"),
    [
        (None, {"messages": CALLING}, "there is no chat template"),
        (PLAIN, {"messages": CALLING}, "does not show its calls"),
        (PLAIN, {"messages": CALLING[:1], "tools": TOOLS}, "does not show its tools"),
    ],
)
def test_what_a_template_leaves_out_is_rejected(
    tmp_path: Path, template: str | None, row: dict[str, Any], word: str
) -> None:
    model = save_tiny_model(tmp_path / "m", chat_template=template)
    plain = {"messages": [{"role": "user", "content": "what is 2 ?"}], "answer": "2"}
    assert tag_rows(model, [{**row, "answer": "2"}, plain]).status == 0
    assert list(rejects()) == [1] and word in rejects()[1]


def test_conversations_go_through_csv(tiny_model: Path) -> None:
    assert tag_rows(tiny_model, CHATS, "--out", "out.csv").status == 0
    ids = [item["item_id"] for item in items()]
    ordered = run_curate("order", "run", "-o", "train.jsonl", "--format", "trl")
    assert ordered.status == 0, ordered.stderr
    prompts = [row["prompt"] for row in read_jsonl(Path("train.jsonl"))]
    assert sorted(map(json.dumps, prompts)) == sorted(json.dumps(row["prompt"]) for row in CHATS)
    again = tag_file(tiny_model, "out.csv", "--replace-columns", "--run-dir", "again")
    assert again.status == 0, again.stderr
    table = pq.read_table("again/items.parquet")
    assert table["item_id"].to_pylist() == ids


def test_what_csv_cannot_give_back_is_refused_before_sampling(tiny_model: Path) -> None:
    rows = [*additions(2), {"question": "what is 3 ?", "answer": [3]}]
    ran = tag_rows(tiny_model, rows, "--out", "out.csv", "--verifier", "exact")
    assert ran.status == 2
    assert ran.last_line.startswith("curate: row 3: in CSV, where all is text,")
    assert not Path("out.csv").exists() and not Path("run/rollouts").exists()
    assert tag_rows(tiny_model, rows, "--verifier", "exact").status == 0
    ran = run_curate("order", "out.jsonl", "-o", "ordered.csv", "--by", "interleave")
    assert ran.status == 2 and "row 3: in CSV" in ran.last_line
    assert run_curate("order", "out.jsonl", "-o", "o.jsonl", "--by", "interleave").status == 0


def test_string_views_are_ordered_and_filtered(tiny_model: Path) -> None:
    columns = {
        name: pa.array([row[name] for row in additions(6)], pa.string_view())
        for name in ("question", "answer")
    }
    pq.write_table(pa.table(columns), "a.parquet")
    ran = tag_file(tiny_model, "a.parquet", "--out", "out.parquet")
    assert ran.status == 0, ran.stderr
    for command in (("order", "--by", "interleave"), ("filter", "--max-pass-rate", "1")):
        ran = run_curate(command[0], "out.parquet", "-o", f"{command[0]}.parquet", *command[1:])
        assert ran.status == 0, ran.stderr
        found = pq.read_table(f"{command[0]}.parquet")["question"].to_pylist()
        assert sorted(found) == sorted(row["question"] for row in additions(6))


def test_repeated_rows_are_said(tiny_model: Path) -> None:
    ran = tag_rows(tiny_model, additions(2) * 50)
    assert "100 rows are 2 items: what repeats prompt and answer is probed once" in ran.stderr
    assert "rows are" not in tag_rows(tiny_model, additions(4), "--run-dir", "other").stderr


def test_a_folder_of_files_is_tagged(tiny_model: Path) -> None:
    for number, row in enumerate(additions(4)):
        write = Path("set/data") / f"train-{number:05d}-of-00004.parquet"
        write.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist([row]), write)
    ran = tag_file(tiny_model, "set", "--out", "out.parquet")
    assert ran.status == 0, ran.stderr
    table = pq.read_table("out.parquet")
    assert table["question"].to_pylist() == [row["question"] for row in additions(4)]
    assert [item["row"] for item in items()] == [1, 2, 3, 4]
    ran = tag_file(tiny_model, "set", "--out", "set/data/out.parquet")
    assert ran.status == 2 and "among the files of the dataset" in ran.last_line


def test_doctor_tells_how_a_dataset_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    # To import every library takes 20 s; tests/test_doctor.py does, once.
    torch_ = {"gpus": [], "dtype": "float32", "cpu_dtype": "float32", "cuda": None}
    monkeypatch.setattr(doctor, "look_at", lambda names: {"torch": torch_})
    rows = [
        {"problem": "p", "answer": "1", "llama8b_solve_rate": 0.5, "difficulty": 3},
        {"problem": "p", "answer": "proof", "llama8b_solve_rate": None, "difficulty": 1},
    ]
    ran = run_curate("doctor", "--json", "--dataset", write_jsonl(Path("a.jsonl"), rows))
    found = {each["about"]: each["text"] for each in json.loads(ran.stdout)["findings"]}
    assert ran.status == 0
    assert "layout problem/answer: prompt in problem, answer in answer" in found["dataset"]
    assert "1 of the first 2 rows would be rejected, first row 2" in found["rows"]
    assert "'llama8b_solve_rate': pass rates of another policy" in found["hints"]
    assert "'difficulty': whether more is harder is not known" in found["hints"]
    unknown = write_jsonl(Path("b.jsonl"), [{"text": "t"}])
    ran = run_curate("doctor", "--json", "--dataset", unknown)
    states = {each["about"]: each["state"] for each in json.loads(ran.stdout)["findings"]}
    assert ran.status == 1 and states["dataset"] == "blocks"
