"""Images and codes in, with class labels, and the order in which training reads them. Only `encoding` needs torch."""

from iar_study.data.batches import batch_indices
from iar_study.data.images import Images, data_folder, load_images

__all__ = ["Images", "batch_indices", "data_folder", "load_images"]
