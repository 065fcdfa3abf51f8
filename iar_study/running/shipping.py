"""Make the evaluators that the package ships: `python -m iar_study.running.shipping DATA FILE`, as `make` does.

DATA is `fashion-mnist`, or `folder:PATH` of pictures, taken at 32 pixels. What was killed goes on. Another machine's
weights have other bits, and so other names: a file is made anew only where the version of its makers was raised.
"""

from __future__ import annotations

import sys
from pathlib import Path

from iar_study.config import ClassifierConfig, DataConfig
from iar_study.data.images import Images, load_images
from iar_study.pipeline.making import make_evaluators
from iar_study.pipeline.stages import Progress
from iar_study.running.display import Display
from iar_study.storage import load_arrays, save_arrays


def ship(images: Images, config: ClassifierConfig, path: Path, progress: Progress) -> None:
    """Make the set that a study of these images would make, and write it without the source of its makers.

    What their source is then never matters: these bits are to stay, only another version is another set.
    """
    made = path.with_suffix(".made")
    make_evaluators(made, images, config, progress)
    arrays, about = load_arrays(made)
    save_arrays(path, arrays, {**about, "makers": {}})
    made.unlink()


if __name__ == "__main__":
    with Display() as display:
        ship(load_images(DataConfig(sys.argv[1])), ClassifierConfig(), Path(sys.argv[2]), display.update)
