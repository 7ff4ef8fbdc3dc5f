import re

import pytest

from medsam_tune import __version__
from medsam_tune.backbone.weights import WEIGHTS
from medsam_tune.data.sample import sample_names
from medsam_tune.evaluation.citations import OF_SAMPLES, OF_WEIGHTS, REFERENCES, bibtex, method_keys
from medsam_tune.runs.report_facts import method_title, recipe_comment
from tests.conformance.recipe_cases import FOLDER, RECIPES

KEYS = [reference.key for reference in REFERENCES]


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_that_names_a_paper_has_its_entry(recipe):
    paragraph = recipe_comment(FOLDER / recipe).partition("\n\n")[0]
    found = method_keys(paragraph)
    numbers = {reference.arxiv for reference in REFERENCES if reference.key in found}
    assert set(re.findall(r"\d{4}\.\d{5}", paragraph)) <= numbers
    assert found or not re.search(r"et al\.|'s ", paragraph.replace("SAM's", ""))


@pytest.mark.parametrize("recipe", RECIPES)
def test_title_of_a_method_says_nothing_of_the_bundled_data(recipe):
    title = method_title(recipe_comment(FOLDER / recipe))
    assert title
    assert not re.search("|".join(("bundled", "sample", *sample_names())), title)


def test_weights_and_samples_have_entries():
    assert set(OF_WEIGHTS) == set(WEIGHTS)
    assert set(OF_SAMPLES) == set(sample_names())
    assert {key for keys in (*OF_WEIGHTS.values(), *OF_SAMPLES.values()) for key in keys} <= set(KEYS)


def test_entries_stand_once_with_the_software_last():
    text = bibtex(("ma2024medsam", "hu2021lora", "ma2024medsam"))
    assert re.findall(r"^@(\w+)\{(\w+),$", text, re.MULTILINE) == [
        ("article", "ma2024medsam"),
        ("misc", "hu2021lora"),
        ("software", "medsam_tune"),
    ]
    assert f"version = {{{__version__}}}" in text
    assert text.count("{") == text.count("}")
    assert "eprint = {2106.09685}" in text
    assert "archiveprefix" not in text.partition("@misc")[0]


def test_keys_are_unique():
    assert len(set(KEYS)) == len(KEYS)
