"""Independent pieces of tensor work, each on one thread, instead of every operation on all threads.

An operation on all threads ends when the slowest thread does. Beside another busy process that thread waits for a core
in every one of hundreds of operations. Pieces of work do not wait for each other: a thread without a core does fewer.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

_LOCK = threading.Lock()
_POOLS: dict[int, ThreadPoolExecutor] = {}
_HERE = threading.local()


def count_workers(device: torch.device) -> int:
    """Return the number of threads that `map_pieces` uses: as many as an operation on a CPU, and one on a GPU."""
    return 1 if device.type != "cpu" or getattr(_HERE, "worker", False) else torch.get_num_threads()


def map_pieces(
    function: Callable[[Item], Result],
    pieces: Iterable[Item],
    *,
    device: torch.device,
    touches: Callable[[Item], Sequence[Hashable]] | None = None,
) -> Iterator[Result]:
    """Yield `function(piece)` in order, computed on several threads, without gradients.

    Args:
        function: Must write only to what `touches` names; it may be called from several threads at once.
        pieces: Pieces of work. Fewer than threads are computed here, each operation on all threads.
        device: Of the tensors; on a GPU this is `map`.
        touches: Names of what a piece writes to. Pieces that write to the same are done one after the other, in order,
            so that sums have the same last bits whatever the threads do.
    """
    workers, pieces = count_workers(device), list(pieces)
    if workers == 1 or len(pieces) < workers:
        yield from map(function, pieces)
        return
    run = partial(_run, function, inference=torch.is_inference_mode_enabled())
    pool, last, futures = _pool(workers), dict[Hashable, Future[Result]](), deque[Future[Result]]()
    for piece in pieces:
        names = touches(piece) if touches else ()
        # a pool starts its tasks in order: what a task waits for is running or done
        future = pool.submit(run, piece, after=[last[name] for name in names if name in last])
        last |= dict.fromkeys(names, future)
        futures.append(future)
    try:
        while futures:
            yield futures.popleft().result()
    finally:
        for future in futures:
            future.cancel()


def _run(
    function: Callable[[Item], Result], piece: Item, *, after: Sequence[Future[Result]], inference: bool
) -> Result:
    for future in after:
        future.result()
    with torch.inference_mode() if inference else torch.no_grad():
        return function(piece)


def _pool(workers: int) -> ThreadPoolExecutor:
    """Return a pool in whose threads every operation of torch runs on one thread."""
    with _LOCK:
        if workers not in _POOLS:
            threads = torch.get_num_threads()
            started = threading.Barrier(workers + 1)
            pool = ThreadPoolExecutor(workers, initializer=_start, initargs=(started,))
            for _ in range(workers):
                pool.submit(int)
            started.wait()
            torch.set_num_threads(threads)  # the workers' 1 would be the number of every thread that starts later
            _POOLS[workers] = pool
        return _POOLS[workers]


def _start(started: threading.Barrier) -> None:
    _HERE.worker = True
    torch.get_num_threads()  # the first call in a thread takes the process's number, and would undo the next line
    torch.set_num_threads(1)
    started.wait()


def _forget() -> None:
    """Forget the pools in a forked process, which does not have their threads."""
    global _LOCK
    _LOCK = threading.Lock()
    _POOLS.clear()


os.register_at_fork(after_in_child=_forget)
