"""Locks between processes, and file systems that have none."""

from __future__ import annotations

import errno
import fcntl
from unittest.mock import Mock

import pytest

from build_scripts.core.locks import LocksUnsupportedError, try_lock


def test_only_one_holder(tmp_path):
    with (tmp_path / "lock").open("a") as one, (tmp_path / "lock").open("a") as other:
        assert try_lock(one)
        assert not try_lock(other)
        assert not try_lock(other, shared=True)


def test_shared_holders(tmp_path):
    with (tmp_path / "lock").open("a") as one, (tmp_path / "lock").open("a") as other:
        assert try_lock(one, shared=True)
        assert try_lock(other, shared=True)
        assert not try_lock(one)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_unsupported_locks_are_told_apart(tmp_path, monkeypatch, number):
    monkeypatch.setattr(fcntl, "flock", Mock(side_effect=OSError(number, "no locks")))
    with (tmp_path / "lock").open("a") as file, pytest.raises(LocksUnsupportedError, match="no locks"):
        try_lock(file)
