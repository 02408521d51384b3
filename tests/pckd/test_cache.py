"""The teacher cache, on files that are damaged for real, and what stands for the maps that it does not keep."""

from __future__ import annotations

import copy
import fcntl
import os
import pickle
import random
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from torch import nn

from model_zoo import Preprocessing, set_preprocessing
from pckd.engine.cache import NO_MAPS, TeacherCache, cache_key, check_caches
from pckd.engine.logit_formats import logit_format
from pckd.engine.teacher import FrozenTeacher
from pckd.functional import kd
from pckd.testing.cases import losses_of_views, make_case
from registry import BACKBONES, LOSSES, Absent, DataSplit, NotApplicable, Output, Shapes, UserError, build

SAMPLES, POOL, CLASSES, WIDTH = 6, 3, 5, 4
INDEX, DRAWN = torch.tensor([5, 0, 3]), torch.tensor([2, 0, 1])


def open_cache(folder, said=None, key=None, **sizes):
    key = {"teacher": "x"} if key is None else key
    sizes = {"samples": SAMPLES, "pool": POOL, "classes": CLASSES, "embedding": WIDTH, **sizes}
    return TeacherCache(folder, key=key, say=[].append if said is None else said.append, **sizes)


def answer(rows=12, seed=0, dtype=torch.float32):
    """As the cache gives it back: what fits in float16."""
    generator = torch.Generator().manual_seed(seed)
    logits, embedding = (torch.randn(rows, n, generator=generator).half().to(dtype) for n in (CLASSES, WIDTH))
    return Output(logits, embedding, (torch.zeros(rows, 2, 3, 3),))


@pytest.fixture
def said():
    return []


@pytest.fixture
def cache(tmp_path, said):
    """Has the answers to three images."""
    cache = open_cache(tmp_path, said)
    cache.store(INDEX, DRAWN, 4, answer())
    return cache


def same(one, other):
    return torch.equal(one.logits, other.logits) and torch.equal(one.embedding, other.embedding)


# What is kept comes back


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_answers_come_back_as_float16_holds_them(tmp_path, dtype):
    output = answer(dtype=dtype)
    output.logits[0, 0], output.embedding[0, 0] = 1 / 3, 2 / 3
    returned = open_cache(tmp_path).store(INDEX, DRAWN, 4, output)
    found = open_cache(tmp_path).recall(INDEX, DRAWN, 4)
    assert found.logits.shape == (12, CLASSES)
    assert found.embedding.shape == (12, WIDTH)
    for side in (found, returned):
        assert same(side, output.apply(lambda t: t.half().float()))
        assert side.logits.dtype == side.embedding.dtype == torch.float32
        assert side.logits.is_contiguous()
        assert side.embedding.is_contiguous()
        assert side.maps == side.preacts == NO_MAPS


def test_rows_are_image_major_and_found_in_any_order_or_number_of_views(cache):
    expected = answer().logits
    assert torch.equal(cache.recall(INDEX[[2, 0]], DRAWN[[2, 0]], 4).logits, torch.cat([expected[8:], expected[:4]]))
    assert torch.equal(cache.recall(INDEX, DRAWN, 1).logits, expected[::4])
    # What is stored again replaces what was there.
    cache.store(INDEX[:1], DRAWN[:1], 4, answer(4, seed=1))
    again = cache.recall(INDEX, DRAWN, 4).logits
    assert torch.equal(again, torch.cat([answer(4, seed=1).logits, expected[4:]]))


def test_what_was_not_stored_is_not_there(tmp_path):
    cache = open_cache(tmp_path)
    assert cache.recall(INDEX, DRAWN, 1) is None
    # An answer of zeros is an answer.
    cache.store(INDEX, DRAWN, 2, answer(6).apply(torch.zeros_like))
    assert same(cache.recall(INDEX, DRAWN, 2), answer(6).apply(torch.zeros_like))
    assert cache.recall(INDEX, DRAWN, 3) is None  # the third view
    assert cache.recall(INDEX, torch.tensor([2, 0, 0]), 2) is None  # another entry of one image
    assert cache.recall(torch.tensor([5, 1, 3]), DRAWN, 2) is None  # another image
    assert (cache.hits, cache.misses) == (6, 3 + 9 + 6 + 6)


@pytest.mark.parametrize("value", [7e4, -float("inf"), float("nan")])
def test_rows_that_do_not_fit_are_computed_each_time(tmp_path, said, value):
    cache, output = open_cache(tmp_path, said), answer()
    output.embedding[5, 1] = value  # a row of the second image
    for _ in range(2):
        returned = cache.store(INDEX, DRAWN, 4, output)
    torch.testing.assert_close(returned.embedding[5, 1], torch.tensor(value), equal_nan=True)
    assert cache.recall(INDEX[1:2], DRAWN[1:2], 4) is None
    assert cache.recall(INDEX[1:2], DRAWN[1:2], 1) is not None  # its first view was finite
    assert cache.recall(INDEX[[0, 2]], DRAWN[[0, 2]], 4) is not None
    assert [line.partition(": ")[2] for line in said] == ["answers that do not fit in float16 are computed each time"]


def test_describe_says_how_full_it_is(cache):
    # 12 of 6 * 3 * 4 answers.
    assert cache.describe().startswith(f"teacher cache {cache.path}: 16.7 % of 72 answers, ")
    assert "\n" not in cache.describe()


# Damage on the disk


def flip(path, at, bit):
    data = bytearray(path.read_bytes())
    data[at] ^= bit
    with open(path, "r+b") as file:
        file.write(data)


@pytest.mark.parametrize(("byte", "bit"), [(0, 1), (1, 128), (17, 1)])
def test_a_damaged_answer_is_seen_and_said_once(cache, said, byte, bit):
    flip(cache.path / "answers.f16", ((5 * POOL + 2) * 4 + 3) * 18 + byte, bit)  # the last view of the first image
    assert said == []
    for _ in range(2):
        assert cache.recall(INDEX, DRAWN, 4) is None
    assert said == [f"teacher cache {cache.path}: 1 answers failed their checksum and are computed again"]
    assert cache.damaged == 2
    assert cache.recall(INDEX[1:], DRAWN[1:], 4) is not None
    cache.store(INDEX, DRAWN, 4, answer())
    assert cache.recall(INDEX, DRAWN, 4) is not None


def test_a_damaged_checksum_is_seen(cache):
    flip(cache.path / "checks.u32", 4 * ((3 * POOL + 1) * 4), 1)
    assert cache.recall(INDEX, DRAWN, 4) is None
    assert cache.damaged == 1


def test_checksums_are_crc32_from_the_place_on(tmp_path):
    """An answer in the place of another is seen by this."""
    cache = open_cache(tmp_path)
    cache.store(INDEX, DRAWN, 1, answer(3))
    checks = np.fromfile(cache.path / "checks.u32", "<u4")
    rows = torch.cat(answer(3)[:2], 1).half().numpy()
    places = [(i * POOL + p) * 4 for i, p in ((5, 2), (0, 0), (3, 1))]
    assert checks[places].tolist() == [zlib.crc32(r.tobytes(), p) for r, p in zip(rows, places, strict=True)]
    assert np.count_nonzero(checks) == 3


def cut(path):
    os.truncate(path, 100)


def garble(path):
    path.write_bytes(b"\xff\x00 not JSON")


@pytest.mark.parametrize(
    ("name", "harm", "trouble"),
    [
        ("answers.f16", cut, "answers.f16 has 100 bytes instead of 1296"),
        ("checks.u32", cut, "checks.u32 has 100 bytes instead of 288"),
        ("answers.f16", Path.unlink, "answers.f16 has 0 bytes instead of 1296"),
        ("meta.json", Path.unlink, "meta.json is missing"),
        (
            "meta.json",
            lambda path: path.write_text(path.read_text().replace('"x"', '"y"')),
            "meta.json is damaged, or of another cache or format",
        ),
        ("meta.json", garble, "meta.json is damaged, or of another cache or format"),
    ],
)
def test_files_that_are_not_this_caches_are_made_anew(tmp_path, cache, said, name, harm, trouble):
    harm(cache.path / name)
    anew = open_cache(tmp_path, said)
    assert said == [f"teacher cache {cache.path}: {trouble}; it is made anew"]
    assert anew.recall(INDEX, DRAWN, 4) is None
    anew.store(INDEX, DRAWN, 4, answer(seed=1))
    # Opening a good cache says nothing.
    assert open_cache(tmp_path, said).recall(INDEX, DRAWN, 4) is not None
    assert len(said) == 1
    # Whoever had it open goes on with the files of before, which nobody else sees.
    if harm is not cut:
        assert same(cache.recall(INDEX, DRAWN, 4), answer())


def test_other_sizes_are_another_cache_in_the_same_place(tmp_path, said):
    path = open_cache(tmp_path / "new" / "folder", said).path
    assert open_cache(tmp_path / "new" / "folder", said, samples=7).path == path
    assert len(said) == 1


def test_what_cannot_be_opened_is_refused_in_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^teacher cache .*file/\w{16}: Not a directory; choose another folder.*$"):
        open_cache(tmp_path / "file")
    with pytest.raises(UserError, match="pool=0: a teacher cache needs a finite pool"):
        open_cache(tmp_path, pool=0)


@pytest.mark.parametrize(("room", "reason"), [(0, "File too large"), (9, "No space left on device")])
def test_a_full_disk_is_one_line_and_not_a_crash(tmp_path, file_size_limit, room, reason):
    """A limit on the size of files stands for the disk: writing through a memory map would end the process."""
    cache = open_cache(tmp_path, samples=101)
    cache.store(INDEX, DRAWN, 4, answer())
    with file_size_limit(100 * POOL * 4 * 18 + room), pytest.raises(UserError) as caught:
        cache.store(torch.tensor([100]), torch.tensor([0]), 4, answer(4))
    said = f"teacher cache {cache.path}: {reason}; choose another folder, or leave out the cache"
    assert str(caught.value) == said


# Several that share a cache: the files know nothing of threads and processes


def fill(folder, seed):
    places = [(i, p) for i in range(40) for p in range(3)]
    said, order = [], random.Random(seed)
    for _ in range(3):
        cache = open_cache(folder, said, samples=40)
        order.shuffle(places)
        for start in range(0, 120, 8):
            index, drawn = torch.tensor(places[start : start + 8]).unbind(1)
            rows = ((index * 3 + drawn)[:, None] * 4 + torch.arange(4)).view(-1, 1)
            output = Output(rows + torch.arange(5) / 4.0, rows + torch.arange(4) / 4.0)
            found = cache.recall(index, drawn, 4)
            assert found is None or same(found, output)
            cache.store(index, drawn, 4, output)
        assert not cache.damaged
    return said


def test_two_fill_one_cache(tmp_path):
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(fill, [tmp_path] * 2, range(2))) == [[], []]
    cache = open_cache(tmp_path, samples=40)
    found = cache.recall(torch.arange(40).repeat_interleave(3), torch.arange(3).repeat(40), 4)
    rows = torch.arange(480.0).view(-1, 1)
    assert same(found, Output(rows + torch.arange(5) / 4, rows + torch.arange(4) / 4))
    assert [path.name for path in tmp_path.iterdir()] == [cache.path.name]
    assert sorted(path.name for path in cache.path.iterdir()) == ["answers.f16", "checks.u32", "lock", "meta.json"]


def test_one_waits_while_another_opens_the_same_cache(tmp_path, cache):
    opened = []
    thread = Thread(target=lambda: opened.append(open_cache(tmp_path)), daemon=True)
    with open(cache.path / "lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        thread.start()
        thread.join(0.3)
        assert not opened
    thread.join()
    assert opened


# What a cache is known by


def make_split(**changes):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8, generator=generator)
    made = DataSplit(images, torch.arange(20) % CLASSES, tuple("abcde"), (0.5,) * 3, (0.25,) * 3, padding=1)
    return DataSplit(**{**vars(made), **changes})


def make_teacher(change=lambda network: None):
    torch.manual_seed(0)
    teacher = FrozenTeacher(build(BACKBONES, "resnet8", CLASSES))
    change(teacher.network)
    return teacher


def key_of(teacher=None, split=None, **changes):
    options = {"precision": "fp32", "pool": POOL, "flip": True, **changes}
    return cache_key(teacher or make_teacher(), split or make_split(), **options)


def bend(network):
    network.classifier.weight.view(-1)[7] += 1e-6


def stride(network):
    next(module for module in network.modules() if isinstance(module, nn.Conv2d)).stride = (2, 2)


class Other(nn.ReLU):
    """Does something else, and prints as its parent does."""

    def _get_name(self):
        return "ReLU"


def test_whatever_an_answer_follows_from_makes_another_cache(tmp_path):
    """What of a split and of a network counts is tested in test_fingerprint.py."""
    options = [{"precision": "bf16"}, {"pool": 4}, {"flip": False}, {"device": "cuda"}]
    keys = [key_of(), key_of(make_teacher(bend)), key_of(make_teacher(stride)), key_of(split=make_split(padding=2))]
    keys += [key_of(nn.Sequential(nn.ReLU())), key_of(nn.Sequential(Other())), *(key_of(**given) for given in options)]
    assert len({open_cache(tmp_path, key=key).path for key in keys}) == len(keys) == 10
    assert key_of() == key_of(split=make_split(name="by another name"))


def test_a_teacher_that_is_shown_images_in_its_own_way_is_another_cache():
    teacher = make_teacher().network
    plain = key_of(teacher)
    set_preprocessing(teacher, Preprocessing((0.4,) * 3, (0.2,) * 3, (8, 8), ("a",)))
    assert key_of(teacher) != plain
    # Whatever the data say.
    assert key_of(teacher) == key_of(teacher, make_split(mean=(0.1, 0.2, 0.3)))


def test_the_address_of_a_function_that_a_module_prints_does_not_count():
    class Printing(nn.Module):
        def extra_repr(self):
            return repr(lambda: 0)

    one, other = Printing(), Printing()
    held = repr(one), repr(other)
    assert key_of(one) == key_of(other), held


def test_streamed_data_that_draws_by_itself_cannot_be_cached():
    with pytest.raises(UserError, match=r"is streamed, and its images draw .*; leave out view_pool and the"):
        key_of(split=make_split(images=list(make_split().images), name="streamed"))


# How logits are written


LOGITS = torch.tensor([[0.0, 1.0, 2.0, 3.0, 51.0], [-1.0, -1.0, -1.0, -1.0, -1.0]])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("float16", LOGITS),
        ("float32", LOGITS),
        # Steps of 51 / 255 = 0.2: all five lie on one.
        ("uint8", LOGITS),
        # The others have the mean exponential of 0, 1, 2; of three equal ones it is theirs.
        ("top2", [[1.309, 1.309, 1.309, 3.0, 51.0], [-1.0] * 5]),
    ],
)
def test_logits_are_written_in_several_ways(tmp_path, name, expected):
    output = answer(2)._replace(logits=LOGITS)
    index, drawn = torch.tensor([1, 4]), torch.tensor([0, 2])
    returned = open_cache(tmp_path, logits=name).store(index, drawn, 1, output)
    found = open_cache(tmp_path, logits=name).recall(index, drawn, 1)
    torch.testing.assert_close(found.logits, torch.as_tensor(expected), atol=1e-3, rtol=1e-3)
    assert same(found, returned)
    assert torch.equal(found.embedding, output.embedding)


@pytest.mark.parametrize(
    ("name", "temperature", "least", "most"),
    [
        ("float16", 4, 0, 0.001),
        ("uint8", 1, 0, 0.015),
        ("uint8", 4, 0, 0.015),
        ("top50", 1, 0, 0.04),
        ("top50", 4, 0.5, 2),
    ],
)
def test_what_a_format_changes_in_a_distillation_loss(name, temperature, least, most):
    """Of the gradient of kd with 1,000 classes, for images that the teacher is 40 % sure of in the mean."""
    normal = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    common, label = normal(200, 32) @ normal(32, 1000) / 4, torch.eye(200, 1000)
    teacher, student = 2 * common + 8 * label, common + normal(200, 1000) + 6 * label
    written = logit_format(name, 1000)

    def gradient(logits):
        leaf = student.clone().requires_grad_()
        kd(leaf, logits, temperature).mean().backward()
        return leaf.grad

    whole = gradient(teacher)
    share = (gradient(written.decode(written.encode(teacher))) - whole).norm() / whole.norm()
    assert least <= share < most


@pytest.mark.parametrize("name", ["half", "top", "top0", "top5"])
def test_unknown_formats_are_refused(tmp_path, name):
    with pytest.raises(UserError, match=rf"^cache_logits='{name}': "):
        open_cache(tmp_path, logits=name)


def test_a_large_cache_is_in_pieces(tmp_path, said, monkeypatch):
    monkeypatch.setattr("pckd.engine.cache.UNDIVIDED", 1)
    monkeypatch.setattr("pckd.engine.cache.PIECE", 2 * POOL * 4 * 18)
    open_cache(tmp_path).store(INDEX, DRAWN, 4, answer())
    cache = open_cache(tmp_path, said)
    assert sorted(path.name for path in cache.path.glob("answers*")) == [f"answers-00{n}.f16" for n in range(3)]
    assert torch.equal(cache.recall(INDEX, DRAWN, 4).logits, answer().logits)
    flip(cache.path / "answers-002.f16", ((1 * POOL + 2) * 4 + 3) * 18, 1)  # the last view of image 5
    assert cache.recall(INDEX, DRAWN, 3) is not None
    assert cache.recall(INDEX, DRAWN, 4) is None


def test_all_caches_of_a_folder_are_checked(tmp_path, said):
    for name in ("float16", "top2"):
        cache = open_cache(tmp_path, logits=name)
        cache.store(INDEX, DRAWN, 2, answer(6))
    flip(cache.path / "answers.f16", ((0 * POOL + 0) * 4 + 1) * 22, 1)
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "meta.json").write_text("{")
    assert check_caches(tmp_path, said.append) == 1
    assert sorted(line.rpartition("; ")[2] for line in said if "checked" in line) == [
        "6 are checked, and 0 of them are damaged",
        "6 are checked, and 1 of them are damaged and left out",
    ]
    assert any(line.endswith("gone: meta.json is damaged, so that a run makes it anew") for line in said)
    assert check_caches(tmp_path, said.append) == 0
    with pytest.raises(UserError, match="there is no teacher cache"):
        check_caches(tmp_path / "gone", said.append)


# Maps that are not there

USES = (len, bool, list, tuple, iter, reversed, lambda maps: maps[-1], lambda maps: maps[1:], lambda maps: maps == ())
USES += (lambda maps: maps != (), lambda maps: None in maps, lambda maps: maps + (1,), lambda maps: (1,) + maps)  # noqa: RUF005
USES += (lambda maps: 2 * maps,)


@pytest.mark.parametrize("use", USES)
def test_every_use_of_absent_maps_says_why(use):
    with pytest.raises(NotApplicable, match=r"^no maps here$"):
        use(Absent("no maps here"))


def test_absent_maps_pass_through_what_outputs_do():
    output = Output(torch.zeros(8, CLASSES), torch.zeros(8, WIDTH), NO_MAPS, NO_MAPS)
    for other in (output.detach(), output.upright(4), output.select(4, (0, 3)), output.select(4, range(4))):
        assert other.maps is other.preacts is NO_MAPS
    assert output.select(4, (0, 3)).logits.shape == (4, CLASSES)
    assert Shapes.of(output)[:4] == (CLASSES, WIDTH, NO_MAPS, NO_MAPS)


class Passing(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(WIDTH, 1)

    def forward(self, output):
        return self.layer(output.embedding).sum(), output


def test_absent_maps_pass_through_data_parallelism(tmp_path):
    """It looks for tensors in all that comes out."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        network = nn.parallel.DistributedDataParallel(Passing(), find_unused_parameters=True)
        value, passed = network(Output(torch.zeros(8, CLASSES), torch.ones(8, WIDTH), NO_MAPS, NO_MAPS))
        value.backward()
    finally:
        torch.distributed.destroy_process_group()
    assert passed.maps == NO_MAPS
    assert network.module.layer.weight.grad.tolist() == [[8.0] * WIDTH]


def test_absent_maps_can_be_copied_printed_and_compared():
    for other in (copy.copy(NO_MAPS), copy.deepcopy(NO_MAPS), pickle.loads(pickle.dumps(NO_MAPS))):
        assert isinstance(other, Absent)
        assert other == NO_MAPS
        assert hash(other) == hash(NO_MAPS)
    assert Absent("another reason") != NO_MAPS
    assert repr(Absent("gone")) == "Absent('gone')"


@pytest.mark.parametrize("name", losses_of_views())
def test_a_loss_reads_no_maps_or_is_refused_when_it_is_built_and_when_it_is_shown_none(name):
    case = make_case(4, 12, grad=False)
    cached = case.teacher._replace(maps=NO_MAPS, preacts=NO_MAPS)

    def value(known, shown):
        torch.manual_seed(1)
        setup = case.setup._replace(teacher=Shapes.of(known))
        return build(LOSSES, name, setup)(case.student, shown, case.context)

    expected, answers = value(case.teacher, case.teacher), set()
    for known in (cached, case.teacher):
        try:
            answers.add("" if torch.equal(value(known, cached), expected) else "another value")
        except NotApplicable as error:
            answers.add(str(error))
    assert answers in ({""}, {NO_MAPS.reason})
