"""The jobs that fill caches, the predictor, and prediction files."""
