"""The predictor file of `curate calibrate`: reading, applying and knowing where it does not apply.

With the features x of an item (`probes.predictor.features`), those unknown replaced by their mean
where the predictor was fitted,

    p_unlearnable = 1 / (1 + exp(−b − Σ_j w_j (x_j − mean_j) / scale_j))

a logistic regression on standardised features. With it come constants of the forecast
(`probes.forecast.model`), fitted on the same outcomes. The file is JSON: numbers to compute with,
and a record of what they were fitted on. It may come from anyone, so nothing in it is trusted:
every number is checked, and none can be made to run anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from typing_extensions import TypedDict

from curate.config import TagConfig
from curate.errors import UsageError
from curate.progress import say
from curate.run.folder import RunFolder
from curate.run.tables import QUALITY
from probes.predictor.features import (
    FEATURES,
    FORECAST,
    REASONING_QUALITY,
    ItemFeatures,
    read_features,
)
from probes.stages.forecast import CONSTANTS, run_horizon
from probes.statistics.distributions import binomial_tail
from probes.tag_rules import LearnedProbability

FORMAT = "curate predictor"
VERSION = 2
FITTED_SETTINGS = (
    "tau", "temperature", "max_tokens", "verifier",
    "gradient_rollouts", "gradient_wrong_rollouts", "gradient_dim", "gradient_rank",
    "gradient_alpha", "gradient_targets", "gold_prefixes", "group_size", "policy_loss", "horizon",
)  # fmt: skip
"""Settings of a run that the features or the outcome depend on: they should be as when fitted."""

_MOST_BYTES = 1024 * 1024
# Keeps every product of numbers from a file finite.
_LARGEST = 1e15
# In log odds, of which nothing has more than some dozens.
_LARGEST_CONSTANT = 1000.0
# Items beyond the fitted range are worth a warning from this share on, if chance does not explain
# them: a range that holds 98 % of some items holds less of others when it was fitted on few.
_MANY_OUTSIDE = 0.1
_CHANCE_LEVEL = 0.01


_STRICT = ConfigDict(strict=True)
_Number = Annotated[float, Field(ge=-_LARGEST, le=_LARGEST)]
_Constant = Annotated[float, Field(ge=-_LARGEST_CONSTANT, le=_LARGEST_CONSTANT)]


@dataclass(frozen=True, config=_STRICT)
class Feature:
    """One feature, as it was where the predictor was fitted."""

    name: Literal[FEATURES]  # type: ignore[valid-type]
    mean: _Number
    """Of the known values; also stands for an unknown one."""
    scale: Annotated[float, Field(ge=1 / _LARGEST, le=_LARGEST)]
    """Standard deviation after that, above 0."""
    coefficient: _Number
    """Of the standardised feature, in log-odds of being unlearnable."""
    low: _Number
    """1 % quantile of the known values."""
    high: _Number
    """99 % quantile."""

    def __post_init__(self) -> None:
        """Raise ValueError for a range upside down."""
        if self.low > self.high:
            raise ValueError("'low' is above 'high'")


class FittedForecast(TypedDict):
    """Refitted constants of the forecast, and the source of the lift that they are for."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    source: Literal[tuple(CONSTANTS)]  # type: ignore[valid-type]
    drift: _Constant
    gain: _Constant
    spread: Annotated[float, Field(ge=1 / _LARGEST_CONSTANT, le=_LARGEST_CONSTANT)]


@dataclass(frozen=True, config=_STRICT)
class Predictor:
    """A predictor as its file has it, which may tell more beside it."""

    features: Annotated[tuple[Feature, ...], Field(min_length=1)]
    intercept: _Number
    items: Annotated[int, Field(ge=1)]
    """That it was fitted on."""
    models: dict[str, str]
    """Of the runs that it was fitted on: their names, by weight hash."""
    settings: dict[str, Any]
    """The `FITTED_SETTINGS` of those runs."""
    forecast: FittedForecast
    name: str = ""
    """File name and the start of its hash."""
    sha256: str = ""

    def __post_init__(self) -> None:
        """Raise ValueError for a feature that is there twice, or a setting that is not."""
        if len({feature.name for feature in self.features}) < len(self.features):
            raise ValueError("a feature stands there twice")
        if not set(FITTED_SETTINGS) <= set(self.settings):
            raise ValueError(f"'settings' lacks some of {', '.join(FITTED_SETTINGS)}")

    @property
    def reads_quality(self) -> bool:
        """Whether it goes by the reasoning quality, which a run has only once it was judged."""
        return any(feature.name == REASONING_QUALITY for feature in self.features)

    def reads(self, name: str) -> bool:
        """Whether a feature changes what it says."""
        return any(each.name == name and each.coefficient for each in self.features)

    def p_unlearnable(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Probability of being unlearnable, shape (items,).

        Args:
            values: shape (items, features) in the order of `FEATURES`; nan is unknown.
        """
        columns = values[:, [FEATURES.index(feature.name) for feature in self.features]]
        mean, scale, coefficients = (
            np.array([getattr(feature, name) for feature in self.features])
            for name in ("mean", "scale", "coefficient")
        )
        standardised = (np.where(np.isnan(columns), mean, columns) - mean) / scale
        # log(1 + e^−x) does not overflow, unlike e^−x.
        return np.asarray(np.exp(-np.logaddexp(0, -(standardised @ coefficients + self.intercept))))


def apply_predictor(
    predictor: Predictor | None, run: RunFolder, config: TagConfig
) -> dict[str, LearnedProbability]:
    """What a predictor says of every hard item with a correct rollout, by item_id.

    Where the run lies outside of what the predictor was fitted on, this is printed as warnings and
    put into the manifest.

    Args:
        predictor: None says nothing.
        run: its pass rates, similarities and lift are written; its manifest has the `predictor`.
        config: its resolved settings.

    Raises:
        RunError: a file of the run is missing or damaged.
    """
    if predictor is None:
        return {}
    config = config.replace(horizon=run_horizon(run.path, config))
    features = read_features(run.path, config)
    outside = outside_reasons(predictor, run.manifest, config, features)
    for reason in outside:
        say(f"warning: {predictor.name} lies outside of what it was fitted on: {reason}")
    facts = {"name": predictor.name, "outside": outside, "quality": _quality_hash(predictor, run)}
    run.update(predictor={**run.manifest["predictor"], **facts})
    found = predictor.p_unlearnable(features.values).tolist()
    return {
        item_id: LearnedProbability(p, predictor.name)
        for item_id, p in zip(features.item_ids, found, strict=True)
    }


def is_judged_anew(predictor: Predictor | None, run: RunFolder) -> bool:
    """Whether the reasoning quality that a predictor goes by is not what the run was tagged on."""
    if predictor is None:
        return False
    return bool(run.manifest["predictor"].get("quality") != _quality_hash(predictor, run))


def _quality_hash(predictor: Predictor, run: RunFolder) -> str | None:
    """SHA-256 of the judged quality that the predictor reads; None if it reads none."""
    file = QUALITY.path(run)
    if not (predictor.reads_quality and file.exists()):
        return None
    return hashlib.sha256(file.read_bytes()).hexdigest()


# --- The outside check -----------------------------------------------------------------------


def outside_reasons(
    predictor: Predictor, manifest: Mapping[str, Any], config: TagConfig, features: ItemFeatures
) -> list[str]:
    """Why a run lies outside of what a predictor was fitted on, a sentence each; often empty.

    Another model, another source of the lift or another of the `FITTED_SETTINGS` is a reason, and
    items without the reasoning quality that the predictor goes by; and, of a feature, that more
    than 10 % of the items lie outside of its fitted 1 % to 99 % range, unless so many may be chance
    (binomial test at 1 % over all features, which allows for a range fitted on few items). The
    forecast has no part in that: what it is made of has. For
    `no_similarity`, which is 0 or 1, that means many items without a similarity where hardly any
    was before.

    Args:
        predictor: to be applied.
        manifest: of the run, with `model`.
        config: its resolved settings.
        features: of its hard items with a correct rollout.
    """
    reasons = []
    model = manifest["model"]
    if model["weight_hash"] not in predictor.models:
        # As Python writes text: a predictor file may hold what a terminal would obey.
        fitted = " and ".join(sorted({repr(name) for name in predictor.models.values()}))
        reasons.append(f"the model is {model['name']!r}, and it was fitted on {fitted}")
    settings = run_settings(config)
    reasons += [
        f"{name} is {settings[name]!r}, and it was fitted at {predictor.settings[name]!r}"
        for name in FITTED_SETTINGS
        if settings[name] != predictor.settings[name]
    ]
    source = predictor.forecast["source"]
    if features.lift_source != source:
        reasons.append(
            f"the lift is by {features.lift_source}, and it was fitted on the lift by {source}: "
            "`curate forecast --lift` measures that"
        )
    # Where no item had a similarity when it was fitted, it goes by none.
    if features.scale.easy is None and predictor.reads("gradient_similarity"):
        reasons.append(f"similarities have no scale, since {features.scale.source}")
    if predictor.reads_quality:
        unknown = int(np.isnan(features.values[:, FEATURES.index(REASONING_QUALITY)]).sum())
        if unknown:
            reasons.append(
                f"{unknown} of {len(features.values)} items have no {REASONING_QUALITY}, and stand "
                "at the mean of the others: `curate judge` the run folder, then give the same "
                "`curate tag` again"
            )
    # Between the extremes of n values lies, on average, all but 2/(n + 1) of the others.
    expected = min(0.02 + 2 / (predictor.items + 1), 1)
    for feature in predictor.features:
        # The forecast of an item goes by all items of its run, so that they leave a range together.
        if feature.name == FORECAST:
            continue
        values = features.values[:, FEATURES.index(feature.name)]
        count = int(((values < feature.low) | (values > feature.high)).sum())
        chance = binomial_tail(count - 1, len(values), expected) * len(predictor.features)
        if count > _MANY_OUTSIDE * len(values) and chance < _CHANCE_LEVEL:
            reasons.append(
                f"{feature.name} of {count} of {len(values)} items lies outside of "
                f"{feature.low:.3g} to {feature.high:.3g}, where it was fitted"
            )
    return reasons


def run_settings(config: TagConfig) -> dict[str, Any]:
    """The `FITTED_SETTINGS` of a run, as JSON has them."""
    values = {name: getattr(config, name) for name in FITTED_SETTINGS}
    return {n: list(v) if isinstance(v, tuple) else v for n, v in values.items()}


# --- The file --------------------------------------------------------------------------------


@dataclass(frozen=True, config=_STRICT)
class _Header:
    format: Literal["curate predictor"]
    version: Literal[2]


def predictor_fields(predictor: Predictor) -> dict[str, Any]:
    """What of a predictor file `parse_predictor` reads; a file may tell more beside it."""
    fields = asdict(predictor)
    order = ("intercept", "features", "items", "models", "settings", "forecast")
    return {"format": FORMAT, "version": VERSION, **{name: fields[name] for name in order}}


def read_predictor(path: str | Path) -> Predictor:
    """Read and check a predictor file.

    Raises:
        UsageError: there is no such file, or it is not a predictor, damaged, or of another version.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise UsageError(f"predictor {path}: no such file; `curate calibrate` writes one")
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"predictor {path} cannot be read: {error.strerror}") from error
    if len(content) > _MOST_BYTES:
        raise UsageError(f"predictor {path} is larger than any predictor (1 MiB)")
    try:
        predictor = parse_predictor(content)
    except ValueError as error:
        raise UsageError(
            f"predictor {path} is damaged or no predictor: {error}; `curate calibrate` writes one"
        ) from error
    sha256 = hashlib.sha256(content).hexdigest()
    return replace(predictor, name=f"predictor {path.name} ({sha256[:8]})", sha256=sha256)


def parse_predictor(content: bytes) -> Predictor:
    """Check what a predictor file holds. Raises ValueError that says in a line what is wrong."""
    try:
        TypeAdapter(_Header).validate_json(content)
        return TypeAdapter(Predictor).validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{place}: {first['msg']}" if place else first["msg"]) from error
