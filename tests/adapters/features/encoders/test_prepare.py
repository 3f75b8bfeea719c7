import numpy as np
import pytest
from PIL import Image

from recplug.adapters.features.encoders.preprocessing import LONGEST_SIDE, SMALLEST_SIDE, ImagePrepare


def seen(image):
    """The picture that a transform gets."""
    return ImagePrepare(lambda picture: picture)(image)


@pytest.mark.parametrize("size", [(20_000, 1), (1, 20_000), (5_000, 100), (101, 5_000)], ids=str)
def test_a_hairline_keeps_its_middle(size):
    width, height = size
    line = np.arange(width * height, dtype=np.uint32).view(np.uint8).reshape(height, width, 4)[..., :3]
    found = np.asarray(seen(Image.fromarray(np.ascontiguousarray(line))))
    assert max(found.shape[:2]) == LONGEST_SIDE * min(found.shape[:2])
    times = found.shape[0] // min(height, found.shape[0]) if height < width else found.shape[1] // width
    shrunk = found[::times, ::times]
    top, left = ((height - shrunk.shape[0]) // 2, (width - shrunk.shape[1]) // 2)
    assert np.array_equal(shrunk, line[top : top + shrunk.shape[0], left : left + shrunk.shape[1]])


@pytest.mark.parametrize("size", [(4, 4), (640, 20), (31, 992), (300, 200)], ids=str)
def test_other_pictures_stay_as_they_are(size):
    image = Image.new("RGB", size)
    assert seen(image) is image


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (3, 40), (60, 2)], ids=str)
def test_a_tiny_picture_is_shown_with_larger_pixels(size):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    found = seen(image)
    times = found.width // image.width
    assert min(found.size) >= SMALLEST_SIDE
    assert np.array_equal(np.asarray(found), np.asarray(image).repeat(times, 0).repeat(times, 1))
