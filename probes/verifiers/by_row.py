"""A verifier a row: which one a dataset of several kinds asks for, by the value of a column.

Names that trainers choose their rewards by are known: those of open-instruct's `dataset`
(open_instruct/ground_truth_utils.py), of verl's `data_source` (verl/utils/reward_score/__init__.py
and what Eurus-2 and Skywork-OR1 have there), and of `task_type` in SYNTHETIC-1 and -2. The table
`[verifiers]` of the configuration adds names and wins over these; `"*"` in it is for all others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from curate.config import TagConfig
from curate.datasets.code_tests import is_code_gold
from curate.datasets.fields import MISSING, RowRejected, lookup, type_name
from curate.datasets.golds import why_no_answer
from curate.datasets.source import Source
from probes.verifiers.load import VERIFIERS
from probes.verifiers.pool import VerifierPool
from probes.verifiers.sandbox import why_no_sandbox

CODE = "code"
"""The verifier that runs programs; where they have no sandbox, its rows are rejected."""
OTHERS = "*"
_ROWS_READ = 1000
_JUDGE = "asks for a language model's judgement"
_WORDING = "asks for constraints on the wording"
_LENGTH = "asks for a length"

KIND_COLUMNS = ("dataset", "data_source", "task_type")
"""Columns in which kinds are named."""

# By name, in lower case: a verifier, or why there is none.
_NAMES = {
    # open-instruct
    "gsm8k": "numeric",
    "math": "math",
    "strict_math": "math",
    "string_matcher": "exact",
    "flan": "exact",
    "puzzle": "exact",
    "re_search": "exact",
    "code": CODE,
    "code_stdio": CODE,
}
_NAMES |= dict.fromkeys(
    # verl
    (
        *("lighteval/math", "digitallearninggmbh/math-lighteval", "huggingfaceh4/math-500"),
        *("math_dapo", "math_dapo_reasoning", "hiyouga/geometry3k", "deepscaler"),
        *("numina_aops_forum", "numina_synthetic_math", "numina_amc_aime"),
        *("numina_synthetic_amc", "numina_cn_k12", "numina_olympiads"),
        # SYNTHETIC-1 and -2
        "verifiable_math",
    ),
    "math",
)
_NAMES |= dict.fromkeys(("openai/gsm8k",), "numeric")
_NAMES |= dict.fromkeys(("codecontests", "apps", "codeforces", "taco", "verifiable_code"), CODE)
_PREFIXES = {
    "aime": "math",
    "train-math-": "math",  # Skywork-OR1
    "train-code-": CODE,
    "searchr1_": "exact",
}
_NONE = {
    "ifeval": _WORDING,
    "ifeval_old": _WORDING,
    "string_f1": "asks for a share of common words",
    "re_search_f1": "asks for a share of common words",
    "max_length": _LENGTH,
    "up_to_max_length": _LENGTH,
    "llm_judgeable_groundtruth_similarity": _JUDGE,
    "verifiable_code_understanding": "asks for the output of a program, as JSON",
}
_NO_PREFIXES = {"general-": _JUDGE}


class RowVerifiers:
    """Which verifier judges the answers to a row's question.

    Args:
        config: of the run: its `verifier`, or `verifier_field` and `verifiers`.
    """

    def __init__(self, config: TagConfig) -> None:
        self.field = config.verifier_field
        self.default = config.verifier
        self.table: dict[str, str] = dict(config.verifiers)
        self.golds_are_optional = config.golds == "optional"

    @property
    def is_mixed(self) -> bool:
        """Whether rows have verifiers of their own."""
        return bool(self.field)

    @property
    def names(self) -> tuple[str, ...]:
        """Every verifier that may be asked for, the run's own first."""
        if not self.is_mixed:
            return (self.default,)
        known = (name for name in VERIFIERS if name != CODE or why_no_sandbox() is None)
        return tuple(dict.fromkeys((self.default, *known, *self.table.values())))

    def of(self, row: Mapping[str, Any]) -> str:
        """The verifier of a row.

        Raises:
            RowRejected: the row names none, or one that is not known.
        """
        if not self.is_mixed:
            return self.default
        value = lookup(row, self.field)
        if isinstance(value, list) and len(value) == 1:  # open-instruct has lists of one.
            value = value[0]
        if value is MISSING or value is None or value == "":
            raise RowRejected(f"no verifier: {self.field!r} is missing or null")
        if not isinstance(value, str | int):
            raise RowRejected(f"no verifier: {self.field!r} is {type_name(value)}, not a name")
        return self._named(str(value))

    def why_no_answer(self, verifier: str, gold: str) -> str | None:
        """Why a verifier cannot take a text for a gold answer; else None."""
        if self.golds_are_optional:
            return None
        if verifier == CODE:
            return None if is_code_gold(gold) else "its gold answer is no tests of a program"
        return why_no_answer(gold) if verifier in VERIFIERS else None

    def _named(self, value: str) -> str:
        if value in self.table:
            return self.table[value]
        name = value.casefold()
        found = _NAMES.get(name) or _by_prefix(name, _PREFIXES)
        shown = f"{self.field} {value[:80]!r}"
        if found is None and name in VERIFIERS:
            found = name
        if found is not None:
            if found == CODE and (missing := why_no_sandbox()):
                raise RowRejected(f"{shown} needs the verifier code: {missing[0]}")
            return found
        if OTHERS in self.table:
            return self.table[OTHERS]
        why = _NONE.get(name) or _by_prefix(name, _NO_PREFIXES)
        if why:
            raise RowRejected(f"{shown} {why}, which no verifier here judges")
        raise RowRejected(f"no verifier is known for {shown}; name one in [verifiers] of --config")


def run_pool(config: TagConfig, workers: int | None = None) -> VerifierPool:
    """Workers that judge by the verifier of a run, or by those of its rows; not entered.

    Args:
        config: of the run.
        workers: where the run says no number; one a core if None.
    """
    return VerifierPool(
        config.verifier,
        others=RowVerifiers(config).names,
        workers=config.verifier_workers or workers,
        seconds=config.verifier_seconds,
        pass_threshold=config.pass_threshold,
    )


def hints(source: Source) -> list[str]:
    """A word for each column whose first rows name kinds that are judged differently."""
    rows = [row.value for row in islice(source.rows(), _ROWS_READ) if row.value is not None]
    return [hint for column in KIND_COLUMNS if (hint := kinds_hint(rows, column))]


def kinds_hint(rows: Sequence[Mapping[str, Any]], column: str) -> str:
    """A word where a column names kinds that are judged differently; "" where it does not."""
    kinds: dict[str, str] = {}
    for row in rows:
        value = row.get(column)
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        if isinstance(value, str):
            name = value.casefold()
            known = _NAMES.get(name) or _by_prefix(name, _PREFIXES)
            known = known or _NONE.get(name) or _by_prefix(name, _NO_PREFIXES)
            if known:
                kinds.setdefault(known, value)
    if len(kinds) < 2:
        return ""
    shown = ", ".join(repr(value[:40]) for value in list(kinds.values())[:4])
    return (
        f"{column!r} names kinds that are judged differently ({shown}): --verifier-field {column} "
        "gives each its own verifier"
    )


def _by_prefix(name: str, prefixes: Mapping[str, str]) -> str | None:
    return next((found for start, found in prefixes.items() if name.startswith(start)), None)
