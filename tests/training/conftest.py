"""The small training of `tests.training.small`, as fixtures."""

from dataclasses import replace

import pytest

from iar_study.config import LossConfig, TrialConfig
from iar_study.data.codes import Codes
from tests.training.small import make_codes, make_config


@pytest.fixture(scope="session")
def codes() -> Codes:
    return make_codes()


@pytest.fixture
def config() -> TrialConfig:
    """The baseline's."""
    return replace(make_config(), loss=LossConfig(0.0))
