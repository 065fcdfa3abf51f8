"""Fashion-MNIST's four files: found on this machine, else downloaded, else taken out of Debian's package.

Whatever the source, the decompressed bytes must be the published ones, so a result never depends on where they came
from. A file is fetched into a temporary folder, verified, and only then moved to its place.
"""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from iar_study.errors import InputError
from iar_study.storage import unwritable

if TYPE_CHECKING:
    from rich.progress import Progress

CLASS_NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


class Source(NamedTuple):
    """One file of the set; Debian compresses the same content anew, so its .gz differs from upstream's."""

    name: str
    upstream_sha256: str
    """Of the .gz file at `BASE_URL`."""
    content_sha256: str
    """Of the decompressed bytes, whatever the source."""


BASE_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
DEBIAN_PACKAGE = "dataset-fashion-mnist"
SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package puts the files
SOURCES = {
    "train": Source(
        "train-images-idx3-ubyte.gz",
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    ),
    "train_labels": Source(
        "train-labels-idx1-ubyte.gz",
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    ),
    "test": Source(
        "t10k-images-idx3-ubyte.gz",
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    ),
    "test_labels": Source(
        "t10k-labels-idx1-ubyte.gz",
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
}
CONNECT_SECONDS = 10
"""Patience for a server that does not answer: without a network, the next source is tried soon."""


def read_fashion_mnist(folder: Path) -> dict[str, np.ndarray]:
    """Return train and test, uint8 (n, 28, 28, 1), and train_labels and test_labels, int64 (n,).

    The files are read from `folder` or the system's folder; those in neither are fetched into `folder`. Raises
    `InputError` when a file is damaged, or missing and not to be had.
    """
    if missing := missing_from(folder):
        _fetch(missing, folder)
    arrays = {}
    for part, source in SOURCES.items():
        path = _find(source, folder)
        try:
            array = _parse_idx(_verified_content(path, source))
        except ValueError as error:
            raise InputError(f"{path} {error}; delete it and run again") from error
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror}); mend that and run again") from error
        # A copy: an array on the bytes of a file is read-only.
        arrays[part] = array.astype(np.int64) if array.ndim == 1 else array[..., None].copy()
    return arrays


def missing_from(folder: Path) -> list[Source]:
    """Return the files that are neither in `folder` nor in the system's folder, and are to be fetched."""
    return [source for source in SOURCES.values() if not os.path.exists(_find(source, folder))]


def _find(source: Source, folder: Path) -> Path:
    """Return where the file is, or where it belongs when it is nowhere yet."""
    own, system = folder / source.name, SYSTEM_FOLDER / source.name
    return system if os.path.exists(system) and not os.path.exists(own) else own


def _verified_content(path: Path, source: Source) -> bytes:
    """Return the decompressed bytes; raise `ValueError` when they are not the published ones."""
    packed = path.read_bytes()
    try:
        content = gzip.decompress(packed)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"is truncated or no gzip file ({error})") from error
    if hashlib.sha256(content).hexdigest() != source.content_sha256:
        raise ValueError("is not the published file (its content has another SHA-256)")
    return content


def _parse_idx(content: bytes) -> np.ndarray:
    """Return the uint8 array of an IDX file: two zeros, the type, the number of axes, their lengths, the values."""
    axes = content[3]
    shape = np.frombuffer(content, ">u4", count=axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


def _fetch(missing: list[Source], folder: Path) -> None:
    """Bring the missing files, whole and verified, into `folder`; raise `InputError` when no source has them."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error
    tried = []
    for get in (_download, _unpack_debian_package):
        try:
            with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder) as temporary:
                origin = get(missing, Path(temporary))
                for source in missing:
                    _verified_content(Path(temporary, source.name), source)
                for source in missing:
                    os.replace(Path(temporary, source.name), folder / source.name)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            tried.append(str(error))
            _say(f"that failed: {error}")
        else:
            _say(f"{len(missing)} files from {origin} are now in {folder}")
            return
    names = ", ".join(source.name for source in missing)
    raise InputError(
        f"Fashion-MNIST could not be fetched; tried: {'; '.join(tried)}. "
        f"Put {names} into {folder} by hand, or use --data digits, which needs no download"
    )


def _download(missing: list[Source], temporary: Path) -> str:
    # Here, not on top: needed once in a machine's life.
    import pooch
    from rich.console import Console
    from rich.progress import Progress

    pooch.get_logger().setLevel(logging.WARNING)
    _say(f"downloading {len(missing)} files from {BASE_URL}")
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        for source in missing:
            url = BASE_URL + source.name
            bar = _Bar(progress, source.name)
            fetch = pooch.HTTPDownloader(progressbar=bar, chunk_size=1 << 16, timeout=CONNECT_SECONDS)
            try:
                pooch.retrieve(url, f"sha256:{source.upstream_sha256}", source.name, temporary, downloader=fetch)
            except OSError as error:  # requests' errors are OSErrors, with messages that run over many lines
                raise InputError(f"{url} ({error.strerror or type(error).__name__})") from error
            except ValueError as error:
                raise InputError(f"{url} (not the published file: it has another SHA-256)") from error
    return BASE_URL


class _Bar:
    """What pooch asks of a progress bar, passed on to rich."""

    total = 0

    def __init__(self, progress: Progress, title: str) -> None:
        self.progress, self.task = progress, progress.add_task(title, total=None)

    def update(self, amount: int) -> None:
        self.progress.update(self.task, total=self.total, advance=amount)

    def reset(self) -> None:
        self.progress.update(self.task, completed=0)

    def close(self) -> None:
        """Leave the finished bar; the display ends with the last file."""


def _unpack_debian_package(missing: list[Source], temporary: Path) -> str:
    """Get Debian's package without being root and without touching the system's own package lists."""
    for tool in ("apt-get", "dpkg"):
        if not shutil.which(tool):
            raise InputError(f"Debian's package {DEBIAN_PACKAGE} ({tool} is not on this machine)")
    _say(f"trying Debian's package {DEBIAN_PACKAGE} (31 MB) with apt-get")
    options = ["-o", "Acquire::Retries=0", "-o", f"Acquire::http::Timeout={CONNECT_SECONDS}"]
    # As root, apt would fetch as its own user, who may not write here.
    options += ["-o", f"Acquire::https::Timeout={CONNECT_SECONDS}", "-o", "APT::Sandbox::User=root"]
    try:
        _run(temporary, "apt-get", "download", DEBIAN_PACKAGE, options=options)
    except InputError:
        # A fresh machine has no package lists, and only root may fetch the system's: fetch a private copy.
        _say("apt-get has no package list that names it (or an old one); fetching lists into a temporary folder")
        for name in ("lists/partial", "cache/archives/partial"):
            Path(temporary, name).mkdir(parents=True)
        options += ["-o", f"Dir::State::Lists={temporary / 'lists'}", "-o", f"Dir::Cache={temporary / 'cache'}"]
        try:
            _run(temporary, "apt-get", "update", options=options)
        except InputError as error:  # one unreachable third-party source fails the update, but not what we need
            _say(f"going on with the lists that could be fetched: {error}")
        _run(temporary, "apt-get", "download", DEBIAN_PACKAGE, options=options)
    [package] = temporary.glob("*.deb")
    _run(temporary, "dpkg", "-x", package.name, "package")
    for source in missing:
        os.replace(temporary / "package" / SYSTEM_FOLDER.relative_to("/") / source.name, temporary / source.name)
    return package.name


def _run(folder: Path, *command: str, options: Sequence[str] = ()) -> None:
    """Run a command quietly in `folder`; raise `InputError` with the last line of its complaint when it fails."""
    tool, *arguments = command
    in_english = {**os.environ, "LC_ALL": "C"}
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    done = subprocess.run(
        [tool, *options, *arguments],
        cwd=folder,
        env=in_english,
        stdin=null,
        stdout=null,
        stderr=pipe,
        text=True,
        timeout=600,
        check=False,
    )
    if done.returncode:
        complaint = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise InputError(f"{' '.join(command)} ({complaint})")


def _say(line: str) -> None:
    print(f"fashion-mnist: {line}", file=sys.stderr)
