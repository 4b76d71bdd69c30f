"""A picture's bytes -> RGB pixels the right way up; or what is wrong with them."""

from dataclasses import dataclass
from io import BytesIO

from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000", "PPM", "QOI", "DIB")  # none runs a program
ORIENTATION = 0x0112  # of EXIF
_ELSEWHERE = {b"ftyphei": "HEIC", b"ftyphev": "HEIC", b"ftypmif": "HEIF", b"<svg": "SVG", b"%!PS": "EPS"}


class BadPicture(ValueError):
    """Not to be trained on: the text names the picture and says why."""


@dataclass(frozen=True)
class Opened:
    """An RGB picture, upright, and what was done to make it one, such as "CMYK converted"."""

    image: Image.Image
    notes: tuple[str, ...] = ()


def open_picture(data: bytes, name: str) -> Opened:
    """Decodes a whole picture: any mode and depth -> 8-bit RGB in sRGB, its first frame, turned by its EXIF.

    Transparent pictures are laid on white. Raises BadPicture for one that is empty, truncated, damaged, no picture at
    all, or so large that it must be an attack.
    """
    if not data:
        raise BadPicture(f"{name} is empty")
    try:
        image, notes = _decoded(data)
        rgb, converted = _rgb(image, image.info.get("icc_profile"))
    except UnidentifiedImageError:
        raise BadPicture(f"{name} is not a picture{_kind(data)}: save it as PNG or JPEG, or remove it") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadPicture(f"{name} is far larger than a photograph, which may be an attack: {error}") from error
    except Exception as error:  # decoders raise anything at all when a file is damaged
        raise BadPicture(f"{name} is truncated or damaged: {error}") from error
    return Opened(rgb, (*notes, *converted))


def _decoded(data: bytes) -> tuple[Image.Image, list[str]]:
    """Upright, in its own mode."""
    Image.init()
    image = Image.open(BytesIO(data), formats=[name for name in FORMATS if name in Image.OPEN])
    if min(image.size) < 1:
        raise ValueError(f"its size is {image.width} x {image.height}")
    notes = ["16 bit"] if ";16" in f"{image.mode} {image.tile}" else []
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        notes.append(f"first frame of {frames}")
        image.seek(0)
    turned = _turned(image)
    image.load()
    try:
        upright = ImageOps.exif_transpose(image) if turned else image  # a TIFF was turned, and its EXIF, by loading
    except Exception:  # a damaged appendix of a sound picture
        upright, turned = image, None
    if turned is None:
        notes.append("its EXIF cannot be read")
    return upright, [*notes, "turned by its EXIF"] if turned else notes


def _turned(image: Image.Image) -> bool | None:
    """Whether its EXIF says that it was not held upright; None where that cannot be read."""
    try:
        return image.getexif().get(ORIENTATION, 1) in range(2, 9)
    except Exception:  # as above
        return None


def _rgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, list[str]]:
    if image.mode.startswith("I") or image.mode == "F":
        return _deep(image)
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        flat, notes = _on_white(image)
    elif image.mode == "P":
        flat, notes = image.convert("RGB"), []
    else:
        flat, notes = image, ["CMYK converted"] if image.mode == "CMYK" else []
    flat, said = _srgb(flat, profile) if profile else (flat, [])
    return flat.convert("RGB"), notes + said


def _deep(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """Greys of more than 8 bits. Whole numbers count to 65535, floats to 1, 255 or 65535, whichever they fit."""
    real = image.mode == "F"
    values = image if real else image.convert("I")
    highest = values.getextrema()[1]
    assert isinstance(highest, (int, float))
    white = next((w for w in ((1, 255, 65535) if real else (65535,)) if highest <= w), 2**31 - 1)
    levels = values.convert("F").point(lambda v: v * (255 / white) + 0.5)  # rounds: floats are cut off below
    notes = ["floats"] if real else ["16 bit"] if image.mode == "I" else []  # I;16 was noted when it was opened
    return levels.convert("L").convert("RGB"), notes


def _on_white(image: Image.Image) -> tuple[Image.Image, list[str]]:
    clear = image.convert("RGBA")
    if clear.getchannel("A").getextrema() == (255, 255):
        return clear.convert("RGB"), []
    page = Image.new("RGBA", clear.size, "white")
    page.alpha_composite(clear)
    return page.convert("RGB"), ["transparent: laid on white"]


def _srgb(image: Image.Image, profile: bytes) -> tuple[Image.Image, list[str]]:
    """Colours by the picture's ICC profile -> sRGB; as they are if the profile is sRGB or of no use."""
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        called = ImageCms.getProfileDescription(source).strip()
        if "srgb" in called.lower():
            return image, []
        target = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    except (ImageCms.PyCMSError, ImportError, OSError, ValueError, TypeError):
        return image, ["its colour profile cannot be used"]
    assert converted is not None  # as it is not in place
    return converted, [f"colours converted from {called}"]


def _kind(data: bytes) -> str:
    name = next((name for mark, name in _ELSEWHERE.items() if mark in data[:256]), "")
    return f" of a kind that is read here, but {name}" if name else ""
