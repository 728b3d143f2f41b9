"""The commands that make the data:

python -m experiments.emoji.data prepare [FOLDER] [--source TGZ_OR_FOLDER] [--sizes 64 256 1024]
python -m experiments.emoji.data captions TGZ_OR_FOLDER [--write]
python -m experiments.emoji.data styles [--sizes 64]           # the second generation: four styles
python -m experiments.emoji.data tables [--write]              # motifs.jsonl, pieces.txt and the names of emoji characters
python -m experiments.emoji.data embed RUN                     # what the trained CLIP says of all drawings
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.emoji.data import drawings, motifs, packages, source, styled, words
from experiments.emoji.data.pictures import Pictures
from experiments.emoji.evaluation.siblings import TONE
from unclip.clip import emoji
from unclip.clip.pieces import learn_pieces
from unclip.data.embeddings import Embeddings, precompute
from unclip.files import write_files
from unclip.randomness import Noise
from unclip.runs.components import averaged

PIECES = Path(__file__).parents[1] / "pieces.txt"
SIZE, EPOCHS = 6144, 6  # pieces, and how many sayings of each drawing they are learnt from


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.emoji.data", description="Get and render the emoji.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("prepare", help=f"get {source.PACKAGE}, check it and render it into the cache")
    verb.add_argument("folder", type=Path, nargs="?", help="default: $UNCLIP_CACHE/emoji or ~/.cache/unclip/emoji")
    verb.add_argument("--source", type=Path, help="a .tgz of the package or a folder of its SVGs; default: npm pack")
    verb.add_argument("--sizes", type=int, nargs="*", default=[64, 256], help="default: 64 256 (1024 takes minutes)")
    verb = verbs.add_parser("captions", help="make captions.jsonl again and compare it with the committed one")
    verb.add_argument("source", type=Path, nargs="?", help="as for prepare; default: the prepared SVGs")
    verb.add_argument("--write", action="store_true", help="write it instead of comparing")
    verb = verbs.add_parser("styles", help="get the drawings of four styles, check and render them into the cache")
    verb.add_argument("--sizes", type=int, nargs="*", default=[64], help="default: 64")
    verb = verbs.add_parser(
        "tables", help="make motifs.jsonl, pieces.txt and emoji.tsv again and compare them with the committed"
    )
    verb.add_argument("--write", action="store_true", help="write them instead of comparing")
    verb = verbs.add_parser("embed", help="compute and store the image embeddings of all drawings")
    verb.add_argument("run", type=Path, help="the run folder of the CLIP, whose newest state is taken")
    options = parser.parse_args(arguments)
    try:
        if options.verb == "prepare":
            _prepare(options.folder or source.cache_folder(), options.source, options.sizes)
        elif options.verb == "captions":
            _captions(options.source or source.cache_folder() / "svg", options.write)
        elif options.verb == "styles":
            for size in options.sizes:
                print(styled.rendered(styled.cache_folder(), size).path)
        elif options.verb == "tables":
            _tables(options.write)
        else:
            _embed(options.run)
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _prepare(folder: Path, svgs: Path | None, sizes: Sequence[int]) -> None:
    print(source.prepare(folder, svgs))
    keys = [row.key for row in source.read_captions()]
    for size in sizes:
        print(Pictures(folder, keys, size).path)


def _captions(svgs: Path, write: bool) -> None:
    files = source.read_svgs(svgs)
    source.check(files, svgs)
    rows = source.make_captions(list(files))
    text = source.captions_text(rows)
    if write:
        source.CAPTIONS.write_text(text, encoding="utf-8")
    heldout = sum(row.split == "heldout" for row in rows)
    print(f"{len(rows)} captions, {heldout} held out")
    if source.CAPTIONS.read_text(encoding="utf-8") != text:
        raise ValueError(
            f"these differ from {source.CAPTIONS}: the installed package emoji names some differently;"
            " the shipped weights know the committed table"
        )
    print(f"{source.CAPTIONS} is the same")


def _tables(write: bool) -> None:
    npm = styled.npm_folder()
    names = words.english(packages.fetch(packages.EMOJIBASE, npm))
    texts = {emoji.NAMES: emoji_text(names), motifs.MOTIFS: motifs_text(names, npm)}
    for path, text in texts.items():
        _put(path, text, write)
    _put(PIECES, pieces_text(), write)  # which are learnt from what the table calls the training drawings


def motifs_text(names: dict[str, words.Name], npm: Path) -> str:
    """motifs.jsonl: what the four packages draw of what has a name."""
    keys = {drawings.slug(name.name): key for key, name in reversed(list(names.items()))}  # the first of equal names
    icons = drawings.icon_keys(packages.fetch(packages.EMOJITWO, npm), keys)
    drawn = {style: drawings.read(style, packages.fetch(one, npm), icons) for style, one in drawings.PACKAGES.items()}
    return motifs.table_text(motifs.make_table(names, drawn, icons))


def emoji_text(names: dict[str, words.Name]) -> str:
    """emoji.tsv: emoji without skin tones and their names, in the order of code points; "©" and "®" are punctuation.

    Of a sequence that Unicode has with skin tones alone (two women, a handshake between them) the tones are taken out.
    """
    found: dict[str, str] = {}
    for key, (name, _, _) in names.items():
        character = "".join(chr(int(point, 16)) for point in key.split("-"))
        plain = "".join(c for c in character if c not in emoji.TONES)
        if plain and not (len(plain) == 1 and ord(plain) < 0x100):
            if plain == character:
                found[plain] = name
            else:
                found.setdefault(plain, " ".join(TONE.sub("", name).split()))
    # Names that are not that of the plain emoji and the tones behind it.
    for key, (name, _, _) in names.items():
        character = "".join(chr(int(point, 16)) for point in key.split("-"))
        tones = dict.fromkeys(f"{emoji.TONES[c]} skin tone" for c in character if c in emoji.TONES)
        plain = "".join(c for c in character if c not in emoji.TONES)
        if plain in found and " ".join([found[plain], *tones]) != name:
            found[character] = name
    return "".join(f"{character}\t{name}\n" for character, name in sorted(found.items()))


def pieces_text() -> str:
    """pieces.txt: learnt from captions of the training drawings alone."""
    data, captions = styled.StyledEmoji("train", None), []
    for epoch in range(EPOCHS):
        captions += data.batch(range(len(data)), Noise.of(epoch, range(len(data)))).captions or []
    return "\n".join(learn_pieces(captions, SIZE)) + "\n"


def _put(path: Path, text: str, write: bool) -> None:
    if write:
        write_files([(path, text.encode())])
    elif path.read_text(encoding="utf-8") != text:
        raise ValueError(f"what these packages give differs from {path}: --write would write it")
    print(f"{path} {'is written' if write else 'is the same'}")


def _embed(run: Path) -> None:
    clip: Any = averaged(run)
    embeddings = precompute(clip, styled.StyledEmoji("all", 64))
    # Captions are other ones in each epoch, so a CLIP reads them in training.
    Embeddings(embeddings.keys, embeddings.image_embed, None).save(styled.embeddings_path())
    print(f"{len(embeddings)} embeddings in {styled.embeddings_path()}")
