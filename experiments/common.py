"""What every experiment shares: the command line, the result folder and its summary."""

import importlib.metadata
import platform

import jax


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers."""
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in packages
    }


def device_name() -> str:
    """The accelerator as JAX names it, with how many; for a CPU its cores."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        import os

        return f"cpu, {platform.machine()}, {os.cpu_count()} cores"
    return f"{device.device_kind} x {jax.device_count()}"
