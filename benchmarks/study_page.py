"""How large the page of a study of 2,000 trials is, and how long headless Chromium takes to open it, figures drawn.

python benchmarks/study_page.py
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from certificate import write_result

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))


from chromium import path_of_chromium
from largebatch.study.ledger import write_study, write_trials
from largebatch.study.plan import Job
from largebatch.study.report import write_report
from largebatch.study.space import Interval, Point, quasi_random
from study.made_study import made_study, made_trials

OPENINGS = 7
POINTS, SEEDS = 328, 5


def page_in(folder: Path) -> tuple[Path, int]:
    """Write the page of a study of three methods at two batches, a tenth of whose trials diverged."""

    def score(job: Job, point: Point) -> float | None:
        return None if job.number % 10 == 9 else 0.4 + 0.5 * job.number / POINTS

    space = {"lr": Interval(1e-4, 1.0), "weight_decay": Interval(1e-5, 0.1), "warmup": Interval(0.0, 0.5, "linear")}
    study = made_study(("LAMB", "LARS", "AdamW"), (16, 64), search=quasi_random(space, POINTS), target=0.4, seeds=SEEDS)
    trials = made_trials(study, score)
    write_study(folder, study, {"command": "largebatch study made", "versions": {}})
    write_trials(folder, study, trials)
    return write_report(folder), len(trials)


def opening_seconds(page_file: Path) -> list[float]:
    """Open the page in a fresh tab each time, until its figures stand."""
    found = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path_of_chromium(), args=["--no-sandbox", "--disable-gpu"])
        for _ in range(OPENINGS):
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            began = time.perf_counter()
            page.goto(page_file.as_uri())
            page.wait_for_selector("html[data-drawn]", state="attached")
            found.append(time.perf_counter() - began)
            page.close()
        browser.close()
    return found


def main() -> None:
    """Measure and write."""
    with tempfile.TemporaryDirectory() as folder:
        page, trials = page_in(Path(folder))
        seconds = opening_seconds(page)
        numbers = {
            "trials": trials,
            "megabytes": round(page.stat().st_size / 1e6, 2),
            "seconds_to_open": round(statistics.median(seconds), 3),
            "least": round(min(seconds), 3),
            "most": round(max(seconds), 3),
            "openings": OPENINGS,
        }
    print(numbers)
    print(write_result("study_page", numbers))


if __name__ == "__main__":
    main()
