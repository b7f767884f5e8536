import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from dpgmm_beam.encoders import open_clip_encoder, registry
from dpgmm_beam.errors import ConfigError

open_clip = pytest.importorskip("open_clip")


@pytest.fixture(autouse=True, scope="module")
def quick_on_a_busy_machine():
    with open_clip_encoder.one_thread_per_operator():
        yield


def pictures(count, mode="RGB", size=(50, 40)):
    """Smooth random pictures: noise of a few pixels, enlarged."""
    random = np.random.default_rng(7)
    for _ in range(count):
        small = random.integers(0, 256, (6, 6, 3), np.uint8)
        yield Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).convert(mode)


@pytest.fixture(scope="module")
def lite0():
    return registry.load_encoder("efficientnet_lite0:64")


@pytest.fixture(scope="module")
def prepared(lite0):
    return lite0.prepare(list(pictures(40)))


def test_shapes(lite0, prepared):
    assert (lite0.spec, lite0.dimension) == ("efficientnet_lite0:64", 1280)
    assert prepared.shape == (40, 64, 64, 3)
    embeddings = lite0.embed(prepared)
    assert (embeddings.shape, embeddings.dtype) == ((40, 1280), np.float32)
    assert np.isfinite(embeddings).all()
    assert lite0.embed(prepared[:0]).shape == (0, 1280)
    assert lite0.prepare([]).shape == (0, 64, 64, 3)


def test_the_packaged_weights_are_used(lite0):
    """ImageNet features: a picture is nearer to its mirror image than to another picture."""
    ones = list(pictures(12))
    mirrored = [one.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for one in ones]
    a, b = (lite0.embed(lite0.prepare(some)) for some in (ones, mirrored))
    a, b = (x - x.mean(0) for x in (a, b))
    assert np.array_equal((a @ b.T).argmax(1), np.arange(12))


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_preparation_is_open_clips_own(lite0, mode):
    """The same pixels, bit for bit, as open_clip's transform gives one image at a time."""
    config = open_clip.transform.PreprocessCfg(
        size=64, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic", resize_mode="shortest"
    )
    transform = open_clip.transform.image_transform_v2(config, is_train=False)
    some = list(pictures(3, mode))
    expected = torch.stack([transform(image) for image in some]).numpy()
    pixels = torch.from_numpy(lite0.prepare(some)).permute(0, 3, 1, 2).float()
    assert np.array_equal(pixels.div_(255).sub_(0.5).div_(0.5).numpy(), expected)


def test_an_embedding_does_not_depend_on_its_batch_mates(lite0, prepared):
    expected = lite0.embed(prepared)
    order = np.random.default_rng(0).permutation(len(prepared))
    assert np.array_equal(lite0.embed(prepared[order]), expected[order])
    for rows in (1, 2, 7, 16, 17, 33):
        assert np.array_equal(lite0.embed(prepared[:rows]), expected[:rows])
    assert np.array_equal(lite0.embed(prepared[::-1]), expected[::-1])


def test_nor_on_threads(lite0, prepared):
    expected = lite0.embed(prepared)
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lite0.embed, [prepared] * 3))
    torch.set_num_threads(2)
    try:
        results.append(lite0.embed(prepared))
    finally:
        torch.set_num_threads(1)
    assert all(np.array_equal(result, expected) for result in results)


def test_a_picture_that_would_be_resized_beyond_measure(lite0):
    with pytest.raises(ValueError, match="too long for its width"):
        lite0.prepare([Image.new("L", (1, 2**15))])
    assert lite0.prepare([Image.new("L", (1, 256))]).shape == (1, 64, 64, 3)


def test_pictures_prepared_one_by_one(lite0, prepared):
    """As a job does it: the same pixels."""
    one_by_one = [lite0.prepare([image]) for image in pictures(40)]
    assert np.array_equal(np.concatenate(one_by_one), prepared)


def test_the_first_call_gives_the_same_bits(lite0, prepared):
    fresh = registry.load_encoder("efficientnet_lite0:64")
    assert np.array_equal(fresh.embed(prepared), lite0.embed(prepared))


def test_sessions_nest_and_restore():
    code = """
import torch
from dpgmm_beam.encoders.open_clip_encoder import one_thread_per_operator as session
torch.set_num_threads(3)
first, second = session(), session()
with first:
    second.__enter__()
    assert torch.get_num_threads() == 1
assert torch.get_num_threads() == 1
second.__exit__(None, None, None)
assert torch.get_num_threads() == 3
"""
    subprocess.run([sys.executable, "-c", code], check=True)


class Swapped(torch.nn.Module):
    """Its batch norm stands after its convolution, but runs before it."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = torch.nn.Conv2d(3, 3, 1), torch.nn.BatchNorm2d(3)
        torch.nn.init.constant_(self.bn.running_mean, 0.3)
        torch.nn.init.constant_(self.bn.running_var, 4.0)

    def forward(self, images):
        return self.conv(self.bn(images))


def test_folding_is_undone_where_it_would_change_the_network():
    probe = torch.rand(2, 3, 4, 4)
    with torch.inference_mode():
        swapped = Swapped().eval()
        assert open_clip_encoder.fold_batch_norms(swapped, probe) is swapped
        proper = torch.nn.Sequential(*Swapped().children()).eval()
        folded = open_clip_encoder.fold_batch_norms(proper, probe)
        assert folded is not proper
        assert torch.allclose(folded(probe), proper(probe), atol=1e-5)


def test_a_users_checkpoint_by_path(tmp_path):
    """A vision transformer whose weights are in a file; its embeddings are open_clip's own."""
    torch.manual_seed(0)
    name = "ViT-S-32-alt"
    model = open_clip.create_model(name, pretrained_text=False).eval()
    path = tmp_path / "weights.pt"
    torch.save(model.state_dict(), path)
    spec = f"open_clip:{name}/{path}"
    encoder = registry.load_encoder(spec)
    assert (encoder.spec, encoder.dimension) == (spec, 256)
    images = list(pictures(3, size=(300, 250)))
    transform = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(**model.visual.preprocess_cfg), is_train=False
    )
    with torch.inference_mode():
        expected = model.encode_image(torch.stack([transform(image) for image in images])).numpy()
    embeddings = encoder.embed(encoder.prepare(images))
    np.testing.assert_allclose(embeddings, expected, atol=1e-4 * np.abs(expected).max())
    assert np.array_equal(encoder.embed(encoder.prepare(images[2:])), embeddings[2:])

    one = registry.encoder_fingerprint(spec)
    model.logit_scale.data += 1
    torch.save(model.state_dict(), path)
    assert registry.encoder_fingerprint(spec) != one


def test_local_dir_models(tmp_path):
    """A whole model by folder, and a network with batch norms in open_clip's own style."""
    vision = {"layers": [1, 1, 1, 1], "width": 16, "image_size": 64, "patch_size": None}
    text = {"context_length": 4, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1}
    config = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}
    torch.manual_seed(0)
    model = open_clip.CLIP(**config)
    torch.save(model.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    encoder = registry.load_encoder(f"open_clip:local-dir:{tmp_path}")
    assert encoder.dimension == 32
    assert np.isfinite(encoder.embed(encoder.prepare(list(pictures(2))))).all()


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (
            "vgg16",
            "vgg16 is refused: it must be one of dct, efficientnet_lite0, open_clip, precomputed, scattering",
        ),
        ("", "be one of"),
        ("efficientnet_lite0:huge", "SIZE from 32 to 1024"),
        ("efficientnet_lite0:8", "SIZE from 32 to 1024"),
        ("open_clip:", "a MODEL of open_clip.list_models()"),
        ("open_clip:no-such/openai", "a MODEL of open_clip.list_models()"),
        ("open_clip:ViT-B-32/no-such", "a tag that open_clip knows for it (openai,"),
        ("open_clip:ViT-B-32", "the path of a checkpoint that exists"),
        ("precomputed:8", "without an argument"),
        ("efficientnet_lite0:" + "9" * 5000, "SIZE from 32 to 1024"),
        ("open_clip:ViT-B-32/\udcff", "be text in UTF-8"),
        ("open_clip:local-dir:", "be open_clip:local-dir:NAME"),
        ("open_clip:hf-hub:", "be open_clip:hf-hub:NAME"),
        ("open_clip:local-dir:/nowhere", "with an open_clip_config.json in FOLDER"),
    ],
    ids=lambda text: text[:40],
)
def test_refusals(spec, sentence, monkeypatch):
    # Other tests bring an encoder of their own.
    monkeypatch.delitem(registry._REGISTRY, "blocks", raising=False)
    with pytest.raises(ConfigError) as refusal:
        registry.check_encoder(spec)
    assert sentence in str(refusal.value)
    assert refusal.value.argument == "encoder"


@pytest.mark.parametrize("data", [b"no weights", b"", b"PK\x03\x04"])
def test_weights_that_cannot_be_read(tmp_path, data):
    (tmp_path / "weights.pt").write_bytes(data)
    (tmp_path / "open_clip_config.json").write_bytes(data)
    for argument in (f"ViT-S-32-alt/{tmp_path}/weights.pt", f"local-dir:{tmp_path}"):
        with pytest.raises(
            ConfigError, match=r"encoder=open_clip:.* must name weights of that model that can be"
        ):
            registry.load_encoder(f"open_clip:{argument}")


def test_good_specs_are_checked_without_loading():
    for spec in ("efficientnet_lite0", "efficientnet_lite0:224", "precomputed", "open_clip:ViT-B-32/openai"):
        registry.check_encoder(spec)
    with pytest.raises(ConfigError, match="name a model"):
        registry.load_encoder("precomputed")


class Tiny(registry.Encoder):
    spec, dimension, batch_size = "tiny", 3, 4

    def prepare(self, images):
        return np.stack([np.asarray(image.convert("RGB").resize((4, 4))) for image in images])

    def embed(self, prepared):
        return prepared.mean(axis=(1, 2), dtype=np.float32)


def test_one_class_and_one_registration_make_an_encoder(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    loaded = []
    registry.register_encoder(
        "tiny",
        lambda argument, batch_size: loaded.append(argument) or Tiny(),
        lambda argument: None if argument in ("", "x", "y", "z") else "be tiny or tiny:x",
    )
    with pytest.raises(ConfigError, match="be tiny or tiny:x"):
        registry.check_encoder("tiny:q")
    start = threading.Barrier(4)

    def get(_):
        start.wait()
        return registry.encoder_for_process("tiny:x")

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(get, range(4)))
    assert loaded == ["x"]
    assert all(one is found[0] for one in found)
    assert found[0].spec == "tiny:x"
    for argument in ("y", "z"):
        registry.encoder_for_process(f"tiny:{argument}")
    assert len(registry._loaded) <= 2
    registry._loaded.clear()
