"""Logits beside those of timm, torchvision and transformers, from the same numbers.

    python -m experiments.parity

Takes about a minute on two CPU cores. The references are in `tests/golden/models.npz`; the script
beside it made them with the real libraries.
"""

from experiments.cli import progress, table
from tests.golden.parity import CASES, golden, logit_error


def main() -> None:
    """Print the error of every network."""
    references, rows = golden(), []
    with progress(len(CASES), "networks") as bar:
        for case in CASES:
            model = case.key.partition("/")[2]
            rows.append([model, case.source, f"{logit_error(case, references):.1e}"])
            bar.update(1)
    print(table(["model", "source", "largest error"], rows))


if __name__ == "__main__":
    main()
