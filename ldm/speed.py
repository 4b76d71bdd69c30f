"""What is done to be fast, as one value."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Speed:
    """What is done to be fast, all of it exact to rounding. Each can be switched off to see what it is worth."""

    constants: bool = True  # keys and values of the text, and the ResNets' share of all times, once a request
    shared_trunk: bool = True  # both halves of guidance are one until they meet the text
    native_attention: bool = True  # on a CPU with bfloat16 of its own, our kernel
    portions: bool = True  # on a CPU, feed-forward layers a thousand tokens at a time
    cuda_graph: bool = False  # on CUDA, a step is launched as one; off until it has been measured on a GPU
    channels_last: bool = True  # images lie in memory pixel by pixel, so that tokens are views of them; kernels too
