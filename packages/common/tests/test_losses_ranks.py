"""Two processes with a part of the rows each are one process with all: the loss, and the gradients DDP averages."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = """
import os
import sys
import torch
from torch import distributed as dist
from clip_common.losses import *

class Weights:
    def log_weight(self, x_i, y_i, x_j, y_j):
        return 2 * (x_i @ y_j.T) - (y_i @ x_j.T)

def losses(x, y, scale, ids, modalities):
    yield InfoNCE()(x, y, scale=scale, tile=4)
    yield SigLIP()(x, y, scale=scale, bias=-3.0)
    yield InfoNCE()(x, y, scale=scale, weighting=Weights(), exclude=ids)
    yield Decoupled()(x, y, scale=scale, weighting=Weights(), normalise="none", positive=ids)
    yield HardNegative(beta=0.5)(x, y, scale=scale)
    yield Guided()(x, y, scale=scale, references=(x[:, :3], y[:, :3]))
    yield Matryoshka(dims=(4, 2))(x, y, scale=scale)
    present = torch.arange(len(x)) >= 0 if modalities is None else modalities
    three = PairwiseModalities({("x", "y"): 1.0, ("x", "z"): 0.5})
    yield three({"x": x, "y": y, "z": x * y}, present={"z": present}).loss

def run(rank, world, sizes, out):
    random = torch.Generator().manual_seed(0)
    total = sum(sizes)
    x, y = (torch.randn(total, 6, generator=random, dtype=torch.float64) for _ in range(2))
    ids = torch.arange(total) // 2
    has_z = torch.arange(total) < 2  # only rank 0 holds samples of the third modality
    mine = slice(sum(sizes[:rank]), sum(sizes[: rank + 1])) if world > 1 else slice(0, total)
    W = torch.eye(6, dtype=torch.float64).requires_grad_()
    scale = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    results = []
    for loss in losses(x[mine] @ W, y[mine] @ W, scale, ids[mine], has_z[mine]):
        loss = loss + 0 * scale  # modalities have scales of their own
        gradients = torch.autograd.grad(loss, (W, scale), retain_graph=True)
        for gradient in gradients:
            if world > 1:
                dist.all_reduce(gradient)
                gradient /= world
        results.append((loss.detach(), *gradients))
    torch.save(results, f"{out}.{world}.{rank}")

rank, world, sizes, out = int(sys.argv[1]), int(sys.argv[2]), eval(sys.argv[3]), sys.argv[4]
if world > 1:
    dist.init_process_group("gloo", init_method=sys.argv[5], rank=rank, world_size=world)
run(rank, world, sizes, out)
if world > 1:
    dist.barrier()
    os._exit(0)  # gloo's threads abort the process now and then if the interpreter ends beside them
"""

WITHOUT_GRADIENT = """
import os
import sys
import torch
from torch import distributed as dist
from clip_common.losses import *

rank, address = int(sys.argv[1]), sys.argv[2]
x, y = torch.randn(2, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
y.requires_grad_()
(alone,) = torch.autograd.grad(InfoNCE()(x[:3], y[:3], scale=1 / 0.07), y)  # before there is another rank
y = y.detach()
dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
mine = slice(3 * rank, 3 * rank + 3)
here = lambda rows, learns: rows[mine].clone().requires_grad_(learns)

# a modality of which one rank has no sample: zeros, and present says so
audio = here(y, True) if rank == 0 else torch.zeros(3, 4, dtype=torch.float64)
output = PairwiseModalities({("image", "audio"): 1.0}, learned=False)(
    {"image": here(x, True), "audio": audio}, present={"audio": torch.full((3,), rank == 0)}
)
output.loss.backward()
if rank == 0:
    torch.testing.assert_close(audio.grad / 2, alone[:3])  # which DDP averages

# whichever side learns, on whichever ranks
for x_learns in ((True, False), (False, False), (True, True)):
    for y_learns in ((False, True), (False, False)):
        rows, columns = here(x, x_learns[rank]), here(y, y_learns[rank])
        loss = InfoNCE()(rows, columns, scale=5.0)
        assert loss.requires_grad == any(x_learns + y_learns)
        if loss.requires_grad:
            loss.backward()
        assert (rows.grad is None) == (not x_learns[rank]) and (columns.grad is None) == (not y_learns[rank])
gathered = gather_rows(here(x, rank == 0))
gathered.square().sum().backward()
dist.barrier()
os._exit(0)  # gloo's threads abort the process now and then if the interpreter ends beside them
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def results(tmp_path: Path, sizes: list[int], world: int) -> list[list[tuple[torch.Tensor, ...]]]:
    address = f"tcp://127.0.0.1:{free_port()}"
    commands = [
        [sys.executable, "-c", SCRIPT, str(rank), str(world), repr(sizes), str(tmp_path / "result"), address]
        for rank in range(world)
    ]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    processes = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for command in commands]
    for process in processes:
        _, error = process.communicate(timeout=200)
        assert process.returncode == 0, error
    return [torch.load(tmp_path / f"result.{world}.{rank}", weights_only=True) for rank in range(world)]


@pytest.mark.parametrize("sizes", [[6, 6], [7, 4]], ids=["even", "uneven"])
def test_two_ranks_are_one(tmp_path, sizes):
    (one,) = results(tmp_path, sizes, 1)
    for rank in results(tmp_path, sizes, 2):
        for ours, whole in zip(rank, one, strict=True):
            for part, expected in zip(ours, whole, strict=True):
                torch.testing.assert_close(part, expected, atol=1e-9, rtol=1e-9)


def test_a_rank_whose_rows_carry_no_gradient_keeps_the_others_from_no_backward():
    address = f"tcp://127.0.0.1:{free_port()}"
    commands = [[sys.executable, "-c", WITHOUT_GRADIENT, str(rank), address] for rank in range(2)]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    processes = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for command in commands]
    try:
        for process in processes:
            _, error = process.communicate(timeout=60)
            assert process.returncode == 0, error
    finally:
        for process in processes:
            process.kill()
