"""Host time, latency and collectives of the plan; both steps that were measured on an H100, through the command."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ijepa_ds import cli, config
from ijepa_ds.config import Config, load
from ijepa_ds.config.deepspeed_json import load_deepspeed
from ijepa_ds.masks.sampler import Masks
from ijepa_ds.model.blocks import flatten_blocks
from ijepa_ds.model.ijepa import build
from ijepa_ds.model.work import Tokens, work_of
from ijepa_ds.plan import host, latency, report, search
from ijepa_ds.plan.buckets import gradient_collectives
from ijepa_ds.plan.hardware import DEVICES, Device, device_of
from ijepa_ds.plan.spread import Spread, spread_of
from ijepa_ds.plan.traffic import traffic_of
from tests.weights_cases import small_config

H14 = Spread(stage=2, nodes=64, gpus=8, micro_batch=4, accumulation=1, bucket=100_000_000, double_bucket=True)


@pytest.fixture(scope="module")
def h14(repository: Path) -> Config:
    """The published run."""
    return load(repository / "configs/in1k_vith14.yaml")


def planned(repository: Path, capsys: pytest.CaptureFixture[str], *options: str, stage: int = 2) -> dict[str, Any]:
    """What `ijepa-ds plan --json -` prints for the published run."""
    files = ["--config", str(repository / "configs/in1k_vith14.yaml")]
    files += ["--deepspeed_config", str(repository / f"ds_configs/zero{stage}.json")]
    assert cli.main(["plan", *files, "--json", "-", *options]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("code", "compiled", "seconds", "kernels", "busy"),
    [("h100-eager", "false", 0.516, 13_449, 0.322), ("h100-compiled", "true", 0.280, 4_084, 0.239)],
)
def test_both_steps_measured_on_an_h100(
    code: str, compiled: str, seconds: float, kernels: int, busy: float, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """ViT-H/14, 128 images, ZeRO-2 (docs/performance.md): step, kernels launched, and seconds of kernels."""
    run = ["optimization.batch_size=128", f"model.compile={compiled}"]
    step = planned(repository, capsys, "--gpu", "h100", "--code", code, *run)["step_seconds"]
    assert step["expected"] == pytest.approx(seconds, rel=0.15) and step["limit"] == "host"
    assert step["host"]["kernels"] == pytest.approx(kernels, rel=0.05)
    assert step["device"] == pytest.approx(busy, rel=0.15)
    assert step["fast"] <= seconds <= step["slow"]


def test_python_limits_small_micro_batches(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """ViT-H on 512 A100s, four images each: Python takes longer than the GPU, whatever the stage."""
    where = ["--gpu", "a100-80g", "--nodes", "64", "--gpus-per-node", "8"]
    step = planned(repository, capsys, *where)["step_seconds"]
    assert step["limit"] == "host" and step["expected"] > 0.15 > step["device"]
    three = planned(repository, capsys, *where, stage=3)["step_seconds"]
    assert three["host_seconds"] > step["host_seconds"] + 0.1


class Operations(TorchDispatchMode):
    """Counts the operations that compute or copy, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


VIEWS = {"view", "_unsafe_view", "t", "transpose", "permute", "unbind", "detach", "split_with_sizes"}


def test_operations_of_a_block_are_those_that_run(tmp_path: Path) -> None:
    """bfloat16 blocks; the predictor grows by two blocks, which run forward and backward."""
    counts: dict[str, list[int]] = {"forward": [], "backward": []}
    cfg = small_config(tmp_path / "run")
    for depth in (1, 3):
        predictor = replace(cfg.model.predictor, depth=depth)
        model = build(replace(cfg, model=replace(cfg.model, predictor=predictor, precision="bfloat16")))
        model = model.to(torch.bfloat16)
        flatten_blocks(model, forget_weights=False)
        n, c, m = cfg.grid**2, cfg.masks.num_contexts, cfg.masks.num_targets
        masks = Masks(torch.arange(n).expand(2, c, n), torch.arange(n).expand(2, m, n))
        images = torch.zeros(2, 3, cfg.data.crop_size, cfg.data.crop_size, dtype=torch.bfloat16)
        with Operations() as forward:
            loss = model(images, masks).loss
        with Operations() as backward:
            loss.backward()
        for name, counter in (("forward", forward), ("backward", backward)):
            counts[name].append(sum(count for kind, count in counter.found.items() if kind not in VIEWS))
    per_block = tuple((more - fewer) / 2 for fewer, more in counts.values())
    forward_of_block, backward_of_block = host._EAGER
    assert per_block == (forward_of_block, backward_of_block + host._JOINS)


def test_gathers_of_a_step_are_those_that_were_counted(repository: Path, tmp_path: Path) -> None:
    """ViT-H's depth at 1/16 of its width, zero3_lean.json with buckets to match, 2 ranks: the engine's gathers, counted."""
    narrow = "model.width=80 model.heads=1 model.mlp_hidden=320 model.predictor.width=24 model.predictor.heads=1"
    cfg = load(repository / "configs/in1k_vith14.yaml", [*narrow.split(), "optimization.batch_size=2"])
    settings = json.loads((repository / "ds_configs/zero3_lean.json").read_text())
    for key in ("reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_max_live_parameters", "sub_group_size"):
        settings["zero_optimization"][key] //= 256
    (tmp_path / "lean.json").write_text(json.dumps(settings))
    batch = config.check(cfg, 2)
    spread = spread_of(load_deepspeed(tmp_path / "lean.json", cfg, batch), batch, 1, 2)
    calls = {m.purpose: m.calls for m in traffic_of(work_of(cfg, Tokens(69, 43, 69, 43)), spread)}
    assert calls["target's weights, forward"] + calls["weights, forward"] == 68
    assert (calls["weights, backward"], calls["gradients"]) == (32, 35)


def test_reductions_to_owners_grow_with_the_ranks_and_buckets_do_not(h14: Config) -> None:
    work = work_of(h14, Tokens(69, 43, 69, 43))
    whole = replace(H14, nodes=8, reduction="rooted", bucket=1_000_000_000)  # one bucket: every rank owns a part of it
    assert gradient_collectives(work, whole) == 64 and gradient_collectives(work, replace(whole, nodes=2)) == 16
    owners = replace(whole, bucket=100_000_000)
    once = gradient_collectives(work, owners)
    assert 64 < once < 64 + 7 * 16  # a bucket crosses the borders of ranks in each of four groups
    assert gradient_collectives(work, replace(owners, accumulation=4)) == 4 * once
    sums = replace(owners, accumulation=4, stage=1)
    assert gradient_collectives(work, sums) == 2  # float32 sums, joined up to 5e8 elements
    assert gradient_collectives(work, H14) == gradient_collectives(work, replace(H14, nodes=1)) == 7


def test_latency_follows_nccls_model() -> None:
    h100, machine = DEVICES["h100"], replace(H14, nodes=1)
    many = latency.latency_of("reduce_scatter", 512, H14, h100)
    assert many == pytest.approx(8.4e-6 + 448 * 3.4e-6 + 63 * 9.6e-6)
    assert latency.latency_of("reduce", 512, H14, h100) == pytest.approx(8.4e-6 + 448 * 3.4e-6 + 64 * 9.6e-6)
    ring = latency.latency_of("all_reduce", 8, machine, h100)
    assert ring == pytest.approx(8.4e-6 + 2 * 7 * 3.4e-6)
    tree = latency.latency_of("all_reduce", 512, H14, h100)  # 2 x (7 hops in a machine + log2(64) between machines)
    assert tree == pytest.approx(8.4e-6 + 2 * (7 * 28e-6 + 6 * 50e-6)) and tree < 2 * many
    assert latency.latency_of("all_gather", 1, machine, h100) == 0.0


@pytest.mark.parametrize("device", ["a100-80g", "h100", "b200", "slow host"])
@pytest.mark.parametrize("nodes", [1, 2, 64])
def test_what_the_host_limits_is_not_proposed_where_another_way_is_not(device: str, nodes: int, h14: Config) -> None:
    where: Device = DEVICES.get(device) or replace(DEVICES["a100-80g"], host=2.2)
    spread = replace(H14, nodes=nodes, micro_batch=128)

    def plan(*shapes: Any) -> report.Plan:
        return report.plan_of(h14, *shapes, where, None)

    ways = search.search(h14, work_of(h14, Tokens(69, 43, 91, 54)), spread, plan)
    fitting = [way.plan for way in ways if way.plan.fits]
    assert {way.work.compiled for way in fitting} == {True, False}
    free = [one for one in fitting if one.timing.limit != "host"]
    assert (fitting[0].timing.limit != "host") == bool(free)
    assert fitting[0].expected <= search.SAME * min(one.expected for one in free or fitting)
    text = search.table(ways)
    assert "limited by" in text and "compiled" in text and "eager" in text


def test_a_faster_way_that_the_host_limits_is_not_proposed(h14: Config) -> None:
    """Compiled ways are made 10 % faster and host-bound: an eager one is proposed, and the table says why."""
    spread = replace(H14, nodes=1, micro_batch=128)

    def plan(work: Any, *rest: Any) -> report.Plan:
        found = report.plan_of(h14, work, *rest, DEVICES["a100-80g"], None)
        limit = {"limit": "host", "expected": 0.1} if work.compiled else {"limit": "products", "expected": 0.11}
        return replace(found, timing=replace(found.timing, **limit))

    ways = search.search(h14, work_of(h14, Tokens(69, 43, 91, 54)), spread, plan)
    assert not ways[0].plan.work.compiled and ways[0].plan.fits
    assert any("but the host limits it" in way.reason for way in ways if way.plan.work.compiled)


def test_a_device_file_may_set_its_measured_shares(tmp_path: Path) -> None:
    rates = "memory_gib: 32\nbfloat16_tflops: 100\nfloat32_tflops: 50\nmemory_gbps: 900\nlink_gbps: 32\nnetwork_gbps: 12.5\n"
    path = tmp_path / "mine.yaml"
    path.write_text(rates + "host: 1.5\nnetwork_us: 25\n")
    device = device_of(str(path), 1)
    assert (device.host, device.network_us, device.products_share) == (1.5, 25, DEVICES["h100"].products_share)
    path.write_text(rates + "margin: 2\nhost: 0\n")
    with pytest.raises(ValueError, match=r"(?s)margin: unknown.*host: expected a number above 0"):
        device_of(str(path), 1)


def test_a_cpu_is_its_own_host(h14: Config) -> None:
    """Neither asynchronous nor compiled unless the run says so; both times add up."""
    cpu = replace(DEVICES["h100"], asynchronous=False, margin=(1.0, 1.0))
    plan = report.plan_of(h14, work_of(h14, Tokens(69, 43, 69, 43)), H14, cpu, None)
    assert not plan.work.compiled
    assert plan.expected == pytest.approx(plan.timing.host.seconds + plan.timing.device)
