"""The text encoder's stage: scenes with their captions, and with captions that are nearly right."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor, nn

from configs.architecture import TextEncoderConfig
from configs.training import RunConfig
from ldm.data.emoji_scenes import EmojiScenes, render
from ldm.data.emoji_scenes.grammar import Teller
from ldm.data.emoji_scenes.keyed import Keyed
from ldm.data.emoji_scenes.near_misses import negatives
from ldm.data.emoji_scenes.nouns import UNCOUNTED
from ldm.data.emoji_scenes.plan import Plan
from ldm.data.emoji_scenes.scene import Scene
from ldm.data.emoji_scenes.vocabulary import SIGN_WORDS
from ldm.data.emoji_scenes.world import World
from ldm.training.captions import token_ids, unseen
from ldm.training.contrastive import ContrastiveModel
from ldm.training.stage import Batch, Player
from text_encoder.tokenizer import Tokenizer
from vae.pixels import from_pil

_TRIES = 8  # exchanges of a noun that are tried for each false caption missing
# Relation -> role letters of its subject and object, as in `sampling.py`.
_ROLES = {"holding": "ah", "wearing": "tw", "riding": "am", "on top of": ("", "s"), "inside": ("", "c")}


class TextTraining:
    """The stage as the trainer runs it. Raises ValueError from the networks where `run.text` does not fit together."""

    def __init__(self, run: RunConfig, scenes: EmojiScenes, tokenizer: Tokenizer):
        self.config, self.scenes, self.tokenizer = run.text, scenes, tokenizer
        self.loop = run.text.loop
        self.module = ContrastiveModel(text_config(run, tokenizer), run.text.image_channels)
        self.players = [Player("text", self.module)]

    def example(self, index: int) -> Batch:
        """image (3, s, s) in [-1, 1]; ids (1 + negatives, n) int64, the true caption first; known: which rows count."""
        scene, rows = self.scenes[index], 1 + self.config.negatives
        captions = [scene.caption, *(text for _, text in self.false_captions(self.scenes, index, scene))]
        known = torch.arange(rows) < len(captions)
        ids = [token_ids(self.tokenizer, text) for text in captions + [""] * (rows - len(captions))]
        return {"image": self._picture(scene), "ids": torch.tensor(ids), "known": known}

    def samples(self, averaged: Mapping[str, nn.Module]) -> Image.Image | None:
        """Nothing to look at."""
        return None

    def false_captions(self, scenes: EmojiScenes, index: int, scene: Scene) -> list[tuple[str, str]]:
        """Up to `negatives` captions of a scene's near-misses, each with the kind of its one wrong fact.

        They are told as the true one is, so that nothing else differs; what is held out is not told.
        """
        key = (scenes.seed, scenes.split, scenes.fate, index)
        loose = scenes.split == "train"
        found: list[tuple[str, str]] = []
        seen = {_meaning(scene.caption, Teller(key, scenes.held, loose=loose))}
        for plan in _false_plans(scene.plan, Keyed("false captions", *key), scenes, self.config.negatives):
            if len(found) == self.config.negatives:
                break
            teller = Teller(key, scenes.held, loose=loose)
            text = teller.tell(plan)
            meaning = _meaning(text, teller)
            if meaning not in seen:
                seen.add(meaning)
                found.append((_kind(scene.plan, plan), text))
        return found

    @torch.no_grad()
    def measure(self, model: ContrastiveModel, count: int = 256) -> dict[str, float]:
        """Shares told right on scenes that training does not show, of training's combinations.

        "to_text", "to_image": the right one among `count`; by kind of wrong fact ("swaps", "nouns", "relations",
        "colours", "counts", "words"): the true caption against a false one.
        """
        scenes = unseen(self.scenes)
        pairs, hard = [], dict[str, list[bool]]()
        for index in range(count):
            scene = scenes[index]
            wrong = self.false_captions(scenes, index, scene)
            told = [token_ids(self.tokenizer, text) for text in (scene.caption, *(text for _, text in wrong))]
            text = model.embed_text(torch.tensor(told, device=model.text.device))  # (1 + k, d)
            image = model.embed_images(self._picture(scene)[None].to(text.device))  # (1, d)
            for (kind, _), score in zip(wrong, text[1:] @ image[0], strict=True):
                hard.setdefault(kind, []).append(bool(score < text[0] @ image[0]))
            pairs.append(torch.stack([image[0], text[0]]))
        images, texts = torch.stack(pairs, dim=1)  # (count, d) each
        own = torch.arange(count, device=images.device)
        scores = images @ texts.T
        found = {"to_text": _right(scores, own), "to_image": _right(scores.T, own)}
        return found | {kind: sum(good) / len(good) for kind, good in sorted(hard.items())}

    def _picture(self, scene: Scene) -> Tensor:
        return from_pil([render(scene, self.config.image_size)])[0]


def text_config(run: RunConfig, tokenizer: Tokenizer) -> TextEncoderConfig:
    """The run's text encoder with the tokenizer's size and special ids."""
    ids = {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos, "pad_token_id": tokenizer.pad}
    config = replace(run.text.model, **ids)  # type: ignore[arg-type]
    return replace(config, vocabulary=len(tokenizer), max_length=tokenizer.max_length)


def _right(scores: Tensor, own: Tensor) -> float:
    """The share of rows whose largest entry is their own."""
    return (scores.argmax(dim=1) == own).float().mean().item()


def _meaning(caption: str, teller: Teller) -> str:
    """What tells captions apart; a bare list of nouns says nothing by its order."""
    return ", ".join(sorted(caption.split(", "))) if teller.list else caption


def _false_plans(plan: Plan, draw: Keyed, scenes: EmojiScenes, count: int) -> Iterator[Plan]:
    """The world's near-misses in any order, then other nouns."""
    near = negatives(plan, draw, scenes.held, scenes.world)
    while near:
        yield near.pop(near.index(draw.pick(near)))
    for _ in range(_TRIES * count):
        other = _other_noun(plan, draw, scenes.world)
        if other is not None and scenes.held.allowed(other):
            yield other


def _other_noun(plan: Plan, draw: Keyed, world: World) -> Plan | None:
    """One noun exchanged for another that can do the same, on a sign the word; None where there is none."""
    number = draw.pick(range(len(plan.things)))
    thing = plan.things[number]
    if thing.word:
        changed = replace(thing, word=draw.pick([word for word in SIGN_WORDS if word != thing.word]))
    else:
        links = [link for link in plan.links if link.relation in _ROLES and number in (link.subject, link.object)]
        roles = {_ROLES[link.relation][number == link.object] for link in links}
        taken = {other.noun for other in plan.things} | (UNCOUNTED if thing.count > 1 else set())
        options = [noun for noun in world.nouns_for("".join(sorted(roles)) or "any") if noun not in taken]
        if not options:
            return None
        changed = replace(thing, noun=draw.pick(options))
    return replace(plan, things=(*plan.things[:number], changed, *plan.things[number + 1 :]))


def _kind(plan: Plan, other: Plan) -> str:
    """Which fact of a plan another one has wrong."""
    if plan.links != other.links:
        return "relations"
    for kind in ("colour", "count", "word"):
        if [getattr(thing, kind) for thing in plan.things] != [getattr(thing, kind) for thing in other.things]:
            return f"{kind}s"
    swapped = {thing.noun for thing in plan.things} == {thing.noun for thing in other.things}
    return "swaps" if swapped else "nouns"
