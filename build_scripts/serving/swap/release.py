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

A classifier that the server does not have yet is switched to on the disk, and loaded. The others go on meanwhile.

Nothing here starts or stops a server; without one, `make repo` switches.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil

from build_scripts.core.errors import ServingError
from build_scripts.core.names import ENSEMBLE, Models
from build_scripts.core.options import BuildOptions
from build_scripts.releases import store
from build_scripts.releases.pipeline import build_release
from build_scripts.releases.summary import print_build
from build_scripts.serving.keep.processes import MIB, model_of, private_bytes
from build_scripts.serving.keep.run_state import write_state
from build_scripts.serving.swap.answer_cache import load_cached
from build_scripts.serving.swap.model_control import Control, Running
from build_scripts.serving.swap.staging import (
    candidate_names,
    configured,
    is_candidate,
    refuse_what_ends_the_server,
    stage,
)

# A request is scheduled milliseconds after it looked up its model (a 60 MiB body: 0.8 s), however long it then waits.
DRAIN_LIMIT_S = 5.0


def release(options: BuildOptions, http_port: int) -> None:
    """Build what the options ask for into the running server's repository, and put it live."""
    with Control(http_port) as control:
        built = build_release(replace(options, repository=Path(control.state.repository)))
        print_build(built)
        if options.name in control.state.releases:
            go_live(control, built.release.name, options.name)
        else:
            join(control, built.release.name, options.name)


def rollback(http_port: int, name: str = ENSEMBLE) -> None:
    """Put the previous release live again."""
    with Control(http_port) as control:
        check_served(control, name)
        repository = Path(control.state.repository)
        earlier = history(repository, name)[1:]
        if not earlier:
            raise ServingError(
                f"{repository} holds no release of {name} that was live before; put one live with `make release`"
            )
        go_live(control, earlier[0].name, name)


def check_served(control: Control, name: str) -> None:
    """Raises ServingError if the server has no such classifier."""
    if name not in control.state.releases:
        raise ServingError(f"NAME={name}: the server has none of that name, it has {', '.join(control.state.releases)}")


def history(repository: Path, name: str = ENSEMBLE) -> list[Path]:
    """The releases that were live and are still there, the live one first."""
    live, were_live = store.live_release(repository, name), store.history(repository, name)
    return sorted(
        (path for path in store.releases(repository, name) if path.name in were_live or path.resolve() == live),
        key=lambda path: path.resolve() != live,
    )


def join(control: Control, release_id: str, name: str) -> None:
    """Load a classifier that the server does not have yet."""
    repository = Path(control.state.repository)
    with store.locked(repository):
        refuse_what_ends_the_server(repository, Models(name), embedded=control.state.embedded)
        live = store.live_release(repository, name)
        changed = live is None or live.name != release_id
        if changed:
            store.switch(repository, release_id, name)
        try:
            control.load(name)
        except ServingError:
            if changed:  # the next start of the server would fail otherwise, and that of all classifiers
                store.take_back(repository, name)
            raise
        served = {**control.state.releases, name: release_id}
        write_state(control.http_port, replace(control.state, releases=served))
        if control.state.caches:
            load_cached(control, repository, release_id, name)
        print(f"release {release_id} is live as {name}", flush=True)


def go_live(control: Control, release_id: str, name: str = ENSEMBLE) -> None:
    """Swap the running server and its repository to a complete release. Others that want to do the same wait."""
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
            control.load(name, configured(repository, release_id, name, pair))
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

    An ensemble whose config is wrong would be taken off the server if it were loaded in the place of the live one.
    """
    directory = store.releases_directory(repository, models.ensemble) / release_id
    if not (directory / store.MANIFEST).is_file():
        raise ServingError(f"it is gone from {directory.parent}; run `make release` with its checkpoint again")
    refuse_what_ends_the_server(repository, models, embedded=control.state.embedded)
    stage(repository, models, Path(control.state.staging), directory)
    labels = store.read_manifest(directory)["labels"]
    ensemble = candidate_names(models, release_id)[models.ensemble]
    control.load(ensemble)
    found = control.labels_of(ensemble, len(labels))
    if found != labels:
        raise ServingError(f"it answers with the labels {', '.join(found)}; expected {', '.join(labels)}")


def settle(control: Control, repository: Path, models: Models, release_id: str, alive: int) -> None:
    """Steps 3 and 4: make the disk, and the models under their own names, what the ensemble answers with already.

    alive: ensembles before step 2.
    """
    log, name = Path(control.state.log), models.ensemble
    alive = await_stragglers(log, name, alive)
    store.switch(repository, release_id, name)
    # A server that was started again before the switch runs the old models under their own names.
    pair = candidate_names(models, release_id)
    found = control.running(name)
    if found != Running(release_id, (pair[models.tokenizer], pair[models.classifier]), name):
        raise ServingError(f"the server was started again meanwhile, with release {found.release}")
    with ThreadPoolExecutor() as pool:
        loads = [
            pool.submit(control.load, model, configured(repository, release_id, model))
            for model in (models.tokenizer, models.classifier)
        ]
    for load in loads:
        load.result()
    if control.state.caches:
        load_cached(control, repository, release_id, name)
    else:
        control.load(name, configured(repository, release_id, name))
    await_stragglers(log, name, alive)
    remove_candidates(control, models)


def remove_candidates(control: Control, models: Models) -> None:
    """Unload and delete what was staged for this classifier and no request passes through, whoever left it."""
    running = control.running(models.ensemble)
    used = (*running.models, running.cached)
    staged = [path for path in Path(control.state.staging).iterdir() if is_candidate(models, path.name)]
    # The ensemble before the models that it is made of.
    for directory in sorted(staged, key=lambda path: not path.name.startswith(models.ensemble)):
        if directory.name not in used:
            control.unload(directory.name)
            shutil.rmtree(directory)


def await_stragglers(log: Path, name: str, alive: int) -> int:
    """Wait until no request is left that looked up the ensemble before the last swap and has yet to look up its models.

    The old ensemble lives as long as such a request, and Triton logs its end. Requests that are scheduled have hold of
    their models and need not be waited for, hence the limit; nor has Triton 2.51 ever done with some gRPC requests that
    were cancelled, so a release that met one waits for it once.

    alive: how many there were before the swap. Returns how many there are now.
    """
    deadline = time.monotonic() + DRAIN_LIMIT_S
    while (now := ensembles_alive(log, name)) > alive and time.monotonic() < deadline:
        time.sleep(0.05)
    return now


def ensembles_alive(log: Path, name: str) -> int:
    """How many the server has not ended: the one that answers, and older ones that requests have hold of."""
    text = log.read_bytes()
    return text.count(f"successfully loaded '{name}'".encode()) - text.count(f"successfully unloaded '{name}'".encode())


def status(http_port: int) -> str:
    """What the server answers with, what a restart would bring, what could be rolled back to; of each classifier."""
    with Control(http_port) as control:
        repository = Path(control.state.repository)
        lines = [f"server   {control.state.http_url}, repository {repository}"]
        for name in control.state.releases:
            if list(control.state.releases) != [ENSEMBLE]:
                lines.append(f"name     {name}")
            lines += status_of(control.running(name), repository)
            lines += told_memory(memory_of(control.state.pid, Models(name)))
        for name in sorted(set(store.names(repository)) - set(control.state.releases)):
            lines.append(f"name     {name}: on disk; comes with a restart of the server, or with `make release`")
    return "\n".join(lines)


def status_of(running: Running, repository: Path) -> list[str]:
    """The lines of one classifier."""
    name = running.name
    live = store.live_release(repository, name)
    known = {path.name: store.read_manifest(path) for path in store.releases(repository, name)}
    lines = [f"live     {describe(running.release, known)}"]
    if live and live.name != running.release:
        lines.append(f"on disk  {describe(live.name, known)}: comes with a restart of the server")
    if not running.settled:
        lines.append(
            f"         a release was interrupted: requests pass through {' and '.join(running.models)}; "
            "the next `make release` or `make rollback` cleans up"
        )
    earlier = [path.name for path in history(repository, name)[1:]]
    return lines + [f"{'before' if not index else '':9}{describe(one, known)}" for index, one in enumerate(earlier)]


def memory_of(supervisor: int, models: Models) -> dict[str, int]:
    """MiB that the processes of each of the classifier's models have for themselves alone; none in tritonserver."""
    sizes: dict[str, int] = {}
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(supervisor).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                model = model_of(process)
                if model in models.all:
                    sizes[model] = sizes.get(model, 0) + private_bytes(process.pid) // MIB
    return sizes


def told_memory(sizes: dict[str, int]) -> list[str]:
    told = ", ".join(f"{model} {size}" for model, size in sorted(sizes.items()))
    return [f"memory   {sum(sizes.values())} MiB of its own: {told}"] if sizes else []


def describe(release_id: str, manifests: dict[str, dict]) -> str:
    manifest = manifests.get(release_id)
    if manifest is None:
        return f"{release_id} (no longer on disk)"
    return f"{release_id} {manifest['checkpoint']}, {manifest['precision']}, {len(manifest['labels'])} labels"
