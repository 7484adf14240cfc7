"""Ten hyper-parameters of a scikit-learn pipeline, found by CMA-ES or any other searcher: what has no gradient at all.

    pip install "dldw[compare]"
    python examples/sklearn_hyperparameters.py [--searcher cma-es] [--budget 200]

The searcher sees a vector of ten numbers; each becomes a setting by its own scale. Searchers minimise, so what it is told is
the error rate, not the accuracy.
"""

from __future__ import annotations

import argparse
import sys
import warnings

import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import QuantileTransformer

import dldw

# name: (low, high, whether on a logarithmic scale); 0 in the vector is the middle, -1 and 1 are the ends
SPACE = {
    "quantiles": (10, 300, True),
    "components": (8, 60, False),
    "whiten": (0, 1, False),
    "hidden": (8, 128, True),
    "weight_decay": (1e-6, 1.0, True),
    "learning_rate": (1e-4, 1e-1, True),
    "batch": (16, 256, True),
    "momentum_1": (0.5, 0.99, False),
    "momentum_2": (0.9, 0.9999, False),
    "epochs": (5, 40, False),
}


def settings(x: torch.Tensor) -> dict[str, float]:
    """The settings that a vector [10] stands for; beyond the ends it is reflected."""
    share = 1 - (((x.double() + 1) / 2) % 2 - 1).abs()
    return {
        name: low * (high / low) ** s if log else low + s * (high - low)
        for (name, (low, high, log)), s in zip(SPACE.items(), share.tolist(), strict=True)
    }


def error(x: torch.Tensor) -> float:
    """The error rate on three folds of 600 digits."""
    s = settings(x)
    pipeline = make_pipeline(
        QuantileTransformer(n_quantiles=int(s["quantiles"])),
        PCA(int(s["components"]), whiten=s["whiten"] > 0.5, random_state=0),
        MLPClassifier(
            (int(s["hidden"]),), alpha=s["weight_decay"], learning_rate_init=s["learning_rate"],
            batch_size=int(s["batch"]), beta_1=s["momentum_1"], beta_2=s["momentum_2"], max_iter=int(s["epochs"]),
            random_state=0,
        ),
    )  # fmt: skip
    inputs, labels = load_digits(return_X_y=True)
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    return 1 - float(cross_val_score(pipeline, inputs[:600], labels[:600], cv=folds).mean())


def main() -> None:
    """Searches, with a line of progress, and prints the settings found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searcher", default="cma-es", help="see dldw methods")
    parser.add_argument(
        "--sigma", type=float, default=0.5, help="spread of the first candidates; the ranges are 2 wide"
    )
    parser.add_argument("--budget", type=int, default=200, help="evaluations")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", help="a file to write the run to, which dldw.replay_search reads")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    generator = torch.Generator().manual_seed(arguments.seed)
    searcher = dldw.methods()[arguments.searcher].factory(sigma=arguments.sigma, generator=generator)

    def progress(now: dldw.Minimum) -> None:
        print(
            f"\r{now.evaluations:5d} of {arguments.budget} evaluations, error {now.loss:.4f}", end="", file=sys.stderr
        )

    start = torch.zeros(len(SPACE), dtype=torch.float64)
    print(f"in the middle of every range: error {error(start):.4f}")
    found = dldw.minimize(error, start, searcher, arguments.budget, batched=False, callback=progress, log=arguments.log)
    print(f"\nafter {found.evaluations} evaluations: error {found.loss:.4f}")
    for name, value in settings(found.x).items():
        print(f"  {name:14s} {value:.4g}")


if __name__ == "__main__":
    main()
