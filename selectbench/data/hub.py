"""Repositories of the Hugging Face hub: which commit a name means now, and where that commit's files lie."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

MAIN = "main"
"""The branch that a name without a revision means."""
Kind = Literal["model", "dataset"]


def snapshot(
    name: str, revision: str | None, files: Sequence[str], *, fetch: bool = True, kind: Kind = "model"
) -> Path:
    """The folder of the hub's cache that holds one commit, and is named after it.

    `files`: patterns of those that are fetched where they are missing. Without a network, or where `fetch` is
    False, the commit is the one that was met last. Raises what huggingface_hub raises.
    """
    from huggingface_hub import snapshot_download

    # Left alone: whatever lies in folders of its own, such as the same weights in other formats.
    found = snapshot_download(
        name, revision=revision or MAIN, allow_patterns=list(files), ignore_patterns=["*/*"],
        local_files_only=not fetch, repo_type=kind,
    )  # fmt: skip
    return Path(found)


def cached_commit(name: str, revision: str | None) -> str | None:
    """The commit that transformers loads without a network; None: it has none."""
    found = cached_folder(name, revision)
    return None if found is None else found.name


def cached_folder(name: str, revision: str | None) -> Path | None:
    """Where the files of that commit lie, its config.json among them where it has one; None: it has none."""
    try:
        return snapshot(name, revision, ["config.json"], fetch=False)
    except (ImportError, OSError, ValueError):
        return None
