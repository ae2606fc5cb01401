"""Images and labels: ADM's crops, batches as a function of (seed, position), and a file for each data set."""

from adm.data._dataset import Dataset, open_dataset
from adm.data._images import (
    center_crop,
    decode,
    grid,
    png_bytes,
    random_crop,
    save_png,
    to_model_range,
    to_uint8,
)
from adm.data._loader import Batch, Loader
from adm.data._sample_set import SampleSet, write_npz

__all__ = [
    "Batch",
    "Dataset",
    "Loader",
    "SampleSet",
    "center_crop",
    "decode",
    "grid",
    "open_dataset",
    "png_bytes",
    "random_crop",
    "save_png",
    "to_model_range",
    "to_uint8",
    "write_npz",
]
