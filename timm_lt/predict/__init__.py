"""Predictions of the images of a file, folder, list or dataset, as a table of class names and probabilities.

- ``sources``: what is read, in order, and without holding more than a few batches.
- ``network``: what a checkpoint says of a batch.
- ``tables``: CSV, Parquet and JSONL.
- ``parts``: a long run is written in parts, and goes on after an interruption.
"""

from .network import Prediction, predict_images
from .run import Summary, predict
from .sources import ImageSource, open_source

__all__ = ['ImageSource', 'Prediction', 'Summary', 'open_source', 'predict', 'predict_images']
