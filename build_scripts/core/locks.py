"""Locks between processes, held through an open file, so that the kernel releases them however the holder ends."""

from __future__ import annotations

import errno
import fcntl
from typing import IO

# flock on file systems that have no locks, such as NFS without lockd and Lustre without -o flock.
UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


class LocksUnsupportedError(Exception):
    """The file system that holds the lock file has no locks."""


def try_lock(file: IO, *, shared: bool = False) -> bool:
    """Take the lock without waiting; False if another process holds it. Raises LocksUnsupportedError."""
    return _flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)


def wait_for_lock(file: IO) -> None:
    """Take the lock, waiting for it. Raises LocksUnsupportedError."""
    _flock(file, fcntl.LOCK_EX)


def _flock(file: IO, operation: int) -> bool:
    try:
        fcntl.flock(file, operation)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in UNSUPPORTED:
            raise LocksUnsupportedError(str(error.strerror)) from error
        raise
    return True
