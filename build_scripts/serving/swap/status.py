"""Tell which release each classifier of the running server answers with, and what could be rolled back to.

make status
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil

from build_scripts.core.names import ENSEMBLE, Models
from build_scripts.releases import store
from build_scripts.releases.models import damaged_file
from build_scripts.serving.keep.processes import MIB, model_of, private_bytes
from build_scripts.serving.swap.model_control import Control, Running


def status(http_port: int) -> str:
    """For each classifier: what the server answers with, what a restart would load, what a rollback would load."""
    with Control(http_port) as control:
        repository = Path(control.state.repository)
        kind = "package" if store.is_package(repository) else "repository"
        lines = [f"server   {control.state.http_url}, {kind} {repository}"]
        for name in control.state.releases:
            if list(control.state.releases) != [ENSEMBLE]:
                lines.append(f"name     {name}")
            lines += classifier_lines(control.running(name), repository)
            lines += memory_lines(memory_of(control.state.pid, Models(name)))
        for name in sorted(set(store.names(repository)) - set(control.state.releases)):
            lines.append(f"name     {name}: on disk; comes with a restart of the server, or with `make release`")
    return "\n".join(lines)


def classifier_lines(running: Running, repository: Path) -> list[str]:
    """The lines of one classifier, without its memory."""
    name = running.name
    live = store.live_release(repository, name)
    known = {path.name: store.read_manifest(path) for path in store.releases(repository, name)}
    on_disk = ""
    if live:
        manifest = store.read_manifest(live)
        on_disk = manifest["release"]
        known[on_disk] = manifest
    lines = [f"live     {describe(running.release, known)}"]
    if on_disk and on_disk != running.release:
        lines.append(f"on disk  {describe(on_disk, known)}: comes with a restart of the server")
    if file := damaged_file(repository, name):
        lines.append(
            f"         {file} is not the file that {on_disk} was built with: a restart of the server would fail; "
            "`make repo` with its checkpoint builds it again"
        )
    if not running.settled:
        lines.append(
            f"         a release was interrupted: requests pass through {' and '.join(running.models)}; "
            "the next `make release` or `make rollback` cleans up"
        )
    earlier = [path.name for path in were_live(repository, name)[1:]]
    return lines + [f"{'before' if not index else '':9}{describe(one, known)}" for index, one in enumerate(earlier)]


def were_live(repository: Path, name: str = ENSEMBLE) -> list[Path]:
    """The releases that were live and are still there, the live one first."""
    ids = store.history(repository, name)
    return [path for path in store.releases(repository, name) if path.name in ids]


def memory_of(supervisor: int, models: Models) -> dict[str, int]:
    """Private memory of the processes of a classifier, in MiB by model. Empty if tritonserver runs the models."""
    sizes: dict[str, int] = {}
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(supervisor).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                model = model_of(process)
                if model in models.all:
                    sizes[model] = sizes.get(model, 0) + private_bytes(process.pid) // MIB
    return sizes


def memory_lines(sizes: dict[str, int]) -> list[str]:
    told = ", ".join(f"{model} {size}" for model, size in sorted(sizes.items()))
    return [f"memory   {sum(sizes.values())} MiB not shared: {told}"] if sizes else []


def describe(release_id: str, manifests: dict[str, dict]) -> str:
    manifest = manifests.get(release_id)
    if manifest is None:
        return f"{release_id} (no longer on disk)"
    parts = [manifest["checkpoint"], manifest["precision"], f"{len(manifest['labels'])} labels", *figures(manifest)]
    return f"{release_id} {', '.join(parts)}"


def figures(manifest: dict) -> list[str]:
    """What was measured of a release: agreement with its checkpoint, calibration, and accuracy before it went live."""
    found = []
    chosen = [one["parity"] for one in manifest.get("attempts", []) if one["precision"] == manifest["precision"]]
    if chosen and not manifest.get("score"):
        found.append(
            f"{chosen[0]['texts'] - chosen[0]['wrong']} of {chosen[0]['texts']} class ids like the checkpoint's"
        )
    if temperature := manifest.get("temperature"):
        error = temperature["expected_calibration_error"]
        found.append(f"calibration error {error['after']:.4f} (uncalibrated {error['before']:.4f})")
    if evaluation := manifest.get("evaluation"):
        accuracy = evaluation["figures"]["accuracy"]
        found.append(
            f"accuracy {accuracy['value']:.4f} ({accuracy['low']:.4f} to {accuracy['high']:.4f}) on "
            f"{evaluation['texts']} texts of {evaluation['file']}"
        )
    return found
