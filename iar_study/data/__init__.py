"""Images and codes in, with class labels, and the order in which training reads them."""

from iar_study.data.images import Images, data_folder, load_images

__all__ = ["Images", "data_folder", "load_images"]
