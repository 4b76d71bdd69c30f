"""CLIP's byte-pair tokenizer on the `tokenizers` library alone."""

import copy
import gzip
import json
from collections.abc import Iterable
from importlib.resources import files
from itertools import count, takewhile
from pathlib import Path
from sys import intern
from typing import Any

from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from text_encoder.tokenizer_files import DamagedFile, Merges, content, read_settings, read_vocabulary, special_tokens

START, END = "<|startoftext|>", "<|endoftext|>"
MAX_LENGTH = 77  # where a folder names none
UNLIMITED = 10**6  # transformers writes 1e30 for "no limit"

_DEFAULTS = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class Tokenizer:
    """Text to CLIP's token ids, as transformers' CLIPTokenizer reads the same folder, id for id.

    Text is NFC-normalised, its white space runs become one blank, it is lower-cased and split into words, digits and
    punctuation; each is merged from bytes. Special tokens match inside the text: where "!" is the padding token (SD 2,
    second tokenizer of SDXL), every "!" becomes its id. Where `word`, `word_1`, `word_2`, ... are added tokens (a
    textual inversion of several vectors), `word` alone stands for all of them, as in diffusers' pipelines.
    """

    def __init__(self, vocabulary: dict[str, int], merges: Merges, settings: dict[str, Any]):
        """`settings` are the entries of a `tokenizer_config.json`, all optional."""
        roles: dict[str, Any] = {role: settings.get(role) or default for role, default in _DEFAULTS.items()}
        self._backend = _backend(vocabulary, merges, content(roles["unk_token"]))
        self._backend.add_tokens(special_tokens({**settings, **roles}))
        self._roles = {role: content(token) for role, token in roles.items()}
        self.bos, self.eos, self.pad = (self._id(self._roles[role]) for role in ("bos_token", "eos_token", "pad_token"))
        self._backend.post_processor = processors.RobertaProcessing(
            (self._roles["eos_token"], self.eos),
            (self._roles["bos_token"], self.bos),
            trim_offsets=False,
            add_prefix_space=False,
        )
        limit = settings.get("model_max_length") or settings.get("max_len") or MAX_LENGTH
        self.max_length = int(limit) if limit < UNLIMITED else MAX_LENGTH
        self.comma = self.token_id(",</w>")  # None in a vocabulary without commas
        self._followers = _followers(self._backend)

    @classmethod
    def clip(cls, pad: str = END) -> "Tokenizer":
        """CLIP's own 49,408 tokens, from the package; `pad` is "!" for OpenCLIP's encoders (SD 2, SDXL's second)."""
        vocabulary, merges = clip_vocabulary()
        ends = {role: {"content": token, "normalized": True, "special": True} for role, token in _DEFAULTS.items()}
        return cls(vocabulary, merges, {**ends, "pad_token": pad, "model_max_length": MAX_LENGTH})

    @classmethod
    def from_folder(cls, folder: str | Path) -> "Tokenizer":
        """Reads `tokenizer.json`, or `vocab.json` with `merges.txt`; padding and truncation stored there are ignored.

        FileNotFoundError if neither is there, ValueError if a file is damaged or holds another kind of tokenizer.
        """
        folder = Path(folder)
        try:
            return cls(*read_vocabulary(folder), read_settings(folder))
        except (OSError, DamagedFile):
            raise
        except Exception as error:  # as bare as this from the Rust library
            raise ValueError(
                f"the tokenizer files in {folder} do not fit together ({error}); download the folder again"
            ) from error

    def encode(self, text: str) -> list[int]:
        """Token ids without start and end, of any number. ValueError for text that no UTF-8 can hold."""
        try:
            ids = self._backend.encode(text, add_special_tokens=False).ids
        except TypeError as error:
            raise ValueError(f"{text!r} is not text that UTF-8 can hold; remove lone surrogates") from error
        return [each for index in ids for each in (index, *self._followers.get(index, ()))]

    @property
    def vocabulary(self) -> dict[str, int]:
        """Every token with its id, added ones too."""
        return dict(self._backend.get_vocab())

    def token_id(self, token: str) -> int | None:
        """The id of a token by its exact spelling in the vocabulary, None if there is none."""
        index: int | None = self._backend.token_to_id(token)
        return index

    def with_words(self, words: Iterable[str]) -> "Tokenizer":
        """A copy that reads each of these words, in any case and anywhere in a text, as one token with the next id."""
        other = copy.copy(self)
        other._backend = Backend.from_str(self._backend.to_str())
        other._backend.add_tokens(list(words))
        other._followers = _followers(other._backend)
        return other

    def frame(self, ids: list[int], length: int) -> list[int]:
        """Start, ids, end, and padding up to `length`."""
        assert len(ids) <= length - 2, "prompts are cut into chunks that fit"
        return [self.bos, *ids, self.eos] + [self.pad] * (length - 2 - len(ids))

    def __len__(self) -> int:
        """One more than the highest id."""
        return 1 + max(self.vocabulary.values())

    def save(self, folder: str | Path) -> None:
        """Writes the files from which transformers 5, and 4 with its fast classes, read the same tokenizer."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._backend.save(str(folder / "tokenizer.json"), pretty=False)
        self._backend.model.save(str(folder))  # vocab.json and merges.txt
        added = self._backend.get_added_tokens_decoder()
        config = {
            "add_prefix_space": False,
            "added_tokens_decoder": {str(index): _to_json(token) for index, token in sorted(added.items())},
            "do_lower_case": True,
            "errors": "replace",
            "model_max_length": self.max_length,
            "tokenizer_class": "CLIPTokenizer",
            **self._roles,
        }
        _write_json(folder / "tokenizer_config.json", config)
        _write_json(folder / "special_tokens_map.json", self._roles)

    def _id(self, token: str) -> int:
        index = self.token_id(token)
        assert index is not None, f"special token {token!r} was added"
        return index


def clip_vocabulary() -> tuple[dict[str, int], Merges]:
    """CLIP's tokens with their ids, and its merges, from the shipped list (see the LICENSE beside it)."""
    packed = (files("text_encoder") / "clip_vocabulary" / "merges.txt.gz").read_bytes()
    parts = (line.split(" ") for line in gzip.decompress(packed).decode().splitlines())
    merges = [(intern(left), intern(right)) for left, right in parts]  # most are tokens too, and often met
    tokens = [*byte_tokens(), *(intern(a + b) for a, b in merges), START, END]
    return {token: index for index, token in enumerate(tokens)}, merges


def byte_tokens() -> list[str]:
    """CLIP's first 512 tokens: every byte inside a word, and every byte that ends one.

    The characters are GPT-2's: printable Latin-1 bytes stand for themselves, the others follow from U+0100.
    """
    printable = [chr(byte) for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
    symbols = printable + [chr(256 + index) for index in range(256 - len(printable))]
    return symbols + [f"{symbol}</w>" for symbol in symbols]


def _backend(vocabulary: dict[str, int], merges: Merges, unknown: str) -> Backend:
    model = BPE(vocabulary, list(merges), unk_token=unknown, end_of_word_suffix="</w>", continuing_subword_prefix="")
    backend = Backend(model)
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def _followers(backend: Backend) -> dict[int, list[int]]:
    """For each added token the ids of those that are read behind it: of `word_1`, `word_2`, ... behind `word`."""
    ids = {token.content: index for index, token in backend.get_added_tokens_decoder().items()}
    followers = {}
    for word, index in ids.items():
        names = takewhile(ids.__contains__, (f"{word}_{n}" for n in count(1)))
        followers[index] = [ids[name] for name in names]
    return followers


def _to_json(token: AddedToken) -> dict[str, Any]:
    return {
        "content": token.content,
        "lstrip": token.lstrip,
        "normalized": token.normalized,
        "rstrip": token.rstrip,
        "single_word": token.single_word,
        "special": token.special,
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
