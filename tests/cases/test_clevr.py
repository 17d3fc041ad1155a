"""CLEVR as people have it: the generator's output, links, a byte-order mark, other scenes."""

import json

import pytest

from ijepa_ds.evals.scenes import read_scenes
from tests.cases.making import coded, photo, write_tree


def scene(name: str, count: int, near: float = 8.2) -> dict:
    return {
        "image_filename": name,
        "objects": [{"pixel_coords": [0, 0, near + i], "3d_coords": [0, 0, 0]} for i in range(count)],
    }


@pytest.fixture
def output(tmp_path):
    """What clevr-dataset-gen writes: images, a file for each scene, and one of all."""
    root = tmp_path / "output"
    scenes = [scene(f"CLEVR_new_{i:06d}.png", 3 + i % 2, 8.2 + i) for i in range(4)]
    write_tree(root / "images", {entry["image_filename"]: coded(photo(1), "PNG") for entry in scenes})
    files = {f"scenes/{entry['image_filename'][:-4]}.json": json.dumps(entry).encode() for entry in scenes}
    write_tree(root, files | {"CLEVR_scenes.json": json.dumps({"info": {}, "scenes": scenes}).encode("utf-8-sig")})
    return root


@pytest.mark.parametrize("part", ["", "images", "CLEVR_scenes.json"])
@pytest.mark.parametrize("single", [False, True])
def test_the_generator_s_output_is_read(output, part, single):
    if single:
        if part.endswith(".json"):
            return
        (output / "CLEVR_scenes.json").unlink()
    pair = read_scenes("count", str(output / part), str(output / part))
    assert pair.train.labels.tolist() == [0, 1, 0, 1]
    assert read_scenes("distance", str(output / part), str(output / part)).train.labels.tolist() == [1, 3, 5, 5]


def test_a_link_to_the_folder_is_followed(output, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "link").symlink_to(output / "images")
    assert len(read_scenes("count", *[str(tmp_path / "elsewhere/link")] * 2).train.labels) == 4


def test_scenes_without_a_label_are_counted_and_named(output):
    content = json.loads((output / "CLEVR_scenes.json").read_text("utf-8-sig"))
    content["scenes"][1]["objects"] = scene("x", 11)["objects"]
    del content["scenes"][2]["objects"][0]["pixel_coords"]
    (output / "CLEVR_scenes.json").write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=r"--train: .*1 of 4 scenes have no such label: 'CLEVR_new_000001\.png': 11 objects, expected 3 to 10"
    ):
        read_scenes("count", str(output), str(output))
    with pytest.raises(ValueError, match=r"--train: .*'CLEVR_new_000002\.png': an object without 'pixel_coords'"):
        read_scenes("distance", str(output), str(output))
