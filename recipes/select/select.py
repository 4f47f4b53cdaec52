"""Selection by value: which rows of a tagged dataset are worth training on, and why not others.

What a row is worth is told in `docs/use.md`; `choose` fills the places, `teaching` says what a set
of items teaches together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate.datasets.fields import RowRejected
from curate.datasets.kinds import KindCounts
from curate.datasets.layouts import Layout, choose_layout, read_question
from curate.datasets.row import json_text
from curate.errors import RunError, UsageError
from curate.run.features import joined
from curate.run.names import MANIFEST, TARGET
from curate.run.rollouts import outcomes_of
from curate.run.run import Run
from curate.run.tables import ITEMS, PASS_RATES, TAGS
from curate.tagged.expressions import number_in, plain_value, unknown_column
from curate.tagged.quotas import read_shares, share_out
from curate.tagged.rows import TaggedDataset
from curate.tagged.rules import PREDICTED, Drop
from curate.tagged.training_file import TrainingFile
from curate.tagged.training_files import (
    NO_TAG,
    counted_tags,
    kept_places,
    no_kinds,
    open_to_choose,
    write_decided,
)
from probes.lift.item_gradients import ItemGradients, item_gradients
from probes.stages.lift import lift_inputs, read_rewards
from recipes.select.choose import SOLVED, Candidates, choose_items, worth
from recipes.select.duplicates import same_gradients, same_prompts
from recipes.select.teaching import Taught

Floats = NDArray[np.float64]

_GROUP_SIZE = 8
_NEEDED = {
    "gain": ("pass_rate", "forecast_pass_rate"),
    "teaching": ("teaching",),
    "both": ("pass_rate", "forecast_pass_rate", "teaching"),
}
_FEWER = {"gain": "", "teaching": "--by gain does without", "both": "--by gain does without"}
_NONE = "(none)"


@dataclass(frozen=True)
class Budget:
    """How many rows: a number, a share of those tagged, or what rollouts are enough for."""

    rows: int | None = None
    share: float | None = None
    rollouts: int | None = None
    epochs: int = 1
    group_size: int | None = None

    @classmethod
    def read(
        cls, text: str, rollouts: int | None, epochs: int = 1, group_size: int | None = None
    ) -> Budget:
        """Read `--budget` and what stands in its place.

        Raises:
            UsageError: it is no such number, or not exactly one of the two is given.
        """
        if bool(text) == (rollouts is not None):
            raise UsageError("how many rows is said by one of --budget and --rollouts")
        if rollouts is not None:
            return cls(rollouts=rollouts, epochs=epochs, group_size=group_size)
        is_percent = text.endswith("%")
        try:
            number = float(text.removesuffix("%")) / (100 if is_percent else 1)
        except ValueError:
            number = -1.0
        if is_percent or 0 < number < 1:
            if 0 < number <= 1:
                return cls(share=number)
        elif number >= 1 and number.is_integer():
            return cls(rows=int(number))
        raise UsageError(
            f"--budget is {text!r}; it must be a number of rows, or a share such as 0.4 or 40%"
        )

    def of(self, tagged: int, group_size: int) -> int:
        """The number of rows.

        Args:
            tagged: rows with a tag.
            group_size: of the run, where none was given.

        Raises:
            UsageError: not even one row.
        """
        if self.rows is not None:
            return self.rows
        if self.share is not None:
            return max(1, round(self.share * tagged))
        each = self.epochs * (self.group_size or group_size)
        rows = (self.rollouts or 0) // each
        if not rows:
            raise UsageError(f"--rollouts {self.rollouts} is less than the {each} of a single row")
        return rows


@dataclass(frozen=True)
class Wanted:
    """What is to be chosen: the settings of `recipes.select.command`."""

    by: str
    budget: Budget
    easy_share: float = 0.05
    quota: str = ""
    shares: Sequence[str] = ()
    alike: float = 0.95


@dataclass
class _Rows:
    """What is read of every row, in order."""

    item_id: list[str | None] = field(default_factory=list)
    tag: list[str] = field(default_factory=list)
    kind: list[str | None] = field(default_factory=list)
    prompt: list[str] = field(default_factory=list)
    """Empty where it cannot be read."""
    gain: Floats = field(default_factory=lambda: np.zeros(0))
    teaching: Floats = field(default_factory=lambda: np.zeros(0))
    pass_rate: Floats = field(default_factory=lambda: np.zeros(0))
    drops: list[Drop | None] = field(default_factory=list)


def select_file(
    wanted: TrainingFile, settings: Wanted, dropped: Path | None = None
) -> dict[str, Any]:
    """Write the rows that are worth most, and the others with their reasons.

    Args:
        wanted: the tagged dataset, and the file to be written.
        settings: what is to be chosen.
        dropped: where the other rows go; None: nowhere.

    What is returned and raised is told in `recipes.select.command`.
    """
    tagged, suffix = open_to_choose(wanted, dropped)
    tagged.check_tags("the choice")
    _check(tagged, settings)
    kinds = KindCounts(no_kinds(tagged, settings.quota))
    rows = _read(tagged, settings, kinds)
    drops = rows.drops
    eligible = [place for place, drop in enumerate(drops) if drop is None]
    if settings.by != "gain" and np.isnan(rows.teaching[eligible]).all():
        raise UsageError(
            f"{tagged.source.name}: what training on a row does for the others (teaching) is known "
            "of none, as where no rollout was right; --by gain does without"
        )
    counted = sum(tag != NO_TAG for tag in rows.tag)
    group_size = tagged.config.group_size if tagged.config else _GROUP_SIZE
    budget = settings.budget.of(counted, group_size)
    notes: list[str] = []
    run = _run_of(wanted)
    gradients = None
    if run is not None and (settings.by != "gain" or settings.alike < 1):
        gradients = _gradients(run)
        if gradients is None:
            notes.append(
                f"{run.path} has no gradients of rollouts with their lengths: teaching is the "
                "column of that name whatever is chosen, and rows are alike by their prompts alone"
            )
    _drop_duplicates(rows, eligible, settings, run, gradients)
    left = [place for place in eligible if drops[place] is None]
    candidates = Candidates(
        rows.gain[left], rows.teaching[left], rows.pass_rate[left],
        [rows.kind[place] or _NONE for place in left],
    )  # fmt: skip
    places = _places(candidates, settings, budget)
    total = sum(places.values())
    taught = None
    if run is not None and gradients is not None and settings.by != "gain":
        taught = _taught(run, gradients, [rows.item_id[place] for place in left], total)
    found = choose_items(candidates, settings.by, places, settings.easy_share, taught)
    for n, place in enumerate(left):
        if not found.chosen[n]:
            where = int(found.first_place[n]), int(found.last_place[n])
            drops[place] = _why_not(candidates.kind[n], where, len(left), places, settings)
    if total < budget:
        notes.append(f"{total:,} rows are all that can be chosen, of the {budget:,} asked for")
    kept = kept_places(drops)
    notes += _short_of(candidates, settings, budget)
    written = write_decided(wanted, tagged, suffix, drops, dropped)
    notes = [*written.pop("notes"), *notes, *kinds.lost(kept)]
    return written | {
        "by": settings.by,
        "budget": budget,
        "teaching_from": None if settings.by == "gain" else "gradients" if taught else "column",
        **counted_tags(tagged, PREDICTED, rows.tag, kept),
        "quota": settings.quota,
        "kinds": _by_kind(rows, kept) if settings.quota else {},
        "solved": {
            "rows": int((rows.pass_rate > SOLVED).sum()),
            "kept": int((rows.pass_rate[kept] > SOLVED).sum()),
        },
        "means": {
            name: {"all": _mean(values), "kept": _mean(values[kept])}
            for name, values in (("gain", rows.gain), ("teaching", rows.teaching))
        },
        "notes": notes,
    }


def _check(tagged: TaggedDataset, settings: Wanted) -> None:
    """Refuse a dataset that lacks a column that is asked for."""
    columns = tagged.columns()
    for name in _NEEDED[settings.by]:
        if name not in columns:
            more = _FEWER[settings.by] if name == "teaching" else ""
            raise UsageError(
                f"{tagged.source.name} has no column {name}, by which --by {settings.by} goes"
                + (f"; {more}" if more else "")
            )
    if settings.quota and settings.quota not in columns:
        raise UsageError(f"--quota: {unknown_column(settings.quota, columns)}")
    if settings.shares and not settings.quota:
        raise UsageError("--share needs --quota COLUMN, whose values it names")
    if settings.easy_share > 1:
        raise UsageError(f"--easy-share is {settings.easy_share:g}; it must be from 0 to 1")


def _read(tagged: TaggedDataset, settings: Wanted, kinds: KindCounts) -> _Rows:
    """Read every row once; those that cannot be chosen have their reason."""
    layout = _layout(tagged)
    rows = _Rows()
    numbers: list[tuple[float, float, float]] = []
    for place, value in enumerate(kinds.noting(tagged.values())):
        rate, forecast, teaching = (
            float("nan") if (found := number_in(value, name, place)) is None else found
            for name in ("pass_rate", "forecast_pass_rate", "teaching")
        )
        numbers.append((forecast - rate, teaching, rate))
        tag = value.get(PREDICTED)
        rows.tag.append(str(tag or NO_TAG))
        item_id = value.get("item_id")
        rows.item_id.append(item_id if isinstance(item_id, str) else None)
        kind = plain_value(value.get(settings.quota)) if settings.quota else None
        rows.kind.append(
            None if kind is None else kind if isinstance(kind, str) else json_text(kind)
        )
        rows.prompt.append(_prompt(value, layout))
        drop = None
        if tag is None:
            reason = str(value.get("tag_reason") or "not tagged")
            drop = Drop(reason.partition(":")[0], reason)
        elif settings.by != "teaching" and np.isnan(forecast - rate):
            drop = _drop("no forecast, so that no gain is known")
        elif settings.by == "teaching" and np.isnan(teaching):
            drop = _drop("no teaching is known")
        elif settings.quota and kind is None:
            drop = _drop(f"no {settings.quota}")
        rows.drops.append(drop)
    rows.gain, rows.teaching, rows.pass_rate = np.array(numbers, dtype=float).reshape(-1, 3).T
    return rows


def _layout(tagged: TaggedDataset) -> Layout | None:
    config = tagged.config
    fields = (config.prompt_field, config.answer_field) if config else ("", "")
    try:
        return choose_layout(tagged.source, *fields)
    except UsageError:
        return None  # Rows are then alike by their item_id alone.


def _prompt(value: dict[str, Any], layout: Layout | None) -> str:
    if layout is None:
        return ""
    try:
        return "\n".join(text for _, text in read_question(value, layout).messages)
    except RowRejected:
        return ""


def _run_of(wanted: TrainingFile) -> Run | None:
    """The run whose folder was given; its gradients tell more than the file that it wrote."""
    path = Path(wanted.tagged)
    return Run.open(path) if (path / MANIFEST).exists() else None


def _gradients(run: Run) -> ItemGradients | None:
    """What the items of a run, or of its target, are taught by; None where it is not there."""
    features = run.features()
    if features is None or features.completion_tokens is None:
        return None
    features = joined(run.path, run.row_of)
    found = outcomes_of(PASS_RATES.read(run.path))
    pupils = None
    folder = run.path / TARGET
    if folder.exists():
        ids = ITEMS.read(folder, "item_id")["item_id"].to_pylist()
        of_target = joined(folder, {item_id: row for row, item_id in enumerate(ids)})
        pupils = lift_inputs(of_target, outcomes_of(PASS_RATES.read(folder)))
    try:
        return item_gradients(
            lift_inputs(features, found, read_rewards(run.path, run.row_of)),
            group_size=run.config.group_size, loss=run.config.policy_loss, pupils=pupils,
        )  # fmt: skip
    except ValueError as error:
        raise RunError(f"the gradients of {run.path} are damaged: {error}") from error


def _taught(
    run: Run, gradients: ItemGradients, item_ids: Sequence[str | None], size: int
) -> Taught | None:
    """Nothing taught yet, by the items that can be chosen; None where there is none."""
    if not item_ids or not size:
        return None
    items = np.array([run.row_of[str(item_id)] for item_id in item_ids])
    if gradients.pupil is gradients.slope:
        rate = run.columns(TAGS, "forecast_pass_rate")["forecast_pass_rate"].to_numpy()
        own: NDArray[np.intp] | None = items
    else:
        found = outcomes_of(PASS_RATES.read(run.path / TARGET))
        rate = (found.correct + 0.5) / (found.judged + 1)
        own = None
    room = np.nan_to_num(1 - rate)
    return Taught(gradients.step[items], gradients.pupil, room, size, own)


def _drop_duplicates(
    rows: _Rows,
    eligible: Sequence[int],
    settings: Wanted,
    run: Run | None,
    gradients: ItemGradients | None,
) -> None:
    """Give every duplicate its reason; of those that are alike the one worth most stays."""
    value = worth(settings.by, rows.gain, rows.teaching)
    order = sorted(eligible, key=lambda place: -value[place])
    first: dict[str | None, int] = {}
    for place in order:
        same = first.setdefault(rows.item_id[place], place)
        if same != place and rows.item_id[place]:
            rows.drops[place] = _duplicate("the same item", same)
    order = [place for place in order if rows.drops[place] is None and rows.prompt[place]]
    prompts = {place: n for n, place in enumerate(order)}
    texts = [rows.prompt[place] for place in order]
    for number, same in same_prompts(texts, range(len(prompts))).items():
        rows.drops[order[number]] = _duplicate("nearly the same prompt", order[same])
    if run is None or gradients is None or settings.alike >= 1:
        return
    order = sorted(
        (place for place in eligible if rows.drops[place] is None), key=lambda place: -value[place]
    )
    slopes = gradients.slope[[run.row_of[str(rows.item_id[place])] for place in order]]
    for number, (same, cosine) in same_gradients(slopes, range(len(order)), settings.alike).items():
        rows.drops[order[number]] = _duplicate(
            "nearly the same gradient", order[same], f", cosine {cosine:.3f}"
        )


def _places(candidates: Candidates, settings: Wanted, budget: int) -> dict[str, int]:
    counts = Counter(candidates.kind)
    weights: dict[str, float] = {kind: float(count) for kind, count in counts.items()}
    if settings.shares:
        weights = read_shares(settings.shares, counts, settings.quota)
    return share_out(min(budget, len(candidates.kind)), weights, counts)


def _why_not(
    kind: str, where: tuple[int, int], items: int, places: dict[str, int], settings: Wanted
) -> Drop:
    first, last = where
    stood = f"place {last:,} of {items:,} by {settings.by}"
    if settings.quota and not places[kind]:
        rule = f"no place falls to {settings.quota} {kind}"
    elif settings.quota:
        rule = f"worth less than the {places[kind]:,} chosen of {settings.quota} {kind}"
    elif first <= sum(places.values()):
        rule = "what it teaches is taught by those chosen already"
        stood = f"place {first:,} of {items:,} before, {last:,} beside them"
    else:
        rule = "worth less than those chosen"
    return Drop(rule, f"{rule}: {stood}")


def _short_of(candidates: Candidates, settings: Wanted, budget: int) -> list[str]:
    """Say which kinds have fewer rows than their share of the places."""
    if not settings.shares:
        return []
    counts = Counter(candidates.kind)
    weights = read_shares(settings.shares, counts, settings.quota)
    short = [
        f"{kind} has {counts[kind]:,} rows for {round(weight * budget):,} places"
        for kind, weight in weights.items()
        if counts[kind] < round(weight * budget)
    ]
    return [f"{'; '.join(short)}: the others fill them"] if short else []


def _by_kind(rows: _Rows, kept: Sequence[int]) -> dict[str, dict[str, int]]:
    names = [kind or _NONE for kind in rows.kind]
    all_, left = Counter(names), Counter(names[place] for place in kept)
    return {kind: {"rows": all_[kind], "kept": left[kind]} for kind in sorted(all_)}


def _mean(values: Floats) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def _drop(rule: str) -> Drop:
    return Drop(rule, rule)


def _duplicate(what: str, place: int, more: str = "") -> Drop:
    rule = f"{what} as another row"
    return Drop(rule, f"{what} as row {place + 1}{more}")
