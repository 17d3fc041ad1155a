"""Demo scenes: the same whoever renders them, and their records tell what the pictures show."""

from __future__ import annotations

import argparse
import colorsys
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ijepa_ds.scenes import command, layout, shapes
from ijepa_ds.scenes.paint import Canvas

_SIZE = 64


@pytest.fixture(scope="module")
def many() -> list[tuple[np.ndarray, list[dict]]]:
    """Three hundred scenes."""
    return [layout.draw(1, index, _SIZE) for index in range(300)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rendered data set of 70 images: three chunks, the last one short."""
    out = tmp_path_factory.mktemp("scenes") / "train"
    command.render(out, 70, 32, seed=3, workers=1, progress=False)
    return out


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.dist
def test_workers_do_not_change_a_byte(folder: Path, tmp_path: Path) -> None:
    command.render(tmp_path / "two", 70, 32, seed=3, workers=2, progress=False)
    assert _bytes(tmp_path / "two") == _bytes(folder)


def test_image_does_not_depend_on_num_but_on_seed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "few").mkdir()  # an empty folder is welcome
    command.render(tmp_path / "few", 9, 32, seed=3, progress=False)
    command.render(tmp_path / "other", 9, 32, seed=4, progress=False)
    few, other, all_ = (_bytes(path) for path in (tmp_path / "few", tmp_path / "other", folder))
    del few["scenes.json"], other["scenes.json"]
    assert len(few) == len(other) == 9
    assert all(all_[name] == content for name, content in few.items())
    assert not set(few.values()) & set(other.values())


def test_class_folder_is_the_number_of_objects(folder: Path) -> None:
    record = json.loads((folder / "scenes.json").read_text())
    assert [scene["image_index"] for scene in record["scenes"]] == list(range(70))
    for scene in record["scenes"]:
        assert int(Path(scene["image_filename"]).parts[0].split("_")[0]) == len(scene["objects"])
        assert scene["split"] == "train"
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.jpg"))
    assert files == sorted(scene["image_filename"] for scene in record["scenes"])
    sizes = [len(list(path.iterdir())) for path in folder.iterdir() if path.is_dir()]
    assert len(sizes) == 8 and max(sizes) - min(sizes) <= 1
    assert {path.name for path in folder.parent.iterdir()} == {"train"}, "a temporary folder was left"


def test_pictures_are_rgb_jpegs_of_the_size(folder: Path) -> None:
    for path in folder.rglob("*.jpg"):
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (32, 32))
            assert np.asarray(image).std() > 5


def test_all_counts_and_distance_bins_are_populated(many: list) -> None:
    counts = np.bincount([len(objects) for _, objects in many], minlength=11)
    assert (counts[3:] >= 300 // 8).all() and counts[:3].sum() == 0 and len(counts) == 11
    nearest = [min(item["pixel_coords"][2] for item in objects) for _, objects in many]
    bins = np.bincount(np.digitize(nearest, [8, 8.5, 9, 9.5, 10]), minlength=6)
    assert bins.min() >= 20, bins
    assert 7.4 < min(nearest) and max(nearest) < 11.1
    # Counting must not be a way to tell the distance.
    assert abs(np.corrcoef(nearest, [len(objects) for _, objects in many])[0, 1]) < 0.2


def test_every_attribute_occurs(many: list) -> None:
    objects = [item for _, items in many for item in items]
    colours, sizes, materials = layout.COLOURS, layout.SIZES, layout.MATERIALS
    expected = {"shape": shapes.SHAPES, "color": colours, "size": sizes, "material": materials}
    for key, values in expected.items():
        share = {value: sum(item[key] == value for item in objects) / len(objects) for value in values}
        assert all(0.5 < part * len(share) < 1.5 for part in share.values()), share


def test_objects_do_not_intersect(many: list) -> None:
    for _, objects in many:
        for number, one in enumerate(objects):
            for other in objects[:number]:
                distance = math.dist(one["3d_coords"][:2], other["3d_coords"][:2])
                assert distance > layout.SIZES[one["size"]] + layout.SIZES[other["size"]]


def _in_front(one: dict, objects: list[dict]) -> bool:
    """Nothing nearer lies around the place of an object in the image."""
    x, y, depth = one["pixel_coords"]
    return all(
        math.hypot(x - other["pixel_coords"][0], y - other["pixel_coords"][1]) > 14
        for other in objects
        if other is not one and other["pixel_coords"][2] < depth
    )


def test_pixel_coords_point_at_the_object(many: list) -> None:
    """The pixel of an unoccluded centre has the object's hue."""
    hits = []
    for picture, objects in many:
        for item in objects:
            # The centre of a torus may be its hole; brown is too near to red, and gray has no hue.
            if item["shape"] == "torus" or item["color"] in ("gray", "brown") or not _in_front(item, objects):
                continue
            x, y, _ = item["pixel_coords"]
            seen = colorsys.rgb_to_hsv(*picture[int(y), int(x)] / 255)
            named = colorsys.rgb_to_hsv(*np.array(layout.COLOURS[item["color"]]) / 255)
            difference = abs((seen[0] - named[0] + 0.5) % 1 - 0.5)
            hits.append(difference < 0.08 and seen[1] > 0.15)
    assert len(hits) > 300 and np.mean(hits) > 0.97


def test_nearer_object_hides_the_farther_one() -> None:
    """Two balls on one line of sight, added in either order: the nearer one owns the pixel."""
    camera = shapes.Camera(np.array([0.0, -10.0, 5.0]), np.array([0.0, 0.0, 0.5]), _SIZE)
    red, blue = (np.array(colour, np.float32) for colour in ([1, 0, 0], [0, 0, 1]))
    near = shapes.Solid("sphere", 0.35, np.array([0, -1, 0.35], np.float32), 0.0, red, False)
    far = shapes.Solid("sphere", 0.7, np.array([0, 0.3, 0.7], np.float32), 0.0, blue, False)
    for order in ((near, far), (far, near)):
        canvas = Canvas(camera)
        assert all(canvas.place(solid) for solid in order)
        x, y, depth = camera.project(near.centre)
        pixel = int(y * 2), int(x * 2)
        owner, seen = canvas.owner[pixel], canvas.depth[pixel]
        assert canvas.solids[owner] is near
        assert seen == pytest.approx(float(depth) - 0.35, abs=0.05)


def test_hidden_object_is_refused() -> None:
    canvas = Canvas(shapes.Camera(np.array([0.0, -10.0, 2.0]), np.array([0.0, 0.0, 0.5]), _SIZE))
    grey = np.full(3, 0.5, np.float32)
    big = shapes.Solid("cube", 0.7, np.array([0, 0, 0.5], np.float32), 0.0, grey, False)
    hidden = shapes.Solid("torus", 0.35, np.array([0, 1.5, 0.13], np.float32), 0.0, grey, False)
    outside = shapes.Solid("cone", 0.35, np.array([5, 0, 0.35], np.float32), 0.0, grey, False)
    assert canvas.place(big)
    before = canvas.owner.copy()
    assert not canvas.place(hidden) and not canvas.place(outside)
    assert len(canvas.solids) == 1 and (canvas.owner == before).all()


def _inside(shape: str, p: np.ndarray) -> np.ndarray:
    """Definition of a solid of radius 1, written independently of the ray casting."""
    ring = np.hypot(p[0], p[1])
    return {
        "cube": np.abs(p).max(0) < 0.5**0.5,
        "sphere": ring**2 + p[2] ** 2 < 1,
        "cylinder": (ring < 1) & (np.abs(p[2]) < 1),
        "cone": (np.abs(p[2]) < 1) & (ring < (1 - p[2]) / 2),
        "torus": (ring - 0.62) ** 2 + p[2] ** 2 < 0.38**2,
    }[shape]


@pytest.mark.parametrize("shape", shapes.SHAPES)
def test_rays_hit_the_surface(shape: str) -> None:
    """A hit is the first entry found by marching in small steps, for a turned and moved solid."""
    rng = np.random.default_rng(0)
    centre, angle, radius = np.array([1, 2, 0.7], np.float32), 0.6, 0.7
    solid = shapes.Solid(shape, radius, centre, angle, np.ones(3, np.float32), False)
    origin = rng.normal(size=(3, 400))
    origin *= 4 / np.linalg.norm(origin, axis=0)
    direction = rng.uniform(-0.6, 0.6, (3, 400)) - origin
    direction /= np.linalg.norm(direction, axis=0)
    t = solid.hit((origin + centre[:, None]).astype(np.float32), direction.astype(np.float32))
    steps = np.arange(2.5, 5.5, 0.005)
    path = (origin[:, :, None] + direction[:, :, None] * steps) / radius
    c, s = math.cos(angle), math.sin(angle)
    inside = _inside(shape, np.stack([c * path[0] + s * path[1], c * path[1] - s * path[0], path[2]]))
    first = np.where(inside.any(1), steps[inside.argmax(1)], np.inf)
    agree = np.isclose(first, t, rtol=0, atol=0.03)
    assert np.isinf(first).any() and np.isfinite(first).sum() > 100
    assert agree.mean() > 0.97  # grazing rays may differ
    hit = np.flatnonzero(np.isfinite(t))
    point = (origin + centre[:, None] + direction * np.where(np.isfinite(t), t, 0))[:, hit].astype(np.float32)
    normal = solid.normal(point)
    assert np.allclose(np.linalg.norm(normal, axis=0), 1, atol=1e-4)
    if shape != "cone":  # the normal of a cone's base, which no camera sees, is not defined
        assert ((normal * direction[:, hit]).sum(0) < 0.1).mean() > 0.99


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num": 0}, "num is 0"),
        ({"size": 8}, "size is 8"),
        ({"seed": -1}, "seed"),
        ({"workers": 0}, "workers"),
    ],
)
def test_arguments_out_of_range_are_refused(tmp_path: Path, change: dict, message: str) -> None:
    arguments = {"num": 1, "size": 16, "seed": 0, "workers": 1} | change
    with pytest.raises(ValueError, match=message):
        command.render(tmp_path / "out", **arguments, progress=False)
    assert not any(tmp_path.iterdir())


def test_folder_in_use_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ValueError, match="not an empty folder"):
        command.render(tmp_path, 1, 16, 0, progress=False)
    with pytest.raises(ValueError, match="not an empty folder"):
        command.render(tmp_path / "mine.txt", 1, 16, 0, progress=False)
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_trace", fail)
    with pytest.raises(KeyboardInterrupt):
        command.render(tmp_path / "out", 3, 16, 0, workers=1, progress=False)
    assert not any(tmp_path.iterdir())


def test_command(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    arguments = [
        "--out",
        str(tmp_path / "test"),
        "--num",
        "2",
        "--size",
        "16",
        "--seed",
        "9",
        "--split",
        "val",
    ]
    assert command.run(parser.parse_args(arguments)) == 0
    record = json.loads((tmp_path / "test" / "scenes.json").read_text())
    assert record["info"]["seed"] == 9 and [scene["split"] for scene in record["scenes"]] == ["val", "val"]
