"""Names of strategies and --set texts."""

from __future__ import annotations

import pytest

from tamis.core.errors import RequestError
from tamis.study.strategies import parse_settings, resolve


def test_a_pair_and_a_name() -> None:
    pair, named = resolve(["ngrams/round-robin", "longest"])
    assert (pair.representation, pair.selection, pair.folder) == (
        "ngrams",
        "round-robin",
        "ngrams-round-robin",
    )
    assert (named.score, named.selection) == ("length", "top-k")
    assert named.recipe()["selection"]["parameters"]["tie_seed"] == 0
    assert pair.needs_query and not named.needs_query


def test_settings_reach_the_method_they_name() -> None:
    settings = parse_settings(["round-robin.duplicates=lose-turn", "ngrams.buckets=10000"])
    (strategy,) = resolve(["ngrams/round-robin"], settings)
    assert strategy.signal_parameters == {"buckets": 10000}
    assert strategy.recipe()["selection"]["parameters"]["duplicates"] == "lose-turn"
    assert strategy.recipe() != resolve(["ngrams/round-robin"])[0].recipe()


@pytest.mark.parametrize(
    ("names", "settings", "message"),
    [
        (["randm"], [], "did you mean 'random'"),
        (["rds"], [], "rds/round-robin"),
        (["rdz/round-robin"], [], "unknown signal 'rdz'; did you mean 'rds'"),
        (["rds/round-robbin"], [], "did you mean 'round-robin'"),
        (["rds/random"], [], "'random' cannot use the representation 'rds'; these can: .*round-robin"),
        (["random", "random"], [], "given twice"),
        (["random"], ["round-robin.duplicates=skip"], "no chosen strategy uses 'round-robin'"),
        (["ngrams/round-robin"], ["round-robin.duplicate=skip"], "did you mean 'duplicates'"),
        (["ngrams/round-robin"], ["round-robin.duplicates=often"], "duplicates"),
        (["ngrams/round-robin"], ["duplicates=skip"], "expected method.parameter=value"),
        (["ngrams/round-robin"], ["robin.duplicates=skip"], "unknown method in --set"),
    ],
)
def test_faults_are_named_before_any_work(names: list[str], settings: list[str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        resolve(names, parse_settings(settings))
