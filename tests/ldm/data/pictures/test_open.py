"""Every kind of picture becomes upright 8-bit RGB; what is none is refused by name."""

import struct
import zlib
from collections.abc import Callable

import pytest
from PIL import Image, ImageCms

from ldm.data.emoji_scenes.keyed import Keyed
from ldm.data.pictures.open import BadPicture, open_picture
from vae.pixels import from_pil

Paint = Callable[..., Image.Image]
Encode = Callable[..., bytes]


@pytest.mark.parametrize(
    ("mode", "colour", "kind", "expected", "notes"),
    [
        ("1", 1, "PNG", (255, 255, 255), ()),
        ("L", 90, "PNG", (90, 90, 90), ()),
        ("L", 90, "JPEG", (90, 90, 90), ()),
        ("LA", (90, 255), "PNG", (90, 90, 90), ()),
        ("LA", (0, 51), "PNG", (204, 204, 204), ("transparent: laid on white",)),
        ("RGB", (10, 20, 30), "PNG", (10, 20, 30), ()),
        ("RGB", (10, 20, 30), "BMP", (10, 20, 30), ()),
        ("RGB", (10, 20, 30), "PPM", (10, 20, 30), ()),
        ("RGBA", (255, 0, 0, 0), "PNG", (255, 255, 255), ("transparent: laid on white",)),
        ("RGBA", (255, 0, 0, 255), "PNG", (255, 0, 0), ()),
        ("RGBA", (255, 0, 0, 0), "TIFF", (255, 255, 255), ("transparent: laid on white",)),
        ("CMYK", (0, 255, 255, 0), "TIFF", (255, 0, 0), ("CMYK converted",)),
        ("CMYK", (0, 255, 255, 0), "JPEG", (255, 0, 0), ("CMYK converted",)),
        ("I;16", 65535, "PNG", (255, 255, 255), ("16 bit",)),
        ("I;16", 257 * 100 + 128, "TIFF", (100, 100, 100), ("16 bit",)),
        ("I", 257 * 100 + 129, "TIFF", (101, 101, 101), ("16 bit",)),
        ("F", 0.5, "TIFF", (128, 128, 128), ("floats",)),
        ("F", 100.0, "TIFF", (100, 100, 100), ("floats",)),
        ("YCbCr", (76, 85, 255), "TIFF", (254, 0, 0), ()),
    ],
)
def test_every_mode_becomes_rgb(
    encode: Encode, mode: str, colour: object, kind: str, expected: tuple[int, ...], notes: tuple[str, ...]
) -> None:
    opened = open_picture(encode(Image.new(mode, (5, 3), colour), kind), "a.png")
    assert opened.image.mode == "RGB"
    assert opened.image.size == (5, 3)
    assert opened.image.getpixel((2, 1)) == expected
    assert opened.notes == notes


def test_a_plain_picture_is_what_was_saved(encode: Encode, paint: Paint) -> None:
    opened = open_picture(encode(paint(5)), "a")
    assert opened.image.tobytes() == paint(5).tobytes()
    assert opened.notes == ()


def test_a_palette_keeps_its_colours_and_its_holes(encode: Encode, paint: Paint) -> None:
    picture = paint(1).quantize(16)
    assert open_picture(encode(picture), "a").image.tobytes() == picture.convert("RGB").tobytes()
    holed = open_picture(encode(picture, transparency=picture.getpixel((0, 0))), "a")
    assert holed.notes == ("transparent: laid on white",)
    assert holed.image.getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bits_are_rounded_as_their_true_values_are(encode: Encode) -> None:
    picture = Image.new("I;16", (256, 16))
    picture.putdata([16 * i for i in range(4096)])
    ours = from_pil([open_picture(encode(picture), "a").image])
    assert (ours - from_pil([picture])).abs().max() <= 1 / 255 + 1e-6  # half a level, in [-1, 1]


def test_sixteen_bits_of_colour_are_noted(encode: Encode) -> None:
    rows = b"".join(b"\0" + struct.pack(">6H", 65535, 0, 257 * 7, 0, 0, 0) for _ in range(2))
    png = _png(2, 2, 16, 2, rows)
    opened = open_picture(png, "a")
    assert opened.image.getpixel((0, 0)) == (255, 0, 7)
    assert opened.notes == ("16 bit",)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_gives_its_first_frame(encode: Encode, kind: str) -> None:
    frames = [Image.new("RGB", (6, 4), (40 * i, 0, 0)) for i in range(1, 4)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    opened = open_picture(data, "a")
    assert opened.notes == ("first frame of 3",)
    assert opened.image.getpixel((0, 0)) == (40, 0, 0)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_a_picture_is_turned_as_its_exif_says(encode: Encode, paint: Paint, turn: int, kind: str) -> None:
    upright = paint(2, (7, 4))
    w, h = upright.size
    # Exif 2.3, 4.6.4 A: where the first row and the first column of what is stored are seen
    where: dict[int, Callable[[int, int], tuple[int, int]]] = {
        1: lambda x, y: (x, y),
        2: lambda x, y: (w - 1 - x, y),
        3: lambda x, y: (w - 1 - x, h - 1 - y),
        4: lambda x, y: (x, h - 1 - y),
        5: lambda x, y: (y, x),
        6: lambda x, y: (w - 1 - y, x),
        7: lambda x, y: (w - 1 - y, h - 1 - x),
        8: lambda x, y: (y, h - 1 - x),
    }
    stored = Image.new("RGB", (w, h) if turn < 5 else (h, w))
    for x in range(stored.width):
        for y in range(stored.height):
            stored.putpixel((x, y), upright.getpixel(where[turn](x, y)))
    exif = Image.Exif()
    exif[0x0112] = turn
    options = {"lossless": True} if kind == "WEBP" else {}
    opened = open_picture(encode(stored, kind, exif=exif, **options), "a")
    assert opened.image.size == (w, h)
    assert opened.image.tobytes() == upright.tobytes()
    assert opened.notes == (() if turn == 1 else ("turned by its EXIF",))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0none", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0II*\0\x08\0\0\0\x09\0\x12\x01"]
)
def test_a_damaged_exif_spoils_no_picture(encode: Encode, paint: Paint, exif: bytes) -> None:
    opened = open_picture(encode(paint(6), "PNG", exif=exif), "a")
    assert opened.image.tobytes() == paint(6).tobytes()
    assert set(opened.notes) <= {"its EXIF cannot be read"}


def test_an_orientation_that_there_is_not(encode: Encode, paint: Paint) -> None:
    for turn in (0, 9, 65535):
        exif = Image.Exif()
        exif[0x0112] = turn
        assert open_picture(encode(paint(6), exif=exif), "a").notes == ()


def test_colours_are_converted_from_their_profile(encode: Encode) -> None:
    picture = Image.new("RGB", (4, 4), (255, 0, 0))
    swapped = _profile("swapped", green_first=True)
    opened = open_picture(encode(picture, icc_profile=swapped), "a")
    assert opened.notes == ("colours converted from swapped",)
    assert all(abs(a - b) <= 2 for a, b in zip(opened.image.getpixel((1, 1)), (0, 255, 0), strict=True))
    same = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert open_picture(encode(picture, icc_profile=same), "a").notes == ()
    broken = open_picture(encode(picture, icc_profile=b"not a profile"), "a")
    assert broken.notes == ("its colour profile cannot be used",)
    assert broken.image.getpixel((1, 1)) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000"])
@pytest.mark.parametrize("left", [0.1, 0.5, 0.9])
def test_a_truncated_picture_is_refused(encode: Encode, paint: Paint, kind: str, left: float) -> None:
    data = encode(paint(3), kind)
    with pytest.raises(BadPicture, match=r"my/a\.png is"):
        open_picture(data[: int(left * len(data))], "my/a.png")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "is empty"),
        (b"hello", "is not a picture: save it"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "but HEIC"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "but SVG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "but EPS"),
    ],
)
def test_what_is_no_picture_is_refused_by_name(data: bytes, why: str) -> None:
    with pytest.raises(BadPicture, match=f"^my/a.png .*{why}"):
        open_picture(data, "my/a.png")


def test_bombs_and_pictures_without_pixels_are_refused() -> None:
    with pytest.raises(BadPicture, match="an attack"):
        open_picture(_png(60000, 60000, 8, 2, b""), "a")
    with pytest.raises(BadPicture, match="a is"):
        open_picture(_png(0, 5, 8, 2, b""), "a")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damage_is_never_a_crash(encode: Encode, paint: Paint) -> None:
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
        whole = encode(paint(4, (24, 16)), kind)
        for number in range(40):
            drawn, data = Keyed("damage", kind, number), bytearray(whole)
            for _ in range(4):
                data[drawn.bits() % len(data)] = drawn.bits() % 256
            try:
                assert open_picture(bytes(data), "a").image.mode == "RGB"
            except BadPicture as refused:
                said = str(refused)
                assert said.startswith("a ")


def _png(w: int, h: int, depth: int, colours: int, rows: bytes) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, depth, colours, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def _profile(name: str, green_first: bool) -> bytes:
    """An ICC matrix profile (ICC.1:2001-04) of sRGB's primaries and no gamma, red and green changed round if asked."""
    s15 = lambda *values: b"".join(struct.pack(">i", round(value * 65536)) for value in values)  # noqa: E731
    red, green, blue = (0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141)
    if green_first:
        red, green = green, red
    words = name.encode() + b"\0"
    desc = b"desc\0\0\0\0" + struct.pack(">I", len(words)) + words + bytes(78)
    tags = {b"desc": desc, b"cprt": b"text\0\0\0\0none\0", b"wtpt": b"XYZ \0\0\0\0" + s15(0.9642, 1, 0.8249)}
    for tag, xyz in ((b"r", red), (b"g", green), (b"b", blue)):
        tags[tag + b"XYZ"] = b"XYZ \0\0\0\0" + s15(*xyz)
        tags[tag + b"TRC"] = b"curv\0\0\0\0" + bytes(4)
    table, body, start = b"", b"", 128 + 4 + 12 * len(tags)
    for tag, value in tags.items():
        table += tag + struct.pack(">II", start + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    rest = struct.pack(">I", len(tags)) + table + body
    head = struct.pack(">I", 128 + len(rest)) + b"\0\0\0\0" + struct.pack(">I", 0x02100000) + b"mntrRGB XYZ "
    head += bytes(12) + b"acsp" + bytes(28) + s15(0.9642, 1, 0.8249)
    return head + bytes(128 - len(head)) + rest
