"""A trial's append-only journal: one JSON line per logged step. It is the record that all else is derived from."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iar_study.errors import InputError
from iar_study.storage import unwritable


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines, each {"step", "time_ms", "metrics"}; a torn last line is left out.

    Raises `InputError` for a line that is damaged.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); remove {path.parent} and run its study again") from error


class Journal:
    """Appends points; a step that stands there already is not written twice.

    A trial resumed from its last checkpoint repeats the steps since then to the same bits, so the points it wrote
    before it was killed stay valid and are kept.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = read_journal(path)
        self.last_step: int = whole[-1]["step"] if whole else -1
        if path.exists():
            content = path.read_bytes()
            end = content.rfind(b"\n") + 1
            if end < len(content):
                print(f"{path}: dropped a torn last line", file=sys.stderr)
                with open(path, "r+b") as file:
                    file.truncate(end)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one point, unless `step` is there already."""
        if step <= self.last_step:
            return
        line = json.dumps({"step": step, "time_ms": int(time.time() * 1000), "metrics": dict(metrics)})
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(line + "\n")
                file.flush()
                os.fsync(file.fileno())  # a checkpoint that follows must not outlive it
        except OSError as error:
            raise unwritable(self.path, error) from error
        self.last_step = step
