"""Runs as objects with a folder: built from a recipe, trained, tested, exported, reported, reloaded."""
