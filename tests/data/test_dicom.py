"""DICOM files: numbers after rescale slope and intercept, the file's window, and refusals by name."""

import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ijepa_ds import cli
from ijepa_ds.config import DataConfig
from ijepa_ds.data.scan import ScanOptions
from ijepa_ds.data.sources import open_source
from ijepa_ds.data.transforms import UnreadableError, read_layers
from ijepa_ds.data.values import Values
from ijepa_ds.errors import UserError
from tests.data.test_channels import batches

pydicom = pytest.importorskip("pydicom")
RANGE = {"offset": (-1024.0,), "scale": (3071.0,)}


def write(path: Path, stored: np.ndarray, **tags: object) -> None:
    """A CT image as scanners write it: int16, slope and intercept, a window."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    data.Rows, data.Columns = stored.shape[-2:]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 1
    given = {"RescaleSlope": 2, "RescaleIntercept": -1024, "WindowCenter": 40, "WindowWidth": 400} | tags
    for name, value in given.items():
        if value is not None:
            setattr(data, name, value)
    data.PixelData = stored.astype("<i2").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)


def stored(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(10, 2000, (40, 52)).astype(np.int16)


def config(source: Path, **keys: object) -> DataConfig:
    return DataConfig(source=str(source), crop_size=16, mean=(0.4,), std=(0.2,), **keys)  # type: ignore[arg-type]


def test_numbers_are_rescaled_and_padding_is_filled(tmp_path: Path):
    numbers = stored(0)
    numbers[3, 4] = 5
    write(tmp_path / "a.dcm", numbers, PixelPaddingValue=5)
    filled: dict[str, int] = {}
    (plane,) = read_layers(str(tmp_path / "a.dcm"), 10**6, Values.of(config(tmp_path, **RANGE)), filled=filled)
    right = (numbers * 2.0 - 1024 + 1024) / 4095
    right[3, 4] = 0.4
    np.testing.assert_allclose(np.asarray(plane), right, atol=1e-6)
    assert filled == {str(tmp_path / "a.dcm"): 1}


def test_without_a_scale_the_window_of_the_file_counts(tmp_path: Path):
    numbers = stored(1)
    write(tmp_path / "a.dcm", numbers)
    (plane,) = read_layers(str(tmp_path / "a.dcm"), 10**6, Values.of(replace(config(tmp_path), mean=(0.4,))))
    values = numbers * 2.0 - 1024
    np.testing.assert_allclose(np.asarray(plane), ((values - (40 - 0.5 - 399 / 2)) / 399).clip(0, 1), atol=1e-6)
    write(tmp_path / "a.dcm", numbers, WindowCenter=[50, 1], WindowWidth=[100, 2], VOILUTFunction="LINEAR_EXACT")
    (plane,) = read_layers(str(tmp_path / "a.dcm"), 10**6, Values.of(config(tmp_path)))
    np.testing.assert_allclose(np.asarray(plane), (values / 100).clip(0, 1), atol=1e-6)
    write(tmp_path / "a.dcm", numbers, WindowCenter=None)
    with pytest.raises(UnreadableError, match="data.scale says which value becomes 1"):
        read_layers(str(tmp_path / "a.dcm"), 10**6, Values.of(config(tmp_path)))


def test_a_folder_trains_and_odd_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture):
    for i in range(12):
        write(tmp_path / "a" / f"{i:02d}.dcm", stored(i))
    odd = {
        "frames": ({"NumberOfFrames": 3}, "frame 2 of 3: a DICOM of several frames"),
        "inverse": ({"PhotometricInterpretation": "MONOCHROME1"}, "a DICOM with MONOCHROME1"),
        "colours": ({"PhotometricInterpretation": "PALETTE COLOR"}, "a DICOM with PALETTE COLOR"),
    }
    for name, (tags, _) in odd.items():
        write(tmp_path / "a" / f"{name}.dcm", np.stack([stored(0)] * 3) if name == "frames" else stored(0), **tags)
    write(tmp_path / "a" / "short.dcm", stored(0))
    (tmp_path / "a" / "short.dcm").write_bytes((tmp_path / "a" / "short.dcm").read_bytes()[:-50])
    cfg = config(tmp_path / "a", **RANGE)
    index = open_source(cfg.source, ScanOptions.of(cfg))
    bad = {Path(path).stem: reason for path, reason in index.list_bad()}
    assert set(bad) == {*odd, "short"} and "truncated" in bad["short"]
    assert all(text in bad[name] for name, (_, text) in odd.items())
    loader = batches(replace(cfg, max_bad_share=0.5))
    assert next(loader).shape == (4, 16, 16, 1)
    loader.close()
    assert cli.main(["data", "check", cfg.source]) == 1
    assert cli.main(["data", "stats", cfg.source, "--out", str(tmp_path / "stats"), "--workers", "1"]) == 0
    with pytest.raises(UserError, match="1 channel of float32"):  # the default: RGB of 8 bits
        open_source(cfg.source, ScanOptions.of(DataConfig(source=cfg.source, crop_size=16)))


def test_compressions_without_a_decoder_are_named(tmp_path: Path):
    write(tmp_path / "a.dcm", stored(0))
    data = pydicom.dcmread(tmp_path / "a.dcm")
    data.compress(pydicom.uid.RLELossless)
    data.save_as(tmp_path / "rle.dcm")
    right, found = (
        np.asarray(read_layers(str(tmp_path / f"{name}.dcm"), 10**6, Values.of(config(tmp_path, **RANGE)))[0])
        for name in ("a", "rle")
    )
    assert np.array_equal(right, found)
    content = (tmp_path / "a.dcm").read_bytes()
    (tmp_path / "z.dcm").write_bytes(content.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99"))
    with pytest.raises(UnreadableError, match="deflated"):
        read_layers(str(tmp_path / "z.dcm"), 10**6, Values.of(config(tmp_path, **RANGE)))
    data.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLSLossless
    data.save_as(tmp_path / "jls.dcm")
    with pytest.raises(UnreadableError, match="compressed as JPEG-LS Lossless .* no decoder is installed"):
        read_layers(str(tmp_path / "jls.dcm"), 10**6, Values.of(config(tmp_path, **RANGE)))


def test_files_without_an_ending_become_shards(tmp_path: Path):
    write(tmp_path / "scans" / "IM0001", stored(0))
    (tmp_path / "list.txt").write_text("scans/IM0001\n")
    assert cli.main(["data", "shard", str(tmp_path / "list.txt"), "--out", str(tmp_path / "out")]) == 0
    index = open_source(str(tmp_path / "out"), ScanOptions(values=Values.of(config(tmp_path, **RANGE))))
    assert len(index) == 1 and not index.bad
    with tarfile.open(tmp_path / "out" / "images-00000.tar") as tar:
        assert tar.getnames() == ["scans/IM0001.dcm"]


def test_a_window_of_one_value_is_a_step(tmp_path: Path):
    write(tmp_path / "a.dcm", stored(0), WindowCenter=40, WindowWidth=1)
    (plane,) = read_layers(str(tmp_path / "a.dcm"), 10**6, Values.of(config(tmp_path)))
    found = np.asarray(plane)
    assert np.isfinite(found).all() and {0.0, 1.0} <= set(found.flatten().tolist())
    assert ((found > 0.5) == (stored(0) * 2.0 - 1024 > 39.5)).all()
