"""What SECURITY.md promises, as far as it can be run; the details are in the tests of each room."""

import re
from pathlib import Path

import pytest

import sparsify
from sparsify.training.recipe import yaml_lines
from tests.formats.model import test_hostile_files as files
from tests.training.data import test_bad_images as images
from tests.training.recipe import test_bad_input as recipes

ROOT = Path(__file__).parents[1]
PAGE = " ".join((ROOT / "SECURITY.md").read_text().split())


def test_the_limits_are_those_of_the_code() -> None:
    assert f"at most {yaml_lines.MOST_CHARACTERS:,} characters, {yaml_lines.MOST_VALUES:,} values" in PAGE
    assert f"{yaml_lines.MOST_LEVELS} levels" in PAGE
    from PIL import Image

    assert Image.MAX_IMAGE_PIXELS is not None
    assert f"more than {Image.MAX_IMAGE_PIXELS // 10**6} million pixels" in PAGE


def test_pickles_are_loaded_as_weights_only_everywhere() -> None:
    calls = []
    for folder in (Path(sparsify.__file__).parent, ROOT / "cli"):
        for file in folder.rglob("*.py"):
            text = file.read_text()
            calls += re.findall(r"torch\.load\([^)]*\)", text)
            if file.name == "jit.py":
                continue  # of its own cache of machine code, which is trusted
            assert not re.search(r"(?<![.\w])(pickle\.loads?|yaml\.unsafe_load)\(", text), file
            assert not re.search(r"(allow_pickle|trust_remote_code)\W+True", text), file
    assert calls and all("weights_only=True" in call for call in calls)


@pytest.mark.parametrize(
    "promise",
    [
        recipes.test_a_trap_is_one_line,
        recipes.test_a_recipe_name_leads_nowhere_outside_runs,
        files.test_a_file_fetches_and_reads_nothing_else,
        files.test_a_file_that_names_a_far_larger_model_is_refused_before_it_is_made,
        files.test_a_pickle_is_never_executed,
        files.test_a_compressed_archive_is_refused_before_it_is_unpacked,
        images.test_a_bad_image_is_one_line_with_its_name,
        images.test_a_bad_image_is_left_out_and_counted_if_asked_for,
    ],
)
def test_each_promise_has_its_test(promise: object) -> None:
    assert callable(promise)
