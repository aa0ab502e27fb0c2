"""Discriminators: loss, rewards and gradient penalty by hand, and against other ways to compute them."""

import math

import pytest
import torch
from torch import Tensor

from herdbook.irl.discriminator import accuracies, gradient_penalty, imitation_reward, logistic_loss

LOG_3 = math.log(3.0)  # D = 3/4


def test_the_loss_by_hand() -> None:
    """D = 3/4 and 1/2 on the expert, 1/4 on the policy."""
    loss = logistic_loss(torch.tensor([LOG_3, 0.0]), torch.tensor([-LOG_3]))
    assert loss.item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2 + math.log(4 / 3), abs=1e-6)
    assert logistic_loss(torch.zeros(3), torch.zeros(5)).item() == pytest.approx(2 * math.log(2), abs=1e-6)


def test_the_loss_has_gradients_far_out() -> None:
    """The sigmoid of ±200 rounds to 0 and 1, whose logarithms are infinite."""
    expert, policy = torch.tensor([-200.0], requires_grad=True), torch.tensor([200.0], requires_grad=True)
    loss = logistic_loss(expert, policy)
    assert loss.item() == 400.0
    assert [g.item() for g in torch.autograd.grad(loss, (expert, policy))] == [-1.0, 1.0]


@pytest.mark.parametrize(
    ("logit", "survival", "suicide"),
    [
        (0.0, math.log(2), -math.log(2)),
        (LOG_3, math.log(4), -math.log(4 / 3)),
        (-LOG_3, math.log(4 / 3), -math.log(4)),
        (200.0, 200.0, 0.0),
        (-200.0, 0.0, -200.0),
    ],
)
def test_reward_sign(logit: float, survival: float, suicide: float) -> None:
    """−log(1 − D) >= 0, log D <= 0, and the logit is their sum."""
    z = torch.tensor([logit])
    assert imitation_reward(z, "-log(1-D)").item() == pytest.approx(survival, abs=1e-6)
    assert imitation_reward(z, "log D").item() == pytest.approx(suicide, abs=1e-6)
    assert imitation_reward(z, "logit").item() == pytest.approx(logit, rel=1e-6)
    assert survival >= 0 >= suicide and survival + suicide == pytest.approx(logit, abs=1e-6)


def test_an_unknown_convention_is_named() -> None:
    with pytest.raises(ValueError, match=r"expected reward_convention -log\(1-D\) or log D or logit, got 'log\(D\)'"):
        imitation_reward(torch.zeros(1), "log(D)")  # type: ignore[arg-type]


def test_accuracies_by_hand() -> None:
    found = accuracies(torch.tensor([1.0, -1.0, 2.0, 3.0]), torch.tensor([-1.0, 1.0]))
    assert {name: value.item() for name, value in found.items()} == {"accuracy/expert": 0.75, "accuracy/policy": 0.5}


def test_the_gradient_penalty_by_hand() -> None:
    """z = 3 x₁ + 4 x₂ has the gradient norm 5 everywhere; z = x₁² has 2 |x₁| at the interpolates."""
    expert, policy = torch.tensor([[1.0, 0.0], [2.0, 1.0]]), torch.tensor([[0.0, 0.0], [0.0, 5.0]])
    mix = torch.tensor([0.25, 0.5])
    linear = gradient_penalty(lambda x: x @ torch.tensor([3.0, 4.0]), expert, policy, mix)
    assert linear.item() == pytest.approx(16.0)
    squares = gradient_penalty(lambda x: x[:, 0].square(), expert, policy, mix)  # x₁ = 0.25 and 1
    assert squares.item() == pytest.approx(((0.5 - 1) ** 2 + (2 - 1) ** 2) / 2)
    edges = gradient_penalty(lambda x: x[:, 0].square(), expert, policy, torch.tensor([1.0, 0.0]))  # x₁ = 1 and 0
    assert edges.item() == pytest.approx(((2 - 1) ** 2 + (0 - 1) ** 2) / 2, abs=1e-4)


def perceptron(parameters: Tensor, inputs: Tensor) -> Tensor:
    """tanh, 3 → 4 → 1."""
    hidden = torch.tanh(inputs @ parameters[:12].view(3, 4) + parameters[12:16])
    return hidden @ parameters[16:]


def penalty(parameters: Tensor, expert: Tensor, policy: Tensor, mix: Tensor) -> Tensor:
    return gradient_penalty(lambda x: perceptron(parameters, x), expert, policy, mix)


def samples(*lead: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    sizes = ((20,), (6, 3), (6, 3), (6,))
    parameters, expert, policy, mix = (
        torch.randn(*lead, *size, generator=generator, dtype=torch.float64) for size in sizes
    )
    return parameters, expert, policy, mix.sigmoid()


def test_the_second_order_gradient_of_the_penalty_against_finite_differences() -> None:
    parameters, expert, policy, mix = samples()
    leaf = parameters.clone().requires_grad_()
    (exact,) = torch.autograd.grad(penalty(leaf, expert, policy, mix), leaf)
    for index, step in enumerate(torch.eye(20, dtype=torch.float64) * 1e-5):
        above, below = (penalty(parameters + sign * step, expert, policy, mix) for sign in (1, -1))
        assert exact[index].item() == pytest.approx((above - below).item() / 2e-5, rel=1e-5, abs=1e-8)
    assert exact.abs().max() > 0.01


def test_the_penalty_under_vmap_equals_that_of_each_seed() -> None:
    parameters, *inputs = samples(3)
    leaf = parameters.clone().requires_grad_()
    together = torch.vmap(penalty)(leaf, *inputs)
    (gradients,) = torch.autograd.grad(together.sum(), leaf)
    for seed in range(3):
        solo = parameters[seed].clone().requires_grad_()
        value = penalty(solo, *(x[seed] for x in inputs))
        torch.testing.assert_close(together[seed], value)
        torch.testing.assert_close(gradients[seed], torch.autograd.grad(value, solo)[0])


def test_a_flat_discriminator_has_a_finite_gradient() -> None:
    """The norm of a zero gradient has no derivative."""
    weights = torch.zeros(3, requires_grad=True)
    loss = gradient_penalty(lambda x: x @ weights, torch.ones(2, 3), torch.zeros(2, 3), torch.tensor([0.5, 0.5]))
    (gradient,) = torch.autograd.grad(loss, weights)
    assert loss.item() == pytest.approx(1.0, abs=1e-4) and bool(gradient.isfinite().all())
