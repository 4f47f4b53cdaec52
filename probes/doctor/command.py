"""`curate doctor`: its command line, and the function of its name."""

from collections.abc import Callable
from typing import Any

from curate.command import Command
from curate.config import TagConfig, config_from_mapping, read_config_file
from curate.errors import UsageError
from curate.settings import declared_in, option, settings
from probes.doctor.finding import Finding


def _size(name: str) -> Any:
    """A setting of `curate tag` that decides what a run needs."""
    setting = declared_in(TagConfig)[name]
    help = str(setting.declared["help"]).partition(":")[0]
    if setting.default:
        help += f" (default: {setting.default})"
    group, metavar = "sizes of the run, as for `curate tag`", setting.declared["metavar"]
    return option(help, default=None, group=group, metavar=metavar)


@settings
class Doctor(Command):
    """Look at Python, the packages and their versions against the tested ones, other packages that
    install modules of the same names, GPUs and CPU, the engines, the trainer, Ray, and free disk
    and memory against what a run is expected to need. Every finding comes with its remedy. Nothing
    is downloaded or changed.

    example: curate doctor --model Qwen/Qwen2.5-7B --items 100000 --max-tokens 2048. Exit status: 0
    `curate tag` can run, 1 something blocks it, 2 bad usage or input.
    """

    file: str | None = option(
        "settings of `tag` from a file", default=None, metavar="FILE.toml", flags=("--config",)
    )
    model: str | None = option("whether this model fits", default=None, metavar="MODEL")
    dataset: str | None = option("a dataset whose items count", default=None, metavar="DATASET")
    items: int | None = option(
        "items of the run that is planned, in the place of a dataset's (default: 1000)",
        default=None, metavar="N",
    )  # fmt: skip
    run_dir: str | None = _size("run_dir")
    min_rollouts: int | None = _size("min_rollouts")
    max_rollouts: int | None = _size("max_rollouts")
    mean_rollouts: int | None = _size("mean_rollouts")
    rollout_budget: int | None = _size("rollout_budget")
    max_tokens: int | None = _size("max_tokens")
    gradient_rollouts: int | None = _size("gradient_rollouts")
    gradient_wrong_rollouts: int | None = _size("gradient_wrong_rollouts")
    gradient_dim: int | None = _size("gradient_dim")

    def work(self) -> dict[str, Any]:
        """Look at everything that a run needs."""
        return self._examined()

    def shown(self, started: float) -> dict[str, Any]:
        """The same, each finding printed as it is made: torch and others take long to import."""
        return self._examined(tell=lambda finding: print(finding.text_lines(), flush=True))

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
        return doctor(config_from_mapping(values, self.file or "options"), items=self.items, **tell)

    def keeps(self) -> bool:
        """Nothing."""
        return False

    def status(self, found: dict[str, Any]) -> int:
        """Whether something blocks `curate tag`."""
        return 0 if found["can_tag"] else 1


def doctor(
    config: TagConfig | None = None,
    *,
    items: int | None = None,
    tell: Callable[[Finding], None] | None = None,
) -> dict[str, Any]:
    """Tell what this machine can do, and what is in the way of `tag`, as `curate doctor` does.

    Args:
        config: of the run that is planned: its model, dataset and sizes; the defaults if None.
        items: of that run; None: those of its dataset, or 1,000 where it names none.
        tell: is called with each finding as it is made.

    Returns:
        `curate` (the version), `can_tag` (whether nothing blocks it), and `findings`, each with
        `about`, `state` (ok, limit or blocks), `text` and `remedy`.

    Raises:
        UsageError: a dataset or model that is not there, or no items.
    """
    from probes.doctor.findings import doctor_facts, examine

    return doctor_facts(examine(config or TagConfig(), items, tell))
