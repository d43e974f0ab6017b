import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scalezero.nets.text import PAD, BertSize, bert, text_encoder

LEXICON, PLACES, EMBED = 50, 24, 16


@pytest.fixture(scope="module")
def reader():
    key = jax.random.key(0)
    return bert(BertSize(LEXICON, PLACES, EMBED, hidden=32, layers=1, heads=2), key=key)


@pytest.fixture(scope="module")
def texts():
    """Texts of 1 to 12 pieces, filled up to 12."""
    pieces = np.random.default_rng(0).integers(1, LEXICON, (12, 12))
    return jnp.asarray(np.where(np.arange(12) <= np.arange(12)[:, None], pieces, PAD))


def read(reader, texts):
    return np.asarray(eqx.filter_jit(eqx.filter_vmap(reader))(texts))


def test_the_vector_of_a_text_has_length_1(reader, texts):
    vectors = read(reader, texts)
    assert vectors.shape == (12, EMBED)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


def test_how_far_a_text_is_filled_up_cannot_matter(reader, texts):
    wider = jnp.concatenate([texts, jnp.full((12, 8), PAD)], axis=1)
    np.testing.assert_allclose(read(reader, wider), read(reader, texts), atol=1e-6)


def test_what_lies_behind_the_end_of_a_text_cannot_matter(reader, texts):
    strange = eqx.tree_at(lambda m: m.words, reader, reader.words.at[PAD].set(100.0))
    np.testing.assert_allclose(read(strange, texts), read(reader, texts), atol=1e-6)


def test_a_batch_is_read_as_its_texts_one_by_one(reader, texts):
    alone = np.concatenate([read(reader, text[None]) for text in texts[::4]])
    np.testing.assert_allclose(read(reader, texts)[::4], alone, atol=1e-6)


def test_every_piece_and_the_order_of_pieces_is_seen(reader):
    text = jnp.array([3, 7, 9, 4, PAD])
    others = jnp.stack([text.at[place].set(20) for place in range(4)])
    swapped = text[jnp.array([1, 0, 2, 3, 4])][None]
    vectors = read(reader, jnp.concatenate([text[None], others, swapped]))
    changed = np.abs(vectors[1:] - vectors[:1])
    assert np.all(changed.max(axis=1) > 1e-4)


def test_a_text_without_pieces_is_0_and_stops_no_learning(reader):
    nothing = jnp.full(4, PAD)
    np.testing.assert_array_equal(reader(nothing), jnp.zeros(EMBED))
    gradient = eqx.filter_jit(eqx.filter_grad(lambda m: jnp.sum(m(nothing))))(reader)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


def test_only_the_pieces_of_a_text_learn_from_it(reader):
    text = jnp.array([3, 7, 3, PAD])
    gradient = eqx.filter_jit(eqx.filter_grad(lambda m: m(text)[0]))(reader)
    moved = np.flatnonzero(np.abs(gradient.words).max(axis=1))
    np.testing.assert_array_equal(moved, [3, 7])
    assert not np.any(gradient.places[3:])


def test_an_encoder_of_texts_takes_embeddings(keys):
    plain = text_encoder(EMBED, 32, 10, key=next(keys))
    latents = read(plain, jnp.eye(EMBED))
    assert latents.shape == (EMBED, 10)
    assert np.all(np.abs(latents - latents[:1])[1:].max(axis=1) > 1e-3)
