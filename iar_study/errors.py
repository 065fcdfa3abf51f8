"""The one exception that is the user's to mend: the command line prints it as one line and exits with code 2."""


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
