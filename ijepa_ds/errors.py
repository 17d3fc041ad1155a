"""Kinds of errors by what has to happen next; `train` converts them to exit codes (`exit_code`)."""

import errno

from ijepa_ds.exits import FAILED, STOPPED, USER_ERROR

# What a call reports about the file that it names. Every other error is a fault of the storage.
_OF_FILE = frozenset(
    getattr(errno, name)
    for name in ("ENOENT", "EACCES", "EPERM", "ENOTDIR", "EISDIR", "ELOOP", "ENAMETOOLONG", "ENXIO", "EEXIST", "EXDEV")
)
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG})  # writes only; somebody has to make room


class UserError(ValueError):
    """The user has to change something (configuration, command, files); the text says what. No restart helps."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read; the text names it and the reason."""


class TrainingError(RuntimeError):
    """Training cannot continue; the text has the reason and what to change."""


class ContentError(ValueError):
    """The bytes of one image cannot be used; the text has the reason. The image is replaced."""


class StorageError(RuntimeError):
    """Files could not be reached for too long, which says nothing about their content. A later start may succeed.

    It is no OSError, so that code that handles errors of a single file does not catch it.
    """


class NetworkError(RuntimeError):
    """Ranks cannot reach each other. A later start may succeed."""


class DeviceError(RuntimeError):
    """A GPU or its driver failed while it decoded images, which says nothing about the images."""


def is_fault(error: OSError) -> bool:
    """Whether an error is a fault of the storage, which may pass, and not a property of the named file."""
    return error.errno is not None and error.errno not in _OF_FILE and error.errno not in _FULL


def text_of(error: BaseException) -> str:
    """The text of an error for messages; of an OSError "FILE: REASON", without its number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def agreed(error: Exception) -> Exception:
    """The error, marked as one that every rank raises."""
    vars(error)["agreed"] = True
    return error


def is_agreed(error: Exception) -> bool:
    """Whether every rank raises this error, so that rank 0 alone has to print it."""
    return bool(vars(error).get("agreed"))


def exit_code(error: BaseException) -> int:
    """The exit code of a run that ends with `error`: 2 (change something), 75 (start again) or 1 (a bug, or a device)."""
    if isinstance(error, (UserError, CheckpointError, TrainingError)):
        return USER_ERROR
    if isinstance(error, (StorageError, NetworkError)):
        return STOPPED
    if isinstance(error, OSError) and error.errno is not None:
        return STOPPED if is_fault(error) else USER_ERROR
    return FAILED
