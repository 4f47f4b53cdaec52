"""What `curate judge` and `curate augment` share: a language model is asked about a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY
from pathlib import Path
from typing import TYPE_CHECKING

from curate.command import Command
from curate.settings import argument, option, settings, several

if TYPE_CHECKING:
    from probes.servers.asking import LanguageModel

MODEL = "the language model"


@settings
class AsksLanguageModel(Command):
    """A run, and a model that is asked about its items."""

    run: str | Path = argument("the folder of a finished `curate tag`", metavar="RUN")
    _: KW_ONLY
    base_url: str | Sequence[str] = option(
        "an OpenAI-compatible server, as http://localhost:8000/v1; repeatable, for several with "
        "the same model",
        group=MODEL, metavar="URL",
    )  # fmt: skip
    judge_model: str = option(
        "the model that is asked: a name that the server knows", group=MODEL, metavar="MODEL"
    )
    api_key_env: str = option(
        "the environment variable with the key, which is written nowhere (default: "
        "OPENAI_API_KEY, if that is set)",
        default="", group=MODEL, metavar="VARIABLE",
    )  # fmt: skip
    concurrency: int = option(
        "requests at each server at a time", default=16, group=MODEL, metavar="N", least=1
    )
    price_in: float | None = option(
        "price of a million prompt tokens, to tell the cost (default: not known)",
        default=None, group=MODEL, metavar="X", least=0,
    )  # fmt: skip
    price_out: float | None = option(
        "price of a million completion tokens, to tell the cost (default: not known)",
        default=None, group=MODEL, metavar="X", least=0,
    )  # fmt: skip
    max_tokens: int = option(
        "an answer is cut here; models that think first need more",
        default=1024, group=MODEL, metavar="N", least=1,
    )  # fmt: skip
    limit: int = option(
        "items, at most, equally many of each tag (default: 0, all)",
        default=0, metavar="N", least=0,
    )  # fmt: skip
    dry_run: bool = option(
        "ask nothing: tell how many requests and tokens it would take", default=False
    )

    def asked(self, temperature: float = 0.0) -> LanguageModel:
        """The model that the settings name."""
        from probes.servers.asking import LanguageModel

        return LanguageModel(
            self.judge_model,
            several(self.base_url),
            api_key_env=self.api_key_env,
            max_tokens=self.max_tokens,
            temperature=temperature,
            concurrency=self.concurrency,
            price_in=self.price_in,
            price_out=self.price_out,
        )
