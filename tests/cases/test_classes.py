"""One rule for classes: a folder, its tar, its shards and a list of it give the same images and classes."""

import subprocess
from pathlib import Path

import numpy as np
import pytest

from ijepa_ds.cli import main
from ijepa_ds.data.classes import describe_classes
from ijepa_ds.data.scan import ScanOptions
from ijepa_ds.data.sources import open_source
from ijepa_ds.evals.presets import PRESETS, check_classes
from tests.cases.making import coded, listing, photo, tar_of, write_tree

IMAGES = [coded(photo(i, 8, 8)) for i in range(4)]
_PARTS = ("a", "b", "a b", "größe", "n0144", "7", "images", ".hidden", "x.jpg", "__MACOSX", "A")
_LAST = ("0.jpg", "x1.0.jpg", "x1.1.JPEG", "x1.PNG", ".dot.jpg", "q'\".jpeg", "notes.txt", "p.jfif")


def random_tree(rng: np.random.Generator) -> dict[str, bytes]:
    """Up to 12 files in folders up to four deep, some with a class beside them."""
    files: dict[str, bytes] = {"a/first.jpg": IMAGES[0]}
    for _ in range(int(rng.integers(1, 12))):
        folders = [str(rng.choice(_PARTS)) for _ in range(int(rng.integers(0, 5)))]
        name = "/".join([*folders, str(rng.choice(_LAST))])
        taken = {"/".join(path.split("/")[:n]) for path in files for n in range(1, path.count("/") + 2)}
        above = {"/".join([*folders][:n]) for n in range(1, len(folders) + 1)}
        if name in taken or above & files.keys():
            continue
        files[name] = IMAGES[int(rng.integers(4))]
        if rng.random() < 0.2:
            files[name.rpartition(".")[0] + ".cls"] = str(rng.choice(("cat", "dog", "12"))).encode() + b"\n"
    return files


def expected(files: dict[str, bytes]) -> dict[str, tuple[str | None, bytes]]:
    """The rule of docs/data.md, written a second time."""
    found: dict[str, tuple[str | None, bytes]] = {}
    for name, content in files.items():
        *folders, last = name.split("/")
        if not last.lower().endswith((".jpg", ".jpeg", ".png", ".jfif")) or any(p.startswith(".") for p in [*folders, last]):
            continue
        label = "/".join(folders) or None
        for cut in range(last.count("."), 0, -1):
            beside = "/".join([*folders, ".".join(last.split(".")[:cut])]) + ".cls"
            if beside in files:
                label = files[beside].decode().strip()
                break
        found[name] = (label, content)
    return found


def test_folder_tar_shards_and_list_of_200_random_trees_agree(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(200):
        files = random_tree(rng)
        root, right = tmp_path / str(number), expected(files)
        write_tree(root / "tree", files)
        if number % 2:
            names = [*files]
            rng.shuffle(names)
            prefix = "./" if number % 4 == 1 else ""
            (root / "x.tar").write_bytes(tar_of({prefix + name: files[name] for name in names}))
        else:
            subprocess.run(["tar", "-cf", root / "x.tar", "-C", root / "tree", "."], check=True)
        folder = listing(open_source(str(root / "tree")))
        assert folder == right, number
        assert listing(open_source(str(root / "x.tar"))) == right, number
        lines = [f'"{name}"'.replace("'\"", '\'""') for name in right]  # a list has no files beside it but reads their classes
        (root / "tree" / "list.csv").write_text("path\n" + "\n".join(lines) + "\n")
        assert listing(open_source(str(root / "tree" / "list.csv"))) == right, number
        if number % 10 == 0:
            assert main(["data", "shard", str(root / "x.tar"), "--out", str(root / "shards"), "--size", "4K"]) == 0
            assert listing(open_source(str(root / "shards"))) == right, number


def test_the_level_chooses_a_part_of_the_path(tmp_path):
    files = {f"{wnid}/images/{i}.jpg": IMAGES[i] for wnid in ("n01", "n02") for i in range(2)}
    write_tree(tmp_path / "tree", files)
    (tmp_path / "x.tar").write_bytes(tar_of(files))
    for source in ("tree", "x.tar"):
        for level, classes in ((None, ("n01/images", "n02/images")), (1, ("n01", "n02")), (-1, ("images",))):
            assert open_source(str(tmp_path / source), ScanOptions(class_level=level)).classes == classes
        with pytest.raises(ValueError, match=r"data\.class_level \(--class-level\) is 3, but .* lies in 2 folders only"):
            open_source(str(tmp_path / source), ScanOptions(class_level=3))
    assert main(["data", "index", str(tmp_path / "tree"), "--out", str(tmp_path / "i"), "--class-level", "1"]) == 0
    assert open_source(str(tmp_path / "i")).classes == ("n01", "n02")
    with pytest.raises(ValueError, match="whose images and classes are fixed"):
        open_source(str(tmp_path / "i"), ScanOptions(class_level=2))


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["a/abbey", "a/airport/indoor", "b/bar", "c/car"], "4 classes, such as a/abbey, a/airport/indoor, b/bar, ..."),
        (["n1/images", "n2/images"], r"2 classes, such as n1/images, n2/images \(every class ends in the folder 'images'.*=1 "),
        (["n1/x", "n2/y"], r"\(every class is the only folder in its parent: leave it out with data\.class_level=1 "),
        (["train/x", "train/y"], r"\(every class is below 'train': make it the source"),
        (["train"], r"1 class, train \(a single class"),
        ([""], "0 classes: the images lie in no folder"),
        (["Cat", "cat", "dog"], "; 'Cat' and 'cat' are different classes, although they look alike"),
        (["01", "1", "2"], "; '01' and '1' are different classes"),
        (["", "a", "b"], r"2 classes, such as a, b; 1 images have no class"),
    ],
)
def test_what_is_said_about_classes(tmp_path, names, text, caplog):
    write_tree(tmp_path / "tree", {str(Path(name) / "1.jpg"): IMAGES[0] for name in names})
    import re

    assert re.search(text, describe_classes(open_source(str(tmp_path / "tree"))))
    with caplog.at_level("INFO"):
        assert main(["data", "index", str(tmp_path / "tree"), "--out", str(tmp_path / "i")]) == 0
    assert re.search(text, caplog.text)


def test_two_classes_for_one_key_do_not_mix(tmp_path):
    files = {
        "x1.0.jpg": IMAGES[0],
        "x1.1.jpg": IMAGES[1],
        "x1.0.cls": b"cat",
        "x1.1.cls": b"dog",
        "x1.cls": b"fish",
        "y.left.jpg": IMAGES[2],
        "y.cls": b"1",
    }
    (tmp_path / "x.tar").write_bytes(tar_of(files))
    found = {name: label for name, (label, _) in listing(open_source(str(tmp_path / "x.tar"))).items()}
    assert found == {"x1.0.jpg": "cat", "x1.1.jpg": "dog", "y.left.jpg": "1"}
    (tmp_path / "x.tar").write_bytes(tar_of({"a.jpg": IMAGES[0], "a.cls": b" "}))
    with pytest.raises(ValueError, match=r"x\.tar:a\.cls must hold the class of its image"):
        open_source(str(tmp_path / "x.tar"))
    write_tree(tmp_path / "tree", {"a.jpg": IMAGES[0], "a.cls": "größe".encode("latin-1")})
    with pytest.raises(ValueError, match=r"a\.cls: .*is no UTF-8 text"):
        open_source(str(tmp_path / "tree"))


def test_presets_refuse_another_number_of_classes():
    for name, preset in PRESETS.items():
        check_classes(name, preset.num_classes)
        with pytest.raises(ValueError, match=f"has {preset.num_classes} classes, --train has 26"):
            check_classes(name, 26)


def test_folders_above_tars_are_no_classes(tmp_path):
    flat, inside = tar_of({"1.jpg": IMAGES[0]}), tar_of({"in/2.jpg": IMAGES[1]})
    write_tree(tmp_path / "classes", {"n01/x.tar": flat, "n02/x.tar": flat})
    write_tree(tmp_path / "mixed", {"n01/x.tar": flat, "y.tar": inside})
    write_tree(tmp_path / "shards", {"x.tar": inside, "y.tar": inside})
    for name, count in (("classes", 0), ("mixed", 1), ("shards", 1)):
        text = describe_classes(open_source(str(tmp_path / name)))
        assert text.startswith(f"{count} class") and ("nor a folder above it is a class" in text) == (name != "shards")


def test_files_with_other_endings_are_counted(tmp_path, caplog):
    files = {
        "c/1.jpg": IMAGES[0],
        "c/2.jfif": IMAGES[1],
        "c/3.JPE": IMAGES[2],
        "c/4.heic": b"x",
        "c/5.HEIC": b"x",
        "c/6.gif": b"x",
        "scenes.json": b"{}",  # of `ijepa-ds data scenes`
        "c/scenes.json": b"{}",
    }
    write_tree(tmp_path / "tree", files)
    (tmp_path / "x.tar").write_bytes(tar_of(files))
    for source in ("tree", "x.tar"):
        caplog.clear()
        assert len(open_source(str(tmp_path / source))) == 3
        assert "3 files with other endings left out (.heic 2, .gif 1)" in caplog.text
