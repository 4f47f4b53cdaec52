"""Sample rollouts from servers with the OpenAI completions interface: vLLM, SGLang, llama.cpp.

Prompts go out as token ids, several completions a request. A server that gives back the token ids
that it sampled (vLLM: `return_token_ids`) is asked to; from others the text is taken and tokenized
here, which can differ from what was sampled. Nothing is cut from the policy's distribution unless
asked for, and nothing penalised, where a server knows how to be told so.

Before a server gets requests it is asked what it serves, under which name, with which tokenizer,
and for one token by each way of asking, the fullest first, so that a wrong one costs nothing. A
server that comes back after a failure is asked again.

Each request has a seed of its own where the servers take one: servers that were started alike
can otherwise draw the same completions of the same prompt. How they batch still decides which.
(vLLM 0.31 on a CPU takes seeds but crashes where a prompt with one is computed in pieces.)
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from curate.addresses import check_base_url
from curate.errors import RunError, UsageError, one_line
from curate.progress import say
from probes.engines.base import WHOLE, Rollout, SampleRequest, Truncation
from probes.models.files import ModelFiles
from probes.models.load import Policy, PolicyOutline
from probes.servers.pool import Failure, ServerPool
from probes.servers.server import Json, RequestRefused, Server, ServerBroke, ServerFault

# Digits, accents, another script, LaTeX, white space: where tokenizers differ.
_TEXT = "Curate 12 x 7 = 84,\n\tnaïve café, 東京; \\boxed{x^{2}} isn't THE end 3.14159"
# A server that has just been started takes its time over the first request.
_FIRST_SECONDS = 120.0
_SEEDS_CRASH = (
    "requests had seeds, of which vLLM on a CPU can die: where the server's log says so, "
    "--request-seeds never leaves them out"
)


@dataclass(frozen=True)
class _Manner:
    """What the servers of a run understand, the same of all.

    Attributes:
        model: its name there.
        extended: settings beyond OpenAI's, which keep a server from cutting the distribution.
        seeds: a seed for each request.
        token_ids: gives back the token ids that it sampled.
    """

    model: str
    extended: bool
    seeds: bool
    token_ids: bool

    def __str__(self) -> str:
        said = {"settings": self.extended, "seeds": self.seeds, "token ids": self.token_ids}
        known = " and ".join(name for name, known in said.items() if known)
        return f"{one_line(self.model)} with {known or 'nothing'} beyond OpenAI's interface"


class ServerEngine:
    """Draws rollouts from servers that somebody else runs.

    Args:
        files: the policy's, by whose name and hash the servers' model is recognised.
        outline: its tokenizer, end tokens and context length.
        base_urls: the servers' addresses.
        api_key: what they ask for, if anything.
        seed, temperature, truncation, max_tokens: of the sampling.
        served_model: the model's name there; by default that of the files.
        samples_per_request: completions that one request asks for, at most.
        request_seeds: each request has a seed of its own, where the servers take one.
        in_flight: requests at one server at a time.
        timeout_seconds: a request's answer must be here by then, or it is sent again.

    Raises:
        UsageError: a server has another model or tokenizer, or cannot do what is needed.
        RunError: no server answers.
    """

    name = "server"
    has_own_weights = False

    def __init__(
        self,
        files: ModelFiles,
        outline: Policy | PolicyOutline,
        base_urls: Sequence[str],
        *,
        api_key: str | None = None,
        seed: int,
        temperature: float,
        max_tokens: int,
        truncation: Truncation = WHOLE,
        served_model: str = "",
        samples_per_request: int = 16,
        request_seeds: bool = True,
        in_flight: int = 128,
        timeout_seconds: float = 600.0,
    ) -> None:
        self.files = files
        self.tokenizer = outline.tokenizer
        self.eos_token_ids = outline.eos_token_ids
        self.vocabulary = int(outline.model.config.get_text_config().vocab_size)
        self.base_urls = [check_base_url(url) for url in base_urls]
        self.seed = seed
        self.stops_at = math.inf
        self.temperature = temperature
        self.truncation = truncation
        self.max_tokens = max_tokens
        self.served_model = served_model
        self.samples_per_request = samples_per_request
        self.request_seeds = request_seeds
        self.in_flight = in_flight
        self.timeout_seconds = timeout_seconds
        self.software: dict[str, str] = {}
        self._api_key = api_key
        self._context_length = outline.context_length
        self._manner: _Manner | None = None
        self._unchecked: set[str] = set()
        self._broke_at_seed = False
        self._pool: ServerPool | None = None
        self._opened()
        if not self._known().token_ids:
            say(
                "warning: the servers give back text and no token ids; it is tokenized here, "
                "which can differ from what was sampled"
            )

    def facts(self) -> dict[str, Any]:
        """Say what draws the rollouts, for the manifest."""
        manner = self._known()
        return {
            "name": self.name,
            "version": self.software,
            "seed": self.seed,
            "options": {
                "samples_per_request": self.samples_per_request,
                "requests_in_flight": self.in_flight,
                "request_seconds": self.timeout_seconds,
            },
            "token_ids": manner.token_ids,
            "deterministic": False,
            "servers": self.base_urls,
            "served_model": manner.model,
            "request_seeds": manner.seeds,
            "whole_distribution": manner.extended,
            "tokenizer_unchecked": sorted(self._unchecked),
        }

    def sample(self, requests: Iterable[SampleRequest]) -> Iterator[Rollout]:
        """Yield every rollout asked for, request by request as they finish.

        Raises:
            RunError: no server is left, or one refuses a request.
        """
        parts: dict[int, SampleRequest] = {}

        def bodies() -> Iterator[Json]:
            for number, part in enumerate(self._parts(requests)):
                parts[number] = part
                yield self._body(part)

        pool = self._opened()
        answers = pool.post("completions", bodies(), self._completions)
        try:
            for number, found in answers:
                if isinstance(found, Failure):
                    raise RunError(
                        f"a request for rollouts failed: {found.reason}; the same command continues"
                    )
                part = parts.pop(number)
                for sample, (token_ids, reason) in enumerate(found, start=part.first_sample):
                    yield Rollout(part.item_id, sample, token_ids, reason)
                if time.monotonic() >= self.stops_at:
                    break
        except RunError as error:
            if self._known().seeds and any(server.broke for server in pool.servers):
                raise RunError(f"{error}; {_SEEDS_CRASH}") from error
            raise

    def unfinished(self) -> None:
        """Unknown: a server tells when it is finished."""
        return None

    def close(self) -> None:
        """Abandon what is under way and close the connections."""
        if self._pool:
            self._pool.close()
            self._pool = None

    def _opened(self) -> ServerPool:
        if self._pool is None:
            pool = ServerPool(
                self.base_urls,
                api_key=self._api_key,
                timeout_seconds=self.timeout_seconds,
                in_flight=self.in_flight,
                admit=self._admit,
            )
            try:
                self._pool = pool.open()
            except RunError as error:
                if self._broke_at_seed:
                    raise RunError(f"{error}; {_SEEDS_CRASH}") from error
                raise
        return self._pool

    def _known(self) -> _Manner:
        assert self._manner is not None, "a pool that opened has admitted a server"
        return self._manner

    # --- Requests and answers ----------------------------------------------------------------

    def _check_length(self, request: SampleRequest) -> None:
        length = len(request.prompt_token_ids)
        if length + self.max_tokens > self._context_length:
            raise RunError(
                f"a prompt of {length:,} tokens and --max-tokens {self.max_tokens:,} do not fit "
                f"into the {self._context_length:,} tokens that the servers have room for; start "
                "them with more (vLLM: --max-model-len)"
            )

    def _parts(self, requests: Iterable[SampleRequest]) -> Iterator[SampleRequest]:
        most = self.samples_per_request
        for request in requests:
            self._check_length(request)
            end = request.first_sample + request.samples
            for first in range(request.first_sample, end, most):
                yield replace(request, first_sample=first, samples=min(most, end - first))

    def _body(self, part: SampleRequest) -> Json:
        prompt = [int(token) for token in part.prompt_token_ids]
        seed = _request_seed(self.seed, part)
        return self._request(self._known(), prompt, part.samples, self.max_tokens, seed)

    def _request(
        self, manner: _Manner, prompt: list[int], samples: int, max_tokens: int, seed: int
    ) -> Json:
        body: Json = {
            "model": manner.model,
            "prompt": prompt,
            "n": samples,
            "max_tokens": max_tokens,
            "temperature": self.temperature,
            "top_p": self.truncation.top_p,
        }
        if manner.seeds:
            body["seed"] = seed
        if manner.extended:
            body |= {
                "return_token_ids": True,
                "top_k": self.truncation.top_k or -1,
                "min_p": self.truncation.min_p,
                "repetition_penalty": 1.0,
                "stop_token_ids": sorted(self.eos_token_ids),
            }
        return body

    def _completions(self, body: Json, answer: Json) -> list[tuple[list[int], str]]:
        """Read the completions of an answer: token ids and why each ended."""
        choices = _choices(answer, body["n"])
        if self._known().token_ids:
            for choice in choices:
                if choice["prompt_token_ids"] not in (None, body["prompt"]):
                    raise ValueError("it was given for another prompt")
        return [self._completion(choice) for choice in choices]

    def _completion(self, choice: Json) -> tuple[list[int], str]:
        reason = choice["finish_reason"]
        if reason not in ("stop", "length"):
            raise ValueError(f"a completion ended with finish_reason {str(reason)[:40]!r}")
        if self._known().token_ids:
            ids = _token_ids(choice["token_ids"], self.vocabulary)
            if len(ids) > self.max_tokens:
                raise ValueError(f"a completion of {len(ids):,} tokens")
        else:
            ids = list(self.tokenizer(choice["text"], add_special_tokens=False)["input_ids"])
        # The end token belongs to what was sampled, but not to the text, nor to every server's ids.
        if (reason == "stop" or not ids) and not (ids and ids[-1] in self.eos_token_ids):
            ids.append(self._end_token)
        return ids, reason

    @property
    def _end_token(self) -> int:
        if self.tokenizer.eos_token_id in self.eos_token_ids or not self.eos_token_ids:
            return int(self.tokenizer.eos_token_id)
        return min(self.eos_token_ids)

    # --- Which model answers, and how --------------------------------------------------------

    async def _admit(self, server: Server) -> None:
        """Let a server in that has the right model and does what the others do.

        Raises:
            UsageError: it has not, or does not.
            ServerFault: it is not well.
        """
        try:
            card = self._card(server, await server.ask("models"))
            await self._check_tokenizer(server, card["id"])
            manner = await self._manner_of(server, card["id"])
        except RequestRefused as refusal:
            if server.url in self.software and refusal.status not in (401, 403):
                raise ServerFault(f"refuses a test request ({refusal})") from None
            raise UsageError(_refused(server, refusal)) from None
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            said = one_line(f"{type(error).__name__}: {error}")[:200]
            reason = f"does not answer as OpenAI's completions interface does ({said})"
            if server.url in self.software:  # It did before, so it may again.
                raise ServerFault(reason) from None
            raise UsageError(f"{server.url} {reason}") from None
        if self._manner not in (None, manner):
            raise UsageError(
                f"the servers differ: {server.url} has {manner}, another one has {self._manner}; "
                "use servers of one kind, with one name for the model"
            )
        self._manner = manner
        if isinstance(card.get("max_model_len"), int):
            self._context_length = min(self._context_length, card["max_model_len"])
        self.software[server.url] = await _software(server, card)

    def _card(self, server: Server, answer: Json) -> Json:
        """Find the policy among the models that a server lists."""
        cards = {str(card["id"]): card for card in answer["data"]}
        if self.served_model:
            if self.served_model in cards:
                return dict(cards[self.served_model])
            wanted = f"{self.served_model}, as --served-model says"
        else:
            for name, card in cards.items():
                if self._is_policy(name) or self._is_policy(str(card.get("root") or "")):
                    return dict(card)
            wanted = (
                f"{self.files.name}, which --model names; if it is the same model by another name, "
                "give that name by --served-model"
            )
        listed = ", ".join(list(cards)[:10]) or "no model"
        raise UsageError(f"{server.url} serves {one_line(listed)[:300]}, and not {wanted}")

    def _is_policy(self, name: str) -> bool:
        last = PurePosixPath(name).name.lower()
        # A GGUF file written as safetensors is a folder named by the hash of its weights.
        return last == self.files.name.lower() or last.startswith(self.files.weight_hash)

    async def _check_tokenizer(self, server: Server, model: str) -> None:
        ours = list(self.tokenizer(_TEXT, add_special_tokens=False)["input_ids"])
        # vLLM and SGLang take the first names, llama.cpp the second.
        body = {"model": model, "prompt": _TEXT, "add_special_tokens": False}
        body |= {"content": _TEXT, "add_special": False}
        try:
            theirs = (await server.ask("/tokenize", body))["tokens"]
        except (RequestRefused, ServerFault):
            await self._check_count(server, model, len(ours))
            return
        if theirs != ours:
            self._refuse_tokenizer(server, f"{str(theirs)[:80]} there and {str(ours)[:80]} here")

    async def _check_count(self, server: Server, model: str, ours: int) -> None:
        """Compare the number of tokens, where a server does not say which they are."""
        body = {"model": model, "prompt": _TEXT, "max_tokens": 1, "n": 1}
        answer = await server.ask("completions", body, seconds=_FIRST_SECONDS)
        count = (answer.get("usage") or {}).get("prompt_tokens")
        if count is None:
            self._unchecked.add(server.url)
            say(f"warning: {server.url} does not tell its tokenizer, which was not compared")
        elif count not in (ours, len(self.tokenizer(_TEXT)["input_ids"])):
            self._refuse_tokenizer(server, f"{count} tokens there and {ours} here")

    def _refuse_tokenizer(self, server: Server, difference: str) -> None:
        raise UsageError(
            f"{server.url} has another tokenizer than --model {self.files.name}: a test text is "
            f"{difference}"
        )

    async def _manner_of(self, server: Server, model: str) -> _Manner:
        """Ask for one token in each way, the fullest first, until one is understood."""
        prompt = list(self.tokenizer(_TEXT, add_special_tokens=False)["input_ids"])
        ways = [
            _Manner(model, extended, seeds, token_ids=False)
            for extended in ((True,) if self._needs_extended else (True, False))
            for seeds in ((True, False) if self.request_seeds else (False,))
        ]
        for manner in ways:
            body = self._request(manner, prompt, self.samples_per_request, 1, self.seed)
            try:
                answer = await server.ask("completions", body, seconds=_FIRST_SECONDS)
            except RequestRefused as refusal:
                if manner == ways[-1] and self._needs_extended and refusal.status in (400, 422):
                    raise UsageError(
                        f"{server.url} takes no --top-k or --min-p ({refusal}): leave them out, or "
                        "use a server that knows them"
                    ) from None
                if manner == ways[-1] or refusal.status in (401, 403):
                    raise
            except ServerFault as fault:
                if manner.seeds and isinstance(fault, ServerBroke):
                    self._broke_at_seed = True
                if manner == ways[-1]:
                    raise
            else:
                self._broke_at_seed = False  # It goes on without, if it did.
                return replace(manner, token_ids=self._gives_token_ids(server, body, answer))
        raise AssertionError("the last way either works or raises")

    @property
    def _needs_extended(self) -> bool:
        """Whether what is asked for is beyond OpenAI's interface."""
        return self.truncation.top_k > 0 or self.truncation.min_p > 0

    def _gives_token_ids(self, server: Server, body: Json, answer: Json) -> bool:
        """Whether the answer to a test request has token ids.

        Raises:
            UsageError: the server does not do what is needed.
        """
        try:
            choices = _choices(answer, body["n"])
        except ValueError as error:
            raise UsageError(
                f"{server.url} does not give {body['n']} completions for one request ({error}); "
                "--samples-per-request 1 asks for one at a time"
            ) from None
        count = (answer.get("usage") or {}).get("prompt_tokens", len(body["prompt"]))
        theirs = choices[0].get("prompt_token_ids") or body["prompt"]
        if theirs != body["prompt"] or count != len(body["prompt"]):
            raise UsageError(
                f"{server.url} changes the prompt: it was given {len(body['prompt'])} token ids "
                f"and counts {count}; it may add special tokens of its own"
            )
        return all(isinstance(choice.get("token_ids"), list) for choice in choices)


def _choices(answer: Json, wanted: int) -> list[Json]:
    choices = answer["choices"]
    if not isinstance(choices, list) or not all(isinstance(each, dict) for each in choices):
        raise ValueError("its choices are no list of objects")
    if len(choices) != wanted:
        raise ValueError(f"{len(choices)} completions, not {wanted}")
    return choices


def _token_ids(found: Any, vocabulary: int) -> list[int]:
    if not isinstance(found, list) or not found:
        raise ValueError("a completion without token ids")
    if not all(type(token) is int and 0 <= token < vocabulary for token in found):
        raise ValueError("token ids that the model does not have")
    return list(found)


async def _software(server: Server, card: Json) -> str:
    """What a server runs on, as far as it says so."""
    owner = str(card.get("owned_by") or "unknown")[:40]
    try:
        version = (await server.ask("/version")).get("version")
    except (RequestRefused, ServerFault):
        version = None
    return f"{owner} {str(version)[:40]}" if version else owner


def _refused(server: Server, refusal: RequestRefused) -> str:
    if refusal.status in (401, 403):
        return f"{server.url} refuses the API key ({refusal})"
    if refusal.status == 404:
        return f"{server.url} has no OpenAI interface there ({refusal}); most end in /v1"
    return f"{server.url} refuses a test request ({refusal})"


def _request_seed(seed: int, part: SampleRequest) -> int:
    """A seed for one request, 31 bits, which every server takes."""
    content = f"{seed}\0{part.item_id}\0{part.first_sample}".encode()
    return int.from_bytes(hashlib.sha256(content).digest()[:4], "little") >> 1
