"""Whatever part of a study has ended, its report is a page and its comparison a text, or a sentence says why not."""

import json
import tempfile
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from iar_study.errors import InputError
from iar_study.evidence.claims import judge, load_claims
from iar_study.evidence.comparison import Stores, compare
from iar_study.evidence.export import open_store
from iar_study.evidence.results import load_results
from iar_study.pipeline.workspace import Workspace, read_manifest
from iar_study.reporting import report
from iar_study.reporting.comparison_text import comparison_text
from iar_study.reporting.illustrations import illustrations
from iar_study.reporting.tables import HEADLINE
from iar_study.running.status import status_of

ROOT = Workspace(Path(__file__).parents[2])
CLAIMS = load_claims(ROOT.experiments)
STUDIES = sorted(path.parent.name for path in ROOT.example.parent.glob("*/trials.json"))


def undrawn(results):
    """The sections of a report without their figures, whose captions are made all the same."""
    return {section: [] for section, _ in illustrations(results).items()}


@pytest.fixture(scope="module")
def whole():
    with open_store(ROOT.example) as store:
        yield store


def part_of(whole, study, folder, draw):
    """Make a workspace of some arms, seeds and trials of a study, each trial whole, cut off, or not begun.

    Return it and how many trials have ended.
    """
    part, manifest = Workspace(folder, frozen=True), read_manifest(whole, study)
    for made in (part.trials, part.studies):
        made.mkdir(parents=True)
    part.cache.symlink_to(whole.cache)
    # As `run --arms` does it: the baselines are always there.
    kept = {manifest["baseline"], *(arm["beside"] for arm in manifest["arms"])}
    arms = [arm["name"] for arm in manifest["arms"]]
    kept |= draw(st.sets(st.sampled_from(arms)))
    seeds = sorted({trial["seed"] for trial in manifest["trials"]})
    seeds = draw(st.sets(st.sampled_from(seeds), min_size=1))
    asked = [trial for trial in manifest["trials"] if trial["arm"] in kept and trial["seed"] in seeds]
    ended = 0
    for trial in asked:
        source, target = whole.trials / trial["hash"], part.trials / trial["hash"]
        state = draw(st.sampled_from(["ended", "ended", "cut off", "not begun"]))
        if state == "ended" and not target.exists():
            target.symlink_to(source)
        if state == "cut off" and not target.exists():
            target.mkdir()
            (target / "trial.json").symlink_to(source / "trial.json")
            lines = (source / "journal.jsonl").read_text().splitlines(keepends=True)
            (target / "journal.jsonl").write_text("".join(lines[: draw(st.integers(0, len(lines)))]))
        ended += (target / "result.json").exists()
    changed = {**manifest, "arms": [arm for arm in manifest["arms"] if arm["name"] in kept], "trials": asked}
    (part.studies / f"{study}.json").write_text(json.dumps(changed))
    return part, ended


@pytest.mark.parametrize("study", STUDIES)
@settings(
    max_examples=4, phases=[Phase.explicit, Phase.generate], deadline=None, suppress_health_check=list(HealthCheck)
)
@given(data=st.data())
def test_any_part_of_a_study_ends_in_a_page_or_a_sentence(whole, study, data):
    with tempfile.TemporaryDirectory() as folder, patch.object(report, "illustrations", undrawn):
        part, ended = part_of(whole, study, Path(folder, "part"), data.draw)
        if not ended:
            with pytest.raises(InputError, match=r"no trial of study .* is finished yet|no finished trial"):
                report.write_report(load_results(part, study), Path(folder))
            return
        results = load_results(part, study)
        unfinished = [trial for trial in status_of(part, study) if not trial.ended]
        page = report.write_report(results, Path(folder), judge(CLAIMS, results), unfinished)
        assert "</html>" in page.read_text()
        found = compare(results, load_results(whole, study), HEADLINE[results.kind], CLAIMS)
        assert study in comparison_text(Stores([found]), "part", "whole")
