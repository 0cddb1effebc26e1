"""Patterns of weights: names, globs, expressions, classes and keywords, and near names for one that matches nothing."""

import pytest
from torch import nn

import sparsify
from sparsify.errors import SparsifyError
from sparsify.surgery.ignore_patterns import class_names, ignored_names


class Block(nn.Sequential):
    """A module of a class of its own."""


def model() -> nn.Module:
    network = nn.Sequential()
    network.add_module("stem", nn.Conv2d(3, 4, 3))
    network.add_module("block", Block(nn.Conv2d(4, 4, 3), nn.Linear(4, 4)))
    network.add_module("Linear", nn.Sequential(nn.Conv1d(2, 2, 1)))
    network.add_module("head", nn.Linear(4, 2))
    return network


STEM, CONV, LINEAR, NAMED, HEAD = ("stem.weight", "block.0.weight", "block.1.weight", "Linear.0.weight", "head.weight")
CASES = {
    "block": [CONV, LINEAR],
    "*.0": [CONV, NAMED],
    "head.weight": [HEAD],
    "re:block[.][01]": [CONV, LINEAR],
    "re:.*[.]weight": [STEM, CONV, LINEAR, NAMED, HEAD],
    "re:block": [],
    "Block": [CONV, LINEAR],
    "Conv2d": [STEM, CONV],
    "_ConvNd": [STEM, CONV, NAMED],
    "Linear": [NAMED],  # a name goes before a class
    "first": [STEM],
    "last": [HEAD],
    "name:block": [CONV, LINEAR],
}


@pytest.mark.parametrize("pattern", CASES)
@pytest.mark.parametrize("converted", [False, True])
def test_a_pattern_matches_what_it_says(pattern: str, converted: bool) -> None:
    network = model()
    if converted:
        sparsify.convert(network)
    names = [STEM, CONV, LINEAR, NAMED, HEAD]
    others = [name for name, _ in network.named_parameters() if name not in names]
    if not CASES[pattern]:
        with pytest.raises(SparsifyError, match=f"ignore: '{pattern}' matches no weight"):
            ignored_names(names, [pattern], others=others, classes=class_names(network))
        return
    found = ignored_names(names, [pattern], others=others, classes=class_names(network))
    assert list(found) == CASES[pattern]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("haed", "ignore: 'haed' matches no weight of the model; did you mean 'head'?"),
        ("Conv2D", "did you mean 'Conv2d'?"),
        ("name:Linear.1", "did you mean 'Linear.0'?"),
        ("re:(", "ignore: 're:(' is not a regular expression: "),
    ],
)
def test_a_pattern_that_matches_nothing_is_answered_with_a_near_name(pattern: str, message: str) -> None:
    network = model()
    before = network.state_dict().keys()
    for given in ({"ignore": [pattern]}, {"only": [pattern]}):
        with pytest.raises(SparsifyError) as error:
            sparsify.convert(network, **given)
        assert message.replace("ignore", *given) in str(error.value)
    assert network.state_dict().keys() == before


def test_convert_puts_masks_on_only_what_is_named() -> None:
    network = model()
    report = sparsify.convert(network, only=["Conv2d", "head"], ignore="stem")
    assert sorted(report.masked) == sorted([CONV, HEAD])
    assert report.skipped[LINEAR] == "not among 'only'" and report.skipped[STEM] == "ignored by 'stem'"
