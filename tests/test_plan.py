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
        lower = plan.make_search(config).lower
        return program_bytes(lower(3)) - program_bytes(lower(2))

    assert 0 < each("norm") < 0.3 * each("full")


def test_the_plan_lowers_the_very_program_that_the_search_runs(monkeypatch):
    config = dataclasses.replace(
        SMOKE, objective="worst_group_auc", num_images=24, num_val=16, dtype="float32"
    )
    planned = plan.make_search(config).lower(2).as_text()
    real = lesions_dataset(jax.random.key(0), 48, 18)
    labels = np.arange(48, dtype=np.int32) % 2
    rows = np.arange(48, dtype=np.int32)
    real = dataclasses.replace(
        real, labels=labels, group=(np.arange(48, dtype=np.int32) // 2) % 2,
        splits={"train": rows[:24], "val": rows[24:40], "test": rows[40:]},
    )  # fmt: skip
    model, weights = load_pretrained("vit_micro", 2, jax.random.key(0), image_size=16)
    recipe = Recipe(
        num_epochs=1, batch_size=8, checkpoint_blocks=True, augment=make_augment("crop", 16)
    )
    search = mask_search(
        model, weights, real, recipe, key=jax.random.key(0), space="norm", num_slots=2,
        num_trials=2, chunk_size=2, search="random",
    )  # fmt: skip
    ran = []
    with jax.log_compiles(False):
        monkeypatch.setattr(jax, "devices", lambda *a, there=jax.devices(): there[:1])
        original = mask_search_module.spread

        def note(tree, mesh):
            ran.append(jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree))
            return original(tree, mesh)

        monkeypatch.setattr(mask_search_module, "spread", note)
        search.run()
    states, masks, active = ran[0]
    assert active[0] == (2,)
    assert search.lower(2).as_text() == planned


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
