"""Images and labels: ADM's crops, batches as a function of (seed, position), and a file for each data set."""

from adm.data._class_numbers import class_numbers
from adm.data._dataset import Dataset, open_dataset, refuse_within
from adm.data._image_source import ImageSource, open_images, subset
from adm.data._images import center_crop, decode, random_crop
from adm.data._labels import describe_difference
from adm.data._listing import leaving_out_by
from adm.data._loader import Batch, Loader
from adm.data._npz import NoImagesError
from adm.data._npz_writer import NpzWriter, write_reference
from adm.data._overview import overview
from adm.data._pictures import grid, png_bytes, save_png, to_model_range, to_uint8
from adm.data._sample_set import SampleSet, write_npz
from adm.data._statistics import stored_statistics

__all__ = [
    "Batch",
    "Dataset",
    "ImageSource",
    "Loader",
    "NoImagesError",
    "NpzWriter",
    "SampleSet",
    "center_crop",
    "class_numbers",
    "decode",
    "describe_difference",
    "grid",
    "leaving_out_by",
    "open_dataset",
    "open_images",
    "overview",
    "png_bytes",
    "random_crop",
    "refuse_within",
    "save_png",
    "stored_statistics",
    "subset",
    "to_model_range",
    "to_uint8",
    "write_npz",
    "write_reference",
]
