"""`curate doctor`: its command line, and the function of its name."""

from collections.abc import Callable
from typing import Any

from curate.command import Command
from curate.config import TagConfig, config_from_mapping, read_config_file
from curate.errors import UsageError
from curate.progress import Progress, clear
from curate.settings import declared_in, option, option_of, settings
from probes.doctor.finding import Finding
from probes.doctor.tries import NAMES, Tried, tried_facts, try_machine

_READING = "reading the dataset, as for `curate tag`"
_SIZES = "sizes of the run, as for `curate tag`"


def _of_tag(name: str, group: str) -> Any:
    """A setting of `curate tag`; None where it is not given, since a file may have it, too."""
    help = declared_in(TagConfig)[name].help
    return option_of(TagConfig, name, default=None, help=help, group=group)


@settings
class Doctor(Command):
    """Look at Python, the packages and their versions against the tested ones, other packages that
    install modules of the same names, GPUs and CPU, the engines, the trainer, Ray, and free disk
    and memory against what a run is expected to need. Every finding comes with its remedy. Nothing
    is downloaded or changed.

    With --try, two minutes more at most: a small model that needs no download, or the one of
    --model, samples, is verified, scored again and differentiated, and takes a training step on
    this machine's device; results are compared with the CPU's in float32, and each check passes or
    fails.

    example: curate doctor --model Qwen/Qwen2.5-7B --items 100000 --max-tokens 2048. Exit status: 0
    `curate tag` can run, and what was tried passed; 1 something blocks it, or a check failed; 2 bad
    usage or input.
    """

    resumes = False

    file: str | None = option(
        "settings of `tag` from a file", default=None, metavar="FILE.toml", flags=("--config",)
    )
    model: str | None = option("whether this model fits", default=None, metavar="MODEL")
    dataset: str | None = option(
        "a dataset: how it is read, what in it cannot be used, how many items it has",
        default=None,
        metavar="DATASET",
    )
    items: int | None = option(
        "items of the run that is planned, in the place of a dataset's (default: 1000)",
        default=None, metavar="N",
    )  # fmt: skip
    tries: bool = option(
        "put the device to work: sampling, verifying, gradients, a training step, and how long a "
        "rollout may be",
        default=False, flags=("--try",),
    )  # fmt: skip
    split: str | None = _of_tag("split", _READING)
    subset: str | None = _of_tag("subset", _READING)
    prompt_field: str | None = _of_tag("prompt_field", _READING)
    answer_field: str | None = _of_tag("answer_field", _READING)
    verifier: str | None = _of_tag("verifier", _READING)
    verifier_field: str | None = _of_tag("verifier_field", _READING)
    run_dir: str | None = _of_tag("run_dir", _SIZES)
    min_rollouts: int | None = _of_tag("min_rollouts", _SIZES)
    max_rollouts: int | None = _of_tag("max_rollouts", _SIZES)
    mean_rollouts: int | None = _of_tag("mean_rollouts", _SIZES)
    rollout_budget: int | None = _of_tag("rollout_budget", _SIZES)
    max_tokens: int | None = _of_tag("max_tokens", _SIZES)
    gradient_rollouts: int | None = _of_tag("gradient_rollouts", _SIZES)
    gradient_wrong_rollouts: int | None = _of_tag("gradient_wrong_rollouts", _SIZES)
    gradient_dim: int | None = _of_tag("gradient_dim", _SIZES)

    def work(self) -> dict[str, Any]:
        """Look at everything that a run needs."""
        return self._examined()

    def shown(self, started: float) -> dict[str, Any]:
        """The same, each finding printed as it is made: torch and others take long to import."""

        def tell(one: Finding | Tried) -> None:
            clear()
            print(one.text_lines(), flush=True)

        return self._examined(tell=tell)

    def text(self, found: dict[str, Any]) -> str:
        """What the findings come to."""
        from probes.doctor.findings import conclusion

        return conclusion(found)

    def _examined(self, **tell: Any) -> dict[str, Any]:
        if self.dataset is not None and self.items is not None:
            raise UsageError("--items is not allowed with --dataset: either says how many")
        given = {name: getattr(self, name, None) for name in declared_in(TagConfig)}
        values = read_config_file(self.file) if self.file else {}
        values |= {name: value for name, value in given.items() if value is not None}
        config = config_from_mapping(values, self.file or "options")
        return doctor(config, items=self.items, tries=self.tries, **tell)

    def status(self, found: dict[str, Any]) -> int:
        """Whether something blocks `curate tag`, or failed."""
        passed = all(one["passed"] for one in found.get("tried", []))
        return 0 if found["can_tag"] and passed else 1


def doctor(
    config: TagConfig | None = None,
    *,
    items: int | None = None,
    tries: bool = False,
    tell: Callable[[Finding | Tried], None] | None = None,
) -> dict[str, Any]:
    """Tell what this machine can do, and what is in the way of `tag`, as `curate doctor` does.

    Args:
        config: of the run that is planned: its model, dataset and sizes; the defaults if None.
        items: of that run; None: those of its dataset, or 1,000 where it names none.
        tries: whether the device is put to work as well, for two minutes at most.
        tell: is called with each finding as it is made, and with each check.

    Returns:
        `curate` (the version), `can_tag` (whether nothing blocks it), and `findings`, each with
        `about`, `state` (ok, limit or blocks), `text` and `remedy`. With `tries` also `tried`: each
        check with `about`, `passed`, `text`, `remedy` and the `numbers` that were measured.

    Raises:
        UsageError: a dataset or model that is not there, or no items.
    """
    from probes.doctor.findings import doctor_facts, examine

    config = config or TagConfig()
    facts = doctor_facts(examine(config, items, tell))
    return facts | {"tried": _tried(config, tell)} if tries else facts


def _tried(config: TagConfig, tell: Callable[[Tried], None] | None) -> list[dict[str, Any]]:
    with Progress("trying", len(NAMES), "checks") as progress:

        def over(tried: Tried) -> None:
            if tell:
                tell(tried)
            progress.advance()

        found = try_machine(
            config.model,
            trust_remote_code=config.trust_remote_code,
            tell=over,
            begins=progress.tick,
        )
    return tried_facts(found)
