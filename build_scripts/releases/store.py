"""Put a built release into a model repository: all of it or nothing, whenever the build is killed.

Everything that a build adds lies in one directory, `text_classifier/releases/<id>/`; the models' files are links that
lead there through one more link, `text_classifier/live`. Renaming a new link over `live` is the only step that changes
what is served, and the file system does it at once. The id is a fingerprint of all inputs, so a release that exists
never has to be built again. Another classifier has such a directory under its own name; `names` tells which there are.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import filecmp
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from build_scripts.core.errors import ServingError
from build_scripts.core.names import ENSEMBLE, Models
from build_scripts.core.paths import SOURCE_REPOSITORY

# Live, the one before (for a rollback), and one in reserve.
KEPT_RELEASES = 3
MANIFEST = "manifest.json"
CONFIG = "config.pbtxt"
# What CONFIG was when a build copied it: whoever edits it makes the two differ.
COPIED_CONFIG = "config.pbtxt.copied"
# The ids of the releases that were live, a line each, the last one first.
HISTORY = "history"
# BUILD_LOCK is held by whoever builds. SWITCH_LOCK is held for the instant of a switch, and by a server while it loads.
BUILD_LOCK, SWITCH_LOCK = ".build.lock", ".switch.lock"
# Only a package has it.
CHECKSUMS = "SHA256SUMS"
DISK_FULL = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))


def releases_directory(repository: Path, name: str = ENSEMBLE) -> Path:
    return repository / name / "releases"


def is_package(repository: Path) -> bool:
    """Whether it is a package, which is as it is for good: nothing is built, switched or written there."""
    return (repository / CHECKSUMS).is_file()


def refuse_package(repository: Path) -> None:
    """Raises ServingError where a build has nothing to do."""
    if is_package(repository):
        raise ServingError(f"{repository} is a package, which is replaced as a whole; make and deploy another one")


def live_release(repository: Path, name: str = ENSEMBLE) -> Path | None:
    """The directory that holds the live release's manifest; None if nothing was built yet."""
    directory = repository / name if is_package(repository) else repository / name / "live"
    return directory.resolve() if (directory / MANIFEST).is_file() else None


def names(repository: Path) -> list[str]:
    """The classifiers that can be served, the default first."""
    found = {path.name for path in repository.glob("*") if live_release(repository, path.name)}
    return sorted(found, key=lambda name: (name != ENSEMBLE, name))


def read_manifest(release: Path) -> dict:
    return json.loads((release / MANIFEST).read_text(encoding="utf-8"))


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Only one process builds or switches in a directory at a time; others wait, and say so.

    Raises ServingError if the directory cannot be written to, or when its disk is full.
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
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another build is at work in {directory}; waiting for it", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        except Exception as error:  # copytree and tokenizers raise types of their own when a disk is full
            if any(reason in str(error) for reason in DISK_FULL):
                raise ServingError(
                    f"no space left in {directory}; a build needs about four times the checkpoint's size while it "
                    "works. Free some space and run it again: what was there before is untouched"
                ) from error
            raise


def copy_sources(repository: Path) -> None:
    """Give another repository the committed configs, model.py and links; it is then complete by itself.

    A config that was edited there is its owner's, and stays.
    """
    if repository.resolve() == SOURCE_REPOSITORY:
        return
    ignored = shutil.ignore_patterns("releases", "live", "__pycache__")
    sources = [SOURCE_REPOSITORY / model for model in Models().all]
    links = [path.relative_to(SOURCE_REPOSITORY) for one in sources for path in one.rglob("*") if path.is_symlink()]
    for link in (Path(ENSEMBLE, "live"), *links):
        if (repository / link).exists() and not (repository / link).is_symlink():
            raise ServingError(
                f"{repository / link} is no link: {repository} is a copy that followed links and holds no releases; "
                "copy with `cp -a`, or name another directory with MODEL_REPOSITORY=…"
            )

    def not_copied(directory: str, names: list[str]) -> set[str]:
        there = repository / Path(directory).relative_to(SOURCE_REPOSITORY)
        # copytree refuses to make a link a second time.
        kept = ignored(directory, names) | {name for name in names if (there / name).is_symlink()}
        config = there / CONFIG
        unedited = (Path(directory) / CONFIG, there / COPIED_CONFIG)
        if config.exists() and not any(same(config, other) for other in unedited):
            print(f"{config} differs from the project's and is kept; remove it to get the project's", flush=True)
            kept.add(CONFIG)
        return kept

    for source in sources:
        there = repository / source.name
        shutil.copytree(source, there, symlinks=True, ignore=not_copied, dirs_exist_ok=True, copy_function=copy_whole)
        copy_whole(source / CONFIG, there / COPIED_CONFIG)


def same(one: Path, other: Path) -> bool:
    return other.exists() and filecmp.cmp(one, other, shallow=False)


def copy_whole(source: str | Path, target: str | Path) -> None:
    """Copy a file so that neither a full disk nor a kill leaves half of it where there was a whole one."""
    new = Path(target).with_name(f".{Path(target).name}.new")
    try:
        shutil.copy2(source, new)
        os.replace(new, target)
    finally:
        new.unlink(missing_ok=True)


def write_whole(target: Path, text: str) -> None:
    """As `copy_whole`; a file that says so already keeps its time."""
    if target.exists() and target.read_text(encoding="utf-8") == text:
        return
    new = target.with_name(f".{target.name}.new")
    try:
        new.write_text(text, encoding="utf-8")
        os.replace(new, target)
    finally:
        new.unlink(missing_ok=True)


@contextlib.contextmanager
def staged(repository: Path, release_id: str, name: str = ENSEMBLE) -> Iterator[Path]:
    """A directory to fill; when the block ends well, it becomes the complete release `release_id`.

    On any error, a full disk included, it is removed again and the repository is as it was.
    """
    directory = releases_directory(repository, name)
    directory.mkdir(parents=True, exist_ok=True)
    for leftover in directory.glob(".building-*"):  # of a killed build; we hold the lock
        shutil.rmtree(leftover)
    staging = directory / f".building-{release_id}"
    staging.mkdir()
    try:
        yield staging
        sync_tree(staging)
        shutil.rmtree(directory / release_id, ignore_errors=True)
        staging.rename(directory / release_id)
        sync(directory)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def switch(repository: Path, release_id: str, name: str = ENSEMBLE) -> None:
    """Make a complete release the live one, at once."""
    live = live_release(repository, name)
    before = history(repository, name) or ([live.name] if live else [])
    write_history(repository, [release_id, *(other for other in before if other != release_id)], name)
    link = repository / name / "live"
    new = link.with_name(".live.new")
    new.unlink(missing_ok=True)
    new.symlink_to(Path("releases") / release_id)
    with (repository / SWITCH_LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.replace(new, link)
    sync(link.parent)


def take_back(repository: Path, name: str) -> None:
    """Undo the last switch: what was live before is live again, or nothing is."""
    earlier = history(repository, name)[1:]
    if earlier:
        switch(repository, earlier[0], name)
    else:
        link = repository / name / "live"
        link.unlink()
        sync(link.parent)
    write_history(repository, earlier, name)


def history(repository: Path, name: str = ENSEMBLE) -> list[str]:
    """The ids of the releases that were live, the last one first. Written down: a copy has file times of its own."""
    with contextlib.suppress(FileNotFoundError):
        return (releases_directory(repository, name) / HISTORY).read_text(encoding="utf-8").split()
    return []


def write_history(repository: Path, ids: list[str], name: str = ENSEMBLE) -> None:
    """At once, and on the disk before anything that follows."""
    file = releases_directory(repository, name) / HISTORY
    new = file.with_name(f".{HISTORY}.new")
    new.write_text("".join(f"{release_id}\n" for release_id in ids), encoding="utf-8")
    sync(new)
    os.replace(new, file)
    sync(file.parent)


def releases(repository: Path, name: str = ENSEMBLE) -> list[Path]:
    """Complete releases, the one that went live last first; those that never were come last."""
    complete = sorted(path.parent for path in releases_directory(repository, name).glob(f"[!.]*/{MANIFEST}"))
    order = {release_id: place for place, release_id in enumerate(history(repository, name))}
    return sorted(complete, key=lambda path: order.get(path.name, len(order)))


def prune(repository: Path, name: str = ENSEMBLE) -> None:
    """Remove all but the KEPT_RELEASES that were live last."""
    live = live_release(repository, name)
    for release in releases(repository, name)[KEPT_RELEASES:]:
        if release.resolve() != live:
            # Under another name first: killed half-way, what is left must not pass for a release.
            shutil.rmtree(release.rename(release.with_name(f".building-{release.name}")))


def sync_tree(directory: Path) -> None:
    """Write everything to the disk, so that a link never leads to a half-written file after a power cut."""
    for path in sorted(directory.rglob("*")):
        sync(path)
    sync(directory)


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
