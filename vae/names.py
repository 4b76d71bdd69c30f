"""What older files call the tensors of an autoencoder. Standard library only."""

import re

LEGACY_PROJECTIONS = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_PROJECTION = re.compile(r"(.+\.attentions\.\d+)\.(query|key|value|proj_attn|to_q|to_k|to_v|to_out\.0)\.(weight|bias)")


def is_projection(name: str) -> bool:
    """Whether it is of an attention projection, which older files store as a 1x1 convolution."""
    return _PROJECTION.fullmatch(name) is not None


def canonical_name(name: str) -> str:
    """Today's name: older files call the attention projections query, key, value and proj_attn."""
    match = _PROJECTION.fullmatch(name)
    return f"{match[1]}.{LEGACY_PROJECTIONS.get(match[2], match[2])}.{match[3]}" if match else name
