"""Our two towers against open_clip's: names, new weights, numbers and gradients; and what loading them does not import."""

from __future__ import annotations

import subprocess
import sys

import open_clip
import pytest
import torch
from torch import nn

from unclip.clip.encoder import CLIP, Architecture, CLIPConfig, TextTower, VisionTower
from unclip.clip.tokenizer import byte_pairs
from unclip.clip.towers import MEAN, STD, Towers

ARCHITECTURE = Architecture(
    embed_dim=24,
    vision=VisionTower(image_size=16, patch_size=4, width=32, layers=2, head_width=16),
    text=TextTower(context_length=12, width=48, layers=3, heads=4, token_ids=(*range(300, 340), 49406, 49407)),
)


def pair(quick: bool, seed: int = 3) -> tuple[Towers, nn.Module]:
    """Ours and theirs, built from one seed."""
    torch.manual_seed(seed)
    ours = CLIP(CLIPConfig(architecture=ARCHITECTURE, quick_gelu=quick)).network
    vision = open_clip.CLIPVisionCfg(image_size=16, patch_size=4, width=32, layers=2, head_width=16)
    text = open_clip.CLIPTextCfg(context_length=12, width=48, layers=3, heads=4, vocab_size=44)
    torch.manual_seed(seed)
    return ours, open_clip.model.CLIP(24, vision, text, quick_gelu=quick)


@pytest.mark.parametrize("quick", [False, True])
def test_new_weights_and_numbers_are_those_of_open_clip(quick: bool) -> None:
    ours, theirs = pair(quick)
    state = theirs.state_dict()
    assert {name: tuple(x.shape) for name, x in ours.state_dict().items()} == {n: tuple(x.shape) for n, x in state.items()}
    assert all(torch.equal(x, state[name]) for name, x in ours.state_dict().items())
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, 3, 16, 16, generator=generator)
    ids = torch.randint(0, 43, (3, 12), generator=generator)
    ids[:, 5] = 43
    states: list[torch.Tensor] = []
    theirs.ln_final.register_forward_hook(lambda module, inputs, output: states.append(output))
    for training in (True, False):  # which take different ways through torch's attention
        ours.train(training), theirs.train(training)
        with torch.set_grad_enabled(training):
            assert torch.equal(ours.encode_image(images), theirs.encode_image(images))
            read = ours.read(ids)
            assert torch.equal(read.embed, theirs.encode_text(ids)) and torch.equal(read.states, states[-1])
    for network in (ours, theirs):
        network.zero_grad()
        (network.encode_image(images).square().sum() + network.encode_text(ids, normalize=True)[:, 0].sum()).backward()
    theirs_grad = {name: x.grad for name, x in theirs.named_parameters()}
    for name, x in ours.named_parameters():
        assert (x.grad is None) == (theirs_grad[name] is None) and (x.grad is None or torch.equal(x.grad, theirs_grad[name]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_open_clip_computes_it(dtype: torch.dtype) -> None:
    ours, theirs = (network.to(dtype).eval() for network in pair(False))
    ids = torch.arange(24).reshape(2, 12) % 43
    with torch.no_grad():
        assert torch.equal(ours.encode_text(ids), theirs.encode_text(ids))
        images = torch.linspace(-1, 1, 2 * 3 * 256).reshape(2, 3, 16, 16).to(dtype)
        assert torch.equal(ours.encode_image(images), theirs.encode_image(images))


def test_statistics_and_tokenizer_are_open_clips() -> None:
    assert (MEAN, STD) == (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    captions = ["A photo of  2 dogs &amp; a cat!", "naïve café 🎂", "it's <end_of_text> ok"]
    theirs = open_clip.tokenizer.SimpleTokenizer()
    assert [byte_pairs().encode(caption) for caption in captions] == [theirs.encode(caption) for caption in captions]


def test_the_shipped_model_is_loaded_without_open_clip() -> None:
    """Whose imports would take longer than all else before the first picture."""
    script = """
import sys
from unclip import UnCLIP
pipe = UnCLIP.from_pretrained("emoji")
pipe.clip.encode_text(["a red heart"])
print([name for name in ("open_clip", "torchvision", "timm", "transformers", "torch._dynamo") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
