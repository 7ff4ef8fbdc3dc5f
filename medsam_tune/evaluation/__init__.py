"""How good a model is, beside what the untuned one reaches, and how that is shown."""
