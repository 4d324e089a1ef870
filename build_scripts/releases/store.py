"""The releases of a repository: which there are, which is live, and how another one becomes live.

A release is one directory, `<classifier>/releases/<id>/`, which never changes. The id is a fingerprint of all inputs:
a release that exists never has to be built again. The first line of `<classifier>/releases/history` names the live
release, from which all three models are taken (see `models`). Renaming a new history over the old one is the only step
that changes what is served. Kill a build at any moment: the old release or the new one is live.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from build_scripts.core.errors import ServingError
from build_scripts.core.locks import LocksUnsupportedError, try_lock, wait_for_lock
from build_scripts.core.names import ENSEMBLE
from build_scripts.core.options import BuildOptions
from build_scripts.core.paths import SOURCE_REPOSITORY
from build_scripts.releases.files import digest, is_disk_full, sync, sync_tree, write_whole

# Live, the one before (for a rollback), and one in reserve.
KEPT_RELEASES = 3
# What the release is. It ends up in the package, so it holds nothing of the machine that built it.
MANIFEST = "manifest.json"
# How the build went on this machine: timings, and where the checkpoint lay. Then the gate's figures.
MEASURED = "measured.json"
CONFIG = "config.pbtxt"
# The ids of the releases that were live, one a line, the live one first.
HISTORY = "history"
BUILD_LOCK = ".build.lock"
# Only a package has it.
CHECKSUMS = "SHA256SUMS"
# The link to the live release of an earlier layout. The next switch replaces it.
EARLIER_LINK = "live"


def releases_directory(repository: Path, name: str = ENSEMBLE) -> Path:
    return repository / name / "releases"


def is_package(repository: Path) -> bool:
    """Whether the repository is a package. Nothing is built, switched or written in a package."""
    return (repository / CHECKSUMS).is_file()


def refuse_package(repository: Path) -> None:
    """Raises ServingError if the repository is a package."""
    if is_package(repository):
        raise ServingError(f"{repository} is a package, which is replaced as a whole; make and deploy another one")


def refuse_options_for_package(options: BuildOptions, *, named: bool) -> None:
    """Raises ServingError if a server of a package was asked for a checkpoint, or for one classifier by its name."""
    if options.model or named:
        asked = f"MODEL={options.model}" if options.model else f"NAME={options.name}"
        raise ServingError(f"{asked}: {options.repository} is a package and serves what it was made from")


def live_release(repository: Path, name: str = ENSEMBLE) -> Path | None:
    """The directory with the live release's manifest; None if nothing was built yet."""
    if is_package(repository):
        directory = repository / name
    else:
        ids = history(repository, name)
        directory = releases_directory(repository, name) / (ids[0] if ids else "none")
    return directory.resolve() if (directory / MANIFEST).is_file() else None


def names(repository: Path) -> list[str]:
    """The classifiers that can be served, the default first."""
    found = {path.name for path in repository.glob("*") if live_release(repository, path.name)}
    return sorted(found, key=lambda name: (name != ENSEMBLE, name))


def read_manifest(release: Path) -> dict:
    """What the release is and, where that was kept, how its build went."""
    manifest = json.loads((release / MANIFEST).read_text(encoding="utf-8"))
    with contextlib.suppress(FileNotFoundError):
        manifest.update(json.loads((release / MEASURED).read_text(encoding="utf-8")))
    return manifest


def record(release: Path, **facts: object) -> None:
    """Add facts to what was measured of a release. The release, its digests and its package stay the same."""
    known: dict = {}
    with contextlib.suppress(FileNotFoundError):
        known = json.loads((release / MEASURED).read_text(encoding="utf-8"))
    write_whole(release / MEASURED, json.dumps({**known, **facts}, indent=1, ensure_ascii=False))


def require_release(repository: Path, name: str = ENSEMBLE) -> dict:
    """The manifest of the live release. Raises ServingError if the classifier cannot be served yet."""
    live = live_release(repository, name)
    if live is None:
        where = "" if repository.resolve() == SOURCE_REPOSITORY else f" MODEL_REPOSITORY={repository}"
        where += "" if name == ENSEMBLE else f" NAME={name}"
        raise ServingError(f"{repository} holds no built release; run `make repo{where}` first")
    return read_manifest(live)


def digests(release: Path) -> dict[str, str]:
    """SHA-256 of every file of a release that is being built, by its name in the release.

    Empty files are left out, as they are from a package.
    """
    files = sorted(path for path in release.rglob("*") if path.is_file() and path.stat().st_size)
    return {file.relative_to(release).as_posix(): digest(file) for file in files}


def damaged(manifest: dict, locate: Callable[[str], Path]) -> Path | None:
    """The first file that is not the one that the release was built with. locate: from its name in the release.

    None for releases of an earlier layout, which recorded no digests.
    """
    for name, expected in manifest.get("files", {}).items():
        file = locate(name)
        if not file.is_file() or digest(file) != expected:
            return file
    return None


def refuse_damaged(release: Path) -> None:
    """Raises ServingError if the release does not hold the files that it was built with."""
    file = damaged(read_manifest(release), release.joinpath)
    if file:
        raise ServingError(
            f"{file} is not the file that release {release.name} was built with; run `make repo` with its checkpoint, "
            "which builds the release again"
        )


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Let one process at a time build or switch in a directory. The others wait and say so.

    Raises ServingError if the directory cannot be written to, or if its disk is full.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / BUILD_LOCK).open("a")
    except OSError as error:
        raise ServingError(
            f"{directory} cannot be used: {error.strerror}; expected a directory that this user may write to"
        ) from error
    with lock as file:
        try:
            if not try_lock(file):
                print(f"another build is at work in {directory}; waiting for it", flush=True)
                wait_for_lock(file)
        except LocksUnsupportedError as error:
            print(f"{directory} cannot be locked ({error}): run one build or release at a time there", flush=True)
        with refusing_full_disk(directory):
            yield


@contextlib.contextmanager
def refusing_full_disk(directory: Path) -> Iterator[None]:
    """Turn any error that a full disk caused into one line."""
    try:
        yield
    except Exception as error:
        if is_disk_full(error, directory):
            raise ServingError(
                f"no space left in {directory}; a build needs about four times the checkpoint's size while it works. "
                "Free some space and run it again: what was there before is untouched"
            ) from error
        raise


@contextlib.contextmanager
def staged(repository: Path, release_id: str, name: str = ENSEMBLE) -> Iterator[Path]:
    """A directory to fill. When the block ends without an error, it becomes the complete release `release_id`.

    After an error, a full disk included, it is removed and the repository is as it was.
    """
    directory = releases_directory(repository, name)
    directory.mkdir(parents=True, exist_ok=True)
    for leftover in directory.glob(".building-*"):  # of a killed build; the caller holds the lock
        shutil.rmtree(leftover)
    staging = directory / f".building-{release_id}"
    staging.mkdir()
    try:
        with refusing_full_disk(staging):
            yield staging
            sync_tree(staging)
            shutil.rmtree(directory / release_id, ignore_errors=True)
            staging.rename(directory / release_id)
            sync(directory)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def switch(repository: Path, release_id: str, name: str = ENSEMBLE) -> None:
    """Make a complete release the live one, in one step."""
    earlier = [other for other in history(repository, name) if other != release_id]
    write_history(repository, [release_id, *earlier], name)


def take_back(repository: Path, name: str) -> None:
    """Undo the last switch: the release that was live before is live again, or none is."""
    write_history(repository, history(repository, name)[1:], name)


def history(repository: Path, name: str = ENSEMBLE) -> list[str]:
    """The ids of the releases that were live, the live one first."""
    ids: list[str] = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        ids = (releases_directory(repository, name) / HISTORY).read_text(encoding="utf-8").split()
    with contextlib.suppress(OSError):
        live = Path(os.readlink(repository / name / EARLIER_LINK)).name
        ids = [live, *(other for other in ids if other != live)]
    return ids


def write_history(repository: Path, ids: list[str], name: str = ENSEMBLE) -> None:
    """On the disk before anything that follows."""
    file = releases_directory(repository, name) / HISTORY
    write_whole(file, "".join(f"{release_id}\n" for release_id in ids))
    sync(file.parent)
    if (link := repository / name / EARLIER_LINK).is_symlink():
        link.unlink()


def releases(repository: Path, name: str = ENSEMBLE) -> list[Path]:
    """Complete releases, the one that went live last first; releases that never were come last."""
    complete = sorted(path.parent for path in releases_directory(repository, name).glob(f"[!.]*/{MANIFEST}"))
    order = {release_id: place for place, release_id in enumerate(history(repository, name))}
    return sorted(complete, key=lambda path: order.get(path.name, len(order)))


def prune(repository: Path, name: str = ENSEMBLE) -> None:
    """Remove all but the KEPT_RELEASES that were live last."""
    for release in releases(repository, name)[KEPT_RELEASES:]:
        # Renamed first: after a kill half-way, the rest must not pass for a release.
        shutil.rmtree(release.rename(release.with_name(f".building-{release.name}")))
