"""Files that are whole or absent: atomic writes, safetensors products with their metadata, content digests."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from iar_study.errors import InputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success it is synced and takes `path`'s place in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def unwritable(path: Path, error: OSError) -> InputError:
    """Return the `InputError` for a write to `path` that the operating system refused (full disk, no permission)."""
    return InputError(f"cannot write {path}: {error.strerror}; free some space or make the folder writable")


@contextmanager
def locked(path: Path, what: Path) -> Iterator[None]:
    """Hold the lock file `path`; raise `InputError` when another process that writes `what` has it."""
    try:
        with FileLock(path, timeout=0):
            yield
    except Timeout as error:
        raise InputError(f"{what} is being written by another process; wait for it") from error


def is_locked(path: Path) -> bool:
    """Does a process hold the lock file `path`? Nothing is made or changed by asking."""
    try:
        with open(path, "rb") as file:  # not by a `FileLock`, which would make it
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; raise `InputError` that names the file when it is not whole."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid JSON ({error}); delete it and run again") from error


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any] | None = None) -> None:
    """Write named arrays as one safetensors file, atomically; `metadata` values are stored as JSON in its header."""
    header = {key: json.dumps(value, sort_keys=True) for key, value in (metadata or {}).items()}
    content = save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, metadata=header)
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def load_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what `save_arrays` wrote: (arrays, metadata). Raise `InputError` when the file is missing or damaged."""
    with _opened(path) as (file, metadata):
        return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 (not a dict)


def load_joined(paths: Sequence[Path]) -> dict[str, np.ndarray]:
    """Read the arrays of files of `save_arrays`, each joined along its first axis in the order of the files.

    One array after the other, so that no more than one of them is held twice. Raises `InputError` as `load_arrays`, and
    for a file with other arrays than the first one's.
    """

    def of(path: Path, name: str) -> np.ndarray:
        with _opened(path) as (file, _):
            if set(file.keys()) != names:
                raise InputError(f"{path} has other arrays than {paths[0]}; delete it and run again")
            return np.asarray(file.get_tensor(name))

    with _opened(paths[0]) as (file, _):
        names = set(file.keys())
    try:
        return {name: np.concatenate([of(path, name) for path in paths]) for name in sorted(names)}
    except ValueError as error:
        raise InputError(f"the files of {paths[0].parent} do not go together ({error}); delete them") from error


def load_metadata(path: Path) -> dict[str, Any]:
    """Read the metadata alone of what `save_arrays` wrote. Raises as `load_arrays`."""
    with _opened(path) as (_, metadata):
        return metadata


EVERY_S, SHARE = 1.0, 50
"""What a computation has so far is saved a second after the last time, or later: saves take a fiftieth of the time."""


class Due:
    """When what a computation has so far is to be saved."""

    def __init__(self) -> None:
        self.at = time.monotonic() + EVERY_S

    def now(self) -> bool:
        return time.monotonic() >= self.at

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Entered while it is saved: what that takes decides when the next time is."""
        began = time.monotonic()
        yield
        ended = time.monotonic()
        self.at = ended + max(EVERY_S, SHARE * (ended - began))


class Kept:
    """The arrays that a long computation has so far, in one file, by which it goes on after whatever ended it.

    Who computes removes the file with the folder that it lies in, once the result is where it belongs.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.due = path, Due()

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what was kept; nothing where nothing was, or it is damaged."""
        try:
            return load_arrays(self.path)[0]
        except InputError:
            return {}

    def offer(self, arrays: Callable[[], Mapping[str, np.ndarray]]) -> None:
        """Keep what `arrays` returns, if it is time to."""
        if self.due.now():
            with self.due.saving():
                save_arrays(self.path, arrays())


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    if not path.is_file():
        raise InputError(f"no file at {path}")
    try:
        with safe_open(path, framework="numpy") as file:
            yield file, {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
    except (SafetensorError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is damaged ({error}); delete it and run again") from error


def load_torch(path: Path) -> Any:
    """Return what `torch.save` wrote, on the CPU; no code in it is run.

    Raises `InputError`, in one line, for a file that is missing, damaged, or holds more than tensors, plain values and
    an `argparse.Namespace` (LlamaGen keeps its options beside the weights).
    """
    from argparse import Namespace
    from pickle import UnpicklingError

    import torch

    if not path.is_file():
        raise InputError(f"no file at {path}")
    try:
        with torch.serialization.safe_globals([Namespace]):
            return torch.load(path, weights_only=True, map_location="cpu")
    except (
        Exception
    ) as error:  # of a damaged file torch raises all kinds: RuntimeError, EOFError, OSError, KeyError ...
        if isinstance(error, UnpicklingError) and "GLOBAL" in str(error):
            raise InputError(
                f"{path} holds more than weights, which is not loaded because it could run code; "
                f"save its weights alone: torch.save({{'state_dict': checkpoint['state_dict']}}, 'weights.pt')"
            ) from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].partition(". ")[0]
        raise InputError(
            f"{path} is damaged or no file of torch's ({reason}); fetch it again, or name another"
        ) from error


def save_torch(path: Path, content: Any) -> None:
    """Write `content` with `torch.save`, atomically."""
    import torch

    with replacing(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's writer hides the operating system's refusal behind one of its own
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def file_sha256(path: Path) -> str:
    """Return the SHA-256 (hex) of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the digest of named arrays, whatever their order."""
    return digest(*(part for name in sorted(arrays) for part in (name, arrays[name])))


def digest(*parts: Any) -> str:
    """Return a SHA-256 (hex) over arrays (dtype, shape, bytes) and JSON values, in the order given."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            sha.update(f"{part.dtype.str}{part.shape}".encode())
            sha.update(np.ascontiguousarray(part).data)
        else:
            sha.update(json.dumps(part, sort_keys=True).encode())
        sha.update(b"\0")
    return sha.hexdigest()
