"""The teacher cache, on files that are damaged for real, and what stands for the maps that it does not keep."""

from __future__ import annotations

import copy
import fcntl
import os
import pickle
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from model_zoo import Preprocessing, set_preprocessing
from pckd.data import Loader
from pckd.engine.cache import NO_MAPS, TeacherCache, cache_key
from pckd.engine.teacher import FrozenTeacher
from pckd.objective import Objective
from pckd.tasks.classification import image_views
from pckd.testing.cases import losses_of_views, methods_of_views
from registry import (
    BACKBONES,
    CENTER_RULES,
    DIFFICULTY_METRICS,
    DIFFICULTY_SCHEDULERS,
    LOSSES,
    METHODS,
    Absent,
    Centers,
    Context,
    DataSplit,
    NotApplicable,
    Output,
    Setup,
    Shapes,
    Term,
    UserError,
    build,
)

SAMPLES, POOL, CLASSES, WIDTH = 6, 3, 5, 4
ROOT = Path(__file__).resolve().parents[2]


def open_cache(folder, said=None, key=None, **sizes):
    key = {"teacher": "x"} if key is None else key
    sizes = {"samples": SAMPLES, "pool": POOL, "classes": CLASSES, "embedding": WIDTH, **sizes}
    return TeacherCache(folder, key=key, say=[].append if said is None else said.append, **sizes)


def answer(rows, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    logits, embedding = (torch.randn(rows, n, generator=generator).to(dtype) for n in (CLASSES, WIDTH))
    return Output(logits, embedding, (torch.zeros(rows, 2, 3, 3),))


def same(one, other):
    return torch.equal(one.logits, other.logits) and torch.equal(one.embedding, other.embedding)


INDEX, DRAWN = torch.tensor([5, 0, 3]), torch.tensor([2, 0, 1])


# What is kept comes back


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_answers_come_back_as_float16_holds_them(tmp_path, dtype):
    output = answer(12, dtype=dtype)
    returned = open_cache(tmp_path).store(INDEX, DRAWN, 4, output)
    found = open_cache(tmp_path).recall(INDEX, DRAWN, 4)
    assert found.logits.shape == (12, CLASSES)
    assert found.embedding.shape == (12, WIDTH)
    for side in (found, returned):
        assert torch.equal(side.logits, output.logits.half().float())
        assert torch.equal(side.embedding, output.embedding.half().float())
        assert side.logits.dtype == side.embedding.dtype == torch.float32
        assert side.logits.is_contiguous()
        assert side.embedding.is_contiguous()
        assert isinstance(side.maps, Absent)
        assert isinstance(side.preacts, Absent)


def test_rows_are_image_major_and_found_in_any_order(tmp_path):
    cache = open_cache(tmp_path)
    cache.store(INDEX, DRAWN, 4, answer(12))
    found = cache.recall(INDEX[[2, 0]], DRAWN[[2, 0]], 4)
    expected = answer(12).logits.half().float()
    assert torch.equal(found.logits, torch.cat([expected[8:], expected[:4]]))


def test_fewer_views_are_the_first_ones(tmp_path):
    cache = open_cache(tmp_path)
    cache.store(INDEX, DRAWN, 4, answer(12))
    assert torch.equal(cache.recall(INDEX, DRAWN, 1).logits, answer(12).logits.half().float()[::4])


def test_what_was_not_stored_is_not_there(tmp_path):
    cache = open_cache(tmp_path)
    assert cache.recall(INDEX, DRAWN, 1) is None
    cache.store(INDEX, DRAWN, 2, answer(6))
    assert cache.recall(INDEX, DRAWN, 2) is not None
    assert cache.recall(INDEX, DRAWN, 3) is None  # the third view
    assert cache.recall(INDEX, torch.tensor([2, 0, 0]), 2) is None  # another entry of one image
    assert cache.recall(torch.tensor([5, 1, 3]), DRAWN, 2) is None  # another image
    assert (cache.hits, cache.misses) == (6, 3 + 9 + 6 + 6)


def test_what_is_stored_again_replaces_what_was_there(tmp_path):
    cache = open_cache(tmp_path)
    cache.store(INDEX, DRAWN, 4, answer(12))
    cache.store(INDEX[:1], DRAWN[:1], 4, answer(4, seed=1))
    found = cache.recall(INDEX, DRAWN, 4)
    assert torch.equal(found.logits[:4], answer(4, seed=1).logits.half().float())
    assert torch.equal(found.logits[4:], answer(12).logits.half().float()[4:])


def test_an_answer_of_zeros_is_an_answer(tmp_path):
    cache = open_cache(tmp_path)
    zeros = Output(torch.zeros(3, CLASSES), torch.zeros(3, WIDTH))
    cache.store(INDEX, DRAWN, 1, zeros)
    assert same(cache.recall(INDEX, DRAWN, 1), zeros)


@pytest.mark.parametrize("value", [7e4, -float("inf"), float("nan")])
def test_rows_that_do_not_fit_are_computed_each_time(tmp_path, value):
    said = []
    cache = open_cache(tmp_path, said)
    output = answer(12)
    output.embedding[5, 1] = value  # a row of the second image
    for _ in range(2):
        returned = cache.store(INDEX, DRAWN, 4, output)
    torch.testing.assert_close(returned.embedding[5, 1], torch.tensor(value), equal_nan=True)
    assert cache.recall(INDEX[1:2], DRAWN[1:2], 4) is None
    assert cache.recall(INDEX[1:2], DRAWN[1:2], 1) is not None  # its first view was finite
    assert cache.recall(INDEX[[0, 2]], DRAWN[[0, 2]], 4) is not None
    assert [line.partition(": ")[2] for line in said] == ["answers that do not fit in float16 are computed each time"]


def test_describe_says_how_full_it_is(tmp_path):
    cache = open_cache(tmp_path)
    cache.store(INDEX, DRAWN, 4, answer(12))
    # 12 of 6 * 3 * 4 answers.
    assert cache.describe().startswith(f"teacher cache {cache.path}: 16.7 % of 72 answers, ")
    assert "\n" not in cache.describe()


# Damage on the disk


@pytest.mark.parametrize("byte", [0, 1, 17])
@pytest.mark.parametrize("bit", [1, 128])
def test_a_damaged_answer_is_seen_and_said_once(tmp_path, byte, bit):
    said = []
    cache = open_cache(tmp_path, said)
    cache.store(INDEX, DRAWN, 4, answer(12))
    flip(cache.path / "answers.f16", ((5 * POOL + 2) * 4 + 3) * 18 + byte, bit)  # the last view of the first image
    assert said == []
    for _ in range(2):
        assert cache.recall(INDEX, DRAWN, 4) is None
    assert said == [f"teacher cache {cache.path}: 1 answers failed their checksum and are computed again"]
    assert cache.damaged == 2
    assert cache.recall(INDEX[1:], DRAWN[1:], 4) is not None
    cache.store(INDEX, DRAWN, 4, answer(12))
    assert cache.recall(INDEX, DRAWN, 4) is not None


def test_a_damaged_checksum_is_seen(tmp_path):
    cache = open_cache(tmp_path)
    cache.store(INDEX, DRAWN, 4, answer(12))
    flip(cache.path / "checks.u32", 4 * ((3 * POOL + 1) * 4), 1)
    assert cache.recall(INDEX, DRAWN, 4) is None
    assert cache.damaged == 1


def test_an_answer_in_another_ones_place_is_seen(tmp_path):
    cache = open_cache(tmp_path)
    cache.store(INDEX, DRAWN, 4, answer(12))
    for name, row in (("answers.f16", 4 * 18), ("checks.u32", 4 * 4)):
        path = cache.path / name
        data = bytearray(path.read_bytes())
        places = [slice(n * row, (n + 1) * row) for n in (5 * POOL + 2, 0)]
        data[places[0]], data[places[1]] = data[places[1]], data[places[0]]
        path.write_bytes(data)
    assert open_cache(tmp_path).recall(INDEX, DRAWN, 4) is None


def test_checksums_are_crc32_from_the_place_on(tmp_path):
    cache = open_cache(tmp_path)
    cache.store(INDEX, DRAWN, 1, answer(3))
    checks = np.fromfile(cache.path / "checks.u32", "<u4")
    rows = torch.cat(answer(3)[:2], 1).half().numpy()
    places = [(i * POOL + p) * 4 for i, p in ((5, 2), (0, 0), (3, 1))]
    assert checks[places].tolist() == [zlib.crc32(r.tobytes(), p) for r, p in zip(rows, places, strict=True)]
    assert np.count_nonzero(checks) == 3


def flip(path, at, bit):
    with open(path, "r+b") as file:
        file.seek(at)
        before = file.read(1)[0]
        file.seek(at)
        file.write(bytes([before ^ bit]))


def cut(path):
    os.truncate(path, 100)


def edit(path):
    path.write_text(path.read_text().replace('"x"', '"y"'))


def garble(path):
    path.write_bytes(b"\xff\x00 not JSON")


@pytest.mark.parametrize(
    ("name", "harm", "trouble"),
    [
        ("answers.f16", cut, "answers.f16 has 100 bytes instead of 1296"),
        ("checks.u32", cut, "checks.u32 has 100 bytes instead of 288"),
        ("answers.f16", Path.unlink, "answers.f16 has 0 bytes instead of 1296"),
        ("meta.json", Path.unlink, "meta.json is missing"),
        ("meta.json", edit, "meta.json is damaged, or of another cache or format"),
        ("meta.json", garble, "meta.json is damaged, or of another cache or format"),
    ],
)
def test_files_that_are_not_this_caches_are_made_anew(tmp_path, name, harm, trouble):
    cache = open_cache(tmp_path)
    cache.store(INDEX, DRAWN, 4, answer(12))
    harm(cache.path / name)
    said = []
    anew = open_cache(tmp_path, said)
    assert said == [f"teacher cache {cache.path}: {trouble}; it is made anew"]
    assert anew.recall(INDEX, DRAWN, 4) is None
    anew.store(INDEX, DRAWN, 4, answer(12, seed=1))
    assert open_cache(tmp_path, said).recall(INDEX, DRAWN, 4) is not None
    assert len(said) == 1
    # Whoever had it open goes on with the files of before, which nobody else sees.
    if harm is not cut:
        assert same(cache.recall(INDEX, DRAWN, 4), cache.store(INDEX, DRAWN, 4, answer(12)))


def test_opening_and_reopening_a_good_cache_says_nothing(tmp_path):
    said = []
    path = open_cache(tmp_path / "new" / "folder", said).path
    assert open_cache(tmp_path / "new" / "folder", said).path == path
    assert said == []


def test_other_sizes_are_another_cache_in_the_same_place(tmp_path):
    said = []
    open_cache(tmp_path, said)
    open_cache(tmp_path, said, samples=7)
    assert len(said) == 1


def test_a_folder_that_cannot_be_is_refused_in_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        UserError, match=r"teacher cache .*file/\w{16}: Not a directory; choose another folder"
    ) as caught:
        open_cache(tmp_path / "file")
    assert "\n" not in str(caught.value)


def test_a_pool_is_needed(tmp_path):
    with pytest.raises(UserError, match="pool=0: a teacher cache needs a finite pool"):
        open_cache(tmp_path, pool=0)


FULL = """
import resource, signal, sys, torch
from pckd.engine.cache import TeacherCache
from registry import Output, UserError
cache = TeacherCache(sys.argv[1], key={}, samples=1000, pool=1, classes=50, embedding=50, say=print)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
output = Output(torch.zeros(4, 50), torch.zeros(4, 50))
cache.store(torch.tensor([0]), torch.tensor([0]), 4, output)
try:
    cache.store(torch.tensor([999]), torch.tensor([0]), 4, output)
except UserError as error:
    print(error)
"""


def test_a_full_disk_is_one_line_and_not_a_crash(tmp_path):
    """A limit on the size of files stands for the disk: writing through a memory map would end the process."""
    done = python(FULL, tmp_path)
    out, _ = done.communicate(timeout=120)
    assert done.returncode == 0
    (line,) = out.splitlines()
    assert line.startswith("teacher cache ")
    assert line.endswith("File too large; choose another folder, or leave out the cache")


# Processes that share a cache

FILL = """
import random, sys, torch
from pckd.engine.cache import TeacherCache
from registry import Output
random.seed(int(sys.argv[2]))
for turn in range(3):
    cache = TeacherCache(sys.argv[1], key={}, samples=40, pool=3, classes=5, embedding=4, say=print)
    places = [(i, p) for i in range(40) for p in range(3)]
    random.shuffle(places)
    for start in range(0, 120, 8):
        index, drawn = torch.tensor(places[start : start + 8]).unbind(1)
        rows = ((index * 3 + drawn)[:, None] * 4 + torch.arange(4)).view(-1, 1)
        output = Output(rows + torch.arange(5) / 4.0, rows + torch.arange(4) / 4.0)
        found = cache.recall(index, drawn, 4)
        assert found is None or torch.equal(found.logits, output.logits)
        cache.store(index, drawn, 4, output)
    assert not cache.damaged
"""


def python(text, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", text, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_two_processes_fill_one_cache(tmp_path):
    running = [python(FILL, tmp_path, seed) for seed in range(2)]
    assert [process.communicate(timeout=120)[0] for process in running] == ["", ""]
    assert [process.returncode for process in running] == [0, 0]
    cache = open_cache(tmp_path, key={}, samples=40)
    index, drawn = torch.arange(40).repeat_interleave(3), torch.arange(3).repeat(40)
    found = cache.recall(index, drawn, 4)
    rows = torch.arange(480.0).view(-1, 1)
    assert torch.equal(found.logits, rows + torch.arange(5) / 4)
    assert torch.equal(found.embedding, rows + torch.arange(4) / 4)
    assert [path.name for path in tmp_path.iterdir()] == [cache.path.name]
    assert sorted(path.name for path in cache.path.iterdir()) == ["answers.f16", "checks.u32", "lock", "meta.json"]


WAIT = """
import signal, sys
from pckd.engine.cache import TeacherCache

def give_up(*_):
    raise InterruptedError

signal.signal(signal.SIGALRM, give_up)
signal.setitimer(signal.ITIMER_REAL, float(sys.argv[2]))
try:
    TeacherCache(sys.argv[1], key={"teacher": "x"}, samples=6, pool=3, classes=5, embedding=4, say=print)
    print("opened")
except Exception:
    print("waited")
"""


def test_a_process_waits_while_another_one_opens_the_same_cache(tmp_path):
    path = open_cache(tmp_path).path
    with open(path / "lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert python(WAIT, tmp_path, 1).communicate(timeout=120)[0] == "waited\n"
    assert python(WAIT, tmp_path, 60).communicate(timeout=120)[0] == "opened\n"


# What a cache is known by


def make_split(**changes):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8, generator=generator)
    made = DataSplit(images, torch.arange(20) % CLASSES, tuple("abcde"), (0.5,) * 3, (0.25,) * 3, padding=1)
    return DataSplit(**{**vars(made), **changes})


def make_teacher():
    torch.manual_seed(0)
    return FrozenTeacher(build(BACKBONES, "resnet8", CLASSES))


def key_of(teacher=None, split=None, **changes):
    options = {"precision": "fp32", "pool": POOL, "flip": True, **changes}
    return cache_key(
        make_teacher() if teacher is None else teacher, make_split() if split is None else split, **options
    )


def test_the_same_teacher_and_data_are_the_same_cache():
    images = make_split().images.contiguous(memory_format=torch.channels_last)
    assert key_of() == key_of() == key_of(split=make_split(images=images, name="by another name"))


def with_weight(change):
    teacher = make_teacher()
    change(teacher.network)
    return teacher


def bend(network):
    network.classifier.weight.view(-1)[7] += 1e-6


def restart(network):
    next(m for m in network.modules() if isinstance(m, nn.BatchNorm2d)).running_var[0] += 1


def stride(network):
    next(m for m in network.modules() if isinstance(m, nn.Conv2d)).stride = (2, 2)


class Other(nn.ReLU):
    """Does something else, and prints as its parent does."""

    def _get_name(self):
        return "ReLU"


@pytest.mark.parametrize("change", [bend, restart, stride])
def test_another_teacher_is_another_cache(tmp_path, change):
    one, other = key_of(), key_of(with_weight(change))
    assert one != other
    assert open_cache(tmp_path, key=one).path != open_cache(tmp_path, key=other).path


def test_a_class_of_the_same_printed_name_is_another_cache():
    one, other = nn.Sequential(nn.ReLU()), nn.Sequential(Other())
    assert repr(one) == repr(other)
    assert key_of(one) != key_of(other)


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


@pytest.mark.parametrize(
    "changes",
    [{"precision": "bf16"}, {"pool": 4}, {"flip": False}, {"device": "cuda"}],
    ids=lambda changes: next(iter(changes)),
)
def test_other_circumstances_are_another_cache(changes):
    assert key_of() != key_of(**changes)


def test_other_data_is_another_cache():
    split = make_split()
    images, labels = split.images.clone(), split.labels.clone()
    images[3, 0, 0, 0] ^= 1
    labels[0] = 4
    others = [{"images": images}, {"labels": labels}, {"mean": (0.4, 0.5, 0.5)}, {"std": (0.2,) * 3}, {"padding": 2}]
    keys = [key_of(split=make_split(**changes)) for changes in others]
    assert all(key != other for n, key in enumerate([key_of(), *keys]) for other in keys[n:])


def test_streamed_data_cannot_be_cached():
    with pytest.raises(UserError, match=r"streamed .* leave out the teacher cache, or use a data set that is held in"):
        key_of(split=make_split(images=list(make_split().images), name="streamed"))


# With a loader and a network


@pytest.mark.parametrize("views", [1, 4])
def test_a_loader_recalls_what_the_teacher_answered_a_pool_ago(tmp_path, views):
    teacher, split = make_teacher(), make_split()
    cache = open_cache(tmp_path, key=key_of(teacher, split), samples=20, embedding=teacher.classifier.in_features)
    loader = Loader(split, 10, train=True, views=views, pool=POOL, recall=cache.recall, seed=1)
    seen = {}
    for epoch in range(1, POOL + 1):
        for batch in loader.epoch(epoch):
            assert batch.recalled is None
            kept = cache.store(batch.index, batch.drawn, views, teacher(batch.views.flatten(0, 1)))
            rows = kept.logits.unflatten(0, (-1, views))
            seen.update(zip(zip(batch.index.tolist(), batch.drawn.tolist(), strict=True), rows, strict=True))
    assert len(seen) == 20 * POOL
    again = Loader(split, 5, train=True, views=views, pool=POOL, recall=cache.recall, seed=2)
    for batch in again.epoch(1):
        assert batch.recalled.logits.shape == (5 * views, CLASSES)
        asked = teacher(batch.views.flatten(0, 1))
        torch.testing.assert_close(batch.recalled.logits, asked.logits, rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(batch.recalled.embedding, asked.embedding, rtol=2e-3, atol=2e-3)
        places = zip(batch.index.tolist(), batch.drawn.tolist(), strict=True)
        assert torch.equal(batch.recalled.logits, torch.cat([seen[place] for place in places]))


# Maps that are not there


@pytest.mark.parametrize(
    "use",
    [
        len,
        bool,
        list,
        tuple,
        iter,
        reversed,
        lambda maps: maps[-1],
        lambda maps: maps[1:],
        lambda maps: [*maps],
        lambda maps: maps or (),
        lambda maps: not maps,
        lambda maps: maps == (),
        lambda maps: maps != (),
        lambda maps: None in maps,
        lambda maps: (*maps, 1),
        lambda maps: maps + (1,),  # noqa: RUF005
        lambda maps: (1,) + maps,  # noqa: RUF005
        lambda maps: 2 * maps,
        lambda maps: max(maps, default=None),
        lambda maps: dict(zip(maps, (), strict=True)),
    ],
)
def test_every_use_of_absent_maps_says_why(use):
    with pytest.raises(NotApplicable, match=r"^no maps here$"):
        use(Absent("no maps here"))


def test_absent_maps_pass_through_what_outputs_do():
    output = Output(torch.zeros(8, CLASSES), torch.zeros(8, WIDTH), NO_MAPS, NO_MAPS)
    for other in (output.detach(), output.upright(4), output.select(4, (0, 3)), output.select(4, range(4))):
        assert other.maps is other.preacts is NO_MAPS
    assert output.select(4, (0, 3)).logits.shape == (4, CLASSES)
    shapes = Shapes.of(output)
    assert shapes[:2] == (CLASSES, WIDTH)
    assert shapes.maps is shapes.preacts is NO_MAPS


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
        output = Output(torch.zeros(8, CLASSES), torch.ones(8, WIDTH), NO_MAPS, NO_MAPS)
        value, passed = network(output)
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


def make_output(rows, width, seed):
    generator = torch.Generator().manual_seed(seed)
    channels, sizes = (width // 3, width // 3, width // 2, width), (16, 16, 8, 4)
    stages = zip(channels, sizes, strict=True)
    preacts = tuple(torch.randn(rows, c, size, size, generator=generator) for c, size in stages)
    logits, embedding = (torch.randn(rows, n, generator=generator) for n in (7, width))
    return Output(logits, embedding.relu(), tuple(p.relu() for p in preacts), preacts)


class Pair:
    """The outputs of two networks for 6 images in V views; ``cached`` is the teacher's as a cache would give it."""

    def __init__(self, views):
        self.student, self.teacher = make_output(6 * views, 12, 0), make_output(6 * views, 12, 1)
        self.cached = self.teacher._replace(maps=NO_MAPS, preacts=NO_MAPS)
        generator = torch.Generator().manual_seed(2)
        centers = [torch.randn(*shape, generator=generator) for shape in ((7, 12), (7, 12), (7,), (7,))]
        labels, index = torch.tensor([0, 3, 0, 6, 3, 1]), torch.tensor([4, 9, 0, 7, 2, 8])
        self.context = Context(image_views(labels, index, views, strong=views == 2), Centers(*centers), epochs=10)

    def setup(self, teacher):
        torch.manual_seed(0)
        return Setup(Shapes.of(self.student), Shapes.of(teacher), 10, nn.Linear(12, 7).requires_grad_(False))

    def value(self, name, known, shown):
        """A loss built for the teacher as ``known`` and shown the teacher's answer as ``shown``."""
        setup = self.setup(known)
        torch.manual_seed(1)
        return build(LOSSES, name, setup)(self.student, shown, self.context)

    def objective(self, name, teacher):
        """A method's terms, previewed where it is so, on the teacher's answer given."""
        setup = self.setup(teacher)
        torch.manual_seed(1)
        objective = Objective(
            build(METHODS, name),
            setup,
            difficulty=build(DIFFICULTY_METRICS, "cross_entropy"),
            scheduler=build(DIFFICULTY_SCHEDULERS, "preview"),
            centers=build(CENTER_RULES, "ema", setup),
        )
        values = objective(self.student, teacher, self.context)
        objective.centers.update(self.student, teacher, self.context.labels)
        return values


@pytest.mark.parametrize("name", losses_of_views())
def test_a_loss_reads_no_maps_or_is_refused_when_it_is_built_and_when_it_is_shown_none(name):
    pair = Pair(views=4)
    expected = pair.value(name, pair.teacher, pair.teacher)
    answers = set()
    for known, shown in ((pair.cached, pair.cached), (pair.teacher, pair.cached)):
        try:
            said = "" if torch.equal(pair.value(name, known, shown), expected) else "another value"
        except NotApplicable as error:
            said = str(error)
        answers.add(said)
    assert answers in ({""}, {NO_MAPS.reason})


MAPS = {"ab", "at", "fitnet", "fsp", "ft", "ickd", "kdsvd", "nst", "ofd", "reviewkd", "simkd", "sp", "vid"}
NO_MAPS_NEEDED = {"kd", "pckd", "pckd_without_kd", "vanilla", "dkd", "dist", "crd", "rkd", "pkt", "cc", "srrl", "sskd"}


@pytest.mark.parametrize("name", methods_of_views())
def test_a_method_works_on_a_cache_as_without_one_or_says_why_not(name):
    terms: list[Term] = build(METHODS, name)
    views = 2 if any(term.rows == "strong" for term in terms) else 4
    pair = Pair(views)
    expected = pair.objective(name, pair.teacher)
    try:
        values = pair.objective(name, pair.cached)
    except NotApplicable as error:
        values, said = {}, str(error)
    else:
        said = ""
    assert said in ("", NO_MAPS.reason)
    assert name not in (NO_MAPS_NEEDED if said else MAPS)
    if not said:
        assert values.keys() == expected.keys()
        assert all(torch.equal(values[label], expected[label]) for label in expected)
