"""What the public library does with wrong arguments: UserError, which names the argument and what is right."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small

from slm_np import (
    AdamW,
    Decoder,
    Model,
    ModelConfig,
    SamplingConfig,
    TrainConfig,
    UserError,
    learning_rate,
    load,
    load_corpus,
    parameter_count,
    preset,
    random_batch,
    text_of,
)
from slm_np.data.byte_tokenizer import ByteTokenizer
from slm_np.dtypes import BF16
from slm_np.nn.dropout import model_dropout

pytestmark = pytest.mark.usefixtures("one_thread")
V, T, B = 256, 8, 4
CONFIG = ModelConfig(vocab_size=V, block_size=T, n_layer=1, n_embd=16, n_head=2)


def tokens(seed=0):
    return np.random.default_rng(seed).integers(0, V, (B, T)).astype(np.int32)


@pytest.fixture(scope="module")
def model():
    return Model(CONFIG, seed=1)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    return load_corpus(small.text_file(folder), cache_dir=folder / "cache", progress=False)


WRONG_TARGETS = {
    "fewer sequences": (lambda y: y[:2], r"targets is an array of shape \(2, 8\).*of shape \((4, 8|32,)\)"),
    "fewer steps": (lambda y: y[:, :5], r"of shape \((4, 8|32,)\)"),
    "beyond the vocabulary": (lambda y: y + V, "targets has ids from 2.. to 5.., which are not all in the vocabulary"),
    "far beyond": (lambda y: y + 10**8, "vocabulary of 256"),
    "beyond int32": (lambda y: y.astype(np.int64) + 2**40, "vocabulary of 256"),
    "negative": (lambda y: np.where(y == y[0, 0], -2, y), "from -2 to .* or -1 to mask a target"),
    "float": (lambda y: y.astype(float), "type float64; it must be an array of integers"),
    "NaN": (lambda y: y * math.nan, "an array of integers"),
    "objects": (lambda y: y.astype(object), "type object"),
    "bool": (lambda y: y > 3, "type bool"),
    "one more axis": (lambda y: y[None], r"\(1, 4, 8\)"),
    "empty": (lambda y: y[:0], r"\(0, 8\)"),
    "rows of two lengths": (lambda y: [[1, 2], [3]], "an array of integers"),
    "text": (lambda y: "abc", "'abc'"),
    "None": (lambda y: None, "targets is None"),
}


@pytest.mark.parametrize("case", WRONG_TARGETS)
def test_wrong_targets(model, case):
    x = tokens()
    change, words = WRONG_TARGETS[case]
    for call in (model.loss, model.losses, model.loss_and_gradient):
        with pytest.raises(UserError, match=words):
            call(x, change(x))
    activations, dropout = model.plan(B, T), model_dropout(CONFIG)
    normed = model.forward(activations, x, dropout)
    with pytest.raises(UserError):
        model.backward(activations, x, change(x), normed, 1.0, dropout)


@pytest.mark.parametrize("case", [case for case in WRONG_TARGETS if not case.startswith("fewer")])
def test_wrong_tokens(model, case):
    x = tokens()
    wrong = WRONG_TARGETS[case][0](x)
    for call in (
        lambda: model.loss(wrong, x),
        lambda: model.losses(wrong, x),
        lambda: model.loss_and_gradient(wrong, x),
        lambda: model.logits(wrong),
        lambda: model.forward(model.plan(B, T), wrong, model_dropout(CONFIG)),
        lambda: Decoder(model, B).read(wrong),
    ):
        with pytest.raises(UserError, match="tokens"):
            call()


def test_windows_longer_than_the_context(model):
    with pytest.raises(UserError, match="9 tokens exceed the model's context of 8"):
        model.loss(np.zeros((1, 9), int), np.zeros((1, 9), int))


READABLE = {
    "list": np.ndarray.tolist,
    "int64": lambda x: x.astype(np.int64),
    "uint8": lambda x: x.astype(np.uint8),
    "big-endian": lambda x: x.astype(">i4"),
    "other order": np.asfortranarray,
    "every second element": lambda x: np.repeat(x, 2, 1)[:, ::2],
    "backwards in memory": lambda x: np.ascontiguousarray(x[::-1])[::-1],
    "read-only": lambda x: np.frombuffer(x.tobytes(), np.int32).reshape(x.shape),
    "not aligned": lambda x: np.frombuffer(b"." + x.tobytes(), np.int32, offset=1).reshape(x.shape),
}


@pytest.mark.parametrize("form", READABLE)
def test_ids_of_other_forms_give_the_same_bits(model, form):
    x, y = tokens(1), tokens(2)
    y[0, :3] = -1
    converted = READABLE[form](x)
    other = READABLE[form](y) if form != "uint8" else y
    assert model.loss(converted, other) == model.loss(x, y)
    np.testing.assert_array_equal(model.logits(converted), model.logits(x))
    decoder = Decoder(model, B)
    expected = decoder.read(x).copy(), decoder.step(x[:, 0]).copy()
    found = decoder.read(converted).copy(), decoder.step([int(id) for id in x[:, 0]]).copy()
    np.testing.assert_array_equal(found, expected)


def test_backward_follows_one_forward():
    model, x, dropout = Model(CONFIG, seed=1), tokens(), model_dropout(CONFIG)
    activations = model.plan(B, T)
    with pytest.raises(UserError, match="call forward again"):
        model.backward(activations, x, x, np.zeros((B * T, 16), np.float32), 1.0, dropout)
    normed = model.forward(activations, x, dropout)
    with pytest.raises(UserError, match="other tokens"):
        model.backward(activations, x[::-1], x, normed, 1.0, dropout)
    with pytest.raises(UserError, match="call forward again"):
        model.backward(activations, x, x, normed.copy(), 1.0, dropout)
    with pytest.raises(UserError, match="scale is nan"):
        model.backward(activations, x, x, normed, math.nan, dropout)
    model.backward(activations, x, x, normed, 1 / x.size, dropout)
    with pytest.raises(UserError, match="call forward again"):
        model.backward(activations, x, x, normed, 1.0, dropout)
    found = model.parameters.gradients.copy()
    model.parameters.gradients.fill(0)
    model.loss_and_gradient(x, x)
    np.testing.assert_array_equal(model.parameters.gradients, found)


def test_backward_after_a_batch_of_another_size():
    """The activations of the first forward are its own. After a pass over the same ones, backward is refused."""
    model, x, dropout = Model(CONFIG, seed=1), tokens(), model_dropout(CONFIG)
    model.loss_and_gradient(x, x)
    expected = model.parameters.gradients.copy()
    model.parameters.gradients.fill(0)
    activations = model.plan(B, T)
    normed = model.forward(activations, x, dropout)
    model.loss(x[:2], x[:2])
    model.backward(activations, x, x, normed, 1 / x.size, dropout)
    np.testing.assert_array_equal(model.parameters.gradients, expected)
    activations = model.plan(B, T)
    normed = model.forward(activations, x, dropout)
    model.loss(x, x)
    with pytest.raises(UserError, match="call forward again"):
        model.backward(activations, x, x, normed, 1.0, dropout)


def test_activations_and_states_of_other_models(model):
    x, other = tokens(), Model(ModelConfig(vocab_size=V, block_size=T, n_layer=2, n_embd=16, n_head=2))
    with pytest.raises(UserError, match="another model"):
        model.forward(other.plan(B, T), x, model_dropout(CONFIG))
    with pytest.raises(UserError, match="2 blocks, but the model 1 layers"):
        model.forward(model.plan(B, T), x, model_dropout(other.config))
    with pytest.raises(UserError, match="attention continues no windows"):
        model.loss_and_gradient(x, x, states=model.states(B))
    recurrent = [
        Model(ModelConfig(vocab_size=V, block_size=T, n_layer=1, n_embd=16, pattern="S", recurrence_size=size))
        for size in (8, 9)
    ]
    for states in (recurrent[0].states(B - 1), recurrent[1].states(B)):
        with pytest.raises(UserError, match="another model or of"):
            recurrent[0].loss_and_gradient(x, x, states=states)
    with pytest.raises(UserError, match="of type States"):
        recurrent[0].loss_and_gradient(x, x, states=[np.zeros((B, 8))])


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: Model("stories"), "config is 'stories'; it must be of type ModelConfig"),
        (lambda: Model(CONFIG, seed=-1), "seed is -1"),
        (lambda: Model(CONFIG, seed=1.5), "seed is 1.5; it must be a whole number"),
        (lambda: Model(CONFIG, decay="none"), "decay 'none'"),
        (lambda: Model(CONFIG, dtype=np.int32), "float32 or float64"),
        (lambda: Model(CONFIG, dtype="floaty"), "'floaty'"),
        (lambda: Model(CONFIG, compute_dtype=np.float16), "float16.*must be float32 or slm_np.dtypes.BF16"),
        (lambda: Model(CONFIG, dtype=np.float64, compute_dtype=BF16), "must be float64"),
        (lambda: Model(CONFIG, device="cpu"), "device is 'cpu'"),
        (lambda: Model(ModelConfig(vocab_size=1 << 24, n_embd=1 << 16)), "GiB of memory"),
        (lambda: Model(CONFIG).plan(10**9, T), "GiB of memory"),
        (lambda: Model(CONFIG).plan(0, T), "batch is 0"),
        (lambda: Model(CONFIG).plan(True, T), "batch is True"),
        (lambda: Model(CONFIG).states(10**11), "GiB of memory"),
        (lambda: Decoder(CONFIG), "of type Model"),
        (lambda: Decoder(Model(CONFIG), 0), "batch is 0"),
        (lambda: Decoder(Model(CONFIG), 2.0), "batch is 2.0"),
        (lambda: Decoder(Model(CONFIG), 10**12), "GiB of memory"),
        (lambda: Decoder(Model(CONFIG), make_step=3), "make_step is 3"),
        (lambda: Decoder(Model(CONFIG), 2).step([1]), r"of shape \(2,\)"),
        (lambda: Decoder(Model(CONFIG), 2).step([1.0, 2.0]), "integers"),
        (lambda: Decoder(Model(CONFIG), 2).step([V, 0]), "vocabulary of 256"),
        (lambda: Decoder(Model(CONFIG), 2).read([[1, 2]]), r"of shape \(2, n\)"),
        (lambda: parameter_count("gpt2"), "of type ModelConfig"),
        (lambda: AdamW(Model(CONFIG)), "of type Parameters"),
        (lambda: learning_rate(None, 0, 0.5), "of type TrainConfig"),
        (lambda: learning_rate(TrainConfig(), -1, 0.5), "step is -1"),
        (lambda: learning_rate(TrainConfig(), 1, math.nan), "progress is nan; it must be a finite number"),
        (lambda: preset("storie"), "did you mean stories"),
        (lambda: preset(["stories"]), "--preset"),
        (lambda: preset("stories", dict(n_leyer=2)), "did you mean n_layer"),
        (lambda: preset("stories", [1]), "a dict of settings"),
        (lambda: preset("stories", {1: 2}), "a dict of settings"),
        (lambda: preset("stories", train=dict(epochs=np.zeros(3))), "--epochs must be of type float"),
        (lambda: load(None), "path is None"),
        (lambda: load(""), "not empty"),
        (lambda: load("run", device="tpu"), "device 'tpu'"),
        (lambda: ByteTokenizer().encode(None), "data is None; it must be str or bytes"),
        (lambda: ByteTokenizer().encode("\ud800"), "surrogate"),
        (lambda: ByteTokenizer().decode([1.5]), "integers"),
        (lambda: ByteTokenizer().decode("ab"), "integers"),
        (lambda: ByteTokenizer().stream([math.nan]), "integers"),
        (lambda: ByteTokenizer().save(None), "path is None"),
    ],
)
def test_wrong_arguments(call, words):
    with pytest.raises(UserError, match=words):
        call()


@pytest.mark.parametrize(
    "wrong",
    [
        dict(learning_rate=math.nan),
        dict(learning_rate=-1e-3),
        dict(learning_rate=math.inf),
        dict(learning_rate="1e-3"),
        dict(weight_decay=-0.1),
        dict(beta1=1.0),
        dict(beta2=-0.1),
        dict(eps=0),
        dict(grad_clip=math.nan),
        dict(grad_clip=True),
    ],
    ids=str,
)
def test_wrong_settings_of_adamw(model, wrong):
    [name] = wrong
    with pytest.raises(UserError, match=name):
        AdamW(model.parameters, **wrong)


def test_no_kernel_reads_memory_of_other_shapes():
    model, x = Model(CONFIG, seed=1), tokens()
    optimizer = AdamW(model.parameters, np.float32(0.01))
    with pytest.raises(UserError, match="learning_rate is nan"):
        optimizer.step(math.nan)
    for name, value in (("learning_rate", -1), ("beta1", 5), ("grad_clip", math.nan), ("updates", -3), ("eps", 0)):
        with pytest.raises(UserError, match=f"{name} is {value}"):
            setattr(optimizer, name, value)
    with pytest.raises(AttributeError):
        Decoder(model).position = -1
    for of, name, value in (
        (optimizer, "mean", optimizer.mean[:-1]),
        (optimizer, "square", optimizer.square.astype(float)),
        (model.parameters, "gradients", np.zeros(3, np.float32)),
        (model.parameters, "weights", np.zeros(3, np.float32)),
        (model, "config", ModelConfig(vocab_size=2 * V)),
        (Decoder(model, B), "batch", B + 1),
    ):
        with pytest.raises(UserError, match=f"{name} of a .* cannot be replaced"):
            setattr(of, name, value)
    model.parameters.weights *= 1
    with pytest.raises(UserError, match=r"write into it: weight\['norm.weight'\]"):
        model.parameters.weight["norm.weight"] = np.zeros(3)
    assert optimizer.updates == 0 and model.loss(x, x) == Model(CONFIG, seed=1).loss(x, x)


def test_numpy_scalars_paths_and_lists_are_settings():
    config = ModelConfig(n_layer=np.int64(2), dropout=np.float32(0.5), residual=np.bool_(True), norm=np.str_("none"))
    assert config == ModelConfig(n_layer=2, dropout=0.5, norm="none")
    assert [type(value) for value in (config.n_layer, config.dropout, config.residual, config.norm)] == [
        int,
        float,
        bool,
        str,
    ]
    train = TrainConfig(data=["a.txt", Path("b.txt")], val_data=Path("c.txt"), out_dir=Path("run"), epochs=np.int8(2))
    assert (train.data, train.val_data, train.out_dir, train.epochs) == ("a.txt,b.txt", "c.txt", "run", 2.0)
    assert preset("stories", dict(n_layer=np.int64(2)))[0].n_layer == 2
    for wrong in (
        dict(n_layer=True),
        dict(n_layer=2.0),
        dict(n_layer=np.zeros(2)),
        dict(residual=1),
        dict(norm=Path("n")),
    ):
        with pytest.raises(UserError, match="must be of type"):
            ModelConfig(**wrong)
    for wrong in (dict(data=[]), dict(data=["a,b", "c"]), dict(data=[3]), dict(data=3), dict(tokenizer=Path("char"))):
        with pytest.raises(UserError, match="data|tokenizer"):
            TrainConfig(**wrong)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan"), np.array([0.5, 0.5])])
def test_sampling_settings_are_finite_numbers(value):
    for name in ("temp", "top_p", "min_p", "repeat_penalty", "min_confidence"):
        with pytest.raises(UserError, match=name.replace("_", "-")):
            SamplingConfig(**{name: value})
    assert SamplingConfig(top_k=10**30, temp=np.float64(0.5)) == SamplingConfig(top_k=10**30, temp=0.5)


def test_random_batch_checks_what_it_writes_to(corpus):
    x, y = np.zeros((2, T), np.int32), np.zeros((2, T), np.int32)

    def refused(words, x=x, y=y, tokens=corpus.train, seed=0, purpose=0, step=0):
        with pytest.raises(UserError, match=words):
            random_batch(x, y, tokens, seed, purpose, step)

    refused("x is an array of shape", x=x.astype(float))
    refused("x is an array of shape", x=np.zeros((2, 0), np.int32))
    refused("x is", x=x.tolist())
    refused(r"y is .*of shape \(2, 8\)", y=y[:1])
    refused(r"y is", y=y.astype(np.uint16))
    refused("y is a read-only array", y=np.frombuffer(y.tobytes(), np.int32).reshape(y.shape))
    refused("overlap", y=x)
    refused("tokens is", tokens=[1, 2, 3])
    refused("seed is -1", seed=-1)
    refused("seed is 18446744073709551616", seed=2**64)
    refused("purpose is 0.5", purpose=0.5)
    refused("step is -1", step=-1)
    with pytest.raises(UserError, match="n is -1"):
        corpus.train.first(-1)
    random_batch(x, y, corpus.train, np.int64(3), np.uint8(1), 5)
    wide = np.zeros((2, 2 * T), np.int64)
    random_batch(wide[:, ::2], wide[:, 1::2], corpus.train, 3, 1, 5)
    np.testing.assert_array_equal(wide[:, ::2], x)
    np.testing.assert_array_equal(wide[:, 1::2], y)


@pytest.mark.parametrize(
    "wrong",
    [
        dict(data=None),
        dict(data=""),
        dict(data=3),
        dict(data=[]),
        dict(data=["a", 3]),
        dict(val_data=3),
        dict(tokenizer=None),
        dict(tokenizer=3),
        dict(documents=None),
        dict(limit_bytes=-1),
        dict(limit_bytes=1.5),
        dict(threads=-1),
        dict(threads=True),
        dict(whole="test"),
        dict(progress=None),
        dict(wait="no"),
        dict(out_dir=3),
        dict(cache_dir=3),
        dict(template="chat"),
    ],
    ids=str,
)
def test_wrong_arguments_of_load_corpus(tmp_path, wrong):
    [name] = wrong
    with pytest.raises(UserError, match=name):
        load_corpus(**dict(data=small.text_file(tmp_path), cache_dir=tmp_path / "cache", progress=False) | wrong)


def test_load_corpus_takes_paths_lists_and_numpy_scalars(tmp_path):
    files = [small.text_file(tmp_path, f"{seed}.txt", seed=seed) for seed in range(2)]

    def load(data, **options):
        return load_corpus(data, cache_dir=tmp_path / "cache", progress=False, **options)

    assert load(files).fingerprint == load(",".join(map(str, files))).fingerprint
    assert load(files[0]).fingerprint == load(str(files[0]), val_data=None, documents=np.str_("marker")).fingerprint
    limited = load(files[0], limit_bytes=np.int64(1000), threads=np.int8(1), tokenizer=np.str_("char"))
    assert len(limited.train) + len(limited.validation) <= 1100


def test_text_of_checks_its_arguments(model):
    def text(prompt="ab", max_tokens=4, sampling=SamplingConfig(), stops=(), model=model, tokenizer=ByteTokenizer()):
        return text_of(model, tokenizer, prompt, max_tokens, sampling, stops)

    for words, wrong in (
        ("prompt is None", dict(prompt=None)),
        ("prompt is an array", dict(prompt=[])),
        ("prompt has ids from 300", dict(prompt=[300])),
        ("max_tokens is -1", dict(max_tokens=-1)),
        ("max_tokens is 2.0", dict(max_tokens=2.0)),
        ("max_tokens is True", dict(max_tokens=True)),
        ("sampling is None", dict(sampling=None)),
        ("stops is b'a'", dict(stops=b"a")),
        (r"stops is \[3\]", dict(stops=[3])),
        ("model is None", dict(model=None)),
        ("tokenizer is 'byte'", dict(tokenizer="byte")),
        ("has no tokenizer", dict(tokenizer=None)),
    ):
        with pytest.raises(UserError, match=words):
            text(**wrong)
    assert text() == text(b"ab") == text([97, 98]) == text(np.array([97, 98], ">i2"))
    whole = text(max_tokens=np.int64(40))
    stop = next(pair for a, b in zip(whole, whole[1:]) if (pair := a + b) and a != b)
    assert text(max_tokens=40, stops=stop) == text(max_tokens=40, stops=[stop]) == whole[: whole.index(stop)]


def test_a_tokenizer_takes_text_and_bytes():
    byte = ByteTokenizer()
    np.testing.assert_array_equal(byte.encode("naïve"), byte.encode("naïve".encode()))
    np.testing.assert_array_equal(byte.encode("a\udcff"), byte.encode(b"a\xff"))
    np.testing.assert_array_equal(byte.encode(bytearray(b"ab")), [97, 98])


def test_errors_of_the_library_are_one_line():
    """Also for values whose own text is long, or cannot be shown."""

    class Rude:
        def __repr__(self):
            raise RuntimeError("no")

    for value in ("x" * 10**6, 10**5000, Rude(), np.zeros((100, 100)), [list(range(1000))] * 1000, "a\nb"):
        with pytest.raises(UserError) as caught:
            Decoder(value)
        assert len(str(caught.value)) < 200 and "\n" not in str(caught.value)


SPAWNED = """
import multiprocessing, sys
import numpy as np
from slm_np import Model, ModelConfig

def loss(model):
    x = np.arange(16).reshape(2, 8)
    return model.loss(x, x)

if __name__ == "__main__":
    model = Model(ModelConfig(vocab_size=16, block_size=8, n_layer=1, n_embd=8, n_head=1), seed=3)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        [found] = pool.map(loss, [model])
    assert found == loss(model)
"""


def test_a_spawned_process_gets_a_model(tmp_path):
    (tmp_path / "script.py").write_text(SPAWNED, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env=small.environment(SLM_NP_KERNELS="numpy"),
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
