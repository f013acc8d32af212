"""The recipe of a run: its schema, and how a YAML file and overrides become one. No torch in here."""

from malora_cli.recipe.loading import COMMAND_LINE, DEFAULT, LoadedRecipe, load_recipe, recipe_of_model
from malora_cli.recipe.mix_settings import (
    Columns,
    HoldoutSettings,
    LengthPolicy,
    MixSettings,
    References,
    SourceSettings,
    TaskSettings,
    ValidationSettings,
)
from malora_cli.recipe.packaged import data_beside, description_of, needs_of, shipped, shipped_files
from malora_cli.recipe.problems import InvalidRecipeError
from malora_cli.recipe.remedies import RemediesSettings, RemedySettings
from malora_cli.recipe.schema import EvalSettings, ModelSettings, OutputSettings, Recipe, TrainSettings
from malora_cli.recipe.settings import MethodSettings, MetricSettings, Settings
from malora_cli.recipe.vocabulary import Vocabulary, recipe_schema, recipe_type

__all__ = [
    "COMMAND_LINE",
    "DEFAULT",
    "Columns",
    "EvalSettings",
    "HoldoutSettings",
    "InvalidRecipeError",
    "LengthPolicy",
    "LoadedRecipe",
    "MethodSettings",
    "MetricSettings",
    "MixSettings",
    "ModelSettings",
    "OutputSettings",
    "Recipe",
    "References",
    "RemediesSettings",
    "RemedySettings",
    "Settings",
    "SourceSettings",
    "TaskSettings",
    "TrainSettings",
    "ValidationSettings",
    "Vocabulary",
    "data_beside",
    "description_of",
    "load_recipe",
    "needs_of",
    "recipe_of_model",
    "recipe_schema",
    "recipe_type",
    "shipped",
    "shipped_files",
]
