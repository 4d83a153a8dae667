"""`experiments.plan`: how many candidates fit on a device."""

import importlib.util
import math

import jax
import pytest

from experiments import plan
from fairjax.sharding import program_bytes

SMOKE = plan.PRESETS["smoke"]


@pytest.mark.parametrize("per_candidate", [1.0, 7.0, 30.0])
@pytest.mark.parametrize("bent", [0.0, 0.3])
def test_the_largest_population_is_found_exactly(per_candidate, bent):
    cost = lambda n: 100 + per_candidate * n + bent * n**1.3  # noqa: E731
    fits = plan.largest_fit(cost, 400, 64)
    expected = max(n for n in range(1, 65) if cost(n) <= 400)
    assert max(fits) == expected
    assert all(value == cost(n) for n, value in fits.items())


def test_programs_that_do_not_even_compile_count_as_too_large():
    fits = plan.largest_fit(lambda n: 10.0 * n if n < 14 else math.inf, 1000, 64)
    assert max(fits) == 13
    with pytest.raises(ValueError, match="one candidate needs more"):
        plan.largest_fit(lambda n: math.inf, 1000, 64)


def test_a_norm_space_costs_less_per_candidate_than_full_fine_tuning():
    def each(space):
        config = plan.dataclasses.replace(SMOKE, space=space)
        lower = plan.population_program(config, jax.devices()[0])
        return program_bytes(lower(3)) - program_bytes(lower(2))

    assert 0 < each("norm") < 0.3 * each("full")


def test_an_unknown_device_is_refused_in_one_line():
    with pytest.raises(ValueError, match="--device v99:2x2"):
        plan.find_device("v99:2x2")


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="asks the TPU compiler, which needs no TPU: pip install libtpu",
)
def test_a_tpu_chip_tells_its_memory():
    device, count = plan.find_device("v5e:2x2")
    assert count == 4
    assert plan.hbm_bytes(device) == int(15.75 * 2**30)
