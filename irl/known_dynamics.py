"""Tabular inverse RL with known dynamics: soft planning, occupancies of demonstrations, gradient steps on a reward.

    Q_t(s, a) = r(s, a) + γ G(V_{t+1})(s, a),   V_t = log Σ_a exp Q_t(·, a),   π_t = exp(Q_t − V_t)     (1)
    L(r)      = Σ d_D(s, a) r(s, a) − Σ_t Σ_s ν_t(s) V_t(s)                                             (2)
    ∇_r L     = d_D − d_r,   d_r(s, a) = Σ_t ρ_t(s) π_t(a | s)                                          (3)
    ρ_{t+1}   = ν_{t+1} + γ Σ_{s, a} ρ_t(s) π_t(a | s) ∂G(V_{t+1})(s, a) / ∂V_{t+1},   ρ_0 = ν_0          (4)

G(V)(s, a) values the outcomes of an action: each method has its own. V is 0 in terminal states and after the horizon;
without a horizon, V, π and ρ = Σ_t ρ_t do not depend on t. (3) is the exact gradient of (2), with one γ for both terms.

N demonstrations give, summed over their steps and divided by N,

    d_D(s_t, a_t) += γᵗ,   ν_t(s_t) += γᵗ,   ν_{t+1}(s_{t+1}) −= γᵗ⁺¹ (1 − terminated)                   (5)

In whole episodes the terms of ν cancel, except for the initial states and for the last states of truncated episodes.
After a termination there is no reward, as in the MDP. After a truncation the demonstrator is assumed to go on as the
fitted policy does: (2) then adds γᵀ V(s_T) to the rewards of T recorded steps, the bootstrap of a truncated return. If
only some steps are sampled (`Episodes.subsample`), (5) counts those.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, Unpack, cast

import numpy as np
import scipy.optimize
import torch
from gymnasium import spaces
from numpy.typing import ArrayLike
from torch import Tensor, nn

from herdbook.core.config import COUNT, POSITIVE, UNIT, Config
from herdbook.core.learner import Adam, Learner, Parameters, Params, Setup, check_one_seed
from herdbook.core.policy import Scaling
from herdbook.core.spaces import check_action_space
from herdbook.core.types import Metrics, Spec, Transitions
from herdbook.datasets.replay import ReplayBuffer
from herdbook.irl.rewards import LearnedReward, RewardDesign
from herdbook.tabular.dynamics import Dynamics
from herdbook.tabular.mdp import MDP, Floats
from herdbook.tabular.policy import TabularPolicy

_TOLERANCE = 1e-12  # of the fixed point of eq. 1, relative to the largest value
_ITERATIONS = 200  # Newton steps for the fixed point; a dozen suffice


@dataclass(frozen=True, kw_only=True)
class TabularIRLConfig(Config):
    """Settings of inverse RL with known dynamics. Raises ValueError for γ = 1 without a horizon."""

    horizon: int | None = None  # steps of an episode; None: no limit
    discount: float = 0.99  # γ, of the plan and of the demonstrations
    inputs: Literal["state", "state_action"] = "state"  # what the reward depends on
    hidden_sizes: tuple[int, ...] = ()  # hidden layers of the reward; none: linear in one-hot states (and actions)
    lr: float = 1e-2  # learning rate of Adam

    def __post_init__(self) -> None:
        self.require(horizon=COUNT, discount=UNIT, hidden_sizes=COUNT, lr=POSITIVE)
        self.require_one_of(inputs=("state", "state_action"))
        if self.horizon is None and self.discount == 1:
            raise ValueError(f"{type(self).__name__}: expected discount < 1 or a horizon, got 1 and None")


class Outlook(NamedTuple):
    """G(V) `[S, A]` of eq. 1, and its derivative: ∂G(s, a) / ∂V(s′) = weights(s, a) p(s′ | s, a) scale(s′)."""

    value: Floats
    weights: Floats  # [S, A]
    scale: Floats  # [S]


Valuation = Callable[[Dynamics, Floats], Outlook]
"""G of eq. 1, from V [S]."""


@dataclass(frozen=True, slots=True, eq=False)
class Flow:
    """The two measures of eq. 2 that demonstrations give."""

    occupancy: Floats
    """d_D, `[S, A]`."""
    entries: Floats
    """ν, `[S]`, or `[T, S]` over a horizon of T steps."""

    @classmethod
    def of(cls, mdp: MDP, occupancy: ArrayLike, horizon: int | None) -> Flow:
        """The measures of whole episodes that begin by the MDP's initial distribution. occupancy: d_D [S, A].

        Raises ValueError for an occupancy of another shape, with negative or non-finite values.
        """
        measure = np.asarray(occupancy, np.float64)
        if measure.shape != (mdp.num_states, mdp.num_actions):
            raise ValueError(f"occupancy: expected [{mdp.num_states}, {mdp.num_actions}], got shape {measure.shape}")
        if not (np.isfinite(measure) & (measure >= 0)).all():
            raise ValueError(f"occupancy: expected finite values >= 0, got {measure.min()} to {measure.max()}")
        entries = mdp.initial if horizon is None else np.zeros((horizon, mdp.num_states))
        if horizon is not None:
            entries[0] = mdp.initial
        return cls(measure, entries)


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """The solution of eq. 1 and 4 for one reward. Over a horizon of T steps, V is `[T + 1, S]` and π `[T, S, A]`."""

    values: Floats
    """V, `[S]`."""
    policy: Floats
    """π, `[S, A]`."""
    occupancy: Floats
    """d_r, `[S, A]`."""


def soft_plan(
    dynamics: Dynamics,
    rewards: Floats,
    entries: Floats,
    *,
    discount: float,
    valuation: Valuation,
    start: Floats | None = None,
) -> Plan:
    """Solve eq. 1 and 4. Values are NaN where they do not exist in float64.

    Args:
        dynamics: p(s′ | s, a).
        rewards: r, [S, A]; terminal states are not read.
        entries: ν, [S]; or [T, S] for a horizon of T steps.
        discount: γ, below 1 without a horizon.
        valuation: G.
        start: Values [S] from which the fixed point is sought, by default 0; not used with a horizon.
    """
    if entries.ndim == 2:
        return _over_horizon(dynamics, rewards, entries, discount, valuation)
    values = np.zeros(dynamics.num_states) if start is None else start
    goes_on = (~dynamics.ends).astype(np.float64)
    for _ in range(_ITERATIONS):
        outlook = valuation(dynamics, values)
        improved, policy = _soft_maximum(rewards + discount * outlook.value)  # eq. 1
        change = goes_on * improved - values
        chain = dynamics.chain(policy * outlook.weights).numpy() * (discount * outlook.scale * goes_on)
        system = torch.from_numpy(np.eye(len(values)) - goes_on[:, None] * chain)
        if not np.abs(change).max() > _TOLERANCE * (1 + np.abs(values).max()):  # NaN ends the search too
            visits = torch.linalg.solve(system.T, torch.from_numpy(goes_on * entries)).numpy()  # eq. 4
            return Plan(values, policy, visits[:, None] * policy)
        values = values + torch.linalg.solve(system, torch.from_numpy(change)).numpy()  # Newton's method
    return Plan(*(np.full_like(array, np.nan) for array in (values, policy, policy)))


def _over_horizon(dynamics: Dynamics, rewards: Floats, entries: Floats, discount: float, valuation: Valuation) -> Plan:
    horizon, goes_on = len(entries), ~dynamics.ends
    values, outlooks = np.zeros((horizon + 1, dynamics.num_states)), list[Outlook]()
    policy = np.zeros((horizon, *rewards.shape))
    for t in reversed(range(horizon)):
        outlooks.append(valuation(dynamics, values[t + 1]))
        values[t], policy[t] = _soft_maximum(rewards + discount * outlooks[-1].value)  # eq. 1
        values[t] *= goes_on
    visits, occupancy = entries[0] * goes_on, np.zeros_like(rewards)
    for t, outlook in enumerate(reversed(outlooks)):
        acting = visits[:, None] * policy[t]
        occupancy += acting  # eq. 3
        if t + 1 < horizon:
            arriving = discount * outlook.scale * dynamics.arrivals(acting * outlook.weights)
            visits = (entries[t + 1] + arriving) * goes_on  # eq. 4
    return Plan(values, policy, occupancy)


def _soft_maximum(q: Floats) -> tuple[Floats, Floats]:
    """log Σ_a exp Q(·, a) [S], and the softmax [S, A]. q: [S, A]."""
    top = q.max(-1, keepdims=True)
    powers = np.exp(q - top)
    total = powers.sum(-1, keepdims=True)
    return (top + np.log(total))[:, 0], powers / total


def objective(flow: Flow, rewards: Floats, plan: Plan) -> float:
    """L of eq. 2. rewards: the ones [S, A] that the plan was made for."""
    values = plan.values if flow.entries.ndim == 1 else plan.values[:-1]
    return float((flow.occupancy * rewards).sum() - (flow.entries * values).sum())


def flow_of(replay: ReplayBuffer, mdp: MDP, spec: Spec, *, discount: float, horizon: int | None = None) -> Flow:
    """The measures of demonstrations, eq. 5.

    Args:
        replay: The demonstrations.
        mdp: The model; rewards and discount are not read.
        spec: The spaces of the demonstrations, Discrete and as large as the model.
        discount: γ.
        horizon: Steps of an episode; None: no limit.

    Raises ValueError, naming the step, for demonstrations that are longer than the horizon or impossible in the model.
    """
    if not len(replay):
        raise ValueError("demonstrations: expected at least one step, got none")
    _check_size(spec, mdp)
    first_state, first_action = (int(space.start) for space in _tables(spec))
    indices = replay.entries(torch.arange(len(replay), device=replay.device))
    steps, windows = replay.gather(indices, discount=1.0), replay.gather_segments(indices, 1)
    assert windows.timesteps is not None
    times, terminated = windows.timesteps[:, 0].cpu().numpy(), windows.terminated[:, 0].cpu().numpy()
    states = steps.observations.cpu().numpy() - first_state
    actions = steps.actions.cpu().numpy() - first_action
    following = steps.next_observations.cpu().numpy() - first_state
    episodes = len(np.unique(indices.cpu().numpy() - times))
    _check_possible(mdp, states, actions, following, terminated)
    if horizon is not None and times.max() >= horizon:
        raise ValueError(
            f"demonstrations: expected episodes of at most {horizon} steps, the horizon, got one of "
            f"{times.max() + 1} or more; give a longer horizon"
        )
    weights = discount**times / episodes
    occupancy = np.zeros((mdp.num_states, mdp.num_actions))
    np.add.at(occupancy, (states, actions), weights)
    entries = np.zeros((1 if horizon is None else horizon + 1, mdp.num_states))
    rows = np.zeros_like(times) if horizon is None else times
    np.add.at(entries, (rows, states), weights)
    leaving = discount * weights * steps.discounts.cpu().numpy()
    np.add.at(entries, (rows if horizon is None else rows + 1, following), -leaving)
    return Flow(occupancy, entries[0] if horizon is None else entries[:-1])


def _tables(spec: Spec) -> tuple[spaces.Discrete, spaces.Discrete]:
    """The spaces of states and actions. Raises ValueError unless both are Discrete."""
    states, actions = spec.observation_space, spec.action_space
    if not isinstance(states, spaces.Discrete) or not isinstance(actions, spaces.Discrete):
        raise ValueError(
            f"expected Discrete observations and actions, which number the states and actions of a table, got {states} "
            f"and {actions}"
        )
    return states, actions


def _check_size(spec: Spec, mdp: MDP) -> None:
    """Raise ValueError unless the spaces are as large as the model."""
    sizes, expected = [int(space.n) for space in _tables(spec)], [mdp.num_states, mdp.num_actions]
    if sizes != expected:
        raise ValueError(
            f"expected the model's {expected[0]} states and {expected[1]} actions, the demonstrations have "
            f"{sizes[0]} and {sizes[1]}; are they of another environment?"
        )


def _check_possible(mdp: MDP, states: Any, actions: Any, following: Any, terminated: Any) -> None:
    """Raise ValueError, naming the first step, if the model cannot make one of the transitions, [B] each."""
    impossible = (mdp.transitions[states, actions, following] == 0) | mdp.ends[states]
    wrong = impossible | (terminated & ~mdp.ends[following])
    if not wrong.any():
        return
    step = int(np.flatnonzero(wrong)[0])
    what = f"from state {states[step]} by action {actions[step]} to state {following[step]}"
    why = "which is impossible in the model" if impossible[step] else "where it ends, and the model goes on"
    raise ValueError(f"demonstrations: step {step} goes {what}, {why}; are they of another environment?")


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """A linear reward that maximises eq. 2."""

    weights: Floats
    """θ, `[K]`."""
    rewards: Floats
    """r = Φ θ, `[S, A]`."""
    plan: Plan
    iterations: int
    """Number of iterations of L-BFGS."""


def fit_flow(
    mdp: MDP, flow: Flow, valuation: Valuation, *, features: Floats | None = None, max_iterations: int = 1_000
) -> Fitted:
    """Maximise eq. 2, with the discount of the MDP, over linear rewards r = Φ θ by L-BFGS from θ = 0.

    Args:
        mdp: The model; its rewards are not read.
        flow: The demonstrations.
        valuation: G.
        features: Φ, of states [S, K] or of states and actions [S, A, K]; by default one-hot states.
        max_iterations: Largest number of iterations.

    Raises ValueError for features of another shape and for a discount of 1 without a horizon.
    """
    phi = features_of(features, mdp)
    if mdp.discount == 1 and flow.entries.ndim == 1:
        raise ValueError("discount: expected γ < 1 or a horizon, got 1")
    dynamics = Dynamics(mdp)

    def planned(theta: Floats) -> tuple[Floats, Plan]:
        rewards = phi @ theta
        return rewards, soft_plan(dynamics, rewards, flow.entries, discount=mdp.discount, valuation=valuation)

    def loss(theta: Floats) -> tuple[float, Floats]:
        rewards, plan = planned(theta)
        gradient = np.einsum("sa,sak->k", plan.occupancy - flow.occupancy, phi)  # eq. 3
        return -objective(flow, rewards, plan), gradient

    options = {"maxiter": max_iterations, "maxfun": 10 * max_iterations, "ftol": 0.0, "gtol": 1e-7}
    found = scipy.optimize.minimize(loss, np.zeros(phi.shape[-1]), jac=True, method="L-BFGS-B", options=options)
    rewards, plan = planned(found.x)
    if not np.isfinite(plan.occupancy).all():
        raise ValueError("the values of the fitted reward do not exist in float64; is the occupancy possible here?")
    return Fitted(found.x, rewards, plan, int(found.nit))


def features_of(features: Floats | None, mdp: MDP) -> Floats:
    """Φ as [S, A, K]; None: one-hot states. Raises ValueError for another shape."""
    states, actions = mdp.num_states, mdp.num_actions
    phi = np.eye(states) if features is None else np.asarray(features, np.float64)
    if phi.ndim == 2:
        phi = np.repeat(phi[:, None], actions, 1) if len(phi) == states else phi
    if phi.ndim != 3 or phi.shape[:2] != (states, actions):
        raise ValueError(f"features: expected [{states}, K] or [{states}, {actions}, K], got {phi.shape}")
    return phi


def _checked_features(features: ArrayLike, states: int, config: TabularIRLConfig) -> Floats:
    """Φ, [S, K]. Raises ValueError for another shape, and beside a config whose reward has another form."""
    phi = np.asarray(features, np.float64)
    if phi.ndim != 2 or len(phi) != states or config.inputs != "state" or config.hidden_sizes:
        raise ValueError(
            f"features: expected [{states}, K] beside inputs state and no hidden_sizes, got {phi.shape}, "
            f"{config.inputs} and {config.hidden_sizes}"
        )
    return phi


class _Weights(nn.Module):
    """A reward that is linear in features, [S, K] → [S]."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.layer = nn.Linear(size, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        return self.layer(features).squeeze(-1)  # type: ignore[no-any-return]


class Known(Setup, total=False):
    """Arguments of the algorithms beside config and spec. Setup: one seed."""

    mdp: MDP | None  # the model, of which rewards and discount are not read; None: only policy and reward are wanted
    demonstrations: ReplayBuffer | Flow | None  # to learn from, a replay or exact measures; None as for mdp
    features: Floats | None  # Φ of states, [S, K], for a reward that is linear in them; None: the form of the config


class TabularIRL:
    """A reward, the plan for it, and gradient steps by eq. 3 with Adam. The algorithms are built on it.

    Raises ValueError for spaces that are not Discrete or not the model's, for features of another shape, and for
    demonstrations that `flow_of` refuses.
    """

    def __init__(self, config: TabularIRLConfig, spec: Spec, valuation: Valuation, **known: Unpack[Known]) -> None:
        mdp, demonstrations = known.pop("mdp", None), known.pop("demonstrations", None)
        features = known.pop("features", None)
        setup = cast(Setup, known)
        check_one_seed(config.algorithm, setup, "it trains")
        check_action_space(spec.action_space, "discrete", config.algorithm)
        states, actions = _tables(spec)
        self.config, self.spec, self.valuation = config, spec, valuation
        self.shape = int(states.n), int(actions.n)
        device = setup.get("device", "cpu")
        self.design = RewardDesign(inputs=config.inputs, hidden_sizes=config.hidden_sizes)
        scaling = Scaling(spec, device=device)
        make: Callable[[], nn.Module] = partial(self.design.build, scaling)
        self.inputs: Any = _every_pair(self.shape, int(states.start), config.inputs, device)
        self.linear = features is not None
        if features is not None:
            phi = _checked_features(features, self.shape[0], config)
            make, self.inputs = (
                partial(_Weights, phi.shape[1]),
                torch.as_tensor(phi, dtype=torch.float32, device=device),
            )
        self.learner = Learner({"reward": make}, {"reward": Adam(lr=config.lr)}, **setup)
        self.network = self.learner.networks["reward"]
        self.model: tuple[Dynamics, Flow] | None = None
        if mdp is not None:
            _check_size(spec, mdp)
            if demonstrations is None:
                raise ValueError("demonstrations: expected what to learn from beside mdp, got None")
            if not isinstance(demonstrations, Flow):
                demonstrations = flow_of(demonstrations, mdp, spec, discount=config.discount, horizon=config.horizon)
            self.model = Dynamics(mdp), demonstrations
        self._plan: Plan | None = None  # for the current reward
        self._start: Floats | None = None  # values of the last plan

    @torch.no_grad()
    def rewards(self) -> Floats:
        """The reward of every state and action, [S, A] float64."""
        values = self._values(self.learner.parameters_of("reward")).double().cpu().numpy()
        return np.array(np.broadcast_to(values.reshape(self.shape[0], -1), self.shape))

    def known(self) -> tuple[Dynamics, Flow]:
        """The model and the demonstrations. Raises ValueError where only the policy was wanted."""
        if self.model is None:
            raise ValueError(f"{self.config.algorithm}: expected mdp and demonstrations to learn from, got None")
        return self.model

    def plan(self) -> Plan:
        """The plan for the current reward."""
        if self._plan is None:
            dynamics, flow = self.known()
            self._plan = soft_plan(
                dynamics,
                self.rewards(),
                flow.entries,
                discount=self.config.discount,
                valuation=self.valuation,
                start=self._start,
            )
            self._start = None if self.config.horizon else self._plan.values
        return self._plan

    def update(self) -> Metrics:
        """One gradient step. `gap/…` is the largest difference of the occupancies before it."""
        (_, flow), plan, rewards = self.known(), self.plan(), self.rewards()
        difference = flow.occupancy - plan.occupancy  # eq. 3
        by_state = difference.sum(-1)
        weights = by_state if self.config.inputs == "state" else difference.reshape(-1)
        self.learner.updates += 1
        self.learner.step("reward", self._objective, torch.from_numpy(weights).float().to(self.learner.device))
        self._plan = None
        numbers = {
            "loss/reward": -objective(flow, rewards, plan),
            "gap/state": np.abs(by_state).max(),
            "gap/state_action": np.abs(difference).max(),
            "reward": rewards.mean(),
        }
        return {name: torch.tensor(float(value)) for name, value in numbers.items()}

    def _values(self, parameters: Parameters) -> Tensor:
        """Rewards of all states [S], or of all pairs [S · A]."""
        values: Tensor = self.network(parameters, self.inputs)
        return values

    def _objective(self, params: Params, weights: Tensor) -> tuple[Tensor, Metrics]:
        """A loss whose gradient is that of −L, by the chain rule from eq. 3. weights: d_D − d_r, [S] or [S · A]."""
        return -(weights * self._values(params["reward"])).sum(), {}

    def policy(self, *, deterministic: bool) -> TabularPolicy:
        table = TabularPolicy(self.plan().policy, deterministic=deterministic)
        return table.in_spaces(self.spec.observation_space, self.spec.action_space)

    def reward(self) -> LearnedReward:
        """The current reward; one that is linear in features as a table of states."""
        members = {name: value.clone() for name, value in self.learner.parameters_of("reward").items()}
        if self.linear:
            table = self._values(members)
            members = {"head.layers.0.weight": table[None], "head.layers.0.bias": table.new_zeros(1)}
        about = {"algorithm": self.config.algorithm, "updates": self.learner.updates}
        return LearnedReward(
            design=self.design, spec=self.spec, discount=self.config.discount, members=(members,), about=about
        )

    def state_dict(self) -> dict[str, Any]:
        plan = self.plan()
        tables = {name: torch.from_numpy(getattr(plan, name)) for name in ("values", "policy", "occupancy")}
        return {**self.learner.state_dict(), "plan": tables}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave. Raises ValueError if it is of other spaces or another horizon."""
        if not isinstance(state.get("plan"), Mapping):
            raise ValueError(f"{self.config.algorithm}: not the state of a learner that plans: it has no plan")
        saved = {name: np.array(table.cpu().numpy(), np.float64) for name, table in state["plan"].items()}
        steps = () if self.config.horizon is None else (self.config.horizon,)
        if saved["policy"].shape != (*steps, *self.shape):
            raise ValueError(f"expected a policy {[*steps, *self.shape]}, the state has {list(saved['policy'].shape)}")
        self.learner.load_state_dict({name: value for name, value in state.items() if name != "plan"})
        self._plan = Plan(**saved)
        self._start = None if self.config.horizon else self._plan.values


def _every_pair(shape: tuple[int, int], first_state: int, inputs: str, device: str | torch.device) -> Transitions:
    """Every state, or every state and action, in the networks' units; what the reward does not read is 0."""
    states, actions = torch.arange(shape[0], device=device), torch.zeros(shape[0], dtype=torch.int64, device=device)
    if inputs == "state_action":
        states = states.repeat_interleave(shape[1])
        actions = torch.arange(shape[1], device=device).repeat(shape[0])
    nothing = torch.zeros(len(states), device=device)
    observations = states + first_state
    return Transitions(observations, actions, nothing, nothing, observations)
