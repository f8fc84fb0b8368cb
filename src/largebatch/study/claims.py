"""Who runs what: workers on one or many machines share a study through a database, and each job runs once.

An attempt at a job is a trial of Optuna, in one study of Optuna's for each arm. The database numbers the trials of an
arm without gaps, whatever it is and however many ask at once, and that number is the worker's ticket:

    take a ticket; wait until every lower one has been used, given back or died; take the first job that is open

so that no two have the same job, although SQLite cannot change a state only if it is still another. An attempt that
is running sends a sign of life every few seconds. One that has sent none for a while is dead: its job is open again,
and the next attempt goes on from the checkpoints in the run's folder. All that is known of a job that has ended stands
in its trial, so that the database alone tells the whole study.

An attempt that was taken for dead and is not, because its machine had stopped for a while, cannot write its end any
more; the folder's lock keeps another from training beside it, and what it has trained is found there.
"""

import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.exceptions import ExperimentalWarning, StorageInternalError, UpdateFinishedTrialError
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.samplers import RandomSampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from largebatch.errors import InputError
from largebatch.study.ledger import Trial, trial_of
from largebatch.study.plan import Arm, Ended, Job, Study
from largebatch.study.space import Point, Value

SIGN_OF_LIFE_SECONDS = 5
DEAD_AFTER_SECONDS = 30
"""Without a sign of life, by the clock of the database."""

_PAUSE_SECONDS = 0.05
_SQLITE_PATIENCE_SECONDS = 60
_WORKER, _JOB, _RECORD, _DECLARATION = "worker", "job", "record", "declaration"
_STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "diverged": TrialState.FAIL}
_ENDED = tuple(_STATES.values())
_OPENINGS = 5

optuna.logging.set_verbosity(optuna.logging.ERROR)


@dataclass(frozen=True, kw_only=True)
class Running:
    """An attempt that is alive."""

    job: Job
    worker: str


class SharedStudy:
    """A study in a database, as one worker sees it; connections are closed at the end of a ``with``."""

    def __init__(
        self,
        study: Study,
        url: str,
        sign_of_life_seconds: int = SIGN_OF_LIFE_SECONDS,
        dead_after_seconds: int = DEAD_AFTER_SECONDS,
    ) -> None:
        """Open the database, and begin the study in it unless it is there.

        Raises:
            InputError: the database cannot be opened, or holds another study of that name.
        """
        self.study = study
        self._dead_after = dead_after_seconds
        self._sign_of_life = sign_of_life_seconds
        self._nameless: dict[int, float] = {}
        self._read: dict[int, Trial | None] = {}
        self._storage = _opened(url, sign_of_life_seconds, dead_after_seconds)
        try:
            self._arms = {arm.name: self._begun(arm) for arm in study.arms}
            self._check_declaration()
        except InputError:
            self.close()
            raise
        except (SQLAlchemyError, StorageInternalError) as error:
            self.close()
            raise InputError(f"the database {_without_password(url)} cannot be used: {_first_line(error)}") from error
        self._ids = {name: self._storage.get_study_id_from_name(one.study_name) for name, one in self._arms.items()}

    def _begun(self, arm: Arm) -> optuna.Study:
        pruning = self.study.pruning
        pruner: BasePruner = NopPruner()
        if pruning is not None:
            pruner = MedianPruner(n_startup_trials=pruning.trials, n_warmup_steps=pruning.evaluations)
        return optuna.create_study(
            storage=self._storage,
            sampler=RandomSampler(),  # never asked: points are declared
            pruner=pruner,
            study_name=f"{self.study.name}/{arm.name}",
            direction="maximize" if self.study.higher_is_better else "minimize",
            load_if_exists=True,
        )

    def _check_declaration(self) -> None:
        first = next(iter(self._arms.values()))
        held = first.user_attrs.get(_DECLARATION)
        if held is None:
            first.set_user_attr(_DECLARATION, self.study.as_dict())
        elif changed := self.study.changed(held):
            raise InputError(
                f"the database already holds a study {self.study.name} with other {', '.join(changed)}: "
                "go on with what it had, or give it another name with --name"
            )

    def __enter__(self) -> "SharedStudy":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections to the database."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    # What is known.

    def trials(self) -> list[Trial]:
        """Return all trials that have ended; of a job that was run twice after all, the first."""
        found: dict[Job, Trial] = {}
        for one in self._arms.values():
            for trial in one.get_trials(deepcopy=False, states=_ENDED):
                # What has ended stays what it is, and records are long.
                if trial._trial_id not in self._read:
                    self._read[trial._trial_id] = _ended(trial)
                ended = self._read[trial._trial_id]
                if ended is not None:
                    found.setdefault(ended.job, ended)
        return list(found.values())

    def ended(self) -> dict[Job, Ended]:
        """Return job -> how it ended."""
        return {trial.job: trial.ended for trial in self.trials()}

    def running(self) -> list[Running]:
        """Return the attempts that are under way."""
        found = []
        for one in self._arms.values():
            for trial in one.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                if _JOB in trial.user_attrs:
                    found.append(Running(job=Job(**trial.user_attrs[_JOB]), worker=trial.user_attrs[_WORKER]))
        return found

    def adopt(self, trials: Iterable[Trial]) -> None:
        """Take over what has ended elsewhere, as a ledger has it, where nothing is known of a job's end."""
        known = self.ended()
        for trial in trials:
            if trial.job in known:
                continue
            arm = self.study.by_name[trial.job.arm]
            state = _STATES[trial.state]
            taken_over = optuna.trial.create_trial(
                state=state,
                value=trial.score if state is TrialState.COMPLETE else None,
                params=dict(trial.point),
                distributions={name: _distribution(arm, name, value) for name, value in trial.point.items()},
                user_attrs={_JOB: asdict(trial.job), _RECORD: trial.as_dict()},
            )
            self._arms[arm.name].add_trial(taken_over)

    def attempts(self) -> int:
        """Return how many tickets have been drawn."""
        return sum(len(one.get_trials(deepcopy=False)) for one in self._arms.values())

    def bury(self) -> None:
        """Open the jobs of dead attempts again."""
        for one in self._arms.values():
            with _experiments_accepted():
                optuna.storages.fail_stale_trials(one)
            # One that was killed between its ticket and its first sign of life has none that could be old.
            for trial in one.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                if _WORKER in trial.user_attrs:
                    self._nameless.pop(trial._trial_id, None)
                    continue
                since = self._nameless.setdefault(trial._trial_id, time.monotonic())
                if time.monotonic() - since > self._dead_after:
                    self._fail(trial._trial_id)

    # What is to be done.

    def claim(self, worker: str) -> "Claim | None":
        """Take the next job that is open, for as long as the claim is held; None if there is none just now."""
        ended, running = self.ended(), {one.job for one in self.running()}
        job = next((job for job in self.study.open_jobs(ended) if job not in running), None)
        if job is None:
            return None
        arm = self.study.by_name[job.arm]
        ticket = self._storage.create_new_trial(self._ids[arm.name])
        life = _SignsOfLife(self._storage, ticket, self._sign_of_life)
        try:
            self._storage.set_trial_user_attr(ticket, _WORKER, worker)
            found = self._decide(arm, ticket)
            if found is not None:
                job, point = found
                self._storage.set_trial_user_attr(ticket, _JOB, asdict(job))
                for name, value in point.items():
                    distribution = _distribution(arm, name, value)
                    internal = distribution.to_internal_repr(value)
                    self._storage.set_trial_param(ticket, name, internal, distribution)
                return Claim(self, self._arms[arm.name], ticket, life, job, point)
        except UpdateFinishedTrialError:
            pass  # taken for dead while it waited
        except BaseException:
            life.end()
            self._fail(ticket)
            raise
        life.end()
        self._fail(ticket)
        return None

    def _decide(self, arm: Arm, ticket: int) -> tuple[Job, Point] | None:
        """Wait for lower tickets, then return the first job of the arm that is open, and its point."""
        number = self._storage.get_trial_number_from_id(ticket)
        one = self._arms[arm.name]
        while True:
            lower = [trial for trial in one.get_trials(deepcopy=False) if trial.number < number]
            running = [trial for trial in lower if trial.state is TrialState.RUNNING]
            if all(_JOB in trial.user_attrs for trial in running):
                break
            self.bury()
            time.sleep(_PAUSE_SECONDS)
        taken = {Job(**trial.user_attrs[_JOB]) for trial in running}
        ended = self.ended()
        for job in self.study.open_jobs(ended):
            if job.arm == arm.name and job not in taken:
                point = self.study.point(job, ended)
                assert point is not None
                return job, point
        return None

    def _fail(self, ticket: int) -> None:
        with suppress(UpdateFinishedTrialError):
            self._storage.set_trial_state_values(ticket, TrialState.FAIL)


class Claim:
    """A job that this worker has; leaving it without an end gives it back."""

    def __init__(
        self, shared: SharedStudy, optuna_study: optuna.Study, ticket: int, life: "_SignsOfLife", job: Job, point: Point
    ) -> None:
        self.job, self.point = job, point
        self._shared, self._ticket, self._life = shared, ticket, life
        self._trial = optuna.trial.Trial(optuna_study, ticket)

    def __enter__(self) -> "Claim":
        return self

    def __exit__(self, *error: object) -> None:
        self._life.end()
        self._shared._fail(self._ticket)  # nothing happens to one that has ended

    def is_hopeless(self, score: float, evaluation: int) -> bool:
        """Tell the score of a run's evaluation, from 0; return whether the declared pruning ends the trial there."""
        if self._shared.study.pruning is None or self.job.kind != "tuning":
            return False
        try:
            self._trial.report(score, evaluation)
            return bool(self._trial.should_prune())
        except UpdateFinishedTrialError:
            return False  # taken for dead: what it trains is found by the next

    def end(self, trial: Trial) -> bool:
        """Write down what the job came to; False if this attempt was taken for dead meanwhile."""
        storage = self._shared._storage
        state = _STATES[trial.state]
        values = None if trial.score is None or state is not TrialState.COMPLETE else [trial.score]
        try:
            storage.set_trial_user_attr(self._ticket, _RECORD, trial.as_dict())
            return storage.set_trial_state_values(self._ticket, state, values)
        except UpdateFinishedTrialError:
            return False


class _SignsOfLife:
    """A thread that tells the database that a ticket's worker is alive."""

    def __init__(self, storage: RDBStorage, ticket: int, every_seconds: float) -> None:
        self._over = threading.Event()
        storage.record_heartbeat(ticket)
        self._thread = threading.Thread(target=self._tell, args=(storage, ticket, every_seconds), daemon=True)
        self._thread.start()

    def _tell(self, storage: RDBStorage, ticket: int, every_seconds: float) -> None:
        while not self._over.wait(every_seconds):
            # A database that is away for a moment is no reason to stop; one that stays away is told by the next write.
            with suppress(SQLAlchemyError, StorageInternalError):
                storage.record_heartbeat(ticket)
        storage.remove_session()

    def end(self) -> None:
        self._over.set()
        self._thread.join()


def _opened(url: str, sign_of_life_seconds: int, dead_after_seconds: int) -> RDBStorage:
    """Open a database, making its tables; several processes may do so at once."""
    if url.startswith(("redis:", "rediss:")):
        raise InputError("--storage is a Redis, in which signs of life cannot be told: allowed are SQL databases")
    options: dict[str, Any] = {"pool_pre_ping": True}
    if url.startswith("sqlite"):
        options = {"connect_args": {"timeout": _SQLITE_PATIENCE_SECONDS}}
    for opening in range(1, _OPENINGS + 1):
        try:
            with _experiments_accepted():
                return RDBStorage(
                    url, engine_kwargs=options, heartbeat_interval=sign_of_life_seconds, grace_period=dead_after_seconds
                )
        except (ArgumentError, NoSuchModuleError, ValueError) as error:
            given = _without_password(url)
            raise InputError(f"--storage is {given}, allowed is a URL such as postgresql://HOST/NAME") from error
        except ImportError as error:
            raise InputError(f"the storage {_without_password(url)} needs a driver: {error}") from error
        except (SQLAlchemyError, RuntimeError, StorageInternalError) as error:
            if opening == _OPENINGS:
                sentence = f"the database {_without_password(url)} cannot be opened: {_first_line(error)}"
                raise InputError(sentence) from error
            time.sleep(0.2 * opening)
    raise AssertionError


@contextmanager
def _experiments_accepted() -> Iterator[None]:
    """Keep Optuna from saying at each call that signs of life may change; the constraints pin the version tested."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


def _ended(trial: FrozenTrial) -> Trial | None:
    held = trial.user_attrs.get(_RECORD)
    if held is None or (trial.state is TrialState.FAIL and held["state"] != "diverged"):
        return None
    return trial_of(held)


def _distribution(arm: Arm, name: str, value: Value) -> BaseDistribution:
    """Return what Optuna is to know of an option: the least and the largest value, or the choices, of the arm."""
    values = [point[name] for point in arm.points if name in point] or [value]
    if all(isinstance(one, int | float) and not isinstance(one, bool) for one in values):
        numbers = [float(one) for one in values]
        return FloatDistribution(min(numbers), max(numbers), log=min(numbers) > 0)
    return CategoricalDistribution(list(dict.fromkeys(values)))


def _without_password(url: str) -> str:
    before, mark, after = url.partition("@")
    scheme, _, user = before.partition("://")
    return f"{scheme}://{user.partition(':')[0]}@{after}" if mark else url


def _first_line(error: Exception) -> str:
    cause = error.__cause__ or error
    return str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
