"""What other tools write is answered with what is written here, in one line."""

from typing import Any

import pytest

from sparsify.errors import SparsifyError
from sparsify.pruning.settings import prune
from sparsify.pruning.settings.prune import parse_pruning
from sparsify.pruning.settings.synonyms import SYNONYMS

NAMES = {
    "criterion": prune.CRITERION_NAMES,
    "granularity": prune.GRANULARITY_NAMES,
    "scope": prune.SCOPE_NAMES,
    "schedule": prune.SCHEDULE_NAMES,
}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"criterion": "l1"}, "pruning.criterion: unknown criterion 'l1'; did you mean 'magnitude'?"),
        ({"criterion": {"name": "L2-norm"}}, "unknown criterion 'L2-norm'; did you mean 'magnitude'?"),
        ({"granularity": "channel"}, "pruning.granularity: unknown granularity 'channel'; did you mean 'unit'?"),
        ({"granularity": {"name": "unit", "reduce": "max"}}, "unknown key 'reduce'; did you mean 'aggregate'?"),
        ({"scope": "local"}, "unknown scope 'local'; did you mean 'layer'?"),
        ({"schedule": "polynomial"}, "unknown schedule 'polynomial'; did you mean 'cubic'?"),
        ({"sparsity": 90}, "pruning.sparsity: 90 is no sparsity; "),
        ({"sparsity": 90}, "did you mean 0.9?"),
        ({"sparsity": "90%"}, "did you mean 0.9?"),
        ({"sparsity": "99.5 %"}, "did you mean 0.995?"),
        ({"sparsity": "0.5%"}, "did you mean 0.005?"),
    ],
)
def test_another_spelling_is_answered_with_ours(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SparsifyError) as error:
        parse_pruning({"sparsity": 0.5, **settings})
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("sparsity", [-1, 101, "-5%", "120%", "x%", True, float("nan")])
def test_what_is_no_percentage_gets_no_guess(sparsity: Any) -> None:
    with pytest.raises(SparsifyError, match="is no sparsity") as error:
        parse_pruning({"sparsity": sparsity})
    assert "did you mean" not in str(error.value)


@pytest.mark.parametrize("what", SYNONYMS)
def test_a_synonym_stands_for_a_name_and_is_none(what: str) -> None:
    assert set(SYNONYMS[what].values()) <= set(NAMES[what])
    assert not SYNONYMS[what].keys() & set(NAMES[what])
