"""Captions: a plan told in one of many ways. The way is chosen by chance, the meaning never changes."""

from functools import lru_cache

from ldm.data.emoji_scenes import phrases
from ldm.data.emoji_scenes.keyed import Keyed
from ldm.data.emoji_scenes.nouns import NOUNS, UNCOUNTED, plural
from ldm.data.emoji_scenes.plan import Link, Plan, Thing
from ldm.data.emoji_scenes.splits import HoldOut
from ldm.data.emoji_scenes.vocabulary import COUNTS, SIZE_WORDS, SPATIAL

_AN = frozenset({"hourglass"})
_A = frozenset({"unicorn", "ufo"})


class Teller:
    """Tells plans in words. `fate` chooses the sentences: "train", or the held-out ones of "test", "validation".

    Raises nothing; a list of sentences without any of that fate falls back on the trained ones.
    """

    def __init__(self, key: tuple[object, ...], held: HoldOut, fate: str = "train", *, loose: bool = False) -> None:
        """key: chooses the words; loose: now and then leave out articles, the background or all but the nouns."""
        self.key, self.held, self.fate = key, held, fate
        self.draw = draw = Keyed("caption", *key)
        self.plurals: set[str] = set()  # the noun phrases told so far that go with "are"
        self.terse = loose and draw.chance(0.08)
        self.list = loose and draw.chance(0.03)
        self.silent = loose and draw.chance(0.08)

    def tell(self, plan: Plan) -> str:
        """The caption of a plan, lower case but for the word on a sign."""
        if self.list and all(thing.count == 1 for thing in plan.things):
            return ", ".join(self._name(thing) for thing in plan.things)
        frame, text = self._frame(plan), self._scene(plan)
        verb = "are" if text.startswith(tuple(self.plurals)) else "is"
        return frame.replace("{x}", self._place(plan, text, frame)).replace("{is}", verb)

    def _pick(self, kind: str, key: str, options: tuple[str, ...]) -> str:
        return self.draw.pick(_told(self.held, self.fate, kind, key, options))

    def _frame(self, plan: Plan) -> str:
        if plan.style == "flat" and not self.draw.chance(0.06):
            return self._pick("frame", "", phrases.FRAMES)
        return self._pick("frame", plan.style, phrases.STYLE_FRAMES[plan.style])

    def _place(self, plan: Plan, text: str, frame: str) -> str:
        """The scene with its background, which sometimes comes first."""
        phrase, ground = "", plan.background
        if ground.kind in phrases.PLACES:
            phrase = self.draw.pick(phrases.PLACES[ground.kind])
        elif ground.colour:
            options = phrases.COLOURED if ground.kind == "plain" else phrases.GRADIENT
            phrase = self.draw.pick(options).replace("a {c}", f"{_article(ground.colour)} {ground.colour}")
            phrase = phrase.replace("{c}", ground.colour)
        elif self.draw.chance(0.2):
            phrase = self.draw.pick(phrases.PLAIN)
        if not phrase or self.silent:
            return text
        first = ground.kind in phrases.PLACES and self.draw.chance(0.2) and frame.startswith("{x}")
        return f"{phrase}, {text}" if first else f"{text} {phrase}"

    def _scene(self, plan: Plan) -> str:
        if not plan.links:
            return self._noun_phrase(plan.things[0])
        spatial = next((link for link in plan.links if link.relation in SPATIAL), None)
        if spatial:
            subject, other = self._group(plan, spatial.subject), self._group(plan, spatial.object)
            groups = (bool(_touching(plan, spatial.subject)), bool(_touching(plan, spatial.object)))
            return self._related(spatial, subject, other, groups)
        if len(plan.links) == 1:
            link = plan.links[0]
            subject, other = self._noun_phrase(plan.things[link.subject]), self._noun_phrase(plan.things[link.object])
            return self._related(link, subject, other)
        return self._group(plan, 0)

    def _related(self, link: Link, subject: str, other: str, groups: tuple[bool, bool] = (False, False)) -> str:
        """groups: whether subject and object bring things of their own, which a comma then closes."""
        phrase = self._pick("phrase", link.relation, phrases.PHRASES[link.relation])
        if link.relation == "next to":
            if any(groups) and " and " in phrase:
                phrase = phrases.PHRASES[link.relation][0]
            if self.draw.chance(0.5):
                subject, other, groups = other, subject, groups[::-1]
        first = "{a}" if phrase.index("{a}") < phrase.index("{b}") else "{b}"
        if groups[first == "{b}"] and " and " not in phrase:
            phrase = phrase.replace(f"{first} ", f"{first}, ", 1)
        return phrase.replace("{a}", subject).replace("{b}", other)

    def _group(self, plan: Plan, hub: int) -> str:
        """A thing with all that it holds, wears and rides: "a cat wearing a crown and holding a banana"."""
        links = _touching(plan, hub)
        parts = [
            self._active(link.relation, len(links)).replace("{b}", self._noun_phrase(plan.things[link.object]))
            for link in links
        ]
        head = self._noun_phrase(plan.things[hub])
        return f"{head} {' and '.join(parts)}" if parts else head

    def _active(self, relation: str, parts: int) -> str:
        """What follows the subject, from the phrases that begin with it and end with the object."""
        options = _told(self.held, self.fate, "phrase", relation, phrases.PHRASES[relation])
        active = [text.removeprefix("{a} ") for text in options if text.startswith("{a} ") and text.endswith(" {b}")]
        joined = [text for text in active if parts == 1 or not text.startswith("that ")]
        return self.draw.pick(joined or [phrases.PHRASES[relation][0].removeprefix("{a} ")])

    def _noun_phrase(self, thing: Thing) -> str:
        name = self._name(thing)
        if thing.count > 1:
            number = COUNTS[thing.count] if self.draw.chance(0.85) else str(thing.count)
            text = " ".join(filter(None, (number, self._size(thing), thing.colour, plural(name))))
            self.plurals.add(text)
            return text
        text = " ".join(filter(None, (self._size(thing), thing.colour, name)))
        if name in UNCOUNTED and name.endswith("s"):
            self.plurals.add(text)
        return text if self.terse or name in UNCOUNTED else f"{_article(text)} {text}"

    def _name(self, thing: Thing) -> str:
        """A noun's name for this caption; other nouns beside it do not change it."""
        draw = Keyed("name", *self.key, thing.noun)
        if thing.word:
            return draw.pick(phrases.SIGNS).replace("{w}", thing.word)
        names = NOUNS[thing.noun].names
        usual = thing.count == 1 or not UNCOUNTED & set(names)
        return draw.pick(names[1:]) if len(names) > 1 and usual and draw.chance(0.25) else names[0]

    def _size(self, thing: Thing) -> str:
        return self.draw.pick(SIZE_WORDS[thing.size]) if thing.size else ""


def told_templates() -> list[tuple[str, str, tuple[str, ...]]]:
    """All lists of sentences of which some are held out: kind ("frame", "phrase"), style or relation, the list."""
    frames = [("frame", "", phrases.FRAMES), *(("frame", key, some) for key, some in phrases.STYLE_FRAMES.items())]
    return [*frames, *(("phrase", key, some) for key, some in phrases.PHRASES.items())]


@lru_cache(maxsize=4096)
def _told(held: HoldOut, fate: str, kind: str, key: str, options: tuple[str, ...]) -> tuple[str, ...]:
    """The options of a fate, or the trained ones if none has it."""
    fates = {option: held.template(kind, key, option, options) for option in options}
    chosen = tuple(option for option, one in fates.items() if one == fate)
    return chosen or tuple(option for option, one in fates.items() if one == "train")


def _touching(plan: Plan, hub: int) -> list[Link]:
    return [link for link in plan.links if link.subject == hub and link.relation not in SPATIAL]


def _article(text: str) -> str:
    word = text.split()[0]
    return "an" if word in _AN or (word[0] in "aeiou" and word not in _A) else "a"
