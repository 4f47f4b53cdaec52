"""`curate push`: a run as a dataset on the Hub, in one commit.

Files are made in the folder `push` of the run and uploaded from there. An upload that broke off
continues: the files come out the same, and the Hub says by their hashes which it has. What stands
in the repository is looked at first: the card is merged with the one there, and a file that no push
of this run wrote is not replaced unless asked. The commit names its parent, so a repository that
changes during the upload refuses it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub.errors import RepositoryNotFoundError

from cards.card.card import CARD, dataset_card
from cards.card.facts import RunFacts, read_run_facts
from cards.card.merging import read_metadata
from cards.card.metadata import REWARDS
from cards.push.command import Push
from cards.push.files import (
    check_other_data,
    files_to_delete,
    make_files,
    read_made,
    with_files,
    write_made,
)
from cards.push.hub import Changed, Hub, check_name
from curate.errors import RunError, UsageError
from curate.files import path_or_none
from curate.run.folder import lock_folder
from curate.tags import Trainability

_MESSAGE = "Add trainability tags by curate"


@dataclass
class _Push:
    """One push in progress."""

    facts: RunFacts
    settings: Push
    folder: Path
    """What is made for this push, removed at its end."""
    files: dict[str, Path] = field(default_factory=dict)
    """What is uploaded, by path in the repository."""

    def make_files(self) -> None:
        """Make all but the card."""
        settings = self.settings
        self.files = make_files(
            self.facts,
            path_or_none(settings.tagged),
            self.folder,
            with_rollouts=settings.with_rollouts,
            with_rewards=settings.with_rewards,
        )

    def make_card(self, repo: str, there: str) -> None:
        """Make the card, merged with the one that is there."""
        settings = self.settings
        text = dataset_card(
            self.facts,
            there,
            repo=repo,
            language=settings.language,
            license=settings.license,
            with_rollouts=settings.with_rollouts,
            rewards=self._tags_with_rewards(),
            name=f"{CARD} of {repo}",
        )
        file = self.folder / CARD
        file.write_text(text, encoding="utf-8", newline="")
        self.files = {CARD: file, **self.files}

    def _tags_with_rewards(self) -> list[Trainability]:
        """Tags of which there is a table of rewards."""
        starts = {tag: f"{REWARDS}/{tag}-" for tag in Trainability}
        return [
            tag
            for tag, start in starts.items()
            if any(path.startswith(start) for path in self.files)
        ]

    def report(self, repo: str, deleted: Sequence[str]) -> dict[str, Any]:
        """What is uploaded and deleted."""
        files = [{"path": path, "bytes": f.stat().st_size} for path, f in self.files.items()]
        return {"repo": repo, "files": files, "deleted": list(deleted)}


def push_run(run_dir: Path, settings: Push, *, dry_run: bool = False) -> dict[str, Any]:
    """Upload a run as a dataset.

    Args:
        run_dir: the folder of a finished run.
        settings: what is asked for.
        dry_run: upload nothing, and use no network: say what an empty repository would get.

    Returns:
        `repo`, `files` (`path` and `bytes` of each), `deleted` (paths), `dry_run`, and of a push
        `changed` (whether there was anything new), `commit` and `url`.

    Raises:
        UsageError: bad input, a refused token or name, or files that would be replaced unseen.
        RunError: the connection was lost, or the repository changed; the same call continues.
    """
    check_name(settings.repo)
    facts = read_run_facts(run_dir)
    lock = lock_folder(run_dir / "push", "stop it")
    push = _Push(facts, settings, run_dir / "push" / "files")
    try:
        # What a killed push left is made anew, in case the run has changed.
        shutil.rmtree(push.folder, ignore_errors=True)
        push.folder.mkdir()
        return _preview(push) if dry_run else _upload(push)
    except OSError as error:
        raise RunError(f"cannot push from {run_dir}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(push.folder, ignore_errors=True)
        os.close(lock)


def _preview(push: _Push) -> dict[str, Any]:
    push.make_files()
    push.make_card(push.settings.repo, "")
    return push.report(push.settings.repo, []) | {"dry_run": True}


def _upload(push: _Push) -> dict[str, Any]:
    settings, made_file = push.settings, push.folder.parent / "made.json"
    hub = Hub(settings.repo)
    # First, because a refused token must show before anything is made.
    head = _look_up(hub, settings)
    push.make_files()
    if head is None:
        head = _create(hub, settings)
    with hub.asking(f"reading {hub.repo}"):
        there = hub.files(head)
        card = _card_there(hub, head, push.folder) if CARD in there else ""
    push.make_card(hub.repo, card)
    uploaded = {path: file for path, file in push.files.items() if path != CARD}
    made = with_files(read_made(made_file), uploaded)
    deleted = files_to_delete(uploaded, made, there, overwrite=settings.overwrite)
    if not settings.overwrite:
        has_configs = bool(read_metadata(card, CARD).get("configs"))
        check_other_data(uploaded, deleted, there, has_configs=has_configs)
    write_made(made_file, made)
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        *(CommitOperationAdd(path, file) for path, file in push.files.items()),
        *(CommitOperationDelete(path) for path in deleted),
    ]
    try:
        with hub.asking(f"uploading to {hub.repo}"):
            commit = hub.patiently(
                lambda: hub.api.create_commit(
                    hub.repo,
                    operations,
                    commit_message=_MESSAGE,
                    repo_type="dataset",
                    parent_commit=head,
                    create_pr=settings.create_pr,
                )
            )
    except Changed:
        raise _changed_error(hub, there) from None
    return push.report(hub.repo, deleted) | {
        "dry_run": False,
        "changed": commit.oid != head,
        "commit": commit.oid,
        "url": commit.pr_url or commit.commit_url,
    }


def _look_up(hub: Hub, settings: Push) -> str | None:
    """The newest commit of the repository; None where there is no repository."""
    with hub.asking(f"looking for {hub.repo}"):
        try:
            info = hub.patiently(lambda: hub.api.dataset_info(hub.repo))
        except RepositoryNotFoundError:
            return None
    hub.repo = info.id  # Another one than asked for, where it was renamed.
    if settings.private and not info.private:
        raise UsageError(
            f"{hub.repo} is there and public, which --private does not change; make it private in "
            "its settings on the Hub first, or push to another --repo"
        )
    return str(info.sha)


def _create(hub: Hub, settings: Push) -> str:
    if settings.create_pr:
        raise UsageError(f"{hub.repo} is not there, or not for this token; --create-pr needs it")
    with hub.asking(f"making {hub.repo}"):
        hub.patiently(
            lambda: hub.api.create_repo(hub.repo, repo_type="dataset", private=settings.private)
        )
    head = _look_up(hub, settings)
    if head is None:
        raise RunError(f"{hub.repo} was made, but the Hub does not find it; try again")
    return head


def _card_there(hub: Hub, head: str, folder: Path) -> str:
    file = hub.api.hf_hub_download(
        hub.repo, CARD, repo_type="dataset", revision=head, local_dir=folder / "there"
    )
    try:
        return Path(file).read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{CARD} of {hub.repo} is no UTF-8; correct it first") from None


def _changed_error(hub: Hub, before: Mapping[str, str]) -> RunError:
    """What changed in the repository while it was uploaded to."""
    with hub.asking(f"reading {hub.repo}"):
        now = hub.files("main")
    paths = sorted(p for p in before.keys() | now.keys() if before.get(p) != now.get(p))
    what = ", ".join(paths[:5]) + (f" and {len(paths) - 5:,} more" if len(paths) > 5 else "")
    return RunError(
        f"{hub.repo} changed during the upload ({what or 'a commit without another file'}), so "
        "nothing was committed; the same command looks at it anew and uploads only what is missing"
    )
