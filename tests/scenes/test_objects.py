"""Demo images of one large object: balanced classes, independent attributes, records that tell what the pictures show."""

from __future__ import annotations

import colorsys
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ijepa_ds import cli
from ijepa_ds.scenes import command, objects
from ijepa_ds.scenes.layout import COLOURS, LINEAR
from ijepa_ds.scenes.paint import Canvas
from ijepa_ds.scenes.shapes import SHAPES, Camera, Solid

SIZE = 48


@pytest.fixture(scope="module")
def many() -> list[tuple[np.ndarray, list[dict], str]]:
    return [objects.draw("shape", 1, index, SIZE) for index in range(400)]


@pytest.mark.parametrize("classes", list(objects.CLASSES))
def test_classes_are_balanced_and_are_what_the_record_says(classes: str) -> None:
    drawn = [objects.draw(classes, 5, index, 16) for index in range(80)]
    assert set(Counter(label for *_, label in drawn).values()) == {80 // len(objects.CLASSES[classes])}
    for _, records, label in drawn:
        assert label == "_".join(records[0][part] for part in classes.split("+"))


def test_nothing_else_tells_the_class(many: list) -> None:
    """Chi-squared of shape against colour, material and place stays near its degrees of freedom."""
    shapes, firsts = np.array([label for *_, label in many]), [records[0] for _, records, _ in many]
    halves = ["left" if item["pixel_coords"][0] < SIZE / 2 else "right" for item in firsts]
    for other in ([item["color"] for item in firsts], [item["material"] for item in firsts], halves):
        values = np.array(other)
        table = np.array([[((shapes == s) & (values == o)).sum() for o in set(other)] for s in SHAPES])
        expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
        freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
        assert ((table - expected) ** 2 / expected).sum() < freedom + 4 * (2 * freedom) ** 0.5


def test_poses_and_disturbances_have_their_shares(many: list) -> None:
    firsts = [records[0] for _, records, _ in many]
    tilts = np.array([item["tilt"] for item in firsts])
    assert 0.4 < (tilts == 0).mean() < 0.6 and 8 < tilts.max() <= 10
    assert 0.02 < np.mean([len(records) == 2 for _, records, _ in many]) < 0.09
    x = np.array([item["pixel_coords"][:2] for item in firsts])
    assert (np.abs(x - SIZE / 2) < 0.5 * SIZE).all() and np.abs(x - SIZE / 2).max() > 0.22 * SIZE


def test_the_picture_shows_the_recorded_colour_at_the_recorded_place(many: list) -> None:
    """Hue of the pixel at the solid's centre, for matt solids without hole; grey ones have little saturation."""
    right = total = 0
    for picture, records, _ in many:
        item = records[0]
        x, y = (int(value) for value in item["pixel_coords"][:2])
        if item["material"] == "metal" or item["shape"] == "torus" or len(records) > 1 or not (0 <= x < SIZE and 0 <= y < SIZE):
            continue
        hue, saturation, _ = colorsys.rgb_to_hsv(*(picture[y, x] / 255))
        wanted, much, _ = colorsys.rgb_to_hsv(*(np.array(COLOURS[item["color"]]) / 255))
        away = abs(hue - wanted)
        right += saturation < 0.2 if much < 0.1 else min(away, 1 - away) < 0.06
        total += 1
    assert total > 100 and right / total > 0.97


@pytest.mark.parametrize("shape", list(SHAPES))
def test_a_tilted_solid_touches_the_ground(shape: str) -> None:
    """The lowest point that rays from below hit is at the height 0, whatever the pose."""
    rng = np.random.default_rng(3)
    for _ in range(10):
        solid = objects._solid(
            {"shape": shape, "color": "red", "material": "rubber"}, 0.7, np.array([0.1, -0.2, 0.0]),
            (rng.uniform(0, 6), rng.uniform(0.05, 1.0), rng.uniform(0, 6)),
        )  # fmt: skip
        across = np.linspace(-1.2, 1.2, 241, dtype=np.float32)
        start = np.stack([*(grid.reshape(-1) for grid in np.meshgrid(across, across)), np.full(241**2, -3.0, np.float32)])
        up = np.tile(np.array([[0.0], [0.0], [1.0]], np.float32), 241**2)
        t = solid.hit(start, up)
        assert float(t.min()) - 3.0 == pytest.approx(0.0, abs=0.02)
        points = start + up * np.where(np.isfinite(t), t, 0)
        normals = solid.normal(points[:, np.isfinite(t)])
        assert (normals[2] < 0.02).mean() > 0.98  # what is seen from below faces down; at outlines hits are inexact
        assert np.allclose((normals**2).sum(0), 1, atol=1e-4)


def test_an_upright_solid_is_the_one_of_scenes() -> None:
    """A tilt of almost zero gives almost the same surface as none."""
    camera = Camera(np.array([3.0, -2.0, 2.5]), np.array([0.0, 0.0, 0.5]), 32)
    depth = []
    for tilt in (0.0, 1e-6):
        canvas = Canvas(camera)
        solid = Solid("cube", 0.7, np.array([0, 0, 0.5], np.float32), 0.4, LINEAR["red"], False, tilt=tilt, lean=1.0)
        assert canvas.place(solid)
        depth.append(canvas.depth)
    assert np.median(np.abs(depth[0] - depth[1])) < 1e-5


def test_the_verb_writes_class_folders_and_records(tmp_path: Path) -> None:
    out = tmp_path / "objects"
    arguments = ["data", "objects", "--out", str(out), "--num", "40", "--size", "16", "--seed", "2", "--workers", "1"]
    assert cli.main([*arguments, "--classes", "shape+material"]) == 0
    record = json.loads((out / "scenes.json").read_text())
    assert record["info"]["generator"] == "ijepa-ds data objects --classes shape+material"
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == sorted(objects.CLASSES["shape+material"])
    for scene in record["scenes"]:
        with Image.open(out / scene["image_filename"]) as image:
            assert image.size == (16, 16)
        first = scene["objects"][0]
        assert scene["image_filename"].startswith(f"{first['shape']}_{first['material']}/object_")
    few = tmp_path / "few"
    command.render(few, 3, 16, seed=2, workers=1, progress=False, classes="shape+material")
    for path in few.rglob("*.jpg"):
        assert path.read_bytes() == (out / path.relative_to(few)).read_bytes()
