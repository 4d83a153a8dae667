"""`experiments.plan`: how many candidates fit on a device."""

import dataclasses
import importlib.util
import math
import re

import jax
import numpy as np
import pytest

from experiments import plan
from experiments.data import make_augment
from fairjax.data import lesions_dataset
from fairjax.fairtune import mask_search, setup
from fairjax.memory import find_device, hbm_bytes, largest_fit, program_bytes
from fairjax.models import load_pretrained
from fairjax.train import Recipe

SMOKE = plan.PRESETS["smoke"]


@pytest.mark.parametrize("per_candidate", [1.0, 7.0, 30.0])
@pytest.mark.parametrize("bent", [0.0, 0.3])
def test_the_largest_population_is_found_exactly(per_candidate, bent):
    cost = lambda n: 100 + per_candidate * n + bent * n**1.3  # noqa: E731
    fits = largest_fit(cost, 400, 64)
    expected = max(n for n in range(1, 65) if cost(n) <= 400)
    assert max(fits) == expected
    assert all(value == cost(n) for n, value in fits.items())


def test_programs_that_do_not_even_compile_count_as_too_large():
    fits = largest_fit(lambda n: 10.0 * n if n < 14 else math.inf, 1000, 64)
    assert max(fits) == 13
    with pytest.raises(ValueError, match="one candidate needs more"):
        largest_fit(lambda n: math.inf, 1000, 64)


def test_a_norm_space_costs_less_per_candidate_than_full_fine_tuning():
    def each(space):
        config = dataclasses.replace(SMOKE, space=space)
        lower = plan.make_search(config).lower
        return program_bytes(lower(3)) - program_bytes(lower(2))

    assert 0 < each("norm") < 0.3 * each("full")


def balanced_lesions(num_train, num_val, size):
    """Real images, with every label in every group."""
    rows = np.arange(num_train + num_val + 4, dtype=np.int32)
    ends = {"train": (0, num_train), "val": (num_train, num_train + num_val)}
    ends["test"] = (num_train + num_val, len(rows))
    return dataclasses.replace(
        lesions_dataset(jax.random.key(0), len(rows), size),
        labels=rows % 2,
        group=rows // 2 % 2,
        splits={split: rows[slice(*end)] for split, end in ends.items()},
        ids=None,
    )


def test_the_plan_lowers_the_very_program_that_the_search_runs(monkeypatch):
    ran, make, first = [], setup.make_program, jax.devices()[:1]

    def spied(*args, **settings):
        program = make(*args, **settings)

        def advance(*arrays, **static):
            ran.append(program.advance.lower(*arrays, **static).as_text())
            return program.advance(*arrays, **static)

        return program._replace(advance=advance)

    config = dataclasses.replace(SMOKE, num_images=24, num_val=16, dtype="float32")
    planned = plan.make_search(config).lower(2).as_text()
    monkeypatch.setattr(jax, "devices", lambda *_: first)
    monkeypatch.setattr(setup, "make_program", spied)
    model, weights = load_pretrained("vit_micro", 2, jax.random.key(0), image_size=16)
    mask_search(
        model,
        weights,
        balanced_lesions(24, 16, 18),
        Recipe(
            num_epochs=1, batch_size=8, checkpoint_blocks=True, augment=make_augment("crop", 16)
        ),
        key=jax.random.key(0),
        space="norm",
        search="random",
        num_trials=2,
        num_slots=2,
        chunk_size=2,
    ).run()
    assert without_places(ran[0]) == without_places(planned)


def without_places(program):
    """The functions of a lowered program, whatever the devices on which its arguments lie.

    Helpers are numbered, ordered and shared as they are met, so that neither says anything.
    """
    lines = [line for line in program.splitlines() if "sdy.mesh" not in line]
    text = re.sub(
        r"(sdy|mhlo)\.[a-z_]+ = (#sdy\.sharding<[^>]*>|\"[^\"]*\")(, )?", "", "\n".join(lines)
    )
    text = re.sub(r"@(\w+?)_\d+\b", r"@\1", text).replace(" {}", "")
    return set(re.split(r"\n  func\.func |\n  }\n?", text))


def test_an_unknown_device_is_refused_in_one_line():
    with pytest.raises(ValueError, match="device v99:2x2"):
        find_device("v99:2x2")


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="asks the TPU compiler, which needs no TPU: pip install libtpu",
)
def test_a_tpu_chip_tells_its_memory():
    device, count = find_device("v5e:2x2")
    assert count == 4
    assert hbm_bytes(device) == int(15.75 * 2**30)
