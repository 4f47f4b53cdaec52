"""Asking a language model behind an OpenAI-compatible endpoint for structured answers.

A question is a conversation, and its answer a JSON object of a given schema. The server is asked to
keep to the schema (`response_format`) where it can; every answer is checked here all the same. One
that does not fit is sent back once with what is wrong with it; after that it is no answer.

Requests are known by the hash of what they ask, and each answer is on the disk before it counts:
the same questions cost nothing a second time, whatever killed the process in between.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from curate.addresses import check_base_url
from curate.errors import RunError, UsageError, one_line
from curate.progress import Progress, say
from probes.servers.kept_answers import KeptAnswers, Reply
from probes.servers.pool import Failure, ServerPool
from probes.servers.server import Json, RequestRefused, Server, read_api_key
from probes.servers.structured import Structured, schema_of, structure_problem

CHARACTERS_A_TOKEN = 4
"""For estimates where no tokenizer has counted."""

_MOST_CHARACTERS = 1_000_000
# Of a wrong answer that is shown to the model again, and of one that is told of in a reason.
_REPAIRED_CHARACTERS = 4_000
_SHOWN_CHARACTERS = 80
_NAMES_SHOWN = 5

Messages = tuple[Mapping[str, str], ...]


@dataclass(frozen=True)
class LanguageModel:
    """A model, where it is served, and how it is asked.

    Raises UsageError for what cannot be.
    """

    model: str
    base_urls: tuple[str, ...]
    api_key_env: str = ""
    """The environment variable with the key; OPENAI_API_KEY, if that is set, where empty."""
    max_tokens: int = 2048
    temperature: float = 0.0
    concurrency: int = 16
    """Requests at each server at a time."""
    price_in: float | None = None
    price_out: float | None = None
    """Of a million tokens, in any currency."""

    def __post_init__(self) -> None:
        if not self.model:
            raise UsageError("no model given: name one that the server has by --judge-model")
        if not self.base_urls:
            raise UsageError("no server given: name one by --base-url http://HOST:PORT/v1")
        for url in self.base_urls:
            check_base_url(url)

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        """Price of so many tokens; None where prices are not known."""
        if self.price_in is None or self.price_out is None:
            return None
        return (prompt_tokens * self.price_in + completion_tokens * self.price_out) / 1e6


@dataclass(frozen=True)
class Question:
    """What is asked, and about how many tokens that has."""

    messages: Messages
    tokens: int


@dataclass(frozen=True)
class Answer:
    """An answer that fits the structure, or why there is none."""

    value: Mapping[str, Any] | None
    problem: str | None = None


@dataclass
class Usage:
    """Requests and tokens, and what they cost."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    not_counted: int = 0
    """Answers of which the server did not say how many tokens they took."""

    def add(self, reply: Reply) -> None:
        """Count a reply."""
        self.requests += 1
        if reply.prompt_tokens is None or reply.completion_tokens is None:
            self.not_counted += 1
        self.prompt_tokens += reply.prompt_tokens or 0
        self.completion_tokens += reply.completion_tokens or 0

    def facts(self, model: LanguageModel) -> dict[str, Any]:
        """Return the counts and the cost in plain values; a cost of None is not known."""
        return {**vars(self), "cost": model.cost(self.prompt_tokens, self.completion_tokens)}


def estimate_tokens(text: str) -> int:
    """About how many tokens a text has, at 4 characters each."""
    return -(-len(text) // CHARACTERS_A_TOKEN)


class Asker:
    """Asks one model for answers of one structure.

    Args:
        model: who is asked.
        structure: of the answers.
        kept: where requests and answers are kept.

    Attributes:
        asked: what was asked and answered by now, in this process.
        reused: what was answered before, and taken from `kept`.
    """

    def __init__(
        self, model: LanguageModel, structure: type[Structured], kept: KeptAnswers
    ) -> None:
        self.model = model
        self.structure = structure
        self._schema = schema_of(structure)
        self.kept = kept
        self.asked = Usage()
        self.reused = Usage()
        self._adapted: list[Callable[[Json], Json]] = []

    def estimate(self, questions: Sequence[Question]) -> Usage:
        """Count what is still to be asked; completions at their longest, none to be repaired."""
        missing = {self._key(each.messages): each for each in questions}
        missing = {key: each for key, each in missing.items() if not self.kept.get(key)}
        return Usage(
            len(missing),
            sum(each.tokens for each in missing.values()),
            len(missing) * self.model.max_tokens,
        )

    def ask(self, questions: Sequence[Question], label: str) -> list[Answer]:
        """Ask, and ask once more where an answer does not fit.

        Returns:
            the answers, in the order of the questions.

        Raises:
            UsageError: the server refuses the key, or does not have the model.
            RunError: no server is left, or none of the questions was answered.
        """
        found = self._replies([each.messages for each in questions], label)
        answers = [self._answer(reply) for reply in found]
        wrong = {
            place: _repair(questions[place].messages, reply.content, str(answers[place].problem))
            for place, reply in enumerate(found)
            if isinstance(reply, Reply) and not reply.refusal and answers[place].problem
        }
        repaired = self._replies(list(wrong.values()), f"{label} again")
        for place, reply in zip(wrong, repaired, strict=True):
            second = self._answer(reply)
            if second.problem:
                second = Answer(None, f"{answers[place].problem}; asked again: {second.problem}")
            answers[place] = second
        return answers

    # --- Requests --------------------------------------------------------------------------------

    def _body(self, messages: Messages) -> Json:
        return {
            "model": self.model.model,
            "messages": list(messages),
            "temperature": self.model.temperature,
            "max_tokens": self.model.max_tokens,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": self._schema, "strict": True},
            },
        }

    def _key(self, messages: Messages) -> str:
        text = json.dumps(self._body(messages), sort_keys=True)
        return hashlib.sha256(text.encode("ascii")).hexdigest()

    def _replies(self, conversations: Sequence[Messages], label: str) -> list[Reply | Failure]:
        """Take what was answered before, and ask for the rest."""
        keys = [self._key(each) for each in conversations]
        replies: dict[str, Reply | Failure] = {}
        missing = {}
        for key, messages in zip(keys, conversations, strict=True):
            reply = self.kept.get(key)
            if reply is None:
                missing[key] = messages
            elif key not in replies:
                replies[key] = reply
                self.reused.add(reply)
        replies |= self._post(missing, label)
        return [replies[key] for key in keys]

    def _post(self, missing: Mapping[str, Messages], label: str) -> dict[str, Reply | Failure]:
        if not missing:
            return {}
        replies: dict[str, Reply | Failure] = {}
        pool = ServerPool(
            self.model.base_urls,
            api_key=read_api_key(self.model.api_key_env),
            in_flight=self.model.concurrency,
            admit=partial(_has_model, model=self.model.model),
        )
        with pool, Progress(label, len(missing), "answers") as progress:
            left = list(missing)
            while left:
                sent: list[tuple[str, Json]] = []
                bodies = self._bodies(left, missing, sent)
                left = []
                for number, reply in pool.post("chat/completions", bodies, _read):
                    key, body = sent[number]
                    if isinstance(reply, Failure) and self._adapt(reply, body):
                        left.append(key)
                        continue
                    if isinstance(reply, Reply):
                        reply = _without_key(reply, pool)
                        self.kept.add(key, body, reply)
                        self.asked.add(reply)
                    replies[key] = reply
                    progress.advance()
        failures = [each for each in replies.values() if isinstance(each, Failure)]
        if len(failures) == len(replies):
            raise RunError(
                f"none of {len(failures):,} requests was answered; first: {failures[0].reason}"
            )
        return replies

    def _bodies(
        self, keys: Sequence[str], missing: Mapping[str, Messages], sent: list[tuple[str, Json]]
    ) -> Iterator[Json]:
        """Yield what is posted, noting it in `sent`; made as it is sent, as adapted by then."""
        for key in keys:
            body = self._body(missing[key])
            for adapt in self._adapted:
                body = adapt(body)
            sent.append((key, body))
            yield body

    def _adapt(self, failure: Failure, body: Json) -> bool:
        """Whether to ask again in another way: the server does not know a part of the request."""
        for adaptation in _ADAPTATIONS:
            if adaptation.field in body and adaptation.fits(failure.reason):
                if adaptation.change not in self._adapted:
                    self._adapted.append(adaptation.change)
                    say(one_line(f"{adaptation.said} ({failure.reason})"))
                return True
        return False

    def _answer(self, reply: Reply | Failure) -> Answer:
        if isinstance(reply, Failure):
            return Answer(None, reply.reason)
        if reply.refusal:
            return Answer(None, f"refused: {one_line(reply.refusal)[:_SHOWN_CHARACTERS]}")
        cut = " (cut at the token limit)" if reply.finish_reason == "length" else ""
        text = _bare(reply.content)
        if not text:
            return Answer(None, f"an empty answer{cut}")
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return Answer(None, f"not JSON{cut}: {one_line(text)[:_SHOWN_CHARACTERS]}")
        problem = structure_problem(value, self.structure)
        return Answer(None, problem) if problem else Answer(value)


# --- What a server cannot do ---------------------------------------------------------------------


@dataclass(frozen=True)
class _Adaptation:
    """A field that some servers or models do not take, and what to send instead."""

    field: str
    words: tuple[str, ...]
    change: Callable[[Json], Json]
    said: str

    def fits(self, reason: str) -> bool:
        """Whether a server's refusal is of this field."""
        text = reason.lower()
        is_refused = any(f"http {status}" in text for status in (400, 404, 422, 501))
        return is_refused and any(word in text for word in self.words)


def _without(field: str, body: Json) -> Json:
    return {name: value for name, value in body.items() if name != field}


def _renamed(body: Json) -> Json:
    return {
        "max_completion_tokens" if name == "max_tokens" else name: value
        for name, value in body.items()
    }


_ADAPTATIONS = (
    _Adaptation(
        "response_format",
        ("response_format", "json_schema", "structured output", "guided"),
        partial(_without, "response_format"),
        "the server takes no response_format: answers are only checked here",
    ),
    _Adaptation(
        "max_tokens",
        ("max_completion_tokens' instead",),
        _renamed,
        "the model wants max_completion_tokens instead of max_tokens",
    ),
    _Adaptation(
        "temperature",
        ("'temperature' does not support", "'temperature' is not supported"),
        partial(_without, "temperature"),
        "the model takes no temperature: it answers with its own",
    ),
)


# --- Answers -------------------------------------------------------------------------------------


def _read(_: Json, answer: Json) -> Reply:
    """Read a reply from a chat completion; ValueError and its like send the request again."""
    choice = answer["choices"][0]
    message = choice["message"]
    content, refusal = message.get("content") or "", message.get("refusal") or ""
    if not (isinstance(content, str) and isinstance(refusal, str)):
        raise ValueError("the message's content is no text")
    if len(content) + len(refusal) > _MOST_CHARACTERS:
        raise ValueError(f"the message has more than {_MOST_CHARACTERS:,} characters")
    usage = answer.get("usage") or {}
    return Reply(
        content,
        refusal,
        str(choice.get("finish_reason") or "")[:_SHOWN_CHARACTERS],
        _count(usage.get("prompt_tokens")),
        _count(usage.get("completion_tokens")),
    )


def _count(value: Any) -> int | None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return value if is_count else None


def _without_key(reply: Reply, pool: ServerPool) -> Reply:
    """A server may say the key that it was sent."""
    return Reply(
        pool.hide_key(_text(reply.content)),
        pool.hide_key(_text(reply.refusal)),
        pool.hide_key(_text(reply.finish_reason)),
        reply.prompt_tokens,
        reply.completion_tokens,
    )


def _text(text: str) -> str:
    """Text that can be written: half a surrogate pair cannot."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _bare(content: str) -> str:
    """The answer without a reasoning model's thoughts before it and a code fence around it."""
    text = content.rpartition("</think>")[2].strip()
    if text.startswith("```") and text.endswith("```") and "\n" in text:
        text = text.partition("\n")[2].removesuffix("```").strip()
    return text


def _repair(messages: Messages, content: str, problem: str) -> Messages:
    return (
        *messages,
        # Some servers refuse an empty turn.
        {"role": "assistant", "content": content[:_REPAIRED_CHARACTERS].strip() or "(no answer)"},
        {
            "role": "user",
            "content": f"That cannot be used: {problem}. Answer again, with nothing but the JSON "
            "object that was asked for.",
        },
    )


async def _has_model(server: Server, *, model: str) -> None:
    """Admit a server that lists the model, or lists no models at all."""
    try:
        found = await server.ask("models")
    except RequestRefused as refusal:
        if refusal.status in (401, 403):
            raise UsageError(f"the server {server.url} refuses the API key ({refusal})") from None
        return
    listed = found.get("data")
    entries = listed if isinstance(listed, list) else []
    names = [str(each["id"]) for each in entries if isinstance(each, dict) and "id" in each]
    if names and model not in names:
        more = f" and {len(names) - _NAMES_SHOWN:,} more" if len(names) > _NAMES_SHOWN else ""
        raise UsageError(
            f"the server {server.url} has no model {model!r}; it has "
            f"{one_line(', '.join(names[:_NAMES_SHOWN]))}{more}"
        )
