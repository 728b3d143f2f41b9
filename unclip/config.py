"""The base of every config: a frozen value, strict on the way in, JSON on the way out."""

from __future__ import annotations

import codecs
import difflib
import re
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

C = TypeVar("C", bound="Config")
_INVISIBLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ud800-\udfff\ufeff\ufff9-\ufffb]")
# Sizes that no tensor in a file bears out, and counts of modules, which take time even without weights: bounded wherever a config
# is read, so that a slip in a number asks neither for hours nor for all memory.
AtMost100 = Annotated[int, msgspec.Meta(le=100)]
Layers = Annotated[int, msgspec.Meta(le=1_000)]
Levels = Annotated[tuple[int, ...], msgspec.Meta(max_length=16)]
Positions = Annotated[int, msgspec.Meta(le=10_000)]
Steps = Annotated[int, msgspec.Meta(le=10_000)]
Pixels = Annotated[int, msgspec.Meta(le=16_384)]
# msgspec's words for types, and ours.
NAMES = {"int": "a whole number", "float": "a number", "str": "text", "bool": "True or False", "array": "a list"}
NAMES |= {"object": "a config or a dict", "null": "None"}


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A frozen record of settings.  Subclasses repeat `frozen=True, kw_only=True`, and check their values in `__post_init__`
    after `super().__post_init__()`, which has checked the types.
    """

    def __post_init__(self) -> None:
        for name, kind in _hints(type(self)).items():
            value = getattr(self, name)
            try:
                converted = msgspec.convert(value, kind)
            except msgspec.ValidationError as error:
                raise ValueError(f"{name} is {visible(repr(value))}; {_expected(kind, str(error))}") from None
            if converted is not value:  # a list where a tuple is meant, a whole number where any is
                msgspec.structs.force_setattr(self, name, converted)

    def tree(self) -> dict[str, Any]:
        """As JSON has it: what `to_json` writes, and where `override` finds settings by their names."""
        tree: dict[str, Any] = msgspec.to_builtins(self)
        return tree

    def to_json(self) -> str:
        return msgspec.json.format(msgspec.json.encode(self.tree()), indent=2).decode() + "\n"

    @classmethod
    def from_json(cls: type[C], text: str | bytes, source: str = "config") -> C:
        """Read a config; an unknown, missing or mistyped field is a ValueError that names it by path."""
        try:
            return msgspec.json.decode(text, type=cls)
        except (msgspec.DecodeError, ValueError, TypeError, RecursionError) as error:
            problem = visible(error, 500)
            raise ValueError(f"{source} is no {cls.__name__}: {problem}{_known(cls, str(error))}") from None

    @classmethod
    def load(cls: type[C], path: str | Path) -> C:
        """Read a JSON file, in UTF-8 with or without a byte order mark."""
        try:
            if not (path := Path(path).expanduser()).is_file() and path.exists():  # a pipe, which nobody may be writing to
                raise ValueError(f"{path} cannot be read: it is no regular file")
            text = path.read_bytes()
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
        return cls.from_json(text.removeprefix(codecs.BOM_UTF8), source=str(path))

    def replace(self: C, **changes: Any) -> C:
        """A copy with some fields changed, checked like a new one.  `config.replace(lr=1e-4)`."""
        unknown = sorted(set(changes) - set(self.__struct_fields__))
        if unknown:
            known = ", ".join(self.__struct_fields__)
            raise ValueError(f"{type(self).__name__} has no field {', '.join(unknown)}; it has {known}")
        changed = msgspec.structs.replace(self, **changes)
        Config.__post_init__(changed)  # which a class from outside may not have called
        return changed

    def override(self: C, *settings: str) -> C:
        """Apply command-line settings such as `train.steps=500` or `unet.multiple=[1,2]`; values are JSON, bare words strings."""
        tree = self.tree()
        for setting in settings:
            path, equals, value = setting.partition("=")
            if not equals or path.startswith("-"):
                near = _places(tree, path.lstrip("-").rpartition(".")[2])[:1] or ["name"]
                wrong = f"there is no option {path}" if path.startswith("-") else f"cannot read the setting {setting!r}"
                raise ValueError(f"{wrong}: settings are written as name=value, for instance {near[0]}={value or 500}")
            node, names = tree, path.split(".")
            for depth, name in enumerate(names):
                if not isinstance(node, dict) or name not in node:
                    known = ", ".join(node) if isinstance(node, dict) else "no fields"
                    near = _places(tree, names[-1])[:3]
                    hint = f" (is {' or '.join(near)} meant?)" if near else ""
                    raise ValueError(f"{type(self).__name__} has no setting {path!r}{hint}: in place of {name!r} it has {known}")
                if depth < len(names) - 1:
                    node = node[name]
            try:
                node[name] = msgspec.json.decode(value)
            except msgspec.DecodeError:
                node[name] = value
        return type(self).from_json(msgspec.json.encode(tree), source=f"{type(self).__name__} with {' '.join(settings)}")


@cache
def _hints(cls: type[Config]) -> dict[str, Any]:
    return {field.name: field.type for field in msgspec.structs.fields(cls)}


def _expected(kind: Any, message: str) -> str:
    """What msgspec has to say of a value, in the words of those who write Python."""
    words = [word for one in (kind, *get_args(kind)) if get_origin(one) is Literal for word in get_args(one)]
    if message.startswith("Invalid enum value") and words:
        return f"it must be one of {', '.join(map(str, words))}"
    expected, _, got = message.partition(", got ")
    if not expected.startswith("Expected `"):
        return message
    kinds, _, bound = expected.removeprefix("Expected `").partition("`")
    said = [NAMES.get(one, one) for one in kinds.split(" | ")]
    within = f"at {got.partition('`$')[2].rstrip('`')} " if "`$" in got else ""
    return f"{within}it must be {' or '.join(', '.join(said).rsplit(', ', 1))}{bound}"


def _places(tree: dict[str, Any], name: str, above: str = "") -> list[str]:
    """Where a tree of settings has this name, or else one like it, by their paths."""
    paths = [f"{above}{key}" for key in tree]
    for key, value in tree.items():
        paths += _places(value, "", f"{above}{key}.") if isinstance(value, dict) else []
    if above:
        return paths
    leaves = [path.rpartition(".")[2] for path in paths]
    names = {name} if name in leaves else set(difflib.get_close_matches(name, leaves, 3, 0.75))
    return sorted((path for path, leaf in zip(paths, leaves) if leaf in names), key=lambda path: path.count("."))


def _known(cls: type[Config], message: str) -> str:
    """Unknown keys are mostly typos, so the message lists what there is, at the place that it names (`$.model.unet`)."""
    if not message.startswith("Object contains unknown field"):
        return ""
    for name in message.partition("at `$.")[2].rstrip("`").split("."):
        hint = get_type_hints(cls).get(name)
        cls = next((x for x in (hint, *get_args(hint)) if isinstance(x, type) and issubclass(x, Config)), cls)
    return f" ({cls.__name__} has {', '.join(cls.__struct_fields__)})"


def visible(text: object, most: int = 200) -> str:
    """Text from a file, fit for a terminal: control characters as escapes (`\\x1b`), and what is longer than `most` cut."""
    text = str(text)
    cut = text if len(text) <= most else f"{text[:most]}..."
    return _INVISIBLE.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode(), cut)
