import pytest
import torch

from sparsify.errors import SparsifyError
from sparsify.overlap import Masks, iou, iou_by_chance, overlap_by_layer, total, union_of


def masks(**rows: list[int]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(row).bool() for name, row in rows.items()}


ONE, OTHER = masks(a=[1, 1, 0, 0], b=[1, 0]), masks(a=[1, 0, 1, 0], b=[1, 0])


def test_overlap_of_masks_by_hand() -> None:
    rows = overlap_by_layer(ONE, OTHER)
    assert [(row.name, row.one, row.other, row.both, row.either) for row in rows] == [
        ("a", 2, 2, 1, 3),
        ("b", 1, 1, 1, 1),
    ]
    assert [row.iou for row in rows] == [pytest.approx(1 / 3), 1.0]
    assert total(rows).iou == iou(ONE, OTHER) == pytest.approx(2 / 4) and total(rows).entries == 6
    assert rows[0].to_dict() == {
        "name": "a",
        "shape": [4],
        "one": 2,
        "other": 2,
        "both": 1,
        "either": 3,
        "iou": pytest.approx(1 / 3),
    }


def test_what_chance_gives_is_the_mean_over_all_masks_of_these_sizes() -> None:
    # By chance 2 * 2 / 4 + 1 * 1 / 2 = 1.5 of 3 and 3 are in both.
    assert iou_by_chance(ONE, OTHER) == pytest.approx(1.5 / 4.5)


def test_empty_masks_agree() -> None:
    nothing = masks(a=[0, 0])
    assert overlap_by_layer(nothing, nothing)[0].iou == 1.0 and iou_by_chance(nothing, nothing) == 0.0


def test_a_union_leaves_its_masks_alone() -> None:
    union = union_of([ONE, OTHER])
    assert union["a"].tolist() == [True, True, True, False] and ONE["a"].tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    ("other", "line"),
    [
        (masks(a=[1, 1, 0, 0]), "B: no mask of b, which A has: they are of different models"),
        (masks(a=[1, 1, 0, 0], b=[1, 0], c=[1]), "A: no mask of c, which B has: they are of different models"),
        (masks(a=[1, 1, 0, 0], b=[1, 0, 0]), r"B: b is of shape \[3\] and not \[2\], as in A"),
    ],
)
def test_masks_of_different_models_are_one_line(other: Masks, line: str) -> None:
    with pytest.raises(SparsifyError, match=line):
        overlap_by_layer(ONE, other, names=("A", "B"))
