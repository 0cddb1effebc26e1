import pytest
from rich.console import Console

from cli.view.show import Layer, byte_count, count, duration, fits, layer_table, percent


@pytest.mark.parametrize(
    ("fraction", "shown"),
    [(0.0, "0.0 %"), (1.0, "100.0 %"), (0.9, "90.0 %"), (1 / 3, "33.3 %"), (0.9996, "99.96 %"), (0.0004, "0.04 %")],
)
def test_percent_never_rounds_to_all_or_nothing(fraction: float, shown: str) -> None:
    assert percent(fraction) == shown


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (574_600_000, "574.6 MB"),
        (999_960, "1.0 MB"),
        (5 * 10**12, "5000.0 GB"),
    ],
)
def test_byte_count(size: int, shown: str) -> None:
    assert byte_count(size) == shown


@pytest.mark.parametrize(("number", "shown"), [(0, "0 epochs"), (1, "1 epoch"), (2000, "2,000 epochs")])
def test_count(number: int, shown: str) -> None:
    assert count(number, "epoch") == shown


@pytest.mark.parametrize(("seconds", "shown"), [(0.4, "0:00:00"), (59.6, "0:01:00"), (3661, "1:01:01")])
def test_duration(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_a_table_of_long_names_fits_80_columns_and_loses_no_letter() -> None:
    name = "encoder.layers.encoder_layer_11.self_attention.in_proj_weight.of.a.very.deep.network.indeed.weight"
    console = Console(width=80)
    with console.capture() as capture:
        console.print(layer_table([Layer(name, (2048, 512, 3, 3), 1_000_000), Layer("head.bias", (10,), None)]))
    lines = capture.get().splitlines()
    assert max(map(len, lines)) <= 80
    assert "".join(line.split("  ")[0].strip() for line in lines[1:-1]) == name
    assert "89.4 %" in lines[1] and "2048x512x3x3" in lines[1] and "1,000,000" in lines[1]
    assert lines[-1].split() == ["head.bias", "10", "10", "-"]


def test_further_columns_are_shown_and_it_is_told_whether_they_fit() -> None:
    console = Console(width=80)
    table = layer_table([Layer("a.weight", (4, 2), 3, more=("delta", "1.2/1.1"))], ("encoding", "bits/limit"))
    with console.capture() as capture:
        console.print(table)
    headings, row = (line.split() for line in capture.get().splitlines())
    assert headings == ["layer", "shape", "kept", "sparsity", "encoding", "bits/limit"]
    assert row == ["a.weight", "4x2", "3", "62.5", "%", "delta", "1.2/1.1"]
    assert fits(table)
    long = layer_table([Layer("a" * 33, (4, 2), 3, more=("delta", "1.2/1.1"))], ("encoding", "bits/limit"))
    assert fits(long) and not fits(layer_table([Layer("a" * 60, (4, 2), 3, more=("delta", ""))], ("encoding", "")))
