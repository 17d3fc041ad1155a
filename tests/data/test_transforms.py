"""Normalisation and the deterministic reading for evaluation, against torchvision."""

import numpy as np
import pytest
import torch
from PIL import Image

from ijepa_ds.data.transforms import load_eval_images, normalize, resize_centre_crop

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_normalize_is_the_formula():
    images = torch.from_numpy(np.stack([pixels(6, 5, i) for i in range(2)]))
    expected = (images.double() / 255 - torch.tensor(MEAN).double()) / torch.tensor(STD).double()
    out = normalize(images, MEAN, STD, torch.float32)
    assert out.shape == (2, 3, 6, 5) and out.dtype == torch.float32 and out.is_contiguous()
    torch.testing.assert_close(out.double(), expected.permute(0, 3, 1, 2), atol=1e-6, rtol=1e-6)


def test_normalize_rounds_to_bfloat16_once():
    images = torch.arange(256, dtype=torch.uint8).repeat(3, 1).T.reshape(1, 16, 16, 3)
    exact = normalize(images, MEAN, STD, torch.float32)
    assert torch.equal(normalize(images, MEAN, STD, torch.bfloat16), exact.bfloat16())


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (224, 300), (100, 90), (257, 256)])
def test_resize_and_centre_crop_are_torchvisions(size):
    transforms = pytest.importorskip("torchvision.transforms")
    image = Image.fromarray(pixels(size[1], size[0]))
    bicubic = transforms.InterpolationMode.BICUBIC
    theirs = transforms.CenterCrop(224)(transforms.Resize(256, bicubic)(image))
    assert np.array_equal(np.asarray(resize_centre_crop(image, 224)), np.asarray(theirs))


def test_the_centre_of_a_strip_is_torchvisions_up_to_rounding():
    transforms = pytest.importorskip("torchvision.transforms")
    image = Image.fromarray(pixels(900, 3))
    resize = transforms.Resize(256, transforms.InterpolationMode.BICUBIC)
    theirs = np.asarray(transforms.CenterCrop(224)(resize(image))).astype(int)
    apart = np.abs(np.asarray(resize_centre_crop(image, 224)) - theirs)
    assert apart.mean() <= 0.5 and apart.max() <= 20  # noise, whose ties of rounding weigh most


def test_an_image_of_the_right_size_is_left_alone():
    image = Image.fromarray(pixels(32, 32))
    assert np.array_equal(np.asarray(resize_centre_crop(image, 32)), np.asarray(image))
    assert resize_centre_crop(image.convert("L"), 32).mode == "RGB"


def test_load_eval_images_keeps_the_order_and_names_what_it_cannot_read(tmp_path):
    paths = []
    for i in range(5):
        paths.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(pixels(16, 16, i)).save(paths[-1])
    images = load_eval_images(paths, 16, threads=2)
    assert np.array_equal(images, np.stack([pixels(16, 16, i) for i in range(5)]))
    (tmp_path / "3.png").write_text("no image")
    with pytest.raises(ValueError, match=r"3\.png"):
        load_eval_images(paths, 16, threads=2)
