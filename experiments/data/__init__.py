"""Image classification data from whatever the machine offers, served through the TFDS API.

>>> from experiments.data import load
>>> digits = load("digits", cache_dir=getfixture("tmp_path"))
>>> digits.train_images.shape, digits.train_images.dtype, digits.num_classes
((1498, 8, 8, 1), dtype('uint8'), 10)
"""

from experiments.data.dataset import Attempt, Dataset, DatasetUnavailableError
from experiments.data.sources import load

__all__ = ["Attempt", "Dataset", "DatasetUnavailableError", "load"]
