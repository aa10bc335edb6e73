import numpy as np
import pytest


@pytest.fixture(scope="session")
def randomize():
    """Return a function that sets a model's weights to random values far from the initial ones.

    Gains are such that 1 + (gain - 1) is exact.
    """

    def change(model, seed=0):
        rng = np.random.default_rng(seed)
        for variable in model.variables:
            if "seed_generator" in variable.path:
                continue
            gain = variable.path.endswith(("scale", "gamma"))
            low, high = (0.5, 2) if gain else (-1, 1)
            variable.assign(rng.uniform(low, high, variable.shape).astype("float32"))
        return model

    return change
