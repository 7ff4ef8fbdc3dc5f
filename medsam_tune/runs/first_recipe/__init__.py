"""The first recipe of a folder of one's own: method, length, cost and text, by stated rules."""

from medsam_tune.runs.first_recipe.build import FirstRecipe, make_first_recipe
from medsam_tune.runs.first_recipe.method import Means, Method, choose_method

__all__ = ["FirstRecipe", "Means", "Method", "choose_method", "make_first_recipe"]
