"""Whatever is written for a sparsity, a time or a pattern: it means what it says, or one line says what is wrong."""

from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sparsify.errors import SparsifyError
from sparsify.pruning.settings.prune import parse_pruning
from sparsify.pruning.settings.times import Time, parse_time
from sparsify.surgery.ignore_patterns import ignored_names
from sparsify.training.recipe.values import known_interval

NAMES = ["conv1.weight", "layer1.0.conv1.weight", "layer1.0.conv2.weight", "fc.weight"]
shares = st.fractions(0, 1, max_denominator=10**6)


def _refusal(error: BaseException) -> str:
    text = str(error)
    assert text and "\n" not in text
    return text


@given(st.one_of(st.text(), st.floats(), st.integers(), st.booleans(), st.lists(st.integers()), st.binary()))
@example("9" * 5000)
@example(10**5000)
@example("1e-999999999")
def test_a_sparsity_is_a_fraction_or_refused_in_one_line(value: object) -> None:
    try:
        found = parse_pruning({"sparsity": value})
    except SparsifyError as error:
        assert _refusal(error).startswith("pruning.sparsity: ")
    else:
        assert 0 <= found.target <= 1


@given(shares)
def test_a_sparsity_is_what_was_written_and_is_written_so_again(share: Fraction) -> None:
    found = parse_pruning({"sparsity": str(share)})
    assert found.target == share
    assert parse_pruning(found.model_dump()) == found


@given(shares.filter(lambda share: share > 0))
def test_per_cent_is_answered_with_the_fraction_that_is_meant(share: Fraction) -> None:
    with pytest.raises(SparsifyError) as caught:
        parse_pruning({"sparsity": f"{float(100 * share):.4f}%"})
    if float(100 * share) >= 0.0001:
        assert "did you mean " in _refusal(caught.value)


@given(st.one_of(st.text(), st.floats(), st.integers(), st.booleans()))
@example("9" * 5000)
def test_a_time_is_one_or_refused_in_one_line(value: str | float) -> None:
    try:
        found = parse_time(value)
    except ValueError as error:
        assert str(error)
    else:
        assert found.value >= 0 and found.unit in ("", "ep", "it")


@given(st.integers(0, 10**9), st.sampled_from(["ep", "it"]))
def test_a_time_is_what_was_written(number: int, unit: str) -> None:
    assert parse_time(f"{number}{unit}") == parse_time(f" {number} {unit} ") == Time(Fraction(number), unit)


@given(st.one_of(st.text(), st.from_regex(r"\A\d+(it|ep|s|min|h)\Z")))
@example("9" * 5000 + "it")
def test_an_interval_is_a_number_that_can_be_read_or_refused(text: str) -> None:
    try:
        kept = known_interval(text)
    except ValueError as error:
        assert "is no interval; it is written like 500it" in str(error) and len(str(error)) < 200
    else:
        assert kept == text and 0 < int(text.rstrip("itepsmnh")) < 10**9


@given(st.one_of(st.text(), st.text().map("re:{}".format), st.sampled_from(NAMES)))
@example("re:" + "(" * 5000 + ")" * 5000)
@example("re:a{99999999999}")
@example("re:(")
@example("[z-a")
def test_a_pattern_matches_weights_or_is_refused_in_one_line(pattern: str) -> None:
    try:
        found = ignored_names(NAMES, [pattern])
    except SparsifyError as error:
        assert str(error).startswith("ignore: ")
    else:
        assert found and set(found) <= set(NAMES) and set(found.values()) == {pattern}


@given(st.sampled_from(NAMES))
def test_a_name_is_a_pattern_of_itself_alone(name: str) -> None:
    assert ignored_names(NAMES, [name]) == {name: name}
    assert ignored_names(NAMES, [f"name:{name}"]) == {name: f"name:{name}"}
