"""All words that captions are made of, for tokenizers, vocabularies and warnings about unknown words."""

import re
from functools import cache

from ldm.data.emoji_scenes import phrases
from ldm.data.emoji_scenes.nouns import NOUNS, plural
from ldm.data.emoji_scenes.vocabulary import COUNTS, SIZE_WORDS
from ldm.data.emoji_scenes.world import FULL, World

_WORD = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")


@cache
def words(world: World = FULL) -> tuple[str, ...]:
    """Every lower-case word of every caption, sorted; words on signs are spelled with letters and not among them."""
    names = [name for noun in world.nouns for name in NOUNS[noun].names]
    sentences = [*phrases.FRAMES, *phrases.PLAIN, *phrases.COLOURED, *phrases.GRADIENT]
    told = ((phrases.STYLE_FRAMES, world.styles), (phrases.PHRASES, world.recipes), (phrases.PLACES, world.places))
    for table, chosen in (*told, (SIZE_WORDS, world.sizes)):
        sentences += [text for name, options in table.items() if name in chosen for text in options]
    if "sign" in world.recipes:
        sentences += phrases.SIGNS
    small = ["a", "an", "is", "are", "and", *world.colours, *COUNTS.values(), *map(str, COUNTS)]
    text = " ".join([*names, *map(plural, names), *sentences, *small])
    return tuple(sorted(set(split_words(re.sub(r"\{\w+\}", " ", text)))))


def split_words(text: str) -> list[str]:
    """The lower-case words of a caption without punctuation and without what stands in quotes."""
    return _WORD.findall(re.sub(r'"[^"]*"', " ", text).lower())
