"""`curate select`: its command line, and the function of its name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY
from pathlib import Path
from typing import Any

from curate.command import library_function
from curate.files import path_or_none
from curate.settings import option, settings, several
from curate.tagged.training_file import TrainingFile

_VALUE, _BUDGET, _MIX = "what an item is worth", "how many", "what is kept whatever it is worth"


@settings
class Select(TrainingFile):
    """Write the rows of a tagged dataset that are worth training on most, as many as there is
    budget for: those that are expected to gain most themselves, and to teach others most. Solved
    items keep a small share, duplicates come once, and a quota keeps every domain. `curate filter`
    goes by rules instead. What an item teaches is known best from a run folder, with its gradients:
    what others that were chosen teach already then counts less.

    example: curate select runs/train-Qwen2.5-0.5B-Instruct --budget 0.4 --quota domain --format trl
    -o train.jsonl. Exit status: 0 done, 1 the disk failed, 2 bad usage or input, or no row is left.
    """

    resumes = False

    _: KW_ONLY
    budget: str = option(
        "how many rows: a number, such as 2000, or a share of those tagged, such as 0.4 or 40%",
        default="", group=_BUDGET, metavar="N|SHARE", or_number=True,
    )  # fmt: skip
    rollouts: int | None = option(
        "in the place of --budget: as many rows as R rollouts train on, a group for each row in "
        "every epoch",
        default=None, group=_BUDGET, metavar="R", least=1,
    )  # fmt: skip
    epochs: int = option(
        "of the training that --rollouts is for", default=1, group=_BUDGET, metavar="N", least=1
    )
    group_size: int | None = option(
        "rollouts in a group (default: the run's, else 8)",
        default=None, group=_BUDGET, metavar="G", least=2,
    )  # fmt: skip
    by: str = option(
        "gain: what the row's own pass rate is expected to gain, forecast less pass rate; "
        "teaching: what training on it does for the others, or for the items of the run's "
        "--target; both: by the mean of its places in the two",
        default="both", group=_VALUE, choices=("gain", "teaching", "both"),
    )  # fmt: skip
    easy_share: float = option(
        "at least this share of the rows are solved ones, with a pass rate above 0.9, as far as "
        "there are any: so that what is solved is not forgotten",
        default=0.05, group=_MIX, metavar="X", least=0,
    )  # fmt: skip
    quota: str = option(
        "every value of this column keeps its share of the rows", default="", group=_MIX,
        metavar="COLUMN",
    )  # fmt: skip
    share: str | Sequence[str] = option(
        "with --quota: this value of the column gets the share X of the rows instead; repeatable",
        default=(), group=_MIX, metavar="VALUE=X",
    )  # fmt: skip
    alike: float = option(
        "rows whose gradients have a cosine of at least X come once, as those with the same prompt "
        "or nearly the same do (needs a run folder; 1: only the latter)",
        default=0.95, group=_MIX, metavar="X", above=0,
    )  # fmt: skip
    dropped: str | Path | None = option(
        "where the other rows go, each with its dropped_reason", default=None, metavar="FILE"
    )

    def work(self) -> dict[str, Any]:
        """Write the rows.

        Returns:
            counts of rows kept and dropped, by reason, tag and domain, and what both are worth.

        Raises:
            UsageError: bad input, or no row is left; nothing was written.
            RunError: the disk failed, a file of the run is damaged, or the dataset changed
                meanwhile.
        """
        from recipes.select.select import Budget, Wanted, select_file

        wanted = Wanted(
            by=self.by,
            budget=Budget.read(self.budget, self.rollouts, self.epochs, self.group_size),
            easy_share=self.easy_share,
            quota=self.quota,
            shares=several(self.share),
            alike=self.alike,
        )
        return select_file(self, wanted, path_or_none(self.dropped))

    def lines(self, found: dict[str, Any]) -> list[str]:
        """Rows and chosen rows of each tag, what they are worth, and why the others are not in."""
        lines = [f"{'trainability':<24}{'rows':>9}{'chosen':>9}"]
        for tag, counts in found["tags"].items():
            lines.append(f"{tag:<24}{counts['rows']:>9,}{counts['kept']:>9,}")
        lines += [f"{'all':<24}{found['rows']:>9,}{found['kept']:>9,}", ""]
        if found["quota"]:
            lines.append(f"{found['quota']:<24}{'rows':>9}{'chosen':>9}")
            for kind, counts in found["kinds"].items():
                lines.append(f"{kind:<24}{counts['rows']:>9,}{counts['kept']:>9,}")
            lines.append("")
        lines.append(f"by {found['by']}{'':<{21 - len(found['by'])}}{'all':>9}{'chosen':>9}")
        for name, means in found["means"].items():
            shown = ["-" if means[who] is None else f"{means[who]:.3f}" for who in ("all", "kept")]
            lines.append(f"{'mean ' + name:<24}{shown[0]:>9}{shown[1]:>9}")
        lines += [f"{'solved':<24}{found['solved']['rows']:>9,}{found['solved']['kept']:>9,}", ""]
        lines.append(f"not chosen: {found['dropped']:,}")
        lines += [f"{count:>9,}  {rule}" for rule, count in found["reasons"].items()]
        lines += ["", f"chosen:     {found['out']}"]
        if found["dropped_file"]:
            lines.append(f"not chosen: {found['dropped_file']}")
        return lines


select = library_function(Select)
