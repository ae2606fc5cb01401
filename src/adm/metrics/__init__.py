"""Numbers that compare sets of images: features, and a file for each metric, found by its name."""

from adm.metrics._clean_classifier import CleanClassifier
from adm.metrics._features import Features, Metric, Statistics, pixel_features
from adm.metrics._frechet import frechet_distance
from adm.metrics._jackknife import jackknife
from adm.metrics._nearest_report import NearestReport
from adm.metrics._neighbours import nearest_neighbour

__all__ = [
    "CleanClassifier",
    "Features",
    "Metric",
    "NearestReport",
    "Statistics",
    "frechet_distance",
    "jackknife",
    "nearest_neighbour",
    "pixel_features",
]
