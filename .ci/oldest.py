"""Print the lower bounds of fairjax's own and its test runner's requirements as exact versions."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
runner = {"pytest", "pytest-xdist", "beartype", "hypothesis"}
for requirement in [*project["dependencies"], *project["optional-dependencies"]["test"]]:
    match = re.fullmatch(r"([\w.-]+)>=([\w.]+)", requirement)
    if match is None:
        raise SystemExit(f"no lower bound in {requirement!r}")
    name, version = match.groups()
    if requirement in project["dependencies"] or name in runner:
        print(f"{name}=={version}")
    if name == "jax":
        print(f"jaxlib=={version}")  # jax takes any newer one
