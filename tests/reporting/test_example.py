"""The committed report is what the committed results give, byte for byte."""

import shutil
from importlib.metadata import version
from pathlib import Path

import pytest

from iar_study.reporting.site import check_site, write_index
from iar_study.study.claims import load_claims
from iar_study.study.export import open_store
from iar_study.study.workspace import Workspace, studies_run

LOCK = (Path(__file__).parents[2] / "requirements.lock").read_text()
DRAW = ("matplotlib", "numpy", "pandas", "pillow", "scipy", "seaborn")
"""What draws and counts: the same bytes are promised for the same versions."""
pytestmark = pytest.mark.skipif(
    any(f"\n{name}=={version(name)}\n" not in LOCK for name in DRAW), reason="not the versions of requirements.lock"
)

ROOT = Workspace(Path(__file__).parents[2])
REPORTS = ROOT.example.parent


@pytest.fixture(scope="module")
def store():
    with open_store(ROOT.example) as store:
        yield store


@pytest.mark.parametrize("study", sorted(page.parent.name for page in REPORTS.glob("*/results.csv")))
def test_a_committed_report_is_what_the_committed_results_give(study, store):
    assert check_site(store, [study], REPORTS, load_claims(ROOT.experiments)) == []


def test_the_committed_index_is_that_of_the_committed_reports(store, tmp_path):
    assert studies_run(store) == sorted(page.parent.name for page in REPORTS.glob("*/results.csv"))
    copy = shutil.copytree(REPORTS, tmp_path / "example")
    write_index(copy, load_claims(ROOT.experiments))
    for name in ("index.html", "index.md"):
        assert (copy / name).read_bytes() == (REPORTS / name).read_bytes()


def test_the_committed_results_are_small_enough_for_a_repository():
    assert ROOT.example.stat().st_size < 20e6
