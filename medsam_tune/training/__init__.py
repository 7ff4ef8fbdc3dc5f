"""The LightningModule, its callbacks, the run folder and the run itself."""
