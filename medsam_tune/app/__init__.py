"""A page in the browser: an image or a volume, a box or a click, the mask, a correction, new training data."""
