"""A new order of the codes in which every cluster is contiguous: the permutation and the cluster boundaries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from iar_study.codebook.ordering import order_vectors
from iar_study.errors import InputError
from iar_study.storage import load_arrays, load_torch, save_arrays, save_torch

Table = TypeVar("Table")
"""A NumPy array or a torch tensor: what goes in comes out."""


@dataclass(frozen=True)
class Rearrangement:
    """A permutation of the codes and the boundaries of the clusters in the new order.

    Attributes
    ----------
    permutation : int64 (N,), `permutation[old] = new`.
    boundaries : int64 (n + 1,), 0 = b_0 < b_1 < ... < b_n = N; cluster j holds the new indices [b_j, b_{j+1}).

    >>> r = Rearrangement.from_labels(np.array([1, 0, 1, 0]))
    >>> r.permutation, r.boundaries
    (array([2, 0, 3, 1]), array([0, 2, 4]))
    >>> r.rows(np.array([10, 11, 12, 13]))
    array([11, 13, 10, 12])
    """

    permutation: np.ndarray
    boundaries: np.ndarray

    def __post_init__(self) -> None:
        size = len(self.permutation)
        if not np.array_equal(np.sort(self.permutation), np.arange(size)):
            raise InputError(f"not a permutation of 0 ... {size - 1}")
        if self.boundaries[0] != 0 or self.boundaries[-1] != size or (np.diff(self.boundaries) <= 0).any():
            raise InputError(f"cluster boundaries must rise from 0 to {size}")

    @classmethod
    def from_labels(
        cls, labels: np.ndarray, vectors: np.ndarray | None = None, *, within: str = "none", between: str = "none"
    ) -> Rearrangement:
        """Make the clusters contiguous.

        Parameters
        ----------
        labels : int (N,), the cluster of every code, 0 ... n-1, none of them empty.
        vectors : float (N, d), the codes, for the orders that need them.
        within, between : order of the codes inside a cluster and of the clusters (by their centroids), keys of
            `ordering.ORDERINGS`; "none" keeps the codes in their old order and the clusters in that of their labels.
        """
        if vectors is None and (within, between) != ("none", "none"):
            raise InputError("an order of similar codes needs the codes' vectors")
        order = np.argsort(labels, kind="stable")  # order[new] = old
        clusters = np.split(order, np.cumsum(np.bincount(labels))[:-1])
        if vectors is not None:
            clusters = [members[order_vectors(vectors[members], within)] for members in clusters]
            centroids = np.stack([vectors[members].mean(0) for members in clusters])
            clusters = [clusters[j] for j in order_vectors(centroids, between)]
        order = np.concatenate(clusters)
        return cls(np.argsort(order), np.cumsum([0, *map(len, clusters)]))

    @classmethod
    def identity(cls, size: int) -> Rearrangement:
        """The original order, in one cluster: no rearrangement at all."""
        return cls(np.arange(size), np.array([0, size]))

    @classmethod
    def from_iar_mapping(cls, mapping: Any, cluster_size: int) -> Rearrangement:
        """Take what the authors' code saves: int64 (N,), `mapping[old] = new`, and its option `cluster_size`.

        mapping : array, tensor, or the path of the `.pt` file that holds the tensor.
        """
        if isinstance(mapping, str | Path):
            mapping = _load_tensor(Path(mapping))
        mapping = np.asarray(mapping)
        if mapping.ndim != 1 or not np.issubdtype(mapping.dtype, np.integer):
            raise InputError(f"an IAR mapping is a row of whole numbers, not {mapping.dtype} {mapping.shape}")
        if cluster_size < 1 or len(mapping) % cluster_size:
            raise InputError(f"cluster_size {cluster_size} does not divide the {len(mapping)} codes of the mapping")
        return cls(mapping.astype(np.int64), np.arange(0, len(mapping) + 1, cluster_size))

    def to_iar_mapping(self) -> tuple[np.ndarray, int]:
        """Return what the authors' code reads: int64 (N,), `mapping[old] = new`, and `cluster_size`.

        Raises `InputError` for clusters of unequal size, which that code does not know.
        """
        sizes = np.diff(self.boundaries)
        if (sizes != sizes[0]).any():
            raise InputError(f"the authors' code knows equal clusters only; these hold {sizes.min()} to {sizes.max()}")
        return self.permutation.copy(), int(sizes[0])

    def save(self, path: Path, metadata: Mapping[str, Any] | None = None) -> None:
        """Write a `.safetensors` file, or the authors' format (see `to_iar_mapping`) when `path` ends with `.pt`."""
        if path.suffix == ".pt":
            import torch

            save_torch(path, torch.from_numpy(self.to_iar_mapping()[0]))
        else:
            save_arrays(path, {"permutation": self.permutation, "boundaries": self.boundaries}, metadata)

    @classmethod
    def load(cls, path: Path) -> Rearrangement:
        """Read what `save` wrote as `.safetensors`, or a training's `codebook.safetensors`, which holds the same.

        Raises `InputError` for a damaged or another file.
        """
        arrays = load_arrays(path)[0]
        if not {"permutation", "boundaries"} <= set(arrays):
            raise InputError(f"{path} is no rearrangement: it holds {', '.join(sorted(arrays)) or 'nothing'}")
        return cls(arrays["permutation"], arrays["boundaries"])

    @property
    def order(self) -> np.ndarray:
        """The inverse permutation, int64 (N,): `order[new] = old`."""
        return np.argsort(self.permutation)

    @property
    def labels(self) -> np.ndarray:
        """The cluster of every code by its *old* index, int64 (N,)."""
        sizes = np.diff(self.boundaries)
        return np.repeat(np.arange(len(sizes)), sizes)[self.permutation]

    def tokens(self, tokens: Table) -> Table:
        """Translate tokens (integers of any shape, array or tensor) from the old order to the new."""
        return _look_up(self.permutation, tokens)

    def original_tokens(self, tokens: Table) -> Table:
        """Translate tokens (integers of any shape, array or tensor) from the new order back to the old."""
        return _look_up(self.order, tokens)

    def rows(self, table: Table) -> Table:
        """Reorder the rows of a table indexed by code (codebook, a model's embedding or output weight).

        Row `new` of the result is the old row `order[new]`.
        """
        return table[self.order]  # type: ignore[index]

    def original_rows(self, table: Table) -> Table:
        """Undo `rows`."""
        return table[self.permutation]  # type: ignore[index]


def load_rearrangement(path: Path, n_clusters: int | None = None) -> Rearrangement:
    """Read `.safetensors`, or the authors' `.pt`, which does not hold the number of clusters."""
    if path.suffix != ".pt":
        return Rearrangement.load(path)
    mapping = _load_tensor(path)
    if not n_clusters or len(mapping) % n_clusters:
        raise InputError(f"{path} holds {len(mapping)} codes but no cluster size: give the number of clusters")
    return Rearrangement.from_iar_mapping(mapping, len(mapping) // n_clusters)


def _look_up(table: np.ndarray, tokens: Any) -> Any:
    """Return table[tokens] as an array or a tensor of the tokens' own kind, dtype and device."""
    if isinstance(tokens, np.ndarray):
        return table[tokens].astype(tokens.dtype)
    return tokens.new_tensor(table)[tokens.long()]


def _load_tensor(path: Path) -> np.ndarray:
    import torch

    loaded = load_torch(path)
    if not isinstance(loaded, torch.Tensor):
        raise InputError(f"{path} holds a {type(loaded).__name__}, not the tensor of an IAR mapping")
    return loaded.numpy()
