"""Bad input through `curate tag`: one clear line and exit 2, or the bad rows rejected.

Whatever comes in, there is no traceback, and nothing is sampled before the input is known to be
good.
"""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file

from tests.tag_runs import Ran, additions, read_jsonl, run_curate, tag, write_jsonl

GOOD = '{"question": "what is 1 + 2 ?", "answer": "3"}\n'


@pytest.fixture(autouse=True)
def current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder with one good dataset, and no Hub to ask."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    Path("good.jsonl").write_text(GOOD)
    return tmp_path


def refused(ran: Ran, *words: str) -> None:
    """One line `curate: …` with these words comes last, and nothing was sampled."""
    assert ran.status == 2, ran.stderr
    assert ran.last_line.startswith("curate: "), ran.stderr
    assert [line for line in ran.stderr.splitlines() if line.startswith("curate:")] == [
        ran.last_line
    ]
    assert "Traceback" not in ran.stderr and ran.stdout == ""
    for word in words:
        assert word in ran.last_line, ran.last_line
    assert not list(Path().rglob("rollouts"))
    assert not list(Path().rglob("*.tagged.*"))


# --- Files that cannot be read at all ----------------------------------------------------------


def _text(name: str, content: str | bytes) -> Callable[[], str]:
    def make() -> str:
        data = content.encode() if isinstance(content, str) else content
        Path(name).write_bytes(data)
        return name

    return make


def _folder() -> str:
    Path("folder").mkdir()
    return "folder"


def _broken_parquet() -> str:
    pq.write_table(pa.table({"question": ["what"] * 1000, "answer": [1] * 1000}), "cut.parquet")
    whole = Path("cut.parquet").read_bytes()
    Path("cut.parquet").write_bytes(whole[: len(whole) // 2])
    return "cut.parquet"


FILES: dict[str, tuple[Callable[[], str], str]] = {
    "missing": (lambda: "nowhere.jsonl", "no such file: 'nowhere.jsonl'"),
    "missing without suffix": (lambda: "nowhere/at all", "no such file"),
    "no dataset of that name": (lambda: "nobody/nothing", "no file 'nobody/nothing' here"),
    "empty": (_text("empty.jsonl", ""), "empty.jsonl is empty"),
    "blank lines": (_text("blank.jsonl", "\n \n\n"), "no rows"),
    "a folder": (_folder, "not a readable dataset folder"),
    "a device": (lambda: "/dev/null", "not a regular file"),
    "unknown suffix": (_text("rows.xlsx", "PK\3\4"), "unknown format '.xlsx'"),
    "no suffix": (_text("rows", GOOD), "unknown format"),
    "binary junk": (_text("junk.jsonl", bytes(range(256)) * 4), "no row can be read as jsonl"),
    "UTF-32": (_text("wide.jsonl", GOOD.encode("utf-32")), "invalid UTF-8"),
    "prose": (_text("prose.jsonl", "Once upon a time\nthere was\n"), "not JSON"),
    "numbers": (_text("numbers.jsonl", "1\n2\n"), "not a JSON object but a number"),
    "cut array": (_text("cut.json", f"[{GOOD.strip()}, {{"), "not a whole JSON array"),
    "array with more after it": (_text("more.json", f"[{GOOD}] ]"), "not a whole JSON array"),
    "array of nothing": (_text("none.json", "[]"), "no rows"),
    "one object over lines": (_text("one.json", json.dumps({"a": 1}, indent=1)), "neither a JSON"),
    "cut gzip": (_text("cut.jsonl.gz", gzip.compress(GOOD.encode())[:-9]), "not a whole gzip"),
    "no gzip": (_text("no.jsonl.gz", GOOD), "not a whole gzip"),
    "header only": (_text("header.csv", "question,answer\n"), "no rows"),
    "header twice": (_text("twice.csv", "question,question\na,b\n"), "more than once"),
    "no Parquet": (_text("no.parquet", b"PAR1 but not really PAR1"), "not a readable Parquet"),
    "cut Parquet": (_broken_parquet, "not a readable Parquet"),
    "wrong columns": (_text("wrong.jsonl", '{"text": "a", "label": 1}\n'), "--prompt-field"),
    "no answer": (_text("open.jsonl", '{"question": "what ?"}\n'), "--answer-field"),
    "all rows bad": (
        _text("bad.jsonl", '{"question": "", "answer": 1}\n{"question": "what ?", "answer": ""}\n'),
        "none of its 2 rows can be used; first: empty prompt",
    ),
    "all too long": (
        _text("long.jsonl", json.dumps({"question": "what " * 300, "answer": 1})),
        "exceed the model's context of 256",
    ),
    "tagged already": (_text("t.jsonl", '{"question": "a", "answer": 1, "pass_rate": 1}\n'),
                       "--replace-columns"),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_cannot_be_used_is_one_line(case: str, tiny_model: Path) -> None:
    make, words = FILES[case]
    refused(tag(make(), "--model", tiny_model), words)


# --- Rows that cannot be used, among good ones ----------------------------------------------------

BAD_ROWS = {
    '{"question": "what': "not JSON",
    '["what is 3 ?", "3"]': "not a JSON object but an array",
    "null": "not a JSON object but null",
    "{}": "no prompt",
    '{"question": null, "answer": "3"}': "no prompt",
    '{"question": "", "answer": "3"}': "empty prompt",
    '{"question": "  \\n ", "answer": "3"}': "empty prompt",
    '{"question": 3, "answer": "3"}': "the prompt is a number",
    '{"question": [], "answer": "3"}': "empty prompt",
    '{"question": [{"role": "user"}], "answer": "3"}': "no text as its content",
    '{"question": [{"content": "what ?"}], "answer": "3"}': "has no role",
    '{"question": [{"role": "assistant", "content": "3"}], "answer": "3"}': "ends with the turn",
    '{"question": "what is 3 ?"}': "no gold answer",
    '{"question": "what is 3 ?", "answer": null}': "no gold answer",
    '{"question": "what is 3 ?", "answer": " "}': "no gold answer",
    '{"question": "what is 3 ?", "answer": NaN}': "no gold answer",
    '{"question": "what is 3 ?", "answer": true}': "numeric verifier",
    '{"question": "what is 3 ?", "answer": {"value": 3}}': "the gold answer is an object",
    '{"question": "what is 3 ?", "answer": ["3", "4"]}': "a list of 2",
    '{"question": "what is 3 ?", "answer": "a few"}': "numeric verifier",
    '{"question": "what is \\ud800 ?", "answer": "3"}': "surrogate",
    json.dumps({"question": "what " * 250, "answer": "3"}): "exceed the model's context",
    '{"question": "what is 3 ?", "answer": ' + "9" * 5000 + "}": "a number is too long",
    '{"a":' * 200 + "1" + "}" * 200: "nested too deep",
}


@pytest.fixture(scope="module")
def mixed(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The run folder and the tagged file of a dataset in which every other row is bad."""
    folder = tmp_path_factory.mktemp("mixed")
    good = additions(len(BAD_ROWS))
    rows = [row for pair in zip(good, BAD_ROWS, strict=True) for row in pair]
    ran = tag(
        *(write_jsonl(folder / "mixed.jsonl", rows), "--model", tiny_model),
        *("--run-dir", folder / "run", "--out", folder / "out.jsonl", "--min-rollouts", "1"),
    )
    assert ran.status == 0, ran.stderr
    assert "Traceback" not in ran.stderr
    return folder / "run", folder / "out.jsonl"


@pytest.mark.parametrize("raw", BAD_ROWS, ids=lambda raw: raw[:60])
def test_a_bad_row_is_rejected_with_its_reason(mixed: tuple[Path, Path], raw: str) -> None:
    run, _ = mixed
    (entry,) = [entry for entry in read_jsonl(run / "rejects.jsonl") if entry["raw"] == raw]
    assert entry["row"] == 2 * list(BAD_ROWS).index(raw) + 2
    assert BAD_ROWS[raw] in entry["reason"]
    assert "\n" not in entry["reason"]


def test_the_good_rows_around_bad_ones_are_tagged(mixed: tuple[Path, Path]) -> None:
    rows = read_jsonl(mixed[1])
    assert [row["total_rollouts"] for row in rows] == [1, None] * len(BAD_ROWS)


def test_a_bad_csv_row_and_invalid_bytes_are_rejected(tiny_model: Path) -> None:
    lines = [b"question,answer", b"what is 3 ?,3", b"too,many,cells", b"what is \xff ?,3"]
    Path("rows.csv").write_bytes(b"\n".join(lines) + b"\n")
    ran = tag("rows.csv", "--model", tiny_model, "--min-rollouts", "1")
    assert ran.status == 0, ran.stderr
    reasons = [entry["reason"] for entry in read_jsonl(Path("runs/rows-tiny-llama/rejects.jsonl"))]
    assert ["3 cells where the header has 2" in reasons[0], "UTF-8" in reasons[1]] == [True, True]
    assert len(reasons) == 2


# --- Options ---------------------------------------------------------------------------------

OPTIONS = {
    "--tau 2": "--tau is 2.0; it must be between 0 and 1",
    "--tau nan": "--tau is nan",
    "--tau much": "--tau is 'much'; it must be a number",
    "--k 0": "--k is [0]; it must be at least 1 each",
    "--k 8 8": "--k is [8, 8]; it must be different numbers",
    "--k 1.5": "--k is '1.5'; it must be a whole number",
    "--min-rollouts 0": "--min-rollouts is 0; it must be at least 1",
    "--max-tokens 0": "--max-tokens is 0",
    "--max-tokens 256": "exceed the model's context of 256",
    "--temperature 0": "--temperature is 0.0; it must be a number above 0",
    "--temperature inf": "--temperature is inf",
    "--limit -1": "--limit is -1",
    "--verifier-seconds 0": "--verifier-seconds is 0.0",
    "--gradient-alpha 0": "--gradient-alpha is 0.0",
    "--gradient-dim 0": "--gradient-dim is 0",
    "--gradient-targets nope": "the model has no module 'nope'",
    "--similarity-threshold 0.1": "unknown argument '--similarity-threshold'",
    "--horizon 0": "--horizon is 0.0; it must be a number above 0",
    "--horizon nan": "--horizon is nan",
    "--group-size 1": "--group-size is 1; it must be at least 2",
    "--policy-loss ppo": "--policy-loss is 'ppo'; it must be grpo or dapo",
    "--gold-prefixes -1": "--gold-prefixes is -1; it must be at least 0",
    "--verifier numerc": "unknown verifier 'numerc': did you mean numeric?",
    "--verifier nowhere:judge": "cannot import 'nowhere'",
    "--verifier json:judge": "module 'json' has no such function",
    "--verifier broken:judge": "SyntaxError",
    "--engine magic": "--engine is 'magic'; it must be auto or transformers",
    "--prompt-field qestion": "did you mean 'question'?",
    "--answer-field gold": "no such column",
    "--split test": "no split 'test'",
    "--subset main": "no subset 'main'",
    "--temprature 1": "unknown argument '--temprature'; did you mean --temperature?",
    "--temp 1": "unknown argument '--temp'",  # no abbreviations
    "more.jsonl": "unknown argument 'more.jsonl'",
    "--config nowhere.toml": "cannot read config nowhere.toml: No such file or directory",
    "--out good.jsonl": "good.jsonl is the dataset itself",
    "--out out.txt": "the suffix must be one of",
    "--out folder.jsonl": "not a regular file",
    "--out good.jsonl/out.jsonl": "cannot write good.jsonl/out.jsonl",
    "--run-dir good.jsonl": "cannot use run folder good.jsonl",
    "--run-dir mine": "mine holds files but no manifest.json",
}


@pytest.mark.parametrize("option", OPTIONS)
def test_a_bad_option_is_one_line(option: str, tiny_model: Path) -> None:
    Path("broken.py").write_text("def judge(:\n")
    Path("folder.jsonl").mkdir()
    Path("mine").mkdir()
    Path("mine/thesis.tex").write_text("do not touch")
    refused(tag("good.jsonl", "--model", tiny_model, *option.split()), OPTIONS[option])
    assert Path("good.jsonl").read_text() == GOOD


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("", "COMMAND"),
        ("tga good.jsonl", "unknown command 'tga'; did you mean tag?"),
        ("tag", "no dataset given"),
        ("tag good.jsonl", "no model given"),
        ("tag good.jsonl --model", "--model needs a value"),
    ],
)
def test_an_incomplete_command_is_one_line(command: str, words: str) -> None:
    refused(run_curate(*command.split()), words)


CONFIGS = {
    'temprature = 1.0\nmodel = "m"': "unknown setting 'temprature'; did you mean 'temperature'?",
    "[tag]\ntau = 0.1": "unknown setting 'tag'",
    "tau = 2.0": "--tau is 2.0",
    'tau = "much"': "tau is 'much'; it must be a number",
    "seed = 1.5": "seed is 1.5; it must be a whole number",
    "trust_remote_code = 1": "it must be true or false",
    "out = ['a.jsonl']": "out is ['a.jsonl']; it must be text",
    'k = ["eight"]': "k is 'eight'; it must be a whole number",
    'engine = "magic"': "--engine is 'magic'; it must be auto or transformers",
    "tau: 0.1": "is not TOML",
    "tau = 0.1\ntau = 0.2": "is not TOML",
    "\udcff\udcfe": "is not TOML",
}


@pytest.mark.parametrize("content", CONFIGS)
def test_a_bad_config_is_one_line(content: str, tiny_model: Path) -> None:
    Path("my.toml").write_bytes(content.encode("utf-8", "surrogateescape"))
    command = ("tag", "good.jsonl", "--model", tiny_model, "--config", "my.toml")
    refused(run_curate(*command), CONFIGS[content])


@pytest.mark.parametrize("content", ["{", "[]", '{"stages": 3}', "\0"])
def test_a_damaged_manifest_is_one_line(content: str, tiny_model: Path) -> None:
    Path("run").mkdir()
    Path("run/manifest.json").write_text(content)
    refused(tag("good.jsonl", "--model", tiny_model, "--run-dir", "run"), "run/manifest.json")


# --- Models ----------------------------------------------------------------------------------


def _without(*names: str) -> Callable[[Path], str]:
    def make(model: Path) -> str:
        shutil.copytree(model, "model")
        for name in names:
            Path("model", name).unlink()
        return "model"

    return make


def _with(name: str, content: bytes) -> Callable[[Path], str]:
    def make(model: Path) -> str:
        shutil.copytree(model, "model")
        Path("model", name).write_bytes(content)
        return "model"

    return make


def _pickled(model: Path) -> str:
    _without("model.safetensors")(model)
    Path("model/pytorch_model.bin").write_bytes(b"\x80\x04.")
    return "model"


def _lacking_a_tensor(model: Path) -> str:
    """Loaded all the same, such a model would compute with random numbers."""
    shutil.copytree(model, "model")
    tensors = load_file("model/model.safetensors")
    del tensors["model.layers.1.self_attn.v_proj.weight"]
    save_file(tensors, "model/model.safetensors", metadata={"format": "pt"})
    return "model"


def _as_file(name: str, content: bytes) -> Callable[[Path], str]:
    def make(_: Path) -> str:
        Path(name).write_bytes(content)
        return name

    return make


MODELS: dict[str, tuple[Callable[[Path], str], str]] = {
    "missing folder": (lambda _: "./nowhere", "no such model: ./nowhere"),
    "missing file": (lambda _: "nowhere.gguf", "no such model"),
    "not on the Hub": (lambda _: "nobody/nothing", "neither a local path nor in the Hub cache"),
    "no config": (_without("config.json"), "it has no config.json"),
    "no weights": (_without("model.safetensors"), "no .safetensors weights"),
    "only pickled weights": (_pickled, "pickled code"),
    "config of nothing known": (
        _with("config.json", b'{"model_type": "nonesuch"}'), "cannot be loaded",
    ),
    "config that is no JSON": (_with("config.json", b"{"), "cannot be loaded"),
    "corrupt weights": (_with("model.safetensors", b"\0" * 100), "cannot be loaded"),
    "cut weights": (_with("model.safetensors", b"\x10"), "cannot be loaded"),
    "weights that lack a tensor": (_lacking_a_tensor, "cannot be loaded"),
    "corrupt tokenizer": (_with("tokenizer.json", b"{}"), "cannot be loaded"),
    "no tokenizer": (_without("tokenizer.json", "tokenizer_config.json"), "cannot be loaded"),
    "a GGUF file that is none": (_as_file("m.gguf", b"GGUF? no"), "cannot be loaded"),
    "a file of another kind": (_as_file("m.safetensors", b"x"), "is a file but not a .gguf model"),
}  # fmt: skip


@pytest.mark.parametrize("case", MODELS)
def test_a_bad_model_is_one_line(case: str, tiny_model: Path) -> None:
    make, words = MODELS[case]
    refused(tag("good.jsonl", "--model", make(tiny_model)), words)
