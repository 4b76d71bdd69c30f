"""What a model can draw, in words: the file `vocabulary.json` of a model's folder. Standard library only."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.checkpoint.files import read_json

if TYPE_CHECKING:
    from ldm.data.emoji_scenes.world import World

FILE = "vocabulary.json"
# Arguments a model may have its own defaults for, and what makes a value one.
DEFAULTS: dict[str, Callable[[Any], bool]] = {
    "num_inference_steps": lambda value: type(value) is int and value >= 1,
    "guidance_scale": lambda value: type(value) in (int, float) and 0 <= value < 1000,
    "sampler": lambda value: isinstance(value, str),
}

_WORD = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*")
_QUOTED = re.compile(r'"[^"]*"|“[^”]*”')


@dataclass(frozen=True)
class Vocabulary:
    """The words a model was trained on and what they stand for.

    words: every lower-case word of its captions, plurals included.
    nouns: kind, such as "animals" -> noun -> its other names.
    examples: prompts to try. defaults: what a call takes where it names none, see `DEFAULTS`.
    """

    words: tuple[str, ...] = ()
    nouns: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    colours: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    relations: tuple[str, ...] = ()
    styles: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()
    counts: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def unknown(self, prompt: str) -> dict[str, list[str]]:
        """Words of a prompt that no caption had, each with up to three known ones that look like it, nearest first.

        Text in double quotes is not looked at: it is spelled out in the picture.
        """
        known = frozenset(self.words)
        strange = (word for word in split_words(prompt) if word not in known and not set(word.split("-")) <= known)
        return {word: self._near(word) for word in dict.fromkeys(strange)}

    def _near(self, word: str) -> list[str]:
        """Of a word and its plural only the nearer."""
        near: list[str] = []
        for other in get_close_matches(word, self.words, 6, cutoff=0.65):
            if not any(_same_noun(other, chosen) for chosen in near):
                near.append(other)
        return near[:3]

    def warning(self, prompts: Iterable[str], model: str = "") -> str | None:
        """What to tell about the unknown words of these prompts, None where there are none.

        model: path or hub id of a model that is not the embedded one.
        """
        unknown = {word: near for prompt in prompts for word, near in self.unknown(prompt).items()}
        if not unknown:
            return None
        named = [f'"{word}"' + (f" (near: {', '.join(near)})" if near else "") for word, near in unknown.items()]
        command = f"ldm vocabulary --model {model}" if model else "ldm vocabulary"
        return f"the model has never seen {', '.join(named)}; `{command}` lists what it can draw"


def split_words(text: str) -> list[str]:
    """The lower-case words of a prompt, without possessive endings and without what stands in double quotes."""
    return [re.sub(r"['’]s$", "", word) for word in _WORD.findall(_QUOTED.sub(" ", text).lower())]


def _same_noun(one: str, other: str) -> bool:
    short, long = sorted((one, other), key=len)
    return long in (f"{short}s", f"{short}es") or (short[-1:] == "y" and long == f"{short[:-1]}ies")


# files


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """The vocabulary in a model's folder, None where it has none. Raises ValueError naming the file and the entry."""
    path = folder / FILE
    if not path.exists():
        return None
    json, known = read_json(path), {f.name for f in fields(Vocabulary)}
    values = {name: value for name, value in json.items() if name in known}  # later versions may say more
    for name, value in values.items():
        if not _FITS.get(name, _is_texts)(value):
            raise ValueError(f"{path}: its entry {name!r} is malformed; fetch the model again")
    texts = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    tables = values.get("nouns", {})
    nouns = {kind: {noun: tuple(names) for noun, names in table.items()} for kind, table in tables.items()}
    return Vocabulary(**{**values, **texts, "nouns": nouns})


def write_vocabulary(vocabulary: Vocabulary, folder: Path) -> None:
    """Writes the file that `read_vocabulary` reads."""
    text = json.dumps(asdict(vocabulary), indent=1, ensure_ascii=False)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _are_nouns(value: Any) -> bool:
    tables = value.values() if isinstance(value, dict) else [None]
    return all(isinstance(table, dict) and all(map(_is_texts, table.values())) for table in tables)


def are_defaults(value: Any) -> bool:
    """Whether a value read from a file is what `DEFAULTS` allows."""
    return isinstance(value, dict) and all(name in DEFAULTS and DEFAULTS[name](value[name]) for name in value)


_FITS: dict[str, Callable[[Any], bool]] = {"nouns": _are_nouns, "defaults": are_defaults}


# from the world

KINDS = {"animal": "animals", "person": "people", "thing": "things", "hat": "hats", "vehicle": "vehicles"}
# Taken first in examples, which should show what most people look for.
_LIKED = ("cat", "banana", "dog", "crown", "monkey", "bicycle", "apple", "table", "rabbit", "bucket", "bird", "car")


def of_world(world: "World", defaults: Mapping[str, Any] | None = None) -> Vocabulary:
    """The vocabulary of a model that has learnt a world, or a part of it, with the defaults of its calls."""
    from ldm.data.emoji_scenes.lexicon import words
    from ldm.data.emoji_scenes.nouns import NOUNS
    from ldm.data.emoji_scenes.vocabulary import COUNTS, INVERSES, RELATIONS

    nouns: dict[str, dict[str, tuple[str, ...]]] = {}
    for noun in (NOUNS[name] for name in world.nouns):
        nouns.setdefault(KINDS.get(noun.kind, noun.kind), {})[noun.name] = noun.synonyms
    return Vocabulary(
        words=words(world),
        nouns=nouns,
        colours=world.colours,
        places=world.places,
        relations=tuple(name for name in RELATIONS if INVERSES.get(name, name) in world.recipes),
        styles=world.styles,
        sizes=world.sizes,
        counts=tuple(COUNTS.values()) if "counted" in world.recipes else (),
        examples=tuple(_examples(world)),
        defaults=dict(defaults or {}),
    )


def _examples(world: "World") -> Iterator[str]:
    """A prompt for each kind of scene, every other one somewhere."""
    from ldm.data.emoji_scenes.nouns import plural
    from ldm.data.emoji_scenes.phrases import PHRASES, PLACES
    from ldm.data.emoji_scenes.world import RECIPES

    used: set[str] = set()
    for i, relation in enumerate(name for name in PHRASES if name in world.recipes):
        a, b = (_pick(world, RECIPES[relation][1][end], used) for end in (0, -1))
        place = world.places[i // 2 % len(world.places)] if i % 2 and world.places else ""
        yield PHRASES[relation][0].format(a=_one(a), b=_one(b)) + (f" {PLACES[place][0]}" if place else "")
    if "counted" in world.recipes:
        yield f"three {plural(_pick(world, 'countable', used))} on a {world.colours[0]} background"
    if "single" in world.recipes:
        yield _one(_pick(world, "countable", used), f"{world.sizes[-1]} {world.colours[-1]} ")
    if "sign" in world.recipes:
        yield f'{_one(_pick(world, "a", used))} holding a sign that says "HELLO"'


def _pick(world: "World", role: str, used: set[str]) -> str:
    """A noun of a role, if possible one that no example has yet."""
    place = {name: i for i, name in enumerate(_LIKED)}
    noun = min(world.nouns_for(role), key=lambda name: (name in used, place.get(name, len(place))))
    used.add(noun)
    return noun


def _one(noun: str, adjectives: str = "") -> str:
    from ldm.data.emoji_scenes.nouns import UNCOUNTED

    text = f"{adjectives}{noun}"
    if noun in UNCOUNTED:
        return text
    return f"an {text}" if text.startswith(("a", "e", "i", "o", "umbrella", "hourglass")) else f"a {text}"
