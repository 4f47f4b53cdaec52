"""The tagged dataset as `curate.tag` returns it: an Arrow table that a notebook can show."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from curate.datasets.fields import RowRejected
from curate.datasets.layouts import Layout, read_question
from curate.notebook import tag_counts, tagged_html

_SHOWN = 10


@dataclass(frozen=True, eq=False, repr=False)
class TaggedTable:
    """A tagged dataset, a row for every row of the input.

    It stands for its Arrow table: what a `pyarrow.Table` can do it can do (`to_pandas`, `filter`,
    `column_names`, `table["pass_rate"]`, ...), and pandas, polars, DuckDB and pyarrow take it as
    one (`pl.DataFrame(table)`). Where exactly a `pyarrow.Table` is asked for, as by
    `pyarrow.parquet.write_table`, give `table.arrow`.

    Attributes:
        arrow: the table.
        run_dir: the run folder, which `curate.Run.open` opens.
        layout: where the dataset keeps its prompts and gold answers.
    """

    arrow: pa.Table
    run_dir: Path
    layout: Layout

    def __getattr__(self, name: str) -> Any:
        # Python asks for special names where an object is half made, as when it is unpickled.
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.arrow, name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *dir(self.arrow)})

    def __getitem__(self, key: Any) -> Any:
        return self.arrow[key]

    def __len__(self) -> int:
        return len(self.arrow)

    def __eq__(self, other: object) -> bool:
        other = other.arrow if isinstance(other, TaggedTable) else other
        return bool(self.arrow == other)

    __hash__ = None  # type: ignore[assignment]  # As that of an Arrow table.

    def __arrow_c_schema__(self) -> object:
        """The schema, for other libraries."""
        return self.arrow.schema.__arrow_c_schema__()

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """The rows, for other libraries."""
        return self.arrow.__arrow_c_stream__(requested_schema)

    def __repr__(self) -> str:
        counts = tag_counts(self.arrow["trainability"].to_pylist())
        tags = ", ".join(f"{tag} {count:,}" for tag, count in counts.items())
        return f"TaggedTable of {len(self):,} rows, run {self.run_dir}: {tags}"

    def _repr_html_(self) -> str:
        """The bar of tags and the first rows, for a notebook."""
        first = self.arrow.slice(0, _SHOWN).to_pylist()
        tags = self.arrow["trainability"].to_pylist()
        return tagged_html(tags, first, list(self._prompts(first)))

    def _prompts(self, rows: list[dict[str, Any]]) -> Iterator[str | None]:
        """The last message of each row's prompt; None of a row that was rejected."""
        for row in rows:
            try:
                yield read_question(row, self.layout).messages[-1][1]
            except RowRejected:
                yield None
