"""`curate augment`: its command line, and the function of its name."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, replace
from pathlib import Path
from typing import Any, ClassVar

from curate.command import library_function
from curate.run.names import check_run_folder
from curate.settings import option, settings, several
from recipes.language_model import MODEL, AsksLanguageModel
from recipes.recipe import TAGS

_CHECK = "the model that answers the new problems"


@settings
class Augment(AsksLanguageModel):
    """Have a language model behind an OpenAI-compatible server write new problems from items of a
    run: similar ones, or the steps of their solution. Another model answers each without seeing its
    answer; it is kept where both answers agree under the run's verifier, and where the dataset has
    nothing like it. What is not kept is written beside it with the reason. Every request and answer
    is kept in RUN/augmentation: the same command continues, and pays for nothing twice.

    example: curate augment runs/train-Qwen2.5-0.5B --mode similar --base-url
    https://api.openai.com/v1 --judge-model gpt-5 --check-model gpt-5-mini --dry-run, then curate
    validate runs/train-Qwen2.5-0.5B --recipe augment-similar --extra-items
    runs/train-Qwen2.5-0.5B/augmentation/similar.jsonl
    """

    words: ClassVar[str] = "recipes.augment.text:augmentation_text"

    mode: str = option(
        "problems like the item, or the steps of its solution", choices=("similar", "subproblems")
    )
    _: KW_ONLY
    per_item: int = option(
        "new problems that are asked for from each item", default=4, metavar="N", least=1
    )
    tags: Sequence[str] = option(
        "items with this tag, confirmed or else predicted; repeatable",
        default=("unlearnable",), metavar="TAG", suggested=TAGS,
    )  # fmt: skip
    out: str | Path | None = option(
        "the new dataset (default: RUN/augmentation/MODE.jsonl)",
        default=None, metavar="FILE.jsonl", flags=("-o", "--out"),
    )  # fmt: skip
    max_tokens: int = option(
        "an answer is cut here", default=4096, group=MODEL, metavar="N", least=1
    )
    temperature: float = option(
        "of the writer; the check model answers at 0",
        default=0.7, group=MODEL, metavar="T", least=0,
    )  # fmt: skip
    check_model: str = option(
        "its name (default: the writer, which may make one mistake twice)",
        default="", group=_CHECK, metavar="MODEL",
    )  # fmt: skip
    check_base_url: str | Sequence[str] = option(
        "where it is served; repeatable (default: --base-url)",
        default=(), group=_CHECK, metavar="URL",
    )  # fmt: skip
    check_api_key_env: str = option(
        "the variable with the key of that server (default: as --api-key-env where the server is "
        "the same, else OPENAI_API_KEY)",
        default="", group=_CHECK, metavar="VARIABLE",
    )  # fmt: skip
    check_price_in: float | None = option(
        "price of a million prompt tokens of it (default: --price-in)",
        default=None, group=_CHECK, metavar="X", least=0,
    )  # fmt: skip
    check_price_out: float | None = option(
        "price of a million completion tokens of it (default: --price-out)",
        default=None, group=_CHECK, metavar="X", least=0,
    )  # fmt: skip

    def work(self) -> dict[str, Any]:
        """Write new problems from items of the run. The writer's key goes to its own servers only.

        Returns:
            the summary, which also stands beside the dataset as `.json`.
        """
        check_run_folder(self.run)
        from recipes.augment.augment import augment_run

        writer = self.asked(self.temperature)
        urls = several(self.check_base_url) or writer.base_urls
        same_key = self.api_key_env if urls == writer.base_urls else ""
        checker = replace(
            writer,
            model=self.check_model or self.judge_model,
            base_urls=urls,
            api_key_env=self.check_api_key_env or same_key,
            temperature=0.0,
            price_in=self.price_in if self.check_price_in is None else self.check_price_in,
            price_out=self.price_out if self.check_price_out is None else self.check_price_out,
        )
        return augment_run(Path(self.run), self, writer, checker, dry_run=self.dry_run)


augment = library_function(Augment)
