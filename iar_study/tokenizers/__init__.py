"""Images to codes and back: patch VQ, which is trained here, and LlamaGen's VQ, which is read. No generator here."""
