"""The one exception that is the user's to mend: the command line prints it as one line and exits with code 2."""

from __future__ import annotations

from collections.abc import Iterable


class InputError(ValueError):
    """Bad input: the message says what is wrong, where, and what to do about it."""


def nearest(word: str, known: list[str]) -> str:
    """Return a hint for an error message: the known name nearest to `word`, or all of them when none is near.

    >>> nearest("componnets", ["balance", "components"])
    "did you mean 'components'?"
    >>> nearest("x", ["balance", "components"])
    'known: balance, components'
    """
    import difflib

    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


def listed(names: Iterable[object], most: int = 3) -> str:
    """Return the first names, sorted, and how many more there are.

    >>> listed(["d", "b", "a", "c"])
    'a, b, c and 1 more'
    """
    ordered = sorted(map(str, names))
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return ", ".join(ordered[:most]) + more or "nothing"


def enumerated(words: Iterable[object], joint: str = "and") -> str:
    """Return words as a sentence lists them.

    >>> enumerated(["a", "b", "c"]), enumerated([1, 2], "or")
    ('a, b and c', '1 or 2')
    """
    *first, last = map(str, words)
    return f"{', '.join(first)} {joint} {last}" if first else last
