"""Which MLflow store the runs go to, and what can be told of it without MLflow, whose import takes seconds."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Collection
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote, urlsplit

from iar_study.errors import InputError, nearest
from iar_study.pipeline.workspace import Workspace

SERVERS = ("http", "https", "databricks")
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")


def store_uri(workspace: Workspace) -> str:
    """Return the tracking store: `MLFLOW_TRACKING_URI`, else SQLite in the workspace."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{workspace.store}"
    if uri.startswith("postgresql:") and find_spec("psycopg2"):
        # The driver that the extra `postgres` installs; which one SQLAlchemy takes else depends on its version.
        return uri.replace("postgresql:", "postgresql+psycopg2:", 1)
    return uri


def check_store(uri: str) -> None:
    """Raise `InputError` for an address that can never be a store, whether or not one is up."""
    hint = "use http(s)://HOST:PORT of a server, postgresql://USER@HOST/NAME or sqlite:///PATH"
    told = f"MLFLOW_TRACKING_URI = {shown(uri)}"
    scheme = uri.partition(":")[0].partition("+")[0]  # postgresql+psycopg2 names the driver as well
    if scheme == "file" or (":" not in uri and scheme != "databricks"):
        raise InputError(f"{told}: MLflow's store of plain files is not supported; {hint}")
    if scheme not in SERVERS + DATABASES:
        known = nearest(scheme, [*SERVERS, *DATABASES])
        raise InputError(f"{told}: no store is called {scheme}:, {known}; {hint}")
    if scheme not in DATABASES:
        try:
            fits = scheme == "databricks" or (bool(urlsplit(uri).hostname) and urlsplit(uri).port != 0)
        except ValueError:  # a port that is no number
            fits = False
        if not fits:
            raise InputError(f"{told}: it names no server; {hint}")
        return
    # Here, not on top: a study that is finished and recorded needs none of it.
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    try:
        url = make_url(uri)
        url.get_dialect().import_dbapi()
    except ImportError as error:
        install = "pip install 'iar-study[postgres]'" if scheme == "postgresql" else f"pip install {error.name}"
        raise InputError(f"{told}: its driver {error.name} is not installed; {install}") from error
    except SQLAlchemyError as error:
        raise InputError(f"{told}: {str(error).strip().partition(chr(10))[0]}; {hint}") from error
    if url.database in (None, "", ":memory:"):
        raise InputError(f"{told}: it names no database; {hint}")
    path = Path(str(url.database))
    if scheme == "sqlite" and path.is_file():
        with open(path, "rb") as file:
            begins = file.read(16)
        if begins not in (b"", b"SQLite format 3\0"):
            raise InputError(f"cannot use the MLflow store {uri}: it is no database; move it away")


def shown(uri: str) -> str:
    """Return the address without its password."""
    return re.sub(r"(?<=:)[^:@/]*(?=@)", "***", uri)


def holds_finished(uri: str, runs: Collection[str]) -> bool:
    """Whether the store is one of SQLite that shows all these runs, by their ids, and their study's as finished."""
    path = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or not path.is_file() or not all(runs):
        return False
    query = f"""
        SELECT COUNT(*) FROM runs AS trial
        JOIN tags ON tags.run_uuid = trial.run_uuid AND tags.key = 'mlflow.parentRunId'
        JOIN runs AS study ON study.run_uuid = tags.value
        WHERE trial.lifecycle_stage = 'active' AND trial.status = 'FINISHED'
        AND study.lifecycle_stage = 'active' AND study.status = 'FINISHED'
        AND trial.run_uuid IN ({", ".join("?" * len(runs))})"""
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as connection:
            (found,) = connection.execute(query, list(runs)).fetchone()
    except sqlite3.Error:  # of another version, or at work: MLflow will say
        return False
    return found == len(set(runs))
