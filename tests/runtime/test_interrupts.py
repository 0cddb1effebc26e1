"""An engine's outputs after anything was raised in the middle of a call, in children of fork, and of its copies."""

import copy
import gc
import multiprocessing
import os
import pickle
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sparsify.runtime.compile import compile
from sparsify.runtime.engine import Engine
from sparsify.runtime.tuning import search
from sparsify.runtime.tuning.search import Strategy

SHAPES: list[tuple[int, ...]] = [(images, 3, side, side) for images in (1, 2, 5) for side in (8, 12)]
posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs signals and fork")


class Net(nn.Module):
    """Convolutions with borders and a stride, an operation without a kernel between them, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 16, 3, 2, 1)
        self.third = nn.Conv2d(16, 16, 3, padding=1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x).relu()).cumsum(1)
        y: Tensor = self.fc(self.third(x).relu().mean((2, 3)))
        return y


class Interrupt(BaseException):
    """What the handler raises."""


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval().requires_grad_(False)


@pytest.fixture
def alarm() -> Iterator[None]:
    def handler(number: int, frame: object) -> None:
        raise Interrupt

    before = signal.signal(signal.SIGALRM, handler)
    gc.disable()  # Python drops what is raised within a callback of the collector
    yield
    gc.enable()
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def check(engine: Engine, net: nn.Module, shapes: list[tuple[int, ...]] = SHAPES, kernels: bool = True) -> None:
    """Hold outputs for new inputs against the model's."""
    for shape in shapes:
        x = torch.randn(shape)
        wanted = net(x)
        assert (engine(x) - wanted).abs().max() <= 1e-5 * wanted.abs().max(), (shape, engine.strategies.get((shape,)))
        assert not kernels or engine.strategies[(shape,)].kind != "torch"


def torn(engine: Engine, seconds: float, inputs: Iterator[Tensor]) -> None:
    """Call the engine until the handler raises, however many calls that takes.

    The alarm comes again every half second: Python drops what a handler raises within a finalizer.
    """
    with pytest.raises(Interrupt):
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds, 0.5)
            for x in inputs:
                engine(x)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


def endless(chance: random.Random) -> Iterator[Tensor]:
    while True:
        yield torch.randn(chance.choice(SHAPES))


def fuzz(net: nn.Module, threads: int, rounds: int, seed: int) -> None:
    """Interrupt calls at random times, of known shapes and of new ones: every round has its interrupt."""
    chance = random.Random(seed)
    engine = compile(net, torch.randn(SHAPES[0]), threads=threads, tune=False)
    settings = torch.get_num_threads(), torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")
    for _ in range(rounds):
        torn(engine, chance.choice([chance.uniform(1e-5, 2e-3), chance.uniform(1e-3, 0.3)]), endless(chance))
        assert (torch.get_num_threads(), torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")) == settings
        check(engine, net, chance.sample(SHAPES, 2))
        if chance.random() < 0.3:
            engine.strategies.clear()
            engine._plans.clear()
        for key in engine.strategies:
            engine.strategies[key] = chance.choice([Strategy("split"), Strategy("chunks", 1), Strategy("chunks", 2)])
    check(engine, net)


@posix
@pytest.mark.parametrize("threads", [1, 2])
def test_outputs_are_right_after_calls_that_were_interrupted_anywhere(
    threads: int, net: nn.Module, alarm: None
) -> None:
    fuzz(net, threads, 12, threads)


@posix
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_outputs_are_right_after_many_interrupted_calls(threads: int, seed: int, net: nn.Module, alarm: None) -> None:
    fuzz(net, threads, 100, seed)


@pytest.mark.parametrize("runs", [1, 2, 5])
def test_tuning_that_was_interrupted_is_done_anew_and_kept_nowhere(
    runs: int, net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSIFY_CACHE", str(tmp_path))
    engine = compile(net, torch.randn(SHAPES[0]), threads=2, tune=False)
    engine._tune = True
    settings = torch.get_num_threads(), torch.is_grad_enabled()
    left, work = iter(range(runs)), search._seconds

    def timed(run: Callable[[], object]) -> float:
        if next(left, None) is None:
            raise Interrupt
        return work(run)

    with monkeypatch.context() as during, pytest.raises(Interrupt):
        during.setattr(search, "_seconds", timed)
        engine(torch.randn(SHAPES[1]))
    assert (SHAPES[1],) not in engine.strategies and not list(tmp_path.iterdir())
    check(engine, net, [SHAPES[1]], kernels=False)
    assert engine.strategies[(SHAPES[1],)].seconds
    assert (torch.get_num_threads(), torch.is_grad_enabled()) == settings


@posix
def test_ctrl_c_ends_one_call(net: nn.Module) -> None:
    engine = compile(net, torch.randn(SHAPES[-1]), threads=2, tune=False)
    timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            timer.start()
            while True:
                engine(torch.randn(SHAPES[-1]))
    finally:
        signal.signal(signal.SIGINT, before)
    check(engine, net)


def test_errors_of_hooks_and_of_wrong_inputs_are_the_caller_s_and_leave_nothing(net: nn.Module) -> None:
    engine = compile(net, torch.randn(SHAPES[0]), threads=2, tune=False)
    for wrong in (torch.randn(1, 4, 8, 8), torch.randn(3, 8), torch.randn(3, 3, 0, 2)):
        with pytest.raises(RuntimeError):
            engine(wrong)

    def hook(module: nn.Module, args: object) -> None:
        raise ValueError("told to")

    handle = engine.model.get_submodule("third").register_forward_pre_hook(hook)
    for shape in SHAPES[1:]:
        with pytest.raises(ValueError, match="told to"):
            engine(torch.randn(shape))
    handle.remove()
    check(engine, net)


def test_buffers_may_hold_anything_before_a_call(net: nn.Module) -> None:
    engine = compile(net, torch.randn(SHAPES[0]), threads=2, tune=False)
    for strategy in (Strategy("split"), Strategy("chunks", 1), Strategy("chunks", 2)):
        engine.strategies = {(shape,): strategy for shape in SHAPES}
        check(engine, net)
        for buffer in engine._buffers.values():
            buffer.fill(float("nan"))
        check(engine, net)


def in_child(engine: Engine, x: Tensor, wanted: Tensor) -> int:
    """Fork; return the child's status: 0 if its outputs are right, also for another shape and from two threads."""
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(60)
            found = [engine(x), engine(x[:, :, :8, :8]), engine(x)]
            caller = threading.Thread(target=lambda: found.append(engine(x)))
            caller.start()
            caller.join()
            apart = max(float((one - wanted).abs().max()) for one in (found[0], *found[2:]))
            os._exit(0 if apart <= 1e-5 * float(wanted.abs().max()) else 1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@posix
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize(
    "strategy", [Strategy("split"), Strategy("chunks", 1), Strategy("torch")], ids=lambda strategy: strategy.kind
)
def test_a_child_of_fork_has_threads_of_its_own(strategy: Strategy, net: nn.Module) -> None:
    x = torch.randn(2, 3, 96, 96)
    engine = compile(net, x, threads=2, tune=False)
    engine.strategies[(tuple(x.shape),)] = strategy
    wanted = net(x)
    engine(x)
    assert in_child(engine, x, wanted) == 0
    with engine._lock:  # as another thread's call holds it
        assert in_child(engine, x, wanted) == 0
    check(engine, net)


def answer(engine: Engine, x: Tensor, queue: "multiprocessing.Queue[list[float]]") -> None:
    queue.put(engine(x).flatten().tolist())


def test_an_engine_goes_to_other_processes(net: nn.Module) -> None:
    x = torch.randn(2, 3, 8, 8)
    engine = compile(net, x, threads=2, tune=False)
    context = multiprocessing.get_context("spawn")
    queue: multiprocessing.Queue[list[float]] = context.Queue()
    child = context.Process(target=answer, args=(engine, x, queue))
    child.start()
    found = torch.tensor(queue.get(timeout=120))
    child.join(60)
    assert child.exitcode == 0
    torch.testing.assert_close(found, net(x).flatten(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("how", ["pickle", "deepcopy"])
def test_copies_are_engines_of_their_own(how: str, net: nn.Module) -> None:
    engine = compile(net, torch.randn(SHAPES[0]), threads=2, tune=False)
    other = pickle.loads(pickle.dumps(engine)) if how == "pickle" else copy.deepcopy(engine)
    for parameter in engine.model.parameters():
        parameter.zero_()
    del engine
    check(other, net)
    assert str(other).startswith("engine of Net, 2 threads")


def test_threads_of_an_engine_end_with_it_and_handles_do_not_pile_up(net: nn.Module) -> None:
    def use() -> None:
        engine = compile(net, torch.randn(SHAPES[-1]), threads=3, tune=False)
        for strategy in (Strategy("split"), Strategy("chunks", 1)):
            engine.strategies[(SHAPES[-1],)] = strategy
            check(engine, net, [SHAPES[-1]])

    def handles() -> tuple[int, int]:
        files = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
        return threading.active_count(), files

    use()
    deadline, before = time.monotonic() + 60, handles()
    for _ in range(5):
        use()
    while handles()[0] > before[0] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert handles()[0] <= before[0] and handles()[1] <= before[1] + 1


def test_a_call_in_the_middle_of_the_same_thread_s_call_is_answered(net: nn.Module) -> None:
    engine = compile(net, torch.randn(SHAPES[0]), threads=2, tune=False)
    engine._owner = threading.get_ident()  # as in a handler, or in a hook
    with engine._lock:
        check(engine, net, kernels=False)
    engine._owner = 0
    check(engine, net)
