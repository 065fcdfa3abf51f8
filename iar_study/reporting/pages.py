"""A folder with a page, its figures and its numbers, written as a whole: the manner of a study's report and of others.

The same content gives the same bytes, figures are drawn again only where what they show has changed, and a folder that
would be the same is left as it is.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

from filelock import FileLock
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from iar_study.errors import InputError
from iar_study.evaluation import metrics
from iar_study.evidence import statistics
from iar_study.pipeline import codebooks
from iar_study.reporting.illustrations import Illustration, save, sizes
from iar_study.reporting.unchanged import ABOUT, contents
from iar_study.storage import digest, file_sha256, read_json

GENERATOR = "iar-study"


def write_pages(
    target: Path,
    template: str,
    context: Mapping[str, Any],
    figures: Mapping[str, Sequence[Illustration]],
    seen: str,
    files: Mapping[str, str],
    made_from: str = "",
) -> Path:
    """Write the folder `target` with index.html, index.md, figures and files; return the path of the HTML page.

    A folder that is already there is replaced as a whole, once the new one is complete.

    Parameters
    ----------
    template : name of the page's templates, without .html and .md; they are given `context` and the saved figures.
    figures : the figures of each section.
    seen : digest of all that figures may show.
    files : name -> text of what lies beside the pages.
    made_from : digest of all that the folder is written from, which it remembers, see `unchanged`.

    Raises
    ------
    InputError : the folder holds what no such page has.
    """
    names = {"index.html", "index.md", ABOUT, *files}
    there = sorted(target.iterdir()) if target.exists() else []
    if strange := [path.name for path in there if path.name not in names and path.suffix not in (".png", ".svg")]:
        raise InputError(f"{target} holds {strange[0]!r}, which no report wrote; move it or choose another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    drawn_from = digest(seen, _drawing())
    old = target if _remembered(target) == drawn_from else None
    with TemporaryDirectory(dir=target.parent, prefix=".report-") as scratch:
        new = Path(scratch) / "new"
        new.mkdir()
        saved: dict[str, list[dict[str, Any]]] = {}
        for section, drawings in figures.items():
            for each in drawings:
                if not (old and _taken_over(old, new, each.name)):
                    save(each.draw(), new, each.name)
            saved[section] = [{"alt": f.alt, "caption": f.caption, **sizes(new, f.name)} for f in drawings]
        for kind in ("html", "md"):
            text = templates().get_template(f"{template}.{kind}").render({**context, "figures": saved})
            (new / f"index.{kind}").write_text(re.sub(r"\n{3,}", "\n\n", text), encoding="utf-8")
        for name, text in files.items():
            (new / name).write_text(text, encoding="utf-8")
        about = {"figures": drawn_from, "made_from": made_from, "files": contents(new)}
        (new / ABOUT).write_text(as_json(about), encoding="utf-8")
        _replace(target, new, Path(scratch) / "old")
    return target / "index.html"


def _replace(target: Path, new: Path, away: Path) -> None:
    """Put the folder `new` in the place of `target`, which goes `away`; nothing moves where both hold the same."""
    # A run that ends and the watch that follows it may be here at once.
    with FileLock(Path(gettempdir()) / f"iar-study-{digest(str(target.absolute()))[:16]}.lock"):
        if target.exists():
            if {p.name: p.read_bytes() for p in target.iterdir()} == {p.name: p.read_bytes() for p in new.iterdir()}:
                return
            os.replace(target, away)
        os.replace(new, target)


@cache
def _drawing() -> str:
    """Return the digest of what draws: the package's code that figures pass through, and its libraries' versions."""
    here = Path(__file__).parent
    drawn_by = ("figures.py", "near_codes_figures.py", "codebook_page.py", "paper.py", "illustrations.py", "tables.py")
    code = [here / name for name in drawn_by] + [
        Path(str(module.__file__)) for module in (statistics, metrics, codebooks)
    ]
    libraries = {name: version(name) for name in ("matplotlib", "seaborn", "numpy", "pandas", "scipy", "pillow")}
    return digest([file_sha256(path) for path in code], libraries)


def _remembered(target: Path) -> str:
    """Return what the figures at `target` were drawn from; "" where it does not say."""
    try:
        return str(read_json(target / ABOUT)["figures"])
    except (InputError, OSError, KeyError, TypeError):
        return ""


def _taken_over(old: Path, new: Path, name: str) -> bool:
    """Take a figure's files over from the folder before; return whether they were there."""
    for file in (f"{name}.png", f"{name}.svg"):
        if (old / file).exists():
            (new / file).write_bytes((old / file).read_bytes())
    return (new / f"{name}.png").exists()


def as_json(value: Any) -> str:
    """Return a value as JSON for a file that people may read, always in the same order."""
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def markdown(text: object) -> str:
    r"""Return `text` so that Markdown shows it as it is, also inside a table.

    >>> markdown("a|b_c <script>")
    'a\\|b\\_c \\<script\\>'
    """
    escaped = re.sub(r"([\\`*_{}\[\]<>#|~!$&])", r"\\\1", " ".join(str(text).split()))
    # At the start of a line these would make it a list.
    return re.sub(r"^([+-]|\d+[.)])(?=\s|$)", lambda start: f"{start[0][:-1]}\\{start[0][-1]}", escaped)


def templates() -> Environment:
    """Return the environment of all page templates; text is escaped in HTML, and by the filter `md` in Markdown."""
    environment = Environment(
        loader=PackageLoader("iar_study.reporting"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["md"] = markdown
    environment.globals["GENERATOR"] = GENERATOR
    return environment
