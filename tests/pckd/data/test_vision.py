"""The data sets that torchvision reads, on tiny archives in the published formats, with a local file server."""

import contextlib
import gzip
import hashlib
import io
import pickle
import shutil
import struct
import tarfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
import torch
from torchvision import datasets

from registry import DATASETS, UserError, build

NOWHERE = "http://127.0.0.1:9/"


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@contextlib.contextmanager
def serve(folder):
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def give_sums(monkeypatch, source, files):
    """Make a data set of torchvision expect the files that are there."""
    for table in ("train_list", "test_list"):
        monkeypatch.setattr(source, table, [[name, md5(files / name)] for name, _ in getattr(source, table)])


class Cifar:
    """CIFAR with 4 images in each file; ``archive`` is the published archive, served or not."""

    def __init__(self, monkeypatch, folder, source, key, meta_key):
        self.source = source
        self.archive = folder / source.filename
        files = folder / source.base_folder
        files.mkdir(parents=True)
        self.data = {}
        for i, (name, _) in enumerate(source.train_list + source.test_list):
            self.data[name] = pixels(4, 3072, seed=i)
            (files / name).write_bytes(pickle.dumps({"data": self.data[name], key: [0, 1, 2, i]}))
        (files / source.meta["filename"]).write_bytes(pickle.dumps({meta_key: [f"kind {k}" for k in range(10)]}))
        give_sums(monkeypatch, source, files)
        meta = {**source.meta, "md5": md5(files / source.meta["filename"])}
        monkeypatch.setattr(source, "meta", meta)
        with tarfile.open(self.archive, "w:gz") as tar:
            tar.add(files, source.base_folder)
        monkeypatch.setattr(source, "tgz_md5", md5(self.archive))
        monkeypatch.setattr(source, "url", NOWHERE + self.archive.name)

    def load(self, train=True, **options):
        return build(DATASETS, self.name, str(self.root), train, **options)

    def fetch_by_hand(self, content=None):
        self.root.mkdir()
        (self.root / self.archive.name).write_bytes(content or self.archive.read_bytes())

    @contextlib.contextmanager
    def published(self, monkeypatch):
        with serve(self.archive.parent) as address, monkeypatch.context() as patch:
            patch.setattr(self.source, "url", address + self.archive.name)
            yield


CIFARS = {
    "cifar10": (datasets.CIFAR10, "labels", "label_names"),
    "cifar100": (datasets.CIFAR100, "fine_labels", "fine_label_names"),
}


@pytest.fixture(params=CIFARS)
def cifar(request, monkeypatch, tmp_path):
    fake = Cifar(monkeypatch, tmp_path / "published", *CIFARS[request.param])
    fake.name, fake.root = request.param, tmp_path / "root"
    return fake


def test_cifar_is_downloaded_once_and_read(cifar, monkeypatch):
    with cifar.published(monkeypatch):
        train = cifar.load()
    test = cifar.load(train=False, download=False)
    assert train.classes == test.classes == tuple(f"kind {k}" for k in range(10))
    for split, table in ((train, cifar.source.train_list), (test, cifar.source.test_list)):
        expected = np.concatenate([cifar.data[name] for name, _ in table]).reshape(-1, 3, 32, 32)
        assert np.array_equal(split.images.numpy(), expected)
        assert split.images.is_contiguous(memory_format=torch.channels_last) or split.images.is_contiguous()
        assert split.labels.dtype == torch.int64
    assert test.labels.tolist() == [0, 1, 2, len(cifar.source.train_list)]
    assert (train.mean, train.std) == (test.mean, test.std)


def fails(load, *said):
    with pytest.raises(UserError) as caught:
        load()
    for part in said:
        assert str(part) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_cifar_that_cannot_be_downloaded_says_where_it_looked_and_what_to_do(cifar, monkeypatch, tmp_path):
    url = cifar.source.url
    fails(cifar.load, f"{cifar.name}: not found in {cifar.root}", "download failed", f"fetch {url} into {cifar.root}")
    fails(partial(cifar.load, download=False), f"in {cifar.root}, and download=False", f"fetch {url}")
    monkeypatch.chdir(tmp_path)
    fails(lambda: build(DATASETS, cifar.name, None, True, download=False), "in data, and")


def test_cifar_fetched_by_hand_is_found_and_files_are_not_taken_for_whole_when_damaged(cifar):
    cifar.fetch_by_hand()
    assert len(cifar.load()) == 4 * len(cifar.source.train_list)
    part = cifar.root / cifar.source.base_folder / cifar.source.train_list[-1][0]
    part.write_bytes(part.read_bytes()[:-10])
    fails(partial(cifar.load, download=False), "not whole")
    # The archive is still there, from which the file is restored without a network.
    assert len(cifar.load()) == 4 * len(cifar.source.train_list)


@pytest.mark.skipif(not hasattr(tarfile, "data_filter"), reason="a Python without filters for archives")
def test_an_archive_of_the_same_md5_does_not_write_outside_the_root(cifar, monkeypatch):
    with tarfile.open(cifar.archive, "w:gz") as tar:
        tar.add(cifar.archive.parent / cifar.source.base_folder, cifar.source.base_folder)
        member = tarfile.TarInfo("../escaped")
        member.size = 4
        tar.addfile(member, io.BytesIO(b"evil"))
    cifar.fetch_by_hand()
    monkeypatch.setattr(cifar.source, "tgz_md5", md5(cifar.archive))
    fails(cifar.load, "download failed", "escaped")
    assert not (cifar.root.parent / "escaped").exists()
    assert tarfile.TarFile.extraction_filter is None


def test_part_of_an_archive_as_of_an_interrupted_download_is_not_taken_for_whole(cifar, monkeypatch):
    cifar.fetch_by_hand(cifar.archive.read_bytes()[:-10])
    fails(cifar.load, "download failed")
    with cifar.published(monkeypatch):
        assert len(cifar.load()) == 4 * len(cifar.source.train_list)


@pytest.fixture
def stl(monkeypatch, tmp_path):
    source = datasets.STL10
    files = tmp_path / "root" / source.base_folder
    files.mkdir(parents=True)
    for part, count in (("train", 4), ("test", 3)):
        (files / f"{part}_X.bin").write_bytes(pixels(count, 3, 96, 96).tobytes())
        (files / f"{part}_y.bin").write_bytes(bytes(range(1, count + 1)))
    (files / "unlabeled_X.bin").write_bytes(pixels(5, 3, 96, 96).tobytes())
    give_sums(monkeypatch, source, files)
    monkeypatch.setattr(source, "url", NOWHERE + source.filename)
    return partial(build, DATASETS, "stl10", str(tmp_path / "root"))


def test_stl10(stl):
    train, test = stl(True), stl(False)
    assert train.images.shape == (4, 3, 96, 96)
    assert train.labels.tolist() == [0, 1, 2, 3]
    assert test.labels.tolist() == [0, 1, 2]
    # The published files hold columns, not rows.
    assert np.array_equal(train.images.numpy(), pixels(4, 3, 96, 96).swapaxes(2, 3))
    assert (train.num_classes, train.padding) == (10, 12)


def test_stl10_can_be_resized(stl):
    full, small = (stl(True, image_size=size) for size in (96, 32))
    assert small.images.shape == (4, 3, 32, 32)
    assert small.images.dtype == torch.uint8
    assert small.padding == 4
    # Antialiased: each pixel weighs several, so that noise is averaged away and the mean stays.
    assert small.images.float().std() < 0.6 * full.images.float().std()
    torch.testing.assert_close(small.images.float().mean(), full.images.float().mean(), atol=1.5, rtol=0)
    fails(lambda: stl(True, image_size=0), "image_size=0")


def test_stl10_without_labels(stl):
    train, test = (stl(part, unlabeled=True, image_size=32) for part in (True, False))
    assert (train.labels.tolist(), train.classes, train.neighbors) == ([-1] * 5, (), None)
    assert test.labels.tolist() == [0, 1, 2]
    assert torch.equal(test.neighbors.images, stl(True, image_size=32).images)
    assert test.neighbors.labels.tolist() == [0, 1, 2, 3]


def test_stl10_that_is_damaged(stl, tmp_path):
    (tmp_path / "root" / "stl10_binary" / "test_y.bin").write_bytes(b"")
    fails(lambda: stl(False), "stl10: not found in", "stl10_binary.tar.gz")


def idx(array):
    head = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.tobytes()


@pytest.fixture
def fashion(monkeypatch, tmp_path):
    """The four published files in a folder, and the root they belong into."""
    source = datasets.FashionMNIST
    published = tmp_path / "published"
    published.mkdir()
    for part, count in (("train", 6), ("t10k", 5)):
        arrays = {"images-idx3": pixels(count, 28, 28), "labels-idx1": np.arange(count, dtype=np.uint8)}
        for kind, array in arrays.items():
            (published / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(idx(array)))
    monkeypatch.setattr(source, "resources", [(name, md5(published / name)) for name, _ in source.resources])
    monkeypatch.setattr(source, "mirrors", [NOWHERE])
    return published, tmp_path / "root" / "FashionMNIST" / "raw"


@pytest.fixture
def load_fashion(fashion):
    return partial(build, DATASETS, "fashion_mnist", str(fashion[1].parents[1]))


def test_fashion_mnist_is_downloaded_and_read(fashion, load_fashion, monkeypatch):
    with serve(fashion[0]) as address:
        monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [address])
        train = load_fashion()
    test = load_fashion(False, download=False)
    assert np.array_equal(train.images[:, 0].numpy(), pixels(6, 28, 28))
    assert test.images.shape == (5, 1, 28, 28)
    assert train.labels.tolist() == list(range(6))
    assert len(train.mean) == len(train.std) == 1
    assert "Sneaker" in train.classes
    color = load_fashion(channels=3)
    assert torch.equal(color.images, train.images.expand(-1, 3, -1, -1))
    assert color.mean == train.mean * 3
    fails(lambda: load_fashion(channels=2), "channels=2")


def test_fashion_mnist_fetched_by_hand_is_found_if_it_is_whole(fashion, load_fashion):
    published, raw = fashion
    root = raw.parents[1]
    fails(load_fashion, f"not found in {root}", "download failed", "train-images-idx3-ubyte.gz", raw)
    fails(lambda: load_fashion(download=False), "download=False", raw)
    shutil.copytree(published, raw, dirs_exist_ok=True)
    part = raw / "train-images-idx3-ubyte.gz"
    part.write_bytes(part.read_bytes()[:-10])
    fails(load_fashion, "download failed")
    shutil.copy(published / part.name, part)
    assert len(load_fashion()) == 6


@pytest.mark.parametrize("length", [0, 3, 9, 16, 100])
@pytest.mark.parametrize("kind", ["images-idx3-ubyte", "labels-idx1-ubyte"])
def test_fashion_mnist_file_cut_short_is_named(fashion, load_fashion, kind, length):
    published, raw = fashion
    raw.mkdir(parents=True)
    for file in published.iterdir():
        (raw / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    whole = (raw / f"train-{kind}").read_bytes()
    (raw / f"train-{kind}").write_bytes(whole[: min(length, len(whole) - 1)])
    fails(load_fashion, f"train-{kind} is damaged", "delete it")
    assert len(load_fashion(False)) == 5
