"""Reductions of ZeRO stages 1 and 2 in two collectives for each bucket, at any number of ranks.

A bucket holds gradients in the order in which the backward pass produces them. Each rank owns some slices of it, of different
lengths. DeepSpeed either sends one rooted reduce for each owner, whose number grows with the ranks, or all-reduces the bucket,
which sends twice the bytes. Here each rank first receives the sum of an equal share of the bucket (reduce-scatter), and then
sends the parts of this share to their owners (all-to-all). The second collective moves `1 / ranks` of the bytes of the first.

DeepSpeed also looks up the owners of every slice again in every step. Here a bucket's `Route` is computed once.
docs/host-time.md explains and measures it. `zero.linear.install` makes the replacement.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from deepspeed import comm as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.comm.coalesced_collectives import _torch_reduce_scatter_fn
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor

_DEEPSPEED_AVERAGE = DeepSpeedZeroOptimizer.average_tensor
_ROUTES = "_ijepa_ds_routes"  # attribute of the optimizer


@dataclass(frozen=True)
class Route:
    """How a bucket gets to its owners, for one rank. All numbers are elements.

    Attributes:
        share: of the bucket, for each rank's sum. The bucket is cut into `ranks` shares.
        end: where the shares end. What is behind it (less than one element a rank) is all-reduced.
        pieces: (offset in this rank's share, length), in the order in which they are sent.
        sent: to each rank. A tuple: DeepSpeed looks at each item of a list on its way to torch.
        received: from each rank. A tuple, too.
        own: indices of this rank's slices.
        spans: (begin, end) of this rank's slices in the bucket.
    """

    share: int
    end: int
    pieces: tuple[tuple[int, int], ...]
    sent: tuple[int, ...]
    received: tuple[int, ...]
    own: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]


def route(sizes: Sequence[int], owners: Sequence[int], rank: int, world: int, room: int) -> Route:
    """Compute a bucket's route.

    Args:
        sizes: of the slices, in the order of the bucket.
        owners: rank that owns each slice.
        rank: this rank.
        world: number of ranks.
        room: elements from the start of the bucket to the end of its memory. If it allows, the bucket is rounded up to a
            multiple of the ranks, so that nothing is left behind the shares.
    """
    begins = list(accumulate(sizes, initial=0))
    total = begins[-1]
    share = -(-total // world)
    if share * world > room:
        share = total // world
    low, high = rank * share, min((rank + 1) * share, total)
    pieces: dict[int, list[tuple[int, int]]] = defaultdict(list)
    received = [0] * world
    own = tuple(i for i, owner in enumerate(owners) if owner == rank)
    for owner, begin, stop in zip(owners, begins, begins[1:], strict=False):
        first, last = max(begin, low), min(stop, high)
        if first < last:
            pieces[owner].append((first - low, last - first))
    for i in own:
        begin, stop = begins[i], min(begins[i + 1], share * world)
        for sender in range(begin // share, -(-stop // share)) if share else ():
            received[sender] += min(stop, (sender + 1) * share) - max(begin, sender * share)
    return Route(
        share=share,
        end=share * world,
        pieces=tuple(piece for owner in sorted(pieces) for piece in pieces[owner]),
        sent=tuple(sum(length for _, length in pieces.get(owner, ())) for owner in range(world)),
        received=tuple(received),
        own=own,
        spans=tuple((begins[i], begins[i + 1]) for i in own),
    )


def reduce_to_owners(bucket: Tensor, way: Route, dtype: torch.dtype, group: Any) -> list[Tensor]:
    """Sum a bucket over the ranks of `group`.

    Args:
        bucket: `[n]`, contiguous; undefined afterwards.
        way: of this bucket and rank.
        dtype: what is sent.
        group: process group.

    Returns:
        The sums of this rank's own slices, in order, in `dtype`.
    """
    whole = bucket.as_strided((max(bucket.numel(), way.end),), (1,)).to(dtype)
    if way.end < bucket.numel():
        dist.all_reduce(whole[way.end :], group=group)
    incoming = whole.new_empty(sum(way.received))
    if way.share:
        mine = whole.narrow(0, dist.get_rank(group) * way.share, way.share)
        _torch_reduce_scatter_fn(whole[: way.end], mine, group=group)
        outgoing = torch.cat([mine.narrow(0, *piece) for piece in way.pieces]) if way.pieces else whole.new_empty(0)
        # Senders hold ascending shares of the bucket, so what arrives has the order of the bucket.
        dist.all_to_all_single(incoming, outgoing, way.received, way.sent, group=group)
    sums, column = [], 0
    for begin, stop in way.spans:
        length = max(0, min(stop, way.end) - begin)
        total = incoming.narrow(0, column, length)
        column += length
        sums.append(torch.cat([total, whole[max(begin, way.end) : stop]]) if stop > way.end else total)
    return sums


def average_tensor(self: Any, tensor: Tensor, communication_data_type: torch.dtype) -> None:
    """DeepSpeed's method of this name: average a bucket over the ranks; each slice is complete on its owner only.

    DeepSpeed's own method is used for rooted reduces (`use_multi_rank_bucket_allreduce: false`), all-reduces
    (`reduce_scatter: false`), experts, sequence parallelism and Muon.

    Args:
        self: the optimizer.
        tensor: `[n]`, the gradients of the bucket of this type.
        communication_data_type: type that is sent.
    """
    bucket = self.ipg_buckets[communication_data_type]
    shared = self.reduce_scatter and self.use_multi_rank_bucket_allreduce
    special = bucket.has_moe_params or self.sequence_parallel_size > 1 or "Muon" in type(self.optimizer).__name__
    if special or not shared:
        _DEEPSPEED_AVERAGE(self, tensor, communication_data_type)
        return
    group = self.dp_process_group
    stream = _ready(self, bucket)
    with get_accelerator().stream(stream):
        self._record_gradient_stream(tensor, stream)
        way, outputs = _route_of(self, bucket.params, tensor, group)
        if self.gradient_average:
            tensor.div_(dist.get_world_size(group))
        sums = reduce_to_owners(tensor, way, communication_data_type, group)
        for (begin, stop), total, output in zip(way.spans, sums, outputs, strict=True):
            self._add_to_grad_partition_buffer(self._get_compact_grad_partition_slice(*output, stop - begin), total)
            tensor[begin:stop].copy_(total)


def _ready(self: Any, bucket: Any) -> Any:
    """The stream of the reduction, which waits for everything that writes into the bucket, as in DeepSpeed's method."""
    accelerator = get_accelerator()
    current = accelerator.current_stream()
    stream = self.reduction_stream if self.overlap_comm else current
    asynchronous = self.overlap_comm and not accelerator.resolves_data_dependency()
    if self._offload_gradient_safety_enabled:
        for event in bucket.ready_events.values():
            stream.wait_event(event)
    elif asynchronous:
        for producer in bucket.copy_streams or {current}:
            stream.wait_stream(producer)
    if asynchronous:
        current.wait_stream(stream)
    return stream


def _route_of(self: Any, params: Sequence[tuple[int, int, int]], tensor: Tensor, group: Any) -> tuple[Route, list[Any]]:
    """The route of a bucket with these parameters; for each own slice (group, partition, parameter) of DeepSpeed.

    Computed once for each bucket: later steps have the same ones.
    """
    routes = self.__dict__.setdefault(_ROUTES, {})
    room = int(tensor.untyped_storage().nbytes() // tensor.element_size() - tensor.storage_offset())
    key = (*params, room)
    if key not in routes:
        slices = []  # length, (group, partition, parameter)
        for i, index, param in params:
            offsets = self.grad_start_offset[i]
            starts = sorted((offsets[owner][param], owner) for owner in self.param_to_partition_ids[i][param])
            ends = [*(start for start, _ in starts[1:]), self.bit16_groups[i][index].numel()]
            slices += [(int(end - start), (i, owner, param)) for (start, owner), end in zip(starts, ends, strict=True)]
        sizes, owners = [size for size, _ in slices], [name[1] for _, name in slices]
        way = route(sizes, owners, dist.get_rank(group), dist.get_world_size(group), room)
        routes[key] = way, [slices[i][1] for i in way.own]
    found: tuple[Route, list[Any]] = routes[key]
    return found
