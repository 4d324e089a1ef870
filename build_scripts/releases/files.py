"""Write files whole, digest them, flush them to the disk, and recognise a full disk."""

from __future__ import annotations

import errno
import filecmp
import functools
import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from build_scripts.core.errors import ServingError

DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
# Reserved to ask whether a disk is full: more than the tail of any file that is written block by block.
PROBE_BYTES = 1 << 20


def same(one: Path, other: Path) -> bool:
    return other.exists() and filecmp.cmp(one, other, shallow=False)


def copy_whole(source: str | Path, target: str | Path) -> None:
    """Copy a file. A full disk or a kill leaves the old target, never half of the new one."""
    new = _beside(Path(target))
    try:
        shutil.copy2(source, new)
        os.replace(new, target)
    finally:
        new.unlink(missing_ok=True)


def write_whole(target: Path, text: str) -> None:
    """Write a file as `copy_whole` does. A file with this content already keeps its time and needs no space."""
    if target.exists() and target.read_text(encoding="utf-8") == text:
        return
    new = _beside(target)
    try:
        new.write_text(text, encoding="utf-8")
        sync(new)
        os.replace(new, target)
    finally:
        new.unlink(missing_ok=True)


def link_whole(target: Path, destination: Path) -> None:
    """Make or replace a symbolic link. One that leads there already is left alone."""
    if target.is_symlink() and os.readlink(target) == str(destination):
        return
    new = _beside(target)
    new.symlink_to(destination)
    os.replace(new, target)


def copy_tree(source: Path, target: Path, copy=copy_whole) -> None:
    """Copy a directory without bytecode and type stubs. Unlike `shutil.copytree` it keeps the type of an error."""
    for directory, folders, names in os.walk(source):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        there = target / Path(directory).relative_to(source)
        there.mkdir(parents=True, exist_ok=True)
        for name in names:
            if not name.endswith((".pyc", ".pyi")):
                copy(Path(directory, name), there / name)


def _beside(target: Path) -> Path:
    return target.with_name(f".{target.name}.{os.getpid()}")


def digest(file: Path) -> str:
    """SHA-256. A file whose size, times and inode have not changed is not read again."""
    status = file.stat()
    return _digest(file, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@functools.lru_cache(maxsize=4096)
def _digest(file: Path, *_: int) -> str:
    found = hashlib.sha256()
    with file.open("rb") as content:
        while block := content.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def sync_tree(directory: Path) -> None:
    """Flush everything to the disk, so that nothing leads to a half-written file after a power cut."""
    for path in sorted(directory.rglob("*")):
        sync(path)
    sync(directory)


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_disk_full(error: BaseException, directory: Path) -> bool:
    """Whether a full disk, or a spent quota, caused the error.

    The errors of torch and tokenizers have no number: after one of those the disk itself is asked.
    """
    chain = [error]
    while cause := chain[-1].__cause__:
        chain.append(cause)
    numbers = [one.errno for one in chain if isinstance(one, OSError)]
    if numbers or isinstance(chain[-1], ServingError):
        return not DISK_FULL.isdisjoint(numbers)
    try:
        with tempfile.TemporaryFile(dir=directory) as probe:
            os.posix_fallocate(probe.fileno(), 0, PROBE_BYTES)
    except OSError as refusal:
        return refusal.errno in DISK_FULL
    return False
