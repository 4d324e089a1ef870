"""Commands that build and pack releases: repo, package."""

from __future__ import annotations

from pathlib import Path

from build_scripts.core.command_line import PROGRAM, command
from build_scripts.core.options import BuildOptions
from build_scripts.core.paths import PACKAGE, SOURCE_REPOSITORY

# Directory in the repository with the complete models, for a tritonserver that is started by hand.
ASSEMBLED = "live"


@command(f"{PROGRAM} repo --model ./my-checkpoint --precision fp32")
def repo(options: BuildOptions) -> None:
    """Build the model repository: checkpoint, TorchScript, verified, assembled."""
    from build_scripts.releases.models import serving_models
    from build_scripts.releases.pipeline import build
    from build_scripts.releases.summary import print_build

    print_build(build(options))
    assembled = options.repository / ASSEMBLED
    serving_models(options.repository, assembled)
    print(f"`make serve` serves it, and so does tritonserver --model-repository={assembled}, without a supervisor")


@command(f"{PROGRAM} package --output build/package")
def package(repository: Path = SOURCE_REPOSITORY, output: Path = PACKAGE, device: str = "") -> None:
    """Pack the live releases for a bucket, a volume or an image: a directory, a tar and an OCI image layout."""
    from build_scripts.releases.package import package as pack

    packed = pack(repository.absolute(), output.absolute(), device)
    print(
        f"release {' '.join(packed.releases.values())}: {packed.files} files, {packed.size / 1e6:.1f} MB\n"
        f"  directory  {packed.directory}/model_repository\n"
        f"  tar        {packed.directory}/model_repository.tar\n"
        f"  image      {packed.directory}/oci ({packed.digest})"
    )


COMMANDS = (repo, package)
