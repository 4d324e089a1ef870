"""Limits of the process: too tight ones are named in one line, others are made to suffice."""

from __future__ import annotations

import mmap
import resource

import pytest

from build_scripts.core.errors import ServingError
from build_scripts.serving.start import limits
from build_scripts.serving.start.limits import (
    FEWEST_FILES,
    GIB,
    LEAST_STACK_BYTES,
    OTHER_BYTES,
    STACK_BYTES,
    THREADS,
    address_space,
    check_limits,
    generated_code,
    open_files,
    stack_bytes,
    whole_proc,
)


@pytest.fixture
def limit(monkeypatch):
    """limit(kind, value): what getrlimit says of one resource."""
    real = resource.getrlimit

    def make(kind: int, value: int) -> None:
        monkeypatch.setattr(resource, "getrlimit", lambda asked: (value, value) if asked == kind else real(asked))

    return make


def test_too_few_open_files_are_refused(limit):
    limit(resource.RLIMIT_NOFILE, 64)
    with pytest.raises(ServingError, match=f"may open 64 files .* needs {FEWEST_FILES}; raise the limit"):
        check_limits()


@pytest.mark.parametrize("hard", [FEWEST_FILES, resource.RLIM_INFINITY])
def test_a_low_soft_limit_of_open_files_is_accepted(monkeypatch, hard):
    """The soft limit is raised for the server."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, hard))
    assert open_files().advice == ""


def test_without_a_limit_of_address_space_stacks_are_large():
    assert stack_bytes() == STACK_BYTES
    assert address_space().advice == ""


@pytest.mark.parametrize("gib", [8, 16, 32, 64, 1024])
def test_stacks_of_all_threads_fit_into_a_limited_address_space(limit, gib):
    limit(resource.RLIMIT_AS, gib * GIB)
    if not address_space().advice:
        assert LEAST_STACK_BYTES <= stack_bytes() <= STACK_BYTES
        assert OTHER_BYTES + THREADS * stack_bytes() <= gib * GIB


def test_too_little_address_space_is_refused(limit):
    limit(resource.RLIMIT_AS, 3 * GIB)
    with pytest.raises(ServingError, match=r"limited to 3\.0 GiB \(`ulimit -v`, LimitAS=\); raise it to \d+ GiB"):
        check_limits()


def test_forbidden_generated_code_is_named(monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    assert generated_code().advice == ""
    monkeypatch.setattr(mmap, "mmap", refuse)
    with pytest.raises(ServingError, match=r"writable and executable .*MemoryDenyWriteExecute="):
        check_limits()


def test_a_proc_without_the_machine_is_named(tmp_path, monkeypatch):
    assert whole_proc().advice == ""
    (tmp_path / "stat").touch()
    found = whole_proc(tmp_path)
    assert found.found == f"{tmp_path}/cpuinfo, {tmp_path}/meminfo cannot be read"
    monkeypatch.setattr(limits, "whole_proc", lambda: found)
    with pytest.raises(ServingError, match="remove ProcSubset=pid"):
        check_limits()
