"""`curate push`: its command line, and the function of its name."""

from collections.abc import Sequence
from dataclasses import KW_ONLY
from pathlib import Path
from typing import Any, ClassVar

from cards.card.command import Card
from curate.command import Command, library_function
from curate.errors import UsageError
from curate.run.names import check_run_folder, is_joined
from curate.settings import argument, option, option_of, settings


@settings
class Push(Command):
    """Upload a run to the Hugging Face Hub as a dataset, in one commit: the tagged rows as Parquet
    with one split per tag, the card, and the report and figures where there are any. A card that is
    there keeps its other text and configurations. The token is that of `hf auth login`, or
    HF_TOKEN. An upload that broke off continues with the same command.

    example: curate push runs/gsm8k-Qwen2.5-0.5B --repo me/gsm8k-tagged --private. Exit status: 0
    done, 1 failed on its way (the same command continues), 2 bad usage, a refused token, or files
    that would be replaced unseen.
    """

    words: ClassVar[str] = "cards.push.text:push_text"

    run: str | Path = argument("the folder of a finished `curate tag`", metavar="RUN")
    repo: str = option(
        "the dataset on the Hub, made if it is not there; without OWNER/ it is yours",
        metavar="OWNER/NAME",
    )
    _: KW_ONLY
    private: bool = option("make the repository private; never makes one public", default=False)
    dry_run: bool = option(
        "list every file with its size, upload nothing, use no network", default=False
    )
    with_rollouts: bool = option(
        "upload every sampled completion too, as the configuration 'rollouts', and leave those in "
        "the report that it shows; without it no completion is uploaded",
        default=False,
    )
    with_rewards: bool = option(
        "upload a table of all rollouts too, with reward, length and verdict and without any text, "
        "as the configuration 'rewards': whoever loads it can recompute the pass rates",
        default=False,
    )
    tagged: str | Path | None = option(
        "the tagged file, if it is no longer where `curate tag` wrote it",
        default=None, metavar="FILE",
    )  # fmt: skip
    overwrite: bool = option(
        "replace files of the repository that no push of this run wrote", default=False
    )
    create_pr: bool = option("open a pull request instead of committing", default=False)
    language: Sequence[str] = option_of(Card, "language", default=...)
    license: str = option_of(Card, "license", default=...)

    def work(self) -> dict[str, Any]:
        """Upload the run.

        Returns:
            `repo`, `files` (`path` and `bytes` of each), `deleted`, `dry_run`, and of a push
            `changed`, `commit` and `url`.
        """
        if is_joined(self.run):
            raise UsageError(
                f"{self.run} is of several models, and `push` uploads one run: `curate card "
                f"{self.run} -o README.md`, then `hf upload {self.repo} {self.run} "
                f"{Path(self.run).name} --repo-type dataset` and the same of README.md"
            )
        check_run_folder(self.run)
        from cards.push.push import push_run

        return push_run(Path(self.run), self, dry_run=self.dry_run)


push = library_function(Push)
