"""Chat templates: which one a run renders with, and prompts that were rendered before.

A dataset can hold prompts as another tool rendered them (`<|im_start|>user ... <|im_start|>
assistant`). Rendered again they would be one turn's content, so they are recognised by how they
begin: by what opens a turn in the model's template, or in one that is widely used.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

from curate.config import TagConfig
from curate.datasets.rendered import rendered_opening
from curate.errors import UsageError
from curate.settings import did_you_mean
from probes.models.files import ModelFiles
from probes.models.load import load_tokenizer


def read_chat_template(given: str) -> str:
    """A template's text, of which a file or the text itself is given; "" where nothing is.

    Raises:
        UsageError: there is no such file, or what is there is no Jinja template.
    """
    import jinja2

    if not given:
        return ""
    text = given
    if "{{" not in given and "{%" not in given:
        try:
            text = Path(given).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UsageError(f"--chat-template {given} cannot be read: {reason}") from error
    try:
        _variables(text)
    except jinja2.TemplateError as error:
        raise UsageError(f"--chat-template {given[:60]} is no Jinja template: {error}") from error
    if "messages" not in _variables(text):
        raise UsageError(
            f"--chat-template {given[:60]} shows no messages, so it is no chat template"
        )
    return text


# What transformers gives templates, Llama 3's and gpt-oss' among others, to tell the day.
_CLOCK = "strftime_now"


def run_tokenizer(files: ModelFiles, config: TagConfig) -> Any:
    """The tokenizer of a run's policy, with the chat template that the run renders by.

    Raises:
        UsageError: the files hold no tokenizer that transformers can load.
    """
    tokenizer = load_tokenizer(files, trust_remote_code=config.trust_remote_code)
    if config.chat_template:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.chat_template = read_chat_template(config.chat_template)
    return tokenizer


def check_variables(tokenizer: Any, variables: Mapping[str, Any]) -> None:
    """Refuse variables that a tokenizer's chat template does not read.

    Raises:
        UsageError: it reads no variable of that name, or there is no template.
    """
    if not variables:
        return
    template = template_of(tokenizer)
    if not template:
        raise UsageError("--chat-template-kwargs: the model has no chat template")
    known = _variables(template)
    for name in variables:
        if name not in known:
            hint = did_you_mean(name, known)
            raise UsageError(
                f"--chat-template-kwargs: the chat template reads no variable {name!r}{hint}"
            )


def template_of(tokenizer: Any) -> str:
    """The text of a tokenizer's chat template; "" where it has none.

    Of several it is the one that transformers takes where no other is named.
    """
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, Mapping):
        template = template.get("default")
    return str(template or "")


def writes_the_date(tokenizer: Any) -> bool:
    """Tell whether a tokenizer's chat template puts the day into a prompt."""
    return _CLOCK in template_of(tokenizer)


def on_day(variables: Mapping[str, Any], day: str) -> dict[str, Any]:
    """Variables of a chat template for which it is a day, as 2026-01-31, whatever day it is."""
    when = datetime.combine(date.fromisoformat(day), time())
    return {**variables, _CLOCK: when.strftime}


def _variables(template: str) -> set[str]:
    """Variables that a template takes from who renders it."""
    from jinja2 import meta
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from transformers.utils.chat_template_utils import _compile_jinja_template

    # Templates of transformers have tags of their own (`generation`): its environment knows them.
    environment = _compile_jinja_template(template).environment
    assert isinstance(environment, ImmutableSandboxedEnvironment)
    return meta.find_undeclared_variables(environment.parse(template))


class RenderedPrompts:
    """Tells prompts that were rendered already, for one tokenizer and its template.

    Args:
        tokenizer: of the policy.
        variables: of its chat template.
    """

    def __init__(self, tokenizer: Any, variables: Mapping[str, Any]) -> None:
        self._tokenizer = tokenizer
        self._bos = str(tokenizer.bos_token or "")
        self._template = template_of(tokenizer)
        self._begins_with_bos = False
        self._own = ""
        self._turn = ""
        if self._template:
            self._learn(variables)

    def _learn(self, variables: Mapping[str, Any]) -> None:
        """Render a turn, and see what opens it and what opens the policy's own turn."""
        import jinja2

        turn = [{"role": "user", "content": "x"}]
        try:
            closed, opened = (
                str(
                    self._tokenizer.apply_chat_template(
                        turn, add_generation_prompt=opens, tokenize=False, **variables
                    )
                )
                for opens in (False, True)
            )
        except (jinja2.TemplateError, ValueError, KeyError, TypeError):
            return  # Rendering a prompt says what is wrong with it.
        self._begins_with_bos = bool(self._bos) and closed.startswith(self._bos)
        start = closed.removeprefix(self._bos).lstrip()
        added = (token for token in self._tokenizer.get_added_vocab() if start.startswith(token))
        self._own = max(added, key=len, default="") or rendered_opening(start)
        if opened.startswith(closed):
            self._turn = opened.removeprefix(closed).strip().partition("\n")[0]

    def opening(self, text: str) -> str:
        """What a prompt begins with that only a rendered one does; "" where it is plain text."""
        start = text.lstrip()
        begins = self._bos if self._bos and start.startswith(self._bos) else ""
        start = start.removeprefix(begins).lstrip()
        if self._own and start.startswith(self._own):
            return self._own
        return rendered_opening(start) or begins

    def render(self, text: str) -> tuple[str, list[int]]:
        """A rendered prompt as the policy gets it, and its token ids.

        It is taken as it stands. Only what begins a sequence is put before it, where the template,
        or without one the tokenizer, puts it and it is not there.

        Raises:
            UsageError: it was rendered by another model's template, or does not end where the
                policy's turn begins.
        """
        opening = self.opening(text)
        starts = bool(self._bos) and text.lstrip().startswith(self._bos)
        if not self._template:
            if starts:
                return text, list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
            return text, plain_ids(self._tokenizer, text)
        known = opening in self._template or opening in self._tokenizer.get_vocab()
        if not known:
            raise UsageError(
                f"its prompt is rendered already, and by another template than the model's: it "
                f"begins with {opening!r}"
            )
        if self._turn:
            before, _, after = text.rpartition(self._turn)
            if not before or any(mark and mark in after for mark in (self._own, self._end)):
                raise UsageError(
                    f"its prompt is rendered already, but does not end where the model's turn "
                    f"begins, with {self._turn!r}"
                )
        if self._begins_with_bos and not starts:
            text = self._bos + text
        return text, list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    @property
    def _end(self) -> str:
        return str(self._tokenizer.eos_token or "")


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text that shall be gone on from.

    With the special tokens that the tokenizer puts before a text, and without those that it puts
    after one: many that were made for other tasks append their end token.
    """
    ids = list(tokenizer(text)["input_ids"])
    bare = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    for start in range(len(ids) - len(bare) + 1):
        if ids[start : start + len(bare)] == bare:
            return ids[: start + len(bare)]
    return ids
