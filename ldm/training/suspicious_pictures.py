"""What looks like a mistake in the pictures of a run and what is said of them: one sentence each, with what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator

from configs.finetuning import FineTuneConfig
from ldm.checkpoint.files import listed
from ldm.data.pictures.report import DUPLICATE, NO_CAPTION, SAME
from ldm.training.reading import MOST, chunks_of, encoders_of
from ldm.training.ready import Ready
from ldm.vocabulary import split_words

FEW = 30  # pictures that teach one thing, which then needs a name
CLIP, COMMON = 49_408, 40_000  # its tokens are in the order of how often they were met; "sks" is the 48136th
ENLARGED = 2.0
_NAMES = 5  # in a sentence
_PLAIN = frozenset(split_words("a an the of in on at with and to is it its by for from this that picture photo image"))
_SIDES = re.compile(r"\b(left|right|says|reads|text)\b|\"", re.IGNORECASE)


def own_batch(config: FineTuneConfig) -> int:
    """Of one's own pictures, without the prior's."""
    return config.loop.batch // (2 if config.prior.prompts else 1)


def word_of(config: FineTuneConfig) -> str:
    """What the thing that is learned is called by, "" if by no word of its own."""
    return config.inversion.word.strip() if config.mode == "inversion" else config.data.trigger.strip()


def says(text: str, word: str) -> bool:
    """Whether a word stands in a text by itself."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


def missing(config: FineTuneConfig, ready: Ready) -> Iterator[str]:
    """Pictures of which nothing is said."""
    names = ready.report.problems.get(NO_CAPTION, ())
    if config.mode == "autoencoder" or not names:
        return
    if not config.data.trigger:
        yield (
            f"{len(names)} of {ready.report.kept} pictures have no caption ({listed(list(names), _NAMES)}): add "
            "NAME.txt beside them, a caption to their source, or data.trigger"
        )
    elif len(names) < ready.report.kept:
        yield (
            f"{len(names)} of {ready.report.kept} pictures have no caption but the trigger, unlike the others "
            f"({listed(list(names), _NAMES)}): what is on them is all taken for {config.data.trigger!r}"
        )


def same(config: FineTuneConfig, ready: Ready) -> Iterator[str]:
    """One caption for everything."""
    meant = config.data.trigger or config.prior.prompts or config.mode in ("inversion", "autoencoder")
    if SAME in ready.report.problems and not meant:
        yield (
            f"all pictures have the caption {ready.report.problems[SAME][0][:80]!r}: say what is different in each, or "
            "set data.trigger, or prior.prompts to keep what else it means"
        )


def duplicates(config: FineTuneConfig, ready: Ready) -> Iterator[str]:
    """Files of the same content."""
    if names := ready.report.problems.get(DUPLICATE):
        yield (
            f"{len(names)} pictures are there twice ({listed(list(names), _NAMES)}), and learned twice as much: remove "
            "them, or say so by repeats"
        )


def trigger(config: FineTuneConfig, ready: Ready) -> Iterator[str]:
    """The word for what is learned: there is none, or it means something already."""
    texts, word = _captions(ready), word_of(config)
    if config.mode == "inversion":
        if without := sum(not says(text, word) for text in texts):
            yield (
                f"{without} of {len(texts)} captions lack the new word {word!r}, which learns nothing from them: write "
                "it into the captions, or set data.trigger to it"
            )
    elif config.mode in ("full", "lora") and word:
        if known := [one for one in word.split() if _is_known(one, ready)]:
            yield (
                f"data.trigger = {word!r}: {listed(known, _NAMES)} means something to the model already, which will "
                "fade; take a rare word, such as sks"
            )
    elif config.mode in ("full", "lora") and not config.prior.prompts:
        few, many = len(ready.pictures.items) <= FEW, len(set(texts)) > 1
        if few and many and not _shared(texts):
            yield (
                "the captions have no word in common and data.trigger is empty: what the pictures share has no name to "
                "be called by"
            )


def prior(config: FineTuneConfig, ready: Ready) -> Iterator[str]:
    """Captions that say no more than the prior's: both kinds of pictures would be one to the model."""
    if not config.prior.prompts or config.data.trigger:
        return
    told = [frozenset(split_words(prompt)) for prompt in config.prior.prompts]
    if any(frozenset(split_words(text)) <= one for text in _captions(ready) for one in told):
        yield (
            "captions say no more than prior.prompts do, so one's own pictures have no name: "
            'add a rare word for them, as in "a sks dog", or data.trigger'
        )


def vocabulary(config: FineTuneConfig, ready: Ready) -> Iterator[str]:
    """Words that the embedded model, or another that lists its words, has never seen."""
    known = ready.model.vocabulary
    if known is None or config.mode == "autoencoder":
        return
    texts = _captions(ready)
    taught = _shared(texts) | frozenset(split_words(word_of(config)))
    found = dict.fromkeys(word for text in texts for word in known.unknown(text) if word not in taught)
    if found:
        yield (
            f"the model has never seen the words {listed(list(found), _NAMES)} of the captions: take words from `ldm "
            "vocabulary`, but for what it is to learn"
        )


def long(config: FineTuneConfig, ready: Ready) -> Iterator[str]:
    """Captions of more than a chunk."""
    if config.mode == "autoencoder":
        return
    encoder = ready.model.text_encoder
    size = encoders_of(encoder)[0].length - 2
    chunks = {text: chunks_of(encoder, text) for text in set(_captions(ready))}
    if cut := [text for text, count in chunks.items() if count > MOST]:
        yield f"{len(cut)} captions have over {MOST * size} tokens and are cut ({cut[0][:40]!r}...): make them shorter"
    elif several := [text for text, count in chunks.items() if count > 1]:
        yield (
            f"{len(several)} captions have over {size} tokens ({several[0][:40]!r}...): all examples take as much "
            "text, which costs time; make them shorter unless all of it matters"
        )


def tags(config: FineTuneConfig, ready: Ready) -> Iterator[str]:
    """Shuffling, or mirroring, what cannot be."""
    texts = _captions(ready)
    if config.data.shuffle_tags and texts and not any(config.data.tag_separator in text for text in texts):
        yield f"data.shuffle_tags has nothing to shuffle: no caption has a {config.data.tag_separator!r}"
    if config.data.flip and (sided := [text for text in texts if _SIDES.search(text)]):
        yield (
            f"data.flip mirrors pictures, and {len(sided)} captions tell left from right or cite text "
            f"({sided[0][:40]!r}): set it to false"
        )


def batches(config: FineTuneConfig, ready: Ready) -> Iterator[str]:
    """Batches that repeat pictures."""
    pictures, batch = ready.pictures, own_batch(config)
    count = sum(item.repeats for item in pictures.items)
    few = {shape: count for shape, count in pictures.shapes().items() if count < batch}
    if batch > count:
        yield f"a batch takes {batch} pictures and there are {count}, so it has some twice: try loop.batch = {count}"
    elif len(few) > 1 and len(pictures) >= 1.5 * count:
        shapes = ", ".join(f"{w} x {h}: {count}" for (w, h), count in few.items())
        yield (
            f"{len(few)} shapes have fewer pictures than a batch ({shapes}), which are met more often than others: set "
            "data.buckets = false, a larger data.bucket_step, or a smaller loop.batch"
        )


def crops(config: FineTuneConfig, ready: Ready) -> Iterator[str]:
    """Random crops, which no cache can hold, and pictures that become blurred."""
    pictures = ready.pictures
    if config.data.crop == "random" and config.data.cache and config.mode != "autoencoder":
        yield (
            'data.crop = "random" has every picture encoded anew each time, cache or not: "center" is much faster; '
            "data.cache = false says that it is meant"
        )
    placed = zip(pictures.items, pictures.buckets, strict=True)
    blurred = [item.name for item, (w, h) in placed if max(w / item.size[0], h / item.size[1]) > ENLARGED]
    if blurred:
        yield (
            f"{len(blurred)} pictures are enlarged more than {ENLARGED:g} times ({listed(blurred, _NAMES)}), and their "
            "blur is learned: leave them out, or set data.enlarge = false"
        )


CHECKS = (missing, same, duplicates, trigger, prior, vocabulary, long, tags, batches, crops)


def _captions(ready: Ready) -> list[str]:
    """Of one's own pictures, all of them."""
    both = [*ready.pictures.items, *(ready.pictures.held_out.items if ready.pictures.held_out else ())]
    return [text for item in both for text in item.captions]


def _shared(texts: list[str]) -> frozenset[str]:
    """Words of every text, but those that are in most anyway."""
    every = [frozenset(split_words(text)) for text in texts]
    return frozenset.intersection(*every) - _PLAIN if every else frozenset()


def _is_known(word: str, ready: Ready) -> bool:
    """Whether a word of a trigger has a meaning: the model lists it, or CLIP's tokenizer has met it often."""
    if ready.model.vocabulary is not None:
        return not ready.model.vocabulary.unknown(word)
    tokenizer = encoders_of(ready.model.text_encoder)[0].tokenizer
    tokens = tokenizer.encode(word)
    return len(tokenizer) >= CLIP and len(tokens) == 1 and tokens[0] < COMMON
