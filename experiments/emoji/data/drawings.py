"""Four freely licensed drawings of the same emoji, as SVGs by style and code points.

    twemoji     Twemoji 15                                               CC-BY 4.0
    noto        Noto Emoji of Google's; it has no flags of countries     Apache-2.0
    fluent      Fluent Emoji of Microsoft's, the flat ones: the coloured and the 3D ones are the same drawings     MIT
    emojitwo    EmojiOne 2, which EmojiTwo goes on with                  CC-BY 4.0

Keys are code points in hexadecimal joined by "-", without the variation selector (fe0f), which each set writes where it likes.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from experiments.emoji.data import packages

STYLES = ("twemoji", "noto", "fluent", "emojitwo")
PACKAGES = dict(zip(STYLES, (packages.TWEMOJI, packages.NOTO, packages.FLUENT, packages.EMOJITWO)))

# EmojiOne's names where they are neither today's nor those of the table of aliases.  Left out are its bare digits and letters,
# and a pistol that is a weapon, which everybody else draws as a toy.
RENAMED = {
    "a-button": "1f170", "ab-button": "1f18e", "b-button": "1f171", "o-button": "1f17e", "up-text-button": "1f199",
    "blond-haired-person": "1f471", "bride-with-veil": "1f470", "man-with-chinese-cap": "1f472", "robot-face": "1f916",
    "man-in-suit-levitating": "1f574", "man-and-woman-holding-hands": "1f46b", "two-men-holding-hands": "1f46c",
    "two-women-holding-hands": "1f46d", "cat-face-with-tears-of-joy": "1f639", "cat-face-with-wry-smile": "1f63c",
    "crying-cat-face": "1f63f", "grinning-cat-face": "1f63a", "grinning-cat-face-with-smiling-eyes": "1f638",
    "kissing-cat-face": "1f63d", "pouting-cat-face": "1f63e", "smiling-cat-face-with-heart-eyes": "1f63b",
    "weary-cat-face": "1f640", "direct-hit": "1f3af", "dizzy-face": "1f635", "hugging-face": "1f917", "pouting-face": "1f621",
    "exclamation-mark": "2757", "question-mark": "2753", "heavy-heart-exclamation": "2763", "keycap-asterisk": "2a-20e3",
    "keycap-pound": "23-20e3", "flag-for-black-flag": "1f3f4", "flag-for-chequered-flag": "1f3c1",
    "flag-for-crossed-flags": "1f38c", "flag-for-rainbow-flag": "1f3f3-200d-1f308", "flag-for-triangular-flag": "1f6a9",
    "flag-for-white-flag": "1f3f3",
}  # fmt: skip
TONES = {"light": "1f3fb", "medium-light": "1f3fc", "medium": "1f3fd", "medium-dark": "1f3fe", "dark": "1f3ff"}
_TONED = re.compile(rf"^(.+?)-({'|'.join(sorted(TONES, key=len, reverse=True))})-skin-tone$")


def normalised(key: str) -> str:
    """Code points as the keys have them: small letters, no leading zeros, no fe0f."""
    points = [point.lstrip("0") for point in key.lower().split("-")]
    return "-".join(point for point in points if point != "fe0f")


def key_of(character: str) -> str:
    """The key of an emoji as it is typed."""
    return "-".join(f"{ord(c):x}" for c in character if c != "\ufe0f")


def read(style: str, tarball: Path, icons: Mapping[str, str]) -> dict[str, str]:
    """Key -> SVG of one style.  icons: the key of each icon's name, for the one package that tells no code points."""
    if style in ("twemoji", "fluent"):
        files = packages.read(tarball, lambda name: name.endswith(".svg"))
        keys = [normalised(PurePosixPath(name).stem) for name in files]
        return dict(zip(map(_untangled, keys) if style == "fluent" else keys, map(bytes.decode, files.values())))
    files = packages.read(tarball, lambda name: name in ("icons.json", "chars.json"))
    sheet = json.loads(files["icons.json"])
    named = icons if style == "emojitwo" else {name: key for key, name in json.loads(files["chars.json"]).items()}
    return {normalised(key): _svg(sheet, name) for name, key in named.items()}


def icon_keys(tarball: Path, keys: Mapping[str, str]) -> dict[str, str]:
    """EmojiOne's icons by key.  keys: of the slugs of today's names, see `slug`."""
    sheet = json.loads(packages.read(tarball, lambda name: name == "icons.json")["icons.json"])
    names: dict[str, list[str]] = {icon: [icon] for icon in sheet["icons"]}
    for alias, entry in sheet.get("aliases", {}).items():
        names[entry["parent"]].append(alias)
    found: dict[str, str] = {}
    taken: set[str] = set()
    for icon, known in names.items():
        key = _renamed(icon) or _first(known, keys)
        if key is not None and key not in taken and not icon.startswith("digit-") and icon != "pistol":
            found[icon] = key
            taken.add(key)
    return found


def slug(name: str) -> str:
    """A name as icons have it: "flag: Côte d’Ivoire" is "flag-cote-divoire"."""
    plain = unicodedata.normalize("NFKD", re.sub("[’']", "", name).replace("&", "and"))
    return re.sub("[^a-z0-9]+", "-", plain.encode("ascii", "ignore").decode().lower()).strip("-")


def _untangled(key: str) -> str:
    """The Fluent package calls its medium skins medium-light and the other way round, all 289 times: seen in the pixels."""
    other = {TONES["medium"]: TONES["medium-light"], TONES["medium-light"]: TONES["medium"]}
    first, *points = key.split("-")
    return "-".join([first, *(other.get(point, point) for point in points)])


def _first(names: Iterable[str], keys: Mapping[str, str]) -> str | None:
    for name in names:
        for said in (name, re.sub("^flag-for-(flag-)?", "flag-", name)):
            if said in keys:
                return keys[said]
    return None


def _renamed(icon: str) -> str | None:
    toned = _TONED.match(icon)
    if toned and toned[1] in RENAMED:
        return f"{RENAMED[toned[1]]}-{TONES[toned[2]]}"
    return RENAMED.get(icon)


def _svg(sheet: dict, name: str) -> str:
    icon = sheet["icons"][name]
    box = [icon.get(side, sheet.get(side, default)) for side, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))]
    start = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'{start} viewBox="{" ".join(map(str, box))}">{icon["body"]}</svg>'
