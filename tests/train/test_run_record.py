"""What a run writes down of where it comes from."""

import os
import subprocess
from pathlib import Path

import pytest

from largebatch.train import run_record


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a file of a working copy in which `run_record` believes itself to lie."""
    git(tmp_path, "init", "--quiet")
    file = tmp_path / "here.py"
    file.write_text("1\n")
    git(tmp_path, "add", "here.py")
    git(tmp_path, "commit", "--quiet", "--message=one")
    monkeypatch.setattr(run_record, "__file__", str(file))
    return file


def test_the_commit_and_whether_files_were_changed(package: Path) -> None:
    commit = git(package.parent, "rev-parse", "--short=12", "HEAD")
    assert run_record.commit() == commit
    (package.parent / "note.txt").write_text("not of the repository")
    assert run_record.commit() == commit
    package.write_text("2\n")
    assert run_record.commit() == f"{commit}-dirty"


def test_asking_for_it_writes_nothing(package: Path) -> None:
    index = package.parent / ".git" / "index"
    os.utime(package, (0, 0))  # git knows the file by another time, and would take this one down
    before = index.read_bytes()
    assert run_record.commit() is not None
    assert index.read_bytes() == before
    git(package.parent, "describe", "--always", "--dirty")
    assert index.read_bytes() != before, "what is not done here"
