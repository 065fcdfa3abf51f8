"""Functions that numba compiles: once per machine, for stated types, by one process at a time.

numba's cache has no lock of its own. Two processes that fill it at the same moment can leave the machine code of one
type under the name of another (its index is written before the code, and both number their files from 1), which would
then be run on memory it does not fit. So every kernel states its types and is compiled, or read from the cache, under
a lock when it is first called.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock
from numba import boolean, float32, float64, int32, int64, njit
from numba.core.types import Array, void

Function = TypeVar("Function", bound=Callable[..., Any])

__all__ = ["TABLE32", "TABLE64", "boolean", "float32", "float64", "int32", "int64", "kernel", "part", "void"]

TABLE32, TABLE64 = (Array(real, 2, "C", readonly=True) for real in (float32, float64))
"""A matrix that a kernel only reads, in either precision."""


def kernel(*signatures: Any) -> Callable[[Function], Function]:
    """Compile an entry point for `signatures`, lazily; arrays of other types are refused with a `TypeError`."""

    def decorate(function: Function) -> Function:
        compiled = njit(nogil=True, cache=True)(function)

        ready = False

        @wraps(function)
        def call(*arguments: Any) -> Any:
            nonlocal ready
            if not ready:
                with FileLock(lock_path()):
                    if not ready:  # no other thread was faster
                        for signature in signatures:
                            compiled.compile(signature)
                        compiled.disable_compile()
                        ready = True
            return compiled(*arguments)

        return call  # type: ignore[return-value]

    return decorate


part = njit(nogil=True, cache=True)
"""Compile a function that kernels call; it is never called from Python."""


def lock_path() -> Path:
    """Return the lock's path: one for each user, whatever checkout or environment they use."""
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    return Path(tempfile.gettempdir()) / f"iar-study-kernels-{user}.lock"
