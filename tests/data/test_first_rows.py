"""The first rows of a data set: read as they are downloaded, keyed by the commit, and kept."""

import os

import datasets
import forking
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data.made import made
from hub_cache import FIRST, NAME, SECOND, commit, moved

from selectbench.data.prepare import streamed_datasets
from selectbench.data.reading import download_bytes
from selectbench.errors import NotDownloadedError, UserError
from selectbench.launch.preparation import data_facts
from selectbench.machine import Machine
from selectbench.planning.plan import make_plan
from selectbench.suite.load import load_suite
from selectbench.suite.sources import Dataset

DOCUMENTS = [f"story {n}\nof {n * 7 % 13} people who went {n * 5 % 11} ways" for n in range(2000)]
ROWS = 600


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "texts"
    path.mkdir()
    pq.write_table(pa.table({"text": DOCUMENTS, "score": list(range(2000))}), path / "train-00000.parquet")
    return path


@pytest.fixture
def hub(tmp_path, folder, monkeypatch):
    """A hub's cache that knows the data set's commits; what would be downloaded is the folder."""
    cache, readme = tmp_path / "hub", tmp_path / "readme"
    readme.mkdir()
    (readme / "README.md").write_text("texts")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    for number in (SECOND, FIRST):
        commit(cache, number, readme, "datasets")
    asked = []
    load, builder = datasets.load_dataset, datasets.load_dataset_builder

    def from_the_folder(name, configuration, *, split, revision, streaming):
        asked.append((name, configuration, split, revision, streaming))
        return load(str(folder), split=split, streaming=streaming)

    monkeypatch.setattr(datasets, "load_dataset", from_the_folder)
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda name, c, revision: builder(str(folder)))
    return cache, asked


def bytes_of(documents):
    return sum(len(text.encode()) for text in documents)


def test_no_row_after_the_first_ones_is_read(folder):
    part = made(Dataset(dataset=str(folder), rows=ROWS))
    assert part.documents_in == ROWS
    assert part.train_bytes + part.heldout_bytes <= bytes_of(DOCUMENTS[:ROWS])
    assert made(Dataset(dataset=str(folder))).documents_in == len(DOCUMENTS)


def test_they_are_keyed_by_commit_and_number_and_downloaded_once(hub):
    cache, asked = hub
    data = Dataset(dataset=NAME, name="sample", rows=ROWS)
    first = made(data)
    assert asked == [(NAME, "sample", "train", FIRST, True)]
    assert made(data).key == first.key
    assert len(asked) == 1
    assert made(Dataset(dataset=NAME, name="sample", rows=ROWS - 1)).key != first.key
    moved(cache, SECOND, "datasets")
    assert made(data).key != first.key
    assert asked[-1][3] == SECOND


def test_a_download_that_breaks_off_leaves_nothing_and_says_so(hub, monkeypatch):
    def broken(self, batch_size):
        yield {"text": DOCUMENTS[:10]}
        raise ConnectionError("the line is dead")

    data = Dataset(dataset=NAME, rows=ROWS)
    with monkeypatch.context() as patched:
        patched.setattr(datasets.IterableDataset, "iter", broken)
        with pytest.raises(UserError, match=f"{NAME} cannot be loaded: the line is dead"):
            made(data)
    assert made(data).documents_in == ROWS


def test_a_plan_downloads_nothing_and_knows_how_much_it_would_be(hub, folder):
    _, asked = hub
    data = Dataset(dataset=NAME, rows=ROWS)
    with pytest.raises(NotDownloadedError):
        made(data, downloads=False)
    assert asked == []
    assert streamed_datasets(data) == [data]
    size = (folder / "train-00000.parquet").stat().st_size
    assert download_bytes(data) == pytest.approx(size * ROWS / len(DOCUMENTS))
    assert made(data).key == made(data, downloads=False).key


def test_rows_and_a_slice_are_not_given_together():
    with pytest.raises(ValueError, match="give one of them"):
        Dataset(dataset=NAME, rows=5, split="train[:1%]")


@pytest.mark.parametrize("suite", ["precision", "optimizer", "distributed"])
def test_offline_the_web_profile_is_refused_with_the_line_that_works(suite, tmp_path):
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path),
        "SELECTBENCH_CACHE": str(tmp_path),
    }
    for command in ("plan", "run", "data"):
        called = ["-m", "selectbench", command, suite, "--profile", "web"]
        done = forking.run(forking.BENCH, called, tmp_path, environment, 60)
        assert done.returncode == 2
        assert f"without a network this works: selectbench run {suite}\n" in done.stderr


@pytest.mark.parametrize("name", ["precision", "optimizer", "distributed"])
def test_a_trial_of_the_web_profile_takes_a_hundred_million_tokens_once(name):
    suite = load_suite(name, device="cuda", profile="web")
    tokens = suite.job.max_steps * suite.job.tokens_per_step
    assert tokens == pytest.approx(100e6, rel=0.01)
    assert len(suite.seeds) == 3
    assert suite.job.seq_len == 1024
    rows, of_one = suite.job.data.rows, 10e9 / 9.67e6  # huggingface.co/datasets/HuggingFaceFW/fineweb-edu
    assert 1.1 * tokens < rows * of_one < 1.5 * tokens


def test_the_commit_is_recorded(hub, folder):
    data = {"dataset": NAME, "rows": ROWS}
    suite = load_suite("precision", device="cpu", settings=[f"job.data={data}", "job.tokenizer={bpe: 300}"])
    prepared = {option.name: made(suite.job.data) for option in suite.options}
    plan = make_plan(suite, Machine("cpu"), prepared, "")
    assert data_facts(suite, prepared, plan)["commits"] == {NAME: FIRST}
