"""Tars are read whole or refused, with the archive, the byte and the number of members before."""

import collections
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest

from ijepa_ds.cli import main
from ijepa_ds.data.classes import describe_classes
from ijepa_ds.data.scan import ScanOptions
from ijepa_ds.data.sources import open_source
from ijepa_ds.data.tar_format import read_members
from ijepa_ds.data.tar_tree import TarTree
from ijepa_ds.data.walk import is_image
from tests.cases.making import coded, listing, photo, tar_of, write_tree

FILES = {f"c{i % 2}/{i:02d}.jpg": coded(photo(i)) for i in range(12)}
WHOLE = tar_of(FILES)


def member(number: int, tar: bytes = WHOLE) -> int:
    """The byte of a member's header."""
    place = Path("x.tar").absolute()
    place.write_bytes(tar)
    with tarfile.open(place) as opened:
        offset = opened.getmembers()[number].offset
    place.unlink()
    return offset


def opened(path: Path, tar: bytes, **options) -> dict:
    path.write_bytes(tar)
    return listing(open_source(str(path), ScanOptions(**options)))


@pytest.mark.parametrize("damage", ["flipped", "zeroed", "cut in a header", "cut in data", "cut at a border", "glued"])
def test_a_damaged_tar_is_refused_with_the_byte(tmp_path, damage, capsys):
    at = member(5)
    flipped = bytearray(WHOLE)
    flipped[at + 148] ^= 1
    content = {
        "flipped": bytes(flipped),
        "zeroed": WHOLE[:at] + bytes(512) + WHOLE[at + 512 :],
        "cut in a header": WHOLE[: at + 200],
        "cut in data": WHOLE[: at + 700],
        "cut at a border": WHOLE[:at],
        "glued": tar_of(dict(list(FILES.items())[:5])) + tar_of(dict(list(FILES.items())[5:])),
    }[damage]
    (tmp_path / "x.tar").write_bytes(content)
    for command in ("index", "check", "shard"):
        out = [] if command == "check" else ["--out", str(tmp_path / f"out-{command}")]
        assert main(["data", command, str(tmp_path / "x.tar"), *out]) == 2
        text = capsys.readouterr().err
        assert f"{str(tmp_path / 'x.tar')!r}" in text and f"at byte {at:,}, after 5 whole members" in text
        assert not (tmp_path / f"out-{command}").exists()


def test_an_interrupted_writer_s_tar_is_accepted_on_request(tmp_path, caplog):
    at = member(5)
    found = opened(tmp_path / "x.tar", WHOLE[:at], tar_end="warn")
    assert found.keys() == set(list(FILES)[:5])
    assert "two blocks of zeros" in caplog.text and "x.tar" in caplog.text
    with pytest.raises(ValueError, match="cut short"):  # only at a member's border
        opened(tmp_path / "x.tar", WHOLE[: at + 512], tar_end="warn")
    arguments = ["data", "index", str(tmp_path / "x.tar"), "--out", str(tmp_path / "x.index"), "--tar-end"]
    (tmp_path / "x.tar").write_bytes(WHOLE[:at])
    assert [main([*arguments, choice]) for choice in ("error", "warn")] == [2, 0]


def test_a_zeroed_tail_is_no_padding(tmp_path):
    at = member(5)
    tail = WHOLE[:at] + bytes(30 * 512)
    with pytest.raises(ValueError, match=r"more than one record: members may have been zeroed"):
        opened(tmp_path / "x.tar", tail)
    assert len(opened(tmp_path / "x.tar", WHOLE[:at] + bytes(1024))) == 5  # without padding
    wide = WHOLE[:at] + bytes(1024)
    assert len(opened(tmp_path / "x.tar", wide + bytes(-len(wide) % (1 << 18)))) == 5  # records of 256 KiB


@pytest.mark.parametrize("kind", ["gnu", "posix"])
def test_sparse_members_are_named_and_the_others_have_their_own_bytes(tmp_path, kind):
    row = 3 * 512
    head = coded(np.zeros((512, 512, 3), np.uint8), "BMP")[:54]
    (tmp_path / "tree" / "c").mkdir(parents=True)
    with open(tmp_path / "tree/c/a.bmp", "wb") as file:
        file.write(head)
        file.seek(54 + row * 500)
        file.write(b"\xff" * row * 12)
    write_tree(tmp_path / "tree", {"c/b.bmp": head + bytes(range(256)) * (row * 2)})
    options = ["-S", f"--format={kind}", "--sort=name"]
    subprocess.run(["tar", *options, "-cf", tmp_path / "x.tar", "-C", tmp_path / "tree", "."], check=True)
    found = listing(open_source(str(tmp_path / "x.tar")))
    assert found["c/a.bmp"] == ("c", "sparse member: unpack the tar, and pack it again without --sparse")
    assert found["c/b.bmp"] == ("c", (tmp_path / "tree/c/b.bmp").read_bytes())


def test_links_count_as_in_the_unpacked_folder(tmp_path):
    files = {"a/1.jpg": coded(photo(1)), "b/2.jpg": coded(photo(2))}
    links = {
        "b/hard.jpg": (tarfile.LNKTYPE, "a/1.jpg"),
        "b/soft.jpg": (tarfile.SYMTYPE, "../a/1.jpg"),
        "c": (tarfile.SYMTYPE, "b"),  # a folder under a second name
        "b/loop": (tarfile.SYMTYPE, ".."),
        "a/gone.jpg": (tarfile.SYMTYPE, "nothing.jpg"),
        "a/pipe.jpg": (tarfile.FIFOTYPE, ""),
    }
    (tmp_path / "x.tar").write_bytes(tar_of(files, links=links))
    (tmp_path / "tree").mkdir()
    subprocess.run(["tar", "-xf", tmp_path / "x.tar", "-C", tmp_path / "tree"], check=True)
    tar, folder = listing(open_source(str(tmp_path / "x.tar"))), listing(open_source(str(tmp_path / "tree")))
    assert tar.keys() == folder.keys() == {
        *("a/1.jpg", "a/gone.jpg", "a/pipe.jpg", "b/2.jpg", "b/hard.jpg", "b/soft.jpg", "c/2.jpg", "c/hard.jpg", "c/soft.jpg")
    }  # fmt: skip
    good = {name for name, (_, content) in folder.items() if isinstance(content, bytes)}
    assert {name: tar[name] for name in good} == {name: folder[name] for name in good}
    assert {*tar} - good == {"a/gone.jpg", "a/pipe.jpg"} and all(isinstance(tar[name][1], str) for name in {*tar} - good)


def test_names_are_those_of_the_unpacked_folder(tmp_path):
    image, other = coded(photo(1)), coded(photo(2))
    files = {
        "./a/1.jpg": image,
        "a//./2.jpg": image,
        "/b/3.jpg": image,
        "__MACOSX/a/._1.jpg": b"resource fork",
        ".hidden/4.jpg": image,
        "a/.5.jpg": image,
        "b/../6.jpg": image,
    }
    made = tar_of(files)
    twice = tar_of({"./a/1.jpg": other})
    (tmp_path / "x.tar").write_bytes(made)
    with tarfile.open(tmp_path / "x.tar", "a") as tar:
        info = tarfile.TarInfo("a/1.jpg")
        info.size = len(other)
        tar.addfile(info, __import__("io").BytesIO(other))
    assert twice != made
    found = listing(open_source(str(tmp_path / "x.tar")))
    assert {name: label for name, (label, _) in found.items()} == {
        "a/2.jpg": "a", "b/3.jpg": "b", "a/1.jpg": "a", "b/../6.jpg": found["b/../6.jpg"][0]
    }  # fmt: skip
    assert found["a/1.jpg"][1] == other  # the last wins
    assert "tar does not unpack it" in found["b/../6.jpg"][1]


@pytest.mark.parametrize("program", ["gzip", "bzip2", "xz"])
def test_a_compressed_tar_names_the_command_that_helps(tmp_path, program, monkeypatch):
    (tmp_path / "it's x.tar").write_bytes(WHOLE)
    subprocess.run([program, tmp_path / "it's x.tar"], check=True)
    (packed,) = tmp_path.iterdir()
    for name in (packed.name, "renamed.tar"):
        packed = packed.rename(tmp_path / name)
        with pytest.raises(ValueError, match=rf"is compressed \({program}\)") as error:
            open_source(str(packed))
    write_tree(tmp_path / "folder", {"a/x.tar.gz": packed.read_bytes()})
    with pytest.raises(ValueError, match=rf"a/x\.tar\.gz.* is compressed \({program}\)"):
        open_source(str(tmp_path / "folder"))
    (tmp_path / "folder" / "b.tar").write_bytes(WHOLE)
    with pytest.raises(ValueError, match=rf"a/x\.tar\.gz.* is compressed \({program}\)"):
        open_source(str(tmp_path / "folder"))  # also beside a tar: its images would be missing
    command = str(error.value).split("`")[1]
    subprocess.run(command, shell=True, check=True)
    assert listing(open_source(command.split("> ")[1])).keys() == FILES.keys()


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_damaged_long_name_is_refused_where_its_header_repeats_it(tmp_path, kind):
    name = "-".join(map(str, range(60))) + "/0.jpg"
    whole = tar_of({name: coded(photo(1)), "b.jpg": coded(photo(2))}, kind)
    first = whole.index(name.encode()[:100])  # in the extended header
    assert whole.count(name.encode()[:100]) == 2 and whole.count(name.encode()) == 1
    damaged = bytearray(whole)
    damaged[first + 30] ^= 4
    with pytest.raises(ValueError, match=r"after 0 whole members: the long name '0-1.* does not begin as its header says"):
        opened(tmp_path / "x.tar", bytes(damaged))
    assert opened(tmp_path / "x.tar", whole).keys() == {name, "b.jpg"}
    other = tar_of({f"{'größe?' * 20}/0.jpg": coded(photo(1))}, kind)  # Python's pax headers have "?" for other characters
    assert len(opened(tmp_path / "x.tar", other)) == 1


def test_what_no_reader_can_know(tmp_path):
    """Border cases of docs/reading.md: these archives are byte for byte what a writer may have written."""
    last = member(11)
    tail = WHOLE[:last] + bytes(1024)
    assert len(opened(tmp_path / "x.tar", tail)) == 11
    half = {name: FILES[name] for name in list(FILES)[:6]}
    first, end = tar_of(half), member(6)
    glued = first[:end] + tar_of({"c0/00.jpg": FILES["c1/11.jpg"], "c1/07.jpg": FILES["c1/07.jpg"]})
    found = opened(tmp_path / "x.tar", glued)
    assert len(found) == 7 and found["c0/00.jpg"][1] == FILES["c1/11.jpg"]


def test_tars_without_images_say_what_they_hold(tmp_path):
    with pytest.raises(ValueError, match=r"1 tars with no files: archives of zeros alone"):
        opened(tmp_path / "x.tar", bytes(10240))
    with pytest.raises(ValueError, match=r"1 tars with 2 files, none with a name ending in \.bmp"):
        opened(tmp_path / "x.tar", tar_of({"a/1.heic": b"x", "notes.txt": b"x"}))


def test_other_files_beside_tars_are_counted(tmp_path, caplog):
    write_tree(tmp_path / "folder", {"a.tar": WHOLE, "labels.zip": b"PK", "notes.txt": b"x"})
    assert len(open_source(str(tmp_path / "folder"))) == len(FILES)
    assert "2 files with other endings left out (.zip 1, .txt 1)" in caplog.text


def test_the_same_tar_under_two_names_is_named(tmp_path, caplog):
    write_tree(tmp_path / "folder", {"a.tar": WHOLE, "b.tar": WHOLE, "c.tar": tar_of({"x.jpg": coded(photo(1))})})
    assert len(open_source(str(tmp_path / "folder"))) == 2 * len(FILES) + 1
    assert "2 tars are the same in length" in caplog.text and "a.tar' and" in caplog.text and "c.tar" not in caplog.text


def test_a_tar_of_tars_says_so(tmp_path):
    inner = {f"n{c}.tar": tar_of({f"n{c}_{i}.jpg": coded(photo(i)) for i in range(2)}) for c in range(2)}
    with pytest.raises(ValueError, match=r"holds 2 \.tar members, no images: unpack it once.*tar -xf"):
        opened(tmp_path / "x.tar", tar_of(inner))
    write_tree(tmp_path / "classes", inner)
    index = open_source(str(tmp_path / "classes"))
    assert len(index) == 4 and "unpack each tar into a folder of its class" in describe_classes(index)


def names(path: Path) -> list[bytes]:
    return sorted(file.name for file in TarTree(read_members(str(path))).files())


def archives() -> dict[str, bytes]:
    """Five archives of twelve files each, of the formats in use."""
    rng = np.random.default_rng(0)
    files = {f"c{i % 2}/{i:02d}.jpg": rng.bytes(1 + 300 * i) for i in range(12)}
    long = {f"{'folder' * 20}/c{i % 2}/{i:02d}.jpg": content for i, content in enumerate(files.values())}
    # A member without data may not be the last: if its header is zeroed, the archive is byte for byte one without it.
    links = {f"l/{i}.jpg": (kind, f"c{i}/{i:02d}.jpg") for i, kind in enumerate((tarfile.LNKTYPE, tarfile.LNKTYPE))}
    return {
        "ustar": tar_of(files, tarfile.USTAR_FORMAT),
        "gnu": tar_of(files | {"c0/00.cls": b"7", "notes.txt": b"x" * 700}, tarfile.GNU_FORMAT),
        "gnu, long names": tar_of(long, tarfile.GNU_FORMAT),
        "pax, long names": tar_of(long, tarfile.PAX_FORMAT),
        "links": tar_of(dict(list(files.items())[:10]), tarfile.USTAR_FORMAT, links, {"notes.txt": b"x" * 700}),
    }


@pytest.mark.slow
def test_every_damage_gives_all_images_or_an_error(tmp_path):
    """Flip, cut, zero and glue at every border of 512 bytes and at 500 random bytes of five archives."""
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    path, rng = tmp_path / "x.tar", np.random.default_rng(1)
    other = tar_of({"other/1.jpg": b"1", "other/2.jpg": b"2"})
    for content in archives().values():
        path.write_bytes(content)
        whole = names(path)
        assert sum(map(is_image, whole)) == 12
        places = [*range(0, len(content), 512), *rng.integers(0, len(content), 500).tolist()]
        for at in places:
            flipped = bytearray(content)
            flipped[at] ^= 1 << int(rng.integers(8))
            for how, damaged in (
                ("flip", bytes(flipped)),
                ("cut", content[:at]),
                ("zero", content[:at] + bytes(min(512, len(content) - at)) + content[at + 512 :]),
                ("glue", content[:at] + other + content[at:]),
            ):
                path.write_bytes(damaged)
                try:
                    found = names(path)
                except ValueError as error:
                    assert str(path) in str(error) and "whole members" in str(error)
                    counts[how, "refused"] += 1
                    continue
                if set(whole) <= set(found):
                    counts[how, "all"] += 1
                else:  # bytes of a name behind the hundredth have no checksum and stand nowhere else
                    (old,), (new,) = {*whole} - {*found}, {*found} - {*whole}
                    assert how == "flip" and len(found) == len(whole) and len(old) == len(new), (how, at, found)
                    assert old[:100] == new[:100], (how, at, found)
                    counts[how, "renamed"] += 1
    print(dict(counts))
    assert all(counts[how, "refused"] > 500 for how in ("flip", "cut", "zero", "glue"))
    assert counts["flip", "all"] > 500 and counts["zero", "all"] > 100
    assert counts["flip", "renamed"] < 0.02 * counts["flip", "all"]
