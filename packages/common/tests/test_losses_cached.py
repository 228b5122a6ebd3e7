"""A loss of embeddings computed a mini-batch at a time: what encoders see, and one synchronisation under DDP."""

import os
import socket
import subprocess
import sys

import torch
from torch import Tensor, nn

from clip_common.losses import InfoNCE, cached


class Watched(nn.Module):
    """An encoder that notes how many rows it is given, and reads a mapping if it is given one."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3)
        self.seen: list[int] = []

    def forward(self, inputs: Tensor | dict[str, Tensor]) -> Tensor:
        rows = inputs if isinstance(inputs, Tensor) else inputs["words"] * inputs["mask"]
        self.seen.append(len(rows))
        return self.linear(rows)


def test_an_encoder_sees_a_mini_batch_at_a_time_once_each_way():
    encoder = Watched()
    loss = cached(InfoNCE(), mini_batch=4)((encoder, torch.randn(10, 5)), (encoder, torch.randn(10, 5)), scale=5.0)
    assert encoder.seen == [4, 4, 2] * 2
    loss.backward()
    assert sorted(encoder.seen[6:]) == sorted([4, 4, 2] * 2)


def test_mappings_are_split_by_rows():
    encoder = Watched()
    x, words, mask = torch.randn(7, 5), torch.randn(7, 5), torch.ones(7, 5)
    ours = cached(InfoNCE(), mini_batch=3)((encoder, x), (encoder, {"words": words, "mask": mask}), scale=5.0)
    torch.testing.assert_close(ours, InfoNCE()(encoder(x), encoder(words), scale=5.0))


SCRIPT = """
import os
import sys
import torch
from torch import distributed as dist, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from clip_common.losses import InfoNCE, cached

class Step(nn.Module):  # as Lightning wraps it: the encoders are inside
    def __init__(self):
        super().__init__()
        self.x = nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 3))
        self.y = nn.Linear(5, 3)
    def forward(self, x, y, loss):
        return loss((self.x, x), (self.y, y), scale=5.0)

def whole(*encoded, **keywords):
    return InfoNCE()(*(encoder(inputs) for encoder, inputs in encoded), **keywords)

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=sys.argv[2], rank=rank, world_size=2)
torch.manual_seed(0)
step, data = Step(), torch.randn(2, 11, 5)
x, y = (side[:7] if rank == 0 else side[7:] for side in data)  # three mini-batches here, two there
calls = []
def counted(state, bucket):
    calls.append(bucket)
    return allreduce_hook(None, bucket)
wrapped = DistributedDataParallel(step)
wrapped.register_comm_hook(None, counted)
gradients = []
for loss in (cached(InfoNCE(), mini_batch=3), whole):
    step.zero_grad()
    wrapped(x, y, loss).backward()
    gradients.append([parameter.grad.clone() for parameter in step.parameters()])
assert len(calls) == 2, calls
for one, other in zip(*gradients):
    torch.testing.assert_close(one, other)
dist.barrier()
os._exit(0)  # gloo's threads abort the process now and then if the interpreter ends beside them
"""


def test_under_ddp_a_cached_loss_synchronises_once_and_gives_the_same_gradients():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    commands = [[sys.executable, "-c", SCRIPT, str(rank), address] for rank in range(2)]
    processes = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for command in commands]
    for process in processes:
        _, error = process.communicate(timeout=200)
        assert process.returncode == 0, error
