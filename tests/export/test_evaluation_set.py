"""The evaluation set: which inputs, which labels, and references that are torch's own outputs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from prune2deploy.errors import DataError, InputError, ModelError
from prune2deploy.evaluation import EvaluationSet
from prune2deploy.export import evaluation_set
from prune2deploy.export.evaluation_set import make_evaluation_set
from prune2deploy.export.passes.graph import BYTE_IMAGES, GraphPasses

SHAPE = (2, 4, 4)


def classifier(classes: int = 3) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(32, classes))


def samples(count: int, *, sorted_by_class: bool = False) -> Dataset[Any]:
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(0, 3, (count,), generator=generator)
    if sorted_by_class:
        labels = labels.sort().values
    return TensorDataset(torch.randn(count, *SHAPE, generator=generator), labels)


def test_references_are_the_models_outputs_in_evaluation_mode() -> None:
    model = classifier().train()
    made = make_evaluation_set({"dense": model}, samples(40), input_shape=SHAPE, references=20)
    expected = classifier().eval()(torch.from_numpy(made.inputs[:20])).detach().numpy()
    np.testing.assert_allclose(made.references["dense"], expected, rtol=1e-6)
    assert model.training
    assert torch.equal(model[0].running_mean, torch.zeros(2))


def test_every_sample_is_there_with_its_own_label() -> None:
    data = samples(30)
    made = make_evaluation_set({}, data, input_shape=SHAPE)
    assert made.labels is not None
    assert made.inputs.shape == (30, *SHAPE)
    given = {image.numpy().tobytes(): int(label) for image, label in data}
    assert {image.tobytes(): int(label) for image, label in zip(made.inputs, made.labels, strict=True)} == given


def test_the_first_inputs_of_a_sorted_data_set_cover_the_classes() -> None:
    made = make_evaluation_set({}, samples(300, sorted_by_class=True), input_shape=SHAPE)
    assert made.labels is not None
    assert set(made.labels[:30].tolist()) == {0, 1, 2}


def test_the_same_seed_gives_the_same_set_and_another_seed_another() -> None:
    first, again, other = (
        make_evaluation_set({}, samples(50), input_shape=SHAPE, images=20, seed=s) for s in (3, 3, 4)
    )
    np.testing.assert_array_equal(first.inputs, again.inputs)
    assert not np.array_equal(first.inputs, other.inputs)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation_set, "_BYTES_LIMIT", 10 * 2 * 4 * 4 * 4)
    assert len(make_evaluation_set({}, samples(50), input_shape=SHAPE).inputs) == 10


def test_without_data_inputs_are_random_and_labels_absent() -> None:
    made = make_evaluation_set({"dense": classifier()}, None, input_shape=SHAPE, references=12)
    assert made.labels is None
    assert made.inputs.shape == (12, *SHAPE)
    assert made.inputs.dtype == np.float32
    assert 0.5 < made.inputs.std() < 1.5
    assert made.references["dense"].shape == (12, 3)


def test_built_in_normalization_stores_images_and_references_what_the_model_saw() -> None:
    mean, std = (0.3, 0.6), (0.2, 0.4)
    plain = make_evaluation_set({"dense": classifier()}, samples(20), input_shape=SHAPE)
    built_in = make_evaluation_set(
        {"dense": classifier()}, samples(20), input_shape=SHAPE, passes=GraphPasses(normalize=(mean, std), softmax=True)
    )
    columns = (np.float32(values).reshape(2, 1, 1) for values in (mean, std))
    shift, scale = columns
    np.testing.assert_allclose((built_in.inputs - shift) / scale, plain.inputs, rtol=1e-4, atol=1e-5)
    expected = torch.from_numpy(plain.references["dense"]).softmax(1).numpy()
    np.testing.assert_allclose(built_in.references["dense"], expected, rtol=1e-4)


def test_bytes_are_stored_for_files_that_take_them_and_references_are_of_these_bytes(tmp_path: Path) -> None:
    mean, std = (0.3, 0.6), (0.2, 0.4)
    passes = GraphPasses(normalize=(mean, std), input_format=BYTE_IMAGES, source_size=(7, 6), softmax=True, top_k=2)
    made = make_evaluation_set({"dense": classifier()}, samples(20), input_shape=SHAPE, references=5, passes=passes)
    assert (made.inputs.dtype, made.inputs.shape) == (np.uint8, (20, 7, 6, 2))
    images = torch.from_numpy(made.inputs[:5]).permute(0, 3, 1, 2).float()
    images = torch.nn.functional.interpolate(images, SHAPE[1:], mode="bilinear") / 255
    columns = (torch.tensor(values).view(2, 1, 1) for values in (mean, std))
    shift, scale = columns
    with torch.no_grad():
        best = classifier().eval()((images - shift) / scale).softmax(1).topk(2, dim=1).values
    np.testing.assert_allclose(made.references["dense"], best.numpy(), rtol=1e-4)
    made.save(tmp_path / "evaluation.npz")
    np.testing.assert_array_equal(EvaluationSet.load(tmp_path / "evaluation.npz").inputs, made.inputs)


def test_more_classes_than_there_are_have_no_reference() -> None:
    with pytest.raises(InputError, match="--top-k 4: the network has 3 classes; pass at most 3"):
        make_evaluation_set({"dense": classifier()}, None, input_shape=SHAPE, passes=GraphPasses(top_k=4))


def test_memory_is_bounded_where_the_file_takes_larger_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation_set, "_BYTES_LIMIT", 10 * 20 * 30 * 2)
    passes = GraphPasses(normalize=((0.5,) * 2, (0.5,) * 2), input_format=BYTE_IMAGES, source_size=(20, 30))
    made = make_evaluation_set({}, samples(50), input_shape=SHAPE, passes=passes)
    assert made.inputs.shape == (10, 20, 30, 2)


def test_it_comes_back_from_disk_unchanged(tmp_path: Path) -> None:
    made = make_evaluation_set({"dense": classifier(), "pruned": classifier()}, samples(20), input_shape=SHAPE)
    made.save(tmp_path / "evaluation.npz")
    read = EvaluationSet.load(tmp_path / "evaluation.npz")
    np.testing.assert_array_equal(read.inputs, made.inputs)
    np.testing.assert_array_equal(read.labels, made.labels)
    assert set(read.references) == {"dense", "pruned"}


class TwoOutputs(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class NotANumber(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) / 0 * 0


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (TwoOutputs(), "odd: returns a tuple"),
        (NotANumber(), "odd: gives NaN or infinity"),
        (nn.Conv2d(5, 1, 1), "odd: cannot run on its inputs"),
    ],
)
def test_a_model_without_usable_outputs_is_refused_by_name(model: nn.Module, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        make_evaluation_set({"odd": model}, None, input_shape=SHAPE)


def test_data_of_another_shape_or_none_at_all_is_refused() -> None:
    with pytest.raises(DataError, match=r"has shape \(2, 4, 4\), the model takes \(3, 8, 8\)"):
        make_evaluation_set({}, samples(4), input_shape=(3, 8, 8))
    with pytest.raises(DataError, match="empty"):
        make_evaluation_set({}, samples(0), input_shape=SHAPE)
