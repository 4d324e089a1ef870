"""What `make serve` builds before it starts a server, and what it leaves as it is."""

from __future__ import annotations

from build_scripts.core.errors import ServingError
from build_scripts.core.names import ENSEMBLE
from build_scripts.core.options import BuildOptions
from build_scripts.releases import store
from build_scripts.releases.fingerprint import DEFAULT_CHECKPOINT
from build_scripts.releases.pipeline import Built, build
from build_scripts.releases.sources import update_sources


def build_or_keep(options: BuildOptions, *, named: bool) -> Built | None:
    """What a server builds before it starts: what the options ask for, or nothing. Raises ServingError.

    Without a checkpoint in the options, a live release of a user's checkpoint stays: the default model must not take
    its place. named: whether the classifier was asked for by name; otherwise the default is not built into a repository
    that has others only.
    """
    repository, name = options.repository, options.name
    live = store.live_release(repository, name)
    checkpoint = store.read_manifest(live)["checkpoint"] if live else ""
    others_only = not named and not live and store.names(repository)
    if options.model or not (others_only or (live and not checkpoint.startswith(DEFAULT_CHECKPOINT))):
        return build(options)
    if live:
        asked = {
            "MAX_LENGTH": options.max_length,
            "PRECISION": "" if options.precision == "auto" else options.precision,
            "DOCUMENTS": options.documents,
            "CALIBRATION": options.calibration,
            "CALIBRATE": options.calibrate,
            "TOKENIZER": options.tokenizer,
        }
        if given := [f"{variable}={value}" for variable, value in asked.items() if value]:
            raise ServingError(
                f"{' '.join(given)} asks for another release of {checkpoint}, which is live; add MODEL={checkpoint}"
            )
        own = "" if name == ENSEMBLE else f" NAME={name}"
        print(f"serving the live release {live.name} of {checkpoint}; `make repo{own}` brings the default model back")
    with store.locked(repository):
        update_sources(repository)
    return None
