"""Checkpoints of a training: a safetensors file of weights, moments and moving average, and a JSON file that vouches.

A checkpoint counts when its JSON file is whole and names the SHA-256 of the safetensors file; it is written last, so a
kill at any time leaves the one before. No random state is kept: the randomness of a step is derived from (seed, step),
see `train_gpt`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from iar_study.config import NO_MATTER
from iar_study.errors import InputError
from iar_study.storage import Due, digest, read_json, replacing, write_text

KEPT = 2
"""Checkpoints that are kept: should the newest be damaged, the one before is used."""


class Checkpoints:
    """The checkpoints of one training, `STEP.safetensors` and `STEP.json` in a folder of their own.

    Parameters
    ----------
    folder : belongs to the checkpoints alone: what else lies there was left by a kill and is removed.
    made_with : settings (JSON); a checkpoint of other ones is refused.
    """

    def __init__(self, folder: Path, made_with: Mapping[str, Any]) -> None:
        # Through JSON, to compare equal with what is read back: a tuple becomes a list.
        self.folder, self.made_with = folder, json.loads(json.dumps(made_with))
        self.due = Due()

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Write tensors (contiguous, on the CPU) and `state` (JSON) as the checkpoint after `step` steps.

        Raises `InputError` when the disk refuses; the checkpoints before stay.
        """
        with self.due.saving():
            # Zeros in front: names sorted as text, as below, are then sorted by step.
            self._save(self.folder / f"{step:09d}.safetensors", step, tensors, state)

    def _save(self, path: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        with replacing(path) as temporary:
            try:
                save_file(dict(tensors), temporary)
            except SafetensorError as error:  # it hides the operating system's refusal in its text
                number = int((re.findall(r"os error (\d+)", str(error)) or [errno.EIO])[0])
                raise OSError(number, os.strerror(number)) from error
            with open(temporary, "rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        about = {"step": step, "sha256": sha256, "made_with": self.made_with, "state": dict(state)}
        write_text(path.with_suffix(".json"), json.dumps({"digest": digest(about), **about}, indent=1) + "\n")
        self._prune()

    def _prune(self) -> None:
        kept = [path.stem for path in sorted(self.folder.glob("*.json"))[-KEPT:]]
        for path in self.folder.iterdir():
            if path.stem not in kept:
                path.unlink(missing_ok=True)

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """Return the tensors' file and the state of the newest whole checkpoint; None when there is none.

        A damaged one is named on stderr and passed over. Raises `InputError`, naming the keys that differ, for one
        that was made with other settings.
        """
        paths = sorted(self.folder.glob("*.json"), reverse=True)
        for path in paths:
            tensors = path.with_suffix(".safetensors")
            try:
                about = read_json(path)
                stated = about.pop("digest")
                if stated != digest(about):
                    raise InputError(f"{path} is damaged: it is not of the SHA-256 that it states")
                with open(tensors, "rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() != about["sha256"]:
                        raise InputError(f"{tensors} is damaged: it is not of the SHA-256 in {path.name}")
            except (InputError, OSError, KeyError, TypeError, AttributeError) as error:
                reason = error if isinstance(error, InputError) else f"{path} is damaged ({error})"
                print(f"{reason}; it is passed over", file=sys.stderr)
                continue
            self._refuse_others(path, about["made_with"])
            return tensors, about["state"]
        if paths:
            print(f"no checkpoint in {self.folder} is whole; starting over", file=sys.stderr)
        return None

    def _refuse_others(self, path: Path, made_with: dict[str, Any]) -> None:
        differing = [
            f"{key} = {made_with.get(key)!r}, now {self.made_with.get(key)!r}"
            for key in sorted(made_with.keys() | self.made_with.keys())
            if key not in NO_MATTER and made_with.get(key) != self.made_with.get(key)
        ]
        if differing:
            raise InputError(
                f"{path} was made with other settings: {'; '.join(differing)}; "
                f"go on with its own settings, or move {self.folder} away to start over"
            )


class CheckpointTensors:
    """The tensors of a checkpoint's file; each is read when it is asked for."""

    def __init__(self, path: Path) -> None:
        self.file = safe_open(path, framework="pt")
        self.names = list(self.file.keys())

    def __getitem__(self, name: str) -> Tensor:
        return self.file.get_tensor(name)
