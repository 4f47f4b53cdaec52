"""The answers stage: what the rollouts of an item answer, where that is not the gold.

Of every item the answers of its judged rollouts are counted. Right ones are one answer. Wrong ones
are one where their normal forms are the same text (below), and by `math`, and any other verifier
that knows more than text, where the verifier accepts them for the most frequent wrong answer:
asked are the next seven, of items whose eight most frequent wrong answers are more than half of
all answers. So the share of the most frequent wrong answer is a lower bound, and a verdict an item
would cost seven more at most.

Normal forms: the number that `numeric` reads, the letter of `choice`, for `exact` the text blind to
case and white space; for `math` the text without dollars and boxes. A user's own
function does not say what it read; what a completion sets apart, by a box or by `####`, is taken,
blind to white space, and where it sets nothing apart it has an answer that is like no other.
Programs are not compared: of them `no_positive_kind` alone is told, where most were cut or none.

- `majority_answer` is the most frequent answer, the gold's where it leads, and `majority_share` its
  share of all answers, with the 95 % interval of Clopper and Pearson, as if all were drawn
  independently (`probes.statistics.pass_rates`).
- `suspect_gold`: the majority is a wrong answer, there are at least 8 answers, and the interval
  lies above a half. That is self-consistency (Wang et al. 2023) turned against the gold: either
  the gold is wrong, or the policy errs in always the same way. Which of the two is more likely is
  told by the items of the run whose majority is as sure and that is the gold's: the facts of the
  stage have their number. Null with fewer than 8 answers.
- `no_positive_kind`, of items without a correct rollout: what most of the judged rollouts did.
  `another_answer`: they gave an answer, and more than half of the answers are the same;
  `scattered`: an answer, and no such majority; `truncated`: cut at --max-tokens; `no_answer`: no
  answer was found. Null where most are of a user's function and set no answer apart. Of equal
  numbers the first of this list counts.

Wang et al. (2023), Self-consistency improves chain of thought reasoning in language models, ICLR.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from curate.progress import Progress
from curate.run.rollouts import item_rows, read_outcomes, rollout_outcomes, rollout_shards
from curate.run.tables import ITEM_ANSWERS, Folder
from curate.tags import ANOTHER_ANSWER, CUT, NO_ANSWER, SCATTERED
from probes.statistics.pass_rates import pass_rate_interval
from probes.verifiers.answers import bare, given_answer
from probes.verifiers.by_row import CODE
from probes.verifiers.choice import read_choice
from probes.verifiers.load import read_exact
from probes.verifiers.numeric import read_numeric
from probes.verifiers.pool import Pair, VerifierPool
from probes.verifiers.verdict import shortened

FEWEST_ANSWERS = 8
_COMPARED = 8
# Items whose answers are held at once.
_ITEMS_AT_ONCE = 4096
_SHOWN = 200


def _math_form(text: str) -> str:
    return " ".join(bare(text).split())


def _text_form(text: str) -> str:
    return " ".join(text.split())


_FORMS: dict[str, Callable[[str], str]] = {
    "exact": read_exact,
    "numeric": read_numeric,
    "choice": read_choice,
}
"""Of verifiers to which equal forms are all that equality is."""


@dataclass
class _Answers:
    """What the judged rollouts of an item came to."""

    verifier: str
    judged: int = 0
    correct: int = 0
    cut: int = 0
    none: int = 0
    right: Counter[str] = field(default_factory=Counter)
    """Right answers, by their form."""
    wrong: Counter[str] = field(default_factory=Counter)
    texts: dict[str, str] = field(default_factory=dict)
    """The first text of each form."""

    @property
    def found(self) -> int:
        """Answers in all, those that were not read too."""
        return self.judged - self.cut - self.none

    def leading(self) -> list[str]:
        """The most frequent wrong answers; of equally frequent ones the first drawn."""
        return [form for form, _ in self.wrong.most_common(_COMPARED)]

    def could_lead(self) -> bool:
        """Whether the wrong answers that are compared could be a majority together."""
        return 2 * sum(self.wrong[form] for form in self.leading()) > self.found


def count_answers(
    run: Folder,
    item_ids: pa.ChunkedArray,
    row_of: Mapping[str, int],
    pool: VerifierPool,
    verifiers: pa.ChunkedArray | None = None,
) -> dict[str, Any]:
    """Write `answers.parquet`, a line an item; return what they come to in the run.

    Args:
        run: all rollouts have a verdict.
        item_ids: of its items, in their order.
        row_of: position of each item by item_id.
        pool: of the run's verifier, not entered.
        verifiers: of the items, null for the pool's; None: all have the pool's.

    Returns:
        `suspect_golds`; `sure_majorities`, the items whose majority is as sure as theirs, whatever
        it is, and `sure_and_gold`, how many of these are the gold's; `no_positive_kinds`, counts.

    Raises:
        RunError: a file is missing or damaged, or the verifier's workers die.
    """
    rows: list[dict[str, Any]] = []
    named = [None] * len(item_ids) if verifiers is None else verifiers.to_pylist()
    names = [name or pool.verifier for name in named]
    is_asked = any(_knows_more(name) for name in set(names))
    is_open = False
    with ExitStack() as stack, Progress("answers", len(item_ids), "items") as progress:
        for block in _blocks(run, row_of, names):
            pairs, owners = _to_compare(block) if is_asked else ([], [])
            if pairs and not is_open:  # Its workers take seconds to start.
                stack.enter_context(pool)
                is_open = True
            if pairs:
                _merge(owners, [verdict.is_correct for verdict in pool.judge(pairs)])
            rows += map(_row, block)
            progress.advance(len(block))
    table = pa.Table.from_pylist(rows, pa.schema(list(ITEM_ANSWERS.columns.items())[1:]))
    table = table.add_column(0, "item_id", item_ids)
    ITEM_ANSWERS.write(run, table)
    sure = [row for row in rows if _is_sure(row)]
    kinds = Counter(row["no_positive_kind"] for row in rows if row["no_positive_kind"])
    return {
        "suspect_golds": sum(row["suspect_gold"] is True for row in rows),
        "sure_majorities": len(sure),
        "sure_and_gold": sum(row["suspect_gold"] is False for row in sure),
        "no_positive_kinds": {kind: kinds[kind] for kind in _KINDS if kinds[kind]},
    }


_KINDS = (ANOTHER_ANSWER, SCATTERED, CUT, NO_ANSWER)


def _knows_more(verifier: str) -> bool:
    """Whether a verifier can tell answers equal whose forms differ."""
    return verifier not in _FORMS and verifier != CODE and ":" not in verifier


def _form(verifier: str, text: str) -> str:
    form = _FORMS.get(verifier, _text_form if ":" in verifier else _math_form)
    return form(text)


def _blocks(
    run: Folder, row_of: Mapping[str, int], verifiers: Sequence[str]
) -> Iterator[list[_Answers]]:
    """Yield the answers of all items in their order, some thousand items at a time."""
    files: dict[int, list[Any]] = {}
    for file in rollout_shards(run):
        places = item_rows(read_outcomes(file, "item_id"), row_of)
        for block in np.unique(places // _ITEMS_AT_ONCE).tolist():
            files.setdefault(block, []).append(file)
    reads_completions = any(":" in name for name in verifiers)
    names = ["item_id", "verdict", "answer_found"]
    for block in range(-(-len(row_of) // _ITEMS_AT_ONCE)):
        first = block * _ITEMS_AT_ONCE
        found = [_Answers(name) for name in verifiers[first : first + _ITEMS_AT_ONCE]]
        for file in files.get(block, []):
            table = read_outcomes(file, *names, *(["completion"] if reads_completions else []))
            places = item_rows(table, row_of) - first
            outcome = rollout_outcomes(table)
            lines = np.flatnonzero((places >= 0) & (places < len(found)) & (outcome >= 0))
            chosen = table.take(pa.array(lines, pa.int64())).to_pylist()
            for line, row in zip(lines.tolist(), chosen, strict=True):
                _count(found[places[line]], row, outcome[line] == 1)
        yield found


def _count(item: _Answers, rollout: Mapping[str, Any], is_correct: bool) -> None:
    item.judged += 1
    item.correct += bool(is_correct)
    if rollout["verdict"] == "truncated":
        item.cut += 1
        return
    if rollout["verdict"] == "no_answer":
        item.none += 1
        return
    if item.verifier == CODE:  # Two programs are hardly ever the same text.
        return
    answer = rollout["answer_found"]
    if answer is None and ":" in item.verifier:
        answer = given_answer(rollout["completion"])
    if not answer:
        return
    answer = shortened(answer)
    key = _form(item.verifier, answer)
    item.texts.setdefault(key, answer)
    (item.right if is_correct else item.wrong)[key] += 1


_Owner = tuple[_Answers, str, str]


def _to_compare(block: list[_Answers]) -> tuple[list[Pair], list[_Owner]]:
    """What the verifier is asked of wrong answers, and of which item and answers each is."""
    pairs: list[Pair] = []
    owners: list[_Owner] = []
    for item in block:
        if _knows_more(item.verifier) and len(item.wrong) > 1 and item.could_lead():
            first, *others = item.leading()
            gold, name = item.texts[first], item.verifier
            pairs += [(rf"\boxed{{{item.texts[each]}}}", gold, name) for each in others]
            owners += [(item, first, each) for each in others]
    return pairs, owners


def _merge(owners: list[_Owner], are_equal: list[bool]) -> None:
    """Count wrong answers with the most frequent one where the verifier finds them equal."""
    for (item, first, each), is_equal in zip(owners, are_equal, strict=True):
        if is_equal:
            item.wrong[first] += item.wrong.pop(each)


def _row(item: _Answers) -> dict[str, Any]:
    """What `answers.parquet` says of an item."""
    row: dict[str, Any] = dict.fromkeys([*ITEM_ANSWERS.columns][1:])
    row["answers"] = item.found
    lead = item.wrong.most_common(1)
    wrong = lead[0][1] if lead else 0
    is_wrong = wrong > item.correct
    if item.verifier != CODE and (item.correct or lead):
        # A function that accepts what sets no answer apart does not say what that was.
        is_read = is_wrong or 2 * item.right.total() > item.correct
        form = (lead if is_wrong else item.right.most_common(1))[0][0] if is_read else None
        text = None if form is None else item.texts[form]
        most = max(wrong, item.correct)
        low, high = pass_rate_interval(most, item.found)
        row["majority_answer"] = (
            text if text is None or len(text) <= _SHOWN else text[:_SHOWN] + "…"
        )
        row["majority_share"] = most / item.found
        row["majority_low"], row["majority_high"] = float(low), float(high)
        if item.found >= FEWEST_ANSWERS:
            row["suspect_gold"] = bool(is_wrong and low > 0.5)
    if item.judged and not item.correct:
        row["no_positive_kind"] = _kind(item, wrong)
    return row


def _kind(item: _Answers, wrong: int) -> str | None:
    """What most rollouts of an item without a correct one did."""
    read = item.wrong.total()
    most = max(read, item.cut, item.none, item.found - read)
    if read == most:
        return ANOTHER_ANSWER if 2 * wrong > item.found and wrong > 1 else SCATTERED
    return CUT if item.cut == most else NO_ANSWER if item.none == most else None


def _is_sure(row: Mapping[str, Any]) -> bool:
    return row["suspect_gold"] is not None and bool(row["majority_low"] > 0.5)
