"""Pipelines of scikit-learn with a Boltzmann machine, a perceptron and a network that learns without a backward pass.

    pip install 'dldw[sklearn]'
    python examples/sklearn_pipeline.py [--rows 1797] [--components 100] [--passes 10]

The digits are shifted by a pixel in four directions, as in scikit-learn's own example of RBM features, so that what stands
where matters less than what it looks like. Four pipelines are trained on 80 % of them and score on the rest: a perceptron on
pixels, the same on the features of a Boltzmann machine that has seen no label, and a small network on pixels whose gradient
comes from back-propagation, or from loss values alone with the same number of forward passes.
"""

from __future__ import annotations

import argparse

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler

from dldw.integrations.sklearn import BernoulliRBM, DldwClassifier, PerceptronClassifier


def shifted(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """The first digits, and each shifted by a pixel up, down, left and right: [5 rows, 64] with their labels."""
    x, y = load_digits(return_X_y=True)
    images = np.pad(x[:rows].reshape(-1, 8, 8), ((0, 0), (1, 1), (1, 1)))
    moved = [images[:, 1 + a : 9 + a, 1 + b : 9 + b] for a, b in ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))]
    return np.concatenate(moved).reshape(-1, 64).astype(np.float32), np.tile(y[:rows], 5)


def pipelines(components: int, passes: int, forwards: float) -> dict[str, Pipeline]:
    """What is compared, by name."""
    rbm = BernoulliRBM(components, learning_rate=0.06, n_iter=passes, random_state=0)
    return {
        "pixels, perceptron": make_pipeline(MinMaxScaler(clip=True), PerceptronClassifier(random_state=0)),
        "RBM features, perceptron": make_pipeline(MinMaxScaler(clip=True), rbm, PerceptronClassifier(random_state=0)),
        "pixels, network by backprop": make_pipeline(
            MinMaxScaler(clip=True), DldwClassifier("backprop", forwards=forwards, random_state=0)
        ),
        "pixels, network by node perturbation": make_pipeline(
            MinMaxScaler(clip=True), DldwClassifier("node-perturbation", forwards=forwards, random_state=0)
        ),
    }


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Trains the pipelines and prints their accuracy on unseen digits; returns it by name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1797, help="digits, before they are shifted")
    parser.add_argument("--components", type=int, default=100, help="hidden units of the machine")
    parser.add_argument("--passes", type=int, default=10, help="of the machine over the data")
    parser.add_argument("--forwards", type=float, default=5000, help="budget of the networks, in forward passes")
    a = parser.parse_args(arguments)
    x, y = shifted(a.rows)
    x, x_test, y, y_test = train_test_split(x, y, test_size=0.2, random_state=0)
    scores = {}
    for name, pipeline in pipelines(a.components, a.passes, a.forwards).items():
        scores[name] = float(pipeline.fit(x, y).score(x_test, y_test))
        print(f"{name:38s} {100 * scores[name]:5.1f} %")
    return scores


if __name__ == "__main__":
    main()
