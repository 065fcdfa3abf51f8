"""One training, of a GPT, a tokenizer or a classifier: loop, checkpoints, journal, processes. It knows no study."""
