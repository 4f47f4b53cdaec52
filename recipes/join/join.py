"""`curate join`: the runs of several models on one dataset as one file, and how far they agree.

Items are matched by `item_id`. The file has the rows and columns of the first run's dataset, once
and in order, then `item_id`, then the columns of each model's tagged file under its name
(`curate.tagged.joined`). An item counts as solved by a model where its tag is easy: the pass rate
is at least τ.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from curate.config import MOVE_PASS_RATES, shown
from curate.datasets.fields import RowRejected
from curate.datasets.layouts import choose_layout, read_question
from curate.datasets.source import Source, open_source
from curate.errors import CurateError, RunError, UsageError
from curate.files import file_sha256, write_atomically
from curate.run.evidence import tag_evidence
from curate.run.names import join_summary
from curate.run.quality import run_schema
from curate.run.run import Run
from curate.run.tagged_rows import why_untagged
from curate.tagged.joined import ITEM_ID, check_model_names, column_of, model_name
from curate.tagged.rows import open_tagged, values_of, without_columns
from curate.tagged.write import Annotation, check_out, columns_of, write_tagged
from curate.tags import Trainability
from recipes.statistics.agreement import confusion
from recipes.statistics.changes import pass_rates, rate_change
from recipes.statistics.kappa import tag_agreement

_ROWS_AT_ONCE = 4096
_EXAMPLES = 3
_LONGEST_PROMPT = 300
_NOT_IN_RUN = "not in the run of this model"


@dataclass(frozen=True)
class Model:
    """One of the models: its name, and its run."""

    name: str
    run: Run

    @cached_property
    def evidence(self) -> pa.Table:
        """The columns of its tagged file but `item_id`, a row an item of the run."""
        return tag_evidence(self.run).drop_columns(ITEM_ID)

    @cached_property
    def tags(self) -> dict[str, str]:
        """The tag of every item by item_id."""
        return dict(zip(self.run.ids.to_pylist(), self.run.tags(), strict=True))

    @cached_property
    def rates(self) -> dict[str, float | None]:
        """The pass rate of every item by item_id; None where nothing could be judged."""
        rates = self.evidence["pass_rate"].to_pylist()
        return dict(zip(self.run.ids.to_pylist(), rates, strict=True))

    @cached_property
    def doubted(self) -> set[str]:
        """The items whose gold looks wrong by its answers."""
        found = self.run.ids.filter(self.evidence["suspect_gold"].combine_chunks())
        return set(found.to_pylist())

    @property
    def fingerprint(self) -> str | None:
        """Of the dataset that was tagged."""
        value: str | None = self.run.manifest.get("dataset", {}).get("fingerprint")
        return value


def join_runs(paths: Sequence[Path], out: Path, names: Sequence[str] = ()) -> dict[str, Any]:
    """Write the runs of several models as one file, and the summary beside it.

    Args:
        paths: run folders, one a model.
        out: the file; its suffix says in which format.
        names: of the models, in their order; none: made of their models' names.

    What is returned is told in `recipes.join.command`.

    Raises:
        UsageError: bad input, or no item is in all runs; nothing was written.
        RunError: a file of a run is missing or damaged, or the disk failed.
    """
    runs = [Run.open(path) for path in paths]
    _check_runs(runs, names)
    first = runs[0]
    source = own_columns(first)
    columns = columns_of(source)
    models = [
        Model(name, run)
        for name, run in zip(names or default_names(runs, columns), runs, strict=True)
    ]
    check_model_names([model.name for model in models], columns)
    common = [each for each in first.ids.to_pylist() if all(each in m.tags for m in models)]
    if not common:
        raise UsageError(
            f"{', '.join(str(run.path) for run in runs)} have no item in common: an item is the "
            "same where prompt and answer are, so tag one dataset with all models"
        )
    _check_out(source, out, runs)
    ids = first.rows(ITEM_ID)[ITEM_ID]
    schema = pa.schema(
        [
            (ITEM_ID, pa.string()),
            *(
                (column_of(model.name, field.name), field.type)
                for model in models
                for field in model.evidence.schema
            ),
        ]
    )
    summary = {
        "out": str(out),
        "rows": len(ids),
        "rows_without_item": ids.null_count,
        "items": {"rows": len(first.ids), "in_all": len(common)},
        "models": [_facts(model, models[0], common) for model in models],
        "settings": differing_settings(models),
        "notes": list(_notes(models)),
        "pairs": [_pair(one, other) for one, other in combinations(models, 2)],
        **_solved(models, common),
    }
    _add_prompts(summary, source, first, ids)
    write_tagged(source, out, _annotations(models, ids), schema)
    try:
        # So that a summary is not taken for that of another file.
        summary["sha256"] = file_sha256(out)
        text = json.dumps(summary, indent=2, allow_nan=False) + "\n"
        write_atomically(join_summary(out), text)
    except OSError as error:
        raise RunError(f"cannot write {join_summary(out)}: {error.strerror or error}") from error
    return summary


def own_columns(run: Run) -> Source:
    """The rows of a run's dataset with its own columns alone.

    They are read from the dataset, or else from the tagged file: whichever is still there and is
    this run's. Nothing is fetched: a dataset of the Hub is known by its tagged file alone.

    Raises:
        UsageError: neither is.
    """
    added = run_schema(run.path, run.config).names
    config = run.config
    if config.dataset and Path(config.dataset).exists():
        try:
            source = open_source(config.dataset, split=config.split, subset=config.subset or None)
            if source.fingerprint == run.manifest.get("dataset", {}).get("fingerprint"):
                return without_columns(source, added)
        except CurateError:
            pass  # The tagged file has all of its columns.
    if not Path(config.out).is_file():
        raise UsageError(
            f"{run.path}: neither its dataset {config.dataset} is there as it was tagged, nor the "
            f"tagged file {config.out} (seen from here)"
        )
    return without_columns(open_tagged(run.path).source, added)


def default_names(runs: Sequence[Run], columns: Sequence[str]) -> list[str]:
    """Names made of those of the models, or of the run folders where models have one name.

    Args:
        runs: of the models.
        columns: of the dataset, which no name is like.
    """
    # Of rollouts that were imported the folder tells more than words about their policy.
    wanted = [model_name(_model_word(run.config.model) or run.path.resolve().name) for run in runs]
    counts = Counter(wanted)
    wanted = [
        name if counts[name] == 1 else model_name(run.path.resolve().name)
        for name, run in zip(wanted, runs, strict=True)
    ]
    taken = {column.partition(".")[0].casefold() for column in columns}
    names: list[str] = []
    for name in wanted:
        numbered = (name, *(f"{name[:36]}_{number}" for number in range(2, len(runs) + 99)))
        names.append(next(each for each in numbered if each not in taken))
        taken.add(names[-1])
    return names


def _model_word(model: str) -> str:
    """What a model is called, of the path, the id or the file that it was given by."""
    word = model.partition("@")[0].replace("\\", "/").rstrip("/").rpartition("/")[2]
    return word.removesuffix(".gguf")


def _check_runs(runs: Sequence[Run], names: Sequence[str]) -> None:
    for one, other in combinations(runs, 2):
        if one.path.resolve() == other.path.resolve():
            raise UsageError(f"{one.path} and {other.path} are one run folder; give one a model")
    if names and len(names) != len(runs):
        raise UsageError(
            f"--name is given {len(names)} times for {len(runs)} runs: one a run, in their order"
        )


def _check_out(source: Source, out: Path, runs: Sequence[Run]) -> None:
    check_out(source, out)
    for run in runs:
        for file in (run.config.out, run.config.dataset):
            if Path(file).resolve() == out.resolve():
                raise UsageError(f"{out} is a file of {run.path}; write to another file")


# --- The file -------------------------------------------------------------------------------------


def _annotations(models: Sequence[Model], ids: pa.ChunkedArray) -> Iterator[Annotation]:
    """Yield what all models say of each row of the first run's dataset, some rows at a time."""
    reasons = [_reasons(model, models[0], ids) for model in models]
    places = [pc.index_in(ids, value_set=model.run.ids) for model in models]
    for start in range(0, len(ids), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        found: list[dict[str, object]] = [
            {ITEM_ID: each} for each in ids.slice(start, _ROWS_AT_ONCE).to_pylist()
        ]
        for model, place, reason in zip(models, places, reasons, strict=True):
            at = place.slice(start, _ROWS_AT_ONCE)
            columns = model.evidence.take(at).rename_columns(
                [column_of(model.name, name) for name in model.evidence.column_names]
            )
            why = column_of(model.name, "tag_reason")
            for row, values, is_there, said in zip(
                found, columns.to_pylist(), at.is_valid().to_pylist(), reason[part], strict=True
            ):
                row.update(values)
                if not is_there:
                    row[why] = said
        yield from found


def _reasons(model: Model, first: Model, ids: pa.ChunkedArray) -> list[str]:
    """Why a model has no tag for a row, for every row: (rows,); of rows with a tag it is not asked.

    Runs of one dataset have the same rows; of another's it is only known that an item is not there.
    """
    nothing = [_NOT_IN_RUN] * len(ids)
    if model is not first and (model.fingerprint is None or model.fingerprint != first.fingerprint):
        return nothing
    rows = model.run.rows(ITEM_ID, "reason")
    if len(rows) != len(ids):
        return nothing
    return [
        _NOT_IN_RUN if reason is None else why_untagged(reason)
        for reason in rows["reason"].to_pylist()
    ]


# --- The summary ----------------------------------------------------------------------------------


def _facts(model: Model, first: Model, common: Sequence[str]) -> dict[str, Any]:
    """What a run is, and what it has of the items of the first and beyond them."""
    tags = Counter(model.tags.values())
    rates = [rate for each in common if (rate := model.rates[each]) is not None]
    return {
        "name": model.name,
        **model.run.facts,
        "tags": {str(tag): tags[tag] for tag in Trainability},
        "mean_pass_rate": float(np.mean(rates)) if rates else None,
        "items_missing": sum(each not in model.tags for each in first.tags),
        "items_beyond": sum(each not in first.tags for each in model.tags),
    }


def differing_settings(models: Sequence[Model]) -> dict[str, dict[str, Any]]:
    """Settings that pass rates go by and that are not the same: `{setting: {model: value}}`."""
    found = {}
    for name in (*MOVE_PASS_RATES, "tau"):
        values = {model.name: getattr(model.run.config, name) for model in models}
        if len({repr(value) for value in values.values()}) > 1:
            found[name] = values
    return found


def _notes(models: Sequence[Model]) -> Iterator[str]:
    """What else than the policy makes the models differ."""
    for name, values in differing_settings(models).items():
        said = ", ".join(f"{shown(value)} for {model}" for model, value in values.items())
        what = "tags are" if name == "tau" else "pass rates and tags are"
        yield f"{name} is {said}: differences of {what} of that as well as of the models"
    for model in models:
        config = model.run.config
        if config.rollouts and not model.run.drawn_by:
            yield (
                f"the rollouts of {model.name} were taken from files, and what drew them is not "
                "known: its pass rates may be of other settings"
            )
    fingerprints = {model.fingerprint for model in models}
    if len(fingerprints) > 1:
        yield (
            f"the datasets are not the same file: rows are those of {models[0].name}, and only "
            "items with the same prompt and answer are matched"
        )
    lifts = {model.name: model.run.facts["lift"] for model in models}
    if len({lift for lift in lifts.values() if lift}) > 1:
        said = ", ".join(f"{lift} for {name}" for name, lift in lifts.items() if lift)
        yield f"the lift is from {said}: lift and forecast are of that as well as of the models"
    for one, other in combinations(models, 2):
        if one.run.weight_hash and one.run.weight_hash == other.run.weight_hash:
            yield (
                f"{one.name} and {other.name} are the same weights: what differs, differs by "
                "chance or settings"
            )


def _pair(one: Model, other: Model) -> dict[str, Any]:
    """How far two models agree on the items that both runs have."""
    ids = one.run.ids.filter(pc.is_in(one.run.ids, value_set=other.run.ids))
    both = ids.to_pylist()
    table = confusion([one.tags[each] for each in both], [other.tags[each] for each in both])
    return {
        "first": one.name,
        "second": other.name,
        **tag_agreement(table),
        # Beyond the errors of both; without any difference 2.5 % would seem so, either way.
        "first_higher": int(is_higher(one, other, both).sum()),
        "second_higher": int(is_higher(other, one, both).sum()),
        "tags": table,
    }


def is_higher(one: Model, other: Model, items: Sequence[str]) -> NDArray[np.bool_]:
    """Whether one model's pass rates are higher beyond the errors of both: (items,)."""
    ids = pa.array(items, pa.string())
    rates = [pass_rates(model.run, model.run.measured(ids)) for model in (other, one)]
    _, low, _ = rate_change(rates[0], rates[1])
    return np.asarray(low > 0)


def _solved(models: Sequence[Model], common: Sequence[str]) -> dict[str, Any]:
    """Items of all runs that all models solve, one alone, or none; and golds that all doubt."""
    solvers = {
        each: [m.name for m in models if m.tags[each] == Trainability.EASY] for each in common
    }

    def told(found: Sequence[str]) -> dict[str, Any]:
        return {
            "items": len(found),
            "examples": [
                {
                    ITEM_ID: each,
                    "prompt": None,
                    "pass_rates": {model.name: model.rates[each] for model in models},
                }
                for each in found[:_EXAMPLES]
            ],
        }

    only = {}
    for model in models:
        alone = [each for each in common if solvers[each] == [model.name]]
        # First what the model is ahead in most.
        alone.sort(key=lambda each: _lead(model, models, each), reverse=True)
        others = [each for each in models if each is not model]
        is_sure = [is_higher(model, other, alone) for other in others]
        only[model.name] = told(alone) | {"sure": int(np.all(is_sure, axis=0).sum())}
    none = [each for each in common if not solvers[each]]
    never = [each for each in none if all(m.tags[each] == Trainability.NO_POSITIVE for m in models)]
    doubted = [each for each in common if all(each in model.doubted for model in models)]
    return {
        "solved": {
            "by_all": sum(len(names) == len(models) for names in solvers.values()),
            "only": only,
            "by_none": told(none),
            "never_right": len(never),
        },
        "suspect_golds": told(doubted),
    }


def _lead(model: Model, models: Sequence[Model], item: str) -> float:
    others = (m.rates[item] or 0.0 for m in models if m is not model)
    return (model.rates[item] or 0.0) - max(others)


def _add_prompts(
    summary: Mapping[str, Any], source: Source, run: Run, ids: pa.ChunkedArray
) -> None:
    """Put the last message of its prompt, cut, to every example; None where it cannot be read."""
    found = (*summary["solved"]["only"].values(), summary["solved"]["by_none"])
    examples = [each for one in (*found, summary["suspect_golds"]) for each in one["examples"]]
    wanted = {each[ITEM_ID] for each in examples}
    dataset = run.manifest.get("dataset", {})
    fields = (dataset.get(name) or "" for name in ("prompt_field", "answer_field"))
    try:
        layout = choose_layout(source, *fields)
    except UsageError:
        return
    prompts: dict[str, str] = {}
    for item_id, value in zip(ids.to_pylist(), values_of(source), strict=False):
        if item_id in wanted and item_id not in prompts:
            with contextlib.suppress(RowRejected):
                text = read_question(value, layout).messages[-1][1]
                prompts[item_id] = text[:_LONGEST_PROMPT] + "…" * (len(text) > _LONGEST_PROMPT)
    for each in examples:
        each["prompt"] = prompts.get(each[ITEM_ID])
