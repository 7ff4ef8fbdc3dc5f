"""The tiny workplace and its finished run, as the training room's tests have them."""

from tests.training.conftest import _own_process, finished, workplace

__all__ = ["_own_process", "finished", "workplace"]
