from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from har_pipeline.datasets import Batch
from har_pipeline.heads import HeadConfig, build_head, class_probabilities, fit_linear

LENGTHS = torch.tensor([4, 1, 6, 3])


def sequences(dim: int = 5) -> torch.Tensor:
    features = torch.randn(4, 6, dim, generator=torch.Generator().manual_seed(0))
    return features * (torch.arange(6) < LENGTHS[:, None])[..., None]


@pytest.fixture(params=["lstm", "mean_pool"])
def config(request: pytest.FixtureRequest) -> HeadConfig:
    return HeadConfig(name=request.param, units=7)


def test_a_batch_equals_each_video_alone(config: HeadConfig) -> None:
    torch.manual_seed(0)
    head = build_head(config, 5, 3).eval()
    features = sequences()
    together = head(features, LENGTHS)
    for number, length in enumerate(LENGTHS.tolist()):
        alone = head(features[number : number + 1, :length], LENGTHS[number : number + 1])
        torch.testing.assert_close(alone[0], together[number], rtol=0, atol=1e-6)


def test_what_stands_in_the_padding_has_no_effect(config: HeadConfig) -> None:
    torch.manual_seed(0)
    head = build_head(config, 5, 3).eval()
    head.set_input_scaling(np.full(5, 2.0), np.full(5, 3.0))
    features = sequences()
    padding = torch.arange(6) >= LENGTHS[:, None]
    assert torch.equal(head(features, LENGTHS), head(features.masked_fill(padding[..., None], 1e4), LENGTHS))


def test_lstm_is_the_papers_equations() -> None:
    torch.manual_seed(0)
    head = build_head(HeadConfig(units=7), 5, 3).eval()
    weights = dict(head.encoder.named_parameters())
    state = memory = torch.zeros(7)
    features = sequences()[2]
    for clip in features:
        gates = weights["lstm.weight_ih_l0"] @ clip + weights["lstm.weight_hh_l0"] @ state
        gates = gates + weights["lstm.bias_ih_l0"] + weights["lstm.bias_hh_l0"]
        enter, forget, candidate, leave = gates.split(7)
        memory = forget.sigmoid() * memory + enter.sigmoid() * candidate.tanh()
        state = leave.sigmoid() * memory.tanh()
    torch.testing.assert_close(head.encode(features[None], torch.tensor([6]))[0], state, rtol=0, atol=1e-6)


def test_lstm_starts_as_keras_does() -> None:
    torch.manual_seed(0)
    head = build_head(HeadConfig(units=16), 40, 3)
    weights = dict(head.encoder.named_parameters())
    bias = weights["lstm.bias_ih_l0"] + weights["lstm.bias_hh_l0"]
    assert torch.equal(bias[16:32], torch.ones(16))
    assert not bias[:16].any()
    assert not bias[32:].any()
    recurrent = weights["lstm.weight_hh_l0"]
    torch.testing.assert_close(recurrent.T @ recurrent, torch.eye(16), rtol=0, atol=1e-5)
    limit = (6 / (40 + 4 * 16)) ** 0.5
    assert 0.95 * limit < weights["lstm.weight_ih_l0"].abs().max() <= limit


def test_mean_pool_takes_the_mean_of_the_valid_clips() -> None:
    head = build_head(HeadConfig(name="mean_pool"), 5, 3)
    features = sequences()
    expected = torch.stack([features[i, :n].mean(dim=0) for i, n in enumerate(LENGTHS.tolist())])
    torch.testing.assert_close(head.encode(features, LENGTHS), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("classes", [2, 4])
def test_the_fitted_layer_predicts_what_scikit_learn_predicts(classes: int) -> None:
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    labels = np.arange(40) % classes
    features = (rng.standard_normal((classes, 6))[labels] + rng.standard_normal((40, 6))).astype(np.float32)
    weights, biases, converged = fit_linear(
        features, labels, num_classes=classes, c=0.3, max_iterations=500
    )
    assert converged
    assert weights.shape == (classes, 6)
    logits = torch.from_numpy(features @ weights.T + biases)
    expected = LogisticRegression(C=0.3, max_iter=500).fit(features, labels).predict_proba(features)
    np.testing.assert_allclose(logits.softmax(dim=1).numpy(), expected, atol=1e-6)


def test_a_fit_that_did_not_converge_says_so() -> None:
    rng = np.random.default_rng(0)
    features, labels = 100 * rng.standard_normal((30, 6)), np.arange(30) % 3
    *_, converged = fit_linear(features, labels, num_classes=3, c=1e6, max_iterations=1)
    assert not converged


@pytest.mark.parametrize("output", ["softmax", "sigmoid"])
def test_the_output_is_a_distribution_as_keras_makes_it(output: str) -> None:
    torch.manual_seed(0)
    head = build_head(HeadConfig(units=7, output=output), 5, 3).eval()  # type: ignore[arg-type]
    features = sequences()
    logits = head.classifier(head.encode(features, LENGTHS))
    plain = logits.sigmoid() if output == "sigmoid" else logits.exp()
    expected = plain / plain.sum(dim=1, keepdim=True)
    torch.testing.assert_close(head(features, LENGTHS).exp(), expected, rtol=1e-5, atol=1e-7)
    probabilities = class_probabilities(head, [Batch(features, LENGTHS, torch.zeros(4))])
    assert probabilities.dtype == np.float64
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-14)
    np.testing.assert_allclose(probabilities, expected.detach().numpy(), rtol=1e-5)


def test_input_scaling_is_applied_saved_and_bounded_for_rare_features() -> None:
    torch.manual_seed(0)
    head = build_head(HeadConfig(units=7), 5, 3).eval()
    features = sequences()
    mean, deviation = np.arange(5.0), np.array([1.0, 2.0, 0.0, 4.0, 5.0])
    smallest = 0.1 * (46 / 5) ** 0.5
    scaled = (features - torch.arange(5.0)) / torch.tensor([1.0, 2.0, smallest, 4.0, 5.0])
    expected = head(scaled, LENGTHS)
    head.set_input_scaling(mean, deviation)
    torch.testing.assert_close(head(features, LENGTHS), expected, rtol=0, atol=1e-6)
    head.set_input_scaling(mean, np.zeros(5))
    assert not head.input_scale.any()
    head.set_input_scaling(mean, deviation)
    other = build_head(HeadConfig(units=7), 5, 3).eval()
    other.load_state_dict(head.state_dict())
    assert torch.equal(other(features, LENGTHS), head(features, LENGTHS))


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    head = build_head(HeadConfig(units=50, dropout=0.5), 5, 3)
    features = sequences()
    head.train()
    assert not torch.equal(head(features, LENGTHS), head(features, LENGTHS))
    head.eval()
    assert torch.equal(head(features, LENGTHS), head(features, LENGTHS))


def test_input_dropout_takes_a_feature_from_all_clips_of_a_video() -> None:
    torch.manual_seed(0)
    head = build_head(HeadConfig(name="mean_pool", input_dropout=0.5), 40, 3).train()
    features = torch.ones(3, 6, 40)
    pooled = head.encode(features, torch.tensor([6, 6, 6]))
    # Were clips masked one by one, the means would lie between 0 and 2.
    assert set(pooled.unique().tolist()) == {0.0, 2.0}
    assert not torch.equal(pooled[0], pooled[1])
    assert torch.equal(head.eval().encode(features, torch.tensor([6, 6, 6])), torch.ones(3, 40))


def test_probabilities_put_the_head_in_evaluation_mode() -> None:
    head = build_head(HeadConfig(units=4, dropout=0.9), 5, 3).train()
    batch = Batch(sequences(), LENGTHS, torch.zeros(4))
    assert np.array_equal(class_probabilities(head, [batch]), class_probabilities(head, [batch]))
    assert isinstance(head.encoder, nn.Module)
    assert not head.training
