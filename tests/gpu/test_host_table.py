"""The table of words in the host's memory: looked up alike, and gone from the device's."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

GPU = torch.device("cuda")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_rows_are_looked_up_alike_and_take_nothing_of_the_device(dtype: torch.dtype) -> None:
    from agent.duplex.cuda.host_table import keep_on_host
    from agent.duplex.cuda.kernels import embed

    # Whole pieces of 2 MB: the allocator counts what is left of one along with it.
    table = nn.Embedding(20_480, 512, device=GPU, dtype=dtype)
    table.requires_grad_(False)
    ids = torch.randint(0, 20_480, (700,), device=GPU)
    given = torch.zeros(700, 512, device=GPU, dtype=dtype)
    looked_up, embedded = table(ids), embed(ids, table.weight, given)
    values, taken = table.weight.cpu(), torch.cuda.memory_allocated()
    keep_on_host(table)
    assert torch.cuda.memory_allocated() == taken - values.nbytes
    assert table.weight.is_cuda and table.weight.dtype == dtype
    assert torch.equal(table(ids), looked_up) and torch.equal(table.weight.cpu(), values)
    assert torch.equal(embed(ids, table.weight, given), embedded)


def test_graphs_look_rows_up_and_memory_lives_as_long_as_its_table() -> None:
    from agent.duplex.cuda.host_table import on_host

    table = torch.randn(5_000, 256, device=GPU)
    ids = torch.zeros(64, dtype=torch.long, device=GPU)
    kept = on_host(table)
    graph = torch.cuda.CUDAGraph()
    F.embedding(ids, kept)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        rows = F.embedding(ids, kept)
    for seed in range(3):
        torch.manual_seed(seed)
        ids.copy_(torch.randint(0, 5_000, (64,)))
        # What else pins memory meanwhile must not get this one's.
        torch.full((5_000, 256), float(seed), pin_memory=True)
        graph.replay()
        assert torch.equal(rows, table[ids])
