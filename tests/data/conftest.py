"""Every test has a data folder of its own, never the user's."""

import pytest


@pytest.fixture(autouse=True)
def data_home(tmp_path, monkeypatch):
    monkeypatch.setenv("IAR_DATA", str(tmp_path / "data-home"))
    return tmp_path / "data-home"
