"""Loads a JSON Lines file by verifiers' own TaskData and prints the tasks, as JSON.

Run in a process of its own, with verifiers on PYTHONPATH: `python verifiers_loading.py FILE`.
"""

import json
import sys
from pathlib import Path

import verifiers.v1 as vf


class Sum(vf.TaskData):
    answer: str
    info: str


class Sums(vf.Taskset[vf.Task[Sum], vf.TasksetConfig]):
    INFINITE = True  # As docs/use.md does, so that prime-rl keeps the order.

    def load(self):
        for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines():
            yield vf.Task(Sum.model_validate_json(line), self.config.task)


tasks = list(Sums(vf.TasksetConfig()))
print(
    json.dumps(
        [
            {"prompt": task.data.prompt_text, "answer": task.data.answer, "info": task.data.info}
            for task in tasks
        ]
    )
)
