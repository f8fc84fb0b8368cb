"""Workers share a study: no job is lost or run twice, whoever dies when."""

import threading
import time
from collections import Counter
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import optuna
import pytest
from made_study import FakeTraining, Share, made_study, made_trial, made_trials, score_of

from largebatch.errors import InputError
from largebatch.study.claims import Claim, SharedStudy
from largebatch.study.plan import Job, Pruning, Study
from largebatch.study.search import run_folder, work
from largebatch.train.folder_lock import FolderHeld


def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"


def claimed(shared: SharedStudy) -> Claim:
    claim = shared.claim("here")
    assert claim is not None
    return claim


def finish(shared: SharedStudy, claim: Claim) -> bool:
    with claim:
        return claim.end(made_trial(shared.study, claim.job, claim.point, score_of(claim.job, claim.point)))


def run_alone(shared: SharedStudy, tmp_path: Path) -> list[str]:
    journal = tmp_path / "journal"
    assert work(shared, tmp_path, FakeTraining(journal), "alone", pause_seconds=0.01)
    return journal.read_text().splitlines()


def run_in_a_process(study: Study, url: str, folder: Path, seconds: float) -> None:
    with SharedStudy(study, url) as shared:
        work(shared, folder, FakeTraining(folder / "journal", seconds), "one", pause_seconds=0.05)


def test_one_worker_runs_every_job_once_and_the_database_tells_the_whole_study(tmp_path: Path, share: Share) -> None:
    study = made_study()
    shared = share(study, url(tmp_path))
    assert run_alone(shared, tmp_path) == [str(job) for job in study.jobs()]
    again = share(study, url(tmp_path))
    assert {trial.job for trial in again.trials()} == set(study.jobs())
    assert again.claim("here") is None
    assert again.attempts() == len(list(study.jobs()))
    held = optuna.load_study(study_name="made/LAMB", storage=url(tmp_path))
    assert {trial.params["lr"] for trial in held.trials} == {point["lr"] for point in study.arms[0].points}
    assert held.best_value == max(trial.score or 0.0 for trial in again.trials() if trial.job.arm == "LAMB")


def together(study: Study, storage: str, folder: Path, workers: int, seconds: float) -> None:
    """Run a study by so many processes, and check that each job ran once."""
    with SharedStudy(study, storage):
        pass
    context = get_context("spawn")
    arguments = (study, storage, folder, seconds)
    processes = [context.Process(target=run_in_a_process, args=arguments) for _ in range(workers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    told = Counter((folder / "journal").read_text().splitlines())
    assert told == Counter(str(job) for job in study.jobs())
    with SharedStudy(study, storage) as shared:
        assert {trial.job for trial in shared.trials()} == set(study.jobs())


def test_two_processes_run_every_job_once(tmp_path: Path) -> None:
    together(made_study(seeds=8), url(tmp_path), tmp_path, workers=2, seconds=0.0)


@pytest.mark.slow
def test_two_processes_on_one_file_run_200_short_trials(tmp_path: Path) -> None:
    study = made_study(("a", "b", "c", "d"), seeds=46)
    assert len(list(study.jobs())) == 200
    together(study, url(tmp_path), tmp_path, workers=2, seconds=0.0)


def test_a_worker_waits_for_those_with_lower_tickets(tmp_path: Path, share: Share) -> None:
    # Two that look at the same moment see the same job open. The second must wait until the first has written its
    # own down; one that does not wait takes the same.
    study = made_study(("LAMB",))
    first, second = share(study, url(tmp_path)), share(study, url(tmp_path))
    ticket = first._storage.create_new_trial(first._ids["LAMB"])
    first._storage.record_heartbeat(ticket)
    found: list[Claim] = []
    waiting = threading.Thread(target=lambda: found.append(claimed(second)))
    waiting.start()
    time.sleep(0.5)
    assert waiting.is_alive()
    first._storage.set_trial_user_attr(ticket, "worker", "first")
    first._storage.set_trial_user_attr(ticket, "job", {"arm": "LAMB", "kind": "tuning", "number": 0})
    waiting.join()
    assert found[0].job == Job("LAMB", "tuning", 1)
    finish(second, found[0])


MORTAL = {"sign_of_life_seconds": 1, "dead_after_seconds": 2}


def wait_until(condition: Any) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.2)


def test_the_job_of_one_that_died_is_open_again_and_the_dead_cannot_end_it(tmp_path: Path, share: Share) -> None:
    study = made_study(("LAMB",))
    shared = share(study, url(tmp_path), **MORTAL)
    dead, alive = claimed(shared), claimed(shared)
    assert [dead.job.number, alive.job.number] == [0, 1]
    dead._life.end()

    def buried() -> bool:
        shared.bury()
        return dead.job not in {one.job for one in shared.running()}

    wait_until(buried)
    assert alive.job in {one.job for one in shared.running()}  # it has told that it is alive meanwhile
    assert not finish(shared, dead)
    assert shared.trials() == []
    again = claimed(shared)
    assert again.job == dead.job
    assert finish(shared, again)
    assert finish(shared, alive)
    assert {trial.job.number for trial in shared.trials()} == {0, 1}


def test_one_that_died_before_it_had_a_job_keeps_nobody_waiting(tmp_path: Path, share: Share) -> None:
    shared = share(made_study(("LAMB",)), url(tmp_path), **MORTAL)
    shared._storage.create_new_trial(shared._ids["LAMB"])  # no sign of life, no job
    claim = claimed(shared)
    assert claim.job == Job("LAMB", "tuning", 0)
    finish(shared, claim)


def test_a_claim_that_is_left_is_given_back(tmp_path: Path, share: Share) -> None:
    shared = share(made_study(("LAMB",)), url(tmp_path))
    with claimed(shared) as claim:
        first = claim.job
    with claimed(shared) as claim:
        assert claim.job == first
    with pytest.raises(RuntimeError), claimed(shared):
        raise RuntimeError
    with claimed(shared) as claim:
        assert claim.job == first


def test_a_trial_that_diverged_is_not_run_again(tmp_path: Path, share: Share) -> None:
    study = made_study(("LAMB",))
    shared = share(study, url(tmp_path))
    with claimed(shared) as claim:
        assert claim.end(made_trial(study, claim.job, claim.point, None))
    assert [trial.state for trial in share(study, url(tmp_path)).trials()] == ["diverged"]
    with claimed(shared) as claim:
        assert claim.job.number == 1


def test_a_folder_that_is_held_is_left_for_later(tmp_path: Path, share: Share) -> None:
    refused: list[Job] = []
    training = FakeTraining(tmp_path / "journal")

    def train(*given: Any) -> Any:
        if not refused:
            refused.append(given[2])
            raise FolderHeld("held")
        return training(*given)

    study = made_study(("LAMB",))
    assert work(share(study, url(tmp_path)), tmp_path, train, "here", pause_seconds=0.01)
    assert (tmp_path / "journal").read_text().splitlines().count(str(refused[0])) == 1


def test_pruning_ends_what_is_worse_than_the_median_and_only_where_declared(tmp_path: Path, share: Share) -> None:
    pruned: dict[bool, list[int]] = {}
    for declared in (True, False):
        study = made_study(("LAMB",), pruning=Pruning(trials=2, evaluations=1) if declared else None)
        shared = share(study, url(tmp_path) + str(declared))
        pruned[declared] = []
        for _ in range(4):
            with claimed(shared) as claim:
                good = claim.job.number < 2
                scores = (0.5, 0.6, 0.7) if good else (0.5, 0.1, 0.1)
                hopeless = [claim.is_hopeless(score, number) for number, score in enumerate(scores)]
                assert not hopeless[0]  # the first evaluation is not judged
                if any(hopeless):
                    pruned[declared].append(claim.job.number)
                    claim.end(made_trial(study, claim.job, claim.point, None, state="pruned"))
                else:
                    claim.end(made_trial(study, claim.job, claim.point, 0.7))
        with claimed(shared) as claim:
            assert claim.job.kind == "seed"
            assert not claim.is_hopeless(0.0, 0)  # seeds are never pruned: what is compared has come to its end
            assert not claim.is_hopeless(0.0, 1)
    assert pruned == {True: [2, 3], False: []}


def test_what_a_ledger_has_is_taken_over_once_and_nothing_of_it_runs_again(tmp_path: Path, share: Share) -> None:
    study = made_study(("a", "b"))
    held = made_trials(study, lambda job, point: None if job.number == 1 else score_of(job, point))
    pruned = [replace(trial, state="pruned") if trial.state == "diverged" else trial for trial in held[4:8]]
    held = [*held[:4], *pruned, *held[8:]]
    shared = share(study, url(tmp_path))
    with claimed(shared) as claim:
        assert claim.job == held[0].job
        claim.end(replace(held[0], seconds=99.0))
    for _ in range(2):
        shared.adopt(held[:-2])
        known = {trial.job: trial for trial in shared.trials()}
        assert known.pop(held[0].job).seconds == 99.0, "what the database has stays"
        assert known == {trial.job: trial for trial in held[1:-2]}
    with claimed(shared) as claim:
        assert claim.job == held[-2].job
        assert claim.point == held[-2].point


@pytest.mark.parametrize(("place", "hopeless"), [(2, True), (0, False)])
def test_a_trial_that_went_on_is_judged_where_it_is(tmp_path: Path, share: Share, place: int, hopeless: bool) -> None:
    """What others had at the third evaluation is what counts for one that is told of again from there on."""
    study = made_study(("LAMB",), pruning=Pruning(trials=1, evaluations=1))
    shared = share(study, url(tmp_path))
    with claimed(shared) as claim:
        assert not any(claim.is_hopeless(score, number) for number, score in enumerate((0.5, 0.6, 0.7)))
        claim.end(made_trial(study, claim.job, claim.point, 0.7))
    with claimed(shared) as claim:
        assert claim.is_hopeless(0.6, place) is hopeless


def test_another_study_in_the_same_database_is_refused(tmp_path: Path, share: Share) -> None:
    share(made_study(), url(tmp_path))
    with pytest.raises(InputError, match="already holds a study made with other seeds"):
        share(made_study(seeds=4), url(tmp_path))
    share(made_study(name="another", seeds=4), url(tmp_path))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("nonsense", "allowed is a URL"),
        ("oracle2://x", "allowed is a URL"),
        ("redis://localhost", "signs of life cannot be told"),
        ("sqlite:////nowhere/at/all.db", "cannot be opened: "),
        ("postgresql+psycopg://me:secret@127.0.0.1:1/none", "cannot be opened: "),
    ],
)
def test_a_database_that_cannot_be_had_is_one_sentence(share: Share, given: str, told: str) -> None:
    with pytest.raises(InputError, match=told) as caught:
        share(made_study(), given)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_folders_of_runs_differ_and_are_words(tmp_path: Path) -> None:
    study = made_study(("square root, betas too", "N-LAMB"), (16, 1024))
    folders = [
        run_folder(tmp_path, study.by_name[job.arm], job).relative_to(tmp_path).as_posix() for job in study.jobs()
    ]
    assert len(set(folders)) == len(folders)
    assert folders[0] == "runs/square-root-betas-too-batch-16/point-0"
