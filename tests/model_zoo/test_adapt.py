"""Plain modules as backbones: what is found in them, that they train as those that return Output, what is refused."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import pckd
from model_zoo import load_weights, preprocessing_of, save_weights
from model_zoo.adapting import Adapted, WithLayers, adapt
from pckd.device import Device
from pckd.display import Display
from pckd.engine.teacher import FrozenTeacher
from pckd.profiling.networks import count
from registry import BACKBONES, CENTER_RULES, Absent, Output, Setup, Shapes, UserError, build

DATA = "shapes(image_size=8, train_size=24, test_size=8, num_classes=4)"
QUICK: dict[str, Any] = {"data": DATA, "epochs": 2, "batch_size": 8, "lr": 0.05, "display": None}
QUICK |= {"device": "cpu", "precision": "fp32", "compile": False}
K = 4


class Net(nn.Module):
    """Two stages and a classifier; what it returns is for the subclasses to say."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.stage = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.drop, self.head = nn.Dropout(0.1), nn.Linear(8, K)

    def maps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        return x, self.stage(x)

    def embed(self, x: Tensor) -> Tensor:
        return self.drop(self.maps(x)[1].mean((2, 3)))

    def forward(self, x: Tensor) -> Any:
        return self.head(self.embed(x))


class Native(Net):
    """What Net is where somebody has written it for this library."""

    @property
    def classifier(self) -> nn.Linear:
        return self.head

    def forward(self, x: Tensor) -> Output:
        maps = self.maps(x)
        embedding = self.drop(maps[1].mean((2, 3)))
        return Output(self.head(embedding), embedding, maps)


class Pair(Net):
    def forward(self, x: Tensor) -> Any:
        embedding = self.embed(x)
        return embedding, self.head(embedding)


class Named(Net):
    def forward(self, x: Tensor) -> Any:
        embedding = self.embed(x)
        return {"features": embedding, "prediction": self.head(input=embedding)}


class Object(Net):
    def forward(self, x: Tensor) -> Any:
        embedding = self.embed(x)
        return SimpleNamespace(hidden=embedding, logits=self.head(embedding))


class Auxiliary(Net):
    """A tuple in train mode only, as of networks with auxiliary classifiers."""

    def forward(self, x: Tensor) -> Any:
        logits = super().forward(x)
        return (logits, logits) if self.training else logits


class TwoHeads(Net):
    """The mean of two classifiers, which start alike: each gives the logits, and none decides them."""

    def __init__(self) -> None:
        super().__init__()
        self.other = copy.deepcopy(self.head)

    def forward(self, x: Tensor) -> Any:
        embedding = self.embed(x)
        return (self.head(embedding) + self.other(embedding)) / 2


class ConvHead(Net):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(8, K, 1)  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Any:
        return self.head(self.maps(x)[1]).mean((2, 3))


class Tokens(nn.Module):
    """A patch embedding, a layer over tokens, and a classifier of the first token, as in a ViT."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.layer, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 8), nn.Linear(8, K)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.layer(self.patches(x).flatten(2).transpose(1, 2))[:, 0])


MAPS = ("stem", "stage")


@pytest.mark.parametrize(
    ("make", "classifier", "maps"),
    [
        (Net, "head", MAPS),
        (Pair, "head", MAPS),
        (Named, "head", MAPS),
        (Object, "head", MAPS),
        (Auxiliary, "head", MAPS),
        (TwoHeads, "", MAPS),
        (ConvHead, "", MAPS),
        (Tokens, "head", ()),
        (lambda: nn.Sequential(*Net().stem, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(96, K)), "5", ("2", "3")),
        (lambda: nn.DataParallel(Net()), "head", MAPS),
        (lambda: AveragedModel(Net()), "head", MAPS),
        (lambda: torch.compile(Net()), "head", MAPS),
    ],
)
def test_what_is_found(make: Callable[[], nn.Module], classifier: str, maps: tuple[str, ...]) -> None:
    module, images = make().train(), torch.randn(3, 3, 8, 8)
    network = adapt(module, image_size=8)
    assert (network.classifier_path, network.map_paths) == (classifier, maps)
    assert all(part.training for part in network.modules())
    inside = network.network
    assert list(network.state_dict()) == list(inside.state_dict())
    network.eval()
    output, answer = network(images), inside(images)
    logits = {Pair: lambda: answer[1], Named: lambda: answer["prediction"], Object: lambda: answer.logits}
    assert torch.equal(output.logits, logits.get(type(inside), lambda: answer)())
    if classifier:
        assert torch.equal(network.classifier(output.embedding), output.logits)
    if isinstance(inside, Net):
        assert all(torch.equal(one, other) for one, other in zip(output.maps, inside.maps(images), strict=True))
    assert network.train()(images).logits.shape == (3, K)
    assert not any(part._forward_hooks for part in inside.modules())


def test_a_plain_module_trains_to_the_bit_as_the_one_that_returns_output() -> None:
    results = {}
    for kind in (Native, Net):
        torch.manual_seed(0)
        student, teacher = kind(), kind()
        before = copy.deepcopy(teacher.state_dict())
        result = pckd.distill(student=student, teacher=teacher, method="pckd(delta=2)+at", **QUICK)
        results[kind] = result.history, student.state_dict(), result.student.state_dict()
        assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())
        assert pckd.evaluate(result.student, DATA) == pckd.evaluate(student, DATA)
    (history, trained, _), (ours, state, of_result) = results[Native], results[Net]
    assert ours == history
    for other in (state, of_result):
        assert list(other) == list(trained)
        assert all(torch.equal(value, other[key]) for key, value in trained.items())


class Stopping(Display):
    """Ends the run in its second epoch, as a crash does."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def advance(self, epoch: int, step: int) -> None:
        if epoch == 2:
            raise KeyboardInterrupt


def test_a_run_is_saved_said_and_resumed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    student, teacher = Net(), nn.DataParallel(Net())
    display = Stopping()

    def run(folder: str, **options: Any) -> pckd.Result:
        both = {"student": copy.deepcopy(student), "teacher": teacher, "method": "kd", "output": tmp_path / folder}
        return pckd.distill(**{**QUICK, **both, **options})

    with pytest.raises(KeyboardInterrupt):
        run("stopped", display=display)
    assert display.notes[:2] == [
        "the student, Net: classifier head (8 -> 4); maps stem, stage",
        "the teacher, Net: classifier head (8 -> 4); maps stem, stage",
    ]
    run("stopped", resume=True)
    run("whole")
    one, other = ((tmp_path / folder / "model_final.pth").read_bytes() for folder in ("stopped", "whole"))
    assert one == other
    plain = Net()
    load_weights(plain, tmp_path / "whole" / "model_final.pth")
    assert pckd.evaluate(plain, DATA).samples == 8


def test_batch_norms_are_folded_and_multiplications_counted_as_of_a_native_network() -> None:
    native, images = Native(), torch.randn(2, 3, 8, 8)
    plain = Net()
    plain.load_state_dict(native.state_dict())
    network = adapt(plain, image_size=8)
    frozen = FrozenTeacher(network)
    before = frozen(images)
    assert frozen.prepare(images, Device(torch.device("cpu")))
    assert not any(isinstance(part, nn.BatchNorm2d) for part in frozen.answering.modules())
    for one, other in zip(frozen(images).maps, before.maps, strict=True):
        torch.testing.assert_close(one, other)
    # With two operations for each element of a batch norm.
    macs = 8 * 8 * 6 * (27 + 2) + 4 * 4 * 8 * (54 + 2) + 8 * 4
    costs = [count(model, "it", images[:1], 1) for model in (native, network)]
    assert costs[0].macs == costs[1].macs == macs
    assert costs[1].error is None


def test_copies_and_files_keep_the_modules_own_keys(tmp_path: Path) -> None:
    network, images = adapt(Net(), image_size=8).eval(), torch.randn(2, 3, 8, 8)
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(other(images).embedding, network(images).embedding)
        assert other.network is not network.network
    # Inside another module, and back.
    holder, fresh = nn.ModuleList([network]), nn.ModuleList([adapt(Net(), image_size=8)])
    assert list(holder.state_dict()) == [f"0.{key}" for key in Net().state_dict()]
    fresh.load_state_dict(holder.state_dict())
    assert torch.equal(fresh.eval()[0](images).logits, network(images).logits)
    file = save_weights(network, tmp_path / "a.pth")
    for target in (Net(), adapt(Net(), image_size=8)):
        load_weights(target, file)
        assert torch.equal(target.state_dict()["head.weight"], network.classifier.weight)


def test_a_teacher_is_shown_images_as_in_its_training() -> None:
    teacher = adapt(Net(), image_size=8, mean=(0.2,) * 3, std=(0.1,) * 3, name="mine")
    record = preprocessing_of(teacher)
    assert record is not None
    assert (record.mean, record.image_size) == ((0.2,) * 3, (8, 8))
    display = Stopping()
    with pytest.raises(KeyboardInterrupt):
        pckd.distill(student="resnet8", teacher=teacher, method="kd", **{**QUICK, "display": display})
    assert any("is shown images normalized as in its own training (mean 0.2 0.2 0.2" in note for note in display.notes)


@pytest.mark.usefixtures("registries")
def test_a_registered_function_may_return_a_plain_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PCKD_CACHE", str(tmp_path))

    @BACKBONES.register("mine")
    def mine(num_classes: int, *, in_channels: int = 3) -> nn.Module:
        return Net()

    # The teacher is trained first, and found in the cache at the second time.
    results = [pckd.distill(student="mine", teacher="mine", method="kd", **QUICK) for _ in range(2)]
    assert results[0].history == results[1].history
    assert isinstance(results[0].student, Adapted)


class NoLogits(Net):
    def forward(self, x: Tensor) -> Any:
        return self.maps(x)[1]


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (NoLogits, {}, r"NoLogits: forward returns no logits \[N, K\] \(a tensor \[2, 8, 4, 4\] for 2 images\)"),
        (Net, {"classifier": "fc"}, "Net has no module 'fc'"),
        (Net, {"classifier": "stem"}, "Net: stem must be an nn.Linear, not Sequential"),
        (TwoHeads, {"classifier": "head"}, "the output of head is not its logits"),
        (Net, {"maps": ["stem", "head"]}, r"Net: head returns no map \[N, C, H, W\] \(a tensor \[2, 4\]\)"),
        (Net, {"mean": (0.5,) * 3}, "give both mean and std"),
        (
            Net,
            {"mean": (0.5,) * 3, "std": (0.5, 0.0, 0.5)},
            "Net: give mean and std with a number a channel, std above",
        ),
        (Net, {"image_size": (8,)}, r"Net: give .* image_size as pixels or \(height, width\)"),
        (Net, {"interpolation": "lanczos"}, "Net: give .* and interpolation as bilinear, bicubic, nearest"),
        (Net, {"pretrained": True}, "Net has no pretrained_cfg, as timm's modules have; give mean, std and image_size"),
        (
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, K)),
            {"image_size": 9},
            "cannot run on images of 3 channels",
        ),
    ],
)
def test_adapt_refuses(make: Callable[[], nn.Module], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        adapt(make(), **{"image_size": 8, **options})


NONE = (
    "are the output of no single nn.Linear, so that it has neither an embedding nor a classifier's rows; use a method"
)


@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize(
    ("method", "refused"),
    [
        ("kd", ""),
        ("at", ""),
        ("pckd", "feature_alignment"),
        ("crd", "crd"),
        ("rkd", "rkd"),
        ("srrl", "srrl"),
        ("pckd_plus", "direct_alignment"),
    ],
)
def test_a_head_that_is_no_single_layer_has_logits_and_maps(role: str, method: str, refused: str) -> None:
    both = {"student": Net(), "teacher": Net(), role: ConvHead()}
    if not refused:
        assert len(pckd.distill(method=method, **both, **QUICK).history) == 2
        return
    with pytest.raises(UserError) as caught:
        pckd.distill(method=method, **both, **QUICK)
    assert str(caught.value).startswith(f"loss '{refused}': the logits of the {role} {NONE}")
    assert "\n" not in str(caught.value)


class Extractor(Net):
    """An embedding of width 8, as of a network that was trained without labels."""

    def __init__(self) -> None:
        super().__init__()
        del self.head

    def forward(self, x: Tensor) -> Any:
        return self.embed(x)


@pytest.mark.parametrize("given", [False, True])
def test_a_teacher_without_a_classifier_teaches_by_embeddings_and_maps(given: bool) -> None:
    teacher = adapt(Extractor(), classifier=False, image_size=8) if given else Extractor()
    display = Stopping()
    with pytest.raises(KeyboardInterrupt):
        pckd.distill(student=Net(), teacher=teacher, method="rkd", **{**QUICK, "display": display})
    said = "the teacher, Extractor: no classifier, what it returns is the embedding; maps stem, stage"
    assert said in display.notes
    assert "teacher: not measured, because it has no classifier" in display.notes


@pytest.mark.parametrize(
    ("method", "centers", "refused"),
    [
        ("rkd+at+crd", "classifier", ""),
        ("pckd_without_kd", "ema", ""),
        ("pckd_without_kd", "batch_mean(raw=True)", ""),
        ("pckd_without_kd", "classifier", "center_alignment"),
        ("pckd", "ema", "kd"),
        ("kd", "ema", "kd"),
        ("srrl", "ema", "srrl"),
    ],
)
def test_what_needs_the_logits_or_the_rows_of_such_a_teacher_is_refused(
    method: str, centers: str, refused: str, tmp_path: Path
) -> None:
    def run(**options: Any) -> pckd.Result:
        torch.manual_seed(0)
        return pckd.distill(
            student=Net(), teacher=Extractor(), method=method, centers=centers, **{**QUICK, "views": 1, **options}
        )

    if refused:
        with pytest.raises(
            UserError, match=f"^loss '{refused}': .* has no classifier, so that it has neither"
        ) as caught:
            run()
        assert "\n" not in str(caught.value)
        return
    result = run()
    assert result.teacher_top1 is None
    if "at" not in method.split("+"):
        # A cache keeps its embeddings.
        cached = [run(teacher_cache=tmp_path).history for _ in range(2)]
        assert cached[0] == cached[1]


def test_such_a_teachers_centers_are_as_long_as_the_students_rows() -> None:
    setup = Setup(Shapes(3, 4), Shapes(3, 2), 9, None)
    rule = build(CENTER_RULES, "batch_mean", setup)
    native, features = SimpleNamespace(classifier=nn.Linear(4, 3)), SimpleNamespace(classifier=Absent("none"))
    assert torch.equal(rule(native, features).teacher, torch.zeros(3, 2))
    labels, embedding = torch.tensor([0, 1, 2]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]])
    rule.update(Output(torch.zeros(3, 3), torch.randn(3, 4)), Output(torch.zeros(3, 3), embedding), labels)
    centered = embedding - 1
    expected = centered * native.classifier.weight.norm(dim=1).mean() / centered.norm(dim=1).mean()
    torch.testing.assert_close(rule(native, features).teacher, expected)


class Forms(Net):
    """Modules that return what a layer may be, or not; the ReLU in place changes what the norm before it returned."""

    def __init__(self) -> None:
        super().__init__()
        self.stem[2].inplace = True
        names = ("several", "named", "tokens", "last", "words", "pixels", "text", "idle")
        self.forms = nn.ModuleDict({name: nn.Identity() for name in names})

    def forward(self, x: Tensor) -> Any:
        stem, stage = self.maps(x)
        tokens = stage.flatten(2).mT
        self.forms["several"]((stage, stem))
        self.forms["named"]({"hidden": stage, "other": stem})
        self.forms["tokens"](torch.cat([torch.zeros_like(tokens[:, :5]), tokens], 1))
        self.forms["last"](stage.movedim(1, 3))
        self.forms["words"](tokens[:, :15])
        self.forms["pixels"](stem.flatten(0, 1))
        self.forms["text"]("no tensor")
        return self.head(self.drop(stage.mean((2, 3))))


FORMS = {"stem.1": "norm", "stage": "stage", "head": "logits"}
FORMS |= {f"forms.{name}": "stage" for name in ("several", "named", "tokens", "last")}


def test_a_layer_is_what_its_module_returned_as_a_map_or_a_vector() -> None:
    module, images = Forms().eval(), torch.randn(3, 3, 8, 8)
    network = WithLayers(adapt(module, image_size=8), FORMS, "the student")
    output = network(images)
    norm = module.stem[1](module.stem[0](images))
    stage = module.stage(norm.relu())
    expected = {"norm": norm, "stage": stage, "logits": output.logits}
    assert (norm < 0).any()
    assert list(output.layers) == list(FORMS)
    for path, name in FORMS.items():
        torch.testing.assert_close(output.layers[path], expected[name])
    assert Shapes.of(output).layers == {path: tuple(expected[name].shape[1:]) for path, name in FORMS.items()}
    assert list(network.state_dict()) == list(module.state_dict())
    network.load_state_dict(module.state_dict())
    assert network.classifier is module.head
    assert not any(part._forward_hooks for part in module.modules())


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("stge", r"the student \(Forms\) has no module 'stge'; did you mean 'stage' .* It has stem, stage, drop, head"),
        ("forms", r"the student \(Forms\): its module 'forms' is not called"),
        ("forms.idle", "'forms.idle' is not called"),
        ("forms.words", r"returns a tensor \[3, 15, 8\] for 3 images of 8x8 pixels, which is neither a map"),
        ("forms.pixels", r"returns a tensor \[18, 8, 8\] for 3 images"),
        ("forms.text", "returns nothing in floating point"),
    ],
)
def test_no_layer(path: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        WithLayers(adapt(Forms(), image_size=8), [path], "the student")(torch.randn(3, 3, 8, 8))
    assert "\n" not in str(caught.value)


def test_layers_of_networks_that_take_their_sequences_apart() -> None:
    images = torch.randn(2, 3, 32, 32)
    network = build(BACKBONES, "torchvision:resnet18", K).eval()
    output = WithLayers(network, ["layer3", "network.layer3.0.bn1"], "the teacher")(images)
    assert torch.equal(output.layers["layer3"], output.maps[-2])
    assert (output.layers["network.layer3.0.bn1"] < 0).any()
    built = WithLayers(build(BACKBONES, "resnet8", K), ["layer2"], "the student")(images)
    assert torch.equal(built.layers["layer2"], built.maps[2])


def test_batch_norms_are_folded_and_layers_stay() -> None:
    network, images = adapt(Net(), image_size=8).eval(), torch.randn(4, 3, 8, 8)
    frozen = FrozenTeacher(network, asked=WithLayers(network, ["stem.0", "stage.1"], "the teacher"))
    before = frozen(images).layers
    assert frozen.prepare(images, Device(torch.device("cpu")))
    # The norm after stem.0 is left, because that layer is read before it.
    assert sum(isinstance(part, nn.BatchNorm2d) for part in frozen.answering.modules()) == 1
    for path, layer in frozen(images).layers.items():
        torch.testing.assert_close(layer, before[path])


PAIRS = (
    "layers(student='stage', teacher='stage.1', loss='fitnet')+kd"
    "+layers(student='stem', teacher='drop', loss='rkd(angle_weight=1)', weight=0.5)"
)


@pytest.mark.parametrize("options", [{}, {"views": 2, "view_statistics": "own"}, {"scheduler": "preview"}], ids=str)
def test_pairs_of_layers_train_save_and_resume(options: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    student, teacher = Net(), Net()

    def run(folder: str, **more: Any) -> pckd.Result:
        both: dict[str, Any] = {"student": copy.deepcopy(student), "teacher": teacher, "method": PAIRS}
        return pckd.distill(**{**QUICK, **both, "output": tmp_path / folder, **options, **more})

    with pytest.raises(KeyboardInterrupt):
        run("stopped", display=Stopping())
    run("stopped", resume=True)
    whole = run("whole")
    one, other = ((tmp_path / folder / "model_final.pth").read_bytes() for folder in ("stopped", "whole"))
    assert one == other
    assert isinstance(whole.student, Adapted)
    assert list(whole.student.state_dict()) == list(student.state_dict())
    assert {"layers_1", "layers_3"} <= whole.history[0].keys()
    assert whole.terms["layers_1"].items() >= {"student": "stage", "teacher": "stage.1", "loss": "fitnet"}.items()


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("layers(student='stages', teacher='stage')", {}, r"^the student \(Net\) has no module 'stages'"),
        ("layers(student='stage', teacher='stages')", {}, r"^the teacher \(Net\) has no module 'stages'"),
        ("layers(student='stage')", {}, "^layers: name a module of each network"),
        ("layers(student='stage', teacher='stage')", {"teacher_cache": "cache"}, "^the teacher cache holds logits"),
        ("layers(student='stage', teacher='stage', loss='cc')", {}, "^LOSSES: unknown name 'cc'"),
    ],
)
def test_pairs_that_cannot_be_are_refused(
    method: str, options: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        pckd.distill(student=Net(), teacher=Net(), method=method, **{**QUICK, **options})
    assert "\n" not in str(caught.value)


def torchvision_network(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: pytest.importorskip("torchvision.models").get_model(name, num_classes=K, **options)


def timm_network(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: pytest.importorskip("timm").create_model(name, num_classes=K, **options)


def transformers_network(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        library = pytest.importorskip("transformers")
        config = getattr(library, f"{name}Config")(num_labels=K, **options)
        return getattr(library, f"{name}ForImageClassification")(config)

    return make


LAYERS = ("layer1", "layer2", "layer3", "layer4")
TINY: dict[str, Any] = {"hidden_sizes": [8, 16, 16, 24], "depths": [1, 1, 1, 1]}
VIT: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "classifier", "maps"),
    [
        (torchvision_network("resnet18"), "fc", ("relu", *LAYERS)),
        (torchvision_network("vgg11_bn"), "classifier.6", tuple(f"features.{i}" for i in (2, 6, 13, 20, 27, 28))),
        (torchvision_network("vit_b_16", image_size=32), "heads.head", ()),
        (torchvision_network("convnext_tiny"), "classifier.2", tuple(f"features.{i}" for i in (1, 3, 5, 7))),
        (torchvision_network("mobilenet_v3_small"), "classifier.3", tuple(f"features.{i}" for i in (0, 1, 3, 8, 12))),
        (torchvision_network("swin_t"), "head", ("permute",)),
        (timm_network("resnet18"), "fc", ("act1", *LAYERS)),
        (timm_network("deit_tiny_patch16_224", img_size=32), "head", ()),
        (timm_network("deit_tiny_distilled_patch16_224", img_size=32), "", ()),
        (timm_network("resnetv2_50x1_bit"), "", ("stem.conv", "stages.0", "stages.1", "stages.2", "norm")),
        (timm_network("mixer_s32_224", img_size=32), "head", ()),
        (transformers_network("ViT", image_size=32, patch_size=8, **VIT), "classifier", ()),
        (
            transformers_network("ResNet", embedding_size=8, **TINY),
            "classifier.1",
            tuple(f"resnet.encoder.stages.{i}" for i in range(4)),
        ),
        (
            transformers_network("ConvNext", **TINY),
            "classifier",
            tuple(f"convnext.encoder.stages.{i}" for i in range(4)),
        ),
    ],
)
def test_what_is_found_in_libraries(make: Callable[[], nn.Module], classifier: str, maps: tuple[str, ...]) -> None:
    network = adapt(make(), image_size=32)
    assert (network.classifier_path, network.map_paths) == (classifier, maps)
    data = "shapes(image_size=32, train_size=8, test_size=4, num_classes=4)"
    result = pckd.distill(student=network, teacher=Net(), method="kd", **{**QUICK, "data": data, "epochs": 1})
    assert list(result.student.state_dict()) == list(network.network.state_dict())


@pytest.mark.slow
def test_compiled_it_trains_as_it_is() -> None:
    losses = []
    for compiled in (False, True):
        torch.manual_seed(0)
        student = Net()
        # Compiled, it draws other random numbers.
        student.drop.p = 0.0
        result = pckd.distill(student=student, teacher=Net(), method="kd+at", **{**QUICK, "compile": compiled})
        losses.append([row["loss"] for row in result.history])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
