"""Completions that are cut at --max-tokens: told of the first rollouts, while little is spent."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from curate.config import TagConfig
from curate.errors import RunError
from curate.progress import say
from curate.run.tables import read_parquet

ENOUGH = 256
"""Rollouts by which it is told how many are cut. Of whole shards, of which none is left out that
takes long: the first to finish are the shortest."""
_TOO_MANY = 0.5
# Above this share of cut completions the pass rates say more of --max-tokens than of the policy.
_WARNED_OF = 0.2
# Above this share the tags say next to nothing of the policy.
_NEARLY_ALL = 0.9


class CutRollouts:
    """Counts those that are cut among the first rollouts of a run.

    Args:
        max_tokens: at which a completion is cut.
        most: rollouts of the whole run at most; once so many are drawn, its end tells how many are
            cut, and it is not told here.
        stops: end the run where more than half are.
    """

    def __init__(self, max_tokens: int, most: int, *, stops: bool) -> None:
        self._max_tokens = max_tokens
        self._most = most
        self._stops = stops
        self._drawn = self._cut = 0
        self._is_told = False

    def read(self, files: Iterable[Path]) -> None:
        """Count what earlier commands drew, as far as it is needed.

        Raises:
            RunError: more than half are cut, and the run is to end then.
        """
        for file in files:
            if self._is_told:
                return
            self.saw(read_parquet(file, ["finish_reason"]))

    def saw(self, table: pa.Table) -> None:
        """Count the rollouts of a whole shard; tell once there are enough.

        Raises:
            RunError: more than half are cut, and the run is to end then.
        """
        if self._is_told:
            return
        self._drawn += table.num_rows
        self._cut += pc.sum(pc.equal(table["finish_reason"], "length")).as_py() or 0
        if self._drawn >= ENOUGH:
            self._tell()

    def end(self) -> None:
        """Stop after a round that had fewer.

        Raises:
            RunError: more than half are cut, and the run is to end then.
        """
        if self._stops and self._drawn and not self._is_told:
            self._tell()

    def _tell(self) -> None:
        self._is_told = True
        share = self._cut / self._drawn
        if share <= _TOO_MANY:
            return
        found = (
            f"{share:.0%} of the first {self._drawn:,} rollouts were cut at --max-tokens "
            f"{self._max_tokens} and count as wrong"
        )
        other = (
            "a run of its own (--run-dir) with more --max-tokens, or with an --instruction that "
            "asks for shorter answers, tells more"
        )
        if self._stops:
            raise RunError(
                f"{found}: --stop-when-cut ends the run here; {other}; the same command without "
                "--stop-when-cut continues this one"
            )
        if self._drawn < self._most:
            say(f"warning: {found}; {other}; --stop-when-cut would have ended the run here")


def warn_of_cut(config: TagConfig, drawn: int, cut: int) -> None:
    """Say so where, of all rollouts of a run, many are cut."""
    if cut <= _WARNED_OF * drawn:
        return
    if config.rollouts:
        say(
            f"warning: {cut / drawn:.0%} of the completions were cut at their limit of tokens; "
            "the pass rates say as much of that limit as of the policy"
        )
        return
    little = "so little was measured, whatever p_unlearnable is; " * (cut > _NEARLY_ALL * drawn)
    say(
        f"warning: {cut / drawn:.0%} of the completions were cut at --max-tokens "
        f"{config.max_tokens} and count as wrong; {little}a run of its own (--run-dir) with more, "
        "or with an --instruction that asks for shorter answers, may tell more"
    )
