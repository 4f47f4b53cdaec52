"""Writes tests/data/evaluations by the evaluations' own packages, on models that answer by rote.

Not run by the tests, whose environment has neither package. To write the files anew:

    pip install --target PLACE lm-eval inspect-ai verifiers==0.1.14
    PYTHONPATH=PLACE python tests/evaluations_writing.py

lm-eval 0.4.13 ran a task of three rows with two filters, and one with two completions a row;
inspect_ai 0.3.285 a task of three samples in two epochs, and one of a tool call and of an answer
that was cut, as `.eval` and as JSON. verifiers 0.1.14, which wrote results before there were
traces, saved states that are given here: its environments ask for a server.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

OUT = Path(__file__).resolve().parent / "data/evaluations"
ROWS = [
    {"question": f"What is {a} + {a}? " + "Think before you answer. " * 5, "answer": str(2 * a)}
    for a in (1, 2, 3)
]
# Of each row, in turn.
ANSWERS = (("The answer is 2.", "So 2"), ("4", "The answer is 5."), ("No idea", "The answer is 6."))
LM_EVAL_TASK = {
    "output_type": "generate_until",
    "dataset_path": "json",
    "test_split": "test",
    "doc_to_text": "{{question}}\nAnswer:",
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    "generation_kwargs": {
        **{"until": ["\n\n"], "do_sample": True, "temperature": 0.7, "max_gen_toks": 64},
    },
}
REGEX = {"function": "regex", "regex_pattern": r"The answer is (\d+)"}
LOOSE = {"function": "regex", "regex_pattern": r"(\d+)", "group_select": -1}
FIRST = {"function": "take_first"}


def write_lm_eval(folder: Path) -> None:
    """Two files `samples_*.jsonl`."""
    from lm_eval import simple_evaluate
    from lm_eval.api.model import LM
    from lm_eval.loggers import EvaluationTracker

    class Rote(LM):
        """Answers each question with the next of its answers."""

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            asked: dict[str, int] = {}
            found = []
            for request in requests:
                text = request.args[0]
                row = next(n for n, each in enumerate(ROWS) if each["question"] in text)
                found.append(ANSWERS[row][asked.get(text, 0)])
                asked[text] = (asked.get(text, 0) + 1) % 2
            return found

        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
            raise NotImplementedError

        loglikelihood_rolling = loglikelihood

    data = folder / "sums.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    base = LM_EVAL_TASK | {"dataset_kwargs": {"data_files": {"test": str(data)}}}
    strict = [
        {"name": "strict-match", "filter": [REGEX, FIRST]},
        {"name": "flexible-extract", "filter": [LOOSE, FIRST]},
    ]
    tasks: list[Any] = [
        base | {"task": "sums", "filter_list": strict},
        base
        | {
            "task": "sums_voted",
            "repeats": 2,
            "filter_list": [
                {"name": "maj@2", "filter": [LOOSE, {"function": "majority_vote"}, FIRST]}
            ],
        },
    ]
    tracker = EvaluationTracker(output_path=str(folder / "out"))
    found = simple_evaluate(Rote(), tasks=tasks, log_samples=True, bootstrap_iters=0)
    samples = found.pop("samples")
    tracker.save_results_aggregated(results=found, samples=samples)
    for name in tasks:
        tracker.save_results_samples(task_name=name["task"], samples=samples[name["task"]])
        written = sorted((folder / "out").rglob(f"samples_{name['task']}_2*.jsonl"))[-1]
        (OUT / f"samples_{name['task']}_2026-11-29T16-00-00.jsonl").write_bytes(
            written.read_bytes()
        )


def write_inspect(folder: Path) -> None:
    """`sums.eval`, of its first sample the same as JSON, and `tools.eval`."""
    from inspect_ai import Task, eval
    from inspect_ai.dataset import Sample
    from inspect_ai.model import GenerateConfig, ModelOutput, ModelUsage, get_model
    from inspect_ai.scorer import includes, match
    from inspect_ai.solver import generate, system_message, use_tools
    from inspect_ai.tool import tool

    @tool
    def addition():  # type: ignore[no-untyped-def]
        async def execute(a: int, b: int) -> int:
            """Add two numbers.

            Args:
                a: the first.
                b: the second.
            """
            return a + b

        return execute

    def output(text: str, reason: Any = "stop") -> ModelOutput:
        found = ModelOutput.from_content("mockllm/model", text, stop_reason=reason)
        return counted(found)

    def counted(found: ModelOutput) -> ModelOutput:
        # Without it a tokenizer would be fetched to count.
        found.usage = ModelUsage(input_tokens=9, output_tokens=4, total_tokens=13)
        return found

    samples = [
        Sample(id=f"sum-{n}", input=row["question"], target=row["answer"])
        for n, row in enumerate(ROWS, 1)
    ]
    # One at a time they are asked in this order: all samples of an epoch, then the next.
    in_turn = [ANSWERS[row][epoch] for epoch in (0, 1) for row in range(3)]
    said = {"eval": in_turn, "json": in_turn[::3]}
    common: dict[str, Any] = {"max_samples": 1, "display": "none", "log_dir": str(folder)}
    common |= {"log_model_api": False, "log_realtime": False, "log_samples": True}
    for kind in ("eval", "json"):
        log = eval(
            Task(
                dataset=samples if kind == "eval" else samples[:1],
                solver=[system_message("Be brief."), generate()],
                scorer=match(numeric=True),
                epochs=2,
                config=GenerateConfig(temperature=0.7, max_tokens=64),
            ),
            model=get_model("mockllm/model", custom_outputs=[output(each) for each in said[kind]]),
            log_format=kind,
            **common,
        )[0]
        (OUT / f"sums.{kind}").write_bytes(Path(log.location).read_bytes())
    call = counted(ModelOutput.for_tool_call("mockllm/model", "addition", {"a": 1, "b": 1}))
    log = eval(
        Task(
            dataset=samples[:2],
            solver=[use_tools(addition()), generate()],
            scorer=[includes(), match(numeric=True)],
        ),
        model=get_model(
            "mockllm/model",
            custom_outputs=[call, output("It is 2 in all"), output("4 or", "max_tokens")],
        ),
        log_format="eval",
        **common,
    )[0]
    (OUT / "tools.eval").write_bytes(Path(log.location).read_bytes())


def write_verifiers(_: Path) -> None:
    """`verifiers/results.jsonl` and the `metadata.json` beside it."""
    from verifiers.types import AssistantMessage, State, SystemMessage, ToolMessage, UserMessage
    from verifiers.utils.save_utils import save_metadata, save_outputs, states_to_outputs

    def state(row: int, *turns: Any, **more: Any) -> State:
        asked = [SystemMessage(content="Be brief."), UserMessage(content=ROWS[row]["question"])]
        given = {"example_id": row, "prompt": asked, "answer": ROWS[row]["answer"], "info": {}}
        told = {"timing": {}, "is_completed": True, "completion": [*turns], **more}
        return State(given | told)

    def said(text: str) -> AssistantMessage:
        return AssistantMessage(content=text)

    states = [
        state(0, said("The answer is 2."), reward=1.0),
        state(0, said("So"), ToolMessage(tool_call_id="1", content="2"), said("2"), reward=1.0),
        state(1, said("The answer is"), reward=0.0, is_truncated=True),
        state(2, reward=0.0, error=RuntimeError("no server")),
    ]
    save_outputs(states_to_outputs(states), OUT / "verifiers")
    metadata: Any = {
        **{"path_to_save": "", "date": "", "env_id": "sums", "model": "rote"},
        **{"sampling_args": {"temperature": 0.7, "max_tokens": 64}, "rollouts_per_example": 2},
    }
    save_metadata(metadata, OUT / "verifiers")


if __name__ == "__main__":
    os.environ |= {"HF_HUB_OFFLINE": "1", "INSPECT_LOG_LEVEL": "error"}
    OUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        os.environ["HF_HOME"] = place
        os.chdir(place)  # Logs tell the commit of the folder that they are written in.
        for what in sys.argv[1:] or ("lm_eval", "inspect", "verifiers"):
            globals()[f"write_{what}"](Path(place))
