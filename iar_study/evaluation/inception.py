"""The Inception of FID: where its weights come from, where they lie, and which file they are. No torch is needed."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
"""Where torch-fidelity has the weights from, converted from TensorFlow's; pytorch-fid's file has the same bytes."""

INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""Of that file, 96 MB; the file's name tells the beginning."""

INSTALL = "pip install 'iar-study[fidelity]'"


def inception_path() -> Path:
    """Return where torch-fidelity keeps the weights: in torch's hub, wherever that is."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("TORCH_HOME", f"{cache}/torch")
    return Path(home).expanduser() / "hub" / "checkpoints" / INCEPTION_URL.rpartition("/")[2]


def has_torch_fidelity() -> bool:
    """Whether the network can be built."""
    return find_spec("torch_fidelity") is not None
