"""`curate report`: its command line, and the function of its name."""

from pathlib import Path
from typing import Any, ClassVar

from curate.command import Command, library_function
from curate.files import path_or_none
from curate.run.names import check_run_folder
from curate.settings import argument, option, settings


@settings
class Report(Command):
    """Write one HTML file that answers three questions about a finished run: what is in this
    dataset, how sure are we, and what does an item look like. It needs no network and no other
    file, and holds a table of all items that can be searched, sorted and opened. What was validated
    and confirmed since is in it too: run it again to see it.

    example: curate report runs/gsm8k-Qwen2.5-0.5B-Instruct, then open report.html in that folder in
    a browser. Exit status: 0 done, 1 a file of the run is missing or damaged, 2 bad usage or input.
    """

    words: ClassVar[str] = "cards.report.report:report_text"
    resumes = False

    run: str | Path = argument("the run folder of `curate tag`", metavar="RUN")
    out: str | Path | None = option(
        "the page (default: RUN/report.html)",
        default=None, metavar="FILE.html", flags=("-o", "--out"),
    )  # fmt: skip

    def work(self) -> dict[str, Any]:
        """Write the report.

        Returns:
            the numbers of every chart in it, with its name as `file`.
        """
        check_run_folder(self.run)
        from cards.report.report import report_run

        file, facts = report_run(Path(self.run), path_or_none(self.out))
        return {"file": str(file), **facts}


report = library_function(Report)
