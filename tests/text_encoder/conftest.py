import json
import random
from functools import cache
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from text_encoder.tokenizer import clip_vocabulary

START, END = "<|startoftext|>", "<|endoftext|>"


def flagged(content, **flags):
    plain = {"content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    return {**plain, **flags}


ENDS = {"bos_token": flagged(START), "eos_token": flagged(END), "unk_token": flagged(END)}
TYPED_ENDS = {role: {"__type": "AddedToken", **token} for role, token in ENDS.items()}
CONFIG = {"add_prefix_space": False, "do_lower_case": True, "errors": "replace", "model_max_length": 77}

# The settings files of the folders people have, by family, in the spelling of the version that wrote them.
FAMILIES = {
    "bare": {},
    "sd1": {
        "tokenizer_config.json": {**CONFIG, **TYPED_ENDS, "pad_token": END, "tokenizer_class": "CLIPTokenizer"},
        "special_tokens_map.json": {**ENDS, "pad_token": END},
    },
    "sd2": {
        "tokenizer_config.json": {**CONFIG, **TYPED_ENDS, "pad_token": END, "tokenizer_class": "CLIPTokenizer"},
        "special_tokens_map.json": {**ENDS, "pad_token": "!"},
    },
    "sdxl_2": {
        "tokenizer_config.json": {
            **CONFIG,
            "added_tokens_decoder": {
                "0": flagged("!", normalized=False, special=True),
                "49406": flagged(START, special=True),
                "49407": flagged(END, special=True),
            },
            "bos_token": START,
            "eos_token": END,
            "unk_token": END,
            "pad_token": "!",
            "tokenizer_class": "CLIPTokenizer",
        },
        "special_tokens_map.json": {**ENDS, "pad_token": "!"},
    },
    "concepts": {
        "tokenizer_config.json": {**CONFIG, **TYPED_ENDS, "pad_token": "<pad>", "model_max_length": 10**30},
        "special_tokens_map.json": {**ENDS, "pad_token": "<pad>", "additional_special_tokens": ["<s2>", "<s1>"]},
        "added_tokens.json": {"<Cat-Toy>": 49408, "<s1>": 49409, "plain word": 49410},
    },
}


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory):
    """A function: family -> its tokenizer folder with vocab.json and merges.txt."""
    root = tmp_path_factory.mktemp("tokenizers")

    def folder(family: str) -> Path:
        path = root / family
        if not path.exists():
            path.mkdir()
            vocabulary, merges = clip_vocabulary()
            (path / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
            lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
            (path / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
            for name, settings in FAMILIES[family].items():
                (path / name).write_text(json.dumps(settings), encoding="utf-8")
        return path

    return folder


@pytest.fixture(scope="session")
def oracle_tokenizer(family_folder):
    """A function: family -> transformers' tokenizer of its folder, not to be changed."""
    return cache(lambda family: CLIPTokenizer.from_pretrained(family_folder(family)))


NASTY = [
    "",
    " ",
    "\n\t \r",
    "a photo of a cat",
    "hello!",
    "hello !",
    "!!! wow!!",
    "Don't we've I'll he'd it's I'm you're 'tis O'Neil's 'S 'T",
    "2 cats, 1234567890 dogs; 3.14159 1/2 ² ½ Ⅷ ١٢٣",
    "naïve café ÀÉÎÕÜ e\u0301 n\u0303 ÿ ﬁ ﬀ ẞ ß İstanbul ΣΊΣΥΦΟΣ ǅ",
    "🙂🙂 👩‍👩‍👧‍👦 🇩🇪 👍🏽 ❤️ ☃",
    "日本語の猫 中文 汉字，标点。 한국어 ㄱㄴ",
    "Привет мир שלום مرحبا हिन्दी ไทย",
    "a\x00b\x01c\x7f\x80\x85d\xa0e\xad f\u200bg\u2028h\u3000i\ufeff",
    f"before {END} after {START}{END}",
    f"{END.upper()} <|endoftext |> <|EndOfText|> <|startoftext|",
    "tabs\tand\nnewlines\r\nand   runs \v\f of space  ",
    "snake_case kebab-case a/b\\c (x:1.3) [y] {z} <lora:name:1> @user #tag $5 50% a&b a+b=c ~`^|\"'",
    "supercalifragilisticexpialidocious" * 3,
    "x" * 300,
    "a, " * 90,
    "<Cat-Toy> <cat-toy> a<s1>b <s2> plain words PLAIN WORD plain wordy <pad> plain \n\t word",
    "\U0001f9ff\U00010348\U000e0041\U0010ffff\ue000\ufffd",
]


@pytest.fixture(scope="session")
def corpus():
    """Hand-picked texts, and 250 random ones that mix scripts, marks, controls and special tokens."""
    draw = random.Random(7)
    pools = [
        [chr(code) for code in range(1, 0x250)],
        [chr(code) for code in range(0x300, 0x700)],
        [chr(draw.randrange(0x700, 0xD800)) for _ in range(500)],
        [chr(draw.randrange(0xE000, 0x110000)) for _ in range(500)],
        list(" \t\n,.!?'()[]:0123456789"),
        ["cat ", "Photo", "'s", "'LL", "!", END, START, END.upper(), "<s1>", "  "],
    ]
    mixed = ["".join(draw.choice(draw.choice(pools)) for _ in range(draw.randrange(1, 30))) for _ in range(250)]
    return NASTY + mixed
