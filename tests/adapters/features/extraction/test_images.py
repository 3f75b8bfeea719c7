import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from recplug.adapters.features.extraction import images
from recplug.adapters.features.extraction.images import BrokenImage, decode

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
CORNERS = np.array([[RED, GREEN], [BLUE, WHITE]], dtype=np.uint8)  # [2, 2, 3]


def saved(tmp_path, image, name, **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


def refused(path, *words):
    with pytest.raises(BrokenImage) as caught:
        decode(path)
    for word in words:
        assert word in str(caught.value), caught.value
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= 200


def turned(values, orientation):
    """What a viewer shows, by the EXIF tag's definition: where the file's row 0 and column 0 are to be."""
    shown = {
        1: lambda v: v,
        2: lambda v: v[:, ::-1],
        3: lambda v: v[::-1, ::-1],
        4: lambda v: v[::-1],
        5: lambda v: v.transpose(1, 0, 2),
        6: lambda v: v[::-1].transpose(1, 0, 2),
        7: lambda v: v[::-1, ::-1].transpose(1, 0, 2),
        8: lambda v: v[:, ::-1].transpose(1, 0, 2),
    }
    return shown[orientation](values)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "webp", "jpg"])
def test_pictures_are_turned_as_their_exif_says(tmp_path, kind, orientation):
    values = CORNERS.repeat(16, 0).repeat(24, 1)  # [32, 48, 3]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if kind == "jpg" else {"lossless": True} if kind == "webp" else {}
    found = np.asarray(decode(saved(tmp_path, Image.fromarray(values), f"i.{kind}", exif=exif, **options))).astype(int)
    expected = turned(values, orientation).astype(int)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= (4 if kind == "jpg" else 0)


def test_an_exif_block_that_is_no_exif_spoils_nothing(tmp_path):
    path = saved(tmp_path, Image.new("RGB", (5, 4), RED), "i.png", exif=b"Exif\0\0nonsense")
    assert decode(path).getpixel((0, 0)) == RED


def test_a_huge_exif_block_is_refused(tmp_path):
    refused(saved(tmp_path, Image.new("RGB", (5, 4)), "i.png", exif=b"Exif\0\0MM" + bytes(2_000_000)), "bytes of EXIF")


def test_a_compressed_exif_bomb_is_refused(tmp_path):
    """A kilobyte that says it is EXIF and unpacks to a gigabyte."""
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(64)) + packer.flush()
    plain = io.BytesIO()
    Image.new("RGB", (4, 4)).save(plain, "PNG")
    data = plain.getvalue()
    body = b"Raw profile type exif\0\0" + packed
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    (tmp_path / "i.png").write_bytes(data[:33] + chunk + data[33:])
    refused(tmp_path / "i.png", "too large")


MODES = {
    "RGB": (RED, RED),
    "1": (1, WHITE),
    "L": (130, (130, 130, 130)),
    "LA": ((130, 0), WHITE),
    "RGBA": ((255, 0, 0, 255), RED),
    "clear RGBA": ((255, 0, 0, 0), WHITE),
    "half RGBA": ((0, 0, 0, 51), (204, 204, 204)),
}


@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_every_mode_becomes_rgb_on_white(tmp_path, name, kind):
    value, expected = MODES[name]
    mode = name.split()[-1]
    found = decode(saved(tmp_path, Image.new(mode, (3, 2), value), f"i.{kind}"))
    assert found.mode == "RGB"
    assert found.getpixel((1, 1)) == expected


def test_a_palette_with_a_clear_colour_lies_on_white(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    found = decode(saved(tmp_path, image, "i.png", transparency=1))
    assert [found.getpixel((x, 0)) for x in (0, 1)] == [RED, WHITE]
    found = decode(saved(tmp_path, image, "i.gif", transparency=0))
    assert [found.getpixel((x, 0)) for x in (0, 1)] == [WHITE, BLUE]


def test_rgb_with_a_clear_colour_lies_on_white(tmp_path):
    found = decode(saved(tmp_path, Image.new("RGB", (2, 2), BLUE), "i.png", transparency=BLUE))
    assert found.getpixel((0, 0)) == WHITE


def test_cmyk_jpegs_keep_their_colour(tmp_path):
    found = decode(saved(tmp_path, Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "i.jpg", quality=100))
    assert np.abs(np.asarray(found).astype(int) - RED).max() <= 6


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_sixteen_bits_are_scaled_and_not_cut(tmp_path, kind):
    values = np.array([[0, 257, 32_896, 65_535]], dtype=np.uint16)
    found = np.asarray(decode(saved(tmp_path, Image.fromarray(values), f"i.{kind}")))
    assert found[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0.0, 0.5, 1.0]], dtype=np.float32), [0, 128, 255]),
        (np.array([[0.0, 100.0, 255.0]], dtype=np.float32), [0, 100, 255]),
        (np.array([[0.0, 500.0, 1000.0]], dtype=np.float32), [0, 128, 255]),
        (np.array([[0, 100, 255]], dtype=np.int32), [0, 100, 255]),
        (np.array([[-5, 257, 65_535]], dtype=np.int32), [0, 1, 255]),
        (np.array([[0, 1_000_000, 2_000_000]], dtype=np.int32), [0, 128, 255]),
    ],
    ids=["unit floats", "byte floats", "large floats", "bytes", "words", "large"],
)
def test_floats_and_whole_numbers_in_tiffs(tmp_path, values, expected):
    found = np.asarray(decode(saved(tmp_path, Image.fromarray(values), "i.tiff")))
    assert found[0, :, 0].tolist() == expected


def test_nan_in_a_tiff_is_told(tmp_path):
    values = np.array([[0.0, float("nan")]], dtype=np.float32)
    refused(saved(tmp_path, Image.fromarray(values), "i.tiff"), "NaN")


@pytest.mark.parametrize("kind", ["gif", "webp", "png", "tiff"])
def test_the_first_of_several_frames(tmp_path, kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if kind == "webp" else {}
    path = saved(tmp_path, frames[0], f"i.{kind}", save_all=True, append_images=frames[1:], **options)
    assert decode(path).getpixel((3, 3)) == RED


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1)])
def test_the_smallest_pictures(tmp_path, size):
    assert decode(saved(tmp_path, Image.new("L", size, 9), "i.png")).size == size


def test_the_ending_of_a_name_means_nothing(tmp_path):
    Image.new("RGB", (4, 4), RED).save(tmp_path / "i.jpg", "PNG")
    assert decode(tmp_path / "i.jpg").getpixel((0, 0)) == RED


def test_bombs_are_refused_before_they_are_unpacked(tmp_path):
    """A PNG of a few bytes that claims 30,000 x 30,000 pixels, and one within Pillow's bound but not within ours."""
    for side in (30_000, 8_000):
        head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
        chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")]
        data = b"\x89PNG\r\n\x1a\n"
        for name, body in chunks:
            data += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        (tmp_path / f"{side}.png").write_bytes(data)
    refused(tmp_path / "8000.png", "8,000 x 8,000 pixels")
    refused(tmp_path / "30000.png", "DecompressionBomb")


def test_a_large_jpeg_is_decoded_at_a_fraction(tmp_path, monkeypatch):
    values = CORNERS.repeat(512, 0).repeat(1024, 1)  # [1024, 2048, 3]
    path = saved(tmp_path, Image.fromarray(values), "i.jpg", quality=95)
    assert decode(path).size == (2048, 1024)
    monkeypatch.setattr(images, "MAX_PIXELS", 1_000_000)
    monkeypatch.setattr(images, "DRAFT", 256)
    small = decode(path)
    assert small.size == (512, 256)
    assert np.abs(np.asarray(small)[::255, ::511].astype(int) - CORNERS).max() <= 6
    Image.fromarray(values).save(tmp_path / "i.png")
    refused(tmp_path / "i.png", "2,048 x 1,024 pixels")
    monkeypatch.setattr(images, "MAX_JPEG_PIXELS", 2_000_000)
    refused(path, "more than 2,000,000")


KINDS = ("jpg", "png", "webp", "gif", "bmp", "tiff")


@pytest.mark.parametrize("kind", KINDS)
def test_truncated_pictures_are_broken(tmp_path, kind):
    draw = np.random.default_rng(0)
    noise = Image.fromarray(draw.integers(0, 256, (40, 40, 3), dtype=np.uint8))
    path = saved(tmp_path, noise, f"i.{kind}")
    decode(path)
    data = path.read_bytes()
    for share in (0.9, 0.5, 0.1):
        path.write_bytes(data[: int(share * len(data))])
        refused(path)


@pytest.mark.parametrize(
    "data",
    [b"", b"<html><body>404</body></html>", b"\xff\xd8\xff", b"%!PS-Adobe-3.0 EPSF-3.0\n", bytes(1000)],
    ids=["empty", "a web page", "a JPEG's first bytes", "PostScript", "zeros"],
)
def test_what_is_no_picture_is_broken(tmp_path, data):
    (tmp_path / "i.jpg").write_bytes(data)
    refused(tmp_path / "i.jpg", "Error")


def test_a_file_that_is_gone_is_broken(tmp_path):
    refused(tmp_path / "i.jpg", "FileNotFoundError")


@pytest.fixture(scope="module")
def samples():
    found = {}
    draw = np.random.default_rng(1)
    for kind in KINDS:
        file = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112] = 6
        options = {} if kind in ("gif", "bmp") else {"exif": exif}
        image = Image.fromarray(draw.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        image.save(file, {"jpg": "JPEG"}.get(kind, kind.upper()), **options)
        found[kind] = file.getvalue()
    return found


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(KINDS),
    changes=st.lists(st.tuples(st.integers(0, 2_000), st.integers(0, 255)), min_size=1, max_size=12),
)
def test_no_damage_gets_past(tmp_path, samples, kind, changes):
    """Whatever bytes change: an RGB picture, or one line."""
    data = bytearray(samples[kind])
    for place, value in changes:
        data[place % len(data)] = value
    path = tmp_path / f"f.{kind}"
    path.write_bytes(data)
    try:
        said = decode(path).mode
    except BrokenImage as error:
        said = str(error)
    assert "\n" not in said
    assert said == "RGB" or len(said) > 5
