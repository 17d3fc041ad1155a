"""Parquet sources: the same images, classes and samples as the folder, and bad input named by file and row."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ijepa_ds.config import DataConfig
from ijepa_ds.data import ScanOptions, open_source, row_groups
from ijepa_ds.data.image_order import ImageOrder
from ijepa_ds.data.loader import ImageBatches
from ijepa_ds.data.reading import ImageFiles, Reader
from ijepa_ds.data.samples import check_row_groups
from tests.cases.making import coded, listing, photo, tar_of, write_tree
from tests.data.parquet_cases import features, write

COUNT = 22


def pictures(count: int = COUNT) -> dict[str, bytes]:
    """Names and bytes of images of several formats and sizes in two classes, in the order of a folder."""
    kinds = [("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP"), ("bmp", "BMP")]
    made = {}
    for i in range(count):
        ending, kind = kinds[i % 4]
        made[f"{'cat' if i % 3 else 'dog'}/{i:03d}.{ending}"] = coded(photo(i, 40 + i, 50 + 2 * (i % 5)), kind)
    return dict(sorted(made.items()))


def batches(index, cfg: DataConfig, *, rank=0, world=1, start=0, count=4) -> torch.Tensor:
    stream = ImageBatches(
        cfg,
        index,
        **{"seed": 3, "batch_size": 8, "micro_batch": 8 // world, "rank": rank, "world_size": world},
        **{"accumulation": 1, "start_step": start, "device": "cpu"},
    )
    try:
        return torch.stack([next(stream) for _ in range(count)])
    finally:
        stream.close()


@pytest.mark.parametrize("loader", ["torchvision", "dali"])
def test_folder_tar_and_parquet_give_the_same_samples_and_classes(tmp_path, loader):
    if loader == "dali":
        pytest.importorskip("nvidia.dali")
    files = pictures()
    names, labels = list(files), [0 if name.startswith("cat") else 1 for name in files]
    write_tree(tmp_path / "folder", files)
    (tmp_path / "all.tar").write_bytes(tar_of(files))
    half = COUNT // 2
    for number, part in enumerate((slice(0, half), slice(half, None))):
        write(
            tmp_path / "parquet" / f"train-{number:05d}-of-00002.parquet",
            list(files.values())[part],
            **{"names": names[part], "labels": labels[part], "classes": ["cat", "dog"], "group": 3},
        )
    sources = ["folder", "all.tar", "parquet", "parquet/train-*.parquet"]
    indices = [open_source(str(tmp_path / source)) for source in sources]
    cfg = DataConfig(source="", crop_size=24, loader=loader)
    seen = [batches(index, cfg) for index in indices]
    for index, images in zip(indices[1:], seen[1:], strict=True):
        assert listing(index) == listing(indices[0])
        assert (index.checksum, index.classes) == (indices[0].checksum, ("cat", "dog"))
        assert torch.equal(images, seen[0])


def test_samples_depend_on_neither_ranks_nor_restarts_nor_the_limit_of_memory(tmp_path):
    files = pictures()
    index = open_source(str(write(tmp_path / "a.parquet", list(files.values()), group=5)))
    cfg = DataConfig(source="", crop_size=24, loader="torchvision")
    whole = batches(index, cfg)
    ranks = torch.cat([batches(index, cfg, rank=rank, world=4) for rank in range(4)], dim=1)
    assert torch.equal(ranks, whole)
    assert torch.equal(batches(index, cfg, start=2, count=2), whole[2:])
    reader = Reader(index, parquet_cache=0)  # keeps a single group
    order = np.random.default_rng(0).permutation(COUNT)
    assert [reader.read(int(at)) for at in order] == [list(files.values())[at] for at in order]


def test_row_groups_in_memory_stay_below_the_limit_and_a_jumping_order_is_told(tmp_path, caplog):
    contents = [np.random.default_rng(i).bytes(10_000) for i in range(64)]
    path = write(tmp_path / "a.parquet", contents, group=8)
    file = pq.ParquetFile(path)
    from ijepa_ds.data.index_file import Container

    places = [Container(str(path), "x", "image", group, 8 * group) for group in range(file.num_row_groups)]
    groups = row_groups.RowGroups(200_000)
    for row in range(8):
        for number, place in enumerate(places):
            assert groups.read(place, row) == contents[8 * number + row]
            assert groups._held <= 200_000
    assert "data.order=shards" in caplog.text and "data.parquet_cache" in caplog.text
    calm = row_groups.RowGroups(200_000)
    caplog.clear()
    for place in places:
        for row in range(8):
            calm.read(place, row)
    assert not caplog.text


def test_shards_order_shuffles_row_groups_and_is_the_same_for_all_ranks(tmp_path):
    contents = [coded(photo(i)) for i in range(40)]
    path = write(tmp_path / "a.parquet", contents, group=4)
    index = open_source(str(path))
    cfg = DataConfig(source="", crop_size=16, loader="torchvision", order="shards", shuffle_window=8)
    whole = batches(index, cfg, count=6)
    ranks = torch.cat([batches(index, cfg, rank=rank, world=2, count=6) for rank in range(2)], dim=1)
    assert torch.equal(ranks, whole) and torch.equal(batches(index, cfg, start=3, count=3), whole[3:])
    positions = ImageOrder(cfg, index, seed=3).indices(np.arange(40))
    assert sorted(positions.tolist()) == list(range(40))
    for first in range(0, 33, 8):  # 8 samples lie in two windows at most, and a window in 3 row groups
        assert len({position // 4 for position in positions[first : first + 8].tolist()}) <= 6


def test_a_window_that_does_not_fit_into_memory_is_refused_with_sizes_that_do(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    index = open_source(str(write(tmp_path / "a.parquet", [coded(noise, "PNG")] * 8)))  # 360 KB each
    cfg = DataConfig(source="", crop_size=16, order="shards", shuffle_window=8, parquet_cache=2)
    with pytest.raises(ValueError, match=r"data\.parquet_cache: 2 MiB .* at least 4, or data\.shuffle_window to at most 4"):
        check_row_groups(cfg, index)
    for change in ({"parquet_cache": 4}, {"shuffle_window": 4}, {"order": "global"}):
        check_row_groups(replace(cfg, **change), index)


def test_row_groups_of_one_file_are_other_images(tmp_path):
    contents = [coded(photo(i, 40, 40)) for i in range(4)]
    contents = [content + bytes(2000 - len(content)) for content in contents]  # of one length
    index = open_source(str(write(tmp_path / "a.parquet", contents, names=["x.jpg"] * 4, group=2)))
    one, other = (ImageFiles(index, np.array(positions)).identity() for positions in ([0, 1], [2, 3]))
    assert one != other


@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        ([0, 1, 1, 0], ["b", "a"], ["b", "a", "a", "b"]),
        ([10, 9, 10, 9], None, ["10", "9", "10", "9"]),
        (["x", "y y", "x", "größe"], None, ["x", "y y", "x", "größe"]),
        ([-1, 1, None, 0], ["b", "a"], [None, "a", None, "b"]),
        (["x", "", None, "y"], None, ["x", None, None, "y"]),
    ],
)
def test_classes_come_from_integers_and_text(tmp_path, caplog, labels, classes, expected):
    path = write(tmp_path / "a.parquet", [coded(photo(i)) for i in range(4)], labels=labels, classes=classes)
    index = open_source(str(path))
    found = [index.classes[label] if label >= 0 else None for label in index.labels]
    assert found == expected
    missing = expected.count(None)
    assert (f"{missing} rows have no class" in caplog.text) == bool(missing)
    if missing:
        assert f"a.parquet:row {expected.index(None)}" in caplog.text


@pytest.mark.parametrize("column", ["binary", "large_binary", "struct without path"])
def test_other_columns_of_images_and_rows_without_a_name(tmp_path, column):
    contents = [coded(photo(i)) for i in range(5)]
    if column == "struct without path":
        array = pa.array([{"bytes": content} for content in contents], pa.struct([("bytes", pa.binary())]))
    else:
        array = pa.array(contents, getattr(pa, column)())
    pq.write_table(pa.table({"id": [1, 2, 3, 4, 5], "picture": array}), tmp_path / "a.parquet", row_group_size=2)
    index = open_source(str(tmp_path / "a.parquet"))
    assert [Reader(index).read(at) for at in range(5)] == contents
    assert index.display_path(3) == f"{tmp_path}/a.parquet:row 3" and index.classes == ()


def test_the_columns_can_be_given(tmp_path):
    contents = [coded(photo(i)) for i in range(4)]
    table = pa.table({"small": contents[:2], "large": contents[2:], "fine": ["a", "b"], "coarse": [0, 1]})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"several such columns, small, large: choose one with data\.image_column"):
        open_source(str(tmp_path / "a.parquet"))
    index = open_source(str(tmp_path / "a.parquet"), ScanOptions(image_column="large", label_column="fine"))
    assert [Reader(index).read(at) for at in range(2)] == contents[2:] and index.classes == ("a", "b")
    for name, text in (("fine", "expected images: binary or struct"), ("none", "has 0 columns 'none', expected one")):
        with pytest.raises(ValueError, match=text):
            open_source(str(tmp_path / "a.parquet"), ScanOptions(image_column=name))


def test_a_folder_of_parquet_files_leaves_out_only_other_files(tmp_path, caplog):
    write(tmp_path / "a" / "x.parquet", list(pictures(4).values()))
    (tmp_path / "a" / "notes.rst").write_text("x")
    assert len(open_source(str(tmp_path / "a"))) == 4
    assert "1 files with other endings left out (.rst 1)" in caplog.text


def test_files_cut_short_are_all_named(tmp_path):
    whole = write(tmp_path / "a.parquet", [coded(photo(i)) for i in range(8)])
    for name, keep in (("b", 0.5), ("c", 0.99)):
        (tmp_path / f"{name}.parquet").write_bytes(whole.read_bytes()[: int(keep * whole.stat().st_size)])
    with pytest.raises(ValueError, match=r"2 of 3 parquet files cannot be read: .*b\.parquet.*c\.parquet") as error:
        open_source(str(tmp_path))
    assert "a.parquet" not in str(error.value)


def test_a_damaged_page_makes_its_rows_unreadable_and_no_others(tmp_path):
    path = write(tmp_path / "a.parquet", [coded(photo(i)) for i in range(8)])
    chunk = pq.ParquetFile(path).metadata.row_group(1).column(0)
    content = bytearray(path.read_bytes())
    content[chunk.data_page_offset : chunk.data_page_offset + 40] = bytes(40)
    path.write_bytes(content)
    index = open_source(str(path))
    assert sorted(index.bad) == [4, 5, 6, 7] and all("row group 1 is damaged" in text for text in index.bad.values())


def test_rows_without_usable_bytes_are_named_counted_and_replaced(tmp_path, caplog):
    files = pictures(8)
    contents = list(files.values())
    contents[2], contents[5] = None, b"<html>no image</html>"
    index = open_source(str(write(tmp_path / "a.parquet", contents, names=list(files))))
    assert sorted(index.bad) == [2, 5] and "row without bytes" in index.bad[2]
    assert "2 unreadable images" in caplog.text and "a.parquet:row 2" in caplog.text
    batches(index, DataConfig(source="", crop_size=16, loader="torchvision"))


def test_the_limit_of_unreadable_images_holds_for_rows(tmp_path):
    contents = [coded(photo(i)) for i in range(8)]
    for number in range(4):  # whole by their headers and ends, damaged inside
        whole = coded(photo(number), "PNG")
        contents[number] = whole[:100] + bytes(200) + whole[300:]
    index = open_source(str(write(tmp_path / "a.parquet", contents)))
    assert not index.bad
    with pytest.raises(ValueError, match=r"more than data\.max_bad = 2 .*(\n.*a\.parquet:row \d.*){3}"):
        batches(index, DataConfig(source="", crop_size=16, loader="torchvision", max_bad=2, max_bad_share=0.9), count=8)


def test_columns_that_are_no_images_are_refused(tmp_path):
    pq.write_table(pa.table({"id": [1], "text": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"no column of images .*id \(int64\), text \(string\)"):
        open_source(str(tmp_path / "a.parquet"))
    pq.write_table(pa.table({"blob": [b"x", b"y"]}), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"no readable image .*b\.parquet:row 0': not a JPEG"):
        open_source(str(tmp_path / "b.parquet"))
    only_paths = write(tmp_path / "c.parquet", [None, None], names=["a.jpg", "b.jpg"])
    with pytest.raises(ValueError, match=r"no readable image .*c\.parquet:row 0': row without bytes"):
        open_source(str(only_paths))


@pytest.mark.parametrize(("label", "classes"), [(2, ["a", "b"]), (-2, ["a", "b"]), (-7, None)])
def test_a_label_that_is_no_class_is_refused_with_its_row(tmp_path, label, classes):
    path = write(tmp_path / "a.parquet", [coded(photo(i)) for i in range(3)], labels=[0, 1, label], classes=classes)
    with pytest.raises(ValueError, match=rf"a\.parquet', row 2, column 'label': label {label}, expected"):
        open_source(str(path))


def test_splits_are_not_mixed_and_missing_files_are_told(tmp_path, caplog):
    for name in ("train-00000-of-00003", "train-00001-of-00003", "test-00000-of-00001"):
        write(tmp_path / f"{name}.parquet", [coded(photo(1))])
    with pytest.raises(ValueError, match=r"several splits: give one of '.*test-\*\.parquet', '.*train-\*\.parquet'"):
        open_source(str(tmp_path))
    assert len(open_source(str(tmp_path / "train-*.parquet"))) == 2
    assert "2 of the 3 files" in caplog.text


def test_files_with_other_classes_are_refused(tmp_path):
    for number, classes in enumerate((["a", "b"], ["a", "b"], ["b", "a"])):
        write(tmp_path / f"{number}.parquet", [coded(photo(number))], labels=[0], classes=classes)
    with pytest.raises(ValueError, match=r"2\.parquet' has other columns .* or other classes"):
        open_source(str(tmp_path))


def test_damaged_metadata_is_refused(tmp_path):
    table = pa.table({"image": [coded(photo(0))]}).replace_schema_metadata({b"huggingface": b"{"})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="metadata 'huggingface' of its schema cannot be read"):
        open_source(str(tmp_path / "a.parquet"))
    twice = pa.table({"image": [coded(photo(0))], "label": [0]})
    twice = twice.replace_schema_metadata(features(label={"_type": "ClassLabel", "names": ["a", "a"]}))
    pq.write_table(twice, tmp_path / "b.parquet")
    with pytest.raises(ValueError, match="must list the names of the classes, each once"):
        open_source(str(tmp_path / "b.parquet"))


def test_a_changed_file_is_found_when_its_index_is_opened(tmp_path):
    path = write(tmp_path / "a.parquet", [coded(photo(i)) for i in range(8)])
    open_source(str(path)).save(tmp_path / "a.index")
    index = open_source(str(tmp_path / "a.index"))
    assert len(index) == 8 and len(index.containers) == 2
    write(path, [coded(photo(i)) for i in range(1, 9)])
    with pytest.raises(ValueError, match=r"changed since its index .*a\.parquet'?: other content"):
        open_source(str(tmp_path / "a.index"))


def test_an_interrupted_scan_goes_on(tmp_path):
    path = write(tmp_path / "a.parquet", [coded(photo(i)) for i in range(8)])
    options = ScanOptions(journal=tmp_path / "journal")
    first = open_source(str(path), options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_groups, "Rows", None)  # reading an image again would fail
        again = open_source(str(path), options)
    assert again.checksum == first.checksum and np.array_equal(again.entries, first.entries)


def test_a_url_is_a_file_that_is_not_there():
    with pytest.raises(FileNotFoundError):
        row_groups.open_parquet("s3://bucket/x.parquet")


def test_a_folder_of_save_to_disk_is_refused_with_the_command(tmp_path):
    for name in ("state.json", "dataset_info.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "data-00000-of-00001.arrow").write_bytes(b"x")
    with pytest.raises(ValueError, match=r'load_from_disk\(".*"\)\.to_parquet\(".*\.parquet"\)'):
        open_source(str(tmp_path))
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(ValueError, match=r"splits train, test of .*/all/train'"):
        open_source(str(tmp_path / "all"))
