"""Fail if a test was skipped that is not named in allowed-skips.txt."""

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path


def main() -> int:
    """Read the JUnit reports named on the command line and return the exit code."""
    listed = (Path(__file__).parent / "allowed-skips.txt").read_text(encoding="utf-8").splitlines()
    allowed = {line.split()[0] for line in listed if line.strip() and not line.startswith("#")}
    skipped = {}
    for report in sys.argv[1:]:
        for case in ElementTree.parse(report).iter("testcase"):
            skip = case.find("skipped")
            if skip is not None:
                skipped[f"{case.get('classname')}::{case.get('name')}"] = skip.get("message")
    unlisted = {name: why for name, why in skipped.items() if name not in allowed}
    for name, why in unlisted.items():
        print(f"skipped, but not listed in .ci/allowed-skips.txt: {name} ({why})")
    return 1 if unlisted else 0


if __name__ == "__main__":
    sys.exit(main())
