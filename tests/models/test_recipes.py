"""Recipes: the published values, changes over them, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from tamis.core.errors import RequestError
from tamis.models.recipes import Recipe, named_recipes, resolve_recipe

PUBLISHED = {  # epochs, batch, rate, schedule, warm-up, weight decay, beta2, length, neftune
    "tulu2": (2, 128, 2e-5, "linear", 0.03, 0.0, 0.999, 2048, 0),
    "chasing-random-set1": (3, 128, 2e-5, "linear", 0.03, 0.0, 0.999, 512, 0),
    "chasing-random-set2": (3, 128, 2e-5, "cosine", 0.03, 0.0, 0.999, 512, 0),
    "chasing-random-set3": (3, 128, 1e-5, "linear", 0.03, 0.0, 0.999, 512, 0),
    "lora": (5, 128, 2e-5, "linear", 0.3, 0.0, 0.999, 1024, 0),
    "cherry": (1, 128, 2e-5, "cosine", 0.03, 0.0, 0.999, 512, 0),
    "less-warmup": (4, 128, 2e-5, "linear", 0.03, 0.0, 0.999, 2048, 0),
    "longest": (15, 128, 1e-5, "linear", 0.0, 0.1, 0.95, 2048, 15),
}


@pytest.mark.parametrize("name", list(named_recipes()))
def test_published_values(name: str) -> None:
    r = resolve_recipe(name)
    found = (r.epochs, r.batch_rows, r.learning_rate, r.schedule, r.warmup, r.weight_decay, r.beta2)
    assert (*found, r.max_tokens, r.neftune) == PUBLISHED[name]
    assert r.method == ("lora" if name in ("lora", "less-warmup") else "full")
    assert (r.weights, r.packed, r.loss_on_prompt) == ("float32", False, False)
    assert {"about", "paper"} <= set(named_recipes()[name])


def test_the_adapter_of_less_is_the_published_one() -> None:
    r = resolve_recipe("less-warmup")
    assert (r.rank, r.alpha, r.dropout, r.targets, r.epoch_checkpoints) == (128, 512, 0.1, "auto", True)


def test_a_mapping_goes_over_a_named_recipe_and_changes_over_both() -> None:
    given = {"recipe": "longest", "epochs": 2, "beta2": 0.9}
    assert resolve_recipe(given, epochs=3) == resolve_recipe("longest", epochs=3, beta2=0.9)
    assert resolve_recipe({}) == Recipe() == resolve_recipe(Recipe())
    assert resolve_recipe(Recipe(), epochs=7).epochs == 7


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("tulu3", "unknown recipe 'tulu3'; did you mean 'tulu2'"),
        ({"epoch": 3}, "unknown key of a recipe 'epoch'; did you mean 'epochs'"),
        ({"epochs": 0}, "epochs=0: expected a whole number, 1 or more"),
        ({"epochs": 1.5}, "expected a whole number"),
        ({"learning_rate": "fast"}, "learning_rate='fast': expected a number above 0"),
        ({"warmup": 1.0}, "warmup=1.0: expected 0 or more, below 1"),
        ({"schedule": "cosin"}, "expected one of linear, cosine, constant"),
        ({"packed": "yes"}, "packed='yes': expected true or false"),
        ({"targets": "q_proj"}, "targets='q_proj': expected auto, all-linear, or a list"),
    ],
)
def test_refused(given: Any, words: str) -> None:
    with pytest.raises(RequestError, match=words.replace("'", ".")):
        resolve_recipe(given)


def test_values_of_lora_are_no_part_of_a_full_recipe() -> None:
    assert Recipe(rank=4).identity() == Recipe(rank=8).identity()
    assert Recipe(method="lora", rank=4).identity() != Recipe(method="lora", rank=8).identity()
    assert Recipe(method="lora", targets=("a", "b")).identity()["targets"] == ["a", "b"]


def test_an_exponent_without_a_point_is_a_number() -> None:
    assert resolve_recipe({"recipe": "tulu2", "learning_rate": "1e-3"}).learning_rate == 1e-3
