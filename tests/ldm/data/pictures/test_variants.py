"""All examples of pictures that are cut in the middle: those that a run meets, and no others."""

from configs.finetuning import DataConfig
from ldm.data.pictures.scan import scan
from ldm.data.pictures.set import Pictures
from ldm.data.pictures.variants import variants
from tests.ldm.training.tuning import pictures as squares


def made(folder, **options):
    config = DataConfig(path=str(squares(folder, 7)), bucket_step=8, smallest=16, **options)
    items, _ = scan(config)
    return Pictures(items, config, size=32, seed=3, batch=2)


def test_they_are_what_a_run_meets(tmp_path):
    pictures = made(tmp_path, flip=True)
    met = {pictures.outline(position).key for position in range(40 * len(pictures))}
    assert met == {one.key for one in variants(pictures)}
    assert len(met) == 14
    assert len(list(variants(pictures, flips=False))) == 7


def test_they_are_opened_as_a_run_opens_them(tmp_path):
    pictures = made(tmp_path)
    known = {one.key: pictures.opened(one) for one in variants(pictures)}
    for position in range(len(pictures)):
        example = pictures.example(position)
        assert known[example.key].image.tobytes() == example.image.tobytes()


def test_other_buckets_are_those_of_batches_beside(tmp_path):
    pictures = made(tmp_path)
    shapes = [(32, 32), (40, 24)]
    found = list(variants(pictures, buckets=shapes))
    assert len(found) == 14
    assert {one.placed.bucket for one in found} == set(shapes)
    outline = pictures.outline(5, (40, 24))
    assert outline.key in {one.key for one in found}
