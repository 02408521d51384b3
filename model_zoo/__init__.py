"""Networks by family, published checkpoints, and teacher-student pairs with their recipes.

The networks register themselves in ``registry.BACKBONES``, which imports their files at the first look-up; importing
this package imports none of them.
"""

from __future__ import annotations

from model_zoo.checkpoints import Loaded, fetch, load_weights, read_metadata, save_weights
from model_zoo.pairs import OTHER_SOURCES, PAIRS, Pair, Recipe, find_pair, recipe_for, usual_teacher
from model_zoo.preprocessing import Preprocessing, preprocessing_of, set_preprocessing
from model_zoo.probe import probe
from model_zoo.published import PUBLISHED, Published, load_published
from model_zoo.recipes import METHOD_OPTIONS, METHOD_RECIPES, method_options, method_recipe

__all__ = [
    "METHOD_OPTIONS",
    "METHOD_RECIPES",
    "OTHER_SOURCES",
    "PAIRS",
    "PUBLISHED",
    "Loaded",
    "Pair",
    "Preprocessing",
    "Published",
    "Recipe",
    "fetch",
    "find_pair",
    "load_published",
    "load_weights",
    "method_options",
    "method_recipe",
    "preprocessing_of",
    "probe",
    "read_metadata",
    "recipe_for",
    "save_weights",
    "set_preprocessing",
    "usual_teacher",
]
