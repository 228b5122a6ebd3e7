"""Libraries that speak when they are imported, kept quiet."""

import logging


def quiet_bitsandbytes() -> None:
    """Keep bitsandbytes, which need not be imported yet, from all messages but errors.

    peft imports it, and transformers peft. Its import warns of kernels that it cannot download, and each forward pass
    of a quantized layer of a cast.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
