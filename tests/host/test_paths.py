"""What is asked of a place before anything is written there."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from jaxprobe.errors import InputError
from jaxprobe.host.paths import check_out


def test_processes_that_try_the_same_folder_at_once_are_not_in_each_others_way(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(check_out, [tmp_path / "runs" / "a", tmp_path / "runs"] * 500):
            pass
    assert not list(tmp_path.iterdir())


def test_what_is_refused_leaves_nothing_behind(tmp_path):
    with pytest.raises(InputError, match="has a name of 300 bytes"):
        check_out(tmp_path / "none" / ("a" * 300))
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="lies below .*file, which is a file"):
        check_out(tmp_path / "file" / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
