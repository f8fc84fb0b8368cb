"""What the user gave cannot be used: the one exception that the command line turns into a single line."""


class InputError(ValueError):
    """A mistake in what the user gave: a field, a file, a folder, a corpus.

    The message is one sentence that says what was given and what is allowed. The command line prints it
    without a traceback and exits with 2; every other exception is a fault of ours and keeps its traceback.
    """

    said = False
    """True if another process prints the message, so that it is not repeated by each rank."""


def check_at_least(record: object, **least: int) -> None:
    """Raise InputError unless the fields of a record are None or at least so much; NaN is not."""
    for name, lowest in least.items():
        value = getattr(record, name)
        if value is not None and not value >= lowest:
            raise InputError(f"{name} is {value}, allowed is {lowest} or more")


def check_positive(**given: float) -> None:
    """Raise InputError unless the numbers are above 0 and finite; NaN is not."""
    for name, value in given.items():
        if not 0 < value < float("inf"):
            raise InputError(f"{name} is {value}, allowed is more than 0 and finite")


def check_dropout(record: object, *names: str) -> None:
    """Raise InputError unless the fields of a record are probabilities of dropping something and keeping the rest."""
    for name in names:
        if not 0 <= getattr(record, name) < 1:
            raise InputError(f"{name} is {getattr(record, name)}, allowed is 0 or more and less than 1")
