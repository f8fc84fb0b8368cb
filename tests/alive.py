"""Whether a process still runs."""

from pathlib import Path


def is_alive(pid: int) -> bool:
    """Whether a process is still there, and not only its exit status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
