"""Labels of pixels: object, shape and depth are what the geometry says, and lie beside the images."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ijepa_ds import cli
from ijepa_ds.data.scan import ScanOptions
from ijepa_ds.data.sources import open_source
from ijepa_ds.scenes import dense, layout, objects
from ijepa_ds.scenes.paint import Canvas
from ijepa_ds.scenes.shapes import HALF_VIEW, SHAPES, Camera, Solid

GREY = np.full(3, 0.2, np.float32)


def test_a_sphere_on_the_ground() -> None:
    """Against the closed formulas of a sphere and a plane, at the centres of pixels that one surface fills."""
    size, radius = 40, 0.7
    camera = Camera(np.array([4.0, -3.0, 3.0]), np.array([0.0, 0.0, 0.5]), size)
    canvas, centre = Canvas(camera), np.array([0.1, 0.2, radius])
    assert canvas.place(Solid("sphere", radius, centre.astype(np.float32), 0.0, GREY, False))
    found, shapes, depth = dense.labels(canvas)
    across = ((np.arange(size) + 0.5) * 2 / size - 1) * HALF_VIEW
    filled = 0
    for row in range(size):
        for column in range(size):
            ray = camera.forward + across[column] * camera.right - across[row] * camera.up
            away = camera.position - centre
            half_b, c = float(ray @ away), float(away @ away) - radius**2
            disc = half_b**2 - float(ray @ ray) * c
            if abs(disc) < 0.12:  # near the outline
                continue
            filled += 1
            ground = -camera.position[2] / ray[2]
            expected = (-half_b - disc**0.5) / float(ray @ ray) if disc > 0 else ground
            assert found[row, column] == int(disc > 0)
            assert shapes[row, column] == (dense.SHAPE_INDEX["sphere"] if disc > 0 else dense.GROUND)
            assert depth[row, column] == pytest.approx(expected, rel=3e-3)
    assert filled > 0.9 * size**2 and 0.05 < (found == 1).mean() < 0.5


def test_a_pixel_shows_what_most_rays_hit_and_the_nearer_of_two_equals() -> None:
    canvas = Canvas(Camera(np.array([4.0, -3.0, 3.0]), np.array([0.0, 0.0, 0.5]), 2))
    canvas.solids = [Solid(shape, 0.5, np.zeros(3, np.float32), 0.0, GREY, False) for shape in ("cube", "torus")]
    canvas.owner = np.array([[0, 0, 1, 1], [-1, -1, 0, 0], [1, -1, -1, -1], [1, 1, -1, -1]], np.int8)
    canvas.depth = np.array([[1, 3, 5, 6], [9, 9, 7, 8], [4, 9, 9, 8], [5, 6, 7, 8]], np.float32)
    found, shapes, depth = dense.labels(canvas)
    assert found.tolist() == [[1, 2], [2, 0]]
    cube, torus = dense.SHAPE_INDEX["cube"], dense.SHAPE_INDEX["torus"]
    assert shapes.tolist() == [[cube, torus], [torus, 0]]
    assert depth.tolist() == [[2.0, 5.5], [5.0, 8.0]]


@pytest.mark.parametrize("verb", ["scenes", "objects"])
def test_the_verb_writes_labels_beside_the_same_images(verb: str, tmp_path: Path) -> None:
    arguments = ["--num", "9", "--size", "32", "--seed", "4", "--workers", "1"]
    assert cli.main(["data", verb, "--out", str(tmp_path / "plain"), *arguments]) == 0
    assert cli.main(["data", verb, "--out", str(tmp_path / "dense"), *arguments, "--dense"]) == 0
    record = json.loads((tmp_path / "dense" / "images" / "scenes.json").read_text())
    assert record["info"]["shapes"] == {name: i for i, name in enumerate(SHAPES, 1)}
    assert len(open_source(str(tmp_path / "dense" / "images"), ScanOptions())) == 9
    for number, scene in enumerate(record["scenes"]):
        name = scene["image_filename"]
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "dense" / "images" / name).read_bytes()
        index, shape, depth = (
            np.asarray(Image.open((tmp_path / "dense" / kind / name).with_suffix(".png"))) for kind in dense.FOLDERS
        )
        assert index.dtype == shape.dtype == np.uint8 and depth.dtype == np.uint16
        assert set(np.unique(index)) == set(range(len(scene["objects"]) + 1))
        for i, item in enumerate(scene["objects"], 1):
            assert set(np.unique(shape[index == i])) == {record["info"]["shapes"][item["shape"]]}
            x, y, far = item["pixel_coords"]
            if item["shape"] == "torus" or len(scene["objects"]) > 1 or not (0 <= x < 32 and 0 <= y < 32):
                continue
            assert index[int(y), int(x)] == i
            assert far - 1.0 < depth[int(y), int(x)] / dense.DEPTH_SCALE < far
        traced = layout.trace(4, number, 32) if verb == "scenes" else objects.trace("shape", 4, number, 32)
        np.testing.assert_allclose(depth / dense.DEPTH_SCALE, dense.labels(traced.canvas)[2], atol=0.6 / dense.DEPTH_SCALE)
