"""Files of pictures on disk: which are pictures, which text belongs to one, whose owners opted out."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from ldm.data.pictures.report import BAD_CAPTION, NO_PICTURE, Findings

READ = ".jpg .jpeg .jfif .png .apng .webp .gif .tif .tiff .bmp .avif .jp2 .ppm .pgm .qoi"
NOT_READ = ".heic .heif .jxl"  # found all the same, so that the report says so
PICTURES = tuple(f"{READ} {NOT_READ}".split())
CAPTIONS = (".txt", ".caption")
OPTOUT = "optout.txt"


def is_picture(name: str) -> bool:
    """Whether a file claims to be a picture, by its name."""
    return os.path.splitext(name)[1].lower() in PICTURES


def walk(root: Path) -> list[Path]:
    """All files beneath a folder in the order of their paths, but hidden ones and what macOS leaves in archives."""
    found = []
    for folder, inner, names in os.walk(root):
        inner[:] = [name for name in inner if not hidden(name)]
        found += [Path(folder, name) for name in names if not hidden(name)]
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def hidden(name: str) -> bool:
    """Whether a file or folder of this name is nobody's picture."""
    return name.startswith(".") or name == "__MACOSX"


def text_of(path: Path, findings: Findings) -> tuple[str, ...]:
    """The caption beside a picture, () without one or for an empty one."""
    beside = next((file for suffix in CAPTIONS if (file := path.with_suffix(suffix)).is_file()), None)
    if beside is None:
        return ()
    try:
        text = beside.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        findings.problem(BAD_CAPTION, f"{beside}: {error}")
        return ()
    return (text,) if text else ()


class OptOuts:
    """Pictures that `optout.txt` names, one a line, by their paths from the file's own folder; # begins a comment."""

    def __init__(self, lists: Iterable[Path]) -> None:
        self.named = {place: f"{file}: {line}" for file in lists for line, place in _entries(file)}
        self.met: set[str] = set()

    def __contains__(self, path: Path) -> bool:
        place = os.path.abspath(path)
        self.met.add(place)
        return place in self.named

    def tell_unmet(self, findings: Findings) -> None:
        """Lines that name no picture are a problem: someone's wish might not be met."""
        for place, line in self.named.items():
            if place not in self.met and not os.path.exists(place):
                findings.problem(NO_PICTURE, line)


def _entries(file: Path) -> Iterator[tuple[str, str]]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{file} cannot be read, whose opt-outs are to be honoured: save it as UTF-8 ({error})"
        ) from error
    for line in lines:
        name = line.split("#")[0].strip()
        if name:
            yield line, os.path.abspath(file.parent / name)


class Hints:
    """Control images in a folder of their own, each under its picture's name with any ending."""

    def __init__(self, folder: str) -> None:
        self.root = Path(folder).expanduser()
        if not self.root.is_dir():
            raise ValueError(f"hints = {folder!r} is not a folder: name that of the control images")
        found = [path.relative_to(self.root) for path in walk(self.root) if is_picture(path.name)]
        self.places = {path.with_suffix("").as_posix(): path for path in found}

    def find(self, name: str) -> Path | None:
        """Of the picture with this path within its source."""
        place = self.places.get(os.path.splitext(name)[0])
        return None if place is None else self.root / place
