import pytest
import torch
from oracles import gaussian

from unclip.diffusion.denoiser import Denoiser
from unclip.diffusion.guidance import classifier_free, gradient_guidance, keep_known, observe, threshold
from unclip.diffusion.samplers import ddim, ddpm
from unclip.diffusion.schedule import NoiseSchedule
from unclip.randomness import Noise
from unclip.types import Prediction

SCHEDULE = NoiseSchedule.cosine()


class Counting:
    """A network whose output depends on the condition, with learned variance, that counts the rows it is given."""

    def __init__(self):
        self.rows = []

    def __call__(self, x, t, cond):
        self.rows.append(len(x))
        return torch.cat([x * 0.5 + cond["shift"], 0 * x + cond["shift"]], dim=1)


def setup(scale, interval=None):
    net = Counting()
    denoiser = Denoiser(net, SCHEDULE, "eps", learned_variance=True)
    cond, null = {"shift": torch.full((2, 1, 1, 1), 0.7)}, {"shift": torch.full((1, 1, 1, 1), -0.2)}
    return net, denoiser, cond, null, classifier_free(denoiser, cond, null, scale, interval)


def test_scale_one_costs_one_row_and_equals_the_condition():
    net, denoiser, cond, _, guided = setup(1.0)
    x, t = torch.randn(2, 3, 4, 4), torch.tensor([500, 500])
    assert torch.equal(guided(x, t).eps, denoiser(x, t, cond).eps)
    assert net.rows == [2, 2]


def test_guidance_extrapolates_eps_and_x0_alike_and_never_the_variance():
    net, denoiser, cond, null, guided = setup(3.0)
    x, t = torch.randn(2, 3, 4, 4), torch.tensor([500, 500])
    out, with_cond = guided(x, t), denoiser(x, t, cond)
    without = denoiser(x, t, {"shift": null["shift"].expand(2, 1, 1, 1)})
    assert net.rows[0] == 4  # both rows in one pass
    assert torch.allclose(out.eps, without.eps + 3 * (with_cond.eps - without.eps), atol=1e-5)
    alpha, sigma = SCHEDULE.at(t, x)
    assert torch.allclose(alpha * out.x0 + sigma * out.eps, x, atol=1e-5)
    assert torch.equal(out.variance_mix, with_cond.variance_mix)
    assert not torch.allclose(out.eps, with_cond.eps)


def test_scale_zero_is_the_null():
    _, denoiser, _, null, guided = setup(0.0)
    x, t = torch.randn(2, 3, 4, 4), torch.tensor([300, 300])
    assert torch.allclose(guided(x, t).eps, denoiser(x, t, {"shift": null["shift"].expand(2, 1, 1, 1)}).eps, atol=1e-6)


def test_interval_guides_only_inside():
    net, denoiser, cond, _, guided = setup(3.0, interval=(200, 600))
    x = torch.randn(2, 3, 4, 4)
    for t, rows in [(200, 2), (201, 4), (600, 4), (601, 2)]:
        guided(x, torch.tensor([t, t]))
        assert net.rows[-1] == rows, t


def test_static_threshold_bounds_x0_and_keeps_x_t():
    denoise = gaussian(SCHEDULE, torch.tensor(3.0), torch.tensor(1.0))
    x, t = torch.randn(2, 3, 4, 4), torch.tensor([400, 900])
    out = threshold(denoise, SCHEDULE, "static")(x, t)
    alpha, sigma = SCHEDULE.at(t, x)
    assert out.x0.abs().max() <= 1 < denoise(x, t).x0.abs().max()
    assert torch.allclose(alpha * out.x0 + sigma * out.eps, x, atol=1e-5)


def test_dynamic_threshold_scales_wild_pictures_and_leaves_tame_ones():
    x0 = torch.stack([torch.linspace(-0.9, 0.9, 100), torch.linspace(-4, 4, 100)]).reshape(2, 1, 10, 10)
    out = threshold(lambda x, t: Prediction(x0, x), SCHEDULE, 0.9)(torch.zeros_like(x0), torch.tensor([500, 500])).x0
    assert torch.equal(out[0], x0[0])
    assert float(out[1].abs().max()) == pytest.approx(1)
    assert float(out[1, 0, 5, 5]) == pytest.approx(float(x0[1, 0, 5, 5]) / float(x0[1].abs().flatten().quantile(0.9)))


def test_noise_repeats_and_children_are_independent():
    noise = Noise.of(0, [0, 1])
    assert noise.repeat(3).normal((2,)).shape == (6, 2)
    assert torch.equal(noise.at("a").normal((4,)), Noise.of(0, [0, 1]).at("a").normal((4,)))
    assert not torch.equal(noise.at("a").normal((4,)), noise.at("b").normal((4,)))
    assert torch.equal(noise.repeat(2)[:1].normal((3,)), Noise.of(0, [0]).repeat(1).normal((3,)))
    before = torch.get_rng_state()
    noise.uniform((5,)), noise.integers(0, 9, (5,))
    assert torch.equal(before, torch.get_rng_state())


def test_keep_known_ends_in_the_known_pixels_and_draws_the_others_to_fit():
    """Two pixels that are equal in all data: when one is known, the other follows."""

    def denoise(x, t):  # exact for x0 = (c, c) with c ~ N(0, 1): both observations tell of one number
        alpha, sigma = SCHEDULE.at(t, x)
        x0 = (alpha * x.sum(-1, keepdim=True) / (2 * alpha**2 + sigma**2)).expand_as(x)
        return Prediction(x0, (x - alpha * x0) / sigma)

    images = torch.full((4000, 3, 1, 2), 0.6)
    keep = torch.tensor([True, False]).expand(4000, 1, 1, 2)
    noise = Noise.of(0, range(4000))
    guided = keep_known(denoise, SCHEDULE, images, keep)
    x = ddpm(guided, noise.at("x_T").normal((3, 1, 2)), SCHEDULE, tuple(range(1000, -1, -20)), noise=noise)
    assert torch.equal(x[..., 0], images[..., 0])
    free = ddpm(denoise, noise.at("x_T").normal((3, 1, 2)), SCHEDULE, tuple(range(1000, -1, -20)), noise=noise)
    assert (x[..., 1] - 0.6).abs().mean() < 0.5 * (free[..., 1] - 0.6).abs().mean()
    out = guided(x, torch.full((4000,), 500))
    alpha, sigma = SCHEDULE.at(500, x)
    assert torch.allclose(alpha * out.x0 + sigma * out.eps, x, atol=1e-5)


def test_observe_sees_every_step_and_changes_no_bit():
    def denoise(x, t):
        return Prediction(0.5 * x, 0.5 * x)

    seen = []
    x, times = torch.randn(2, 3, 4, 4), (900, 600, 300, 0)
    watched = observe(denoise, lambda x_t, t, prediction: seen.append((int(t[0]), prediction.x0.clone())))
    assert torch.equal(ddim(watched, x, SCHEDULE, times), ddim(denoise, x, SCHEDULE, times))
    assert [t for t, _ in seen] == [900, 600, 300] and seen[0][1].shape == x.shape


def test_gradient_guidance_takes_its_gradient_in_float32_outside_autocast():
    x, t = torch.randn(2, 3, 4, 4), torch.tensor([500, 500])
    weight = torch.linspace(0.1, 0.7, 48)[:, None]

    def fn(x, t):
        logits = x.flatten(1) @ weight  # a product that autocast rounds
        assert logits.dtype == torch.float32
        return logits[:, 0]

    def denoise(x, t):
        assert not torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")
        return Prediction(x, x)

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        score = gradient_guidance(denoise, fn, 2.0)(x.bfloat16(), t).score
    assert torch.equal(score, 2 * weight.reshape(1, 3, 4, 4).expand(2, -1, -1, -1))


@pytest.mark.parametrize("fn", [lambda x, t: x, lambda x, t: x.sum(), lambda x, t: 1.0])
def test_gradient_guidance_refuses_what_is_no_log_probability_per_picture(fn):
    guided = gradient_guidance(lambda x, t: Prediction(x, x), fn, 1.0)
    with pytest.raises(ValueError, match=r"for each picture, \(2,\); this one gave"):
        guided(torch.randn(2, 3, 4, 4), torch.tensor([500, 500]))
