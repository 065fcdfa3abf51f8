"""Does cluster-oriented token prediction (IAR, CVPR 2025) hold? A workbench that answers with evidence.

The way of the data, one package a step: `data` (images) -> `models.vq` (tokenizer) -> `codebook` (clustering and
rearrangement) -> `training` (a GPT on the permuted codes) -> `evaluation` (samples and metrics) -> `study` (arms,
seeds, tracking, statistics) -> `reporting` (tables, figures, the report). `config` holds every knob.
"""

__version__ = "0.1.0"
