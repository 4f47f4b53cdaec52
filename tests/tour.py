"""The commands of a page: its `console` blocks, where a line that begins with `$ ` is a command.

`python -m tests.tour docs/tour.md` runs them here and writes their output into the page.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

_BLOCK = re.compile(r"(?<=^```console\n).*?(?=^```$)", re.DOTALL | re.MULTILINE)
_PYTHON = re.compile(r"(?<=^```python\n).*?(?=^```$)", re.DOTALL | re.MULTILINE)


def commands(page: str) -> list[list[str]]:
    """The arguments of every command of a page, in order."""
    lines = "".join(_BLOCK.findall(page)).splitlines()
    return [shlex.split(line[2:]) for line in lines if line.startswith("$ ")]


def code_blocks(page: str) -> list[str]:
    """The Python of a page, block by block."""
    return _PYTHON.findall(page)


def run_block(block: str) -> str:
    """A block with what its commands print now."""
    parts = []
    for line in block.splitlines():
        if line.startswith("$ "):
            program, *arguments = shlex.split(line[2:])
            assert program == "curate", line
            ran = subprocess.run(
                [sys.executable, "-m", "curate", *arguments],
                capture_output=True,
                text=True,
                check=True,
            )
            parts.append(f"{line}\n{ran.stdout.rstrip()}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    file = Path(sys.argv[1])
    page = file.read_text(encoding="utf-8")
    Path("tour").mkdir(exist_ok=True)
    file.write_text(_BLOCK.sub(lambda match: run_block(match[0]), page), encoding="utf-8")
