"""A scripted language model behind a real HTTP server: its answer follows from the question."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.stand_ins.server import Fault, StandIn

MODEL = "scripted"

Script = Callable[[list[dict[str, str]]], object]
"""From the messages to a text, to a message as the API has it, or to a fault."""

_PART = re.compile(r"--- (\w+) begin ([\w ]+) ---\n(.*?)\n--- \1 end \2 ---", re.DOTALL)


def completion(message: object) -> dict[str, Any]:
    """A chat completion as servers answer it; 100 tokens in, 10 out."""
    if isinstance(message, str):
        message = {"role": "assistant", "content": message}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 100, "completion_tokens": 10}
    return {"id": "1", "object": "chat.completion", "choices": [choice], "usage": usage}


@contextmanager
def language_model(script: Script, **settings: Any) -> Iterator[StandIn]:
    """A server with the model `scripted`."""

    def answer(path: str, body: dict[str, Any]) -> object:
        if path == "/v1/models":
            return {"data": [{"id": MODEL}]}
        assert path == "/v1/chat/completions"
        found = script(body["messages"])
        return found if isinstance(found, Fault) else completion(found)

    server = StandIn(answer, **settings)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def parts(messages: list[dict[str, str]]) -> dict[str, str]:
    """What stands between the markers that the first message names: problem, solution, ..."""
    (marker,) = re.findall(r"marker (\w+)\.", messages[0]["content"])
    found = _PART.findall(messages[1]["content"])
    assert {each[0] for each in found} == {marker}
    return {name: text for _, name, text in found}


def outside(messages: list[dict[str, str]]) -> str:
    """All that is asked, without what stands between the markers."""
    return "\n".join(_PART.sub("", message["content"]) for message in messages)


def score(number: int, reason: str = "so it is") -> str:
    return json.dumps({"reason": reason, "score": number})
