"""The plan's arithmetic against the networks themselves, in one process. Ranks: tests/dist/test_plan.py."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ijepa_ds import cli, machine
from ijepa_ds.config import Config, load
from ijepa_ds.config.sizes import SIZES
from ijepa_ds.masks.sampler import Masks, build_sampler
from ijepa_ds.model.blocks import flatten_blocks
from ijepa_ds.model.flops import flops_of
from ijepa_ds.model.ijepa import IJEPA, build
from ijepa_ds.model.work import Parameter, Tokens, Work, work_of
from ijepa_ds.plan import search
from ijepa_ds.plan.activations import activations_of
from ijepa_ds.plan.gathered import gathering_of, kept_elements
from ijepa_ds.plan.hardware import DEVICES, Device, device_of
from ijepa_ds.plan.latency import latency_of
from ijepa_ds.plan.memory import memory_of
from ijepa_ds.plan.report import plan_of, table
from ijepa_ds.plan.spread import Spread
from ijepa_ds.plan.timing import seconds_of, timing_of
from ijepa_ds.plan.traffic import Message, links_of, traffic_of
from ijepa_ds.training.engine import parameter_groups
from tests.dist import measured

PUBLISHED = "configs/in1k_vith14.yaml"
GPUS = Spread(stage=3, nodes=2, gpus=8, micro_batch=128, accumulation=1, persist=0)


@pytest.fixture(scope="module")
def h14(repository: Path) -> Config:
    """The published run."""
    return load(repository / PUBLISHED)


def on_meta(cfg: Config) -> IJEPA:
    """The networks without memory; attention by plain products, which FlopCounterMode counts on every device."""
    with torch.device("meta"):
        model = build(cfg).to("meta")
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    return model.float()


OPTIONS: list[dict] = [
    {"qk_norm": True, "layer_scale": 0.1, "registers": 4},
    {"qkv_bias": False, "swiglu": True},
    {"rope": True, "drop_path": 0.1, "registers": 2},
    {"parallel": True, "qk_norm": True, "layer_scale": 0.1},
    {"parallel": True, "qkv_bias": False},
]


@pytest.mark.parametrize(("name", "options"), [*[(name, {}) for name in SIZES], *[("small", options) for options in OPTIONS]])
def test_parameters_are_those_of_the_networks(name: str, options: dict, h14: Config) -> None:
    cfg = replace(h14, model=replace(h14.model, name=name, predictor=replace(h14.model.predictor, heads=12), **options))
    work, model = work_of(cfg, Tokens(69, 43, 69, 43)), on_meta(cfg)
    flatten_blocks(model, forget_weights=False)
    for part in ("encoder", "predictor"):
        assert work.count(part) == sum(p.numel() for p in getattr(model, part).parameters())
    for decay, group in enumerate(parameter_groups(model)[1::-1]):
        ours = sorted(p.numel for p in work.parameters if p.part == "encoder" and p.decay == bool(decay))
        assert ours == sorted(p.numel() for p in group["params"])


def counted(cfg: Config, kc: int, kt: int) -> float:
    """FLOPs of one image's step, by torch."""
    model = on_meta(cfg)
    c, m = cfg.masks.num_contexts, cfg.masks.num_targets
    masks = Masks(
        torch.zeros(1, c, kc, dtype=torch.int64, device="meta"), torch.zeros(1, m, kt, dtype=torch.int64, device="meta")
    )
    with FlopCounterMode(display=False) as counter:
        size = cfg.data.crop_size
        model(torch.zeros(1, 3, size, size, device="meta"), masks).loss.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("name", "patch", "options"),
    [
        ("small", 16, {"depth": 3}),
        ("giant", 16, {"depth": 2}),
        *[("base", 16, {"depth": 2} | options) for options in OPTIONS],
        *[pytest.param(name, patch, {}, marks=pytest.mark.slow) for name, patch in (("base", 16), ("large", 16), ("huge", 14))],
    ],
)
@pytest.mark.parametrize("recompute", ["", "full", "selective"])
def test_flops_are_torchs(name: str, patch: int, options: dict, recompute: str, h14: Config) -> None:
    predictor = replace(h14.model.predictor, heads=12, depth=options.get("depth", 12))
    model = replace(h14.model, name=name, patch_size=patch, precision="float32", predictor=predictor, **options)
    cfg = replace(h14, model=replace(model, activation_checkpointing=bool(recompute), recompute=recompute or "full"))
    work = work_of(cfg, Tokens(69, 43, 69, 43))
    assert flops_of(work, fused_attention=False).executed == pytest.approx(counted(cfg, 69, 43), rel=0.02)


def test_published_run_takes_657_gflop_an_image(h14: Config) -> None:
    flops = flops_of(work_of(h14, Tokens(69, 43.8, 69, 44)))
    assert flops.model / 1e9 == pytest.approx(657, rel=0.003)
    assert flops.target / 1e9 == pytest.approx(333, rel=0.003)
    assert flops.context / 1e9 == pytest.approx(264, rel=0.003)


def test_tokens_are_those_of_the_runs_own_masks(h14: Config) -> None:
    tokens = work_of(h14).tokens
    assert tokens.context == pytest.approx(69, abs=2)
    sampler = build_sampler(h14.masks, h14.grid, h14.run.seed, h14.optimization.batch_size)
    lengths = [sampler.sample(step, 0, 128, "cpu").context.shape[-1] for step in range(32)]
    assert tokens.context == pytest.approx(sum(lengths) / 32) and tokens.most_context == max(lengths)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *[("small", {"depth": 4, "activation_checkpointing": True, "recompute": kind}) for kind in ("full", "selective")],
        ("small", {"depth": 4}),
        *[pytest.param("small", {"depth": 4} | options, marks=pytest.mark.slow) for options in OPTIONS],
        *[pytest.param(name, {}, marks=pytest.mark.slow) for name in ("small", "base")],
        ("large", {"depth": 4}),
        ("large", {"depth": 4, "activation_checkpointing": True}),
    ],
)
def test_activations_are_what_the_allocator_held(name: str, options: dict) -> None:
    cfg = measured.config_of(name, micro_batch=2, ranks=1, **options)
    model = build(cfg)
    held, kc, kt = measured.activation_bytes(model, cfg, 2)
    assert activations_of(work_of(cfg, Tokens(kc, kt, kc, kt)), 2) == pytest.approx(held, rel=0.15)


def test_the_worked_example_of_reuse_distances() -> None:
    """The example in the docstring of `kept_elements`; at 101 the target's second module is kept, too."""
    networks = {"encoder": (30, 10), "predictor": (5, 5)}
    parameters = [Parameter(part, f"{i}", n, True) for part, sizes in networks.items() for i, n in enumerate(sizes)]
    work = cast(Work, SimpleNamespace(parameters=parameters, runs_in_target=lambda parameter: parameter.part == "encoder"))
    assert [kept_elements(work, replace(GPUS, reuse=reuse)) for reuse in (5, 25, 50, 101)] == [
        (0, 5),
        (0, 20),
        (0, 50),
        (10, 50),
    ]


def test_stage_3_keeps_what_is_near_its_next_use(h14: Config) -> None:
    """Huge: the trained weights are kept from forward to backward, the target's are not; with less reuse, nothing is."""
    work = work_of(h14, Tokens(69, 43, 69, 43))
    assert kept_elements(work, GPUS) == (0, work.count())
    target, trained = kept_elements(work, replace(GPUS, reuse=1))
    assert target == 0 and trained < 0.01 * work.count()
    # without reuse, gathering ahead brings everything back before the backward pass, as far as there is room
    lean = replace(GPUS, reuse=1, live=60_000_000)
    purposes = [{m.purpose for m in traffic_of(work, spread)} for spread in (GPUS, replace(GPUS, reuse=1), lean)]
    assert ["weights, backward" in found for found in purposes] == [False, False, True]


def test_links_and_ring() -> None:
    message = Message("x", "all_reduce", 16_000, 16, "step")
    assert message.sent == 2 * 16_000 * 15 / 16
    links = links_of([message], GPUS)
    assert links.network == links.within_machine == message.sent
    near = Message("x", "all_gather", 16_000, 8, "step")
    assert links_of([near], GPUS).network == 0.0
    a100 = DEVICES["a100-80g"]
    latency = latency_of("all_gather", 8, GPUS, a100)
    assert seconds_of(near, GPUS, a100) == 16_000 * 7 / 8 / 300e9 + latency > latency > 0
    slow = replace(a100, network_gbps=1.0)
    assert seconds_of(message, GPUS, slow) == message.sent / 8e9 + latency_of("all_reduce", 16, GPUS, slow)


@pytest.mark.parametrize("stage", [1, 2])
def test_bytes_of_stages_1_and_2(stage: int, h14: Config) -> None:
    """Gradients once a step at stage 1, once a micro-batch at stage 2; flat buffers are padded to 2 x ranks."""
    work = work_of(h14, Tokens(69, 43, 69, 43))
    spread = Spread(stage=stage, nodes=1, gpus=7, micro_batch=8, accumulation=3, reduction="rooted")
    found = {message.purpose: message.bytes for message in traffic_of(work, spread)}
    assert found["gradients"] == work.weight_bytes * work.count() * (3 if stage == 2 else 1)
    groups: Counter[tuple[str, bool]] = Counter()
    for p in work.parameters:
        groups[p.part, p.decay] += p.numel
    padded = sum(-(-numel // 14) * 14 for numel in groups.values())
    assert padded > work.count() and found["weights after the step"] == work.weight_bytes * padded


def test_only_what_computation_cannot_hide_is_exposed(h14: Config) -> None:
    work, device = work_of(h14, Tokens(69, 43, 69, 43)), DEVICES["a100-80g"]
    spread = Spread(stage=2, nodes=1, gpus=8, micro_batch=128, accumulation=1, double_bucket=True)
    after = [message for message in traffic_of(work, spread) if message.when == "step"]
    timing = timing_of(work, spread, device)
    assert timing.exposed == pytest.approx(sum(seconds_of(message, spread, device) for message in after))
    assert timing.sending > 1.2 * timing.exposed  # gradients are hidden behind the backward pass


def test_time_obeys_the_roofline(h14: Config) -> None:
    work = work_of(h14, Tokens(69, 43, 69, 43))
    a, b = (timing_of(work, GPUS, DEVICES[name]) for name in ("a100-80g", "h100"))
    for timing in (a, b):
        assert timing.roofline <= timing.fast <= timing.expected <= timing.slow
        assert timing.mfu[2] < timing.mfu[0] < timing.mfu[1] < timing.mfu[3] < 1
    assert b.roofline < a.roofline
    products = a.products * DEVICES["a100-80g"].products_share + a.attention * DEVICES["a100-80g"].attention_share
    assert products == pytest.approx(128 * 657e9 / 312e12, rel=0.01)
    slow = timing_of(work, GPUS, replace(DEVICES["h100"], products_share=0.5))
    assert slow.products > b.products and slow.attention == b.attention and slow.device > b.device


def ways_on(cfg: Config, work: Work, device: Device) -> list[search.Candidate]:
    return search.search(cfg, work, GPUS, lambda shapes, spread: plan_of(cfg, shapes, spread, device, None))


def test_search_prefers_what_fits(h14: Config) -> None:
    work = work_of(h14, Tokens(69, 43, 91, 54))
    ways = ways_on(h14, work, DEVICES["a100-80g"])
    assert ways[0].plan.fits and ways[0].reason == ""
    assert all(way.reason for way in ways[1:])
    assert all(way.plan.spread.images == 2048 for way in ways)
    fastest = min(way.plan.expected for way in ways if way.plan.fits)
    assert ways[0].plan.expected <= search.SAME * fastest
    small = replace(DEVICES["a100-80g"], memory_gib=6.0)
    tight = ways_on(h14, work, small)
    assert tight[0].plan.fits
    assert any("does not fit" in way.reason for way in tight)
    nothing = ways_on(h14, work, replace(small, memory_gib=0.5))
    assert not nothing[0].plan.fits and all("does not fit" in way.reason for way in nothing)


def test_memory_falls_with_the_stage(h14: Config) -> None:
    work = work_of(h14, Tokens(69, 43, 91, 54))
    states = [memory_of(work, replace(GPUS, stage=stage)).states for stage in range(4)]
    assert states == sorted(states, reverse=True)
    # bfloat16 weights and target, float32 masters, moments and average (ZeRO, Rajbhandari et al. 2020, with an EMA)
    assert states[0] == 14 * work.count() + 6 * work.count("encoder")
    assert states[3] == pytest.approx(states[0] / 16)


def run(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """The verb's exit code, and what it wrote."""
    code = cli.main(["plan", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_small_limits_of_this_machine_are_named(
    repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "shared_memory_bytes", lambda: 64 << 20)
    monkeypatch.setattr(machine, "locked_memory", lambda: {"limit": 64 << 10, "rdma": True})
    files = ["--config", str(repository / PUBLISHED), "--deepspeed_config", str(repository / "ds_configs/zero2.json")]
    _, text, _ = run([*files, "--gpu", "a100-80g", "--nodes", "2", "--gpus-per-node", "8"], capsys)
    assert "on this machine: /dev/shm has 64 MiB for 8 ranks" in text and "limit 0.06 MiB (ulimit -l)" in text


def test_command_writes_table_json_and_picture(repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--config", str(repository / PUBLISHED), "--deepspeed_config", str(repository / "ds_configs/zero2.json")]
    where = ["--nodes", "2", "--gpus-per-node", "8", "--gpu", "a100-80g", "--images", "1281167"]
    out = ["--json", str(tmp_path / "plan.json"), "--plot", str(tmp_path / "plan.png"), "--search"]
    code, text, _ = run([*files, *where, *out], capsys)
    assert code == 0
    assert "187,500 steps" in text and "<- proposed" in text and "fits" in text
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["steps"] == 187500 and plan["fits"] is True
    assert plan["parameters"]["encoder"] == 630434560
    assert (tmp_path / "plan.png").stat().st_size > 10_000
    code, text, _ = run([*files, *where, "--json", "-"], capsys)
    assert json.loads(text)["device_hours"][0] > 100
    code, _, error = run([*files, "--gpu", "a100-80", "--gpus-per-node", "16"], capsys)
    assert code == 2 and "a100-40g" in error
    code, text, _ = run([*files, "--gpu", "a100-40g", "optimization.max_micro_batch=2048"], capsys)
    assert code == 1 and "DOES NOT FIT" in text and "--images" in text


def test_own_device_is_checked_strictly(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("memory_gib: -1\nbfloat16_tflops: 100\nspeed: 3\n")
    with pytest.raises(ValueError) as caught:
        device_of(str(path), 1)
    text = str(caught.value)
    assert all(part in text for part in ("speed: unknown", "memory_gib: expected", "float32_tflops: missing", "network_gbps"))
    path.write_text(
        "name: mine\nmemory_gib: 32\nbfloat16_tflops: 100\nfloat32_tflops: 50\nmemory_gbps: 900\nlink_gbps: 32\n"
        "network_gbps: 12.5\n"
    )
    assert device_of(str(path), 1).memory_gib == 32
    with pytest.raises(ValueError, match="no such file"):
        device_of(str(tmp_path / "none.yaml"), 1)


def test_cpu_is_measured() -> None:
    cpu = device_of("cpu", 2)
    assert 0.0005 < cpu.float32_tflops < 50 and cpu.memory_gib > 0.1


def test_planning_needs_neither_networks_nor_deepspeed(repository: Path) -> None:
    code = (
        "import sys\nfrom ijepa_ds import cli\n"
        f"code = cli.main(['plan', '--config', '{repository / PUBLISHED}', '--deepspeed_config', "
        f"'{repository / 'ds_configs/zero3.json'}', '--gpu', 'h100'])\nassert code == 0\n"
        "assert not {'deepspeed', 'timm', 'torchvision'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_plan_of_an_offloaded_optimizer_moves_it_to_the_host(h14: Config) -> None:
    work = work_of(h14, Tokens(69, 43, 69, 43))
    memory = memory_of(work, replace(GPUS, offload=True))
    states = (12 * work.count() + 4 * work.count("encoder")) / 16
    assert memory.masters == memory.moments == memory.ema == 0 and memory.host == pytest.approx(states)
    memory = memory_of(work, replace(GPUS, offload=True, offload_weights=True))
    assert memory.states == 0 and memory.host == pytest.approx(states + 2 * (work.count() + work.count("encoder")) / 16)
    plan = plan_of(h14, work, GPUS, DEVICES["h100"], 1000)
    assert plan.checkpoint_bytes == 12 * work.count() + 4 * work.count("encoder")
    assert plan.hours() is not None


def test_small_crops_first_make_a_run_shorter(h14: Config) -> None:
    work, spread = work_of(h14), replace(GPUS, stage=0)
    gpu = replace(DEVICES["h100"], host=0.1)  # the device limits both sizes
    whole = plan_of(h14, work, spread, gpu, 1000)
    data = replace(h14.data, early_crop_size=168, early_steps=400)
    mixed = plan_of(replace(h14, data=data), work, spread, gpu, 1000)
    small = replace(h14, data=replace(h14.data, crop_size=168))
    alone = plan_of(small, work_of(small), spread, gpu, 1000)
    for fast_or_slow in (0, 1):
        hours = [(plan.hours() or (0, 0))[fast_or_slow] for plan in (mixed, alone, whole)]
        assert hours[0] == pytest.approx(0.4 * hours[1] + 0.6 * hours[2]) and hours[1] < 0.7 * hours[2]
    assert mixed.memory == whole.memory and "1,000 steps (400 with small crops)" in table(mixed)


def test_accumulation_keeps_gradients_between_micro_batches(h14: Config) -> None:
    """ViT-G/14 on 8 GPUs, stage 1, 4 micro-batches of 32: 24.4 GiB without the float32 sums, at least 31 with them."""
    model = replace(h14.model, name="gigantic", precision="bfloat16")
    work = work_of(replace(h14, model=model), Tokens(69, 43, 91, 54))
    spread = Spread(stage=1, nodes=1, gpus=8, micro_batch=32, accumulation=4, bucket=100_000_000)
    once, often = memory_of(work, replace(spread, accumulation=1)), memory_of(work, spread)
    assert often.kept == 4 * work.count() and once.kept == 0
    assert often.peak / 2**30 > 31 and often.peak - once.peak > 5 * 2**30
    for stage in (0, 2):  # held over the next micro-batch's activations, in bfloat16 or as the share's float32 sum
        one = memory_of(work, replace(spread, stage=stage))
        held = {0: 2 * work.count(), 2: 4 * work.count() / 8}[stage]
        later = next(moment for moment in one.moments_of_a_step if moment.name.startswith("start of a later"))
        assert sum(b.bytes for b in later.held if b.name.startswith("gradients")) == held
        assert later.bytes >= one.activations + held


def test_hpz_keeps_a_copy_of_all_weights_and_gathers_near_after_the_first_micro_batch(h14: Config) -> None:
    work = work_of(h14, Tokens(69, 43, 91, 54))
    alone = replace(GPUS, accumulation=4, reuse=0, live=60_000_000)
    near = replace(alone, hpz=8)
    copies = [memory_of(work, spread).moments_of_a_step[3].bytes for spread in (near, alone)]  # end of the last backward pass
    assert copies[0] - copies[1] == pytest.approx(2 * (work.count() + work.count("encoder")) / 8)
    network = [links_of(traffic_of(work, spread), spread).network for spread in (alone, near)]
    target, both = work.count("encoder"), work.count()
    again = gathering_of(work, alone).again
    assert again > 0.9 * both
    assert network[0] == pytest.approx(2 * 15 / 16 * 4 * (target + both + again + both), rel=0.01)
    assert network[1] == pytest.approx(2 * 15 / 16 * (target + both + 4 * both), rel=0.01)


def test_keys_of_stage_3_count(h14: Config) -> None:
    work = work_of(h14, Tokens(69, 43, 91, 54))
    near, far = (gathering_of(work, replace(GPUS, reuse=0, live=live)).peak for live in (60_000_000, 1_000_000_000))
    assert near < 60_000_000 + 2 * GPUS.prefetch and far > 400_000_000  # prefetching stops, or runs ahead
    small = sum(p.numel for p in work.parameters if p.numel <= 6000)
    kept = replace(GPUS, persist=6000)
    assert memory_of(work, kept).weights - memory_of(work, replace(GPUS, persist=0)).weights == 2 * small
    after = {m.purpose: m.bytes for m in traffic_of(work, kept)}
    assert after["small weights after the step"] == 2 * small
    released = replace(GPUS, persist=0)
    assert "small weights after the step" not in {m.purpose for m in traffic_of(work, released)}
    parts = memory_of(work, replace(GPUS, sub_group=10_000_000))
    step = next(moment for moment in parts.moments_of_a_step if moment.name == "optimizer step")
    assert {b.name: b.bytes for b in step.held}["joined gradients of a sub-group"] == 6 * 10_000_000


def test_rates_reach_the_search(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--config", str(repository / PUBLISHED), "--deepspeed_config", str(repository / "ds_configs/zero2.json")]
    rates = ["--decode-rate", "250", "--write-gbps", "4"]
    _, text, _ = run([*files, "--gpu", "h100", "--gpus-per-node", "8", "--search", "--json", "-", *rates], capsys)
    plan = json.loads(text)
    for one in (plan, *plan["search"]):
        assert one["loader"]["cpu_cores"] == pytest.approx(one["loader"]["images_per_second"] / 250)
        assert one["checkpoint"]["seconds"] == pytest.approx(one["checkpoint"]["bytes"] / 4e9)
