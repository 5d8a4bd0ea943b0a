from __future__ import annotations

import dataclasses
import os
from decimal import Decimal, localcontext
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import nn

from har_pipeline.core.errors import RunError
from har_pipeline.models.config import FusionOp, HeadName, Vote
from har_pipeline.models.heads import HeadConfig, SequenceClassifier, build_head, fit_linear
from har_pipeline.models.heads.pooling import vote
from har_pipeline.training.batches import FeatureBatch, class_probabilities
from har_pipeline.training.heads.fit import classification_loss

LENGTHS = torch.tensor([4, 1, 6, 3])


def sequences(dim: int = 5) -> torch.Tensor:
    features = torch.randn(4, 6, dim, generator=torch.Generator().manual_seed(0))
    return features * (torch.arange(6) < LENGTHS[:, None])[..., None]


CONFIGS = {
    **{name: HeadConfig(name=name, units=7) for name in get_args(HeadName)},
    "lstm of 3 layers": HeadConfig(units=7, num_layers=3),
    "bilstm of 2 layers": HeadConfig(name="bilstm", units=7, num_layers=2),
    "res_lstm of 4 layers": HeadConfig(name="res_lstm", num_layers=4),
    "stacked_lstm of 4 layers": HeadConfig(name="stacked_lstm", num_layers=4),
    "projected": HeadConfig(name="res_lstm", num_layers=2, input_projection=3),
    "no forget gate": HeadConfig(units=7, forget_gate=False),
    "attentive of 3 layers": HeadConfig(name="attentive", num_layers=3, input_projection=4),
    "attentive hidden fusion": HeadConfig(name="attentive", mid_fusion="hidden", fusion_op="concat"),
    "every step": HeadConfig(name="bilstm", units=7, readout="steps"),
    "majority of every step": HeadConfig(units=7, readout="steps", vote="majority", forget_gate=False),
    "majority": HeadConfig(name="vote", vote="majority"),
    "sigmoid vote": HeadConfig(name="vote", output="sigmoid"),
    "input fusion": HeadConfig(units=7, mid_fusion="input", fusion_op="concat"),
    "hidden fusion": HeadConfig(name="attention", units=7, mid_fusion="hidden", fusion_op="product"),
}


def build(config: HeadConfig, dim: int = 5, classes: int = 3) -> SequenceClassifier:
    torch.manual_seed(0)
    return build_head(config, [2, dim - 2] if config.mid_fusion else dim, classes)


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS.keys())
def config(request: pytest.FixtureRequest) -> HeadConfig:
    return request.param


def test_a_batch_equals_each_video_alone(config: HeadConfig) -> None:
    head = build(config).eval()
    features = sequences()
    together = head(features, LENGTHS)
    for number, length in enumerate(LENGTHS.tolist()):
        alone = head(features[number : number + 1, :length], LENGTHS[number : number + 1])
        torch.testing.assert_close(alone[0], together[number], rtol=0, atol=1e-6)


def test_what_stands_in_the_padding_has_no_effect(config: HeadConfig) -> None:
    head = build(config).eval()
    head.set_input_scaling(np.full(5, 2.0), np.full(5, 3.0))
    features = sequences()
    padding = torch.arange(6) >= LENGTHS[:, None]
    assert torch.equal(head(features, LENGTHS), head(features.masked_fill(padding[..., None], 1e4), LENGTHS))


def test_a_batch_equals_its_halves_and_its_shuffle(config: HeadConfig) -> None:
    head = build(config).eval()
    features = sequences()
    together = head(features, LENGTHS)
    halves = torch.cat([head(features[:2], LENGTHS[:2]), head(features[2:], LENGTHS[2:])])
    torch.testing.assert_close(together, halves, rtol=0, atol=1e-6)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(head(features[order], LENGTHS[order]), together[order], rtol=0, atol=1e-6)


def test_every_weight_learns(config: HeadConfig) -> None:
    head = build(config).train()
    if config.name == "attention":
        # Its scores start at zero, which keeps the layer before them still for the first step.
        for name, value in head.named_parameters():
            if name.endswith("score.weight"):
                nn.init.ones_(value)
    torch.nn.functional.nll_loss(head(sequences(), LENGTHS), torch.tensor([0, 1, 2, 0])).backward()
    still = [name for name, value in head.named_parameters() if value.grad is None or not value.grad.any()]
    assert still == []


def lstm_by_hand(layer: nn.LSTM, clips: list[torch.Tensor]) -> list[torch.Tensor]:
    state = memory = torch.zeros(layer.hidden_size)
    states = []
    for clip in clips:
        gates = layer.weight_ih_l0 @ clip + layer.bias_ih_l0 + layer.weight_hh_l0 @ state + layer.bias_hh_l0
        enter, forget, candidate, leave = gates.split(layer.hidden_size)
        memory = forget.sigmoid() * memory + enter.sigmoid() * candidate.tanh()
        state = leave.sigmoid() * memory.tanh()
        states.append(state)
    return states


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ["res_lstm", "stacked_lstm"])
def test_res_lstm_is_equations_1_and_2_of_the_paper(name: HeadName, layers: int) -> None:
    head = build(HeadConfig(name=name, num_layers=layers)).eval()
    assert [name for name, _ in head.classifier.named_parameters()] == ["weight"]
    together = head(sequences(), LENGTHS)
    for number, length in enumerate(LENGTHS.tolist()):
        x = list(sequences()[number, :length])
        for layer in head.encoder.layers:
            m = lstm_by_hand(layer, x)
            x = [m_t + x_t for m_t, x_t in zip(m, x, strict=True)] if name == "res_lstm" else m
        # The last layer's state itself, m, not x: without its own skip.
        expected = (head.classifier.weight @ m[-1]).softmax(dim=0)
        torch.testing.assert_close(together[number].exp(), expected, rtol=0, atol=1e-6)


def test_stacks_are_as_wide_as_their_input_or_its_projection() -> None:
    for name in ("res_lstm", "stacked_lstm"):
        head = build(HeadConfig(name=name, num_layers=3, units=99), dim=6)
        assert [layer.hidden_size for layer in head.encoder.layers] == [6, 6, 6]
        assert not any("projection" in key for key in head.state_dict())
        projected = build(HeadConfig(name=name, num_layers=2, input_projection=4), dim=6)
        assert [layer.hidden_size for layer in projected.encoder.encoder.layers] == [4, 4]
        plain = projected.encoder.projection
        projected.eval()
        features = sequences(6)
        through = projected.encoder.encoder(features @ plain.weight.T + plain.bias, LENGTHS)
        torch.testing.assert_close(projected.encode(features, LENGTHS), through, rtol=0, atol=1e-6)


def test_gru_and_bilstm_are_torchs_on_each_video_alone() -> None:
    features = sequences()
    gru = build(HeadConfig(name="gru", units=7, num_layers=2)).eval()
    bilstm = build(HeadConfig(name="bilstm", units=7)).eval()
    for number, length in enumerate(LENGTHS.tolist()):
        video = features[number : number + 1, :length]
        alone = LENGTHS[number : number + 1]
        expected = gru.encoder.gru(video)[0][0, -1]
        torch.testing.assert_close(gru.encode(video, alone)[0], expected, rtol=0, atol=1e-6)
        states = bilstm.encoder.lstm(video)[0][0]
        # The forward half has read the last clip, the backward half the first.
        expected = torch.cat([states[-1, :7], states[0, 7:]])
        torch.testing.assert_close(bilstm.encode(video, alone)[0], expected, rtol=0, atol=1e-6)


def test_attention_weighs_the_states_over_valid_clips() -> None:
    head = build(HeadConfig(name="attention", units=7)).eval()
    encoder, features = head.encoder, sequences()
    for video, (weights, length) in enumerate(
        zip(encoder.weights(features, LENGTHS)[0], LENGTHS.tolist(), strict=True)
    ):
        torch.testing.assert_close(weights[:length], torch.full((length,), 1 / length), rtol=0, atol=1e-6)
        assert not weights[length:].any(), video
    nn.init.normal_(encoder.score.weight, std=3.0)
    states = encoder.encoder.lstm(features[2:3])[0][0]
    scores = torch.stack([encoder.score.weight[0] @ torch.tanh(encoder.query(state)) for state in states])
    expected = (scores.softmax(dim=0)[:, None] * states).sum(dim=0)
    assert scores.softmax(dim=0).max() > 0.2
    torch.testing.assert_close(head.encode(features, LENGTHS)[2], expected, rtol=0, atol=1e-6)


def test_votes_by_hand() -> None:
    clips = torch.tensor([[0.6, 0.4, 0.0], [0.1, 0.5, 0.4], [0.45, 0.55, 0.0], [0.9, 0.05, 0.05]]).clamp(min=1e-9)
    batch, lengths = clips.log().expand(2, -1, -1), torch.tensor([4, 3])
    soft = vote(batch, lengths, "soft").exp()
    torch.testing.assert_close(soft, torch.stack([clips.mean(dim=0), clips[:3].mean(dim=0)]), rtol=0, atol=1e-6)
    majority = vote(batch, lengths, "majority").exp()
    # Two votes each of four clips: the higher mean probability decides, and only just; one and two of three.
    torch.testing.assert_close(majority, torch.tensor([[0.5, 0.5, 0], [1 / 3, 2 / 3, 0]]), rtol=0, atol=1e-5)
    assert majority[0].argmax() == soft[0].argmax() == 0
    torch.testing.assert_close(majority.sum(dim=1), torch.ones(2), rtol=0, atol=1e-6)


def test_a_vote_head_learns_from_each_clip() -> None:
    head = build(HeadConfig(name="vote")).train()
    features, labels = sequences(), torch.tensor([0, 1, 2, 0])
    loss = nn.functional.nll_loss(head(features, LENGTHS), labels)
    clips = [
        nn.functional.cross_entropy(head.classifier(features[i, :n]), labels[i].expand(n))
        for i, n in enumerate(LENGTHS.tolist())
    ]
    torch.testing.assert_close(loss, torch.stack(clips).mean(), rtol=0, atol=1e-6)


OPS = {"sum": lambda a, b: a + b, "product": lambda a, b: a * b, "concat": lambda a, b: torch.cat([a, b], dim=-1)}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", ["lstm", "res_lstm", "attention"])
def test_mid_fusion_by_hand(name: HeadName, op: FusionOp) -> None:
    rgb, flow = sequences(4), torch.flip(sequences(4), dims=[2]) + 0.5
    both = torch.cat([rgb, flow], dim=2)
    config = HeadConfig(name=name, units=7, num_layers=2, mid_fusion="input", fusion_op=op)
    torch.manual_seed(0)
    fused = build_head(config, [4, 4], 3).eval()
    plain = build_head(dataclasses.replace(config, mid_fusion=None), 8 if op == "concat" else 4, 3).eval()
    plain.encoder.load_state_dict(fused.encoder.state_dict())
    expected = plain.encode(OPS[op](rgb, flow), LENGTHS)
    torch.testing.assert_close(fused.encode(both, LENGTHS), expected, rtol=0, atol=1e-6)

    fused = build_head(dataclasses.replace(config, mid_fusion="hidden"), [4, 4], 3).eval()
    first, second = fused.encoder.encoders
    expected = OPS[op](first(rgb, LENGTHS), second(flow, LENGTHS))
    torch.testing.assert_close(fused.encode(both, LENGTHS), expected, rtol=0, atol=1e-6)
    assert fused.classifier.in_features == expected.shape[1]


def test_each_stream_is_scaled_by_its_own_deviations() -> None:
    head = build_head(HeadConfig(units=7, mid_fusion="input", fusion_op="concat"), [2, 2], 3)
    # A tenth of the root mean square deviation is the least; of flow alone it is far below that of RGB.
    head.set_input_scaling(np.zeros(4), np.array([100.0, 100.0, 1.0, 0.5]))
    torch.testing.assert_close(head.input_scale, torch.tensor([0.01, 0.01, 1.0, 2.0]))


@pytest.mark.parametrize("op", ["sum", "product"])
def test_scaling_and_dropout_act_on_the_joined_streams_and_never_before(op: FusionOp) -> None:
    torch.manual_seed(0)
    config = HeadConfig(units=7, mid_fusion="input", fusion_op=op, input_dropout=0.5)
    head = build_head(config, [4, 4], 3)
    read: list[torch.Tensor] = []
    head.encoder.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    rgb, flow = sequences(4), 1 + sequences(4).flip(2)
    mean, deviation = np.arange(4.0), np.array([1.0, 2.0, 3.0, 4.0])
    head.set_input_scaling(mean, deviation)
    scaled = (OPS[op](rgb, flow) - torch.from_numpy(mean)) / torch.from_numpy(deviation)
    head.eval()(torch.cat([rgb, flow], dim=2), LENGTHS)
    torch.testing.assert_close(read[0], scaled.float())
    head.train()(torch.cat([rgb, flow], dim=2), LENGTHS)
    dropped = ~read[1].any(dim=1, keepdim=True)
    assert dropped.any()
    torch.testing.assert_close(read[1], (2 * scaled * ~dropped).float())


@pytest.mark.parametrize(
    ("config", "dims", "says"),
    [
        (HeadConfig(), [4, 4], "2 streams need --mid-fusion"),
        (HeadConfig(mid_fusion="input"), [4], "two or more feature sets"),
        (HeadConfig(mid_fusion="input"), [4, 6], "--fusion-op concat"),
        (HeadConfig(mid_fusion="hidden", name="res_lstm"), [4, 6], "--input-projection"),
    ],
)
def test_streams_that_cannot_be_joined(config: HeadConfig, dims: list[int], says: str) -> None:
    with pytest.raises(RunError, match=says):
        build_head(config, dims, 3)


def test_streams_of_unlike_sizes_join_at_their_states() -> None:
    features = torch.cat([sequences(4), sequences(6)], dim=2)
    for config in (
        HeadConfig(units=7, mid_fusion="hidden", fusion_op="product"),
        HeadConfig(name="res_lstm", num_layers=2, input_projection=3, mid_fusion="hidden"),
    ):
        assert build_head(config, [4, 6], 3)(features, LENGTHS).shape == (4, 3)


def test_dropout_acts_between_layers_too() -> None:
    for name in ("lstm", "gru", "res_lstm", "stacked_lstm"):
        head = build(HeadConfig(name=name, units=20, num_layers=2, dropout=0.5), dim=20)
        features = sequences(20)
        # `encode` ends before the dropout on the last state.
        head.train()
        assert not torch.equal(head.encode(features, LENGTHS), head.encode(features, LENGTHS)), name
        head.eval()
        assert torch.equal(head.encode(features, LENGTHS), head.encode(features, LENGTHS)), name


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


def test_lstm_without_forget_gates_by_hand() -> None:
    torch.manual_seed(0)
    head = build_head(HeadConfig(units=3, forget_gate=False), 5, 2)
    lstm = head.encoder.get_submodule("lstm")
    nn.init.normal_(lstm.bias)
    for row, length in zip(sequences(), LENGTHS.tolist(), strict=True):
        h = c = torch.zeros(3)
        for x in row[:length]:
            i, g, o = (lstm.weight_ih @ x + lstm.weight_hh @ h + lstm.bias).split(3)
            c = c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        torch.testing.assert_close(head.encode(row[None], torch.tensor([length]))[0], h)


def test_without_forget_gates_it_is_an_lstm_whose_gates_are_open() -> None:
    torch.manual_seed(0)
    ours, torchs = (build_head(HeadConfig(units=3, forget_gate=gate), 5, 2).encoder for gate in (False, True))
    lstm, usual = ours.get_submodule("lstm"), torchs.get_submodule("lstm")
    with torch.no_grad():
        for name, of_forgetting in (("weight_ih", 0.0), ("weight_hh", 0.0), ("bias", 100.0)):
            i, g, o = getattr(lstm, name).chunk(3)
            target = getattr(usual, f"{name}_l0" if name != "bias" else "bias_ih_l0")
            target.copy_(torch.cat([i, torch.full_like(i, of_forgetting), g, o]))
        usual.bias_hh_l0.zero_()
    torch.testing.assert_close(ours(sequences(), LENGTHS), torchs(sequences(), LENGTHS))


def test_fifty_cells_without_forget_gates_have_the_published_number_of_parameters() -> None:
    head = build_head(HeadConfig(units=50, forget_gate=False, readout="steps"), 120, 6)
    assert sum(p.numel() for p in head.encoder.parameters()) == 25_650
    assert sum(p.numel() for p in head.parameters()) == 25_650 + 50 * 6 + 6


@pytest.mark.parametrize("vote", ["soft", "majority"])
def test_every_step_is_classified_and_the_steps_vote(vote: Vote) -> None:
    torch.manual_seed(0)
    head = build_head(HeadConfig(units=7, readout="steps", vote=vote), 5, 3)
    last = build_head(HeadConfig(units=7), 5, 3)
    last.load_state_dict(head.state_dict())
    found, learned = head.eval()(sequences(), LENGTHS).exp(), head.train()(sequences(), LENGTHS)
    for row, length, probabilities, logs in zip(sequences(), LENGTHS.tolist(), found, learned, strict=True):
        steps = torch.cat([last.eval()(row[None, :n], torch.tensor([n])) for n in range(1, length + 1)])
        torch.testing.assert_close(logs, steps.mean(dim=0))
        expected = steps.exp().mean(dim=0)
        if vote == "majority":
            expected = nn.functional.one_hot(steps.argmax(dim=1), 3).float().mean(dim=0)
        torch.testing.assert_close(probabilities, expected, atol=2e-6, rtol=0)


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
    weights, biases, converged = fit_linear(features, labels, num_classes=classes, c=0.3, max_iterations=500)
    assert converged
    assert weights.shape == (classes, 6)
    logits = torch.from_numpy(features @ weights.T + biases)
    expected = LogisticRegression(C=0.3, max_iter=500).fit(features, labels).predict_proba(features)
    np.testing.assert_allclose(logits.softmax(dim=1).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("classes", [2, 4])
def test_the_svm_orders_classes_as_scikit_learn_does(classes: int) -> None:
    from sklearn.svm import LinearSVC

    rng = np.random.default_rng(0)
    labels = np.arange(60) % classes
    features = (rng.standard_normal((classes, 6))[labels] + rng.standard_normal((60, 6))).astype(np.float32)
    weights, biases, converged = fit_linear(
        features, labels, num_classes=classes, kind="svm", c=0.3, max_iterations=5000, balanced=True
    )
    model = LinearSVC(C=0.3, max_iter=5000, class_weight="balanced", random_state=0).fit(features, labels)
    assert converged
    assert np.array_equal((features @ weights.T + biases).argmax(axis=1), model.predict(features))


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("balanced", [False, True])
def test_the_ridge_classifier_is_scikit_learns(classes: int, balanced: bool) -> None:
    """Its decision values, also with a penalty so small that single precision would not do."""
    from sklearn.linear_model import RidgeClassifier

    rng = np.random.default_rng(0)
    labels = np.arange(60) % classes
    features = (rng.standard_normal((classes, 90))[labels] + rng.standard_normal((60, 90))).astype(np.float32)
    for c in (0.5, 5e6):
        weights, biases, converged = fit_linear(
            features, labels, num_classes=classes, kind="ridge", c=c, max_iterations=1, balanced=balanced
        )
        assert converged
        model = RidgeClassifier(alpha=1 / (2 * c), class_weight="balanced" if balanced else None)
        wanted = model.fit(features.astype(np.float64), labels).decision_function(features.astype(np.float64))
        found = features @ weights.T + biases
        np.testing.assert_allclose(found[:, 1] if classes == 2 else found, wanted, rtol=1e-6, atol=1e-9)


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
    probabilities = class_probabilities(head, [FeatureBatch(features, LENGTHS, torch.zeros(4))], 4)
    assert probabilities.dtype == np.float64
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-14)
    np.testing.assert_allclose(probabilities, expected.detach().numpy(), rtol=1e-5)


def sigmoid_head(classes: int) -> Any:
    """A head whose logits are the features."""
    head = build_head(HeadConfig(name="mean_pool", output="sigmoid"), classes, classes)
    nn.init.eye_(head.classifier.weight)
    return head


def test_the_sigmoid_output_has_the_loss_and_gradient_of_keras() -> None:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    logits = (3 * torch.randn(6, 4, generator=torch.Generator().manual_seed(0))).requires_grad_()
    labels = torch.arange(6) % 4
    loss = classification_loss(sigmoid_head(4)(logits[:, None], torch.ones(6, dtype=torch.int64)), labels)
    wanted = keras.ops.categorical_crossentropy(nn.functional.one_hot(labels, 4).float(), logits.sigmoid()).mean()
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=1e-6)
    ours, theirs = (torch.autograd.grad(value, logits)[0] for value in (loss, wanted))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "logits", [[0, 1, -2], [50, 60, -700], [-200, -300, -400], [-90, -90, -90], [800, -800, 0], [-5000, -5001, -5000]]
)
def test_the_sigmoid_output_is_right_where_sigmoids_underflow(logits: list[int]) -> None:
    with localcontext(prec=60):
        sigmoids = [1 / (1 + (-Decimal(value)).exp()) for value in logits]
        expected = torch.tensor([[float((one / sum(sigmoids)).ln()) for one in sigmoids]])
    for precision in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16):
            found = sigmoid_head(3)(torch.tensor([[logits]], dtype=torch.float32), torch.ones(1, dtype=torch.int64))
        rounded = torch.tensor(logits).to(precision).float() - torch.tensor(logits)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6 + 2 * float(rounded.abs().max()))


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
    batch = FeatureBatch(sequences(), LENGTHS, torch.zeros(4))
    assert np.array_equal(*(class_probabilities(head, [batch], len(batch.lengths)) for _ in range(2)))
    assert isinstance(head.encoder, nn.Module)
    assert not head.training
