"""Workers of a study on a real PostgreSQL server, which is started here and listens on a socket in a folder alone."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_study import Share, made_study
from test_claims import MORTAL, claimed, finish, together


def _programs() -> Path | None:
    found = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    on_path = shutil.which("initdb")
    return found[0] if found else Path(on_path).parent if on_path else None


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URL of a database of a server that ends with the tests."""
    programs = _programs()
    if programs is None:
        pytest.skip("no PostgreSQL at hand")
    # A server refuses to run as root, and a socket's path has to be short.
    as_user: dict[str, Any] = {}
    owner = None
    if os.geteuid() == 0:
        owner = pwd.getpwnam("postgres")
        as_user = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
    with tempfile.TemporaryDirectory(prefix="largebatch-pg-", ignore_cleanup_errors=True) as made:
        folder = Path(made)
        folder.chmod(0o700)
        if owner is not None:
            os.chown(folder, owner.pw_uid, owner.pw_gid)
        data = folder / "data"
        quiet: dict[str, Any] = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": made}
        subprocess.run(
            [programs / "initdb", "-D", data, "-U", "study", "-A", "trust", "-E", "UTF8", "--no-sync"],
            **quiet,
            **as_user,
        )
        options = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off"
        control = [programs / "pg_ctl", "-D", data, "-w", "-o", options]
        subprocess.run([*control, "start"], **quiet, **as_user)
        try:
            yield f"postgresql+psycopg://study@/postgres?host={folder}"
        finally:
            subprocess.run([programs / "pg_ctl", "-D", data, "-m", "immediate", "stop"], **quiet, **as_user)


def test_three_processes_share_a_study_through_postgresql(server: str, tmp_path: Path) -> None:
    together(made_study(seeds=6), server, tmp_path, workers=3, seconds=0.0)


def test_the_dead_are_buried_by_the_clock_of_the_server(server: str, share: Share) -> None:
    study = made_study(("LAMB",), name="mortal")
    shared = share(study, server, **MORTAL)
    dead = claimed(shared)
    dead._life.end()
    found = claimed(shared)
    assert found.job != dead.job
    while dead.job in {one.job for one in shared.running()}:
        shared.bury()
    again = claimed(shared)
    assert again.job == dead.job
    assert not finish(shared, dead)
    assert finish(shared, again)
    assert finish(shared, found)
