"""Errors that name something the user has to mend; entry points turn them into exit codes."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read; the text names it and says why."""


class TrainingError(RuntimeError):
    """Training cannot go on; the text says why and what to change."""
