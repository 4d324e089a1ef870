"""Put another release live in a running server, and back: no failed request, and no answer of two releases.

    make release MODEL=./my-checkpoint
    make rollback
    make status

Triton swaps a model that it loads again at once, and a request takes hold of all its models when it is scheduled. But
the tokenizer and the classifier are swapped one after the other, and a request between the two passes through one of
each release (measured under load: more than a thousand mixed answers a switch). So the swap is made where there is only
one: at the ensemble.

1. Load the new release beside the live one, as `tokenizer_<id>` and `classifier_<id>` with an ensemble of their own,
   and ask it something. If that fails, nothing has changed.
2. Point `text_classifier` to that pair: every request from now on is answered by the new release.
3. Switch the link on the disk, and load `tokenizer` and `classifier` again, through which no text passes now.
4. Point `text_classifier` back to them, and remove what step 1 loaded: the server is as if started on this release.

Whatever is interrupted where, answers stay consistent: a server that is started again meanwhile reads the one release
that the link leads to, and a name that carries an id never means another release. The next release or rollback removes
what an interrupted one left. For a while the server holds three classifiers: old, candidate and new.

Nothing here starts or stops a server; without one, `make repo` switches.
"""

from __future__ import annotations

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from build_scripts.build import releases
from build_scripts.build.pipeline import build_release
from build_scripts.build.summary import print_build
from build_scripts.serving.cached_ensemble import load_cached
from build_scripts.serving.model_control import Control, Running
from build_scripts.serving.staging import candidate_names, configured, refuse_what_ends_the_server, stage
from build_scripts.settings import CLASSIFIER, ENSEMBLE, TOKENIZER, BuildOptions, ServingError

# A request is scheduled milliseconds after it looked up its model (a 60 MiB body: 0.8 s), however long it then waits.
DRAIN_LIMIT_S = 5.0


def release(options: BuildOptions, http_port: int) -> None:
    """Build what the options ask for into the running server's repository, and put it live."""
    with Control(http_port) as control:
        built = build_release(replace(options, repository=Path(control.state.repository)))
        print_build(built)
        go_live(control, built.release.name)


def rollback(http_port: int) -> None:
    """Put the previous release live again."""
    with Control(http_port) as control:
        repository = Path(control.state.repository)
        earlier = history(repository)[1:]
        if not earlier:
            raise ServingError(f"{repository} holds no release that was live before; put one live with `make release`")
        go_live(control, earlier[0].name)


def history(repository: Path) -> list[Path]:
    """The releases that were live and are still there, the live one first."""
    live, were_live = releases.live_release(repository), releases.history(repository)
    return sorted(
        (path for path in releases.releases(repository) if path.name in were_live or path.resolve() == live),
        key=lambda path: path.resolve() != live,
    )


def go_live(control: Control, release_id: str) -> None:
    """Swap the running server and its repository to a complete release. Others that want to do the same wait."""
    repository = Path(control.state.repository)
    with releases.locked(repository):
        remove_candidates(control)
        before = control.running()
        live = releases.live_release(repository)
        if before.settled and before.release == release_id and live and live.name == release_id:
            print(f"release {release_id} is live already, nothing to do", flush=True)
            return
        print(f"loading release {release_id} beside {before.release}", flush=True)
        try:
            load_candidate(control, repository, release_id)
            alive = ensembles_alive(Path(control.state.log))
            control.load(ENSEMBLE, configured(repository, release_id, ENSEMBLE, models=candidate_names(release_id)))
        except ServingError as error:
            remove_candidates(control)
            raise ServingError(f"{before.release} is still live, {release_id} could not be loaded: {error}") from error
        print(f"release {release_id} answers; settling it", flush=True)
        try:
            settle(control, repository, release_id, alive)
        except (ServingError, OSError) as error:
            raise ServingError(
                f"release {release_id} answered, but could not be completed: {error}. `make status` tells what answers "
                "now; `make release` or `make rollback` completes or undoes it, and a restart clears what is left"
            ) from error
        releases.prune(repository)
        print(f"release {release_id} is live; `make rollback` goes back", flush=True)


def load_candidate(control: Control, repository: Path, release_id: str) -> None:
    """Step 1: load a release beside the live one, and make sure that it answers.

    An ensemble whose config is wrong would be taken off the server if it were loaded in the place of the live one.
    """
    directory = releases.releases_directory(repository) / release_id
    if not (directory / releases.MANIFEST).is_file():
        raise ServingError(f"it is gone from {directory.parent}; run `make release` with its checkpoint again")
    refuse_what_ends_the_server(repository, embedded=control.state.embedded)
    stage(repository, Path(control.state.staging), directory)
    labels = releases.read_manifest(directory)["labels"]
    ensemble = candidate_names(release_id)[ENSEMBLE]
    control.load(ensemble)
    found = control.labels_of(ensemble, len(labels))
    if found != labels:
        raise ServingError(f"it answers with the labels {', '.join(found)}; expected {', '.join(labels)}")


def settle(control: Control, repository: Path, release_id: str, alive: int) -> None:
    """Steps 3 and 4: make the disk, and the models under their own names, what the ensemble answers with already.

    alive: ensembles before step 2.
    """
    log = Path(control.state.log)
    alive = await_stragglers(log, alive)
    releases.switch(repository, release_id)
    # A server that was started again before the switch runs the old models under their own names.
    pair = candidate_names(release_id)
    found = control.running()
    if found != Running(release_id, (pair[TOKENIZER], pair[CLASSIFIER])):
        raise ServingError(f"the server was started again meanwhile, with release {found.release}")
    with ThreadPoolExecutor() as pool:
        loads = [
            pool.submit(control.load, name, configured(repository, release_id, name))
            for name in (TOKENIZER, CLASSIFIER)
        ]
    for load in loads:
        load.result()
    if control.state.caches:
        load_cached(control, repository, release_id)
    else:
        control.load(ENSEMBLE, configured(repository, release_id, ENSEMBLE))
    await_stragglers(log, alive)
    remove_candidates(control)


def remove_candidates(control: Control) -> None:
    """Unload and delete everything in the staging directory that no request passes through, whoever left it."""
    running = control.running()
    used = (*running.models, running.cached)
    # "text_classifier_…" before the models that it is made of.
    for directory in sorted(Path(control.state.staging).iterdir(), key=lambda path: not path.name.startswith(ENSEMBLE)):
        if directory.name not in used:
            control.unload(directory.name)
            shutil.rmtree(directory)


def await_stragglers(log: Path, alive: int) -> int:
    """Wait until no request is left that looked up the ensemble before the last swap and has yet to look up its models.

    The old ensemble lives as long as such a request, and Triton logs its end. Requests that are scheduled have hold of
    their models and need not be waited for, hence the limit; nor has Triton 2.51 ever done with some gRPC requests that
    were cancelled, so a release that met one waits for it once.

    alive: how many there were before the swap. Returns how many there are now.
    """
    deadline = time.monotonic() + DRAIN_LIMIT_S
    while (now := ensembles_alive(log)) > alive and time.monotonic() < deadline:
        time.sleep(0.05)
    return now


def ensembles_alive(log: Path) -> int:
    """How many the server has not ended: the one that answers, and older ones that requests have hold of."""
    text = log.read_bytes()
    return text.count(f"successfully loaded '{ENSEMBLE}'".encode()) - text.count(
        f"successfully unloaded '{ENSEMBLE}'".encode()
    )


def status(http_port: int) -> str:
    """What the server answers with, what a restart would bring, and what could be rolled back to."""
    with Control(http_port) as control:
        running = control.running()
        repository = Path(control.state.repository)
        url = control.state.http_url
    lines = [f"server   {url}, repository {repository}"]
    live = releases.live_release(repository)
    known = {path.name: releases.read_manifest(path) for path in releases.releases(repository)}
    lines.append(f"live     {describe(running.release, known)}")
    if live and live.name != running.release:
        lines.append(f"on disk  {describe(live.name, known)}: comes with a restart of the server")
    if not running.settled:
        lines.append(
            f"         a release was interrupted: requests pass through {' and '.join(running.models)}; "
            "the next `make release` or `make rollback` cleans up"
        )
    earlier = [path.name for path in history(repository)[1:]]
    lines += [f"{'before' if not index else '':9}{describe(name, known)}" for index, name in enumerate(earlier)]
    return "\n".join(lines)


def describe(release_id: str, manifests: dict[str, dict]) -> str:
    manifest = manifests.get(release_id)
    if manifest is None:
        return f"{release_id} (no longer on disk)"
    return f"{release_id} {manifest['checkpoint']}, {manifest['precision']}, {len(manifest['labels'])} labels"
