"""`zero.owners`: every owner gets the sum of its slices, whatever the bucket; two collectives at any number of ranks.

The ranks of a group are threads here. Whole numbers are added, so sums have no rounding.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from deepspeed import comm
from deepspeed.accelerator import get_accelerator
from torch import Tensor

from ijepa_ds.zero import owners


@dataclass(frozen=True, eq=False)
class Group:
    """One rank's place in a process group; `shared` are the tensors of the ranks that meet."""

    rank: int
    world: int
    meet: Barrier
    shared: dict[int, Any]
    calls: list[str] = field(default_factory=list)

    def exchange(self, given: Any) -> list[Any]:
        """What every rank gives, in the order of the ranks."""
        self.shared[self.rank] = given
        self.meet.wait(timeout=60)
        found = [self.shared[rank] for rank in range(self.world)]
        self.meet.wait(timeout=60)
        return found


def reduce_scatter(whole: Tensor, output: Tensor, group: Group) -> None:
    group.calls.append("reduce_scatter")
    parts = [one.view(group.world, -1)[group.rank] for one in group.exchange(whole.clone())]
    output.copy_(torch.stack(parts).sum(0))


def all_to_all(output: Tensor, given: Tensor, receives: list[int], sends: list[int], group: Group) -> None:
    group.calls.append("all_to_all")
    assert sum(sends) == given.numel() and sum(receives) == output.numel()
    everyone = group.exchange((given.clone(), sends))
    pieces = [sent.split(list(counts))[group.rank] for sent, counts in everyone]
    assert [piece.numel() for piece in pieces] == list(receives)
    output.copy_(torch.cat(pieces))


def all_reduce(tensor: Tensor, group: Group) -> None:
    group.calls.append("all_reduce")
    tensor.copy_(torch.stack(group.exchange(tensor.clone())).sum(0))


@pytest.fixture(autouse=True)
def placed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comm, "get_rank", lambda group: group.rank)
    monkeypatch.setattr(comm, "get_world_size", lambda group: group.world)
    monkeypatch.setattr(owners, "_torch_reduce_scatter_fn", reduce_scatter)
    monkeypatch.setattr(comm, "all_to_all_single", all_to_all)
    monkeypatch.setattr(comm, "all_reduce", all_reduce)


def on_ranks(world: int, run: Any) -> list[Any]:
    """`run(group)` on each of `world` ranks."""
    meet, shared = Barrier(world), {}
    with ThreadPoolExecutor(world) as pool:
        return [job.result() for job in [pool.submit(run, Group(rank, world, meet, shared)) for rank in range(world)]]


def bucket(
    random: np.random.Generator, world: int, slack: int, dtype: torch.dtype
) -> tuple[list[int], list[int], list[Tensor]]:
    """Sizes and owners of slices; each rank's whole numbers, in a buffer with `slack` unused elements behind and 3 before."""
    sizes = random.integers(0, 12, size=random.integers(1, 9)).tolist()
    owning = random.integers(0, world, size=len(sizes)).tolist()
    total = sum(sizes)
    buffers = [torch.full((3 + total + slack,), float("nan"), dtype=dtype) for _ in range(world)]
    for buffer in buffers:
        buffer[3 : 3 + total] = torch.from_numpy(random.integers(-9, 10, size=total)).to(dtype)
    return sizes, owning, buffers


@pytest.mark.parametrize("world", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("slack", [0, 1, 20])
def test_each_owner_has_the_sum_of_its_slices(world: int, slack: int) -> None:
    random = np.random.default_rng(100 * world + slack)
    for case in range(40):
        dtype, sent = [(torch.float32,) * 2, (torch.bfloat16,) * 2, (torch.bfloat16, torch.float32)][case % 3]
        sizes, owning, buffers = bucket(random, world, slack, dtype)
        expected = torch.stack([b[3 : 3 + sum(sizes)] for b in buffers]).float().sum(0).split(sizes)

        def run(group: Group, sizes: Any = sizes, owning: Any = owning, buffers: Any = buffers, sent: Any = sent) -> Any:
            gradients = buffers[group.rank].narrow(0, 3, sum(sizes))
            way = owners.route(sizes, owning, group.rank, world, sum(sizes) + slack)
            assert len(way.sent) == len(way.received) == world
            return owners.reduce_to_owners(gradients, way, sent, group)

        for rank, sums in enumerate(on_ranks(world, run)):
            wanted = [part for part, owner in zip(expected, owning, strict=True) if owner == rank]
            assert [s.dtype for s in sums] == [sent] * len(wanted)
            assert all(torch.equal(s.float(), want) for s, want in zip(sums, wanted, strict=True))


def test_a_route_shares_the_bucket_equally() -> None:
    """Ten elements on four ranks: shares of 3 where memory allows 12 elements, else of 2, with 2 elements left behind."""
    whole = owners.route([4, 6], [3, 1], rank=1, world=4, room=12)
    assert (whole.share, whole.end) == (3, 12)
    assert whole.pieces == ((1, 2), (0, 1)) and whole.sent == (0, 2, 0, 1)  # elements 4, 5 to rank 1, then 3 to rank 3
    assert whole.received == (0, 2, 3, 1) and whole.spans == ((4, 10),) and whole.own == (1,)
    tight = owners.route([4, 6], [3, 1], rank=1, world=4, room=11)
    assert (tight.share, tight.end) == (2, 8) and tight.received == (0, 0, 2, 2)


class Optimizer:
    """What `average_tensor` reads of DeepSpeed's optimizer: two groups whose parameters lie on two ranks."""

    _add_to_grad_partition_buffer = staticmethod(owners.DeepSpeedZeroOptimizer._add_to_grad_partition_buffer)

    def __init__(self, group: Any, **more: Any) -> None:
        self.dp_process_group, self.sequence_parallel_size, self.gradient_average = group, 1, True
        self.reduce_scatter = self.use_multi_rank_bucket_allreduce = True
        self.overlap_comm = self._offload_gradient_safety_enabled = False
        self.optimizer: Any = object()
        self.recorded: list[Any] = []
        # Group 0: parameter 7, 5 elements, 2 on rank 0. Group 1: parameter 8, 4 elements on rank 0, and 9, 3 on rank 1.
        self.bit16_groups = [[torch.empty(5)], [torch.empty(4), torch.empty(3)]]
        self.param_to_partition_ids = [{7: [0, 1]}, {8: [0], 9: [1]}]
        self.grad_start_offset = [{0: {7: 0}, 1: {7: 2}}, {0: {8: 0}, 1: {9: 0}}]
        names = {
            "params": [(1, 1, 9), (0, 0, 7), (1, 0, 8)],
            "has_moe_params": False,
            "copy_streams": set(),
            "ready_events": {},
        }
        self.ipg_buckets = {torch.float32: SimpleNamespace(**names)}
        self.outputs: dict[Any, Tensor] = {}
        vars(self).update(more)

    def _record_gradient_stream(self, tensor: Tensor, stream: Any) -> None:
        self.recorded.append((tensor.numel(), stream))

    def _get_compact_grad_partition_slice(self, group: int, owner: int, param: int, numel: int) -> Tensor:
        return self.outputs.setdefault((group, owner, param), torch.ones(numel, dtype=torch.float64))


def test_owners_get_the_mean_of_their_slices_and_accumulate_it() -> None:
    """Bucket: parameter 9 (rank 1), parameter 7 (2 elements of rank 0, 3 of rank 1), parameter 8 (rank 0)."""

    def run(group: Group) -> tuple[Tensor, Any]:
        state = Optimizer(group)
        for _ in range(2):  # the second step has the route of the first
            tensor = torch.arange(12.0) + 100 * group.rank
            owners.average_tensor(state, tensor, torch.float32)
        assert group.calls == ["reduce_scatter", "all_to_all"] * 2
        return tensor, state.outputs

    (first, sums_0), (second, sums_1) = on_ranks(2, run)
    mean = torch.arange(12.0) + 50
    assert torch.equal(first[3:5], mean[3:5]) and torch.equal(first[8:], mean[8:])
    assert torch.equal(second[:3], mean[:3]) and torch.equal(second[5:8], mean[5:8])
    assert {key: value.tolist() for key, value in sums_0.items()} == {
        (0, 0, 7): (2 * mean[3:5] + 1).tolist(), (1, 0, 8): (2 * mean[8:] + 1).tolist()
    }  # fmt: skip
    assert {key: value.tolist() for key, value in sums_1.items()} == {
        (1, 1, 9): (2 * mean[:3] + 1).tolist(), (0, 1, 7): (2 * mean[5:8] + 1).tolist()
    }  # fmt: skip


def test_without_averaging_the_sum_stays() -> None:
    (tensor,) = on_ranks(1, lambda group: _summed(Optimizer(group, gradient_average=False, param_to_partition_ids=ALONE)))
    assert torch.equal(tensor, torch.arange(12.0))


ALONE = [{7: [0]}, {8: [0], 9: [0]}]


def _summed(state: Optimizer) -> Tensor:
    state.grad_start_offset = [{0: {7: 0}}, {0: {8: 0, 9: 0}}]
    tensor = torch.arange(12.0)
    owners.average_tensor(state, tensor, torch.float32)
    return tensor


class MuonWithAuxAdam:
    """Has the name of DeepSpeed's optimizer."""


@pytest.mark.parametrize(
    "special",
    [
        {"reduce_scatter": False},
        {"use_multi_rank_bucket_allreduce": False},
        {"sequence_parallel_size": 2},
        {"optimizer": MuonWithAuxAdam()},
        {"ipg_buckets": {torch.float32: SimpleNamespace(has_moe_params=True)}},
    ],
)
def test_deepspeeds_method_takes_over_where_this_one_does_not_apply(
    special: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Any] = []
    monkeypatch.setattr(owners, "_DEEPSPEED_AVERAGE", lambda *args: taken.append(args))
    state, tensor = Optimizer(None, **special), torch.arange(12.0)
    owners.average_tensor(state, tensor, torch.float32)
    assert taken == [(state, tensor, torch.float32)]


class Stream:
    """Notes what it waits for."""

    def __init__(self, name: str, waits: list[Any]) -> None:
        self.name, self.waits = name, waits

    def wait_stream(self, other: Stream) -> None:
        self.waits.append((self.name, other.name))

    def wait_event(self, event: str) -> None:
        self.waits.append((self.name, event))


@pytest.mark.parametrize("safety", [False, True])
def test_on_cuda_the_reduction_waits_for_every_writer_of_the_bucket(safety: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same waits as DeepSpeed's own method makes."""
    # DeepSpeed's method imports it, and the import compiles kernels for seconds.
    muon = SimpleNamespace(MuonWithAuxAdam=MuonWithAuxAdam)
    monkeypatch.setitem(sys.modules, "deepspeed.runtime.zero.muon.muon_optimizer", muon)  # type: ignore[arg-type]
    accelerator, waits = get_accelerator(), []
    current, writer, reduction = (Stream(name, waits) for name in ("current", "writer", "reduction"))
    monkeypatch.setattr(accelerator, "resolves_data_dependency", lambda: False)
    monkeypatch.setattr(accelerator, "current_stream", lambda *_: current)
    monkeypatch.setattr(accelerator, "stream", lambda _: nullcontext())

    def run(group: Group, method: Any) -> list[Any]:
        state = Optimizer(group, overlap_comm=True, reduction_stream=reduction, param_to_partition_ids=ALONE)
        state._offload_gradient_safety_enabled = safety
        state.ipg_buckets[torch.float32].copy_streams = {writer}
        state.ipg_buckets[torch.float32].ready_events = {"one": "event"}
        state.grad_start_offset = [{0: {7: 0}}, {0: {8: 0, 9: 0}}]
        state.partition_size, state.reduce_bucket_size, state.allreduce_and_scatter = [5, 7], 100, lambda *_, **__: None
        waits.clear()
        method(state, torch.arange(12.0), torch.float32)
        assert state.recorded == [(12, reduction)]
        return list(waits)

    (ours,) = on_ranks(1, lambda group: run(group, owners.average_tensor))
    (theirs,) = on_ranks(1, lambda group: run(group, owners._DEEPSPEED_AVERAGE))
    assert ours == theirs and ours[-1] == ("current", "reduction") and len(ours) == 2
