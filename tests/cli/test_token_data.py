"""Token files as --data: settings that have no effect on them are refused, and runs on them can be resumed."""

import dataclasses
import hashlib
import json
import pickle
import re

import numpy as np
import pytest
import small

from slm_np import evaluate, finetune, prepare, pretrain, train
from slm_np.cli import launch
from slm_np.config import TrainConfig
from slm_np.data.char_tokenizer import CharTokenizer
from slm_np.data.token_files import check_given
from slm_np.data.token_store import load_corpus
from slm_np.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a text, tokens of it (char), bare tokens, and a run on the tokens."""
    path = tmp_path_factory.mktemp("tokens")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLM_NP_CACHE", str(path / "cache"))
        text = small.text_file(path)
        load_corpus(str(text), tokenizer="char", out_dir=path / "tokens", progress=False)
        (path / "bare").mkdir()
        np.asarray(list(text.read_bytes()), "<u2").tofile(path / "bare" / "train.bin")
        CharTokenizer("abc").save(path / "other.json")
        small.trainer(path / "tokens", path / "run", vocab_size=CharTokenizer.learn([text.read_bytes()]).vocab_size)
    return path


@pytest.fixture(autouse=True)
def inside(folder, monkeypatch):
    monkeypatch.setenv("SLM_NP_CACHE", str(folder / "cache"))
    monkeypatch.chdir(folder)


@pytest.mark.parametrize(
    "main, words, said",
    [
        (train.main, "--data tokens --tokenizer byte", "--tokenizer byte has no effect on tokens: .* are made already"),
        (
            train.main,
            "--data tokens/train.bin --tokenizer bpe:300",
            "--tokenizer bpe:300 has no effect on tokens/train",
        ),
        (train.main, "--data tokens --tokenizer file:other.json", "--tokenizer file:other.json has no effect"),
        (
            train.main,
            "--data bare --tokenizer char",
            "char has no effect on bare: .* name the tokenizer that made them",
        ),
        (train.main, "--data tokens --documents blank-line", "--documents blank-line has no effect on tokens, which"),
        (train.main, "--data tokens --documents marker", "--documents marker has no effect on tokens, which"),
        (train.main, "--data bare --binary", "--binary has no effect on bare, which contains tokens already"),
        (train.main, "--data tokens --limit-bytes 10", "--limit-bytes 10 cannot cut tokens"),
        (train.main, "--data tokens --vocab-size 300", "--vocab-size 300 has no effect with a tokenizer"),
        (train.main, "--config given.toml", "--tokenizer byte has no effect on tokens"),
        (train.main, "--data text.txt --val-data tokens --limit-bytes 9", "--limit-bytes 9 cannot cut tokens, which"),
        (finetune.main, "--base run --data tokens --documents line", "--documents line has no effect on tokens"),
        (evaluate.main, "--model run --data tokens --documents line", "--documents line has no effect on tokens"),
        (evaluate.main, "--model run --data tokens --binary", "--binary has no effect on tokens"),
        (pretrain.main, "tokens --tokenizer byte", "--tokenizer byte has no effect on tokens"),
        (prepare.main, "tokens --out-dir out", "tokens contains tokens already; give a text to prepare"),
        (prepare.main, "text.txt --val-data tokens --out-dir out", "^slm_np: tokens contains tokens already"),
    ],
)
def test_a_setting_without_effect_on_tokens_is_refused(folder, capsys, main, words, said):
    (folder / "given.toml").write_text('data = "tokens"\ntokenizer = "byte"\n', encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        main(words.split())
    error = capsys.readouterr().err
    assert ended.value.code == 2 and re.search(said, error) and error.count("\n") == 1, error
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    "data, given",
    [
        ("tokens", {}),
        ("tokens", dict(tokenizer="char")),  # what made them
        ("tokens/train.bin", dict(tokenizer="file:tokens/tokenizer.json", block_size=8)),
        ("bare", dict(tokenizer="file:other.json")),
        ("bare", dict(tokenizer="gpt2")),
        ("text.txt", dict(tokenizer="bpe:300", documents="line", binary=True)),
    ],
)
def test_settings_with_an_effect_are_accepted(data, given):
    check_given(data, given)


def test_a_run_on_the_ids_of_nanogpt_is_resumed_without_its_characters(tmp_path):
    """Earlier versions did not read meta.pkl."""
    ids, characters = np.arange(900) % 5, "abcde"
    ids.astype("<u2").tofile(tmp_path / "train.bin")
    ids.astype("<u2").tofile(tmp_path / "val.bin")
    before = load_corpus(str(tmp_path), progress=False)
    meta = dict(stoi={character: id for id, character in enumerate(characters)})
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta))
    new = small.config(tmp_path, vocab_size=256)
    corpus, run = launch.prepared(new)
    assert corpus.tokenizer.characters == characters and run.model.vocab_size == 5
    resumed = dataclasses.replace(new, data=dict(fingerprint=before.fingerprint))
    corpus, run = launch.prepared(resumed)
    assert corpus.tokenizer is None and run.model.vocab_size == 256


def test_a_run_that_read_the_header_of_llm_c_as_tokens_has_other_data(tmp_path):
    """As earlier versions did."""
    header, file = np.zeros(256, "<i4"), tmp_path / "train.bin"
    header[:3] = 20240520, 1, 900
    file.write_bytes(header.tobytes() + (np.arange(900) % 5).astype("<u2").tobytes())
    _, run = launch.prepared(small.config(file))
    launch.prepared(run)
    before = json.dumps([(hashlib.sha256(file.read_bytes()).hexdigest(), "uint16")]).encode()
    with pytest.raises(UserError, match="the data have changed"):
        launch.prepared(dataclasses.replace(run, data=dict(fingerprint=hashlib.sha256(before).hexdigest())))


def test_pretraining_takes_the_tokenizer_of_tokens(monkeypatch):
    started = []
    monkeypatch.setattr(launch, "train_run", lambda run, choose: started.append(run))
    pretrain.main(["tokens"])
    pretrain.main(["text.txt"])
    assert [run.train.tokenizer for run in started] == [TrainConfig().tokenizer, pretrain.TOKENIZER]
