"""Networks for tables in a file that says how rows are read, so that they predict for new ones."""

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32
from safetensors import SafetensorError
from safetensors.numpy import load, save_file

from fairjax.data.dataset import Dataset
from fairjax.data.encoding import Encoder, described
from fairjax.models import Model, logistic_regression, mlp
from fairjax.models.mlp import MLPConfig
from fairjax.trees import flatten_named, unflatten_named

FILE = "models.safetensors"
"""What `load_model` looks for in the folder of a run."""


@dataclasses.dataclass(frozen=True)
class TableModel:
    """A trained network for tables, and how its inputs are made of rows.

    Attributes:
      model: logistic regression or a multilayer perceptron.
      params: its parameters.
      encoder: what makes inputs of rows; `encoder.encode(rows)` gives them with the notes.
      label_names: the K classes, in the order of the columns of `predict_proba`.
      group_names: the G groups of the data that it was trained on.
    """

    model: Model
    params: Any
    encoder: Encoder
    label_names: tuple[str, ...]
    group_names: tuple[str, ...]

    def logits(self, rows: Any) -> Float32[np.ndarray, "N K"]:
        """The logits of rows; see `predict_proba`."""
        inputs, notes = self.encoder.encode(rows)
        if notes:
            warnings.warn(" ".join(notes), UserWarning, stacklevel=2)
        return np.asarray(self.model.apply(self.params, {}, jnp.asarray(inputs))[0])

    def predict_proba(self, rows: Any) -> Float32[np.ndarray, "N K"]:
        """Probabilities of the classes for rows as people have them.

        Args:
          rows: a DataFrame, a mapping from columns to cells, or the path of a file, with the
            columns of training; others are ignored. See `Encoder.encode`.

        Returns:
          Float32 `[N, K]`, rows sum to 1. That cells were filled, or that rows hold a category
          which train lacks and is read as all zeros, is a `UserWarning`.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: the rows do not fit; the message names the column and the row.
        """
        return np.asarray(jax.nn.softmax(self.logits(rows), axis=-1))


def table_header(model: Model, data: Dataset) -> dict[str, str]:
    """What the header of a .safetensors file says of a network for tables and of its rows.

    Raises:
      ValueError: the data did not come from columns, or the network is not one for tables.
    """
    if data.encoder is None or not isinstance(model.config, MLPConfig):
        raise ValueError(
            f"only networks of logistic_regression and mlp on tables with columns are saved with "
            f"them, got {type(model.config).__name__} and data {data.name!r}"
        )
    table = {
        "name": data.name,
        "label_names": data.label_names,
        "group_names": data.group_names,
        **data.encoder.description(),
    }
    header = {"family": "mlp", "config": dataclasses.asdict(model.config), "table": table}
    return {"format": "pt", "fairjax": json.dumps(header)}


def how_to_open(data: Dataset, folder: Path, row: str) -> str:
    """The lines of a model card that open a run's network; "" of data without columns."""
    if data.encoder is None:
        return ""
    return (
        f"\n\n```python\nimport fairjax\n\nnetwork = fairjax.load_model({str(folder)!r}, {row!r})\n"
        f"network.predict_proba(rows)  # a DataFrame or CSV with the columns of {data.name}\n```"
    )


def save_model(path: str | Path, model: Model, params: Any, data: Dataset) -> None:
    """Write a network for tables with all that it takes to predict for other rows.

    Args:
      path: where to write; must end in .safetensors.
      model: of `logistic_regression` or `mlp`.
      params: its parameters.
      data: what it was trained on, as `load_csv` or `load_adult` read it.

    Raises:
      ValueError: another suffix, or see `table_header`.

    >>> import tempfile
    >>> from fairjax.data import load_adult
    >>> data, path = load_adult(), Path(tempfile.mkdtemp()) / "network.safetensors"
    >>> model = logistic_regression(data.inputs.shape[1])
    >>> save_model(path, model, model.init(jax.random.key(0))[0], data)
    >>> load_model(path).label_names
    ('<=50K', '>50K')
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: networks are written as .safetensors")
    tensors = {name: np.asarray(leaf) for name, leaf in flatten_named(params).items()}
    save_file(tensors, path, metadata=table_header(model, data))


def load_model(path: str | Path, row: str | None = None, run: int = 0) -> TableModel:
    """A trained network for tables, from a file alone; nothing in it is executed.

    Args:
      path: a file of `save_model`, or the folder of a run of `experiments.fairbatch` (or its
        `models.safetensors`).
      row: which row of the run's table, such as "plain" or "equal_opportunity@rate"; may be left
        out where there is one.
      run: which of a row's networks: split * seeds + seed.

    Returns:
      A `TableModel`; `load_model(folder, row).predict_proba(frame)` is `[N, K]`.

    Raises:
      FileNotFoundError: no such file, or no network in the folder.
      ValueError: the file is damaged, holds no network for tables or several of which none is
        named, or has no such row or run.
    """
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of networks")
    tensors, header = _read(path)
    rows = [name.removesuffix("head/kernel") for name in tensors if name.endswith("head/kernel")]
    names = [prefix.rstrip("/") for prefix in rows]
    if row is None and len(names) > 1 or row is not None and row not in names:
        what = "holds several networks" if row is None else f"has no row {row!r}"
        raise ValueError(f"{path}: {what}; row must be one of {', '.join(sorted(names))}")
    prefix = rows[0 if row is None else names.index(row)]
    leaves = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    try:
        if (kernel := leaves["head/kernel"]).ndim == 3:
            if not 0 <= run < len(kernel):
                raise ValueError(f"run must be in [0, {len(kernel)}), got {run}")
            leaves = {name: leaf[run] for name, leaf in leaves.items()}
        elif run:
            raise ValueError(f"run must be 0, as the file holds one network, got {run}")
        return _assembled(header, leaves)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        reason = str(error) if isinstance(error, ValueError) else repr(error)
        raise ValueError(f"{path}: {reason}") from None


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors and header of one file."""
    try:
        content = path.read_bytes()
        tensors = load(content)
        size = int.from_bytes(content[:8], "little")
        header = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["fairjax"])
        header["table"]["columns"]
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: damaged or not a safetensors file ({error})") from None
    except (KeyError, TypeError):
        raise ValueError(
            f"{path}: does not say how rows of a table are read; networks for images are opened by "
            "fairjax.models.load_weights"
        ) from None
    return tensors, header


def _assembled(header: dict[str, Any], leaves: dict[str, np.ndarray]) -> TableModel:
    """The network and its encoder; ValueError or KeyError where they do not fit each other."""
    table, config = header["table"], header["config"]
    encoder, hidden = described(table), tuple(config["hidden"])
    sizes = config["num_features"], config["num_classes"]
    if (width := len(encoder.input_names)) != sizes[0] or len(table["label_names"]) != sizes[1]:
        raise ValueError(
            f"its columns make {width} inputs and {len(table['label_names'])} classes, the network "
            f"has {sizes[0]} and {sizes[1]}"
        )
    one_column = leaves["head/kernel"].shape[-1] == 1
    plain = not hidden and (one_column or sizes[1] > 2)
    model = logistic_regression(*sizes) if plain else mlp(*sizes, hidden)
    shapes = flatten_named(jax.eval_shape(model.init, jax.random.key(0))[0])
    for name in sorted(shapes.keys() | leaves.keys()):
        expected, found = shapes.get(name), leaves.get(name)
        if expected is None or found is None or found.shape != expected.shape:
            raise ValueError(f"{name} does not fit the network that its header describes")
        if not np.isfinite(found).all():
            raise ValueError(f"{name} holds NaN or infinity")
    params = unflatten_named({name: jnp.asarray(leaf) for name, leaf in leaves.items()})
    names = tuple(table["label_names"]), tuple(table["group_names"])
    return TableModel(model, params, encoder, *names)
