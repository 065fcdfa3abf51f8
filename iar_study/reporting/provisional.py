"""The report of a study that still runs, written on the side."""

from __future__ import annotations

import subprocess
import sys
from types import TracebackType

from iar_study.pipeline.workspace import Workspace


class Provisional:
    """Calling it has the report of a study written from the trials that have ended, by a process of its own.

    Nobody waits for it. While one is being written, a call does nothing; what is not done when this is left is ended:
    the whole report is then written anew.
    """

    def __init__(self, study: str, workspace: Workspace) -> None:
        self.command = [sys.executable, "-m", "iar_study.cli", "report", study]
        self.folder = workspace.root
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> None:
        if self.process is None or self.process.poll() is not None:
            # A session of its own: Ctrl-C is for the run, which ends this.
            self.process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )

    def __enter__(self) -> Provisional:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait()
