"""Latents on disk: what is written is read again, and what is none is refused with the reason."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_pipelines_generation import LATENT

from unclip.editing.latent import FORMAT, Latent


def test_latents_on_disk(tmp_path: Path) -> None:
    LATENT.save(tmp_path / "x.safetensors")
    loaded = Latent.load(tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").unlink()
    assert torch.equal(loaded.image_embed, LATENT.image_embed) and torch.equal(loaded.x_t, LATENT.x_t)
    assert (loaded.t, loaded.timesteps, loaded.captions, dict(loaded.models)) == (
        900,
        (900, 450, 0),
        LATENT.captions,
        {"clip": "c0ffee"},
    )
    assert len(loaded) == 2


def test_what_is_no_latent(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    LATENT.save(path)
    whole = path.read_bytes()
    tensors = {"image_embed": LATENT.image_embed, "x_t": LATENT.x_t}
    about = '{"sampling": {"steps": [1, 0]}, "captions": ["a"], "models": {}}'
    assert re.sub(rb"unclip-latent-3", b"", whole) != whole

    def check(message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Latent.load(path)

    path.write_bytes(whole[:-9])
    check("x.safetensors cannot be read as a latent")
    path.write_bytes(b"not one")
    check("x.safetensors cannot be read as a latent")
    save_file(tensors, path)
    check(r"no latent \(format None\)")
    save_file(tensors, path, metadata={"format": FORMAT})
    check("x.safetensors is no LatentHeader")
    save_file(tensors, path, metadata={"format": FORMAT, "about": about.replace("[1, 0]", '["1", 0]')})
    check(r"int.*str.*\$\.sampling\.steps")
    counted = about.replace("[1, 0]", "50").replace('["a"]', '["a", "b"]')
    save_file(tensors, path, metadata={"format": FORMAT, "about": counted})
    check("lists its timesteps.*steps 50")
    save_file({"x_t": LATENT.x_t}, path, metadata={"format": FORMAT, "about": about})
    check("image_embed")
    save_file(tensors, path, metadata={"format": FORMAT, "about": about})
    check("b captions; got .* 1 captions")
    path.unlink()
    check("cannot be read as a latent")


def test_a_latent_of_an_earlier_version_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"x_t": LATENT.x_t}, path, metadata={"format": "unclip-latent-2", "about": "another one"})
    with pytest.raises(ValueError, match=r"x.safetensors was written by an earlier version \(unclip-latent-2\): invert the pict"):
        Latent.load(path)
