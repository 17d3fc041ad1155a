"""MFU and the share of a measured product: the FLOPs are those torch counts; peaks are data sheets and measurements."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ijepa_ds.masks.sampler import build_sampler
from ijepa_ds.model import ijepa, mfu
from ijepa_ds.model.flops import training_flops
from ijepa_ds.model.mfu import data_sheet_peak, measured_peak
from ijepa_ds.model.peaks import data_sheet_of
from tests.weights_cases import small_config


@pytest.mark.parametrize("options", [{}, {"registers": 2, "swiglu": True, "rope": True}])
def test_flops_are_those_that_torch_counts(options: dict, tmp_path: Path) -> None:
    cfg = small_config(tmp_path / "run")
    cfg = replace(cfg, model=replace(cfg.model, **options), masks=replace(cfg.masks, num_contexts=2))
    masks = build_sampler(cfg.masks, cfg.grid, 0, 1).sample(0, 0, 1, "cpu")
    model, images = ijepa.build(cfg), torch.randn(1, 3, 48, 48)
    # the counter does not know the CPU's fused kernel
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as whole, torch.no_grad():
        model(images, masks)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as target, torch.no_grad():
        model.target_encoder(images)
    counted = 3 * whole.get_total_flops() - 2 * target.get_total_flops()
    assert training_flops(cfg, masks.context.shape[-1], masks.targets.shape[-1]) == pytest.approx(counted, rel=0.01)


def test_the_peak_is_the_rate_of_the_fastest_large_product() -> None:
    """Of four tries with 256 rows each, then four with 1,024: the clock is read before and after."""
    seconds = [0.001] * 4 + [0.5, 0.02, 0.04, 0.03]
    readings = iter([reading for i, spent in enumerate(seconds) for reading in (10.0 * i, 10.0 * i + spent)])
    peak = measured_peak(torch.device("cpu"), torch.float32, clock=lambda: next(readings))
    assert peak == pytest.approx(2 * 1024**3 / 0.02)


def test_emulated_products_are_not_multiplied_at_full_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bfloat16 product of 1,024 takes three seconds on a CPU without instructions for it."""
    sides = []

    def slow(side: int, *_: object) -> float:
        sides.append(side)
        return 0.05

    monkeypatch.setattr(mfu, "_fastest_product", slow)
    assert measured_peak(torch.device("cpu"), torch.bfloat16) == 2 * 256**3 / 0.05 and sides == [256]


@pytest.mark.parametrize(
    ("name", "bfloat16", "float32"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12, 19.5e12),
        ("NVIDIA A100-PCIE-40GB", 312e12, 19.5e12),
        ("NVIDIA H100 80GB HBM3", 989e12, 67e12),
        ("NVIDIA H100 PCIe", 756e12, 51e12),
        ("NVIDIA H200", 989e12, 67e12),
        ("NVIDIA H200 NVL", 835e12, 60e12),
        ("NVIDIA GeForce RTX 4090", None, None),
    ],
)
def test_mfu_divides_by_the_data_sheet(name: str, bfloat16: float | None, float32: float | None) -> None:
    assert (data_sheet_of(name, 2), data_sheet_of(name, 4)) == (bfloat16, float32)


def test_a_cpu_has_no_data_sheet() -> None:
    assert data_sheet_peak(torch.device("cpu"), torch.bfloat16) is None


def test_a_gpu_is_known_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    assert data_sheet_peak(torch.device("cuda"), torch.bfloat16) == 989e12
