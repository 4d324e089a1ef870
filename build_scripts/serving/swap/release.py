"""Put another release live in a running server, and back: no request fails, and no answer mixes two releases.

    make release MODEL=./my-checkpoint
    make rollback

Triton swaps a model at once when it loads it again, and a request looks up all its models when it is scheduled. But the
tokenizer and the classifier are swapped one after the other. A request between the two swaps passes through one model
of each release (measured under load: more than a thousand mixed answers a switch). So the swap is made where there is
only one: at the ensemble.

1. Load the new release beside the live one, as `tokenizer_<id>` and `classifier_<id>` with a separate ensemble, and
   query it. If that fails, nothing has changed.
2. Point `text_classifier` to that pair: the new release answers every request from now on.
3. Switch the release on the disk, and load `tokenizer` and `classifier` again, through which no text passes now.
4. Point `text_classifier` back to them, and remove what step 1 loaded: the server is as if started on this release.

An interruption at any point leaves consistent answers: a server that is started again loads the one release that is
live on the disk, and a name with an id never means another release. The next release or rollback removes the leftovers
of an interrupted one. For a while the server holds three classifiers: old, candidate and new.

A classifier that the server does not have yet is switched to on the disk, and loaded; nothing else changes.

Nothing here starts or stops a server; without one, `make repo` switches.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from build_scripts.core.errors import ServingError
from build_scripts.core.names import ENSEMBLE, Models
from build_scripts.core.options import BuildOptions
from build_scripts.releases import store
from build_scripts.releases.models import put_together
from build_scripts.releases.pipeline import build_release
from build_scripts.releases.summary import print_build
from build_scripts.serving.keep.run_state import write_state
from build_scripts.serving.start.thread_settings import ONE_FOR_ALL, differing_threads
from build_scripts.serving.swap.answer_cache import load_cached
from build_scripts.serving.swap.model_control import Control, Running
from build_scripts.serving.swap.staging import (
    candidate_names,
    configured,
    is_candidate,
    refuse_what_ends_the_server,
    stage,
)
from build_scripts.serving.swap.status import were_live

# Timeout for requests that looked up their model before a swap. They are scheduled within milliseconds (with a body of
# 60 MiB: 0.8 s), however long they then wait in a queue.
DRAIN_LIMIT_S = 5.0

# Directory of the release, gRPC address of the server.
ReleaseCheck = Callable[[Path, str], None]


def release(options: BuildOptions, http_port: int, check: ReleaseCheck | None = None) -> None:
    """Build what the options ask for into the running server's repository, and put it live.

    check: called with the built release and the server's gRPC address before anything is switched; raises to refuse it.
    """
    with Control(http_port) as control:
        built = build_release(replace(options, repository=Path(control.state.repository)))
        print_build(built)
        if check and options.name in control.state.releases:
            check(built.release, control.state.grpc_url)
        if options.name in control.state.releases:
            go_live(control, built.release.name, options.name)
        else:
            join(control, built.release.name, options.name)


def rollback(http_port: int, name: str = ENSEMBLE) -> None:
    """Put the previous release live again."""
    with Control(http_port) as control:
        check_served(control, name)
        repository = Path(control.state.repository)
        earlier = were_live(repository, name)[1:]
        if not earlier:
            raise ServingError(
                f"{repository} holds no release of {name} that was live before; put one live with `make release`"
            )
        go_live(control, earlier[0].name, name)


def check_served(control: Control, name: str) -> None:
    """Raises ServingError if the server has no such classifier."""
    if name not in control.state.releases:
        raise ServingError(f"NAME={name}: the server has none of that name, it has {', '.join(control.state.releases)}")


def join(control: Control, release_id: str, name: str) -> None:
    """Load a classifier that the server does not have yet."""
    repository = Path(control.state.repository)
    with store.locked(repository):
        refuse_what_ends_the_server(repository, Models(name), control.version_with_nvidias_backend())
        live = store.live_release(repository, name)
        changed = live is None or live.name != release_id
        if changed:
            store.switch(repository, release_id, name)
        try:
            directory = store.releases_directory(repository, name) / release_id
            put_together(repository, name, directory, Path(control.state.staging))
            control.load(name)
        except ServingError:
            if changed:  # otherwise the next start of the server would fail, for all classifiers
                store.take_back(repository, name)
            raise
        served = {**control.state.releases, name: release_id}
        write_state(control.http_port, replace(control.state, releases=served))
        if control.state.caches:
            load_cached(control, repository, release_id, name)
        print(f"release {release_id} is live as {name}", flush=True)
        if not control.state.embedded and (found := differing_threads(repository, served)):
            print(f"warning: {found}; {ONE_FOR_ALL}", flush=True)


def go_live(control: Control, release_id: str, name: str = ENSEMBLE) -> None:
    """Swap the running server and its repository to a complete release. Only one process at a time does so."""
    repository, models = Path(control.state.repository), Models(name)
    with store.locked(repository):
        remove_candidates(control, models)
        before = control.running(name)
        live = store.live_release(repository, name)
        if before.settled and before.release == release_id and live and live.name == release_id:
            print(f"release {release_id} is live already, nothing to do", flush=True)
            return
        print(f"loading release {release_id} beside {before.release}", flush=True)
        try:
            load_candidate(control, repository, models, release_id)
            alive = ensembles_alive(Path(control.state.log), name)
            pair = candidate_names(models, release_id)
            del pair[name]
            release = store.releases_directory(repository, name) / release_id
            control.load(name, configured(repository, release, name, pair))
        except ServingError as error:
            remove_candidates(control, models)
            raise ServingError(f"{before.release} is still live, {release_id} could not be loaded: {error}") from error
        print(f"release {release_id} answers; settling it", flush=True)
        try:
            settle(control, repository, models, release_id, alive)
        except (ServingError, OSError) as error:
            raise ServingError(
                f"release {release_id} answered, but could not be completed: {error}. `make status` tells what answers "
                "now; `make release` or `make rollback` completes or undoes it, and a restart clears what is left"
            ) from error
        store.prune(repository, name)
        print(f"release {release_id} is live; `make rollback` goes back", flush=True)


def load_candidate(control: Control, repository: Path, models: Models, release_id: str) -> None:
    """Step 1: load a release beside the live one, and make sure that it answers.

    Loaded in the live one's place, an ensemble with a wrong config would leave the server without an ensemble.
    """
    directory = store.releases_directory(repository, models.ensemble) / release_id
    if not (directory / store.MANIFEST).is_file():
        raise ServingError(f"it is gone from {directory.parent}; run `make release` with its checkpoint again")
    store.refuse_damaged(directory)
    refuse_what_ends_the_server(repository, models, control.version_with_nvidias_backend())
    stage(repository, models, Path(control.state.staging), directory)
    labels = store.read_manifest(directory)["labels"]
    ensemble = candidate_names(models, release_id)[models.ensemble]
    control.load(ensemble)
    found = control.labels_of(ensemble, len(labels))
    if found != labels:
        raise ServingError(f"it answers with the labels {', '.join(found)}; expected {', '.join(labels)}")


def settle(control: Control, repository: Path, models: Models, release_id: str, alive: int) -> None:
    """Steps 3 and 4: bring the disk and the models under their own names to the release that answers already.

    alive: ensembles before step 2.
    """
    log, name = Path(control.state.log), models.ensemble
    alive = await_stragglers(log, name, alive)
    store.switch(repository, release_id, name)
    # A server that was restarted before the switch runs the old release; one that restarts later runs the new one.
    pair = candidate_names(models, release_id)
    found = control.running(name)
    if found != Running(release_id, (pair[models.tokenizer], pair[models.classifier]), name):
        raise ServingError(f"the server was restarted, with release {found.release}")
    directory = store.releases_directory(repository, name) / release_id
    put_together(repository, name, directory, Path(control.state.staging))
    # One after the other: two loads at once would take more of a busy machine from the requests.
    for model in (models.tokenizer, models.classifier):
        control.load(model, configured(repository, directory, model))
    if control.state.caches:
        load_cached(control, repository, release_id, name)
    else:
        control.load(name, configured(repository, directory, name))
    await_stragglers(log, name, alive)
    remove_candidates(control, models)


def remove_candidates(control: Control, models: Models) -> None:
    """Unload and delete this classifier's candidates, but not what requests pass through."""
    running = control.running(models.ensemble)
    used = (*running.models, running.cached)
    staged = [path for path in Path(control.state.staging).iterdir() if is_candidate(models, path.name)]
    # The ensemble before the models that it is made of.
    for directory in sorted(staged, key=lambda path: not path.name.startswith(models.ensemble)):
        if directory.name not in used:
            control.unload(directory.name)
            shutil.rmtree(directory)


def await_stragglers(log: Path, name: str, alive: int) -> int:
    """Wait for requests that looked up the ensemble before the last swap and have yet to look up its models.

    Such a request keeps the old ensemble alive, and Triton logs the ensemble's end. The wait has a limit, because
    requests that are scheduled hold their models and need no waiting, and because Triton 2.51 never finishes some
    cancelled gRPC requests; a release that met one waits for the limit once.

    alive: number of live ensembles before the swap. Returns their number now.
    """
    deadline = time.monotonic() + DRAIN_LIMIT_S
    while (now := ensembles_alive(log, name)) > alive and time.monotonic() < deadline:
        time.sleep(0.05)
    return now


def ensembles_alive(log: Path, name: str) -> int:
    """Number of ensembles that the server has not ended: the one that answers, and older ones held by requests."""
    text = log.read_bytes()
    return text.count(f"successfully loaded '{name}'".encode()) - text.count(f"successfully unloaded '{name}'".encode())
