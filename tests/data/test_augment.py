"""Augmentations: torchvision's operations, each image for itself, functions of the sample number."""

from dataclasses import replace

import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from ijepa_ds.config import DataConfig
from ijepa_ds.counter import STREAM_AUGMENT, uniform
from ijepa_ds.data import augment as module
from ijepa_ds.data.augment import adjust_hue, augment, color_jitter, gaussian_blur, grayscale, network_input
from ijepa_ds.data.transforms import normalize

SIDE = 20
ALL = DataConfig(
    source="", crop_size=SIDE, color_jitter=(0.4, 0.4, 0.4, 0.1), grayscale=0.2, blur=0.5, color_jitter_probability=0.8
)
CLOSE = {"atol": 2e-5, "rtol": 0}


def images(count: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def order_of(*first: int) -> torch.Tensor:
    """Draws that choose an order beginning so, for every image."""
    number = next(i for i, order in enumerate(module._ORDERS) if order[: len(first)] == first)
    return torch.full((12,), (number + 0.5) / 24)


@pytest.mark.parametrize(
    ("which", "change"),
    list(
        enumerate([reference.adjust_brightness, reference.adjust_contrast, reference.adjust_saturation, reference.adjust_hue])
    ),  # fmt: skip
)
def test_each_jitter_is_torchvisions(which, change):
    x, place = images(), torch.linspace(0, 1, 12)
    strengths = tuple(0.4 if i == which else 0.0 for i in range(4))
    factors = torch.full((12, 4), 0.5)
    factors[:, which] = place
    ours = color_jitter(x, factors, order_of(which), strengths)
    low, high = (-0.4, 0.4) if which == 3 else (0.6, 1.4)
    for image, result, at in zip(x, ours, place.tolist(), strict=True):
        torch.testing.assert_close(result, change(image, low + (high - low) * at), **CLOSE)


def test_jitters_follow_each_other_in_the_order_drawn():
    x, factors = images(), torch.rand(12, 4, generator=torch.Generator().manual_seed(1))
    strengths = (0.8, 0.8, 0.8, 0.2)
    changes = [reference.adjust_brightness, reference.adjust_contrast, reference.adjust_saturation, reference.adjust_hue]
    for order in ((2, 0, 3, 1), (3, 2, 1, 0)):
        ours = color_jitter(x, factors, order_of(*order), strengths)
        for image, result, drawn in zip(x, ours, factors.tolist(), strict=True):
            for which in order:
                s = strengths[which]
                low, high = (-s, s) if which == 3 else (max(0, 1 - s), 1 + s)
                image = changes[which](image, low + (high - low) * drawn[which])
            torch.testing.assert_close(result, image, atol=1e-4, rtol=0)


def test_gray_black_and_white_have_no_hue_to_turn():
    x = torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4), torch.full((3, 4, 4), 0.3)])
    torch.testing.assert_close(adjust_hue(x, torch.tensor([0.2, -0.5, 0.5])), x, **CLOSE)
    torch.testing.assert_close(grayscale(images()), reference.rgb_to_grayscale(images()), **CLOSE)


def test_blur_is_torchvisions():
    x, sigma = images(), torch.linspace(0.1, 2.0, 12)
    ours = gaussian_blur(x, sigma, 2.0)
    for image, result, s in zip(x, ours, sigma.tolist(), strict=True):
        torch.testing.assert_close(result, reference.gaussian_blur(image, [13, 13], [s, s]), **CLOSE)
    assert gaussian_blur(x[:, :, :3, :3], sigma, 2.0).shape == (12, 3, 3, 3)  # smaller than the kernel


def test_an_image_does_not_depend_on_its_batch():
    pixels = (images(16) * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    whole = network_input(pixels, 100, ALL, 3, torch.float32)
    for size in (1, 2, 4, 8):
        parts = [network_input(pixels[i : i + size], 100 + i, ALL, 3, torch.float32) for i in range(0, 16, size)]
        assert torch.equal(torch.cat(parts), whole), size
    assert not torch.equal(network_input(pixels, 100, ALL, 4, torch.float32), whole)
    assert not torch.equal(network_input(pixels, 101, ALL, 3, torch.float32), whole)


def test_off_is_off_and_on_is_as_often_as_asked():
    pixels = (images(4) * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    off = DataConfig(source="", crop_size=SIDE)
    assert torch.equal(network_input(pixels, 0, off, 0, torch.bfloat16), normalize(pixels, off.mean, off.std, torch.bfloat16))
    x, numbers = images(1).expand(2000, 3, SIDE, SIDE)[:, :, :4, :4].contiguous(), torch.arange(2000)
    for cfg, share in (
        (replace(off, grayscale=0.3), 0.3),
        (replace(off, blur=0.5), 0.5),
        (replace(off, color_jitter=(0.4, 0.0, 0.0, 0.0)), 0.8),
    ):
        out = augment(x, numbers, cfg, 0)
        changed = (out != x).flatten(1).any(dim=1).float().mean()
        assert abs(float(changed) - share) < 0.04 and out.is_contiguous() and 0 <= out.min() and out.max() <= 1
    torch.testing.assert_close(
        network_input(pixels, 0, replace(off, blur=1e-9), 0, torch.float32),
        normalize(pixels, off.mean, off.std, torch.float32),
        atol=1e-5, rtol=1e-5,
    )  # fmt: skip


CLOSE_TO_ONE = {"jitter": (20131499, 0), "order": (13848639, 5), "grayscale": (44686469, 6), "blur": (44031187, 7)}


@pytest.mark.parametrize("what", CLOSE_TO_ONE)
def test_a_draw_that_rounds_to_one_selects_the_last_order_and_is_below_a_probability_of_one(what):
    """With seed 0 and order 24 of 24, sample 13,848,639 ended a run."""
    number, draw = CLOSE_TO_ONE[what]
    index = torch.tensor([number, number + 1])
    drawn = uniform(0, STREAM_AUGMENT, index, 9)
    assert drawn[0, draw] < 1 and drawn[0, draw].float() == 1
    off = DataConfig(source="", crop_size=SIDE)
    always = {
        "jitter": replace(off, color_jitter=(0.4, 0.0, 0.0, 0.0), color_jitter_probability=1.0),
        "order": replace(off, color_jitter=(0.8, 0.8, 0.8, 0.2), color_jitter_probability=1.0),
        "grayscale": replace(off, grayscale=1.0),
        "blur": replace(off, blur=1.0),
    }[what]
    x, factors = images(2), drawn[:, 1:5].float()
    last = torch.tensor([23.5 / 24, float(drawn[1, 5])])
    expected = {
        "jitter": lambda: color_jitter(x, factors, last, always.color_jitter),
        "order": lambda: color_jitter(x, factors, last, always.color_jitter),
        "grayscale": lambda: grayscale(x).expand_as(x),
        "blur": lambda: gaussian_blur(x, 0.1 + 1.9 * drawn[:, 8].float(), 2.0),
    }[what]()
    torch.testing.assert_close(augment(x, index, always, 0), expected, atol=1e-6, rtol=0)


@pytest.mark.gpu
def test_the_gpu_gives_what_the_cpu_gives():
    x, numbers = images(), torch.arange(12)
    torch.testing.assert_close(augment(x.cuda(), numbers.cuda(), ALL, 0).cpu(), augment(x, numbers, ALL, 0), atol=1e-4, rtol=0)
