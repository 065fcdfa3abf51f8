"""A codebook: the vectors of its codes, how a tokenizer looks them up, and the files it can be read from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError, safe_open

from iar_study.codebook.clustering import comparable
from iar_study.errors import InputError
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


@dataclass(frozen=True)
class Codebook:
    """The codes of a visual tokenizer (or any table of embeddings that is to be studied like one).

    Attributes
    ----------
    vectors : float32 or float64 (N, d), finite.
    lookup : "cosine" when a vector is given the code nearest in direction (LlamaGen), "euclidean" when the nearest in
        space (taming-transformers).
    source : what it was read from, for people.
    """

    vectors: np.ndarray
    lookup: Lookup = "cosine"
    source: str = "array"

    def __post_init__(self) -> None:
        v = self.vectors
        if v.ndim != 2 or not v.size or v.dtype not in (np.float32, np.float64):
            raise InputError(f"{self.source}: a codebook is a float (N, d) array, not {v.dtype} {v.shape}")
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
        InputError : a file that is missing, damaged, of another kind, or holds no (single) table.
        """
        if not path.is_file():
            raise InputError(f"no codebook at {path}")
        tables, source, rule = _read(path)
        vectors = np.asarray(tables[_choose({key: table.shape for key, table in tables.items()}, path, name)][:])
        if lookup is None and source == "array":
            source += f"; look-up taken to be by {rule}"
        if vectors.dtype != np.float64:
            vectors = vectors.astype(np.float32)
        return cls(np.ascontiguousarray(vectors), lookup or rule, f"{path} ({source})")

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


Tables = Mapping[str, Any]
"""Name -> a floating (N, d) table with a `shape`, which is read when it is sliced."""


def _read(path: Path) -> tuple[Tables, str, Lookup]:
    """Return the tables of a file, what kind of file it is, and its look-up rule."""
    if path.suffix in (".npy", ".npz"):
        loaded = _load_numpy(path)
        arrays = {"array": loaded} if path.suffix == ".npy" else loaded
        tables = {key: a for key, a in arrays.items() if a.ndim == 2 and np.issubdtype(a.dtype, np.floating)}
        return tables, "array", "cosine"
    if path.suffix == ".safetensors":
        stored = _open_safetensors(path)
        return stored, "tokenizer" if EMBEDDING in stored else "array", "cosine"
    if path.suffix in CHECKPOINT_SUFFIXES:
        return _load_checkpoint(path)
    known = ", ".join((".npy", ".npz", ".safetensors", *CHECKPOINT_SUFFIXES))
    raise InputError(f"{path}: unknown kind of file; a codebook is read from {known}")


def _load_numpy(path: Path) -> Any:
    try:
        loaded = np.load(path, allow_pickle=False)
        return loaded if path.suffix == ".npy" else dict(loaded)
    except Exception as error:  # numpy raises whatever its readers do: ValueError, EOFError, BadZipFile, zlib.error
        raise InputError(f"{path} is damaged or no NumPy file ({error})") from error


@dataclass(frozen=True)
class _Stored:
    """A table in a safetensors file: a language model's file is large, and only one table of it is wanted."""

    path: Path
    name: str
    shape: tuple[int, ...]
    bfloat16: bool

    def __getitem__(self, rows: slice) -> np.ndarray:
        if self.bfloat16:  # which NumPy does not know
            with safe_open(self.path, framework="pt") as file:
                return file.get_tensor(self.name).float().numpy()[rows]
        with safe_open(self.path, framework="numpy") as file:
            return file.get_tensor(self.name)[rows]


def _open_safetensors(path: Path) -> Tables:
    tables = {}
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                stored = file.get_slice(name)
                shape, dtype = tuple(stored.get_shape()), stored.get_dtype()
                if len(shape) == 2 and dtype in ("F64", "F32", "F16", "BF16"):
                    tables[name] = _Stored(path, name, shape, dtype == "BF16")
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged or no safetensors file ({error})") from error
    return tables


def _load_checkpoint(path: Path) -> tuple[Tables, str, Lookup]:
    import torch

    loaded = load_torch(path)
    if isinstance(loaded, torch.Tensor):
        loaded = {"tensor": loaded}
    if not isinstance(loaded, Mapping):
        raise InputError(f"{path} holds a {type(loaded).__name__}, not named weights")
    key = next((key for key in LAYOUTS if isinstance(loaded.get(key), Mapping)), None)
    source, rule = LAYOUTS[key] if key else ("array", "cosine")
    tables = {
        name: tensor.detach().float()
        for name, tensor in (loaded[key] if key else loaded).items()
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and tensor.ndim == 2
    }
    return tables, source, rule


def _choose(shapes: Mapping[str, tuple[int, ...]], path: Path, name: str | None) -> str:
    """Return `name`, or else the one table that is called like a codebook, or else the only table."""
    listed = ", ".join(f"{key} {tuple(shape)}" for key, shape in list(shapes.items())[:12]) or "none"
    if len(shapes) > 12:
        listed += f" and {len(shapes) - 12} more"
    if name is not None:
        if name not in shapes:
            raise InputError(f"{path} holds no table {name!r}; its tables: {listed}")
        return name
    named = [key for key in shapes if key == EMBEDDING or key.endswith(f".{EMBEDDING}") or key == "codebook"]
    chosen = named or list(shapes)
    if len(chosen) != 1:
        raise InputError(f"{path}: which table is the codebook? Name it (--tensor NAME); its tables: {listed}")
    return chosen[0]
