"""The LlamaGen-style GPT: its blocks, sampling, its cost by shapes, and LlamaGen's checkpoints. Nothing of training."""
