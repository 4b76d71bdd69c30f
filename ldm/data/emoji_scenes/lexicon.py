"""All words that captions are made of, for tokenizers, vocabularies and warnings about unknown words."""

import re
from functools import cache

from ldm.data.emoji_scenes import phrases
from ldm.data.emoji_scenes.nouns import NOUNS, plural
from ldm.data.emoji_scenes.vocabulary import COLOURS, COUNTS, SIZE_WORDS

_WORD = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")


@cache
def words() -> tuple[str, ...]:
    """Every lower-case word of every caption, sorted; words on signs are spelled with letters and not among them."""
    names = [name for noun in NOUNS.values() for name in noun.names]
    sentences = [*phrases.FRAMES, *phrases.PLAIN, *phrases.COLOURED, *phrases.GRADIENT, *phrases.SIGNS]
    for table in (phrases.STYLE_FRAMES, phrases.PHRASES, phrases.PLACES, SIZE_WORDS):
        sentences += [text for options in table.values() for text in options]
    small = ["a", "an", "is", "are", "and", *COLOURS, *COUNTS.values(), *map(str, COUNTS)]
    text = " ".join([*names, *map(plural, names), *sentences, *small])
    return tuple(sorted(set(split_words(re.sub(r"\{\w+\}", " ", text)))))


def split_words(text: str) -> list[str]:
    """The lower-case words of a caption without punctuation and without what stands in quotes."""
    return _WORD.findall(re.sub(r'"[^"]*"', " ", text).lower())
