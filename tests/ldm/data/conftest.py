"""A reader of captions that knows the words of the world, but neither plans nor how captions are made."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from ldm.data.emoji_scenes.nouns import NOUNS, plural
from ldm.data.emoji_scenes.phrases import PHRASES
from ldm.data.emoji_scenes.vocabulary import COLOURS, COUNTS, SIZE_WORDS

_NUMBERS = {word: number for number, word in COUNTS.items()} | {str(number): number for number in COUNTS}
_NAMES = {name: noun.name for noun in NOUNS.values() for name in noun.names}
_NAMES |= {plural(name): noun.name for noun in NOUNS.values() for name in noun.names}
_SIZES = {word: size for size, words in SIZE_WORDS.items() for word in words}
_SIGN = r'sign (?:that says|saying|with the word|that reads) "(?P<word>[A-Z]+)"'


def _any(options: object) -> str:
    return "|".join(sorted(map(re.escape, options), key=len, reverse=True))  # type: ignore[call-overload]


_MENTION = re.compile(
    rf"\b(?:an? )?(?:(?P<count>{_any(_NUMBERS)}) )?(?:(?P<size>{_any(_SIZES)}) )?(?:(?P<colour>{_any(COLOURS)}) )?"
    rf"(?:{_SIGN}|(?P<name>{_any(_NAMES)})\b)"
)
_ACTIVE = [
    option.removeprefix("{a} ").removesuffix(" {b}")
    for relation in ("holding", "wearing", "riding")
    for option in PHRASES[relation]
    if option.startswith("{a} ") and option.endswith(" {b}")
]
_GROUP = re.compile(rf"<(\d)>(?: and)? ({_any(_ACTIVE)}) <(\d)>")


@dataclass
class Reading:
    """What a caption says: (noun, colour, size, count, word) of each noun phrase; (relation, subject, object)."""

    mentions: list[tuple[str, str, str, int, str]] = field(default_factory=list)
    relations: set[tuple[str, str, str]] = field(default_factory=set)
    text: str = ""  # with <0>, <1> ... for the noun phrases, groups reduced to their heads

    @property
    def shape(self) -> str:
        """The caption without its nouns; one and many read alike."""
        return self.text.replace(" are ", " is ")


def _read(caption: str) -> Reading:
    reading = Reading()

    def note(match: re.Match[str]) -> str:
        noun = "sign" if match["word"] else _NAMES[match["name"]]
        size, count = _SIZES.get(match["size"] or "", ""), _NUMBERS.get(match["count"] or "", 1)
        reading.mentions.append((noun, match["colour"] or "", size, count, match["word"] or ""))
        return f"<{len(reading.mentions) - 1}>"

    text = _MENTION.sub(note, caption)
    while match := _GROUP.search(text):  # "<0> wearing <1> and holding <2>, left of <3>": first what <0> has with it
        relation = next(r for r in PHRASES if "{a} " + match[2] + " {b}" in PHRASES[r])
        reading.relations.add((relation, reading.mentions[int(match[1])][0], reading.mentions[int(match[3])][0]))
        text = text[: match.end(1) + 1] + text[match.end() :]
    text = reading.text = text.replace(",", "")
    for i in range(len(reading.mentions)):
        for j in range(len(reading.mentions)):
            if i != j:
                reading.relations |= _told(text, i, j, reading)
    return reading


def _told(text: str, i: int, j: int, reading: Reading) -> set[tuple[str, str, str]]:
    """Relations with noun phrase i as the subject and j as the object."""
    told = [
        relation
        for relation, options in PHRASES.items()
        for option in options
        if option.replace("{a}", f"<{i}>").replace("{b}", f"<{j}>") in text
    ]
    return {(relation, reading.mentions[i][0], reading.mentions[j][0]) for relation in told}


@pytest.fixture(scope="session")
def read_caption() -> Callable[[str], Reading]:
    """Caption -> Reading, from the words alone."""
    return _read
