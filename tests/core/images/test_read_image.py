"""Every kind of image that people have: read right, or refused in one line that says why."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageFile, ImageOps

from matchrt.errors import ImageError
from matchrt.images import read_image

Array = NDArray[Any]


@pytest.fixture
def rgb() -> Array:
    return np.random.default_rng(0).integers(0, 256, (20, 31, 3), dtype=np.uint8)


def refused(source: Any, **options: Any) -> ImageError:
    with pytest.raises(ImageError) as caught:
        read_image(source, **options)
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value


def encoded(array: Array, kind: str, mode: str | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image = PILImage.fromarray(array)
    (image.convert(mode) if mode else image).save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int, bits: int = 8, colour: int = 2) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


# what is read -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "suffix"), [("PNG", "png"), ("TIFF", "tif"), ("BMP", "bmp"), ("PPM", "ppm")])
def test_lossless_files_keep_every_pixel(tmp_path: Path, rgb: Array, kind: str, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(encoded(rgb, kind))
    for source in (path, str(path), path.read_bytes(), bytearray(path.read_bytes()), PILImage.open(path)):
        image = read_image(source)
        assert np.array_equal(image.pixels, rgb)
        assert image.size == (20, 31)
        assert not image.notes
    assert read_image(path).source == str(path)


@pytest.mark.parametrize("options", [{"kind": "WEBP", "lossless": True}, {"kind": "JPEG2000", "irreversible": False}])
def test_webp_and_jpeg2000(rgb: Array, options: dict[str, Any]) -> None:
    assert np.array_equal(read_image(encoded(rgb, **options)).pixels, rgb)


def test_jpeg_is_what_pillow_decodes(rgb: Array) -> None:
    data = encoded(rgb, "JPEG", quality=92)
    assert np.array_equal(read_image(data).pixels, np.array(PILImage.open(io.BytesIO(data))))


def test_grey_stays_grey_and_rgb_repeats_it(rgb: Array) -> None:
    image = read_image(encoded(rgb[..., 0], "PNG"))
    assert image.is_grey
    assert np.array_equal(image.pixels, rgb[..., 0])
    assert np.array_equal(image.rgb(), np.dstack([rgb[..., 0]] * 3))


def test_the_content_decides_not_the_suffix(tmp_path: Path, rgb: Array) -> None:
    path = tmp_path / "really_a_png.jpg"
    path.write_bytes(encoded(rgb, "PNG"))
    assert np.array_equal(read_image(path).pixels, rgb)


def test_arrays(rgb: Array) -> None:
    assert np.array_equal(read_image(rgb).pixels, rgb)
    assert np.array_equal(read_image(rgb[..., :1]).pixels, rgb[..., 0])
    assert np.array_equal(read_image(rgb[..., 0]).pixels, rgb[..., 0])
    image = read_image(rgb[::2, ::-1])
    assert image.pixels.flags.c_contiguous
    assert np.array_equal(image.pixels, rgb[::2, ::-1])
    assert rgb.flags.writeable, "the caller's array keeps its flags"
    with pytest.raises(ValueError, match="read-only"):
        image.pixels[0] = 0


def test_one_pixel() -> None:
    one = np.array([[[1, 2, 3]]], dtype=np.uint8)
    assert np.array_equal(read_image(encoded(one, "PNG")).pixels, one)
    assert read_image(one).size == (1, 1)


def test_sixteen_bit_grey_is_rounded_exactly() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.round(values.astype(np.float64) / 257).astype(np.uint8)
    pgm = b"P5 256 256 65535\n" + values.astype(">u2").tobytes()
    for data in (encoded(values, "PNG"), encoded(values, "TIFF"), pgm):
        image = read_image(data)
        assert np.array_equal(image.pixels, expected)
        assert any("16 bits" in note for note in image.notes)
    assert np.array_equal(read_image(PILImage.fromarray(values)).pixels, expected)


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [3, 4])
def test_sixteen_bit_colour_is_rounded_not_truncated(suffix: str, channels: int) -> None:
    bgr = np.random.default_rng(1).integers(0, 65536, (16, 9, channels), dtype=np.uint16)
    ok, data = cv2.imencode(suffix, bgr)
    assert ok
    image = read_image(data.tobytes())
    expected = np.round(bgr[..., 2::-1].astype(np.float64) / 257).astype(np.uint8)
    assert np.array_equal(image.pixels, expected)
    assert not np.array_equal(image.pixels, (bgr[..., 2::-1] >> 8).astype(np.uint8))
    assert ("alpha dropped" in image.notes) == (channels == 4)


@pytest.mark.parametrize(
    ("mode", "kind", "note"),
    [
        ("CMYK", "JPEG", "CMYK to RGB"),
        ("CMYK", "TIFF", "CMYK to RGB"),
        ("P", "PNG", "palette"),
        ("RGBA", "PNG", "alpha"),
    ],
)
def test_other_modes_become_rgb_and_say_so(rgb: Array, mode: str, kind: str, note: str) -> None:
    data = encoded(rgb, kind, mode)
    image = read_image(data)
    assert np.array_equal(image.pixels, np.array(PILImage.open(io.BytesIO(data)).convert("RGB")))
    assert image.pixels.shape == rgb.shape
    assert any(note in n for n in image.notes)


def test_alpha_is_dropped_not_blended(rgb: Array) -> None:
    transparent = np.dstack([rgb, np.zeros(rgb.shape[:2], np.uint8)])
    assert np.array_equal(read_image(encoded(transparent, "PNG")).pixels, rgb)
    grey = np.dstack([rgb[..., 0], np.zeros(rgb.shape[:2], np.uint8)])
    image = read_image(PILImage.fromarray(grey, "LA"))
    assert np.array_equal(image.pixels, rgb[..., 0])
    assert image.notes == ("alpha dropped",)


def test_one_bit(rgb: Array) -> None:
    bits = rgb[..., 0] > 127
    image = read_image(PILImage.fromarray(bits))
    assert np.array_equal(image.pixels, np.where(bits, 255, 0))
    assert image.notes


@pytest.mark.parametrize("kind", ["TIFF", "WEBP", "PNG"])
def test_animation_gives_its_first_frame(rgb: Array, kind: str) -> None:
    buffer = io.BytesIO()
    frames = [PILImage.fromarray(rgb), PILImage.fromarray(255 - rgb)]
    frames[0].save(
        buffer, kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
    )
    image = read_image(buffer.getvalue())
    assert np.array_equal(image.pixels, rgb)
    assert "frame 1 of 2" in image.notes


# orientation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, rgb: Array, kind: str, orientation: int) -> None:
    plain = encoded(rgb, kind)
    upright = PILImage.fromarray(np.array(PILImage.open(io.BytesIO(plain))))
    path = tmp_path / "turned"
    exif = PILImage.Exif()
    exif[0x0112] = orientation
    path.write_bytes(encoded(rgb, kind, exif=exif))
    stored = upright.copy()
    stored.getexif()[0x0112] = orientation
    expected = np.array(ImageOps.exif_transpose(stored))

    for source in (path, path.read_bytes(), PILImage.open(path)):
        image = read_image(source)
        assert np.array_equal(image.pixels, expected)
        assert (image.orientation, image.oriented) == (orientation, orientation != 1)
        ignored = read_image(path, apply_orientation=False)
        assert np.array_equal(ignored.pixels, np.array(upright))
        assert (ignored.orientation, ignored.oriented) == (orientation, False)
    assert image.size == ((31, 20) if orientation >= 5 else (20, 31))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_sixteen_bit_colour_tiff(orientation: int) -> None:
    values = np.random.default_rng(2).integers(0, 65536, (12, 7, 3), dtype=np.uint16)
    small = np.round(values / 257.0).astype(np.uint8)
    data = tiff16(values, orientation)
    stored = PILImage.fromarray(small)
    stored.getexif()[0x0112] = orientation
    assert np.array_equal(read_image(data).pixels, np.array(ImageOps.exif_transpose(stored)))
    assert np.array_equal(read_image(data, apply_orientation=False).pixels, small)


def tiff16(values: Array, orientation: int) -> bytes:
    """A baseline uncompressed 16-bit RGB TIFF, written here because Pillow cannot."""
    height, width = values.shape[:2]
    pixels = values.astype("<u2").tobytes()
    tags = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, 8), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 14),
        (274, 3, 1, orientation), (277, 3, 1, 3), (278, 4, 1, height), (279, 4, 1, len(pixels)), (284, 3, 1, 1),
    ]  # fmt: skip
    body = struct.pack("<HHH", 16, 16, 16) + pixels
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + b"\0\0\0\0"
    return struct.pack("<2sHI", b"II", 42, 8 + len(body)) + body + directory


def test_nonsense_orientation_is_upright(rgb: Array) -> None:
    exif = PILImage.Exif()
    exif[0x0112] = 77
    image = read_image(encoded(rgb, "PNG", exif=exif))
    assert np.array_equal(image.pixels, rgb)
    assert image.orientation == 1
    assert "77" in image.notes[0]


# what is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(60000, 60000), (8001, 8000), (2**31 - 1, 2**31 - 1)])
def test_a_huge_header_is_refused_before_decoding(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "huge.png"
    path.write_bytes(png_header(size[1], size[0]))
    assert f"{size[0]}x{size[1]}" in str(refused(path))


def test_a_huge_header_costs_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    path.write_bytes(png_header(60000, 60000))
    script = (
        "import resource, sys, warnings; warnings.simplefilter('error'); from matchrt.images import read_image\n"
        "from matchrt.errors import ImageError; import PIL.Image; PIL.Image.init()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: read_image(sys.argv[1])\nexcept ImageError: pass\nelse: sys.exit('read')\n"
        "grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before\n"
        "assert grown < 20_000, f'{grown} KiB'"
    )
    subprocess.run([sys.executable, "-c", script, str(path)], check=True, timeout=60)


def test_the_limit_is_the_callers(rgb: Array) -> None:
    data = encoded(rgb, "PNG")
    assert read_image(data, max_pixels=20 * 31).size == (20, 31)
    for source in (data, rgb, PILImage.fromarray(rgb)):
        assert "limit of 619" in str(refused(source, max_pixels=20 * 31 - 1))


@pytest.mark.parametrize("options", [{"kind": "JPEG"}, {"kind": "JPEG", "progressive": True}, {"kind": "PNG"}])
@pytest.mark.parametrize("padding_allowed", [False, True])
def test_a_truncated_file_is_refused_even_where_pillow_would_pad_it(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], padding_allowed: bool
) -> None:
    big = np.random.default_rng(3).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    data = encoded(big, **options)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", padding_allowed)
    assert "decoded" in str(refused(data[: len(data) // 2]))
    assert ImageFile.LOAD_TRUNCATED_IMAGES is padding_allowed


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "BMP", "PPM", "JPEG2000"])
def test_truncated_files_of_every_format(kind: str) -> None:
    big = np.random.default_rng(3).integers(0, 256, (100, 120, 3), dtype=np.uint8)
    data = encoded(big, kind)
    for length in (3, 9, 24, len(data) // 2, len(data) - 200):
        refused(data[:length])


def test_text_named_jpg(tmp_path: Path) -> None:
    path = tmp_path / "notes.jpg"
    path.write_text("these are\nmy notes")
    error = refused(path)
    assert "text that begins 'these are my notes'" in str(error)
    assert "JPEG" in (error.hint or "")


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    assert "is empty" in str(refused(tmp_path / "empty.png"))


@pytest.mark.parametrize(
    ("data", "word"),
    [(b"%PDF-1.7 x", "PDF"), (b"version https://git-lfs.github.com/spec/v1", "LFS"), (bytes(range(1, 64)), "01 02 03")],
)
def test_other_content_is_named(data: bytes, word: str) -> None:
    assert word in str(refused(data))


def test_formats_outside_the_list_are_refused(rgb: Array) -> None:
    assert "GIF" in str(refused(encoded(rgb, "GIF")))
    refused(encoded(rgb, "TGA"))
    refused(encoded(rgb[..., 0], "IM"))


def test_float_and_32_bit_tiff(rgb: Array) -> None:
    for array in (rgb[..., 0].astype(np.float32), rgb[..., 0].astype(np.int32)):
        error = refused(encoded(array, "TIFF"))
        assert "16 bits" in (error.hint or "")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    error = refused(tmp_path / "foto.jpg")
    assert "does not exist" in str(error)
    assert str(tmp_path / "photo.jpg") in (error.hint or "")
    assert "folder" in str(refused(tmp_path))
    refused(tmp_path / "photo.jpg" / "below")
    refused("bad\0name.png")
    assert "download" in (refused("https://example.com/a.jpg").hint or "")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    assert "regular" in str(refused(tmp_path / "pipe.jpg"))


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.touch()

    def denied(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", denied)
    assert str(refused(path)) == f"{path} cannot be opened: Permission denied"


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((4, 5, 3), np.float32), ("float32", "(4, 5, 3)")),
        (np.zeros((4, 5), np.uint16), ("uint16", "(4, 5)")),
        (np.zeros((3, 40, 50), np.uint8), ("uint8", "(3, 40, 50)")),
        (np.zeros((4, 5, 4), np.uint8), ("(4, 5, 4)",)),
        (np.zeros((1, 4, 5, 3), np.uint8), ("(1, 4, 5, 3)",)),
        (np.zeros((0, 5, 3), np.uint8), ("empty", "0x5")),
        (np.zeros(7, np.uint8), ("(7,)",)),
    ],
)
def test_wrong_arrays_are_named_by_dtype_and_shape(array: Array, words: tuple[str, ...]) -> None:
    message = str(refused(array))
    assert all(word in message for word in words), message


def test_other_objects() -> None:
    assert "NoneType" in str(refused(None))
    assert "list" in str(refused([[1, 2], [3, 4]]))


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns about damaged TIFF tags
def test_damaged_bytes_never_escape_as_another_error(rgb: Array) -> None:
    rng = np.random.default_rng(5)
    for kind in ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "PPM", "JPEG2000"):
        original = np.frombuffer(encoded(rgb, kind), np.uint8)
        for _ in range(60):
            damaged = original.copy()
            where = rng.integers(0, min(len(damaged), 400), 6)
            damaged[where] = rng.integers(0, 256, 6)
            with contextlib.suppress(ImageError):
                assert read_image(damaged.tobytes()).pixels.dtype == np.uint8


def test_reading_loads_neither_torch_nor_opencv() -> None:
    script = (
        "import sys, matchrt.images, matchrt.geometry, matchrt.draw, matchrt.files\n"
        "loaded = {'torch', 'cv2', 'PIL', 'h5py', 'onnx', 'onnxruntime'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
        "from PIL import Image; import io\n"
        "b = io.BytesIO(); Image.new('RGB', (3, 4)).save(b, 'PNG')\n"
        "assert matchrt.images.read_image(b.getvalue()).size == (4, 3)\n"
        "assert not {'torch', 'cv2'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
