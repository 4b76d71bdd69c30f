"""The native attention against torch's."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from unet import native


@pytest.fixture
def only_native(kernel, monkeypatch):
    monkeypatch.setattr(native, "F", None)  # an error, should it be used
    return torch.no_grad()(native.attention)


@pytest.fixture
def only_torch(monkeypatch):
    monkeypatch.setattr(native, "_run", None)
    return native.attention


def draw(b, heads, n, m, d):
    """q, k, v as the U-Net has them: views of (b, n, heads * d)."""
    return tuple(torch.randn(b, s, heads * d).bfloat16().view(b, s, heads, d).transpose(1, 2) for s in (n, m, m))


def error(y, q, k, v):
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    return ((y.double() - exact).norm() / exact.norm()).item()


SHAPES = [
    (2, 4, 256, 4096, 40),
    (1, 2, 256, 9216, 64),
    (2, 8, 256, 256, 160),
    (2, 3, 333, 77, 80),
    (2, 2, 31, 257, 256),
    (1, 40, 17, 65, 8),
    (3, 7, 1, 513, 32),
]


@pytest.mark.parametrize("spread", [0.1, 1, 10])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_as_exact_as_torch(shape, spread, only_native):
    q, k, v = draw(*shape)
    q = q * spread
    ours, theirs = only_native(q, k, v), F.scaled_dot_product_attention(q, k, v)
    assert ours.dtype == torch.bfloat16
    assert ours.transpose(1, 2).is_contiguous()  # so that the heads are joined without a copy
    assert error(ours, q, k, v) <= 1.1 * error(theirs, q, k, v)


@pytest.mark.parametrize("offset", [-300.0, 300.0])
def test_a_score_common_to_all_keys_changes_nothing(offset, only_native):
    """The exponentials are those of differences; keys added to fill a group do not count, though their score is 0."""
    q, k, v = draw(1, 4, 300, 77, 40)
    q[..., 0], k[..., 0] = 64, offset
    assert error(only_native(q, k, v), q, k, v) <= 1.1 * error(F.scaled_dot_product_attention(q, k, v), q, k, v)


def test_equal_scores_weigh_the_same(only_native):
    """However many blocks of keys come later: what an early one loses in each of them adds up."""
    q, k, v = (x.clone() for x in draw(1, 1, 64, 25600, 8))
    k[:], v[:, :, :12800], v[:, :, 12800:] = k[:, :, :1], 1, -1
    assert only_native(q, k, v).abs().max() < 1e-5


@pytest.mark.parametrize(
    "arrange",
    [
        torch.Tensor.contiguous,
        lambda x: torch.stack([x, x + 1], dim=3).select(3, 0),
        lambda x: F.pad(x, (3, 2))[..., 3:-2],  # an odd number of elements from row to row
        lambda x: x[:1].expand(2, -1, -1, -1),
        lambda x: x.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3),
    ],
)
def test_any_strides(arrange, only_native):
    for i in range(3):
        inputs = list(draw(2, 3, 100, 77, 40))
        inputs[i] = arrange(inputs[i])
        assert torch.equal(only_native(*inputs), only_native(*(x.contiguous() for x in inputs)))


def test_threads_do_not_change_the_result(only_native):
    before, inputs, results = torch.get_num_threads(), draw(2, 4, 500, 300, 40), []
    for threads in (1, 2, 5, before):
        torch.set_num_threads(threads)
        results += [only_native(*inputs) for _ in range(3)]
    assert all(torch.equal(results[0], y) for y in results)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("place", [0, 76])
def test_a_broken_network_shows(bad, which, place, only_native):
    """NaN and infinity are where the formula has them; torch's attention in bfloat16 loses some."""
    inputs = draw(1, 2, 100, 77, 40)
    inputs[which][0, 1, place, 5] = bad
    q, k, v = (x.double() for x in inputs)
    exact, ours = torch.softmax(q @ k.mT / 40**0.5, dim=-1) @ v, only_native(*inputs)
    assert not exact.isfinite().all()
    assert torch.equal(ours.isnan(), exact.isnan())
    torch.testing.assert_close(ours.double(), exact, rtol=0.02, atol=0.02, equal_nan=True)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_gradients_are_torchs(which, only_torch):
    inputs = draw(1, 2, 100, 77, 40)
    inputs[which].requires_grad_()
    only_torch(*inputs).sum().backward()
    assert inputs[which].grad.abs().sum() > 0


def test_parameters_are_no_obstacle_without_grad(only_native):
    assert not only_native(*(x.requires_grad_() for x in draw(1, 2, 100, 77, 40))).requires_grad


@pytest.mark.parametrize(
    "inputs",
    [
        tuple(x.float() for x in draw(1, 2, 100, 77, 40)),
        draw(1, 2, 100, 77, 44),
        draw(1, 2, 100, 77, 264),
        draw(1, 2, 3, 4, 40),
        (*draw(1, 2, 100, 77, 40), torch.zeros(100, 77).bfloat16()),
        (*draw(1, 2, 100, 77, 40), None, False),
        tuple(x.flatten(0, 1) for x in draw(1, 2, 100, 77, 40)),
        tuple(x.transpose(2, 3) for x in draw(1, 2, 80, 80, 80)),
        (draw(1, 2, 100, 77, 40)[0], *draw(1, 1, 100, 77, 40)[1:]),
        tuple(x.to("meta") for x in draw(1, 2, 100, 77, 40)),
    ],
    ids=["float32", "d=44", "d=264", "small", "mask", "off", "3 dims", "strided d", "one head", "meta"],
)
def test_others_are_torchs(inputs, only_torch):
    with torch.no_grad():
        y, theirs = only_torch(*inputs), F.scaled_dot_product_attention(*inputs[:3], *inputs[3:4])
    assert y.is_meta or torch.equal(y, theirs)


class Names(TorchDispatchMode, list):  # of the operations that torch is asked for
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning", "ignore:There is a performance drop:UserWarning")
def test_tracers_see_torchs_operation(only_torch):
    q, k, v = draw(1, 2, 100, 77, 40)
    expected = F.scaled_dot_product_attention(q, k, v)
    with torch.no_grad():
        with Names() as names:
            only_torch(q, k, v)
        assert any("scaled_dot_product" in name for name in names)
        with torch.device("meta"):
            assert torch.equal(only_torch(q, k, v), expected)
        with FakeTensorMode() as mode:
            only_torch(*map(mode.from_tensor, (q, k, v)))
        assert torch.equal(torch.jit.trace(only_torch, (q, k, v), check_trace=False)(q, k, v), expected)
        assert torch.vmap(only_torch)(q[None], k[None], v[None]).shape == (1, *expected.shape)
        with forward_ad.dual_level():
            assert torch.equal(only_torch(q, k, v), expected)
        compiled = torch.compile(only_torch, backend="eager", fullgraph=True)
        assert torch.equal(compiled(q, k, v), expected)
