"""Turns and what is made of their times."""

from benchmarks.timing import alternate, figures, quartiles


def test_every_other_round_goes_backwards_and_a_turn_counts_by_its_median() -> None:
    order: list[str] = []
    answers = {"a": iter([1.0, 9.0, 2.0, 3.0, 3.0, 8.0]), "b": iter([5.0] * 6)}

    def turn(name: str) -> float:
        order.append(name)
        return next(answers[name])

    found = alternate({"a": lambda: turn("a"), "b": lambda: turn("b")}, 2, times=3)
    assert "".join(order) == "aaabbb" + "bbbaaa"
    assert found == {"a": [2.0, 3.0], "b": [5.0, 5.0]}


def test_quartiles_lie_within_the_values() -> None:
    assert quartiles([2.0]) == (2.0, 2.0)
    assert quartiles([1.0, 5.0]) == (2.0, 4.0)
    assert quartiles([1.0, 2.0, 3.0]) == (1.5, 2.5)


def test_ratios_are_of_the_same_round() -> None:
    # Twice, three times and four times as fast, though the medians are 2 and 1.
    assert figures([1.0, 1.0, 0.5], [2.0, 3.0, 2.0]) == "1000 | 750 to 1000 | 3.00 | 2.50 to 3.50"
