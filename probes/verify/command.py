"""`curate verify`: verdicts on answers with their golds, and the library function of its name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY
from typing import TYPE_CHECKING, Any

from curate.command import Command
from curate.config import TagConfig
from curate.errors import UsageError
from curate.settings import option, option_of, settings

if TYPE_CHECKING:
    from probes.verifiers.verdict import Verdict

_READ, _JUDGE = "which answers", "judging"


@settings
class Verify(Command):
    """Try a verifier before rollouts are spent on it: judge answers with their golds, and say of
    each what was read from the answer and from the gold, and why the verdict is what it is. Answers
    come from a file, from the rollouts of a run, or from --answer and --gold. Of a dataset without
    answers every gold is judged against itself: one that is not accepted is a reject of `curate
    tag`, since no policy could ever be right on it.

    example: curate verify --answer 'so it is \\boxed{0.5}' --gold 1/2; curate verify answers.jsonl
    --verifier numeric --out verdicts.jsonl; curate verify runs/gsm8k-Qwen. Exit status: 0 done, 1
    failed while running, 2 bad usage or input.
    """

    resumes = False

    source: str = option(
        "a file of answers with golds (JSONL, JSON, CSV, Parquet), or a run folder",
        default="", metavar="SOURCE", by_place=True,
    )  # fmt: skip
    _: KW_ONLY
    answer: str = option(
        "one answer, as a model writes it", default="", group=_READ, metavar="TEXT", or_number=True
    )
    gold: str = option("its gold", default="", group=_READ, metavar="TEXT", or_number=True)
    boxed: bool = option("the answers are bare: put each in \\boxed{}", default=False, group=_READ)
    completion_field: str = option(
        "the column of answers (default: completion, response, generation, output, …)",
        default="", group=_READ, metavar="NAME",
    )  # fmt: skip
    answer_field: str = option(
        "the column of golds (default: gold, ground_truth, answer, solution, …)",
        default="", group=_READ, metavar="NAME",
    )  # fmt: skip
    prompt_field: str = option(
        "the column of the prompt, of a dataset without answers whose golds can only be read "
        "beside it (default: prompt, question, problem, …)",
        default="", group=_READ, metavar="NAME", or_number=True,
    )  # fmt: skip
    split: str = option_of(TagConfig, "split", default=..., group=_READ)
    subset: str = option_of(TagConfig, "subset", default=..., group=_READ)
    limit: int = option(
        "judge the first N answers (0: all)", default=0, group=_READ, metavar="N", least=0
    )
    verifier: str = option(
        "math, exact, numeric, choice, code, or your own MODULE:FUNCTION (default: math; of a run, "
        "its own)",
        default="", group=_JUDGE, metavar="NAME",
    )  # fmt: skip
    pass_threshold: float | None = option(
        "the reward of your own function from which on an answer is correct (default: the maximum; "
        "of a run, its own)",
        default=None, group=_JUDGE, metavar="X",
    )  # fmt: skip
    verifier_seconds: float = option_of(TagConfig, "verifier_seconds", default=..., group=_JUDGE)
    verifier_workers: int = option_of(TagConfig, "verifier_workers", default=..., group=_JUDGE)
    show: int = option(
        "print the first N answers that are not correct; those that cannot be judged for the same "
        "reason share a line",
        default=20,
        metavar="N",
        least=0,
    )
    out: str = option(
        "write every verdict to this file: .jsonl, .csv or .parquet",
        default="", flags=("-o", "--out"), metavar="FILE",
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Check that there is one source of answers."""
        super().__post_init__()
        if bool(self.source) == bool(self.answer or self.gold):
            raise UsageError(
                "give SOURCE, or --answer TEXT with --gold TEXT (see curate verify --help)"
            )
        if not self.source and not self.gold:
            raise UsageError("--answer needs --gold TEXT")

    def work(self) -> dict[str, Any]:
        """Judge the answers.

        Returns:
            verifier; counts of verdicts; `differ`, how many rewards are not those that the source
            has; `unreadable` rows with their reasons; and `verdicts`, or the `file` that has them.

        Raises:
            UsageError: bad input.
            RunError: a file of the run is damaged, or the disk is full.
        """
        from probes.verify.judge import judge_source

        return judge_source(self)

    def text(self, found: dict[str, Any]) -> str:
        """The verdict on one answer, or counts and the first answers that are not correct."""
        from probes.verify.text import one_text, verdicts_text

        if not self.source:
            return one_text(found["verdicts"][0])
        return verdicts_text(found, self.show)

    def facts(self, found: dict[str, Any]) -> dict[str, Any]:
        """All but what only the text shows."""
        return {name: value for name, value in found.items() if name != "shown"}


def verify(
    completions: str | Sequence[str],
    answers: str | float | Sequence[str | float],
    verifier: str = "math",
    *,
    pass_threshold: float | None = None,
    seconds: float = 5.0,
    workers: int | None = None,
) -> list[Verdict]:
    """Judge completions against gold answers, as `curate tag` does.

    Args:
        completions: (n,) texts as a model writes them; one text is one completion.
        answers: (n,) gold answers, or one for all completions.
        verifier: math, exact, numeric, choice, or MODULE:FUNCTION, found from the current folder.
        pass_threshold: the reward of such a function from which on a completion is correct; None:
            its maximum, which is 1 or what its attribute `max_reward` says.
        seconds: processor time that a completion may take before it counts as not judged.
        workers: processes; None: one a core.

    Returns:
        (n,) verdicts in order, each with `reward` (None where it could not be judged), `verdict`,
        `answer_found`, `answer_read` and `gold_read` (what was compared) and `reason`.

    Raises:
        UsageError: an unknown verifier, no text, or numbers of completions and answers that differ.
        RunError: the verifier's workers die.
    """
    from probes.verify.judge import judge_pairs

    texts = [completions] if isinstance(completions, str) else list(completions)
    one = isinstance(answers, str) or not isinstance(answers, Iterable)
    golds = [answers] * len(texts) if one else list(answers)  # type: ignore[arg-type]
    if len(texts) != len(golds):
        raise UsageError(f"verify() got {len(texts)} completions and {len(golds)} answers")
    return judge_pairs(
        texts, golds, verifier, pass_threshold=pass_threshold, seconds=seconds, workers=workers
    )
