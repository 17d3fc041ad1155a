"""Lists are read exactly, or refused with the line and the reason."""

import os

import pytest
import torch

from ijepa_ds.cli import main
from ijepa_ds.data.sources import open_source
from ijepa_ds.evals import lowshot
from ijepa_ds.evals.folders import read_pair
from ijepa_ds.evals.tuned import list_names
from tests.cases.making import coded, listing, photo, tar_of, write_tree

FILES = {f"{'ab'[i % 2]}/{i}.jpg": coded(photo(i, 8, 8)) for i in range(4)}
LINES = "\n".join(FILES)
ROWS = "".join(f"{name},{'xy'[i % 2]}\n" for i, name in enumerate(FILES))


@pytest.fixture
def root(tmp_path):
    return write_tree(tmp_path / "tree", FILES)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("mark.txt", LINES.encode("utf-8-sig")),
        ("windows.txt", LINES.replace("\n", "\r\n").encode()),
        ("blanks.txt", LINES.replace("\n", "  \n\t").encode() + b"\n \n"),
        ("backslashes.txt", LINES.replace("/", "\\").encode()),
        ("mark.csv", ("path\n" + LINES).encode("utf-8-sig")),
        ("windows.csv", ("path\n" + LINES).replace("\n", "\r\n").encode()),
        ("header.csv", ("Path\n" + LINES).encode()),
    ],
)
def test_harmless_differences_are_read(root, name, content):
    (root / name).write_bytes(content)
    assert listing(open_source(str(root / name))) == {key: (key[0], value) for key, value in FILES.items()}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.csv", "path,label\n" + ROWS),
        ("l.csv", "﻿path, label\n" + ROWS.replace(",", ", ")),
        ("l.csv", ' Path , Label ,width\n"' + ROWS.replace(",", '" , ').replace("\n", ' ,64\n"')[:-1]),
        ("l.tsv", "path\tlabel\n" + ROWS.replace(",", "\t")),
    ],
)
def test_labels_are_read_without_blanks(root, name, content):
    content = content.replace('" ,', '",')  # a quoted value ends at its quote
    (root / name).write_text(content)
    found = listing(open_source(str(root / name)))
    assert found == {key: ("xy"[i % 2], value) for i, (key, value) in enumerate(FILES.items())}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("utf16.txt", LINES.encode("utf-16"), r"is UTF-16 text, expected UTF-8: `iconv -f UTF-16"),
        ("utf16le.csv", ("path\n" + LINES).encode("utf-16-le"), r"is UTF-16LE text"),
        ("labels.txt", LINES.replace("\n", " 0\n").encode(), r"line 1: 'a/0\.jpg 0' looks like `path label`; .*\.csv"),
        ("comma.txt", (LINES + ",1").encode(), r"line 4: 'b/3\.jpg,1' looks like `path label`"),
        ("first.txt", ("0 " + LINES).encode(), r"line 1: '0 a/0\.jpg' looks like `label path`"),
        ("header.txt", ("path\n" + LINES).encode(), r"line 1: 'path' is no image's name"),
        ("mac.txt", LINES.replace("\n", "\r").encode(), r"lines that end in CR alone"),
        ("other.csv", ("file,label\n" + ROWS).encode(), r"line 1: the first line must name the columns.*'file,label'"),
        ("none.csv", ROWS.encode(), r"line 1: the first line must name the columns.*'a/0\.jpg,x'"),
        ("class.csv", ("path,class\n" + ROWS).encode(), r"line 1: no column 'label' among 'path,class'"),
        ("semicolon.csv", ("path;label\n" + ROWS.replace(",", ";")).encode(), r"separated by ','; found 'path;label'"),
        ("twice.csv", (b"path,label,label\n"), r"line 1: a column occurs twice"),
        ("short.csv", ("path,label\n" + ROWS + "a/0.jpg\n").encode(), r"line 6: 1 values, but 2 columns"),
        ("long.csv", ("path,label\na,b/0.jpg,x\n" + ROWS).encode(), r"line 2: 3 values, but 2 columns.*\"quotes\""),
        ("empty.csv", (b"path,label\n,x\n"), r"line 2: no path"),
        ("zeros.csv", b"path,label\na/0.jpg,x\n" + bytes(9) + b"b/1.jpg,y\n", r"zeros\.csv', line 3: a zero byte at byte 21"),
        ("zero.txt", (LINES + "\0").encode(), r"line 4: a zero byte"),
        ("latin.csv", "path,label\na/0.jpg,x\nb/1.jpg,größe\n".encode("latin-1"), r"line 3: .*0xf6 is its byte 3.*iconv"),
        ("latin.txt", "a/0.jpg\ngröße.jpg\n".encode("latin-1"), r"line 2: .*is no UTF-8 text"),
        (
            "quote.csv",
            ('path,label\na/0.jpg,x\n\n"b/1.jpg,y\n' + ROWS).encode(),
            r"line 4: .*quote that opens in this line not closed",
        ),
        ("quotes.csv", b'path,label\n"a/0.jpg,x\n"b/1.jpg,y\n', r"line 2: .*in line 3: is a quote that opens in this line"),
        (
            "swallowed.csv",
            b'path,label\n"a/0.jpg,x\nb/1.jpg",y\na/2.jpg,x\n',
            r"line 2: the quote that opens here closes in line 3",
        ),
        ("control.csv", b"path,label\na/0.jpg,x\x1a\n", r"line 2: the label b'x.x1a' is no line of text"),
        ("label.csv", b'path,label\na/0.jpg,"x\nb/1.jpg,y"\n', r"line 2: the label has a line break"),
        (
            "two.csv",
            ("path,label\n" + ROWS + "./a//0.jpg,y\n").encode(),
            r"1 images have several labels: 'a/0\.jpg' has 'x' in line 2 and 'y' in line 6",
        ),
        ("part.csv", ("path,label\n" + ROWS + "b/../a/0.jpg,\n").encode(), r"'a/0\.jpg' has 'x' in line 2 and none in line 6"),
    ],
)
def test_what_is_not_understood_is_refused_with_the_line(root, name, content, message, capsys):
    (root / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        open_source(str(root / name))
    assert main(["data", "index", str(root / name), "--out", str(root / "i")]) == 2
    assert name in capsys.readouterr().err and not (root / "i").exists()


def test_an_image_listed_twice_counts_twice_and_is_reported(root, caplog):
    (root / "twice.csv").write_text("path,label\n" + ROWS + "\n./b/1.jpg,y\na/0.jpg,x\n")
    (root / "twice.txt").write_text(LINES + "\n\nb//1.jpg\na/0.jpg\n")
    for name, first in (("twice.csv", "'b/1.jpg' in the lines 3 and 7"), ("twice.txt", "'b/1.jpg' in the lines 2 and 6")):
        caplog.clear()
        assert len(open_source(str(root / name))) == 6
        assert f"2 rows repeat an image, such as {first}" in caplog.text


def test_names_that_are_no_text_are_read_if_they_exist(tmp_path):
    name = b"gr\xf6\xdfe.jpg"
    (tmp_path / os.fsdecode(name)).write_bytes(FILES["a/0.jpg"])
    for ending, head in ((".txt", b""), (".csv", b"path\n")):
        (tmp_path / f"l{ending}").write_bytes(head + name + b"\n")
        assert listing(open_source(str(tmp_path / f"l{ending}"))) == {os.fsdecode(name): (None, FILES["a/0.jpg"])}


def test_the_folder_that_gives_a_list_its_classes_is_named(root, caplog):
    with caplog.at_level("INFO"):
        for name, classes in (("tree/here.txt", ("a", "b")), ("above.txt", ("tree/a", "tree/b"))):
            prefix = "" if name.startswith("tree") else "tree/"
            (root.parent / name).write_text("".join(f"{prefix}{line}\n" for line in FILES))
            caplog.clear()
            assert open_source(str(root.parent / name)).classes == classes
            assert f"below {str((root.parent / name).parent)!r}, where the list lies" in caplog.text


def test_names_with_blanks_and_backslashes_win_over_their_correction(tmp_path):
    files = {" a.jpg": coded(photo(1)), "b\\c.jpg": coded(photo(2)), "d .jpg": coded(photo(3)), "e f.jpg": coded(photo(4))}
    write_tree(tmp_path, files)
    (tmp_path / "l.txt").write_text("\n".join(files))
    (tmp_path / "l.csv").write_text("path\n" + "\n".join(f'"{name}"' for name in files))
    for name in ("l.txt", "l.csv"):
        assert listing(open_source(str(tmp_path / name))) == {key: (None, value) for key, value in files.items()}


@pytest.mark.parametrize("kind", ["folder", "flat tar", "webdataset", "lower case", "shards"])
@pytest.mark.parametrize("mark", ["utf-8", "utf-8-sig"])
def test_the_published_list_fits_every_source(tmp_path, kind, mark):
    names = [f"{wnid}_{k}" for wnid in ("n01440764", "n01443537") for k in range(4)]
    files = {f"{name[:9]}/{name}.JPEG": coded(photo(i, 8, 8)) for i, name in enumerate(names)}
    few = tmp_path / "few.txt"
    few.write_text("".join(f"{name}.JPEG\n" for name in names[::2]), encoding=mark)
    source = write_tree(tmp_path / "tree", files)
    if kind != "folder":
        source = tmp_path / "x.tar"
        ending = ".jpg" if kind == "lower case" else ".JPEG"
        flat = {name.split("/")[1].replace(".JPEG", ending): content for name, content in files.items()}
        labels = {name.split(".")[0] + ".cls": name[:9].encode() for name in flat}
        source.write_bytes(
            tar_of({f"./{name[:9]}/{name}": content for name, content in flat.items()} if kind == "flat tar" else flat | labels)
        )
    if kind == "shards":
        assert main(["data", "shard", str(source), "--out", str(tmp_path / "shards")]) == 0
        source = tmp_path / "shards"
    pair = read_pair(str(source), str(source))
    chosen = lowshot.find_listed(few, list_names(pair.train, pair.classes))
    found = sorted(str(pair.train.paths[int(i)]).replace(":", "/").split("/")[-1].split(".")[0] for i in chosen)
    assert found == sorted(names[::2])
    assert torch.equal(pair.train.labels[chosen].bincount(), torch.tensor([2, 2]))
    few.write_text("n01440764/n01440764_0.JPEG\n")  # with its class, also where names have none
    assert len(lowshot.find_listed(few, list_names(pair.train, pair.classes))) == 1


def test_a_list_of_names_refuses_labels_and_what_is_ambiguous(tmp_path):
    names, few = ["a/1.jpg", "b/1.jpg", "b/2.jpg", "b/2.png"], tmp_path / "few.txt"
    for text, message in (
        ("1.jpg", "match several images"),
        ("2.JPEG", r"match several images \(write class/name\): 2\.JPEG"),
        ("b/2.jpg 0", r"line 1: 'b/2\.jpg 0' has more than a name"),
        ("b/3.jpg", r"lacks: b/3\.jpg; --train has names such as 'a/1\.jpg'"),
    ):
        few.write_text(text + "\n")
        with pytest.raises(ValueError, match=message):
            lowshot.find_listed(few, names)
    few.write_bytes("2.jpg\n".encode("utf-16"))
    with pytest.raises(ValueError, match="is UTF-16 text"):
        lowshot.find_listed(few, names)


def test_a_list_of_published_labels_names_images_in_folders_of_any_name(tmp_path):
    """Bytes that are no UTF-8, quotes, commas and a newline: what `data list` writes, the reader reads."""
    root = tmp_path / os.fsdecode(b'gr\xf6\xdfe, "a"\nb')
    names = ("val/images/val_0.JPEG", 'val/images/v"1", x.JPEG')
    write_tree(root, {name: coded(photo(0, 8, 8)) for name in names})
    (root / "val/val_annotations.txt").write_text("".join(f"{os.path.basename(name)}\tcat, big\n" for name in names))
    out = tmp_path / "l.csv"
    assert main(["data", "list", str(root), "--layout", "tiny-imagenet", "--out", str(out)]) == 0
    assert [label for label, _ in listing(open_source(str(out))).values()] == ["cat, big"] * 2


def test_lists_of_published_labels(tmp_path, capsys, caplog):
    tiny = {f"val/images/val_{i}.JPEG": coded(photo(i, 8, 8)) for i in range(3)}
    write_tree(tmp_path / "tiny", tiny)
    (tmp_path / "tiny/val/val_annotations.txt").write_text("".join(f"val_{i}.JPEG\tn0{i % 2}\t0\t0\t1\t1\n" for i in range(3)))
    kaggle = {f"ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_{i}.JPEG": coded(photo(i, 8, 8)) for i in range(3)}
    write_tree(tmp_path / "kaggle", kaggle)
    rows = "".join(f"ILSVRC2012_val_{i},n0{i % 2} 1 2 3 4 n0{i % 2} 5 6 7 8\n" for i in range(3))
    (tmp_path / "kaggle/LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + rows)
    for name, layout in (("tiny", "tiny-imagenet"), ("kaggle", "kaggle-imagenet")):
        out = tmp_path / "lists" / f"{name}.csv"
        assert main(["data", "list", str(tmp_path / name), "--layout", layout, "--out", str(out)]) == 0
        found = listing(open_source(str(out)))
        assert [label for label, _ in found.values()] == ["n00", "n01", "n00"]
        assert [content for _, content in found.values()] == list((tiny if name == "tiny" else kaggle).values())
    (tmp_path / "tiny/val/images/val_9.JPEG").write_bytes(FILES["a/0.jpg"])
    arguments = ["data", "list", str(tmp_path / "tiny"), "--layout", "tiny-imagenet", "--out", str(tmp_path / "l.csv")]
    assert main(arguments) == 0 and "no label for 1 images, such as" in caplog.text
    with (tmp_path / "tiny/val/val_annotations.txt").open("a") as file:
        file.write("val_0.JPEG\tn09\n")
    assert main(arguments) == 2 and "has 'n00' in line 1 and 'n09' in line 4" in capsys.readouterr().err
    (tmp_path / "tiny/val/val_annotations.txt").write_text("".join(f"val_{i}.JPEG\tn0\n" for i in range(3)))
    (tmp_path / "tiny/val/images/val_1.JPEG").unlink()
    arguments = ["data", "list", str(tmp_path / "tiny"), "--layout", "tiny-imagenet", "--out", str(tmp_path / "l.csv")]
    assert main(arguments) == 2 and "1 of 3 images are missing" in capsys.readouterr().err
    assert main([*arguments[:3], *arguments[3:4], "kaggle-imagenet", *arguments[5:]]) == 2
