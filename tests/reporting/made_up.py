"""Claims on made-up studies, and changes of their results."""

from dataclasses import replace

import numpy as np
import pandas as pd

from iar_study.evidence.claims import Claim, Past
from iar_study.evidence.rules import Better, Exact, NotTested

FD, NLL = "fd/classifier@2k", "val/token_nll"
ODD = "<script>alert('1')</script> 50% a_b|c*d `e` [f](g)"


def claim(name, rule, study="components", **changed):
    told = {"sentence": f"It is said: {name}.", "source": "the abstract", "limits": "Else none.", "kind": "effect"}
    return Claim(name, **told | {"past": Past("2026-11-27", after_data=False)} | changed, study=study, rule=rule)


CLAIMS = [
    claim("iar helps", Better("iar", "fd")),
    claim("random clusters help", Better("random", "fd")),
    claim("the order helps", Better("rearranged", "val/token_nll")),
    claim("plain helps", Better("plain", "fd")),
    claim("the order is free", Exact("equivariance", 1e-9), kind="identity"),
    claim("balance helps", Better("balanced", "fd"), study="balance"),
    claim("all generators", NotTested("one generator is built here"), study=None),
]
ANSWERS = ("better", "worse", "undecided", "not tested", "holds")
"""The answers to those that the study `components` tests."""


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def ascii_minus(text):
    return text.replace("\N{MINUS SIGN}", "-")


def light(results):
    """Drop what takes long to draw and is not looked at."""
    final = results.final[results.final["metric"].isin([FD, NLL])]
    return replace(results, curves=results.curves[:0], final=final, positions={})


def without(results, arm):
    return replace(
        results,
        final=results.final[results.final["arm"] != arm],
        curves=results.curves[results.curves["arm"] != arm],
        samples={name: grid for name, grid in results.samples.items() if name != arm},
        positions={name: of for name, of in results.positions.items() if name != arm},
        missing=pd.DataFrame({"arm": arm, "seed": [0, 1, 2], "status": "not finished", "step": [40.0, np.nan, np.nan]}),
    )


def with_values(results, metric, arm, values):
    """Give the seeds of an arm these values."""
    final = results.final.copy()
    final.loc[(final["metric"] == metric) & (final["arm"] == arm), "value"] = values
    return replace(results, final=final)


def values_of(results, metric, arm):
    final = results.final
    return final.loc[(final["metric"] == metric) & (final["arm"] == arm), "value"].to_numpy()
