"""Does cluster-oriented token prediction (IAR, CVPR 2025) hold? A workbench that answers with evidence.

The way of the data, one room a step: `data` (images) -> `tokenizers` (codes) -> `codebook` (clustering and
rearrangement) -> `training` of `generators` with `losses` -> `evaluation` (samples and metrics). `study` says what is
asked, `pipeline` makes it, `running` has it made, `tracking` shows it in MLflow, `evidence` says what was found and
`reporting` draws it. `config` holds every knob.
"""

__version__ = "0.1.0"
