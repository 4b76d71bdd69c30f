"""The contact sheet shows what the model sees, and any words."""

from collections.abc import Callable

import pytest
from PIL import Image, ImageFont

from ldm.data.pictures import contact_sheet as module
from ldm.data.pictures.buckets import place
from ldm.data.pictures.contact_sheet import contact_sheet
from ldm.data.pictures.set import Example

Paint = Callable[..., Image.Image]


@pytest.fixture
def example(paint: Paint) -> Callable[..., Example]:
    """Number, caption, bucket -> an example."""

    def make(number: int, caption: str, bucket: tuple[int, int] = (64, 48), hint: bool = False) -> Example:
        return Example(
            caption=caption,
            placed=place((300, 200), bucket),
            flip=number % 2 == 1,
            weight=1.0,
            item=number,
            name=f"folder/{number}.png",
            key="",
            image=paint(number, bucket),
            hint=Image.new("RGB", bucket, "red") if hint else None,
        )

    return make


def test_pictures_are_shown_as_they_are(example: Callable[..., Example]) -> None:
    examples = [example(i, "a cat " * i, (64, 48) if i % 3 else (48, 64)) for i in range(7)]
    page = contact_sheet(examples, columns=3)
    across = module.NARROWEST + module.GAP
    assert page.width == 3 * across + module.GAP
    for i, one in enumerate(examples[:3]):
        left, (w, h) = module.GAP + i * across, one.image.size
        assert page.crop((left, module.GAP, left + w, module.GAP + h)).tobytes() == one.image.tobytes()
    assert contact_sheet(examples[:2], columns=6).width == 2 * across + module.GAP


def test_large_ones_are_made_smaller_and_hints_lie_beside(example: Callable[..., Example]) -> None:
    page = contact_sheet([example(0, "wide", (1024, 512), hint=True)], largest=200)
    assert page.width == 2 * 200 + 2 * module.GAP
    assert page.getpixel((module.GAP + 300, module.GAP + 50)) == (255, 0, 0)


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "ein Kätzchen, größer als другой кот",
        "猫がバナナを持っている" * 6,
        "🐱‍👤 x\u202eabc\u200d \ud83d \x00\x07\n\r\t e\u0301",
        "https://example.org/" + "x" * 400,
        "مرحبا بالعالم",
        "word " * 400,
    ],
)
@pytest.mark.parametrize("freetype", [True, False])
def test_any_caption_is_drawn(
    example: Callable[..., Example], caption: str, freetype: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not freetype:
        monkeypatch.setattr(ImageFont, "load_default", lambda size: ImageFont.load_default_imagefont())
    page = contact_sheet([example(0, caption)])
    assert page.height < 48 + (module.LINES + 3) * (module.FONT + 4) + 3 * module.GAP
    words = page.crop((module.GAP, module.GAP + 48, page.width, page.height)).convert("L")
    assert words.getextrema()[0] < 120  # there is ink
    margin = page.crop((page.width - module.GAP, 0, page.width, page.height))
    assert margin.getextrema() == ((255, 255),) * 3  # and none beyond the column


def test_nothing_to_show() -> None:
    with pytest.raises(ValueError, match="at least one example"):
        contact_sheet([])


def test_letters_that_the_font_lacks_lose_their_accents() -> None:
    font = ImageFont.load_default(module.FONT)
    assert module._drawable("größere Äpfel\n à\u0301 la\x07 猫", font) == "grossere Apfel a la? 猫"
