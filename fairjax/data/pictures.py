"""Procedural pictures of coloured, textured things: the honest stand-in for photographs.

Networks that are pre-trained on them have seen outlines, surfaces, colours, light and clutter, and
nothing of what they are fine-tuned for, as with ImageNet: no lesions and no skin. What is drawn
does not depend on the size of the picture, so that any size shows the same.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from fairjax.data.lesion_drawing import Draws

SHAPE_NAMES = (
    "disc",
    "triangle",
    "square",
    "star",
    "cross",
    "arrow",
    "heart",
    "crescent",
    "ring",
    "zigzag",
)
TEXTURE_NAMES = ("plain", "stripes", "checks", "dots", "bricks", "patches", "clouds", "grain")
COLOUR_NAMES = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "grey")

NUM_CLUTTER = 3
"""Small things that may lie about in the background."""

_CORNERS = 20  # of every outline; one that needs fewer repeats its last
_PATCHES = 32  # at most, in a texture of patches
_LATTICES = (4, 8, 16, 32)  # cells a side of the noise that clouds are made of

# Hue in degrees, how far it strays to either side, the range of saturation.
_FAMILIES = np.array(
    [
        [0, 12, 0.5, 1],
        [30, 9, 0.5, 1],
        [57, 9, 0.5, 1],
        [115, 28, 0.4, 1],
        [180, 13, 0.4, 1],
        [225, 20, 0.4, 1],
        [285, 25, 0.4, 1],
        [0, 180, 0, 0.1],
    ],
    np.float32,
)


class Pictures(NamedTuple):
    """Images and what they show; NumPy arrays with N rows."""

    images: Any
    """uint8 `[N, H, W, 3]`, sRGB."""
    shape: Any
    """int32, of the thing in front, indices into `SHAPE_NAMES`."""
    texture: Any
    """int32, of its surface, indices into `TEXTURE_NAMES`."""
    colour: Any
    """int32, of its surface, indices into `COLOUR_NAMES`."""
    backdrop: Any
    """int32, texture of what lies behind it, indices into `TEXTURE_NAMES`."""


def synthetic_pictures(key: PRNGKeyArray, n: int, size: int | tuple[int, int] = 64) -> Pictures:
    """Draw things of some shape, texture and colour before a background of another texture.

    Every field is uniform and independent of the others. Image i depends on `key` and i only, so a
    longer set begins with a shorter one and another size shows the same pictures.

    Args:
      key: PRNG key.
      n: number of images, at least 1.
      size: pixels of a side, or (height, width); at least 16.

    Returns:
      `Pictures` of NumPy arrays with n rows.

    Raises:
      ValueError: an argument is out of range.

    Source: in the spirit of Kataoka et al. 2020, "Pre-training without natural images"; clouds are
    octaves of noise (Perlin 1985), patches the cells of scattered points (Worley 1996).

    >>> pictures = synthetic_pictures(jax.random.key(0), 3, size=16)
    >>> pictures.images.shape, SHAPE_NAMES[pictures.shape[0]]
    ((3, 16, 16, 3), 'star')
    """
    height, width = (size, size) if isinstance(size, int) else size
    if n < 1 or min(height, width) < 16:
        raise ValueError(f"n must be at least 1 and size at least 16, got {n} and {size}")
    # A fixed number per call: one compilation for any n, memory bounded by pixels.
    chunk = max(1, min(64, 2**20 // (height * width)))
    parts = []
    for start in range(0, n, chunk):
        part = _draw_chunk(key, jnp.arange(start, start + chunk), height, width)
        parts.append(jax.tree.map(np.asarray, part))
    return Pictures(*(np.concatenate(field)[:n] for field in zip(*parts, strict=True)))


@functools.partial(jax.jit, static_argnames=("height", "width"))
def _draw_chunk(key: jax.Array, rows: jax.Array, height: int, width: int) -> Pictures:
    """Pictures for the given row numbers."""
    return jax.vmap(lambda row: _draw(jax.random.fold_in(key, row), (height, width)))(rows)


def _draw(key: jax.Array, size: tuple[int, int]) -> Pictures:
    """One picture: the light that each pixel gets from each of a few paints."""
    scene_key, layers_key, things_key, camera_key = jax.random.split(key, 4)
    scene = Draws(scene_key, 96)
    height, width = size
    # Coordinates are -1 and 1 at the edges of the shorter side, so any size shows the same.
    x, y = jnp.meshgrid(
        (2 * jnp.arange(width, dtype=jnp.float32) + 1 - width) / min(size),
        (2 * jnp.arange(height, dtype=jnp.float32) + 1 - height) / min(size),
    )
    # Two layers, in front and behind. Maps instead of vmaps: XLA then draws each layer and each
    # thing once, where it would draw it again for whatever uses it.
    textures = jnp.stack([_choice(scene, len(TEXTURE_NAMES)) for _ in range(2)])
    colours = jnp.stack([_choice(scene, len(COLOUR_NAMES)) for _ in range(2)])
    front, behind = jax.lax.map(
        lambda layer: _texture(Draws(layer[0], 4096), layer[1], x, y),
        (jax.random.split(layers_key), textures),
    )
    # One thing in front, somewhere near the middle, and clutter.
    shapes = jnp.stack([_choice(scene, len(SHAPE_NAMES)) for _ in range(1 + NUM_CLUTTER)])
    clutter = jnp.arange(1 + NUM_CLUTTER) > 0
    reach = jnp.where(clutter, 0.08 + 0.17 * scene.uniform(4), 0.45 + 0.35 * scene.uniform(4))
    place = jnp.where(clutter, 2 * scene.uniform(2, 4) - 1, 0.2 * scene.normal(2, 4)).T
    depth = jax.lax.map(
        lambda thing: _depth(Draws(thing[0], 16), thing[1], thing[2], thing[3], x, y),
        (jax.random.split(things_key, 1 + NUM_CLUTTER), shapes, reach, place),
    )
    # In focus edges are a pixel wide, out of focus they blur. Half of the clutter is not there.
    blur = 1.0 / min(size) + 0.06 * scene.uniform() ** 3
    there = ~clutter | (scene.uniform(4) < 0.5)
    cover = jnp.where(there[:, None, None], jax.nn.sigmoid(2.5 * depth / blur), 0.0)

    # The thing casts a shadow about it and is lit from one side.
    dark = 0.7 * jnp.clip(scene.normal(), 0.0, 1.0)
    seen = (1.0 - cover[0]) * (1.0 - dark * jnp.exp(jnp.minimum(depth[0], 0.0) / 0.12))
    side = 0.25 * scene.normal(2) / reach[0]
    lit = cover[0] * jnp.exp(side[0] * (x - place[0, 0]) + side[1] * (y - place[0, 1]))
    parts, paints = [lit * (1.0 - front), lit * front], list(_tones(scene, colours[0]))
    for number in range(1, 1 + NUM_CLUTTER):
        parts, paints = [*parts, seen * cover[number]], [*paints, scene.uniform(3)]
        seen = seen * (1.0 - cover[number])
    parts = jnp.stack([*parts, seen * (1.0 - behind), seen * behind], axis=-1)
    paints = jnp.stack([*paints, *_tones(scene, colours[1])])

    # The light of the scene falls off to one side and has a colour; the camera adds noise.
    slope = 0.2 * scene.normal(2)
    light = jnp.exp(slope[0] * x + slope[1] * y + 0.15 * scene.normal())[..., None]
    paints = paints * jnp.exp(0.06 * scene.normal(1, 3))
    canvas = light * jnp.matmul(parts, paints, precision="highest")
    noise = 0.05 * scene.uniform() ** 2 * jax.random.normal(camera_key, (height, width, 3))
    images = jnp.round(255.0 * jnp.clip(canvas + noise, 0.0, 1.0)).astype(jnp.uint8)
    return Pictures(images, shapes[0], textures[0], colours[0], textures[1])


def _choice(draws: Draws, count: int) -> jax.Array:
    """A number in [0, count), int32; each is as likely as the others."""
    # rounding may make the largest normal number a share of exactly 1
    return jnp.minimum((count * draws.uniform()).astype(jnp.int32), count - 1)


def _tones(draws: Draws, colour: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two tones of a colour, sRGB `[3]` each."""
    hue, stray, low, high = jnp.asarray(_FAMILIES)[colour]
    one = _rgb(
        hue + stray * (2 * draws.uniform() - 1),
        low + (high - low) * draws.uniform(),
        0.5 + 0.5 * draws.uniform(),
    )
    # The other one is darker, or paler as if mixed with white.
    towards = (draws.uniform() < 0.4).astype(jnp.float32)
    other = one + (0.4 + 0.35 * draws.uniform()) * (towards - one)
    swap = draws.uniform() < 0.5
    return jnp.where(swap, other, one), jnp.where(swap, one, other)


def _rgb(hue: jax.Array, saturation: jax.Array, value: jax.Array) -> jax.Array:
    """Red, green and blue `[3]` of a hue in degrees, a saturation and a value."""
    place = jnp.mod(jnp.asarray([5.0, 3.0, 1.0]) + hue / 60.0, 6.0)
    return value * (1.0 - saturation * jnp.clip(jnp.minimum(place, 4.0 - place), 0.0, 1.0))


def _texture(draws: Draws, texture: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """How much of the second tone each pixel has, `[H, W]` in [0, 1]."""
    size = (x.shape[0], x.shape[1])
    clouds = [_smooth_noise(draws, cells, size) for cells in _LATTICES]
    # Turned, of some scale, and bent a little as on a surface that is not flat.
    turn, phase = 2 * jnp.pi * draws.uniform(), 10 * draws.uniform(2)
    scale = 1.8 * jnp.exp(0.9 * draws.uniform())
    bend = 0.25 * draws.uniform() ** 2
    u = scale * (jnp.cos(turn) * x + jnp.sin(turn) * y) + phase[0] + bend * clouds[0]
    v = scale * (jnp.cos(turn) * y - jnp.sin(turn) * x) + phase[1] + bend * clouds[1]
    wave_u, wave_v = jnp.sin(2 * jnp.pi * u), jnp.sin(2 * jnp.pi * v)
    # How hard the edges of the pattern are: a sine, or nearly black and white.
    hard = 1.5 * jnp.exp(1.2 * draws.uniform())
    squash = lambda field: 0.5 + 0.5 * jnp.tanh(hard * field)
    steep = 0.3 + 0.5 * draws.uniform()
    octaves = sum(field * steep**order for order, field in enumerate(clouds))
    row = jnp.floor(0.9 * v)
    joint = jnp.minimum(_to_joint(0.9 * v), 2 * _to_joint(0.45 * u + 0.5 * jnp.mod(row, 2.0)))
    fields = (
        0.5 + 0.2 * (draws.normal() * x + draws.normal() * y),
        squash(wave_u),
        squash(1.5 * wave_u * wave_v),
        squash(wave_u + wave_v - 0.7),
        squash(6.0 * (joint - 0.13)),
        _patches(draws, x + 0.1 * bend * clouds[1], y),
        squash(0.5 * octaves),
        squash(0.4 * _smooth_noise(draws, 48, size)),
    )
    pick = jnp.select([texture == number for number in range(len(fields))], fields)
    return jnp.clip(pick, 0.0, 1.0)


def _smooth_noise(draws: Draws, cells: int, size: tuple[int, int]) -> jax.Array:
    """Smooth noise `[H, W]` of about unit variance, on a lattice that no size changes."""
    return 1.3 * jax.image.resize(draws.normal(cells, cells), size, "cubic")


def _to_joint(place: jax.Array) -> jax.Array:
    """Distance to the nearest whole number, at most a half."""
    return jnp.abs(place - jnp.round(place))


def _patches(draws: Draws, x: jax.Array, y: jax.Array) -> jax.Array:
    """The tone, `[H, W]` in [0, 1], of whichever of some scattered points is nearest."""
    points = 2.4 * draws.uniform(_PATCHES, 2) - 1.2
    tones = draws.uniform(_PATCHES)
    used = jnp.arange(_PATCHES, dtype=jnp.float32) < 10 + 22 * draws.uniform()

    def nearer(best, point):
        (px, py), tone, used = point
        distance = jnp.where(used, (x - px) ** 2 + (y - py) ** 2, jnp.inf)
        nearest = distance < best[0]
        return (jnp.where(nearest, distance, best[0]), jnp.where(nearest, tone, best[1])), None

    start = (jnp.full_like(x, jnp.inf), jnp.zeros_like(x))
    return jax.lax.scan(nearer, start, (points, tones, used))[0][1]


def _depth(
    draws: Draws,
    shape: jax.Array,
    reach: jax.Array,
    place: jax.Array,
    x: jax.Array,
    y: jax.Array,
) -> jax.Array:
    """How far each pixel `[H, W]` lies inside a thing, negative outside.

    `reach` is about half its length, `place` `[2]` its middle.
    """
    corners, closed, stroke = (jnp.asarray(table)[shape] for table in _OUTLINES)
    # Bent by a wave, so that equal corners stay equal, stretched, turned and shifted.
    product = functools.partial(jnp.matmul, precision="highest")
    wave = product(2.0 * corners, draws.normal(2, 2)) + 2 * jnp.pi * draws.uniform(1, 2)
    corners = corners + 0.05 * jnp.sin(wave)
    stretch = jnp.exp(0.18 * draws.normal())
    corners = corners * jnp.stack([stretch, 1.0 / stretch])[None]
    turn = 2 * jnp.pi * draws.uniform()
    rows = [[jnp.cos(turn), -jnp.sin(turn)], [jnp.sin(turn), jnp.cos(turn)]]
    turned = jnp.stack([jnp.stack(row) for row in rows]).T
    corners = product(reach * corners, turned) + place[None]
    ends = jnp.roll(corners, -1, axis=0)
    ends = ends.at[-1].set(jnp.where(closed, ends[-1], corners[-1]))

    def edge(best, line):
        """The nearest edge so far, and whether an odd number of edges lies to the right."""
        nearest, inside = best
        (ax, ay), (bx, by) = line
        dx, dy = bx - ax, by - ay
        along = jnp.clip(
            ((x - ax) * dx + (y - ay) * dy) / jnp.maximum(dx**2 + dy**2, 1e-9), 0.0, 1.0
        )
        distance = (x - ax - along * dx) ** 2 + (y - ay - along * dy) ** 2
        crosses = ((ay > y) != (by > y)) & (x - ax < dx * (y - ay) / jnp.where(dy == 0, 1.0, dy))
        return (jnp.minimum(nearest, distance), inside ^ crosses), None

    start = (jnp.full_like(x, jnp.inf), jnp.zeros_like(x, bool))
    nearest, inside = jax.lax.scan(edge, start, (corners, ends))[0]
    distance = jnp.sqrt(nearest)
    return jnp.where(stroke > 0, reach * stroke - distance, jnp.where(inside, 1.0, -1.0) * distance)


def _outlines() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Corners `[S, C, 2]`, whether the last meets the first, half the stroke's width or 0."""

    def arc(angle, radius=1.0):
        return radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)

    def circle(count, radius=1.0):
        return arc(2 * math.pi * np.arange(count) / count, radius)

    star = circle(10) * np.where(np.arange(10) % 2, 0.42, 1.0)[:, None]
    quarter = np.array([(1, 0.3), (0.3, 0.3), (0.3, 1)])
    cross = np.concatenate([quarter @ np.array([[c, s], [-s, c]]) for c, s in circle(4).round()])
    arrow = [(1, 0), (0.1, 0.75), (0.1, 0.3), (-1, 0.3), (-1, -0.3), (0.1, -0.3), (0.1, -0.75)]
    t = 2 * math.pi * np.arange(_CORNERS) / _CORNERS
    bow = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    heart = np.stack([np.sin(t) ** 3, bow / 16], axis=1)
    outer, inner = (np.linspace(*ends, 10) * math.pi for ends in ((0.22, 1.78), (1.72, 0.28)))
    crescent = np.concatenate([arc(outer), arc(inner, 0.72) + np.array([0.35, 0])])
    zigzag = [(-1, -0.4), (-0.5, 0.4), (0, -0.4), (0.5, 0.4), (1, -0.4)]
    table = {
        "disc": (circle(_CORNERS, 0.85), True, 0.0),
        "triangle": (circle(3), True, 0.0),
        "square": (circle(4), True, 0.0),
        "star": (star, True, 0.0),
        "cross": (cross, True, 0.0),
        "arrow": (arrow, True, 0.0),
        "heart": (heart, True, 0.0),
        "crescent": (crescent, True, 0.0),
        "ring": (circle(_CORNERS, 0.75), True, 0.2),
        "zigzag": (zigzag, False, 0.13),
    }
    corners, closed, stroke = zip(*(table[name] for name in SHAPE_NAMES), strict=True)
    padded = [np.pad(c, ((0, _CORNERS - len(c)), (0, 0)), "edge") for c in map(np.array, corners)]
    return np.array(padded, np.float32), np.array(closed), np.array(stroke, np.float32)


_OUTLINES = _outlines()
