"""A file for each feature extractor, found by its name."""
