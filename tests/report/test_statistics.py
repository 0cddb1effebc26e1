import pytest

from sparsify.report.statistics import (
    Difference,
    Mean,
    accuracy_text,
    difference,
    difference_text,
    mean_of,
    two_sided_t,
)


@pytest.mark.parametrize(("degrees", "t"), [(1, 12.7062), (2, 4.30265), (3, 3.18245), (9, 2.26216), (30, 2.04227)])
def test_quantiles_are_those_of_the_tables(degrees: int, t: float) -> None:
    assert two_sided_t(0.95, degrees) == pytest.approx(t, rel=1e-5)


def test_quantiles_are_those_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for degrees in (*range(1, 40), 1000):
        for share in (0.5, 0.9, 0.95, 0.99):
            assert two_sided_t(share, degrees) == pytest.approx(stats.t.ppf((1 + share) / 2, degrees), rel=1e-9)


def test_only_paired_seeds_count() -> None:
    found = difference({1: 0.5, 2: 0.7, 3: 0.1}, {2: 0.6, 1: 0.2, 9: 0.9})
    assert found is not None and found.n == 2 and found.mean == pytest.approx(0.2)
    # Differences 0.3 and 0.1: s = 0.1414, t(0.975, 1) = 12.706.
    assert found.half_width == pytest.approx(12.7062 * 0.141421 / 2**0.5, rel=1e-5)
    assert mean_of({1: 0.25}) == Mean(0.25, None, 1)


def test_numbers_as_they_are_written() -> None:
    assert accuracy_text(Mean(0.612, 0.0031, 3)) == "61.20 ± 0.31" and accuracy_text(None) == "-"
    assert difference_text(Difference(0.0052, 0.0062, 3)) == "+0.52 (-0.10 to +1.14)"
    assert difference_text(Difference(-0.01, None, 1)) == "-1.00 (one pair)"
