"""The CLIP wrapper against open_clip itself, its tokenizers, its preprocessing and its identity."""

from __future__ import annotations

import copy
import inspect
import json
import warnings

import open_clip
import pytest
import torch
from open_clip.transform import image_transform
from PIL import Image

from unclip.clip.encoder import CLIP, Architecture, CLIPConfig, TextTower, VisionTower
from unclip.clip.identity import fixed_images, identity, same_identity
from unclip.clip.preprocess import check_images, fit_square
from unclip.clip.tokenizer import PAD, UNKNOWN, BytePairTokenizer, byte_pairs, compact_token_ids
from unclip.types import ImageTextEncoder

CAPTIONS = ["a red heart", "woman: dark skin tone, red hair!", "", "two dogs!"]
VISION = VisionTower(image_size=32, patch_size=8, width=32, layers=2, head_width=16)


def small(token_ids=None, context_length=16, seed=0, **config):
    torch.manual_seed(seed)
    text = TextTower(context_length=context_length, width=24, layers=2, heads=2, token_ids=token_ids)
    return CLIP(CLIPConfig(architecture=Architecture(embed_dim=20, vision=VISION, text=text), **config)).eval()


@pytest.fixture(scope="module")
def compact():
    return small(compact_token_ids(CAPTIONS))


def picture(width, height):
    pixels = fixed_images(512)[1].permute(1, 2, 0) * 127.5 + 127.5
    return Image.fromarray(pixels.byte().numpy()).resize((width, height))


def local(folder, text_cfg, vision_cfg=None, **extra):
    """A model that open_clip reads from a folder: how every kind of text tower is had without a network."""
    vision_cfg = vision_cfg or {"image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16}
    model = {"embed_dim": 20, "vision_cfg": vision_cfg, "text_cfg": text_cfg, **extra.pop("model", {})}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, **extra}))
    torch.manual_seed(0)
    return CLIP(CLIPConfig(name=f"local-dir:{folder}")).eval()


# text


def test_tokens_embeddings_and_states_are_open_clips():
    clip = small()
    text = clip.encode_text(CAPTIONS)
    expected = open_clip.tokenize(CAPTIONS, context_length=16)
    assert torch.equal(text.tokens, expected)
    assert torch.equal(text.embed, clip.network.encode_text(expected, normalize=False))
    assert isinstance(clip, ImageTextEncoder)
    assert (clip.embed_dim, clip.image_size, clip.text_width, clip.context_length) == (20, 32, 24, 16)
    # States are after the final norm: the end token's, projected, is the pooled embedding.
    ends = text.mask.sum(1) - 1
    pooled = text.states[torch.arange(4), ends] @ clip.network.text_projection
    torch.testing.assert_close(pooled, text.embed)


def test_mask_counts_start_end_and_the_exclamation_mark_which_shares_the_id_of_padding():
    tokens = BytePairTokenizer(16)(["!", "", "a dog!"])
    assert tokens.mask.sum(1).tolist() == [3, 2, 5]
    assert torch.equal(tokens.ids, open_clip.tokenize(["!", "", "a dog!"], context_length=16))


def test_compact_vocabulary_is_made_again_from_the_config_and_reads_strange_words_as_unknown(compact):
    tokens = compact.tokenize([*CAPTIONS, "a red zebra"])
    bpe = byte_pairs()
    rows = {t: i for i, t in enumerate(compact.config.architecture.text.token_ids, 2)}
    first = [bpe.sot_token_id, *bpe.encode(CAPTIONS[0]), bpe.eot_token_id]
    assert tokens.ids[0, : len(first)].tolist() == [rows[t] for t in first]
    assert tokens.ids[:4][tokens.mask[:4]].ne(UNKNOWN).all() and tokens.ids[~tokens.mask].eq(PAD).all()
    assert tokens.ids[4].tolist().count(UNKNOWN) == len(bpe.encode("zebra"))
    # open_clip pools where the id is largest: that must be the end token.
    assert torch.equal(tokens.ids.argmax(1), tokens.mask.sum(1) - 1)
    assert compact.network.token_embedding.num_embeddings == len(rows) + 2
    again = CLIP(CLIPConfig.from_json(compact.config.to_json()))
    again.load_state_dict(compact.state_dict())
    assert torch.equal(again.eval().encode_text(CAPTIONS).embed, compact.encode_text(CAPTIONS).embed)


def test_embedding_of_a_caption_does_not_depend_on_its_batch(compact):
    alone = compact.encode_text(CAPTIONS[1:2]).embed
    torch.testing.assert_close(alone, compact.encode_text(CAPTIONS).embed[1:2], rtol=0, atol=1e-6)


def test_a_long_caption_is_truncated_with_the_end_token_last_and_says_what_was_dropped():
    clip = small(context_length=6)
    with pytest.warns(UserWarning, match="context of 6 tokens; dropped: 'on the moon'"):
        text = clip.encode_text(["a cat sleeps here on the moon"])
    assert text.mask.all() and text.tokens[0, -1] == byte_pairs().eot_token_id
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clip.encode_text(["a cat sleeps here"])


def test_a_caption_cannot_smuggle_in_an_end_token():
    ids = BytePairTokenizer(16)(["red <end_of_text> heart"]).ids
    assert (ids == byte_pairs().eot_token_id).sum() == 1


@pytest.mark.parametrize("captions", ["a string", [], [3]])
def test_captions_that_are_no_list_of_strings_are_refused(compact, captions):
    with pytest.raises(ValueError, match="caption"):
        inspect.unwrap(CLIP.tokenize)(compact, captions)  # our own message, not the type checker's that runs in tests


# images


@pytest.mark.parametrize("size", [(32, 32), (100, 70), (45, 200), (20, 25), (500, 333)])
def test_pictures_are_preprocessed_as_open_clip_does(size):
    clip = small()
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    theirs = image_transform(32, is_train=False, mean=mean, std=std)(picture(*size))
    ours = (clip.preprocess(picture(*size))[0] / 2 + 0.5 - clip.mean) / clip.std
    assert (theirs - ours).abs().max() < 0.05  # theirs is rounded to bytes twice
    assert (theirs - ours).abs().mean() < 0.008
    with torch.no_grad():
        embeds = clip.encode_image(clip.preprocess(picture(*size))), clip.network.encode_image(theirs[None])
    assert torch.cosine_similarity(*embeds).item() > 0.9999


def test_encode_image_takes_raw_tensors_and_prepared_ones_alike(compact):
    images = torch.rand(2, 3, 50, 80, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(compact.encode_image(images), compact.encode_image(compact.preprocess(images)))
    # Crop, not squash: what lies outside the central square of a wide picture is not seen.
    wide = torch.cat([torch.ones(2, 3, 32, 16), images[..., :32, :32], -torch.ones(2, 3, 32, 16)], dim=-1)
    assert torch.equal(compact.encode_image(wide), compact.encode_image(images[..., :32, :32]))


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (33, 7), (3, 700)])
def test_any_size_gives_a_finite_square(shape):
    square = fit_square(torch.rand(1, 3, *shape) * 2 - 1, 32)
    assert square.shape == (1, 3, 32, 32) and square.isfinite().all() and square.abs().max() <= 1


def test_shrinking_is_anti_aliased():
    board = (torch.arange(256)[:, None] + torch.arange(256)) % 2 * 2.0 - 1
    assert fit_square(board.expand(1, 3, -1, -1), 32).abs().max() < 0.05


def test_gradients_reach_the_pixels(compact):
    images = (torch.rand(1, 3, 64, 64) * 1.8 - 0.9).requires_grad_()
    compact.encode_image(images).square().sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 4, 8, 8), (1, 3, 0, 8)])
def test_wrong_images_are_refused(shape):
    check = inspect.unwrap(check_images)
    with pytest.raises(ValueError, match="expected images"):
        check(torch.zeros(shape))
    with pytest.raises(ValueError, match="given Image"):
        check(picture(8, 8))
    with pytest.raises(ValueError, match="expected float"):
        check(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


def test_pixels_that_were_not_scaled_are_refused_and_nan_is_not(compact):
    pixels = torch.rand(2, 3, 40, 50, generator=torch.Generator().manual_seed(0))
    for verb in (compact.encode_image, compact.preprocess):
        with pytest.raises(ValueError, match=r"expected a picture in \[-1, 1\], given values from .* to 25.*; use x / 127"):
            verb(pixels * 255)
    assert compact.encode_image(pixels * 2.4 - 1.2).isfinite().all()  # a little overshoot is what resizing leaves
    # A training tells itself where numbers that are not finite come from.
    assert compact.encode_image(pixels * torch.nan).isnan().all()
    assert compact.preprocess(pixels[:0]).shape == (0, 3, 32, 32)


# models of open_clip


def test_unknown_names_list_close_ones():
    with pytest.raises(ValueError, match="no model 'ViT-B32'.*ViT-B-32"):
        CLIP(CLIPConfig(name="ViT-B32"))
    with pytest.raises(ValueError, match="no weights 'opnai'; it has.*openai"):
        CLIP(CLIPConfig(name="ViT-B-32", pretrained="opnai"))


def test_config_is_a_name_or_an_architecture():
    with pytest.raises(ValueError, match="exactly one"):
        CLIPConfig()
    with pytest.raises(ValueError, match="'default'"):
        CLIPConfig(name="hf-hub:a/b", pretrained="openai")
    with pytest.raises(ValueError, match="token_ids must be ascending"):
        TextTower(width=8, layers=1, heads=1, token_ids=(5, 3))


def test_a_named_model_is_read_from_the_model_and_its_tag():
    with torch.device("meta"):
        plain, tagged = CLIP(CLIPConfig(name="ViT-B-32")), CLIP(CLIPConfig(name="ViT-B-32", pretrained="openai"))
        siglip_like = CLIP(CLIPConfig(name="ViT-B-32", mean=(0.5, 0.5, 0.5), resize="squash"))
    assert (plain.embed_dim, plain.image_size, plain.text_width, plain.context_length) == (512, 224, 512, 77)
    # OpenAI's weights need quick-GELU although the name does not say so; open_clip only warns.
    kinds = [type(clip.network.transformer.resblocks[0].mlp.gelu).__name__ for clip in (plain, tagged)]
    assert kinds == ["GELU", "QuickGELU"]
    assert tagged.resolved.quick_gelu and tagged.resolved.pretrained is None and tagged.config.pretrained == "openai"
    assert siglip_like.resolved.mean == (0.5, 0.5, 0.5) and siglip_like.resolved.resize == "squash"


def test_text_tower_as_a_submodule_pooled_at_the_last_position(tmp_path):
    text = {"context_length": 12, "width": 24, "heads": 2, "layers": 1, "pool_type": "last", "no_causal_mask": True}
    pre = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash", "interpolation": "bilinear"}
    clip = local(tmp_path, {**text, "proj_bias": True}, model={"custom_text": True}, preprocess_cfg=pre)
    out = clip.encode_text(CAPTIONS)
    assert torch.equal(out.embed, clip.network.encode_text(out.tokens))
    torch.testing.assert_close(clip.network.text.text_projection(out.states[:, -1]), out.embed)
    assert (clip.embed_dim, clip.text_width, clip.context_length) == (20, 24, 12)
    assert clip.resolved.resize == "squash" and clip.resolved.interpolation == "bilinear"
    assert clip.mean.flatten().tolist() == [0.5] * 3


def test_coca_is_refused_because_it_has_no_states(tmp_path):
    text = {"context_length": 12, "width": 24, "heads": 2, "layers": 1, "embed_cls": True}
    with pytest.raises(ValueError, match="no per-token states"):
        local(tmp_path, text, model={"custom_text": True})


def test_hugging_face_tower_and_tokenizer(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, PreTrainedTokenizerFast

    words = {w: i for i, w in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", "a", "red", "heart", "dog"])}
    inner = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    specials = [("[CLS]", 1), ("[SEP]", 2)]
    inner.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=specials)
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    PreTrainedTokenizerFast(tokenizer_object=inner, **names).save_pretrained(tmp_path)
    bert = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    (tmp_path / "bert").mkdir()
    BertConfig(vocab_size=8, max_position_embeddings=16, **bert).save_pretrained(tmp_path / "bert")
    text = {"hf_model_name": str(tmp_path / "bert"), "hf_tokenizer_name": "here", "context_length": 6}
    clip = local(tmp_path, {**text, "hf_model_pretrained": False})
    with pytest.warns(UserWarning, match="dropped: 'red dog'"):
        out = clip.encode_text(["a red heart", "", "a red heart a red dog"])
    assert out.mask.sum(1).tolist() == [5, 2, 6] and out.tokens[2, -1] == 2
    assert out.states.shape == (3, 6, 24) and clip.text_width == 24 and clip.embed_dim == 20
    assert torch.equal(out.embed, clip.network.encode_text(out.tokens))


def test_the_papers_clip_can_be_expressed_and_counted():
    vision = VisionTower(image_size=256, patch_size=16, width=1280, layers=32, head_width=80)
    text = TextTower(width=1024, layers=24, heads=16)
    with torch.device("meta"):
        clip = CLIP(CLIPConfig(architecture=Architecture(embed_dim=1024, vision=vision, text=text)))
    assert clip.logit_scale.is_meta
    counts = {"visual": 0, "text": 0}
    for name, p in clip.network.named_parameters():
        counts["visual" if name.startswith("visual") else "text"] += p.numel()
    assert abs(counts["visual"] / 632e6 - 1) < 0.01 and abs(counts["text"] / 354e6 - 1) < 0.01


# identity and checkpoints


def test_identity_survives_json_and_half_precision_and_refuses_another_clip(compact):
    ours = json.loads(json.dumps(identity(compact)))
    same_identity(ours, identity(compact))
    half = small(compact_token_ids(CAPTIONS))
    half.load_state_dict({k: v.half().float() for k, v in compact.state_dict().items()})
    same_identity(ours, identity(half))
    with pytest.raises(ValueError, match="cosine"):
        same_identity(ours, identity(small(compact_token_ids(CAPTIONS), seed=1)))
    with pytest.raises(ValueError, match="expected context_length 16, given 12"):
        same_identity(ours, identity(small(context_length=12)))
    with pytest.raises(ValueError, match="no field 'pictures'"):
        same_identity({k: v for k, v in ours.items() if k != "pictures"}, ours)


def test_identity_leaves_the_training_mode_and_needs_no_gradient(compact):
    clip = small(compact_token_ids(CAPTIONS)).train()
    assert identity(clip)["captions"] and clip.training
    assert all(p.grad is None for p in clip.parameters())


def test_a_copy_is_on_its_own(compact):
    twin = copy.deepcopy(compact)
    torch.nn.init.zeros_(twin.network.ln_final.weight)
    assert not torch.equal(twin.encode_text(CAPTIONS).states, compact.encode_text(CAPTIONS).states)


def test_save_and_load(tmp_path, compact):
    compact.save_pretrained(tmp_path / "clip")
    again = CLIP.from_pretrained(tmp_path / "clip")
    assert again.config == compact.resolved
    same_identity(identity(compact), identity(again), threshold=1 - 1e-9)
