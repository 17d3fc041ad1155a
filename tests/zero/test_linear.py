"""`zero.linear` gives the bits of DeepSpeed's own functions, keeps what else they do, and costs the same on any cluster.

The ranks of a collective live in one process here: each enters it in turn, and the last one completes it for all.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from deepspeed import comm
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.comm import coalesced_collectives
from deepspeed.runtime.zero import partition_parameters, stage3
from deepspeed.runtime.zero.partition_parameters import AllGatherCoalescedHandle, Init, ZeroParamStatus
from deepspeed.utils import nvtx
from torch import Tensor

from ijepa_ds.zero import known, linear
from tests import waiting
from tests.dist.pool import forks

WORLDS = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Group:
    """One rank's place in a process group."""

    name: str
    rank: int
    world: int


class Fabric:
    """All-gathers among ranks that run one after the other."""

    def __init__(self) -> None:
        self.calls: dict[tuple[str, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        self.count: dict[Group, int] = defaultdict(int)

    def all_gather(self, given: Tensor, output: Tensor, group: Group) -> Any:
        """Completed when the last rank of the group has called; only then the output has its values."""
        entered = self.calls[group.name, self.count[group]]
        self.count[group] += 1
        entered.append((given, output))
        assert given.numel() * group.world == output.numel() and given.dtype == output.dtype
        if len(entered) == group.world:
            whole = torch.cat([part.reshape(-1) for part, _ in entered])
            for _, target in entered:
                target.copy_(whole)
        return SimpleNamespace(wait=lambda: None)


@pytest.fixture(autouse=True)
def placed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`Group` says who a rank is; whatever was replaced comes back."""
    assert linear.install() == ""
    monkeypatch.setattr(comm, "get_rank", lambda group=None: group.rank if group else 0)
    monkeypatch.setattr(comm, "get_world_size", lambda group=None: group.world if group else 1)
    yield
    assert linear.install() == ""


def reduced(monkeypatch: pytest.MonkeyPatch, world: int, given: list[list[Tensor]]) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Each rank's parts, and its tensors afterwards: every rank enters, and then again with what the others had sent."""
    sent: list[Tensor] = []

    def exchange(output: Tensor, whole: Tensor, group: Group, async_op: bool) -> None:
        assert output.numel() * world == whole.numel() and not async_op
        if len(sent) < world:
            sent.append(whole.clone())
        else:
            parts = [one.view(world, -1)[group.rank] for one in sent]
            output.copy_(sum(parts[1:], parts[0]))

    monkeypatch.setattr(comm, "reduce_scatter_fn", exchange)
    results = []
    for _ in range(2):
        results = []
        for rank in range(world):
            tensors = [tensor.clone() for tensor in given[rank]]
            results.append((stage3.reduce_scatter_coalesced(tensors, Group("all", rank, world)), tensors))
    return results


def shapes(random: np.random.Generator) -> list[tuple[int, ...]]:
    """One to five shapes of 0 to 40 elements; every fourth list is a single tensor."""
    count = 1 if random.random() < 0.25 else int(random.integers(1, 6))
    flat = [(int(random.integers(0 if count > 1 else 1, 41)),) for _ in range(count)]
    return [(2, n // 2) if n > 2 and n % 2 == 0 and random.random() < 0.3 else (n,) for (n,) in flat]


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.filterwarnings("ignore")
def test_reduce_scatter_has_deepspeeds_bits(world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random, generator = np.random.default_rng(world), torch.Generator().manual_seed(world)
    for _ in range(80):
        sizes, types = shapes(random), [torch.float32, torch.bfloat16, torch.float16]
        dtype = types[random.integers(3)]
        mixed = random.random() < 0.2
        dtypes = [types[random.integers(3)] if mixed else dtype for _ in sizes]
        given = [[torch.randn(s, generator=generator).to(d) for s, d in zip(sizes, dtypes, strict=True)] for _ in range(world)]
        if sum(tensor.numel() for tensor in given[0]) == 0:
            continue
        found = reduced(monkeypatch, world, given)
        with linear.deepspeeds_own():
            expected = reduced(monkeypatch, world, given)
        for (parts, after), (wanted, kept) in zip(found, expected, strict=True):
            assert [part.shape for part in parts] == [part.shape for part in wanted]
            assert all(part.dtype == want.dtype and torch.equal(part, want) for part, want in zip(parts, wanted, strict=True))
            assert all(torch.equal(one, other) for one, other in zip(after, kept, strict=True))  # overwritten, or not, alike


class Quantiser:
    """Eight bits by the largest value, as a CUDA kernel of DeepSpeed does it."""

    def quantize(self, tensor: Tensor) -> tuple[Tensor, Tensor]:
        scale = tensor.abs().max().float().clamp(min=1e-6) / 127
        return (tensor.float() / scale).round().to(torch.int8), scale.reshape(1)

    def dequantize(self, quantised: Tensor, scale: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        share = -(-quantised.numel() // scale.numel())  # of a rank; a single parameter's padding is cut off already
        values = (quantised.reshape(-1) * scale.repeat_interleave(share)[: quantised.numel()]).view(quantised.shape)
        return values if dtype is None else values.to(dtype)


def partitioner(rank: int, world: int, node: int | None, **options: Any) -> Init:
    """A `zero.Init` of one rank, without a process group; `node`: ranks that share hpZ's copies."""
    init = object.__new__(Init)
    groups = (world // node, Group(f"node{rank // node}", rank % node, node)) if node else (1, None)
    settings = dict(
        ds_process_group=Group("all", rank, world),
        dp_world_size=world,
        rank=rank,
        zero_param_process_group=groups[1],
        num_param_groups=groups[0],
        num_ranks_in_param_group=node or world,
        rank_in_group=rank % node if node else rank,
        remote_device="cpu",
        local_device=torch.device("cpu"),
        pin_memory=False,
        param_swapper=None,
        enable_sanity_checks=False,
        use_all_reduce_for_fetch_params=False,
        allgather_sequential=False,
        quantized_nontrainable_weights=False,
        quantizer_module=Quantiser(),
    )
    for name, value in (settings | options).items():
        setattr(init, name, value)
    return init


def gathered(
    monkeypatch: pytest.MonkeyPatch,
    values: list[Tensor],
    world: int,
    node: int | None = None,
    comm_dtypes: list[torch.dtype | None] | None = None,
    quantize: bool = False,
    handle_dependency: bool = True,
    **options: Any,
) -> list[list[Tensor]]:
    """Partition parameters with these values on every rank, gather them together; each rank's whole parameters."""
    fabric = Fabric()
    monkeypatch.setattr(partition_parameters, "_dist_allgather_fn", fabric.all_gather)
    monkeypatch.setattr(comm, "all_reduce", lambda *_, **__: pytest.fail("no all-reduce here"))
    every, handles = [], []
    for rank in range(world):
        init = partitioner(rank, world, node, **options)
        params = [torch.nn.Parameter(value.clone()) for value in values]
        for param, comm_dtype in zip(params, comm_dtypes or [None] * len(params), strict=True):
            if comm_dtype:
                param.comm_dtype = comm_dtype  # what torch_autocast sets
            init._convert_to_deepspeed_param(param)
        params[0].partition(params)
        for param in params:  # DeepSpeed leaves the padding as it was allocated, and quantises it too
            numel = param.ds_tensor.ds_numel
            param.ds_tensor[max(0, min(numel, param.ds_numel - rank * numel)) :] = 0
        every.append(params)
    for params in every:
        handles.append(params[0].all_gather_coalesced(params, quantize=quantize))
    for handle in handles:
        handle.wait(handle_dependency=handle_dependency)
        handle.wait(handle_dependency=handle_dependency)  # a second time: nothing happens
    assert all(param.ds_status == ZeroParamStatus.AVAILABLE for params in every for param in params)
    return [[param.data for param in params] for params in every]


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "quantised": {"quantize": True},
    "in sequence": {"allgather_sequential": True},
    "stream kept by the caller": {"handle_dependency": False},
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("world", "node"), [*((world, None) for world in WORLDS), (2, 2), (4, 2), (4, 4)])
def test_a_gather_has_deepspeeds_bits(name: str, world: int, node: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    random, generator = np.random.default_rng(world), torch.Generator().manual_seed(world)
    for case in range(12):
        sizes = [size if np.prod(size) else (1,) for size in shapes(random)]
        dtypes = [(torch.float32, torch.bfloat16)[case % 2]] * len(sizes)
        if case % 3 == 2 and name != "quantised":  # a bucket for each type
            dtypes = [(torch.float32, torch.bfloat16)[random.integers(2)] for _ in sizes]
        values = [torch.randn(s, generator=generator).to(d) for s, d in zip(sizes, dtypes, strict=True)]
        autocast = [torch.bfloat16 if random.random() < 0.5 else None for _ in sizes] if case % 4 == 3 else None
        options = CASES[name] | {"comm_dtypes": autocast if name != "quantised" else None}
        found = gathered(monkeypatch, values, world, node, **options)
        with linear.deepspeeds_own():
            expected = gathered(monkeypatch, values, world, node, **options)
        for whole, wanted in zip(found, expected, strict=True):
            for one, other, value in zip(whole, wanted, values, strict=True):
                assert one.shape == other.shape == value.shape and one.dtype == other.dtype and torch.equal(one, other)
                if name != "quantised" and not autocast:
                    assert torch.equal(one, value)


def test_parameters_converted_by_deepspeed_are_gathered_by_deepspeed(monkeypatch: pytest.MonkeyPatch) -> None:
    values, given = [torch.arange(7.0), torch.arange(10.0)], {}

    def list_only(self: Any, handle_dependency: bool = True) -> None:
        given["rows"] = self.partitions
        original(self, handle_dependency)

    original = linear._DEEPSPEED_WAIT
    monkeypatch.setattr(linear, "_DEEPSPEED_WAIT", list_only)
    monkeypatch.setattr(Init, "_convert_to_deepspeed_param", linear._DEEPSPEED_CONVERT)
    (first, _) = gathered(monkeypatch, values, 2)
    assert isinstance(given["rows"], list) and torch.equal(first[0], values[0]) and torch.equal(first[1], values[1])


@pytest.mark.parametrize("handle_dependency", [True, False])
def test_streams_know_the_gathered_buffer(handle_dependency: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA the buffer must outlive the copies out of it: by `record_stream`, or by a reference until `free_buffer`."""

    def watched() -> tuple[int, int, int]:
        """Buffers gathered; of these: recorded on the stream, held for `free_buffer`."""
        gathers: set[int] = set()
        recorded: set[int] = set()
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, _: recorded.add(self.untyped_storage().data_ptr()))
        complete = Fabric.all_gather

        def noted(self: Fabric, given: Tensor, output: Tensor, group: Group) -> Any:
            gathers.add(output.untyped_storage().data_ptr())
            return complete(self, given, output, group)

        with monkeypatch.context() as patch:
            patch.setattr(Fabric, "all_gather", noted)
            gathered(patch, [torch.randn(9), torch.randn(6)], 3, handle_dependency=handle_dependency)
            kept = AllGatherCoalescedHandle.data_buffer
            held = {(rows[0] if isinstance(rows, list) else rows).untyped_storage().data_ptr() for rows in kept}
            AllGatherCoalescedHandle.free_buffer()
        assert AllGatherCoalescedHandle.data_buffer == []
        return len(gathers), len(gathers & recorded), len(gathers & held)

    monkeypatch.setattr(get_accelerator(), "is_synchronized_device", lambda: False)
    monkeypatch.setattr(get_accelerator(), "current_stream", lambda: None)
    ours = watched()
    with linear.deepspeeds_own():
        assert watched() == ours == ((3, 3, 0) if handle_dependency else (3, 0, 3))


def test_names_of_ranges_in_a_profile_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    ranges: list[str] = []
    monkeypatch.setattr(nvtx, "enable_nvtx", True)  # off in runs: `zero.hooks`
    monkeypatch.setattr(get_accelerator(), "range_push", ranges.append)
    monkeypatch.setattr(get_accelerator(), "range_pop", lambda: None)
    gathered(monkeypatch, [torch.randn(9), torch.randn(6)], 2)
    reduced(monkeypatch, 2, [[torch.randn(9)], [torch.randn(9)]])
    assert {"AllGatherCoalescedHandle.wait", "reduce_scatter_coalesced"} <= set(ranges)


def test_an_unknown_source_keeps_deepspeeds_functions_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with linear.deepspeeds_own():
        names = (stage3, "reduce_scatter_coalesced"), (AllGatherCoalescedHandle, "wait"), (Init, linear._CONVERT)
        before = [getattr(*place) for place in names]
        changed = [(module, name, "0" if "wait" in name or "Handle" in name else of) for module, name, of in linear.KNOWN]
        monkeypatch.setattr(linear, "KNOWN", tuple(changed))
        monkeypatch.setattr(linear, "_allowed", True)
        note = linear.install()
        assert "AllGatherCoalescedHandle" in note and "reduce_scatter" not in note and "docs/host-time.md" in note
        assert "\n" not in note
        assert [getattr(*place) for place in names] == before
        monkeypatch.undo()


class SimpleImages(list[int]):
    """What the banner reads of an index."""

    classes = ("a", "b")
    containers = ()

    @property
    def labels(self) -> np.ndarray:
        return np.array(self)


def test_the_banner_has_five_lines_and_the_note_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    from ijepa_ds.training.start import _announce
    from tests.dist import jobs

    cfg, plan = jobs.tiny_config(), SimpleNamespace(world_size=1, micro_batch=8, accumulation=1)
    images: Any = SimpleImages([0] * 80)
    schedule: Any = SimpleNamespace(total_steps=60)
    parts = {"encoder": 85_000_000, "predictor": 7_000}
    for note in ("", "DeepSpeed 9 has another wait"):
        caplog.clear()
        caplog.set_level("DEBUG", logger="ijepa_ds")
        engine: Any = SimpleNamespace(
            describe=lambda: "details", note=note, stage=3, num_parameters=parts, device=torch.device("cpu")
        )
        _announce(cfg, plan, engine, images, schedule, "a fresh start", "here")  # type: ignore[arg-type]
        by_level = {level: [r.getMessage() for r in caplog.records if r.levelname == level] for level in ("INFO", "WARNING")}
        (banner,) = by_level["INFO"]
        assert len(banner.splitlines()) == 5 and "85.0 M parameters), ZeRO-3, 1 x cpu" in banner.splitlines()[0], banner
        assert (note in by_level["WARNING"]) == bool(note) and "details" in caplog.messages


def test_a_digest_is_of_the_source_with_its_decorators() -> None:
    assert known.digest(linear, "_fill_rows") != known.digest(linear, "wait") == ""  # `wait` is no definition
    assert len(known.digest(coalesced_collectives, "reduce_scatter_coalesced")) == 64
    assert known.digest(partition_parameters, "Init.no_such_method") == ""


def _costs_of_a_step(stage: int, world: int, pipe: Any) -> None:
    """In a process of its own: calls of one step of rank 0 of `world` ranks, its collectives, its bytes over the least."""
    from ijepa_ds.bench.traffic import Traffic, least_bytes
    from ijepa_ds.distributed.fake import pretend_world
    from tests.dist import jobs

    torch.set_num_threads(1)
    pretend_world(world)
    cfg = jobs.tiny_config("bfloat16", model={"mlp_hidden": 97}, batch_size=world)
    engine, plan = jobs.make_engine(cfg, stage, world)
    jobs.settle(engine, cfg, plan, 3)  # ZeRO-3 learns the order of the modules
    images, masks = jobs._moved(engine, *jobs.batch(cfg, 3, 0, plan.micro_batch))
    calls = 0

    def count(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    def step() -> None:
        engine.backward(engine.forward(images, masks).loss)
        engine.optimizer_step(1e-4, 0.05)
        engine.ema.update(0.996)

    sys.setprofile(count)
    step()
    sys.setprofile(None)
    with Traffic() as traffic:
        step()
    least = least_bytes(stage, engine.num_parameters["encoder"], engine.num_parameters["predictor"], 2)
    pipe.send((calls, dict(traffic.calls), traffic.moved / least))


def costs(stage: int, world: int) -> tuple[int, dict[str, int], float]:
    ours, theirs = forks().Pipe()
    process = forks().Process(target=_costs_of_a_step, args=(stage, world, theirs))
    process.start()
    theirs.close()
    assert ours.poll(waiting.limit(240)), f"{world} ranks: no answer"
    found = ours.recv()
    process.join()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_step_of_2048_ranks_costs_what_one_of_few_ranks_costs(stage: int) -> None:
    """And one of 2,048; the bytes are near the least possible."""
    found = {world: costs(stage, world) for world in (1, 8, 64, 512, 2048)}
    calls, collectives, share = ({world: result[i] for world, result in found.items()} for i in range(3))
    assert max(calls[64], calls[512], calls[2048]) <= 1.25 * calls[1], calls
    assert calls[8] <= 1.5 * calls[1], calls  # up to 9 ranks, stages 1 and 2 reduce to each owner
    assert max(calls[512], calls[2048]) <= 1.05 * calls[64], calls
    assert collectives[2048] == collectives[512] == collectives[64], collectives
    assert "reduce" not in collectives[64], collectives  # rooted, one for each owner
    assert sum(collectives[8].values()) <= sum(collectives[64].values()) + 8, collectives
    assert max(share[8], share[64]) <= 1.1 and max(share[512], share[2048]) <= 2, share
