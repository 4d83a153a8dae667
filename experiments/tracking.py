"""Where the numbers of a run can go besides `history.jsonl`: TensorBoard, W&B, MLflow."""

import atexit
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

Tracker = Literal["tensorboard", "wandb", "mlflow"]
Write = Callable[[int, dict[str, float]], None]
"""`write(step, {name: value})`; yours can be appended to `Run.writers`."""

_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}


def check_trackers(names: tuple[str, ...]) -> None:
    """Raises ValueError for one whose package is not installed."""
    for name in names:
        if importlib.util.find_spec(_PACKAGES[name]) is None:
            raise ValueError(
                f"--track {name} needs the package {_PACKAGES[name]}: "
                "pip install 'fairjax[tracking]'"
            )


def make_writer(name: str, folder: Path, experiment: str, config: Mapping[str, Any]) -> Write:
    """The writer of one tracker, for a run that begins or goes on in `folder`."""
    return {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}[name](
        folder, experiment, config
    )


def flat_numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers in a row of history by their path: `{"rows": {"plain": {"loss": 1}}}` has
    `rows/plain/loss`, lists have indices; what is undefined or text is left out."""

    def walk(value: Any, path: str) -> Iterator[tuple[str, float]]:
        if isinstance(value, Mapping):
            for name, item in value.items():
                yield from walk(item, f"{path}/{name}" if path else name)
        elif isinstance(value, list):
            for i, item in enumerate(value):
                yield from walk(item, f"{path}/{i}")
        elif isinstance(value, (int, float)):
            yield path, float(value)

    return dict(walk(row, ""))


def _tensorboard(folder: Path, experiment: str, config: Mapping[str, Any]) -> Write:
    from tensorboardX import SummaryWriter

    del experiment, config  # they are in config.json, beside the event file
    folder = folder / "tensorboard"
    # else a run that is resumed within a second writes over what it wrote before
    suffix = f".{len(list(folder.glob('events*')))}"
    writer = SummaryWriter(str(folder), flush_secs=5, filename_suffix=suffix)
    atexit.register(writer.close)  # which writes what is still in its queue

    def write(step: int, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)

    return write


def _wandb(folder: Path, experiment: str, config: Mapping[str, Any]) -> Write:
    import wandb  # pyright: ignore[reportMissingImports]

    name = {"project": f"fairjax-{experiment}", "name": folder.name, "id": folder.name}
    run = wandb.init(**name, resume="allow", config=dict(config), dir=str(folder))
    return lambda step, numbers: run.log(numbers, step=step)


def _mlflow(folder: Path, experiment: str, config: Mapping[str, Any]) -> Write:
    import mlflow  # pyright: ignore[reportMissingImports]

    mlflow.set_experiment(f"fairjax-{experiment}")
    mlflow.start_run(run_name=folder.name)
    mlflow.log_params(dict(config))
    return lambda step, numbers: mlflow.log_metrics(numbers, step=step)
