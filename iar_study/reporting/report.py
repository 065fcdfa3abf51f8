"""A study's report: one HTML page, the same as Markdown, tables in LaTeX, figures and numbers, all from a `Results`.

The same results give the same bytes: no dates, no machine names, and figures without metadata.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from collections.abc import Hashable, Mapping, Sequence
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from matplotlib.colors import to_hex

from iar_study.errors import InputError
from iar_study.evaluation import metrics
from iar_study.evaluation.metrics import LIKENESS, REPLACED, metric_named
from iar_study.reporting import figures
from iar_study.reporting.illustrations import CURVES, findings_in_words, illustrations, save, sizes
from iar_study.reporting.latex import latex_tables
from iar_study.reporting.tables import (
    BY_CHANCE,
    WRONG_TOKEN,
    comparison,
    comparison_tables,
    design_tables,
    headline,
    seeds_of,
    target_tables,
    verdict_rows,
    wrong_tokens,
)
from iar_study.storage import digest, read_json
from iar_study.study import published, statistics
from iar_study.study.claims import Verdict
from iar_study.study.plan import plural
from iar_study.study.results import Results
from iar_study.study.status import Status

VERDICT_COLUMNS = ("claim", "sentence", "study", "verdict", "evidence", "rule", "source", "limits")
GENERATOR = "iar-study"

ABOUT = "report.json"
"""What a report remembers: the digest of all that its figures were drawn from."""

FILES = ("index.html", "index.md", "tables.tex", "results.csv", "verdicts.csv", "trials.json", ABOUT)
"""Of a report, beside its figures."""


def conclusion(results: Results) -> str:
    """Say in one sentence what the comparison shows and what it does not, by rule, never beyond its intervals."""
    where = f"On {_scale_in_short(results)}, "
    limit = "none of it says anything about other data or other sizes."
    others = results.compared
    if not others:
        return f"{where}only the baseline {results.baseline} was run, so nothing is compared; {limit}"
    clauses, inconclusive = [], False
    for metric, key in headline(results):
        if key is None:
            clauses.append(f"{metric.label} was not measured")
            continue
        table = comparison(results, key).loc[others]
        clauses.append(f"{metric.label} is {findings_in_words(table, metric.digits)}")
        inconclusive |= bool((table["finding"] == "inconclusive").any())
    caveat = "inconclusive means that no difference was shown, which does not show equality either; "
    return (
        f"{where}compared with {results.baseline_in_words} seed by seed (95% intervals in brackets): "
        f"{'; '.join(clauses)}; {caveat if inconclusive else ''}{limit}"
    )


def _scale_in_short(results: Results) -> str:
    scale = results.scale
    # "28 x 28 pixels, 1 channel" and "GPT, 0.28 M weights: 4 layers, ..." are told in full further down.
    size = str(scale.get("image size", "image size not stated")).partition(",")[0]
    model = str(scale["model"]).partition(":")[0] if "model" in scale else "no GPT"
    parts = [size, model, plural(len(seeds_of(results)), "seed")]
    if len(results.missing):
        asked = len(pd.concat([results.final, results.missing])[["arm", "seed"]].drop_duplicates())
        counts = results.missing["status"].value_counts().sort_index()
        parts.append(f"of {asked} trials " + ", ".join(f"{n} {status}" for status, n in counts.items()))
    return f"{scale.get('data set', 'a data set not stated')} ({'; '.join(parts)})"


def _context(results: Results, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    tables, wrong = comparison_tables(results), wrong_tokens(results)
    shown = [entry["key"] for table in tables for entry in table["compared"]]
    shown += [WRONG_TOKEN, BY_CHANCE] if wrong else []
    if results.kind == "near-codes":
        shown += [key for kind in REPLACED for name in LIKENESS if (key := f"{kind}/{name}") not in shown]
    shown += [metric for metric in dict(CURVES) if metric in set(results.curves["metric"]) and metric not in shown]
    arms = _arms(results)
    return {
        "results": results,
        "conclusion": conclusion(results),
        "colors": {arm: to_hex(color) for arm, color in figures.arm_colors(results).items()},
        "verdicts": verdict_rows(verdicts),
        "tables": tables,
        "metrics_compared": (sum(len(table["compared"]) for table in tables) + bool(wrong)) * bool(results.compared),
        "wrong": wrong,
        "designs": design_tables(results),
        "targets": target_tables(results),
        "metrics": [{"key": key, "about": metric_named(key)} for key in shown],
        "scale": {"profile": results.profile, **results.scale},
        "missing": [
            {**trial, "ending": _ending(trial)} for trial in _in_order(results, results.missing).to_dict("records")
        ],
        "arms": arms,
        "anchors": {arm["name"]: arm["id"] for arm in arms},
        "published": published,
    }


def _ending(trial: Mapping[Hashable, Any]) -> str:
    """Say how a missing trial ended, and where."""
    if math.isnan(trial["step"]):
        return trial["status"]
    return f"{trial['status']}{'' if trial['status'] == 'diverged' else ','} at step {trial['step']:.0f}"


def _in_order(results: Results, frame: pd.DataFrame) -> pd.DataFrame:
    """Sort by arm in the study's order, then by seed, then by metric."""
    rank = {arm: i for i, arm in enumerate(results.arms)}
    keys = ["arm", *(key for key in ("seed", "metric") if key in frame)]
    return frame.sort_values(keys, key=lambda column: column.map(rank) if column.name == "arm" else column)


def _origin(results: Results) -> dict[str, Any]:
    """Return what a number can be followed to: the settings that all trials share, and of each its own and the rest."""
    configs = [trial["config"] for trial in results.trials]
    first = configs[0] if configs else {}
    common = {key: value for key, value in first.items() if all(config.get(key) == value for config in configs)}
    trials = [
        {**trial, "config": {key: value for key, value in trial["config"].items() if key not in common}}
        for trial in sorted(results.trials, key=lambda trial: (list(results.arms).index(trial["arm"]), trial["seed"]))
    ]
    return {"study": results.study, "config": common, "trials": trials}


def _arms(results: Results) -> list[dict[str, Any]]:
    """Return, for every arm, its anchor on the page, the settings that not all arms share, and its trials."""
    origin = _origin(results)
    arms = []
    for i, arm in enumerate(results.arms):
        trials = [
            {
                **trial,
                "commit": trial["code"]["commit"][:10] + (" (changed)" if trial["code"]["dirty"] else ""),
                "digest": trial["data"]["digest"][:10],
                "machine": f"{trial['environment']['machine']}, {trial['environment']['cpu_capability']}",
                "versions": f"Python {trial['environment']['python']}, torch {trial['environment']['torch']}",
            }
            for trial in origin["trials"]
            if trial["arm"] == arm
        ]
        own = {key: value for trial in trials for key, value in trial["config"].items()}
        settings = {key: value for key, value in own.items() if not key.endswith("seed")}
        arms.append({"name": arm, "id": f"arm-{i + 1}", "settings": settings, "trials": trials})
    return arms


def write_report(
    results: Results, folder: Path, verdicts: Sequence[Verdict] = (), status: Sequence[Status] = ()
) -> Path:
    """Write `folder/STUDY/` with its pages, figures, tables and numbers; return the path of the HTML page.

    A report that is already there is replaced as a whole, once the new one is complete. Figures are drawn again only
    where what they show has changed, and files that would be the same are left as they are.

    Parameters
    ----------
    verdicts : on the claims that this study tests.
    status : how far its trials are, where the study still runs: the page then shows it, and renews itself.
    """
    target = _target(results, folder)
    folder.mkdir(parents=True, exist_ok=True)
    shown = illustrations(results)
    drawn_from = digest(_seen(results), _drawing())
    old = target if _remembered(target) == drawn_from else None
    with TemporaryDirectory(dir=folder, prefix=".report-") as scratch:
        new = Path(scratch) / "new"
        new.mkdir()
        context = _context(results, verdicts) | {"figures": {}, "status": status}
        for section, drawings in shown.items():
            context["figures"][section] = []
            for each in drawings:
                if not (old and _taken_over(old, new, each.name)):
                    save(each.draw(), new, each.name)
                about = {"alt": each.alt, "caption": each.caption, **sizes(new, each.name)}
                context["figures"][section].append(about)
        for template, name in (("report.html", "index.html"), ("report.md", "index.md")):
            text = templates().get_template(template).render(context)
            (new / name).write_text(re.sub(r"\n{3,}", "\n\n", text), encoding="utf-8")
        (new / "tables.tex").write_text(latex_tables(results), encoding="utf-8")
        _in_order(results, results.final).to_csv(new / "results.csv", index=False, lineterminator="\n")
        judged = pd.DataFrame(context["verdicts"], columns=list(VERDICT_COLUMNS))
        judged.to_csv(new / "verdicts.csv", index=False, lineterminator="\n")
        (new / "trials.json").write_text(_json(_origin(results)), encoding="utf-8")
        (new / ABOUT).write_text(_json({"figures": drawn_from}), encoding="utf-8")
        replace_folder(target, new, Path(scratch) / "old")
    return target / "index.html"


def replace_folder(target: Path, new: Path, away: Path) -> None:
    """Put the folder `new` in the place of `target`, which goes `away`; nothing moves where both hold the same."""
    if target.exists():
        if {p.name: p.read_bytes() for p in target.iterdir()} == {p.name: p.read_bytes() for p in new.iterdir()}:
            return
        os.replace(target, away)
    os.replace(new, target)


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _seen(results: Results) -> str:
    """Return the digest of all that figures and their captions may show of results."""
    parts: list[Any] = []
    for name, value in sorted(vars(results).items()):
        if isinstance(value, pd.DataFrame):
            parts += [name, value.sort_values(list(value.columns)).to_csv(index=False)]
        elif name in ("samples", "reconstructions", "replaced"):
            parts += [name, *(part for key in value for part in (key, value[key]))]
        elif name == "positions":
            parts += [name, *(part for arm in value for key in value[arm] for part in (arm, key, value[arm][key]))]
        elif name not in ("trials", "scale", "command", "settings", "exact", "data"):
            parts += [name, value]
    return digest(*parts)


@cache
def _drawing() -> str:
    """Return the digest of what draws: the package's code that figures pass through, and its libraries' versions."""
    code = [Path(__file__).parent / name for name in ("figures.py", "near_codes.py", "illustrations.py", "tables.py")]
    code += [Path(str(module.__file__)) for module in (statistics, metrics)]
    libraries = {name: version(name) for name in ("matplotlib", "seaborn", "numpy", "pandas", "scipy", "pillow")}
    return digest([sha256(path.read_bytes()).hexdigest() for path in code], libraries)


def _remembered(target: Path) -> str:
    """Return what the figures of the report at `target` were drawn from; "" where it does not say."""
    try:
        return str(read_json(target / ABOUT)["figures"])
    except (InputError, OSError, KeyError, TypeError):
        return ""


def _taken_over(old: Path, new: Path, name: str) -> bool:
    """Take a figure's files over from the report before; return whether they were there."""
    for file in (f"{name}.png", f"{name}.svg"):
        if (old / file).exists():
            (new / file).write_bytes((old / file).read_bytes())
    return (new / f"{name}.png").exists()


def _target(results: Results, folder: Path) -> Path:
    """Return the report's folder; refuse one that is outside `folder`, or that holds what no report has."""
    name = results.study
    if not name or name.startswith(".") or "/" in name or "\0" in name:
        raise InputError(f"study name {name!r} cannot name a folder; rename the study")
    if results.final.empty:
        raise InputError(f"study {name!r} has no finished trial to report; `iar-study run {shlex.quote(name)}` first")
    target = folder / name
    strange = sorted(
        path.name
        for path in (target.iterdir() if target.exists() else ())
        if path.name not in FILES and path.suffix not in (".png", ".svg")
    )
    if strange:
        raise InputError(f"{target} holds {strange[0]!r}, which no report wrote; move it or choose another folder")
    return target


def markdown(text: object) -> str:
    r"""Return `text` so that Markdown shows it as it is, also inside a table.

    >>> markdown("a|b_c <script>")
    'a\\|b\\_c \\<script\\>'
    """
    escaped = re.sub(r"([\\`*_{}\[\]<>#|~!$&])", r"\\\1", " ".join(str(text).split()))
    # At the start of a line these would make it a list.
    return re.sub(r"^([+-]|\d+[.)])(?=\s|$)", lambda start: f"{start[0][:-1]}\\{start[0][-1]}", escaped)


def templates() -> Environment:
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
