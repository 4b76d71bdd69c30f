"""The text stage: what its loss sees, across processes too, and what its examples are."""

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from configs.architecture import TextEncoderConfig
from ldm.data.emoji_scenes import EmojiScenes, render
from ldm.training.captions import token_ids
from ldm.training.contrastive import ContrastiveModel, contrast
from ldm.training.text import TextTraining
from text_encoder.clip import CLIPTextModel
from text_encoder.tokenizer import Tokenizer
from vae.pixels import from_pil

SIZE = 32


def _config(vocabulary: int) -> TextEncoderConfig:
    return TextEncoderConfig(
        width=32,
        layers=2,
        heads=2,
        mlp_width=64,
        vocabulary=vocabulary,
        max_length=32,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
    )


def _model(vocabulary: int = 40, kind: type[ContrastiveModel] = ContrastiveModel) -> ContrastiveModel:
    torch.manual_seed(1)
    return kind(_config(vocabulary), (8, 16, 16))


def _batch(b: int, k: int) -> dict[str, Tensor]:
    """Noise for pictures, random captions of different lengths, every third false one missing."""
    chance = torch.Generator().manual_seed(2)
    ids = torch.randint(0, 38, (b, 1 + k, 12), generator=chance)
    ends = torch.randint(3, 12, (b, 1 + k, 1), generator=chance)
    ids = ids.where(torch.arange(12) < ends, 39)
    known = torch.arange(b * (1 + k)).view(b, 1 + k) % 3 != 2
    known[:, 0] = True
    return {"image": torch.randn(b, 3, SIZE, SIZE, generator=chance), "ids": ids, "known": known}


def _gradients(model: ContrastiveModel) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# -- the towers


def test_the_text_tower_is_a_plain_clip_text_model() -> None:
    model = _model()
    CLIPTextModel(_config(40)).load_state_dict(model.text.state_dict(), strict=True)
    assert not [key for key in model.text.state_dict() if "projection" in key]


def test_captions_are_read_to_their_end_whatever_their_neighbours() -> None:
    model, ids = _model(), _batch(10, 2)["ids"].flatten(0, 1)
    expected = torch.nn.functional.normalize(model.projection(model.text(ids)[1]), dim=-1)
    assert torch.allclose(model.embed_text(ids), expected, atol=1e-5)
    alone = torch.cat([model.embed_text(row[None]) for row in ids])
    assert torch.allclose(alone, expected, atol=1e-5)


def test_the_image_tower_tells_left_from_right() -> None:
    """A spot at the left or at the right: by its mean alone no network could choose a side."""
    images = -torch.ones(2, 3, 64, 64)
    images[0, :, 28:36, 8:16] = images[1, :, 28:36, 48:56] = 1
    left, right = _model().embed_images(images)
    assert left @ right < 0.999


# -- the loss


def test_the_loss_is_symmetric_cross_entropy_over_all_captions() -> None:
    """Against the definition, one row at a time."""
    chance = torch.Generator().manual_seed(0)
    images = torch.nn.functional.normalize(torch.randn(4, 6, generator=chance), dim=-1)
    texts = torch.nn.functional.normalize(torch.randn(4, 3, 6, generator=chance), dim=-1)
    known = torch.tensor([[True, True, False], [True, False, False], [True, True, True], [True, True, False]])
    loss, metrics = contrast(images, texts, known, torch.tensor(5.0))
    rows, right, hard = [], [], []
    for i in range(4):
        scores = [5 * float(images[i] @ texts[j, r]) for j in range(4) for r in range(3) if known[j, r]]
        true = 5 * float(images[i] @ texts[i, 0])
        rows.append(math.log(sum(map(math.exp, scores))) - true)
        pictures = [5 * float(images[j] @ texts[i, 0]) for j in range(4)]
        rows.append(math.log(sum(map(math.exp, pictures))) - true)
        right.append(true >= max(scores) - 1e-6)
        if known[i, 1:].any():
            hard.append(all(images[i] @ texts[i, r] < images[i] @ texts[i, 0] for r in (1, 2) if known[i, r]))
    assert float(loss) == pytest.approx(sum(rows) / 8, abs=1e-5)
    assert float(metrics["accuracy"]) == sum(right) / 4
    assert float(metrics["hard"]) == pytest.approx(sum(hard) / 3)


def test_missing_false_captions_do_not_count() -> None:
    model, batch = _model(), _batch(4, 3)
    batch["known"][:, 2:] = False
    model(batch, 0)[0].backward()
    whole = _gradients(model)
    model.zero_grad()
    loss, _ = model({**batch, "ids": batch["ids"][:, :2], "known": batch["known"][:, :2]}, 0)
    loss.backward()
    assert torch.allclose(model(batch, 0)[0], loss, atol=1e-6)
    assert all(torch.allclose(whole[name], part, atol=1e-5) for name, part in _gradients(model).items())


def test_a_false_caption_is_pushed_away() -> None:
    """One picture: without a false caption there is nothing to learn, with one the true caption comes out ahead."""
    model, batch = _model(), _batch(1, 1)

    def margin() -> float:
        texts = model.embed_text(batch["ids"][0])
        return float((texts[0] - texts[1]) @ model.embed_images(batch["image"])[0])

    batch["known"][0, 1] = False
    loss, _ = model(batch, 0)
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(not gradient.any() for gradient in _gradients(model).values())
    before, batch["known"][0, 1] = margin(), True
    model(batch, 0)[0].backward()
    torch.optim.SGD(model.parameters(), 1e-3).step()
    assert margin() > before + 1e-4


def test_the_temperature_stays_below_a_hundred() -> None:
    model, batch = _model(), _batch(4, 1)
    assert math.exp(model.temperature.item()) == pytest.approx(1 / 0.07)
    with torch.no_grad():
        model.temperature.fill_(math.log(100))
        limit = model(batch, 0)[0]
        model.temperature.fill_(9.0)
    loss, _ = model(batch, 0)
    assert float(loss) == pytest.approx(float(limit))


class _BagOfWords(ContrastiveModel):
    """Which words stand there, but not where."""

    def embed_text(self, ids: Tensor) -> Tensor:
        mean = self.text.text_model.embeddings.token_embedding(ids).mean(dim=1)
        return torch.nn.functional.normalize(self.projection(mean), dim=-1)


@pytest.mark.parametrize("kind", [ContrastiveModel, _BagOfWords])
def test_swapped_pairs_need_the_order_of_words(
    kind: type[ContrastiveModel], training: TextTraining, tokenizer: Tokenizer
) -> None:
    """Pictures with their nouns exchanged, and their captions: the very same words. Overfitted to near zero by ours."""
    scenes = [EmojiScenes("swaps", seed=1)[index] for index in range(16)]
    images = from_pil([render(scene, SIZE) for scene in scenes])
    ids = torch.tensor([token_ids(training.tokenizer, scene.caption) for scene in scenes])
    batch = {"image": images, "ids": ids[:, None], "known": torch.ones(16, 1, dtype=torch.bool)}
    model = _model(len(tokenizer), kind)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(80):
        loss, metrics = model(batch, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if kind is _BagOfWords:
        assert float(loss) > math.log(2) - 1e-4  # two captions cannot be told apart
    else:
        assert float(loss) < 0.05
        assert float(metrics["accuracy"]) == 1


# -- several processes


def _process(rank: int, folder: Path) -> None:
    """Half of the batch, as the trainer runs it."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model = _model()
    batch = {name: value[3 * rank : 3 * rank + 3] for name, value in _batch(6, 2).items()}
    parallel = DistributedDataParallel(model)  # dropped before the backward pass, it would average nothing
    loss, metrics = parallel(batch, 0)
    loss.backward()
    torch.save((loss.detach(), metrics, _gradients(model)), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_are_one_with_the_whole_batch(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_process, (tmp_path,), nprocs=2)
    (loss0, metrics0, gradients0), (loss1, metrics1, gradients1) = (torch.load(tmp_path / f"{r}.pt") for r in (0, 1))
    model = _model()
    loss, metrics = model(_batch(6, 2), 0)
    loss.backward()
    assert float(loss0 + loss1) / 2 == pytest.approx(float(loss), abs=1e-5)
    assert float(metrics0["accuracy"] + metrics1["accuracy"]) / 2 == pytest.approx(float(metrics["accuracy"]))
    whole = _gradients(model)
    assert whole.keys() == gradients0.keys()
    for name, expected in whole.items():
        assert torch.equal(gradients0[name], gradients1[name])
        assert torch.allclose(gradients0[name], expected, atol=1e-5), name
    assert whole["temperature"].abs() > 1e-3


# -- examples
