"""A finished run of a tiny model, which several files' tests go on from."""

import numpy as np
import pandas as pd
import pytest

from jaxprobe.runs.execute import run
from jaxprobe.settings import RunSettings
from tests.tiny_llama import save_model

NAMES = ["Paris", "Lima", "Oslo", "Rome", "Quito", "Accra"]
MORE_NAMES = [*NAMES, "Delhi", "Kyoto", "Perth", "Cairo"]


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Of 90 names in random places, with a group "side": north or south."""
    folder = tmp_path_factory.mktemp("finished")
    save_model(folder / "model", NAMES)
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"name": [f"{NAMES[i % 6]} {i}" for i in range(90)]})
    frame = frame.assign(latitude=rng.uniform(-60, 60, 90), longitude=rng.uniform(-170, 170, 90))
    frame["side"] = np.where(frame["latitude"] > 0, "north", "south")
    frame.to_csv(folder / "places.csv", index=False)
    settings = RunSettings(
        model=str(folder / "model"),
        dataset=str(folder / "places.csv"),
        group=("side",),
        out=folder / "run",
        mesh="data=1",
    )
    return run(settings)


@pytest.fixture(scope="session")
def settings_of_heights():
    """Makes, in a folder, a tiny model and a table of 60 names of several tokens; gives the settings of its run."""

    def make(folder, **settings):
        save_model(folder / "model", MORE_NAMES)
        rng = np.random.default_rng(0)
        frame = pd.DataFrame({"name": [f"{MORE_NAMES[i % 10]} {MORE_NAMES[i // 6]}" for i in range(60)]})
        frame = frame.assign(height=rng.uniform(0, 9, 60), is_test=[i % 4 == 0 for i in range(60)])
        frame.to_csv(folder / "places.csv", index=False)
        return RunSettings(
            model=str(folder / "model"),
            dataset=str(folder / "places.csv"),
            out=folder / "run",
            mesh="data=1",
            target=("height",),
            **settings,
        )

    return make
