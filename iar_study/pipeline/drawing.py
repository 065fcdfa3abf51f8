"""Samples of a training, as tokens. They are kept beside its weights, so that any evaluator can be put on them later.

Samples are drawn in parts of `SAMPLED_AT_ONCE`, each with noise of its own: the first n of more samples are those of n,
and a later call draws what is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from lightning_fabric import Fabric

from iar_study.codebook import Rearrangement
from iar_study.config import TrialConfig
from iar_study.errors import InputError
from iar_study.generators.gpt import GPT, make_generator
from iar_study.generators.sampling import generate
from iar_study.parts import changed, sources
from iar_study.pipeline.trial import HOW, tokens_file
from iar_study.storage import Kept, load_arrays, save_arrays
from iar_study.training.kept_weights import weights_file
from iar_study.training.parallel import collected, first_of
from iar_study.training.processes import n_processes, process_rank
from iar_study.training.train_gpt import noise_seed, original_order, step_seed

SAMPLED_AT_ONCE = 100
"""Samples that are drawn together: what a GPU holds of XXL, and as fast as more on a CPU."""

Progress = Callable[[int, int], None]
"""(samples drawn, in all) is called as it goes on."""


def kept_tokens(trained: Path, config: TrialConfig, step: int) -> np.ndarray | None:
    """Return the tokens (n, T) that are kept; None without any, or where other code drew them and can be asked anew."""
    path = tokens_file(trained, config, step)
    if not path.exists():
        return None
    arrays, about = load_arrays(path)
    stale = changed(about["drawn"]["makers"]) and weights_file(trained, step).exists()
    return None if stale else arrays["tokens"]


def enough_kept(trained: Path, config: TrialConfig, step: int) -> bool:
    """Whether all the samples that the config asks for are kept."""
    found = kept_tokens(trained, config, step)
    return found is not None and len(found) >= config.evaluation.samples


def drawn_tokens(
    trained: Path,
    config: TrialConfig,
    n_classes: int,
    step: int,
    model: Callable[[], GPT],
    progress_folder: Path,
    fabric: Fabric | None = None,
    show: Progress = lambda *_: None,
) -> np.ndarray:
    """Return the tokens, (evaluation.samples, T), of samples; what is not kept yet is drawn.

    Parameters
    ----------
    trained : the training's folder, which keeps them.
    model : gives the GPT after `step` steps, in the original order of the codes. With the same seed every arm then
        samples with the same noise per code.
    progress_folder : keeps what is drawn so far.
    fabric : of the processes that share the samples out; each calls this.

    Raises `InputError` for tokens that are damaged, and what `model` raises.
    """
    path = tokens_file(trained, config, step)
    of_first = partial(first_of, fabric) if fabric and n_processes() > 1 else lambda make: make()
    trained.mkdir(parents=True, exist_ok=True)
    # Two measurements of one training draw its samples once.
    with FileLock(path.with_name(f".{path.stem}.lock")) if process_rank() == 0 else nullcontext():
        tokens = of_first(partial(kept_tokens, trained, config, step))
        count = config.evaluation.samples
        if tokens is None or len(tokens) < count:
            tokens = _go_on(tokens, config, n_classes, model, progress_folder / path.name, show)
            if process_rank() == 0:
                about = {"step": step, "classes": n_classes, "makers": sources(["sampling"])}
                about |= {name: getattr(config.evaluation, name) for name in HOW}
                # Under one name: the order of several in the file is left to chance.
                save_arrays(path, {"tokens": tokens}, {"drawn": about})
    return tokens[:count]


def _go_on(
    before: np.ndarray | None, config: TrialConfig, n_classes: int, model: Callable[[], GPT], path: Path, show: Progress
) -> np.ndarray:
    """Draw the whole parts that `before` lacks, shared out over the processes, and return all, in every process."""
    done, count = 0 if before is None else len(before) // SAMPLED_AT_ONCE, config.evaluation.samples
    asked = range(done, -(-count // SAMPLED_AT_ONCE))
    kept = Kept(path.with_name(f"{path.stem}-{process_rank()}.safetensors"))
    drawn = {int(part): tokens for part, tokens in kept.arrays().items() if int(part) in asked}
    gpt = None
    for part in asked[process_rank() :: n_processes()]:
        if part not in drawn:
            gpt = gpt or model()
            drawn[part] = draw(gpt, config, part, n_classes)
            kept.offer(lambda: {str(part): tokens for part, tokens in drawn.items()})
        show(min((part + 1) * SAMPLED_AT_ONCE, count), count)
    everyone = {part: tokens for some in collected(drawn) for part, tokens in some.items()}
    return np.concatenate([*([] if before is None else [before]), *(everyone[part] for part in asked)])


def draw(model: GPT, config: TrialConfig, part: int, n_classes: int) -> np.ndarray:
    """Draw the tokens, uint16 or int32 (SAMPLED_AT_ONCE, T), of one part of a trial's samples, with its own noise."""
    device, seed = config.compute.device, noise_seed(config.seed, config.evaluation.noise)
    sample = getattr(model, "sample", None) or partial(generate, model)  # one's own may not draw token by token
    tokens = sample(
        torch.from_numpy(_classes_of_part(config, n_classes, part)).to(device),
        cfg_scale=config.evaluation.guidance,
        temperature=config.evaluation.temperature,
        generator=torch.Generator(device).manual_seed(step_seed(seed, part)),
    )
    return tokens.cpu().numpy().astype(np.uint16 if config.tokenizer.codebook_size <= 2**16 else np.int32)


def sampled_classes(config: TrialConfig, n_classes: int) -> np.ndarray:
    """Return the class, int64 (evaluation.samples,), that each sample is drawn of."""
    count = config.evaluation.samples
    parts = range(-(-count // SAMPLED_AT_ONCE))
    return np.concatenate([_classes_of_part(config, n_classes, part) for part in parts])[:count]


def _classes_of_part(config: TrialConfig, n_classes: int, part: int) -> np.ndarray:
    if config.evaluation.classes == "in turn":
        first = part * SAMPLED_AT_ONCE
        return np.arange(first, first + SAMPLED_AT_ONCE) % n_classes
    seed = noise_seed(config.seed, config.evaluation.noise)
    return np.random.default_rng(step_seed(seed, part, 2)).integers(n_classes, size=SAMPLED_AT_ONCE)


def load_model(trained: Path, config: TrialConfig, n_classes: int, grid: int, step: int) -> GPT:
    """Return the GPT of a training's folder after `step` steps, in the arm's order of codes, on the trial's device.

    Raises `InputError` where its weights are not there.
    """
    path = weights_file(trained, step)
    if not path.exists():
        at = [int(path.stem.partition("-")[2]) for path in sorted(trained.glob("weights-*.safetensors"))]
        where = f"its weights were kept after steps {', '.join(map(str, at))}" if at else "none of its weights are here"
        raise InputError(
            f"training {trained.name} has no weights of step {step}: {where}; run its study, which trains it again"
        )
    model = make_generator(config.model, config.tokenizer.codebook_size, n_classes, grid)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in load_arrays(path)[0].items()})
    return model.to(config.compute.device).eval()


def sampling_model(trained: Path, config: TrialConfig, n_classes: int, grid: int, step: int) -> GPT:
    """Return the same in the original order of the codes; raises `InputError` as `load_model`."""
    model = load_model(trained, config, n_classes, grid, step)
    return original_order(model, Rearrangement.load(trained / "codebook.safetensors"))
