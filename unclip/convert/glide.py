"""GLIDE (filtered) as OpenAI published it: bare state dicts, whose configs follow from their tensors' shapes.

A base of 385M that draws 64 pixels for a caption, an upsampler of 398M to 256 pixels that reads it too, and a pair that was
fine-tuned to draw around known pixels.  The vocabulary is GPT-2's, which lies beside the package's code, not its weights: it is
read from the user's files and stored with each network.  Source: github openai/glide-text2im.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from decoder import Decoder, DecoderConfig
from unclip.checkpoint import Stored
from unclip.conditions import Caption, Conditions, Known
from unclip.config import visible
from unclip.diffusion.schedule import ScheduleConfig
from unclip.files import regular_file
from unclip.hub import repository
from unclip.nn.byte_pairs import merges_of, parse_merges, spelt, vocab_of
from unclip.nn.transformer import TransformerConfig
from unclip.sampling import FAST27, Sampling
from unclip.weights import Lazy, in_file
from upsamplers import CorruptionConfig, Upsampler, UpsamplerConfig

from .recipe import Recipe
from .table import heads_last, row, under
from .unet import ADM, adm_config, denoising


class Pair(NamedTuple):
    """A base and its upsampler."""

    base: str
    upsampler: str
    known: bool  # drawn around what is known


PAIRS = {"text": Pair("base.pt", "upsample.pt", False), "inpaint": Pair("base_inpaint.pt", "upsample_inpaint.pt", True)}
NOISED_CLIP = ("clip_image_enc.pt", "clip_text_enc.pt")
MERGES, IDS = ("vocab.bpe", "vocab.bpe.gz", "merges.txt"), ("encoder.json", "encoder.json.gz", "vocab.json")
IMAGE_SIZE, SCALE, HEAD, DROPOUT, DROP = 64, 4, 64, 0.1, 0.2  # which no tensor tells (model_creation.py)
NOISE_SCALE = 0.997  # of the notebooks

TEXT = {
    "encoder.embedding.weight": row("token_embedding.weight"),
    "encoder.positions": row("positional_embedding"),
    "encoder.padding": row("padding_embedding"),
    "encoder.transformer.norm.*": row("final_ln.*"),
    "encoder.transformer.blocks.#.norm1.*": row("transformer.resblocks.#.ln_1.*"),
    # Rows hold q, k and v of one head after the other.
    "encoder.transformer.blocks.#.attention.qkv.*": row(
        "transformer.resblocks.#.attn.c_qkv.*", how=heads_last(3, head_width=HEAD)
    ),
    "encoder.transformer.blocks.#.attention.out.*": row("transformer.resblocks.#.attn.c_proj.*"),
    "encoder.transformer.blocks.#.norm2.*": row("transformer.resblocks.#.ln_2.*"),
    "encoder.transformer.blocks.#.up.*": row("transformer.resblocks.#.mlp.c_fc.*"),
    "encoder.transformer.blocks.#.down.*": row("transformer.resblocks.#.mlp.c_proj.*"),
    "to_emb.*": row("transformer_proj.*"),
}


def recognise(folder: Path) -> bool:
    """Any of the files will do, to say which others are missing."""
    names = (*(name for pair in PAIRS.values() for name in pair[:2]), *NOISED_CLIP)
    return any((folder / name).is_file() for name in names)


def open_glide(folder: Path, source: str, dtype: torch.dtype | None = None, variant: str | None = None) -> Stored:
    """The cascade in a folder of the files: the plain pair, or with variant "inpaint" that for inpainting; one alone is taken.

    A base without its upsampler is a cascade of 64 pixels.  Beside them lies the vocabulary, `vocab.bpe` or `merges.txt`.
    """
    name = _pair(folder, source, variant)
    pair = PAIRS[name]
    merges = _merges(folder, source)
    recipes = {"decoder": _decoder(folder / pair.base, pair.known, merges)}
    if (folder / pair.upsampler).is_file():
        recipes[f"upsampler_{IMAGE_SIZE * SCALE}"] = _upsampler(folder / pair.upsampler, pair.known, merges)
    stored = Path(repository(source)).name or Path(source).resolve().name or "glide"
    return Stored(
        folder=folder,
        name=stored,
        components={key: partial(recipe.make, dtype) for key, recipe in recipes.items()},
        candidates=1,
        provenance={"family": "GLIDE (filtered, OpenAI)", "license": "MIT", "source": source, "layout": f"original, {name}"},
        clip_identity=None,
        kind="Cascade",
    )


def _pair(folder: Path, source: str, variant: str | None) -> str:
    """Which pair is meant; ValueError where its base is missing."""
    there = [name for name, pair in PAIRS.items() if (folder / pair.base).is_file()]
    bases = " and ".join(f"{pair.base} ({name})" for name, pair in PAIRS.items())
    if variant is not None and variant not in PAIRS:
        raise ValueError(f"variant is {visible(repr(variant))}; GLIDE has {' and '.join(map(repr, PAIRS))}")
    if variant is not None and variant not in there:
        raise ValueError(f"{source} holds no GLIDE of the variant {variant!r}: {PAIRS[variant].base} is missing")
    if not there:
        clips = [name for name in NOISED_CLIP if (folder / name).is_file()]
        found = f"; {', '.join(clips)}, of GLIDE's noised CLIP, draws nothing by itself" if clips else ""
        raise ValueError(f"{source} holds no base of GLIDE, which is {bases}{found}")
    return variant or there[0]


def _merges(folder: Path, source: str) -> Tensor:
    """GPT-2's merges (n, 2), from the user's files."""
    paths = [folder / name for name in MERGES if (folder / name).is_file()]
    if not paths:
        raise ValueError(
            f"{source} has no vocabulary: put GPT-2's {MERGES[0]} (in glide-text2im's folder tokenizer, or merges.txt of "
            f"the hub's gpt2) beside the weights; {' or '.join(MERGES)} was looked for"
        )
    merges = parse_merges(_text(paths[0]), str(paths[0]))
    for path in (folder / name for name in IDS):
        if path.is_file():
            _compare(spelt(merges), path, paths[0].name)
    return merges


def _compare(words: list[str], path: Path, merges: str) -> None:
    """ValueError where a file of ids says otherwise."""
    try:
        stored = json.loads(_text(path))
    except json.JSONDecodeError:
        stored = None
    if not isinstance(stored, dict):
        raise ValueError(f"{path} is no vocabulary: expected an object of tokens and their ids")
    for i, word in enumerate(words):
        if stored.get(word) != i:
            told = f"{path} gives the token {visible(repr(word))} the id {visible(repr(stored.get(word)))}"
            raise ValueError(f"{told}, by {merges} it is {i}: they are of two vocabularies")


def _text(path: Path) -> str:
    data = regular_file(path).read_bytes()
    try:
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as text: {visible(error)}") from None


def _decoder(path: Path, known: bool, merges: Tensor) -> Recipe:
    source = in_file(path)
    adm = _unet(source, path, 3, known)
    config = DecoderConfig(
        image_size=IMAGE_SIZE,
        unet=adm.unet.replace(dropout=DROPOUT),
        conditions=_conditions(source, path, known, merges),
        schedule=ScheduleConfig(name="cosine"),
        first_timestep=0,
        sampling=Sampling(sampler="ddpm", steps=100, guidance=5.0 if known else 3.0, variance="learned", threshold="static"),
    )
    return _recipe(Decoder, config, adm, source, path, merges)


def _upsampler(path: Path, known: bool, merges: Tensor) -> Recipe:
    source = in_file(path)
    adm = _unet(source, path, 6, known)
    drawn = Sampling(sampler="ddim", steps=FAST27, threshold="static")
    config = UpsamplerConfig(
        scale=SCALE,
        unet=adm.unet.replace(dropout=DROPOUT),
        conditions=_conditions(source, path, known, merges),
        schedule=ScheduleConfig(name="linear"),
        variance="learned",
        resize="bilinear",
        low_res="8bit",
        noise_scale=NOISE_SCALE,
        first_timestep=0,
        corruption=CorruptionConfig(kind="none"),
        sampling=drawn.replace(sampler="ddpm", variance="learned") if known else drawn,
    )
    return _recipe(Upsampler, config, adm, source, path, merges)


def _unet(source: Mapping[str, Lazy], path: Path, plain: int, known: bool) -> ADM:
    """The UNet's config; ValueError where its channels are those of another of the files."""
    adm = adm_config(source, "", str(path), HEAD)
    expected = plain + 4 * known
    if (adm.in_channels, adm.out_channels) != (expected, 6) or adm.context_width is None:
        read = "no captions" if adm.context_width is None else "captions"
        raise ValueError(
            f"{path} has {adm.in_channels} channels in and {adm.out_channels} out, and reads {read}; this file of GLIDE has "
            f"{expected} and 6, and reads captions: is it another of them?"
        )
    return adm


def _conditions(source: Mapping[str, Lazy], path: Path, known: bool, merges: Tensor) -> Conditions:
    """Of a caption and, for inpainting, known pixels; ValueError where the vocabulary is another than the embedding's."""
    for name in ("token_embedding.weight", "positional_embedding"):
        if name not in source or len(source[name].shape) != 2:
            raise ValueError(f"{path} has no tensor {name} of 2 dimensions: is it the file that it should be?")
    (vocab, width), context = source["token_embedding.weight"].shape, source["positional_embedding"].shape[0]
    if merges_of(vocab) != len(merges):
        raise ValueError(
            f"the vocabulary beside {path} makes {vocab_of(len(merges))} tokens, and its token_embedding.weight has {vocab}: "
            "take GPT-2's own, of 50,000 merges"
        )
    layers = sum(name.endswith(".attn.c_qkv.weight") for name in source)
    if width % HEAD or not layers:
        raise ValueError(f"{path} has {layers} layers of text {width} wide; GLIDE's heads are {HEAD} wide, in at least one layer")
    caption = Caption(
        kind="tokens",
        context=context,
        vocab=vocab,
        transformer=TransformerConfig(width=width, layers=layers, heads=width // HEAD),
        states="direct",
        tokenizer="gpt2",
        drop=DROP,
    )
    return Conditions(text=caption, known=Known() if known else None)


def _recipe(
    part: type[Decoder] | type[Upsampler],
    config: DecoderConfig | UpsamplerConfig,
    adm: ADM,
    source: Mapping[str, Lazy],
    path: Path,
    merges: Tensor,
) -> Recipe:
    at = "network.conditions.text."
    table = {**denoising(adm.unet, "adm", ""), **under(at, TEXT)}
    return Recipe(part, config, table, source, str(path), constants={f"{at}byte_pairs.merges": merges})
