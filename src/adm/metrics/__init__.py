"""Numbers that compare sets of images: features, and a file for each metric, found by its name."""

from adm.metrics._clean_classifier import CleanClassifier
from adm.metrics._distances import nearest_neighbour
from adm.metrics._features import Features, Metric, Statistics, pixel_features
from adm.metrics._frechet import frechet_distance

__all__ = [
    "CleanClassifier",
    "Features",
    "Metric",
    "Statistics",
    "frechet_distance",
    "nearest_neighbour",
    "pixel_features",
]
