"""Errors that the user can fix; entry points convert them to exit codes."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read; the text names it and the reason."""


class TrainingError(RuntimeError):
    """Training cannot continue; the text has the reason and what to change."""
