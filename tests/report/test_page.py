"""The page: what stands in it, and what a browser makes of it."""

import re
from pathlib import Path
from typing import Any

import pytest

from sparsify import report
from sparsify.errors import SparsifyError
from sparsify.report.bench_results import BenchResult, Timing, add_bench_result

from .browser import chromium, screenshot, show
from .conftest import Derive

for _name in ("altair", "vl_convert", "jinja2"):
    pytest.importorskip(_name, reason=f"{_name} is not installed: pip install 'sparsify-torch[report]'")
TIMINGS = (
    Timing("sparsify engine", 0.0005, 0.0004, 0.0006),
    Timing("torch, contiguous", 0.002, 0.0019, 0.0021),
    Timing("torch, channels last", 0.0015, 0.0014, 0.0016),
    Timing("torch, shrunk", 0.0012, 0.0011, 0.0013),
)


@pytest.fixture(scope="module")
def page(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the report of a timed run, whose name is not made for HTML."""
    import shutil

    folder = tmp_path_factory.mktemp("page") / "<b>run & co"
    shutil.copytree(finished, folder)
    about = ({"torch": "2.10"}, "2026-01-01 00:00:00", TIMINGS)
    add_bench_result(folder, BenchResult((1, 3, 8, 8), 1, "a processor", *about))
    [path] = report.write(folder, folder.parent / "report.html")
    return path


def text_of(page: Path) -> str:
    """Return a page without scripts and styles."""
    return re.sub(r"<(script|style)\b.*?</\1>", "", page.read_text(), flags=re.DOTALL)


def test_the_page_needs_nothing_else(page: Path) -> None:
    text = text_of(page)
    assert re.findall(r"(?:src|href)=\"(?!data:,|#)", text) == [] and "@import" not in page.read_text()
    assert 0.8e6 < page.stat().st_size < 1.3e6
    assert "<b>run" not in text and "&lt;b&gt;run &amp; co" in text


def test_the_sheet_says_what_was_gained(page: Path, finished: Path) -> None:
    run, text = report.read_run(finished), " ".join(re.sub(r"<[^>]+>", " ", text_of(page)).split())
    layers = report.read_layers(run)
    times = f"{layers.parameters / layers.kept_parameters:.1f} times fewer"
    assert f"parameters {layers.parameters:,} {layers.kept_parameters:,} {times}" in text
    # PyTorch's faster layout against the engine.
    assert "time of a pass 1.50 ms 0.500 ms 3.0 times as fast" in text
    assert "answers 3.0 times as fast on the sparse engine as on PyTorch" in text
    for word in ("recipe small", "model cifar:resnet20", "seed 1", "3 cycles", "torch 2."):
        assert word in text, word
    assert all(f"{layer.name} " in text for layer in layers.layers)


def test_several_runs_are_compared_and_one_of_each_recipe_is_told(derive: Derive, tmp_path: Path) -> None:
    more = ("  sparsity: 0.8\n", "  sparsity: 0.9\n")
    folders = [derive("a", seed=1, accuracy=0.5), derive("b", seed=2, accuracy=0.7)]
    folders.append(derive("c", seed=1, accuracy=0.4, change=more))
    written = report.write(folders, tmp_path / "r.html", figures=tmp_path / "figures")
    text = " ".join(re.sub(r"<[^>]+>", " ", text_of(tmp_path / "r.html")).split())
    assert "3 runs of 2 recipes" in text and "sparsity=0.8 2" in text and "60.00 ± 14.14" in text
    assert "-10.00 (one pair)" in text
    assert text_of(tmp_path / "r.html").count('<details class="part"') == 2
    names = {path.name for path in written[1:]}
    assert {"compare-sparsity.svg", "compare-differences.png", "run-1-accuracy.svg", "run-2-cycles.png"} <= names
    assert all(path.stat().st_size > 1000 for path in written)


def test_nothing_is_written_where_something_is_wrong(derive: Derive, tmp_path: Path) -> None:
    folder = derive("a")
    with pytest.raises(SparsifyError, match="no such run"):
        report.write([folder, tmp_path / "none"], tmp_path / "r.html")
    with pytest.raises(SparsifyError, match="there is no folder"):
        report.write(folder, tmp_path / "nowhere" / "r.html")
    with pytest.raises(SparsifyError, match="at least one run"):
        report.write([], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def overflow(driver: Any) -> list[str]:
    """Return what sticks out of the page to the right, but for what scrolls by itself."""
    script = """return [...document.querySelectorAll('body *')]
        .filter(one => !one.closest('.scroll, pre, svg') && one.getBoundingClientRect().right > innerWidth + 1)
        .map(one => one.outerHTML.slice(0, 80))
        .concat(document.documentElement.scrollWidth > innerWidth ? ['the page'] : [])"""
    found: list[str] = driver.execute_script(script)
    return found


@pytest.mark.slow
@pytest.mark.sample
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_a_browser_shows_everything_without_a_word(width: int, dark: bool, page: Path, tmp_path: Path) -> None:
    with chromium(width, dark=dark) as driver:
        show(driver, page)
        assert driver.get_log("browser") == []
        assert overflow(driver) == []
        places = driver.find_elements("css selector", ".figure")
        assert len(places) == 9 and all(place.get_attribute("data-state") == "drawn" for place in places)
        for place in places:
            [svg] = place.find_elements("css selector", "svg")
            assert 0 < svg.size["width"] <= place.size["width"] and svg.find_elements("css selector", "path")
        back = "return getComputedStyle(document.body).backgroundColor"
        first = driver.execute_script(back)
        driver.find_element("id", "theme").click()
        assert (first == "rgb(255, 255, 255)") != dark and driver.execute_script(back) != first
        screenshot(driver, tmp_path / "page.png")
        assert (tmp_path / "page.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.sample
def test_a_table_is_sorted_by_a_click(page: Path) -> None:
    with chromium() as driver:
        show(driver, page)
        table = driver.find_element("css selector", "table.sortable")

        def column(place: int) -> list[str]:
            cells = table.find_elements("css selector", f"tbody tr > :nth-child({place})")
            return [cell.text for cell in cells]

        heading = table.find_elements("css selector", "thead button")[2]
        assert heading.text == "parameters"
        before = column(1)
        heading.click()
        sizes = [int(text.replace(",", "")) for text in column(3)]
        assert sizes == sorted(sizes) and column(1) != before and sorted(column(1)) == sorted(before)
        heading.click()
        assert [int(text.replace(",", "")) for text in column(3)] == sorted(sizes, reverse=True)
        states = [one.get_attribute("aria-sort") for one in table.find_elements("css selector", "thead th")]
        assert states.count("descending") == 1 and states.count("none") == len(states) - 1
        assert driver.get_log("browser") == []


@pytest.mark.slow
@pytest.mark.sample
def test_figures_of_a_folded_part_are_drawn_when_it_is_opened(derive: Derive, tmp_path: Path) -> None:
    folders = [derive("a"), derive("b", accuracy=0.4, change=("scope: filter", "scope: global"))]
    report.write(folders, tmp_path / "r.html")
    with chromium() as driver:
        show(driver, tmp_path / "r.html")
        inside = driver.find_elements("css selector", "#run-1 .figure")
        assert inside and not any(place.get_attribute("data-state") for place in inside)
        driver.find_element("css selector", "#run-1 > summary").click()
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(driver, 30).until(lambda _: all(p.get_attribute("data-state") == "drawn" for p in inside))
        assert driver.get_log("browser") == []
