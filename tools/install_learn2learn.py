"""Build learn2learn 0.2.0 for the Python that runs this and install it there, without what learn2learn never imports.

    python tools/install_learn2learn.py

Its release holds C files that an old Cython made and that no current Python compiles; they are deleted and made anew.
The rest of what it imports is the extra `learn2learn` of fsmer, which has to be installed first. `make learn2learn`
does both.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VERSION = "0.2.0"
SHA256 = "69f1d7cb0d0a6be7a2c6ad8e83e2ebbe70fb05e51d61e45e63078b40c75ea419"


def run(*words: str | Path, where: Path) -> None:
    """Run Python with these arguments; one sentence and the last lines of its output where it fails."""
    told = subprocess.run(
        [sys.executable, *map(str, words)], cwd=where, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if told.returncode:
        shown = "\n".join(told.stdout.splitlines()[-20:])
        sys.exit(f"{shown}\n`python {' '.join(map(str, words))}` failed; its last lines are above.")


def check(archive: Path) -> None:
    """Leave unless the archive is the release that is known to build."""
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != SHA256:
        sys.exit(
            f"{archive.name} has the sha256 {found}, but that of learn2learn {VERSION} is {SHA256}; nothing is built."
        )


def unpacked(archive: Path, folder: Path) -> Path:
    """The sources in the archive without the C files."""
    with tarfile.open(archive) as held:
        held.extractall(folder, filter="data")
    sources = folder / f"learn2learn-{VERSION}"
    for made in (sources / "learn2learn" / "data").glob("*.c"):
        made.unlink()
    return sources


def install() -> None:
    """Download, check, build, install, and import it once."""
    # Cython and setuptools are those of the extra; what the release lists as its needs is not.
    release = ["--no-deps", "--no-build-isolation", "--no-binary", "learn2learn", f"learn2learn=={VERSION}"]
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        run("-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--dest", ".", *release, where=place)
        archive = place / f"learn2learn-{VERSION}.tar.gz"
        check(archive)
        sources = unpacked(archive, place)
        run("setup.py", "--quiet", "build_ext", "bdist_wheel", where=sources)
        (wheel,) = (sources / "dist").glob("*.whl")
        options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-index", "--force-reinstall"]
        run("-m", "pip", "install", *options, wheel, where=place)
        run("-c", "import learn2learn", where=place)
    print(f"learn2learn {VERSION} is installed for {sys.executable}")


if __name__ == "__main__":
    install()
