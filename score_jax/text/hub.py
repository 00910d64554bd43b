"""Repositories of a hub, named hub:org/name@revision, as folders of the client's cache."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

PREFIX = "hub:"
Kind = Literal["model", "dataset"]
_commits: dict[tuple[Kind, str, str], str] = {}  # that a repository's revision was found at


def is_hub(source: str) -> bool:
    """Whether a source names a hub's repository."""
    return source.startswith(PREFIX)


def parse(source: str, field: str) -> tuple[str, str]:
    """Name and revision of hub:org/name@revision; revision "": the head of the main branch.

    Args:
      field: what the source is, for messages.

    Raises:
      ValueError: nothing follows the @.
    """
    name, mark, revision = source.removeprefix(PREFIX).partition("@")
    if mark and not revision:
        raise ValueError(
            f"{field} is {source!r}; write a branch, tag or commit after the @, or remove it"
        )
    return name, revision


@cache  # the same files are asked for once in a run
def fetch(source: str, field: str, *, wanted: Sequence[str], kind: Kind = "model") -> Path:
    """The folder of a repository, of which what is missing is downloaded first.

    All files of a run are of the commit that its first ones were of, where a branch moves on too.

    Args:
      source: hub:org/name or hub:org/name@revision.
      field: what the source is, for messages.
      wanted: patterns of the files that are needed, as a tuple.

    Raises:
      ValueError: the download fails, or huggingface_hub is not installed.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ValueError(f"{field} is {source!r}; pip install score_jax[hf]") from error
    name, revision = parse(source, field)
    at = _commits.get((kind, name, revision), revision)
    options: dict[str, Any] = {"revision": at} if at else {}
    if kind != "model":
        options["repo_type"] = kind
    try:
        folder = Path(snapshot_download(name, allow_patterns=list(wanted), **options))
    except (OSError, ValueError) as error:  # network, name, licence or disk space
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{field} is {source!r}, which cannot be downloaded ({reason}); check name, "
            "network and login, or download it elsewhere and name its folder"
        ) from error
    if found := commit(folder):
        _commits[kind, name, revision] = found
    return folder


def commit(folder: Path) -> str:
    """The commit of a folder of the client's cache (.../snapshots/COMMIT); of others ""."""
    return folder.name if folder.parent.name == "snapshots" else ""


def listing(source: str, *, kind: Kind) -> list[str]:
    """The files of a repository, for messages; none where it is no hub's or can't be reached."""
    if not is_hub(source):
        return []
    try:
        from huggingface_hub import list_repo_files

        name, revision = parse(source, "source")
        return list_repo_files(name, repo_type=kind, revision=revision or None)
    except (ImportError, OSError, ValueError):
        return []


def pinned(source: str, folder: Path, field: str) -> str:
    """The source with the commit that was fetched, if the folder's place tells it."""
    found = commit(folder)
    return f"{PREFIX}{parse(source, field)[0]}@{found}" if found else source


def upload(folder: Path, name: str, field: str) -> None:
    """Uploads a model folder; a repository that does not exist yet is made, and is private.

    Raises:
      ValueError: the upload fails, or huggingface_hub is not installed.
    """
    try:
        from huggingface_hub import HfApi

        client = HfApi()
        client.create_repo(name, private=True, exist_ok=True)
        client.upload_folder(repo_id=name, folder_path=folder)
    except ImportError as error:
        raise ValueError(f"{field} is {name!r}; pip install score_jax[hf]") from error
    except Exception as error:  # network, name or login: the client's errors have no one class
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{field} is {name!r}, to which {folder} cannot be uploaded ({reason}); check name, "
            "network and login, and export again"
        ) from error
