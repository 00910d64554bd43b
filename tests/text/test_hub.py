"""A hub's repositories; the client is a stand-in, since no hub is in a test's reach."""

from pathlib import Path

import pytest

from score_jax.data import parquet
from score_jax.text import hub


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("hub:org/name", ("org/name", "")),
        ("hub:org/name@v1", ("org/name", "v1")),
        ("hub:org/name@refs/pr/7", ("org/name", "refs/pr/7")),
    ],
)
def test_a_source_is_a_name_and_a_revision(source, found):
    assert hub.is_hub(source) and hub.parse(source, "data.path") == found
    with pytest.raises(ValueError, match=r"data\.path is 'hub:a/b@'; write a branch"):
        hub.parse("hub:a/b@", "data.path")


def test_the_commit_is_that_of_the_clients_cache():
    assert hub.pinned("hub:a/b@main", Path("/c/snapshots/12ab"), "f") == "hub:a/b@12ab"
    assert hub.pinned("hub:a/b@main", Path("/somewhere/12ab"), "f") == "hub:a/b@main"


def test_a_repository_is_asked_for_once_in_a_run(monkeypatch, tmp_path):
    client = pytest.importorskip("huggingface_hub")
    asked = []
    monkeypatch.setattr(
        client, "snapshot_download", lambda name, **_: asked.append(name) or str(tmp_path)
    )
    for wanted in (("*.json",), ("*.json",), ("*.model",)):
        assert hub.fetch("hub:a/b", "f", wanted=wanted) == tmp_path
    assert asked == ["a/b", "a/b"]


def test_files_of_a_run_are_of_one_commit_where_a_branch_moves_on(monkeypatch, tmp_path):
    client = pytest.importorskip("huggingface_hub")
    heads, asked = iter("123"), []

    def download(name, *, revision="main", **_):
        asked.append(revision)
        commit = next(heads) if revision == "main" else revision  # each push moves main on
        return str(tmp_path / "snapshots" / commit)

    monkeypatch.setattr(client, "snapshot_download", download)
    folders = [hub.fetch("hub:a/moves", "f", wanted=(name,)) for name in ("train", "test", "dev")]
    assert {folder.name for folder in folders} == {"1"} and asked == ["main", "1", "1"]
    data = hub.fetch("hub:a/moves", "f", wanted=("train",), kind="dataset")
    assert data.name == "2"  # another repository, which only has the model's name


def test_a_split_that_no_file_is_named_by_is_told_with_what_there_is(monkeypatch, tmp_path):
    client = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(client, "snapshot_download", lambda *_, **__: str(tmp_path))
    files = ["README.md", "data/test-00000-of-00001.parquet"]
    monkeypatch.setattr(client, "list_repo_files", lambda *_, **__: files)
    with pytest.raises(ValueError, match=r"no .parquet files of 'train', but data/test-00000-of"):
        parquet.problems("hub:a/b")

    def away(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr(client, "list_repo_files", away)
    with pytest.raises(ValueError, match=r"is 'hub:a/b', which holds no .parquet files$"):
        parquet.problems("hub:a/b")
    assert hub.listing("rows.parquet", kind="dataset") == []


def test_a_folder_is_uploaded_to_a_private_repository(monkeypatch, tmp_path):
    client = pytest.importorskip("huggingface_hub")
    calls = []

    class Client:
        def create_repo(self, name, **options):
            calls.append((name, options))

        def upload_folder(self, **options):
            calls.append(options)

    monkeypatch.setattr(client, "HfApi", Client)
    hub.upload(tmp_path, "org/name", "export.push")
    made, sent = calls
    assert made == ("org/name", {"private": True, "exist_ok": True})
    assert sent == {"repo_id": "org/name", "folder_path": tmp_path}

    class TransportError(Exception):
        """As the client's transport raises it."""

    def away(*_, **__):
        raise TransportError("no route")

    monkeypatch.setattr(Client, "upload_folder", away)
    with pytest.raises(ValueError, match=r"export.push is 'org/name', to which .* \(no route\)"):
        hub.upload(tmp_path, "org/name", "export.push")
