"""One picture: what is made of every kind of file, and which are refused."""

import importlib
import importlib.util
import io
import struct
import subprocess
import sys
import warnings
import zlib
from contextlib import suppress

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin, features

from ltpa.data.files import read_image
from ltpa.data.images import crop_square, open_image

from .pictures import BLACK, BLUE, GREEN, RED, WHITE, colors, encoded, plain


def picture_of(content, size=32):
    """The pixels (3, size, size) of an encoded file or a Pillow image."""
    image = open_image(content if isinstance(content, bytes) else encoded(content))
    return torch.from_numpy(np.array(crop_square(image, size))).permute(2, 0, 1)


def corners(picture):
    """Colors at the middles of the four quarters, row by row."""
    return [tuple(picture[:, y, x].tolist()) for y in (8, 24) for x in (8, 24)]


def quarters(four, size=(32, 32)):
    image = Image.new("RGB", size)
    wide, high = size[0] // 2, size[1] // 2
    for i, color in enumerate(four):
        image.paste(color, (i % 2 * wide, i // 2 * high, i % 2 * wide + wide, i // 2 * high + high))
    return image


# --- images that are converted ----------------------------------------------------------------------------------------


def test_gray():
    assert colors(picture_of(plain(100, mode="L"))) == {(100, 100, 100)}


def test_black_and_white():
    image = plain(0, mode="1")
    image.paste(1, (0, 0, 16, 32))
    assert corners(picture_of(image)) == [WHITE, BLACK, WHITE, BLACK]


def test_palette():
    image = plain(0, mode="P")
    image.putpalette([*RED, *GREEN, *BLUE])
    image.paste(2, (0, 0, 16, 32))
    assert corners(picture_of(image)) == [BLUE, RED, BLUE, RED]


@pytest.mark.parametrize("transparency", [2, b"\xff\xff\x00"], ids=["index", "table"])
def test_palette_with_transparency(transparency):
    image = plain(0, mode="P")
    image.putpalette([*RED, *GREEN, *BLUE])
    image.paste(2, (0, 0, 16, 32))
    content = encoded(image, transparency=transparency)
    assert corners(picture_of(content)) == [WHITE, RED, WHITE, RED]


def test_transparent_color():
    content = encoded(quarters([RED, GREEN, BLUE, BLACK]), transparency=BLUE)
    assert corners(picture_of(content)) == [RED, GREEN, WHITE, BLACK]


@pytest.mark.parametrize(("alpha", "expected"), [(0, (255, 255, 255)), (255, (200, 0, 50)), (51, (244, 204, 214))])
def test_alpha_is_laid_on_white(alpha, expected):
    assert colors(picture_of(plain((200, 0, 50, alpha), mode="RGBA"))) == {expected}


def test_gray_with_alpha():
    image = plain((0, 0), mode="LA")
    image.paste((40, 255), (0, 0, 16, 32))
    assert corners(picture_of(image)) == [(40, 40, 40), WHITE, (40, 40, 40), WHITE]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits(kind):
    values = np.repeat(np.array([0, 257, 128 * 257 + 100, 65535], dtype=np.uint16), 8)[None].repeat(32, 0)
    image = Image.fromarray(values)
    assert image.mode == "I;16"
    content = b"P5 32 32 65535\n" + values.astype(">u2").tobytes() if kind == "PPM" else encoded(image, kind)
    picture = picture_of(content)
    assert picture[:, 5, ::8].tolist() == [[0, 1, 128, 255]] * 3


def test_sixteen_bits_but_dark():
    """Values of a few bits use the whole range: 255 of 8 bits is white."""
    content = encoded(Image.fromarray(np.full((32, 32), 200, dtype=np.uint16)))
    assert colors(picture_of(content)) == {(200, 200, 200)}


def turned(orientation):
    """Quarters that show red, green / blue, white once the EXIF orientation is undone: a table from the standard."""
    upright = np.array([[0, 1], [2, 3]])
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright, 1),  # to be shown, it is turned clockwise
        7: np.rot90(upright.T, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    return quarters([(RED, GREEN, BLUE, WHITE)[i] for i in stored.flatten()])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_rotation(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    picture = picture_of(encoded(turned(orientation), kind, exif=exif.tobytes(), **options))
    found, expected = np.array(corners(picture)), np.array([RED, GREEN, BLUE, WHITE])
    assert np.abs(found - expected).max() <= (3 if kind == "JPEG" else 0)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
def test_broken_exif(exif):
    content = encoded(plain((120, 120, 120)), "JPEG", exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert colors(picture_of(content)) == {(120, 120, 120)}


def test_rotation_beside_broken_exif():
    """A maker's name that is no text (Pillow's own exif_transpose chokes on it)."""
    entries = [struct.pack("<HHII", 0x0112, 3, 1, 6), struct.pack("<HHII", 0x010F, 5, 1, 0)]
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + b"".join(entries) + bytes(4)
    assert corners(picture_of(encoded(turned(6), exif=exif))) == [RED, GREEN, BLUE, WHITE]


def test_cmyk():
    image = plain((0, 255, 255, 0), mode="CMYK")
    assert colors(picture_of(encoded(image, "TIFF"))) == {RED}
    (color,) = colors(picture_of(encoded(image, "JPEG", quality=95)))
    assert np.abs(np.array(color) - RED).max() <= 3


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_many(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(plain(GREEN), kind, save_all=True, append_images=[plain(RED), plain(BLUE)], **options)
    assert Image.open(io.BytesIO(content)).n_frames == 3
    assert colors(picture_of(content)) == {GREEN}


def test_transparent_gif():
    image = plain(0, mode="P")
    image.putpalette([*RED, *GREEN, *BLUE])
    image.paste(1, (0, 0, 16, 32))
    content = encoded(image, "GIF", transparency=0)
    assert corners(picture_of(content)) == [GREEN, WHITE, GREEN, WHITE]


@pytest.mark.parametrize("size", [(1, 41), (41, 1), (1, 1)])
def test_one_pixel_wide(size):
    image = plain(BLACK, size)
    image.putpixel((size[0] // 2, size[1] // 2), (10, 20, 30))
    assert colors(picture_of(image)) == {(10, 20, 30)}  # the middle square is one pixel


def test_long_and_thin_takes_little_memory():
    """Not scaled to 32 x 64 million pixels before it is cropped."""
    assert colors(picture_of(plain(0, (1, 2_000_000), "L"))) == {BLACK}
    assert colors(picture_of(plain(0, (20_000, 1), "L"))) == {BLACK}


@pytest.mark.parametrize("size", [(600, 200), (200, 600)])
def test_middle_of_a_large_one(size):
    image = plain(RED, size)
    left, top = (size[0] - 200) // 2, (size[1] - 200) // 2
    image.paste(quarters([GREEN, BLUE, WHITE, BLACK], (200, 200)), (left, top))
    picture = picture_of(image, size=40)
    assert picture.shape == (3, 40, 40)
    assert [tuple(picture[:, y, x].tolist()) for y in (0, 39) for x in (0, 39)] == [GREEN, BLUE, WHITE, BLACK]
    assert corners(picture) == [GREEN, BLUE, WHITE, BLACK]


@pytest.mark.parametrize("size", [(32, 32), (39, 32), (32, 45)])
def test_no_blur_where_the_side_fits(size):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    top, left = (size[1] - 32) // 2, (size[0] - 32) // 2
    expected = torch.from_numpy(pixels[top : top + 32, left : left + 32]).permute(2, 0, 1)
    assert torch.equal(picture_of(Image.fromarray(pixels)), expected)


def test_scaling_averages():
    """A chequered board of single pixels becomes gray when it is made smaller, not one of its colors."""
    board = np.indices((256, 256)).sum(0) % 2 * 255
    picture = picture_of(Image.fromarray(board.astype(np.uint8)))
    assert (picture[:, 2:-2, 2:-2].int() - 127).abs().max() <= 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP"])
def test_the_content_tells_the_format_not_the_name(kind, tmp_path):
    options = {"lossless": True} if kind == "WEBP" else {}
    (tmp_path / "x.gif").write_bytes(encoded(plain((99, 99, 99)), kind, **options))
    assert colors(torch.from_numpy(read_image(tmp_path / "x.gif", 32).pixels)) == {(99, 99, 99)}


def test_photo_of_a_phone_with_two_pictures():
    image = plain((99, 99, 99))
    content = encoded(image, "MPO", save_all=True, append_images=[plain(BLACK)])
    assert colors(picture_of(content)) == {(99, 99, 99)}


def test_a_png_with_megabytes_of_text_and_color_profile():
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "x" * 3_000_000, zip=True)
    content = encoded(plain((99, 98, 97)), pnginfo=info, icc_profile=bytes(5_000_000))
    with pytest.raises(ValueError, match=r"[Dd]ecompress|too large"):
        Image.open(io.BytesIO(content)).load()
    assert colors(picture_of(content)) == {(99, 98, 97)}


@pytest.mark.parametrize(
    ("dtype", "values", "expected"),
    [
        (np.uint16, [0, 255], [0, 255]),
        (np.uint16, [0, 419], [0, 209]),  # 9 bits: 511 is white
        (np.uint16, [0, 4095], [0, 255]),
        (np.uint16, [1000, 3000], [62, 187]),
        (np.int32, [-1024, 3071], [0, 255]),  # CT values
        (np.int32, [0, 65535], [0, 255]),
        (np.float32, [0, 1], [0, 255]),
        (np.float32, [-1, 3], [0, 255]),
        (np.uint16, [0, 0], [0, 0]),
    ],
)
def test_deep_gray_keeps_its_contrast(dtype, values, expected):
    image = Image.fromarray(np.repeat(np.array(values, dtype=dtype), 16)[None].repeat(32, 0))
    picture = picture_of(encoded(image, "TIFF"))
    assert picture[1, 3, [0, 31]].tolist() == expected


def test_avif_and_heic_are_read_where_they_can_be():
    image = quarters([RED, GREEN, BLUE, WHITE], (64, 64))
    kinds = []
    if features.check("avif"):
        kinds.append(("AVIF", {"quality": 100, "subsampling": "4:4:4"}))
    with suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
        kinds.append(("HEIF", {"quality": 100, "chroma": 444}))
    if not kinds:
        pytest.skip("neither can be written here")
    for kind, options in kinds:
        content = encoded(image, kind, **options)
        found = np.array(corners(picture_of(content)))
        assert np.abs(found - [RED, GREEN, BLUE, WHITE]).max() < 12


@pytest.mark.parametrize(("brand", "package"), [(b"heic", "pillow-heif"), (b"avif", "pillow-avif-plugin")])
def test_the_plugin_that_lacks_is_named(brand, package, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "PIL._avif" else find(name))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setitem(sys.modules, "pillow_avif", None)
    with pytest.raises(ValueError, match=f"pip install {package}"):
        open_image(b"\0\0\0\x18ftypmif1\0\0\0\0mif1" + brand)


def test_a_raw_photo_is_not_taken_for_its_thumbnail():
    content = encoded(plain(RED), "TIFF", tiffinfo={254: 1})
    with pytest.raises(ValueError, match="raw file"):
        open_image(content)


@pytest.mark.slow
def test_large_pictures_take_little_memory():
    """A photo of 108 megapixels as JPEG: 324 MB of pixels if it were decoded whole."""
    content = encoded(Image.new("RGB", (12_000, 9_000), (50, 90, 130)), "JPEG")
    code = "import resource, sys; from ltpa.data.images import open_image; content = sys.stdin.buffer.read()"
    code += "; peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss"
    code += "; before = peak(); print(open_image(content, 448).size, peak() - before)"
    done = subprocess.run([sys.executable, "-c", code], input=content, capture_output=True, check=True)
    *size, kilobytes = done.stdout.decode().split()
    assert size == ["(1500,", "1125)"]
    assert int(kilobytes) < 60_000


# --- images that are refused ------------------------------------------------------------------------------------------


def png_that_declares(width, height):
    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


NOISE = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)))
FLOAT = encoded(Image.new("F", (32, 32), float("nan")), "TIFF")
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (b"<html>404</html>", "not an image of a known format"),
        (POSTSCRIPT, "not an image of a known format"),  # Pillow would start Ghostscript
        (b"\x89PNG\r\n\x1a\n", "not a"),
        (NOISE[: len(NOISE) // 2], "not a readable image"),
        (b"\xff\xd8\xff\xe0" + bytes(100), "not a"),
        (FLOAT, "not finite numbers"),
        (png_that_declares(50_000, 50_000), "more than 150,000,000 pixels"),  # beyond Pillow's own limit
        (png_that_declares(13_000, 12_000), "more than 150,000,000 pixels"),  # Pillow would warn
        (png_that_declares(7_000, 7_000), "not a readable image"),  # allowed, but the pixels are missing
        (png_that_declares(0, 10), "not a"),
    ],
    ids=["empty", "html", "eps", "magic", "half", "jpeg", "float", "2500M", "156M", "49M", "0"],
)
def test_unreadable_image_is_named(content, words, tmp_path):
    (tmp_path / "b ad.png").write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        read_image(tmp_path / "b ad.png", 32)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'b ad.png'}: ")
    assert words in message
    assert "BytesIO" not in message
