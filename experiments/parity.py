"""Logits beside those of timm, torchvision and transformers, from the same numbers.

    python -m experiments.parity

A minute on two CPU cores. The script beside `tests/golden/models.npz` made it with the libraries.
"""

from experiments.cli import progress, table
from tests.golden.parity import CASES, golden, logit_error


def main() -> None:
    """Print the error of every network."""
    references, rows = golden(), []
    with progress(len(CASES), "networks") as bar:
        for case in CASES:
            name, error = case.key.partition("/")[2], logit_error(case, references)
            rows.append([name, case.source, f"{error:.1e}"])
            bar.update(1)
    print(table(["model", "source", "largest error"], rows))


if __name__ == "__main__":
    main()
