"""Which of libjpeg's warnings mean that pixels are wrong."""

import numpy as np
import pytest

from ijepa_ds.data.jpeg_check import jpeg_damage, without_metadata
from ijepa_ds.data.pillow import decode
from tests.cases.making import coded, photo

JPEG = coded(photo(1, 200, 200))
RESTARTS = coded(photo(1, 200, 200), restart_marker_rows=1)


def lies(height: int) -> bytes:
    at = JPEG.index(b"\xff\xc0") + 5
    return JPEG[:at] + height.to_bytes(2, "big") + JPEG[at + 2 :]


def zeroed(jpeg: bytes) -> bytes:
    middle = len(jpeg) // 2
    return jpeg[:middle] + bytes(200) + jpeg[middle + 200 :]


@pytest.mark.parametrize("jpeg", [JPEG, RESTARTS, coded(photo(2), progressive=True), coded(photo(3), "PNG")])
def test_whole_images_have_no_damage(jpeg):
    assert jpeg_damage(jpeg) == jpeg_damage(jpeg, strict=True) == ""


@pytest.mark.parametrize(
    "jpeg",
    [
        JPEG[:-2] + b"\x7f" * 32 + JPEG[-2:],
        JPEG[:2] + b"\xff\xe2\x00\x12ICC_PROFILE\0\x05\x02xx" + JPEG[2:],
        JPEG.replace(b"\xff\xdb", bytes(5) + b"\xff\xdb", 1),
    ],
)
def test_harmless_bytes_count_only_in_the_strict_check(jpeg):
    assert np.array_equal(np.asarray(decode(jpeg)), np.asarray(decode(JPEG)))
    assert jpeg_damage(jpeg) == ""
    assert np.array_equal(np.asarray(decode(without_metadata(jpeg))), np.asarray(decode(JPEG)))


@pytest.mark.parametrize("jpeg", [zeroed(JPEG), zeroed(RESTARTS), lies(40), lies(400), JPEG[:-500] + JPEG[-2:]])
def test_wrong_pixels_are_named(jpeg):
    assert jpeg_damage(jpeg)


def test_damage_behind_harmless_bytes_is_named():
    assert jpeg_damage(zeroed(JPEG).replace(b"\xff\xdb", bytes(5) + b"\xff\xdb", 1))


def test_bytes_before_a_restart_marker_are_damage():
    at = RESTARTS.index(b"\xff\xd3")
    assert "before marker 0xd3" in jpeg_damage(RESTARTS[:at] + b"\x11\x22\x33" + RESTARTS[at:])
