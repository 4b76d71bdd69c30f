"""What is said of a picture this time: one of its captions, its tags shuffled, or nothing."""

from collections.abc import Sequence

from configs.finetuning import DataConfig
from ldm.data.emoji_scenes.keyed import Keyed
from ldm.data.pictures.item import Item
from ldm.data.pictures.shuffled import shuffled


def caption(item: Item, config: DataConfig, seed: int, position: int) -> str:
    """The caption at a position. Every choice is drawn for itself from (its purpose, seed, position)."""
    if not item.captions or Keyed("caption dropout", seed, position).chance(config.caption_dropout):
        return ""
    text = Keyed("caption choice", seed, position).pick(item.captions)
    return _shuffled_tags(text, config, seed, position) if config.shuffle_tags else text


def _shuffled_tags(text: str, config: DataConfig, seed: int, position: int) -> str:
    tags = [tag for one in text.split(config.tag_separator) if (tag := one.strip())]
    kept, others = tags[: config.keep_tags], tags[config.keep_tags :]
    order = shuffled(len(others), "tag shuffle", seed, position)
    return joined(kept + [others[index] for index in order], config.tag_separator)


def joined(tags: Sequence[str], separator: str) -> str:
    """Tags -> a caption."""
    return f"{separator.rstrip()} ".join(tags)
