"""A codebook: the vectors of its codes, how a tokenizer looks them up, and the files it can be read from."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from safetensors import safe_open

from iar_study.codebook.clustering import comparable
from iar_study.errors import InputError, listed
from iar_study.storage import digest, load_torch

Lookup = Literal["cosine", "euclidean"]

EMBEDDING = "quantize.embedding.weight"
"""The codebook's name in the checkpoints of LlamaGen, of taming-transformers and of our own tokenizer."""

CHECKPOINT_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")

LAYOUTS: dict[str, tuple[str, Lookup]] = {
    "model": ("LlamaGen checkpoint", "cosine"),
    "ema": ("LlamaGen checkpoint", "cosine"),
    "state_dict": ("taming-transformers checkpoint", "euclidean"),
}
"""Key of a checkpoint's weights -> whose layout that is, and its look-up rule."""


KIND = "a codebook is a float (N, d) array"


@dataclass(frozen=True)
class Codebook:
    """The codes of a visual tokenizer (or any table of embeddings that is to be studied like one).

    Attributes
    ----------
    vectors : float32 or float64 (N, d), finite; what is given in another precision or byte order is converted.
    lookup : "cosine" when a vector is given the code nearest in direction (LlamaGen), "euclidean" when the nearest in
        space (taming-transformers).
    source : what it was read from, for people.
    """

    vectors: np.ndarray
    lookup: Lookup = "cosine"
    source: str = "array"

    def __post_init__(self) -> None:
        v = np.asarray(self.vectors)
        if reason := _unfit(v.shape, np.issubdtype(v.dtype, np.floating)):
            raise InputError(f"{self.source}: {KIND}, not {v.dtype} {v.shape}, which {reason}")
        v = np.ascontiguousarray(v, np.float64 if v.dtype.itemsize >= 8 else np.float32)
        object.__setattr__(self, "vectors", v)
        bad = np.flatnonzero(~np.isfinite(v).all(1))
        if len(bad):
            raise InputError(f"{self.source}: {len(bad)} of {len(v)} codes are NaN or infinite, the first is {bad[0]}")
        if self.lookup not in ("cosine", "euclidean"):
            raise InputError(f"unknown look-up rule {self.lookup!r}; known: cosine, euclidean")

    @classmethod
    def load(cls, path: Path, lookup: Lookup | None = None, name: str | None = None) -> Codebook:
        """Read a codebook.

        Parameters
        ----------
        path : `.npy`, `.npz`, `.safetensors` (our tokenizer's among them), or a `.pt`, `.pth`, `.ckpt` or `.bin`
            checkpoint of LlamaGen, taming-transformers or bare weights; loaded without unpickling code.
        lookup : default by the checkpoint's layout; "cosine" where a file does not tell.
        name : of the array, where the file holds several and none is called like a codebook.

        Raises
        ------
        InputError : a file missing, damaged, of another kind, or holds no (single) table; it says what is there.
        """
        if not path.is_file():
            raise InputError(f"no codebook at {path}")
        arrays, source, rule = _read(path)
        vectors = _choose(arrays, path, name).read()
        if lookup is None and source == "array":
            source += f"; look-up taken to be by {rule}"
        return cls(vectors, lookup or rule, f"{path} ({source})")

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of vectors and look-up rule."""
        return digest(self.vectors, self.lookup)

    @property
    def points(self) -> np.ndarray:
        """The codes as the look-up rule compares them, float64 (N, d): of length 1 where it is by cosine."""
        return comparable(self.vectors, self.lookup)

    def duplicates(self) -> list[np.ndarray]:
        """Return the groups of codes that are equal to the bit, int64 each; such codes are kept apart everywhere."""
        _, inverse, counts = np.unique(self.vectors, axis=0, return_inverse=True, return_counts=True)
        order = np.argsort(inverse.ravel(), kind="stable")
        groups = np.split(order, np.cumsum(counts)[:-1])
        return sorted((group for group in groups if len(group) > 1), key=lambda group: int(group[0]))

    def use(self, tokens: np.ndarray) -> np.ndarray:
        """Return how often each code occurs among tokens (integers of any shape), int64 (N,); 0 marks a dead code."""
        if not np.issubdtype(tokens.dtype, np.integer):
            raise InputError(f"tokens are whole numbers, not {tokens.dtype}")
        if tokens.size and (tokens.min() < 0 or tokens.max() >= len(self.vectors)):
            raise InputError(
                f"tokens lie in {tokens.min()} ... {tokens.max()}, the codebook has {len(self.vectors)} codes"
            )
        return np.bincount(tokens.ravel(), minlength=len(self.vectors))


@dataclass(frozen=True)
class _Array:
    """An array in a file, read when it is chosen: a language model's file is large, and one table of it is wanted."""

    shape: tuple[int, ...]
    dtype: str
    floating: bool
    read: Callable[[], np.ndarray]


def _unfit(shape: tuple[int, ...], floating: bool) -> str:
    """Say why an array cannot be a codebook, "" where it can."""
    if len(shape) != 2:
        return f"has {len(shape)} dimension{'s' * (len(shape) != 1)}"
    if not floating:
        return "holds no floating-point numbers"
    return "is empty" if 0 in shape else ""


def _read(path: Path) -> tuple[dict[str, _Array], str, Lookup]:
    """Return all arrays of a file, what kind of file it is, and its look-up rule."""
    if path.suffix in (".npy", ".npz"):
        return _numpy_arrays(path), "array", "cosine"
    if path.suffix == ".safetensors":
        stored = _safetensors_arrays(path)
        return stored, "tokenizer" if EMBEDDING in stored else "array", "cosine"
    if path.suffix in CHECKPOINT_SUFFIXES:
        return _checkpoint_arrays(path)
    known = ", ".join((".npy", ".npz", ".safetensors", *CHECKPOINT_SUFFIXES))
    raise InputError(f"{path}: unknown kind of file; a codebook is read from {known}")


@contextmanager
def _whole(path: Path, kind: str) -> Iterator[None]:
    """Turn whatever a reader raises of a damaged file (ValueError, EOFError, BadZipFile ...) into one line."""
    try:
        yield
    except Exception as error:
        raise InputError(f"{path} is damaged or no {kind} file ({error})") from error


def _numpy_arrays(path: Path) -> dict[str, _Array]:
    with _whole(path, "NumPy"):
        if path.suffix == ".npy":
            with open(path, "rb") as file:
                return {"array": _numpy_array(path, file)}
        with zipfile.ZipFile(path) as archive:
            arrays = {}
            for member in filter(lambda name: name.endswith(".npy"), archive.namelist()):
                with archive.open(member) as file:
                    arrays[member.removesuffix(".npy")] = _numpy_array(path, file, member)
            return arrays


def _numpy_array(path: Path, file: IO[bytes], member: str = "") -> _Array:
    """Describe an array by its header: nothing of an array of objects is ever unpickled."""

    def read() -> np.ndarray:
        with _whole(path, "NumPy"):
            loaded = np.load(path, allow_pickle=False)
            return loaded[member] if member else loaded

    first = np.lib.format.read_magic(file) == (1, 0)
    header = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
    shape, _, dtype = header(file)
    return _Array(shape, str(dtype), np.issubdtype(dtype, np.floating), read)


def _safetensors_arrays(path: Path) -> dict[str, _Array]:
    arrays = {}
    with _whole(path, "safetensors"), safe_open(path, framework="numpy") as file:
        for name in file.keys():  # noqa: SIM118 (not a dict)
            stored = file.get_slice(name)
            dtype = stored.get_dtype()
            floating = dtype.startswith(("F", "BF"))
            arrays[name] = _Array(tuple(stored.get_shape()), dtype, floating, partial(_read_stored, path, name, dtype))
    return arrays


def _read_stored(path: Path, name: str, dtype: str) -> np.ndarray:
    numpy_knows = dtype in ("F64", "F32", "F16")
    with _whole(path, "safetensors"), safe_open(path, framework="numpy" if numpy_knows else "pt") as file:
        return file.get_tensor(name) if numpy_knows else file.get_tensor(name).float().numpy()


def _checkpoint_arrays(path: Path) -> tuple[dict[str, _Array], str, Lookup]:
    import torch

    loaded = load_torch(path)
    named = loaded if isinstance(loaded, Mapping) else {}
    key = next((key for key in LAYOUTS if isinstance(named.get(key), Mapping)), None)
    source, rule = LAYOUTS[key] if key else ("array", "cosine")
    arrays = {}
    for name, tensor in _leaves(named[key] if key else loaded):
        if isinstance(tensor, torch.Tensor):
            dtype = str(tensor.dtype).removeprefix("torch.")
            arrays[name or "tensor"] = _Array(
                tuple(tensor.shape), dtype, tensor.is_floating_point(), partial(_values, tensor)
            )
    return arrays, source, rule


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Give what a checkpoint holds, however deep it is nested, by dotted names."""
    if isinstance(value, Mapping | list | tuple):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _leaves(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _values(tensor: Any) -> np.ndarray:
    tensor = tensor.detach().to_dense()
    return (tensor if tensor.itemsize == 8 else tensor.float()).numpy()


def _choose(arrays: Mapping[str, _Array], path: Path, name: str | None) -> _Array:
    """Return the array `name`, or else the one table that is called like a codebook, or else the only table."""
    unfit = {
        key: f"{key} {array.shape} {array.dtype} {reason}"
        for key, array in arrays.items()
        if (reason := _unfit(array.shape, array.floating) or ("has a single row" if array.shape[0] == 1 else ""))
    }
    tables = [key for key in arrays if key not in unfit]
    if name in unfit:
        raise InputError(f"{path}: {KIND}, and {unfit[name]}")
    if not tables:
        raise InputError(f"{path} holds no codebook; {KIND}, and there is: {listed(unfit.values(), 6)}")
    told = listed((f"{key} {arrays[key].shape}" for key in tables), 12)
    if name is not None and name not in tables:
        raise InputError(f"{path} holds no table {name!r}; its tables: {told}")
    named = [key for key in tables if key == EMBEDDING or key.endswith(f".{EMBEDDING}") or key == "codebook"]
    chosen = [name] if name is not None else named or tables
    if len(chosen) != 1:
        raise InputError(f"{path}: which table is the codebook? Name it (--tensor NAME); its tables: {told}")
    return arrays[chosen[0]]
