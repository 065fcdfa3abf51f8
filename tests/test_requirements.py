"""pyproject.toml, requirements.lock and environment.yml name the same dependencies in versions that agree."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DIRECT = [Requirement(text) for text in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]]


def pins(lines) -> dict[str, str]:
    found = (re.fullmatch(r"([\w.-]+)==([\w.]+)", line.strip()) for line in lines)
    return {canonicalize_name(match[1]): match[2] for match in found if match}


LOCK = pins((ROOT / "requirements.lock").read_text().splitlines())
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]


@pytest.mark.parametrize("requirement", DIRECT, ids=lambda r: r.name)
def test_the_lock_pins_every_dependency_within_its_range(requirement):
    assert LOCK[canonicalize_name(requirement.name)] in requirement.specifier


def test_the_lock_holds_nothing_but_exact_pins():
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and line[0] != "#"]
    assert len(pins(lines)) == len(lines)


def test_the_conda_environment_pins_the_same_versions():
    conda = pins(next(entry["pip"] for entry in CONDA if isinstance(entry, dict)))
    assert conda == {canonicalize_name(r.name): LOCK[canonicalize_name(r.name)] for r in DIRECT}


def test_the_readme_gives_a_reason_for_every_dependency():
    readme = (ROOT / "README.md").read_text()
    for requirement in DIRECT:
        assert f"| {requirement.name} |" in readme, requirement.name
