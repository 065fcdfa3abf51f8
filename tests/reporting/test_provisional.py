"""The report of a study that still runs is written on the side, and is in nobody's way."""

import sys
from pathlib import Path

from iar_study.pipeline.workspace import Workspace
from iar_study.reporting.provisional import Provisional


def test_one_is_written_at_a_time_and_ended_with_the_run(tmp_path: Path) -> None:
    with Provisional("components", Workspace(tmp_path)) as write:
        assert write.command[1:] == ["-m", "iar_study.cli", "report", "components"]
        write.command = [sys.executable, "-c", "import time; time.sleep(600)"]
        write()
        first = write.process
        write()
        assert write.process is first
        assert first.poll() is None
    assert first.poll() is not None


def test_the_next_is_written_when_the_one_before_is_done(tmp_path: Path) -> None:
    with Provisional("components", Workspace(tmp_path)) as write:
        write.command = [sys.executable, "-c", "open('report', 'a').write('written')"]
        for _ in range(2):
            write()
            assert write.process.wait() == 0
    assert (tmp_path / "report").read_text() == "written" * 2
