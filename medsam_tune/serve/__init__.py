"""A tuned model behind nnInteractive's HTTP protocol, so that napari and 3D Slicer ask it with the clients they have."""
