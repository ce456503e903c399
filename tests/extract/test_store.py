"""The store: what is written comes back bit for bit, whatever interrupts the writing or damages the files."""

import gc
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
import weakref
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

from jaxprobe.errors import InputError
from jaxprobe.extract.store.layout import DamagedError, size_on_disk
from jaxprobe.extract.store.reader import open_activations
from jaxprobe.extract.store.writer import check_space


@pytest.fixture(autouse=True)
def collected():
    """A save that ends early leaves coroutines of Orbax behind: they are told here, not in whatever test comes next."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()


def assert_holds(path, stored):
    view = open_activations(path)
    assert list(view) == list(stored.truth)
    for state, expected in stored.truth.items():
        found = view[state]
        assert found.dtype == expected.dtype
        assert found.tobytes() == expected.tobytes()


def test_round_trip_is_bit_identical(tmp_path, stored_in_each_dtype):
    assert_holds(stored_in_each_dtype.fill(tmp_path / "a" / "store"), stored_in_each_dtype)


def test_writing_says_nothing(tmp_path, stored, capfd):
    stored.fill(tmp_path)
    open_activations(tmp_path)["0"]
    assert capfd.readouterr() == ("", "")


def test_resumes_at_the_first_missing_shard(tmp_path, stored):
    with stored.open(tmp_path) as store:
        assert store.missing == (0, 1, 2, 3, 4, 5, 6)
        store.write(0, stored.shard(0))
        store.write(1, stored.shard(1))
    with pytest.raises(InputError, match=r"5 of 7 shards are missing"):
        open_activations(tmp_path)
    before = (tmp_path / "0" / "_CHECKPOINT_METADATA").stat().st_mtime_ns
    with stored.open(tmp_path) as store:
        assert store.missing == (2, 3, 4, 5, 6)
        for shard in store.missing:
            store.write(shard, stored.shard(shard))
    assert (tmp_path / "0" / "_CHECKPOINT_METADATA").stat().st_mtime_ns == before
    with stored.open(tmp_path) as store:
        assert store.complete and store.missing == ()
    assert_holds(tmp_path, stored)


def test_a_shard_in_flight_is_written_when_the_block_ends_in_an_error(tmp_path, stored):
    with pytest.raises(KeyboardInterrupt), stored.open(tmp_path) as store:
        store.write(0, stored.shard(0))
        raise KeyboardInterrupt
    with stored.open(tmp_path) as store:
        assert store.missing == (1, 2, 3, 4, 5, 6)


@pytest.mark.slow
def test_memory_holds_two_shards_at_most(tmp_path, make_stored):
    stored = make_stored(rows=320, shard_rows=32, width=512)
    alive = []
    gc.freeze()  # what was there before is not looked through each time
    with ExitStack() as stack:
        stack.callback(gc.unfreeze)
        store = stack.enter_context(stored.open(tmp_path))
        for shard in store.missing:
            states = stored.shard(shard)
            alive.append(weakref.ref(states["0"]))
            store.write(shard, states)
            del states
            gc.collect()
            # The one before it was on disk before this one was taken; Orbax's thread may hold on for a moment.
            assert sum(array() is not None for array in alive) <= 2


def test_other_settings_are_refused_with_both_values(tmp_path, stored):
    stored.fill(tmp_path)
    settings = json.loads(json.dumps(stored.arguments["settings"]))
    settings["prompt"]["template"] = "Where is {}"
    settings["seed"] = 3
    with pytest.raises(InputError) as error:
        stored.open(tmp_path, settings=settings, dtype="bfloat16")
    assert 'settings.prompt.template: "{}" there, "Where is {}" wanted' in str(error.value)
    assert "settings.seed: (absent) there, 3 wanted" in str(error.value)
    assert 'dtype: "float32" there, "bfloat16" wanted' in str(error.value)
    assert "model" not in str(error.value)
    assert_holds(tmp_path, stored)


def test_other_rows_in_a_shard_are_refused(tmp_path, stored):
    stored.fill(tmp_path)
    with pytest.raises(InputError, match="row_order"):
        stored.open(tmp_path, rows=stored.arguments["rows"][::-1])


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_other_dtypes_are_refused(tmp_path, stored, dtype):
    with pytest.raises(InputError, match=r"float32, bfloat16"):
        stored.open(tmp_path / "store", dtype=dtype)
    assert not (tmp_path / "store").exists()


def test_a_shard_must_be_what_the_store_expects(tmp_path, stored):
    with stored.open(tmp_path) as store:
        good = stored.shard(0)
        with pytest.raises(ValueError, match="has states embed, 0"):
            store.write(0, {name: good[name] for name in ("embed", "0")})
        with pytest.raises(ValueError, match=r"state '1' of shard 0 is \(7, 12\)"):
            store.write(0, good | {"1": good["1"][:7]})
        with pytest.raises(ValueError, match="float64"):
            store.write(0, good | {"1": good["1"].astype(np.float64)})
        store.write(0, good)
        with pytest.raises(ValueError, match="not missing"):
            store.write(0, good)
        with pytest.raises(ValueError, match="each once"):
            stored.open(tmp_path / "other", rows=[np.array([0, 2])])


def test_folders_that_are_none(tmp_path, stored):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        stored.open(tmp_path / "file")
    with pytest.raises(InputError, match="can't be written to"):
        stored.open(tmp_path / "file" / "store")
    with pytest.raises(InputError, match="is an address"):
        stored.open("s3://bucket/store")
    with pytest.raises(InputError, match=r"holds other files \(file\)"):
        stored.open(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    with pytest.raises(InputError, match=r"manifest.json is missing"):
        open_activations(tmp_path)


def test_a_newer_format_is_refused(tmp_path, stored):
    stored.fill(tmp_path)
    manifest = tmp_path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
    for read in (open_activations, stored.open, lambda path: stored.open(path, repair=True)):
        with pytest.raises(InputError, match=r"format is 2, this version reads up to 1"):
            read(tmp_path)
    manifest.write_text(manifest.read_text().replace('"format": 2', '"format": 1'))
    assert_holds(tmp_path, stored)


def test_only_one_process_writes(tmp_path, stored):
    with stored.open(tmp_path):
        with pytest.raises(InputError, match="Another process is writing"):
            stored.open(tmp_path)
        code = "import sys; from jaxprobe.extract.store.writer import _take_lock; from pathlib import Path; "
        code += "_take_lock(Path(sys.argv[1]), True)"
        other = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
        assert "Another process is writing" in other.stderr
    assert_holds(stored.fill(tmp_path), stored)


@contextmanager
def ordinary_user():
    """File permissions don't bind root; for the time of the block this process is someone else."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder():
    """A folder that any user may enter; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def test_read_only_folder(open_folder, stored):
    store, begun, sealed = (open_folder / name for name in ("finished", "begun", "sealed"))
    stored.fill(store)
    with stored.open(begun) as unfinished:
        unfinished.write(0, stored.shard(0))
    sealed.mkdir(mode=0o700)
    for folder in (open_folder, store, begun):
        folder.chmod(0o555)
    with ordinary_user():
        for path in (open_folder / "new", begun):
            with pytest.raises(InputError, match=r"can't be written to: Permission denied"):
                stored.open(path)
        with pytest.raises(InputError, match=r"can't be read: Permission denied"):
            stored.open(sealed / "store")
        with stored.open(store) as again:  # nothing to write
            assert again.complete
        assert_holds(store, stored)
        with pytest.raises(InputError, match=r"can't be written to: Permission denied"):
            stored.open(store, repair=True)
    for folder in (open_folder, store, begun):
        folder.chmod(0o755)
    assert_holds(stored.fill(begun), stored)


@contextmanager
def mounted(folder, options):
    """A small file system in memory."""
    folder.mkdir()
    result = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
    if result.returncode:
        pytest.skip(f"a small file system can't be mounted here: {result.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_full_disk(tmp_path, stored, capfd):
    with mounted(tmp_path / "disk", "size=1m") as disk:
        path, ballast = disk / "store", disk / "ballast"
        with pytest.raises(InputError, match=r"the disk is full. 2 of 7 shards are safe"), stored.open(path) as store:
            store.write(0, stored.shard(0))
            store.write(1, stored.shard(1))
            store.wait()
            ballast.write_bytes(bytes(shutil.disk_usage(disk).free))
            store.write(2, stored.shard(2))
        with pytest.raises(InputError, match=r"GB free"):
            stored.open(path)
        assert capfd.readouterr() == ("", "")
        ballast.unlink()
        with stored.open(path) as store:
            assert store.missing == (2, 3, 4, 5, 6)
        assert_holds(stored.fill(path), stored)


# A disk that fills while a shard is written: tensorstore's threads report to an event loop that Orbax has closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_shard_that_could_not_be_written_leaves_nothing_behind(tmp_path, stored, caplog):
    with mounted(tmp_path / "disk", "size=1m,nr_inodes=60") as disk:
        path = disk / "store"
        with pytest.raises(InputError, match=r"the disk is full. \d of 7 shards are safe"), stored.open(path) as store:
            for shard in store.missing:
                store.write(shard, stored.shard(shard))
        assert not caplog.records
        subprocess.run(["mount", "-o", "remount,nr_inodes=1000", disk], check=True)
        with stored.open(path) as store:
            assert 0 not in store.missing and 6 in store.missing
        assert {entry.name for entry in path.iterdir()} <= {"manifest.json", "writer.lock", *map(str, range(6))}
        assert_holds(stored.fill(path), stored)


def test_space_is_checked_before_the_work(tmp_path):
    check_space(tmp_path / "not" / "there", 1000)
    with pytest.raises(InputError, match=r"need 1000000000.00 GB on disk and .* has \d"):
        check_space(tmp_path / "not" / "there", 10**18)


@pytest.mark.parametrize("states", [3, 31])
def test_size_on_disk(tmp_path, make_stored, states):
    stored = make_stored(rows=1000, shard_rows=500, width=128, states=tuple(map(str, range(states))))
    stored.fill(tmp_path)
    size = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    # What the files add to the values is an estimate from above, and small even beside these small shards.
    assert 0.97 < size / size_on_disk(1000, [128] * states, "float32", shards=2) <= 1


def flip_a_bit(file, rng):
    data = bytearray(file.read_bytes())
    bit = int(rng.integers(8 * len(data)))
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)


def truncate(file, rng):
    os.truncate(file, int(rng.integers(file.stat().st_size)))


def remove(file, rng):
    file.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("damage", [flip_a_bit, truncate, remove])
def test_damage_in_any_file_is_found_named_and_repaired(tmp_path, make_stored, damage):
    stored = make_stored(width=96)  # with less, tensorstore keeps the values in the files of its index
    path = stored.fill(tmp_path / "store")
    rng = np.random.default_rng(1)
    found = Counter()
    for file in sorted((path / "3").rglob("*")):
        if not file.is_file() or (damage is not remove and not file.stat().st_size):
            continue
        copy = tmp_path / "copy"
        shutil.copytree(path, copy)
        damage(copy / file.relative_to(path), rng)
        try:
            # Some files only matter while Orbax writes: then all reads as it should.
            assert_holds(copy, stored)
            found["harmless"] += 1
        except DamagedError as error:
            assert error.shards == (3,)
            assert re.search(r"damaged \(shard 3: .*\). Remove what is damaged and extract", str(error))
            found["damaged"] += 1
            with stored.open(copy, repair=True) as store:
                assert store.dropped == store.missing == (3,)
        except InputError as error:
            assert "1 of 7 shards are missing" in str(error)
            found["missing"] += 1
        others = [(copy / str(shard)).stat().st_mtime_ns for shard in (0, 1, 2, 4, 5, 6)]
        assert_holds(stored.fill(copy), stored)
        assert others == [(copy / str(shard)).stat().st_mtime_ns for shard in (0, 1, 2, 4, 5, 6)]
        shutil.rmtree(copy)
    assert found["damaged"] >= 3  # the values, their index, and its root
    assert (found["missing"] == 1) == (damage is remove)  # the file that says that a shard is whole


@pytest.mark.slow
def test_every_bit_of_the_values_is_checked(tmp_path, make_stored):
    """The files that hold a shard's values load flipped bits without a word; the store's checksums find them."""
    stored = make_stored(width=96)
    path = stored.fill(tmp_path / "store")
    rng = np.random.default_rng(2)
    values = max((path / "2").rglob("d/*"), key=lambda file: file.stat().st_size)
    whole = values.read_bytes()
    found = Counter()
    for _ in range(50):
        flip_a_bit(values, rng)
        try:
            assert_holds(path, stored)
            found["harmless"] += 1  # the file also holds what tensorstore writes about the values
        except DamagedError as error:
            assert error.shards == (2,)
            found["damaged"] += 1
        values.write_bytes(whole)
    assert found["damaged"] > 25


def test_a_sound_shard_in_the_wrong_place_is_damage(tmp_path, stored):
    path = stored.fill(tmp_path / "store")
    shutil.rmtree(path / "1")
    shutil.copytree(path / "0", path / "1")
    with pytest.raises(DamagedError) as error:
        open_activations(path)
    assert error.value.shards == (1,)


def test_a_damaged_manifest_is_repaired_without_computing_again(tmp_path, stored):
    path = stored.fill(tmp_path)
    text = (path / "manifest.json").read_text()
    for broken in (text.replace("tiny", "tinx"), text[:100], "", "[]", "\0" * 50):
        (path / "manifest.json").write_text(broken)
        for read in (open_activations, stored.open):
            with pytest.raises(DamagedError, match="damaged. Remove"):
                read(path)
        with stored.open(path, repair=True) as store:
            assert store.complete and store.dropped == ()
        assert_holds(path, stored)


WRITER = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from conftest import make_stored
stored = make_stored(rows=640, shard_rows=32, width=64)
with stored.open(Path(sys.argv[2])) as store, open(sys.argv[3], "a", buffering=1) as log:
    print(json.dumps({"missing": store.missing}), file=log)
    for shard in store.missing:
        states = stored.shard(shard)
        print(json.dumps({"computed": shard}), file=log)
        store.write(shard, states)
"""


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path, make_stored):
    stored = make_stored(rows=640, shard_rows=32, width=64)
    path, log = tmp_path / "store", tmp_path / "log"
    log.touch()
    rng = np.random.default_rng(3)
    kills = 0
    while kills < 4:
        process = subprocess.Popen([sys.executable, "-c", WRITER, Path(__file__).parent, path, log])
        # Starting takes seconds and writing does not: wait for a number of shards, then for a little longer.
        goal = log.read_text().count("computed") + int(rng.integers(1, 5))
        while process.poll() is None and log.read_text().count("computed") < goal:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.03))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        kills += 1
    stored.fill(path)
    assert_holds(path, stored)
    assert {entry.name for entry in path.iterdir()} == {"manifest.json", "writer.lock", *map(str, range(20))}

    lines = [json.loads(line) for line in log.read_text().splitlines()]
    missing = [set(line["missing"]) for line in lines if "missing" in line]
    assert len(missing) == kills
    assert all(before >= after for before, after in itertools.pairwise(missing))  # each start went on from the last
    computed = Counter(line["computed"] for line in lines if "computed" in line)
    # A kill loses the shard in flight and the one that waits for it.
    assert computed.total() - len(computed) <= 2 * kills
