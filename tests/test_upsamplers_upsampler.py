"""The upsampler: any size in, scale times the size out, equal under shifts, and it learns."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate

from unclip.conditions import Conditions, ImageEmbedding, Label
from unclip.nn.unet import UNetConfig
from unclip.randomness import Noise
from unclip.sampling import Sampling
from unclip.types import Batch, Cond
from unclip.types import Upsampler as Contract
from upsamplers import CorruptionConfig, Upsampler, UpsamplerConfig, UpsamplerTask
from upsamplers.filters import resize
from upsamplers.network import mixture
from upsamplers.upsampler import _check_images

FAST = Sampling(steps=3, threshold="static")


def tiny(
    patch: int = 2, multiple: tuple[int, ...] = (1, 1), output: str = "residual", predicts: str = "x0", **changes
) -> UpsamplerConfig:
    unet = UNetConfig(channels=32, depth=1, multiple=multiple, patch=patch)
    return UpsamplerConfig(unet=unet, output=output, predicts=predicts, sampling=FAST, **changes)


def build(config: UpsamplerConfig, std: float = 0.0) -> Upsampler:
    """A seeded upsampler; with `std`, every weight is disturbed, the zero-initialised ones too."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Upsampler(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(std * torch.randn_like(parameter))
    return model


def pictures(n: int, height: int, width: int) -> torch.Tensor:
    grid = torch.rand(n, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return interpolate(grid, (height, width), mode="bicubic").clamp(-1, 1)


def test_keeps_the_contract():
    assert isinstance(build(tiny()), Contract)


@pytest.mark.parametrize("size", [(8, 8), (7, 13), (1, 1), (1, 9), (3, 2)])
@pytest.mark.parametrize("patch, multiple", [(1, (1, 1, 1)), (8, (1, 1, 1)), (3, (1,))])
def test_any_size_in_scale_times_the_size_out(size, patch, multiple):
    model = build(tiny(patch, multiple, "image", "eps"), std=0.02)
    out = model.sample(pictures(2, *size), noise=Noise.of(0, [0, 1]))
    assert out.shape == (2, 3, 4 * size[0], 4 * size[1])
    assert out.isfinite().all() and out.abs().max() <= 1


@pytest.mark.parametrize("size", [(8, 8), (7, 13), (2, 3)])
def test_untrained_residual_equals_bicubic(size):
    low = pictures(2, *size)
    out = build(tiny()).sample(low, noise=Noise.of(0, [0, 1]))
    bicubic = interpolate(low, scale_factor=4, mode="bicubic", antialias=True).clamp(-1, 1)
    assert torch.equal(out, bicubic)


@pytest.mark.parametrize("size, patch", [((8, 8), 4), ((7, 13), 2), ((1, 3), 1)])
def test_untrained_mixture_is_mostly_bicubic(size, patch):
    low = pictures(2, *size)
    out = build(tiny(patch, (1, 1), "mixture")).sample(low, noise=Noise.of(0, [0, 1]))
    around = nn.functional.avg_pool2d(nn.functional.pad(low, (1, 1, 1, 1), mode="replicate"), 3, 1)
    first, bicubic = math.exp(5), resize(low, (4 * size[0], 4 * size[1]))
    expected = (first * bicubic + 9 * interpolate(around, scale_factor=4, mode="nearest")) / (first + 9)
    assert torch.allclose(out, expected.clamp(-1, 1), atol=1e-5)


def test_a_mixture_takes_the_pixel_it_is_told_to():
    low, image = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 12, 15)
    for k in range(10):
        logits = torch.zeros(2, 10, 12, 15)
        logits[:, k] = 200.0
        y, x = divmod(k - 1, 3)
        rows = (torch.arange(4) + y - 1).clamp(0, 3)
        columns = (torch.arange(5) + x - 1).clamp(0, 4)
        taken = interpolate(low[:, :, rows][..., columns], scale_factor=3, mode="nearest")
        assert torch.allclose(mixture(image, low, logits), taken if k else image)


def test_a_mixture_leaves_flat_areas_flat_in_bfloat16_too():
    """Where nine equal pixels are mixed, nothing of the network's error is left, however large it is."""
    low = torch.full((1, 3, 4, 4), 0.3)
    logits = torch.randn(1, 10, 16, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    logits[:, 0] = -50
    out = mixture(torch.randn(1, 3, 16, 16), low, logits)
    assert out.dtype == torch.float32 and (out - 0.3).abs().max() < 1e-6


class FixedNorm(nn.Module):
    """Group norm with fixed statistics: only its weights are left."""

    def __init__(self, norm: nn.GroupNorm):
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight[:, None, None] + self.bias[:, None, None]


def fix_statistics(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.GroupNorm):
            setattr(module, name, FixedNorm(child))
        else:
            fix_statistics(child)


def shifted_output(model: Upsampler, shift: int, height: int, width: int, margin: int) -> float:
    """How much the interior of the output changes, against its spread, when the input moves by `shift` to the left."""
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(1, 3, height // 4, (width + shift) // 4, generator=generator)
    x_t = torch.randn(1, 3, height, width + shift, generator=generator)
    t = torch.tensor([300])
    with torch.no_grad():
        whole = model.network.encode(low)
        encoded = whole._replace(resized=whole.resized[..., :width], low_res=low[..., : width // 4])
        one = model.network(x_t[..., :width], t, encoded)
        # The low-resolution picture moves before it is resized: bicubic filters are part of what must be equal.
        moved = model.network(x_t[..., shift:], t, model.network.encode(low[..., shift // 4 :]))
    inside = slice(margin, height - margin)
    a, b = one[..., inside, margin + shift : width - margin], moved[..., inside, margin : width - margin - shift]
    return float((a - b).abs().max() / a.std())


# One level: the grid is lcm(scale, patch).  Each further level halves the picture and doubles the grid.
@pytest.mark.parametrize("patch, multiple", [(1, (1,)), (3, (1,)), (8, (1,)), (1, (1, 1)), (2, (1, 1)), (4, (1, 1))])
@pytest.mark.parametrize("kind", [("image", "eps"), ("mixture", "x0")], ids=["image", "mixture"])
def test_a_shift_of_the_input_shifts_the_output(patch, multiple, kind):
    model = build(tiny(patch, multiple, *kind), std=0.05)
    fix_statistics(model)
    shift = math.lcm(4, model.network.unet.multiple_of)
    reach = 8 + patch * (12 if len(multiple) == 1 else 34)  # of the bicubic filter and the 3x3 convolutions, in pixels
    side = (2 * reach // shift + 4) * shift
    assert shifted_output(model, shift, side, side, reach) < 1e-4
    if patch == 8:  # off the patch grid it does not, so the test sees something
        assert shifted_output(model, 4, side, side, reach) > 1e-2


@pytest.mark.parametrize("predicts, output", [("eps", "image"), ("v", "image"), ("x0", "residual"), ("x0", "mixture")])
def test_rows_do_not_depend_on_their_batch(predicts, output):
    config = tiny(1, (1, 1), output, predicts, crop=0.5, crops_per_image=2, corruption=CorruptionConfig(kind="bsr"))
    model, images, noise = build(config, std=0.02), pictures(3, 40, 32), Noise.of(1, [0, 1, 2])
    together, alone = model.loss(images, noise=noise), model.loss(images[1:2], noise=Noise.of(1, 1))
    assert together.total.shape == (6,) and together.t is not None and alone.t is not None
    assert torch.allclose(together.total[2:4], alone.total, rtol=1e-4)
    assert torch.equal(together.t[2:4], alone.t)
    low = pictures(3, 6, 7)
    both = model.sample(low, noise=noise)
    assert torch.allclose(both[1:2], model.sample(low[1:2], noise=Noise.of(1, 1)), atol=1e-4)
    assert torch.equal(both, model.sample(low, noise=Noise.of(1, [0, 1, 2])))
    assert not torch.equal(both, model.sample(low, noise=Noise.of(2, [0, 1, 2])))


def test_pairs_made_beforehand_give_the_same_loss():
    config = tiny(crop=0.5, crops_per_image=2)
    model, images, noise = build(config, std=0.02), pictures(2, 32, 32), Noise.of(1, [0, 1])
    pairs = [config.make_pairs(image, noise[i : i + 1].at("pair")) for i, image in enumerate(images)]
    low, high = (torch.cat(crops) for crops in zip(*pairs))
    expected = model.loss(images, noise=noise).total
    assert torch.equal(model.loss_pairs(low, high, noise=noise.repeat(2)).total, expected)


def test_x_t_is_where_sampling_starts():
    model, low = build(tiny(1, (1,), "image", "eps"), std=0.05), pictures(1, 5, 6)
    x_t = Noise.of(0).at("x_T").normal((3, 20, 24))
    assert torch.equal(model.sample(low, noise=Noise.of(0)), model.sample(low, noise=Noise.of(9), x_t=x_t))


def test_published_samplers_run():
    model = build(tiny())
    for steps in (15, 27, "fast27"):
        out = model.sample(pictures(1, 2, 2), noise=Noise.of(0), sampling=Sampling(steps=steps))
        assert out.shape == (1, 3, 8, 8)
    assert UpsamplerConfig().sampling.steps == 27 and UpsamplerConfig().unet.attention == ()


def discs(n: int, size: int) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    generator = torch.Generator().manual_seed(3)
    rows = []
    for _ in range(n):
        cy, cx, r = (torch.rand(3, generator=generator) * torch.tensor([0.4, 0.4, 0.15]) + torch.tensor([0.3, 0.3, 0.15])) * size
        colour = torch.rand(3, 1, 1, generator=generator) * 2 - 1
        rows.append(torch.where(((y - cy) ** 2 + (x - cx) ** 2 < r**2)[None], colour, torch.ones(3, 1, 1)))
    return torch.stack(rows)


@pytest.mark.parametrize("output", ["residual", "mixture"])
def test_overfits_and_leaves_no_checkerboard(output):
    patch = 2
    config = tiny(patch, (1,), output, crop=1.0, corruption=CorruptionConfig())
    model, images = build(config), discs(4, 24)
    optimiser = torch.optim.Adam(model.parameters(), 2e-3)
    for step in range(50):
        optimiser.zero_grad()
        model.loss(images, noise=Noise.of(step, range(4))).total.mean().backward()
        optimiser.step()
    low = torch.cat([config.make_pairs(image, Noise.of(0))[0] for image in images])
    out = model.eval().sample(low, noise=Noise.of(0, range(4)), sampling=Sampling(steps=10))
    bicubic = interpolate(low, scale_factor=4, mode="bicubic", antialias=True).clamp(-1, 1)
    error, before = (out - images).square().mean(), (bicubic - images).square().mean()
    assert error < 0.5 * before, f"{error} is no better than bicubic's {before}"
    # Folded onto one patch, the error has no pattern of its own.
    folded = (out - images).unflatten(-1, (-1, patch)).unflatten(-3, (-1, patch)).mean((0, 1, 2, 4))
    assert folded.shape == (patch, patch) and (folded - folded.mean()).abs().max() < 0.02


def test_task_learns_from_batches_and_draws():
    task = UpsamplerTask(build(tiny(crop=0.5)))
    images = pictures(5, 32, 32)
    batch = Batch(keys=list("abcde"), images=images)
    losses = task(batch, Noise.of(0, range(5)))
    assert losses.total.shape == (5,) and losses.total.requires_grad
    grid = task.sample_images(batch, Noise.of(0, range(5)))
    assert grid.shape == (12, 3, 16, 16)
    with pytest.raises(ValueError, match="needs batches with images"):
        task(Batch(keys=["a"], captions=["a cat"]), Noise.of(0))


@pytest.mark.parametrize("t, idle", [([2, 7], ["last_"]), ([1, 1], ["unet.", "time."]), ([1, 7], [])])
def test_in_training_every_parameter_takes_part_whatever_the_timesteps(t, idle):
    """Processes that train together need the same gradients to exist; those of the network that nobody asks for are zero."""
    model, low = build(tiny(last_step="own"), std=0.02), pictures(2, 4, 4)
    network, x_t, encoded = model.network, torch.randn(2, 3, 16, 16), model.network.encode(low)
    expected = network.eval()(x_t, torch.tensor(t), encoded)
    out = network.train()(x_t, torch.tensor(t), encoded)
    assert torch.equal(out, expected)
    out.square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert name.startswith(tuple(idle)) == (not parameter.grad.any()), name
    with torch.no_grad():
        assert torch.allclose(network(x_t, torch.tensor(t), encoded), expected, atol=1e-5)


def test_builds_without_allocating_and_copies():
    with torch.device("meta"):
        paper = Upsampler(UpsamplerConfig())
    assert 6e8 < sum(p.numel() for p in paper.parameters()) < 8e8  # 700M in the paper
    model = build(tiny())
    twin = copy.deepcopy(model)  # as an EMA does: its denoiser must use its own weights
    assert twin.denoiser.net is twin.network
    assert UpsamplerConfig.from_json(model.config.to_json()) == model.config


def test_survives_saving_and_half_precision(tmp_path):
    model, low = build(tiny(1, (1,)), std=0.02), pictures(1, 4, 5)
    model.save_pretrained(tmp_path / "up")
    expected = model.sample(low, noise=Noise.of(0))
    again = Upsampler.from_pretrained(tmp_path / "up").sample(low, noise=Noise.of(0))
    assert torch.allclose(again, expected, atol=1e-5)
    half = model.bfloat16().sample(low, noise=Noise.of(0))
    assert half.dtype == torch.float32 and torch.allclose(half, expected, atol=0.05)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"predicts": "eps"}, "residual"),
        ({"output": "mixture", "variance": "learned"}, "no channels for a learned variance"),
        ({"crop": 0.0}, "crop is"),
        ({"crops_per_image": 0}, "crops_per_image"),
        ({"scale": 1}, "scale is 1"),
        ({"conditions": Conditions(image_embed=ImageEmbedding(embed_dim=4), width=8)}, "context enters through attention"),
        ({"conditions": Conditions(label=Label(classes=2)), "last_step": "own"}, "last_step is 'own'"),
        ({"sampling": Sampling(guidance=2.0)}, "guidance"),
        ({"sampling": Sampling(steps=1001)}, "sampling: cannot take 1001 steps out of 1000"),
        ({"sampling": Sampling(sampler="ddpm", variance="learned")}, "learned"),
    ],
)
def test_bad_configs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny().replace(**changes)


def test_bad_input_is_refused():
    model, low = build(tiny()), pictures(2, 4, 4)
    noise = Noise.of(0, [0, 1])
    with pytest.raises(ValueError, match="not built for the condition 'image_embed'; it takes none"):
        model.sample(low, Cond(image_embed=torch.zeros(2, 4)), noise=noise)
    with pytest.raises(ValueError, match="not built for the condition 'label'"):
        model.loss(low, Cond(label=torch.zeros(2, dtype=torch.long)), noise=noise)
    with pytest.raises(ValueError, match="noise stream each"):
        model.sample(low, noise=Noise.of(0))
    with pytest.raises(ValueError, match="target size"):
        model.sample(low, noise=noise, x_t=torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match=r"float \(b, 3, h, w\)"):
        model.sample(low[..., :0], noise=noise)
    for wrong in (
        low[:, :1],
        low[0],
        low.byte(),
    ):  # asked directly: with shapes checked in tests, `sample` is not reached
        with pytest.raises(ValueError, match=r"float \(b, 3, h, w\)"):
            _check_images(wrong, noise, "low_res")
    for run in (model.sample, model.loss):
        with pytest.raises(ValueError, match=r"expected a picture in \[-1, 1\], given values from .*; use x / 127.5 - 1"):
            run(pictures(2, 32, 32) * 127.5 + 127.5, noise=noise)
    assert model.loss(pictures(2, 32, 32) * math.nan, noise=noise).total.isnan().all()  # the training loop tells of it
    with pytest.raises(ValueError, match="does not make high"):
        model.loss_pairs(low, torch.zeros(2, 3, 17, 16), noise=noise)
    with pytest.raises(ValueError, match="no room"):
        build(tiny(8, (1,))).loss(pictures(2, 4, 40), noise=noise)
    with pytest.raises(ValueError, match="too small"):
        model.loss(pictures(2, 3, 40), noise=noise)


def test_sampling_may_start_with_less_noise_and_read_8_bits():
    plain, other = build(tiny(), std=0.1), build(tiny(noise_scale=0.9, low_res="8bit"), std=0.1)
    low, noise = pictures(1, 4, 4), Noise.of(0, [0])
    x_t = noise.at("x_T").normal((3, 16, 16))
    rounded = ((low + 1) * 127.5).round() / 127.5 - 1
    expected = plain.sample(rounded, noise=Noise.of(0, [0]), x_t=0.9 * x_t)
    assert torch.equal(other.sample(low, noise=Noise.of(0, [0])), expected)
    assert not torch.equal(plain.sample(low, noise=Noise.of(0, [0])), expected)
    with pytest.raises(ValueError, match="noise_scale is 0.0"):
        tiny(noise_scale=0.0)
