"""A study's results at a terminal: one table of means, or the tidy frame as a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import pandas as pd

from iar_study.errors import InputError
from iar_study.evaluation.metrics import metric_named
from iar_study.evidence.results import Results
from iar_study.reporting.needs_text import aligned
from iar_study.reporting.tables import ending, number
from iar_study.storage import replacing

STDOUT = "-"


def results_text(results: Results) -> str:
    """Return the mean of every metric and arm over its seeds, arms beside each other, and what is not finished."""
    arms = list(results.arms)
    finite = results.final[results.final["value"].abs() < float("inf")]  # of a diverged trial it is NaN
    means = finite.pivot_table(index="metric", columns="arm", values="value", aggfunc=["mean", "count"])
    rows = [["metric", *(f"{arm} *" if arm == results.baseline else arm for arm in arms), ""]]
    seeds = finite.groupby("arm")["seed"].nunique()
    rows.append(["n, seeds", *(str(seeds.get(arm, 0)) for arm in arms), ""])
    for key in dict.fromkeys(results.final["metric"]):
        metric = metric_named(key, [key])
        cells = []
        for arm in arms:
            count = means["count"].get(arm, pd.Series(dtype=float)).get(key, 0) if len(means) else 0
            text = number(means["mean"][arm][key], metric.digits) if count else number(float("nan"), 0)
            cells.append(text + (f" (n={count:.0f})" if 0 < count < seeds[arm] else ""))
        rows.append([key, *cells, metric.direction])
    missing = results.missing.to_dict("records")
    lost = [f"  {row['arm']}, seed {row['seed']}: {ending(row['status'], row['step'])}" for row in missing]
    return "\n".join(
        [
            f"{results.study} at {results.profile}: means over seeds; * is the baseline",
            *aligned(rows),
            *(["without", *lost] if lost else []),
        ]
    )


def export_results(results: Results, path: str, form: Literal["csv", "parquet"], *, curves: bool = False) -> int:
    """Write the tidy frame, atomically, and return its rows.

    Parameters
    ----------
    path : "-" prints CSV.
    curves : one row per trial, metric and training step, in place of one per trial and metric.

    Raises
    ------
    InputError : the file cannot be written, or what writes Parquet is not installed.
    """
    frame = results.curves if curves else results.final
    if path == STDOUT and form == "parquet":
        raise InputError("Parquet is not printed; name a file, or take --csv -")
    if form == "csv":
        return write_csv(frame, path)
    with replacing(Path(path)) as temporary:
        try:
            frame.to_parquet(temporary, index=False)
        except ImportError as error:
            raise InputError("Parquet needs pyarrow, which MLflow brings: pip install pyarrow") from error
    return len(frame)


def write_csv(frame: pd.DataFrame, path: str) -> int:
    """Write a table as CSV, atomically, and return its rows; "-" prints it."""
    if path == STDOUT:
        frame.to_csv(sys.stdout, index=False)
    else:
        with replacing(Path(path)) as temporary:
            frame.to_csv(temporary, index=False)
    return len(frame)
