"""Trainings of before there were folders of their own: a trial's folder held the weights, which move to one."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from iar_study.config import training_identity
from iar_study.pipeline.trial import TRAINED_ON, Training
from iar_study.pipeline.workspace import Workspace, config_of, is_finished, read_record
from iar_study.storage import write_json, write_text
from iar_study.training.journal import read_journal
from iar_study.training.kept_weights import weights_file

OLD_WEIGHTS = "weights.safetensors"


def training_of(record: dict[str, Any]) -> str:
    """Return the hash of the training that a trial's record tells of, or that it would have today."""
    return record.get("training") or Training(config_of(record), record["inputs"]).plain


def carry_over(workspace: Workspace) -> None:
    """Give the training of every finished trial of before a folder of its own; a kill leaves each where it was."""
    for weights in sorted(workspace.trials.glob(f"*/{OLD_WEIGHTS}")):
        if is_finished(weights.parent):
            _carry_over(weights.parent, workspace)


def _carry_over(folder: Path, workspace: Workspace) -> None:
    record = read_record(folder)
    config = config_of(record)
    target = workspace.trainings / training_of(record)
    if not is_finished(target):
        scratch = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        scratch.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / OLD_WEIGHTS, weights_file(scratch, config.train.steps))
        shutil.copyfile(folder / "codebook.safetensors", scratch / "codebook.safetensors")
        points = read_journal(folder / "journal.jsonl")
        told = ("train/loss", "train/token_nll", "train/own_cluster_nll", "train/grad_norm", "train/lr", "speed/")
        for point in points:
            point["metrics"] = {key: value for key, value in point["metrics"].items() if key.startswith(told)}
        write_text(scratch / "journal.jsonl", "".join(json.dumps(point) + "\n" for point in points if point["metrics"]))
        kept = {key: record[key] for key in ("seed", "data", "parameters", "code", "environment")}
        inputs = {name: record["inputs"][name] for name in TRAINED_ON}
        made = {"makers": record.get("makers", {}), "config": training_identity(config)}
        write_json(scratch / "training.json", {**kept, **made, "hash": target.name, "inputs": inputs})
        write_json(scratch / "result.json", {"status": "finished", "step": config.train.steps})
        shutil.rmtree(target, ignore_errors=True)  # of what began, and had less
        scratch.rename(target)
    (folder / OLD_WEIGHTS).unlink()
