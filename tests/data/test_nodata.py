"""No data: what a GeoTIFF declares is used where its type can hold it; a transparent colour changes no pixel."""

import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile

from ijepa_ds.data.rasters import read_window
from ijepa_ds.data.transforms import read_layers
from ijepa_ds.data.values import Values


@pytest.mark.parametrize(
    ("dtype", "declared", "expected"),
    [
        ("uint8", "255", 255.0),
        ("uint8", "0", 0.0),
        ("uint8", "-9999", None),
        ("uint8", "256", None),
        ("uint8", "1.5", None),
        ("uint8", "nan", None),
        ("int16", "-9999", -9999.0),
        ("float32", "-3.4028234663852886e+38", -3.4028234663852886e38),
        ("float32", "-1.797e308", -1.797e308),
        ("float32", "none", None),
    ],
)
def test_the_declared_value_is_used_if_the_type_can_hold_it(
    dtype: str, declared: str, expected: float | None, tmp_path: Path
) -> None:
    pixels = np.arange(64).reshape(8, 8).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", pixels, extratags=[(42113, "s", 0, declared, True)])
    with (tmp_path / "a.tif").open("rb") as file:
        _, window = read_window(file, None)
    assert window.nodata == expected
    assert np.array_equal(window.pixels[..., 0], pixels)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_transparent_colour_of_a_16_bit_png_is_a_colour_like_others(channels: int, tmp_path: Path) -> None:
    pixels = np.linspace(0, 65535, 64 * channels).astype(np.uint16).reshape(8, 8, channels)
    plain = imagecodecs.png_encode(pixels if channels > 1 else pixels[..., 0])
    body = b"tRNS" + pixels[0, 0].astype(">u2").tobytes()
    chunk = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    at = plain.index(b"IDAT") - 4
    (tmp_path / "a.png").write_bytes(plain[:at] + chunk + plain[at:])
    planes = read_layers(str(tmp_path / "a.png"), 10**6, Values(channels, tuple(range(channels)), high=(65535.0,)))
    for number, plane in enumerate(planes):
        np.testing.assert_allclose(np.asarray(plane), pixels[..., number] / 65535, atol=1e-6)
