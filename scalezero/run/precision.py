"""In which type does this machine make large matrix products best?"""

import jax

from scalezero.config import ModelSettings
from scalezero.nets.cpu import units

WIDE = 128  # embeddings from which on a CPU's units for bfloat16 are worth the conversions


def precision_of(size: ModelSettings) -> str:
    """What matrix products of backbone and vision transformer multiply on this machine.

    Their sums are float32, and so is all that is not such a product: attention of pictures and of
    single tokens, routers, and whatever stands between products.
    """
    if size.precision != "auto":
        return size.precision
    narrow = jax.default_backend() != "cpu" or (size.embed >= WIDE and units() is not None)
    return "bfloat16" if narrow else "float32"
