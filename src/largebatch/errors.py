"""What the user gave cannot be used: the one exception that the command line turns into a single line."""


class InputError(ValueError):
    """A mistake in what the user gave: a field, a file, a folder, a corpus.

    The message is one sentence that says what was given and what is allowed. The command line prints it
    without a traceback and exits with 2; every other exception is a fault of ours and keeps its traceback.
    """

    said = False
    """True if another process prints the message, so that it is not repeated by each rank."""
