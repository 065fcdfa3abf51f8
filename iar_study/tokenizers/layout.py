"""How the tokens of an image lie: a square grid, row by row."""

from __future__ import annotations

import math

from iar_study.errors import InputError


def side_in_tokens(tokens: int) -> int:
    """Return the side of the square that so many tokens form; raise `InputError` where they form none.

    >>> side_in_tokens(49)
    7
    """
    side = math.isqrt(tokens)
    if side**2 != tokens:
        raise InputError(f"{tokens} tokens an image do not form a square")
    return side
