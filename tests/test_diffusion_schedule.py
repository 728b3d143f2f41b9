import numpy as np
import pytest
import torch

from unclip.diffusion.schedule import NoiseSchedule, ScheduleConfig, spaced

# t counted from 0: (t, cosine beta, cosine alpha_bar, linear beta, linear alpha_bar)
REFERENCE = [
    (0, 4.12842e-5, 0.999959, 1e-4, 0.9999),
    (249, 1.32150e-3, 0.847012, 5.06006e-3, 0.524085),
    (499, 3.14589e-3, 0.493844, 1.00400e-2, 0.0785872),
    (749, 7.54571e-3, 0.144272, 1.50200e-2, 0.00335055),
    (998, 0.749999, 2.42877e-6, 0.0199801, 4.11819e-5),
    (999, 0.999, 2.42877e-9, 0.02, 4.03583e-5),
]


@pytest.mark.parametrize("row", REFERENCE)
def test_reference_values(row):
    t, *expected = row
    found = []
    for schedule in (NoiseSchedule.cosine(), NoiseSchedule.linear()):
        alpha_bar = schedule.alpha**2
        found += [float(1 - alpha_bar[t + 1] / alpha_bar[t]), float(alpha_bar[t + 1])]
    assert found == pytest.approx(expected, rel=5e-6)


def test_linear_keeps_its_end_at_any_number_of_steps():
    # unscaled betas would end at 0.28 instead of 0.0064
    assert float(NoiseSchedule.linear(250).alpha[-1]) == pytest.approx(float(NoiseSchedule.linear(1000).alpha[-1]), rel=0.15)


@pytest.mark.parametrize("make", [NoiseSchedule.cosine, NoiseSchedule.linear, NoiseSchedule.scaled_linear])
def test_posterior_is_that_of_bayes(make):
    schedule = make(1000)
    for t, s in [(1000, 999), (1000, 400), (700, 20), (2, 1), (1, 0)]:
        post = schedule.posterior(t, s)
        alpha_t, alpha_s = float(schedule.alpha[t]), float(schedule.alpha[s])
        var_t, var_s = float(schedule.sigma[t]) ** 2, float(schedule.sigma[s]) ** 2
        # the marginal of x_t given x0 has to come out of q(x_s | x0) followed by q(x_t | x_s)
        assert (alpha_t / alpha_s) ** 2 * var_s + post.var_ts == pytest.approx(var_t)
        # and the mean of x_s given x0 out of the posterior averaged over x_t
        assert post.from_x_t * alpha_t + post.from_x0 == pytest.approx(alpha_s)
        assert post.from_x_t**2 * var_t + post.var == pytest.approx(var_s, abs=1e-12)


def test_unit_posteriors_compose_to_the_strided_one():
    schedule = NoiseSchedule.cosine()
    for t, s in [(40, 30), (1000, 960), (500, 499), (12, 1)]:
        from_x_t, from_x0, var = 1.0, 0.0, 0.0
        for u in range(t, s, -1):
            post = schedule.posterior(u, u - 1)
            from_x_t, from_x0 = post.from_x_t * from_x_t, post.from_x_t * from_x0 + post.from_x0
            var = post.from_x_t**2 * var + post.var
        strided = schedule.posterior(t, s)
        assert (from_x_t, from_x0, var) == pytest.approx((strided.from_x_t, strided.from_x0, strided.var), rel=1e-8)


def test_published_step_lists():
    def from_zero(steps):
        times = spaced(1000, steps)
        assert times[-1] == 0
        return [t - 1 for t in reversed(times[:-1])]

    assert from_zero(7) == [0, 166, 333, 500, 666, 832, 999]
    assert from_zero(25)[:4] == [0, 42, 83, 125] and from_zero(25)[-1] == 999 and len(from_zero(25)) == 25
    assert from_zero(50)[:4] == [0, 20, 41, 61] and from_zero(50)[-1] == 999 and len(from_zero(50)) == 50
    assert from_zero(100)[:2] == [0, 10] and from_zero(100)[-1] == 999 and len(from_zero(100)) == 100
    assert from_zero(64)[:3] == [0, 16, 32] and from_zero(64)[-2:] == [983, 999] and len(from_zero(64)) == 64
    assert from_zero(250)[:3] == [0, 4, 8] and from_zero(250)[-2:] == [995, 999] and len(from_zero(250)) == 250
    sections = [0, 22, 44, 66, 88, 111, 133, 155, 177, 199, 200, 222, 244, 266, 288, 311, 333, 355, 377, 399, 400, 500, 599]
    assert from_zero("10,10,3,2,2") == [*sections, 600, 799, 800, 999]
    assert from_zero("fast27") == [*sections, 600, 799, 800, 997]
    assert from_zero("ddim25") == list(range(0, 1000, 40)) and from_zero("ddim1000") == list(range(1000))
    assert from_zero("ddim48") == list(range(0, 1000, 21))  # the first whole stride that takes so many
    with pytest.raises(ValueError, match="no whole stride takes 999 steps out of 1000: give the number alone, 999"):
        spaced(1000, "ddim999")


def test_seven_and_fifty_agree_with_diffusers():
    diffusers = pytest.importorskip("diffusers")
    if not hasattr(diffusers, "UnCLIPScheduler"):
        pytest.skip("this diffusers has no UnCLIPScheduler")
    for steps in (7, 25, 50):
        scheduler = diffusers.UnCLIPScheduler(num_train_timesteps=1000)
        scheduler.set_timesteps(steps)
        assert [t - 1 for t in spaced(1000, steps)[:-1]] == np.asarray(scheduler.timesteps).tolist()


def test_explicit_lists_are_taken_as_they_are():
    assert spaced(1000, (900, 500, 20)) == (900, 500, 20)
    assert spaced(1000, 1) == (1000, 0)
    for wrong in [(5,), (5, 5), (3, 9), (1001, 4), "a,b", "0", 2000, (-1, -3)]:
        with pytest.raises(ValueError):
            spaced(1000, wrong)


def test_lookup_broadcasts_in_the_type_of_its_partner():
    schedule = NoiseSchedule.cosine()
    x = torch.zeros(2, 3, 4, 4, dtype=torch.bfloat16)
    alpha, sigma = schedule.at(torch.tensor([1, 1000]), x)
    assert alpha.shape == (2, 1, 1, 1) and alpha.dtype == torch.bfloat16
    assert float(sigma[1]) == 1


def test_a_config_has_the_published_ends_of_its_schedule():
    for name in ("linear", "scaled_linear"):
        own, given = getattr(NoiseSchedule, name)(), ScheduleConfig(name=name, end=0.015).build()
        assert torch.equal(ScheduleConfig(name=name).build().alpha, own.alpha)
        assert given.alpha[1] == own.alpha[1] and given.alpha[-1] != own.alpha[-1]


def test_bad_schedules_are_refused():
    with pytest.raises(ValueError, match="strictly between"):
        NoiseSchedule.from_betas([0.1, 1.0])
    with pytest.raises(ValueError, match="start <= end"):
        ScheduleConfig(name="linear", start=0.5, end=0.1)
    with pytest.raises(ValueError, match="0 <= s < t"):
        NoiseSchedule.cosine().posterior(3, 3)
