"""Successive shortest paths on the graph of *clusters*: the exact repair of an assignment that breaks its size bounds.

A cluster a has an arc to a cluster b for every point of a that could be in b; its length is what the move costs,
(c_ib + p_b) - (c_ia + p_a) >= 0 at prices p. Only the cheapest move of a pair matters at a time, and which one that is
does not depend on the prices, so every ordered pair keeps a pairing heap of its moves. One more node, the *hub*, links
the clusters whose size is free between two bounds. Each search is Dijkstra's, begins at one cluster with too many
points, ends at the nearest one with too few and raises prices on its way; so it looks at a few clusters, never at
points. Everything here is compiled; `assignment` prepares the input and certifies the result.
"""

from __future__ import annotations

import numpy as np

from iar_study.codebook.kernels import boolean, float64, int32, int64, kernel, part

# Moves are entries of parallel arrays (key, point, child, sibling); a heap is named by its root, an empty one by -1.


@part
def _meld(x: int, y: int, key: np.ndarray, child: np.ndarray, sibling: np.ndarray) -> int:
    """Join two heaps that are not empty; return the root."""
    if key[y] < key[x]:
        x, y = y, x
    sibling[y] = child[x]
    child[x] = y
    return x


@part
def _pop(root: int, key: np.ndarray, child: np.ndarray, sibling: np.ndarray) -> int:
    """Return the heap without its root: melded in pairs from the left, and the pairs from the right."""
    rest, pairs = child[root], -1
    while rest >= 0:
        x = rest
        y = sibling[x]
        if y < 0:
            rest = y
        else:
            rest = sibling[y]
            x = _meld(x, y, key, child, sibling)
        sibling[x] = pairs
        pairs = x
    if pairs < 0:
        return pairs
    root, rest = pairs, sibling[pairs]
    while rest >= 0:
        after = sibling[rest]
        root = _meld(root, rest, key, child, sibling)
        rest = after
    return root


@part
def _longer(array: np.ndarray, size: int) -> np.ndarray:
    """Return a copy of `array` with room for `size` entries."""
    grown = np.empty(size, array.dtype)
    for i in range(len(array)):  # a slice would compile for a second
        grown[i] = array[i]
    return grown


@kernel(
    boolean(
        int32[::1],
        int64[::1],
        int32[::1],
        float64[::1],
        float64[::1],
        int64[::1],
        int64[::1],
        int64[::1],
        int64[::1],
    )
)
def place_all(  # noqa: PLR0912 (one loop: a call in it would cost more than its body)
    labels: np.ndarray,
    first: np.ndarray,
    cluster: np.ndarray,
    cost: np.ndarray,
    prices: np.ndarray,
    used: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    excess: np.ndarray,
) -> bool:
    """Move points until no cluster has too many or too few; False when the moves on offer do not suffice.

    Parameters (all but the moves on offer are changed in place)
    ----------
    labels : int32 (q,), the cluster of every movable point.
    first, cluster, cost : int64 (q + 1,), int32 (e,), float64 (e,). Point i may be in the clusters
        `cluster[first[i]:first[i + 1]]`, its own among them, at these costs.
    prices : float64 (n + 1,), the hub's last. Every point of a cluster must be there at its lowest cost + price.
    used : int64 (n,), how many places of each cluster are filled as seen from the hub.
    lower, upper : int64 (n,), the size bounds.
    excess : int64 (n + 1,), points of each cluster beyond `used`; the hub's is sum(used) - points.
    """
    n = len(used)
    hub = n
    length = np.full((n + 1, n + 1), np.inf)  # of the cheapest arc of each pair, prices left out
    heap = np.full((n, n), -1, np.int32)
    room = 2 * len(cluster) + 64
    count = 0
    key, point = np.empty(room), np.empty(room, np.int32)
    child, sibling = np.empty(room, np.int32), np.empty(room, np.int32)

    for j in range(n):
        if used[j] < upper[j]:
            length[j, hub] = 0.0
        if used[j] > lower[j]:
            length[hub, j] = 0.0

    distance, before = np.empty(n + 1), np.empty(n + 1, np.int64)
    reached, order = np.empty(n + 1, np.bool_), np.empty(n + 1, np.int64)
    moved, target = np.empty(max(len(labels), n + 1), np.int64), np.empty(max(len(labels), n + 1), np.int64)

    # The first "path" puts every point where it is: that fills the heaps.
    for i in range(len(labels)):
        moved[i], target[i] = i, labels[i]
    moves = len(labels)
    source = 0
    while True:
        for k in range(moves):
            i, b = moved[k], target[k]
            a = labels[i]
            labels[i] = b
            base = 0.0
            for e in range(first[i], first[i + 1]):
                if cluster[e] == b:
                    base = cost[e]
            if count + first[i + 1] - first[i] > room:
                room *= 2
                key, point = _longer(key, room), _longer(point, room)
                child, sibling = _longer(child, room), _longer(sibling, room)
            for e in range(first[i], first[i + 1]):
                x = cluster[e]
                if b != a and x != a:  # noqa: PLR1714 (numba)
                    root = heap[a, x]
                    while root >= 0 and labels[point[root]] != a:  # left since; also the move just made
                        root = _pop(root, key, child, sibling)
                    heap[a, x] = root
                    length[a, x] = key[root] if root >= 0 else np.inf
                if x != b:
                    key[count], point[count], child[count], sibling[count] = cost[e] - base, i, -1, -1
                    root = heap[b, x]
                    root = count if root < 0 else _meld(root, count, key, child, sibling)
                    heap[b, x] = root
                    length[b, x] = key[root]
                    count += 1
        moves = 0

        while source <= n and excess[source] <= 0:
            source += 1
        if source > n:
            return True

        distance[:] = np.inf
        reached[:] = False
        distance[source] = 0.0
        a, d, seen = source, 0.0, 0
        while a >= 0 and excess[a] >= 0:
            reached[a] = True
            order[seen] = a
            seen += 1
            offset = d - prices[a]
            nearest, shortest = -1, np.inf
            for b in range(n + 1):
                if reached[b]:
                    continue
                through = length[a, b] + prices[b] + offset
                if through < distance[b]:
                    distance[b] = max(through, d)  # a length below 0 is rounding
                    before[b] = a
                if distance[b] < shortest:
                    shortest = distance[b]
                    nearest = b
            a, d = nearest, shortest
        if a < 0:
            return False
        # Dijkstra's potentials: after this no arc is shorter than 0, and those of the path found are 0.
        for k in range(seen):
            prices[order[k]] += d - distance[order[k]]

        excess[source] -= 1
        excess[a] += 1
        b = a
        while b != source:
            a = before[b]
            if a == hub:
                used[b] -= 1
            elif b == hub:
                used[a] += 1
            else:
                moved[moves], target[moves] = point[heap[a, b]], b
                moves += 1
            if hub == max(a, b):
                j = min(a, b)
                length[j, hub] = 0.0 if used[j] < upper[j] else np.inf
                length[hub, j] = 0.0 if used[j] > lower[j] else np.inf
            b = a
