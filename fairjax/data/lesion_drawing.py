"""How one synthetic lesion is made of random numbers: its signs, and a photograph of it."""

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

MAX_COLOURS = 4
NUM_HAIRS = 8

# Individual typology angle in degrees (Chardon et al. 1991): above 28 is light to intermediate,
# below is tan to dark. Rows are groups, columns mean, spread, lowest and highest.
_ITA = np.array([[48.0, 9.0, 28.0, 70.0], [-5.0, 18.0, -50.0, 28.0]], np.float32)

# Absorbance of the pigments per unit of density for linear red, green and blue. Melanin looks
# light brown, dark brown or black as it thickens, blue-grey when deep; red is blood.
_PIGMENTS = np.array(
    [[0.35, 0.75, 1.15], [0.9, 1.35, 1.7], [2.2, 2.3, 2.3], [1.3, 1.05, 0.75], [0.2, 1.0, 0.9]],
    np.float32,
)

# Orders in which a lesion takes its colours: first a brown, then the others.
_PALETTES = np.array(
    [(brown, *rest) for brown in (0, 1) for rest in itertools.permutations((2, 3, 4))], np.int32
)

# How far, in standard deviations, a malignant lesion's score exceeds a benign one's: asymmetry,
# border irregularity, colour variegation, diameter. An ideal observer would reach an AUC of 0.93.
_SIGNS = np.array([1.0, 1.0, 1.25, 0.75], np.float32)


class Domain(NamedTuple):
    """How lesions are sampled; probabilities unless said otherwise."""

    dark: float
    """Share of images on dark skin."""
    malignant: tuple[float, float]
    """Share of malignant lesions on light and on dark skin."""
    label_noise: float
    """Chance that a recorded label is wrong, the same in both groups."""
    hair: float
    """Chance of each of `NUM_HAIRS` hairs."""
    vignette: float
    """Chance of dark corners."""
    tint: float
    """Spread of the camera's white balance, log units."""


class Draws:
    """Hands out pieces of one vector of normal numbers.

    Every call of a random generator takes a second to compile; this needs one instead of forty.
    """

    def __init__(self, key: jax.Array, count: int):
        self.rest = jax.random.normal(key, (count,))

    def normal(self, *shape: int) -> jax.Array:
        """The next numbers, standard normal, of this shape."""
        count = math.prod(shape)
        taken, self.rest = self.rest[:count], self.rest[count:]
        return taken.reshape(shape)

    def uniform(self, *shape: int) -> jax.Array:
        """The next numbers, uniform in [0, 1], of this shape."""
        return jax.scipy.special.ndtr(self.normal(*shape))


def draw_signs(draws: Draws, domain: Domain) -> dict[str, jax.Array]:
    """Everything about one lesion that does not depend on the photograph."""
    group = (draws.uniform() < domain.dark).astype(jnp.int32)
    mean, spread, low, high = jnp.asarray(_ITA)[group]
    ita = jnp.clip(mean + spread * draws.normal(), low, high)
    prevalence = jnp.stack(domain.malignant)[group].astype(jnp.float32)
    diagnosis = (draws.uniform() < prevalence).astype(jnp.int32)
    flip = draws.uniform() < domain.label_noise
    labels = jnp.where(flip, 1 - diagnosis, diagnosis)

    asymmetry, irregularity, variegation, diameter = (
        draws.normal(4) + diagnosis.astype(jnp.float32) * _SIGNS
    )
    elongation = 0.5 * draws.uniform()
    softness = draws.uniform()

    shape = jnp.where(asymmetry > 0.8, 2, jnp.where(elongation > 0.2, 1, 0))
    border = jnp.where(irregularity > 0.8, 2, jnp.where(softness > 0.5, 1, 0))
    thresholds = jnp.asarray([0.0, 0.9, 1.8], jnp.float32)
    colours = jnp.sum((variegation > thresholds).astype(jnp.int32))
    return {
        "group": group,
        "ita": ita,
        "diagnosis": diagnosis,
        "labels": labels,
        "asymmetry": jax.nn.sigmoid(1.5 * (asymmetry - 0.5)),
        "irregularity": jax.nn.sigmoid(1.5 * (irregularity - 0.5)),
        "diameter": jax.nn.sigmoid(diameter - 0.4),
        "elongation": elongation,
        "softness": jnp.where(border == 1, 0.10 + 0.08 * softness, 0.03),
        "shape": shape.astype(jnp.int32),
        "border": border.astype(jnp.int32),
        "colours": colours,
        "palette": jnp.asarray(_PALETTES)[(len(_PALETTES) * draws.uniform()).astype(jnp.int32)],
        "density": 0.7 + 0.6 * draws.uniform(),
        "b": 16.0 + 2.0 * draws.normal(),
    }


def _smooth_noise(draws: Draws, cells: int, size: tuple[int, int]) -> jax.Array:
    """Smooth noise `[H, W]` of about unit variance, on a lattice that no size changes."""
    return 1.3 * jax.image.resize(draws.normal(cells, cells), size, "cubic")


def _lesion_depth(
    draws: Draws, signs: dict[str, jax.Array], x: jax.Array, y: jax.Array
) -> jax.Array:
    """Depth inside the border `[H, W]`: 1 at the centre, 0 on the border, negative outside."""
    x = x * (1.0 + signs["elongation"])
    y = y * (1.0 - 0.5 * signs["elongation"])
    distance = jnp.sqrt(x**2 + y**2) + 1e-6
    # Border radius as a Fourier series of the angle: low orders deform the shape, high orders
    # roughen the outline.
    orders = jnp.arange(1, 13)
    low = orders <= 3
    scale = jnp.where(low, 0.28 * signs["asymmetry"], 0.055 * signs["irregularity"] + 0.006)
    scale = scale * jnp.where(orders == 1, 0.5, 1.0)
    amplitude = scale * (0.5 + draws.uniform(12))
    phase = 2 * jnp.pi * draws.uniform(12)
    angle = jnp.arctan2(y, x)
    waves = jnp.cos(orders.astype(jnp.float32)[:, None, None] * angle[None] + phase[:, None, None])
    radius = 1.0 + jnp.tensordot(amplitude, waves, axes=1, precision="highest")
    return 1.0 - distance / jnp.clip(radius, 0.35, 1.8)


def _skin(ita: jax.Array, b: jax.Array, redness: jax.Array) -> jax.Array:
    """Linear RGB `[3]` of skin with the given typology angle, from CIE L*a*b* (D65)."""
    lightness = 50.0 + b * jnp.tan(jnp.deg2rad(ita))
    lightness = jnp.clip(lightness, 22.0, 82.0)
    fy = (lightness + 16.0) / 116.0
    f = jnp.stack([fy + redness / 500.0, fy, fy - b / 200.0])
    white = jnp.asarray([0.9505, 1.0, 1.089], jnp.float32)
    xyz = white * jnp.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
    to_rgb = jnp.asarray(
        [[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]],
        jnp.float32,
    )
    return jnp.clip(jnp.matmul(to_rgb, xyz, precision="highest"), 0.005, 1.0)


def _pigment_mix(
    draws: Draws, signs: dict[str, jax.Array], x: jax.Array, y: jax.Array
) -> jax.Array:
    """Absorbance `[H, W, 3]` of a lesion made of `colours + 1` soft-edged patches."""
    # Patches are sums of a few plane waves in lesion coordinates, so they turn with the lesion.
    waves = 2.2 * draws.normal(MAX_COLOURS, 4, 2)
    phase = 2 * jnp.pi * draws.uniform(MAX_COLOURS, 4)
    field = jnp.cos(
        waves[:, :, 0, None, None] * x[None, None]
        + waves[:, :, 1, None, None] * y[None, None]
        + phase[:, :, None, None]
    ).sum(1)
    present = jnp.arange(MAX_COLOURS) <= signs["colours"]
    logits = jnp.where(present[:, None, None], 2.5 * field, -1e9)
    share = jax.nn.softmax(logits, axis=0)
    density = 0.8 + 0.4 * draws.uniform(MAX_COLOURS, 1)
    absorbance = jnp.asarray(_PIGMENTS)[signs["palette"]] * density
    product = jnp.tensordot(absorbance, share, axes=[[0], [0]], precision="highest")
    return jnp.moveaxis(product, 0, -1)


def _hairs(draws: Draws, x: jax.Array, y: jax.Array, probability: jax.Array | float) -> jax.Array:
    """How much hair covers each pixel, `[H, W]` in [0, 1]: arcs of large circles."""
    shape = (NUM_HAIRS, 1, 1)
    on = draws.uniform(*shape) < probability
    angle = 2 * jnp.pi * draws.uniform(*shape)
    reach = 1.8 + 4.0 * draws.uniform(*shape)
    radius = reach + 0.6 * jnp.clip(draws.normal(*shape), -2.0, 2.0)
    width = 0.008 + 0.012 * draws.uniform(*shape)
    distance = jnp.hypot(x[None] - reach * jnp.cos(angle), y[None] - reach * jnp.sin(angle))
    gap = distance - radius
    # A pixel wider than the hair sees it diluted rather than not at all.
    pixel = 2.0 / min(x.shape)
    sigma = jnp.sqrt(width**2 + (0.5 * pixel) ** 2)
    cover = jnp.exp(-0.5 * (gap / sigma) ** 2) * width / sigma
    return 1.0 - jnp.prod(1.0 - 0.9 * jnp.where(on, cover, 0.0), axis=0)


def draw_photo(
    draws: Draws,
    form: Draws,
    signs: dict[str, jax.Array],
    size: tuple[int, int],
    domain: Domain,
) -> jax.Array:
    """One photograph, uint8 `[H, W, 3]`; `form` belongs to the lesion, `draws` to the photo."""
    height, width = size
    short = min(height, width)
    # Coordinates are -1 and 1 at the edges of the shorter side, so any size shows the same.
    x, y = jnp.meshgrid(
        (2 * jnp.arange(width, dtype=jnp.float32) + 1 - width) / short,
        (2 * jnp.arange(height, dtype=jnp.float32) + 1 - height) / short,
    )

    # The lesion lies somewhere near the middle, turned by any angle.
    turn = 2 * jnp.pi * draws.uniform()
    shift = 0.15 * draws.normal(2)
    zoom = jnp.exp(0.12 * draws.normal())
    reach = (0.30 + 0.34 * signs["diameter"]) * zoom
    dx, dy = (x - shift[0]) / reach, (y - shift[1]) / reach
    u = jnp.cos(turn) * dx + jnp.sin(turn) * dy
    v = jnp.cos(turn) * dy - jnp.sin(turn) * dx
    depth = _lesion_depth(form, signs, u, v)
    inside = jax.nn.sigmoid(depth / signs["softness"])

    # Melanin in the skin hides melanin in the lesion: density falls as skin darkens.
    veil = jax.nn.sigmoid((signs["ita"] - 12.0) / 12.0)
    density = signs["density"] * (0.3 + 0.7 * veil)
    mottle = _smooth_noise(draws, 24, size)
    absorbance = _pigment_mix(form, signs, u, v) * (density * inside)[..., None]
    absorbance = absorbance * (1.0 + 0.12 * mottle)[..., None]

    redness = 11.0 + 1.5 * draws.normal()
    skin = _skin(signs["ita"], signs["b"], redness)
    texture = _smooth_noise(draws, 12, size)
    light = jnp.exp(0.05 * texture + 0.08 * (draws.normal() * x + draws.normal() * y))
    colour = skin[None, None] * light[..., None] * jnp.exp(-absorbance)

    hair = _hairs(draws, x, y, domain.hair)[..., None]
    colour = colour * (1.0 - hair) + 0.015 * hair
    tint = jnp.exp(domain.tint * draws.normal(3))
    corner = jax.nn.sigmoid((1.15 - jnp.sqrt(x**2 + y**2)) / 0.06)
    dark_corners = draws.uniform() < domain.vignette
    colour = colour * tint[None, None] * jnp.where(dark_corners, corner, 1.0)[..., None]

    colour = jnp.clip(colour, 0.0, 1.0)
    srgb = jnp.where(colour < 0.0031308, 12.92 * colour, 1.055 * colour ** (1 / 2.4) - 0.055)
    # Shot noise: dark skin reflects less light, so the camera amplifies it more.
    gain = jnp.clip(jnp.sqrt(0.35 / jnp.mean(skin)), 1.0, 2.0)
    srgb = srgb + 0.02 * gain * draws.normal(height, width, 3)
    return jnp.round(255.0 * jnp.clip(srgb, 0.0, 1.0)).astype(jnp.uint8)
