"""`python -m packages`: build wheel, sdist and MCPB bundle."""

import argparse
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[1]
MANIFEST = "packages/manifest.json"
MCPB = "@anthropic-ai/mcpb@2.1.2"  # validates the manifest and packs
PROJECT = ("pyproject.toml", "README.md", "LICENSE")  # what uv needs beside the source


def wheel(project: Path, folder: Path) -> Path:
    """The wheel of a project's folder, built into another."""
    (built,) = WheelBuilder(str(project)).build(directory=str(folder), versions=["standard"])
    return Path(built)


def sdist(project: Path, folder: Path) -> Path:
    (built,) = SdistBuilder(str(project)).build(directory=str(folder), versions=["standard"])
    return Path(built)


def stage(project: Path, folder: Path) -> None:
    """Lay out what the bundle holds: the manifest, and of the sdist what uv runs."""
    with TemporaryDirectory() as temporary, tarfile.open(sdist(project, Path(temporary))) as packed:
        for member in packed:
            name = member.name.partition("/")[2]
            if name in PROJECT or name.startswith("src/"):
                packed.extract(member.replace(name=name), folder, filter="data")
    shutil.copy(project / MANIFEST, folder)


def bundle(project: Path, folder: Path, mcpb: Sequence[str]) -> Path:
    """The bundle, checked and packed by the words that start `mcpb`. Raises CalledProcessError."""
    version = json.loads((project / MANIFEST).read_text())["version"]
    packed = folder / f"taskorch-{version}.mcpb"
    with TemporaryDirectory() as temporary:
        staged = Path(temporary) / "taskorch"
        stage(project, staged)
        subprocess.run([*mcpb, "validate", str(staged)], check=True, stdout=sys.stderr)
        subprocess.run([*mcpb, "pack", str(staged), str(packed)], check=True, stdout=sys.stderr)
    return packed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m packages", description="Build wheel, sdist and MCPB bundle.")
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "dist", help="where to put them (%(default)s)")
    folder: Path = parser.parse_args().folder.resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"{folder} cannot be made: {error.strerror}")
    print(wheel(ROOT, folder))
    print(sdist(ROOT, folder))
    if (npx := shutil.which("npx")) is None:
        print("python -m packages: no bundle, as there is no npx on the PATH: install Node 20", file=sys.stderr)
        return 1
    try:
        print(bundle(ROOT, folder, [npx, "--yes", MCPB]))
    except subprocess.CalledProcessError as error:
        print(f"python -m packages: no bundle: {MCPB} ended with {error.returncode}, see above", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
