"""Images, masks and splits: sources, transforms, batches, and the data module that training sees."""
