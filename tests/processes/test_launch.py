"""What the environment tells of a launcher, and what is refused."""

import pytest

from sparsify.errors import SparsifyError
from sparsify.processes.launch import Launch, check_accelerate, read_launch

WHOLE = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}


def test_a_launcher_tells_the_number_of_the_process() -> None:
    assert read_launch(WHOLE) == Launch(3, 4, 1)
    for alone in ({}, {"WORLD_SIZE": "1"}, {"WORLD_SIZE": "1", "RANK": "0"}, {"MASTER_ADDR": "10.0.0.1"}):
        assert read_launch(alone) == Launch()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2, but RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT are not set"),
        ({**WHOLE, "LOCAL_RANK": ""}, "WORLD_SIZE is 4, but LOCAL_RANK is not set"),
        ({"LOCAL_RANK": "0"}, "LOCAL_RANK is 0, but RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT are not set"),
        ({"RANK": "1"}, "RANK is 1, but WORLD_SIZE"),
        ({"OMPI_COMM_WORLD_SIZE": "8"}, "OMPI_COMM_WORLD_SIZE is 8"),
        ({**WHOLE, "RANK": "4"}, "RANK is 4 and LOCAL_RANK 1, of WORLD_SIZE 4"),
        ({**WHOLE, "WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', no whole number"),
        ({**WHOLE, "MASTER_PORT": "x"}, "MASTER_PORT is 'x', no whole number"),
    ],
)
def test_a_launchers_variables_without_a_launcher_are_one_line(given: dict[str, str], said: str) -> None:
    with pytest.raises(SparsifyError) as caught:
        read_launch(given)
    assert str(caught.value).startswith(f"environment: {said}")
    assert "torchrun --nproc-per-node" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP is asked for"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed is asked for"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "mixed precision bf16 is asked for, the recipe says no"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "set train.accumulate"),
    ],
)
def test_what_accelerate_is_asked_for_and_a_recipe_does_not_do_is_refused(given: dict[str, str], said: str) -> None:
    with pytest.raises(SparsifyError, match=said):
        check_accelerate("no", given)


def test_what_accelerate_sets_by_itself_is_taken() -> None:
    check_accelerate("no", {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_FSDP": "false"})
    check_accelerate("bf16", {"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1"})
