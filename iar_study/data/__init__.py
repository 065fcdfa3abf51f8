"""Images in, as uint8 arrays with class labels, and the order in which training reads them. No torch here."""

from iar_study.data.batches import batch_indices
from iar_study.data.images import Images, data_folder, load_images

__all__ = ["Images", "batch_indices", "data_folder", "load_images"]
