"""Commit and lock are those of the code that runs, whatever folder it runs in."""

import hashlib
import importlib.util
import shutil
import subprocess

import pytest

from eqadapt import provenance


def git(folder, *arguments):
    who = ("-c", "user.name=a", "-c", "user.email=a@b.invalid")
    command = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def placed(package):
    """The module as it is where a copy of its file lies."""
    package.mkdir(parents=True)
    path = shutil.copy(provenance.__file__, package / "provenance.py")
    spec = importlib.util.spec_from_file_location("placed_provenance", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A repository of something else, with a lock, which is the working folder."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "requirements.lock").write_text("other", encoding="utf-8")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "other")
    monkeypatch.chdir(folder)
    return folder


def test_the_commit_is_of_the_checkout_that_the_code_is_part_of(tmp_path, elsewhere):
    checkout = tmp_path / "checkout"
    found = placed(checkout / "src" / "eqadapt")
    (checkout / "results").mkdir()
    for name in ("requirements.lock", "results/metrics.csv", "README.md"):
        (checkout / name).write_text("ours", encoding="utf-8")
    git(checkout, "init", "-q")
    git(checkout, "add", ".")
    git(checkout, "commit", "-q", "-m", "ours")
    commit = git(checkout, "rev-parse", "HEAD")
    (checkout / "results" / "metrics.csv").write_text("new", encoding="utf-8")
    assert found.commit() == commit
    assert found.lock_sha256() == hashlib.sha256(b"ours").hexdigest()
    found.commit.cache_clear()
    (checkout / "README.md").write_text("new", encoding="utf-8")
    assert found.commit() == f"{commit}-dirty"


def test_a_package_installed_in_a_repository_of_something_else_has_no_commit(elsewhere):
    found = placed(elsewhere / ".venv" / "lib" / "python3.11" / "site-packages" / "eqadapt")
    assert found.commit() == found.lock_sha256() == "unknown"
    assert set(found.provenance()) == {"commit", "lock_sha256", "device", "torch"}


def test_an_archive_without_git_still_has_its_lock(tmp_path, elsewhere):
    found = placed(tmp_path / "archive" / "src" / "eqadapt")
    (tmp_path / "archive" / "requirements.lock").write_text("ours", encoding="utf-8")
    assert found.commit() == "unknown"
    assert found.lock_sha256() == hashlib.sha256(b"ours").hexdigest()
