"""Reinforcement learning: GRPO on sums."""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tasks.base import Task, generator

PLUS, EQUALS, VOCAB = 10, 11, 12  # after the ten digits
DIGITS = 2  # of each number
BOUND = 10**DIGITS
N_PROMPT, N_ANSWER = 2 * DIGITS + 2, DIGITS + 1  # tokens


def digits(numbers: Tensor, n: int) -> Tensor:
    """The n digits of each number, the last one first."""
    return numbers[:, None] // 10 ** torch.arange(n) % 10


def written(problems: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens of "a+b=" and of the sum, all digits in reverse; problem k is k // 100 + k % 100.

    Reversed, a digit of the sum needs no carry that was not met before it.
    """
    a, b = problems // BOUND, problems % BOUND
    plus, equals = (torch.full((len(problems), 1), token) for token in (PLUS, EQUALS))
    return torch.cat([digits(a, DIGITS), plus, digits(b, DIGITS), equals], 1), digits(
        a + b, N_ANSWER
    )


class Prompts(NamedTuple):
    """What an update samples from, and how: a uniform number for every token of every sample."""

    prompts: Tensor  # (n, N_PROMPT)
    answers: Tensor  # (n, N_ANSWER)
    uniforms: Tensor  # (n * group, N_ANSWER)


class Arithmetic(Task):
    """GRPO on sums of two numbers below 100, from a supervised start that knows some of them.

    The policy is a small Llama. An update draws 16 problems and 8 samples for each; the reward of
    a sample is 1 where it is the sum, else 0, and its advantage that reward, centred and scaled
    within the eight. Every batch serves one update, so that the ratio of policies is 1 and nothing
    is clipped. Of the 10^4 problems, 1000 are held out from both stages.

    The supervised stage ends when the greedy answers to 500 of its own problems reach `started`.
    """

    name = "grpo"
    steps, every = 300, 10
    rates = (3e-5, 1e-4, 3e-4, 1e-3)
    untuned = 3e-5
    best = ("tail", 3e-4)
    fine_tuning = True
    recovery = 50  # rewards are behind for longer than losses
    problems, group = 16, 8
    started = 0.4

    def __init__(self) -> None:
        self._starts: dict[int, dict[str, Tensor]] = {}

    @cached_property
    def _data(self) -> tuple[Tensor, Tensor]:
        order = torch.randperm(BOUND**2, generator=generator(0, 0))
        return order[1000:], order[:1000]

    def _fresh(self, seed: int) -> nn.Module:
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=64,
            intermediate_size=192,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=N_PROMPT + N_ANSWER,
            initializer_range=0.05,
        )
        model: nn.Module = LlamaForCausalLM(config)
        return model

    def model(self, seed: int) -> nn.Module:
        """A model after the supervised stage, which is trained once for every seed."""
        model = self._fresh(seed)
        if seed not in self._starts:
            self._supervise(model, seed)
            self._starts[seed] = {k: v.clone() for k, v in model.state_dict().items()}
        model.load_state_dict(self._starts[seed])
        return model

    def _supervise(self, model: Any, seed: int) -> None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
        known = self._data[0]
        step = 0
        while step % 5 or self._greedy(model, known[:500]) < self.started:
            step += 1
            draw = generator(seed + 20_000, step)
            rows = known[torch.randint(len(known), (128,), generator=draw)]
            prompts, answers = written(rows)
            loss = cross_entropy(self._logits(model, prompts, answers).mT, answers)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def _logits(self, model: Any, prompts: Tensor, answers: Tensor) -> Tensor:
        """Logits of the tokens of answers, (n, N_ANSWER, VOCAB)."""
        ids = torch.cat([prompts, answers[:, :-1]], 1)
        logits: Tensor = model(input_ids=ids, use_cache=False).logits
        return logits[:, N_PROMPT - 1 :]

    @torch.no_grad()
    def _samples(self, model: Any, prompts: Tensor, uniforms: Tensor | None = None) -> Tensor:
        """Answers, drawn by uniform numbers, several for each prompt, or greedily without them."""
        out = model(input_ids=prompts, use_cache=True)
        cache, logits = out.past_key_values, out.logits[:, -1]
        if uniforms is not None:
            repeats = len(uniforms) // len(prompts)
            cache.batch_repeat_interleave(repeats)
            logits = logits.repeat_interleave(repeats, 0)
        tokens: list[Tensor] = []
        for at in range(N_ANSWER):
            if at > 0:
                last = tokens[-1][:, None]
                logits = model(input_ids=last, past_key_values=cache, use_cache=True).logits[:, -1]
            if uniforms is None:
                tokens.append(logits.argmax(1))
            else:
                below = logits.softmax(1).cumsum(1)[:, :-1] < uniforms[:, at, None]
                tokens.append(below.sum(1))
        return torch.stack(tokens, 1)

    def batch(self, seed: int, step: int) -> Prompts:
        draw, known = generator(seed, step), self._data[0]
        rows = known[torch.randint(len(known), (self.problems,), generator=draw)]
        uniforms = torch.rand(self.problems * self.group, N_ANSWER, generator=draw)
        return Prompts(*written(rows), uniforms)

    def loss(self, model: Any, batch: Prompts) -> Tensor:
        """The share of wrong samples, with the policy's gradient."""
        samples = self._samples(model, batch.prompts, batch.uniforms)
        answers = batch.answers.repeat_interleave(self.group, 0)
        rewards = (samples == answers).all(1).float().view(-1, self.group)
        advantages = rewards - rewards.mean(1, keepdim=True)
        advantages = advantages / (rewards.std(1, keepdim=True) + 1e-4)
        prompts = batch.prompts.repeat_interleave(self.group, 0)
        logs = -cross_entropy(self._logits(model, prompts, samples).mT, samples, reduction="none")
        ratios = (logs - logs.detach()).exp()  # 1; its gradient is that of the logarithm
        surrogate = (advantages.view(-1, 1) * ratios).mean()
        return 1 - rewards.mean() - (surrogate - surrogate.detach())

    @cached_property
    def held_out(self) -> list[Any]:
        return [written(self._data[1])]

    def _greedy(self, model: Any, problems: Tensor) -> float:
        prompts, answers = written(problems)
        return float((self._samples(model, prompts) == answers).all(1).float().mean())

    def reward(self, model: nn.Module) -> float:
        """The share of held-out problems that the greedy answer solves."""
        training = model.training
        model.eval()
        share = self._greedy(model, self._data[1])
        model.train(training)
        return share

    def held_out_loss(self, model: nn.Module) -> float:
        """1 - `reward`."""
        return 1 - self.reward(model)
